//! Contractions and convolutions: which engine computes one, and what the engines share.

use egret_ir::ops::ConvForm;
use egret_ir::{Diagnostic, Dim, Graph, NodeId, Op};
use smallvec::SmallVec;

use super::problem::{Index, Problem};
use super::tiles::Tiles;
use super::{Target, finished, fma, map, matrix, tiles, unsupported};
use crate::kernel::Expr;
use crate::schedule::Passes;
use crate::schedule::choice::Schedule;
use crate::schedule::row::anchor;
use crate::schedule::scope::{Scope, Stored};

/// An extent of the product.
#[derive(Clone)]
pub struct Extent {
    /// Its parts.
    pub parts: SmallVec<[Dim; 4]>,
    /// Their product.
    pub size: Dim,
    /// That as an expression.
    pub end: Expr,
}

impl Extent {
    /// The extent that has these parts.
    pub fn new(scope: &mut Scope, parts: &[Dim]) -> Extent {
        let size = parts.iter().fold(Dim::ONE, |n, d| n * d.clone());
        Extent { parts: parts.into(), end: scope.dim(&size), size }
    }

    /// How many tiles it has.
    pub fn tiles(&self, scope: &mut Scope, tile: i64) -> Expr {
        scope.dim(&self.size.ceil_div(&Dim::from(tile)))
    }

    /// Where an index is inside, unless in tiles of this extent it always is.
    pub fn guard(&self, at: &Expr, tile: i64) -> Option<Expr> {
        let ragged = !self.size.modulo(&Dim::from(tile)).is(0);
        ragged.then(|| at.less(&self.end))
    }

    /// The indices of its parts.
    pub fn index(&self, scope: &mut Scope, at: Expr) -> Index {
        scope.unflatten(at, &self.parts)
    }
}

/// Both conditions, of those that there are.
pub fn both(a: Option<Expr>, b: Option<Expr>) -> Option<Expr> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.and(b)),
        (a, b) => a.or(b),
    }
}

/// Whether a convolution has groups of so few channels that of any tile most would be padding: depthwise ones. A thread then
/// sums an element.
pub fn few_channels(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let Op::Conv(conv) = anchor(&node.op) else { return false };
    let weights = match conv.form {
        ConvForm::Forward | ConvForm::InputGrad => &graph.tensor_type(node.operands[1]).shape,
        // a sum over all pixels is too long for a thread
        ConvForm::WeightGrad => return false,
    };
    let few = |dim: &Dim| dim.as_const().is_some_and(|n| n < 8);
    conv.groups > 1 && few(&weights[1]) && few(&weights[0].floor_div(&Dim::from(conv.groups)))
}

/// The schedules of a product, as [`super::candidates`] has them.
pub fn candidates(graph: &Graph, stored: &dyn Stored, id: NodeId, target: &Target) -> Vec<Schedule> {
    let mut scope = Scope::on_gpu(graph, stored, target.exact, fma::THREADS as u32);
    let Some(problem) = Problem::new(&mut scope, id).filter(|_| !few_channels(graph, id)) else { return Vec::new() };
    let schedule = |tiles: Option<Tiles>| tiles.map_or(Schedule::OneStage, Schedule::Stages);
    tiles::ranked(&scope, &problem, target).into_iter().map(schedule).collect()
}

/// Builds the kernel of a product, and where blocks sum parts of it, the one that adds these up.
///
/// # Errors
/// As [`super::generate`].
pub fn generate(graph: &Graph, stored: &dyn Stored, id: NodeId, target: &Target) -> Result<Passes, Diagnostic> {
    let mut scope = Scope::on_gpu(graph, stored, target.exact, fma::THREADS as u32);
    let form = || unsupported(graph, id, "of this form");
    let problem = Problem::new(&mut scope, id).ok_or_else(form)?;
    if few_channels(graph, id) {
        let mut scope = Scope::on_gpu(graph, stored, target.exact, map::THREADS as u32);
        crate::schedule::contract::build(&mut scope, id);
        return Ok(finished(scope, id)?.into());
    }
    let chosen = match target.schedule {
        Some(Schedule::Stages(tiles)) => Some(*tiles),
        Some(Schedule::OneStage) => None,
        _ => tiles::choose(&scope, &problem, target),
    };
    let Some(tiles) = chosen else {
        fma::build(&mut scope, &problem);
        return Ok(finished(scope, id)?.into());
    };
    matrix::build(&mut scope, &problem, tiles);
    let kernel = match finished(scope, id) {
        // what a thread brings of a large tile may be more index arithmetic than one body holds
        Err(error) if error.code == "E0461" && target.schedule.is_none() => {
            let mut scope = Scope::on_gpu(graph, stored, target.exact, fma::THREADS as u32);
            let problem = Problem::new(&mut scope, id).ok_or_else(form)?;
            fma::build(&mut scope, &problem);
            return Ok(finished(scope, id)?.into());
        }
        made => made?,
    };
    let mut passes = Passes::from(kernel);
    if tiles.splits > 1 {
        let mut scope = Scope::on_gpu(graph, stored, target.exact, map::THREADS as u32);
        let problem = Problem::new(&mut scope, id).ok_or_else(form)?;
        matrix::combine(&mut scope, &problem, &tiles);
        passes.kernels.push(finished(scope, id)?);
        passes.temporaries.push(matrix::parts(&problem, &tiles));
    }
    Ok(passes)
}
