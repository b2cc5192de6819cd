//! The engines of convolutions and products.

use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId};
use egret_program::DeviceDescription;
use egret_program::driver::{ConvEngine, ConvProblem, ConvSchedule, Products, Words};

use super::frame::Frame;
use super::{Options, Planner};
use crate::cost::SYMBOL_HINT;
use crate::cost::engine::{self, Choice};
use crate::range::{Range, is_short};
use crate::rewrite::term::BindingTime;
use crate::schedule::cuda::F32Products;

/// Refuses products that a device does not have.
///
/// # Errors
/// `E0466`.
pub(super) fn check(device: &DeviceDescription, options: &Options) -> Result<(), Diagnostic> {
    if options.products == F32Products::Bf16 && !options.exact && device.bf16().is_none() {
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
            return Some(if self.bf16() { Products::Words(Words::Bf16) } else { Products::F32 });
        }
        // exact sums of `f64` are those of the reference, product by product: tiles multiply and add in one rounding
        if !self.exact && operands.iter().all(|o| graph.tensor_type(*o).dtype == DType::F64) {
            return Some(Products::F64);
        }
        operands.iter().all(|o| is_short(graph, *o)).then_some(Products::Shorts)
    }

    /// The bytes in which integers can be multiplied by weights, where the device has such products and they fit.
    pub(super) fn bytes(&self, graph: &Graph, a: NodeId, weights: NodeId) -> Option<Words> {
        let integers = [a, weights].iter().all(|id| graph.tensor_type(*id).dtype == DType::I32);
        if !self.device.has_bytes() || !integers {
            return None;
        }
        let range = Range::of(graph, a);
        let fits = range.high - range.low <= 255.0 && Range::of(graph, weights).is_within(Range::of_type(DType::I8));
        fits.then_some(Words::Bytes { low: range.low as i32 })
    }

    /// The schedule of a convolution of an image and weights; direct sums where it has a prologue, which they alone have. If
    /// weights can be prepared at load: of bytes that fit, of bf16 if that is asked for, or Winograd's where it is allowed and
    /// faster in the model.
    pub(super) fn conv_schedule(
        &self,
        frame: &Frame,
        [image, weights]: [NodeId; 2],
        problem: &ConvProblem<Dim>,
    ) -> ConvSchedule {
        let numbers = problem.map(&mut |d| d.hint(SYMBOL_HINT).max(0) as usize);
        let lanes = self.lanes as usize;
        // An open batch is priced, and cut into blocks, as one item: more only amortise the weights.
        let batch = problem.batch.as_const().map_or(1, |_| numbers.batch);
        let one = ConvProblem { batch, ..numbers.clone() };
        if frame.graph.tensor_type(weights).dtype == DType::I32 {
            let bytes = self.bytes(&frame.graph, image, weights).filter(|_| frame.time(weights) < BindingTime::Run);
            if let Some(words) = bytes.filter(|words| one.has_words(*words, lanes)) {
                return ConvSchedule::words(&one, words, lanes);
            }
            return ConvSchedule { engine: ConvEngine::Shorts, ..ConvSchedule::choose(&numbers, lanes) };
        }
        if !self.exact && problem.prologue.is_none() && frame.time(weights) < BindingTime::Run {
            match engine::conv(&one, self.winograd, self.bf16(), self.device) {
                Choice::Words(words) => return ConvSchedule::words(&one, words, lanes),
                Choice::Winograd(outputs, words) => return ConvSchedule::winograd(&one, outputs, words, lanes),
                Choice::Direct => {}
            }
        }
        ConvSchedule::choose(&numbers, lanes)
    }
}

/// What kernels of a schedule are called.
pub(super) fn family(schedule: &ConvSchedule) -> &'static str {
    match schedule.engine {
        ConvEngine::Direct | ConvEngine::Words(_) | ConvEngine::Shorts => "conv",
        ConvEngine::Winograd { .. } => "winograd",
    }
}
