//! The element of a `generate`: its program as statements, where the element is wanted.

use egret_ir::ops::{Block, Generate, InnerKind, Outside, Step};
use egret_ir::{DType, NodeId, TensorType};
use smallvec::SmallVec;

use super::reduce;
use super::scalar;
use super::scope::Scope;
use crate::kernel::{Expr, LoopKind, ReduceOp};

/// The values of a program so far, by number.
struct Values<'g> {
    operands: &'g [NodeId],
    known: Vec<Expr>,
    /// Of all values that there will be.
    dtypes: Vec<DType>,
}

impl Scope<'_> {
    /// The element at `index` of `id`, a `generate`.
    pub(super) fn generated(&mut self, id: NodeId, op: &Generate, index: &[Expr]) -> Expr {
        let graph = self.graph;
        let operands = &graph.node(id).operands;
        let types: Vec<&TensorType> = operands.iter().map(|o| graph.tensor_type(*o)).collect();
        // the graph's verifier has checked the program
        let dtypes = op.value_dtypes(&types).unwrap_or_default();
        let mut values = Values { operands, known: index.to_vec(), dtypes };
        self.program_block(&op.body, &mut values)
    }

    fn program_block(&mut self, block: &Block, values: &mut Values) -> Expr {
        for step in block.steps.iter() {
            let value = match step {
                Step::Dim(dim) => self.dim(dim),
                Step::Let(program) => self.program(program, &values.known, &values.dtypes),
                Step::Load { operand, index, outside } => self.program_load(*operand, index, *outside, values),
                Step::Reduce { kind, extent, count, body } => {
                    let extent_value = self.dim(extent);
                    let trips = match count {
                        None => extent_value,
                        Some(count) => {
                            let count = self.program(count, &values.known, &values.dtypes);
                            let count = self.k.bind(count);
                            let message = format!("an inner loop has more trips than its bound {extent}");
                            self.fault_if(count.greater(extent_value.clone()), message);
                            self.k.bind(count.min(extent_value))
                        }
                    };
                    self.inner_loop(*kind, trips, body, values)
                }
            };
            let value = self.k.bind(value);
            values.known.push(value);
        }
        self.program(&block.result, &values.known, &values.dtypes)
    }

    /// A loop that joins the values of its trips; numbers its counter and the values of its body.
    fn inner_loop(&mut self, kind: InnerKind, trips: Expr, body: &Block, values: &mut Values) -> Expr {
        let counter = values.known.len();
        let dtype = values.dtypes.get(counter + 1 + body.values()).copied().unwrap_or(DType::F32);
        let (op, reduction) = match kind {
            InnerKind::Sum => (ReduceOp::Sum, egret_ir::ops::ReduceKind::Sum),
            InnerKind::Max => (ReduceOp::Max, egret_ir::ops::ReduceKind::Max),
            InnerKind::Min => (ReduceOp::Min, egret_ir::ops::ReduceKind::Min),
        };
        let total = self.k.variable(reduce::start(reduction, dtype));
        self.for_(Expr::int(0), trips, LoopKind::Serial, |scope, trip| {
            values.known.push(trip);
            let value = scope.program_block(body, values);
            scope.k.assign(total, Expr::Var(total).binary(op.step(), value));
        });
        // nothing reads these after the loop, but their numbers are taken
        values.known.resize(counter + 1 + body.values(), Expr::int(0));
        Expr::Var(total)
    }

    fn program_load(
        &mut self,
        operand: usize,
        index: &[egret_ir::ScalarExpr],
        outside: Outside,
        values: &mut Values,
    ) -> Expr {
        let id = values.operands[operand];
        let shape = self.graph.tensor_type(id).shape.clone();
        let mut at: SmallVec<[Expr; 6]> = SmallVec::new();
        let mut inside: Option<Expr> = None;
        for (axis, program) in index.iter().enumerate() {
            let place = self.program(program, &values.known, &values.dtypes);
            let place = self.k.bind(place);
            let extent = self.dim(&shape[axis]);
            match outside {
                Outside::Fill(_) => {
                    let fits = place.greater_equal(Expr::int(0)).and(place.less(extent));
                    inside = Some(inside.map_or(fits.clone(), |i| i.and(fits)));
                    at.push(place);
                }
                Outside::Clamp => {
                    if shape[axis].range().0 < 1 {
                        self.fault_if(extent.equal(Expr::int(0)), format!("axis {axis} of {shape} has no elements"));
                    }
                    at.push(self.within(place, &shape[axis]));
                }
                Outside::Fault => {
                    let out = place.less(Expr::int(0)).or(place.greater_equal(extent));
                    self.fault_if(out, format!("an index along axis {axis} is outside 0..{}", shape[axis]));
                    at.push(self.within(place, &shape[axis]));
                }
            }
        }
        match (outside, inside) {
            (Outside::Fill(value), Some(inside)) => {
                let inside = self.k.bind(inside);
                let value = scalar::literal(value);
                let loaded = self.masked(inside.clone(), |s| s.element(id, &at));
                inside.select(loaded, value)
            }
            _ => self.checked_element(id, &at),
        }
    }

    /// The element at indices within the extents; where the value may have no elements at all, memory is not touched then.
    pub(super) fn checked_element(&mut self, id: NodeId, at: &[Expr]) -> Expr {
        let elements = self.graph.tensor_type(id).shape.elements();
        if elements.range().0 >= 1 {
            return self.element(id, at);
        }
        let any = self.dim(&elements).greater(Expr::int(0));
        self.masked(any, |s| s.element(id, at))
    }
}
