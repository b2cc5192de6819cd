//! Accumulators of vector loops.

use cranelift_codegen::ir::{InstBuilder, Value};
use egret_ir::DType;

use super::function::Lower;
use super::scalar::signed;
use super::vector::{VectorLoop, vector_type};
use crate::emit::EmitError;
use crate::kernel::{Expr, Literal, ReduceOp};

impl Lower<'_, '_> {
    /// Vector accumulators start from the neutral element.
    pub fn open_accumulators(&mut self, looped: &mut VectorLoop<'_>, copies: u32) -> Result<(), EmitError> {
        for (var, op) in &looped.reduced {
            let dtype = self.dtype(&Expr::Var(*var))?;
            let Some(ty) = vector_type(dtype, looped.lanes).filter(|_| dtype != DType::Bool) else {
                continue;
            };
            let neutral = self.scalar(&neutral(*op, dtype))?;
            let neutral = self.splat(ty, dtype, neutral);
            let variables = (0..copies).map(|_| {
                let variable = self.b.declare_var(ty);
                self.b.def_var(variable, neutral);
                variable
            });
            let variables = variables.collect();
            looped.accumulators.insert(*var, variables);
        }
        Ok(())
    }

    /// After the main loop: the copies are combined in pairs into the first.
    pub fn join_copies(&mut self, looped: &VectorLoop<'_>) -> Result<(), EmitError> {
        for (var, variables) in &looped.accumulators {
            let Some(op) = looped.reduced.get(var) else { continue };
            let dtype = self.dtype(&Expr::Var(*var))?;
            let mut values: Vec<Value> = variables.iter().map(|&v| self.b.use_var(v)).collect();
            while values.len() > 1 {
                let mut next = Vec::with_capacity(values.len() / 2);
                for pair in values.chunks(2) {
                    next.push(match *pair {
                        [a, b] => self.combine(*op, dtype, a, b)?,
                        _ => pair[0],
                    });
                }
                values = next;
            }
            if let (Some(&first), Some(&value)) = (variables.first(), values.first()) {
                self.b.def_var(first, value);
            }
        }
        Ok(())
    }

    /// After the vector loops: the lanes are combined in pairs, and with the variable.
    pub fn close_accumulators(&mut self, looped: &VectorLoop<'_>) -> Result<(), EmitError> {
        for (var, variables) in &looped.accumulators {
            let (Some(op), Some(&first)) = (looped.reduced.get(var), variables.first()) else {
                continue;
            };
            let dtype = self.dtype(&Expr::Var(*var))?;
            let vector = self.b.use_var(first);
            let mut lanes: Vec<Value> = (0..looped.lanes).map(|lane| self.lane_of(dtype, vector, lane)).collect();
            while lanes.len() > 1 {
                let half = lanes.len() / 2;
                for i in 0..half {
                    lanes[i] = self.combine_scalars(*op, dtype, lanes[i], lanes[i + half])?;
                }
                lanes.truncate(half);
            }
            let before = self.get(*var)?;
            let total = self.combine_scalars(*op, dtype, before, lanes[0])?;
            self.set(*var, total)?;
        }
        Ok(())
    }

    /// One step of a reduction on vectors.
    pub fn combine(&mut self, op: ReduceOp, dtype: DType, x: Value, y: Value) -> Result<Value, EmitError> {
        match (op, dtype.is_float()) {
            (ReduceOp::Max | ReduceOp::Min, true) => Ok(self.float_extremum(op == ReduceOp::Max, x, y, false)),
            (_, true) => self.float_arithmetic(op.step(), x, y),
            (_, false) => self.int_vectors(op.step(), dtype, x, y),
        }
    }

    /// One step of a reduction on scalars.
    pub fn combine_scalars(&mut self, op: ReduceOp, dtype: DType, x: Value, y: Value) -> Result<Value, EmitError> {
        match (op, dtype.is_float()) {
            (ReduceOp::Max | ReduceOp::Min, true) => Ok(self.float_extremum(op == ReduceOp::Max, x, y, false)),
            (_, true) => self.float_arithmetic(op.step(), x, y),
            (ReduceOp::Max | ReduceOp::Min, false) => {
                let signed = signed(dtype);
                Ok(match (op == ReduceOp::Max, signed) {
                    (true, true) => self.b.ins().smax(x, y),
                    (true, false) => self.b.ins().umax(x, y),
                    (false, true) => self.b.ins().smin(x, y),
                    (false, false) => self.b.ins().umin(x, y),
                })
            }
            (_, false) => self.int_vectors(op.step(), dtype, x, y),
        }
    }
}

/// The neutral element.
fn neutral(op: ReduceOp, dtype: DType) -> Expr {
    let int = |v| Expr::Literal(Literal::Int(dtype, v));
    let bits = 8 * dtype.size() as u32;
    match (op, dtype.is_float()) {
        (ReduceOp::Sum, true) => Expr::constant(dtype, -0.0),
        (ReduceOp::Max, true) => Expr::constant(dtype, f64::NEG_INFINITY),
        (ReduceOp::Min, true) => Expr::constant(dtype, f64::INFINITY),
        (ReduceOp::Prod, true) => Expr::constant(dtype, 1.0),
        (ReduceOp::Sum, false) => int(0),
        (ReduceOp::Prod, false) => int(1),
        (ReduceOp::Max, false) if signed(dtype) => int(i64::MIN >> (64 - bits)),
        (ReduceOp::Max, false) => int(0),
        (ReduceOp::Min, false) if signed(dtype) => int(i64::MAX >> (64 - bits)),
        (ReduceOp::Min, false) => int(-1),
    }
}
