//! Attention and the transformer block, on `[batch, sequence, features]`.

use egret_ir::{DType, Dim, Literal, ScalarFn, TensorType, Var};

use super::{Layer, LayerNorm, Linear};
use crate::init::Init;
use crate::params::Params;

/// Attention of a sequence to itself by several heads, spelled with products and a softmax; the compiler makes it one
/// kernel. Parameters as PyTorch's: `in_proj_weight` `[3 features, features]`, `in_proj_bias`, `out_proj`.
#[derive(Clone, Debug)]
pub struct MultiHeadAttention {
    heads: usize,
    causal: bool,
}

impl MultiHeadAttention {
    /// Attention by `heads` heads, which divide the features.
    pub fn new(heads: usize) -> MultiHeadAttention {
        MultiHeadAttention { heads: heads.max(1), causal: false }
    }

    /// Each position sees itself and those before it.
    pub fn causal(mut self) -> MultiHeadAttention {
        self.causal = true;
        self
    }

    /// With `mask` added to the scores `[batch, heads, query, key]`.
    #[track_caller]
    pub fn masked<'t>(&self, p: &Params<'_, 't>, x: Var<'t>, mask: Var<'t>) -> Var<'t> {
        p.located(std::panic::Location::caller(), || self.apply(p, x, Some(mask)))
    }

    fn apply<'t>(&self, p: &Params<'_, 't>, x: Var<'t>, mask: Option<Var<'t>>) -> Var<'t> {
        let features = p.extent(x, -1);
        let weight = p.get("in_proj_weight", &[3 * features, features], Init::XavierUniform { gain: 1.0 });
        let qkv = x.matmul(weight.t()) + p.get("in_proj_bias", &[3 * features], Init::ZEROS);
        let each = features / self.heads;
        let shape = x.shape();
        let Some((batch, sequence)) = shape.first().zip(shape.get(1)) else { return qkv };
        let heads = [batch.clone(), sequence.clone(), self.heads.into(), each.into()];
        let parts = qkv.split(-1, &[features.into(), features.into(), features.into()]);
        let [q, k, v] = [0, 1, 2].map(|i| parts[i].reshape(heads.clone()));
        let mut scores = q.dot_general(k, "bqhd,bkhd->bhqk") * (1.0 / (each.max(1) as f64).sqrt());
        if let Some(mask) = mask {
            scores = scores + mask;
        }
        if self.causal {
            scores = causal(scores, sequence);
        }
        let mixed = scores.softmax(-1).dot_general(v, "bhqk,bkhd->bqhd").reshape(shape);
        let out = Linear::new(features);
        out.build(&p.at("out_proj"), mixed)
    }
}

/// −∞ where the key comes after the query.
fn causal<'t>(scores: Var<'t>, sequence: &Dim) -> Var<'t> {
    let t = scores.tracer();
    let index = |axis| t.iota(TensorType::new(DType::I64, [sequence.clone(), sequence.clone()]), axis);
    let seen = index(1).less_equal(index(0));
    seen.select(scores, t.scalar(Literal::float(f64::NEG_INFINITY, scores.dtype())))
}

impl Layer for MultiHeadAttention {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        self.apply(p, x, None)
    }
}

/// Attention and a two-layer network, each with residual and layer norm; parameters as PyTorch's
/// `TransformerEncoderLayer`.
#[derive(Clone, Debug)]
pub struct TransformerBlock {
    attention: MultiHeadAttention,
    hidden: usize,
    norm_first: bool,
    activation: ScalarFn,
}

impl TransformerBlock {
    /// A block with `hidden` features between its linear layers and GELU, normalised before each part.
    pub fn new(attention: MultiHeadAttention, hidden: usize) -> TransformerBlock {
        TransformerBlock { attention, hidden, norm_first: true, activation: ScalarFn::Gelu }
    }

    /// Normalised after each sum, as in the first transformers.
    pub fn norm_last(mut self) -> TransformerBlock {
        self.norm_first = false;
        self
    }

    /// Another activation.
    pub fn activation(mut self, activation: ScalarFn) -> TransformerBlock {
        self.activation = activation;
        self
    }
}

impl Layer for TransformerBlock {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let features = p.extent(x, -1);
        let attend = |x| self.attention.build(&p.at("self_attn"), x);
        let feed = |x| {
            let hidden = Linear::new(self.hidden).build(&p.at("linear1"), x).map(self.activation, &[]);
            Linear::new(features).build(&p.at("linear2"), hidden)
        };
        let norm = |name: &str, x| LayerNorm::default().build(&p.at(name), x);
        if self.norm_first {
            let x = x + attend(norm("norm1", x));
            x + feed(norm("norm2", x))
        } else {
            let x = norm("norm1", x + attend(x));
            norm("norm2", x + feed(x))
        }
    }
}
