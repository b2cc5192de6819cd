//! Building graphs by running code on handles.
//!
//! [`trace`] runs a closure with a [`Tracer`]; each operation on a [`Var`] adds a node whose origin is the caller's
//! line. The first error is kept, everything after it does nothing, and `trace` returns it.
//!
//! ```
//! use egret_ir::{Tensor, f32, trace};
//! let w = Tensor::new(&[3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
//! let graph = trace(|t| {
//!     let x = t.input("x", f32(["batch", "three"]));
//!     x.matmul(t.param("w", w)).relu() * 0.5
//! });
//! assert!(graph.unwrap().outputs().len() == 1);
//! ```

mod control;
mod custom;
mod generate;
mod operators;
mod outputs;
mod random;
mod shapes;
mod var;

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::diagnostic::{Diagnostic, Origin};
use crate::graph::{Graph, Node, NodeId};
use crate::ops::{Concat, Const, Grad, Input, Iota, Op, Param, Proj, State};
use crate::scalar::Literal;
use crate::tensor::Tensor;
use crate::types::{TensorType, Type};
use crate::weights::Weight;

pub use custom::Backward;
pub use generate::{Beside, Generator, Scalar};
pub use outputs::Outputs;
pub use var::{Operand, Var};

/// A graph under construction.
struct Building {
    graph: Graph,
    error: Option<Diagnostic>,
    /// Stands for the caller's line when set.
    origins: Option<SmallVec<[Arc<Origin>; 1]>>,
    /// Values of an outer graph that this region reads, and the inputs that stand for them.
    captured: Vec<(u64, NodeId, NodeId)>,
    /// The graph around, whose values a region may read.
    around: Option<u64>,
    /// The number of the next data-dependent size; a region goes on with the numbers of the graph around it.
    next_size: u32,
    /// Scalar constants so far, where equal ones are one node.
    scalars: Option<FxHashMap<Literal, NodeId>>,
}

impl Building {
    fn new(graph: Graph, around: Option<u64>) -> Building {
        let next_size = graph.next_size();
        Building { graph, error: None, origins: None, captured: Vec::new(), around, next_size, scalars: None }
    }
}

thread_local! {
    static BUILDING: RefCell<FxHashMap<u64, Building>> = RefCell::default();
    static NEXT: Cell<u64> = const { Cell::new(1) };
    /// The innermost region being traced that a run may skip; 0 outside of all.
    static SKIPPABLE: Cell<u64> = const { Cell::new(0) };
}

/// What a closure traces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A whole graph.
    Whole,
    /// A region that runs whenever the operator that holds it does. What reads values from outside alone is added outside.
    Region,
    /// A region that a run may skip, and with it what would fail there: all that is traced is added inside.
    Skippable,
}

/// Builds one graph; see [`trace`]. `'t` ties values to it.
pub struct Tracer<'t> {
    key: u64,
    of: PhantomData<(&'t (), *const ())>,
}

/// Runs `build` and returns the graph that it describes.
///
/// # Errors
/// The first error of any operation, with the line that made it.
pub fn trace<'t, R: Outputs<'t>>(build: impl FnOnce(&Tracer<'t>) -> R) -> Result<Graph, Diagnostic> {
    extend(Graph::new(), |t| {
        let outputs = build(t);
        outputs.declare(t);
    })
    .map(|(graph, ())| graph)
}

/// Adds to a graph.
///
/// # Errors
/// The first error of any operation.
pub fn extend<'t, R>(graph: Graph, build: impl FnOnce(&Tracer<'t>) -> R) -> Result<(Graph, R), Diagnostic> {
    let (building, result) = session(graph, Kind::Whole, None, build);
    match building.error {
        Some(error) => Err(error),
        None => Ok((building.graph, result)),
    }
}

fn session<'t, R>(
    graph: Graph,
    kind: Kind,
    around: Option<u64>,
    build: impl FnOnce(&Tracer<'t>) -> R,
) -> (Building, R) {
    /// Forgets the graph under construction when the closure unwinds.
    struct Forget {
        key: u64,
        skippable: u64,
    }
    impl Drop for Forget {
        fn drop(&mut self) {
            BUILDING.with_borrow_mut(|all| all.remove(&self.key));
            SKIPPABLE.set(self.skippable);
        }
    }
    let key = NEXT.replace(NEXT.get() + 1);
    let building = Building::new(graph, around);
    BUILDING.with_borrow_mut(|all| all.insert(key, building));
    let skippable = SKIPPABLE.get();
    if kind == Kind::Skippable {
        SKIPPABLE.set(key);
    }
    let forget = Forget { key, skippable };
    let result = build(&Tracer { key, of: PhantomData });
    let building = BUILDING.with_borrow_mut(|all| all.remove(&key));
    drop(forget);
    (building.unwrap_or_else(|| Building::new(Graph::new(), around)), result)
}

/// Runs `f` on a graph under construction; `None` when its trace has ended.
fn with<R>(key: u64, f: impl FnOnce(&mut Building) -> R) -> Option<R> {
    BUILDING.with_borrow_mut(|all| all.get_mut(&key).map(f))
}

impl Building {
    fn fail(&mut self, error: Diagnostic, caller: &'static Location<'static>) {
        if self.error.is_none() {
            let mut error = error;
            if error.origin.is_empty() {
                error.origin = self.origins_at(caller).iter().map(|o| (**o).clone()).collect();
            }
            self.error = Some(error);
        }
    }

    fn origins_at(&self, caller: &'static Location<'static>) -> SmallVec<[Arc<Origin>; 1]> {
        self.origins.clone().unwrap_or_else(|| {
            let origin = Origin::Source { file: caller.file().to_string(), line: caller.line() };
            SmallVec::from_iter([Arc::new(origin)])
        })
    }
}

/// Adds a node to the graph `key`, or to the region being traced that a run may skip, capturing operands of outer graphs.
fn add<'t>(key: u64, op: Op, operands: &[Var<'t>], caller: &'static Location<'static>) -> Var<'t> {
    let key = if operands.is_empty() { key } else { key.max(SKIPPABLE.get()) };
    let mut ids: SmallVec<[NodeId; 4]> = SmallVec::new();
    for operand in operands {
        match local(key, *operand, caller) {
            Some(id) => ids.push(id),
            None => return Var::poisoned(key),
        }
    }
    let added = with(key, |building| {
        if building.error.is_some() {
            return None;
        }
        let origins = building.origins_at(caller);
        match building.graph.add_from(op, &ids, origins) {
            Ok(id) => Some(id),
            Err(error) => {
                building.fail(error, caller);
                None
            }
        }
    });
    added.flatten().map_or(Var::poisoned(key), |id| Var::of(key, id))
}

/// The node in graph `key` that stands for a value.
fn local(key: u64, var: Var, caller: &'static Location<'static>) -> Option<NodeId> {
    let id = var.node?;
    if var.key == key {
        return Some(id);
    }
    let outer = with(var.key, |outer| outer.graph.ty(id).clone());
    with(key, |building| {
        let known = building.captured.iter().find(|(k, outer, _)| (*k, *outer) == (var.key, id));
        if let Some((_, _, inner)) = known {
            return Some(*inner);
        }
        let ty = match (building.around, outer) {
            (Some(_), Some(Type::Tensor(ty))) => ty,
            _ => {
                let message = "a value of another trace is used in this one";
                building.fail(Diagnostic::new("E0103", message), caller);
                return None;
            }
        };
        let name = format!("captured{}", building.captured.len());
        let origins = building.origins_at(caller);
        let inner = building.graph.add_from(Input { name, ty }, &[], origins).ok()?;
        building.captured.push((var.key, id, inner));
        Some(inner)
    })
    .flatten()
}

impl<'t> Tracer<'t> {
    /// Adds any operator.
    #[track_caller]
    pub fn add(&self, op: impl Into<Op>, operands: &[Var<'t>]) -> Var<'t> {
        add(self.key, op.into(), operands, Location::caller())
    }

    /// A node of another graph whose operands have these values here, of the same types. What it assumes of dims is not
    /// recorded.
    pub(crate) fn add_again(&self, node: &Node, operands: &[Var<'t>], origins: &[Arc<Origin>]) -> Var<'t> {
        let id = |operand: &Var<'t>| operand.node.filter(|_| operand.key == self.key);
        let Some(operands) = operands.iter().map(id).collect() else { return Var::poisoned(self.key) };
        let added = with(self.key, |building| {
            let node = Node { op: node.op.clone(), operands, ty: node.ty.clone() };
            building.error.is_none().then(|| building.graph.add_typed(node, origins.into()))
        });
        added.flatten().map_or(Var::poisoned(self.key), |id| Var::of(self.key, id))
    }

    /// A value that each run is given.
    #[track_caller]
    pub fn input(&self, name: &str, ty: TensorType) -> Var<'t> {
        self.leaf(name, Input { name: name.into(), ty }.into())
    }

    /// A value that is fixed while an executable lives. The same name and shape give the same value again. Inside a loop or
    /// a branch it is one of the whole graph.
    #[track_caller]
    pub fn param(&self, name: &str, value: impl Into<Weight>) -> Var<'t> {
        let value = value.into();
        let whole = self.whole();
        let param = whole.leaf(name, Param { name: name.into(), ty: value.ty() }.into());
        whole.weigh(name, value);
        param
    }

    /// A value that lives from run to run, and its first value. Inside a loop or a branch it is one of the whole graph.
    #[track_caller]
    pub fn state(&self, name: &str, value: impl Into<Weight>) -> Var<'t> {
        let value = value.into();
        let whole = self.whole();
        let state = whole.leaf(name, State { name: name.into(), ty: value.ty() }.into());
        whole.weigh(name, value);
        state
    }

    /// The tracer of the graph around all regions.
    fn whole(&self) -> Tracer<'t> {
        let mut key = self.key;
        while let Some(around) = with(key, |building| building.around).flatten() {
            key = around;
        }
        Tracer { key, of: PhantomData }
    }

    /// Sets a state at the end of each run.
    #[track_caller]
    pub fn update(&self, state: Var<'t>, value: Var<'t>) {
        let caller = Location::caller();
        let Some((state, value)) = local(self.key, state, caller).zip(local(self.key, value, caller)) else { return };
        with(self.key, |building| match &building.graph.node(state).op {
            Op::State(leaf) if building.graph.ty(state) == building.graph.ty(value) => {
                let name = leaf.name.clone();
                building.graph.add_update(name, value);
            }
            Op::State(leaf) => {
                let message =
                    format!("the state `{}` is {}, its new value {}", leaf.name, leaf.ty, building.graph.ty(value));
                building.fail(Diagnostic::new("E0106", message), caller);
            }
            other => {
                let message = format!("only a state can be updated, not {}", other.home().name());
                building.fail(Diagnostic::new("E0106", message), caller);
            }
        });
    }

    /// The value as one of this graph: itself, or what stands here for a value from outside.
    #[track_caller]
    pub(crate) fn capture(&self, value: Var<'t>) -> Var<'t> {
        local(self.key, value, Location::caller()).map_or(Var::poisoned(self.key), |id| Var::of(self.key, id))
    }

    /// A constant, known when compiling.
    #[track_caller]
    pub fn constant(&self, value: Tensor) -> Var<'t> {
        self.add(Const { value }, &[])
    }

    /// A scalar constant.
    #[track_caller]
    pub fn scalar(&self, value: Literal) -> Var<'t> {
        let known = with(self.key, |building| building.scalars.as_ref()?.get(&value).copied()).flatten();
        known.map_or_else(
            || {
                let made = self.constant(Tensor::scalar(value));
                with(self.key, |building| building.scalars.as_mut()?.insert(value, made.id()?));
                made
            },
            |id| Var::of(self.key, id),
        )
    }

    /// From here on equal scalar constants are one node.
    pub(crate) fn share_scalars(&self) {
        with(self.key, |building| building.scalars = Some(FxHashMap::default()));
    }

    /// Indices along an axis.
    #[track_caller]
    pub fn iota(&self, ty: TensorType, axis: usize) -> Var<'t> {
        self.add(Iota { ty, axis }, &[])
    }

    /// Tensors one after the other along an axis; a negative axis counts from the last.
    #[track_caller]
    pub fn concat(&self, parts: &[Var<'t>], axis: isize) -> Var<'t> {
        let Some(axis) = parts.first().and_then(|part| part.axis(axis)) else {
            return self.fail_or_poison("there is nothing to concatenate");
        };
        self.add(Concat { axis }, parts)
    }

    /// Names a result.
    #[track_caller]
    pub fn output(&self, name: &str, value: Var<'t>) {
        let caller = Location::caller();
        let Some(id) = local(self.key, value, caller) else { return };
        with(self.key, |building| {
            if building.graph.outputs().iter().any(|(have, _)| have == name) {
                building.fail(Diagnostic::new("E0102", format!("the output `{name}` is given twice")), caller);
            } else if building.graph.ty(id).tensor().is_none() {
                let message = format!("the output `{name}` is a tuple; name its parts");
                building.fail(Diagnostic::new("E0107", message), caller);
            } else {
                building.graph.add_output(name, id);
            }
        });
    }

    /// The gradients of a scalar loss by values; a later pass expands them.
    #[track_caller]
    pub fn grad(&self, loss: Var<'t>, wrt: &[Var<'t>]) -> Vec<Var<'t>> {
        let operands: Vec<Var> = std::iter::once(loss).chain(wrt.iter().copied()).collect();
        let tuple = self.add(Grad, &operands);
        (0..wrt.len()).map(|index| self.add(Proj { index }, &[tuple])).collect()
    }

    /// The handle of a node of the graph under construction.
    pub fn var(&self, id: NodeId) -> Var<'t> {
        let known = with(self.key, |building| id.index() < building.graph.nodes().len()) == Some(true);
        if known { Var::of(self.key, id) } else { Var::poisoned(self.key) }
    }

    /// Nodes added from here on come from `origins` instead of the caller's line; `None` ends that.
    pub fn set_origins(&self, origins: Option<SmallVec<[Arc<Origin>; 1]>>) {
        with(self.key, |building| building.origins = origins);
    }

    /// A number for a data-dependent size that no other has in this graph or its regions.
    pub fn new_size(&self) -> u32 {
        self.new_sizes(1)
    }

    /// The first of `count` such numbers.
    pub(crate) fn new_sizes(&self, count: u32) -> u32 {
        let take = |building: &mut Building| {
            let first = building.next_size;
            building.next_size = first.saturating_add(count);
            first
        };
        with(self.key, take).unwrap_or(0)
    }

    /// Leaves numbers below `next` to others.
    pub(crate) fn reserve_sizes(&self, next: u32) {
        with(self.key, |building| building.next_size = building.next_size.max(next));
    }

    /// Lets what reads `from` read `to`, an earlier value of the same type.
    pub(crate) fn redirect(&self, from: Var<'t>, to: Var<'t>) {
        if let Some((from, to)) = from.id().zip(to.id()) {
            with(self.key, |building| building.graph.redirect(from, to));
        }
    }

    /// Looks at the graph built so far.
    pub fn graph<R>(&self, look: impl FnOnce(&Graph) -> R) -> R {
        let take = |building: &mut Building| {
            let weights = building.graph.weights.clone();
            std::mem::replace(&mut building.graph, Graph::of_weights(weights))
        };
        match with(self.key, take) {
            // taken out, so that `look` may use handles of other traces
            Some(graph) => {
                let result = look(&graph);
                with(self.key, |building| building.graph = graph);
                result
            }
            None => look(&Graph::new()),
        }
    }

    /// The first error so far.
    pub fn error(&self) -> Option<Diagnostic> {
        with(self.key, |building| building.error.clone()).flatten()
    }

    /// Records an error; `trace` returns it if it is the first.
    #[track_caller]
    pub fn fail(&self, error: Diagnostic) -> Var<'t> {
        let caller = Location::caller();
        with(self.key, |building| building.fail(error, caller));
        Var::poisoned(self.key)
    }

    /// The value of a param or state, if it is a tensor or a fill.
    pub fn weight(&self, name: &str) -> Option<Weight> {
        with(self.whole().key, |building| building.graph.weights.get(name).cloned()).flatten()
    }

    #[track_caller]
    fn fail_or_poison(&self, message: &str) -> Var<'t> {
        self.fail(Diagnostic::new("E0101", message))
    }

    #[track_caller]
    fn leaf(&self, name: &str, op: Op) -> Var<'t> {
        let caller = Location::caller();
        let have = with(self.key, |building| {
            let leaf = building.graph.iter().find(|(_, node)| leaf_name(&node.op) == Some(name));
            leaf.map(|(id, node)| (id, node.op == op && !matches!(op, Op::Input(_)), node.op.clone()))
        });
        match have.flatten() {
            None => add(self.key, op, &[], caller),
            Some((id, true, _)) => Var::of(self.key, id),
            Some((_, false, other)) => {
                let message = format!("the name `{name}` is taken by another {}", other.home().name());
                with(self.key, |building| building.fail(Diagnostic::new("E0102", message), caller));
                Var::poisoned(self.key)
            }
        }
    }

    fn weigh(&self, name: &str, value: Weight) {
        with(self.key, |building| {
            if building.error.is_none() {
                Arc::make_mut(&mut building.graph.weights).insert(name.to_string(), value);
            }
        });
    }
}

/// The name of a leaf that is bound by name.
fn leaf_name(op: &Op) -> Option<&str> {
    match op {
        Op::Input(leaf) => Some(&leaf.name),
        Op::Param(leaf) => Some(&leaf.name),
        Op::State(leaf) => Some(&leaf.name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Tensors;
    use crate::{f32, i64, interpret};

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::new(shape, values).unwrap()
    }

    #[test]
    fn the_first_error_carries_the_line_that_made_it() {
        let line = line!() + 4;
        let error = trace(|t| {
            let x = t.input("x", f32(["n", "m"]));
            let y = t.input("y", f32([3, 4]));
            let bad = y.matmul(y);
            bad.softmax(7) + x
        })
        .unwrap_err();
        assert_eq!(error.origin, [Origin::Source { file: file!().into(), line }]);
        assert_eq!(error.code, "E0101");
    }

    #[test]
    fn names_are_unique_and_results_are_tensors() {
        let twice = trace(|t| (t.input("x", f32([2])), t.input("x", f32([2]))));
        assert_eq!(twice.unwrap_err().code, "E0102");
        let outputs = trace(|t| {
            let x = t.input("x", f32([2]));
            vec![("y", x), ("y", x)]
        });
        assert_eq!(outputs.unwrap_err().code, "E0102");
        let mut kept = None;
        trace(|t| kept = Some(t.input("x", f32([2])))).unwrap();
        let foreign = trace(|_| kept.unwrap().relu()).unwrap();
        assert!(foreign.outputs().is_empty(), "a value of a finished trace is no value");
    }

    #[test]
    fn matmul_broadcasts_as_numpy_does() {
        let graph = trace(|t| {
            let x = t.input("x", f32([2, 1, 3, 4]));
            let y = t.input("y", f32([5, 4, 6]));
            let v = t.input("v", f32([4]));
            (x.matmul(y), x.matmul(v), v.matmul(y), v.matmul(v))
        })
        .unwrap();
        let shapes: Vec<String> =
            graph.outputs().iter().map(|(_, id)| graph.tensor_type(*id).shape.to_string()).collect();
        assert_eq!(shapes, ["[2, 5, 3, 6]", "[2, 1, 3]", "[5, 6]", "[]"]);
    }

    #[test]
    fn a_scan_captures_what_it_reads() {
        let graph = trace(|t| {
            let x = t.input("x", f32(["steps", "2"]));
            let decay = t.input("decay", f32([2]));
            let start = t.constant(Tensor::zeros(crate::DType::F32, &[2]));
            let (last, all) = t.scan(&[start], &[x], |_, carry, x| {
                let next = carry[0] * decay + x[0];
                (vec![next], vec![next])
            });
            (last[0], all[0])
        })
        .unwrap();
        let inputs = Tensors::from([
            ("x".into(), tensor(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            ("decay".into(), tensor(&[2], &[0.5, 2.0])),
        ]);
        let outcome = interpret(&graph, &inputs, &Tensors::new()).unwrap();
        assert_eq!(outcome.output("output0"), Some(&tensor(&[2], &[6.75, 22.0])));
        assert_eq!(outcome.output("output1"), Some(&tensor(&[3, 2], &[1.0, 2.0, 3.5, 8.0, 6.75, 22.0])));
    }

    #[test]
    fn losses_and_states_run() {
        let graph = trace(|t| {
            let logits = t.input("logits", f32(["n", "c"]));
            let labels = t.input("labels", i64(["n"]));
            let count = t.state("count", tensor(&[], &[0.0]));
            t.update(count, count + 1.0);
            logits.cross_entropy(labels).mean()
        })
        .unwrap();
        let inputs = Tensors::from([
            ("logits".into(), tensor(&[2, 2], &[0.0, 0.0, 1.0, 1.0])),
            ("labels".into(), Tensor::new(&[2], &[0i64, 1]).unwrap()),
        ]);
        let outcome = interpret(&graph, &inputs, &Tensors::new()).unwrap();
        let loss = outcome.output("output").unwrap().get(0).as_f64();
        assert!((loss - 2f64.ln()).abs() < 1e-7);
        assert_eq!(outcome.updates[0], ("count".to_string(), tensor(&[], &[1.0])));
    }
}
