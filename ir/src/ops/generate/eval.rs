//! Evaluation of programs, element by element.

use smallvec::SmallVec;

use super::Generate;
use super::program::{Block, InnerKind, Outside, Step};
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::ops::reduce::of_nothing;
use crate::scalar::{ScalarExpr, ScalarProgram, ScalarValue};
use crate::tensor::Tensor;

/// A block made ready to run: sizes are numbers, programs are lists of steps.
struct Ready {
    steps: Vec<(usize, ReadyStep)>,
    result: ScalarProgram,
}

enum ReadyStep {
    Known(ScalarValue),
    Let(ScalarProgram),
    Load { operand: usize, index: SmallVec<[ScalarProgram; 4]>, outside: Outside },
    Reduce { kind: InnerKind, extent: i128, count: Option<ScalarProgram>, counter: usize, dtype: DType, body: Ready },
}

pub(super) fn eval(
    op: &Generate,
    operands: &[Tensor],
    dtype: DType,
    shape: &[usize],
    cx: &EvalCx,
) -> Result<Tensor, EvalError> {
    let types: Vec<_> = operands.iter().map(crate::eval::actual_type).collect();
    let dtypes = op.value_dtypes(&types.iter().collect::<Vec<_>>()).map_err(EvalError::Operands)?;
    let mut next = shape.len();
    let mut ready = make_ready(&op.body, &mut next, &dtypes, cx)?;
    let mut machine = Machine { operands, values: vec![ScalarValue::Int(0); dtypes.len()], element: 0 };
    let mut out = Tensor::zeros(dtype, shape);
    let mut index = vec![0usize; shape.len()];
    for element in 0..out.elements() {
        machine.element = element;
        for (slot, at) in machine.values.iter_mut().zip(&index) {
            *slot = ScalarValue::Int(*at as i128);
        }
        let value = machine.block(&mut ready)?;
        out.set(element, value);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(out)
}

fn make_ready(block: &Block, next: &mut usize, dtypes: &[DType], cx: &EvalCx) -> Result<Ready, EvalError> {
    let program = |e: &ScalarExpr| ScalarProgram::new(e, dtypes);
    let mut steps = Vec::with_capacity(block.steps.len());
    for step in block.steps.iter() {
        let ready = match step {
            Step::Dim(dim) => ReadyStep::Known(ScalarValue::Int(dim.eval(cx.bindings)?.into())),
            Step::Let(e) => ReadyStep::Let(program(e)),
            Step::Load { operand, index, outside } => {
                ReadyStep::Load { operand: *operand, index: index.iter().map(program).collect(), outside: *outside }
            }
            Step::Reduce { kind, extent, count, body } => {
                let counter = *next;
                *next += 1;
                let body = make_ready(body, next, dtypes, cx)?;
                ReadyStep::Reduce {
                    kind: *kind,
                    extent: extent.eval(cx.bindings)?.into(),
                    count: count.as_ref().map(program),
                    counter,
                    dtype: dtypes[*next],
                    body,
                }
            }
        };
        steps.push((*next, ready));
        *next += 1;
    }
    Ok(Ready { steps, result: program(&block.result) })
}

/// The values of one element.
struct Machine<'a> {
    operands: &'a [Tensor],
    values: Vec<ScalarValue>,
    element: usize,
}

impl Machine<'_> {
    fn program(&self, program: &mut ScalarProgram) -> Result<ScalarValue, EvalError> {
        match program.run(&self.values) {
            (_, true) => Err(EvalError::DivisionByZero { element: self.element }),
            (value, false) => Ok(value),
        }
    }

    fn block(&mut self, block: &mut Ready) -> Result<ScalarValue, EvalError> {
        for (number, step) in &mut block.steps {
            self.values[*number] = match step {
                ReadyStep::Known(value) => *value,
                ReadyStep::Let(program) => self.program(program)?,
                ReadyStep::Load { operand, index, outside } => self.load(*operand, index, *outside)?,
                ReadyStep::Reduce { kind, extent, count, counter, dtype, body } => {
                    let trips = match count {
                        None => *extent,
                        Some(count) => {
                            let trips = self.program(count)?.as_int();
                            if trips > *extent {
                                return Err(EvalError::Bound { size: trips, bound: *extent });
                            }
                            trips
                        }
                    };
                    self.reduce(*kind, trips, *counter, *dtype, body)?
                }
            };
        }
        self.program(&mut block.result)
    }

    fn reduce(
        &mut self,
        kind: InnerKind,
        trips: i128,
        counter: usize,
        dtype: DType,
        body: &mut Ready,
    ) -> Result<ScalarValue, EvalError> {
        let mut total = match kind {
            InnerKind::Sum if dtype.is_float() => ScalarValue::Float(0.0),
            InnerKind::Sum => ScalarValue::Int(0),
            InnerKind::Max => of_nothing(true, dtype).value(),
            InnerKind::Min => of_nothing(false, dtype).value(),
        };
        for trip in 0..trips {
            self.values[counter] = ScalarValue::Int(trip);
            let value = self.block(body)?;
            total = join(kind, total, value);
        }
        Ok(total.cast(dtype))
    }

    fn load(
        &self,
        operand: usize,
        index: &mut SmallVec<[ScalarProgram; 4]>,
        outside: Outside,
    ) -> Result<ScalarValue, EvalError> {
        let tensor = &self.operands[operand];
        let mut at = 0;
        for (axis, (program, extent)) in index.iter_mut().zip(tensor.shape()).enumerate() {
            let wanted = self.program(program)?.as_int();
            let inside = (0..*extent as i128).contains(&wanted);
            let place = match outside {
                _ if inside => wanted,
                Outside::Clamp if *extent > 0 => wanted.clamp(0, *extent as i128 - 1),
                Outside::Fill(value) => return Ok(value.value()),
                _ => return Err(EvalError::Index { index: wanted, extent: *extent, axis }),
            };
            at = at * extent + place as usize;
        }
        Ok(tensor.get(at))
    }
}

/// Sums in f64 or without bound; extrema keep a NaN.
fn join(kind: InnerKind, a: ScalarValue, b: ScalarValue) -> ScalarValue {
    use ScalarValue::{Float, Int};
    match (kind, a, b) {
        (InnerKind::Sum, Float(a), Float(b)) => Float(a + b),
        (InnerKind::Sum, a, b) => Int(a.as_int().wrapping_add(b.as_int())),
        (_, Float(a), Float(b)) if a.is_nan() || b.is_nan() => Float(f64::NAN),
        (InnerKind::Max, Float(a), Float(b)) => Float(a.max(b)),
        (InnerKind::Min, Float(a), Float(b)) => Float(a.min(b)),
        (InnerKind::Max, a, b) => Int(a.as_int().max(b.as_int())),
        (InnerKind::Min, a, b) => Int(a.as_int().min(b.as_int())),
    }
}
