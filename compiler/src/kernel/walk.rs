//! Walking and renaming of expressions and statements.

use egret_ir::DType;

use super::expr::Expr;
use super::ir::{Kernel, LoopKind, Stmt, Var};

impl Expr {
    /// Calls `f` on the direct operands.
    pub fn operands<'a>(&'a self, mut f: impl FnMut(&'a Expr)) {
        match self {
            Expr::Var(_) | Expr::Literal(_) | Expr::Dim(_) => {}
            Expr::Load { index, mask, .. } => {
                f(index);
                if let Some(mask) = mask {
                    f(mask);
                }
            }
            Expr::Unary(_, a) | Expr::Cast(_, a) => f(a),
            Expr::Binary(_, a, b) | Expr::Compare(_, a, b) => {
                f(a);
                f(b);
            }
            Expr::Select(c, a, b) => {
                f(c);
                f(a);
                f(b);
            }
        }
    }

    /// Calls `f` on the direct operands, mutably.
    pub fn operands_mut(&mut self, mut f: impl FnMut(&mut Expr)) {
        match self {
            Expr::Var(_) | Expr::Literal(_) | Expr::Dim(_) => {}
            Expr::Load { index, mask, .. } => {
                f(index);
                if let Some(mask) = mask {
                    f(mask);
                }
            }
            Expr::Unary(_, a) | Expr::Cast(_, a) => f(a),
            Expr::Binary(_, a, b) | Expr::Compare(_, a, b) => {
                f(a);
                f(b);
            }
            Expr::Select(c, a, b) => {
                f(c);
                f(a);
                f(b);
            }
        }
    }

    /// Whether `f` holds for this expression or one below it.
    pub fn any(&self, f: &mut impl FnMut(&Expr) -> bool) -> bool {
        if f(self) {
            return true;
        }
        let mut found = false;
        self.operands(|e| found = found || e.any(f));
        found
    }

    /// Whether a variable occurs.
    pub fn mentions(&self, var: Var) -> bool {
        self.any(&mut |e| *e == Expr::Var(var))
    }

    /// How many operations there are: loads, functions, comparisons, selects, casts.
    pub fn steps(&self) -> usize {
        let mut steps = usize::from(!matches!(self, Expr::Var(_) | Expr::Literal(_) | Expr::Dim(_)));
        self.operands(|e| steps += e.steps());
        steps
    }

    /// Replaces each variable for which `f` gives an expression, folding constants again.
    pub fn substitute(&self, f: &mut impl FnMut(Var) -> Option<Expr>) -> Expr {
        if let Expr::Var(v) = self {
            return f(*v).unwrap_or_else(|| self.clone());
        }
        if let Expr::Binary(op, a, b) = self {
            let a = a.substitute(f);
            return a.binary(*op, b.substitute(f));
        }
        let mut copy = self.clone();
        copy.operands_mut(|e| *e = e.substitute(f));
        copy
    }
}

impl Stmt {
    /// Calls `f` on the expressions of this statement itself, not of those nested in it.
    pub fn expressions<'a>(&'a self, mut f: impl FnMut(&'a Expr)) {
        match self {
            Stmt::Let { value, .. }
            | Stmt::Mut { value, .. }
            | Stmt::Assign { value, .. }
            | Stmt::Accumulate { value, .. } => f(value),
            Stmt::Store { index, value, .. } => {
                f(index);
                f(value);
            }
            Stmt::For { start, end, .. } => {
                f(start);
                f(end);
            }
            Stmt::If { condition, .. } | Stmt::Status { condition, .. } => f(condition),
            Stmt::Call { dst, src, len, .. } => {
                f(&dst.index);
                f(&src.index);
                f(len);
            }
            Stmt::Tile(tile) => tile.expressions(f),
            Stmt::Barrier | Stmt::WarpReduce { .. } | Stmt::BlockReduce { .. } => {}
        }
    }

    /// Calls `f` on the expressions of this statement itself, mutably.
    pub fn expressions_mut(&mut self, mut f: impl FnMut(&mut Expr)) {
        match self {
            Stmt::Let { value, .. }
            | Stmt::Mut { value, .. }
            | Stmt::Assign { value, .. }
            | Stmt::Accumulate { value, .. } => f(value),
            Stmt::Store { index, value, .. } => {
                f(index);
                f(value);
            }
            Stmt::For { start, end, .. } => {
                f(start);
                f(end);
            }
            Stmt::If { condition, .. } | Stmt::Status { condition, .. } => f(condition),
            Stmt::Call { dst, src, len, .. } => {
                f(&mut dst.index);
                f(&mut src.index);
                f(len);
            }
            Stmt::Tile(tile) => tile.expressions_mut(f),
            Stmt::Barrier | Stmt::WarpReduce { .. } | Stmt::BlockReduce { .. } => {}
        }
    }

    /// The statement lists nested in this one.
    pub fn bodies(&self) -> [&[Stmt]; 2] {
        match self {
            Stmt::For { body, .. } => [body, &[]],
            Stmt::If { then, otherwise, .. } => [then, otherwise],
            _ => [&[], &[]],
        }
    }

    /// Whether this statement or one nested in it satisfies `f`.
    pub fn any(&self, f: &mut impl FnMut(&Stmt) -> bool) -> bool {
        f(self) || self.bodies().into_iter().flatten().any(|s| s.any(f))
    }

    /// The variable that this statement defines, if any.
    pub fn defines(&self) -> Option<Var> {
        match self {
            Stmt::Let { var, .. } | Stmt::Mut { var, .. } | Stmt::For { var, .. } => Some(*var),
            _ => None,
        }
    }

    fn variable_mut(&mut self) -> Option<&mut Var> {
        match self {
            Stmt::Let { var, .. }
            | Stmt::Mut { var, .. }
            | Stmt::Assign { var, .. }
            | Stmt::Accumulate { var, .. }
            | Stmt::For { var, .. }
            | Stmt::WarpReduce { var, .. }
            | Stmt::BlockReduce { var, .. } => Some(var),
            _ => None,
        }
    }
}

impl Kernel {
    /// Renumbers the variables in the order of their definition: the text of
    /// two kernels that differ only in numbering becomes equal.
    pub fn canonicalise(&mut self) {
        let mut order = Renaming { map: vec![None; self.vars.len()], types: Vec::new() };
        for v in 0..self.grid.len() {
            order.define(Var(v as u32), &self.vars);
        }
        let mut body = std::mem::take(&mut self.body);
        for e in &mut self.grid {
            order.expr(e);
        }
        order.block(&mut body, &self.vars);
        self.body = body;
        self.vars = order.types;
    }
}

struct Renaming {
    map: Vec<Option<Var>>,
    types: Vec<DType>,
}

impl Renaming {
    fn define(&mut self, var: Var, vars: &[DType]) {
        if let (Some(slot), Some(dtype)) = (self.map.get_mut(var.0 as usize), vars.get(var.0 as usize))
            && slot.is_none()
        {
            *slot = Some(Var(self.types.len() as u32));
            self.types.push(*dtype);
        }
    }

    /// A variable that was never defined keeps a number that no variable has, for the verifier to find.
    fn rename(&self, var: Var) -> Var {
        self.map.get(var.0 as usize).copied().flatten().unwrap_or(Var(u32::MAX))
    }

    fn expr(&self, e: &mut Expr) {
        if let Expr::Var(v) = e {
            *v = self.rename(*v);
        }
        e.operands_mut(|e| self.expr(e));
    }

    fn block(&mut self, body: &mut [Stmt], vars: &[DType]) {
        for s in body {
            s.expressions_mut(|e| self.expr(e));
            if let Some(var) = s.defines() {
                self.define(var, vars);
            }
            if let Some(var) = s.variable_mut() {
                *var = self.rename(*var);
            }
            match s {
                Stmt::For { body, .. } => self.block(body, vars),
                Stmt::If { then, otherwise, .. } => {
                    self.block(then, vars);
                    self.block(otherwise, vars);
                }
                _ => {}
            }
        }
    }
}

impl LoopKind {
    /// Its spelling in text.
    pub(super) fn name(self) -> &'static str {
        match self {
            LoopKind::Serial => "serial",
            LoopKind::Unroll => "unroll",
            LoopKind::Rolled => "rolled",
            LoopKind::Vector => "vector",
            LoopKind::Thread(0) => "thread.x",
            LoopKind::Thread(1) => "thread.y",
            LoopKind::Thread(_) => "thread.z",
        }
    }
}
