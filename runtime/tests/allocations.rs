//! Runs allocate nothing once their dims are known.#![cfg_attr(not(target_arch = "x86_64"), allow(unused_imports))]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use egret_ir::{DType, Dim, Tensor};
use egret_program::driver::{
    ConvForm, ConvInput, ConvProblem, ConvSchedule, Direction, Driver, Epilogue, GemmProblem, GemmSchedule,
    PackProblem, Products, RelayoutProblem,
};
use egret_program::{Carried, Loop, Place, Step};
use egret_runtime::State;
use support::*;

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: that of the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Everything at once: a convolution, a product, a loop over slices, state, code.
#[cfg(target_arch = "x86_64")]
fn program() -> Builder {
    let mut b = Builder::new();
    let n = Dim::symbol("n");
    let plain = GemmProblem::plain(4, 16, 8).map(&mut |d: &usize| Dim::from(*d));
    let schedule = GemmSchedule::choose(&GemmProblem::plain(4, 16, 8), Products::F32, 8);
    let a = b.input("a", egret_ir::f32(["n".into(), Dim::from(8)]));
    let w = b.param("w", egret_ir::f32([8, 16]));
    let c = b.output("c", egret_ir::f32(["n".into(), Dim::from(16)]));
    let gemm = b.driver("gemm", Driver::Gemm(GemmProblem { m: n.clone(), ..plain }, schedule));
    b.0.steps.push(launch(gemm, vec![reads(a), reads(w), writes(c)], vec![], 0));

    let image = b.input("image", egret_ir::f32([n.clone(), 8.into(), 6.into(), 6.into()]));
    let y = b.output("y", egret_ir::f32([n.clone(), 8.into(), 6.into(), 6.into()]));
    let filter = b.param("filter", egret_ir::f32([8, 8, 3, 3]));
    let conv = ConvProblem {
        form: ConvForm::Forward,
        input: ConvInput::Blocked,
        batch: 1,
        in_channels: 8,
        out_channels: 8,
        groups: 1,
        in_spatial: vec![6, 6],
        out_spatial: vec![6, 6],
        kernel: vec![3, 3],
        stride: vec![1, 1],
        dilation: vec![1, 1],
        pad_begin: vec![1, 1],
        in_halo: vec![1, 1],
        out_halo: vec![0, 0],
        in_batch_stride: 8 * 64,
        out_batch_stride: 8 * 36,
        prologue: None,
        epilogue: Epilogue::none(),
    };
    let schedule = ConvSchedule::choose(&conv, 8);
    let pack = PackProblem::for_conv(&conv, &schedule);
    let packed = b.buffer(Place::Prepared, DType::F32, Dim::from(4 * pack.packed_len()));
    let pack = b.driver("pack", Driver::Pack(pack.map(&mut |d: &usize| Dim::from(*d))));
    b.0.prepare.push(launch(pack, vec![reads(filter), writes(packed)], vec![], 0));
    let symbolic = ConvProblem { batch: n.clone(), ..conv.map(&mut |d: &usize| Dim::from(*d)) };
    let conv = b.driver("conv", Driver::Conv(symbolic, schedule));
    let relayout = |direction, halo: i64, blocked: i64| {
        Driver::Relayout(RelayoutProblem {
            direction,
            lanes: 8,
            batch: n.clone(),
            channels: Dim::from(8),
            spatial: vec![Dim::from(6); 2],
            halo: vec![Dim::from(halo); 2],
            blocked_batch_stride: Dim::from(blocked),
            row_major_batch_stride: Dim::from(288),
        })
    };
    let (to, from) = (relayout(Direction::ToBlocked, 1, 512), relayout(Direction::ToRowMajor, 0, 288));
    let (to, from) = (b.driver("to", to), b.driver("from", from));
    let blocked = b.arena(DType::F32, n.clone() * Dim::from(512));
    let result = b.arena(DType::F32, n.clone() * Dim::from(288));
    b.0.steps.push(launch(to, vec![reads(image), writes(blocked)], vec![], 0));
    b.0.steps.push(launch(conv, vec![reads(blocked), reads(packed), writes(result)], vec![], 0));
    b.0.steps.push(launch(from, vec![reads(result), writes(y)], vec![], 0));

    let x = b.input("x", i32_type(["n".into(), Dim::from(5)]));
    let total = b.state("total", i32_type([5]));
    let x_i = b.buffer(Place::Slice { of: x, stride: Dim::from(20) }, DType::I32, Dim::from(20));
    let (sum, next) = (b.arena(DType::I32, 5), b.arena(DType::I32, 5));
    let add = b.code("add", add, 64);
    let carried = vec![Carried { first: reads(total), current: sum, next: reads(next), bytes: Dim::from(20) }];
    let body = vec![launch(add, vec![reads(x_i), reads(sum), writes(next)], vec![], 5)];
    b.0.steps.push(Step::Loop(Loop { length: n, reverse: false, carried, body }));
    b.0.steps.push(Step::Copy { source: reads(sum), destination: writes(total), bytes: Dim::from(20) });
    b
}

fn main() {
    #[cfg(target_arch = "x86_64")]
    a_warm_run_allocates_nothing();
}

#[cfg(target_arch = "x86_64")]
fn a_warm_run_allocates_nothing() {
    let weights = |name: &str| match name {
        "w" => Some(f32s(&[8, 16], 1)),
        "filter" => Some(f32s(&[8, 8, 3, 3], 2)),
        _ => None,
    };
    for threads in 1..=3 {
        let exe = program().load(&weights, threads);
        let state = State::new(&exe, &nothing).unwrap();
        let mut session = exe.session_with(&state).unwrap();
        let sizes = [7usize, 2, 5];
        let inputs: Vec<[Tensor; 3]> =
            sizes.iter().map(|n| [f32s(&[*n, 8], 3), f32s(&[*n, 8, 6, 6], 4), i32s(&[*n, 5], |i| i as i32)]).collect();
        let mut outputs: Vec<Tensor> = sizes.iter().map(|n| Tensor::zeros(DType::F32, &[*n, 16])).collect();
        let mut counts = Vec::new();
        for round in 0..4 {
            for ([a, image, x], c) in inputs.iter().zip(&mut outputs) {
                let given = [("a", a), ("image", image), ("x", x)];
                let before = COUNT.load(SeqCst);
                let sum: f32 = session.run(&given).unwrap().at(0).unwrap().as_slice::<f32>().unwrap().iter().sum();
                session.run_into(&given, &mut [("c", c)]).unwrap();
                counts.push((round, COUNT.load(SeqCst) - before));
                assert!(sum.is_finite());
            }
        }
        assert!(counts.iter().all(|(round, count)| (*count == 0) == (*round > 0)), "{counts:?}");
    }
}
