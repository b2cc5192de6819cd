//! Recurrent layers, as loops over time.

use egret_ir::{Diagnostic, Dim, Literal, Shape, Tracer, Var};

use super::Results;
use crate::cx::Cx;

/// What the three layers share, for `directions` directions and `gates` gates.
struct Layer<'t> {
    /// `[time, batch, input]`.
    x: Var<'t>,
    w: Var<'t>,
    r: Var<'t>,
    b: Option<Var<'t>>,
    lengths: Option<Var<'t>>,
    hidden: Dim,
    directions: usize,
    /// Whether the first direction runs backwards.
    reverse: bool,
    /// Batch is the first axis of all operands and results.
    batch_first: bool,
    activations: Vec<(String, f64, f64)>,
    clip: Option<f64>,
}

/// Names of activations without their own, by layer.
fn layer<'t>(cx: &mut Cx<'_, 't>, gates: i64, defaults: &[&str]) -> Result<Layer<'t>, Diagnostic> {
    let (mut x, w, r) = (cx.var(0)?, cx.var(1)?, cx.var(2)?);
    if x.rank() != 3 || w.rank() != 3 || r.rank() != 3 {
        return Err(cx.error(format!("operands {}, {}, {} must have rank 3", x.ty(), w.ty(), r.ty())));
    }
    let batch_first = cx.int("layout", 0) != 0;
    if batch_first {
        x = x.transpose(&[1, 0, 2]);
    }
    let direction = cx.text("direction", "forward");
    let directions = if direction == "bidirectional" { 2 } else { 1 };
    let hidden = r.shape()[2].clone();
    if !w.shape()[1].is(hidden.as_const().unwrap_or(0) * gates) {
        return Err(cx.error(format!("weights {} are not of {gates} gates of {hidden}", w.ty())));
    }
    let names = cx.texts("activations").filter(|n| !n.is_empty());
    let names = names.unwrap_or_else(|| (0..directions).flat_map(|_| defaults.iter().map(|n| n.to_string())).collect());
    if names.len() != directions * defaults.len() {
        return Err(cx.error(format!("{} activations", names.len())));
    }
    // parameters are listed for those activations alone that have them
    let mut alphas = cx.float_list("activation_alpha").unwrap_or_default().into_iter();
    let mut betas = cx.float_list("activation_beta").unwrap_or_default().into_iter();
    let mut activations = Vec::new();
    for name in names {
        let (alpha, beta) = match name.as_str() {
            "LeakyRelu" => (Some(0.01), None),
            "HardSigmoid" => (Some(0.2), Some(0.5)),
            "Elu" | "ThresholdedRelu" => (Some(1.0), None),
            "Affine" | "ScaledTanh" => (Some(1.0), Some(1.0)),
            _ => (None, None),
        };
        let next = |default: Option<f64>, given: &mut dyn Iterator<Item = f32>| {
            default.map_or(0.0, |default| given.next().map_or(default, f64::from))
        };
        activations.push((name, next(alpha, &mut alphas), next(beta, &mut betas)));
    }
    let lengths = cx.optional(4)?;
    Ok(Layer {
        x,
        w,
        r,
        b: cx.optional(3)?,
        lengths,
        hidden,
        directions,
        reverse: direction == "reverse",
        batch_first,
        activations,
        clip: cx.has_attribute("clip").then(|| cx.float("clip", 0.0)),
    })
}

fn activate<'t>(x: Var<'t>, (name, alpha, beta): &(String, f64, f64)) -> Option<Var<'t>> {
    Some(match name.as_str() {
        "Sigmoid" => x.sigmoid(),
        "Tanh" => x.tanh(),
        "Relu" => x.relu(),
        "Softsign" => x / (x.abs() + 1.0),
        "Softplus" => x.softplus(),
        "Affine" => x * *alpha + *beta,
        "LeakyRelu" => x.less(0.0).select(x * *alpha, x),
        "ThresholdedRelu" => x.greater(*alpha).select(x, x * 0.0),
        "ScaledTanh" => (x * *beta).tanh() * *alpha,
        "HardSigmoid" => (x * *alpha + *beta).maximum(0.0).minimum(1.0),
        "Elu" => x.less(0.0).select((x.minimum(0.0).exp() - 1.0) * *alpha, x),
        _ => return None,
    })
}

/// One step of one direction: carries, the products of the input with the weights, and the recurrent weights, give the
/// next carries, the first of which is the result.
type Step<'s, 't> = &'s dyn Fn(&Tracer<'t>, &[Var<'t>], Var<'t>, &Weights<'_, 't>) -> Vec<Var<'t>>;

/// What a step reads of one direction.
struct Weights<'s, 't> {
    r: Var<'t>,
    /// Bias on the recurrent side.
    rb: Option<Var<'t>>,
    layer: &'s Layer<'t>,
    direction: usize,
}

impl<'t> Weights<'_, 't> {
    /// The part of one gate.
    fn gate(&self, all: Var<'t>, gate: i64) -> Var<'t> {
        let hidden = self.layer.hidden.clone();
        all.narrow(-1, Dim::from(gate) * hidden.clone(), hidden)
    }

    /// Activation `i` of this direction, clipped before.
    fn act(&self, i: usize, x: Var<'t>) -> Var<'t> {
        let x = self.layer.clip.map_or(x, |clip| x.maximum(-clip).minimum(clip));
        let each = self.layer.activations.len() / self.layer.directions;
        activate(x, &self.layer.activations[self.direction * each + i]).unwrap_or(x)
    }
}

/// Runs all directions; gives `[time, directions, batch, hidden]` and the last carries `[directions, batch, hidden]`.
fn run<'t>(
    cx: &mut Cx<'_, 't>,
    layer: &Layer<'t>,
    gates: i64,
    initial: &[Option<Var<'t>>],
    step: Step<'_, 't>,
) -> Results<'t> {
    if let Some((name, ..)) = layer.activations.iter().find(|a| activate(layer.x, a).is_none()) {
        return Err(cx.unsupported(format!("the activation {name}")));
    }
    let shape = layer.x.shape();
    let (time, batch) = (shape[0].clone(), shape[1].clone());
    let one = |v: Var<'t>, direction: usize| v.narrow(0, direction as i64, 1).squeeze(&[0]);
    let mut results: Vec<Var<'t>> = Vec::new();
    let mut last: Vec<Vec<Var<'t>>> = vec![Vec::new(); initial.len()];
    for direction in 0..layer.directions {
        let reverse = layer.reverse || direction == 1;
        let biases = layer.b.map(|b| {
            let b = one(b, direction);
            let n = Dim::from(gates) * layer.hidden.clone();
            (b.narrow(0, 0, n.clone()), b.narrow(0, n.clone(), n))
        });
        let mut products = layer.x.dot_general(one(layer.w, direction), "tbi,gi->tbg");
        if let Some((input, _)) = biases {
            products = products + input;
        }
        let weights = Weights { r: one(layer.r, direction), rb: biases.map(|(_, r)| r), layer, direction };
        let zero = Literal::float(0.0, layer.x.dtype());
        let init: Vec<Var<'t>> = initial
            .iter()
            .map(|given| match given {
                Some(v) if layer.batch_first => one(v.transpose(&[1, 0, 2]), direction),
                Some(v) => one(*v, direction),
                None => cx.t.scalar(zero).broadcast(Shape::from([batch.clone(), layer.hidden.clone()])),
            })
            .collect();
        // rows past their own length keep their carries and give zeros
        let mut xs = vec![products];
        if let Some(lengths) = layer.lengths {
            let ty = egret_ir::TensorType { dtype: lengths.dtype(), shape: Shape::from([time.clone(), batch.clone()]) };
            xs.push(cx.t.iota(ty, 0).less(lengths).unsqueeze(&[-1]));
        }
        let (carries, ys) = cx.t.scan_of(time.clone(), reverse, &init, &xs, |t, carries, slices| {
            let mut next = step(t, carries, slices[0], &weights);
            let mut y = next[0];
            if let Some(within) = slices.get(1) {
                next = next.iter().zip(carries).map(|(new, old)| within.select(*new, *old)).collect();
                y = within.select(y, t.scalar(zero));
            }
            (next, vec![y])
        });
        results.push(ys[0].unsqueeze(&[1]));
        last.iter_mut().zip(carries).for_each(|(all, carry)| all.push(carry.unsqueeze(&[0])));
    }
    let mut y = cx.t.concat(&results, 1);
    let mut last: Vec<Var<'t>> = last.iter().map(|parts| cx.t.concat(parts, 0)).collect();
    if layer.batch_first {
        y = y.transpose(&[2, 0, 1, 3]);
        last.iter_mut().for_each(|v| *v = v.transpose(&[1, 0, 2]));
    }
    Ok(std::iter::once(y).chain(last).collect())
}

/// Gates are input, output, forget, cell.
pub(super) fn lstm<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let layer = layer(cx, 4, &["Sigmoid", "Tanh", "Tanh"])?;
    let initial = [cx.optional(5)?, cx.optional(6)?];
    let coupled = cx.int("input_forget", 0) != 0;
    let peepholes = cx.optional(7)?;
    run(cx, &layer, 4, &initial, &|_, carries, x, weights| {
        let (h, c) = (carries[0], carries[1]);
        let mut all = x + h.dot_general(weights.r, "bh,gh->bg");
        if let Some(bias) = weights.rb {
            all = all + bias;
        }
        let hidden = weights.layer.hidden.clone();
        let peep = |gate: Var<'t>, i: i64, c: Var<'t>| match peepholes {
            Some(p) => {
                let own = p.narrow(0, weights.direction as i64, 1).squeeze(&[0]);
                gate + own.narrow(0, Dim::from(i) * hidden.clone(), hidden.clone()) * c
            }
            None => gate,
        };
        let i = weights.act(0, peep(weights.gate(all, 0), 0, c));
        let f = match coupled {
            true => 1.0 - i,
            false => weights.act(0, peep(weights.gate(all, 2), 2, c)),
        };
        let cell = f * c + i * weights.act(1, weights.gate(all, 3));
        let o = weights.act(0, peep(weights.gate(all, 1), 1, cell));
        vec![o * weights.act(2, cell), cell]
    })
}

/// Gates are update, reset, hidden.
pub(super) fn gru<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let layer = layer(cx, 3, &["Sigmoid", "Tanh"])?;
    let initial = [cx.optional(5)?];
    let reset_after = cx.int("linear_before_reset", 0) != 0;
    run(cx, &layer, 3, &initial, &|_, carries, x, weights| {
        let h = carries[0];
        let hidden = weights.layer.hidden.clone();
        let rows = |gate: i64| weights.r.narrow(0, Dim::from(gate) * hidden.clone(), hidden.clone());
        let with_bias = |v: Var<'t>, gate: i64| weights.rb.map_or(v, |b| v + weights.gate(b, gate));
        let recur = |h: Var<'t>, gate: i64| with_bias(h.dot_general(rows(gate), "bh,gh->bg"), gate);
        let z = weights.act(0, weights.gate(x, 0) + recur(h, 0));
        let r = weights.act(0, weights.gate(x, 1) + recur(h, 1));
        let candidate = if reset_after { r * recur(h, 2) } else { recur(r * h, 2) };
        let n = weights.act(1, weights.gate(x, 2) + candidate);
        vec![(1.0 - z) * n + z * h]
    })
}

pub(super) fn rnn<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let layer = layer(cx, 1, &["Tanh"])?;
    let initial = [cx.optional(5)?];
    run(cx, &layer, 1, &initial, &|_, carries, x, weights| {
        let all = x + carries[0].dot_general(weights.r, "bh,gh->bg");
        vec![weights.act(0, weights.rb.map_or(all, |b| all + b))]
    })
}
