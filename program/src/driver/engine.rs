//! Engines of convolutions beside the direct sum of floats: Winograd's minimal filtering, products of words, and integers.

use super::conv::{ConvForm, ConvInput, ConvProblem, ConvSchedule, Split};
use super::{Activation, Epilogue, Words};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the sums of a convolution are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConvEngine {
    /// One sum over channels and taps for each output.
    #[default]
    Direct,
    /// F(m×m, 3×3): tiles of outputs from transformed patches (forward, 3×3, two spatial dims, stride and dilation 1, one
    /// group, blocked channels). Weights are packed by [`PackForm::Winograd`](super::PackForm::Winograd).
    Winograd {
        /// m: 2 or 4.
        outputs: usize,
        /// Rows of tiles, over all batch items, that are transformed together.
        tile_rows: usize,
        /// Tiles of each of these rows that are transformed together.
        tile_columns: usize,
        /// How transformed patches and filters are narrowed before they are multiplied, if they are (bf16 for m = 2, AVX-512).
        words: Option<Words>,
    },
    /// Direct sums of operands narrowed to words (forward, up to two spatial dims, one group, blocked channels, AVX-512).
    /// Weights are packed by [`PackForm::WordConv`](super::PackForm::WordConv).
    Words(Words),
    /// One sum for each output, of `i32` operands that fit `i16`; sums are `i32` and wrap (forward, without a direct activation or
    /// prologue). Operands and weights are laid out as for [`Direct`](ConvEngine::Direct).
    Shorts,
}

impl fmt::Display for ConvEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConvEngine::Direct => f.write_str("direct"),
            ConvEngine::Winograd { outputs, tile_rows, tile_columns, words } => {
                write!(f, "winograd F({outputs}x{outputs}, 3x3)")?;
                if let Some(words) = words {
                    write!(f, " {words}")?;
                }
                write!(f, " tiles {tile_rows}x{tile_columns}")
            }
            ConvEngine::Words(words) => write!(f, "{words}"),
            ConvEngine::Shorts => f.write_str("shorts"),
        }
    }
}

impl ConvProblem<usize> {
    /// Whether [`ConvEngine::Winograd`] computes it.
    pub fn has_winograd(&self) -> bool {
        self.form == ConvForm::Forward
            && self.input == ConvInput::Blocked
            && self.groups == 1
            && self.kernel == [3, 3]
            && self.stride == [1, 1]
            && self.dilation == [1, 1]
            && self.prologue.is_none()
    }

    /// Whether [`ConvEngine::Words`] computes it, for vectors of so many lanes.
    pub fn has_words(&self, words: Words, lanes: usize) -> bool {
        (!words.is_integer() || self.has_shorts())
            && self.form == ConvForm::Forward
            && self.input == ConvInput::Blocked
            && self.groups == 1
            && self.kernel.len() <= 2
            && self.prologue.is_none()
            && lanes == 16
    }
}

impl<D> ConvProblem<D> {
    /// Whether [`ConvEngine::Shorts`] computes it.
    pub fn has_shorts(&self) -> bool {
        let kept = match &self.epilogue {
            Epilogue::Direct { activation, .. } => *activation == Activation::None,
            Epilogue::Hook { .. } => true,
        };
        self.form == ConvForm::Forward && self.prologue.is_none() && kept
    }
}

impl ConvSchedule {
    /// The schedule of [`ConvEngine::Winograd`] of `outputs` = m, for a problem that has it, of floats or of words. Never
    /// depends on the number of threads.
    ///
    /// Patches of a block of tiles, and the products of the panels in a chunk, stay in the second-level cache together. A
    /// problem of few tiles is one block: its weights are read once, by panels that threads divide.
    pub fn winograd(problem: &ConvProblem<usize>, outputs: usize, words: Option<Words>, lanes: usize) -> ConvSchedule {
        /// Bytes of transformed patches in a block.
        const PATCHES: usize = 512 << 10;
        /// Bytes of products in a chunk.
        const PRODUCTS: usize = 384 << 10;
        /// Fewer tiles would read the weights too often.
        const LEAST: usize = 28;
        let points = (outputs + 2) * (outputs + 2);
        let tiles = |d: usize| problem.out_spatial.get(d).map_or(1, |extent| extent.div_ceil(outputs).max(1));
        let (rows, columns) = (problem.batch.max(1) * tiles(0), tiles(1));
        let patch = match words {
            None => problem.in_channels.next_multiple_of(lanes) * 4,
            Some(words) => problem.in_channels.div_ceil(words.depth()) * 64,
        };
        let patch = (points * patch).max(1);
        let wanted = (PATCHES / patch).max(LEAST);
        // One block rather than two of which each reads all weights.
        let all = rows * columns;
        let (tile_rows, tile_columns) = if all <= 2 * wanted && all <= 4 * LEAST {
            (rows, columns)
        } else if columns > wanted {
            (1, columns.div_ceil(columns.div_ceil(wanted)))
        } else {
            (wanted / columns, columns)
        };
        let block = tile_rows * tile_columns;
        let panels = problem.out_channels.div_ceil(2 * lanes).max(1);
        let chunk = (PRODUCTS / (points * block * 2 * lanes * 4)).clamp(1, panels);
        let split = if all <= block { Split::Panels } else { Split::Rows };
        ConvSchedule {
            lanes,
            split,
            block: chunk,
            prefetch_weights: true,
            prefetch_input: false,
            engine: ConvEngine::Winograd { outputs, tile_rows, tile_columns, words },
        }
    }

    /// The schedule of [`ConvEngine::Words`], for a problem that has it. Never depends on the number of threads.
    ///
    /// Narrowed rows of a chunk stay in the second-level cache while all panels pass; a problem that is one chunk is divided by
    /// panels.
    pub fn words(problem: &ConvProblem<usize>, words: Words, lanes: usize) -> ConvSchedule {
        const CHUNK_BYTES: usize = 512 << 10;
        let last = |list: &[usize]| list.last().copied().unwrap_or(1);
        let rows: usize = problem.out_spatial.iter().rev().skip(1).product();
        let columns = last(&problem.in_spatial) + 2 * last(&problem.in_halo);
        let pixel = problem.in_channels.div_ceil(words.depth()) * 64;
        let row = (pixel * columns * problem.stride[0]).max(1);
        let fit = (CHUNK_BYTES / row).clamp(1, rows.max(1));
        let panels = problem.out_channels.div_ceil(2 * lanes).max(1);
        let (split, block) =
            if fit == rows && problem.batch <= 1 { (Split::Panels, panels) } else { (Split::Rows, fit) };
        let engine = ConvEngine::Words(words);
        ConvSchedule { lanes, split, block, prefetch_weights: true, prefetch_input: false, engine }
    }
}
