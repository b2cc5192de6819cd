//! Planted bugs are each caught, with the line at fault.

#![allow(clippy::result_large_err, reason = "as in the crate")]

use egret_sim::{Arg, Fault, FaultKind, LaunchOptions, Memory, Module, WarpOrder};

/// Runs the only entry of a text on 1,024 bytes of zeros, in one block.
fn run(text: &str, threads: u32, warp_order: WarpOrder) -> Result<(), Fault> {
    let module = Module::parse(text).unwrap();
    let mut memory = Memory::new();
    let entry = &module.entries()[0];
    let args: Vec<Arg> =
        entry.params().iter().map(|param| Arg::Pointer(memory.allocate(&param.name, vec![0; 1024]))).collect();
    let options = LaunchOptions { warp_order, max_steps: 10_000, ..LaunchOptions::default() };
    module.launch(entry.name(), [1; 3], [threads, 1, 1], &args, &mut memory, &options).map(drop)
}

fn kernel(body: &str) -> String {
    format!(
        ".visible .entry k(.param .u64 p) {{ .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .f32 %f<8>;
        .shared .align 16 .b8 s[512];
        ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; cvt.u64.u32 %rd2, %r2; add.s64 %rd3, %rd1, %rd2;
        {body}
        ret; }}"
    )
}

fn fault(body: &str, threads: u32) -> FaultKind {
    run(&kernel(body), threads, WarpOrder::Forward).unwrap_err().kind
}

#[test]
fn a_missing_barrier_is_a_race_or_an_uninitialised_read_in_every_order() {
    let text = include_str!("ptx/reduce.ptx");
    assert!(run(text, 128, WarpOrder::Forward).is_ok());
    let text = text.replace("bar.sync 0;", "");
    for order in [WarpOrder::Forward, WarpOrder::Reverse, WarpOrder::Seeded(3)] {
        let fault = run(&text, 128, order).unwrap_err();
        let (FaultKind::Uninitialised { line, .. } | FaultKind::Race { line, .. }) = fault.kind else {
            panic!("{fault}")
        };
        let line = text.lines().nth(line as usize - 1).unwrap_or_default();
        assert!(line.contains("shared"), "{fault}");
    }
}

#[test]
fn off_by_one_is_out_of_bounds() {
    assert!(run(&kernel("st.global.u32 [%rd3], %r1;"), 256, WarpOrder::Forward).is_ok());
    assert!(
        matches!(fault("st.global.u32 [%rd3+4], %r1;", 256), FaultKind::OutOfBounds { address, .. } if address % 1024 == 0)
    );
    assert!(matches!(fault("st.shared.u32 [s+512], %r1;", 1), FaultKind::OutOfBounds { space: "shared", .. }));
}

#[test]
fn a_vector_at_a_word_is_misaligned() {
    let kind = fault("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd3];", 32);
    assert!(matches!(kind, FaultKind::Misaligned { bytes: 16, .. }));
}

#[test]
fn barriers_that_not_all_reach() {
    let half = "setp.lt.u32 %p1, %r1, 16; @%p1 bra $x; bar.sync 0; $x:";
    assert!(matches!(fault(half, 32), FaultKind::DivergentBarrier { active: 0xffff_0000, .. }));
    let named = "setp.lt.u32 %p1, %r1, 32; @%p1 bra $x; bar.sync 1, 64; $x:";
    assert!(matches!(fault(named, 64), FaultKind::Deadlock(_)));
    let mask = "setp.lt.u32 %p1, %r1, 16; @%p1 bra $x; bar.warp.sync -1; ret; $x:";
    assert!(matches!(fault(mask, 32), FaultKind::WarpMask { .. }));
}

#[test]
fn reads_of_nothing_races_and_loops_without_end() {
    assert!(matches!(fault("st.shared.u32 [s], %r1;", 64), FaultKind::Race { .. }));
    assert!(matches!(fault("st.global.u32 [%rd1], %r1;", 2), FaultKind::Race { .. }));
    assert!(matches!(fault("$x: bra $x;", 1), FaultKind::StepLimit(_)));
    let atomic = "red.global.add.u32 [%rd1], 1; atom.global.max.s32 %r3, [%rd1], %r1;";
    assert!(run(&kernel(atomic), 64, WarpOrder::Reverse).is_ok());
}

#[test]
fn what_nothing_wrote_may_be_read_but_not_used() {
    let used = |body: &str| {
        let kind = fault(&format!("ld.shared.u32 %r3, [s];\n{body}"), 32);
        assert!(matches!(kind, FaultKind::Uninitialised { space: "shared", address: 0, line: 4 }), "{body}: {kind}");
    };
    used("add.u32 %r4, %r3, 1; st.global.u32 [%rd3], %r4;");
    used("setp.ne.u32 %p1, %r3, 0; @%p1 bra $x; $x:");
    used("cvt.u64.u32 %rd2, %r3; ld.global.u32 %r4, [%rd2];");
    used("shfl.sync.bfly.b32 %r4, %r3, 1, 31, -1; st.global.u32 [%rd3], %r4;");
    used("setp.lt.u32 %p1, %r1, 5; selp.b32 %r4, %r1, %r3, %p1; st.global.u32 [%rd3], %r4;");
    used("setp.eq.u32 %p1, %r3, 1; vote.sync.any.pred %p2, %p1, -1; @%p2 bra $x; $x:");
    used("atom.global.add.u32 %r4, [%rd1], %r3;");
    // through shared memory, whose bytes are then as good as not written
    let through = "ld.shared.u32 %r3, [s];\nst.shared.u32 [s+256], %r3; ld.shared.u32 %r4, [s+256];
        st.global.u32 [%rd3], %r4;";
    assert!(matches!(fault(through, 1), FaultKind::Uninitialised { address: 256, .. }));
    for unused in [
        "",
        "mov.u32 %r3, 5; st.global.u32 [%rd3], %r3;",
        "setp.lt.u32 %p1, %r1, 32; selp.b32 %r4, %r1, %r3, %p1; st.global.u32 [%rd3], %r4;",
        "and.b32 %r4, %r3, 0; st.global.u32 [%rd3], %r4;",
        "setp.gt.u32 %p1, %r1, 99; setp.eq.and.u32 %p2, %r3, 7, %p1; @%p2 bra $x; $x:",
        "setp.gt.u32 %p1, %r1, 99; @%p1 st.global.u32 [%rd3], %r3;",
    ] {
        run(&kernel(&format!("ld.shared.u32 %r3, [s]; {unused}")), 32, WarpOrder::Forward).unwrap();
    }
}

#[test]
fn what_another_thread_writes_may_be_read_but_not_used() {
    // one thread adds to an element that the others, of two warps, read too
    let one = |rest: &str| {
        kernel(&format!(
            "ld.global.u32 %r3, [%rd1]; add.u32 %r4, %r3, 1; setp.ne.u32 %p1, %r1, 33; @%p1 bra $x;
            st.global.u32 [%rd1], %r4; bra $y; $x: {rest} $y:"
        ))
    };
    let orders = [WarpOrder::Forward, WarpOrder::Reverse, WarpOrder::Seeded(3)];
    for order in orders {
        run(&one(""), 64, order).unwrap_or_else(|e| panic!("{order:?}: {e}"));
        for used in [
            "st.global.u32 [%rd3+256], %r4;",
            "st.shared.u32 [s+4], %r3;",
            "setp.ne.u32 %p2, %r4, 0; @%p2 bra $y;",
            "cvt.u64.u32 %rd2, %r3; add.s64 %rd2, %rd1, %rd2; ld.global.u32 %r5, [%rd2];",
        ] {
            let fault = run(&one(used), 64, order).unwrap_err();
            assert!(matches!(fault.kind, FaultKind::Race { .. }), "{order:?} {used}: {fault}");
        }
        // loaded again behind a barrier, it is used
        let again = kernel(
            "mov.u32 %r5, 0; $l: ld.global.u32 %r3, [%rd1]; setp.ne.u32 %p1, %r5, 0; @%p1 bra $x;
            setp.ne.u32 %p2, %r1, 33; @%p2 bra $n; st.global.u32 [%rd1], %r1; $n: bar.sync 0; mov.u32 %r5, 1; bra $l;
            $x: st.global.u32 [%rd3+256], %r3;",
        );
        run(&again, 64, order).unwrap_or_else(|e| panic!("{order:?}: {e}"));
        // used before it was written
        let before = kernel(
            "ld.shared.u32 %r3, [s+8]; st.global.u32 [%rd3], %r3; setp.ne.u32 %p1, %r1, 0; @%p1 bra $x;
            st.shared.u32 [s+8], %r1; $x:",
        );
        assert!(run(&before, 64, order).is_err(), "{order:?}");
    }
}

#[test]
fn two_blocks_that_write_one_element() {
    let module = Module::parse(&kernel("st.global.u32 [%rd3], %r1;")).unwrap();
    let mut memory = Memory::new();
    let args = [Arg::Pointer(memory.allocate("p", vec![0; 128]))];
    let result = module.launch("k", [2, 1, 1], [32, 1, 1], &args, &mut memory, &LaunchOptions::default());
    assert!(
        matches!(result.unwrap_err().kind, FaultKind::Race { other_thread, .. } if other_thread.ends_with("block 0"))
    );
}

#[test]
fn text_that_is_not_understood_is_an_error_with_its_line() {
    let error = Module::parse(&kernel("\nfrobnicate.b32 %r1, %r2;")).unwrap_err();
    assert_eq!((error.line, error.text.as_str()), (5, "frobnicate.b32 %r1, %r2;"));
    assert!(Module::parse(&kernel("sqrt.rz.f32 %f1, %f2;")).is_err());
    assert!(Module::parse(&kernel("bra $nowhere;")).is_err());
}

#[test]
fn no_prefix_and_no_mutation_of_a_text_panics() {
    let text = include_str!("ptx/reduce.ptx");
    for end in 0..text.len() {
        let _ = Module::parse(&text[..end]);
    }
    let words: Vec<&str> = text.split_inclusive([' ', ',', '.', '\n']).collect();
    for at in 0..words.len() {
        for other in ["", "%r1,", "{", "}", "-1 ", "0f", "[", ".v4", "999999999 ", "64 ", "%f1", "%p1 "] {
            let text: String = words.iter().enumerate().map(|(i, word)| if i == at { other } else { word }).collect();
            let Ok(module) = Module::parse(&text) else { continue };
            let (Some(entry), mut memory) = (module.entries().first(), Memory::new()) else { continue };
            let args: Vec<Arg> =
                entry.params().iter().map(|param| Arg::Pointer(memory.allocate(&param.name, vec![0; 512]))).collect();
            let options = LaunchOptions { max_steps: 500, ..LaunchOptions::default() };
            let _ = module.launch(entry.name(), [1; 3], [128, 1, 1], &args, &mut memory, &options);
        }
    }
}
