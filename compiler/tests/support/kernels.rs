//! Three CUDA kernels built by hand, which show that the language suffices.

use egret_compiler::kernel::{Access, Expr, Kernel, KernelBuilder, LoopKind, ReduceOp, Space, UnaryOp};
use egret_ir::DType::F32;

/// `y[i] = relu(x[i] * a[0] + b[0])`: 1024 elements a block of 256 threads.
pub fn map() -> Kernel {
    let mut k = KernelBuilder::with_threads([256, 1, 1]);
    let x = k.buffer(F32, Access::Read);
    let (a, b) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::Read));
    let y = k.buffer(F32, Access::Write);
    let n = k.dim();
    let block = k.grid(n.ceil_div(1024));
    let first = k.bind(block * 1024);
    let last = k.bind((&first + 1024).min(n));
    let (a, b) = (k.bind(a.load(0)), k.bind(b.load(0)));
    k.for_(first, last, LoopKind::Thread(0), |k, i| {
        k.store(y, &i, (x.load(&i) * &a + &b).max(0.0f32));
    });
    k.finish().unwrap()
}

/// Softmax of each row, a row a block of 128 threads.
pub fn softmax() -> Kernel {
    let mut k = KernelBuilder::with_threads([128, 1, 1]);
    let (x, y) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::Write));
    let (rows, cols) = (k.dim(), k.dim());
    let row = k.grid(rows);
    let base = k.bind(row * &cols);
    let max = k.variable(f32::NEG_INFINITY);
    k.for_(0, cols.clone(), LoopKind::Thread(0), |k, c| {
        k.accumulate(max, ReduceOp::Max, x.load(&base + c));
    });
    k.block_reduce(max, ReduceOp::Max);
    let sum = k.variable(0.0f32);
    k.for_(0, cols.clone(), LoopKind::Thread(0), |k, c| {
        let shifted = x.load(&base + c) - Expr::from(max);
        k.accumulate(sum, ReduceOp::Sum, shifted.unary(UnaryOp::Exp));
    });
    k.block_reduce(sum, ReduceOp::Sum);
    k.for_(0, cols, LoopKind::Thread(0), |k, c| {
        let shifted = x.load(&base + &c) - Expr::from(max);
        k.store(y, &base + &c, shifted.unary(UnaryOp::Exp) / Expr::from(sum));
    });
    k.finish().unwrap()
}

/// `C = relu(A · B + bias)`, row-major: blocks of 64 × 64, steps of 16, 4 × 4 a thread.
pub fn contract() -> Kernel {
    const TILE: i64 = 64;
    const STEP: i64 = 16;
    const OWN: i64 = 4;
    let side = TILE / OWN;
    let mut k = KernelBuilder::with_threads([side as u32, side as u32, 1]);
    let (a, b) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::Read));
    let (bias, c) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::Write));
    let (m, n, depth) = (k.dim(), k.dim(), k.dim());
    // A is kept transposed, a column longer than the tile: no bank conflicts on the way in.
    let pitch = TILE + 4;
    let tile_a = k.scratch(F32, (STEP * pitch) as usize, Space::Shared);
    let tile_b = k.scratch(F32, (STEP * TILE) as usize, Space::Shared);
    let sums = k.scratch(F32, (OWN * OWN) as usize, Space::Register);
    let row_block = k.grid(m.ceil_div(TILE));
    let col_block = k.grid(n.ceil_div(TILE));
    let (row0, col0) = (k.bind(row_block * TILE), k.bind(col_block * TILE));
    k.for_(0, side, LoopKind::Thread(1), |k, ty| {
        k.for_(0, side, LoopKind::Thread(0), |k, tx| {
            let thread = k.bind(&ty * side + &tx);
            k.for_(0, OWN * OWN, LoopKind::Unroll, |k, i| k.store(sums, i, 0.0f32));
            k.for_step(0, depth.clone(), STEP, LoopKind::Serial, |k, k0| {
                // Each thread brings 4 elements of either tile; outside the matrices they are zero.
                k.for_(0, TILE * STEP / (side * side), LoopKind::Unroll, |k, i| {
                    let element = k.bind(i * (side * side) + &thread);
                    let (r, d) = (k.bind(&element / STEP), k.bind(&element % STEP));
                    let inside = (&row0 + &r).less(&m).and((&k0 + &d).less(&depth));
                    let value = a.load_if(inside, (&row0 + &r) * &depth + &k0 + &d);
                    k.store(tile_a, d * pitch + r, value);
                    let (d, c) = (k.bind(&element / TILE), k.bind(&element % TILE));
                    let inside = (&k0 + &d).less(&depth).and((&col0 + &c).less(&n));
                    let value = b.load_if(inside, (&k0 + &d) * &n + &col0 + &c);
                    k.store(tile_b, d * TILE + c, value);
                });
                k.barrier();
                k.for_(0, STEP, LoopKind::Unroll, |k, d| {
                    let own = |k: &mut KernelBuilder, memory: egret_compiler::kernel::Memory, at: Expr| {
                        (0..OWN).map(|i| k.bind(memory.load(&at + i))).collect::<Vec<_>>()
                    };
                    let left = own(k, tile_a, &d * pitch + &ty * OWN);
                    let right = own(k, tile_b, &d * TILE + &tx * OWN);
                    for (i, x) in (0..).zip(&left) {
                        for (j, y) in (0..).zip(&right) {
                            let at = i * OWN + j;
                            k.store(sums, at, sums.load(at) + x * y);
                        }
                    }
                });
                k.barrier();
            });
            k.for_(0, OWN, LoopKind::Unroll, |k, i| {
                let row = k.bind(&row0 + &ty * OWN + &i);
                k.for_(0, OWN, LoopKind::Unroll, |k, j| {
                    let col = k.bind(&col0 + &tx * OWN + &j);
                    k.if_(row.less(&m).and(col.less(&n)), |k| {
                        let value = sums.load(&i * OWN + &j) + bias.load(&col);
                        k.store(c, &row * &n + &col, value.max(0.0f32));
                    });
                });
            });
        });
    });
    k.finish().unwrap()
}
