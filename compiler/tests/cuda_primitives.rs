//! Each primitive of the simulator against a GPU: one warp, one instruction of PTX, the same words in and out.
//!
//! With `EGRET_TEST_GPU=N` the GPU runs every kernel, and must leave the simulator's bits; where PTX leaves the last bits
//! open (`ex2`, `lg2`, `sin`, …), floats that are as near as it promises. Without, a simulated GPU behind the driver's
//! interface takes the GPU's place.

mod support {
    pub mod nvrtc;
}

use std::sync::Arc;

use egret_compiler::{CompileOptions, compile};
use egret_ir::{DType, Dim, Tensor, TensorType, trace};
use egret_program::{DeviceDescription, KernelBody, Program, Step};
use egret_runtime::cuda::{Cache, Device, Executable, LoadOptions};
use egret_sim::{Arg, LaunchOptions, Memory, Module};
use support::nvrtc::nvrtc;

const TYPES: &str = include_str!("../src/emit/cuda/prelude/types.cuh");
const SCALAR: &str = include_str!("../src/emit/cuda/prelude/scalar.cuh");
const REDUCE: &str = include_str!("../src/emit/cuda/prelude/reduce.cuh");
const VECTOR: &str = include_str!("../src/emit/cuda/prelude/vector.cuh");
const COPY: &str = include_str!("../src/emit/cuda/prelude/copy.cuh");
const MATRIX: &str = include_str!("../src/emit/cuda/prelude/matrix.cuh");

/// Words that a kernel is given: eight a thread are small numbers of its kind, eight are any bits.
const GIVEN: usize = 32 * 16;
/// Words that a kernel may leave.
const LEFT: usize = 32 * 16;

/// What the words given are.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Any bits.
    Bits,
    /// `f32` between 2^-6 and 64, of a few bits of fraction.
    Float,
    /// Two halves of few bits: sums of their products are exact.
    F16,
    Bf16,
    /// `f32` of few bits.
    Few,
}

/// A name, what is given, how far apart floats may be in units of 2^-23 of their size, and a body: `i` is the lane, `x` its
/// words, `y` those that it leaves, `s` 4 KiB of shared memory.
const PRIMITIVES: &[(&str, Kind, u32, &str)] = &[
    (
        "mma f16",
        Kind::F16,
        0,
        "f32 c[4] = {1, 2, 3, 4}; multiply_f16(c, x, x + 4); for (int j = 0; j < 4; ++j) y[j] = __float_as_uint(c[j]);",
    ),
    (
        "mma bf16",
        Kind::Bf16,
        0,
        "f32 c[4] = {1, 2, 3, 4}; multiply_bf16(c, x, x + 4); for (int j = 0; j < 4; ++j) y[j] = __float_as_uint(c[j]);",
    ),
    (
        "mma tf32",
        Kind::Few,
        0,
        "f32 c[4] = {}; multiply_words(c, x, x + 4); for (int j = 0; j < 4; ++j) y[j] = __float_as_uint(c[j]);",
    ),
    (
        "mma s8",
        Kind::Bits,
        0,
        "i32 c[4] = {1, -2, 3, -4}; multiply_i8(c, x, x + 4); for (int j = 0; j < 4; ++j) y[j] = c[j];",
    ),
    (
        "mma u8",
        Kind::Bits,
        0,
        "i32 c[4] = {1, -2, 3, -4}; multiply_u8(c, x, x + 4); multiply_u8_i8(c, x + 1, x + 6); multiply_i8_u8(c, x + 2, x + 5); for (int j = 0; j < 4; ++j) y[j] = c[j];",
    ),
    (
        "ldmatrix of bytes",
        Kind::Bits,
        0,
        "for (int j = 0; j < 4; ++j) s[i * 4 + j] = x[j]; __syncwarp(); load_rows_of_bytes(y, s + (i ^ 6) * 4); load_columns_of_bytes(y + 4, s + (i ^ 3) * 4);",
    ),
    (
        "ldmatrix",
        Kind::Bits,
        0,
        "for (int j = 0; j < 4; ++j) s[i * 4 + j] = x[j]; __syncwarp(); load_matrices(y, s + (i ^ 5) * 4);",
    ),
    (
        "ldmatrix.trans",
        Kind::Bits,
        0,
        "for (int j = 0; j < 4; ++j) s[i * 4 + j] = x[j]; __syncwarp(); load_matrices_transposed(y, s + (i ^ 9) * 4);",
    ),
    (
        "cp.async 4",
        Kind::Bits,
        0,
        "copy_async<4>(s + i, x + 1, i % 3 != 0); commit_copies(); wait_copies<0>(); __syncwarp(); y[0] = s[i ^ 1];",
    ),
    (
        "cp.async 8",
        Kind::Bits,
        0,
        "copy_async<8>(s + i * 2, x + 2, i % 3 != 1); commit_copies(); wait_copies<0>(); __syncwarp(); y[0] = s[i * 2]; y[1] = s[i * 2 + 1];",
    ),
    (
        "cp.async 16",
        Kind::Bits,
        0,
        "copy_async<16>(s + i * 4, x + 4, i % 3 != 2); commit_copies(); wait_copies<0>(); __syncwarp(); for (int j = 0; j < 4; ++j) y[j] = s[(i ^ 3) * 4 + j];",
    ),
    (
        "vectors",
        Kind::Bits,
        0,
        "u32 r[4]; load_vector_global<4>(r, x); store_vector_shared<4>(s + i * 4, r); __syncwarp(); load_vector_shared<2>(r, s + (i ^ 1) * 4); store_vector_global<2>(y, r);",
    ),
    ("shfl.bfly", Kind::Bits, 0, "for (int j = 0; j < 5; ++j) y[j] = __shfl_xor_sync(0xffffffffu, x[j], 1 << j);"),
    (
        "shfl.idx up down",
        Kind::Bits,
        0,
        "y[0] = __shfl_sync(0xffffffffu, x[0], i * 7 % 32); y[1] = __shfl_up_sync(0xffffffffu, x[1], 3); y[2] = __shfl_down_sync(0xffffffffu, x[2], 5, 16);",
    ),
    (
        "vote",
        Kind::Bits,
        0,
        "y[0] = __ballot_sync(0xffffffffu, x[0] & 1); y[1] = __any_sync(0xffffffffu, x[1] == 7); y[2] = __all_sync(0xffffffffu, x[2] | 1);",
    ),
    (
        "reductions",
        Kind::Few,
        0,
        "y[0] = __float_as_uint(warp_max_f32(__uint_as_float(x[0]))); y[1] = __float_as_uint(warp_sum_f32<8>(__uint_as_float(x[1])));",
    ),
    (
        "halves",
        Kind::Bits,
        0,
        "f16 a; a.bits = x[0]; y[0] = __float_as_uint(f32_from(a)) | 0x400000u; bf16 b; b.bits = x[1]; y[1] = __float_as_uint(f32_from(b));",
    ),
    (
        "packed",
        Kind::Float,
        0,
        "y[0] = pack_f16(__uint_as_float(x[0]), __uint_as_float(x[1])); y[1] = pack_bf16(__uint_as_float(x[2]), __uint_as_float(x[3])); y[2] = f16_from(__uint_as_float(x[4]) * 1e-6f).bits;",
    ),
    (
        "tf32",
        Kind::Float,
        0,
        "y[0] = tf32_from(__uint_as_float(x[0]) * 1.2345679f); y[1] = tf32_from(-__uint_as_float(x[1]) / 3.0f);",
    ),
    (
        "saturating",
        Kind::Bits,
        0,
        "f32 a = __uint_as_float(x[0]); y[0] = i32_from(a); y[1] = u32_from(a); y[2] = i64_from(a); y[3] = i64_from(a) >> 32; y[4] = u8_from(a);",
    ),
    (
        "of integers",
        Kind::Bits,
        0,
        "y[0] = __float_as_uint((f32)(i32)x[0]); y[1] = __float_as_uint((f32)x[1]); y[2] = __float_as_uint((f32)(i64)((u64)x[2] << 32 | x[3]));",
    ),
    (
        "fma",
        Kind::Float,
        0,
        "f32 a = __uint_as_float(x[0]), b = __uint_as_float(x[1]), c = __uint_as_float(x[2]); y[0] = __float_as_uint(fmaf(a, b / 3.0f, -c)); y[1] = __float_as_uint(a / b); y[2] = __float_as_uint(sqrtf(c)); y[3] = __float_as_uint(1.0f / c);",
    ),
    (
        "f64",
        Kind::Float,
        0,
        "f64 a = __uint_as_float(x[0]), b = __uint_as_float(x[1]); f64 c = fma(a / b, b, -sqrt(a)); y[0] = __double2loint(c); y[1] = __double2hiint(c); y[2] = __float_as_uint((f32)(c / 3.0));",
    ),
    (
        "extrema",
        Kind::Bits,
        0,
        "f32 a = __uint_as_float(x[0] & 0x7fbfffffu), b = __uint_as_float(x[1] & 0xffbfffffu); y[0] = __float_as_uint(fmaxf(a, b)); y[1] = __float_as_uint(fminf(a, b)); y[2] = max_f32(a, NAN_F32) != 0.0f; y[3] = a < b; y[4] = a != a;",
    ),
    (
        "integers",
        Kind::Bits,
        0,
        "y[0] = __umulhi(x[0], x[1]); y[1] = (u64)x[2] * x[3] >> 20; y[2] = div_i32(x[4], (i32)x[5] >> 20); y[3] = rem_u32(x[6], x[7] >> 25); y[4] = __popc(x[0]); y[5] = __clz(x[1] >> 5); y[6] = __brev(x[2]); y[7] = __funnelshift_l(x[3], x[4], 7);",
    ),
    (
        "atomics",
        Kind::Bits,
        0,
        "if (i == 0) { s[0] = 5; s[1] = 0; } __syncwarp(); atomicAdd(s, x[0]); atomicMax(s + 1, x[1]); __syncwarp(); y[0] = s[0]; y[1] = s[1];",
    ),
    (
        "ex2 lg2",
        Kind::Float,
        8,
        "y[0] = __float_as_uint(exp2f(__uint_as_float(x[0]) * 0.5f)); y[1] = __float_as_uint(log2f(__uint_as_float(x[1])) + 20.0f); y[2] = __float_as_uint(expf(__uint_as_float(x[2]) * -0.25f));",
    ),
    (
        "rsqrt sin cos",
        Kind::Float,
        16,
        "y[0] = __float_as_uint(rsqrtf(__uint_as_float(x[0]))); y[1] = __float_as_uint(sinf(__uint_as_float(x[1])) + 2.0f); y[2] = __float_as_uint(cosf(__uint_as_float(x[2])) + 2.0f);",
    ),
    (
        "tanh erf",
        Kind::Float,
        16,
        "y[0] = __float_as_uint(tanhf(__uint_as_float(x[0]) * 0.125f)); y[1] = __float_as_uint(erff(__uint_as_float(x[1]) * 0.25f)); y[2] = __float_as_uint(sigmoid_f32(__uint_as_float(x[2]) - 3.0f));",
    ),
];

fn source(body: &str) -> String {
    let parts = [TYPES, SCALAR, REDUCE, VECTOR, COPY, MATRIX].join("\n");
    format!(
        "{parts}\nextern \"C\" __global__ void __launch_bounds__(32) k(const u32* __restrict__ all, u32* __restrict__ left, u32*) {{\n\
         __shared__ __align__(16) u32 s[1024];\n\
         const int i = threadIdx.x;\n\
         const u32* x = aligned<16>(all) + i * 16;\n\
         u32* y = aligned<16>(left) + i * 16;\n\
         for (int j = 0; j < 16; ++j) y[j] = 0;\n\
         {body}\n\
         if (i > 31) y[0] = s[0];\n}}\n"
    )
}

fn given(kind: Kind) -> Vec<u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    let small = |bits: u32| (bits % 31) as f32 / 8.0 - 2.0;
    let mut word = || {
        let bits = next();
        let pair = [small(bits), small(bits >> 16)];
        match kind {
            Kind::Bits => bits,
            Kind::Float => ((bits % 4000 + 1) as f32 / 64.0).to_bits(),
            Kind::Few => small(bits).to_bits(),
            Kind::F16 => {
                let [low, high] = pair.map(|x| u32::from(half::f16::from_f32(x).to_bits()));
                high << 16 | low
            }
            Kind::Bf16 => {
                let [low, high] = pair.map(|x| u32::from(half::bf16::from_f32(x).to_bits()));
                high << 16 | low
            }
        }
    };
    (0..GIVEN).map(|_| word()).collect()
}

/// A program of one launch of a kernel `k` from an input of words to an output of words.
fn program(description: &DeviceDescription, source: &str) -> Program {
    let words = |n: usize| TensorType { dtype: DType::U32, shape: [Dim::from(n)].into_iter().collect() };
    let one = trace(|t| {
        let x = t.input("x", words(GIVEN));
        x + x
    });
    let compiled = compile(&one.unwrap(), description, &CompileOptions::default());
    let mut program = compiled.unwrap_or_else(|e| panic!("{e}")).program;
    assert_eq!((program.kernels.len(), program.steps.len()), (1, 1));
    program.kernels[0].name = "k".into();
    let KernelBody::Cuda(code) = &mut program.kernels[0].body else { panic!("no CUDA") };
    (code.source, code.threads, code.shared_bytes) = (source.into(), [32, 1, 1], 0);
    code.prelude.clear();
    let Step::Launch(launch) = &mut program.steps[0] else { panic!("no launch") };
    launch.args.sort_by_key(|arg| arg.writes);
    launch.args.dedup_by_key(|arg| arg.buffer);
    assert_eq!(launch.args.len(), 2);
    (launch.dims, launch.grid) = (Vec::new(), Dim::ONE);
    program
}

#[test]
fn the_gpu_does_what_the_simulator_does() {
    let Some(nvrtc) = nvrtc() else { return };
    let number = std::env::var("EGRET_TEST_GPU").ok().and_then(|n| n.parse().ok());
    let description = DeviceDescription::named("sm_80").unwrap();
    let device = match number {
        Some(number) => Device::open(number),
        None => Device::simulated(&description),
    };
    let device: Arc<Device> = device.unwrap_or_else(|e| panic!("{e}"));
    let mut wrong = Vec::new();
    for (name, kind, apart, body) in PRIMITIVES {
        let (source, words) = (source(body), given(*kind));
        // PTX of the first architecture that has them all: the simulator's
        let made = nvrtc.compile(&source, "k", "sm_80", &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let module = Module::parse(&made.ptx).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut memory = Memory::new();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let args = [
            Arg::Pointer(memory.allocate("given", bytes.clone())),
            Arg::Pointer(memory.allocate("left", vec![0; 4 * LEFT])),
            Arg::Pointer(memory.allocate("status", vec![0; 4])),
        ];
        let ran = module.launch("k", [1; 3], [32, 1, 1], &args, &mut memory, &LaunchOptions::default());
        ran.unwrap_or_else(|e| panic!("{name}: {e}"));
        let want: Vec<u32> =
            memory.bytes("left").unwrap().chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        assert!(want.iter().any(|word| *word != 0), "{name} leaves nothing");

        let program = Arc::new(program(&device.description(), &source));
        let options = LoadOptions { cache: Cache::none() };
        let exe = Executable::load(program, &device, &|_| None, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut session = exe.session().unwrap_or_else(|e| panic!("{name}: {e}"));
        let x = Tensor::from_bytes(DType::U32, &[GIVEN], &bytes).unwrap();
        let outputs = session.run(&[("x", &x)]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let have = outputs.at(0).unwrap().to_tensor();
        let have = have.bytes().chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap()));
        let differs = have.zip(&want).enumerate().find(|(_, (a, b))| {
            let (x, y) = (f32::from_bits(*a), f32::from_bits(**b));
            let near = (x - y).abs() <= *apart as f32 * f32::EPSILON * y.abs();
            a != *b && !(*apart > 0 && near)
        });
        if let Some((at, (a, b))) = differs {
            wrong.push(format!("{name}: lane {} word {}: {a:#x}, the simulator has {b:#x}", at / 16, at % 16));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} primitives on {}", PRIMITIVES.len(), device.name());
}
