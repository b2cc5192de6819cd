//! One small graph for each operator and form, in any element type: what the tests of types and of gradients run over.

#![allow(dead_code, reason = "each test that includes this reads a part of it")]

use egret_ir::ops::{
    Attention, AttentionGrad, Conv, ConvForm, CumulativeKind, Fused, InnerKind, Labels, NonMaxSuppression, Norm,
    NormGrad, NormKind, Op, Outside, Places, Proj, Real, Recompute, ReduceKind, ReduceWindowGrad, ScatterKind,
    SoftmaxGrad, Window, WindowKind,
};
use egret_ir::{DType, Dim, Literal, ScalarExpr, ScalarFn, Shape, Tensor, TensorType, Tracer, Var};

/// What an operand holds.
#[derive(Clone, Debug)]
pub enum Given {
    /// Values of the element type under test, of this shape.
    Values(Vec<usize>),
    /// The same, all above zero and at most one.
    Positive(Vec<usize>),
    /// i64 elements.
    Ints(Vec<usize>, Vec<i64>),
}

/// Adds the operator under test, in an element type, to its operands.
pub type Build = Box<dyn for<'t> Fn(&Tracer<'t>, DType, &[Var<'t>]) -> Vec<Var<'t>>>;

/// A graph of one operator.
pub struct Sample {
    pub name: String,
    pub given: Vec<Given>,
    pub build: Build,
    /// Whether it rounds more than once, so that only small whole numbers have one value whatever the type.
    pub steps: bool,
}

/// The kind of an operator. A new operator does not compile until it has one, and then needs a sample.
pub fn kind(op: &Op) -> &'static str {
    match op {
        Op::Input(_) => "input",
        Op::Param(_) => "param",
        Op::State(_) => "state",
        Op::Const(_) => "const",
        Op::Iota(_) => "iota",
        Op::Pointwise(_) => "pointwise",
        Op::Cast(_) => "cast",
        Op::Bitcast(_) => "bitcast",
        Op::Reshape(_) => "reshape",
        Op::Transpose(_) => "transpose",
        Op::Broadcast(_) => "broadcast",
        Op::Slice(_) => "slice",
        Op::Pad(_) => "pad",
        Op::Concat(_) => "concat",
        Op::Reverse(_) => "reverse",
        Op::DotGeneral(_) => "dot_general",
        Op::Conv(_) => "conv",
        Op::Reduce(_) => "reduce",
        Op::ReduceWindow(_) => "reduce_window",
        Op::ReduceWindowGrad(_) => "reduce_window_grad",
        Op::Softmax(_) => "softmax",
        Op::SoftmaxGrad(_) => "softmax_grad",
        Op::CrossEntropy(_) => "cross_entropy",
        Op::Norm(_) => "norm",
        Op::NormGrad(_) => "norm_grad",
        Op::Attention(_) => "attention",
        Op::AttentionGrad(_) => "attention_grad",
        Op::Gather(_) => "gather",
        Op::Scatter(_) => "scatter",
        Op::Generate(_) => "generate",
        Op::TopK(_) => "top_k",
        Op::Cumulative(_) => "cumulative",
        Op::NonZero(_) => "non_zero",
        Op::Unique(_) => "unique",
        Op::NonMaxSuppression(_) => "non_max_suppression",
        Op::Rng(_) => "rng",
        Op::Scan(_) => "scan",
        Op::If(_) => "if",
        Op::While(_) => "while",
        Op::Fused(_) => "fused",
        Op::Recompute(_) => "recompute",
        Op::Proj(_) => "proj",
        Op::Grad(_) => "grad",
        Op::StopGradient(_) => "stop_gradient",
        Op::CustomVjp(_) => "custom_vjp",
    }
}

/// The kinds that every sample may use besides the one under test.
pub const KINDS: usize = 45;

/// Whether a sample is of a scalar function of integers or truth values.
pub fn needs_integers(name: &str) -> bool {
    ScalarFn::from_name(name).is_some_and(|f| f.is_bitwise() || f.is_logical())
}

fn values(shape: &[usize]) -> Given {
    Given::Values(shape.to_vec())
}

fn ints(shape: &[usize], values: &[i64]) -> Given {
    Given::Ints(shape.to_vec(), values.to_vec())
}

fn labels(text: &str) -> Labels {
    Labels::new(text)
}

fn plain_attention(dtype: DType) -> Attention {
    let half = ScalarExpr::float(0.5, dtype);
    Attention {
        q: labels("bqd"),
        k: labels("bkd"),
        v: labels("bkv"),
        o: labels("bqv"),
        scores: labels("bqk"),
        score: ScalarExpr::apply(ScalarFn::Mul, [ScalarExpr::arg(0), half], dtype),
        causal: None,
        empty_is_zero: false,
    }
    .canonical()
}

fn window() -> Window {
    Window {
        size: [3, 2].into_iter().collect(),
        stride: [2, 1].into_iter().collect(),
        pad_low: [1, 0].into_iter().collect(),
        pad_high: [1, 1].into_iter().collect(),
        dilation: [1, 2].into_iter().collect(),
    }
}

/// Every sample.
pub fn samples() -> Vec<Sample> {
    let mut all: Vec<Sample> = Vec::new();
    let mut add = |name: &str, given: &[Given], steps: bool, build: Build| {
        all.push(Sample { name: name.to_string(), given: given.to_vec(), build, steps });
    };
    macro_rules! one {
        ($name:expr, [$($given:expr),* $(,)?], $build:expr) => { add($name, &[$($given),*], false, Box::new($build)) };
        (steps $name:expr, [$($given:expr),* $(,)?], $build:expr) => { add($name, &[$($given),*], true, Box::new($build)) };
    }

    for f in ScalarFn::ALL.iter().copied() {
        let positive = matches!(
            f,
            ScalarFn::Log
                | ScalarFn::Sqrt
                | ScalarFn::Rsqrt
                | ScalarFn::Recip
                | ScalarFn::Pow
                | ScalarFn::Tan
                | ScalarFn::Asin
                | ScalarFn::Acos
                | ScalarFn::Atanh
                | ScalarFn::Acosh
                | ScalarFn::Log1p
        );
        let given = if positive { Given::Positive(vec![3, 1, 4]) } else { values(&[3, 1, 4]) };
        // divisors are not zero
        let other = match f {
            ScalarFn::Div | ScalarFn::Rem | ScalarFn::Mod | ScalarFn::Pow => Given::Positive(vec![2, 1]),
            _ => values(&[2, 1]),
        };
        match f.arity() {
            1 if f == ScalarFn::Acosh => one!(steps f.name(), [given], |_, _, x| vec![(x[0] + 1.0).acosh()]),
            1 => one!(f.name(), [given], move |_, _, x| vec![x[0].map(f, &[])]),
            2 => one!(f.name(), [given, other], move |_, _, x| vec![x[0].map(f, &[x[1]])]),
            _ => one!(f.name(), [ints(&[4], &[1, 0, 0, 2]), given, other], move |_, _, x| {
                vec![x[0].cast(DType::Bool).map(f, &[x[1], x[2]])]
            }),
        }
    }
    for to in DType::ALL.iter().copied() {
        one!(&format!("cast to {to}"), [values(&[5])], move |_, _, x| vec![x[0].cast(to)]);
    }
    one!("bitcast", [values(&[5])], |_, dtype, x| {
        let bits = match dtype.size() {
            1 => DType::U8,
            2 => DType::U16,
            4 => DType::U32,
            _ => DType::U64,
        };
        vec![x[0].bitcast(bits).bitcast(dtype)]
    });
    one!("reshape", [values(&[2, 3, 1])], |_, _, x| vec![x[0].reshape([3, 2])]);
    one!("transpose", [values(&[2, 3, 4])], |_, _, x| vec![x[0].transpose(&[2, 0, 1])]);
    one!("broadcast", [values(&[3, 1])], |_, _, x| vec![x[0].broadcast([2, 3, 5])]);
    one!("slice", [values(&[7, 5])], |_, _, x| vec![x[0].slice(0, 1, 6, 2)]);
    one!("pad", [values(&[2, 3])], |_, _, x| vec![x[0].pad(&[1, 0], &[0, 2], 1.0)]);
    one!("concat", [values(&[2, 3]), values(&[2, 1])], |t, _, x| vec![t.concat(&[x[0], x[1], x[0]], 1)]);
    one!("reverse", [values(&[2, 3])], |_, _, x| vec![x[0].reverse(&[0, 1])]);
    one!("iota", [], |t, dtype, _| vec![t.iota(TensorType::new(dtype, [2, 5]), 1)]);
    one!("const", [], |t, dtype, _| vec![t.constant(Tensor::splat(Literal::int(1, dtype), &[2]))]);
    one!("param", [], |t, dtype, _| vec![t.param("p", Tensor::splat(Literal::int(1, dtype), &[2]))]);
    one!("state", [], |t, dtype, _| vec![t.state("s", Tensor::splat(Literal::int(1, dtype), &[2]))]);
    one!("recompute", [values(&[3])], |t, _, x| vec![t.add(Recompute { number: 0 }, x)]);
    one!("stop_gradient", [values(&[3])], |_, _, x| vec![x[0].stop_gradient()]);
    one!("custom_vjp", [values(&[3]), values(&[3])], |t, _, x| {
        t.custom_vjp(
            x,
            |_, x| vec![x[0] * x[1]],
            |_, b| match b.operands[0].dtype().is_float() {
                true => vec![b.upstream[0] * b.operands[1], b.upstream[0] * b.operands[0]],
                false => Vec::new(),
            },
        )
    });

    for spec in ["ab,bc->ac", "abc,dbc->bad", "ab,cb->c"] {
        let shapes: [&[usize]; 2] = match spec {
            "ab,bc->ac" => [&[3, 4], &[4, 1]],
            "abc,dbc->bad" => [&[2, 3, 4], &[5, 3, 4]],
            _ => [&[3, 4], &[5, 4]],
        };
        one!(spec, [values(shapes[0]), values(shapes[1])], move |_, _, x| vec![x[0].dot_general(x[1], spec)]);
    }
    let conv = Conv::forward(&[2, 1], &[1, 0], &[0, 1], &[1, 2], 2);
    let forms: [(ConvForm, [i64; 2], [&[usize]; 2]); 3] = [
        (ConvForm::Forward, [0, 0], [&[2, 4, 5, 4], &[2, 2, 2, 2]]),
        (ConvForm::InputGrad, [5, 4], [&[2, 2, 3, 3], &[2, 2, 2, 2]]),
        (ConvForm::WeightGrad, [2, 2], [&[2, 4, 5, 4], &[2, 2, 3, 3]]),
    ];
    for (form, extent, shapes) in forms {
        let conv = match form {
            ConvForm::Forward => conv.clone(),
            form => Conv { form, extent: Shape::from(extent), ..conv.clone() },
        };
        one!("conv", [values(shapes[0]), values(shapes[1])], move |_, _, x| vec![x[0].conv(x[1], conv.clone())]);
    }
    for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min, ReduceKind::Prod] {
        one!("reduce", [values(&[3, 1, 4])], move |_, _, x| vec![x[0].reduce(kind, &[0, 1], false)]);
        one!("reduce, kept", [values(&[3, 2])], move |_, _, x| vec![x[0].reduce(kind, &[-1], true)]);
    }
    for kind in [WindowKind::Max, WindowKind::Sum, WindowKind::MeanValid, WindowKind::MeanAll] {
        one!("window", [values(&[2, 5, 4])], move |_, _, x| vec![x[0].reduce_window(kind, window())]);
        one!("window_grad", [values(&[2, 5, 4]), values(&[2, 3, 3])], move |t, _, x| {
            vec![t.add(ReduceWindowGrad { kind, window: window() }, x)]
        });
    }
    for log in [false, true] {
        one!("softmax", [values(&[3, 4])], move |_, _, x| vec![if log {
            x[0].log_softmax(0)
        } else {
            x[0].softmax(1)
        }]);
        one!("softmax_grad", [values(&[3, 4]), values(&[3, 4])], move |t, _, x| {
            vec![t.add(SoftmaxGrad { axis: 1, log }, x)]
        });
    }
    for kind in [NormKind::Layer, NormKind::Rms] {
        let eps = Real::new(1e-3);
        one!("norm", [values(&[2, 3, 5])], move |t, _, x| vec![t.add(Norm { kind, axis: 1, eps }, x)]);
        one!("norm_grad", [values(&[3, 5]), values(&[3, 5])], move |t, _, x| {
            vec![t.add(NormGrad { kind, axis: 1, eps }, x)]
        });
    }
    one!("cross_entropy", [values(&[2, 3, 4]), ints(&[2, 3], &[0, 3, 1, 2, 2, 0])], |_, _, x| {
        vec![x[0].cross_entropy(x[1])]
    });
    one!("attention", [values(&[2, 3, 4]), values(&[2, 5, 4]), values(&[2, 5, 2])], |_, dtype, x| {
        let causal = Attention { causal: Some(1.into()), empty_is_zero: true, ..plain_attention(dtype) };
        vec![x[0].attention(x[1], x[2], causal, &[]).0]
    });
    one!("attention", [values(&[2, 3, 4]), values(&[2, 5, 4]), values(&[2, 5, 2])], |_, dtype, x| {
        vec![x[0].attention(x[1], x[2], plain_attention(dtype), &[]).0]
    });
    one!(
        "attention_grad",
        [values(&[1, 2, 3]), values(&[1, 3, 3]), values(&[1, 3, 2]), values(&[1, 2, 2])],
        |t, dtype, x| {
            let (o, lse) = x[0].attention(x[1], x[2], plain_attention(dtype), &[]);
            let of = plain_attention(dtype);
            let tuple = t.add(AttentionGrad { of }, &[x[0], x[1], x[2], o, lse, x[3]]);
            (0..3).map(|index| t.add(Proj { index }, &[tuple])).collect()
        }
    );

    let tuples = ints(&[2, 3, 1], &[2, 0, 2, 1, 1, 1]);
    let forms = [
        (Places::Rows { axis: 0 }, ints(&[4], &[0, 2, 2, 2]), vec![3, 1], vec![4, 1]),
        (Places::Elements { axis: 1 }, ints(&[2, 2], &[2, 2, 1, 0]), vec![2, 3], vec![2, 2]),
        (Places::Tuples { batch: 1 }, tuples, vec![2, 3, 2], vec![2, 3, 2]),
    ];
    for (places, index, shape, updates) in forms {
        one!("gather", [values(&shape), index.clone()], move |_, _, x| vec![x[0].gather_at(places, x[1])]);
        for kind in ScatterKind::ALL {
            one!(kind.name(), [values(&shape), index.clone(), values(&updates)], move |_, _, x| {
                vec![x[0].scatter(places, kind, x[1], x[2])]
            });
        }
    }
    for largest in [true, false] {
        one!("top_k", [values(&[3, 5, 2])], move |_, _, x| {
            let (values, places) = x[0].top_k(1, 3, largest);
            vec![values, places]
        });
    }
    for kind in CumulativeKind::ALL {
        for reverse in [false, true] {
            one!("cumulative", [values(&[2, 4, 1])], move |_, _, x| vec![x[0].cumulative(kind, 1, false, reverse)]);
        }
    }
    one!("non_zero", [values(&[3, 2])], |_, _, x| vec![x[0].non_zero()]);
    one!("unique", [values(&[3, 2])], |_, _, x| x[0].unique(None, true).to_vec());
    one!("unique rows", [values(&[4, 2])], |_, _, x| x[0].unique(Some(0), false).to_vec());
    one!("non_max_suppression", [values(&[1, 5, 4]), values(&[1, 2, 5])], |t, dtype, x| {
        let number = |v: f64| t.scalar(Literal::float(v, dtype));
        let most = t.scalar(Literal::int(2, DType::I64));
        let size = t.new_size();
        vec![t.add(NonMaxSuppression { center: false, size }, &[x[0], x[1], most, number(0.5), number(0.0)])]
    });
    one!("rng", [ints(&[], &[3])], |t, _, x| vec![t.random_bits(9, x[0], [5])]);

    one!(steps "generate", [values(&[4, 3]), ints(&[3], &[2, 0, 3])], |t, dtype, x| {
        let ty = TensorType::new(dtype, [3]);
        vec![t.generate(ty, x, |g, i| {
            let count = g.load(1, i, Outside::Fault);
            let best = g.reduce(InnerKind::Max, 3, Some(count), |g, r| {
                g.load(0, &[r, i[0].clone()], Outside::Clamp)
            });
            let fill = Outside::Fill(Literal::int(1, dtype));
            let sum = g.sum(2, |g, r| {
                let a = g.load(0, &[&r + 3, i[0].clone()], fill);
                a.clone() * a
            });
            // an extremum of nothing is left out
            best.greater(0i64).select(best, 0i64) + sum
        })]
    });
    one!(steps "scan", [values(&[2]), values(&[4, 2])], |t, _, x| {
        let (last, all) = t.scan(&[x[0]], &[x[1]], |_, carry, slice| {
            let next = carry[0] + slice[0];
            (vec![next], vec![next * carry[0]])
        });
        vec![last[0], all[0]]
    });
    one!(steps "if", [values(&[3]), values(&[2, 3]), ints(&[1], &[1])], |t, _, x| {
        let one = x[2].reshape(Shape::scalar()).equal(1i64);
        let (a, b) = (x[0], x[1]);
        t.cond(one, |_| vec![a * b, a], |_| vec![b * b, a + a])
    });
    one!(steps "while", [values(&[3]), values(&[3]), ints(&[], &[2])], |t, _, x| {
        let zero = t.scalar(Literal::int(0, DType::I64));
        let (last, _, ys) = t.while_loop(
            Some(Dim::from(4)),
            &[x[0], zero],
            |_, carry| carry[1].less(x[2]),
            |_, carry| {
                let next = carry[0] + x[1];
                (vec![next, carry[1] + 1i64], vec![next * carry[0]])
            },
        );
        vec![last[0], last[1], ys[0]]
    });
    one!(steps "fused", [values(&[3, 4]), values(&[4, 2]), values(&[2])], |t, dtype, x| {
        let dot = egret_ir::ops::DotGeneral::parse("ab,bc->ac").map(Op::from);
        let sum = ScalarExpr::apply(ScalarFn::Add, [ScalarExpr::arg(0), ScalarExpr::arg(1)], dtype);
        let relu = ScalarExpr::apply(ScalarFn::Relu, [sum], dtype);
        dot.map(|dot| t.add(Fused::epilogue(dot, 2, relu, dtype), x)).into_iter().collect()
    });
    one!("grad", [values(&[3])], |t, _, x| t.grad(x[0].sum(), &[x[0]]));
    all
}
