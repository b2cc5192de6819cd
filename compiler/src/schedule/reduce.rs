//! Reductions along any axes.

use egret_ir::ops::{Reduce, ReduceKind};
use egret_ir::{DType, Dim, Graph, NodeId, Op, Shape};
use smallvec::SmallVec;

use super::map::grid_over;
use super::row::{anchor, epilogue};
use super::scope::{Scope, value_of};
use crate::kernel::{Expr, LoopKind, ReduceOp};
use crate::layout::Layout;

/// Columns whose accumulators one grid point keeps.
const COLUMNS: i64 = 256;

pub(super) fn operation(kind: ReduceKind) -> (ReduceOp, f64) {
    match kind {
        ReduceKind::Sum | ReduceKind::Mean => (ReduceOp::Sum, 0.0),
        ReduceKind::Max => (ReduceOp::Max, f64::NEG_INFINITY),
        ReduceKind::Min => (ReduceOp::Min, f64::INFINITY),
        ReduceKind::Prod => (ReduceOp::Prod, 1.0),
    }
}

/// The least or greatest integer stands for an infinity.
pub(super) fn start(kind: ReduceKind, dtype: DType) -> Expr {
    let (_, value) = operation(kind);
    match (kind, dtype.is_float()) {
        (ReduceKind::Max, false) => Expr::Literal(crate::kernel::Literal::Int(dtype, least(dtype))),
        (ReduceKind::Min, false) => Expr::Literal(crate::kernel::Literal::Int(dtype, greatest(dtype))),
        _ => Expr::constant(dtype, value),
    }
}

fn least(dtype: DType) -> i64 {
    match dtype {
        DType::I8 => i64::from(i8::MIN),
        DType::I16 => i64::from(i16::MIN),
        DType::I32 => i64::from(i32::MIN),
        DType::I64 => i64::MIN,
        _ => 0,
    }
}

fn greatest(dtype: DType) -> i64 {
    match dtype {
        DType::I8 => i64::from(i8::MAX),
        DType::I16 => i64::from(i16::MAX),
        DType::I32 => i64::from(i32::MAX),
        DType::U8 => i64::from(u8::MAX),
        DType::U16 => i64::from(u16::MAX),
        DType::U32 => i64::from(u32::MAX),
        DType::U64 => -1,
        _ => i64::MAX,
    }
}

/// A reduction.
pub(super) struct Plan<'r> {
    /// The node.
    pub id: NodeId,
    /// What is reduced.
    pub x: NodeId,
    /// How.
    pub reduce: &'r Reduce,
    /// Shape of what is reduced.
    pub shape: Shape,
}

impl<'r> Plan<'r> {
    /// The reduction of a node; `None` of other operators.
    pub fn new(graph: &'r Graph, id: NodeId) -> Option<Plan<'r>> {
        let node = graph.node(id);
        let Op::Reduce(reduce) = anchor(&node.op) else { return None };
        let x = *node.operands.first()?;
        Some(Plan { id, x, reduce, shape: graph.tensor_type(x).shape.clone() })
    }

    /// Whether an axis is reduced.
    pub fn reduced(&self, axis: usize) -> bool {
        self.reduce.axes.contains(&axis)
    }

    /// Indices of the result for indices of the operand.
    fn result_index(&self, index: &[Expr]) -> SmallVec<[Expr; 6]> {
        let axes = (0..self.shape.rank()).filter(|a| self.reduce.keep || !self.reduced(*a));
        axes.map(|a| if self.reduced(a) { Expr::int(0) } else { index[a].clone() }).collect()
    }

    /// Address and value of a result: the epilogue of a total.
    pub fn finish(&self, scope: &mut Scope, total: Expr, index: &[Expr]) -> (Expr, Expr) {
        let dtype = scope.graph.tensor_type(self.x).dtype;
        let total = match self.reduce.kind {
            ReduceKind::Mean => {
                let n = self.reduce.axes.iter().fold(Dim::ONE, |n, a| n * self.shape[*a].clone());
                total / scope.dim(&n).cast(dtype)
            }
            _ => total,
        };
        let at = self.result_index(index);
        let value = epilogue(scope, self.id, &at, total);
        (scope.address((self.id, 0), &at), value)
    }
}

/// Builds a reduction.
pub fn build(scope: &mut Scope, id: NodeId) {
    let Some(plan) = Plan::new(scope.graph, id) else { return };
    let blocked = blocked_source(scope, plan.x);
    let vector_axis = if blocked { 1 } else { plan.shape.iter().rposition(|d| !d.is(1)).unwrap_or(0) };
    if plan.shape.rank() > 0 && !plan.reduced(vector_axis) {
        columns(scope, &plan, vector_axis, if blocked { scope.stored.lanes() } else { COLUMNS });
    } else {
        rows(scope, &plan);
    }
}

/// Whether the operand is read from a blocked value through maps alone.
fn blocked_source(scope: &Scope, x: NodeId) -> bool {
    let graph = scope.graph;
    let mut todo: SmallVec<[NodeId; 8]> = smallvec::smallvec![x];
    let mut steps = 0;
    while let Some(at) = todo.pop() {
        steps += 1;
        match scope.stored.layout(value_of(graph, at)) {
            Some(Layout::Blocked { .. }) => return graph.tensor_type(at).shape == graph.tensor_type(x).shape,
            Some(_) => {}
            None if steps < 64 && matches!(graph.node(at).op, Op::Pointwise(_) | Op::Cast(_)) => {
                todo.extend(graph.node(at).operands.iter().copied());
            }
            None => {}
        }
    }
    false
}

/// Vectors run along a kept axis: an accumulator a column.
fn columns(scope: &mut Scope, plan: &Plan, axis: usize, width: i64) {
    let shape = &plan.shape;
    let out = scope.write((plan.id, 0));
    let dtype = scope.graph.tensor_type(plan.x).dtype;
    let chunks = shape[axis].ceil_div(&Dim::from(width));
    let extents: SmallVec<[Dim; 6]> = (0..shape.rank())
        .map(|a| match a {
            a if a == axis => chunks.clone(),
            a if plan.reduced(a) => Dim::ONE,
            a => shape[a].clone(),
        })
        .collect();
    let outer = grid_over(scope, &extents);
    let accumulators = scope.local(dtype, width as usize);
    let first = scope.k.bind(outer[axis].clone() * Expr::int(width));
    let extent = scope.dim(&shape[axis]);
    let count = scope.k.bind((extent - first.clone()).min(Expr::int(width)));
    let start = start(plan.reduce.kind, dtype);
    scope.for_(Expr::int(0), count.clone(), LoopKind::Vector, |scope, lane| {
        scope.k.store(accumulators, lane, start);
    });
    let column = |scope: &mut Scope, lane: Expr| {
        let whole = first.clone() + lane.clone();
        scope.note_split(whole.clone(), outer[axis].clone(), lane);
        whole
    };
    let reduced: SmallVec<[usize; 4]> = plan.reduce.axes.iter().copied().filter(|a| !shape[*a].is(1)).collect();
    let (op, _) = operation(plan.reduce.kind);
    let lanes = count.clone();
    over(scope, shape, &reduced, outer.clone(), &mut |scope, index| {
        let index = index.to_vec();
        scope.for_(Expr::int(0), lanes.clone(), LoopKind::Vector, |scope, lane| {
            let mut index = index;
            index[axis] = column(scope, lane.clone());
            let value = scope.element(plan.x, &index);
            let have = accumulators.load(lane.clone());
            let next = match op {
                ReduceOp::Sum => have + value,
                ReduceOp::Prod => have * value,
                ReduceOp::Max => have.max(value),
                ReduceOp::Min => have.min(value),
            };
            scope.k.store(accumulators, lane, next);
        });
    });
    scope.for_(Expr::int(0), count, LoopKind::Vector, |scope, lane| {
        let mut index = outer.clone();
        index[axis] = column(scope, lane.clone());
        let (address, value) = plan.finish(scope, accumulators.load(lane), &index);
        scope.k.store(out, address, value);
    });
}

/// Serial loops over axes, then the body.
fn over(
    scope: &mut Scope,
    shape: &Shape,
    axes: &[usize],
    index: SmallVec<[Expr; 6]>,
    body: &mut dyn FnMut(&mut Scope, &[Expr]),
) {
    let Some((axis, rest)) = axes.split_first() else { return body(scope, &index) };
    let end = scope.dim(&shape[*axis]);
    scope.for_(Expr::int(0), end, LoopKind::Serial, |scope, at| {
        let mut index = index;
        index[*axis] = at;
        over(scope, shape, rest, index, body);
    });
}

/// Vectors run along a reduced axis.
fn rows(scope: &mut Scope, plan: &Plan) {
    let shape = &plan.shape;
    let out = scope.write((plan.id, 0));
    let dtype = scope.graph.tensor_type(plan.x).dtype;
    let extents: SmallVec<[Dim; 6]> =
        (0..shape.rank()).map(|a| if plan.reduced(a) { Dim::ONE } else { shape[a].clone() }).collect();
    let outer = grid_over(scope, &extents);
    let total = scope.k.variable(start(plan.reduce.kind, dtype));
    let (op, _) = operation(plan.reduce.kind);
    let mut reduced: SmallVec<[usize; 4]> = plan.reduce.axes.iter().copied().filter(|a| !shape[*a].is(1)).collect();
    let inner = reduced.pop();
    over(scope, shape, &reduced, outer.clone(), &mut |scope, index| {
        let index: SmallVec<[Expr; 6]> = index.into();
        let Some(inner) = inner else {
            let value = scope.element(plan.x, &index);
            return scope.k.accumulate(total, op, value);
        };
        let contiguous = shape[inner + 1..].iter().all(|d| d.is(1));
        let kind = if contiguous { LoopKind::Vector } else { LoopKind::Serial };
        let end = scope.dim(&shape[inner]);
        scope.for_(Expr::int(0), end, kind, |scope, at| {
            let mut index = index;
            index[inner] = at;
            let value = scope.element(plan.x, &index);
            scope.k.accumulate(total, op, value);
        });
    });
    let (address, value) = plan.finish(scope, Expr::Var(total), &outer);
    scope.k.store(out, address, value);
}
