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
    // what the load found is used, or is overwritten after it
    let (FaultKind::Uninitialised { line, .. } | FaultKind::Race { other_line: line, .. }) = fault.kind else {
        panic!("{fault}")
    };
    assert!(text.lines().nth(line as usize - 1).is_some_and(|line| line.contains("ldmatrix")), "{fault}");
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

/// One product of 16 × 32 by 32 × 8 bytes, each side signed or not, as the PTX manual deals its elements to lanes: rows of
/// `a` and columns of `b` are 32 bytes of memory each.
#[test]
fn bytes_of_either_sign_are_summed_in_32_bits() {
    let kernel = |types: &str| {
        format!(
            ".visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc) {{
            .reg .b32 %r<24>; .reg .b64 %rd<12>;
            ld.param.u64 %rd1, [pa]; ld.param.u64 %rd2, [pb]; ld.param.u64 %rd3, [pc];
            mov.u32 %r1, %tid.x; shr.u32 %r2, %r1, 2; and.b32 %r3, %r1, 3;
            shl.b32 %r4, %r2, 5; shl.b32 %r5, %r3, 2; add.u32 %r4, %r4, %r5;
            cvt.u64.u32 %rd4, %r4; add.s64 %rd5, %rd1, %rd4; add.s64 %rd6, %rd2, %rd4;
            ld.global.u32 %r6, [%rd5]; ld.global.u32 %r7, [%rd5+256];
            ld.global.u32 %r8, [%rd5+16]; ld.global.u32 %r9, [%rd5+272];
            ld.global.u32 %r10, [%rd6]; ld.global.u32 %r11, [%rd6+16];
            mov.u32 %r12, 0x7fffff00; mov.u32 %r13, -1; mov.u32 %r14, 0; mov.u32 %r15, 7;
            mma.sync.aligned.m16n8k32.row.col.s32.{types}.s32
                {{%r12, %r13, %r14, %r15}}, {{%r6, %r7, %r8, %r9}}, {{%r10, %r11}}, {{%r12, %r13, %r14, %r15}};
            shl.b32 %r16, %r2, 5; shl.b32 %r17, %r3, 3; add.u32 %r16, %r16, %r17;
            cvt.u64.u32 %rd7, %r16; add.s64 %rd8, %rd3, %rd7;
            st.global.v2.u32 [%rd8], {{%r12, %r13}}; st.global.v2.u32 [%rd8+256], {{%r14, %r15}};
            ret; }}"
        )
    };
    let byte = |i: usize| (i * 73 + i / 7 * 31 + 129) as u8;
    let (a, b): (Vec<u8>, Vec<u8>) = ((0..512).map(byte).collect(), (0..256).map(|i| byte(i + 1000)).collect());
    for (types, signed) in
        [("s8.s8", [true, true]), ("u8.u8", [false; 2]), ("s8.u8", [true, false]), ("u8.s8", [false, true])]
    {
        let module = Module::parse(&kernel(types)).unwrap_or_else(|e| panic!("{e}"));
        let mut memory = Memory::new();
        let buffers = [("a", a.clone()), ("b", b.clone()), ("c", vec![0; 512])];
        let args = buffers.map(|(name, data)| Arg::Pointer(memory.allocate(name, data)));
        module.launch("k", [1; 3], [32, 1, 1], &args, &mut memory, &LaunchOptions::default()).unwrap();
        let number = |side: usize, byte: u8| if signed[side] { i32::from(byte as i8) } else { i32::from(byte) };
        for (i, word) in memory.bytes("c").unwrap().chunks_exact(4).enumerate() {
            let (row, column) = (i / 8, i % 8);
            let begins = [[0x7fff_ff00, -1], [0, 7]][row / 8][column % 2];
            let terms = (0..32).map(|k| number(0, a[row * 32 + k]) * number(1, b[column * 32 + k]));
            let want: i32 = terms.fold(begins, i32::wrapping_add);
            assert_eq!(i32::from_le_bytes(word.try_into().unwrap()), want, "{types} {row} {column}");
        }
    }
}
