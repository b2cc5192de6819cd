//! Programs made by hand. Generated code is a jump to a Rust function of the test.
#![allow(dead_code)]

use std::sync::Arc;

use egret_ir::{DType, Dim, Tensor, TensorType};
use egret_program::driver::Driver;
use egret_program::driver::hook::EpilogueFn;
use egret_program::program::VERSION;
use egret_program::{
    Arg, Buffer, BufferId, Code, Fault, Kernel, KernelBody, KernelId, Launch, Place, Port, Program, Step,
};
use egret_runtime::{Executable, LoadOptions};

pub type KernelFn = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8, *mut u32);

/// Code that jumps to `f`.
#[cfg(target_arch = "x86_64")]
fn jump(f: *const ()) -> Vec<u8> {
    let mut bytes = vec![0x48, 0xb8]; // mov rax, imm64
    bytes.extend((f as usize as u64).to_le_bytes());
    bytes.extend([0xff, 0xe0]); // jmp rax
    bytes
}

pub struct Builder(pub Program);

impl Builder {
    pub fn new() -> Builder {
        Builder(Program {
            version: VERSION,
            device: "x86-64-portable".into(),
            lanes: 8,
            inputs: vec![],
            outputs: vec![],
            params: vec![],
            states: vec![],
            checks: vec![],
            kernels: vec![],
            buffers: vec![],
            constants: vec![],
            prepare: vec![],
            steps: vec![],
        })
    }

    pub fn buffer(&mut self, place: Place, dtype: DType, bytes: Dim) -> BufferId {
        self.0.buffers.push(Buffer { place, dtype, logical_bytes: bytes.clone(), bytes });
        BufferId(self.0.buffers.len() as u32 - 1)
    }

    fn port(&mut self, name: &str, ty: TensorType, place: Place) -> Port {
        let buffer = self.buffer(place, ty.dtype, ty.bytes());
        Port { name: name.into(), ty, buffer }
    }

    pub fn input(&mut self, name: &str, ty: TensorType) -> BufferId {
        let port = self.port(name, ty, Place::Input(self.0.inputs.len() as u32));
        self.0.inputs.push(port.clone());
        port.buffer
    }

    pub fn output(&mut self, name: &str, ty: TensorType) -> BufferId {
        let port = self.port(name, ty, Place::Output(self.0.outputs.len() as u32));
        self.0.outputs.push(port.clone());
        port.buffer
    }

    pub fn param(&mut self, name: &str, ty: TensorType) -> BufferId {
        let port = self.port(name, ty, Place::Param(self.0.params.len() as u32));
        self.0.params.push(port.clone());
        port.buffer
    }

    pub fn state(&mut self, name: &str, ty: TensorType) -> BufferId {
        let port = self.port(name, ty, Place::State(self.0.states.len() as u32));
        self.0.states.push(port.clone());
        port.buffer
    }

    pub fn arena(&mut self, dtype: DType, elements: impl Into<Dim>) -> BufferId {
        self.buffer(Place::Arena, dtype, elements.into() * Dim::from(dtype.size()))
    }

    fn kernel(&mut self, name: &str, body: KernelBody) -> KernelId {
        let (name, family) = (name.to_string(), "test".into());
        self.0.kernels.push(Kernel { name, family, text: String::new(), body });
        KernelId(self.0.kernels.len() as u32 - 1)
    }

    #[cfg(target_arch = "x86_64")]
    pub fn code(&mut self, name: &str, f: KernelFn, scratch_bytes: usize) -> KernelId {
        self.kernel(
            name,
            KernelBody::Code(Code { bytes: jump(f as *const ()), relocations: vec![], entry: 0, scratch_bytes }),
        )
    }

    #[cfg(target_arch = "x86_64")]
    pub fn hook(&mut self, name: &str, f: EpilogueFn) -> KernelId {
        let bytes = jump(f as *const ());
        self.kernel(name, KernelBody::Hook(Code { bytes, relocations: vec![], entry: 0, scratch_bytes: 0 }))
    }

    pub fn driver(&mut self, name: &str, driver: Driver<Dim>) -> KernelId {
        self.kernel(name, KernelBody::Driver { driver, hook: None, finisher: None })
    }

    pub fn load(self, weights: &dyn Fn(&str) -> Option<Tensor>, threads: usize) -> Arc<Executable> {
        let options = LoadOptions { threads, isa: None };
        Executable::load(Arc::new(self.0), weights, options).unwrap_or_else(|e| panic!("{e}"))
    }
}

pub fn reads(buffer: BufferId) -> Arg {
    Arg { buffer, offset: Dim::ZERO, writes: false }
}

pub fn writes(buffer: BufferId) -> Arg {
    Arg { buffer, offset: Dim::ZERO, writes: true }
}

/// A launch; grain 4, status 7 means "a number is negative".
pub fn launch(kernel: KernelId, args: Vec<Arg>, dims: Vec<Dim>, grid: impl Into<Dim>) -> Step {
    Step::Launch(Launch {
        kernel,
        args,
        dims,
        grid: grid.into(),
        grain: 4,
        clear: vec![],
        faults: vec![Fault { code: 7, message: "a number is negative".into() }],
        origin: format!("node {}", kernel.0),
        flops: Dim::ZERO,
        bytes: Dim::ZERO,
    })
}

pub fn nothing(_: &str) -> Option<Tensor> {
    None
}

pub fn i32s(shape: &[usize], f: impl Fn(usize) -> i32) -> Tensor {
    let count = shape.iter().product();
    Tensor::new(shape, &(0..count).map(f).collect::<Vec<_>>()).unwrap()
}

/// Values in -1..1.
pub fn f32s(shape: &[usize], seed: u32) -> Tensor {
    let count: usize = shape.iter().product();
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            (s >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::new(shape, &values).unwrap()
}

pub fn i32_type(shape: impl Into<egret_ir::Shape>) -> TensorType {
    TensorType::new(DType::I32, shape)
}

/// `out[i] = a[i] + b[i]`, through scratch; status 7 where `a[i]` is negative.
pub unsafe extern "C" fn add(
    buffers: *const *mut u8,
    _: *const i64,
    begin: i64,
    end: i64,
    scratch: *mut u8,
    status: *mut u32,
) {
    unsafe {
        let (a, b, out) = (*buffers, *buffers.add(1), *buffers.add(2));
        for i in begin as usize..end as usize {
            let (x, y) = (*a.cast::<i32>().add(i), *b.cast::<i32>().add(i));
            if x < 0 {
                std::sync::atomic::AtomicU32::from_ptr(status).fetch_max(7, std::sync::atomic::Ordering::Relaxed);
            }
            *scratch.cast::<i32>() = x.wrapping_add(y);
            *out.cast::<i32>().add(i) = *scratch.cast::<i32>();
        }
    }
}

/// `out[i] = a[i] + dims[0]`.
pub unsafe extern "C" fn add_dim(
    buffers: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
    _: *mut u8,
    _: *mut u32,
) {
    unsafe {
        let (a, out) = (*buffers, *buffers.add(1));
        for i in begin as usize..end as usize {
            *out.cast::<i32>().add(i) = (*a.cast::<i32>().add(i)).wrapping_add(*dims as i32);
        }
    }
}
