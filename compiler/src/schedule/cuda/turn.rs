//! Copies of row-major images with channels last, by tiles that are turned in shared memory: reads and writes are both of
//! neighbours.

use egret_ir::{Dim, Graph, NodeId, Op};

use super::contract::both;
use super::{expected, map};
use crate::kernel::{Expr, LoopKind, Space};
use crate::layout::Layout;
use crate::schedule::scope::{Scope, Stored, value_of};

/// Pixels of a tile, and channels at most.
const SIDE: i64 = 64;
/// Fewer pixels are copied by elements.
const LEAST: i64 = 32;

/// Whether a node copies a row-major image with channels last.
pub fn is_turned(graph: &Graph, stored: &dyn Stored, id: NodeId) -> bool {
    let node = graph.node(id);
    let copies = matches!(node.op, Op::StopGradient(_)) && stored.layout((id, 0)) == Some(&Layout::ChannelsLast);
    let row_major = || stored.layout(value_of(graph, node.operands[0])) == Some(&Layout::RowMajor);
    copies && row_major() && expected(&pixels(graph, id)) >= LEAST
}

fn pixels(graph: &Graph, id: NodeId) -> Dim {
    graph.tensor_type(id).shape[2..].iter().fold(Dim::ONE, |n, extent| n * extent.clone())
}

/// Builds the copy: a block a tile.
pub fn build(scope: &mut Scope, id: NodeId) {
    let graph = scope.graph;
    let ty = graph.tensor_type(id);
    let (image, channels, pixels) = (ty.shape[0].clone(), ty.shape[1].clone(), pixels(graph, id));
    let (out, from) = (scope.write((id, 0)), scope.read(value_of(graph, graph.node(id).operands[0])));
    let height = if expected(&channels) > SIDE / 2 { SIDE } else { SIDE / 2 };
    // an odd number of words, so that neither rows nor columns meet in a bank; halves take one each
    let pitch = SIDE + if ty.dtype.size() == 1 { 4 } else { 1 };
    let tile = scope.k.scratch(ty.dtype, (height * pitch) as usize, Space::Shared);
    let images = scope.dim(&image);
    let tiles = [(&channels, height), (&pixels, SIDE)].map(|(all, side)| scope.dim(&all.ceil_div(&Dim::from(side))));
    let image = scope.k.grid(images);
    let [channel0, pixel0] = tiles.map(|count| scope.k.grid(count));
    let (channel0, pixel0) = (scope.k.bind(channel0 * height), scope.k.bind(pixel0 * SIDE));
    let ends = [&channels, &pixels].map(|all| scope.dim(all));
    let ragged = [(&channels, height), (&pixels, SIDE)].map(|(all, side)| !all.modulo(&Dim::from(side)).is(0));
    let guard = |channel: &Expr, pixel: &Expr| {
        let inside = |at: &Expr, i: usize| ragged[i].then(|| at.less(&ends[i]));
        both(inside(channel, 0), inside(pixel, 1))
    };
    let [end, count] = &ends;
    scope.for_(Expr::int(0), Expr::int(map::THREADS), LoopKind::Thread(0), |scope, thread| {
        let (near, far) = (scope.k.bind(&thread % SIDE), scope.k.bind(&thread / SIDE));
        let pixel = scope.k.bind(&pixel0 + &near);
        let lines = map::THREADS / SIDE;
        scope.for_(Expr::int(0), Expr::int(height / lines), LoopKind::Unroll, |scope, pass| {
            let line = scope.k.bind(pass * lines + &far);
            let channel = scope.k.bind(&channel0 + &line);
            let at = (&image * end + &channel) * count + &pixel;
            let value = match guard(&channel, &pixel) {
                Some(inside) => from.load_if(inside, at),
                None => from.load(at),
            };
            scope.k.store(tile, line * pitch + &near, value);
        });
        scope.k.barrier();
        let (near, far) = (scope.k.bind(&thread % height), scope.k.bind(thread / height));
        let channel = scope.k.bind(channel0 + &near);
        let lines = map::THREADS / height;
        scope.for_(Expr::int(0), Expr::int(SIDE / lines), LoopKind::Unroll, |scope, pass| {
            let line = scope.k.bind(pass * lines + &far);
            let pixel = scope.k.bind(&pixel0 + &line);
            let at = (&image * count + &pixel) * end + &channel;
            let leave = |scope: &mut Scope| scope.k.store(out, at, tile.load(near * pitch + line));
            match guard(&channel, &pixel) {
                Some(inside) => scope.if_(inside, leave),
                None => leave(scope),
            }
        });
    });
}
