//! Binding of products.

use super::element::Factor;
use crate::cpu::drivers::DriverError;
use crate::cpu::drivers::epilogue::{MAX_BATCH, Strides, check_hook};
use crate::cpu::drivers::kernels::{Kernels, check_lanes};
use egret_program::driver::{
    Activation, BatchDim, Bias, Epilogue, Finisher, GemmProblem, GemmSchedule, MatrixForm, Operand, Products,
};
use egret_simd::pack::PanelPacker;
use egret_simd::{Isa, TileKind};

/// Steps between two looks at what to prefetch.
pub(super) const RUN: usize = 32;

/// Where a panel of B comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BSource {
    /// Packed at load.
    Packed,
    /// Packed by the team before the product: several row blocks read each panel.
    Shared,
    /// Packed by the chunk that uses it.
    Local,
    /// Read where it lies (rows of B are contiguous and read once); the last panel is packed if it is partial.
    Raw,
}

/// Where tiles go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// C, by whole vectors.
    Direct,
    /// C, whose columns are not contiguous: element by element.
    Scatter,
    /// The epilogue hook.
    Hook,
    /// Rows in the worker's scratch, then the finisher.
    OwnRows,
    /// Rows in shared scratch, then, when all are complete, the finisher.
    SharedRows,
}

/// A direct epilogue, bound.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) bias: Option<Bias>,
    pub(super) residual: Option<Strides>,
    pub(super) activation: Activation,
}

/// A product of elements of one type whose extents are known.
#[derive(Debug)]
pub(super) struct Plan<E: Factor> {
    /// A and B have exchanged their roles.
    pub(super) swapped: bool,
    pub(super) isa: Isa,
    pub(super) lanes: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a_row: usize,
    pub(super) a_col: usize,
    pub(super) b_row: usize,
    pub(super) b_col: usize,
    pub(super) c_row: usize,
    pub(super) c_col: usize,
    pub(super) batch: Vec<BatchDim>,
    pub(super) items: usize,
    pub(super) m_block: usize,
    pub(super) k_block: usize,
    pub(super) packed_a: bool,
    /// Operands are narrowed to words; then none of A is packed otherwise.
    pub(super) words: Option<E::Narrowed>,
    pub(super) kernels: Kernels<E>,
    pub(super) packer: PanelPacker<E>,
    pub(super) b_source: BSource,
    pub(super) target: Target,
    pub(super) direct: Option<Direct>,
    pub(super) hook_extras: Vec<Strides>,
    pub(super) hook_outs: Vec<Strides>,
    pub(super) one_item_at_a_time: bool,
    /// Elements of shared scratch for packed B, and behind it for rows.
    pub(super) shared_b: usize,
    pub(super) shared_rows: usize,
    /// Offsets of runs of steps in A, for each height of a tile (packed) or at index 0 (read where it lies).
    pub(super) taps: Vec<Vec<usize>>,
}

/// Parts of a worker's scratch, in elements.
pub(super) struct WorkerLayout {
    pub(super) b: usize,
    pub(super) sums: usize,
    pub(super) rows: usize,
    pub(super) total: usize,
}

impl<E: Factor> Plan<E> {
    /// Binds; see [`GemmPlan::new`](super::GemmPlan::new).
    pub(super) fn new(problem: &GemmProblem, schedule: &GemmSchedule, isa: Isa) -> Result<Plan<E>, DriverError> {
        let lanes = isa.lanes::<E>();
        check_lanes(isa, schedule.lanes, lanes)?;
        if problem.batch.len() > MAX_BATCH {
            return Err(DriverError::Unsupported("more than 6 batch dims"));
        }
        let swapped = transposed(problem);
        let p = swapped.as_ref().unwrap_or(problem);
        let panels = p.n.div_ceil(2 * lanes);
        let items = p.batch.iter().map(|d| d.extent).product();
        let of_words = matches!(schedule.products, Products::Words(_));
        if of_words && (p.b != MatrixForm::Packed || lanes != 16) {
            return Err(DriverError::Unsupported("products of words but by packed AVX-512 panels"));
        }
        let packed_a = panels >= 3 && p.m > 4 && !of_words;
        let kind = match p.m {
            _ if packed_a => TileKind::Packed,
            1..=3 => TileKind::Few,
            _ => TileKind::Table,
        };
        let (kernels, words) = E::bind(schedule.products, p.k, isa, kind)?;
        let tile = kernels.max_rows();
        let m_block = match swapped {
            Some(_) => GemmSchedule::choose(p, schedule.products, isa.lanes_f32()).m_block,
            None => schedule.m_block,
        };
        let m_block = m_block.clamp(1, p.m.max(1));
        let row_blocks = p.m.div_ceil(m_block);
        let b_source = match p.b {
            MatrixForm::Packed => BSource::Packed,
            MatrixForm::Strided if p.m <= tile && p.b_col == 1 => BSource::Raw,
            MatrixForm::Strided if row_blocks == 1 => BSource::Local,
            MatrixForm::Strided => BSource::Shared,
        };
        if schedule.products.is_integer()
            && matches!(p.epilogue, Epilogue::Direct { activation, .. } if activation != Activation::None)
        {
            return Err(DriverError::Unsupported("an activation of integers in registers"));
        }
        let mut c_batch = [0; MAX_BATCH];
        for (to, d) in c_batch.iter_mut().zip(&p.batch) {
            *to = d.c;
        }
        let bound = bind(p, &c_batch, size_of::<E>() as u8)?;
        let target = match (&p.finisher, &p.epilogue) {
            (Some(_), Epilogue::Hook { .. }) => {
                return Err(DriverError::Unsupported("a hook together with a finisher"));
            }
            (Some(_), _) if row_blocks >= 8 => Target::OwnRows,
            (Some(_), _) => Target::SharedRows,
            (None, Epilogue::Hook { .. }) => Target::Hook,
            (None, _) if p.c_col == 1 || p.n == 1 => Target::Direct,
            (None, _) => Target::Scatter,
        };
        if target == Target::Scatter && bound.direct.as_ref().is_some_and(|d| d.residual.is_some()) {
            return Err(DriverError::Unsupported("a residual where neither stride of C is 1"));
        }
        if !matches!(target, Target::Direct | Target::Scatter) && p.c_col != 1 && p.n > 1 {
            return Err(DriverError::Unsupported("a hook on an output whose columns are not contiguous"));
        }
        let padded = panels * 2 * lanes;
        let shared_b = if b_source == BSource::Shared { padded * p.k } else { 0 };
        let shared_rows = if target == Target::SharedRows { padded * p.m } else { 0 };
        let k_block = schedule.k_block.max(1);
        let runs = k_block.min(p.k).div_ceil(RUN);
        let taps = if packed_a {
            (0..=tile).map(|rows| (0..runs).map(|i| i * RUN * rows).collect()).collect()
        } else {
            vec![(0..runs).map(|i| i * RUN * p.a_col).collect()]
        };
        Ok(Plan {
            swapped: swapped.is_some(),
            isa,
            lanes,
            m: p.m,
            n: p.n,
            k: p.k,
            a_row: p.a_row,
            a_col: p.a_col,
            b_row: p.b_row,
            b_col: p.b_col,
            c_row: p.c_row,
            c_col: p.c_col,
            batch: p.batch.clone(),
            items,
            m_block,
            k_block,
            packed_a,
            words,
            kernels,
            packer: PanelPacker::new(isa).ok_or(DriverError::Unsupported("this instruction set"))?,
            b_source,
            target,
            direct: bound.direct,
            hook_extras: bound.extras,
            hook_outs: bound.outs,
            one_item_at_a_time: b_source == BSource::Shared || target == Target::SharedRows,
            shared_b,
            shared_rows,
            taps,
        })
    }

    pub(super) fn width(&self) -> usize {
        2 * self.lanes
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(self.width())
    }

    pub(super) fn worker_layout(&self) -> WorkerLayout {
        let a = match &self.words {
            Some(words) => E::scratch(words, self.m_block),
            None if self.packed_a => self.m_block.next_multiple_of(16) * self.k,
            None => 0,
        };
        let local_b = matches!(self.b_source, BSource::Local | BSource::Raw);
        let b = if local_b { self.k * self.width() } else { 0 };
        let blocks = self.k > self.k_block && self.words.is_none();
        let staged = matches!(self.target, Target::Hook | Target::Scatter);
        let sums = if blocks || staged { self.m_block * self.width() } else { 0 };
        let own = self.target == Target::OwnRows;
        let rows = if own { self.m_block * self.panels() * self.width() } else { 0 };
        WorkerLayout { b: a, sums: a + b, rows: a + b + sums, total: a + b + sums + rows }
    }

    /// Index of a batch item in each batch dim.
    pub(super) fn batch_index(&self, item: usize) -> [usize; MAX_BATCH] {
        let mut index = [0; MAX_BATCH];
        let mut rest = item;
        for (to, dim) in index.iter_mut().zip(&self.batch).rev() {
            *to = rest % dim.extent;
            rest /= dim.extent;
        }
        index
    }

    /// Offset of a batch item in an operand.
    pub(super) fn offset(&self, item: usize, stride: impl Fn(&BatchDim) -> usize) -> usize {
        let index = self.batch_index(item);
        self.batch.iter().zip(index).map(|(d, i)| i * stride(d)).sum()
    }

    /// # Safety
    /// `b` is that of the batch item, `to` writable for `k` rows of a panel.
    pub(super) unsafe fn pack_panel(&self, b: *const E, panel: usize, to: *mut E) {
        let width = self.width();
        let columns = (self.n - panel * width).min(width);
        let from = b.wrapping_add(panel * width * self.b_col);
        // SAFETY: the caller's.
        unsafe { self.packer.panel(to, width, from, self.b_row, self.b_col, self.k, columns) }
    }
}

struct BoundEpilogue {
    direct: Option<Direct>,
    extras: Vec<Strides>,
    outs: Vec<Strides>,
}

fn bind(p: &GemmProblem, c_batch: &[usize; MAX_BATCH], element: u8) -> Result<BoundEpilogue, DriverError> {
    let list = |operands: &[Operand], bytes: &[u8]| -> Result<Vec<Strides>, DriverError> {
        let strides = |(o, b): (&Operand, &u8)| Strides::of_product(o, *b, c_batch, p.c_row);
        operands.iter().zip(bytes).map(strides).collect()
    };
    let mut bound = BoundEpilogue { direct: None, extras: vec![], outs: vec![] };
    match &p.epilogue {
        Epilogue::Direct { bias, residual, activation } => {
            let residual = match residual {
                None => None,
                Some(r) => {
                    let strides = Strides::of_product(r, element, c_batch, p.c_row)?;
                    if strides.col != 1 {
                        return Err(DriverError::Unsupported("a residual that is not contiguous"));
                    }
                    Some(strides)
                }
            };
            bound.direct = Some(Direct { bias: *bias, residual, activation: *activation });
        }
        Epilogue::Hook { extras, outs, element_bytes } => {
            check_hook(extras.len(), outs.len(), element_bytes)?;
            bound.extras = list(extras, element_bytes)?;
            bound.outs = list(outs, &element_bytes[extras.len()..])?;
        }
    }
    if let Some(Finisher { extras, outs, element_bytes }) = &p.finisher {
        check_hook(extras.len(), outs.len(), element_bytes)?;
        bound.extras = list(extras, element_bytes)?;
        bound.outs = list(outs, &element_bytes[extras.len()..])?;
    }
    Ok(bound)
}

/// The same product with the roles of A and B exchanged, where that makes the columns of C contiguous.
fn transposed(p: &GemmProblem) -> Option<GemmProblem> {
    let narrow = p.n == 1 && p.m > 1 && p.c_row == 1;
    let tall = p.c_col != 1 && p.n > 1 && (p.c_row == 1 || p.m == 1);
    let wanted = narrow || tall;
    let Epilogue::Direct { bias, residual, activation } = &p.epilogue else {
        return None;
    };
    if !wanted || p.b == MatrixForm::Packed || p.finisher.is_some() {
        return None;
    }
    let residual = match residual {
        Some(Operand::Strided { batch, row, col }) => {
            Some(Operand::Strided { batch: batch.clone(), row: *col, col: *row })
        }
        other => other.clone(),
    };
    let bias = bias.map(|b| match b {
        Bias::PerColumn => Bias::PerRow,
        Bias::PerRow => Bias::PerColumn,
    });
    Some(GemmProblem {
        batch: p.batch.iter().map(|d| BatchDim { extent: d.extent, a: d.b, b: d.a, c: d.c }).collect(),
        m: p.n,
        n: p.m,
        k: p.k,
        a_row: p.b_col,
        a_col: p.b_row,
        b: MatrixForm::Strided,
        b_row: p.a_col,
        b_col: p.a_row,
        c_row: p.c_col,
        c_col: 1,
        epilogue: Epilogue::Direct { bias, residual, activation: *activation },
        finisher: None,
    })
}
