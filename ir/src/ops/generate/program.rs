//! The program of one element of a `generate`: steps in a block, and blocks that repeat them.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::dim::Dim;
use crate::dtype::DType;
use crate::ops::InferError;
use crate::scalar::{ExprKind, Literal, ScalarExpr, ScalarFn};
use crate::types::TensorType;

/// Reductions may be nested this deep.
const DEPTH: usize = 8;

/// What a load gives at a place outside its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outside {
    /// The run fails with an error that names node, index and axis.
    Fault,
    /// The nearest element, axis by axis. Of an operand without elements the run fails.
    Clamp,
    /// This value, of the operand's element type.
    Fill(Literal),
}

/// How an inner loop joins the values of its trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InnerKind {
    /// Their sum; 0 of none. Floats are summed as `reduce` sums them.
    Sum,
    /// The greatest; NaN if one is NaN; the least value of the type of none.
    Max,
    /// The least; NaN if one is NaN; the greatest value of the type of none.
    Min,
}

impl InnerKind {
    /// The name in text forms.
    pub fn name(self) -> &'static str {
        match self {
            InnerKind::Sum => "reduce_sum",
            InnerKind::Max => "reduce_max",
            InnerKind::Min => "reduce_min",
        }
    }
}

/// A step of a [`Block`]; it gives one value.
///
/// Values are numbered through the whole program, in the order of the text: first the indices of the result (one an
/// axis), then each step's value; an inner loop numbers its counter, the values of its body, and then its own. Scalar
/// programs read values by number ([`ScalarExpr::arg`]). Values of a body are not seen outside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// A size, as i64.
    Dim(Dim),
    /// A scalar program of values.
    Let(ScalarExpr),
    /// An element of an operand, at i64 places, one an axis.
    Load {
        /// Number of the operand.
        operand: usize,
        /// The place.
        index: SmallVec<[ScalarExpr; 4]>,
        /// What a place outside gives.
        outside: Outside,
    },
    /// A loop from 0; its counter is an i64 value.
    Reduce {
        /// How the results of its trips are joined.
        kind: InnerKind,
        /// The number of trips, or with `count` its bound.
        extent: Dim,
        /// The number of trips where values tell it, i64; below 0 is 0, and above `extent` the run fails.
        count: Option<ScalarExpr>,
        /// One trip.
        body: Block,
    },
}

/// Steps in order, and a program of what they give. Clones share the steps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    /// The steps.
    pub steps: Arc<[Step]>,
    /// The value of the block.
    pub result: ScalarExpr,
}

impl Step {
    /// How many numbers the step takes.
    pub fn values(&self) -> usize {
        match self {
            Step::Reduce { body, .. } => 2 + body.values(),
            _ => 1,
        }
    }

    /// The number of the step's own value, if the first number it takes is `first`.
    pub fn value(&self, first: usize) -> usize {
        first + self.values() - 1
    }
}

impl Block {
    /// How many numbers the steps take.
    pub fn values(&self) -> usize {
        self.steps.iter().map(Step::values).sum()
    }

    /// Operations of one element: functions, loads and additions of loops, which run to their bounds.
    pub(super) fn operations(&self) -> Dim {
        let own = Dim::from(i64::from(self.result.size()));
        self.steps.iter().fold(own, |n, step| match step {
            Step::Dim(_) => n,
            Step::Let(e) => n + Dim::from(i64::from(e.size())),
            Step::Load { index, .. } => n + index.iter().fold(Dim::ZERO, |n, e| n + Dim::from(i64::from(e.size()))),
            Step::Reduce { extent, body, .. } => n + extent.clone() * (body.operations() + Dim::ONE),
        })
    }
}

impl Block {
    /// The program of a result with `rank` axes without steps that nothing reads.
    pub(super) fn without_dead_steps(&self, rank: usize) -> Block {
        let mut read = vec![false; rank + self.values()];
        self.mark(rank, &mut read);
        let mut numbers: Vec<usize> = (0..read.len()).collect();
        let (mut old, mut new) = (rank, rank);
        self.keep(&read, &mut numbers, &mut old, &mut new)
    }

    /// Marks the values that the result depends on; `first` is the number of the block's first value.
    fn mark(&self, first: usize, read: &mut [bool]) {
        fn all(read: &mut [bool], e: &ScalarExpr) {
            e.args()
                .into_iter()
                .filter(|i| *i < read.len())
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|i| read[i] = true);
        }
        all(read, &self.result);
        let mut number = first + self.values();
        for step in self.steps.iter().rev() {
            number -= step.values();
            if !read[step.value(number)] {
                continue;
            }
            match step {
                Step::Dim(_) => {}
                Step::Let(e) => all(read, e),
                Step::Load { index, .. } => index.iter().for_each(|e| all(read, e)),
                Step::Reduce { count, body, .. } => {
                    count.iter().for_each(|e| all(read, e));
                    body.mark(number + 1, read);
                }
            }
        }
    }

    fn keep(&self, read: &[bool], numbers: &mut [usize], old: &mut usize, new: &mut usize) -> Block {
        fn renamed(e: &ScalarExpr, numbers: &[usize]) -> ScalarExpr {
            e.substitute(&mut |i| ScalarExpr::arg(numbers.get(i).copied().unwrap_or(i)))
        }
        let mut steps = Vec::new();
        for step in self.steps.iter() {
            let value = step.value(*old);
            if !read[value] {
                *old = value + 1;
                continue;
            }
            steps.push(match step {
                Step::Dim(dim) => Step::Dim(dim.clone()),
                Step::Let(e) => Step::Let(renamed(e, numbers)),
                Step::Load { operand, index, outside } => Step::Load {
                    operand: *operand,
                    index: index.iter().map(|e| renamed(e, numbers)).collect(),
                    outside: *outside,
                },
                Step::Reduce { kind, extent, count, body } => {
                    let count = count.as_ref().map(|e| renamed(e, numbers));
                    numbers[*old] = *new;
                    *old += 1;
                    *new += 1;
                    let body = body.keep(read, numbers, old, new);
                    Step::Reduce { kind: *kind, extent: extent.clone(), count, body }
                }
            });
            numbers[value] = *new;
            *old = value + 1;
            *new += 1;
        }
        Block { steps: steps.into(), result: renamed(&self.result, numbers) }
    }
}

/// The element types of a program's values by number, `None` of values that are out of scope.
struct Scope<'a> {
    operands: &'a [&'a TensorType],
    dtypes: Vec<Option<DType>>,
    /// All of them, whether in scope or not.
    all: Vec<DType>,
}

/// Checks a program whose result has `rank` axes, and gives the element types of all its values and of the result.
///
/// # Errors
/// A sentence with the step at fault.
pub(super) fn check(block: &Block, rank: usize, operands: &[&TensorType]) -> Result<(Vec<DType>, DType), InferError> {
    let mut scope = Scope { operands, dtypes: vec![Some(DType::I64); rank], all: vec![DType::I64; rank] };
    let dtype = scope.block(block, 0)?;
    Ok((scope.all, dtype))
}

impl Scope<'_> {
    fn block(&mut self, block: &Block, depth: usize) -> Result<DType, InferError> {
        if depth > DEPTH {
            return Err(format!("loops are nested more than {DEPTH} deep"));
        }
        let first = self.dtypes.len();
        for step in block.steps.iter() {
            let dtype = self.step(step, depth)?;
            self.push(dtype)?;
        }
        let dtype = self.expr(&block.result)?;
        if depth > 0 {
            self.dtypes[first..].fill(None);
        }
        Ok(dtype)
    }

    fn push(&mut self, dtype: DType) -> Result<(), InferError> {
        self.dtypes.push(Some(dtype));
        self.all.push(dtype);
        if self.all.len() > usize::from(u16::MAX) { Err("the program has too many values".into()) } else { Ok(()) }
    }

    fn step(&mut self, step: &Step, depth: usize) -> Result<DType, InferError> {
        match step {
            Step::Dim(_) => Ok(DType::I64),
            Step::Let(e) => self.expr(e),
            Step::Load { operand, index, outside } => {
                let ty = *self.operands.get(*operand).ok_or_else(|| format!("there is no operand {operand}"))?;
                if index.len() != ty.shape.rank() {
                    return Err(format!("a load of {ty} has {} indices", index.len()));
                }
                for e in index {
                    self.integer(e, "an index")?;
                }
                match outside {
                    Outside::Fill(value) if value.dtype != ty.dtype => Err(format!("{value} does not stand for {ty}")),
                    _ => Ok(ty.dtype),
                }
            }
            Step::Reduce { kind, extent: _, count, body } => {
                if let Some(count) = count {
                    self.integer(count, "the number of trips")?;
                }
                let counter = self.dtypes.len();
                self.push(DType::I64)?;
                let dtype = self.block(body, depth + 1)?;
                self.dtypes[counter] = None;
                if dtype == DType::Bool {
                    return Err(format!("{} is not defined on bool", kind.name()));
                }
                Ok(dtype)
            }
        }
    }

    fn integer(&self, e: &ScalarExpr, what: &str) -> Result<(), InferError> {
        match self.expr(e)? {
            DType::I64 => Ok(()),
            other => Err(format!("{what} must be i64, but {e} is {other}")),
        }
    }

    fn expr(&self, e: &ScalarExpr) -> Result<DType, InferError> {
        match e.kind() {
            ExprKind::Arg(i) => {
                let known = self.dtypes.get(usize::from(*i)).copied().flatten();
                known.ok_or_else(|| format!("p{i} has no value here"))
            }
            ExprKind::Const(literal) => Ok(literal.dtype),
            ExprKind::Cast(dtype, inner) => self.expr(inner).map(|_| *dtype),
            ExprKind::Apply(f, args) => {
                let dtypes: SmallVec<[DType; 3]> = args.iter().map(|a| self.expr(a)).collect::<Result<_, _>>()?;
                f.result_dtype(&dtypes).map_err(|why| format!("{}: {why}", f.name()))
            }
        }
    }
}

/// A program under construction: gives each value its number.
pub struct ProgramBuilder {
    /// Blocks that are open, the innermost last.
    open: Vec<Vec<Step>>,
    dtypes: Vec<DType>,
}

impl ProgramBuilder {
    /// A program of a result with `rank` axes.
    pub fn new(rank: usize) -> ProgramBuilder {
        ProgramBuilder { open: vec![Vec::new()], dtypes: vec![DType::I64; rank] }
    }

    /// Element types of the values so far.
    pub fn dtypes(&self) -> &[DType] {
        &self.dtypes
    }

    fn number(&mut self, dtype: DType) -> ScalarExpr {
        self.dtypes.push(dtype);
        ScalarExpr::arg(self.dtypes.len() - 1)
    }

    fn push(&mut self, step: Step, dtype: DType) -> ScalarExpr {
        if let Some(block) = self.open.last_mut() {
            block.push(step);
        }
        self.number(dtype)
    }

    /// A size.
    pub fn dim(&mut self, dim: &Dim) -> ScalarExpr {
        match dim.as_const() {
            Some(value) => ScalarExpr::constant(Literal::int(value, DType::I64)),
            None => self.push(Step::Dim(dim.clone()), DType::I64),
        }
    }

    /// A value that is computed once, wherever it is read.
    pub fn bind(&mut self, e: ScalarExpr) -> ScalarExpr {
        if e.size() == 0 {
            return e;
        }
        let dtype = e.dtype(&self.dtypes);
        self.push(Step::Let(e), dtype)
    }

    /// An element of operand `operand`, whose element type is `dtype`.
    pub fn load(&mut self, operand: usize, dtype: DType, index: &[ScalarExpr], outside: Outside) -> ScalarExpr {
        self.push(Step::Load { operand, index: index.iter().cloned().collect(), outside }, dtype)
    }

    /// A loop; `body` gets its counter.
    pub fn reduce(
        &mut self,
        kind: InnerKind,
        extent: &Dim,
        count: Option<ScalarExpr>,
        body: impl FnOnce(&mut ProgramBuilder, ScalarExpr) -> ScalarExpr,
    ) -> ScalarExpr {
        let counter = self.number(DType::I64);
        self.open.push(Vec::new());
        let result = body(self, counter);
        let steps = self.open.pop().unwrap_or_default().into();
        let dtype = result.dtype(&self.dtypes);
        self.push(Step::Reduce { kind, extent: extent.clone(), count, body: Block { steps, result } }, dtype)
    }

    /// The program with this result.
    pub fn finish(mut self, result: ScalarExpr) -> Block {
        Block { steps: self.open.pop().unwrap_or_default().into(), result }
    }
}

/// A function of programs in the element type of its last operand.
pub(super) fn apply<const N: usize>(f: ScalarFn, args: [ScalarExpr; N], dtypes: &[DType]) -> ScalarExpr {
    let operand = args.last().map_or(DType::F32, |a| a.dtype(dtypes));
    let dtype = if f.is_predicate() { DType::Bool } else { operand };
    ScalarExpr::apply(f, args, dtype)
}
