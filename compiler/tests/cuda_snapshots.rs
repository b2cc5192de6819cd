//! CUDA kernels of reductions, rows, windows, gathers, sorts and attention as people read them: the rewritten graph, the
//! launches, the CUDA C without the prelude, and what NVRTC makes of each kernel for each architecture. A change of any shows
//! in a snapshot. Contractions have theirs in `cuda_contractions`.

#[path = "support/figures.rs"]
mod figures;
#[path = "support/nvrtc.rs"]
mod nvrtc;

use egret_compiler::CompileOptions;
use egret_ir::{DType, Graph, TensorType, f32, i64, trace};

fn check(name: &str, graph: &Graph) {
    let options = CompileOptions::default();
    insta::assert_snapshot!(format!("{name}.kernels"), figures::kernels(graph, &options));
    if let Some(figures) = figures::figures(graph, &options) {
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
