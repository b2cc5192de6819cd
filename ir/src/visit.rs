//! petgraph's traits, so that its algorithms run on [`Graph`]: edges go from operand to user.

use std::collections::HashSet;

use petgraph::visit::{
    Data, GraphBase, GraphProp, IntoEdgeReferences, IntoNeighbors, IntoNeighborsDirected, IntoNodeIdentifiers,
    IntoNodeReferences, NodeCount, NodeIndexable, Visitable,
};
use petgraph::{Directed, Direction};
use smallvec::SmallVec;

use crate::graph::{Graph, Node, NodeId};

impl GraphBase for Graph {
    type NodeId = NodeId;
    type EdgeId = (NodeId, NodeId);
}

impl GraphProp for Graph {
    type EdgeType = Directed;
}

impl Data for Graph {
    type NodeWeight = Node;
    type EdgeWeight = ();
}

impl NodeCount for Graph {
    fn node_count(&self) -> usize {
        self.nodes().len()
    }
}

impl NodeIndexable for Graph {
    fn node_bound(&self) -> usize {
        self.nodes().len()
    }

    fn to_index(&self, id: NodeId) -> usize {
        id.index()
    }

    fn from_index(&self, index: usize) -> NodeId {
        NodeId::new(index)
    }
}

impl Visitable for Graph {
    type Map = HashSet<NodeId>;

    fn visit_map(&self) -> HashSet<NodeId> {
        HashSet::new()
    }

    fn reset_map(&self, map: &mut HashSet<NodeId>) {
        map.clear();
    }
}

impl<'a> IntoNeighbors for &'a Graph {
    type Neighbors = std::iter::Copied<std::slice::Iter<'a, NodeId>>;

    fn neighbors(self, id: NodeId) -> Self::Neighbors {
        self.readers(id).iter().copied()
    }
}

impl<'a> IntoNeighborsDirected for &'a Graph {
    type NeighborsDirected = std::iter::Copied<std::slice::Iter<'a, NodeId>>;

    fn neighbors_directed(self, id: NodeId, direction: Direction) -> Self::NeighborsDirected {
        match direction {
            Direction::Outgoing => self.neighbors(id),
            Direction::Incoming => self.node(id).operands.iter().copied(),
        }
    }
}

impl IntoNodeIdentifiers for &Graph {
    type NodeIdentifiers = std::iter::Map<std::ops::Range<usize>, fn(usize) -> NodeId>;

    fn node_identifiers(self) -> Self::NodeIdentifiers {
        (0..self.nodes().len()).map(NodeId::new)
    }
}

impl<'a> IntoNodeReferences for &'a Graph {
    type NodeRef = (NodeId, &'a Node);
    type NodeReferences = std::vec::IntoIter<(NodeId, &'a Node)>;

    fn node_references(self) -> Self::NodeReferences {
        self.iter().collect::<Vec<_>>().into_iter()
    }
}

impl<'a> IntoEdgeReferences for &'a Graph {
    type EdgeRef = (NodeId, NodeId, &'a ());
    type EdgeReferences = std::vec::IntoIter<Self::EdgeRef>;

    fn edge_references(self) -> Self::EdgeReferences {
        let edges = self.iter().flat_map(|(id, node)| node.operands.iter().map(move |o| (*o, id, &())));
        edges.collect::<Vec<_>>().into_iter()
    }
}

impl Graph {
    /// The nodes that read a value, ascending, once each.
    pub fn readers(&self, id: NodeId) -> &[NodeId] {
        static NONE: [NodeId; 0] = [];
        self.users_once().get(id.index()).map_or(&NONE, SmallVec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use petgraph::algo::{dominators, toposort};
    use petgraph::dot::{Config, Dot};

    use crate::{NodeId, f32, trace};

    #[test]
    fn algorithms_run() {
        let graph = trace(|t| {
            let x = t.input("x", f32([2, 2]));
            let y = x.exp();
            y.matmul(y) + x
        })
        .unwrap();
        let order = toposort(&graph, None).unwrap();
        let place = |i: usize| order.iter().position(|id| *id == NodeId::new(i)).unwrap();
        assert!(place(0) < place(1) && place(1) < place(2) && place(2) < place(3));
        let dominators = dominators::simple_fast(&graph, NodeId::new(0));
        assert_eq!(dominators.immediate_dominator(NodeId::new(2)), Some(NodeId::new(1)));
        let text = format!("{:?}", Dot::with_config(&graph, &[Config::EdgeNoLabel]));
        assert_eq!(text.matches("->").count(), 5);
    }
}
