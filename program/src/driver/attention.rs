//! Attention and its gradient.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where an operand `[outer…][rows][channels]` lies; its channels are contiguous. A stride of 0 repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionOperand<D = usize> {
    /// By outer axis, from an index to the next.
    pub outer: Vec<D>,
    /// From a row (query or key) to the next.
    pub row: D,
}

impl<D> AttentionOperand<D> {
    fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> AttentionOperand<E> {
        AttentionOperand { outer: self.outer.iter().map(&mut *f).collect(), row: f(&self.row) }
    }
}

impl<D: fmt::Display> fmt::Display for AttentionOperand<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        self.outer.iter().try_for_each(|stride| write!(f, "{stride}, "))?;
        write!(f, "{})", self.row)
    }
}

/// Where an operand over the scores lies; strides of 0 broadcast.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mask<D = usize> {
    /// By outer axis, from an index to the next.
    pub outer: Vec<D>,
    /// From a query to the next.
    pub query: D,
    /// From a key to the next.
    pub key: D,
}

/// What becomes of a raw dot of query and key before the softmax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Score<D = usize> {
    /// `scale * dot + mask`, and -inf where `truth` is false.
    Plain {
        /// Scale.
        scale: f32,
        /// Additive mask, of `f32`.
        mask: Option<Mask<D>>,
        /// Boolean mask.
        truth: Option<Mask<D>>,
    },
    /// A [`ScoreFn`](super::hook::ScoreFn).
    Hook {
        /// How each extra operand is addressed.
        extras: Vec<Mask<D>>,
        /// Bytes of an element of each extra operand.
        element_bytes: Vec<u8>,
    },
}

impl<D: Eq> Eq for Score<D> {}

impl<D: std::hash::Hash> std::hash::Hash for Score<D> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Score::Plain { scale, mask, truth } => {
                scale.to_bits().hash(state);
                mask.hash(state);
                truth.hash(state);
            }
            Score::Hook { extras, element_bytes } => {
                extras.hash(state);
                element_bytes.hash(state);
            }
        }
    }
}

impl<D> Mask<D> {
    fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> Mask<E> {
        Mask { outer: self.outer.iter().map(&mut *f).collect(), query: f(&self.query), key: f(&self.key) }
    }
}

impl<D: fmt::Display> fmt::Display for Mask<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        self.outer.iter().try_for_each(|stride| write!(f, "{stride}, "))?;
        write!(f, "{}, {})", self.query, self.key)
    }
}

impl<D> Score<D> {
    fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> Score<E> {
        match self {
            Score::Plain { scale, mask, truth } => Score::Plain {
                scale: *scale,
                mask: mask.as_ref().map(|m| m.map(f)),
                truth: truth.as_ref().map(|m| m.map(f)),
            },
            Score::Hook { extras, element_bytes } => {
                Score::Hook { extras: extras.iter().map(|m| m.map(f)).collect(), element_bytes: element_bytes.clone() }
            }
        }
    }
}

impl<D: fmt::Display> fmt::Display for Score<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Score::Plain { scale, mask, truth } => {
                write!(f, "scale {scale:?}")?;
                if let Some(mask) = mask {
                    write!(f, " mask {mask}")?;
                }
                if let Some(truth) = truth {
                    write!(f, " truth {truth}")?;
                }
                Ok(())
            }
            Score::Hook { extras, element_bytes } => {
                write!(f, "hook extras {} bytes {}", super::List(extras), super::List(element_bytes))
            }
        }
    }
}

/// `o = softmax(score(q k^T)) v`, for each index of the outer axes (batch items and heads), by an online softmax.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionProblem<D = usize> {
    /// Extents of the outer axes.
    pub outer: Vec<D>,
    /// How many of them, the last ones, share keys and values: query heads of one group.
    pub shared: usize,
    /// Queries.
    pub q_len: D,
    /// Keys.
    pub k_len: D,
    /// Channels of queries and keys.
    pub head_dim: D,
    /// Channels of values and output.
    pub value_dim: D,
    /// Query strides.
    pub q: AttentionOperand<D>,
    /// Key strides.
    pub k: AttentionOperand<D>,
    /// Value strides.
    pub v: AttentionOperand<D>,
    /// Output strides.
    pub o: AttentionOperand<D>,
    /// Strides of the log-sum-exp of the scores, one float a row, if it is wanted.
    pub lse: Option<AttentionOperand<D>>,
    /// Scores.
    pub score: Score<D>,
    /// If given, key j takes part for query i only when `j <= i + causal`.
    pub causal: Option<D>,
    /// A row whose scores are all -inf gives 0 (boolean masks) instead of NaN (softmax).
    pub empty_is_zero: bool,
}

impl<D> AttentionProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> AttentionProblem<E> {
        AttentionProblem {
            outer: self.outer.iter().map(&mut *f).collect(),
            shared: self.shared,
            q_len: f(&self.q_len),
            k_len: f(&self.k_len),
            head_dim: f(&self.head_dim),
            value_dim: f(&self.value_dim),
            q: self.q.map(f),
            k: self.k.map(f),
            v: self.v.map(f),
            o: self.o.map(f),
            lse: self.lse.as_ref().map(|x| x.map(f)),
            score: self.score.map(f),
            causal: self.causal.as_ref().map(&mut *f),
            empty_is_zero: self.empty_is_zero,
        }
    }
}

impl AttentionProblem<usize> {
    /// Number of softmaxes by query: indices of the outer axes.
    pub fn units(&self) -> usize {
        self.outer.iter().product()
    }

    /// Indices of the shared axes.
    pub fn sharing(&self) -> usize {
        self.outer[self.outer.len() - self.shared..].iter().product()
    }

    /// Multiply-adds count two; a causal mask is not taken into account.
    pub fn flops(&self) -> f64 {
        2.0 * self.units() as f64 * (self.q_len * self.k_len) as f64 * (self.head_dim + self.value_dim) as f64
    }
}

impl<D: fmt::Display> fmt::Display for AttentionProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "attention outer {} shared {} queries {} keys {} channels {} -> {}",
            super::List(&self.outer),
            self.shared,
            self.q_len,
            self.k_len,
            self.head_dim,
            self.value_dim
        )?;
        write!(f, "  q {} k {} v {} o {}", self.q, self.k, self.v, self.o)?;
        if let Some(lse) = &self.lse {
            write!(f, " lse {lse}")?;
        }
        write!(f, "\n  score {}", self.score)?;
        if let Some(causal) = &self.causal {
            write!(f, " causal {causal}")?;
        }
        if self.empty_is_zero {
            f.write_str(" empty zero")?;
        }
        Ok(())
    }
}

/// The gradient of [`AttentionProblem`] with respect to q, k and v, from q, k, v, o, its log-sum-exp and the gradient of o.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionGradProblem<D = usize> {
    /// The forward problem; `lse` must be given, and keys and values must have all outer axes but the shared ones. A score
    /// hook goes with a hook of its slope, which reads the extras and then the gradient of the logits, and gives the
    /// gradient of the raw dots.
    pub forward: AttentionProblem<D>,
    /// Strides of the gradient of o.
    pub grad_o: AttentionOperand<D>,
    /// Strides of the gradient of q.
    pub grad_q: AttentionOperand<D>,
    /// Strides of the gradient of k.
    pub grad_k: AttentionOperand<D>,
    /// Strides of the gradient of v.
    pub grad_v: AttentionOperand<D>,
}

impl<D> AttentionGradProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> AttentionGradProblem<E> {
        AttentionGradProblem {
            forward: self.forward.map(f),
            grad_o: self.grad_o.map(f),
            grad_q: self.grad_q.map(f),
            grad_k: self.grad_k.map(f),
            grad_v: self.grad_v.map(f),
        }
    }
}

impl<D: fmt::Display> fmt::Display for AttentionGradProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "gradient of {}", self.forward)?;
        write!(f, "  do {} dq {} dk {} dv {}", self.grad_o, self.grad_q, self.grad_k, self.grad_v)
    }
}

/// Schedule of attention.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionSchedule {
    /// L: a block is 2 L queries wide. The runtime refuses another than its own.
    pub lanes: usize,
    /// Keys (in the gradient also queries) in a block.
    pub key_block: usize,
}

impl AttentionSchedule {
    /// The analytic choice: a block of scores of 16 KB.
    pub fn choose(lanes: usize) -> AttentionSchedule {
        AttentionSchedule { lanes, key_block: 128 }
    }
}

impl fmt::Display for AttentionSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  schedule lanes {} key_block {}", self.lanes, self.key_block)
    }
}
