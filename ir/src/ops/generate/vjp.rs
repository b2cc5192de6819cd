//! The gradient of a program: each load's element gets a share of each result's gradient.
//!
//! For every load a further `generate` runs over the indices of the result and the counters of the loops around the load,
//! and gives the derivative of the result by that load, times the result's gradient; another gives the place that was
//! loaded. A scatter adds them up.

use rustc_hash::FxHashSet;

use super::Generate;
use super::program::{Block, InnerKind, Outside, ProgramBuilder, Step, apply};
use crate::autodiff::{Gradients, VjpCx};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::ops::{Places, Scatter, ScatterKind};
use crate::scalar::{Literal, ScalarExpr, ScalarFn};
use crate::tracer::Var;
use crate::types::{Shape, TensorType};

/// A load: the steps that lead to it, one for each block, and the operand that it reads.
struct Site {
    path: Vec<usize>,
    operand: usize,
}

pub(super) fn vjp<'t>(op: &Generate, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
    let mut sites = Vec::new();
    find(&op.body, &mut Vec::new(), &mut sites);
    let types: Vec<TensorType> = cx.operands.iter().map(|v| v.ty()).collect();
    let dtypes = op.value_dtypes(&types.iter().collect::<Vec<_>>()).map_err(|why| cx.refuse(why))?;
    let mut gradients = vec![None; cx.operands.len()];
    for (operand, gradient) in gradients.iter_mut().enumerate() {
        let ty = &types[operand];
        if !cx.wanted[operand] || !ty.dtype.is_float() {
            continue;
        }
        // one place more, for what was loaded from outside
        let elements = ty.shape.elements();
        let flat = TensorType::new(ty.dtype, [elements.clone() + Dim::ONE]);
        let mut sum: Option<Var> = None;
        for site in sites.iter().filter(|site| site.operand == operand) {
            let pull = Pull { op, dtypes: &dtypes, types: &types };
            let Some((shares, places)) = pull.site(site) else { continue };
            let loaded: Vec<Var> = cx.operands.iter().copied().chain([cx.dy()]).collect();
            let shares = cx.t.add(shares, &loaded).reshape([-1]);
            let places = cx.t.add(places, cx.operands).reshape([-1]);
            let so_far = sum.unwrap_or_else(|| cx.zeros(flat.clone()));
            let scatter = Scatter { places: Places::Rows { axis: 0 }, kind: ScatterKind::Add };
            sum = Some(so_far.then(scatter, &[places, shares]));
        }
        *gradient = sum.map(|sum| sum.narrow(0, 0i64, elements).reshape(ty.shape.clone()));
    }
    Ok(gradients)
}

fn find(block: &Block, path: &mut Vec<usize>, sites: &mut Vec<Site>) {
    for (at, step) in block.steps.iter().enumerate() {
        path.push(at);
        match step {
            Step::Load { operand, .. } => sites.push(Site { path: path.clone(), operand: *operand }),
            Step::Reduce { body, .. } => find(body, path, sites),
            _ => {}
        }
        path.pop();
    }
}

/// What the gradient of one load is made from.
struct Pull<'a> {
    op: &'a Generate,
    /// Element types of the program's values.
    dtypes: &'a [DType],
    types: &'a [TensorType],
}

/// A program under construction that repeats another: what stands in it for the values of the other.
struct Copied {
    b: ProgramBuilder,
    map: Vec<Option<ScalarExpr>>,
}

impl Copied {
    fn translate(&self, e: &ScalarExpr) -> ScalarExpr {
        e.substitute(&mut |i| self.map.get(i).cloned().flatten().unwrap_or_else(|| ScalarExpr::arg(i)))
    }

    fn apply<const N: usize>(&self, f: ScalarFn, args: [ScalarExpr; N]) -> ScalarExpr {
        apply(f, args, self.b.dtypes())
    }

    fn dtype(&self, e: &ScalarExpr) -> DType {
        e.dtype(self.b.dtypes())
    }

    fn cast(&self, e: ScalarExpr, dtype: DType) -> ScalarExpr {
        if self.dtype(&e) == dtype { e } else { e.cast(dtype) }
    }
}

/// Gradients of the result by values, by number.
type Adjoints = std::collections::BTreeMap<usize, ScalarExpr>;

impl Pull<'_> {
    /// The `generate` of a load's gradients, which reads the result's gradient as its last operand, and that of its
    /// places; `None` when the result does not depend on the load.
    fn site(&self, site: &Site) -> Option<(Generate, Generate)> {
        let rank = self.op.ty.shape.rank();
        let (extents, target) = self.along(site);
        let shape: Shape = self.op.ty.shape.iter().chain(&extents).cloned().collect();
        let depends = self.depends(target);
        let start = || {
            let map = (0..self.dtypes.len()).map(|i| (i < rank).then(|| ScalarExpr::arg(i))).collect();
            Copied { b: ProgramBuilder::new(rank + extents.len()), map }
        };

        let mut c = start();
        let index: Vec<ScalarExpr> = (0..rank).map(ScalarExpr::arg).collect();
        let dy = c.b.load(self.types.len(), self.op.ty.dtype, &index, Outside::Clamp);
        let (share, _) = self.descend(&mut c, site, &depends, target, Some(dy))?;
        let share = c.cast(share?, self.types[site.operand].dtype);
        let ty = TensorType { dtype: self.types[site.operand].dtype, shape: shape.clone() };
        let axes = shape.rank();
        let shares = Generate { ty, body: c.b.finish(share).without_dead_steps(axes) };

        let mut c = start();
        let (_, inside) = self.descend(&mut c, site, &depends, target, None)?;
        let place = self.place(&mut c, site, inside);
        let body = c.b.finish(place).without_dead_steps(axes);
        let places = Generate { ty: TensorType { dtype: DType::I64, shape }, body };
        Some((shares, places))
    }

    /// The bounds of the loops around a load, and the number of its value.
    fn along(&self, site: &Site) -> (Vec<Dim>, usize) {
        let (mut block, mut number, mut extents) = (&self.op.body, self.op.ty.shape.rank(), Vec::new());
        for (depth, at) in site.path.iter().enumerate() {
            number += block.steps[..*at].iter().map(Step::values).sum::<usize>();
            if let Step::Reduce { extent, body, .. } = &block.steps[*at]
                && depth + 1 < site.path.len()
            {
                extents.push(extent.clone());
                block = body;
                number += 1;
            }
        }
        (extents, number)
    }

    /// The numbers of values that a value enters.
    fn depends(&self, target: usize) -> FxHashSet<usize> {
        fn walk(block: &Block, next: &mut usize, found: &mut FxHashSet<usize>) -> bool {
            for step in block.steps.iter() {
                let enters = match step {
                    Step::Let(e) => e.args().iter().any(|i| found.contains(i)),
                    Step::Reduce { body, .. } => {
                        *next += 1;
                        walk(body, next, found)
                    }
                    _ => false,
                };
                if enters {
                    found.insert(*next);
                }
                *next += 1;
            }
            block.result.args().iter().any(|i| found.contains(i))
        }
        let mut found = FxHashSet::from_iter([target]);
        walk(&self.op.body, &mut self.op.ty.shape.rank().clone(), &mut found);
        found
    }

    /// Repeats the blocks on the way to a load, loops on the way as axes of the result. Gives the gradient by the load,
    /// if `dy` is given, and whether the loops on the way make that trip at all.
    fn descend(
        &self,
        c: &mut Copied,
        site: &Site,
        depends: &FxHashSet<usize>,
        target: usize,
        dy: Option<ScalarExpr>,
    ) -> Option<(Option<ScalarExpr>, Option<ScalarExpr>)> {
        let (mut block, mut number, mut seed, mut inside) = (&self.op.body, self.op.ty.shape.rank(), dy, None);
        for (depth, at) in site.path.iter().enumerate() {
            self.copy(c, block, number);
            let first = number;
            number += block.steps[..*at].iter().map(Step::values).sum::<usize>();
            let step = &block.steps[*at];
            let last = depth + 1 == site.path.len();
            let value = if last { target } else { step.value(number) };
            if let Some(given) = seed.take() {
                let mut adjoints = Adjoints::new();
                self.pull(c, block, first, given, depends, &mut adjoints);
                seed = Some(adjoints.remove(&value)?);
            }
            if last {
                return Some((seed, inside));
            }
            let Step::Reduce { kind, count, body, .. } = step else { return None };
            let counter = ScalarExpr::arg(self.op.ty.shape.rank() + depth);
            if let Some(count) = count {
                let count = c.translate(count);
                let trip = c.apply(ScalarFn::Lt, [counter.clone(), count]);
                inside = Some(match inside {
                    Some(outer) => c.apply(ScalarFn::And, [outer, trip]),
                    None => trip,
                });
            }
            if let Some(given) = seed.take() {
                seed = Some(match kind {
                    InnerKind::Sum => given,
                    _ => {
                        let ties = self.ties(c, step, number)?;
                        self.winner_share(c, step, number, (given, ties), &counter)?
                    }
                });
            }
            c.map[number] = Some(counter);
            number += 1;
            block = body;
        }
        None
    }

    /// The flat place of a load, or the number of elements where nothing was loaded.
    fn place(&self, c: &mut Copied, site: &Site, mut inside: Option<ScalarExpr>) -> ScalarExpr {
        let mut block = &self.op.body;
        for at in &site.path[..site.path.len() - 1] {
            if let Step::Reduce { body, .. } = &block.steps[*at] {
                block = body;
            }
        }
        let shape = &self.types[site.operand].shape;
        let mut flat = ScalarExpr::constant(Literal::int(0, DType::I64));
        let Some(Step::Load { index, outside, .. }) = site.path.last().map(|at| &block.steps[*at]) else { return flat };
        let zero = || ScalarExpr::constant(Literal::int(0, DType::I64));
        for (e, extent) in index.iter().zip(shape.iter()) {
            let e = c.translate(e);
            let mut at = c.b.bind(e);
            let extent_value = c.b.dim(extent);
            if let Outside::Fill(_) = outside {
                let low = c.apply(ScalarFn::Ge, [at.clone(), zero()]);
                let high = c.apply(ScalarFn::Lt, [at.clone(), extent_value.clone()]);
                let both = c.apply(ScalarFn::And, [low, high]);
                inside = Some(match inside {
                    Some(outer) => c.apply(ScalarFn::And, [outer, both]),
                    None => both,
                });
            } else {
                let one = ScalarExpr::constant(Literal::int(1, DType::I64));
                let last = c.apply(ScalarFn::Sub, [extent_value.clone(), one]);
                let least = c.apply(ScalarFn::Max, [zero(), at]);
                at = c.apply(ScalarFn::Min, [least, last]);
            }
            let row = c.apply(ScalarFn::Mul, [flat, extent_value]);
            let sum = c.apply(ScalarFn::Add, [row, at]);
            flat = c.b.bind(sum);
        }
        match inside {
            Some(inside) => {
                let nowhere = c.b.dim(&shape.elements());
                c.apply(ScalarFn::Select, [inside, flat, nowhere])
            }
            None => flat,
        }
    }

    /// Repeats a block's steps; gives its result. A place that the program reported already is not reported again.
    fn copy(&self, c: &mut Copied, block: &Block, first: usize) -> ScalarExpr {
        let mut number = first;
        for step in block.steps.iter() {
            let value = step.value(number);
            let new = match step {
                Step::Dim(dim) => c.b.dim(dim),
                Step::Let(e) => {
                    let e = c.translate(e);
                    c.b.bind(e)
                }
                Step::Load { operand, index, outside } => {
                    let index: Vec<ScalarExpr> = index.iter().map(|e| c.translate(e)).collect();
                    let outside = match outside {
                        Outside::Fault => Outside::Clamp,
                        other => *other,
                    };
                    c.b.load(*operand, self.types[*operand].dtype, &index, outside)
                }
                Step::Reduce { kind, extent, count, body } => {
                    let count = count.as_ref().map(|count| c.translate(count));
                    self.repeat(c, *kind, (extent, count), number, |this, c| this.copy(c, body, number + 1))
                }
            };
            c.map[value] = Some(new);
            number = value + 1;
        }
        c.translate(&block.result)
    }

    /// A loop whose counter stands for value `number`.
    fn repeat(
        &self,
        c: &mut Copied,
        kind: InnerKind,
        (extent, count): (&Dim, Option<ScalarExpr>),
        number: usize,
        body: impl FnOnce(&Self, &mut Copied) -> ScalarExpr,
    ) -> ScalarExpr {
        let map = &mut c.map;
        c.b.reduce(kind, extent, count, |b, counter| {
            map[number] = Some(counter);
            // the builder is lent to the closure for the body's steps
            let mut inner = Copied { b: std::mem::replace(b, ProgramBuilder::new(0)), map: std::mem::take(map) };
            let result = body(self, &mut inner);
            *b = inner.b;
            *map = inner.map;
            result
        })
    }

    /// How many trips of a loop of extrema reach the extremum.
    fn ties(&self, c: &mut Copied, step: &Step, number: usize) -> Option<ScalarExpr> {
        let Step::Reduce { extent, count, body, .. } = step else { return None };
        let best = c.map[step.value(number)].clone()?;
        let dtype = c.dtype(&best);
        let (one, zero) = (ScalarExpr::float(1.0, dtype), ScalarExpr::float(0.0, dtype));
        let trips = count.as_ref().map(|count| c.translate(count));
        Some(self.repeat(c, InnerKind::Sum, (extent, trips), number, |this, c| {
            let value = this.copy(c, body, number + 1);
            let wins = c.apply(ScalarFn::Eq, [value, best]);
            c.apply(ScalarFn::Select, [wins, one, zero])
        }))
    }

    /// The gradient that a trip of a loop of extrema gets: that of the loop, shared among the trips that reach it.
    fn winner_share(
        &self,
        c: &mut Copied,
        step: &Step,
        number: usize,
        (given, ties): (ScalarExpr, ScalarExpr),
        counter: &ScalarExpr,
    ) -> Option<ScalarExpr> {
        let Step::Reduce { body, .. } = step else { return None };
        let best = c.map[step.value(number)].clone()?;
        let zero = ScalarExpr::float(0.0, c.dtype(&best));
        c.map[number] = Some(counter.clone());
        let value = self.copy(c, body, number + 1);
        let wins = c.apply(ScalarFn::Eq, [value, best]);
        let share = c.apply(ScalarFn::Div, [given, ties]);
        let share = c.apply(ScalarFn::Select, [wins, share, zero]);
        Some(c.b.bind(share))
    }

    /// Adds the gradients by the values of a block that has been repeated, and by those from outside that it reads, given
    /// that of its result. Only values that depend on the load get one.
    fn pull(
        &self,
        c: &mut Copied,
        block: &Block,
        first: usize,
        seed: ScalarExpr,
        depends: &FxHashSet<usize>,
        adjoints: &mut Adjoints,
    ) {
        self.chain(c, &block.result, &seed, depends, adjoints);
        let mut numbers = Vec::with_capacity(block.steps.len());
        let mut number = first;
        for step in block.steps.iter() {
            numbers.push(number);
            number = step.value(number) + 1;
        }
        for (step, number) in block.steps.iter().zip(numbers).rev() {
            let Some(adjoint) = adjoints.get(&step.value(number)).cloned() else { continue };
            match step {
                Step::Let(e) => self.chain(c, e, &adjoint, depends, adjoints),
                Step::Reduce { kind, extent, count, body } => {
                    let mut outside: Vec<usize> = Vec::new();
                    read_from_outside(body, number, &mut outside);
                    outside.retain(|i| depends.contains(i));
                    let ties = match kind {
                        InnerKind::Sum => None,
                        _ if outside.is_empty() => None,
                        _ => self.ties(c, step, number),
                    };
                    for value in outside {
                        let trips = count.as_ref().map(|count| c.translate(count));
                        let dtype = self.dtypes[value];
                        let sum = self.repeat(c, InnerKind::Sum, (extent, trips), number, |this, c| {
                            let counter = c.map[number].clone().unwrap_or_else(|| ScalarExpr::arg(number));
                            let given = match &ties {
                                None => {
                                    this.copy(c, body, number + 1);
                                    Some(adjoint.clone())
                                }
                                Some(ties) => {
                                    this.winner_share(c, step, number, (adjoint.clone(), ties.clone()), &counter)
                                }
                            };
                            let mut inner = Adjoints::new();
                            if let Some(given) = given {
                                this.pull(c, body, number + 1, given, depends, &mut inner);
                            }
                            inner.remove(&value).unwrap_or_else(|| ScalarExpr::float(0.0, dtype))
                        });
                        self.accumulate(c, value, sum, adjoints);
                    }
                }
                _ => {}
            }
        }
    }

    /// The chain rule through one scalar program.
    fn chain(
        &self,
        c: &mut Copied,
        e: &ScalarExpr,
        adjoint: &ScalarExpr,
        depends: &FxHashSet<usize>,
        adjoints: &mut Adjoints,
    ) {
        for value in e.args() {
            if !depends.contains(&value) || !self.dtypes[value].is_float() {
                continue;
            }
            let Some(slope) = e.derivative(value, self.dtypes) else { continue };
            let slope = c.translate(&slope);
            let slope = c.cast(slope, c.dtype(adjoint));
            let one = slope.as_const().is_some_and(|l| l.as_f64() == 1.0);
            let product = if one { adjoint.clone() } else { self.scaled(c, &slope, adjoint) };
            self.accumulate(c, value, product, adjoints);
        }
    }

    /// `slope · adjoint`; a choice of slopes is a choice of products, so that an infinity not chosen cannot make NaN.
    fn scaled(&self, c: &mut Copied, slope: &ScalarExpr, adjoint: &ScalarExpr) -> ScalarExpr {
        if slope.as_const().is_some_and(|l| l.as_f64() == 0.0) {
            return slope.clone();
        }
        match slope.operands_of(ScalarFn::Select) {
            Some([condition, yes, no]) => {
                let (yes, no) = (self.scaled(c, yes, adjoint), self.scaled(c, no, adjoint));
                c.apply(ScalarFn::Select, [condition.clone(), yes, no])
            }
            _ => c.apply(ScalarFn::Mul, [adjoint.clone(), slope.clone()]),
        }
    }

    fn accumulate(&self, c: &mut Copied, value: usize, share: ScalarExpr, adjoints: &mut Adjoints) {
        let share = c.cast(share, self.dtypes[value]);
        let sum = match adjoints.get(&value).cloned() {
            Some(so_far) => c.apply(ScalarFn::Add, [so_far, share]),
            None => share,
        };
        let sum = c.b.bind(sum);
        adjoints.insert(value, sum);
    }
}

/// The values from before `first` that a block reads.
fn read_from_outside(block: &Block, first: usize, found: &mut Vec<usize>) {
    let mut read = |e: &ScalarExpr| {
        for i in e.args() {
            if i < first && !found.contains(&i) {
                found.push(i);
            }
        }
    };
    read(&block.result);
    for step in block.steps.iter() {
        match step {
            Step::Let(e) => read(e),
            Step::Reduce { body, .. } => {
                let mut inner = Vec::new();
                read_from_outside(body, first, &mut inner);
                inner.iter().for_each(|i| read(&ScalarExpr::arg(*i)));
            }
            // places have no gradient
            _ => {}
        }
    }
}
