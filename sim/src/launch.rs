//! Launches: options, arguments, and the blocks one after the other.

use crate::block::Block;
use crate::count::LineStats;
use crate::error::{Fault, FaultKind};
use crate::inst::Space;
use crate::memory::Memory;
use crate::module::{Entry, Module, Symbol};
use crate::shadow::Shadow;

/// In which order warps, and blocks, run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WarpOrder {
    /// From the first; each until it waits.
    #[default]
    Forward,
    /// From the last; each until it waits.
    Reverse,
    /// By chance, and for a few instructions at a time.
    Seeded(u64),
}

/// Which faults are looked for. Bounds, alignment and barriers always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Races between threads, and between blocks.
    pub races: bool,
    /// Uses of what was read from shared and local memory that nothing wrote.
    pub uninitialised: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self { races: true, uninitialised: true }
    }
}

/// How a kernel is run.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// Order of warps and blocks.
    pub warp_order: WarpOrder,
    /// What is checked.
    pub checks: Checks,
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// The blocks to run; all where it is `None`.
    pub blocks: Option<Vec<[u32; 3]>>,
    /// Asynchronous copies are done as late as their waits allow, else at once: a kernel must be right either way.
    pub late: bool,
    /// The most warp instructions.
    pub max_steps: u64,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        Self {
            warp_order: WarpOrder::Forward,
            checks: Checks::default(),
            dynamic_shared: 0,
            blocks: None,
            late: false,
            max_steps: 1 << 32,
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Arg {
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    F64(f64),
    /// An address that [`Memory::allocate`] gave.
    Pointer(u64),
    /// The bytes of a structure.
    Bytes(Vec<u8>),
}

impl Arg {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::U32(value) => value.to_le_bytes().into(),
            Self::I32(value) => value.to_le_bytes().into(),
            Self::F32(value) => value.to_le_bytes().into(),
            Self::F64(value) => value.to_le_bytes().into(),
            Self::U64(value) | Self::Pointer(value) => value.to_le_bytes().into(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// What a launch cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Warp instructions.
    pub executed: u64,
    /// 32-byte sectors of global memory.
    pub sectors: u64,
    /// Passes over the banks of shared memory.
    pub wavefronts: u64,
    /// By instruction that ran, in the text's order.
    pub lines: Vec<LineStats>,
}

impl Report {
    /// The counts of a line of the text.
    pub fn line(&self, line: u32) -> Option<&LineStats> {
        self.lines.iter().find(|stats| stats.line == line)
    }
}

/// What all blocks of a launch share.
pub(crate) struct Launch<'a> {
    pub module: &'a Module,
    pub entry: &'a Entry,
    pub memory: &'a mut Memory,
    pub options: &'a LaunchOptions,
    pub grid: [u32; 3],
    pub dims: [u32; 3],
    pub params: Vec<u8>,
    pub symbols: Vec<u64>,
    pub shared_bytes: usize,
    pub shadow: Shadow,
    pub stats: Vec<LineStats>,
    pub steps: u64,
    pub random: u64,
}

impl Launch<'_> {
    /// The next number of a splitmix64 sequence.
    pub fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

const MAX_SHARED: usize = 232_448;

impl Module {
    /// Runs a kernel.
    pub fn launch(
        &self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        args: &[Arg],
        memory: &mut Memory,
        options: &LaunchOptions,
    ) -> Result<Report, Fault> {
        let refuse = |message: String| Fault {
            kind: FaultKind::Launch(message),
            line: 0,
            text: String::new(),
            block: [0; 3],
            thread: [0; 3],
        };
        let entry = self.entry(entry).ok_or_else(|| refuse(format!("no entry `{entry}`")))?;
        let threads = block.iter().map(|&n| u64::from(n)).try_fold(1u64, u64::checked_mul).unwrap_or(u64::MAX);
        let most = entry.max_threads.unwrap_or(1024).min(1024);
        if threads == 0 || threads > most.into() {
            return Err(refuse(format!("{threads} threads in a block, of 1 to {most}")));
        }
        let fits = grid.iter().all(|&n| n > 0) && grid[0] <= i32::MAX as u32 && grid[1] <= 65535 && grid[2] <= 65535;
        if !fits {
            return Err(refuse(format!("grid {grid:?}")));
        }
        let dynamic = entry.shared_bytes.next_multiple_of(16);
        let shared_bytes = if options.dynamic_shared == 0 {
            entry.shared_bytes
        } else {
            dynamic.saturating_add(options.dynamic_shared)
        };
        if shared_bytes > MAX_SHARED {
            return Err(refuse(format!("{shared_bytes} bytes of shared memory, of at most {MAX_SHARED}")));
        }
        if args.len() != entry.params.len() {
            return Err(refuse(format!("{} arguments for {} parameters", args.len(), entry.params.len())));
        }
        let mut params = vec![0; entry.param_bytes];
        for (param, arg) in entry.params.iter().zip(args) {
            let bytes = arg.bytes();
            if bytes.len() != param.bytes {
                return Err(refuse(format!("{} bytes for `{}`, which has {}", bytes.len(), param.name, param.bytes)));
            }
            params[param.offset..param.offset + param.bytes].copy_from_slice(&bytes);
        }
        let globals: Vec<u64> =
            self.globals.iter().map(|global| memory.variable(&global.name, &global.data, global.constant)).collect();
        let symbols = entry.symbols.iter().map(|symbol| match *symbol {
            Symbol::Offset(Space::Shared | Space::Local | Space::Param, offset) => offset,
            Symbol::Offset(_, offset) => offset,
            Symbol::Dynamic => dynamic as u64,
            Symbol::Global(index) => globals[index],
        });
        let symbols = symbols.collect();
        let stat = |inst: &crate::inst::Inst| LineStats { line: inst.line, source: inst.source, ..Default::default() };
        let stats = entry.insts.iter().map(stat).collect();
        let random = if let WarpOrder::Seeded(seed) = options.warp_order { seed } else { 0 };
        let (shadow, steps) = (Shadow::default(), 0);
        let mut launch = Launch {
            module: self,
            entry,
            memory,
            options,
            grid,
            dims: block,
            params,
            symbols,
            shared_bytes,
            shadow,
            stats,
            steps,
            random,
        };
        let total = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        match &options.blocks {
            Some(blocks) => {
                for &at in blocks {
                    if (0..3).any(|axis| at[axis] >= grid[axis]) {
                        return Err(refuse(format!("block {at:?} of grid {grid:?}")));
                    }
                    Block::new(&launch, at).run(&mut launch)?;
                }
            }
            None => {
                // A seeded order starts somewhere else and goes round.
                let start = if random == 0 { 0 } else { launch.random() % total };
                for index in 0..total {
                    let index = match options.warp_order {
                        WarpOrder::Reverse => total - 1 - index,
                        _ => (start + index) % total,
                    };
                    let (x, y) = (u64::from(grid[0]), u64::from(grid[1]));
                    let at = [index % x, index / x % y, index / x / y].map(|n| n as u32);
                    Block::new(&launch, at).run(&mut launch)?;
                }
            }
        }
        let mut report = Report { executed: launch.steps, ..Default::default() };
        report.lines = launch.stats.into_iter().filter(|stats| stats.executed > 0).collect();
        report.sectors = report.lines.iter().map(|stats| stats.sectors).sum();
        report.wavefronts = report.lines.iter().map(|stats| stats.wavefronts).sum();
        Ok(report)
    }
}
