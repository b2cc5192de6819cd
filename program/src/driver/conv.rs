//! Convolution in blocked channels.

use super::channels::Taken;
use super::engine::ConvEngine;
use super::{Activation, Epilogue, List, map_all};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which of the three products of a convolution `y = conv(x, w)` is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConvForm {
    /// Reads x, writes y.
    Forward,
    /// Reads (the gradient of) y, writes (that of) x: also the transposed convolution.
    InputGradient,
    /// Reads x and the gradient of y, writes the gradient of w, row-major `[O][I/groups][kernel...]`.
    WeightGradient,
}

/// How the tensor x lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConvInput {
    /// `[N][C/L][H + 2 halo][W + 2 halo][L]`, the halo and the lanes beyond C being zero.
    Blocked,
    /// Row-major `[N][C][H][W]` without a halo (first layers, one group: forward, and weight gradients without padding).
    Image,
}

/// A convolution of 1 to 3 spatial dims. **All fields describe the forward convolution `y = conv(x, w)`**, whichever
/// form is computed: `in_*` is x, `out_*` is y.
///
/// y is always in blocked channels; halos are symmetric. Where the form *reads* a tensor, its halo must be at least
/// [`read_halo`](ConvProblem::read_halo). The halo of what is written is not touched, except that it must not be relied
/// upon to survive; lanes beyond the channels are written as zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConvProblem<D = usize> {
    /// Which product.
    pub form: ConvForm,
    /// Layout of x.
    pub input: ConvInput,
    /// N.
    pub batch: D,
    /// Channels of x, over all groups.
    pub in_channels: D,
    /// Channels of y, over all groups.
    pub out_channels: D,
    /// Groups; they divide both channels. Those of a group need not be multiples of L, except for the weight gradient of
    /// a convolution that is not depthwise (`groups == in_channels == out_channels`).
    pub groups: D,
    /// Spatial extents of x without halo.
    pub in_spatial: Vec<D>,
    /// Spatial extents of y without halo (this fixes the padding at the end).
    pub out_spatial: Vec<D>,
    /// Kernel extents.
    pub kernel: Vec<D>,
    /// Strides.
    pub stride: Vec<D>,
    /// Dilations.
    pub dilation: Vec<D>,
    /// Padding at the beginning.
    pub pad_begin: Vec<D>,
    /// Halo of x in each spatial dim (zeros for [`ConvInput::Image`]).
    pub in_halo: Vec<D>,
    /// Halo of y in each spatial dim.
    pub out_halo: Vec<D>,
    /// Elements from a batch item of x to the next.
    pub in_batch_stride: D,
    /// Elements from a batch item of y to the next.
    pub out_batch_stride: D,
    /// What becomes of x before it is padded and read (forward, blocked, depthwise or one group, at most two spatial dims).
    pub prologue: Option<Prologue>,
    /// Epilogue over the written tensor (not for the weight gradient, where it must be [`Epilogue::none`]).
    pub epilogue: Epilogue<D>,
}

/// What a convolution makes of x on the way: rows of it go to scratch, which stays in the second cache (the first one if it
/// is depthwise, which reads a block of channels at a time), and the kernel reads that. x then needs no halo.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prologue {
    /// `activation(x * scale + shift)`, both by channel. Operands, in this order: the scale if there is one, the shift if
    /// there is one.
    Affine {
        /// Whether there is a scale.
        scale: bool,
        /// Whether there is a shift.
        shift: bool,
        /// Activation.
        activation: Activation,
    },
    /// An [`EpilogueFn`](super::hook::EpilogueFn): its accumulator is a row of pixels of one block of channels of x, its
    /// output the same row of the scratch.
    Hook {
        /// Of each operand, whether it has an element for each channel; else it is one element.
        by_channel: Vec<bool>,
        /// Bytes of an element of each operand.
        element_bytes: Vec<u8>,
    },
    /// Channels of another image in their place: a shuffle or a slice. `in_channels` counts those that are taken, all else
    /// that is said of x is said of the image.
    Taken {
        /// Channels of the image.
        of: u32,
        /// By channel of x, that of the image.
        channels: Vec<u32>,
    },
}

impl Prologue {
    /// Number of operands.
    pub fn operands(&self) -> usize {
        match self {
            Prologue::Affine { scale, shift, .. } => usize::from(*scale) + usize::from(*shift),
            Prologue::Hook { by_channel, .. } => by_channel.len(),
            Prologue::Taken { .. } => 0,
        }
    }
}

impl fmt::Display for Prologue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prologue::Affine { scale, shift, activation } => {
                f.write_str("affine")?;
                f.write_str(if *scale { " scale" } else { "" })?;
                f.write_str(if *shift { " shift" } else { "" })?;
                write!(f, " activation {activation}")
            }
            Prologue::Hook { by_channel, element_bytes } => {
                write!(f, "hook by_channel {} bytes {}", List(by_channel), List(element_bytes))
            }
            Prologue::Taken { of, channels } => {
                let taken: Vec<(u32, u32)> = channels.iter().map(|channel| (0, *channel)).collect();
                write!(f, "taken of {of}{}", Taken(&taken))
            }
        }
    }
}

impl<D> ConvProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> ConvProblem<E> {
        ConvProblem {
            form: self.form,
            input: self.input,
            batch: f(&self.batch),
            in_channels: f(&self.in_channels),
            out_channels: f(&self.out_channels),
            groups: f(&self.groups),
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
            prologue: self.prologue.clone(),
            epilogue: self.epilogue.map(f),
        }
    }
}

impl ConvProblem<usize> {
    /// Most bytes of the scratch of a prologue, so that it stays in the second cache with the weights that pass by.
    pub const PROLOGUE_BYTES: usize = 192 << 10;

    /// The same of a block of channels, so that it stays in the first cache.
    pub const BLOCK_BYTES: usize = 24 << 10;

    /// Output rows whose windows lie in the scratch of a prologue: at least one. `width` counts the padding, `reach` is the
    /// height of a window.
    pub fn prologue_rows(channels: usize, width: usize, reach: usize, stride: usize) -> usize {
        Self::rows_in(Self::PROLOGUE_BYTES, channels, width, reach, stride)
    }

    fn rows_in(bytes: usize, channels: usize, width: usize, reach: usize, stride: usize) -> usize {
        let row = channels.saturating_mul(width).saturating_mul(4).max(1);
        (bytes / row).saturating_sub(reach) / stride.max(1) + 1
    }

    /// [`prologue_rows`](ConvProblem::prologue_rows) of this problem, channels of whole blocks counted.
    fn rows_in_scratch(&self, lanes: usize) -> usize {
        let rank = self.in_spatial.len();
        let reach = |d: usize| (self.kernel[d].max(1) - 1) * self.dilation[d] + 1;
        let width = (self.out_spatial[rank - 1].max(1) - 1) * self.stride[rank - 1] + reach(rank - 1);
        let (height, stride) = if rank > 1 { (reach(rank - 2), self.stride[rank - 2]) } else { (1, 1) };
        match self.is_depthwise() {
            true => Self::rows_in(Self::BLOCK_BYTES, lanes, width, height, stride),
            false => Self::prologue_rows(self.in_channels.next_multiple_of(lanes), width, height, stride),
        }
    }

    /// Whether each channel has its own filter.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.in_channels && self.groups == self.out_channels && self.groups > 1
    }

    /// The least halo of the tensor that is read through taps, in each spatial dim: x for the forward form and the
    /// weight gradient, y for the input gradient.
    pub fn read_halo(&self) -> Vec<usize> {
        if self.prologue.is_some() {
            return vec![0; self.in_spatial.len()];
        }
        (0..self.in_spatial.len())
            .map(|d| {
                let (i, o) = (self.in_spatial[d], self.out_spatial[d]);
                let reach = (self.kernel[d].max(1) - 1) * self.dilation[d];
                let (pad, stride) = (self.pad_begin[d], self.stride[d]);
                match self.form {
                    ConvForm::InputGradient => {
                        // Positions (x + pad - tap) / stride of y, for the taps that divide.
                        let first = reach.saturating_sub(pad).div_ceil(stride);
                        let last = (i + pad).saturating_sub(1) / stride;
                        first.max((last + 1).saturating_sub(o))
                    }
                    _ => {
                        let last = (o.max(1) - 1) * stride + reach;
                        pad.max((last + 1).saturating_sub(i + pad))
                    }
                }
            })
            .collect()
    }

    /// Multiply-adds count two.
    pub fn flops(&self) -> f64 {
        let taps: usize = self.kernel.iter().product();
        let pixels: usize = self.out_spatial.iter().product();
        2.0 * (self.batch * pixels * taps) as f64 * (self.in_channels / self.groups.max(1) * self.out_channels) as f64
    }

    /// Elements from a batch item to the next of a blocked tensor of that shape without other channels around it.
    pub fn blocked_len(channels: usize, spatial: &[usize], halo: &[usize], lanes: usize) -> usize {
        let pixels: usize = spatial.iter().zip(halo).map(|(s, h)| s + 2 * h).product();
        channels.div_ceil(lanes) * pixels * lanes
    }
}

impl<D: fmt::Display> fmt::Display for ConvProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            ConvForm::Forward => "forward",
            ConvForm::InputGradient => "input_gradient",
            ConvForm::WeightGradient => "weight_gradient",
        };
        let input = match self.input {
            ConvInput::Blocked => "blocked",
            ConvInput::Image => "image",
        };
        writeln!(
            f,
            "conv {form} batch {} channels {} -> {} groups {}",
            self.batch, self.in_channels, self.out_channels, self.groups
        )?;
        writeln!(
            f,
            "  x {input} {} halo {} batch_stride {}",
            List(&self.in_spatial),
            List(&self.in_halo),
            self.in_batch_stride
        )?;
        writeln!(
            f,
            "  y blocked {} halo {} batch_stride {}",
            List(&self.out_spatial),
            List(&self.out_halo),
            self.out_batch_stride
        )?;
        writeln!(
            f,
            "  kernel {} stride {} dilation {} pad_begin {}",
            List(&self.kernel),
            List(&self.stride),
            List(&self.dilation),
            List(&self.pad_begin)
        )?;
        if let Some(prologue) = &self.prologue {
            writeln!(f, "  prologue {prologue}")?;
        }
        write!(f, "  epilogue {}", self.epilogue)
    }
}

/// What is divided among threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Split {
    /// Blocks of output rows (of all batch items).
    Rows,
    /// Panels of output channels: each weight is read once in all.
    Panels,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Rows => "rows",
            Split::Panels => "panels",
        })
    }
}

/// Schedule of a convolution.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConvSchedule {
    /// L of the layout: 16 for AVX-512, else 8. The runtime refuses another than its own.
    pub lanes: usize,
    /// What a chunk of work is.
    pub split: Split,
    /// The most output rows (for [`Split::Panels`], and for Winograd: panels) in a chunk; with many threads chunks are
    /// smaller.
    pub block: usize,
    /// Prefetch of the next panel of weights.
    pub prefetch_weights: bool,
    /// Prefetch of the next tile's input (kernels of one tap).
    pub prefetch_input: bool,
    /// How sums are computed.
    pub engine: ConvEngine,
}

impl ConvSchedule {
    /// The analytic choice: panels where the weights outweigh the tensors, else rows in blocks whose input stays in L2.
    /// Never depends on the number of threads.
    pub fn choose(problem: &ConvProblem<usize>, lanes: usize) -> ConvSchedule {
        const BLOCK_BYTES: usize = 768 << 10;
        let x = (problem.in_channels, &problem.in_spatial);
        let y = (problem.out_channels, &problem.out_spatial);
        let (read, written) = match problem.form {
            ConvForm::InputGradient => (y, x),
            _ => (x, y),
        };
        let len =
            |(channels, spatial): (usize, &Vec<usize>)| channels * spatial.iter().product::<usize>() * problem.batch;
        let rows = written.1.iter().rev().skip(1).product::<usize>().max(1) * problem.batch;
        let panels = written.0.div_ceil(2 * lanes).max(1);
        let taps: usize = problem.kernel.iter().product();
        let weights = problem.in_channels / problem.groups.max(1) * problem.out_channels * taps;
        let by_panels = problem.prologue.is_none() && (panels >= 8 && weights > len(read) + len(written) || rows < 4);
        let row_bytes = (len(read) / rows.max(1) * 4).max(1);
        let block = if problem.prologue.is_some() {
            problem.rows_in_scratch(lanes)
        } else if by_panels {
            panels
        } else if problem.input == ConvInput::Image {
            16
        } else {
            (BLOCK_BYTES / row_bytes).clamp(2, rows.max(2))
        };
        let split = if by_panels { Split::Panels } else { Split::Rows };
        ConvSchedule { lanes, split, block, prefetch_weights: true, prefetch_input: true, engine: ConvEngine::Direct }
    }
}

impl fmt::Display for ConvSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  schedule engine {} lanes {} split {} block {} prefetch weights {} input {}",
            self.engine, self.lanes, self.split, self.block, self.prefetch_weights, self.prefetch_input
        )
    }
}
