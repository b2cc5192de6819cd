//! Convolutions that run one behind the other without a join: each but the first reads, of what the one before wrote, only the
//! pixels in the places of those that it writes. Each thread takes the same rows through all of them, and nobody waits.

use super::direct::{Direct, Nest};
use super::{ConvArgs, ConvPlan, Form};
use crate::cpu::drivers::{ScratchPool, Spread, part};
use crate::cpu::team::Team;

/// Most convolutions in a chain.
pub(crate) const MAX_LINKS: usize = 4;

/// Multiply-adds of a thread beside which a join is nothing.
const LARGE: usize = 8 << 20;

/// Fewer rows in a chunk read more rows of others than they are worth.
const LEAST_ROWS: usize = 8;

/// How much longer than others the thread with most rows may take.
const UNEVEN: f64 = 1.08;

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

    /// Whether a team cuts it by rows, evenly, and a join is worth something beside it.
    fn links(&self, threads: usize) -> bool {
        let Some(direct) = self.by_rows() else { return false };
        let grid = &direct.grids[0];
        let (rows, together) = (grid.rows(direct.batch), grid.rows_per_tile);
        let most = (rows.div_ceil(together).div_ceil(threads) * together).min(rows) * threads;
        rows >= threads
            && most as f64 <= UNEVEN * rows as f64
            && self.spread(threads) == Spread::Rows
            && direct.nest(grid, direct.batch).products / threads <= LARGE
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

    /// Bytes of an item of the result.
    pub(crate) fn item_bytes(&self) -> Option<usize> {
        Some(self.by_rows()?.item() * size_of::<f32>())
    }

    /// Rows of an item.
    ///
    /// # Safety
    /// As for [`run`](ConvPlan::run); nobody else writes these rows, or this scratch.
    unsafe fn rows(&self, nest: &Nest<'_>, item: usize, rows: (usize, usize), scratch: *mut f32) {
        // SAFETY: the caller's.
        unsafe {
            match &self.form {
                Form::Direct(direct) => {
                    let first = item * direct.grids[0].count[1];
                    let rows = (first + rows.0, first + rows.1);
                    direct.rows(0, (0, direct.panels()), rows, nest.args.input, nest, scratch);
                }
                Form::Mapped(mapped) => mapped.part(nest, item, rows, (0, mapped.parts()), scratch),
                _ => {}
            }
        }
    }
}

/// A convolution of a chain.
#[derive(Clone, Copy)]
pub(crate) struct Link<'a> {
    pub(crate) plan: &'a ConvPlan,
    pub(crate) args: ConvArgs<'a>,
    /// Where in a worker's scratch its result lies, in bytes, if only the next link reads it.
    pub(crate) own: Option<usize>,
}

/// Runs convolutions that [follow](ConvPlan::follows) each other.
///
/// # Safety
/// As for each [`run`](ConvPlan::run). None writes what one before it reads or wrote, and none but the first reads what one
/// before it wrote, but as its input. Scratch has room for a result that a worker keeps.
pub(crate) unsafe fn run_chain(links: &[Link<'_>], team: &Team, scratch: &ScratchPool) {
    let Some(direct) = links.first().and_then(|link| link.plan.by_rows()) else { return };
    let (grid, threads) = (&direct.grids[0], team.size());
    let (height, together) = (grid.count[1], grid.rows_per_tile);
    let units = height.div_ceil(together);
    let for_each = (direct.batch * height / threads / LEAST_ROWS).clamp(1, 4);
    let chunks = (threads * for_each).min(direct.batch * units);
    let links = &Links(links);
    team.parallel(chunks, &|chunk, worker| {
        let (mut first, end) = part(direct.batch * units, chunk, chunks);
        while first < end {
            let (item, begin) = (first / units, first % units);
            let last = units.min(begin + end - first);
            let rows = (begin * together, (last * together).min(height));
            // SAFETY: the caller's; chunks write different rows.
            unsafe { links.rows(item, rows, scratch.worker(worker)) };
            first += last - begin;
        }
    });
}

struct Links<'a>(&'a [Link<'a>]);

// SAFETY: operands are read, and written in parts that do not overlap.
unsafe impl Sync for Links<'_> {}

impl Links<'_> {
    /// Rows of an item, through all links.
    ///
    /// # Safety
    /// As for [`run_chain`]; nobody else writes these rows, or this scratch.
    unsafe fn rows(&self, item: usize, rows: (usize, usize), scratch: *mut f32) {
        let mut read: Option<*mut f32> = None;
        for link in self.0 {
            let mut args = link.args;
            if let Some(kept) = read {
                args.input = kept;
            }
            // where item 0 would be
            let kept = |direct: &Direct, own: usize| scratch.wrapping_byte_add(own).wrapping_sub(item * direct.item());
            read = link.own.and_then(|own| Some(kept(link.plan.by_rows()?, own)));
            if let Some(kept) = read {
                args.output = kept;
            }
            // SAFETY: the caller's; of the links before, only these rows are read.
            unsafe { link.plan.rows(&Nest { args }, item, rows, scratch) };
        }
    }
}
