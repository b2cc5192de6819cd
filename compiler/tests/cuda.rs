//! Kernels emitted as CUDA C: their text, and what NVRTC makes of them.

#[path = "support/kernels.rs"]
mod kernels;
#[path = "support/nvrtc.rs"]
mod support;

use egret_compiler::emit::cuda;
use egret_compiler::kernel::{Access, BinaryOp, Expr, Kernel, KernelBuilder, LoopKind, UnaryOp};
use egret_ir::DType;
use egret_runtime::cuda::nvrtc::NvrtcError;
use support::nvrtc;

/// The emitted text without the prelude.
fn body(kernel: &Kernel) -> String {
    let text = cuda::emit(kernel, &["relu (model.py:3)".into()]).unwrap().text;
    text[text.find("// relu").unwrap()..].to_string()
}

#[test]
fn text_of_a_map() {
    let kernel = kernels::map();
    insta::assert_snapshot!("map.kernel", kernel.text());
    insta::assert_snapshot!("map.cu", body(&kernel));
}

#[test]
fn text_of_a_softmax() {
    let kernel = kernels::softmax();
    insta::assert_snapshot!("softmax.kernel", kernel.text());
    insta::assert_snapshot!("softmax.cu", body(&kernel));
}

#[test]
fn text_of_a_contraction() {
    let kernel = kernels::contract();
    insta::assert_snapshot!("contract.kernel", kernel.text());
    insta::assert_snapshot!("contract.cu", body(&kernel));
}

#[test]
fn provenance_stays_in_comments_and_out_of_names() {
    let kernel = kernels::map();
    let a = cuda::emit(&kernel, &["conv1\nint x; \\".into()]).unwrap();
    assert_eq!(a.name, cuda::emit(&kernel, &[]).unwrap().name);
    assert!(a.text.contains("// conv1?int x; ?\n"));
}

#[test]
fn kernels_compile_without_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    for kernel in [kernels::map(), kernels::softmax(), kernels::contract()] {
        let source = cuda::emit(&kernel, &[]).unwrap();
        for arch in ["sm_80", "sm_90a"] {
            let start = std::time::Instant::now();
            let cubin = nvrtc.compile(&source.text, &source.name, arch, &[]).unwrap();
            assert_eq!(&cubin.image[..4], b"\x7fELF");
            let [resources] = &*cubin.kernels else { panic!("{}", cubin.log) };
            eprintln!("{arch} {:.1} ms {resources:?}", start.elapsed().as_secs_f64() * 1e3);
            assert_eq!(resources.name, source.name);
            assert_eq!((resources.spill_bytes, resources.stack_bytes), (0, 0), "{}", cubin.log);
            assert!(resources.registers * kernel.block_threads() <= 65536);
        }
    }
}

/// `y[i] = f(x[i], z[i])`.
fn pointwise(input: DType, output: DType, f: impl Fn(Expr, Expr) -> Expr) -> Kernel {
    let mut k = KernelBuilder::with_threads([32, 1, 1]);
    let (x, z) = (k.buffer(input, Access::Read), k.buffer(input, Access::Read));
    let y = k.buffer(output, Access::Write);
    let n = k.dim();
    k.for_(0, n, LoopKind::Thread(0), |k, i| k.store(y, &i, f(x.load(&i), z.load(&i))));
    k.finish().unwrap()
}

#[test]
fn every_operation_of_every_type_compiles() {
    let Some(nvrtc) = nvrtc() else { return };
    let check = |kernel: &Kernel| {
        let source = cuda::emit(kernel, &[]).unwrap();
        nvrtc.compile(&source.text, &source.name, "sm_80", &[]).unwrap_or_else(|e| panic!("{e}"));
    };
    for &dtype in DType::ALL {
        let half = matches!(dtype, DType::F16 | DType::BF16);
        // All in one kernel a type, so that the test stays quick.
        let mut k = KernelBuilder::with_threads([32, 1, 1]);
        let (x, y) = (k.buffer(dtype, Access::Read), k.buffer(dtype, Access::Write));
        let bits = k.buffer(DType::Bool, Access::Write);
        let n = k.dim();
        k.status(n.less(0), 1);
        k.for_(0, n.clone(), LoopKind::Thread(0), |k, i| {
            let (a, b) = (k.bind(x.load(&i)), k.bind(x.load_if(i.greater(0), &i - 1)));
            let (base, mut at) = (k.bind(i * 64), 0);
            let mut out = |k: &mut KernelBuilder, value: Expr| {
                k.store(y, &base + at, value);
                at += 1;
            };
            if half {
                out(k, (a.clone().cast(DType::F32) + 1.0f32).cast(dtype));
                out(k, i_select(&a, &b));
                return;
            }
            k.store(bits, 0, a.less(&b));
            for &op in BinaryOp::ALL {
                let legal = match op {
                    BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => !dtype.is_float(),
                    BinaryOp::Max | BinaryOp::Min => true,
                    BinaryOp::Shl | BinaryOp::Shr => dtype.is_int(),
                    _ => dtype != DType::Bool,
                };
                if legal {
                    out(k, a.clone().binary(op, &b));
                }
            }
            for &op in UnaryOp::ALL {
                let legal = match op {
                    UnaryOp::Not => !dtype.is_float(),
                    UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Sign => dtype != DType::Bool,
                    UnaryOp::IsNan => false,
                    _ => dtype.is_float(),
                };
                if legal {
                    out(k, a.clone().unary(op));
                }
            }
            for constant in [0.0, 1.0, -3.0] {
                out(k, a.equal(Expr::constant(dtype, constant)).select(&a, Expr::constant(dtype, constant)));
            }
        });
        k.for_(0, n, LoopKind::Thread(0), |k, i| {
            let a = k.bind(x.load(&i));
            for (at, &to) in (0..).zip(DType::ALL) {
                if !half && !matches!(to, DType::F16 | DType::BF16) {
                    k.store(y, &i * 16 + at, a.clone().cast(to).cast(dtype));
                }
            }
        });
        check(&k.finish().unwrap());
    }
    check(&pointwise(DType::F32, DType::BF16, |x, z| (x * z).cast(DType::BF16)));
}

fn i_select(a: &Expr, b: &Expr) -> Expr {
    Expr::from(true).select(a, b)
}

#[test]
fn an_error_shows_the_source() {
    let Some(nvrtc) = nvrtc() else { return };
    let error = nvrtc.compile("__global__ void k() {\n  wrong;\n}\n", "k", "sm_80", &[]).unwrap_err();
    assert!(matches!(error, NvrtcError::Compile { .. }));
    assert!(error.to_string().contains(">    2 |   wrong;"), "{error}");
    assert!(matches!(nvrtc.compile("\0", "k", "sm_80", &[]), Err(NvrtcError::Nul { .. })));
}
