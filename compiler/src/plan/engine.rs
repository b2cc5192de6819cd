//! The engines of convolutions and products.

use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId};
use egret_program::DeviceDescription;
use egret_program::driver::{ConvEngine, ConvProblem, ConvSchedule, Products};

use super::frame::Frame;
use super::{Options, Planner};
use crate::cost::{SYMBOL_HINT, engine};
use crate::range::is_short;
use crate::rewrite::term::BindingTime;
use crate::schedule::cuda::F32Products;

/// Refuses products that a device does not have.
///
/// # Errors
/// `E0466`.
pub(super) fn check(device: &DeviceDescription, options: &Options) -> Result<(), Diagnostic> {
    if options.products == F32Products::Bf16 && !options.exact && !device.has_bf16() {
        let message = format!("products of f32 in bf16 were asked for, and `{}` has none", device.name);
        let needs = "they are for CPUs with AVX-512 BF16 or AMX: `x86-64-avx512-bf16`, or the host if it has either";
        return Err(Diagnostic::new("E0466", message).help(needs));
    }
    Ok(())
}

impl Planner<'_> {
    /// Whether operands that are packed at load, and what they are multiplied by, are rounded to bf16.
    pub(super) fn bf16(&self) -> bool {
        self.products == F32Products::Bf16 && !self.exact
    }

    /// How the driver multiplies these operands, if it does.
    pub(super) fn products_of(&self, graph: &Graph, operands: &[NodeId]) -> Option<Products> {
        if operands.iter().all(|o| graph.tensor_type(*o).dtype == DType::F32) {
            return Some(if self.bf16() { Products::Bf16 } else { Products::F32 });
        }
        operands.iter().all(|o| is_short(graph, *o)).then_some(Products::Shorts)
    }

    /// The schedule of a convolution of these weights; direct sums where it has a prologue, which they alone have. If weights
    /// can be prepared at load: of bf16 if that is asked for, or Winograd's where it is allowed and faster in the model.
    pub(super) fn conv_schedule(&self, frame: &Frame, weights: NodeId, problem: &ConvProblem<Dim>) -> ConvSchedule {
        let numbers = problem.map(&mut |d| d.hint(SYMBOL_HINT).max(0) as usize);
        let lanes = self.lanes as usize;
        if frame.graph.tensor_type(weights).dtype == DType::I32 {
            return ConvSchedule { engine: ConvEngine::Shorts, ..ConvSchedule::choose(&numbers, lanes) };
        }
        if !self.exact && problem.prologue.is_none() && frame.time(weights) < BindingTime::Run {
            // An open batch is priced, and cut into blocks, as one item: more only amortise the weights.
            let batch = problem.batch.as_const().map_or(1, |_| numbers.batch);
            let one = ConvProblem { batch, ..numbers.clone() };
            if self.bf16() && one.has_bf16(lanes) {
                return ConvSchedule::bf16(&one, lanes);
            }
            if let Some(outputs) = engine::winograd(&one, self.winograd, self.device) {
                return ConvSchedule::winograd(&one, outputs, lanes);
            }
        }
        ConvSchedule::choose(&numbers, lanes)
    }
}

/// What kernels of a schedule are called.
pub(super) fn family(schedule: &ConvSchedule) -> &'static str {
    match schedule.engine {
        ConvEngine::Direct | ConvEngine::Bf16 | ConvEngine::Shorts => "conv",
        ConvEngine::Winograd { .. } => "winograd",
    }
}
