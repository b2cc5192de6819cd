//! Schedules for CUDA: what differs from the CPU. One grid point is a block.
//!
//! Maps, windows and scatters deal elements to threads; rows and reductions give a block to a result; contractions are
//! tiles in shared memory ([`contract`]): in stages ([`matrix`]), or
//! of any element type in one stage ([`fma`]).

pub mod attention;
mod bring;
pub mod concat;
pub mod contract;
pub mod cumulative;
pub mod fma;
mod found;
mod image;
pub mod map;
pub mod matrix;
pub mod problem;
pub mod reduce;
pub mod row;
pub mod row_stage;
mod scan;
pub mod scatter;
pub mod select;
pub mod sort;
mod store;
mod suppress;
pub mod tiles;
mod turn;

use egret_ir::{Diagnostic, Dim, Graph, NodeId, Op};
use egret_program::DeviceDescription;
use smallvec::SmallVec;

use super::choice::Schedule;
use super::row::anchor;
use super::scope::{Scope, Stored};
use super::{Generated, Passes};
use crate::cost::SYMBOL_HINT;
use crate::kernel::{Finding, Memory};
use crate::partition::{Family, Group};

/// How products of `f32` are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum F32Products {
    /// By fused multiply-adds in `f32`.
    #[default]
    Fma,
    /// By tensor cores, operands rounded to 10 bits of fraction.
    Tf32,
    /// By tensor cores, operands split into two parts of 10 bits: nearly as exact as `f32`.
    Tf32x3,
    /// On a CPU with AVX-512 BF16 or AMX, by weights known at load: operands rounded to 7 bits of fraction, sums in `f32`.
    Bf16,
}

impl std::str::FromStr for F32Products {
    type Err = String;

    fn from_str(text: &str) -> Result<F32Products, String> {
        match text {
            "fma" => Ok(F32Products::Fma),
            "tf32" => Ok(F32Products::Tf32),
            "tf32x3" => Ok(F32Products::Tf32x3),
            "bf16" => Ok(F32Products::Bf16),
            other => Err(format!("`{other}` is no way to multiply f32: fma, tf32, tf32x3, bf16")),
        }
    }
}

/// What kernels are made for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'d> {
    /// The GPU.
    pub device: &'d DeviceDescription,
    /// No FMA contraction, no rounding of operands.
    pub exact: bool,
    /// Products of `f32`.
    pub products: F32Products,
    /// The schedule, of [`candidates`]; the model's choice where there is none.
    pub schedule: Option<&'d Schedule>,
}

/// Builds the CUDA kernels of a group.
///
/// # Errors
/// `E0461` when the kernel is beyond the bounds of the kernel IR, `E0465` when there is no CUDA kernel of that form.
pub fn generate(graph: &Graph, stored: &dyn Stored, group: &Group, target: &Target) -> Result<Passes, Diagnostic> {
    let (id, exact) = (group.root, target.exact);
    let of_tiles = matches!(group.family, Family::Dot | Family::Conv);
    if matches!(&graph.node(id).op, Op::Fused(fused) if !fused.taps.is_empty() && (!of_tiles || fused.rows.is_some())) {
        return Err(unsupported(graph, id, "with several results"));
    }
    match &graph.node(id).op {
        Op::TopK(top) if sort::is_long(&graph.tensor_type(graph.node(id).operands[0]).shape[top.axis]) => {
            return sort::generate(graph, stored, id, top, exact);
        }
        Op::NonZero(_) => return found::non_zero(graph, stored, id, exact),
        Op::NonMaxSuppression(op) => return suppress::generate(graph, stored, id, op),
        Op::Cumulative(op) if cumulative::is_long(&graph.tensor_type(id).shape, op.axis) => {
            return cumulative::generate(graph, stored, id, op, exact);
        }
        Op::Attention(_) | Op::AttentionGrad(_) => return attention::generate(graph, stored, id, target),
        _ if group.family == Family::Reduce => return reduce::generate(graph, stored, id, exact),
        _ if matches!(group.family, Family::Dot | Family::Conv) => {
            return contract::generate(graph, stored, id, target);
        }
        _ => {}
    }
    let threads = match target.schedule {
        Some(Schedule::Rows { threads }) => *threads,
        _ => threads(graph, group),
    };
    let mut scope = Scope::on_gpu(graph, stored, exact, threads);
    match group.family {
        Family::Map if turn::is_turned(graph, stored, id) => turn::build(&mut scope, id),
        Family::Map => {
            super::map::build_all(&mut scope, &group.maps());
        }
        Family::Concat => match &graph.node(id).op {
            Op::Concat(op) => concat::build(&mut scope, id, op.axis),
            _ => return Err(unsupported(graph, id, "of this form")),
        },
        Family::Window => super::window::build(&mut scope, id),
        Family::Row => super::row::build(&mut scope, id),
        Family::Scatter => match &graph.node(id).op {
            Op::Scatter(op) => scatter::build(&mut scope, id, op),
            _ => return Err(unsupported(graph, id, "of this form")),
        },
        Family::Cumulative => match &graph.node(id).op {
            Op::Cumulative(op) => super::cumulative::build(&mut scope, id, op),
            _ => return Err(unsupported(graph, id, "of this form")),
        },
        Family::Rng => match &graph.node(id).op {
            Op::Rng(op) => super::rng::build(&mut scope, id, op),
            _ => return Err(unsupported(graph, id, "of this form")),
        },
        Family::Select => match &graph.node(id).op {
            Op::TopK(top) => select::build(&mut scope, id, top),
            _ => return Err(unsupported(graph, id, "of any form")),
        },
        Family::Dot
        | Family::Conv
        | Family::Reduce
        | Family::Attention
        | Family::AttentionGrad
        | Family::Bits
        | Family::Branch
        | Family::While
        | Family::Scan => {
            return Err(unsupported(graph, id, "of any form"));
        }
    }
    Ok(finished(scope, id)?.into())
}

/// The schedules that a group's kernel may have: the model's choice first, then what it thinks best; fewer than two where
/// there is no choice.
pub fn candidates(graph: &Graph, stored: &dyn Stored, group: &Group, target: &Target) -> Vec<Schedule> {
    match group.family {
        Family::Dot | Family::Conv => contract::candidates(graph, stored, group.root, target),
        Family::Attention | Family::AttentionGrad => attention::candidates(graph, group.root, target.device),
        Family::Row if matches!(anchor(&graph.node(group.root).op), Op::Softmax(_) | Op::Norm(_)) => {
            row::candidates(threads(graph, group)).map(|threads| Schedule::Rows { threads }).collect()
        }
        _ => Vec::new(),
    }
}

/// The buffers of what a node writes, by result.
fn written(scope: &mut Scope, id: NodeId) -> SmallVec<[Memory; 2]> {
    (0..scope.graph.ty(id).parts().len()).map(|part| scope.write((id, part))).collect()
}

/// The kernel of a scope.
fn finished(scope: Scope, id: NodeId) -> Result<Generated, Diagnostic> {
    let graph = scope.graph;
    let Scope { mut k, args, dims, faults, vectors, .. } = scope;
    if vectors {
        k.align_buffers(map::VECTOR_BYTES as u32);
    }
    let kernel = k.finish().map_err(|findings| beyond(graph, id, findings))?.with_wide_halves();
    Ok(Generated { kernel, args, dims, faults })
}

/// Threads of a block, from shapes.
fn threads(graph: &Graph, group: &Group) -> u32 {
    let node = graph.node(group.root);
    let op = anchor(&node.op);
    let first = || graph.tensor_type(node.operands[0]);
    match (group.family, op) {
        (Family::Row, _) => {
            let shape = &first().shape;
            let axes = match op {
                Op::Softmax(softmax) => softmax.axis..softmax.axis + 1,
                Op::SoftmaxGrad(grad) => grad.axis..grad.axis + 1,
                Op::Norm(norm) => norm.axis..shape.rank(),
                Op::NormGrad(grad) => grad.axis..shape.rank(),
                _ => shape.rank() - 1..shape.rank(),
            };
            row::threads(&shape[axes].iter().fold(Dim::ONE, |n, d| n * d.clone()))
        }
        (Family::Scatter, _) => scatter::THREADS as u32,
        _ => map::THREADS as u32,
    }
}

/// The value that an extent is taken for when a schedule is chosen.
pub(crate) fn expected(extent: &Dim) -> i64 {
    extent.hint(SYMBOL_HINT)
}

fn with_origin(mut error: Diagnostic, graph: &Graph, id: NodeId) -> Diagnostic {
    error.origin = graph.origins(id).iter().map(|o| (**o).clone()).collect();
    error
}

fn unsupported(graph: &Graph, id: NodeId, form: &str) -> Diagnostic {
    let name = anchor(&graph.node(id).op).home().name();
    with_origin(
        Diagnostic::new("E0465", format!("`{name}` {form} has no CUDA kernel yet (node {})", id.index())),
        graph,
        id,
    )
}

fn beyond(graph: &Graph, id: NodeId, findings: Vec<Finding>) -> Diagnostic {
    let name = graph.node(id).op.home().name();
    let error = Diagnostic::new("E0461", format!("no CUDA kernel can be made for `{name}` (node {})", id.index()));
    findings.into_iter().fold(with_origin(error, graph, id), |error, finding| error.note(finding.to_string()))
}
