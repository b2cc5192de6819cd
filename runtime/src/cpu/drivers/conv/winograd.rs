//! Winograd's F(m×m, 3×3): patches of a block of tiles are transformed, multiplied with transformed filters by the tile
//! kernels, and transformed back under the epilogue.

use super::ConvArgs;
use super::direct::{Bound, Nest};
use super::geometry::{Shape, Surface};
use super::hooked::{Lattice, Place};
use crate::cpu::drivers::epilogue::bounds;
use crate::cpu::drivers::kernels::Kernels;
use crate::cpu::drivers::words::unit;
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool, Shared, chunk_count, even_rows, part, row_cuts};
use crate::cpu::team::Team;
use egret_program::driver::{ConvEngine, ConvProblem, ConvSchedule, Split, Words};
use egret_simd::pack::{OutputPanel, output_panels};
use egret_simd::winograd::{
    InputFn, InputTiles, OutputFn, OutputTiles, input_transform, input_transform_pairs, output_transform,
};
use egret_simd::words::{COLUMNS, ROWS, WORDS, WordKernels, WordTile};
use egret_simd::{Isa, MAX_ROWS, Tile, TileKind};

/// Forward 3×3 convolution of stride and dilation 1.
#[derive(Debug)]
pub(super) struct Winograd {
    isa: Isa,
    lanes: usize,
    /// m, and the elements of a patch.
    outputs: usize,
    points: usize,
    read: Surface,
    write: Surface,
    /// Rows and columns of the input with its halo, and where the first patch begins there.
    padded: [usize; 2],
    begin: [usize; 2],
    /// Rows and columns of the output.
    extent: [usize; 2],
    /// Rows of tiles over all batch items, and of one, and tiles of a row.
    tile_rows: usize,
    item_rows: usize,
    tile_columns: usize,
    inputs: usize,
    channels: usize,
    panels: Vec<OutputPanel>,
    /// Blocks of tiles, down and across, and the most rows and columns of one.
    blocks: [usize; 2],
    block: [usize; 2],
    /// Panels in a chunk, at most.
    panel_block: usize,
    /// Where each tap of input channels begins among transformed patches, and vectors of channels in one. A tile has a vector
    /// of floats or of words in each.
    taps: Vec<usize>,
    vectors: usize,
    /// Among sums of products: from a vector of a panel, and from a tile, to the next.
    product: [usize; 2],
    factors: Factors,
    transform_input: InputFn,
    transform_output: OutputFn,
    bound: Bound,
    split: Split,
    prefetch_weights: bool,
}

/// How transformed patches and filters are multiplied.
#[derive(Debug)]
enum Factors {
    Floats(Box<Floats>),
    Pairs { unit: WordKernels, words: Words },
}

/// Tile kernels of floats, and where the rows of a tile lie.
#[derive(Debug)]
struct Floats {
    kernels: Kernels,
    rows: [usize; MAX_ROWS],
}

impl Factors {
    fn new(words: Option<Words>, isa: Isa) -> Result<Factors, DriverError> {
        if let Some(words) = words {
            return Ok(Factors::Pairs { unit: unit(words)?, words });
        }
        let rows = std::array::from_fn(|m| m * isa.lanes_f32());
        let kernels = Kernels::new(isa, TileKind::Table)?.for_rows(isa, &rows);
        Ok(Factors::Floats(Box::new(Floats { kernels, rows })))
    }

    /// What tiles may touch beyond their rows: of patches, and of sums.
    fn slack(&self) -> [usize; 2] {
        match self {
            Factors::Floats(_) => [0, 0],
            Factors::Pairs { .. } => [ROWS * WORDS, ROWS * COLUMNS],
        }
    }
}

/// A tile of products: of so many patches with filters of so many vectors of channels, and what is brought into the cache ahead.
struct Piece {
    patches: *const f32,
    filters: *const f32,
    products: *mut f32,
    ahead: *const f32,
    rows: usize,
    vectors: usize,
}

/// Tiles that are transformed together: rows over all batch items, and columns.
#[derive(Clone, Copy)]
struct Block {
    rows: (usize, usize),
    columns: (usize, usize),
}

impl Block {
    fn width(&self) -> usize {
        self.columns.1 - self.columns.0
    }

    fn tiles(&self) -> usize {
        (self.rows.1 - self.rows.0) * self.width()
    }
}

impl Winograd {
    pub(super) fn new(p: &ConvProblem, schedule: &ConvSchedule, isa: Isa) -> Result<Winograd, DriverError> {
        let ConvEngine::Winograd { outputs, tile_rows, tile_columns, words } = schedule.engine else {
            return Err(DriverError::Problem("the schedule of a direct convolution"));
        };
        if !p.has_winograd() || p.in_channels == 0 {
            return Err(DriverError::Unsupported("Winograd beyond 3×3 windows of stride and dilation 1 in one group"));
        }
        let transform_input = match words {
            None => input_transform(isa, outputs),
            Some(Words::Bf16) if outputs == 2 && isa == Isa::Avx512 => input_transform_pairs(),
            Some(_) => None,
        };
        let (Some(transform_input), Some(transform_output)) = (transform_input, output_transform(isa, outputs)) else {
            return Err(DriverError::Unsupported("this tile of Winograd"));
        };
        let shape = Shape::new(p)?;
        let lanes = isa.lanes_f32();
        let extent = [shape.y[1], shape.y[2]];
        let [item_rows, columns] = extent.map(|extent| extent.div_ceil(outputs));
        let all_rows = p.batch * item_rows;
        let blocks = [all_rows.div_ceil(tile_rows.max(1)), columns.div_ceil(tile_columns.max(1))];
        let most = |len: usize, parts: usize| if parts == 0 { 0 } else { len.div_ceil(parts) };
        let block = [most(all_rows, blocks[0]), most(columns, blocks[1])];
        let tiles = block[0] * block[1];
        let vectors = words.map_or(1, |words| words.depth() / lanes);
        Ok(Winograd {
            isa,
            lanes,
            outputs,
            points: (outputs + 2) * (outputs + 2),
            read: Surface::new(shape.x, shape.x_halo, lanes, p.in_batch_stride),
            write: Surface::new(shape.y, shape.y_halo, lanes, p.out_batch_stride),
            padded: [1, 2].map(|d| shape.x[d] + 2 * shape.x_halo[d]),
            begin: [1, 2].map(|d| shape.x_halo[d] - shape.pad[d]),
            extent,
            tile_rows: all_rows,
            item_rows,
            tile_columns: columns,
            inputs: p.in_channels,
            channels: p.out_channels,
            panels: output_panels(1, p.out_channels, lanes),
            blocks,
            block,
            panel_block: schedule.block.max(1),
            taps: (0..p.in_channels.div_ceil(vectors * lanes)).map(|i| i * tiles * lanes).collect(),
            vectors,
            product: if words.is_some() { [lanes, COLUMNS] } else { [tiles * lanes, lanes] },
            factors: Factors::new(words, isa)?,
            transform_input,
            transform_output,
            bound: Bound::new(&p.epilogue, shape.y, lanes)?,
            split: schedule.split,
            prefetch_weights: schedule.prefetch_weights,
        })
    }

    /// The most tiles of a block.
    fn most_tiles(&self) -> usize {
        self.block[0] * self.block[1]
    }

    /// Floats from an element of the patches to the next: a line more than they need, because at powers of two all elements
    /// would fall on the same lines of the cache.
    fn patch_point(&self) -> usize {
        self.taps.len() * self.most_tiles() * self.lanes + self.lanes
    }

    /// The same for sums of products, by the panels of a chunk.
    fn product_point(&self) -> usize {
        self.panel_block.min(self.panels.len()) * 2 * self.most_tiles() * self.lanes + self.lanes
    }

    /// Pixels of a hook's strip.
    fn strip_len(&self) -> usize {
        self.block[1] * self.outputs
    }

    fn patches_len(&self) -> usize {
        self.points * self.patch_point() + self.factors.slack()[0]
    }

    fn products_len(&self) -> usize {
        self.points * self.product_point() + self.factors.slack()[1]
    }

    /// Vectors of input channels, those that fill the last tap among them.
    fn input_vectors(&self) -> usize {
        self.taps.len() * self.vectors
    }

    pub(super) fn scratch(&self) -> ScratchNeed {
        let strip = match &self.bound {
            Bound::Direct { .. } => 0,
            Bound::Hook(_) => self.outputs * self.strip_len() * self.lanes,
        };
        let own = self.products_len() + strip;
        match self.split {
            Split::Rows => ScratchNeed { per_worker: (self.patches_len() + own) * 4, shared: 0 },
            Split::Panels => ScratchNeed { per_worker: own * 4, shared: self.patches_len() * 4 },
        }
    }

    pub(super) unsafe fn run(&self, args: &ConvArgs<'_>, team: &Team, scratch: &ScratchPool) {
        let nest = &Nest::new(args);
        let down = match self.split {
            Split::Rows => even_rows(self.tile_rows, self.blocks[0], self.blocks[1], team.size()),
            Split::Panels => self.blocks[0],
        };
        let blocks = down * self.blocks[1];
        let all_panels = self.panels.len();
        let chunks = all_panels.div_ceil(self.panel_block);
        let own_products = match self.split {
            Split::Rows => self.patches_len(),
            Split::Panels => 0,
        };
        let panels = |patches: *const f32, block: &Block, (p0, p1): (usize, usize), worker: usize| {
            let products = scratch.worker(worker).wrapping_add(own_products);
            // SAFETY: the scratch is the worker's; chunks write different pixels or channels.
            unsafe {
                self.multiply(nest, patches, products, block, (p0, p1));
                self.finish(nest, products, block, (p0, p1));
            }
        };
        match self.split {
            Split::Rows => team.parallel(blocks, &|index, worker| {
                let block = self.block_at(index, down);
                let patches = scratch.worker(worker);
                // SAFETY: the scratch is the worker's.
                unsafe { self.transform(nest, patches, &block, (0, self.input_vectors())) };
                for chunk in 0..chunks {
                    panels(patches, &block, part(all_panels, chunk, chunks), worker);
                }
            }),
            Split::Panels => {
                for index in 0..blocks {
                    let block = self.block_at(index, down);
                    let patches = Shared(scratch.shared());
                    let vectors = self.input_vectors();
                    let parts = chunk_count(vectors, 1, team.size());
                    team.parallel(parts, &|chunk, _| {
                        let patches = &patches;
                        // SAFETY: chunks write patches of different channels.
                        unsafe { self.transform(nest, patches.0, &block, part(vectors, chunk, parts)) };
                    });
                    let chunks = chunk_count(all_panels, chunks, team.size());
                    let rows = block.rows.1 - block.rows.0;
                    let cuts = row_cuts(chunks, rows, team.size());
                    team.parallel(cuts * chunks, &|index, worker| {
                        let patches = &patches;
                        let (r0, r1) = part(rows, index / chunks, cuts);
                        let own = Block { rows: (block.rows.0 + r0, block.rows.0 + r1), ..block };
                        let patches = patches.0.wrapping_add(r0 * block.width() * self.lanes);
                        panels(patches, &own, part(all_panels, index % chunks, chunks), worker);
                    });
                }
            }
        }
    }

    /// A block of which there are `down` down.
    fn block_at(&self, index: usize, down: usize) -> Block {
        let (row, across) = (index / self.blocks[1], index % self.blocks[1]);
        Block { rows: part(self.tile_rows, row, down), columns: part(self.tile_columns, across, self.blocks[1]) }
    }

    /// Transforms the patches of a block, of vectors `c0..c1` of input channels; zeros where there are no more.
    unsafe fn transform(&self, nest: &Nest<'_>, patches: *mut f32, block: &Block, (c0, c1): (usize, usize)) {
        let column = self.begin[1] + block.columns.0 * self.outputs;
        for channels in c0..c1 {
            let within = channels % self.vectors * (WORDS / self.vectors);
            let mut to = patches.wrapping_add(self.taps[channels / self.vectors] + within);
            if channels * self.lanes >= self.inputs {
                for (point, tile) in
                    (0..self.points).flat_map(|point| (0..block.tiles()).map(move |tile| (point, tile)))
                {
                    let to = to.wrapping_add(point * self.patch_point() + tile * WORDS);
                    // SAFETY: words of these vectors alone.
                    unsafe { std::ptr::write_bytes(to, 0, WORDS / self.vectors) };
                }
                continue;
            }
            for row in block.rows.0..block.rows.1 {
                let (item, tile_row) = (row / self.item_rows, row % self.item_rows);
                let first = self.begin[0] + tile_row * self.outputs;
                let at = item * self.read.batch + channels * self.read.block + first * self.read.step[1];
                let tiles = InputTiles {
                    pixels: nest.args.input.wrapping_add(at + column * self.lanes),
                    row: self.read.step[1],
                    rows: self.padded[0].saturating_sub(first),
                    columns: self.padded[1].saturating_sub(column),
                    tiles: block.width(),
                    points: to,
                    point: self.patch_point(),
                };
                // SAFETY: rows and columns are those of the padded input; the patches have room for the block.
                unsafe { (self.transform_input)(&tiles) };
                to = to.wrapping_add(block.width() * self.lanes);
            }
        }
    }

    /// Multiplies the patches of a block with the filters of panels `p0..p1`.
    unsafe fn multiply(
        &self,
        nest: &Nest<'_>,
        patches: *const f32,
        products: *mut f32,
        block: &Block,
        panels: (usize, usize),
    ) {
        let whole = Piece {
            patches,
            filters: nest.args.weights,
            products,
            ahead: std::ptr::null(),
            rows: block.tiles(),
            vectors: 2,
        };
        match &self.factors {
            Factors::Floats(floats) => {
                let Floats { kernels, rows } = &**floats;
                let mut tile = Tile::new(self.isa);
                (tile.rows, tile.c_rows) = (rows.as_ptr(), rows.as_ptr());
                tile.c_vector = self.product[0];
                (tile.taps, tile.tap_count) = (self.taps.as_ptr(), self.taps.len());
                tile.run = self.lanes;
                tile.last_run = self.inputs - (self.taps.len() - 1) * self.lanes;
                let panel_len = self.inputs * 2 * self.lanes;
                self.pieces(&whole, panels, (panel_len, kernels.max_rows()), |piece, lines| {
                    (tile.a, tile.b, tile.c) = (piece.patches, piece.filters, piece.products);
                    (tile.prefetch, tile.prefetch_lines) = (piece.ahead, lines);
                    // SAFETY: patches, filters and products have these extents.
                    unsafe { kernels.run(&tile, piece.rows, piece.vectors) };
                });
            }
            Factors::Pairs { unit, words } => unit.enter(|unit| {
                let panel_len = words.panel(self.taps.len());
                self.pieces(&whole, panels, (panel_len, ROWS), |piece, lines| {
                    let tile = WordTile {
                        a: piece.patches.cast(),
                        a_row: WORDS,
                        rows: piece.rows,
                        taps: self.taps.as_ptr(),
                        tap_count: self.taps.len(),
                        b: piece.filters.cast(),
                        start: std::ptr::null(),
                        acc: piece.products,
                        prefetch: piece.ahead.cast(),
                        prefetch_lines: lines,
                    };
                    // SAFETY: as above; rows beyond the last lie in the slack, or are computed after.
                    unsafe { unit.tile(&tile) };
                });
            }),
        }
    }

    /// Tiles of products, point by point, of panels `p0..p1`, of at most so many rows each, and the lines that each tap asks
    /// for ahead.
    fn pieces(
        &self,
        whole: &Piece,
        (p0, p1): (usize, usize),
        (panel_len, most): (usize, usize),
        mut run: impl FnMut(&Piece, usize),
    ) {
        let groups = whole.rows.div_ceil(most);
        let lines = if self.prefetch_weights { panel_len.div_ceil(16) } else { 0 };
        let lines = lines.div_ceil(groups * self.taps.len());
        for point in 0..self.points {
            let filters = whole.filters.wrapping_add(point * self.panels.len() * panel_len);
            for panel in p0..p1 {
                let next = if panel + 1 < p1 { panel + 1 } else { self.panels.len() + p0 };
                let to = (panel - p0) * 2 * self.most_tiles() * self.lanes;
                for group in 0..groups {
                    let (t0, t1) = part(whole.rows, group, groups);
                    let piece = Piece {
                        patches: whole.patches.wrapping_add(point * self.patch_point() + t0 * self.lanes),
                        filters: filters.wrapping_add(panel * panel_len),
                        products: whole.products.wrapping_add(point * self.product_point() + to + t0 * self.product[1]),
                        ahead: filters.wrapping_add(next * panel_len + group * lines * self.taps.len() * 16),
                        rows: t1 - t0,
                        vectors: self.panels[panel].count.div_ceil(self.lanes),
                    };
                    run(&piece, lines);
                }
            }
        }
    }

    /// Transforms sums of products of panels `p0..p1` to outputs.
    unsafe fn finish(&self, nest: &Nest<'_>, products: *mut f32, block: &Block, (p0, p1): (usize, usize)) {
        let strip = products.wrapping_add(self.products_len());
        for panel in p0..p1 {
            let OutputPanel { first, count, .. } = self.panels[panel];
            for vector in 0..count.div_ceil(self.lanes) {
                let first = first + vector * self.lanes;
                let lanes = self.lanes.min(self.channels - first);
                let panel_at = (panel - p0) * 2 * self.most_tiles() * self.lanes;
                let mut from = products.wrapping_add(panel_at + vector * self.product[0]).cast_const();
                for row in block.rows.0..block.rows.1 {
                    // SAFETY: the products of this row of tiles; its outputs are this chunk's.
                    unsafe { self.finish_row(nest, from, strip, block, row, (first, lanes)) };
                    from = from.wrapping_add(block.width() * self.product[1]);
                }
            }
        }
    }

    /// Outputs of one row of tiles, of the vector of channels that begins with `first`, of which `lanes` exist.
    unsafe fn finish_row(
        &self,
        nest: &Nest<'_>,
        products: *const f32,
        strip: *mut f32,
        block: &Block,
        row: usize,
        (first, lanes): (usize, usize),
    ) {
        let (item, tile_row) = (row / self.item_rows, row % self.item_rows);
        let (y, x) = (tile_row * self.outputs, block.columns.0 * self.outputs);
        let vector = first / self.lanes;
        let at = |surface: &Surface| {
            let pixel = surface.origin + y * surface.step[1] + x * surface.step[2];
            pixel + item * surface.batch + vector * surface.block
        };
        let mut tiles = OutputTiles {
            products,
            point: self.product_point(),
            tiles: block.width(),
            tile: self.product[1],
            out: nest.args.output.wrapping_add(at(&self.write)),
            row: self.write.step[1],
            rows: self.extent[0] - y,
            columns: self.extent[1] - x,
            lanes,
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            residual_row: 0,
            lo: f32::NEG_INFINITY,
            hi: f32::INFINITY,
        };
        match &self.bound {
            Bound::Direct { bias, residual, activation } => {
                (tiles.lo, tiles.hi) = bounds(*activation);
                let mut tail = [0f32; 16];
                if *bias {
                    tiles.bias = nest.args.extras[0].cast_const().cast::<f32>().wrapping_add(first);
                    if lanes < self.lanes {
                        // SAFETY: as many floats as there are channels left; the vector would reach beyond the operand.
                        unsafe { std::ptr::copy_nonoverlapping(tiles.bias, tail.as_mut_ptr(), lanes) };
                        tiles.bias = tail.as_ptr();
                    }
                }
                if let Some(surface) = residual {
                    let base = nest.args.extras[usize::from(*bias)].cast_const().cast::<f32>();
                    tiles.residual = base.wrapping_add(at(surface));
                    tiles.residual_row = surface.step[1];
                }
                // SAFETY: the outputs that there are lie within the tensors.
                unsafe { (self.transform_output)(&tiles) };
            }
            Bound::Hook(hooked) => {
                let strip_len = self.strip_len();
                (tiles.out, tiles.row, tiles.lanes) = (strip, strip_len * self.lanes, self.lanes);
                // SAFETY: the strip has room for a row of tiles.
                unsafe { (self.transform_output)(&tiles) };
                let Some(hook) = nest.args.hook else { return };
                let width = tiles.columns.min(block.width() * self.outputs);
                for i in 0..tiles.rows.min(self.outputs) {
                    let place = Place {
                        item,
                        position: [0, y + i, x],
                        acc: strip.wrapping_add(i * tiles.row),
                        first_channel: first,
                        channels: lanes,
                        last: self.channels,
                    };
                    let operands = (nest.args.extras, nest.args.outs);
                    // SAFETY: the strip holds this row.
                    unsafe { hooked.call(hook, operands, &place, Lattice::ALL, (width, strip_len)) };
                }
            }
        }
    }
}
