//! Instances of a rule's left side: operators with attributes drawn at random, over leaves of distinct extents.
//!
//! A side is drawn from the outside in: each node is told the type that its user would like, so that shapes fit by
//! construction more often than by chance; what does not fit is drawn again.

use std::sync::Arc;

use egg::Id;
use egret_ir::ops::{Const, Input, Param, Pointwise};
use egret_ir::random::Random;
use egret_ir::{DType, Graph, Literal, NodeId, Op, ScalarFn, ScalarValue, Shape, Tensor, TensorType, Tensors, Weights};
use smallvec::SmallVec;

use super::super::direct::{Builder, BuilderView};
use super::super::pattern::{Bindings, Pattern, Rule};

/// Most elements of a value.
pub(super) const MOST_ELEMENTS: i64 = 4096;
/// Extents, told apart so that a transposed or exchanged axis shows.
const EXTENTS: [i64; 8] = [2, 3, 5, 7, 4, 9, 6, 11];

/// What elements are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    /// Of either sign, small.
    Signed,
    /// Above zero, where roots and logarithms are defined.
    Positive,
    /// Signed, and ±0, ±∞, NaN, and numbers that overflow.
    Special,
}

/// A graph that a rule's left side matches.
pub(super) struct Instance {
    /// The graph with the left side, before it is finished.
    pub builder: Builder,
    /// The left side's node.
    pub root: NodeId,
    /// The first match.
    pub bindings: Bindings,
    /// Values of inputs.
    pub inputs: Tensors,
    /// Values of params.
    pub weights: Weights,
}

impl Instance {
    /// The right side, added to the graph; `None` when it does not fit its operands.
    pub fn right(&mut self, rule: &Rule) -> Option<NodeId> {
        let dtype = self.builder.graph().tensor_type(self.root).dtype;
        self.builder.instantiate(rule, &self.bindings, dtype)
    }

    /// The graph with its weights and these outputs.
    pub fn graph(self, outputs: &[(&str, NodeId)]) -> (Graph, Tensors) {
        let mut graph = self.builder.finish();
        outputs.iter().for_each(|(name, id)| graph.add_output(*name, *id));
        graph.weights = Arc::new(self.weights);
        (graph, self.inputs)
    }
}

/// Draws instances.
pub(super) struct Sampler<'r> {
    pub random: &'r mut Random,
    pub builder: Builder,
    pub values: Values,
    /// A kind that no sampler knows.
    pub unknown: Option<&'static str>,
    weights: Weights,
    inputs: Tensors,
    vars: Vec<Option<NodeId>>,
    attrs: Vec<Option<Op>>,
    rests: Vec<Option<SmallVec<[NodeId; 4]>>>,
}

impl<'r> Sampler<'r> {
    pub fn new(random: &'r mut Random, values: Values) -> Sampler<'r> {
        Sampler {
            random,
            builder: Builder::new(&Graph::new()),
            values,
            unknown: None,
            weights: Weights::new(),
            inputs: Tensors::new(),
            vars: Vec::new(),
            attrs: Vec::new(),
            rests: Vec::new(),
        }
    }

    /// An instance of a rule's left side, or a kind for which there is no sampler.
    pub fn instance(mut self, rule: &Rule) -> Result<Option<Instance>, &'static str> {
        self.vars = vec![None; rule.names.vars.len()];
        self.attrs = vec![None; rule.names.attrs.len()];
        self.rests = vec![None; rule.names.rests.len()];
        let rank = self.random.below(5);
        let ty = TensorType { dtype: self.dtype(), shape: self.shape(rank) };
        let root = self.pattern(&rule.pattern, &ty);
        if let Some(kind) = self.unknown {
            return Err(kind);
        }
        let Some(root) = root else { return Ok(None) };
        let found = rule.search(&BuilderView(&self.builder), Id::from(root.index()));
        let Sampler { builder, inputs, weights, .. } = self;
        Ok(found.into_iter().next().map(|bindings| Instance { builder, root, bindings, inputs, weights }))
    }

    /// What was drawn without a rule.
    pub fn graph(self, outputs: &[(String, NodeId)]) -> (Graph, Tensors) {
        let mut graph = self.builder.finish();
        outputs.iter().for_each(|(name, id)| graph.add_output(name.clone(), *id));
        graph.weights = Arc::new(self.weights);
        (graph, self.inputs)
    }

    /// Whether something of that chance in a hundred happens.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.random.below(100) < percent
    }

    /// An extent, most often not 1.
    pub fn extent(&mut self) -> i64 {
        if self.chance(12) { 1 } else { EXTENTS[self.random.below(EXTENTS.len())] }
    }

    /// A shape whose extents differ but for ones.
    pub fn shape(&mut self, rank: usize) -> Shape {
        loop {
            let mut extents: SmallVec<[i64; 6]> = SmallVec::new();
            while extents.len() < rank {
                let extent = self.extent();
                if extent == 1 || !extents.contains(&extent) {
                    extents.push(extent);
                }
            }
            if extents.iter().product::<i64>() <= MOST_ELEMENTS / 4 {
                return extents.into_iter().map(Into::into).collect();
            }
        }
    }

    /// An element type: mostly f32.
    pub fn dtype(&mut self) -> DType {
        const OTHERS: [DType; 6] = [DType::F64, DType::F16, DType::BF16, DType::I32, DType::I64, DType::U8];
        if self.chance(60) { DType::F32 } else { OTHERS[self.random.below(OTHERS.len())] }
    }

    /// A shape that broadcasts to `to`.
    pub fn narrower(&mut self, to: &Shape) -> Shape {
        if self.chance(25) {
            return Shape::default();
        }
        let dims = to.iter().map(|dim| if self.chance(50) { dim.clone() } else { 1.into() });
        let mut dims: SmallVec<[egret_ir::Dim; 6]> = dims.collect();
        while dims.first().is_some_and(|dim| dim.is(1)) && self.chance(60) {
            dims.remove(0);
        }
        dims.into_iter().collect()
    }

    fn element(&mut self, dtype: DType) -> ScalarValue {
        if dtype == DType::Bool {
            return ScalarValue::Bool(self.chance(50));
        }
        if !dtype.is_float() {
            if self.values == Values::Special && dtype.size() > 1 && self.chance(20) {
                return ScalarValue::Int(i128::from(i64::MAX)).cast(dtype);
            }
            let signed =
                matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64) && self.values != Values::Positive;
            let value = 1 + self.random.below(9) as i128;
            return ScalarValue::Int(if signed && self.chance(50) { -value } else { value }).cast(dtype);
        }
        if self.values == Values::Special && self.chance(20) {
            // the last one is near the greatest number of f16 and beyond what it may be doubled to
            const SPECIAL: [f64; 6] = [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 60_000.0];
            return ScalarValue::Float(SPECIAL[self.random.below(SPECIAL.len())]).cast(dtype);
        }
        let size = 0.25 + 1.75 * self.random.unit();
        let negative = self.values != Values::Positive && self.chance(50);
        ScalarValue::Float(if negative { -size } else { size }).cast(dtype)
    }

    /// A number, now and then an extent or the reciprocal of one.
    fn splat(&mut self, dtype: DType) -> ScalarValue {
        if !dtype.is_float() || self.chance(70) {
            return self.element(dtype);
        }
        let extent = EXTENTS[self.random.below(EXTENTS.len())] as f64;
        ScalarValue::Float(if self.chance(50) { extent } else { 1.0 / extent }).cast(dtype)
    }

    /// Variables `0..n` are unbound from now on.
    pub fn free(&mut self, n: usize) {
        self.vars = vec![None; n];
    }

    /// A new input, param or constant of that type; `None` when it would be too large.
    pub fn leaf(&mut self, ty: &TensorType) -> Option<NodeId> {
        match self.random.below(10) {
            0..5 => self.input(ty),
            5..8 => self.param(ty),
            _ => {
                let extents = self.extents(ty)?;
                let value = Literal::new(self.splat(ty.dtype), ty.dtype);
                self.add(Const { value: Tensor::splat(value, &extents) }, &[])
            }
        }
    }

    /// A new input; `None` when it would be too large.
    pub fn input(&mut self, ty: &TensorType) -> Option<NodeId> {
        let tensor = self.tensor(ty)?;
        let name = format!("x{}", self.inputs.len());
        self.inputs.insert(name.clone(), tensor);
        self.add(Input { name, ty: ty.clone() }, &[])
    }

    /// A new param; `None` when it would be too large.
    pub fn param(&mut self, ty: &TensorType) -> Option<NodeId> {
        let tensor = self.tensor(ty)?;
        let name = format!("w{}", self.weights.len());
        self.weights.insert(name.clone(), tensor.into());
        self.add(Param { name, ty: ty.clone() }, &[])
    }

    fn extents(&self, ty: &TensorType) -> Option<Vec<usize>> {
        let extents = ty.shape.constant().filter(|e| e.iter().product::<i64>() <= MOST_ELEMENTS)?;
        Some(extents.into_iter().map(|n| n as usize).collect())
    }

    fn tensor(&mut self, ty: &TensorType) -> Option<Tensor> {
        let mut tensor = Tensor::zeros(ty.dtype, &self.extents(ty)?);
        for i in 0..tensor.elements() {
            let value = self.element(ty.dtype);
            tensor.set(i, value);
        }
        Some(tensor)
    }

    /// Adds a node; `None` when it does not fit its operands or has too many elements.
    pub fn add(&mut self, op: impl Into<Op>, operands: &[NodeId]) -> Option<NodeId> {
        let id = self.builder.add(&op.into(), operands).ok()?;
        let small = |ty: &TensorType| ty.shape.constant().is_some_and(|n| n.iter().product::<i64>() <= MOST_ELEMENTS);
        self.builder.graph().ty(id).parts().iter().all(small).then_some(id)
    }

    /// The type of a node.
    pub fn ty(&self, id: NodeId) -> TensorType {
        self.builder.graph().tensor_type(id).clone()
    }

    /// A node that a pattern matches, of the wanted type if it can be.
    pub fn pattern(&mut self, pattern: &Pattern, want: &TensorType) -> Option<NodeId> {
        match pattern {
            Pattern::Var(i) => match self.vars[*i] {
                Some(id) => Some(id),
                None => {
                    let id = self.leaf(want)?;
                    self.vars[*i] = Some(id);
                    Some(id)
                }
            },
            Pattern::Number(value) => {
                let literal = Literal::new(ScalarValue::Float(*value), want.dtype);
                let shape: &[usize] = if self.chance(80) { &[] } else { &[1] };
                self.add(Const { value: Tensor::splat(literal, shape) }, &[])
            }
            Pattern::Node { kind, function, attr, operands, rest } => {
                if let Some(op) = attr.and_then(|attr| self.attrs[attr].clone()) {
                    let mut ids: SmallVec<[NodeId; 4]> = SmallVec::new();
                    for operand in operands {
                        ids.push(self.pattern(operand, want)?);
                    }
                    ids.extend(rest.and_then(|rest| self.rests[rest].clone()).unwrap_or_default());
                    return self.add(op, &ids);
                }
                let (op, ids) = match *function {
                    Some(f) => (Pointwise { f }.into(), self.function(f, operands, want)?),
                    None => self.operator(kind.name(), operands, rest.is_some(), want)?,
                };
                if let Some(attr) = attr {
                    self.attrs[*attr] = Some(op.clone());
                }
                if let Some(rest) = rest {
                    self.rests[*rest] = Some(ids[operands.len()..].into());
                }
                self.add(op, &ids)
            }
        }
    }

    /// Operands of a scalar function: one as wide as the result, the others often narrower.
    fn function(&mut self, f: ScalarFn, operands: &[Pattern], want: &TensorType) -> Option<SmallVec<[NodeId; 4]>> {
        let dtype = match want.dtype {
            _ if f.is_predicate() && !f.is_logical() => self.dtype(),
            dtype => dtype,
        };
        let wide = self.random.below(operands.len());
        let mut ids = SmallVec::new();
        for (i, operand) in operands.iter().enumerate() {
            let shape = if i != wide && self.chance(60) { self.narrower(&want.shape) } else { want.shape.clone() };
            let dtype = if f == ScalarFn::Select && i == 0 { DType::Bool } else { dtype };
            ids.push(self.pattern(operand, &TensorType { dtype, shape })?);
        }
        Some(ids)
    }
}
