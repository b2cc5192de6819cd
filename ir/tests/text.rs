//! The text form: what it looks like, what it refuses, and that files keep everything.

use egret_ir::ops::{Attention, Conv, DotGeneral, Fused, Labels, Norm, NormKind, Prologue, Real};
use egret_ir::{DType, Dim, Graph, Literal, ScalarExpr, ScalarFn, Tensor, TensorType, Weight, f32, text, trace};

fn round_trip(graph: &Graph) -> String {
    let printed = text::print(graph);
    let parsed = text::parse_with(&printed, &text::large_constants(graph)).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(&parsed, graph, "{printed}");
    assert_eq!(text::print(&parsed), printed);
    printed
}

#[test]
fn a_graph_reads_like_a_program() {
    let graph = trace(|t| {
        let x = t.input("x", TensorType::new(DType::F32, [Dim::symbol_in("n", 2, 8), Dim::from(3)]));
        let w = t.param("w", Tensor::zeros(DType::F32, &[4, 3]));
        x.dot_general(w, "bi,oi->bo").reduce_max(&[1], false) * 0.1
    })
    .unwrap();
    let want = "graph {\n  %0 = input \"x\" : f32[n[2..8], 3]\n  %1 = param \"w\" : f32[4, 3]\n  \
        %2 = dot_general(%0, %1) {lhs=ab, rhs=cb, out=ac} : f32[n[2..8], 4]\n  \
        %3 = reduce_max(%2) {axes=[1], keep=false} : f32[n[2..8]]\n  %4 = const [0.1] : f32[]\n  \
        %5 = mul(%3, %4) : f32[n[2..8]]\n  output \"output\" = %5\n}\n";
    assert_eq!(round_trip(&graph), want);
}

#[test]
fn every_kind_of_attribute_and_constant_survives() {
    let arg = ScalarExpr::arg;
    let scaled = ScalarExpr::apply(ScalarFn::Mul, [arg(0), ScalarExpr::float(0.125, DType::F32)], DType::F32);
    let graph = trace(|t| {
        let x = t.input("a \"name\" \\ with\nmarks", f32([2, 4, 5, 6]));
        let n = Dim::symbol("n");
        let odd = (n.clone() * n.clone()).floor_div(&Dim::from(3)) - n.clone().modulo(&Dim::from(4)) + Dim::from(7);
        t.input("odd", TensorType::new(DType::I8, [odd, n.maximum(&Dim::from(5)), Dim::fresh(3, n * Dim::from(2))]));
        for dtype in DType::ALL {
            let values: Vec<f64> = vec![0.0, 1.0, 3.0, 1e-5, -0.0, f64::INFINITY, f64::NAN];
            let mut tensor = Tensor::zeros(*dtype, &[7]);
            values.iter().enumerate().for_each(|(i, v)| tensor.set(i, egret_ir::ScalarValue::Float(*v)));
            t.constant(tensor);
        }
        t.constant(Tensor::zeros(DType::F32, &[100]));
        t.constant(Tensor::zeros(DType::I64, &[0, 3]));
        let conv = Conv::forward(&[2, 1], &[0, 1], &[1, 0], &[1, 1], 2);
        let w = t.param("w", Weight::Fill { value: Literal::float(0.5, DType::F32), shape: vec![8, 2, 3, 3] });
        let bias = t.constant(Tensor::zeros(DType::F32, &[8, 1, 1]));
        let relu = ScalarExpr::apply(ScalarFn::Relu, [scaled.clone()], DType::F32);
        let epilogue = ScalarExpr::apply(ScalarFn::Add, [relu, arg(1)], DType::F32);
        let fused = Fused::epilogue(conv.into(), 2, epilogue.clone(), DType::F32);
        let y = t.add(fused.clone(), &[x, w, bias]);
        let prologue = Some(Prologue { program: scaled.clone(), extras: 0 });
        t.add(Fused { prologue, ..fused.clone() }, &[x, w, bias]);
        let program = ScalarExpr::apply(ScalarFn::Mul, [arg(0), arg(1)], DType::F32);
        let scale = t.constant(Tensor::zeros(DType::F32, &[4, 1, 1]));
        t.add(Fused { prologue: Some(Prologue { program, extras: 1 }), ..fused.clone() }, &[x, w, bias, scale]);
        let dot = DotGeneral::parse("ab,bc->ac").unwrap();
        let rows = Norm { kind: NormKind::Rms, axis: 1, eps: Real::new(1e-6) };
        let flat = y.reshape([8, -1]);
        let full = Fused {
            anchor: Box::new(dot.into()),
            bases: 2,
            prologue: None,
            epilogue: epilogue.clone(),
            dtype: DType::F32,
            rows: Some((Box::new(rows.into()), scaled.clone())),
            taps: vec![arg(0).cast(DType::F64).cast(DType::F32), epilogue.clone()],
        };
        let row = t.constant(Tensor::zeros(DType::F32, &[1, 1]));
        t.add(full, &[flat, flat.t(), row]);
        let attention = Attention {
            q: Labels::new("bqd"),
            k: Labels::new("bkd"),
            v: Labels::new("bkd"),
            o: Labels::new("bqd"),
            scores: Labels::new("bqk"),
            score: epilogue.clone(),
            causal: None,
            empty_is_zero: false,
        };
        let q = x.reshape([2, 20, 6]);
        q.attention(q, q, attention, &[row.reshape([1, 1, 1])]).0.pad(&[0, 1, 0], &[1, 0, 2], f64::NEG_INFINITY)
    })
    .unwrap();
    let printed = round_trip(&graph);
    assert!(printed.contains("weight \"w\" = fill 0.5:f32 [8, 2, 3, 3]"), "{printed}");
    let path = std::env::temp_dir().join(format!("egret-text-{}.egret", std::process::id()));
    text::save(&path, &graph).unwrap();
    let loaded = text::load(&path);
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(path.with_extension("safetensors")).unwrap();
    let loaded = loaded.unwrap();
    assert_eq!(loaded, graph);
    assert_eq!(loaded.weights, graph.weights);
}

#[test]
fn errors_carry_line_and_column() {
    for (source, place) in [
        ("graph {\n  %0 = input \"x\" : f32[2]\n  %1 = add(%0, %2) : f32[2]\n}", "3:16:"),
        ("graph {\n  %0 = input \"x\" : f32[2]\n  %1 = exp(%0) : f32[3]\n}", "3:18:"),
        ("graph {\n  %0 = const [1, 2.5] : i64[2]\n}", "2:18:"),
        ("graph {\n  %0 = nonsense : i64[2]\n}", "2:8:"),
        ("graph {\n  %0 = input \"x : f32[2]\n}", "2:"),
        ("graph { %0 = const @const.00 : f32[100] }", "1:20:"),
        ("graph {} more", "1:10:"),
        ("graf", "1:1:"),
    ] {
        let error = text::parse(source).unwrap_err();
        assert_eq!(error.code, "E0601");
        assert!(error.message.starts_with(place), "{source}: {error}");
    }
}

/// Damaged texts are errors or other graphs, never a panic.
#[test]
fn damaged_texts_do_not_panic() {
    let graph = trace(|t| {
        let x = t.input("x", f32(["n", "m"]));
        let (_, ys) = t.scan(&[], &[x], |_, _, s| (vec![], vec![s[0].softmax(0).pad(&[1], &[2], 0.5)]));
        ys[0].slice(1, 1, 3, 2)
    });
    let graph = graph.or_else(|_| trace(|t| t.input("x", f32(["n", "m"])).softmax(1))).unwrap();
    let dynamic = egret_ir::random::exact_dynamic(7, 40, DType::I32).unwrap().graph;
    let texts = [text::print(&graph), text::print(&dynamic)];
    let constants = text::large_constants(&dynamic);
    let mut random = egret_ir::random::Random::new(3);
    let marks = ['{', '}', '[', ']', '(', ')', '%', '"', '-', '9', ',', '=', ':', 'é', '\\'];
    for i in 0..4000 {
        let mut damaged: Vec<char> = texts[i % 2].chars().collect();
        for _ in 0..1 + random.below(4) {
            let at = random.below(damaged.len());
            match random.below(3) {
                0 => drop(damaged.remove(at)),
                1 => damaged.insert(at, marks[random.below(marks.len())]),
                _ => damaged[at] = marks[random.below(marks.len())],
            }
        }
        let _ = text::parse_with(&damaged.into_iter().collect::<String>(), &constants);
    }
    let deep = format!("graph {{ %0 = input \"x\" : f32[{}1{}] }}", "min(".repeat(5000), ", 1)".repeat(5000));
    assert_eq!(text::parse(&deep).unwrap_err().code, "E0601");
}
