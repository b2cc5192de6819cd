//! Elementwise operators: scalar functions over tensors, and conversions.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{InferCx, InferError, Op, Operator, arity, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError, broadcast_strides, copy_elements};
use crate::scalar::{ExprKind, Meaning, ScalarExpr, ScalarFn, ScalarProgram, ScalarValue};
use crate::tensor::Tensor;
use crate::text::Attributes;
use crate::tracer::{Tracer, Var};
use crate::types::{TensorType, Type};

/// A scalar function of tensors that broadcast together by NumPy's rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pointwise {
    /// The function.
    pub f: ScalarFn,
}

impl Operator for Pointwise {
    fn name(&self) -> &'static str {
        self.f.name()
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, self.f.arity())?;
        let types = (0..operands.len()).map(|i| operand(operands, i));
        let types: SmallVec<[&TensorType; 4]> = types.collect::<Result<_, _>>()?;
        let dtypes: SmallVec<[DType; 4]> = types.iter().map(|ty| ty.dtype).collect();
        let dtype = self.f.result_dtype(&dtypes)?;
        Ok(TensorType { dtype, shape: cx.broadcast(types.iter().map(|ty| &ty.shape))? }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let dtypes: Vec<DType> = operands.iter().map(Tensor::dtype).collect();
        if let (Meaning::Primitive(f), DType::F32) = (self.f.meaning(), dtype)
            && self.f != ScalarFn::Select
        {
            return Ok(vec![primitive_f32(f, operands, &shape)]);
        }
        let args = (0..operands.len()).map(ScalarExpr::arg);
        let expr = ScalarExpr::apply(self.f, args, dtype);
        let mut order = expr.args();
        order.sort_unstable();
        debug_assert_eq!(order.len(), operands.len());
        map_elements(&mut ScalarProgram::new(&expr, &dtypes), operands, dtype, &shape).map(|y| vec![y])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let dtype = cx.results[0].dtype();
        let dtypes: Vec<DType> = cx.operands.iter().map(|v| v.dtype()).collect();
        let args: Vec<ScalarExpr> = (0..cx.operands.len()).map(ScalarExpr::arg).collect();
        let expr = ScalarExpr::apply(self.f, args.iter().cloned(), dtype);
        let known = args.into_iter().zip(cx.operands.iter().copied()).chain([(expr.clone(), cx.results[0])]);
        let mut emit = Emit { t: cx.t, args: cx.operands, known: known.collect() };
        let mut gradients = Vec::new();
        for (i, operand) in cx.operands.iter().enumerate() {
            let slope = cx.wanted[i].then(|| expr.derivative(i, &dtypes)).flatten();
            gradients.push(slope.map(|slope| cx.sum_to(emit.scaled(&slope, cx.dy()), &operand.shape())));
        }
        Ok(gradients)
    }

    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        // the steps of the function, spelled in primitives
        let args = (0..self.f.arity()).map(ScalarExpr::arg);
        let steps = ScalarExpr::unfolded(self.f, args).expand(&[DType::F32; 3]).size();
        super::elements(result) * Dim::from(i64::from(steps))
    }
}

/// A conversion: integers wrap, float to integer truncates and saturates, NaN becomes 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cast {
    /// The element type of the result.
    pub dtype: DType,
}

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        Ok(TensorType { dtype: self.dtype, shape: operand(operands, 0)?.shape.clone() }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let mut out = Tensor::zeros(dtype, &shape);
        operands[0].values().enumerate().for_each(|(i, v)| out.set(i, v));
        Ok(vec![out])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let from = cx.operands[0].dtype();
        Ok(vec![(from.is_float() && self.dtype.is_float()).then(|| cx.dy().cast(from))])
    }

    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        super::elements(result)
    }
}

/// A scalar program as elementwise operators on the values of its arguments, which broadcast together.
pub(super) fn program_nodes<'t>(t: &Tracer<'t>, program: &ScalarExpr, args: &[Var<'t>]) -> Var<'t> {
    Emit { t, args, known: FxHashMap::default() }.node(program)
}

/// Scalar programs as nodes.
struct Emit<'a, 't> {
    t: &'a Tracer<'t>,
    args: &'a [Var<'t>],
    known: FxHashMap<ScalarExpr, Var<'t>>,
}

impl<'t> Emit<'_, 't> {
    fn node(&mut self, expr: &ScalarExpr) -> Var<'t> {
        if let Some(var) = self.known.get(expr) {
            return *var;
        }
        let var = match expr.kind() {
            ExprKind::Arg(i) => self.args[usize::from(*i)],
            ExprKind::Const(literal) => self.t.scalar(*literal),
            ExprKind::Cast(dtype, inner) => self.node(inner).cast(*dtype),
            ExprKind::Apply(f, args) => {
                let args: Vec<Var> = args.iter().map(|a| self.node(a)).collect();
                self.t.add(Pointwise { f: *f }, &args)
            }
        };
        self.known.insert(expr.clone(), var);
        var
    }

    /// `slope · dy`; a choice of slopes is a choice of products, so that an infinity not chosen cannot make NaN.
    fn scaled(&mut self, slope: &ScalarExpr, dy: Var<'t>) -> Var<'t> {
        if let Some(literal) = slope.as_const() {
            return match literal.as_f64() {
                1.0 => dy,
                -1.0 => -dy,
                0.0 => self.t.scalar(literal),
                _ => dy * self.t.scalar(literal),
            };
        }
        match slope.operands_of(ScalarFn::Select) {
            Some([condition, yes, no]) => {
                let (condition, yes, no) = (self.node(condition), self.scaled(yes, dy), self.scaled(no, dy));
                condition.select(yes, no)
            }
            _ => dy * self.node(slope),
        }
    }
}

/// A primitive of f32 operands, all of whose operands and result are f32.
fn primitive_f32(f: fn(&[ScalarValue]) -> ScalarValue, operands: &[Tensor], shape: &[usize]) -> Tensor {
    let operands: Vec<Tensor> = operands.iter().map(|t| expanded(t, shape)).collect();
    let values: Vec<&[f32]> = operands.iter().map(|t| t.as_slice::<f32>().unwrap_or(&[])).collect();
    let float = |x: &f32| ScalarValue::Float(f64::from(*x));
    let mut out = Tensor::zeros(DType::F32, shape);
    let Some(result) = out.as_mut_slice::<f32>() else { return out };
    match values.as_slice() {
        [a] => result.iter_mut().zip(*a).for_each(|(y, a)| *y = f(&[float(a)]).as_f64() as f32),
        [a, b] => {
            result.iter_mut().zip(*a).zip(*b).for_each(|((y, a), b)| *y = f(&[float(a), float(b)]).as_f64() as f32)
        }
        _ => {}
    }
    out
}

/// The tensor broadcast to `shape`.
pub(super) fn expanded(tensor: &Tensor, shape: &[usize]) -> Tensor {
    if tensor.shape() == shape {
        return tensor.clone();
    }
    copy_elements(tensor, shape, &broadcast_strides(tensor.shape(), shape), 0)
}

/// A scalar program over the elements of operands broadcast to `shape`.
pub(super) fn map_elements(
    program: &mut ScalarProgram,
    operands: &[Tensor],
    dtype: DType,
    shape: &[usize],
) -> Result<Tensor, EvalError> {
    let operands: Vec<Tensor> = operands.iter().map(|t| expanded(t, shape)).collect();
    let mut out = Tensor::zeros(dtype, shape);
    let mut args = vec![ScalarValue::Bool(false); operands.len()];
    for i in 0..out.elements() {
        for (arg, operand) in args.iter_mut().zip(&operands) {
            *arg = operand.get(i);
        }
        let (value, by_zero) = program.run(&args);
        if by_zero {
            return Err(EvalError::DivisionByZero { element: i });
        }
        out.set(i, value);
    }
    Ok(out)
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(match name {
        "cast" => Some(Cast { dtype: a.tensor_type()?.dtype }.into()),
        other => ScalarFn::from_name(other).map(|f| Pointwise { f }.into()),
    })
}
