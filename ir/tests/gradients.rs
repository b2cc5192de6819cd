//! Each vector-Jacobian product against central finite differences in f64, in the middle of a graph: the operands are
//! computed, and the upstream gradient is not one.

mod samples;

use std::collections::BTreeSet;

use egret_ir::ops::{
    Attention, Conv, ConvForm, CumulativeKind, InnerKind, Labels, Op, Outside, Places, ReduceKind, ScatterKind, Window,
    WindowKind,
};
use egret_ir::{
    DType, Graph, Literal, ScalarExpr, ScalarFn, Shape, Tensor, TensorType, Tensors, Tracer, Var, interpret, trace,
};

const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 2e-8;

fn values(shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    // distinct, no ties, none near zero
    let value = |i: usize| ((i * 7 + seed * 13 + 3) % 101) as f64 / 101.0 * 1.7 + 0.2 + 0.001 * i as f64;
    let all: Vec<f64> = (0..n).map(|i| if (i + seed).is_multiple_of(3) { -value(i) } else { value(i) }).collect();
    Tensor::new(shape, &all).unwrap()
}

fn shape_of(shape: &[usize]) -> Shape {
    shape.iter().map(|n| (*n).into()).collect()
}

/// `Σ w·(y + y²/5)` with uneven weights: an upstream gradient that depends on the value.
fn loss<'t>(t: &Tracer<'t>, y: Var<'t>) -> Var<'t> {
    let shape: Vec<usize> = y.shape().iter().map(|d| d.as_const().unwrap() as usize).collect();
    let weights = t.constant(values(&shape, 5)).cast(y.dtype());
    (weights * (y + y * y * 0.2)).sum()
}

fn run(graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let inputs: Tensors = inputs.iter().enumerate().map(|(i, v)| (format!("x{i}"), v.clone())).collect();
    let outcome = interpret(graph, &inputs, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
    outcome.outputs.into_iter().map(|(_, v)| v).collect()
}

/// Compares gradients by inputs of these shapes.
fn check(name: &str, shapes: &[&[usize]], build: impl for<'t> Fn(&Tracer<'t>, &[Var<'t>]) -> Var<'t>) {
    let given: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| values(s, i)).collect();
    check_at(name, &given, build);
}

fn check_at(name: &str, given: &[Tensor], build: impl for<'t> Fn(&Tracer<'t>, &[Var<'t>]) -> Var<'t>) {
    let graph = trace(|t| {
        let inputs: Vec<Var> = given
            .iter()
            .enumerate()
            .map(|(i, v)| t.input(&format!("x{i}"), TensorType::new(v.dtype(), shape_of(v.shape()))))
            .collect();
        let floats: Vec<Var> = inputs.iter().copied().filter(|v| v.dtype().is_float()).collect();
        let inner: Vec<Var> = inputs.iter().map(|x| if x.dtype().is_float() { *x * 1.25 + 0.01 } else { *x }).collect();
        let loss = loss(t, build(t, &inner));
        let mut outputs = vec![loss];
        outputs.extend(t.grad(loss, &floats));
        outputs
    })
    .unwrap_or_else(|e| panic!("{name}: {e}"));
    let found = run(&graph, given);
    let mut gradient = found[1..].iter();
    for (which, tensor) in given.iter().enumerate().filter(|(_, v)| v.dtype().is_float()) {
        let gradient = gradient.next().unwrap();
        assert_eq!(gradient.shape(), tensor.shape(), "{name}");
        let scale = gradient.values().fold(1.0, |m: f64, g| m.max(g.as_f64().abs()));
        for i in 0..tensor.elements() {
            let at = |d: f64| {
                let mut moved = given.to_vec();
                let value = tensor.get(i).as_f64() + d;
                moved[which].set(i, egret_ir::ScalarValue::Float(value));
                run(&graph, &moved)[0].get(0).as_f64()
            };
            let (want, got) = ((at(STEP) - at(-STEP)) / (2.0 * STEP), gradient.get(i).as_f64());
            assert!(
                (want - got).abs() <= TOLERANCE * scale,
                "{name}: x{which}[{i}] has {got}, differences give {want}"
            );
        }
    }
}

#[test]
fn scalar_functions_over_broadcast() {
    for f in ScalarFn::ALL {
        if f.result_dtype(&vec![DType::F64; f.arity()]) != Ok(DType::F64) {
            continue;
        }
        // logarithms and powers of positive numbers only
        let positive = matches!(f, ScalarFn::Log | ScalarFn::Sqrt | ScalarFn::Rsqrt | ScalarFn::Pow);
        let within_one =
            matches!(f, ScalarFn::Asin | ScalarFn::Acos | ScalarFn::Atanh | ScalarFn::Log1p | ScalarFn::Tan);
        match f.arity() {
            1 => check(f.name(), &[&[3, 1, 5]], |_, x| match f {
                ScalarFn::Acosh => (x[0] * x[0] + 1.3).map(*f, &[]),
                _ if positive => (x[0] * x[0] + 0.3).map(*f, &[]),
                _ if within_one => (x[0].tanh() * 0.9).map(*f, &[]),
                _ => x[0].map(*f, &[]),
            }),
            _ => check(f.name(), &[&[3, 1, 5], &[2, 1]], |_, x| {
                let base = if positive { x[0] * x[0] + 0.3 } else { x[0] };
                base.map(*f, &[x[1]])
            }),
        }
    }
    check("select", &[&[2, 3], &[3], &[2, 1]], |_, x| x[0].greater(0.3).select(x[1], x[2]));
    check("casts", &[&[4]], |_, x| x[0].cast(DType::F64) * 2.0);
}

#[test]
fn movement() {
    check("reshape", &[&[2, 3, 1]], |_, x| x[0].reshape([3, 2]));
    check("transpose", &[&[2, 3, 4]], |_, x| x[0].transpose(&[2, 0, 1]));
    check("broadcast", &[&[3, 1]], |_, x| x[0].broadcast([2, 3, 5]));
    check("slice", &[&[7, 5]], |_, x| x[0].slice(0, 1, 6, 2).slice(1, 2, 5, 1));
    check("pad", &[&[2, 3]], |_, x| x[0].pad(&[1, 0], &[0, 2], 3.0));
    check("concat", &[&[2, 3], &[2, 1]], |t, x| t.concat(&[x[0], x[1], x[0]], 1));
    check("reverse", &[&[2, 3]], |_, x| x[0].reverse(&[0, 1]) * x[0]);
}

#[test]
fn contractions() {
    for (labels, a, b) in [
        ("ab,bc->ac", vec![3, 4], vec![4, 5]),
        ("abc,dbc->bad", vec![2, 3, 4], vec![5, 3, 4]),
        ("ab,cb->c", vec![3, 4], vec![5, 4]),
        ("a,b->ba", vec![3], vec![1]),
        ("abc,c->ab", vec![1, 3, 2], vec![2]),
    ] {
        check(labels, &[&a, &b], |_, x| x[0].dot_general(x[1], labels));
    }
    check("matmul", &[&[2, 1, 3, 4], &[5, 4, 2]], |_, x| x[0].matmul(x[1]));
}

#[test]
fn convolutions() {
    let conv = Conv::forward(&[2, 1], &[1, 0], &[0, 1], &[1, 2], 2);
    check("conv", &[&[2, 4, 5, 4], &[2, 2, 2, 2]], |_, x| x[0].conv(x[1], conv.clone()));
    let grad = Conv { form: ConvForm::InputGrad, extent: Shape::from([5i64, 4]), ..conv.clone() };
    check("conv_input_grad", &[&[2, 2, 3, 3], &[2, 2, 2, 2]], |_, x| x[0].conv(x[1], grad.clone()));
    let grad = Conv { form: ConvForm::WeightGrad, extent: Shape::from([2i64, 2]), ..conv.clone() };
    check("conv_weight_grad", &[&[2, 4, 5, 4], &[2, 2, 3, 3]], |_, x| x[0].conv(x[1], grad.clone()));
}

#[test]
fn reductions_and_windows() {
    for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min, ReduceKind::Prod] {
        check("reduce", &[&[3, 1, 4]], |_, x| x[0].reduce(kind, &[0, 1], false));
        check("reduce, kept", &[&[3, 2]], |_, x| x[0].reduce(kind, &[-1], true));
    }
    let zero = Tensor::new(&[2, 3], &[0.5, -0.01 / 1.25, 2.0, -0.01 / 1.25, -0.01 / 1.25, 1.5f64]).unwrap();
    check_at("product with zeros", &[zero], |_, x| x[0].reduce_prod(&[1], false));
    for kind in [WindowKind::Max, WindowKind::Sum, WindowKind::MeanValid, WindowKind::MeanAll] {
        let window = Window {
            size: [3, 2].into_iter().collect(),
            stride: [2, 1].into_iter().collect(),
            pad_low: [1, 0].into_iter().collect(),
            pad_high: [1, 1].into_iter().collect(),
            dilation: [1, 2].into_iter().collect(),
        };
        check("window", &[&[2, 5, 4]], |_, x| x[0].reduce_window(kind, window.clone()));
    }
}

#[test]
fn composites() {
    for axis in [0, -1] {
        check("softmax", &[&[3, 4]], |_, x| x[0].softmax(axis));
        check("log_softmax", &[&[3, 4]], |_, x| x[0].log_softmax(axis));
    }
    check("layer_norm", &[&[2, 3, 5]], |_, x| x[0].layer_norm(1, 1e-3));
    check("rms_norm", &[&[3, 5]], |_, x| x[0].rms_norm(-1, 1e-3));
    let labels = Tensor::new(&[2, 3], &[0i64, 3, 1, 2, 2, 0]).unwrap();
    check_at("cross_entropy", &[values(&[2, 3, 4], 0), labels], |_, x| x[0].cross_entropy(x[1]));
    let index = Tensor::new(&[2, 2], &[2i64, 0, 2, 2]).unwrap();
    check_at("gather", &[values(&[2, 3, 2], 0), index.clone()], |_, x| x[0].gather(x[1], 1));
    check_at("scatter_add", &[values(&[3, 2], 0), index, values(&[2, 2, 2], 1)], |_, x| {
        x[0].scatter_add(x[1], x[2], 0)
    });
}

#[test]
fn indices() {
    let index = |shape: &[usize], v: &[i64]| Tensor::new(shape, v).unwrap();
    let elements = index(&[2, 2], &[2, 0, 1, 1]);
    let places = Places::Elements { axis: 1 };
    check_at("gather_elements", &[values(&[3, 3], 0), elements.clone()], |_, x| x[0].gather_at(places, x[1]));
    let tuples = index(&[2, 3, 1], &[2, 0, 2, 1, 1, 1]);
    check_at("gather_nd", &[values(&[2, 3, 2], 0), tuples.clone()], |_, x| {
        x[0].gather_at(Places::Tuples { batch: 1 }, x[1])
    });
    for kind in ScatterKind::ALL {
        let given = [values(&[2, 3], 0), index(&[2, 2], &[2, 2, 1, 0]), values(&[2, 2], 1)];
        check_at(kind.name(), &given, |_, x| x[0].scatter(places, kind, x[1], x[2]));
        let given = [values(&[2, 3, 2], 0), tuples.clone(), values(&[2, 3, 2], 1)];
        check_at(kind.name(), &given, |_, x| x[0].scatter(Places::Tuples { batch: 1 }, kind, x[1], x[2]));
        let given = [values(&[3, 1], 0), index(&[4], &[0, 2, 2, 2]), values(&[4, 1], 1)];
        check_at(kind.name(), &given, |_, x| x[0].scatter(Places::Rows { axis: 0 }, kind, x[1], x[2]));
    }
    let zeros = Tensor::new(&[4], &[0.5, -0.01 / 1.25, -0.01 / 1.25, 1.5f64]).unwrap();
    check_at("product with zeros", &[values(&[3], 0), index(&[4], &[0, 0, 1, 1]), zeros], |_, x| {
        x[0].scatter(Places::Rows { axis: 0 }, ScatterKind::Mul, x[1], x[2])
    });
}

#[test]
fn generated() {
    let fill = Outside::Fill(Literal::float(0.5, DType::F64));
    for outside in [fill, Outside::Clamp] {
        check("shifted", &[&[3, 1]], |t, x| {
            t.generate(x[0].ty(), &[x[0]], |g, i| {
                let (a, b) =
                    (g.load(0, &[&i[0] - 1, i[1].clone()], outside), g.load(0, &[&i[0] + 1, i[1].clone()], outside));
                a.clone() * b + a
            })
        });
    }
    // linear interpolation at places that are data, as in a grid sample
    let places = Tensor::new(&[5], &[0.3, 1.7, -0.6, 3.4, 0.9f64]).unwrap();
    check_at("interpolated", &[values(&[4], 0), places], |t, x| {
        t.generate(x[1].ty(), &[x[0], x[1]], |g, i| {
            let at = g.load(1, i, Outside::Fault);
            let low = g.bind(at.floor());
            let part = at - low.clone();
            let low = g.bind(low.cast(DType::I64));
            let (a, b) = (g.load(0, std::slice::from_ref(&low), Outside::Clamp), g.load(0, &[low + 1], fill));
            a * (-part.clone() + 1.0) + b * part
        })
    });
    // a windowed norm: nested loops, values of outer loops read inside, a count that is data
    let counts = Tensor::new(&[3], &[2i64, 0, 3]).unwrap();
    for kind in [InnerKind::Sum, InnerKind::Max, InnerKind::Min] {
        check_at("nested", &[values(&[4, 3], 0), values(&[3], 1), counts.clone()], |t, x| {
            t.generate(x[1].ty(), x, |g, i| {
                let scale = g.load(1, i, Outside::Fault);
                let count = g.load(2, i, Outside::Fault);
                let total = g.sum(4, |g, r| {
                    let v = g.load(0, &[r, i[0].clone()], Outside::Fault);
                    v.clone() * v
                });
                let best = g.reduce(kind, 3, Some(count.clone()), |g, r| {
                    let inner =
                        g.sum(2, |g, s| g.load(0, &[&r + &s, i[0].clone()], Outside::Clamp) * s.cast(DType::F64));
                    inner * scale.clone() * total.clone()
                });
                count.greater(0).select(best, 0.0) + scale.map(ScalarFn::Tanh, &[])
            })
        });
    }
    let same = Tensor::new(&[4], &[0.5, 1.5, 1.5, 0.25f64]).unwrap();
    let graph = trace(|t| {
        let x = t.input("x0", TensorType::new(DType::F64, [4]));
        let loss = t.generate(TensorType::scalar(DType::F64), &[x], |g, _| {
            g.reduce(InnerKind::Max, 4, None, |g, r| g.load(0, &[r], Outside::Fault))
        });
        t.grad(loss, &[x])
    });
    let shared = run(&graph.unwrap(), &[same]);
    assert_eq!(shared[0], Tensor::new(&[4], &[0.0, 0.5, 0.5, 0.0f64]).unwrap(), "ties share the gradient");
}

#[test]
fn attention() {
    let score = |scale: f64| {
        let scaled =
            ScalarExpr::apply(ScalarFn::Mul, [ScalarExpr::arg(0), ScalarExpr::float(scale, DType::F64)], DType::F64);
        ScalarExpr::apply(ScalarFn::Add, [scaled, ScalarExpr::arg(1)], DType::F64)
    };
    let op = Attention {
        q: Labels::new("bhqd"),
        k: Labels::new("bhkd"),
        v: Labels::new("bhkv"),
        o: Labels::new("bqhv"),
        scores: Labels::new("bhqk"),
        score: score(0.6),
        causal: None,
        empty_is_zero: false,
    };
    check("attention", &[&[2, 1, 3, 4], &[2, 1, 5, 4], &[2, 1, 5, 2]], |t, x| {
        let mask = t.constant(values(&[1, 1, 3, 5], 9));
        x[0].attention(x[1], x[2], op.clone(), &[mask]).0
    });
    let causal = Attention { causal: Some(1.into()), empty_is_zero: true, ..op.clone() };
    check("causal attention", &[&[2, 1, 3, 4], &[2, 1, 5, 4], &[2, 1, 5, 2]], |t, x| {
        // the second query sees no key
        let rows = t.iota(egret_ir::TensorType::new(DType::I64, [1i64, 1, 3, 1]), 2);
        let zero = t.scalar(egret_ir::Literal::float(0.0, DType::F64));
        let mask = rows.equal(1i64).select(t.scalar(egret_ir::Literal::float(f64::NEG_INFINITY, DType::F64)), zero);
        x[0].attention(x[1], x[2], causal.clone(), &[mask]).0
    });
    // a learned bias, a score that is not affine, and the log-sum-exp
    let squashed = Attention { score: ScalarExpr::apply(ScalarFn::Tanh, [op.score.clone()], DType::F64), ..op.clone() };
    for op in [&op, &squashed] {
        check("attention with a bias", &[&[2, 1, 3, 4], &[2, 1, 5, 4], &[2, 1, 5, 2], &[1, 3, 1]], |t, x| {
            let (o, lse) = x[0].attention(x[1], x[2], op.clone(), &[x[3]]);
            t.concat(&[o.flatten(0), lse.cast(DType::F64).flatten(0) * 0.0], 0)
        });
    }
}

#[test]
fn loops() {
    check("scan", &[&[2], &[4, 2], &[2]], |t, x| {
        let (last, all) = t.scan(&[x[0]], &[x[1]], |_, carry, slice| {
            let next = (carry[0] * x[2] + slice[0]).tanh();
            (vec![next], vec![next * carry[0]])
        });
        t.concat(&[last[0].reshape([1, 2]), all[0]], 0)
    });
    check("scan backwards, two carries", &[&[3], &[3], &[5, 3]], |t, x| {
        let (last, all) = t.scan_of(5.into(), true, &[x[0], x[1]], &[x[2]], |_, carry, slice| {
            let a = carry[0] * 0.5 + carry[1] * slice[0];
            (vec![a, carry[0].sigmoid()], vec![a])
        });
        t.concat(&[last[1].reshape([1, 3]), all[0]], 0)
    });
}

/// The gradient of a gradient: loss is the sum of a first gradient.
#[test]
fn second_derivatives() {
    type Build = for<'t> fn(&Tracer<'t>, &[Var<'t>]) -> Var<'t>;
    let twice: &[(&str, &[&[usize]], Build)] = &[
        ("tanh", &[&[3]], |_, x| x[0].tanh()),
        ("softmax", &[&[2, 3]], |_, x| x[0].softmax(-1)),
        ("log_softmax", &[&[2, 3]], |_, x| x[0].log_softmax(-1)),
        ("layer_norm", &[&[2, 4]], |_, x| x[0].layer_norm(-1, 1e-3)),
        ("rms_norm", &[&[2, 4]], |_, x| x[0].rms_norm(-1, 1e-3)),
        ("conv", &[&[1, 2, 4, 4], &[2, 2, 3, 3]], |_, x| x[0].conv2d(x[1], [1, 1], [1, 1])),
        ("matmul", &[&[2, 3], &[3, 2]], |_, x| x[0].matmul(x[1]).sigmoid()),
        ("maximum", &[&[1, 4, 4]], |_, x| x[0].max_pool(&[2, 3], &[1, 2], &[1, 1])),
        ("attention", &[&[1, 2, 3], &[1, 3, 3], &[1, 3, 2]], |_, x| {
            let half = ScalarExpr::float(0.5, DType::F64);
            let op = Attention {
                q: Labels::new("bqd"),
                k: Labels::new("bkd"),
                v: Labels::new("bkv"),
                o: Labels::new("bqv"),
                scores: Labels::new("bqk"),
                score: ScalarExpr::apply(ScalarFn::Mul, [ScalarExpr::arg(0), half], DType::F64),
                causal: None,
                empty_is_zero: false,
            };
            x[0].attention(x[1], x[2], op, &[]).0
        }),
        ("average", &[&[1, 4, 4]], |_, x| x[0].avg_pool(&[2, 2], &[2, 2], &[1, 1])),
        ("generate", &[&[3]], |t, x| {
            t.generate(x[0].ty(), x, |g, i| {
                let (a, b) = (g.load(0, &[&i[0] - 1], Outside::Clamp), g.load(0, i, Outside::Clamp));
                (a * b).map(ScalarFn::Sin, &[])
            })
        }),
        ("scatter", &[&[3], &[2]], |t, x| {
            let index = t.constant(Tensor::new(&[2], &[1i64, 1]).unwrap());
            x[0].scatter(Places::Rows { axis: 0 }, ScatterKind::Mul, index, x[1])
        }),
        ("scan", &[&[2], &[3, 2]], |t, x| t.scan(&[x[0]], &[x[1]], |_, c, s| (vec![(c[0] * s[0]).sin()], vec![])).0[0]),
    ];
    for (name, shapes, build) in twice {
        check(name, shapes, |t, x| {
            let inner = loss(t, build(t, x));
            let gradients = t.grad(inner, x);
            let all: Vec<Var> = gradients.iter().map(|g| g.reshape([-1])).collect();
            t.concat(&all, 0)
        });
    }
}

#[test]
fn what_has_no_gradient_says_so() {
    let x = TensorType::new(DType::F32, [3]);
    let code = |build: for<'t> fn(&Tracer<'t>, Var<'t>) -> Var<'t>| {
        let graph = trace(|t| {
            let x = t.input("x", x.clone());
            let loss = build(t, x).sum();
            t.grad(loss, &[x])
        });
        egret_ir::autodiff::expand(&graph.unwrap()).map(|_| "").unwrap_or_else(|e| {
            assert!(!e.origin.is_empty(), "{e}");
            e.code
        })
    };
    assert_eq!(code(|_, x| x.stop_gradient()), "");
    assert_eq!(code(|_, x| x.floor()), "");
    let graph = trace(|t| {
        let (x, y) = (t.input("x", x.clone()), t.input("y", x.clone()));
        let loss = x.sum();
        t.grad(loss, &[x, y])
    })
    .unwrap();
    let strict = egret_ir::autodiff::expand_with(&graph, egret_ir::autodiff::Unreached::Error);
    let error = strict.unwrap_err();
    assert!(error.code == "E0403" && error.message.contains("`y`"), "{error}");
    let ones = Tensor::splat(Literal::float(2.0, DType::F32), &[3]);
    let inputs: Tensors = [("x".into(), ones.clone()), ("y".into(), ones)].into_iter().collect();
    let outcome = interpret(&graph, &inputs, &Tensors::new()).unwrap();
    assert_eq!(outcome.outputs[1].1, Tensor::zeros(DType::F32, &[3]));
    let integers = trace(|t| {
        let i = t.input("i", egret_ir::i64([3]));
        let loss = i.cast(DType::F32).sum();
        t.grad(loss, &[i])
    });
    assert_eq!(egret_ir::autodiff::expand(&integers.unwrap()).unwrap_err().code, "E0404");
}

/// Graphs of gradients survive the text form, and the verifier accepts them.
#[test]
fn gradients_have_a_text() {
    let graph = trace(|t| {
        let (x, w) = (t.input("x", egret_ir::f32(["n", "m"])), t.input("w", egret_ir::f32(["m", "m"])));
        let (last, all) = t.scan(&[w], &[x], |_, carry, slice| {
            let next = (carry[0] * slice[0]).tanh();
            (vec![next], vec![next.softmax(-1)])
        });
        let loss = last[0].sum() + all[0].max_pool(&[2, 2], &[2, 2], &[0, 0]).mean();
        let mut outputs = vec![loss];
        outputs.extend(t.grad(loss, &[x, w]));
        outputs
    })
    .unwrap();
    for graph in [egret_ir::autodiff::expand(&graph).unwrap(), graph] {
        egret_ir::verify(&graph).unwrap();
        let text = egret_ir::text::print(&graph);
        let parsed = egret_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(parsed, graph, "{text}");
    }
}

#[test]
fn orders_and_accumulations() {
    for largest in [true, false] {
        check("top_k", &[&[3, 5, 2]], |_, x| x[0].top_k(1, 3, largest).0);
    }
    check("sort", &[&[7]], |_, x| x[0].sort(0, true).0);
    for kind in CumulativeKind::ALL {
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            check("cumulative", &[&[2, 4, 1], &[1, 5]], |t, x| {
                let y = x[0].cumulative(kind, 1, exclusive, reverse).flatten(0);
                let z = x[1].cumulative(kind, -1, exclusive, reverse).flatten(0);
                let all = t.concat(&[y, z], 0);
                // the extremum of no elements is an infinity
                let one = t.scalar(Literal::float(1.0, DType::F64)).broadcast(all.shape());
                all.is_inf().select(one, all)
            });
        }
    }
    let zeros = Tensor::new(&[5], &[0.5, -0.01 / 1.25, 2.0, -0.01 / 1.25, 1.5f64]).unwrap();
    for exclusive in [true, false] {
        check_at("product with zeros", std::slice::from_ref(&zeros), |_, x| {
            x[0].cumulative(CumulativeKind::Prod, 0, exclusive, false)
        });
    }
}

/// Values whose extents only the data tell.
#[test]
fn data_dependent_sizes() {
    let keep = Tensor::new(&[4], &[1i64, 0, 0, 1]).unwrap();
    check_at("compress", &[values(&[4, 3], 0), keep], |t, x| {
        let kept = x[0].compress(x[1].cast(DType::Bool), Some(0));
        let squares = kept * kept * 0.5;
        let total = (squares.reduce_sum(&[0], false) * 1.5).reshape([3]);
        let back = t.scalar(Literal::float(0.0, DType::F64)).broadcast([4, 3]);
        back.scatter_add(x[1].non_zero().reshape([-1]), kept.sigmoid(), 0) + total
    });
    let equal = Tensor::new(&[5], &[0.7, -0.3, 0.7, 1.1, -0.3f64]).unwrap();
    let graph = trace(|t| {
        let x = t.input("x0", TensorType::new(DType::F64, [5]));
        let loss = (x.unique(None, true)[0] * 2.0).sum();
        t.grad(loss, &[x])
    });
    let first = run(&graph.unwrap(), &[equal]);
    assert_eq!(first[0], Tensor::new(&[5], &[2.0, 2.0, 0.0, 2.0, 0.0f64]).unwrap(), "the first of equals gets it");
}

#[test]
fn branches_and_while_loops() {
    for choice in [0i64, 1] {
        let choice = Tensor::new(&[1], &[choice]).unwrap();
        check_at("if", &[values(&[3], 0), values(&[2, 3], 1), choice], |t, x| {
            let one = x[2].reshape(Shape::scalar()).equal(1i64);
            let (a, b) = (x[0], x[1]);
            t.cond(one, |_| vec![(a * b).sin(), a], |_| vec![b * b, a.exp()]).into_iter().reduce(|x, y| x * y).unwrap()
        });
    }
    for trips in [0i64, 1, 3, 9] {
        let trips = Tensor::new(&[], &[trips]).unwrap();
        check_at("while", &[values(&[3], 0), values(&[3], 1), trips], |t, x| {
            let zero = t.scalar(Literal::int(0, DType::I64));
            let (last, n, ys) = t.while_loop(
                Some(4.into()),
                &[x[0], zero],
                |_, carry| carry[1].less(x[2]),
                |_, carry| {
                    let next = (carry[0] * x[1]).tanh();
                    (vec![next, carry[1] + 1i64], vec![next * carry[0] * carry[1].cast(DType::F64)])
                },
            );
            last[0] * n.cast(DType::F64) + ys[0].reduce_sum(&[0], false) + x[0]
        });
    }
}

/// Every operator of the samples: its gradient agrees with differences, or its home says why it has none.
#[test]
fn every_operator_has_a_gradient_or_a_reason() {
    let (mut differentiable, mut reasoned) = (BTreeSet::new(), BTreeSet::new());
    for sample in samples::samples() {
        let given: Vec<Tensor> = sample
            .given
            .iter()
            .enumerate()
            .map(|(i, given)| match given {
                samples::Given::Values(shape) => values(shape, i),
                samples::Given::Positive(shape) => {
                    let mut v = values(shape, i);
                    (0..v.elements()).for_each(|at| {
                        let squashed = (v.get(at).as_f64().abs() / 2.2).min(0.9) * 0.7 + 0.05;
                        v.set(at, egret_ir::ScalarValue::Float(squashed));
                    });
                    v
                }
                samples::Given::Ints(shape, v) => Tensor::new(shape, v).unwrap(),
            })
            .collect();
        let mut integral = false;
        let graph = trace(|t| {
            let inputs: Vec<Var> = given
                .iter()
                .enumerate()
                .map(|(i, v)| t.input(&format!("x{i}"), TensorType::new(v.dtype(), shape_of(v.shape()))))
                .collect();
            let results = (sample.build)(t, DType::F64, &inputs);
            integral = results.iter().all(|y| y.dtype() != DType::F64);
        });
        let Ok(graph) = graph else {
            // integers and truth values have no gradients
            assert!(samples::needs_integers(&sample.name), "{} is not defined on f64", sample.name);
            continue;
        };
        for node in graph.nodes().iter().filter(|node| node.op.home().no_gradient().is_some()) {
            reasoned.insert(samples::kind(&node.op));
        }
        let none =
            graph.nodes().iter().any(|node| matches!(node.op, Op::Fused(_) | Op::StopGradient(_) | Op::Bitcast(_)));
        if integral || none {
            continue;
        }
        for node in graph.nodes() {
            differentiable.insert(samples::kind(&node.op));
        }
        check_at(&sample.name, &given, |t, x| {
            let results = (sample.build)(t, DType::F64, x);
            // weights need a fixed extent, which a data-dependent one is not
            let fixed = |y: Var<'_>| y.shape().iter().all(|dim| dim.as_const().is_some());
            let floats = results.into_iter().filter(|y| y.dtype() == DType::F64);
            let floats: Vec<Var> =
                floats.map(|y| if fixed(y) { y.reshape([-1]) } else { (y * y + y * 0.3).sum().reshape([1]) }).collect();
            t.concat(&floats, 0)
        });
    }
    let all: BTreeSet<&str> = differentiable.union(&reasoned).copied().collect();
    assert_eq!(all.len(), samples::KINDS, "neither a gradient nor a reason: {all:?}");
}
