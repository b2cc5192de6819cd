//! Convolutions that run one behind the other without a join: each but the first reads, of what the one before wrote, only the
//! pixels in the places of those that it writes. Each chunk of rows goes through all of them; who is done helps others with theirs.

use super::direct::{Direct, Nest};
use super::{ConvArgs, ConvPlan, Form};
use crate::cpu::drivers::help::Help;
use crate::cpu::drivers::{RowCut, ScratchNeed, ScratchPool, Spread};
use crate::cpu::team::Team;
use smallvec::SmallVec;

/// Most convolutions in a chain.
pub(crate) const MAX_LINKS: usize = 4;

/// Multiply-adds of a thread beside which a join is nothing.
const LARGE: usize = 8 << 20;

/// Most items: the stages of a chunk are counted.
const MOST_ITEMS: usize = 4096;

/// Fewer rows in a chunk read more rows of others than they are worth.
const LEAST_ROWS: usize = 8;

/// How many rows the thread with most may have, of an even share: others help it.
const UNEVEN: f64 = 1.2;

/// Floats of weights that each thread may read all of, rather than those of its channels: half of a second-level cache.
const FEW_WEIGHTS: usize = 128 << 10;

impl ConvPlan {
    /// The nest, if rows of it can be computed by themselves: forward, of one grid, of at most two spatial dims.
    fn by_rows(&self) -> Option<&Direct> {
        let direct = match &self.form {
            Form::Direct(direct) => direct,
            Form::Mapped(mapped) => &mapped.direct,
            _ => return None,
        };
        let [grid] = direct.grids.as_slice() else { return None };
        (grid.count[0] == 1 && grid.lattice.step == [1; 3]).then_some(direct)
    }

    /// Whether a team cuts it by rows, or may as well, about evenly, and a join is worth something beside it.
    fn links(&self, threads: usize) -> bool {
        let Some(direct) = self.by_rows() else { return false };
        let grid = &direct.grids[0];
        let (rows, together) = (grid.rows(direct.batch), grid.rows_per_tile);
        let nest = direct.nest(grid, direct.batch);
        let most = (rows.div_ceil(together).div_ceil(threads) * together).min(rows) * threads;
        rows >= threads
            && direct.batch <= MOST_ITEMS
            && most as f64 <= UNEVEN * rows as f64
            && (self.spread(threads) == Spread::Rows || nest.weights <= FEW_WEIGHTS)
            && nest.products / threads <= LARGE
    }

    /// Whether a team may go on with it behind `before`, whose result it reads, without a join.
    pub(crate) fn follows(&self, before: &ConvPlan, threads: usize) -> bool {
        let (Some(direct), Some(first)) = (self.by_rows(), before.by_rows()) else { return false };
        threads > 1
            && direct.is_pointwise
            && direct.batch == first.batch
            && direct.grids[0].count == first.grids[0].count
            && self.links(threads)
            && before.links(threads)
    }

    /// How a chain that begins with it is cut.
    pub(crate) fn row_cut(&self, threads: usize) -> Option<RowCut> {
        let direct = self.by_rows()?;
        let grid = &direct.grids[0];
        let (items, height, together) = (direct.batch, grid.count[1], grid.rows_per_tile);
        let for_each = (items * height / threads / LEAST_ROWS).clamp(1, 4);
        let chunks = (threads * for_each).min(items * height.div_ceil(together));
        Some(RowCut { items, height, together, chunks })
    }

    /// Whether each chunk of a chain may read its rows from a copy of the input.
    pub(crate) fn reads_copies(&self) -> bool {
        match &self.form {
            Form::Direct(direct) => direct.is_pointwise,
            Form::Mapped(_) => true,
            _ => false,
        }
    }

    /// Where among the extras a residual is that each chunk of a chain may read from a copy.
    pub(crate) fn residual(&self) -> Option<usize> {
        self.by_rows()?.residual()
    }

    /// Units of rows that may be computed by themselves.
    fn units(&self) -> usize {
        match &self.form {
            Form::Direct(direct) => direct.panels(),
            Form::Mapped(mapped) => mapped.parts(),
            _ => 0,
        }
    }

    /// Units of rows of an item.
    ///
    /// # Safety
    /// As for [`run`](ConvPlan::run); nobody else writes these, or this scratch.
    unsafe fn rows(
        &self,
        nest: &Nest<'_>,
        item: usize,
        rows: (usize, usize),
        units: &mut dyn Iterator<Item = usize>,
        scratch: *mut f32,
    ) {
        // SAFETY: the caller's.
        unsafe {
            match &self.form {
                Form::Direct(direct) => {
                    let first = item * direct.grids[0].count[1];
                    let rows = (first + rows.0, first + rows.1);
                    let (_, behind) = nest.piece(item, (rows.0 - first, rows.1 - first));
                    let input = nest.args.input.wrapping_byte_add(behind);
                    direct.rows(0, (units, direct.panels()), rows, input, nest, scratch);
                }
                Form::Mapped(mapped) => mapped.rows(nest, item, rows, units, scratch),
                _ => {}
            }
        }
    }
}

/// How many bytes an operand's copy for the rows of a chunk lies behind that for the chunk before; 0 where all share one.
///
/// Rows of several threads lie side by side in each block of channels, and fetching ahead takes them from one another's caches;
/// copies, each of the whole extents, keep them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copies {
    pub(crate) input: usize,
    pub(crate) residual: usize,
    pub(crate) output: usize,
}

/// A convolution of a chain.
#[derive(Clone, Copy)]
pub(crate) struct Link<'a> {
    pub(crate) plan: &'a ConvPlan,
    pub(crate) args: ConvArgs<'a>,
    pub(crate) copies: Copies,
}

/// Runs convolutions that [follow](ConvPlan::follows) each other, cut as the first of them [says](ConvPlan::row_cut).
///
/// # Safety
/// As for each [`run`](ConvPlan::run), and of each operand with copies there are as many as chunks. None writes what one before
/// it reads or wrote, and none but the first reads what one before it wrote, but as its input. Scratch is that of all of
/// them, and what [`chain_scratch`] says.
pub(crate) unsafe fn run_chain(links: &[Link<'_>], cut: RowCut, team: &Team, scratch: &ScratchPool) {
    // SAFETY: the caller's.
    let help = unsafe { Help::new(scratch.shared().cast(), cut.chunks) };
    let (chain, help) = (&Chain { links, cut }, &help);
    team.parallel(cut.chunks, &|chunk, worker| {
        let units = cut.rows(chunk).flat_map(|_| chain.units());
        help.run(chunk, units, |chunk, stage, units| {
            // SAFETY: the caller's; chunks write different rows, and each unit is computed once.
            unsafe { chain.run(chunk, stage, units, scratch.worker(worker)) };
        });
    });
}

/// What a chain needs beside the scratch of its links.
pub(crate) fn chain_scratch(cut: RowCut) -> ScratchNeed {
    ScratchNeed { per_worker: 0, shared: Help::bytes(cut.chunks) }
}

struct Chain<'a> {
    links: &'a [Link<'a>],
    cut: RowCut,
}

// SAFETY: operands are read, and written in parts that do not overlap.
unsafe impl Sync for Chain<'_> {}

impl Chain<'_> {
    /// Units of each link.
    fn units(&self) -> impl Iterator<Item = usize> {
        self.links.iter().map(|link| link.plan.units())
    }

    /// Units of a link, of a chunk's rows of an item: these are stages, item by item.
    ///
    /// # Safety
    /// As for [`run_chain`]; nobody else writes these, or this scratch, and of the stages before all is written.
    unsafe fn run(&self, chunk: usize, stage: usize, units: &mut dyn Iterator<Item = usize>, scratch: *mut f32) {
        let (piece, link) = (stage / self.links.len(), stage % self.links.len());
        let Some((item, rows)) = self.cut.rows(chunk).nth(piece) else { return };
        let Link { plan, mut args, copies } = self.links[link];
        args.output = args.output.wrapping_byte_add(chunk * copies.output);
        let mut extras = SmallVec::<[*mut u8; 2]>::new();
        if let Some(residual) = plan.residual().filter(|_| copies.residual > 0) {
            extras.extend_from_slice(args.extras);
            extras[residual] = extras[residual].wrapping_add(chunk * copies.residual);
            args.extras = &extras;
        }
        let nest = Nest { args, copies: (copies.input > 0).then_some((self.cut, copies.input)) };
        // SAFETY: the caller's; of the links before, only these rows are read.
        unsafe { plan.rows(&nest, item, rows, units, scratch) };
    }
}
