//! Direct sums of operands narrowed to words: the rows that a chunk reads are narrowed into scratch, neighbouring channels side
//! by side, and multiplied by tiles of positions.

use super::ConvArgs;
use super::direct::{Bound, Nest};
use super::geometry::{Shape, Surface};
use super::hooked::{Lattice, Place};
use crate::cpu::drivers::epilogue::set_activation;
use crate::cpu::drivers::kernels::Kernels;
use crate::cpu::drivers::words::{SUMS, Sums, finishing, opened, unit};
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool, Shared, chunk_count, part};
use crate::cpu::team::Team;
use egret_program::driver::{ConvProblem, ConvSchedule, Split, Words};
use egret_simd::pack::{OutputPanel, output_panels};
use egret_simd::words::{COLUMNS, Narrow, ROWS, WORDS, WordKernels, WordTile};
use egret_simd::{Isa, MAX_ROWS};

/// A forward convolution in one group.
#[derive(Debug)]
pub(super) struct WordConv {
    isa: Isa,
    lanes: usize,
    unit: WordKernels,
    words: Words,
    batch: usize,
    read: Surface,
    write: Surface,
    /// Floats from the input's beginning to the first tap of the first output.
    begin: usize,
    in_blocks: usize,
    /// Taps of input channels.
    depth: usize,
    /// Rows and columns of the output.
    extent: [usize; 2],
    /// Input rows, and pixels of a row, from one narrowed to the next.
    skip: [usize; 2],
    /// Narrowed pixels of a row, and narrowed rows of `n` output rows: `(n - 1) step + more`.
    columns: usize,
    step: usize,
    more: usize,
    /// Words of a tap of narrowed channels.
    plane: usize,
    /// Offsets of taps among narrowed pixels: all of the same channels after the others.
    taps: Vec<usize>,
    /// From an output position to the next, in words; whether rows follow one another as positions do.
    position: usize,
    flat: bool,
    channels: usize,
    panels: Vec<OutputPanel>,
    /// Output rows in a chunk, at most.
    rows: usize,
    kernels: Kernels,
    bound: Bound,
    split: Split,
    prefetch_weights: bool,
}

/// What a chunk computes.
#[derive(Clone, Copy)]
struct Rows {
    item: usize,
    first: usize,
    count: usize,
}

impl WordConv {
    pub(super) fn new(
        p: &ConvProblem,
        schedule: &ConvSchedule,
        words: Words,
        isa: Isa,
    ) -> Result<WordConv, DriverError> {
        let lanes = isa.lanes_f32();
        if !p.has_words(words, lanes) || p.in_channels == 0 {
            return Err(DriverError::Unsupported("words but forward, in one group, of up to two spatial dims"));
        }
        let unit = unit(words)?;
        let shape = Shape::new(p)?;
        let read = Surface::new(shape.x, shape.x_halo, lanes, p.in_batch_stride);
        let begin = (1..3).map(|d| (shape.x_halo[d] - shape.pad[d]) * read.step[d]).sum();
        let extent = [shape.y[1], shape.y[2]];
        let taps: usize = p.kernel.iter().product();
        // A single tap reads every so many pixels: only these are narrowed.
        let dense = taps == 1;
        let skip = if dense { [shape.stride[1], shape.stride[2]] } else { [1, 1] };
        let stride = if dense { [1, 1] } else { [shape.stride[1], shape.stride[2]] };
        let reach = |d: usize| (shape.kernel[d] - 1) * shape.dilation[d] + 1;
        let columns = (extent[1].max(1) - 1) * stride[1] + reach(2);
        let tap = |y: usize, x: usize| (y * shape.dilation[1] * columns + x * shape.dilation[2]) * WORDS;
        let window = (0..shape.kernel[1]).flat_map(|y| (0..shape.kernel[2]).map(move |x| (y, x)));
        let rows = match schedule.split {
            Split::Rows => schedule.block.clamp(1, extent[0].max(1)),
            Split::Panels => extent[0].max(1),
        };
        let depth = p.in_channels.div_ceil(words.depth());
        let plane = ((rows - 1) * stride[0] + reach(1)) * columns * WORDS;
        let window: Vec<usize> = window.map(|(y, x)| tap(y, x)).collect();
        Ok(WordConv {
            isa,
            lanes,
            unit,
            words,
            batch: p.batch,
            read,
            write: Surface::new(shape.y, shape.y_halo, lanes, p.out_batch_stride),
            begin,
            in_blocks: p.in_channels.div_ceil(lanes),
            depth,
            extent,
            skip,
            columns,
            step: stride[0],
            more: reach(1),
            plane,
            taps: (0..depth).flat_map(|block| window.iter().map(move |tap| block * plane + tap)).collect(),
            position: stride[1] * WORDS,
            flat: stride == [1, 1],
            channels: p.out_channels,
            panels: output_panels(1, p.out_channels, lanes),
            rows,
            kernels: finishing(isa, words)?,
            bound: Bound::new(&p.epilogue, shape.y, lanes)?,
            split: schedule.split,
            prefetch_weights: schedule.prefetch_weights,
        })
    }

    /// Words of a chunk's narrowed rows; tiles read whole halves beyond them.
    fn narrowed_len(&self) -> usize {
        self.depth * self.plane + ROWS * self.position + WORDS
    }

    /// Pixels of a hook's strip.
    fn strip_len(&self) -> usize {
        self.rows * self.extent[1]
    }

    /// Floats of a worker's sums and strip.
    fn own_len(&self) -> usize {
        let strip = match &self.bound {
            Bound::Direct { .. } => 0,
            Bound::Hook(_) => self.strip_len() * 2 * self.lanes,
        };
        SUMS + strip
    }

    pub(super) fn scratch(&self) -> ScratchNeed {
        match self.split {
            Split::Rows => ScratchNeed { per_worker: (self.own_len() + self.narrowed_len()) * 4, shared: 0 },
            Split::Panels => ScratchNeed { per_worker: self.own_len() * 4, shared: self.narrowed_len() * 4 },
        }
    }

    pub(super) unsafe fn run(&self, args: &ConvArgs<'_>, team: &Team, scratch: &ScratchPool) {
        if self.extent.contains(&0) {
            return;
        }
        let nest = &Nest::new(args);
        let (panels, height) = (self.panels.len(), self.extent[0]);
        match self.split {
            Split::Rows => {
                let chunks = chunk_count(height, height.div_ceil(self.rows), team.size());
                team.parallel(self.batch * chunks, &|chunk, worker| {
                    let (first, end) = part(height, chunk % chunks, chunks);
                    let rows = Rows { item: chunk / chunks, first, count: end - first };
                    let own = scratch.worker(worker);
                    let narrowed = own.wrapping_add(self.own_len()).cast();
                    // SAFETY: the scratch is the worker's; chunks write different rows.
                    unsafe {
                        self.narrow(nest, narrowed, &rows, (0, self.depth));
                        self.multiply(nest, narrowed, own, &rows, (0, panels));
                    }
                });
            }
            Split::Panels => {
                for item in 0..self.batch {
                    let rows = Rows { item, first: 0, count: height };
                    let narrowed = Shared(scratch.shared().cast::<u32>());
                    let chunks = chunk_count(self.depth, 1, team.size());
                    team.parallel(chunks, &|chunk, _| {
                        let narrowed = &narrowed;
                        // SAFETY: chunks narrow different channels.
                        unsafe { self.narrow(nest, narrowed.0, &rows, part(self.depth, chunk, chunks)) };
                    });
                    let chunks = chunk_count(panels, 1, team.size());
                    team.parallel(chunks, &|chunk, worker| {
                        let narrowed = &narrowed;
                        // SAFETY: chunks write different channels.
                        unsafe {
                            let own = scratch.worker(worker);
                            self.multiply(nest, narrowed.0, own, &rows, part(panels, chunk, chunks));
                        }
                    });
                }
            }
        }
    }

    /// Narrows what output rows read, of taps `d0..d1` of channels.
    unsafe fn narrow(&self, nest: &Nest<'_>, narrowed: *mut u32, rows: &Rows, (d0, d1): (usize, usize)) {
        let count = (rows.count - 1) * self.step + self.more;
        let (blocks, low) = (self.words.depth() / self.lanes, self.words.low());
        for tap in d0..d1 {
            let from = rows.item * self.read.batch + tap * blocks * self.read.block + self.begin;
            for row in 0..count {
                // Before and after dense rows as many input rows are left out as one has steps.
                let input_row = (rows.first * self.step + row) * self.skip[0];
                let first = nest.args.input.wrapping_add(from + input_row * self.read.step[1]);
                let parts = std::array::from_fn(|part| match part < blocks && tap * blocks + part < self.in_blocks {
                    true => first.wrapping_add(part * self.read.block),
                    false => std::ptr::null(),
                });
                let dst = narrowed.wrapping_add(tap * self.plane + row * self.columns * WORDS);
                let step = self.skip[1] * self.lanes;
                // SAFETY: these pixels lie within the input and its halo, the narrowed ones within the scratch.
                unsafe { self.unit.narrow(&Narrow { parts, step, low, dst, count: self.columns }) };
            }
        }
    }

    /// Output rows of panels `p0..p1`. `own` is the worker's scratch: a tile of sums, then a strip.
    unsafe fn multiply(
        &self,
        nest: &Nest<'_>,
        narrowed: *const u32,
        own: *mut f32,
        rows: &Rows,
        (p0, p1): (usize, usize),
    ) {
        let (lanes, width) = (self.lanes, self.extent[1]);
        let (acc, strip) = (own, own.wrapping_add(SUMS));
        let panel_len = self.words.panel(self.taps.len());
        let lines = if self.flat { 1 } else { rows.count };
        let positions = if self.flat { (rows.count - 1) * self.columns + width } else { width };
        let tiles = positions.div_ceil(ROWS);
        let hooked = matches!(self.bound, Bound::Hook(_));
        let sums = Sums::new(self.isa);
        let mut tile = sums.tile();
        let at = |surface: &Surface| surface.origin + rows.item * surface.batch + rows.first * surface.step[1];
        // Rows and pixels of what is written.
        let (c, c_step) = match hooked {
            true => (strip, [width * lanes, lanes]),
            false => (nest.args.output.wrapping_add(at(&self.write)), [self.write.step[1], lanes]),
        };
        tile.c_vector = if hooked { self.strip_len() * lanes } else { self.write.block };
        tile.fill = true;
        let mut residual_at = None;
        if let Bound::Direct { bias, residual, activation } = &self.bound {
            set_activation(&mut tile, *activation);
            if let Some(surface) = residual {
                let base = nest.args.extras[usize::from(*bias)].cast_const().cast::<f32>();
                tile.residual_vector = surface.block;
                residual_at = Some((base.wrapping_add(at(surface)), surface));
            }
        }
        let pixels: [usize; MAX_ROWS] = std::array::from_fn(|m| m * lanes);
        (tile.c_rows, tile.residual_rows) = (pixels.as_ptr(), pixels.as_ptr());
        self.unit.enter(|unit| {
            for panel in p0..p1 {
                let OutputPanel { first, count, .. } = self.panels[panel];
                let (block, vectors) = (first / lanes, count.div_ceil(lanes));
                if !hooked {
                    tile.last_lanes = count - (vectors - 1) * lanes;
                }
                let mut tail = [0f32; 32];
                if let Bound::Direct { bias: true, .. } = self.bound {
                    tile.bias = nest.args.extras[0].cast_const().cast::<f32>().wrapping_add(first);
                    if count < vectors * lanes {
                        // SAFETY: as many floats as there are channels left.
                        unsafe { std::ptr::copy_nonoverlapping(tile.bias, tail.as_mut_ptr(), count) };
                        tile.bias = tail.as_ptr();
                    }
                }
                let packed = nest.args.weights.cast::<u32>().wrapping_add(panel * panel_len);
                let (start, b) = opened(packed, self.words);
                let next = if self.prefetch_weights && panel + 1 < p1 { panel_len / 16 } else { 0 };
                let mut words = WordTile {
                    a: narrowed,
                    a_row: self.position,
                    rows: 0,
                    taps: self.taps.as_ptr(),
                    tap_count: self.taps.len(),
                    b,
                    start,
                    acc,
                    prefetch: b.wrapping_add(panel_len),
                    prefetch_lines: next.div_ceil(tiles * lines * self.taps.len()),
                };
                for (line, i) in (0..lines).flat_map(|line| (0..tiles).map(move |i| (line, i))) {
                    let (q0, q1) = (i * ROWS, ((i + 1) * ROWS).min(positions));
                    words.a = narrowed.wrapping_add(line * self.step * self.columns * WORDS + q0 * self.position);
                    words.rows = q1 - q0;
                    // SAFETY: narrowed pixels, weights and sums have these extents.
                    unsafe { unit.tile(&words) };
                    words.prefetch = words.prefetch.wrapping_add(words.prefetch_lines * words.tap_count * 16);
                    let mut q = q0;
                    while q < q1 {
                        let (y, x) = if self.flat { (q / self.columns, q % self.columns) } else { (line, q) };
                        if x >= width {
                            // Between two rows positions reach across the border.
                            q += self.columns - x;
                            continue;
                        }
                        let count = (width - x).min(q1 - q).min(self.kernels.max_rows());
                        let from = if hooked { 0 } else { block * self.write.block };
                        tile.c = c.wrapping_add(from + y * c_step[0] + x * c_step[1]);
                        if let Some((base, surface)) = residual_at {
                            let at = block * surface.block + y * surface.step[1] + x * surface.step[2];
                            tile.residual = base.wrapping_add(at);
                        }
                        tile.partial = acc.wrapping_add((q - q0) * COLUMNS);
                        // SAFETY: sums that were just computed; the outputs are this chunk's.
                        unsafe { self.kernels.run(&tile, count, vectors) };
                        q += count;
                    }
                }
                if let (Bound::Hook(hooked), Some(hook)) = (&self.bound, nest.args.hook) {
                    for y in 0..rows.count {
                        let place = Place {
                            item: rows.item,
                            position: [0, rows.first + y, 0],
                            acc: strip.wrapping_add(y * c_step[0]),
                            first_channel: first,
                            channels: count,
                            last: self.channels,
                        };
                        let operands = (nest.args.extras, nest.args.outs);
                        // SAFETY: the strip holds these rows.
                        unsafe { hooked.call(hook, operands, &place, Lattice::ALL, (width, self.strip_len())) };
                    }
                }
            }
        });
    }
}
