//! Schedules: from a group of nodes to a kernel.
//!
//! Generated families (map, row, reduce, window) become kernel IR here. Drivers get their hooks here; their problems are
//! put together by [`crate::plan`].

pub mod attention;
pub mod choice;
pub mod contract;
pub mod cuda;
mod cumulative;
mod element;
pub mod epilogue;
mod generate;
pub mod map;
mod neighbours;
pub mod reduce;
mod rng;
pub mod row;
mod scalar;
mod scatter;
pub mod scope;
pub mod view;
pub mod window;

use egret_ir::{DType, Dim, Graph, Op};

use crate::kernel::{Finding, Kernel};
use crate::partition::{Family, Group};
use scope::{Scope, Stored, Value};

/// A generated kernel, and what its parameters are.
pub struct Generated {
    /// The kernel.
    pub kernel: Kernel,
    /// Values by buffer argument, with whether the kernel writes them.
    pub args: Vec<(Value, bool)>,
    /// What each dim parameter is.
    pub dims: Vec<Dim>,
    /// What status codes mean.
    pub faults: Vec<scope::FaultText>,
}

/// Memory that only the kernels of one group use.
#[derive(Clone, Debug)]
pub struct Temporary {
    /// Element type.
    pub dtype: DType,
    /// Elements.
    pub elements: Dim,
}

/// A data-dependent size that kernels leave in memory.
pub struct Told {
    /// Kernels of the group that come before it is told.
    pub after: usize,
    /// The temporary that has it, of `i64`.
    pub temporary: usize,
    /// The element.
    pub at: Dim,
    /// The size.
    pub size: Dim,
}

/// The kernels of a group, in order of execution.
#[derive(Default)]
pub struct Passes {
    /// The kernels: one, or several where blocks have parts of a result that another kernel joins.
    pub kernels: Vec<Generated>,
    /// What a kernel leaves for those after it: number `i` is the part `i` after those of the root ([`Scope::temporary`]).
    pub temporaries: Vec<Temporary>,
    /// The data-dependent size that kernels behind it need.
    pub told: Option<Told>,
}

impl From<Generated> for Passes {
    fn from(only: Generated) -> Passes {
        Passes { kernels: vec![only], ..Passes::default() }
    }
}

/// Builds the kernel of a generated group.
///
/// # Errors
/// Findings of the verifier: a kernel beyond its bounds.
pub fn generate(graph: &Graph, stored: &dyn Stored, group: &Group, exact: bool) -> Result<Generated, Vec<Finding>> {
    let mut scope = Scope::new(graph, stored, exact);
    let id = group.root;
    match group.family {
        Family::Map => {
            map::build_all(&mut scope, &group.maps());
        }
        Family::Concat => match &graph.node(id).op {
            Op::Concat(concat) => map::build_concat(&mut scope, id, concat.axis),
            _ => map::build(&mut scope, &[id]),
        },
        Family::Reduce => reduce::build(&mut scope, id),
        Family::Row => row::build(&mut scope, id),
        Family::Window => window::build(&mut scope, id),
        Family::Scatter => match &graph.node(id).op {
            Op::Scatter(op) => scatter::build(&mut scope, id, op),
            _ => map::build(&mut scope, &[id]),
        },
        Family::Cumulative => match &graph.node(id).op {
            Op::Cumulative(op) => cumulative::build(&mut scope, id, op),
            _ => map::build(&mut scope, &[id]),
        },
        Family::Rng => match &graph.node(id).op {
            Op::Rng(op) => rng::build(&mut scope, id, op),
            _ => map::build(&mut scope, &[id]),
        },
        _ => contract::build(&mut scope, id),
    }
    let Scope { k, args, dims, faults, .. } = scope;
    let kernel = k.finish()?.for_cpu();
    Ok(Generated { kernel, args, dims, faults })
}
