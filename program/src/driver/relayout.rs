//! Changes of layout, and packing.

use super::{ConvEngine, ConvForm, ConvInput, ConvProblem, ConvSchedule, List, Products, Words, map_all};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Direction of a change of layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// Row-major `[N][C][spatial...]` to blocked channels; halo and absent channels are written as zero.
    ToBlocked,
    /// Blocked channels to row-major.
    ToRowMajor,
}

/// Between row-major `[N][C][spatial...]` and blocked channels with a halo, elements of 4 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RelayoutProblem<D = usize> {
    /// Direction.
    pub direction: Direction,
    /// L.
    pub lanes: usize,
    /// N.
    pub batch: D,
    /// C.
    pub channels: D,
    /// Spatial extents, 1 to 3 of them.
    pub spatial: Vec<D>,
    /// Halo of the blocked tensor in each spatial dim.
    pub halo: Vec<D>,
    /// Elements from a batch item to the next of the blocked tensor.
    pub blocked_batch_stride: D,
    /// Elements from a batch item to the next of the row-major tensor.
    pub row_major_batch_stride: D,
}

impl<D> RelayoutProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> RelayoutProblem<E> {
        RelayoutProblem {
            direction: self.direction,
            lanes: self.lanes,
            batch: f(&self.batch),
            channels: f(&self.channels),
            spatial: map_all(&self.spatial, f),
            halo: map_all(&self.halo, f),
            blocked_batch_stride: f(&self.blocked_batch_stride),
            row_major_batch_stride: f(&self.row_major_batch_stride),
        }
    }
}

impl<D: fmt::Display> fmt::Display for RelayoutProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::ToBlocked => "to_blocked",
            Direction::ToRowMajor => "to_row_major",
        };
        write!(
            f,
            "relayout {direction} lanes {} batch {} channels {} spatial {} halo {} strides {} {}",
            self.lanes,
            self.batch,
            self.channels,
            List(&self.spatial),
            List(&self.halo),
            self.blocked_batch_stride,
            self.row_major_batch_stride
        )
    }
}

/// What is packed. Weights are row-major `[O][I/groups][kernel...]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PackForm<D = usize> {
    /// Weights of a convolution, in the form that the driver of the same numbers reads (forward or input gradient,
    /// blocked or image, depthwise or not).
    Conv {
        /// The form that will read them.
        form: ConvForm,
        /// The layout of x.
        input: ConvInput,
        /// Output channels, over all groups.
        out_channels: D,
        /// Input channels, over all groups.
        in_channels: D,
        /// Groups.
        groups: D,
        /// Kernel extents.
        kernel: Vec<D>,
        /// Strides.
        stride: Vec<D>,
        /// Dilations.
        dilation: Vec<D>,
        /// Padding at the beginning.
        pad_begin: Vec<D>,
    },
    /// Weights of a 3×3 convolution for [`ConvEngine::Winograd`](super::ConvEngine::Winograd): filters transformed by
    /// `G g Gᵀ`, as `[point][output channels/2L][input channels][2L]` with a point for each of `(m + 2)²` elements; of words
    /// `[point][output channels/32][input channels/depth][16][32]` words of neighbouring input channels.
    Winograd {
        /// m of F(m×m, 3×3).
        outputs: usize,
        /// How they are narrowed, if they are.
        words: Option<Words>,
        /// Output channels.
        out_channels: D,
        /// Input channels.
        in_channels: D,
    },
    /// Weights of a convolution for [`ConvEngine::Words`](super::ConvEngine::Words): `[output channels/32]` panels of `[input
    /// channels/depth][taps][16][32]` words of neighbouring input channels.
    WordConv {
        /// How they are narrowed.
        words: Words,
        /// Output channels.
        out_channels: D,
        /// Input channels.
        in_channels: D,
        /// Kernel extents.
        kernel: Vec<D>,
    },
    /// Matrices `k x n` with these strides, `count` of them one behind the other, to column panels `[n/2L][k][2L]`; of words
    /// `[n/32]` panels of `[k/depth][16][32]` words of neighbours along k.
    Columns {
        /// How they are multiplied.
        products: Products,
        /// Matrices.
        count: D,
        /// From a matrix to the next.
        matrix_stride: D,
        /// Rows.
        k: D,
        /// Columns.
        n: D,
        /// From a row to the next.
        row: D,
        /// From a column to the next.
        col: D,
    },
}

/// Packing of weights at load.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PackProblem<D = usize> {
    /// L of the packed form.
    pub lanes: usize,
    /// What is packed.
    pub form: PackForm<D>,
}

impl<D> PackProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> PackProblem<E> {
        let form = match &self.form {
            PackForm::Conv { form, input, out_channels, in_channels, groups, kernel, stride, dilation, pad_begin } => {
                PackForm::Conv {
                    form: *form,
                    input: *input,
                    out_channels: f(out_channels),
                    in_channels: f(in_channels),
                    groups: f(groups),
                    kernel: map_all(kernel, f),
                    stride: map_all(stride, f),
                    dilation: map_all(dilation, f),
                    pad_begin: map_all(pad_begin, f),
                }
            }
            PackForm::Winograd { outputs, words, out_channels, in_channels } => PackForm::Winograd {
                outputs: *outputs,
                words: *words,
                out_channels: f(out_channels),
                in_channels: f(in_channels),
            },
            PackForm::WordConv { words, out_channels, in_channels, kernel } => PackForm::WordConv {
                words: *words,
                out_channels: f(out_channels),
                in_channels: f(in_channels),
                kernel: map_all(kernel, f),
            },
            PackForm::Columns { products, count, matrix_stride, k, n, row, col } => PackForm::Columns {
                products: *products,
                count: f(count),
                matrix_stride: f(matrix_stride),
                k: f(k),
                n: f(n),
                row: f(row),
                col: f(col),
            },
        };
        PackProblem { lanes: self.lanes, form }
    }
}

impl<D: Clone> PackProblem<D> {
    /// The packing of the weights that the driver of a convolution reads.
    pub fn for_conv(problem: &ConvProblem<D>, schedule: &ConvSchedule) -> PackProblem<D> {
        let form = match schedule.engine {
            ConvEngine::Direct | ConvEngine::Shorts => PackForm::Conv {
                form: problem.form,
                input: problem.input,
                out_channels: problem.out_channels.clone(),
                in_channels: problem.in_channels.clone(),
                groups: problem.groups.clone(),
                kernel: problem.kernel.clone(),
                stride: problem.stride.clone(),
                dilation: problem.dilation.clone(),
                pad_begin: problem.pad_begin.clone(),
            },
            ConvEngine::Winograd { outputs, words, .. } => PackForm::Winograd {
                outputs,
                words,
                out_channels: problem.out_channels.clone(),
                in_channels: problem.in_channels.clone(),
            },
            ConvEngine::Words(words) => PackForm::WordConv {
                words,
                out_channels: problem.out_channels.clone(),
                in_channels: problem.in_channels.clone(),
                kernel: problem.kernel.clone(),
            },
        };
        PackProblem { lanes: schedule.lanes, form }
    }
}

impl<D> PackProblem<D> {
    /// Bytes of an element of the packed form.
    pub fn element_bytes(&self) -> usize {
        match &self.form {
            PackForm::Columns { products, .. } => products.element_bytes(),
            PackForm::Conv { .. } | PackForm::Winograd { .. } | PackForm::WordConv { .. } => 4,
        }
    }
}

impl PackProblem<usize> {
    /// Elements in the packed form, of [`element_bytes`](PackProblem::element_bytes) each.
    pub fn packed_len(&self) -> usize {
        let l = self.lanes;
        match &self.form {
            PackForm::Conv { form, out_channels, in_channels, groups, kernel, .. } => {
                let taps: usize = kernel.iter().product();
                if *groups > 1 && groups == in_channels && groups == out_channels {
                    return groups.next_multiple_of(l) * taps;
                }
                let (o, i) = match form {
                    ConvForm::InputGradient => (*in_channels, *out_channels),
                    _ => (*out_channels, *in_channels),
                };
                let (o, i) = (o / (*groups).max(1), i / (*groups).max(1));
                // A group's panels begin where its channels do: it may share a vector with its neighbours.
                let panels = |group: usize| ((group + 1) * o - group * o / l * l).div_ceil(2 * l);
                (0..*groups).map(panels).sum::<usize>() * 2 * l * i * taps
            }
            PackForm::Winograd { outputs, words: None, out_channels, in_channels } => {
                (outputs + 2).pow(2) * in_channels * out_channels.next_multiple_of(2 * l)
            }
            PackForm::Winograd { outputs, words: Some(words), out_channels, in_channels } => {
                (outputs + 2).pow(2) * out_channels.div_ceil(32) * words.panel(in_channels.div_ceil(words.depth()))
            }
            PackForm::WordConv { words, out_channels, in_channels, kernel } => {
                let taps = in_channels.div_ceil(words.depth()) * kernel.iter().product::<usize>();
                out_channels.div_ceil(32) * words.panel(taps)
            }
            PackForm::Columns { products: Products::Words(words), count, k, n, .. } => {
                count * n.div_ceil(32) * words.panel(k.div_ceil(words.depth()))
            }
            PackForm::Columns { count, k, n, .. } => count * k * n.next_multiple_of(2 * l),
        }
    }
}

impl<D: fmt::Display> fmt::Display for PackProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.form {
            PackForm::Conv { form, input, out_channels, in_channels, groups, kernel, stride, dilation, pad_begin } => {
                write!(
                    f,
                    "pack conv {form:?} {input:?} lanes {} channels {in_channels} -> {out_channels} groups {groups} \
                 kernel {} stride {} dilation {} pad_begin {}",
                    self.lanes,
                    List(kernel),
                    List(stride),
                    List(dilation),
                    List(pad_begin)
                )
            }
            PackForm::Winograd { outputs, words, out_channels, in_channels } => {
                write!(f, "pack winograd F({outputs}x{outputs}, 3x3)")?;
                if let Some(words) = words {
                    write!(f, " {words}")?;
                }
                write!(f, " lanes {} channels {in_channels} -> {out_channels}", self.lanes)
            }
            PackForm::WordConv { words, out_channels, in_channels, kernel } => {
                write!(f, "pack conv {words} channels {in_channels} -> {out_channels} kernel {}", List(kernel))
            }
            PackForm::Columns { products, count, matrix_stride, k, n, row, col } => {
                f.write_str("pack columns")?;
                match products {
                    Products::Words(words) => write!(f, " {words}")?,
                    Products::F64 => f.write_str(" f64")?,
                    Products::F32 | Products::Shorts => {}
                }
                let lanes = self.lanes;
                write!(f, " lanes {lanes} count {count}:{matrix_stride} k {k} n {n} strides ({row}, {col})")
            }
        }
    }
}
