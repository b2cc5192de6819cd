//! Kernels along rows: softmax, norms, cross-entropy and the gradients of them.

use egret_ir::ops::{NormKind, Softmax};
use egret_ir::{DType, Dim, NodeId, Op, ScalarExpr};
use smallvec::SmallVec;

use super::cuda;
use super::map::grid_over;
use super::scope::Scope;
use crate::kernel::{Expr, LoopKind, Memory, ReduceOp, UnaryOp, Var};

/// The operator that loops, of a fused or plain node.
pub fn anchor(op: &Op) -> &Op {
    match op {
        Op::Fused(fused) => &fused.anchor,
        other => other,
    }
}

/// What a fused node makes of its anchor's element.
pub fn epilogue(scope: &mut Scope, id: NodeId, index: &[Expr], element: Expr) -> Expr {
    let graph = scope.graph;
    let node = graph.node(id);
    let Op::Fused(fused) = &node.op else { return element };
    let dtype = base(scope, id).1;
    apply(scope, id, index, &fused.epilogue, (element, dtype))
}

/// What a fused node makes of its anchor's element, by result.
pub fn results(scope: &mut Scope, id: NodeId, index: &[Expr], element: Expr) -> SmallVec<[Expr; 2]> {
    let graph = scope.graph;
    let taps = match &graph.node(id).op {
        Op::Fused(fused) => &fused.taps[..],
        _ => &[],
    };
    if taps.is_empty() {
        return smallvec::smallvec![epilogue(scope, id, index, element)];
    }
    let element = scope.k.bind(element);
    let first = epilogue(scope, id, index, element.clone());
    let mut all: SmallVec<[Expr; 2]> = smallvec::smallvec![scope.k.bind(first)];
    for tap in taps {
        let dtype = base(scope, id).1;
        let value = apply(scope, id, index, tap, (element.clone(), dtype));
        all.push(scope.k.bind(value));
    }
    all
}

/// The number of operands of a fused node's anchor, and its element type.
fn base(scope: &Scope, id: NodeId) -> (usize, DType) {
    let node = scope.graph.node(id);
    let Op::Fused(fused) = &node.op else { return (node.operands.len(), DType::F32) };
    let types: Vec<_> = node.operands[..fused.bases].iter().map(|o| scope.graph.ty(*o).clone()).collect();
    let base = fused.anchor.home().infer(&types, &mut Default::default());
    (fused.bases, base.ok().and_then(|ty| ty.tensor().map(|t| t.dtype)).unwrap_or(DType::F32))
}

/// A program over a value and the extras of a fused node.
pub fn apply(scope: &mut Scope, id: NodeId, index: &[Expr], program: &ScalarExpr, element: (Expr, DType)) -> Expr {
    let graph = scope.graph;
    let node = graph.node(id);
    let Op::Fused(fused) = &node.op else { return element.0 };
    over(scope, index, program, element, fused.split(&node.operands).1)
}

/// The element at `index` of the first operand of a convolution, as it is read: what a prologue makes of it.
pub fn first_operand(scope: &mut Scope, id: NodeId, index: &[Expr]) -> Expr {
    let graph = scope.graph;
    let node = graph.node(id);
    let element = scope.element(node.operands[0], index);
    let Op::Fused(fused) = &node.op else { return element };
    let Some(prologue) = &fused.prologue else { return element };
    let dtype = graph.tensor_type(node.operands[0]).dtype;
    over(scope, index, &prologue.program, (element, dtype), fused.split(&node.operands).2)
}

/// A program over a value at `index` and operands that broadcast to it.
fn over(
    scope: &mut Scope,
    index: &[Expr],
    program: &ScalarExpr,
    (element, dtype): (Expr, DType),
    extras: &[NodeId],
) -> Expr {
    let graph = scope.graph;
    let mut args: SmallVec<[Expr; 8]> = smallvec::smallvec![element];
    let mut dtypes: SmallVec<[DType; 8]> = smallvec::smallvec![dtype];
    for extra in extras {
        let at = scope.broadcast_index(*extra, index);
        args.push(scope.element(*extra, &at));
        dtypes.push(graph.tensor_type(*extra).dtype);
    }
    scope.program(program, &args, &dtypes)
}

/// A kernel whose grid points are rows.
struct Rows<'s, 'g> {
    scope: &'s mut Scope<'g>,
    id: NodeId,
    out: Memory,
    /// Indices of the other axes; those of the row are filled in.
    outer: SmallVec<[Expr; 6]>,
    /// Axes of the row.
    axes: SmallVec<[usize; 4]>,
    dtype: DType,
    /// On CUDA, rows that wait in shared memory.
    staged: Vec<(NodeId, Memory)>,
}

impl Rows<'_, '_> {
    /// Loops over the row. Vectors run along it when its last axis is the tensor's last.
    fn each(&mut self, body: &mut dyn FnMut(&mut Scope, &[Expr])) {
        let shape = self.scope.graph.tensor_type(self.id).shape.clone();
        fn level(
            scope: &mut Scope,
            shape: &egret_ir::Shape,
            axes: &[usize],
            index: SmallVec<[Expr; 6]>,
            body: &mut dyn FnMut(&mut Scope, &[Expr]),
        ) {
            let Some((axis, rest)) = axes.split_first() else { return body(scope, &index) };
            let contiguous = shape[*axis + 1..].iter().all(|d| d.is(1));
            let kind = if rest.is_empty() && contiguous { LoopKind::Vector } else { LoopKind::Serial };
            let end = scope.dim(&shape[*axis]);
            scope.for_(Expr::int(0), end, kind, |scope, at| {
                let mut index = index;
                index[*axis] = at;
                level(scope, shape, rest, index, body);
            });
        }
        let (axes, outer) = (self.axes.clone(), self.outer.clone());
        if self.scope.is_gpu() {
            return cuda::row::each(self.scope, &shape, &axes, &outer, &self.staged, body);
        }
        level(self.scope, &shape, &axes, outer, body);
    }

    fn accumulate(&mut self, op: ReduceOp, start: f64, value: &mut dyn FnMut(&mut Scope, &[Expr]) -> Expr) -> Expr {
        let total: Var = self.scope.k.variable(Expr::constant(self.dtype, start));
        self.each(&mut |scope, index| {
            let value = value(scope, index);
            scope.k.accumulate(total, op, value);
        });
        if self.scope.is_gpu() {
            self.scope.k.block_reduce(total, op);
        }
        Expr::Var(total)
    }

    fn sum(&mut self, value: &mut dyn FnMut(&mut Scope, &[Expr]) -> Expr) -> Expr {
        self.accumulate(ReduceOp::Sum, 0.0, value)
    }

    /// Stores the epilogue of `value` at every place of the row.
    fn store(&mut self, value: &mut dyn FnMut(&mut Scope, &[Expr]) -> Expr) {
        let (id, out) = (self.id, self.out);
        self.each(&mut |scope, index| {
            let value = value(scope, index);
            let value = epilogue(scope, id, index, value);
            let address = scope.address((id, 0), index);
            scope.k.store(out, address, value);
        });
    }

    /// On CUDA, brings rows of operands that are read more than once into shared memory.
    fn stage(&mut self, operands: &[NodeId]) {
        if self.scope.is_gpu() {
            let shape = self.scope.graph.tensor_type(self.id).shape.clone();
            self.staged = cuda::row::stage(self.scope, &shape, &self.axes, &self.outer, operands);
        }
    }

    /// Elements of the row, as a value of the row's type.
    fn length(&mut self) -> Expr {
        let shape = self.scope.graph.tensor_type(self.id).shape.clone();
        let n = self.axes.iter().fold(Dim::ONE, |n, axis| n * shape[*axis].clone());
        self.scope.dim(&n).cast(self.dtype)
    }
}

/// Builds a row kernel.
pub fn build(scope: &mut Scope, id: NodeId) {
    let graph = scope.graph;
    let node = graph.node(id);
    let op = anchor(&node.op).clone();
    let operands: SmallVec<[NodeId; 4]> = node.operands.clone();
    if let Op::CrossEntropy(_) = op {
        return cross_entropy(scope, id);
    }
    let shape = graph.tensor_type(id).shape.clone();
    let axes: SmallVec<[usize; 4]> = match &op {
        Op::Softmax(Softmax { axis, .. }) => smallvec::smallvec![*axis],
        Op::SoftmaxGrad(grad) => smallvec::smallvec![grad.axis],
        Op::Norm(norm) => (norm.axis..shape.rank()).collect(),
        Op::NormGrad(grad) => (grad.axis..shape.rank()).collect(),
        _ => SmallVec::new(),
    };
    let out = scope.write((id, 0));
    let outer_extents: SmallVec<[Dim; 6]> =
        shape.iter().enumerate().map(|(i, d)| if axes.contains(&i) { Dim::ONE } else { d.clone() }).collect();
    let outer = grid_over(scope, &outer_extents);
    let dtype = graph.tensor_type(operands[0]).dtype;
    let mut rows = Rows { scope, id, out, outer, axes, dtype, staged: Vec::new() };
    rows.stage(match &op {
        Op::SoftmaxGrad(_) | Op::NormGrad(_) => &operands[..2],
        _ => &operands[..1],
    });
    match &op {
        Op::Softmax(softmax) => build_softmax(&mut rows, operands[0], softmax.log),
        Op::SoftmaxGrad(grad) => softmax_grad(&mut rows, operands[0], operands[1], grad.log),
        Op::Norm(norm) => build_norm(&mut rows, operands[0], norm.kind, norm.eps.get()),
        Op::NormGrad(grad) => norm_grad(&mut rows, operands[0], operands[1], grad.kind, grad.eps.get()),
        _ => {}
    }
}

fn exp(x: Expr) -> Expr {
    x.unary(UnaryOp::Exp)
}

fn build_softmax(rows: &mut Rows, x: NodeId, log: bool) {
    if rows.scope.is_gpu() && rows.staged.is_empty() {
        let (highest, total) = online(rows, x);
        return store_softmax(rows, x, log, highest, total);
    }
    let highest = rows.accumulate(ReduceOp::Max, f64::NEG_INFINITY, &mut |s, i| s.element(x, i));
    // the exponentials wait in the result's place, unless that would round them
    let (id, out, dtype) = (rows.id, rows.out, rows.dtype);
    let half = matches!(dtype, DType::F16 | DType::BF16);
    let keep = !rows.scope.is_gpu() && !log && !half && rows.scope.graph.tensor_type(id).dtype == dtype;
    let top = highest.clone();
    let total = rows.sum(&mut |scope, index| {
        let e = exp(scope.element(x, index) - top.clone());
        if keep {
            let e = scope.k.bind(e);
            let address = scope.address((id, 0), index);
            scope.k.store(out, address, e.clone());
            e
        } else {
            e
        }
    });
    if !keep {
        return store_softmax(rows, x, log, highest, total);
    }
    let scale = rows.scope.k.bind(Expr::constant(dtype, 1.0) / total);
    rows.store(&mut |scope, index| {
        let address = scope.address((id, 0), index);
        out.load(address) * scale.clone()
    });
}

/// Stores the softmax of a row, or its logarithm, of which the greatest element and the sum of exponentials are known.
fn store_softmax(rows: &mut Rows, x: NodeId, log: bool, highest: Expr, total: Expr) {
    if log {
        // the highest goes first: it may be so great that nothing of the logarithm would be left beside it
        let rest = rows.scope.k.bind(total.unary(UnaryOp::Log));
        return rows.store(&mut |s, i| s.element(x, i) - highest.clone() - rest.clone());
    }
    let scale = rows.scope.k.bind(Expr::constant(rows.dtype, 1.0) / total);
    rows.store(&mut |s, i| exp(s.element(x, i) - highest.clone()) * scale.clone());
}

/// The greatest element of a row, and the sum of exponentials of what is left when that is taken away, in one pass: each
/// thread scales its sum down when it meets a greater element, and all do so when they know the greatest.
fn online(rows: &mut Rows, x: NodeId) -> (Expr, Expr) {
    let dtype = rows.dtype;
    let least = Expr::constant(dtype, f64::NEG_INFINITY);
    let top = rows.scope.k.variable(&least);
    let total = rows.scope.k.variable(Expr::constant(dtype, 0.0));
    // nothing is taken away while all is −∞
    let shift = |scope: &mut Scope, top: Expr| {
        let empty = top.equal(&least);
        scope.k.bind(empty.select(Expr::constant(dtype, 0.0), top))
    };
    rows.each(&mut |scope, index| {
        let value = scope.element(x, index);
        let value = scope.k.bind(value);
        let next = scope.k.bind(Expr::Var(top).max(&value));
        let down = shift(scope, next.clone());
        let scaled = Expr::Var(total) * exp(Expr::Var(top) - &down);
        scope.k.assign(total, scaled + exp(value - down));
        scope.k.assign(top, next);
    });
    let own = rows.scope.k.bind(Expr::Var(top));
    rows.scope.k.block_reduce(top, ReduceOp::Max);
    let down = shift(rows.scope, Expr::Var(top));
    rows.scope.k.assign(total, Expr::Var(total) * exp(own - down));
    rows.scope.k.block_reduce(total, ReduceOp::Sum);
    (Expr::Var(top), Expr::Var(total))
}

fn softmax_grad(rows: &mut Rows, y: NodeId, dy: NodeId, log: bool) {
    if log {
        let total = rows.sum(&mut |s, i| s.element(dy, i));
        return rows.store(&mut |s, i| s.element(dy, i) - exp(s.element(y, i)) * total.clone());
    }
    let total = rows.sum(&mut |s, i| s.element(dy, i) * s.element(y, i));
    rows.store(&mut |s, i| s.element(y, i) * (s.element(dy, i) - total.clone()));
}

/// Mean (zero for RMS) and `1 / √(variance + eps)` of the row.
fn statistics(rows: &mut Rows, x: NodeId, kind: NormKind, eps: f64) -> (Expr, Expr) {
    let n = rows.length();
    let n = rows.scope.k.bind(n);
    let dtype = rows.dtype;
    let mean = match kind {
        NormKind::Layer => {
            let total = rows.sum(&mut |s, i| s.element(x, i));
            rows.scope.k.bind(total / n.clone())
        }
        NormKind::Rms => Expr::constant(dtype, 0.0),
    };
    let centre = mean.clone();
    let squares = rows.sum(&mut |s, i| {
        let d = s.element(x, i);
        let d = if kind == NormKind::Layer { d - centre.clone() } else { d };
        let d = s.k.bind(d);
        d.clone() * d
    });
    let variance = squares / n + Expr::constant(dtype, eps);
    let scale = rows.scope.k.bind(variance.unary(UnaryOp::Rsqrt));
    (mean, scale)
}

fn build_norm(rows: &mut Rows, x: NodeId, kind: NormKind, eps: f64) {
    let (mean, scale) = statistics(rows, x, kind, eps);
    rows.store(&mut |s, i| {
        let d = s.element(x, i);
        let d = if kind == NormKind::Layer { d - mean.clone() } else { d };
        d * scale.clone()
    });
}

/// `dx = r·(dy − mean dy − y·mean(dy·y))` with y the normalised row; without the middle term for RMS.
fn norm_grad(rows: &mut Rows, x: NodeId, dy: NodeId, kind: NormKind, eps: f64) {
    let (mean, scale) = statistics(rows, x, kind, eps);
    let n = rows.length();
    let n = rows.scope.k.bind(n);
    let normalised = |s: &mut Scope, i: &[Expr]| {
        let d = s.element(x, i);
        let d = if kind == NormKind::Layer { d - mean.clone() } else { d };
        d * scale.clone()
    };
    let a = match kind {
        NormKind::Layer => {
            let total = rows.sum(&mut |s, i| s.element(dy, i));
            Some(rows.scope.k.bind(total / n.clone()))
        }
        NormKind::Rms => None,
    };
    let total = rows.sum(&mut |s, i| s.element(dy, i) * normalised(s, i));
    let b = rows.scope.k.bind(total / n);
    rows.store(&mut |s, i| {
        let mut inner = s.element(dy, i) - normalised(s, i) * b.clone();
        if let Some(a) = &a {
            inner = inner - a.clone();
        }
        inner * scale.clone()
    });
}

/// One loss for each row of logits.
fn cross_entropy(scope: &mut Scope, id: NodeId) {
    let graph = scope.graph;
    let node = graph.node(id);
    let logits = node.operands[0];
    let shape = graph.tensor_type(logits).shape.clone();
    let dtype = graph.tensor_type(logits).dtype;
    let last = shape.rank() - 1;
    let out = scope.write((id, 0));
    let outer = grid_over(scope, &shape[..last]);
    let mut index = outer.clone();
    index.push(Expr::int(0));
    let mut rows =
        Rows { scope, id: logits, out, outer: index, axes: smallvec::smallvec![last], dtype, staged: Vec::new() };
    rows.stage(&[logits]);
    let (highest, total) = if rows.scope.is_gpu() && rows.staged.is_empty() {
        online(&mut rows, logits)
    } else {
        let highest = rows.accumulate(ReduceOp::Max, f64::NEG_INFINITY, &mut |s, i| s.element(logits, i));
        let total = rows.sum(&mut |s, i| exp(s.element(logits, i) - highest.clone()));
        (highest, total)
    };
    if scope.is_gpu() {
        // one thread stores what all have
        return scope.for_(Expr::int(0), Expr::int(1), LoopKind::Thread(0), |scope, _| {
            cross_entropy_loss(scope, id, out, &outer, highest, total);
        });
    }
    cross_entropy_loss(scope, id, out, &outer, highest, total);
}

/// Stores the loss of a row of which the greatest logit and the sum of exponentials are known.
fn cross_entropy_loss(scope: &mut Scope, id: NodeId, out: Memory, outer: &[Expr], highest: Expr, total: Expr) {
    let graph = scope.graph;
    let (logits, labels) = (graph.node(id).operands[0], graph.node(id).operands[1]);
    let shape = graph.tensor_type(logits).shape.clone();
    let last = shape.rank() - 1;
    let label = scope.element(labels, outer).cast(DType::I64);
    let label = scope.k.bind(label);
    let top = scope.dim(&(shape[last].clone() - Dim::ONE));
    let code = scope.fault(format!("a label is outside 0..{}", shape[last]));
    scope.k.status(label.less(Expr::int(0)).or(label.greater(top.clone())), code);
    let label = scope.k.bind(label.max(Expr::int(0)).min(top));
    let mut at: SmallVec<[Expr; 6]> = outer.into();
    at.push(label);
    let chosen = scope.element(logits, &at);
    let loss = highest - chosen + total.unary(UnaryOp::Log);
    let loss = epilogue(scope, id, outer, loss);
    let address = scope.address((id, 0), outer);
    scope.k.store(out, address, loss);
}
