//! Cumulative sums, products and extrema: short lines, and many of them, by a thread each, long ones by blocks.

use egret_ir::ops::{Cumulative, CumulativeKind, ReduceKind};
use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId, Shape};
use smallvec::SmallVec;

use super::scan::Scan;
use super::{expected, finished, map};
use crate::kernel::Expr;
use crate::schedule::Passes;
use crate::schedule::reduce::{operation, start};
use crate::schedule::scope::{Scope, Stored};

/// Lines up to this length are a thread's.
const SHORT: i64 = 128;
/// So many lines fill a GPU with a thread each.
const MANY: i64 = 1 << 14;

/// Whether lines along an axis are scanned by blocks.
pub fn is_long(shape: &Shape, axis: usize) -> bool {
    let lines = (0..shape.rank()).filter(|a| *a != axis).fold(1i64, |n, a| n.saturating_mul(expected(&shape[a])));
    shape[axis].range().1 > SHORT && lines < MANY
}

/// What is joined, as a reduction.
pub fn kind(kind: CumulativeKind) -> ReduceKind {
    match kind {
        CumulativeKind::Sum => ReduceKind::Sum,
        CumulativeKind::Prod => ReduceKind::Prod,
        CumulativeKind::Max => ReduceKind::Max,
        CumulativeKind::Min => ReduceKind::Min,
    }
}

/// Builds the kernels of long lines.
///
/// # Errors
/// As [`super::generate`].
pub fn generate(
    graph: &Graph,
    stored: &dyn Stored,
    id: NodeId,
    cumulative: &Cumulative,
    exact: bool,
) -> Result<Passes, Diagnostic> {
    let x = graph.node(id).operands[0];
    let ty = graph.tensor_type(id);
    let axis = cumulative.axis;
    let kind = kind(cumulative.kind);
    // halves are joined in f32
    let wide = if matches!(ty.dtype, DType::F16 | DType::BF16) { DType::F32 } else { ty.dtype };
    let mut lines: SmallVec<[Dim; 6]> = ty.shape.iter().cloned().collect();
    let extent = std::mem::replace(&mut lines[axis], Dim::ONE);
    let scan = Scan {
        lines: &lines,
        extent: &extent,
        op: operation(kind).0,
        neutral: start(kind, wide),
        dtype: wide,
        exclusive: cumulative.exclusive,
    };
    let place = |scope: &mut Scope, line: &[Expr], at: &Expr| {
        let mut index: SmallVec<[Expr; 6]> = line.into();
        index[axis] = match cumulative.reverse {
            true => scope.dim(&extent) - 1 - at,
            false => at.clone(),
        };
        index
    };
    let mut value = |scope: &mut Scope, line: &[Expr], at: &Expr| {
        let index = place(scope, line, at);
        let value = scope.element(x, &index);
        if wide == ty.dtype { value } else { value.cast(wide) }
    };
    let threads = map::THREADS as u32;
    let mut passes = Passes::default();
    if scan.is_split() {
        let mut scope = Scope::on_gpu(graph, stored, exact, threads);
        let totals = scope.temporary(id, 0, wide, true);
        scan.sum_tiles(&mut scope, totals, &mut value);
        passes.kernels.push(finished(scope, id)?);
        passes.temporaries.push(scan.totals());
    }
    let mut scope = Scope::on_gpu(graph, stored, exact, threads);
    let out = scope.write((id, 0));
    let totals = scan.is_split().then(|| scope.temporary(id, 0, wide, false));
    scan.build(&mut scope, totals, &mut value, &mut |scope, line, at, total| {
        let index = place(scope, line, at);
        let address = scope.address((id, 0), &index);
        scope.k.store(out, address, if wide == ty.dtype { total } else { total.cast(ty.dtype) });
    });
    passes.kernels.push(finished(scope, id)?);
    Ok(passes)
}
