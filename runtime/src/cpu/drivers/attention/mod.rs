//! Attention by a transposed online softmax: blocks of `2 L` queries side by side in vectors, keys along rows, so that maxima
//! and sums are vertical and keys and values are read as they lie.

mod blocks;
mod forward;
mod gradient;
#[cfg(test)]
mod tests;

pub use forward::AttentionPlan;
pub use gradient::AttentionGradPlan;

use blocks::Unit;
use egret_program::driver::Mask;
use egret_program::driver::hook::{ScoreFn, View2};

use crate::cpu::drivers::epilogue::MAX_VIEWS;

/// The operands of a score hook at a query and key.
fn views(
    extras: &[Mask],
    element_bytes: &[u8],
    operands: &[*mut u8],
    unit: Unit,
    (query, key): (usize, usize),
) -> [View2; MAX_VIEWS] {
    let mut views = [View2::NULL; MAX_VIEWS];
    for (view, ((mask, bytes), operand)) in views.iter_mut().zip(extras.iter().zip(element_bytes).zip(operands)) {
        let ptr = operand.wrapping_add(unit.score(mask, query, key) * usize::from(*bytes));
        *view = View2 { ptr, row: mask.query as i64, col: mask.key as i64 };
    }
    views
}

/// Operands of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries.
    pub q: *const f32,
    /// Keys.
    pub k: *const f32,
    /// Values.
    pub v: *const f32,
    /// Output.
    pub o: *mut f32,
    /// Log-sum-exp of the scores, if the problem asks for it.
    pub lse: *mut f32,
    /// The masks of [`Score::Plain`](egret_program::driver::Score::Plain), or the extra operands of the hook.
    pub extras: &'a [*mut u8],
    /// The score hook, if the problem has one.
    pub hook: Option<ScoreFn>,
}

/// Operands of the gradient of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradArgs<'a> {
    /// Queries.
    pub q: *const f32,
    /// Keys.
    pub k: *const f32,
    /// Values.
    pub v: *const f32,
    /// Output of the forward pass.
    pub o: *const f32,
    /// Log-sum-exp of the forward pass.
    pub lse: *const f32,
    /// The masks of [`Score::Plain`](egret_program::driver::Score::Plain), or the extra operands of the hooks.
    pub extras: &'a [*mut u8],
    /// The score hook, if the problem has one.
    pub hook: Option<ScoreFn>,
    /// With it, the hook of the score's slope: it makes the gradient of the raw dots of the raw dots, the extras and, as one
    /// extra more, the gradient of the logits.
    pub slope: Option<ScoreFn>,
    /// Gradient of the output.
    pub grad_o: *const f32,
    /// Gradient of the queries (written).
    pub grad_q: *mut f32,
    /// Gradient of the keys (written).
    pub grad_k: *mut f32,
    /// Gradient of the values (written).
    pub grad_v: *mut f32,
}
