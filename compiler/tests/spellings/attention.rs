//! Attention.

use std::collections::BTreeSet;

use egret_compiler::Level;
use egret_ir::tracer::{Tracer, Var, trace};
use egret_ir::{DType, Literal, Tensor, TensorType, Tensors, f32};

use super::host::{compiled, random};
use super::{check, families, launched};

const BATCH: usize = 2;
const QUERIES: usize = 10;
const KEYS: usize = 13;
const HEADS: usize = 6;
const WIDTH: usize = 24;

/// Which attention.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Plain,
    Causal,
    Added,
    Truth,
    GroupedCausal,
}

/// How one is spelled.
#[derive(Clone, Copy, Default)]
struct Spelled {
    name: &'static str,
    /// Where the scale is: 0 after, by mul; 1 on q; 2 on k; 3 on both; 4 after, by div; 5 on the projection of q.
    scale: usize,
    /// How products are spelled: 0 matmul of transposed heads; 1 einsum of heads as they lie; 2 merged batch and heads;
    /// 3 keys transposed beforehand; 4 the result as values × shares.
    product: usize,
    /// How the softmax is spelled: 0 as the operator; 1 with the highest subtracted; 2 as its definition; 3 by a
    /// reciprocal.
    softmax: usize,
    /// How the mask is spelled, by kind.
    mask: usize,
    /// How groups are spelled: 0 expand; 1 concat; 2 queries apart; 3 gather.
    groups: usize,
}

const SPELLINGS: [Spelled; 8] = [
    Spelled { name: "plain", scale: 0, product: 0, softmax: 0, mask: 0, groups: 0 },
    Spelled { name: "scaled queries, einsum", scale: 1, product: 1, softmax: 0, mask: 1, groups: 2 },
    Spelled { name: "scaled keys, shifted softmax", scale: 2, product: 0, softmax: 1, mask: 2, groups: 1 },
    Spelled { name: "both scaled, defined softmax", scale: 3, product: 1, softmax: 2, mask: 3, groups: 0 },
    Spelled { name: "divided, keys transposed", scale: 4, product: 3, softmax: 3, mask: 4, groups: 3 },
    Spelled { name: "scaled projection, merged heads", scale: 5, product: 2, softmax: 0, mask: 5, groups: 0 },
    Spelled { name: "values first", scale: 1, product: 4, softmax: 1, mask: 1, groups: 1 },
    Spelled { name: "merged heads, divided", scale: 4, product: 2, softmax: 2, mask: 2, groups: 1 },
];

struct Attend<'g, 't> {
    t: &'g Tracer<'t>,
    kind: Kind,
    how: Spelled,
    dtype: DType,
    keys: usize,
}

impl<'t> Attend<'_, 't> {
    fn number(&self, value: f64) -> Var<'t> {
        self.t.scalar(Literal::float(value, self.dtype))
    }

    fn softmax(&self, x: Var<'t>) -> Var<'t> {
        let exp = match self.how.softmax {
            0 => return x.softmax(-1),
            1 => (x - x.reduce_max(&[-1], true)).exp(),
            _ => x.exp(),
        };
        let sum = exp.reduce_sum(&[-1], true);
        if self.how.softmax == 3 { exp * sum.recip() } else { exp / sum }
    }

    /// Indices of queries and of keys.
    fn index(&self, axis: usize, shape: [usize; 2]) -> Var<'t> {
        self.t.iota(TensorType::new(DType::I64, shape.map(egret_ir::Dim::from)), axis)
    }

    /// A constant `[queries, keys]`.
    fn triangle(&self, yes: f64, no: f64) -> Var<'t> {
        let values: Vec<f32> = (0..QUERIES * self.keys)
            .map(|i| if i % self.keys <= i / self.keys { yes as f32 } else { no as f32 })
            .collect();
        let constant = Tensor::new(&[QUERIES, self.keys], &values).expect("a matrix");
        self.t.constant(constant).cast(self.dtype)
    }

    /// Masks scores `[…, queries, keys]`; `wide` has as many axes as the scores, all but the last two of extent 1 or whole.
    fn masked(&self, scores: Var<'t>, shaped: &dyn Fn(Var<'t>) -> Var<'t>) -> Var<'t> {
        let low = self.number(f64::NEG_INFINITY);
        let zero = self.number(0.0);
        match self.kind {
            Kind::Plain => scores,
            Kind::Added => {
                let mask = shaped(self.t.input("mask", f32([BATCH, 1, QUERIES, self.keys])));
                match self.how.mask {
                    0 | 3 => scores + mask,
                    1 | 4 => mask + scores,
                    _ => scores - (-mask),
                }
            }
            Kind::Truth => {
                let ty = TensorType::new(DType::Bool, [BATCH, 1, 1, self.keys].map(egret_ir::Dim::from));
                let mask = shaped(self.t.input("mask", ty));
                match self.how.mask {
                    0 => mask.select(scores, low),
                    1 => scores + mask.select(zero, low),
                    2 => mask.logical_not().select(low, scores),
                    3 => mask.logical_not().select(low, zero) + scores,
                    4 => mask.select(scores, low),
                    _ => scores + mask.logical_not().select(low, zero),
                }
            }
            Kind::Causal | Kind::GroupedCausal => {
                let (q, k) = (self.index(0, [QUERIES, self.keys]), self.index(1, [QUERIES, self.keys]));
                match self.how.mask {
                    0 => scores + self.triangle(0.0, f64::NEG_INFINITY),
                    1 => k.less_equal(q).select(scores, low),
                    2 => k.greater(q).select(low, scores),
                    3 => scores + q.less(k).select(low, zero),
                    4 => {
                        let row = self.index(0, [QUERIES, 1]);
                        let column = self.index(1, [1, self.keys]);
                        (row - column).greater_equal(0i64).select(scores, low)
                    }
                    _ => self.triangle(1.0, 0.0).equal(0.0).select(low, scores),
                }
            }
        }
    }

    fn build(&self) -> Var<'t> {
        let t = self.t;
        let how = self.how;
        let grouped = self.kind == Kind::GroupedCausal;
        let kv = if grouped { HEADS / 3 } else { HEADS };
        let depth = WIDTH / HEADS;
        let scale = 1.0 / (depth as f64).sqrt();
        let leaf = |name: &str, rows: usize, width: usize| {
            let shape = [BATCH, rows, width].map(egret_ir::Dim::from);
            t.input(name, TensorType::new(self.dtype, shape))
        };
        let mut x = leaf("q", QUERIES, WIDTH);
        let (y, z) = (leaf("k", self.keys, kv * depth), leaf("v", self.keys, kv * depth));
        if how.scale == 5 {
            x = x * scale;
        }
        let heads = |x: Var<'t>, rows: usize, heads: usize| x.reshape([BATCH, rows, heads, depth]);
        let (mut q, mut k, mut v) = (heads(x, QUERIES, HEADS), heads(y, self.keys, kv), heads(z, self.keys, kv));
        if how.scale == 1 {
            q = q * scale;
        }
        if how.scale == 2 {
            k = k * scale;
        }
        if how.scale == 3 {
            (q, k) = (q * scale.sqrt(), k * scale.sqrt());
        }
        if grouped && how.groups == 2 {
            // queries by group
            let q = q.reshape([BATCH, QUERIES, kv, 3, depth]);
            let scores = q.dot_general(k, "bqhgc,bkhc->bhgqk");
            let scores = if matches!(how.scale, 0 | 4) { scores * scale } else { scores };
            let p = self.softmax(self.masked(scores, &|m| m.unsqueeze(&[1])));
            return p.dot_general(v, "bhgqk,bkhc->bqhgc").reshape([BATCH, QUERIES, WIDTH]);
        }
        if grouped {
            let repeat = |x: Var<'t>| {
                let x = x.unsqueeze(&[3]);
                let wide = match how.groups {
                    1 => t.concat(&[x, x, x], 3),
                    _ => x.broadcast([BATCH, self.keys, kv, 3, depth]),
                };
                wide.reshape([BATCH, self.keys, HEADS, depth])
            };
            if how.groups == 3 {
                let indices: Vec<i64> = (0..HEADS as i64).map(|i| i / 3).collect();
                let indices = t.constant(Tensor::new(&[HEADS], &indices).expect("a vector"));
                (k, v) = (k.gather(indices, 2), v.gather(indices, 2));
            } else {
                (k, v) = (repeat(k), repeat(v));
            }
        }
        let after = |s: Var<'t>| match how.scale {
            0 => s * scale,
            4 => s / (depth as f64).sqrt(),
            _ => s,
        };
        let front = |x: Var<'t>| x.transpose(&[0, 2, 1, 3]);
        let back = |o: Var<'t>| front(o).reshape([BATCH, QUERIES, WIDTH]);
        match how.product {
            0 => {
                let scores = after(front(q).matmul(front(k).transpose(&[0, 1, 3, 2])));
                back(self.softmax(self.masked(scores, &|m| m)).matmul(front(v)))
            }
            1 => {
                let scores = after(q.dot_general(k, "bqhc,bkhc->bhqk"));
                let p = self.softmax(self.masked(scores, &|m| m));
                p.dot_general(v, "bhqk,bkhc->bqhc").reshape([BATCH, QUERIES, WIDTH])
            }
            2 => {
                let merged = |x: Var<'t>, rows: usize| front(x).reshape([BATCH * HEADS, rows, depth]);
                let (q, k, v) = (merged(q, QUERIES), merged(k, self.keys), merged(v, self.keys));
                let scores = after(q.matmul(k.transpose(&[0, 2, 1])));
                // masks that depend on the batch are put on apart
                let apart = matches!(self.kind, Kind::Added | Kind::Truth);
                let p = if apart {
                    let scores = self.masked(scores.reshape([BATCH, HEADS, QUERIES, self.keys]), &|m| m);
                    self.softmax(scores.reshape([BATCH * HEADS, QUERIES, self.keys]))
                } else {
                    self.softmax(self.masked(scores, &|m| m))
                };
                back(p.matmul(v).reshape([BATCH, HEADS, QUERIES, depth]))
            }
            3 => {
                let scores = after(front(q).matmul(k.transpose(&[0, 2, 3, 1])));
                back(self.softmax(self.masked(scores, &|m| m)).matmul(front(v)))
            }
            _ => {
                let scores = after(front(k).matmul(front(q).transpose(&[0, 1, 3, 2]))).transpose(&[0, 1, 3, 2]);
                let p = self.softmax(self.masked(scores, &|m| m));
                let o = front(v).transpose(&[0, 1, 3, 2]).matmul(p.transpose(&[0, 1, 3, 2]));
                back(o.transpose(&[0, 1, 3, 2]))
            }
        }
    }
}

fn inputs(kind: Kind, dtype: DType, keys: usize, empty: bool) -> Tensors {
    let kv = if kind == Kind::GroupedCausal { WIDTH / 3 } else { WIDTH };
    let typed = |tensor: Tensor| {
        let mut cast = Tensor::zeros(dtype, tensor.shape());
        tensor.values().enumerate().for_each(|(i, v)| cast.set(i, v));
        cast
    };
    let mut all: Tensors = [
        ("q".to_string(), typed(random(&[BATCH, QUERIES, WIDTH], 1))),
        ("k".to_string(), typed(random(&[BATCH, keys, kv], 2))),
        ("v".to_string(), typed(random(&[BATCH, keys, kv], 3))),
    ]
    .into();
    match kind {
        Kind::Added => drop(all.insert("mask".into(), random(&[BATCH, 1, QUERIES, keys], 4))),
        Kind::Truth => {
            let mut mask = Tensor::zeros(DType::Bool, &[BATCH, 1, 1, keys]);
            // the second batch item sees no key if it is to be so: its rows are NaN, as a softmax of −∞ is
            let seen = |i: usize| if i < keys { i % 3 != 1 } else { !empty && i % 4 != 2 };
            (0..2 * keys).for_each(|i| mask.set(i, egret_ir::ScalarValue::Bool(seen(i))));
            all.insert("mask".into(), mask);
        }
        _ => {}
    }
    all
}

/// One text for all spellings of an attention, one kernel for each.
fn one_text(kind: Kind) {
    let mut texts: BTreeSet<String> = BTreeSet::new();
    for how in SPELLINGS {
        let what = format!("{kind:?}, {}", how.name);
        let graph = trace(|t| Attend { t, kind, how, dtype: DType::F32, keys: KEYS }.build())
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        for level in [Level::None, Level::Full] {
            let compiled = compiled(&graph, level);
            assert_eq!(families(&compiled), ["attention"], "{what}\n{}", egret_ir::text::print(&compiled.raised));
            texts.extend(launched(&compiled));
            assert_eq!(
                texts.len(),
                1,
                "{what}\n{}",
                Vec::from_iter(&texts).iter().map(|t| format!("{t}\n")).collect::<String>()
            );
            check(&what, &graph, compiled, &inputs(kind, DType::F32, KEYS, true));
        }
    }
}

#[test]
fn plain_attention_has_one_text() {
    one_text(Kind::Plain);
}

#[test]
fn causal_attention_has_one_text() {
    one_text(Kind::Causal);
}

#[test]
fn attention_with_an_added_mask_has_one_text() {
    one_text(Kind::Added);
}

#[test]
fn attention_with_a_boolean_mask_has_one_text() {
    one_text(Kind::Truth);
}

#[test]
fn causal_attention_of_grouped_heads_has_one_text() {
    one_text(Kind::GroupedCausal);
}

/// Differentiated, each is one kernel forward and one backward, of one text each.
#[test]
fn each_attention_is_one_kernel_forward_and_one_backward() {
    for kind in [Kind::Plain, Kind::Causal, Kind::Added, Kind::Truth, Kind::GroupedCausal] {
        let mut texts: BTreeSet<String> = BTreeSet::new();
        for how in SPELLINGS {
            let what = format!("gradient of {kind:?}, {}", how.name);
            let graph = trace(|t| {
                let o = Attend { t, kind, how, dtype: DType::F32, keys: KEYS }.build();
                let upstream = t.input("do", f32([BATCH, QUERIES, WIDTH]));
                let wrt: Vec<Var> = ["q", "k", "v"].iter().filter_map(|name| input(t, name)).collect();
                let grads = t.grad((o * upstream).sum(), &wrt);
                t.output("o", o);
                ["dq", "dk", "dv"].iter().zip(&grads).for_each(|(name, grad)| t.output(name, *grad));
            })
            .unwrap_or_else(|e| panic!("{what}: {e}"));
            let compiled = compiled(&graph, Level::Full);
            assert_eq!(
                families(&compiled),
                ["attention", "attention_grad"],
                "{what}\n{}",
                egret_ir::text::print(&compiled.rewritten.graph)
            );
            texts.extend(launched(&compiled));
            assert_eq!(texts.len(), 2, "{what}");
            let mut given = inputs(kind, DType::F32, KEYS, false);
            given.insert("do".into(), random(&[BATCH, QUERIES, WIDTH], 5));
            check(&what, &graph, compiled, &given);
        }
    }
}

fn input<'t>(t: &Tracer<'t>, name: &str) -> Option<Var<'t>> {
    let id = t.graph(|graph| {
        let is = |op: &egret_ir::Op| matches!(op, egret_ir::Op::Input(input) if &*input.name == name);
        graph.iter().find(|(_, node)| is(&node.op)).map(|(id, _)| id)
    })?;
    Some(t.var(id))
}

/// Keys and values of earlier queries are put before the new ones in one kernel each, which is also what is kept, and are
/// attended in another, heads first or not.
#[test]
fn kept_keys_and_values_are_attended_where_they_are() {
    for heads_first in [false, true] {
        let graph = trace(|t| {
            let leaf = |name: &str, rows: usize| {
                let shape = if heads_first { [2, 4, rows, 8] } else { [2, rows, 4, 8] };
                t.input(name, f32(shape))
            };
            let axis = if heads_first { 2 } else { 1 };
            let q = leaf("q", 3);
            let k = t.concat(&[leaf("past k", 10), leaf("k", 3)], axis);
            let v = t.concat(&[leaf("past v", 10), leaf("v", 3)], axis);
            let [of_q, of_k, of_o] = if heads_first { ["bhqc", "bhkc", "bhqc"] } else { ["bqhc", "bkhc", "bqhc"] };
            let scores = q.dot_general(k, &format!("{of_q},{of_k}->bhqk")) * (1.0 / 8f64.sqrt());
            let o = scores.softmax(-1).dot_general(v, &format!("bhqk,{of_k}->{of_o}"));
            t.output("o", o);
            t.output("present k", k);
            t.output("present v", v);
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let compiled = compiled(&graph, Level::Full);
        assert_eq!(families(&compiled), ["concat", "concat", "attention"], "heads first: {heads_first}");
        let mut given = Tensors::new();
        for (i, (name, rows)) in [("q", 3), ("past k", 10), ("k", 3), ("past v", 10), ("v", 3)].into_iter().enumerate()
        {
            let shape = if heads_first { [2, 4, rows, 8] } else { [2, rows, 4, 8] };
            given.insert(name.into(), random(&shape, i as u64));
        }
        check("kept keys", &graph, compiled, &given);
    }
}

/// Halves are attended in f32 whether or not the softmax is cast.
#[test]
fn casts_around_a_softmax_are_no_kernels() {
    let mut texts: BTreeSet<Vec<String>> = BTreeSet::new();
    for cast in [false, true] {
        let graph = trace(|t| {
            let leaf = |name: &str, rows: usize| {
                t.input(name, TensorType::new(DType::F16, [2, rows, 4, 8].map(egret_ir::Dim::from)))
            };
            let (q, k, v) = (leaf("q", 10), leaf("k", 13), leaf("v", 13));
            let scores = q.dot_general(k, "bqhc,bkhc->bhqk");
            let p = match cast {
                true => (scores.cast(DType::F32) * (1.0 / 8f64.sqrt())).softmax(-1).cast(DType::F16),
                false => (scores * (1.0 / 8f64.sqrt())).softmax(-1),
            };
            p.dot_general(v, "bhqk,bkhc->bqhc")
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let compiled = compiled(&graph, Level::Full);
        assert_eq!(families(&compiled).iter().filter(|f| *f == "attention").count(), 1);
        texts.insert(launched(&compiled));
        let given = |rows: usize, seed| {
            let x = random(&[2, rows, 4, 8], seed);
            let mut half = Tensor::zeros(DType::F16, x.shape());
            x.values().enumerate().for_each(|(i, v)| half.set(i, v));
            half
        };
        let inputs =
            [("q".to_string(), given(10, 1)), ("k".to_string(), given(13, 2)), ("v".to_string(), given(13, 3))].into();
        check("halves", &graph, compiled, &inputs);
    }
    assert_eq!(texts.len(), 1);
}
