//! Attention, rotary embedding, and the recurrent layers that take attention's place.

use egret_ir::{DType, Diagnostic, Dim, Literal, Shape, TensorType, Var};

use super::Results;
use super::indexing::size;
use crate::cx::Cx;
use crate::graph::single;

/// `[batch, sequence, heads · size]` as `[batch, heads, sequence, size]`.
fn heads<'t>(cx: &Cx<'_, 't>, x: Var<'t>, count: i64) -> Result<Var<'t>, Diagnostic> {
    let shape = x.shape();
    let [batch, length, width] = &shape[..] else {
        return Err(cx.error(format!("{} has no rank of 3", x.ty())));
    };
    let each = width.exact_div(&Dim::from(count)).filter(|_| count > 0);
    let each = each.ok_or_else(|| cx.error(format!("{count} heads do not divide {width}")))?;
    let apart = Shape::from([batch.clone(), length.clone(), Dim::from(count), each]);
    Ok(x.reshape(apart).transpose(&[0, 2, 1, 3]))
}

/// `[batch, heads, sequence, size]` as `[batch, sequence, heads · size]`.
fn joined<'t>(x: Var<'t>) -> Var<'t> {
    let shape = x.shape();
    let width = shape[1].clone() * shape[3].clone();
    x.transpose(&[0, 2, 1, 3]).reshape(Shape::from([shape[0].clone(), shape[2].clone(), width]))
}

/// What masks the scores `[batch, heads, queries, keys]`: a bias of 0 and −∞ or of numbers, or a truth value.
struct Mask<'t> {
    bias: Option<Var<'t>>,
    /// Whether a row may have no key at all.
    may_be_empty: bool,
}

/// Indices of queries and of keys, `[queries, keys]`, and the number of keys before the first query: `[batch, 1, 1, 1]`
/// or one number.
struct Frontier<'t> {
    query: Var<'t>,
    key: Var<'t>,
    offset: Option<Var<'t>>,
}

fn mask<'t>(cx: &mut Cx<'_, 't>, q: Var<'t>, keys: &Dim, past: Option<Dim>) -> Result<Mask<'t>, Diagnostic> {
    let dtype = q.dtype();
    let zero = cx.t.scalar(Literal::float(0.0, dtype));
    let never = cx.t.scalar(Literal::float(f64::NEG_INFINITY, dtype));
    let queries = q.shape()[2].clone();
    let mut mask = Mask { bias: None, may_be_empty: false };
    let add = |mask: &mut Mask<'t>, more: Var<'t>| mask.bias = Some(mask.bias.map_or(more, |bias| bias + more));
    if let Some(given) = cx.optional(3)? {
        let mut given = match given.dtype() {
            DType::Bool => given.select(zero, never),
            _ => given.cast(dtype),
        };
        let last = given.rank().checked_sub(1).ok_or_else(|| cx.error("the mask is a scalar"))?;
        let extent = given.shape()[last].clone();
        // a mask for the first keys alone
        if let Some(missing) = (keys.clone() - extent.clone()).as_const().filter(|n| *n > 0 && !extent.is(1)) {
            let (low, mut high) = (vec![0; last + 1], vec![0; last + 1]);
            high[last] = missing;
            given = given.pad(&low, &high, f64::NEG_INFINITY);
        }
        add(&mut mask, given);
        mask.may_be_empty = true;
    }
    let lengths = cx.optional(6)?.map(|n| n.cast(DType::I64).reshape(Shape::from([-1i64, 1, 1, 1])));
    let index = |axis| {
        let shape = Shape::from([queries.clone(), keys.clone()]);
        cx.t.iota(TensorType { dtype: DType::I64, shape }, axis)
    };
    let offset = match (&past, lengths) {
        (Some(past), _) if !past.is(0) => Some(size(cx, past, DType::I64)?),
        (None, Some(lengths)) => Some(lengths - size(cx, &queries, DType::I64)?),
        _ => None,
    };
    let frontier = Frontier { query: index(0), key: index(1), offset };
    let position = frontier.offset.map_or(frontier.query, |offset| frontier.query + offset);
    let (left, right) = (cx.int("left_window_size", -1), cx.int("right_window_size", -1));
    let mut within: Vec<Var<'t>> = Vec::new();
    if cx.int("is_causal", 0) != 0 {
        within.push(frontier.key.less_equal(position));
    }
    if left >= 0 {
        within.push((position - left).less_equal(frontier.key));
    }
    if right >= 0 {
        within.push(frontier.key.less_equal(position + right));
    }
    mask.may_be_empty |= left >= 0 || right >= 0;
    if let Some(lengths) = lengths {
        within.push(frontier.key.less(lengths));
        mask.may_be_empty = true;
    }
    if let Some(all) = within.into_iter().reduce(|a, b| a.logical_and(b)) {
        add(&mut mask, all.select(zero, never));
    }
    Ok(mask)
}

/// Softmax of scaled products, with grouped heads, caches, masks, and the scores as a result.
pub(super) fn attention<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (mut q, mut k, mut v) = (cx.var(0)?, cx.var(1)?, cx.var(2)?);
    let packed = q.rank() == 3;
    if packed {
        let kv = cx.int("kv_num_heads", 0);
        (q, k, v) = (heads(cx, q, cx.int("q_num_heads", 0))?, heads(cx, k, kv)?, heads(cx, v, kv)?);
    }
    if [q, k, v].iter().any(|x| x.rank() != 4) {
        return Err(cx.error(format!("{}, {} and {} have no rank of 3 or 4", q.ty(), k.ty(), v.ty())));
    }
    let mut past = None;
    if cx.has(4) || cx.has(5) {
        let (past_k, past_v) = (cx.var(4)?, cx.var(5)?);
        past = past_k.shape().get(2).cloned();
        k = cx.made(cx.t.concat(&[past_k, k], 2))?;
        v = cx.made(cx.t.concat(&[past_v, v], 2))?;
    }
    let (present_k, present_v) = (k, v);
    let keys = k.shape().get(2).cloned().unwrap_or(Dim::ZERO);
    let (query_heads, key_heads) = (q.shape()[1].clone(), k.shape()[1].clone());
    let groups = query_heads.exact_div(&key_heads);
    let groups = groups.ok_or_else(|| cx.error(format!("{query_heads} heads are no multiple of {key_heads}")))?;
    let repeated = |x: Var<'t>| {
        let s = x.shape();
        if groups.is(1) {
            return x;
        }
        let wide = [s[0].clone(), s[1].clone(), groups.clone(), s[2].clone(), s[3].clone()];
        let whole = [s[0].clone(), query_heads.clone(), s[2].clone(), s[3].clone()];
        x.unsqueeze(&[2]).broadcast(wide.as_slice()).reshape(whole.as_slice())
    };
    (k, v) = (repeated(k), repeated(v));
    let width = q.shape()[3].clone();
    let root = match (cx.has_attribute("scale"), width.as_const()) {
        (true, _) => cx.like(q, cx.float("scale", 1.0).sqrt()),
        (false, Some(width)) => cx.like(q, 1.0 / (width as f64).sqrt().sqrt()),
        (false, None) => size(cx, &width, DType::I64)?.cast(q.dtype()).sqrt().rsqrt(),
    };
    let raw = (q * root).dot_general(k * root, "bhqd,bhkd->bhqk");
    let softcap = cx.float("softcap", 0.0);
    let capped = if softcap == 0.0 { raw } else { (raw / softcap).tanh() * softcap };
    let mask = mask(cx, q, &keys, past)?;
    let logits = mask.bias.map_or(capped, |bias| capped + bias);
    let precise = cx.dtype("softmax_precision")?.unwrap_or(q.dtype());
    let mut shares = logits.cast(precise).softmax(-1).cast(v.dtype());
    let masked = mask.bias.filter(|_| mask.may_be_empty);
    let empty = masked.map(|bias| bias.reduce_max(&[-1], true).equal(f64::NEG_INFINITY));
    let mut y = shares.dot_general(v, "bhqk,bhkd->bhqd");
    if let Some(empty) = empty {
        y = empty.select(cx.like(y, 0.0), y);
        shares = empty.select(cx.like(shares, 0.0), shares);
    }
    let scores = match cx.int("qk_matmul_output_mode", 0) {
        0 => raw,
        1 => capped,
        2 => logits,
        3 => shares,
        mode => return Err(cx.error(format!("qk_matmul_output_mode {mode} is not in 0..=3"))),
    };
    let y = if packed { joined(cx.made(y)?) } else { y };
    Ok(vec![y, present_k, present_v, scores.cast(q.dtype())])
}

/// Pairs of elements turned by the angle of their place.
pub(super) fn rotary_embedding<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (input, cos, sin) = (cx.var(0)?, cx.var(1)?, cx.var(2)?);
    let packed = input.rank() == 3;
    let x = if packed { heads(cx, input, cx.int("num_heads", 0))? } else { input };
    let shape = x.shape();
    let Some(width) = shape.get(3).filter(|_| shape.rank() == 4) else {
        return Err(cx.error(format!("{} has no rank of 3 or 4", input.ty())));
    };
    let turned = match cx.int("rotary_embedding_dim", 0) {
        0 => width.clone(),
        n => Dim::from(n),
    };
    let half = turned.floor_div(&Dim::from(2));
    let (cos, sin) = match cx.optional(3)? {
        Some(position) => (cos.gather(position, 0), sin.gather(position, 0)),
        None => (cos, sin),
    };
    // [batch, sequence, half] for every head
    let (cos, sin) = (cos.unsqueeze(&[1]), sin.unsqueeze(&[1]));
    let (apart, axis) = match cx.int("interleaved", 0) {
        0 => ([Dim::from(2), half.clone()], 3isize),
        _ => ([half.clone(), Dim::from(2)], 4),
    };
    let pairs: Shape = shape[..3].iter().cloned().chain(apart).collect();
    let rotated = x.narrow(3, 0, turned.clone()).reshape(pairs);
    let part = |i: i64| rotated.narrow(axis, i, 1).squeeze(&[axis]);
    let (a, b) = (part(0), part(1));
    let (real, imaginary) = (cos * a - sin * b, sin * a + cos * b);
    let both = cx.t.concat(&[real.unsqueeze(&[axis]), imaginary.unsqueeze(&[axis])], axis);
    let mut y = both.reshape(shape[..3].iter().cloned().chain([turned.clone()]).collect::<Shape>());
    if turned != *width {
        y = cx.t.concat(&[y, x.narrow(3, turned.clone(), width.clone() - turned)], 3);
    }
    single(if packed { joined(cx.made(y)?) } else { y })
}

/// A recurrence over a state `[batch, heads, keys, values]` in f32: `S ← g·S + β·k ⊗ (v − g·Sᵀk)`, `y = scale·Sᵀq`, with
/// the terms that the update rule has.
pub(super) fn linear_attention<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (query_heads, heads_kv) = (cx.int("q_num_heads", 0), cx.int("kv_num_heads", 0));
    let rule = cx.text("update_rule", "gated_delta");
    let (gated, delta) = match rule.as_str() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        _ => return Err(cx.error(format!("there is no update rule `{rule}`"))),
    };
    if heads_kv < 1 || query_heads < 1 || query_heads % heads_kv != 0 {
        return Err(cx.error(format!("{query_heads} heads of queries for {heads_kv} of keys")));
    }
    let (query, key, value) = (cx.var(0)?, cx.var(1)?, cx.var(2)?);
    let dtype = query.dtype();
    // [time, batch, heads, size], in f32
    let steps = |cx: &Cx<'_, 't>, x: Var<'t>, n| heads(cx, x, n).map(|x| x.transpose(&[2, 0, 1, 3]).cast(DType::F32));
    let q = steps(cx, query, query_heads)?;
    let (k, v) = (steps(cx, key, heads_kv)?, steps(cx, value, heads_kv)?);
    let (width_k, width_v) = (k.shape()[3].clone(), v.shape()[3].clone());
    let groups = Dim::from(query_heads / heads_kv);
    let s = q.shape();
    let grouped = Shape::from([s[0].clone(), s[1].clone(), Dim::from(heads_kv), groups, s[3].clone()]);
    let scale = match (cx.float("scale", 0.0), width_k.as_const()) {
        (0.0, Some(width)) => cx.like(q, 1.0 / (width as f64).sqrt()),
        (0.0, None) => size(cx, &width_k, DType::I64)?.cast(DType::F32).rsqrt(),
        (scale, _) => cx.like(q, scale),
    };
    let mut xs = vec![q.reshape(grouped) * scale, k, v];
    if gated {
        // one factor a head, or one a key
        let decay = cx.var(4)?;
        xs.push(steps(cx, decay, heads_kv)?.exp().unsqueeze(&[-1]));
    }
    if delta {
        let beta = cx.var(5)?;
        let count = if beta.shape().last().is_some_and(|n| n.is(1)) { 1 } else { heads_kv };
        xs.push(steps(cx, beta, count)?);
    }
    let past = cx.optional(3)?;
    let state_dtype = past.map_or(dtype, |past| past.dtype());
    let state = match past {
        Some(past) => past.cast(DType::F32),
        None => {
            let shape = Shape::from([s[1].clone(), Dim::from(heads_kv), width_k, width_v]);
            cx.t.scalar(Literal::float(0.0, DType::F32)).broadcast(shape)
        }
    };
    let (last, ys) = cx.t.scan(&[state], &xs, |_, carries, slices| {
        let (q, k, v) = (slices[0], slices[1], slices[2]);
        let mut state = carries[0];
        if gated {
            state = state * slices[3];
        }
        let mut update = v;
        if delta {
            let beta = slices[slices.len() - 1];
            update = (update - state.dot_general(k, "bhkv,bhk->bhv")) * beta;
        }
        let state = state + k.unsqueeze(&[-1]) * update.unsqueeze(&[-2]);
        (vec![state], vec![q.dot_general(state, "bhgk,bhkv->bhgv")])
    });
    // [time, batch, heads, group, values]
    let y = cx.made(ys[0])?.transpose(&[1, 0, 2, 3, 4]);
    let s = y.shape();
    let width = s[2].clone() * s[3].clone() * s[4].clone();
    let y = y.reshape(Shape::from([s[0].clone(), s[1].clone(), width])).cast(dtype);
    Ok(vec![y, last[0].cast(state_dtype)])
}

/// A depthwise convolution over the past, whose last inputs are kept.
pub(super) fn causal_conv_with_state<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, w) = (cx.var(0)?, cx.var(1)?);
    let shape = x.shape();
    let [batch, channels, length] = &shape[..] else {
        return Err(cx.error(format!("{} has no rank of 3", x.ty())));
    };
    let kernel = w.shape().get(2).and_then(Dim::as_const).filter(|k| *k > 0 && w.rank() == 3);
    let kernel = kernel.ok_or_else(|| cx.error(format!("{} is no kernel", w.ty())))?;
    let groups = cx.extents(std::slice::from_ref(channels))?[0];
    let before = Shape::from([batch.clone(), channels.clone(), Dim::from(kernel - 1)]);
    let past = match cx.optional(3)? {
        Some(past) => past,
        None => cx.like(x, 0.0).broadcast(before),
    };
    let all = if kernel == 1 { x } else { cx.t.concat(&[past, x], 2) };
    let mut y = all.conv(w, egret_ir::ops::Conv::forward(&[1], &[0], &[0], &[1], groups));
    if let Some(bias) = cx.optional(2)? {
        y = y + bias.unsqueeze(&[-1]);
    }
    match cx.text("activation", "none").as_str() {
        "silu" | "swish" => y = y.silu(),
        "none" => {}
        other => return Err(cx.unsupported(format!("the activation `{other}`"))),
    }
    let last = if kernel == 1 { past } else { all.narrow(2, length.clone(), kernel - 1) };
    Ok(vec![y, last])
}
