//! What is known of each value of a graph before it is rewritten.

use egret_ir::ops::Pointwise;
use egret_ir::{Graph, Literal, Node, NodeId, Op, Tensor, Type};
use smallvec::SmallVec;

use super::term::BindingTime;

/// Elements up to which a constant is looked through for one number.
const MOST_ELEMENTS: usize = 4096;

/// Facts by node.
#[derive(Default)]
pub struct GraphFacts {
    /// When each value is known.
    pub times: Vec<BindingTime>,
    /// Its element, if all are one known number.
    pub splats: Vec<Option<Literal>>,
}

impl GraphFacts {
    /// The facts of a graph.
    pub fn of(graph: &Graph) -> GraphFacts {
        GraphFacts::given(graph, &|_| false)
    }

    /// The facts of a region, of which some inputs are known at load.
    pub fn given(graph: &Graph, loaded: &dyn Fn(NodeId) -> bool) -> GraphFacts {
        let mut facts = GraphFacts::default();
        for (id, node) in graph.iter() {
            facts.learn(node);
            if matches!(node.op, Op::Input(_)) && loaded(id) && node.ty.parts()[0].shape.is_constant() {
                facts.times[id.index()] = BindingTime::Load;
            }
        }
        facts
    }

    /// Takes up the next node, whose operands are known already.
    pub fn learn(&mut self, node: &Node) {
        self.times.push(time_of(node, &self.times));
        let splat = match &node.op {
            Op::Const(constant) => splat_of(&constant.value),
            op => computed_splat(op, node.operands.iter().map(|o| self.splats[o.index()]), &node.ty),
        };
        self.splats.push(splat);
    }
}

/// When a node's value is known, from when those of its operands are.
pub(crate) fn time_of(node: &Node, times: &[BindingTime]) -> BindingTime {
    // a size that only a run knows
    if !node.ty.parts().iter().all(|part| part.shape.is_constant()) {
        return BindingTime::Run;
    }
    match &node.op {
        Op::Const(_) | Op::Iota(_) => BindingTime::Compile,
        Op::Param(_) => BindingTime::Load,
        Op::Input(_) | Op::State(_) => BindingTime::Run,
        _ => node.operands.iter().map(|o| times[o.index()]).max().unwrap_or(BindingTime::Run),
    }
}

/// The element of what an operator makes of operands that are each one number.
pub(super) fn computed_splat(
    op: &Op,
    mut operands: impl Iterator<Item = Option<Literal>>,
    ty: &Type,
) -> Option<Literal> {
    match op {
        Op::Reshape(_) | Op::Broadcast(_) | Op::Transpose(_) | Op::Slice(_) => operands.next()?,
        Op::Cast(cast) => operands.next()?.map(|l| Literal::new(l.value(), cast.dtype)),
        Op::Pointwise(Pointwise { f }) => {
            let (mut values, mut dtype) = (SmallVec::<[_; 3]>::new(), None);
            for literal in operands {
                let literal = literal?;
                values.push(literal.value());
                dtype = Some(literal.dtype);
            }
            Some(Literal::new(f.eval(&values, dtype?), ty.tensor()?.dtype))
        }
        _ => None,
    }
}

/// The element of a small tensor, if all are one number.
fn splat_of(value: &Tensor) -> Option<Literal> {
    let dtype = value.dtype();
    if value.elements() == 0 || value.elements() > MOST_ELEMENTS {
        return None;
    }
    let first = Literal::new(value.get(0), dtype);
    value.values().all(|v| Literal::new(v, dtype) == first).then_some(first)
}
