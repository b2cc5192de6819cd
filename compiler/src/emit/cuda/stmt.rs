//! Statements in CUDA C.

use super::{Printer, type_name};
use crate::emit::EmitError;
use crate::kernel::{Expr, LoopKind, ReduceOp, Stmt, Var};

impl Printer<'_> {
    /// A list of statements.
    pub(super) fn block(&mut self, body: &[Stmt]) -> Result<(), EmitError> {
        body.iter().try_for_each(|s| self.stmt(s))
    }

    fn nested(&mut self, body: &[Stmt]) -> Result<(), EmitError> {
        self.depth += 1;
        self.block(body)?;
        self.depth -= 1;
        Ok(())
    }

    fn var_type(&self, var: Var) -> &'static str {
        self.kernel.var(var).map_or("void", type_name)
    }

    fn stmt(&mut self, s: &Stmt) -> Result<(), EmitError> {
        match s {
            Stmt::Let { var, value } => {
                let (ty, value) = (self.var_type(*var), self.expr(value)?);
                self.line(&format!("const {ty} {var} = {value};"));
            }
            Stmt::Mut { var, value } => {
                let (ty, value) = (self.var_type(*var), self.expr(value)?);
                self.line(&format!("{ty} {var} = {value};"));
            }
            Stmt::Assign { var, value } => {
                let value = self.expr(value)?;
                self.line(&format!("{var} = {value};"));
            }
            Stmt::Accumulate { var, op, value } => {
                let sum = Expr::Binary(op.step(), Box::new(Expr::Var(*var)), Box::new(value.clone()));
                let sum = self.expr(&sum)?;
                self.line(&format!("{var} = {sum};"));
            }
            Stmt::Store { memory, index, value } => {
                let (place, value) = (self.element(*memory, index)?, self.expr(value)?);
                self.line(&format!("{place} = {value};"));
            }
            Stmt::For { var, start, end, step, kind, body } => {
                self.loop_(*var, start, end, *step, *kind, body)?;
            }
            Stmt::If { condition, then, otherwise } => {
                let condition = self.expr(condition)?;
                self.line(&format!("if ({condition}) {{"));
                self.nested(then)?;
                if !otherwise.is_empty() {
                    self.line("} else {");
                    self.nested(otherwise)?;
                }
                self.line("}");
            }
            Stmt::Call { .. } => {
                return Err(EmitError::UnsupportedForm { backend: "CUDA", what: "calls of wide functions" });
            }
            Stmt::Tile(tile) => self.tile(tile)?,
            Stmt::Barrier => self.line("__syncthreads();"),
            Stmt::WarpReduce { var, op, lanes } => {
                let ty = self.var_type(*var);
                let lanes = if *lanes == 32 { String::new() } else { format!("<{lanes}>") };
                self.line(&format!("{var} = warp_{}_{ty}{lanes}({var});", reduction(*op)));
            }
            Stmt::BlockReduce { var, op } => {
                let (ty, threads) = (self.var_type(*var), self.kernel.block_threads());
                self.line(&format!("{var} = block_{}_{ty}({var}, partial_{ty}, {threads});", reduction(*op)));
            }
            Stmt::Status { condition, code } => {
                let condition = self.expr(condition)?;
                self.line(&format!("if ({condition}) atomicMax(status, {code}u);"));
            }
        }
        Ok(())
    }

    fn loop_(
        &mut self,
        var: Var,
        start: &Expr,
        end: &Expr,
        step: i64,
        kind: LoopKind,
        body: &[Stmt],
    ) -> Result<(), EmitError> {
        let (first, last) = (self.expr(start)?, self.expr(end)?);
        if let LoopKind::Thread(axis) = kind {
            let index = ["threadIdx.x", "threadIdx.y", "threadIdx.z"].get(axis as usize).copied();
            let threads = self.kernel.threads.get(axis as usize).copied();
            let (Some(index), Some(threads)) = (index, threads) else {
                return Err(EmitError::Malformed(format!("thread axis {axis}")));
            };
            let whole = end.as_int() == Some(i64::from(threads)) && start.as_int() == Some(0) && step == 1;
            if whole {
                self.line(&format!("{{ const i64 {var} = {index};"));
            } else {
                let own = if step == 1 { index.to_string() } else { format!("{index} * {step}") };
                let stride = i64::from(threads).saturating_mul(step);
                let own =
                    if start.as_int() == Some(0) { own } else { format!("{} + {own}", parenthesised(start, first)) };
                self.line(&format!("for (i64 {var} = {own}; {var} < {last}; {var} += {stride}) {{"));
            }
        } else {
            match kind {
                LoopKind::Unroll => self.line("#pragma unroll"),
                LoopKind::Rolled => self.line("#pragma unroll 1"),
                _ => {}
            }
            let next = if step == 1 { format!("++{var}") } else { format!("{var} += {step}") };
            self.line(&format!("for (i64 {var} = {first}; {var} < {last}; {next}) {{"));
        }
        self.nested(body)?;
        self.line("}");
        Ok(())
    }
}

fn parenthesised(e: &Expr, text: String) -> String {
    match e {
        Expr::Var(_) | Expr::Dim(_) | Expr::Literal(_) => text,
        _ => format!("({text})"),
    }
}

fn reduction(op: ReduceOp) -> &'static str {
    match op {
        ReduceOp::Sum => "sum",
        ReduceOp::Max => "max",
        ReduceOp::Min => "min",
        ReduceOp::Prod => "prod",
    }
}
