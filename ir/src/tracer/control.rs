//! Loops and branches: regions that are traced by closures.

use std::panic::Location;
use std::sync::Arc;

use super::{Building, Kind, Tracer, Var, add, session, with};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::graph::{Graph, NodeId};
use crate::ops::{If, Proj, Scan, While};
use crate::types::TensorType;

/// A region that has been traced, and the values from outside that it reads.
pub(super) struct Region<'t> {
    pub(super) graph: Arc<Graph>,
    pub(super) captured: Vec<Var<'t>>,
}

impl<'t> Tracer<'t> {
    /// A loop over the leading axis of `xs`, from the first slice to the last.
    ///
    /// `body` gets the carried values and one slice of each of `xs`, and gives the next carried values and one slice of
    /// each result. Values from outside may be read in it. Returns the last carried values and the stacked results.
    #[track_caller]
    pub fn scan<F>(&self, init: &[Var<'t>], xs: &[Var<'t>], body: F) -> (Vec<Var<'t>>, Vec<Var<'t>>)
    where
        F: FnOnce(&Tracer<'t>, &[Var<'t>], &[Var<'t>]) -> (Vec<Var<'t>>, Vec<Var<'t>>),
    {
        let length = xs.first().and_then(|x| x.shape().first().cloned()).unwrap_or(Dim::ZERO);
        self.scan_of(length, false, init, xs, body)
    }

    /// [`Tracer::scan`] of `length` steps, in either direction; results keep the order of `xs`.
    #[track_caller]
    pub fn scan_of<F>(
        &self,
        length: Dim,
        reverse: bool,
        init: &[Var<'t>],
        xs: &[Var<'t>],
        body: F,
    ) -> (Vec<Var<'t>>, Vec<Var<'t>>)
    where
        F: FnOnce(&Tracer<'t>, &[Var<'t>], &[Var<'t>]) -> (Vec<Var<'t>>, Vec<Var<'t>>),
    {
        let caller = Location::caller();
        let traced = self.region(Kind::Region, caller, |t| {
            let carries = carried_inputs(t, init);
            let slices: Vec<Var> = xs
                .iter()
                .enumerate()
                .map(|(i, v)| {
                    let ty = v.ty();
                    let shape = ty.shape.get(1..).unwrap_or_default().into();
                    t.input(&format!("slice{i}"), TensorType { dtype: ty.dtype, shape })
                })
                .collect();
            let (next, ys) = body(t, &carries, &slices);
            declare_step(t, &next, &ys)
        });
        let (region, (next, ys)) = traced;
        let poisoned = || (vec![Var::poisoned(self.key); init.len()], vec![Var::poisoned(self.key); ys]);
        let Some(region) = region.filter(|_| self.carries_all(next, init.len(), caller)) else { return poisoned() };
        let operands: Vec<Var> = init.iter().chain(xs).chain(&region.captured).copied().collect();
        let scan = Scan { body: region.graph, carried: init.len(), scanned: xs.len(), length, reverse };
        let tuple = add(self.key, scan.into(), &operands, caller);
        let part = |index| add(self.key, Proj { index }.into(), &[tuple], caller);
        ((0..next).map(part).collect(), (next..next + ys).map(part).collect())
    }

    /// The values of `then` where the scalar `condition` is true, else those of `otherwise`; only one of them runs. Values
    /// from outside may be read in either. Extents that differ between them become data-dependent sizes.
    #[track_caller]
    pub fn cond(
        &self,
        condition: Var<'t>,
        then: impl FnOnce(&Tracer<'t>) -> Vec<Var<'t>>,
        otherwise: impl FnOnce(&Tracer<'t>) -> Vec<Var<'t>>,
    ) -> Vec<Var<'t>> {
        let caller = Location::caller();
        let declare = |t: &Tracer<'t>, values: Vec<Var<'t>>| {
            values.iter().enumerate().for_each(|(i, v)| t.output(&format!("y{i}"), *v));
            values.len()
        };
        let (a, count) = self.region(Kind::Skippable, caller, |t| declare(t, then(t)));
        let (b, _) = self.region(Kind::Skippable, caller, |t| declare(t, otherwise(t)));
        let poisoned = || vec![Var::poisoned(self.key); count];
        let (Some(a), Some(b)) = (a, b) else { return poisoned() };
        let mut branch = If { then: a.graph, otherwise: b.graph, size: 0 };
        // a size needs a number only where the regions differ
        let differ = branch.results().map_or(0, |parts| {
            let dims = parts.iter().flat_map(|part| part.shape.iter());
            let own = branch.then.outputs().iter().flat_map(|(_, id)| branch.then.tensor_type(*id).shape.iter());
            dims.zip(own).filter(|(joined, own)| joined != own).count() as u32
        });
        branch.size = if differ > 0 { self.new_sizes(differ) } else { 0 };
        let operands: Vec<Var> = [condition].iter().chain(&a.captured).chain(&b.captured).copied().collect();
        let tuple = add(self.key, branch.into(), &operands, caller);
        (0..count).map(|index| add(self.key, Proj { index }.into(), &[tuple], caller)).collect()
    }

    /// A loop as long as `condition` of the carried values is true, at most `bound` times.
    ///
    /// `body` gets the carried values, and gives the next ones and one slice of each stacked result. Values from outside
    /// may be read in both. Returns the last carried values, the number of trips (i64), and the stacked results, whose
    /// leading extent is a data-dependent size.
    #[track_caller]
    pub fn while_loop<C, B>(
        &self,
        bound: Option<Dim>,
        init: &[Var<'t>],
        condition: C,
        body: B,
    ) -> (Vec<Var<'t>>, Var<'t>, Vec<Var<'t>>)
    where
        C: FnOnce(&Tracer<'t>, &[Var<'t>]) -> Var<'t>,
        B: FnOnce(&Tracer<'t>, &[Var<'t>]) -> (Vec<Var<'t>>, Vec<Var<'t>>),
    {
        let caller = Location::caller();
        let size = self.new_size();
        let (test, ()) = self.region(Kind::Skippable, caller, |t| {
            let carries = carried_inputs(t, init);
            t.output("go_on", condition(t, &carries));
        });
        let (step, (next, ys)) = self.region(Kind::Skippable, caller, |t| {
            let carries = carried_inputs(t, init);
            let (next, ys) = body(t, &carries);
            declare_step(t, &next, &ys)
        });
        let poison = Var::poisoned(self.key);
        let (Some(test), Some(step), true) = (test, step, self.carries_all(next, init.len(), caller)) else {
            return (vec![poison; init.len()], poison, vec![poison; ys]);
        };
        let operands: Vec<Var> = init.iter().chain(&test.captured).chain(&step.captured).copied().collect();
        let looped = While { condition: test.graph, body: step.graph, carried: init.len(), bound, size };
        let tuple = add(self.key, looped.into(), &operands, caller);
        let part = |index| add(self.key, Proj { index }.into(), &[tuple], caller);
        ((0..next).map(part).collect(), part(next), (next + 1..next + 1 + ys).map(part).collect())
    }

    /// Traces a region; `None` after an error, which is recorded.
    pub(super) fn region<R>(
        &self,
        kind: Kind,
        caller: &'static Location<'static>,
        build: impl FnOnce(&Tracer<'t>) -> R,
    ) -> (Option<Region<'t>>, R) {
        let inherited = with(self.key, |outer| (outer.origins.clone(), outer.next_size));
        let (inner, result) = session(Graph::new(), kind, Some(self.key), |t: &Tracer<'t>| {
            with(t.key, |region| {
                if let Some((origins, next_size)) = inherited {
                    (region.origins, region.next_size) = (origins, next_size);
                }
            });
            build(t)
        });
        let Building { graph, error, captured, next_size, .. } = inner;
        self.reserve_sizes(next_size);
        if let Some(error) = error {
            with(self.key, |outer| outer.fail(error, caller));
            return (None, result);
        }
        let captured = captured.iter().map(|(key, outer, _): &(u64, NodeId, NodeId)| Var::of(*key, *outer)).collect();
        (Some(Region { graph: Arc::new(graph), captured }), result)
    }

    /// Whether a body gives as many carried values as it gets; records an error if not.
    fn carries_all(&self, given: usize, carried: usize, caller: &'static Location<'static>) -> bool {
        if given != carried {
            let message = format!("a loop carries {carried} values, but its body gives {given}");
            with(self.key, |building| building.fail(Diagnostic::new("E0104", message), caller));
        }
        given == carried
    }
}

fn carried_inputs<'t>(t: &Tracer<'t>, init: &[Var<'t>]) -> Vec<Var<'t>> {
    init.iter().enumerate().map(|(i, v)| t.input(&format!("carry{i}"), v.ty())).collect()
}

/// Names a body's results; gives how many of each kind there are.
fn declare_step<'t>(t: &Tracer<'t>, next: &[Var<'t>], ys: &[Var<'t>]) -> (usize, usize) {
    next.iter().enumerate().for_each(|(i, v)| t.output(&format!("carry{i}"), *v));
    ys.iter().enumerate().for_each(|(i, v)| t.output(&format!("y{i}"), *v));
    (next.len(), ys.len())
}
