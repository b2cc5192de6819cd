//! `dot_general`: the contraction of two tensors.

use std::fmt;

use smallvec::SmallVec;

use super::{InferCx, InferError, Op, Operator, arity, operand, summed_dtype};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError, Num, by_kind, contract};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{TensorType, Type};

/// The axes of an operand by einsum label: `abc`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Labels(pub SmallVec<[u8; 8]>);

impl Labels {
    /// Labels of lower-case letters.
    pub fn new(text: &str) -> Labels {
        Labels(text.bytes().collect())
    }

    /// The axis with that label.
    pub fn axis(&self, label: u8) -> Option<usize> {
        self.0.iter().position(|l| *l == label)
    }

    /// Whether the label occurs.
    pub fn has(&self, label: u8) -> bool {
        self.0.contains(&label)
    }

    /// The labels with axes in the order of `permutation`.
    pub fn permuted(&self, permutation: &[usize]) -> Labels {
        Labels(permutation.iter().map(|axis| self.0[*axis]).collect())
    }

    /// Renames labels by first use, over all lists together: equal contractions have equal labels.
    pub fn canonical(lists: &mut [&mut Labels]) {
        let mut names: SmallVec<[u8; 16]> = SmallVec::new();
        for list in lists.iter() {
            for label in &list.0 {
                if !names.contains(label) {
                    names.push(*label);
                }
            }
        }
        for list in lists.iter_mut() {
            for label in list.0.iter_mut() {
                let index = names.iter().position(|name| name == label).unwrap_or(0);
                *label = b'a' + index as u8;
            }
        }
    }

    /// Notes each label's extent in `extents`, and needs repeats to be equal.
    ///
    /// # Errors
    /// When rank or extents do not fit.
    pub fn bind(&self, ty: &TensorType, extents: &mut [Option<Dim>; 26], cx: &mut InferCx) -> Result<(), InferError> {
        if ty.shape.rank() != self.0.len() {
            return Err(format!("labels `{self}` do not fit {ty}"));
        }
        for (label, dim) in self.0.iter().zip(ty.shape.iter()) {
            let slot = extents
                .get_mut(usize::from(label.wrapping_sub(b'a')))
                .ok_or_else(|| format!("`{self}` is not of lower-case letters"))?;
            match slot {
                Some(have) => cx.require_equal(have, dim, "extents with one label of a contraction")?,
                None => *slot = Some(dim.clone()),
            }
        }
        Ok(())
    }

    /// The extents of these labels.
    ///
    /// # Errors
    /// When a label is unbound.
    pub fn shape(&self, extents: &[Option<Dim>; 26]) -> Result<crate::Shape, InferError> {
        let find = |label: &u8| extents.get(usize::from(label.wrapping_sub(b'a'))).cloned().flatten();
        self.0.iter().map(|l| find(l).ok_or_else(|| format!("label `{}` has no extent", char::from(*l)))).collect()
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|label| write!(f, "{}", char::from(*label)))
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `out[…] = Σ lhs[…]·rhs[…]` over labels that `out` lacks. Labels are canonical: named by first use.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DotGeneral {
    /// Labels of the first operand.
    pub lhs: Labels,
    /// Labels of the second operand.
    pub rhs: Labels,
    /// Labels of the result.
    pub out: Labels,
    /// Sums of 8-bit integers of either sign are in `i32`, and so is the result.
    pub wide: bool,
}

impl DotGeneral {
    /// The contraction with these labels, renamed by first use.
    pub fn new(mut lhs: Labels, mut rhs: Labels, mut out: Labels) -> DotGeneral {
        Labels::canonical(&mut [&mut lhs, &mut rhs, &mut out]);
        DotGeneral { lhs, rhs, out, wide: false }
    }

    /// This contraction with other labels, renamed by first use.
    pub fn relabelled(&self, lhs: Labels, rhs: Labels, out: Labels) -> DotGeneral {
        DotGeneral { wide: self.wide, ..DotGeneral::new(lhs, rhs, out) }
    }

    /// This contraction of 8-bit integers, with its sums in `i32`.
    pub fn wide(self) -> DotGeneral {
        DotGeneral { wide: true, ..self }
    }

    /// The contraction that text such as `ab,bc->ac` names.
    pub fn parse(text: &str) -> Option<DotGeneral> {
        let (operands, out) = text.split_once("->")?;
        let (lhs, rhs) = operands.split_once(',')?;
        let letters = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase());
        (letters(lhs) && letters(rhs) && letters(out))
            .then(|| DotGeneral::new(Labels::new(lhs), Labels::new(rhs), Labels::new(out)))
    }

    /// Labels summed over, in order of the first operand.
    pub fn contracted(&self) -> impl Iterator<Item = u8> + '_ {
        self.lhs.0.iter().copied().filter(|l| !self.out.has(*l))
    }
}

impl Operator for DotGeneral {
    fn name(&self) -> &'static str {
        "dot_general"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (a, b) = (operand(operands, 0)?, operand(operands, 1)?);
        let dtype = summed_dtype(a, b, self.wide)?;
        let mut extents: [Option<Dim>; 26] = Default::default();
        self.lhs.bind(a, &mut extents, cx)?;
        self.rhs.bind(b, &mut extents, cx)?;
        Ok(TensorType { dtype, shape: self.out.shape(&extents)? }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        fn go<N: Num>(dot: &DotGeneral, operands: &[Tensor], dtype: crate::DType, shape: &[usize]) -> Tensor {
            let (a, b) = (N::load(&operands[0]), N::load(&operands[1]));
            let out =
                contract((&a, &dot.lhs.0, operands[0].shape()), (&b, &dot.rhs.0, operands[1].shape()), &dot.out.0);
            N::store(dtype, shape, &out)
        }
        let (dtype, shape) = cx.result(self, operands)?;
        Ok(vec![by_kind!(dtype, go(self, operands, dtype, &shape))])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let sides = [(&self.lhs, &self.rhs, 1), (&self.rhs, &self.lhs, 0)];
        let mut gradients = Vec::new();
        for (i, (own, other, place)) in sides.into_iter().enumerate() {
            if !cx.wanted[i] {
                gradients.push(None);
                continue;
            }
            if (0..own.0.len()).any(|axis| own.axis(own.0[axis]) != Some(axis)) {
                return Err(cx.refuse(format!("the diagonal of `{own}` in a contraction has no gradient")));
            }
            // an axis that was summed in this operand alone gets the same gradient everywhere
            let summed = |l: &u8| !other.has(*l) && !self.out.has(*l);
            let kept = Labels(own.0.iter().copied().filter(|l| !summed(l)).collect());
            let dot = DotGeneral::new(self.out.clone(), other.clone(), kept);
            let mut gradient = cx.dy().then(dot, &[cx.operands[place]]);
            let lost: Vec<isize> = (0..own.0.len()).filter(|axis| summed(&own.0[*axis])).map(|a| a as isize).collect();
            if !lost.is_empty() {
                gradient = gradient.unsqueeze(&lost).broadcast(cx.operands[i].shape());
            }
            gradients.push(Some(gradient));
        }
        Ok(gradients)
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        let labels = ["lhs", "rhs", "out"].into_iter().zip([&self.lhs, &self.rhs, &self.out]);
        let mut all: Vec<_> = labels.map(|(name, labels)| (name, Attr::Word(labels.to_string()))).collect();
        if self.wide {
            all.push(("wide", Attr::Bool(true)));
        }
        all
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        let mut extents: [Option<Dim>; 26] = Default::default();
        let mut cx = InferCx::default();
        let types = operands.first().and_then(Type::tensor).zip(operands.get(1).and_then(Type::tensor));
        let bound =
            types.map(|(a, b)| self.lhs.bind(a, &mut extents, &mut cx).and(self.rhs.bind(b, &mut extents, &mut cx)));
        match bound {
            Some(Ok(())) => extents.into_iter().flatten().fold(Dim::from(2), |n, extent| n * extent),
            _ => Dim::ZERO,
        }
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "dot_general" => DotGeneral {
            lhs: Labels::new(&a.word("lhs")?),
            rhs: Labels::new(&a.word("rhs")?),
            out: Labels::new(&a.word("out")?),
            wide: a.has("wide") && a.truth("wide")?,
        }
        .into(),
        _ => return Ok(None),
    }))
}
