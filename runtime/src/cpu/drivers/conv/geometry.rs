//! Where the elements of a convolution lie.

use super::hooked::Lattice;
use crate::cpu::drivers::DriverError;
use egret_program::driver::{ConvForm, ConvInput, ConvProblem};
use egret_simd::MAX_ROWS;
use std::ops::Range;

/// Spatial numbers, always three of them; missing dims come first.
pub(crate) type Dims = [usize; 3];

pub(crate) fn dims(list: &[usize], missing: usize) -> Dims {
    let mut out = [missing; 3];
    out[3 - list.len()..].copy_from_slice(list);
    out
}

/// A tensor in blocked channels.
#[derive(Clone, Debug)]
pub(crate) struct Surface {
    /// Floats from one position to the next in each dim.
    pub(crate) step: Dims,
    /// Floats from one channel block to the next.
    pub(crate) block: usize,
    /// Floats from one batch item to the next.
    pub(crate) batch: usize,
    /// Offset of position (0, 0, 0), behind the halo.
    pub(crate) origin: usize,
}

impl Surface {
    pub(crate) fn new(spatial: Dims, halo: Dims, lanes: usize, batch: usize) -> Surface {
        let extent = |d: usize| spatial[d] + 2 * halo[d];
        let step = [extent(1) * extent(2) * lanes, extent(2) * lanes, lanes];
        let origin = (0..3).map(|d| halo[d] * step[d]).sum();
        Surface { step, block: extent(0) * step[0], batch, origin }
    }

    /// A row-major image: each channel is a block.
    pub(crate) fn row_major(spatial: Dims, batch: usize) -> Surface {
        let step = [spatial[1] * spatial[2], spatial[2], 1];
        Surface { step, block: spatial[0] * step[0], batch, origin: 0 }
    }
}

/// The numbers of a problem in three dims.
pub(super) struct Shape {
    pub(super) x: Dims,
    pub(super) y: Dims,
    pub(super) kernel: Dims,
    pub(super) stride: Dims,
    pub(super) dilation: Dims,
    pub(super) pad: Dims,
    pub(super) x_halo: Dims,
    pub(super) y_halo: Dims,
}

impl Shape {
    pub(super) fn new(p: &ConvProblem) -> Result<Shape, DriverError> {
        let rank = p.in_spatial.len();
        if rank == 0 || rank > 3 {
            return Err(DriverError::Unsupported("convolutions of other than 1 to 3 spatial dims"));
        }
        let lists = [&p.out_spatial, &p.kernel, &p.stride, &p.dilation, &p.pad_begin, &p.in_halo, &p.out_halo];
        if lists.iter().any(|l| l.len() != rank) {
            return Err(DriverError::Problem("spatial lists of a convolution differ in length"));
        }
        if [&p.kernel, &p.stride, &p.dilation].iter().any(|l| l.contains(&0)) {
            return Err(DriverError::Problem("kernel, stride and dilation must be at least 1"));
        }
        if p.input == ConvInput::Image && p.in_halo.iter().any(|&h| h != 0) {
            return Err(DriverError::Problem("a row-major image has no halo"));
        }
        if p.input == ConvInput::Blocked {
            let halo = match p.form {
                ConvForm::InputGradient => &p.out_halo,
                _ => &p.in_halo,
            };
            for (dim, (&actual, needed)) in halo.iter().zip(p.read_halo()).enumerate() {
                if actual < needed {
                    return Err(DriverError::Halo { dim, needed, actual });
                }
            }
        }
        Ok(Shape {
            x: dims(&p.in_spatial, 1),
            y: dims(&p.out_spatial, 1),
            kernel: dims(&p.kernel, 1),
            stride: dims(&p.stride, 1),
            dilation: dims(&p.dilation, 1),
            pad: dims(&p.pad_begin, 0),
            x_halo: dims(&p.in_halo, 0),
            y_halo: dims(&p.out_halo, 0),
        })
    }
}

/// All points of a box, row-major.
pub(super) fn points(extent: Dims) -> impl Iterator<Item = Dims> {
    let [a, b, c] = extent;
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| [i, j, k])))
}

/// The taps that the input gradient uses at positions `first + stride * j`: those for which
/// `position + pad - tap * dilation` is a multiple of the stride. One list for each `first` below the stride.
pub(crate) fn gradient_phases(kernel: Dims, stride: Dims, dilation: Dims, pad: Dims) -> Vec<Vec<usize>> {
    points(stride)
        .map(|first| {
            points(kernel)
                .enumerate()
                .filter(|(_, tap)| {
                    (0..3).all(|d| {
                        let distance = (first[d] + pad[d]) as isize - (tap[d] * dilation[d]) as isize;
                        distance.rem_euclid(stride[d] as isize) == 0
                    })
                })
                .map(|(index, _)| index)
                .collect()
        })
        .collect()
}

/// What one group reads at a position: the taps of one segment of its channels after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct TapList {
    /// Offset of each from the input's address of the position.
    pub(super) taps: Vec<usize>,
    /// Channels in each.
    pub(super) runs: Vec<usize>,
    /// Where the weights of each begin, if some before it are left out.
    pub(super) weights: Vec<usize>,
}

/// What tiles read of which some rows of taps lie above or below all that exists: zeros, which need no multiplication.
#[derive(Clone, Debug, Default)]
pub(super) struct Edges {
    /// What each group reads, without these rows.
    lists: Vec<Vec<TapList>>,
    /// By the first row and how many more, the place in `lists`.
    of: Vec<Vec<Option<usize>>>,
}

impl Edges {
    /// `exists(j, tap)` tells whether what a tap reads at output row `j` exists; `list` makes the lists of the taps that are
    /// read.
    fn new(
        (outputs, rows_per_tile): (usize, usize),
        taps: usize,
        exists: impl Fn(usize, usize) -> bool,
        list: impl Fn(&[bool]) -> Vec<TapList>,
    ) -> Edges {
        let mut edges = Edges::default();
        let mut known: Vec<Vec<bool>> = Vec::new();
        for first in 0..outputs {
            let of_row = (0..rows_per_tile).map(|more| {
                let rows = first..(first + more + 1).min(outputs);
                let read: Vec<bool> = (0..taps).map(|tap| rows.clone().any(|row| exists(row, tap))).collect();
                if !read.contains(&false) {
                    return None;
                }
                Some(known.iter().position(|have| *have == read).unwrap_or_else(|| {
                    edges.lists.push(list(&read));
                    known.push(read);
                    known.len() - 1
                }))
            });
            let of_row = of_row.collect();
            edges.of.push(of_row);
        }
        edges
    }

    /// What groups read at `rows` rows from `row` on, unless it is everything.
    pub(super) fn at(&self, row: usize, rows: usize) -> Option<&[TapList]> {
        Some(&self.lists[(*self.of.get(row)?.get(rows - 1)?)?])
    }
}

/// A regular set of output positions with the taps that reach them: all positions of a forward convolution, or one
/// phase of an input gradient.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    /// Positions in each dim.
    pub(super) count: Dims,
    /// What each group reads.
    pub(super) groups: Vec<TapList>,
    /// Floats in the input from one position to the next.
    pub(super) in_step: Dims,
    /// Its positions in the output.
    pub(super) lattice: Lattice,
    /// Where its weights begin in a panel.
    pub(super) weights: usize,
    /// Output rows that one tile holds (more than one when rows are short).
    pub(super) rows_per_tile: usize,
    /// Offsets of a tile's rows in the input.
    pub(super) in_rows: [usize; MAX_ROWS],
    /// What tiles at the first and last rows read.
    pub(super) edges: Edges,
}

impl Grid {
    /// Offsets of a tile's rows in a tensor whose positions lie `step` apart.
    pub(super) fn row_table(&self, step: Dims) -> [usize; MAX_ROWS] {
        let width = if self.rows_per_tile > 1 { self.count[2] } else { MAX_ROWS };
        std::array::from_fn(|m| (m / width) * step[1] + (m % width) * step[2])
    }

    /// Rows, over all batch items.
    pub(super) fn rows(&self, batch: usize) -> usize {
        if self.count[2] == 0 { 0 } else { batch * self.count[0] * self.count[1] }
    }

    pub(super) fn finish(mut self, max_rows: usize) -> Grid {
        let width = self.count[2].max(1);
        self.rows_per_tile = if 2 * width <= max_rows { max_rows / width } else { 1 };
        self.in_rows = self.row_table(self.in_step);
        self
    }
}

/// The grids of a forward convolution (one) or an input gradient (one for each phase). `segments` are the channels that
/// each group reads, cut at the blocks (for depthwise the first channel of a block).
pub(super) fn grids(
    shape: &Shape,
    form: ConvForm,
    read: &Surface,
    segments: &[Vec<Range<usize>>],
    lanes: usize,
    (floats_per_tap, floats_per_step): (usize, usize),
    max_rows: usize,
) -> Vec<Grid> {
    let read_block = read.block;
    let grid = |count, groups, in_step, lattice, weights| {
        let (rows_per_tile, in_rows, edges) = (1, [0; MAX_ROWS], Edges::default());
        Grid { count, groups, in_step, lattice, weights, rows_per_tile, in_rows, edges }.finish(max_rows)
    };
    // of taps that are read; where their weights lie is only told where some are not
    let list = |offsets: &[usize], segments: &Vec<Range<usize>>, read: Option<&[bool]>| {
        let (mut list, mut weights) = (TapList::default(), 0);
        for segment in segments {
            let channel = segment.start / lanes * read_block + segment.start % lanes;
            for (tap, offset) in offsets.iter().enumerate() {
                if read.is_none_or(|read| read[tap]) {
                    list.taps.push(channel.wrapping_add(*offset));
                    list.runs.push(segment.len());
                    list.weights.extend(read.map(|_| weights));
                }
                weights += segment.len() * floats_per_step;
            }
        }
        list
    };
    let lists = |offsets: &[usize], read: Option<&[bool]>| -> Vec<TapList> {
        segments.iter().map(|of_group| list(offsets, of_group, read)).collect()
    };
    let edged = |mut grid: Grid, offsets: &[usize], row: &dyn Fn(usize, usize) -> isize, extent: usize| {
        let exists = |j: usize, tap: usize| (0..extent as isize).contains(&row(j, tap));
        let extents = (grid.count[1], grid.rows_per_tile);
        grid.edges = Edges::new(extents, offsets.len(), exists, |read| lists(offsets, Some(read)));
        grid
    };
    let kernel: Vec<Dims> = points(shape.kernel).collect();
    if form == ConvForm::Forward {
        let offset = |tap: Dims| at(read, |d| (tap[d] * shape.dilation[d]) as isize - shape.pad[d] as isize);
        let offsets: Vec<usize> = kernel.iter().copied().map(offset).collect();
        let in_step = std::array::from_fn(|d| shape.stride[d] * read.step[d]);
        let row = |j: usize, tap: usize| {
            (j * shape.stride[1] + kernel[tap][1] * shape.dilation[1]) as isize - shape.pad[1] as isize
        };
        let grid = grid(shape.y, lists(&offsets, None), in_step, Lattice::ALL, 0);
        return vec![edged(grid, &offsets, &row, shape.x[1])];
    }
    let phases = gradient_phases(shape.kernel, shape.stride, shape.dilation, shape.pad);
    let mut weights = 0;
    let mut grids = Vec::new();
    for (first, phase) in points(shape.stride).zip(&phases) {
        let distance = |tap: usize, d: usize| {
            let position = (first[d] + shape.pad[d]) as isize;
            (position - (kernel[tap][d] * shape.dilation[d]) as isize) / shape.stride[d] as isize
        };
        let offsets: Vec<usize> = phase.iter().map(|tap| at(read, |d| distance(*tap, d))).collect();
        let count = std::array::from_fn(|d| shape.x[d].saturating_sub(first[d]).div_ceil(shape.stride[d]));
        let here = weights;
        weights += phase.len() * floats_per_tap;
        if count.contains(&0) {
            continue;
        }
        let row = |j: usize, tap: usize| j as isize + distance(phase[tap], 1);
        let grid = grid(count, lists(&offsets, None), read.step, Lattice { first, step: shape.stride }, here);
        grids.push(edged(grid, &offsets, &row, shape.y[1]));
    }
    grids
}

/// Offset of a position that may lie in the halo.
fn at(surface: &Surface, offset: impl Fn(usize) -> isize) -> usize {
    let spatial: isize = (0..3).map(|d| offset(d) * surface.step[d] as isize).sum();
    // The halo was checked, so the sum is not negative.
    surface.origin.wrapping_add_signed(spatial)
}
