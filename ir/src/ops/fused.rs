//! `fused`: an anchor with what it absorbed. Only rewriting makes it.

use std::sync::Arc;

use super::pointwise::map_elements;
use super::{ConvForm, InferCx, InferError, Op, Operator, operand};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::scalar::{ScalarExpr, ScalarProgram};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{TensorType, Type};

/// An anchor, and a scalar program over its result and extra operands.
///
/// Operands are the anchor's own (`bases` of them), then the extras, then those of the prologue. The program reads the
/// anchor's element as argument 0 and extra `i` as argument `i + 1`; extras broadcast to the anchor's result. With `rows`,
/// the operator named there (softmax or norm over the last axis) is applied to the program's result, and `finish` to that
/// (argument 0) and the extras. Each of `taps` is one more result, a program like `epilogue`, in the result's element type;
/// then the type is a tuple. With `prologue` the anchor reads what that makes of the first operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fused {
    /// The operator that loops.
    pub anchor: Box<Op>,
    /// Number of operands of the anchor.
    pub bases: usize,
    /// What becomes of the first operand before the anchor reads it.
    pub prologue: Option<Prologue>,
    /// From the anchor's element and the extras to the result.
    pub epilogue: ScalarExpr,
    /// Element type of the epilogue's result.
    pub dtype: DType,
    /// Row operator after the epilogue, with the program after it.
    pub rows: Option<(Box<Op>, ScalarExpr)>,
    /// Further results.
    pub taps: Vec<ScalarExpr>,
}

/// A scalar program over the first operand of a forward convolution, before it is padded: what padding adds stays zero.
///
/// The program reads the operand's element as argument 0 and operand `i` of the prologue as argument `i + 1`; these
/// broadcast to the operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prologue {
    /// From an element of the operand to what the anchor reads.
    pub program: ScalarExpr,
    /// Number of operands of the prologue.
    pub extras: usize,
}

impl Fused {
    /// The anchor with a program and nothing else.
    pub fn epilogue(anchor: Op, bases: usize, epilogue: ScalarExpr, dtype: DType) -> Fused {
        Fused { anchor: Box::new(anchor), bases, prologue: None, epilogue, dtype, rows: None, taps: Vec::new() }
    }

    /// Operands, or what belongs to each, as the anchor's own, the extras, and those of the prologue.
    pub fn split<'o, T>(&self, operands: &'o [T]) -> (&'o [T], &'o [T], &'o [T]) {
        let (bases, rest) = operands.split_at(self.bases.min(operands.len()));
        let own = self.prologue.as_ref().map_or(0, |prologue| prologue.extras);
        let (extras, own) = rest.split_at(rest.len().saturating_sub(own));
        (bases, extras, own)
    }

    /// The type of what the anchor reads as its first operand.
    fn read(&self, first: &TensorType, own: &[Type], cx: &mut InferCx) -> Result<TensorType, InferError> {
        let Some(prologue) = &self.prologue else { return Ok(first.clone()) };
        if !matches!(&*self.anchor, Op::Conv(conv) if conv.form == ConvForm::Forward) {
            return Err("only a forward convolution has a prologue".into());
        }
        if own.len() != prologue.extras {
            return Err(format!("the prologue takes {} operands", prologue.extras));
        }
        let mut dtypes = vec![first.dtype];
        for i in 0..own.len() {
            let extra = operand(own, i)?;
            if cx.broadcast([&extra.shape, &first.shape])? != first.shape {
                return Err(format!("{extra} does not broadcast to {first}"));
            }
            dtypes.push(extra.dtype);
        }
        if prologue.program.args().iter().any(|arg| *arg > own.len()) {
            return Err(format!("{} reads more than {} operands", prologue.program, own.len()));
        }
        Ok(TensorType { dtype: prologue.program.dtype(&dtypes), shape: first.shape.clone() })
    }
}

impl Operator for Fused {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        if operands.len() < self.bases {
            return Err(format!("takes at least {} operands", self.bases));
        }
        let (bases, extras, own) = self.split(operands);
        let base = match &self.prologue {
            None => self.anchor.home().infer(bases, cx)?,
            Some(_) => {
                let mut read = bases.to_vec();
                let first = self.read(operand(bases, 0)?, own, cx)?;
                read[0] = first.into();
                self.anchor.home().infer(&read, cx)?
            }
        };
        let Some(base) = base.tensor() else { return Err("the anchor is a tuple".into()) };
        let mut dtypes = vec![base.dtype];
        for i in 0..extras.len() {
            let extra = operand(extras, i)?;
            if cx.broadcast([&extra.shape, &base.shape])?.rank() != base.shape.rank() {
                return Err(format!("{extra} does not broadcast to {base}"));
            }
            dtypes.push(extra.dtype);
        }
        let programs = self.taps.iter().chain([&self.epilogue]);
        for program in programs {
            if program.args().iter().any(|arg| *arg > extras.len()) {
                return Err(format!("{program} reads more than {} extras", extras.len()));
            }
            if program.dtype(&dtypes) != self.dtype {
                return Err(format!("{program} is {}, not {}", program.dtype(&dtypes), self.dtype));
            }
        }
        let mut result: Type = TensorType { dtype: self.dtype, shape: base.shape.clone() }.into();
        if let Some((rows, _)) = &self.rows {
            result = rows.home().infer(&[result], cx)?;
        }
        match (result.tensor(), self.taps.len()) {
            (Some(_), 0) => Ok(result),
            (Some(ty), n) => Ok(Type::Tuple(Arc::from(vec![ty.clone(); n + 1]))),
            (None, _) => Err("the row operator is a tuple".into()),
        }
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.results(self, operands)?;
        let (bases, extras, own) = self.split(operands);
        // a step of a program rounds as the elementwise operator that it was
        let map = |program: &ScalarExpr, first: &Tensor, extras: &[Tensor], dtype: Option<DType>| {
            let args: Vec<Tensor> = std::iter::once(first).chain(extras).cloned().collect();
            let dtypes: Vec<DType> = args.iter().map(Tensor::dtype).collect();
            let dtype = dtype.unwrap_or_else(|| program.dtype(&dtypes));
            map_elements(&mut ScalarProgram::new(program, &dtypes), &args, dtype, first.shape())
        };
        let apply = |program: &ScalarExpr, first: &Tensor| map(program, first, extras, Some(self.dtype));
        let mut anchor = match (&self.prologue, bases) {
            (Some(prologue), [first, rest @ ..]) => {
                let first = map(&prologue.program, first, own, None)?;
                let read: Vec<Tensor> = std::iter::once(&first).chain(rest).cloned().collect();
                self.anchor.home().eval(&read, cx)?
            }
            _ => self.anchor.home().eval(bases, cx)?,
        };
        let Some(anchor) = anchor.pop().filter(|_| anchor.is_empty()) else {
            return Err(EvalError::Operands("the anchor is a tuple".into()));
        };
        let mut result = apply(&self.epilogue, &anchor)?;
        if let Some((rows, finish)) = &self.rows {
            let mut parts = rows.home().eval(&[result], cx)?;
            let Some(part) = parts.pop() else { return Err(EvalError::Operands("the row operator is empty".into())) };
            result = apply(finish, &part)?;
        }
        let taps: Vec<Tensor> = self.taps.iter().map(|tap| apply(tap, &anchor)).collect::<Result<_, _>>()?;
        Ok(std::iter::once(result).chain(taps).collect())
    }

    fn no_gradient(&self) -> Option<&'static str> {
        Some("rewriting makes it, after differentiation")
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        let mut list = vec![
            ("anchor", Attr::Op((*self.anchor).clone())),
            ("bases", Attr::Int(self.bases as i64)),
            ("epilogue", Attr::Expr(self.epilogue.clone())),
            ("dtype", Attr::Word(self.dtype.to_string())),
        ];
        if let Some((rows, finish)) = &self.rows {
            list.extend([("rows", Attr::Op((**rows).clone())), ("finish", Attr::Expr(finish.clone()))]);
        }
        if !self.taps.is_empty() {
            list.push(("taps", Attr::Exprs(self.taps.clone())));
        }
        if let Some(prologue) = &self.prologue {
            let extras = Attr::Int(prologue.extras as i64);
            list.extend([("prologue", Attr::Expr(prologue.program.clone())), ("prologue_operands", extras)]);
        }
        list
    }

    fn flops(&self, operands: &[Type], result: &Type) -> Dim {
        let programs = self.taps.iter().chain([&self.epilogue]).chain(self.rows.iter().map(|(_, finish)| finish));
        let steps = programs.fold(0i64, |n, program| n + i64::from(program.size()));
        let base = operands.get(..self.bases).unwrap_or_default();
        let first = operands.first().and_then(|ty| ty.tensor()).map_or(Dim::ZERO, |ty| ty.shape.elements());
        let before = self.prologue.as_ref().map_or(0, |prologue| i64::from(prologue.program.size()));
        let rows = self.rows.as_ref().map_or(Dim::ZERO, |(rows, _)| rows.home().flops(&[], result));
        let each = result.parts().first().map_or(Dim::ZERO, |part| part.shape.elements());
        self.anchor.home().flops(base, result) + each * Dim::from(steps) + first * Dim::from(before) + rows
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "fused" => Fused {
            anchor: Box::new(a.op("anchor")?),
            bases: a.place("bases")?,
            epilogue: a.expr("epilogue")?,
            dtype: a.word("dtype")?.parse().map_err(|why: String| a.error(&why))?,
            rows: match a.has("rows") {
                true => Some((Box::new(a.op("rows")?), a.expr("finish")?)),
                false => None,
            },
            taps: if a.has("taps") { a.exprs("taps")? } else { Vec::new() },
            prologue: match a.has("prologue") {
                true => Some(Prologue { program: a.expr("prologue")?, extras: a.place("prologue_operands")? }),
                false => None,
            },
        }
        .into(),
        _ => return Ok(None),
    }))
}
