//! The direct loop nest: for each panel of output channels, each row, each tile of pixels.

use super::ConvArgs;
use super::geometry::{Grid, Shape, Surface, grids};
use super::hooked::{Hooked, Place, full_surface};
use crate::cpu::drivers::epilogue::set_activation;
use crate::cpu::drivers::kernels::Kernels;
use crate::cpu::drivers::{DriverError, Nest2, RowCut, ScratchNeed, ScratchPool, Spread, part};
use crate::cpu::team::Team;
use egret_program::driver::{
    Activation, Bias, ConvEngine, ConvForm, ConvProblem, ConvSchedule, Epilogue, Operand, Split,
};
use egret_simd::pack::{OutputPanel, input_segments, output_panels};
use egret_simd::{Isa, MAX_ROWS, Tile, TileKind};

/// An epilogue over blocked channels.
#[derive(Debug)]
pub(super) enum Bound {
    Direct { bias: bool, residual: Option<Surface>, activation: Activation },
    Hook(Hooked),
}

/// Forward convolution or input gradient, dense, grouped or depthwise.
#[derive(Debug)]
pub(super) struct Direct {
    isa: Isa,
    lanes: usize,
    depthwise: bool,
    pub(super) batch: usize,
    /// Floats from a batch item of the input to the next.
    pub(super) read_batch: usize,
    /// Floats of an item of the input.
    image: usize,
    /// From one panel's channels to the next in the input (depthwise; else 0).
    read_panel: usize,
    /// From one step of a tap to the next in the input.
    a_step: usize,
    write: Surface,
    /// Output channels, over all groups.
    channels: usize,
    panels: Vec<OutputPanel>,
    /// Parts of the panels that read nothing in common.
    groups: usize,
    /// Whether a pixel is read for the pixel in its place alone.
    pub(super) is_pointwise: bool,
    /// Who wrote the input.
    pub(super) read: Spread,
    /// The cut for a team of so many, which is long to find beside small kernels.
    pub(super) known: Option<(usize, (usize, usize))>,
    /// Floats of weights in a panel.
    panel_len: usize,
    pub(super) grids: Vec<Grid>,
    /// The tile kernels of each grid.
    kernels: Vec<Kernels>,
    bound: Bound,
    split: Split,
    block: usize,
    prefetch_weights: bool,
    prefetch_input: bool,
}

impl Direct {
    pub(super) fn new(p: &ConvProblem, schedule: &ConvSchedule, isa: Isa) -> Result<Direct, DriverError> {
        let shape = Shape::new(p)?;
        let lanes = isa.lanes_f32();
        let x = Surface::new(shape.x, shape.x_halo, lanes, p.in_batch_stride);
        let y = Surface::new(shape.y, shape.y_halo, lanes, p.out_batch_stride);
        let forward = p.form == ConvForm::Forward;
        let (read, write, inputs, outputs) = if forward {
            (x, y, p.in_channels / p.groups, p.out_channels / p.groups)
        } else {
            (y, x, p.out_channels / p.groups, p.in_channels / p.groups)
        };
        let depthwise = p.is_depthwise();
        let kernels = kernels_of(schedule, isa, if depthwise { TileKind::Lanes } else { TileKind::Table })?;
        let taps: usize = p.kernel.iter().product();
        let in_place = p.in_spatial == p.out_spatial && p.stride.iter().all(|step| *step == 1);
        // Depthwise: each block of channels is a panel of one group.
        let segments: Vec<_> = match depthwise {
            true => vec![vec![0..1]],
            false => (0..p.groups).map(|group| input_segments(group, inputs, lanes)).collect(),
        };
        let floats_per_step = if depthwise { lanes } else { 2 * lanes };
        let floats_per_tap = if depthwise { lanes } else { inputs * 2 * lanes };
        let floats = (floats_per_tap, floats_per_step);
        let grids = grids(&shape, p.form, &read, &segments, lanes, floats, kernels.max_rows());
        let written = if forward { shape.y } else { shape.x };
        let bound = Bound::new(&p.epilogue, written, lanes)?;
        let panels = panels_of(depthwise, (p.groups, outputs), lanes);
        let of_grid = |grid: &Grid| match depthwise {
            true => kernels.clone(),
            false => kernels.clone().for_rows(isa, &grid.in_rows),
        };
        Ok(Direct {
            isa,
            lanes,
            kernels: grids.iter().map(of_grid).collect(),
            depthwise,
            batch: p.batch,
            read_batch: read.batch,
            image: read.batch,
            read_panel: if depthwise { read.block } else { 0 },
            a_step: 1,
            write,
            channels: p.groups * outputs,
            groups: if depthwise { panels.len() } else { p.groups },
            panels,
            is_pointwise: forward && taps == 1 && in_place,
            read: Spread::default(),
            known: None,
            panel_len: taps * floats_per_tap,
            grids,
            bound,
            split: schedule.split,
            block: schedule.block.max(1),
            prefetch_weights: schedule.prefetch_weights,
            prefetch_input: schedule.prefetch_input && taps == 1 && !depthwise,
        })
    }

    /// The nest on rows that were copied to scratch, of one item at a time (depthwise: of one panel at a time): `grid` reads
    /// these, a tap's channels or columns `a_step` floats apart.
    pub(super) fn on_copy(
        p: &ConvProblem,
        schedule: &ConvSchedule,
        isa: Isa,
        shape: &Shape,
        a_step: usize,
        grid: impl FnOnce(usize) -> Grid,
    ) -> Result<Direct, DriverError> {
        let lanes = isa.lanes_f32();
        let depthwise = p.is_depthwise();
        let kernels = kernels_of(schedule, isa, if depthwise { TileKind::Lanes } else { TileKind::Table })?;
        let grid = grid(kernels.max_rows());
        let taps: usize = p.kernel.iter().product();
        let panels = panels_of(depthwise, (p.groups, p.out_channels / p.groups), lanes);
        Ok(Direct {
            isa,
            lanes,
            depthwise,
            batch: p.batch,
            read_batch: 0,
            image: p.in_channels * p.in_spatial.iter().product::<usize>(),
            read_panel: 0,
            a_step,
            write: Surface::new(shape.y, shape.y_halo, lanes, p.out_batch_stride),
            channels: p.out_channels,
            groups: if depthwise { panels.len() } else { p.groups },
            panels,
            is_pointwise: false,
            read: Spread::default(),
            known: None,
            panel_len: taps * if depthwise { lanes } else { p.in_channels * 2 * lanes },
            kernels: vec![if depthwise { kernels } else { kernels.for_rows(isa, &grid.in_rows) }],
            grids: vec![grid],
            bound: Bound::new(&p.epilogue, shape.y, lanes)?,
            split: Split::Rows,
            block: schedule.block.max(1),
            prefetch_weights: schedule.prefetch_weights && p.prologue.is_some(),
            prefetch_input: false,
        })
    }

    pub(super) fn scratch(&self) -> ScratchNeed {
        let per_worker = match &self.bound {
            Bound::Direct { .. } => 0,
            Bound::Hook(_) => self.strip_len() * 2 * self.lanes * 4,
        };
        ScratchNeed { per_worker, shared: 0 }
    }

    /// Panels over all groups.
    pub(super) fn panels(&self) -> usize {
        self.panels.len()
    }

    /// Pixels of a hook's strip.
    fn strip_len(&self) -> usize {
        self.grids.iter().map(|g| g.count[2].max(MAX_ROWS)).max().unwrap_or(0)
    }

    pub(super) unsafe fn run(&self, args: &ConvArgs<'_>, team: &Team, scratch: &ScratchPool) {
        let nest = &Nest::new(args);
        let all_panels = self.panels.len();
        let (by_row, by_panel) = self.cut(team.size());
        let units = |grid: &Grid| grid.rows(self.batch).div_ceil(grid.rows_per_tile);
        let chunks_of = |grid: &Grid| by_row.min(units(grid)) * by_panel;
        let chunks = self.grids.iter().map(chunks_of).sum();
        team.parallel(chunks, &|chunk, worker| {
            let mut chunk = chunk;
            for (index, grid) in self.grids.iter().enumerate() {
                if chunk < chunks_of(grid) {
                    let (u0, u1) = part(units(grid), chunk / by_panel, by_row.min(units(grid)));
                    let end = (u1 * grid.rows_per_tile).min(grid.rows(self.batch));
                    let rows = (u0 * grid.rows_per_tile, end);
                    let (first, last) = part(all_panels, chunk % by_panel, by_panel);
                    let panels = (&mut (first..last) as &mut dyn Iterator<Item = usize>, last);
                    // SAFETY: chunks write different rows, or different channels of them.
                    unsafe { self.rows(index, panels, rows, nest.input(), nest, scratch.worker(worker)) };
                    return;
                }
                chunk -= chunks_of(grid);
            }
        });
    }

    /// Who writes the output.
    pub(super) fn spread(&self, threads: usize) -> Spread {
        Spread::of(self.cut(threads), threads)
    }

    /// The cut that was found when the plan was bound, if it was for such a team.
    pub(super) fn known_cut(&self, threads: usize) -> Option<(usize, usize)> {
        self.known.filter(|(team, _)| *team == threads).map(|(_, cut)| cut)
    }

    /// Where among the extras a residual is that is added without a hook.
    pub(super) fn residual(&self) -> Option<usize> {
        match &self.bound {
            Bound::Direct { bias, residual: Some(_), .. } => Some(usize::from(*bias)),
            _ => None,
        }
    }

    /// Blocks of rows of a grid, and of panels, for a team: those of the schedule for one thread.
    pub(super) fn cut(&self, threads: usize) -> (usize, usize) {
        if let Some(cut) = self.known_cut(threads) {
            return cut;
        }
        let Some(grid) = self.grids.iter().max_by_key(|grid| grid.rows(self.batch)) else { return (1, 1) };
        let (rows, panels) = (grid.rows(self.batch), self.panels.len());
        match self.split {
            _ if threads > 1 => self.nest(grid, self.batch).cut(threads),
            Split::Panels => (1, panels.div_ceil(self.block).max(1)),
            Split::Rows => {
                let units = rows.div_ceil(grid.rows_per_tile);
                (units.div_ceil(self.block.div_ceil(grid.rows_per_tile)).max(1), 1)
            }
        }
    }

    /// A grid's rows of so many items, to be cut.
    pub(super) fn nest(&self, grid: &Grid, items: usize) -> Nest2 {
        /// How much longer a product takes without a factor that several share.
        const LANES: usize = 2;
        let weights = self.panels.len() * self.panel_len;
        let pixels = grid.rows(items) * grid.count[2];
        Nest2 {
            rows: grid.rows(items),
            together: grid.rows_per_tile,
            panels: self.panels.len(),
            groups: self.groups,
            input: items * self.image,
            spread: self.read,
            weights,
            products: weights * pixels * if self.depthwise { LANES } else { 1 },
        }
    }

    /// Rows `r0..r1` (of all batch items) of panels of a grid, whose weights are fetched ahead up to panel `end`. `input` is where
    /// row 0 of the grid would be; `strip` is scratch.
    ///
    /// # Safety
    /// As for the plan; nobody else writes these rows of these channels.
    pub(super) unsafe fn rows(
        &self,
        grid: usize,
        (panels, end): (&mut dyn Iterator<Item = usize>, usize),
        (r0, r1): (usize, usize),
        input: *const f32,
        nest: &Nest<'_>,
        strip: *mut f32,
    ) {
        let (grid, kernels) = (&self.grids[grid], &self.kernels[grid]);
        let lanes = self.lanes;
        let lattice = grid.lattice;
        let width = grid.count[2];
        if r0 >= r1 {
            return;
        }
        let max_rows = kernels.max_rows();
        let tiles_in_row = width.div_ceil(max_rows);
        let hooked = matches!(self.bound, Bound::Hook(_));
        let strip_len = self.strip_len();
        let out_step = lattice.steps_in(&self.write);
        let c_rows = if hooked { std::array::from_fn(|m| m * lanes) } else { grid.row_table(out_step) };
        let mut tile = Tile::new(self.isa);
        tile.rows = grid.in_rows.as_ptr();
        tile.a_step = self.a_step;
        tile.b_step = if self.depthwise { lanes } else { 2 * lanes };
        tile.c_rows = c_rows.as_ptr();
        tile.c_vector = if hooked { strip_len * lanes } else { self.write.block };
        tile.fill = true;
        let mut residual_rows = [0; MAX_ROWS];
        let mut residual_at = None;
        if let Bound::Direct { bias, residual, activation } = &self.bound {
            set_activation(&mut tile, *activation);
            if let Some(surface) = residual {
                let step = lattice.steps_in(surface);
                residual_rows = grid.row_table(step);
                tile.residual_vector = surface.block;
                let base = nest.args.extras[usize::from(*bias)].cast_const().cast::<f32>();
                residual_at = Some((surface, step, base.wrapping_add(lattice.origin_in(surface))));
            }
        }
        tile.residual_rows = residual_rows.as_ptr();
        let output = nest.args.output.wrapping_add(lattice.origin_in(&self.write));
        // The input of the next tile is asked for only where nothing else has brought it: one tap, first panel.
        let ahead = max_rows * grid.in_step[2];
        let one_tap = self.prefetch_input && grid.rows_per_tile == 1;

        let mut is_first = true;
        for panel in panels {
            let OutputPanel { group, first, count } = self.panels[panel];
            let list = &grid.groups[group];
            let (first_block, first_lane) = (first / lanes, first % lanes);
            let vectors = (first_lane + count).div_ceil(lanes);
            let last_lanes = first_lane + count - (vectors - 1) * lanes;
            if !hooked {
                (tile.first_lane, tile.last_lanes) = (first_lane, last_lanes);
                tile.fill = first + count == self.channels;
            } else {
                // a strip has whole vectors, of which half a one may be computed
                tile.last_lanes = if vectors == 1 && 2 * last_lanes <= lanes { last_lanes } else { lanes };
            }
            let mut tail = [0f32; 32];
            if let Bound::Direct { bias: true, .. } = self.bound {
                let begin = first_block * lanes;
                let bias = nest.args.extras[0].cast_const().cast::<f32>().wrapping_add(begin);
                tile.bias = bias;
                if begin + vectors * lanes > self.channels {
                    // The vector would be read beyond the end of the operand.
                    unsafe { std::ptr::copy_nonoverlapping(bias, tail.as_mut_ptr(), self.channels - begin) };
                    tile.bias = tail.as_ptr();
                }
            }
            let weights = nest.args.weights.wrapping_add(panel * self.panel_len + grid.weights);
            tile.b = weights;
            let tiles =
                if grid.rows_per_tile > 1 { (r1 - r0).div_ceil(grid.rows_per_tile) } else { (r1 - r0) * tiles_in_row };
            let mut lines_left = 0;
            tile.prefetch_lines = 0;
            if self.prefetch_weights && panel + 1 < end && !list.taps.is_empty() {
                let lines = self.panel_len.div_ceil(16);
                tile.prefetch_lines = lines.div_ceil(tiles * list.taps.len());
                tile.prefetch = weights.wrapping_add(self.panel_len);
                lines_left = lines;
            }
            let next_tile = if one_tap && is_first { ahead } else { 0 };
            is_first = false;
            let panel_input = panel * self.read_panel;
            let mut row = r0;
            while row < r1 {
                let plane_row = row % grid.count[1];
                let plane = row / grid.count[1];
                let (item, depth) = (plane / grid.count[0], plane % grid.count[0]);
                let rows = grid.rows_per_tile.min(grid.count[1] - plane_row).min(r1 - row);
                let at = |batch: usize, step: [usize; 3]| item * batch + depth * step[0] + plane_row * step[1];
                let a = input.wrapping_add(panel_input + at(self.read_batch, grid.in_step));
                let c = if hooked {
                    strip
                } else {
                    output.wrapping_add(first_block * self.write.block + at(self.write.batch, out_step))
                };
                let c_step = if hooked { lanes } else { out_step[2] };
                let residual = residual_at.as_ref().map(|(surface, step, base)| {
                    let offset = first_block * surface.block + at(surface.batch, *step);
                    (base.wrapping_add(offset), step[2])
                });
                let list = grid.edges.at(plane_row, rows).map_or(list, |lists| &lists[group]);
                (tile.taps, tile.runs, tile.tap_count) = (list.taps.as_ptr(), list.runs.as_ptr(), list.taps.len());
                tile.b_taps = if list.weights.is_empty() { std::ptr::null() } else { list.weights.as_ptr() };
                let tiles = if rows > 1 { 1 } else { tiles_in_row };
                for i in 0..tiles {
                    let (w0, w1) = if rows > 1 { (0, rows * width) } else { part(width, i, tiles) };
                    tile.a = a.wrapping_add(w0 * grid.in_step[2]);
                    // what lies behind the last row may be in another core's cache, which is to keep it
                    let is_last = row + rows == r1 && i + 1 == tiles;
                    tile.prefetch_a = if is_last { 0 } else { next_tile };
                    tile.c = c.wrapping_add(w0 * c_step);
                    if let Some((base, step)) = residual {
                        tile.residual = base.wrapping_add(w0 * step);
                    }
                    // SAFETY: bounds were checked when the plan was made.
                    unsafe { kernels.run(&tile, w1 - w0, vectors) };
                    if tile.prefetch_lines > 0 {
                        let done = tile.prefetch_lines * tile.tap_count;
                        tile.prefetch = tile.prefetch.wrapping_add(done * 16);
                        lines_left = lines_left.saturating_sub(done);
                        if lines_left == 0 {
                            tile.prefetch_lines = 0;
                        }
                    }
                }
                if let (Bound::Hook(hooked), Some(hook)) = (&self.bound, nest.args.hook) {
                    for i in 0..rows {
                        let place = Place {
                            item,
                            position: [depth, plane_row + i, 0],
                            acc: strip.wrapping_add(i * width * lanes),
                            first_channel: first,
                            channels: count,
                            last: self.channels,
                        };
                        let operands = (nest.args.extras, nest.args.outs);
                        // SAFETY: the strip holds these rows.
                        unsafe { hooked.call(hook, operands, &place, lattice, (width, strip_len)) };
                    }
                }
                row += rows;
            }
        }
    }
}

/// The output channels of each panel; a depthwise one has those of a vector.
fn panels_of(depthwise: bool, (groups, outputs): (usize, usize), lanes: usize) -> Vec<OutputPanel> {
    if !depthwise {
        return output_panels(groups, outputs, lanes);
    }
    let of = |first: usize| OutputPanel { group: 0, first, count: lanes.min(groups - first) };
    (0..groups).step_by(lanes).map(of).collect()
}

fn kernels_of(schedule: &ConvSchedule, isa: Isa, kind: TileKind) -> Result<Kernels, DriverError> {
    if schedule.engine == ConvEngine::Shorts { Kernels::shorts(isa, kind) } else { Kernels::new(isa, kind) }
}

/// The operands, shared by the team.
pub(super) struct Nest<'a> {
    pub(super) args: ConvArgs<'a>,
    /// Of what cut each chunk has a copy of the input for its rows, and how many bytes behind the one before, if so.
    pub(super) copies: Option<(RowCut, usize)>,
}

// SAFETY: operands are read, and written in parts that do not overlap.
unsafe impl Sync for Nest<'_> {}

impl<'a> Nest<'a> {
    pub(super) fn new(args: &ConvArgs<'a>) -> Nest<'a> {
        Nest { args: *args, copies: None }
    }

    /// Which rows of an item, from `first` to at most `end`, lie in one piece, and how many bytes behind the input.
    pub(super) fn piece(&self, item: usize, (first, end): (usize, usize)) -> (usize, usize) {
        match &self.copies {
            None => (end, 0),
            Some((cut, bytes)) => {
                let (chunk, last) = cut.chunk_of(item, first);
                (end.min(last), chunk * bytes)
            }
        }
    }

    fn input(&self) -> *const f32 {
        self.args.input
    }
}

impl Bound {
    pub(super) fn new(epilogue: &Epilogue, written: [usize; 3], lanes: usize) -> Result<Bound, DriverError> {
        match epilogue {
            Epilogue::Direct { bias: Some(Bias::PerRow), .. } => Err(DriverError::Unsupported("a bias for each pixel")),
            Epilogue::Direct { bias, residual, activation } => {
                let residual = match residual {
                    None => None,
                    Some(Operand::Full { halo, batch_stride }) => {
                        Some(full_surface(written, halo, *batch_stride, lanes)?)
                    }
                    Some(_) => {
                        return Err(DriverError::Unsupported("a residual that is not of full size"));
                    }
                };
                Ok(Bound::Direct { bias: bias.is_some(), residual, activation: *activation })
            }
            Epilogue::Hook { extras, outs, element_bytes } => {
                Ok(Bound::Hook(Hooked::new(extras, outs, element_bytes, written, lanes)?))
            }
        }
    }
}
