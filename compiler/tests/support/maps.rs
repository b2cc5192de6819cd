//! Maps over one line, as kernels that are run.

use egret_compiler::kernel::{Access, Expr, Kernel, KernelBuilder, LoopKind, Memory};
use egret_ir::DType;

use super::support::run;

/// Lengths around those of vectors.
pub const SIZES: [usize; 12] = [0, 1, 2, 3, 4, 5, 7, 16, 17, 63, 100, 1030];
/// Elements of a block.
pub const BLOCK: i64 = 64;

/// Where elements lie.
pub fn pointer<T>(v: &mut [T]) -> *mut u8 {
    v.as_mut_ptr().cast()
}

/// `y[i] = f(x[i]…)` in blocks of 64.
pub fn map(inputs: &[DType], output: DType, f: impl Fn(&[Expr], &Expr) -> Expr) -> Kernel {
    let mut k = KernelBuilder::new();
    let inputs: Vec<Memory> = inputs.iter().map(|&t| k.buffer(t, Access::Read)).collect();
    let y = k.buffer(output, Access::Write);
    let n = k.dim();
    let block = k.grid(n.ceil_div(BLOCK));
    let first = k.bind(block * BLOCK);
    let last = k.bind((&first + BLOCK).min(n));
    k.for_(first, last, LoopKind::Vector, |k, i| {
        let loads: Vec<Expr> = inputs.iter().map(|x| k.bind(x.load(&i))).collect();
        k.store(y, &i, f(&loads, &i));
    });
    k.finish().unwrap_or_else(|e| panic!("{e:?}"))
}

/// Runs a [`map`] in chunks of blocks.
pub fn run_map<A: Copy, B: Copy + Default>(kernel: &Kernel, inputs: &[&[A]], n: usize, chunk: i64) -> Vec<B> {
    let mut inputs: Vec<Vec<A>> = inputs.iter().map(|x| x.to_vec()).collect();
    for x in &mut inputs {
        assert_eq!(x.len(), n);
        x.reserve(1);
    }
    let mut y = vec![B::default(); n + 8];
    let mut buffers: Vec<*mut u8> = inputs.iter_mut().map(|x| pointer(x)).collect();
    buffers.push(pointer(&mut y));
    run(kernel, &buffers, &[n as i64], (n as i64 + BLOCK - 1) / BLOCK, chunk);
    y.truncate(n);
    y
}
