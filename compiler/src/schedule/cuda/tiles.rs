//! Schedules of products in stages: plain data, chosen from extents and the device's description.

use std::fmt;

use egret_ir::{DType, Dim, Op};
use egret_program::DeviceDescription;
use serde::{Deserialize, Serialize};

use super::problem::{Problem, Which};
use super::{F32Products, Target, expected};
use crate::kernel::MatrixKind;
use crate::schedule::scope::Scope;

/// Columns of a warp's tile.
pub const WARP_COLUMNS: i64 = 32;
/// Bytes of a stage's terms of a row.
const STEP_BYTES: i64 = 64;
/// Registers of a thread that schedules are made for: two blocks of 256 threads fit.
const REGISTERS: i64 = 128;
/// Nanoseconds from a copy's start to its arrival when it comes from the second cache.
const LATENCY: f64 = 600.0;
/// Operations of a thread that brings what lies side by side into shared memory: its place, its bounds, a copy; and where
/// the term, or the column, is divided into channel and taps for it.
const BRINGS: (f64, f64) = (12.0, 40.0);
/// Rows and columns of a thread that multiplies by itself.
pub const OWN: i64 = 8;
/// Its block: rows, columns, terms of a stage, stages.
const FMA_TILE: (i64, i64, i64, i64) = (128, 128, 8, 4);
/// Shares of the peak that multiply-adds reach in those tiles, and in tiles of 64 × 64 with a stage.
const FMA_SHARES: (f64, f64) = (0.8, 0.4);
/// Parts that a sum may be split into.
const MAX_SPLITS: i64 = 16;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Tensor cores.
    Matrix(MatrixKind),
    /// Fused multiply-adds of `f32`: a thread has [`OWN`] × [`OWN`] sums.
    Fma,
}

impl Engine {
    /// Type of a register of an operand.
    pub fn word(self) -> DType {
        match self {
            Engine::Matrix(kind) => kind.word(),
            Engine::Fma => DType::F32,
        }
    }

    /// Time of its products, in units of those of halves by tensor cores.
    pub fn slower(self, device: &DeviceDescription) -> f64 {
        match self {
            Engine::Matrix(MatrixKind::F16 | MatrixKind::BF16) => 1.0,
            Engine::Matrix(MatrixKind::Tf32) => 2.0,
            Engine::Matrix(MatrixKind::Tf32x3) => 6.0,
            Engine::Matrix(MatrixKind::Int8 { .. }) => 0.5,
            Engine::Fma => device.block_limits().2 / device.core_gflops,
        }
    }

    /// Type of a sum.
    pub fn sum(self) -> DType {
        match self {
            Engine::Matrix(kind) => kind.sum(),
            Engine::Fma => DType::F32,
        }
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// What multiplies.
    pub engine: Engine,
    /// Rows of a block.
    pub rows: i64,
    /// Columns of a block.
    pub columns: i64,
    /// Terms of the sum in a stage.
    pub step: i64,
    /// Rows of a warp of tensor cores.
    pub warp_rows: i64,
    /// Stages in shared memory: all but one are on their way while one is multiplied.
    pub stages: i64,
    /// Parts of the sum, each of a block of its own.
    pub splits: i64,
    /// Rows of tiles that blocks go through together, column by column, so that what runs at once shares more of both
    /// sides in the second cache; 1: row by row.
    pub band: i64,
}

/// Numbers of stages that may be measured; the model's choice has the first.
const STAGES: [i64; 3] = [3, 4, 2];
/// Rows and columns of other blocks of multiply-adds.
const FMA_SIDES: [(i64, i64); 4] = [(128, 128), (128, 64), (64, 128), (64, 64)];

/// Rows and columns of a block, and rows of a warp; where equally good, the first is taken.
const CANDIDATES: [(i64, i64, i64); 6] =
    [(128, 128, 64), (128, 64, 64), (64, 128, 64), (64, 64, 32), (128, 32, 32), (32, 128, 32)];

impl Tiles {
    /// Threads of a block.
    pub fn threads(&self) -> i64 {
        match self.engine {
            Engine::Matrix(_) => self.rows / self.warp_rows * (self.columns / WARP_COLUMNS) * 32,
            Engine::Fma => self.rows / OWN * (self.columns / OWN),
        }
    }

    /// Bytes of shared memory of a block, for elements of `size` bytes.
    pub fn shared_bytes(&self, size: usize) -> i64 {
        (self.rows + self.columns) * self.step * self.stages * size as i64
    }
}

/// Extents of a product, as a schedule sees them.
#[derive(Clone, Copy, Debug)]
pub struct Extents {
    /// Independent products.
    pub batch: i64,
    /// Rows.
    pub rows: i64,
    /// Columns.
    pub columns: i64,
    /// Terms of the sum.
    pub sums: i64,
}

impl Extents {
    /// Whether of a matrix of 16 × 8 most would be padding.
    pub fn is_thin(&self) -> bool {
        self.rows < 8 || self.columns < 8
    }
}

/// How tensor cores multiply floats; `None`: they do not.
pub fn matrix_kind(dtype: DType, products: F32Products) -> Option<MatrixKind> {
    match (dtype, products) {
        (DType::F16, _) => Some(MatrixKind::F16),
        (DType::BF16, _) => Some(MatrixKind::BF16),
        (DType::F32, F32Products::Tf32) => Some(MatrixKind::Tf32),
        (DType::F32, F32Products::Tf32x3) => Some(MatrixKind::Tf32x3),
        _ => None,
    }
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tiles { engine, rows, columns, step, warp_rows, stages, splits, band } = self;
        let engine = match engine {
            Engine::Matrix(kind) => kind.name(),
            Engine::Fma => "fma",
        };
        write!(f, "{engine} {rows}x{columns}x{step} warps of {warp_rows} stages {stages} splits {splits} band {band}")
    }
}

/// What the schedule of a problem in stages is chosen by.
struct Facts {
    /// `None`: multiply-adds.
    kind: Option<MatrixKind>,
    /// Bytes of an element.
    size: usize,
    extents: Extents,
    /// What the sides ask of tiles.
    sides: Sides,
}

/// How the sides of a product lie, as far as tiles depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Sides {
    /// Rows and columns that a tile has at least.
    pub least: (i64, i64),
    /// Elements of the left and of the right side that are brought at once.
    pub widths: (i64, i64),
    /// Whether a place of them is divided into channel and taps.
    pub divided: (bool, bool),
}

impl Sides {
    /// Sides that are brought by 16 bytes, of elements of `size`.
    pub fn whole(size: usize) -> Sides {
        let width = 16 / size as i64;
        Sides { least: (0, 0), widths: (width, width), divided: (false, false) }
    }
}

impl Facts {
    /// `None` where a problem has tiles of one stage alone ([`super::fma`]).
    fn new(scope: &Scope, problem: &Problem, target: &Target) -> Option<Facts> {
        let graph = scope.graph;
        let node = graph.node(problem.id);
        let dtypes = [0, 1].map(|i| graph.tensor_type(node.operands[i]).dtype);
        let signed = |which| match problem.side_dtype(scope, which) {
            DType::I8 => Some(true),
            DType::U8 => Some(false),
            _ => None,
        };
        let kind = match dtypes[0] {
            DType::I8 | DType::U8 if problem.is_wide(scope) => {
                Some(MatrixKind::Int8 { signed: [signed(Which::Left)?, signed(Which::Right)?] })
            }
            DType::F32 if target.exact => None,
            DType::F32 | DType::F16 | DType::BF16 => matrix_kind(dtypes[0], target.products),
            _ => return None,
        };
        // a row operator needs whole rows of results, which the other engine has
        let whole_rows = matches!(&node.op, Op::Fused(fused) if fused.rows.is_some());
        let alike = dtypes[0] == dtypes[1] || problem.is_wide(scope);
        if !alike || whole_rows {
            return None;
        }
        let extent = |parts: &[Dim]| expected(&parts.iter().fold(Dim::ONE, |n, d| n * d.clone())).max(1);
        let extents = Extents {
            batch: extent(&problem.batch),
            rows: extent(&problem.rows),
            columns: extent(&problem.columns),
            sums: extent(&problem.sums),
        };
        if kind.is_some() && extents.is_thin() {
            return None;
        }
        let size = dtypes[0].size();
        let width = |which| problem.neighbours(scope, which, 16 / size as i64).1;
        let divided = |which| problem.is_divided(which, step(size));
        let sides = Sides {
            least: kind.map_or((0, 0), |kind| least(scope, problem, kind)),
            widths: (width(Which::Left), width(Which::Right)),
            divided: (divided(Which::Left), divided(Which::Right)),
        };
        Some(Facts { kind, size, extents, sides })
    }

    fn choose(&self, device: &DeviceDescription) -> Option<Tiles> {
        let tiles = match self.kind {
            None => multiply_adds(self.extents, device)?,
            Some(kind) => best(kind, self.size, self.extents, self.sides, device),
        };
        Some(self.banded(tiles, device))
    }

    fn banded(&self, tiles: Tiles, device: &DeviceDescription) -> Tiles {
        Tiles { band: band(&tiles, self.size, self.extents, device), ..tiles }
    }
}

/// The schedule of a problem; `None` where it is computed in tiles of one stage ([`super::fma`]).
pub fn choose(scope: &Scope, problem: &Problem, target: &Target) -> Option<Tiles> {
    Facts::new(scope, problem, target)?.choose(target.device)
}

/// All schedules of a problem: [`choose`]'s, then the others, of tensor cores the fastest by the model first. `None` is
/// tiles of one stage.
pub fn ranked(scope: &Scope, problem: &Problem, target: &Target) -> Vec<Option<Tiles>> {
    let device = target.device;
    let Some(facts) = Facts::new(scope, problem, target) else { return vec![None] };
    let own = facts.choose(device);
    let mut others: Vec<Option<Tiles>> = match facts.kind {
        None => std::iter::once(None).chain(fma_tiles(facts.extents).map(Some)).collect(),
        Some(kind) => {
            let mut timed: Vec<(f64, Tiles)> =
                tensor_tiles(kind, facts.size, facts.extents, facts.sides.least, &STAGES)
                    .filter(|tiles| tiles.shared_bytes(facts.size) <= i64::from(device.block_limits().0))
                    .map(|tiles| (time(&tiles, facts.size, facts.extents, &facts.sides, device), tiles))
                    .collect();
            timed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            timed.into_iter().map(|(_, tiles)| Some(tiles)).collect()
        }
    };
    others.iter_mut().flatten().for_each(|tiles| *tiles = facts.banded(*tiles, device));
    others.retain(|tiles| *tiles != own);
    std::iter::once(own).chain(others).collect()
}

/// Rows and columns that a tile has at least: lines of bytes that lie along these are of 64, so that the loads of a warp
/// find all banks.
fn least(scope: &Scope, problem: &Problem, kind: MatrixKind) -> (i64, i64) {
    let along_terms = |which| problem.neighbours(scope, which, 16).0;
    let of = |which| match kind {
        MatrixKind::Int8 { .. } if !along_terms(which) => 64,
        _ => 0,
    };
    (of(Which::Left), of(Which::Right))
}

/// Blocks of a multiprocessor at once.
fn resident(tiles: &Tiles, size: usize, device: &DeviceDescription) -> i64 {
    let (shared, registers, _) = device.block_limits();
    let by_memory = i64::from(shared) / tiles.shared_bytes(size).max(1);
    let by_registers = i64::from(registers) / (tiles.threads() * REGISTERS);
    by_memory.min(by_registers).max(1)
}

/// The rows of tiles of a band: as many as let the blocks that run at once read the fewest rows and columns, where that is
/// a quarter less than row by row.
pub fn band(tiles: &Tiles, size: usize, extents: Extents, device: &DeviceDescription) -> i64 {
    let ceil = |a: i64, b: i64| (a + b - 1) / b;
    let (rows, columns) = (ceil(extents.rows, tiles.rows), ceil(extents.columns, tiles.columns));
    let wave = (i64::from(device.cores.max(1)) * resident(tiles, size, device)).min(rows * columns);
    let read = |band: i64| {
        let band = band.min(rows);
        let bands = ceil(wave, band * columns);
        (bands * band).min(rows) * tiles.rows + ceil(wave, band).min(columns) * tiles.columns
    };
    let by_row = ceil(wave, columns) * tiles.rows + wave.min(columns) * tiles.columns;
    let best = [4, 8, 16, 32].into_iter().min_by_key(|band| read(*band)).unwrap_or(1);
    if rows > 1 && 4 * read(best) <= 3 * by_row { best } else { 1 }
}

/// Large tiles of multiply-adds, where they are faster than those of 64 × 64.
pub fn multiply_adds(extents: Extents, device: &DeviceDescription) -> Option<Tiles> {
    let (rows, columns, step, stages) = FMA_TILE;
    // waves of blocks, each with the products of a whole tile
    let time = |side: (i64, i64), resident: i64, share: f64| {
        let ceil = |a: i64, b: i64| (a + b - 1) / b;
        let blocks = extents.batch * ceil(extents.rows, side.0) * ceil(extents.columns, side.1);
        let cores = i64::from(device.cores.max(1));
        let active = resident.min(ceil(blocks, cores));
        (ceil(blocks, cores * resident) * active * side.0 * side.1) as f64 / share
    };
    let (large, small) = FMA_SHARES;
    let wins = time((rows, columns), 2, large) < time((64, 64), 4, small);
    let tiles = Tiles { engine: Engine::Fma, rows, columns, step, warp_rows: 64, stages, splits: 1, band: 1 };
    (wins && has_stages(extents)).then_some(tiles)
}

/// Whether sums are long enough for the stages of multiply-adds.
fn has_stages(extents: Extents) -> bool {
    let (_, _, step, _) = FMA_TILE;
    extents.sums >= 4 * step
}

/// Blocks of multiply-adds in stages.
fn fma_tiles(extents: Extents) -> impl Iterator<Item = Tiles> {
    let (_, _, step, stages) = FMA_TILE;
    FMA_SIDES.into_iter().filter(move |_| has_stages(extents)).map(move |(rows, columns)| Tiles {
        engine: Engine::Fma,
        rows,
        columns,
        step,
        warp_rows: 64,
        stages,
        splits: 1,
        band: 1,
    })
}

/// Blocks of tensor cores with so many stages, of at least so many rows and columns.
fn tensor_tiles(
    kind: MatrixKind,
    size: usize,
    extents: Extents,
    least: (i64, i64),
    stages: &[i64],
) -> impl Iterator<Item = Tiles> {
    let step = step(size);
    let steps = (extents.sums + step - 1) / step;
    let splits = move || (0..).map(|n| 1 << n).take_while(move |s| *s <= MAX_SPLITS && (*s == 1 || steps / *s >= 4));
    let sides = CANDIDATES.into_iter().filter(move |(m, n, _)| *m >= least.0 && *n >= least.1);
    let engine = Engine::Matrix(kind);
    sides.flat_map(move |(rows, columns, warp_rows)| {
        splits().flat_map(move |splits| {
            stages.iter().map(move |stages| Tiles {
                engine,
                rows,
                columns,
                step,
                warp_rows,
                stages: *stages,
                splits,
                band: 1,
            })
        })
    })
}

/// Terms of a stage, of elements of `size` bytes.
pub fn step(size: usize) -> i64 {
    STEP_BYTES / size as i64
}

/// The fastest schedule by [`time`], of tiles of at least so many rows and columns.
pub fn best(kind: MatrixKind, size: usize, extents: Extents, sides: Sides, device: &DeviceDescription) -> Tiles {
    let step = step(size);
    let mut found: Option<(f64, Tiles)> = None;
    for tiles in tensor_tiles(kind, size, extents, sides.least, &STAGES[..1]) {
        let time = time(&tiles, size, extents, &sides, device);
        if found.is_none_or(|(best, _)| time < best) {
            found = Some((time, tiles));
        }
    }
    let engine = Engine::Matrix(kind);
    let any = Tiles { engine, rows: 64, columns: 64, step, warp_rows: 32, stages: 3, splits: 1, band: 1 };
    found.map_or(any, |(_, tiles)| tiles)
}

/// Modelled nanoseconds: waves of blocks, each as long as its products, its copies from the second cache, what its threads
/// do to bring these, or their latency, whichever is the longest; and the parts of a split sum, written and read, with a
/// launch. What comes in less than four bytes at once is waited for in every step.
pub fn time(tiles: &Tiles, size: usize, extents: Extents, sides: &Sides, device: &DeviceDescription) -> f64 {
    let ceil = |a: i64, b: i64| (a + b - 1) / b;
    let cores = i64::from(device.cores.max(1));
    let (_, _, rate) = device.block_limits();
    let blocks = extents.batch * ceil(extents.rows, tiles.rows) * ceil(extents.columns, tiles.columns) * tiles.splits;
    let resident = resident(tiles, size, device);
    let active = resident.min(ceil(blocks, cores)) as f64;
    let waves = ceil(blocks, cores * resident) as f64;
    let steps = ceil(ceil(extents.sums, tiles.step), tiles.splits) as f64;
    let (rows, columns, step) = (tiles.rows as f64, tiles.columns as f64, tiles.step as f64);
    let slower = tiles.engine.slower(device);
    let products = 2.0 * rows * columns * step * steps * active * slower / rate;
    let copies = (rows + columns) * step * size as f64 * steps * active * cores as f64 / device.cache_gbps;
    let bring = |extent: f64, width: i64, divided: bool| {
        extent / width.max(1) as f64 * if divided { BRINGS.1 } else { BRINGS.0 }
    };
    let brought = bring(rows, sides.widths.0, sides.divided.0) + bring(columns, sides.widths.1, sides.divided.1);
    // a multiply-add counts as two
    let threads = brought * step * steps * active / (device.core_gflops / 2.0);
    let latency = match sides.widths.0.min(sides.widths.1) * size as i64 {
        ..4 => LATENCY * steps + products / active,
        _ => LATENCY * steps / (tiles.stages - 1) as f64,
    };
    let parts = if tiles.splits > 1 {
        let elements = (extents.batch * extents.rows * extents.columns) as f64;
        2.0 * 4.0 * elements * tiles.splits as f64 / device.memory_gbps + 1e3 * device.launch_us
    } else {
        0.0
    };
    waves * products.max(copies).max(threads).max(latency) + parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(batch: i64, rows: i64, columns: i64, sums: i64, device: &str) -> Tiles {
        let device = DeviceDescription::named(device).unwrap();
        best(MatrixKind::BF16, 2, Extents { batch, rows, columns, sums }, Sides::whole(2), &device)
    }

    #[test]
    fn large_products_have_large_tiles_and_small_grids_split_their_sums() {
        for device in ["a100", "h200"] {
            let large = of(1, 4096, 4096, 4096, device);
            assert_eq!((large.rows, large.columns, large.splits), (128, 128, 1), "{device}");
            let deep = of(1, 128, 128, 16384, device);
            assert!(deep.splits >= 8, "{device}: {deep:?}");
            let narrow = of(1, 16, 4096, 4096, device);
            assert_eq!(narrow.rows, 32, "{device}: {narrow:?}");
        }
    }

    #[test]
    fn large_tiles_of_multiply_adds_need_large_products() {
        let device = DeviceDescription::named("a100").unwrap();
        let of = |n| multiply_adds(Extents { batch: 1, rows: n, columns: n, sums: n }, &device);
        assert!(of(2048).is_some());
        assert_eq!(of(256), None);
    }

    #[test]
    fn large_grids_go_by_bands() {
        let device = DeviceDescription::named("a100").unwrap();
        let banded = |n: i64| {
            let extents = Extents { batch: 1, rows: n, columns: n, sums: 4096 };
            band(&best(MatrixKind::BF16, 2, extents, Sides::whole(2), &device), 2, extents, &device)
        };
        assert!(banded(8192) >= 8);
        // all blocks run at once
        assert_eq!(banded(1024), 1);
    }

    #[test]
    fn the_choice_follows_the_description() {
        let device = DeviceDescription::named("a100").unwrap();
        let extents = Extents { batch: 1, rows: 1024, columns: 1024, sums: 1024 };
        let choices: Vec<Tiles> = [8, 32, 108, 400]
            .map(|cores| {
                best(MatrixKind::BF16, 2, extents, Sides::whole(2), &DeviceDescription { cores, ..device.clone() })
            })
            .to_vec();
        assert!(choices.windows(2).any(|pair| pair[0] != pair[1]), "{choices:?}");
    }
}
