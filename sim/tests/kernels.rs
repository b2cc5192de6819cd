//! PTX that Egret did not make gives the right numbers and counts, in every warp order. `softmax.ptx` and `sgemm.ptx`
//! are NVRTC 13.0's text for hand-written CUDA; the others are written by hand.

use egret_sim::{Arg, LaunchOptions, Memory, Module, Report, WarpOrder};

const ORDERS: [WarpOrder; 4] = [WarpOrder::Forward, WarpOrder::Reverse, WarpOrder::Seeded(1), WarpOrder::Seeded(7)];

fn floats(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + 11) % 64) as f32 / 16.0 - 2.0).collect()
}

fn orders(mut check: impl FnMut(&LaunchOptions)) {
    ORDERS.into_iter().for_each(|warp_order| check(&LaunchOptions { warp_order, ..LaunchOptions::default() }));
}

#[test]
fn saxpy_and_its_sectors() {
    let module = Module::parse(include_str!("ptx/saxpy.ptx")).unwrap();
    orders(|options| {
        let mut memory = Memory::new();
        let (x, y) = (floats(200), vec![1.0; 200]);
        let (yp, xp) = (memory.allocate_f32("y", &y), memory.allocate_f32("x", &x));
        let args = [Arg::Pointer(yp), Arg::Pointer(xp), Arg::F32(2.0), Arg::U32(200)];
        let report = module.launch("saxpy", [2, 1, 1], [128, 1, 1], &args, &mut memory, options).unwrap();
        let want: Vec<f32> = x.iter().map(|x| 2.0 * x + 1.0).collect();
        assert_eq!(memory.f32s("y").unwrap(), want);
        assert_eq!(report.sectors, 3 * 200 * 4 / 32);
        let store = report.lines.iter().max_by_key(|stats| stats.line * u32::from(stats.sectors > 0)).unwrap();
        assert_eq!((store.sectors, store.least_sectors, store.global_requests), (25, 25, 7));
    });
}

#[test]
fn a_reduction_through_shuffles_and_shared_memory() {
    let module = Module::parse(include_str!("ptx/reduce.ptx")).unwrap();
    orders(|options| {
        let mut memory = Memory::new();
        let x = floats(128);
        let (out, xp) = (memory.allocate_f32("out", &[0.0]), memory.allocate_f32("x", &x));
        module
            .launch("reduce", [1; 3], [128, 1, 1], &[Arg::Pointer(out), Arg::Pointer(xp)], &mut memory, options)
            .unwrap();
        assert_eq!(memory.f32s("out").unwrap(), [x.iter().sum::<f32>()]);
    });
}

#[test]
fn shared_memory_of_a_module_is_taken_by_the_entries_that_name_it() {
    let entry = |name: &str, variable: &str| {
        format!(".visible .entry {name}() {{ .reg .b32 %r<2>; mov.u32 %r1, {variable}; st.shared.u32 [%r1], 1; ret; }}")
    };
    let text = format!(
        ".shared .align 4 .b8 left[4096]; .shared .align 16 .b8 right[512]; {} {}",
        entry("l", "left"),
        entry("r", "right")
    );
    let module = Module::parse(&text).unwrap();
    let bytes = ["l", "r"].map(|name| module.entry(name).unwrap().shared_bytes());
    assert_eq!(bytes, [4096, 512]);
    orders(|options| {
        for name in ["l", "r"] {
            module.launch(name, [1; 3], [1; 3], &[], &mut Memory::new(), options).unwrap();
        }
    });
}

/// A transpose of 32 × 32 through shared memory whose rows are `pitch` bytes apart.
fn transpose(pitch: u32) -> Report {
    let text = format!(
        ".visible .entry t(.param .u64 out, .param .u64 in) {{
            .reg .b32 %r<9>; .reg .b64 %rd<6>; .reg .f32 %f<3>;
            .shared .align 16 .b8 tile[{}];
            mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r6, tile;
            mad.lo.s32 %r3, %r2, 32, %r1;
            mul.wide.u32 %rd1, %r3, 4;
            ld.param.u64 %rd2, [in]; add.s64 %rd2, %rd2, %rd1;
            ld.param.u64 %rd3, [out]; add.s64 %rd3, %rd3, %rd1;
            ld.global.f32 %f1, [%rd2];
            mul.lo.s32 %r4, %r1, {pitch}; mad.lo.s32 %r4, %r2, 4, %r4; add.s32 %r4, %r4, %r6;
            st.shared.f32 [%r4], %f1;
            bar.sync 0;
            mul.lo.s32 %r5, %r2, {pitch}; mad.lo.s32 %r5, %r1, 4, %r5; add.s32 %r5, %r5, %r6;
            ld.shared.f32 %f2, [%r5];
            st.global.f32 [%rd3], %f2;
            ret;
        }}",
        pitch * 32
    );
    let module = Module::parse(&text).unwrap();
    let mut memory = Memory::new();
    let x: Vec<f32> = (0..1024).map(|i| i as f32).collect();
    let (out, xp) = (memory.allocate_f32("out", &[0.0; 1024]), memory.allocate_f32("x", &x));
    let args = [Arg::Pointer(out), Arg::Pointer(xp)];
    let report = module.launch("t", [1; 3], [32, 32, 1], &args, &mut memory, &LaunchOptions::default()).unwrap();
    let got = memory.f32s("out").unwrap();
    assert!((0..1024).all(|i| got[i] == x[i % 32 * 32 + i / 32]));
    report
}

#[test]
fn bank_conflicts_of_a_transpose() {
    // Per warp 32 for the store and one for the load; a row of 33 words has no conflict.
    assert_eq!(transpose(128).wavefronts, 32 * 33);
    assert_eq!(transpose(132).wavefronts, 32 * 2);
}

#[test]
fn lanes_that_loop_apart_meet_again() {
    let text = ".visible .entry collatz(.param .u64 out) {
        .reg .pred %p<4>; .reg .b32 %r<6>; .reg .b64 %rd<3>;
        mov.u32 %r1, %tid.x; add.s32 %r2, %r1, 1; mov.u32 %r3, 0;
    $loop:
        setp.eq.s32 %p1, %r2, 1; @%p1 bra $end;
        and.b32 %r4, %r2, 1; setp.eq.s32 %p2, %r4, 0;
        @%p2 bra $even;
        mad.lo.s32 %r2, %r2, 3, 1; bra.uni $next;
    $even: shr.u32 %r2, %r2, 1;
    $next: add.s32 %r3, %r3, 1; bra $loop;
    $end: bar.warp.sync 0xffffffff; activemask.b32 %r5;
        setp.ne.and.s32 %p3|%p2, %r5, -1, !%p1; @%p3 trap;
        ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
        st.global.u32 [%rd1], %r3; exit; }";
    let module = Module::parse(text).unwrap();
    let mut memory = Memory::new();
    let out = memory.allocate("out", vec![0; 128]);
    let args = [Arg::Pointer(out)];
    module.launch("collatz", [1; 3], [32, 1, 1], &args, &mut memory, &LaunchOptions::default()).unwrap();
    let steps = |mut n: u32| {
        std::iter::from_fn(|| (n != 1).then(|| n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 })).count()
    };
    let want: Vec<u8> = (1..=32).flat_map(|n| (steps(n) as u32).to_le_bytes()).collect();
    assert_eq!(memory.bytes("out").unwrap(), want);
}

#[test]
fn softmax_of_nvrtc() {
    let module = Module::parse(include_str!("ptx/softmax.ptx")).unwrap();
    orders(|options| {
        let (rows, cols) = (3, 1000);
        let mut memory = Memory::new();
        let x = floats(rows * cols);
        let (out, xp) = (memory.allocate_f32("out", &vec![0.0; rows * cols]), memory.allocate_f32("x", &x));
        let args = [Arg::Pointer(out), Arg::Pointer(xp), Arg::I32(cols as i32)];
        module.launch("k2", [rows as u32, 1, 1], [256, 1, 1], &args, &mut memory, options).unwrap();
        let got = memory.f32s("out").unwrap();
        for (row, got) in x.chunks(cols).zip(got.chunks(cols)) {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            // A thousand roundings of f32 at most, each 2^-24.
            assert!(row.iter().zip(got).all(|(x, y)| (f64::from(*x).exp() / sum / f64::from(*y) - 1.0).abs() < 1e-5));
        }
    });
}

#[test]
fn matrix_product_of_nvrtc() {
    let module = Module::parse(include_str!("ptx/sgemm.ptx")).unwrap();
    let (m, n, k) = (72, 68, 36);
    let mut memory = Memory::new();
    let (a, b) = (floats(m * k), floats(k * n));
    let cp = memory.allocate_f32("c", &vec![0.0; m * n]);
    let (ap, bp) = (memory.allocate_f32("a", &a), memory.allocate_f32("b", &b));
    let mut args = vec![Arg::Pointer(cp), Arg::Pointer(ap), Arg::Pointer(bp)];
    args.extend([m, n, k].map(|n| Arg::I32(n as i32)));
    let report = module.launch("k3", [2, 2, 1], [256, 1, 1], &args, &mut memory, &LaunchOptions::default()).unwrap();
    // Sixteenths below four: every product and sum is exact.
    let want = |i: usize| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum::<f32>();
    assert!(memory.f32s("c").unwrap().iter().enumerate().all(|(i, got)| *got == want(i)));
    assert!(report.lines.iter().any(|stats| stats.source.is_some() && stats.wavefronts > stats.least_wavefronts));
}
