//! Products of matrices by whole warps on tiles that asynchronous copies bring: right at once and as late as waits allow,
//! without bank conflicts; and what planted bugs make of it. `mma.ptx` is NVRTC 13.0's text for hand-written CUDA:
//! `C[M, N] = A[M, K] · B[K, N]` in tiles of 128 × 128 × 32, three stages, swizzled.

#![allow(clippy::result_large_err, reason = "as in the crate")]

use egret_sim::{Arg, Fault, FaultKind, LaunchOptions, Memory, Module, Report, WarpOrder};

const TEXT: &str = include_str!("ptx/mma.ptx");
const STAGED_BYTES: usize = 3 * 2 * 128 * 32 * 2;

/// A small integer at each place, as bf16.
fn value(i: usize) -> f32 {
    ((i * 7 + i / 5) % 9) as f32 - 4.0
}

fn halves(count: usize, seed: usize) -> Vec<u8> {
    (0..count).flat_map(|i| ((value(i + seed).to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// Runs the product, and gives the result and what it cost.
fn run(text: &str, [m, n, k]: [usize; 3], order: WarpOrder, late: bool) -> Result<(Vec<f32>, Report), Fault> {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let mut memory = Memory::new();
    let c = memory.allocate_f32("c", &vec![f32::NAN; m * n]);
    let (a, b) = (memory.allocate("a", halves(m * k, 1)), memory.allocate("b", halves(k * n, 2)));
    let sizes = [m, n, k].map(|size| Arg::I32(size as i32));
    let args: Vec<Arg> = [c, a, b].map(Arg::Pointer).into_iter().chain(sizes).collect();
    let options = LaunchOptions { warp_order: order, late, dynamic_shared: STAGED_BYTES, ..LaunchOptions::default() };
    let grid = [n.div_ceil(128) as u32, m.div_ceil(128) as u32, 1];
    let report = module.launch("k4", grid, [256, 1, 1], &args, &mut memory, &options)?;
    Ok((memory.f32s("c").unwrap(), report))
}

fn product([m, n, k]: [usize; 3]) -> Vec<f32> {
    let at = |i: usize| ((0..k).map(|t| value(i / n * k + t + 1) * value(t * n + i % n + 2))).sum();
    (0..m * n).map(at).collect()
}

fn everywhere(mut check: impl FnMut(WarpOrder, bool)) {
    for order in [WarpOrder::Forward, WarpOrder::Reverse, WarpOrder::Seeded(5)] {
        for late in [false, true] {
            check(order, late);
        }
    }
}

/// The faults that a text shows over all orders, at once and late.
fn faults(text: &str, size: [usize; 3]) -> Vec<FaultKind> {
    let mut kinds = Vec::new();
    everywhere(|order, late| kinds.extend(run(text, size, order, late).err().map(|fault| fault.kind)));
    kinds
}

#[test]
fn products_are_right_at_once_and_late() {
    for size in [[128, 128, 96], [72, 40, 40]] {
        let want = product(size);
        everywhere(|order, late| {
            let (have, report) =
                run(TEXT, size, order, late).unwrap_or_else(|e| panic!("{size:?} {order:?} {late}: {e}"));
            assert_eq!(have, want, "{size:?} {order:?} {late}");
            for line in report.lines.iter().filter(|line| line.shared_requests > 0) {
                assert_eq!(line.wavefronts, line.least_wavefronts, "line {}", line.line);
            }
        });
    }
}

#[test]
fn a_wait_that_lets_one_group_too_many_go_shows_when_copies_are_late() {
    let text = TEXT.replace("cp.async.wait_group 1;", "cp.async.wait_group 2;");
    assert_ne!(text, TEXT);
    assert!(run(&text, [128, 128, 96], WarpOrder::Forward, false).is_ok());
    let fault = run(&text, [128, 128, 96], WarpOrder::Forward, true).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Uninitialised { .. }), "{fault}");
    assert!(fault.text.contains("ldmatrix"), "{fault}");
}

#[test]
fn a_missing_barrier_before_a_stage_is_read() {
    let text = TEXT.replace("bar.sync \t0;", "");
    assert_ne!(text, TEXT);
    let found = faults(&text, [128, 128, 96]);
    assert!(found.iter().any(|kind| matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. })));
}

#[test]
fn a_missing_group_is_never_waited_for() {
    let text = TEXT.replacen("cp.async.commit_group;", "", 1);
    assert_ne!(text, TEXT);
    assert!(!faults(&text, [128, 128, 96]).is_empty());
}

#[test]
fn a_copy_without_its_mask_leaves_the_matrix() {
    // every copy reads its 16 bytes, whatever lies beyond the edge
    let whole: String = TEXT
        .lines()
        .map(|line| match (line.contains("cp.async.cg"), line.rfind(',')) {
            (true, Some(at)) => format!("{};\n", &line[..at]),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(whole, TEXT);
    let size = [72, 40, 40];
    let wrong = run(&whole, size, WarpOrder::Forward, false).map_or(true, |(have, _)| have != product(size));
    assert!(wrong);
}

#[test]
fn a_part_of_a_warp_cannot_multiply() {
    let at = TEXT.find("mma.sync").expect("a product");
    let text = format!("{}setp.lt.u32 %p150, %r1, 40; @%p150 {}", &TEXT[..at], &TEXT[at..]);
    let text = text.replace("%p<150>", "%p<151>");
    let kinds = faults(&text, [72, 40, 40]);
    assert!(kinds.iter().any(|kind| matches!(kind, FaultKind::WarpMask { .. })), "{kinds:?}");
}

#[test]
fn a_tile_without_swizzle_has_conflicts() {
    // rows of 64 bytes: eight of a column fall on four banks of 16 bytes
    let text = ".visible .entry k(.param .u64 out) {
        .reg .b32 %r<8>; .reg .b64 %rd<2>;
        .shared .align 16 .b8 s[2048];
        mov.u32 %r1, %tid.x; mov.u32 %r2, s; shl.b32 %r3, %r1, 6; add.s32 %r3, %r3, %r2;
        st.shared.v4.u32 [%r3], {%r1, %r1, %r1, %r1};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];
        ret; }";
    let module = Module::parse(text).unwrap();
    let mut memory = Memory::new();
    let out = memory.allocate("out", vec![0; 4]);
    let options = LaunchOptions::default();
    let report = module.launch("k", [1; 3], [32, 1, 1], &[Arg::Pointer(out)], &mut memory, &options).unwrap();
    let load = report.lines.iter().max_by_key(|line| line.line * u32::from(line.shared_requests > 0)).unwrap();
    assert!(load.wavefronts >= 4 * load.least_wavefronts, "{load:?}");
}

#[test]
fn copies_are_of_whole_aligned_pieces() {
    let kernel = |copy: &str| {
        format!(
            ".visible .entry k(.param .u64 p) {{ .reg .b32 %r<4>; .reg .b64 %rd<3>;
            .shared .align 16 .b8 s[64];
            ld.param.u64 %rd1, [p]; mov.u32 %r1, s; {copy} cp.async.wait_all; ret; }}"
        )
    };
    let fault = |copy: &str| {
        let module = Module::parse(&kernel(copy)).unwrap();
        let mut memory = Memory::new();
        let args = [Arg::Pointer(memory.allocate("p", vec![1; 64]))];
        let options = LaunchOptions { late: true, ..LaunchOptions::default() };
        module.launch("k", [1; 3], [1; 3], &args, &mut memory, &options).err().map(|fault| fault.kind)
    };
    assert_eq!(fault("cp.async.cg.shared.global [%r1], [%rd1], 16;"), None);
    assert!(matches!(fault("cp.async.cg.shared.global [%r1], [%rd1+8], 16;"), Some(FaultKind::Misaligned { .. })));
    assert!(matches!(fault("cp.async.ca.shared.global [%r1+2], [%rd1], 4;"), Some(FaultKind::Misaligned { .. })));
    assert!(matches!(fault("cp.async.cg.shared.global [%r1], [%rd1+64], 16;"), Some(FaultKind::OutOfBounds { .. })));
    assert!(Module::parse(&kernel("cp.async.cg.shared.global [%r1], [%rd1], 8;")).is_err());
}
