//! Attention: the softmax of a row of scores is made while keys stream by, so that scores are never in memory.
//!
//! A block owns a tile of queries (of keys, for the gradients of keys and values), and tiles of the other side stream
//! through shared memory; see [`tiles`] for the products. One query alone is read by all warps of several blocks, each of
//! which has some of the keys ([`decode`]). Sums are in `f32` in a fixed order.

mod backward;
mod decode;
mod forward;
mod tiles;

use egret_ir::ops::{Attention, Labels};
use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId, Op, ScalarExpr, Shape, TensorType};
use egret_program::DeviceDescription;
use smallvec::SmallVec;

use super::{Target, expected};
use crate::kernel::Expr;
use crate::raise::spell::widened;
use crate::schedule::Passes;
use crate::schedule::attention::Roles;
use crate::schedule::choice::Schedule;
use crate::schedule::scope::{Scope, Stored};

/// Most channels of a head.
const MOST_CHANNELS: i64 = 256;

/// Indices, one an axis.
type Index = SmallVec<[Expr; 6]>;

/// Whether there is a kernel for an attention of these queries, keys and values, and for its gradient.
pub fn fits(attention: &Attention, roles: &Roles, [q, k, v]: [&TensorType; 3]) -> bool {
    let _ = k;
    let dtype = matches!(q.dtype, DType::F32 | DType::F16 | DType::BF16);
    let channels = |labels: &Labels, ty: &TensorType, label: u8| {
        let extent = labels.axis(label).and_then(|axis| ty.shape[axis].as_const());
        extent.is_some_and(|n| (1..=MOST_CHANNELS).contains(&n))
    };
    dtype && channels(&attention.q, q, roles.channel) && channels(&attention.v, v, roles.value)
}

/// Builds the kernels of an attention or its gradient.
///
/// # Errors
/// As [`super::generate`].
pub fn generate(graph: &Graph, stored: &dyn Stored, id: NodeId, target: &Target) -> Result<Passes, Diagnostic> {
    let Some(attend) = Attend::new(graph, id) else { return Err(super::unsupported(graph, id, "of this form")) };
    let exact = target.exact;
    match (&graph.node(id).op, target.schedule) {
        (Op::AttentionGrad(_), Some(Schedule::Stream { columns })) => {
            backward::generate(&attend, stored, exact, *columns)
        }
        (Op::AttentionGrad(_), _) => backward::generate(&attend, stored, exact, backward::columns(&attend)),
        (_, Some(Schedule::Deal { parts })) => decode::generate(&attend, stored, exact, *parts),
        _ if attend.queries.is(1) => decode::generate(&attend, stored, exact, decode::parts(&attend)),
        (_, Some(Schedule::Stream { columns })) => forward::generate(&attend, stored, exact, *columns),
        _ => forward::generate(&attend, stored, exact, forward::columns(&attend)),
    }
}

/// The schedules of an attention or its gradient, as [`super::candidates`] has them.
pub fn candidates(graph: &Graph, id: NodeId, device: &DeviceDescription) -> Vec<Schedule> {
    let Some(attend) = Attend::new(graph, id) else { return Vec::new() };
    let gradient = matches!(graph.node(id).op, Op::AttentionGrad(_));
    if !gradient && attend.queries.is(1) {
        let own = decode::parts(&attend);
        let most = expected(&attend.keys).max(1);
        let parts = [own, 2 * own, own / 2, 4 * own, own / 4].into_iter().filter(|parts| (1..=most).contains(parts));
        return parts.map(|parts| Schedule::Deal { parts }).collect();
    }
    let own = if gradient { backward::columns(&attend) } else { forward::columns(&attend) };
    // the products of halves have steps of 16 columns, those of `f32` of 4
    let least = if attend.dtype == DType::F32 { 4 } else { 16 };
    let fits = |columns: i64| tiles::shared_bytes(&attend, columns, gradient) <= i64::from(device.block_limits().0);
    let others = [own / 2, 2 * own].into_iter().filter(|columns| *columns >= least && fits(*columns));
    std::iter::once(own).chain(others).map(|columns| Schedule::Stream { columns }).collect()
}

/// What is attended to.
struct Attend<'g> {
    graph: &'g Graph,
    id: NodeId,
    of: &'g Attention,
    roles: Roles,
    q: NodeId,
    k: NodeId,
    v: NodeId,
    extras: SmallVec<[NodeId; 4]>,
    dtype: DType,
    /// Extents of the outer axes, by role.
    outer: SmallVec<[Dim; 6]>,
    queries: Dim,
    keys: Dim,
    /// Channels of queries and keys.
    head: i64,
    /// Channels of values.
    value: i64,
    /// From raw score to logit, in `f32`.
    score: ScalarExpr,
}

/// A score.
struct Place<'p> {
    outer: &'p [Expr],
    query: Expr,
    key: Expr,
}

impl<'g> Attend<'g> {
    fn new(graph: &'g Graph, id: NodeId) -> Option<Attend<'g>> {
        let node = graph.node(id);
        let (of, extras) = match &node.op {
            Op::Attention(attention) => (&**attention, node.operands.get(3..)?),
            Op::AttentionGrad(grad) => (&grad.of, node.operands.get(6..)?),
            _ => return None,
        };
        let roles = Roles::new(of)?;
        let [q, k, v] = [node.operands[0], node.operands[1], node.operands[2]];
        let parts = [(&of.q, q), (&of.k, k), (&of.v, v)];
        if !fits(of, &roles, parts.map(|(_, id)| graph.tensor_type(id))) {
            return None;
        }
        let extent = |label: u8| {
            let own = |(labels, id): (&Labels, NodeId)| Some(graph.tensor_type(id).shape[labels.axis(label)?].clone());
            parts.into_iter().find_map(own).unwrap_or(Dim::ONE)
        };
        Some(Attend {
            graph,
            id,
            of,
            q,
            k,
            v,
            extras: extras.into(),
            dtype: graph.tensor_type(q).dtype,
            outer: roles.outer.iter().map(|l| extent(*l)).collect(),
            queries: roles.query.map_or(Dim::ONE, extent),
            keys: extent(roles.key),
            head: extent(roles.channel).as_const()?,
            value: extent(roles.value).as_const()?,
            score: widened(&of.score),
            roles,
        })
    }

    /// The first key that none of `rows` queries from `first` on sees.
    fn end_of_keys(&self, scope: &mut Scope, first: &Expr, rows: i64) -> Expr {
        let keys = scope.dim(&self.keys);
        match &self.of.causal {
            Some(causal) => {
                let reach = scope.dim(causal);
                scope.k.bind(keys.min(first + rows + reach))
            }
            None => keys,
        }
    }

    /// Indices of an operand or result with these labels.
    fn index(&self, labels: &Labels, place: &Place, channel: &Expr) -> Index {
        let at = |label: &u8| {
            if let Some(axis) = self.roles.outer.iter().position(|l| l == label) {
                return place.outer.get(axis).cloned().unwrap_or(Expr::int(0));
            }
            if self.roles.query == Some(*label) {
                place.query.clone()
            } else if self.roles.key == *label {
                place.key.clone()
            } else {
                channel.clone()
            }
        };
        labels.0.iter().map(at).collect()
    }

    /// Labels of the log-sum-exps.
    fn rows(&self) -> Labels {
        Labels(self.of.scores.0[..self.of.scores.0.len() - 1].iter().copied().collect())
    }

    /// Shape of the log-sum-exps.
    fn row_shape(&self) -> Shape {
        let extent = |label: &u8| match self.roles.outer.iter().position(|l| l == label) {
            Some(axis) => self.outer[axis].clone(),
            None => self.queries.clone(),
        };
        self.rows().0.iter().map(extent).collect()
    }

    /// Whether a query sees a key, both within their extents as far as these may be passed.
    fn seen(&self, scope: &mut Scope, place: &Place) -> Expr {
        let (queries, keys) = (scope.dim(&self.queries), scope.dim(&self.keys));
        let mut seen = place.query.less(queries).and(place.key.less(keys));
        if let Some(causal) = &self.of.causal {
            let reach = scope.dim(causal);
            seen = seen.and(place.key.less_equal(&place.query + reach));
        }
        scope.k.bind(seen)
    }

    /// A program of a raw score and the extras, which are read where `seen` holds.
    fn program(&self, scope: &mut Scope, program: &ScalarExpr, raw: Expr, place: &Place, seen: &Expr) -> Expr {
        let index = self.index(&self.of.scores, place, &Expr::int(0));
        let mut args: SmallVec<[Expr; 4]> = smallvec::smallvec![raw];
        let mut dtypes: SmallVec<[DType; 4]> = smallvec::smallvec![DType::F32];
        for (i, extra) in self.extras.iter().enumerate() {
            let dtype = self.graph.tensor_type(*extra).dtype;
            let half = matches!(dtype, DType::F16 | DType::BF16);
            dtypes.push(if half { DType::F32 } else { dtype });
            if !program.args().contains(&(i + 1)) {
                args.push(Expr::constant(dtypes[i + 1], 0.0));
                continue;
            }
            let at = scope.broadcast_index(*extra, &index);
            let value = scope.masked(seen.clone(), |scope| scope.element(*extra, &at));
            args.push(if half { value.cast(DType::F32) } else { value });
        }
        scope.program(program, &args, &dtypes)
    }

    /// The logit of a raw score; −∞ where the query does not see the key.
    fn logit(&self, scope: &mut Scope, raw: Expr, place: &Place) -> Expr {
        let seen = self.seen(scope, place);
        let logit = self.program(scope, &self.score, raw, place, &seen);
        seen.select(logit, Expr::constant(DType::F32, f64::NEG_INFINITY))
    }
}
