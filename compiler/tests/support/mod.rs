//! Runs kernels that the CPU emitter made.
#![allow(dead_code)]

use std::cell::RefCell;

use egret_compiler::emit::cpu::{CpuCode, CpuEmitter, CpuTarget, Symbol};
use egret_compiler::kernel::Kernel;
use egret_runtime::cpu::code::{Code, Function, Relocation, scalar_function};

thread_local! {
    static EMITTER: RefCell<CpuEmitter> = RefCell::new(CpuEmitter::new(&CpuTarget::host()).unwrap());
}

/// The kernel, emitted and mapped.
pub fn load(kernel: &Kernel) -> Code {
    let code = EMITTER.with_borrow_mut(|e| e.emit(kernel)).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    map(&[code])
}

/// The Cranelift text of a kernel.
pub fn clif(kernel: &Kernel) -> String {
    EMITTER.with_borrow_mut(|e| e.clif_text(kernel)).unwrap()
}

/// Maps code of several kernels.
pub fn map(kernels: &[CpuCode]) -> Code {
    let functions: Vec<_> = kernels
        .iter()
        .map(|code| Function {
            bytes: &code.bytes,
            entry: code.entry as usize,
            relocations: code
                .relocations
                .iter()
                .map(|r| Relocation { offset: r.offset as usize, symbol: &r.symbol, addend: r.addend })
                .collect(),
        })
        .collect();
    Code::map(&functions, |symbol: &Symbol| match symbol {
        Symbol::Scalar(name) => scalar_function(name),
        Symbol::Vector(name) => wide(name),
    })
    .unwrap()
}

macro_rules! wide_functions {
    ($($name:ident $f:expr;)*) => {
        $(unsafe extern "C" fn $name(dst: *mut f32, src: *const f32, n: usize) {
            let f: fn(f32) -> f32 = $f;
            for i in 0..n {
                // SAFETY: strips have n elements.
                unsafe { *dst.add(i) = f(*src.add(i)) };
            }
        })*
        fn wide(name: &str) -> Option<*const u8> {
            $(if name == stringify!($name) { return Some($name as *const u8); })*
            None
        }
    };
}

wide_functions! {
    exp f32::exp;
    log f32::ln;
    tanh f32::tanh;
    sin f32::sin;
    cos f32::cos;
    sigmoid |x| 1.0 / (1.0 + (-x).exp());
}

type KernelFn = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8, *mut u32);

/// Runs the grid points `0..grid` in chunks, and gives the status word.
pub fn run(kernel: &Kernel, buffers: &[*mut u8], dims: &[i64], grid: i64, chunk: i64) -> u32 {
    assert_eq!((buffers.len(), dims.len()), (kernel.buffers.len(), kernel.dims as usize));
    let code = load(kernel);
    let mut scratch = vec![0u64; kernel.scratch_bytes() / 8 + 16];
    let scratch = scratch.as_mut_ptr().cast::<u8>();
    // SAFETY: within the vector, which has room for the alignment.
    let scratch = unsafe { scratch.add(scratch.align_offset(64)) };
    let mut status = 0u32;
    // SAFETY: the entry has this signature.
    let f: KernelFn = unsafe { std::mem::transmute(code.entry(0).unwrap()) };
    let mut begin = 0;
    while begin < grid {
        let end = (begin + chunk).min(grid);
        // SAFETY: the tests give buffers of the sizes that their kernels touch.
        unsafe { f(buffers.as_ptr(), dims.as_ptr(), begin, end, scratch, &mut status) };
        begin = end;
    }
    status
}

/// A strided matrix, as hooks take it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct View2 {
    pub ptr: *mut u8,
    pub row: i64,
    pub col: i64,
}

/// Runs a hook.
pub fn run_hook(kernel: &Kernel, acc: View2, rows: i64, cols: i64, extras: &[View2], outs: &[View2]) {
    let code = load(kernel);
    type HookFn = unsafe extern "C" fn(*const View2, i64, i64, *const View2, *const View2);
    // SAFETY: the entry has this signature.
    let f: HookFn = unsafe { std::mem::transmute(code.entry(0).unwrap()) };
    // SAFETY: the tests give buffers of the sizes that their kernels touch.
    unsafe { f(&acc, rows, cols, extras.as_ptr(), outs.as_ptr()) };
}

/// Deterministic values in about −4 to 4.
pub fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..n).map(|_| (next() >> 40) as f32 / (1 << 21) as f32 - 4.0).collect()
}
