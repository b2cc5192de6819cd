//! How long the CPU emitter takes; run with `--ignored --nocapture`.

mod support;

use std::time::Instant;

use egret_compiler::emit::cpu::{CpuEmitter, CpuTarget};
use egret_compiler::kernel::{Access, Expr, Kernel, KernelBuilder, LoopKind, ReduceOp, UnaryOp};
use egret_ir::DType::F32;

fn map(steps: usize) -> Kernel {
    let mut k = KernelBuilder::new();
    let (x, y) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::Write));
    let n = k.dim();
    k.for_(0, n, LoopKind::Vector, |k, i| {
        let mut v = x.load(&i);
        for step in 0..steps {
            v = k.bind((&v * 1.5f32 + step as f32).max(0.0f32));
        }
        k.store(y, &i, v);
    });
    k.finish().unwrap()
}

fn softmax() -> Kernel {
    let mut k = KernelBuilder::new();
    let (x, y) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::ReadWrite));
    let (rows, cols) = (k.dim(), k.dim());
    let row = k.grid(rows);
    let base = k.bind(row * &cols);
    let max = k.variable(f32::NEG_INFINITY);
    k.for_(0, cols.clone(), LoopKind::Vector, |k, c| k.accumulate(max, ReduceOp::Max, x.load(&base + c)));
    let sum = k.variable(0.0f32);
    k.for_(0, cols.clone(), LoopKind::Vector, |k, c| {
        let e = k.bind((x.load(&base + &c) - Expr::from(max)).unary(UnaryOp::Exp));
        k.store(y, &base + &c, &e);
        k.accumulate(sum, ReduceOp::Sum, e);
    });
    k.for_(0, cols, LoopKind::Vector, |k, c| {
        k.store(y, &base + &c, y.load(&base + &c) / Expr::from(sum));
    });
    k.finish().unwrap().with_strips()
}

#[test]
#[ignore = "a measurement"]
fn compile_and_run_times() {
    let mut emitter = CpuEmitter::new(&CpuTarget::host()).unwrap();
    for (name, kernel) in [("map 2", map(2)), ("map 20", map(20)), ("map 60", map(60)), ("softmax", softmax())] {
        let mut best = f64::MAX;
        let mut bytes = 0;
        for _ in 0..20 {
            let start = Instant::now();
            bytes = emitter.emit(&kernel).unwrap().bytes.len();
            best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
        eprintln!("{name}: {best:.3} ms, {bytes} bytes");
    }
    // Nanoseconds an element from L1.
    let mut x = support::values(4096, 1);
    let mut y = vec![0f32; 4096];
    let dims = [4096i64];
    for (name, kernel) in [("map 2", map(2)), ("map 20", map(20))] {
        let code = support::load(&kernel);
        type F = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8, *mut u32);
        // SAFETY: the entry has this signature.
        let f: F = unsafe { std::mem::transmute(code.entry(0).unwrap()) };
        let buffers = [x.as_mut_ptr().cast::<u8>(), y.as_mut_ptr().cast()];
        let mut best = f64::MAX;
        for _ in 0..200 {
            let start = Instant::now();
            // SAFETY: both buffers have 4096 elements.
            unsafe { f(buffers.as_ptr(), dims.as_ptr(), 0, 1, std::ptr::null_mut(), std::ptr::null_mut()) };
            best = best.min(start.elapsed().as_secs_f64() * 1e9 / 4096.0);
        }
        eprintln!("{name}: {best:.3} ns an element");
    }
}
