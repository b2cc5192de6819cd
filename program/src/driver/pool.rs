//! Pooling in blocked channels.

use super::{Epilogue, List, map_all};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a window computes; padding takes no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PoolKind {
    /// The greatest element; NaN if one is NaN.
    Max,
    /// The sum.
    Sum,
    /// The sum over the number of elements that exist.
    MeanValid,
    /// The sum over the size of the window.
    MeanAll,
}

/// Pooling of 1 to 3 spatial dims, from blocked channels (see [`ConvInput::Blocked`](super::ConvInput::Blocked)) to blocked
/// channels or row-major. Halos are neither read nor written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PoolProblem<D = usize> {
    /// What is computed.
    pub kind: PoolKind,
    /// L of the layout.
    pub lanes: usize,
    /// N.
    pub batch: D,
    /// C.
    pub channels: D,
    /// Spatial extents of x.
    pub in_spatial: Vec<D>,
    /// Spatial extents of y.
    pub out_spatial: Vec<D>,
    /// Extents of the window.
    pub kernel: Vec<D>,
    /// Strides.
    pub stride: Vec<D>,
    /// Dilations.
    pub dilation: Vec<D>,
    /// Padding at the beginning.
    pub pad_begin: Vec<D>,
    /// Halo of x.
    pub in_halo: Vec<D>,
    /// Halo of y.
    pub out_halo: Vec<D>,
    /// Elements from a batch item of x to the next.
    pub in_batch_stride: D,
    /// Elements from a batch item of y to the next.
    pub out_batch_stride: D,
    /// Whether y is row-major `[N][C][…]`, without halo or epilogue.
    pub row_major: bool,
    /// A hook, or [`Epilogue::none`].
    pub epilogue: Epilogue<D>,
}

impl<D> PoolProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> PoolProblem<E> {
        PoolProblem {
            kind: self.kind,
            lanes: self.lanes,
            batch: f(&self.batch),
            channels: f(&self.channels),
            in_spatial: map_all(&self.in_spatial, f),
            out_spatial: map_all(&self.out_spatial, f),
            kernel: map_all(&self.kernel, f),
            stride: map_all(&self.stride, f),
            dilation: map_all(&self.dilation, f),
            pad_begin: map_all(&self.pad_begin, f),
            in_halo: map_all(&self.in_halo, f),
            out_halo: map_all(&self.out_halo, f),
            in_batch_stride: f(&self.in_batch_stride),
            out_batch_stride: f(&self.out_batch_stride),
            row_major: self.row_major,
            epilogue: self.epilogue.map(f),
        }
    }
}

impl<D: fmt::Display> fmt::Display for PoolProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            PoolKind::Max => "max",
            PoolKind::Sum => "sum",
            PoolKind::MeanValid => "mean_valid",
            PoolKind::MeanAll => "mean_all",
        };
        writeln!(f, "pool {kind} lanes {} batch {} channels {}", self.lanes, self.batch, self.channels)?;
        let (x, y) = (List(&self.in_spatial), List(&self.out_spatial));
        writeln!(f, "  x {x} halo {} batch_stride {}", List(&self.in_halo), self.in_batch_stride)?;
        let layout = if self.row_major { " row-major" } else { "" };
        writeln!(f, "  y {y}{layout} halo {} batch_stride {}", List(&self.out_halo), self.out_batch_stride)?;
        writeln!(
            f,
            "  kernel {} stride {} dilation {} pad_begin {}",
            List(&self.kernel),
            List(&self.stride),
            List(&self.dilation),
            List(&self.pad_begin)
        )?;
        write!(f, "  epilogue {}", self.epilogue)
    }
}

/// The gradient of a pooling by x: from x (read for maxima alone) and the gradient by y, both in blocked channels, as
/// `pool` has them. The gradient of tied maxima is split. Neither row-major nor with an epilogue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PoolGradProblem<D = usize> {
    /// The pooling.
    pub pool: PoolProblem<D>,
    /// Halo of the result, which is not written.
    pub dx_halo: Vec<D>,
    /// Elements from a batch item of the result to the next.
    pub dx_batch_stride: D,
}

impl<D> PoolGradProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> PoolGradProblem<E> {
        PoolGradProblem {
            pool: self.pool.map(f),
            dx_halo: map_all(&self.dx_halo, f),
            dx_batch_stride: f(&self.dx_batch_stride),
        }
    }
}

impl<D: fmt::Display> fmt::Display for PoolGradProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "gradient of {}", self.pool)?;
        write!(f, "  dx halo {} batch_stride {}", List(&self.dx_halo), self.dx_batch_stride)
    }
}
