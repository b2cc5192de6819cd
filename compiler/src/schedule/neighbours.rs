//! Values whose elements lie side by side in memory, to be accessed several at once.

use egret_ir::{Dim, NodeId};
use smallvec::SmallVec;

use super::scope::{Scope, Value, value_of};
use super::view::{row_major, strided};
use crate::kernel::{Expr, Memory};
use crate::layout::{Layout, channels_last};

/// Where the elements of a value are: in a stored one, by strides.
struct Lie {
    source: Value,
    offset: Dim,
    strides: SmallVec<[Dim; 6]>,
}

impl Scope<'_> {
    fn lie(&self, id: NodeId) -> Option<Lie> {
        let graph = self.graph;
        if self.own.contains(&id) {
            return None;
        }
        let value = value_of(graph, id);
        match self.stored.layout(value) {
            Some(Layout::RowMajor) => {
                let strides = row_major(&graph.ty(value.0).parts()[value.1].shape);
                Some(Lie { source: value, offset: Dim::ZERO, strides })
            }
            Some(Layout::ChannelsLast) => {
                let strides = channels_last::strides(&graph.ty(value.0).parts()[value.1].shape);
                Some(Lie { source: value, offset: Dim::ZERO, strides })
            }
            Some(Layout::Blocked { .. }) => None,
            None => {
                let stored = |id| self.stored.layout(value_of(graph, id)) == Some(&Layout::RowMajor);
                let view = strided(graph, id, &stored)?;
                Some(Lie { source: value_of(graph, view.source), offset: view.offset, strides: view.strides })
            }
        }
    }

    /// How many elements of a value along an axis lie side by side from wherever a multiple of as many begins, and begin
    /// at a multiple of their bytes: a power of two up to `limit`.
    pub fn neighbours(&self, id: NodeId, axis: usize, limit: i64) -> i64 {
        let shape = &self.graph.tensor_type(id).shape;
        let Some(lie) = self.lie(id) else { return 1 };
        if !lie.strides[axis].is(1) || shape[axis].is(1) || !self.stored.is_aligned(lie.source) {
            return 1;
        }
        let others = (0..shape.rank()).filter(|a| *a != axis && !shape[*a].is(1)).map(|a| &lie.strides[a]);
        let all: SmallVec<[&Dim; 8]> = others.chain([&lie.offset, &shape[axis]]).collect();
        let mut width = limit;
        while width > 1 && !all.iter().all(|dim| dim.modulo(&Dim::from(width)).is(0)) {
            width /= 2;
        }
        width
    }

    /// [`Scope::neighbours`] along the axes from `first` on, counted as one, row-major.
    pub fn run(&self, id: NodeId, first: usize, limit: i64) -> i64 {
        let shape = &self.graph.tensor_type(id).shape;
        let Some(lie) = self.lie(id).filter(|lie| self.stored.is_aligned(lie.source)) else { return 1 };
        let mut count = Dim::ONE;
        for axis in (first..shape.rank()).rev().filter(|axis| !shape[*axis].is(1)) {
            if lie.strides[axis] != count {
                return 1;
            }
            count = count * shape[axis].clone();
        }
        let others = (0..first).filter(|axis| !shape[*axis].is(1)).map(|axis| &lie.strides[axis]);
        let all: SmallVec<[&Dim; 8]> = others.chain([&lie.offset, &count]).collect();
        let mut width = if count.is(1) { 1 } else { limit };
        while width > 1 && !all.iter().all(|dim| dim.modulo(&Dim::from(width)).is(0)) {
            width /= 2;
        }
        width
    }

    /// The buffer that holds a value, and the index there of its element at `index`; `None` where it is computed.
    pub fn place(&mut self, id: NodeId, index: &[Expr]) -> Option<(Memory, Expr)> {
        let lie = self.lie(id)?;
        let shape = self.graph.tensor_type(id).shape.clone();
        let mut total = self.dim(&lie.offset);
        for (axis, stride) in lie.strides.iter().enumerate() {
            if !shape[axis].is(1) && !stride.is(0) {
                let stride = self.dim(stride);
                total = total + &index[axis] * stride;
            }
        }
        Some((self.read(lie.source), total))
    }
}
