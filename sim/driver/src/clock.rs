//! The clock of simulated GPUs: modelled nanoseconds, the same on every host and in every run.
//!
//! A multiprocessor issues warp instructions, passes over the banks of its shared memory, and the GPU moves sectors; a kernel
//! takes as long as the slowest of the three, the busiest multiprocessor counted. A product of matrices is one
//! instruction like any other: such times compare schedules of one engine, and tell nothing of a real GPU.

use egret_sim::Report;

/// Warp instructions that a multiprocessor issues in a nanosecond.
const ISSUED: u64 = 4;
/// Sectors of 32 bytes that a GPU moves in a nanosecond.
const SECTORS: u64 = 40;
/// Bytes that are copied between host and GPU in a nanosecond.
const COPIED: u64 = 16;
/// Nanoseconds of any kernel.
const LAUNCH: u64 = 1000;

/// The time of a kernel of so many blocks on so many multiprocessors.
pub(crate) fn kernel(report: &Report, blocks: u64, cores: u64) -> u64 {
    let (blocks, cores) = (blocks.max(1), cores.max(1));
    // what the multiprocessor that has the most blocks does of it
    let busiest = |of: u64| (of as f64 * blocks.div_ceil(cores) as f64 / blocks as f64).ceil() as u64;
    let issued = busiest(report.executed).div_ceil(ISSUED);
    LAUNCH + issued.max(busiest(report.wavefronts)).max(report.sectors.div_ceil(SECTORS))
}

/// The time of a copy between host and GPU.
pub(crate) fn copy(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(COPIED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_and_the_slowest_count() {
        let of = |executed, sectors| Report { executed, sectors, ..Report::default() };
        // three blocks on two multiprocessors: one has two thirds
        assert_eq!(kernel(&of(1200, 0), 3, 2), LAUNCH + 200);
        assert_eq!(kernel(&of(1200, 0), 3, 4), LAUNCH + 100);
        assert_eq!(kernel(&of(4, 4000), 1, 1), LAUNCH + 100);
        assert_eq!(kernel(&of(0, 0), 0, 0), LAUNCH);
        assert_eq!(copy(17), 2);
    }
}
