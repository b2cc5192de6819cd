//! CUDA kernels of reductions, rows, windows, gathers, sorts and attention as people read them: the rewritten graph, the
//! launches, the CUDA C without the prelude, and what NVRTC makes of each kernel for each architecture. A change of any shows
//! in a snapshot. Contractions have theirs beside their tests.

#[path = "support/nvrtc.rs"]
mod nvrtc;

use std::fmt::Write as _;

use egret_compiler::{CompileOptions, Compiled, compile};
use egret_ir::{DType, Graph, TensorType, f32, i64, text, trace};
use egret_program::{DeviceDescription, KernelBody, Target};

fn compiled(graph: &Graph, device: &DeviceDescription) -> Compiled {
    compile(graph, device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Graph, launches and kernels.
fn kernels(graph: &Graph) -> String {
    let compiled = compiled(graph, &DeviceDescription::named("sm_90a").unwrap());
    let mut out = text::print(&compiled.rewritten.graph);
    for launch in compiled.program.launches() {
        let kernel = compiled.program.kernel(launch.kernel);
        let _ = writeln!(out, "\n{} {}: grid {}", kernel.family, kernel.name, launch.grid);
    }
    for kernel in &compiled.program.kernels {
        let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
        let body = code.source.find("extern \"C\" __global__").expect("a kernel");
        let _ = write!(out, "\n// {:?} threads\n{}", code.threads, &code.source[body..]);
    }
    out
}

/// Registers, shared memory, spills and blocks of a multiprocessor, by architecture.
fn figures(graph: &Graph) -> Option<String> {
    let nvrtc = nvrtc::nvrtc()?;
    let mut out = String::from("architecture kernel family threads registers shared spilled blocks\n");
    for name in ["sm_80", "sm_89", "sm_90a"] {
        let device = DeviceDescription::named(name).unwrap();
        let Target::Cuda { arch, shared_bytes, .. } = &device.target else { panic!("{name}") };
        let program = compiled(graph, &device).program;
        let stats = egret_runtime::cuda::stats(&program, arch, *shared_bytes).unwrap_or_else(|e| panic!("{e}"));
        for s in stats {
            let kernel = &program.kernels[s.kernel];
            let (threads, registers, shared, blocks) = (s.threads, s.registers, s.shared_bytes, s.blocks);
            assert_eq!((s.spill_bytes, s.stack_bytes), (0, 0), "{name} {}", kernel.name);
            assert!(blocks > 0, "{name} {}: no block fits", kernel.name);
            let _ = writeln!(
                out,
                "{name} {} {} {threads} {registers} {shared} {} {blocks}",
                kernel.name, kernel.family, s.spill_bytes
            );
        }
        if name == "sm_90a" {
            // no description yet, but the same texts
            for kernel in &program.kernels {
                let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
                let made = nvrtc.compile(&code.source, &kernel.name, "sm_100", &[]).unwrap_or_else(|e| panic!("{e}"));
                let defect = made.log.contains("Potential Performance Loss") || made.log.contains("(C7");
                assert!(!defect, "{}", made.log);
            }
        }
    }
    Some(out)
}

fn check(name: &str, graph: &Graph) {
    insta::assert_snapshot!(format!("{name}.kernels"), kernels(graph));
    if let Some(figures) = figures(graph) {
        insta::assert_snapshot!(format!("{name}.figures"), figures);
    }
}

#[test]
fn softmax_of_rows_that_wait_in_shared_memory() {
    check("softmax", &trace(|t| t.input("x", f32([64, 4096])).softmax(-1)).unwrap());
}

#[test]
fn softmax_of_rows_that_do_not() {
    check("long_softmax", &trace(|t| t.input("x", f32([8, 50_257])).softmax(-1)).unwrap());
}

#[test]
fn layer_norm() {
    let graph = trace(|t| {
        let (scale, shift) = (t.input("scale", f32([768])), t.input("shift", f32([768])));
        t.input("x", f32([128, 768])).layer_norm(-1, 1e-5) * scale + shift
    });
    check("layer_norm", &graph.unwrap());
}

#[test]
fn columns_in_two_passes() {
    check("column_sums", &trace(|t| t.input("x", f32([65_536, 64])).reduce_sum(&[0], false)).unwrap());
}

#[test]
fn rows_in_two_passes() {
    check("row_sums", &trace(|t| t.input("x", f32([4, 1_048_576])).reduce_mean(&[1], false)).unwrap());
}

#[test]
fn embedding_and_its_gradient() {
    let graph = trace(|t| {
        let table = t.input("table", f32([1000, 64]));
        let words = table.gather(t.input("at", i64([4, 32])), 0);
        let loss = (words * words).sum();
        let grads = t.grad(loss, &[table]);
        (words, grads[0])
    });
    check("embedding", &graph.unwrap());
}

#[test]
fn pooling() {
    let graph = trace(|t| {
        let x = t.input("x", f32([8, 64, 56, 56]));
        (x.max_pool(&[3, 3], &[2, 2], &[1, 1]), x.avg_pool(&[2, 2], &[2, 2], &[0, 0]))
    });
    check("pooling", &graph.unwrap());
}

#[test]
fn sorting_of_long_lines() {
    let graph = trace(|t| {
        let (values, places) = t.input("x", f32([2, 10_000])).top_k(1, 100, true);
        (values, places)
    });
    check("top_k", &graph.unwrap());
}

fn attention(dtype: DType, queries: i64, train: bool) -> Graph {
    let of = |rows: i64| TensorType::new(dtype, [4, 8, rows, 64]);
    let graph = trace(|t| {
        let (q, k, v) = (t.input("q", of(queries)), t.input("k", of(512)), t.input("v", of(512)));
        let o = (q.matmul(k.transpose(&[0, 1, 3, 2])) * 0.125).softmax(-1).matmul(v);
        if !train {
            return vec![o];
        }
        [vec![o], t.grad((o * t.input("do", of(queries))).sum(), &[q, k, v])].concat()
    });
    graph.unwrap()
}

#[test]
fn attention_of_halves() {
    check("attention", &attention(DType::BF16, 512, false));
}

#[test]
fn attention_of_f32() {
    check("attention_f32", &attention(DType::F32, 512, false));
}

#[test]
fn attention_of_one_query() {
    check("attention_decode", &attention(DType::BF16, 1, false));
}

#[test]
fn attention_and_its_gradient() {
    check("attention_gradient", &attention(DType::BF16, 512, true));
}
