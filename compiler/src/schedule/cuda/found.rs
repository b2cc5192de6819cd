//! Operators of data-dependent size: a scan counts what is found, the host reads the count, and a thread a found element
//! then looks up by halving where it is.

use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId};

use super::scan::Scan;
use super::{finished, map};
use crate::kernel::{BinaryOp, Expr, LoopKind, Memory, ReduceOp};
use crate::schedule::scope::{Scope, Stored};
use crate::schedule::{Passes, Temporary, Told};

/// Counts along a list, on the way to places in it.
pub struct Counts<'c> {
    /// The graph.
    pub graph: &'c Graph,
    /// What is stored.
    pub stored: &'c dyn Stored,
    /// No FMA contraction.
    pub exact: bool,
    /// The node.
    pub id: NodeId,
    /// How long the list is.
    pub list: Dim,
    /// The data-dependent size, the sum of all counts.
    pub size: Dim,
    /// Temporaries of kernels before.
    pub first_temporary: usize,
}

impl Counts<'_> {
    /// Adds the kernels that leave, in the first new temporary, how much is found before each element of the list and in
    /// all, after which the size is told; `count` is an `i64` of an element, read where a condition holds.
    ///
    /// # Errors
    /// As [`super::generate`].
    pub fn scan(
        &self,
        passes: &mut Passes,
        count: &mut dyn FnMut(&mut Scope, &Expr, &Expr) -> Expr,
    ) -> Result<(), Diagnostic> {
        let Counts { graph, stored, exact, id, .. } = *self;
        let extent = self.list.clone() + Dim::ONE;
        let scan = Scan {
            lines: &[],
            extent: &extent,
            op: ReduceOp::Sum,
            neutral: Expr::int(0),
            dtype: DType::I64,
            exclusive: true,
        };
        // of all there are, one more than the list
        let mut value = |scope: &mut Scope, _: &[Expr], at: &Expr| {
            let end = scope.dim(&self.list);
            let inside = scope.k.bind(at.less(end));
            let count = scope.masked(inside.clone(), |scope| count(scope, at, &inside));
            inside.select(count, Expr::int(0))
        };
        let threads = map::THREADS as u32;
        passes.temporaries.push(Temporary { dtype: DType::I64, elements: extent.clone() });
        if scan.is_split() {
            let mut scope = Scope::on_gpu(graph, stored, exact, threads);
            let totals = scope.temporary(id, self.first_temporary + 1, DType::I64, true);
            scan.sum_tiles(&mut scope, totals, &mut value);
            passes.kernels.push(finished(scope, id)?);
            passes.temporaries.push(scan.totals());
        }
        let mut scope = Scope::on_gpu(graph, stored, exact, threads);
        let sums = scope.temporary(id, self.first_temporary, DType::I64, true);
        let totals = scan.is_split().then(|| scope.temporary(id, self.first_temporary + 1, DType::I64, false));
        scan.build(&mut scope, totals, &mut value, &mut |scope, _, at, sum| scope.k.store(sums, at, sum));
        passes.kernels.push(finished(scope, id)?);
        let after = passes.kernels.len();
        let (temporary, at) = (self.first_temporary, self.list.clone());
        passes.told = Some(Told { after, temporary, at, size: self.size.clone() });
        Ok(())
    }

    /// Adds the kernel of a thread a found element: `leave` gets its number, the place in the list that has it, and how many
    /// are found before that place.
    ///
    /// # Errors
    /// As [`super::generate`].
    pub fn look_up(
        &self,
        passes: &mut Passes,
        begin: &mut dyn FnMut(&mut Scope) -> Vec<Memory>,
        leave: &mut dyn FnMut(&mut Scope, &[Memory], &Expr, Expr, Expr),
    ) -> Result<(), Diagnostic> {
        let Counts { graph, stored, exact, id, .. } = *self;
        let mut scope = Scope::on_gpu(graph, stored, exact, map::THREADS as u32);
        let memories = begin(&mut scope);
        let sums = scope.temporary(id, self.first_temporary, DType::I64, false);
        let most = self.list.range().1.max(1);
        let steps = i64::from(64 - (most as u64).leading_zeros());
        let end = scope.dim(&self.list);
        map::flat(&mut scope, &self.size, |scope, number| {
            let number = scope.k.bind(number);
            // the last place before which no more are found
            let place = scope.k.variable(Expr::int(0));
            scope.for_(Expr::int(0), Expr::int(steps), LoopKind::Serial, |scope, step| {
                let width = Expr::int(1).binary(BinaryOp::Shl, Expr::int(steps - 1) - step);
                let at = scope.k.bind(Expr::Var(place) + width);
                let inside = scope.k.bind(at.less_equal(&end));
                let before = sums.load_if(inside.clone(), &at);
                let passed = inside.and(before.less_equal(&number));
                let next = scope.k.bind(passed.select(at, Expr::Var(place)));
                scope.k.assign(place, next);
            });
            let place = scope.k.bind(Expr::Var(place));
            let before = scope.k.bind(sums.load(&place));
            leave(scope, &memories, &number, place, before);
        });
        passes.kernels.push(finished(scope, id)?);
        Ok(())
    }
}

/// Builds the kernels of `non_zero`.
///
/// # Errors
/// As [`super::generate`].
pub fn non_zero(graph: &Graph, stored: &dyn Stored, id: NodeId, exact: bool) -> Result<Passes, Diagnostic> {
    let x = graph.node(id).operands[0];
    let ty = graph.tensor_type(x);
    let size = graph.tensor_type(id).shape[1].clone();
    let counts = Counts { graph, stored, exact, id, list: ty.shape.elements(), size, first_temporary: 0 };
    let mut passes = Passes::default();
    counts.scan(&mut passes, &mut |scope, at, _| {
        let index = scope.unflatten(at.clone(), &ty.shape);
        let value = scope.element(x, &index);
        let found = if ty.dtype == DType::Bool { value } else { value.not_equal(Expr::constant(ty.dtype, 0.0)) };
        found.select(Expr::int(1), Expr::int(0))
    })?;
    counts.look_up(&mut passes, &mut |scope| vec![scope.write((id, 0))], &mut |scope, out, number, place, _| {
        for (axis, i) in scope.unflatten(place, &ty.shape).into_iter().enumerate() {
            let address = scope.address((id, 0), &[Expr::int(axis as i64), number.clone()]);
            scope.k.store(out[0], address, i);
        }
    })?;
    Ok(passes)
}
