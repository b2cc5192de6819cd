//! `attention`: softmax of scores between queries and keys, applied to values.

mod eval;

use std::sync::Arc;

use super::pointwise::program_nodes;
use super::{
    DotGeneral, Generate, InferCx, InferError, Labels, Op, Operator, ProgramBuilder, Proj, operand, same_dtype,
};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::scalar::{Literal, ScalarExpr, ScalarFn};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::{Tracer, Var};
use crate::types::{Shape, TensorType, Type};

/// `(q, k, v, extras…) → (o, lse)`.
///
/// The raw scores are the contraction of `q` and `k` with result labels `scores`, whose last label runs over keys. The
/// program `score` maps them (argument 0) and the extras (arguments 1…, broadcast to the scores) to logits; their
/// softmax over keys, contracted with `v`, is `o`. `lse` is the log-sum-exp of each row of logits (f32), which the
/// gradient reads. A row whose logits are all −inf gives NaN unless `empty_is_zero`. Labels are canonical in the order q,
/// k, v, o, scores.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attention {
    /// Labels of the queries.
    pub q: Labels,
    /// Labels of the keys.
    pub k: Labels,
    /// Labels of the values.
    pub v: Labels,
    /// Labels of the result.
    pub o: Labels,
    /// Labels of the scores; the last one runs over keys.
    pub scores: Labels,
    /// From raw score (argument 0) and extras to logit.
    pub score: ScalarExpr,
    /// If given, logits of key j for query i are −inf where `j > i + causal`; the last two labels of the scores run over
    /// queries and keys. Not negative, so that each query has a key.
    pub causal: Option<Dim>,
    /// A row whose logits are all −inf, and its gradients, are 0.
    pub empty_is_zero: bool,
}

impl Attention {
    /// Attention with these labels, in the order q, k, v, o, scores, and a score program: no row is cut short, and a row
    /// without keys gives NaN.
    pub fn new([q, k, v, o, scores]: [Labels; 5], score: ScalarExpr) -> Attention {
        Attention { q, k, v, o, scores, score, causal: None, empty_is_zero: false }.canonical()
    }

    /// Renames labels by first use.
    pub fn canonical(mut self) -> Attention {
        Labels::canonical(&mut [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.scores]);
        self
    }

    /// Types of `o` and of the scores.
    fn types(&self, operands: &[Type], cx: &mut InferCx) -> Result<(TensorType, TensorType), InferError> {
        let (q, k, v) = (operand(operands, 0)?, operand(operands, 1)?, operand(operands, 2)?);
        let dtype = same_dtype(&[q, k, v])?;
        if !dtype.is_float() {
            return Err(format!("is not defined on {dtype}"));
        }
        let mut extents: [Option<Dim>; 26] = Default::default();
        self.q.bind(q, &mut extents, cx)?;
        self.k.bind(k, &mut extents, cx)?;
        self.v.bind(v, &mut extents, cx)?;
        let scores = self.scores.shape(&extents)?;
        let key = self.scores.0.last().ok_or("the scores have no axis")?;
        if self.q.has(*key) || !self.k.has(*key) || !self.v.has(*key) || self.o.has(*key) {
            return Err(format!("`{}` is no key axis of {self:?}", char::from(*key)));
        }
        if let Some(causal) = &self.causal
            && (self.scores.0.len() < 2 || causal.range().0 < 0)
        {
            return Err(format!("keys up to {causal} after the query need queries, and the first key"));
        }
        Ok((TensorType { dtype, shape: self.o.shape(&extents)? }, TensorType { dtype, shape: scores }))
    }

    /// `count` products of the size of scores times head, and the softmax and score program of each score.
    fn products(&self, operands: &[Type], count: i64) -> Dim {
        let mut cx = InferCx::default();
        let Some(q) = operands.first().and_then(Type::tensor) else { return Dim::ZERO };
        let Ok((_, scores)) = self.types(operands, &mut cx) else { return Dim::ZERO };
        let inner = |axis: &usize| !self.scores.has(self.q.0[*axis]);
        let head = (0..self.q.0.len()).filter(inner).fold(Dim::from(2), |n, axis| n * q.shape[axis].clone());
        scores.shape.elements() * (head * Dim::from(count) + Dim::from(5 + i64::from(self.score.size())))
    }

    /// The raw scores and the logits as plain operators.
    fn logits<'t>(&self, t: &Tracer<'t>, q: Var<'t>, k: Var<'t>, extras: &[Var<'t>]) -> (Var<'t>, Var<'t>) {
        let raw = dot((q, &self.q), (k, &self.k), &self.scores);
        let args: Vec<Var> = std::iter::once(raw).chain(extras.iter().copied()).collect();
        let logits = program_nodes(t, &self.score, &args).broadcast(raw.shape());
        let logits = match self.seen(&raw.shape()) {
            Some(seen) => t.add(seen, &[]).select(logits, t.scalar(Literal::float(f64::NEG_INFINITY, logits.dtype()))),
            None => logits,
        };
        (raw, logits)
    }

    /// Which keys a query sees, `[queries, keys]`, of scores of that shape; `None` when it sees all.
    pub fn seen(&self, scores: &Shape) -> Option<Generate> {
        let causal = self.causal.as_ref()?;
        let shape = scores[scores.rank().checked_sub(2)?..].iter().cloned().collect();
        let mut body = ProgramBuilder::new(2);
        let offset = body.dim(causal);
        let last = ScalarExpr::apply(ScalarFn::Add, [ScalarExpr::arg(0), offset], DType::I64);
        let seen = ScalarExpr::apply(ScalarFn::Le, [ScalarExpr::arg(1), last], DType::Bool);
        Some(Generate { ty: TensorType { dtype: DType::Bool, shape }, body: body.finish(seen) })
    }

    /// The softmax of logits, and the highest of each row as far as it is finite.
    fn shares<'t>(&self, t: &Tracer<'t>, logits: Var<'t>) -> (Var<'t>, Var<'t>) {
        let zero = t.scalar(Literal::float(0.0, logits.dtype()));
        let top = logits.reduce_max(&[-1], true).stop_gradient();
        let empty = top.equal(f64::NEG_INFINITY);
        let shares = if self.empty_is_zero {
            empty.select(zero, empty.select(zero, logits).softmax(-1))
        } else {
            logits.softmax(-1)
        };
        (shares, empty.select(zero, top))
    }

    /// The meaning as plain operators: the result and the log-sum-exp of each row.
    fn plain<'t>(&self, t: &Tracer<'t>, x: &[Var<'t>]) -> Vec<Var<'t>> {
        let (_, logits) = self.logits(t, x[0], x[1], &x[3..]);
        // the gradients through the greatest logit cancel
        let (shares, top) = self.shares(t, logits);
        let o = dot((shares, &self.scores), (x[2], &self.v), &self.o);
        let lse = (logits - top).exp().reduce_sum(&[-1], true).log() + top;
        vec![o, lse.squeeze(&[-1]).cast(DType::F32)]
    }

    fn check_extras(&self, extras: &[Type], scores: &TensorType, cx: &mut InferCx) -> Result<(), InferError> {
        for i in 0..extras.len() {
            let extra = operand(extras, i)?;
            let shape = cx.broadcast([&extra.shape, &scores.shape])?;
            if shape.rank() != scores.shape.rank() {
                return Err(format!("{extra} does not broadcast to the scores {scores}"));
            }
        }
        if self.score.args().iter().any(|arg| *arg > extras.len()) {
            return Err(format!("the score program {} reads more than {} extras", self.score, extras.len()));
        }
        Ok(())
    }
}

impl Operator for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        let (o, scores) = self.types(operands, cx)?;
        self.check_extras(operands.get(3..).unwrap_or_default(), &scores, cx)?;
        let rows = scores.shape[..scores.shape.rank() - 1].iter().cloned().collect();
        Ok(Type::Tuple(Arc::from([o, TensorType { dtype: DType::F32, shape: rows }])))
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        eval::forward(self, operands, cx)
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        // the closed form serves gradients by q, k and v
        if cx.upstream[1].is_some() || cx.wanted[3..].contains(&true) {
            return cx.through(|x| self.plain(cx.t, x));
        }
        let (q, k, v) = (cx.operands[0], cx.operands[1], cx.operands[2]);
        let saved = [k, v, cx.results[0], cx.results[1], cx.dy()];
        let others: Vec<Var> = saved.iter().chain(&cx.operands[3..]).copied().collect();
        let grads = q.then(AttentionGrad { of: self.clone() }, &others);
        let part = |index| Some(grads.then(Proj { index }, &[]));
        Ok((0..3).map(part).chain(cx.operands[3..].iter().map(|_| None)).collect())
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        let labels = [&self.q, &self.k, &self.v, &self.o, &self.scores].map(|l| Attr::Word(l.to_string()));
        let named = ["q", "k", "v", "o", "scores"].into_iter().zip(labels);
        let mut all: Vec<_> = named.chain([("score", Attr::Expr(self.score.clone()))]).collect();
        all.extend(self.causal.iter().map(|causal| ("causal", Attr::Dim(causal.clone()))));
        if self.empty_is_zero {
            all.push(("empty_is_zero", Attr::Bool(true)));
        }
        all
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        self.products(operands, 2)
    }
}

/// The contraction of two labelled values.
fn dot<'t>((a, in_a): (Var<'t>, &Labels), (b, in_b): (Var<'t>, &Labels), out: &Labels) -> Var<'t> {
    a.then(DotGeneral::new(in_a.clone(), in_b.clone(), out.clone()), &[b])
}

/// `(q, k, v, o, lse, do, extras…) → (dq, dk, dv)` of [`Attention`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttentionGrad {
    /// The forward operator.
    pub of: Attention,
}

impl Operator for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        let (o, scores) = self.of.types(operands, cx)?;
        for i in [3, 5] {
            let given = operand(operands, i)?;
            if given.shape.rank() != o.shape.rank() || given.dtype != o.dtype {
                return Err(format!("operand {i}, {given}, is not of type {o}"));
            }
        }
        operand(operands, 4)?;
        self.of.check_extras(operands.get(6..).unwrap_or_default(), &scores, cx)?;
        let parts: Result<Vec<TensorType>, _> = (0..3).map(|i| operand(operands, i).cloned()).collect();
        Ok(Type::Tuple(parts?.into()))
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        eval::backward(self, operands, cx)
    }

    /// Through the plain form, which computes the probabilities from q, k and the extras again.
    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let of = &self.of;
        cx.through(|x| {
            let (q, k, v, go, extras) = (x[0], x[1], x[2], x[5], &x[6..]);
            let (raw, logits) = of.logits(cx.t, q, k, extras);
            let (p, _) = of.shares(cx.t, logits);
            let dp = dot((go, &of.o), (v, &of.v), &of.scores);
            let ds = p * (dp - (p * dp).reduce_sum(&[-1], true));
            let args: Vec<Var> = std::iter::once(raw).chain(extras.iter().copied()).collect();
            let ds = match of.score.derivative(0, &args.iter().map(|v| v.dtype()).collect::<Vec<_>>()) {
                Some(slope) => ds * program_nodes(cx.t, &slope, &args),
                None => cx.zeros(ds.ty()),
            };
            vec![
                dot((ds, &of.scores), (k, &of.k), &of.q),
                dot((ds, &of.scores), (q, &of.q), &of.k),
                dot((p, &of.scores), (go, &of.o), &of.v),
            ]
        })
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        self.of.attributes()
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        // the scores again, and the four gradients
        self.of.products(operands, 5)
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    if name != "attention" && name != "attention_grad" {
        return Ok(None);
    }
    let labels = |name: &str| a.word(name).map(|text| Labels::new(&text));
    let of = Attention {
        q: labels("q")?,
        k: labels("k")?,
        v: labels("v")?,
        o: labels("o")?,
        scores: labels("scores")?,
        score: a.expr("score")?,
        causal: if a.has("causal") { Some(a.dim("causal")?) } else { None },
        empty_is_zero: a.has("empty_is_zero") && a.truth("empty_is_zero")?,
    };
    Ok(Some(if name == "attention" { of.into() } else { AttentionGrad { of }.into() }))
}
