//! Activations, norms, softmaxes, losses and rotary positions.

use std::collections::BTreeSet;

use egret_compiler::Level;
use egret_ir::tracer::{Tracer, Var, trace};
use egret_ir::{DType, Tensor, TensorType};

use super::host::{compiled, random};
use super::{check, launched};

type Build = for<'t> fn(&Tracer<'t>, Var<'t>) -> Var<'t>;

/// One launch each, of one text, and right; `shape` is that of the input.
fn one_kernel(what: &str, shape: &[usize], spellings: &[Build]) {
    let mut texts: BTreeSet<Vec<String>> = BTreeSet::new();
    for (i, build) in spellings.iter().enumerate() {
        let what = format!("{what}, spelling {i}");
        let ty =
            TensorType::new(DType::F32, shape.iter().map(|d| egret_ir::Dim::from(*d)).collect::<egret_ir::Shape>());
        let graph = trace(|t| build(t, t.input("x", ty))).unwrap_or_else(|e| panic!("{what}: {e}"));
        let compiled = compiled(&graph, Level::Full);
        let launched = launched(&compiled);
        assert_eq!(launched.len(), 1, "{what}\n{}", egret_ir::text::print(&compiled.raised));
        texts.insert(launched);
        assert_eq!(texts.len(), 1, "{what}\n{}", egret_ir::text::print(&compiled.raised));
        check(&what, &graph, compiled, &[("x".to_string(), random(shape, 7))].into());
    }
}

#[test]
fn activations_have_one_text() {
    const ROOT: f64 = std::f64::consts::FRAC_1_SQRT_2;
    let gelu: [Build; 6] = [
        |_, x| x * 0.5 * ((x * ROOT).erf() + 1.0),
        |_, x| x * ((x / std::f64::consts::SQRT_2).erf() + 1.0) * 0.5,
        |_, x| ((x * ROOT).erf() + 1.0) * (x * 0.5),
        |_, x| x * ((x * ROOT).erf() * 0.5 + 0.5),
        |_, x| x * ((x * ROOT).erf() + 1.0) / 2.0,
        |_, x| x.gelu(),
    ];
    one_kernel("gelu", &[7, 48], &gelu);
    const OUTER: f64 = 0.797_884_560_802_865_4;
    let tanh: [Build; 4] = [
        |_, x| x * 0.5 * (((x + x * x * x * 0.044715) * OUTER).tanh() + 1.0),
        |_, x| x * 0.5 * ((x * OUTER * (x * x * 0.044715 + 1.0)).tanh() + 1.0),
        |_, x| (((x + x.pow(3.0) * 0.044715) * OUTER).tanh() + 1.0) * x * 0.5,
        |_, x| x.gelu_tanh(),
    ];
    one_kernel("gelu by tanh", &[7, 48], &tanh);
    let quick: [Build; 4] = [
        |_, x| x * (x * 1.702).sigmoid(),
        |_, x| (x * 1.702).sigmoid() * x,
        |_, x| x / ((x * -1.702).exp() + 1.0),
        |_, x| x.quick_gelu(),
    ];
    one_kernel("quick gelu", &[7, 48], &quick);
    let silu: [Build; 4] =
        [|_, x| x * x.sigmoid(), |_, x| x / ((-x).exp() + 1.0), |_, x| x * ((-x).exp() + 1.0).recip(), |_, x| x.silu()];
    one_kernel("silu", &[7, 48], &silu);
    let hard: [Build; 3] = [
        |_, x| x * (x + 3.0).maximum(0.0).minimum(6.0) / 6.0,
        |_, x| x * ((x / 6.0 + 0.5).maximum(0.0).minimum(1.0)),
        |_, x| x.hard_swish(),
    ];
    one_kernel("hard swish", &[7, 48], &hard);
    let mish: [Build; 3] =
        [|_, x| x * (x.exp() + 1.0).log().tanh(), |_, x| x.exp().log1p().tanh() * x, |_, x| x * x.softplus().tanh()];
    one_kernel("mish", &[7, 48], &mish);
}

#[test]
fn norms_have_one_text() {
    let layer: [Build; 8] = [
        |_, x| {
            let d = x - x.reduce_mean(&[-1], true);
            d / ((d * d).reduce_mean(&[-1], true) + 1e-5).sqrt()
        },
        |_, x| {
            let d = x - x.reduce_mean(&[-1], true);
            d * (d.pow(2.0).reduce_mean(&[-1], true) + 1e-5).rsqrt()
        },
        |_, x| {
            let d = x - x.reduce_sum(&[-1], true) / 48.0;
            d * ((d * d).reduce_sum(&[-1], true) * (1.0 / 48.0) + 1e-5).sqrt().recip()
        },
        |_, x| {
            let mean = x.reduce_mean(&[-1], true);
            let variance = (x * x).reduce_mean(&[-1], true) - mean * mean;
            (x - mean) * (variance + 1e-5).rsqrt()
        },
        |_, x| {
            let d = x - x.reduce_sum(&[-1], false).unsqueeze(&[-1]) / 48.0;
            d / ((d * d).reduce_sum(&[-1], false).unsqueeze(&[-1]) / 48.0 + 1e-5).sqrt()
        },
        |_, x| {
            let mean = x.reduce_mean(&[-1], true);
            let d = x - mean;
            let r = ((d * d).reduce_mean(&[-1], true) + 1e-5).rsqrt();
            x * r - mean * r
        },
        |_, x| {
            let d = x + -x.reduce_mean(&[-1], true);
            d * ((d * d).reduce_mean(&[-1], true) + 1e-5).pow(-0.5)
        },
        |_, x| x.layer_norm(-1, 1e-5),
    ];
    one_kernel("layer norm", &[7, 48], &layer);
    let scaled: [Build; 2] = [
        |t, x| {
            let g = t.param("gamma", random(&[48], 11));
            x.layer_norm(-1, 1e-5) * g + t.param("beta", random(&[48], 13))
        },
        |t, x| {
            let g = t.param("gamma", random(&[48], 11));
            let d = x - x.reduce_mean(&[-1], true);
            let r = ((d * d).reduce_mean(&[-1], true) + 1e-5).rsqrt();
            d * (r * g) + t.param("beta", random(&[48], 13))
        },
    ];
    one_kernel("layer norm with scale and bias", &[7, 48], &scaled);
    let rms: [Build; 4] = [
        |_, x| x * ((x * x).reduce_mean(&[-1], true) + 1e-6).rsqrt(),
        |_, x| x / (x.pow(2.0).reduce_mean(&[-1], true) + 1e-6).sqrt(),
        |_, x| x * ((x * x).reduce_sum(&[-1], false).unsqueeze(&[-1]) / 48.0 + 1e-6).sqrt().recip(),
        |_, x| x.rms_norm(-1, 1e-6),
    ];
    one_kernel("rms norm", &[7, 48], &rms);
    let instance: [Build; 2] = [
        |_, x| {
            let d = x - x.reduce_mean(&[2, 3], true);
            d / ((d * d).reduce_mean(&[2, 3], true) + 1e-5).sqrt()
        },
        |_, x| x.layer_norm(2, 1e-5),
    ];
    one_kernel("instance norm", &[2, 3, 5, 7], &instance);
    let group: [Build; 2] = [
        |_, x| {
            let x = x.reshape([2i64, 2, 3, 35]);
            let d = x - x.reduce_mean(&[2, 3], true);
            (d / ((d * d).reduce_mean(&[2, 3], true) + 1e-5).sqrt()).reshape([2i64, 6, 5, 7])
        },
        |_, x| x.reshape([2i64, 2, 3, 35]).layer_norm(2, 1e-5).reshape([2i64, 6, 5, 7]),
    ];
    one_kernel("group norm", &[2, 6, 5, 7], &group);
}

#[test]
fn softmaxes_and_losses_have_one_text() {
    let softmax: [Build; 7] = [
        |_, x| x.softmax(-1),
        |_, x| x.exp() / x.exp().reduce_sum(&[-1], true),
        |_, x| {
            let e = (x - x.reduce_max(&[-1], true)).exp();
            e / e.reduce_sum(&[-1], true)
        },
        |_, x| {
            let e = (x - x.reduce_max(&[-1], false).unsqueeze(&[-1])).exp();
            e * e.reduce_sum(&[-1], false).unsqueeze(&[-1]).recip()
        },
        |_, x| x.exp() * x.exp().reduce_sum(&[-1], true).recip(),
        |_, x| x.log_softmax(-1).exp(),
        |_, x| (x - x.exp().reduce_sum(&[-1], true).log()).exp(),
    ];
    one_kernel("softmax", &[7, 48], &softmax);
    let log: [Build; 5] = [
        |_, x| x.log_softmax(-1),
        |_, x| x.softmax(-1).log(),
        |_, x| x - x.exp().reduce_sum(&[-1], true).log(),
        |_, x| {
            let d = x - x.reduce_max(&[-1], true);
            d - d.exp().reduce_sum(&[-1], true).log()
        },
        |_, x| {
            let top = x.reduce_max(&[-1], true);
            x - ((x - top).exp().reduce_sum(&[-1], true).log() + top)
        },
    ];
    one_kernel("log-softmax", &[7, 48], &log);
    let losses: [Build; 3] = [
        |t, x| x.cross_entropy(t.constant(Tensor::new(&[7], &[3i64, 0, 47, 5, 9, 9, 1]).expect("labels"))),
        |t, x| {
            let labels = t.constant(Tensor::new(&[7], &[3i64, 0, 47, 5, 9, 9, 1]).expect("labels"));
            let places = egret_ir::ops::Places::Elements { axis: 1 };
            -x.log_softmax(-1).gather_at(places, labels.unsqueeze(&[-1])).squeeze(&[-1])
        },
        |t, x| {
            let labels = t.constant(Tensor::new(&[7], &[3i64, 0, 47, 5, 9, 9, 1]).expect("labels"));
            let places = egret_ir::ops::Places::Elements { axis: 1 };
            (-x.softmax(-1).log().gather_at(places, labels.unsqueeze(&[-1]))).squeeze(&[-1])
        },
    ];
    one_kernel("cross-entropy", &[7, 48], &losses);
}

/// Rotary positions of heads `[batch, queries, heads, depth]` are one kernel, in each spelling.
#[test]
fn rotary_positions_are_one_kernel() {
    fn angles<'t>(t: &Tracer<'t>, name: &str, width: usize) -> Var<'t> {
        t.param(name, random(&[10, 1, width], (width + name.len()) as u64))
    }
    fn halves(x: Var<'_>) -> [Var<'_>; 2] {
        [x.narrow(-1, 0i64, 8i64), x.narrow(-1, 8i64, 8i64)]
    }
    let spellings: [Build; 5] = [
        // by halves, put together and then scaled
        |t, x| {
            let [a, b] = halves(x);
            x * angles(t, "cos", 16) + t.concat(&[-b, a], -1) * angles(t, "sin", 16)
        },
        |t, x| {
            let [a, b] = halves(x);
            angles(t, "sin", 16) * t.concat(&[-b, a], -1) + angles(t, "cos", 16) * x
        },
        // by halves, scaled and then put together
        |t, x| {
            let ([a, b], c, s) = (halves(x), angles(t, "cos", 8), angles(t, "sin", 8));
            t.concat(&[a * c - b * s, b * c + a * s], -1)
        },
        // interleaved, by slices
        |t, x| {
            let (a, b) = (x.slice(-1, 0i64, 16i64, 2), x.slice(-1, 1i64, 16i64, 2));
            let (c, s) = (angles(t, "cos", 8), angles(t, "sin", 8));
            let parts = [a * c - b * s, b * c + a * s].map(|part| part.unsqueeze(&[-1]));
            t.concat(&parts, -1).reshape([2i64, 10, 4, 16])
        },
        // interleaved, by pairs
        |t, x| {
            let pairs = x.reshape([2i64, 10, 4, 8, 2]);
            let (a, b) = (pairs.narrow(-1, 0i64, 1i64), pairs.narrow(-1, 1i64, 1i64));
            let wide = |name: &str| angles(t, name, 8).unsqueeze(&[-1]);
            let (c, s) = (wide("cos"), wide("sin"));
            t.concat(&[a * c - b * s, b * c + a * s], -1).reshape([2i64, 10, 4, 16])
        },
    ];
    for spelling in spellings {
        one_kernel("rotary positions", &[2, 10, 4, 16], &[spelling]);
    }
    one_kernel("rotary positions by halves", &[2, 10, 4, 16], &spellings[..2]);
}
