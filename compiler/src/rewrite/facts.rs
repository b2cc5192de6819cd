//! What is known of each value of a graph before it is rewritten.

use egret_ir::ops::Pointwise;
use egret_ir::{Graph, Literal, Node, Op, Tensor};
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
        let mut facts = GraphFacts::default();
        graph.nodes().iter().for_each(|node| facts.learn(node));
        facts
    }

    /// Takes up the next node, whose operands are known already.
    pub fn learn(&mut self, node: &Node) {
        let time = match &node.op {
            Op::Const(_) | Op::Iota(_) => BindingTime::Compile,
            Op::Param(_) => BindingTime::Load,
            Op::Input(_) | Op::State(_) => BindingTime::Run,
            _ => node.operands.iter().map(|o| self.times[o.index()]).max().unwrap_or(BindingTime::Run),
        };
        // a size that only a run knows
        let symbolic = !node.ty.parts().iter().all(|part| part.shape.is_constant());
        self.times.push(if symbolic { BindingTime::Run } else { time });
        self.splats.push(self.splat(node));
    }

    fn splat(&self, node: &Node) -> Option<Literal> {
        let of = |i: usize| node.operands.get(i).and_then(|o| self.splats[o.index()]);
        match &node.op {
            Op::Const(constant) => splat_of(&constant.value),
            Op::Reshape(_) | Op::Broadcast(_) | Op::Transpose(_) | Op::Slice(_) => of(0),
            Op::Cast(cast) => of(0).map(|l| Literal::new(l.value(), cast.dtype)),
            Op::Pointwise(Pointwise { f }) => {
                let values: Option<SmallVec<[_; 3]>> =
                    (0..node.operands.len()).map(|i| of(i).map(Literal::value)).collect();
                let operand_dtype = of(node.operands.len().wrapping_sub(1))?.dtype;
                Some(Literal::new(f.eval(&values?, operand_dtype), node.ty.tensor()?.dtype))
            }
            _ => None,
        }
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
