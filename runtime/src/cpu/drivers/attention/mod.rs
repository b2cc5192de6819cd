//! Attention by a transposed online softmax: blocks of `2 L` queries side by side in vectors, keys along rows, so that maxima
//! and sums are vertical and keys and values are read as they lie.

mod blocks;
mod forward;
mod gradient;
#[cfg(test)]
mod tests;

pub use forward::AttentionPlan;
pub use gradient::AttentionGradPlan;

use egret_program::driver::hook::ScoreFn;

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
    /// The mask of [`Score::Plain`](egret_program::driver::Score::Plain), or the extra operands of the hook.
    pub extras: &'a [*mut u8],
    /// The score hook, if the problem has one.
    pub hook: Option<ScoreFn>,
}

/// Operands of the gradient of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradArgs {
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
    /// The additive mask, if there is one.
    pub mask: *const f32,
    /// Gradient of the output.
    pub grad_o: *const f32,
    /// Gradient of the queries (written).
    pub grad_q: *mut f32,
    /// Gradient of the keys (written).
    pub grad_k: *mut f32,
    /// Gradient of the values (written).
    pub grad_v: *mut f32,
}
