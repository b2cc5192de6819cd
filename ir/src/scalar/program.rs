//! Scalar programs made ready to run over many elements.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::expr::{ExprKind, ScalarExpr};
use super::table::{Meaning, ScalarFn};
use super::value::ScalarValue;
use crate::dtype::DType;

/// A [`ScalarExpr`] as a list of steps, each rounded to its element type; a defined function is one step, computed in
/// f64 within.
pub struct ScalarProgram {
    steps: Vec<Step>,
    result: usize,
    values: Vec<ScalarValue>,
}

enum Step {
    Arg(usize),
    Const(ScalarValue),
    Cast(DType, usize),
    Primitive {
        f: fn(&[ScalarValue]) -> ScalarValue,
        operands: SmallVec<[usize; 3]>,
        round: Option<DType>,
        divides: bool,
    },
}

impl ScalarProgram {
    /// Makes `expr` ready, given the element types of its arguments.
    pub fn new(expr: &ScalarExpr, dtypes: &[DType]) -> ScalarProgram {
        let mut program = ScalarProgram { steps: Vec::new(), result: 0, values: Vec::new() };
        let mut known = FxHashMap::default();
        program.result = program.rounded(expr, dtypes, &mut known);
        program.values = vec![ScalarValue::Bool(false); program.steps.len()];
        program
    }

    /// The program that never rounds between steps.
    pub fn unrounded(expr: &ScalarExpr, dtypes: &[DType]) -> ScalarProgram {
        let mut program = ScalarProgram { steps: Vec::new(), result: 0, values: Vec::new() };
        let mut known = FxHashMap::default();
        program.result = program.plain(&expr.expand(dtypes), dtypes, &mut known);
        program.values = vec![ScalarValue::Bool(false); program.steps.len()];
        program
    }

    fn push(&mut self, step: Step) -> usize {
        self.steps.push(step);
        self.steps.len() - 1
    }

    fn rounded(&mut self, expr: &ScalarExpr, dtypes: &[DType], known: &mut FxHashMap<ScalarExpr, usize>) -> usize {
        if let Some(at) = known.get(expr) {
            return *at;
        }
        let at = match expr.kind() {
            ExprKind::Arg(i) => self.push(Step::Arg(usize::from(*i))),
            ExprKind::Const(literal) => self.push(Step::Const(literal.value())),
            ExprKind::Cast(dtype, inner) => {
                let inner = self.rounded(inner, dtypes, known);
                self.push(Step::Cast(*dtype, inner))
            }
            ExprKind::Apply(f, args) => {
                let dtype = expr.dtype(dtypes);
                let operands: SmallVec<[usize; 3]> = args.iter().map(|a| self.rounded(a, dtypes, known)).collect();
                let operand = args.last().map_or(DType::F32, |a| a.dtype(dtypes));
                self.apply(*f, &operands, operand, Some(dtype))
            }
        };
        known.insert(expr.clone(), at);
        at
    }

    /// One function on steps; `operand` is the element type of its operands.
    fn apply(&mut self, f: ScalarFn, operands: &[usize], operand: DType, round: Option<DType>) -> usize {
        match f.meaning() {
            Meaning::Primitive(g) => {
                let divides = matches!(f, ScalarFn::Div | ScalarFn::Rem) && !operand.is_float();
                // f64 has nothing to round to, and a truth value is exact
                let round = round.filter(|d| !matches!(d, DType::F64 | DType::Bool));
                self.push(Step::Primitive { f: g, operands: operands.into(), round, divides })
            }
            Meaning::Defined(define) => {
                let args: Vec<ScalarExpr> = (0..operands.len()).map(ScalarExpr::arg).collect();
                // its constants are not rounded to a narrow type: all within is f64
                let within = if operand.is_float() { DType::F64 } else { operand };
                let dtypes = vec![within; operands.len()];
                let body = define(&args, within).expand(&dtypes);
                let mut known: FxHashMap<ScalarExpr, usize> = args.into_iter().zip(operands.iter().copied()).collect();
                let at = self.plain(&body, &dtypes, &mut known);
                match round {
                    Some(dtype) => self.push(Step::Cast(dtype, at)),
                    None => at,
                }
            }
        }
    }

    /// A program of primitives, without rounding.
    fn plain(&mut self, expr: &ScalarExpr, dtypes: &[DType], known: &mut FxHashMap<ScalarExpr, usize>) -> usize {
        if let Some(at) = known.get(expr) {
            return *at;
        }
        let at = match expr.kind() {
            ExprKind::Arg(i) => self.push(Step::Arg(usize::from(*i))),
            ExprKind::Const(literal) => self.push(Step::Const(literal.value())),
            ExprKind::Cast(dtype, inner) => {
                let inner = self.plain(inner, dtypes, known);
                self.push(Step::Cast(*dtype, inner))
            }
            ExprKind::Apply(f, args) => {
                let operands: SmallVec<[usize; 3]> = args.iter().map(|a| self.plain(a, dtypes, known)).collect();
                let operand = args.last().map_or(DType::F32, |a| a.dtype(dtypes));
                let round = (!operand.is_float()).then(|| expr.dtype(dtypes));
                self.apply(*f, &operands, operand, round)
            }
        };
        known.insert(expr.clone(), at);
        at
    }

    /// The value on arguments, and whether an integer was divided by zero.
    ///
    /// # Panics
    /// If an argument is missing.
    pub fn run(&mut self, args: &[ScalarValue]) -> (ScalarValue, bool) {
        let mut by_zero = false;
        for i in 0..self.steps.len() {
            let at = |j: &usize| self.values[*j];
            let value = match &self.steps[i] {
                Step::Arg(j) => args[*j],
                Step::Const(value) => *value,
                Step::Cast(dtype, j) => at(j).cast(*dtype),
                Step::Primitive { f, operands, round, divides } => {
                    let value = match operands.as_slice() {
                        [a] => f(&[at(a)]),
                        [a, b] => {
                            by_zero |= *divides && at(b) == ScalarValue::Int(0);
                            f(&[at(a), at(b)])
                        }
                        [a, b, c] => f(&[at(a), at(b), at(c)]),
                        _ => f(&[]),
                    };
                    match (round, value) {
                        (Some(DType::F32), ScalarValue::Float(x)) => ScalarValue::Float(f64::from(x as f32)),
                        (Some(dtype), value) => value.cast(*dtype),
                        (None, value) => value,
                    }
                }
            };
            self.values[i] = value;
        }
        (self.values[self.result], by_zero)
    }
}
