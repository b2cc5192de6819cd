//! Products by tensor cores: every kernel on the simulator, warps in three orders, copies at once and as late as waits
//! allow; what NVRTC makes of them; and planted bugs.

#[path = "support/drawn.rs"]
mod drawn;
#[path = "support/nvrtc.rs"]
mod nvrtc;
#[path = "support/orders.rs"]
mod orders;
#[path = "support/simulate.rs"]
mod simulate;

use egret_compiler::{CompileOptions, F32Products, Level, compile};
use egret_ir::{DType, Dim, Graph, Tensor, TensorType, trace};
use egret_program::{DeviceDescription, KernelBody};
use orders::{check, compare, inputs, multiplies, of, program, source};
use simulate::{Simulated, everywhere};

/// `x · w`, sides transposed on demand, of whole tiles.
fn product(dtype: DType, [m, n, k]: [i64; 3], left: bool, right: bool) -> Graph {
    let graph = trace(|t| {
        let x = t.input("x", of(dtype, if left { [k, m] } else { [m, k] }));
        let w = t.input("w", of(dtype, if right { [n, k] } else { [k, n] }));
        let (x, w) = (if left { x.t() } else { x }, if right { w.t() } else { w });
        x.matmul(w)
    });
    graph.unwrap()
}

#[test]
fn operands_lie_either_way_round() {
    for left in [false, true] {
        for right in [false, true] {
            check(
                &format!("bf16 {left} {right}"),
                &product(DType::BF16, [128, 64, 96], left, right),
                F32Products::Fma,
                true,
            );
            check(
                &format!("f32 {left} {right}"),
                &product(DType::F32, [64, 128, 48], left, right),
                F32Products::Tf32x3,
                true,
            );
        }
    }
    check("f16", &product(DType::F16, [64, 64, 64], false, true), F32Products::Fma, true);
}

#[test]
fn extents_are_any() {
    use F32Products::{Fma, Tf32x3};
    let bf16 = DType::BF16;
    for (left, right) in [(false, false), (true, true)] {
        // nothing divides anything: elements go one by one
        check("odd", &product(bf16, [70, 45, 37], left, right), Fma, false);
        // four and eight bytes at once
        check("by two", &product(bf16, [70, 46, 38], left, right), Fma, false);
        check("by four", &product(bf16, [68, 76, 44], left, right), Fma, false);
        check("odd f32", &product(DType::F32, [33, 65, 19], left, right), Tf32x3, false);
    }
    let symbolic = trace(|t| {
        let ty = |dims: [Dim; 2]| TensorType { dtype: bf16, shape: dims.into_iter().collect() };
        let x = t.input("x", ty(["n".into(), 48.into()]));
        let y = x.matmul(t.input("w", of(bf16, [48, 64]))).cast(bf16);
        // sums of a length that only a run knows
        (y, x.t().matmul(x))
    });
    check("symbolic", &symbolic.unwrap(), Fma, false);
}

#[test]
fn batches_heads_and_several_sums() {
    let graph = trace(|t| {
        let x = t.input("x", of(DType::BF16, [2, 3, 40, 32]));
        let y = t.input("y", of(DType::BF16, [2, 3, 24, 32]));
        // queries of four heads share keys of two
        let (q, k) = (t.input("q", of(DType::BF16, [2, 24, 2, 2, 16])), t.input("k", of(DType::BF16, [2, 40, 2, 16])));
        let (h, w) = (t.input("h", of(DType::BF16, [40, 4, 16])), t.input("v", of(DType::BF16, [4, 16, 48])));
        vec![
            x.matmul(y.transpose(&[0, 1, 3, 2])),
            q.dot_general(k, "bqhgd,bkhd->bhgqk"),
            h.dot_general(w, "shd,hde->se"),
        ]
    });
    check("batched", &graph.unwrap(), F32Products::Fma, false);
}

/// An outer product sums no label: of a step's terms the first alone is there.
#[test]
fn outer_products_have_one_term() {
    let sm_80 = DeviceDescription::named("sm_80").unwrap();
    // rewriting makes of most of them multiplications
    let options = CompileOptions { level: Level::None, ..CompileOptions::default() };
    for (dtype, [m, n]) in
        [(DType::BF16, [11, 13]), (DType::BF16, [72, 64]), (DType::F16, [24, 10]), (DType::F32, [512, 384])]
    {
        let graph = trace(|t| {
            let (x, y) = (t.input("x", of(dtype, [m])), t.input("y", of(dtype, [n])));
            let (z, w) = (t.input("z", of(dtype, [2, 16])), t.input("w", of(dtype, [2, 9])));
            (x.dot_general(y, "a,b->ba"), z.dot_general(w, "ab,ac->abc"))
        });
        let graph = graph.unwrap();
        let program = compile(&graph, &sm_80, &options).unwrap_or_else(|e| panic!("{e}")).program;
        assert_eq!(multiplies(&program), dtype != DType::F32);
        compare(&format!("outer {dtype} {m} {n}"), &graph, &program, false);
    }
}

#[test]
fn epilogues_are_applied_where_sums_are_stored() {
    let graph = |dtype: DType, n: i64| {
        trace(move |t| {
            let x = t.input("x", of(dtype, [72, 64]));
            let y = x.matmul(t.input("w", of(dtype, [64, n]))) + t.input("bias", of(dtype, [n]));
            (y.gelu() + t.input("residual", of(dtype, [72, n]))).cast(DType::F32)
        })
        .unwrap()
    };
    check("vectors", &graph(DType::BF16, 64), F32Products::Fma, true);
    check("elements", &graph(DType::F16, 45), F32Products::Fma, false);
    check("f32", &graph(DType::F32, 48), F32Products::Tf32x3, false);
}

#[test]
fn small_grids_split_their_sums() {
    let graph = trace(|t| {
        let x = t.input("x", of(DType::BF16, [24, 1024]));
        (x.matmul(t.input("w", of(DType::BF16, [1024, 40]))) + t.input("bias", of(DType::BF16, [40]))).relu()
    });
    let graph = graph.unwrap();
    let launches = program(&graph, F32Products::Fma).launches().len();
    assert_eq!(launches, 2);
    check("split", &graph, F32Products::Fma, false);
}

#[test]
fn tf32_is_as_exact_as_its_operands() {
    let graph = product(DType::F32, [64, 64, 256], false, false);
    let program = program(&graph, F32Products::Tf32);
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let (inputs, bindings) = inputs(&graph);
    let given: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    let simulated = Simulated::new(nvrtc, &program, &|text| text.to_string());
    let (have, _) = simulated.run(&given, &bindings, everywhere().next().unwrap(), None).unwrap();
    let (x, w) = (given[0].as_slice::<f32>().unwrap(), given[1].as_slice::<f32>().unwrap());
    let mut worst = 0.0f64;
    for (i, bytes) in have[0].chunks_exact(4).enumerate() {
        let terms = (0..256).map(|k| f64::from(x[i / 64 * 256 + k]) * f64::from(w[k * 64 + i % 64]));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        // each operand is within half of 2^-10 of itself
        let error = (f64::from(f32::from_le_bytes(bytes.try_into().unwrap())) - sum).abs() / size;
        assert!(error <= 1.001 * 2f64.powi(-10), "{i}: {error:e}");
        worst = worst.max(error);
    }
    // the products are those of rounded operands
    assert!(worst > 2f64.powi(-16), "{worst:e}");
}

#[test]
fn sampled_blocks_of_a_real_size() {
    let (m, n, k) = (1000usize, 2048usize, 1024usize);
    let graph = product(DType::BF16, [m as i64, n as i64, k as i64], false, false);
    let program = program(&graph, F32Products::Fma);
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let source = source(&program);
    assert!(source.contains("wait_copies<1>"), "{source}");
    let (inputs, bindings) = inputs(&graph);
    let given: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    let simulated = Simulated::new(nvrtc, &program, &|text| text.to_string());
    let grid = program.launches()[0].grid.as_const().unwrap() as u32;
    // first, last, and three that a seed names
    let blocks = [0, grid - 1, grid * 3 / 7, grid * 5 / 11, grid * 9 / 13];
    let number = |tensor: &Tensor, i: usize| tensor.get(i).as_f64();
    let (x, w): (Vec<f64>, Vec<f64>) =
        ((0..m * k).map(|i| number(&given[0], i)).collect(), (0..k * n).map(|i| number(&given[1], i)).collect());
    for order in everywhere() {
        let (have, reports) = simulated.run(&given, &bindings, order, Some(&blocks)).unwrap_or_else(|e| panic!("{e}"));
        simulated.assert_least("sampled", &reports);
        let have = Tensor::from_bytes(DType::BF16, &[m, n], &have[0]).unwrap();
        let mut written = 0;
        for i in (0..m * n).filter(|i| !number(&have, *i).is_nan()) {
            written += 1;
            if i % 17 != 0 {
                continue;
            }
            let terms = (0..k).map(|t| x[i / n * k + t] * w[t * n + i % n]);
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            // sums of exact products in f32, rounded once to eight bits
            let bound = size * k as f64 * 2f64.powi(-24) + sum.abs() * 2f64.powi(-8);
            assert!((number(&have, i) - sum).abs() <= bound, "{i}: {} is not {sum}", number(&have, i));
        }
        assert!(written >= 4 * 64 * 64, "{written} elements");
    }
}

/// NVRTC's figures of the only kernel of a product of 4096 in every direction, in the large tile: two of its blocks fit.
fn fits(name: &str, dtype: DType, epilogue: u8, left: bool, right: bool) {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let graph = trace(|t| {
        let x = t.input("x", of(dtype, [4096, 4096]));
        let w = t.input("w", of(dtype, [4096, 4096]));
        let y = if left { x.t() } else { x }.matmul(if right { w.t() } else { w });
        let y = if epilogue > 0 { y + t.input("bias", of(dtype, [4096])) } else { y };
        if epilogue > 1 { y.relu() } else { y }
    });
    let program = program(&graph.unwrap(), F32Products::Fma);
    let [launch] = program.launches()[..] else { panic!("{name}") };
    let kernel = program.kernel(launch.kernel);
    let KernelBody::Cuda(code) = &kernel.body else { panic!("{name}") };
    assert_eq!((code.threads, launch.grid.as_const()), ([256, 1, 1], Some(32 * 32)), "{name}");
    for arch in ["sm_80", "sm_90a"] {
        let cubin = nvrtc.compile(&code.source, &kernel.name, arch, &[]).unwrap();
        let [made] = &*cubin.kernels else { panic!("{}", cubin.log) };
        eprintln!("{name} {left} {right} {arch}: {} registers, {} bytes", made.registers, made.shared_bytes);
        let defect = cubin.log.contains("Potential Performance Loss") || cubin.log.contains("(C7");
        assert!(!defect, "{name}: {}", cubin.log);
        assert_eq!((made.spill_bytes, made.stack_bytes), (0, 0), "{name}\n{}", code.source);
        assert!(made.registers <= 128, "{name} {left} {right} {arch}: {} registers", made.registers);
        assert!(2 * (made.shared_bytes + code.shared_bytes) <= 100 * 1024, "{name}: {}", made.shared_bytes);
    }
}

#[test]
fn two_blocks_of_the_large_tile_fit_a_multiprocessor() {
    for (name, epilogue) in [("none", 0), ("bias", 1), ("bias and relu", 2)] {
        for (left, right) in [(false, false), (false, true), (true, false), (true, true)] {
            fits(name, DType::BF16, epilogue, left, right);
        }
        fits(name, DType::F32, epilogue, false, false);
    }
    fits("transposed", DType::F32, 2, true, true);
}

#[test]
fn large_tiles_of_multiply_adds() {
    let graph = |[m, n, k]: [i64; 3], transposed: bool| {
        trace(|t| {
            let x = t.input("x", of(DType::F32, if transposed { [k, m] } else { [m, k] }));
            let w = t.input("w", of(DType::F32, if transposed { [n, k] } else { [k, n] }));
            let y = if transposed { x.t().matmul(w.t()) } else { x.matmul(w) };
            (y + t.input("bias", of(DType::F32, [n]))).relu()
        })
        .unwrap()
    };
    // on a GPU of one multiprocessor small products fill it
    let device = DeviceDescription { cores: 1, ..DeviceDescription::named("sm_80").unwrap() };
    for (name, extents, transposed) in
        [("whole", [128, 256, 40], false), ("transposed", [128, 128, 32], true), ("odd", [131, 125, 37], false)]
    {
        let graph = graph(extents, transposed);
        let program = compile(&graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
        assert!(program.kernels.iter().any(|kernel| kernel.text.contains("wait copies 2")), "{name}");
        compare(name, &graph, &program, name != "odd");
    }
}

#[test]
fn bands_of_tiles_reach_every_tile() {
    // on a GPU of few multiprocessors a small grid has several bands, the last one lower
    let device = DeviceDescription { cores: 4, ..DeviceDescription::named("sm_80").unwrap() };
    let graph = product(DType::BF16, [660, 1100, 32], false, false);
    let program = compile(&graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
    let [launch] = program.launches()[..] else { panic!("several launches") };
    let kernel = program.kernel(launch.kernel);
    assert!(kernel.text.contains("grid v0 <") && !kernel.text.contains("grid v1 <"), "{}", kernel.text);
    compare("bands", &graph, &program, false);
}

/// A bug in the text of a product, and whether any order shows it: as a fault, or as a wrong element.
fn shows(graph: &Graph, change: &dyn Fn(&str) -> String) -> bool {
    let program = program(graph, F32Products::Fma);
    let Some(nvrtc) = nvrtc::nvrtc() else { return true };
    assert_ne!(change(source(&program)), source(&program));
    let (inputs, bindings) = inputs(graph);
    let given: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    let run = |change: &dyn Fn(&str) -> String| {
        let simulated = Simulated::new(nvrtc, &program, change);
        let (given, bindings) = (&given, &bindings);
        move |order| simulated.run(given, bindings, order, None).map(|(outputs, _)| outputs)
    };
    let right = run(&|text| text.to_string())(everywhere().next().unwrap()).unwrap_or_else(|e| panic!("{e}"));
    let wrong = run(change);
    everywhere().any(|order| wrong(order).map_or(true, |outputs| outputs != right))
}

#[test]
fn planted_bugs_are_caught() {
    let graph = product(DType::BF16, [72, 40, 136], false, false);
    let barriers = |text: &str| text.matches("__syncthreads();").count();
    let program = program(&graph, F32Products::Fma);
    assert_eq!(barriers(source(&program)), 2);
    // a barrier less, in the loop or after it
    assert!(shows(&graph, &|text| text.replacen("__syncthreads();", "", 1)));
    assert!(shows(&graph, &|text| {
        let (head, tail) = text.rsplit_once("__syncthreads();").unwrap();
        format!("{head}{tail}")
    }));
    // a group more may be on its way
    assert!(shows(&graph, &|text| text.replace("wait_copies<1>()", "wait_copies<2>()")));
    // a barrier of the warp less, before or after its rows are in shared memory
    assert!(shows(&graph, &|text| text.replacen("__syncwarp();", "", 1)));
    assert!(shows(&graph, &|text| {
        let (head, tail) = text.rsplit_once("__syncwarp();").unwrap();
        format!("{head}{tail}")
    }));
    // a copy without its mask
    assert!(shows(&graph, &|text| {
        let (head, tail) = text.rsplit_once("copy_async<").unwrap();
        let (call, rest) = tail.split_once(");").unwrap();
        let (call, _) = call.rsplit_once(", ").unwrap();
        format!("{head}copy_async<{call});{rest}")
    }));
    // chunks permuted otherwise where they are loaded than where they were put
    assert!(shows(&graph, &|text| {
        let (head, tail) = text.rsplit_once("load_matrices_transposed(").unwrap();
        let (call, rest) = tail.split_once(");").unwrap();
        format!("{head}load_matrices_transposed({});{rest}", call.replacen("^", "|", 1))
    }));
    // matrices of the right side that are not transposed
    assert!(shows(&graph, &|text| {
        let (head, tail) = text.rsplit_once("load_matrices_transposed(").unwrap();
        format!("{head}load_matrices({tail}")
    }));
}
