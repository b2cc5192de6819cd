//! Movement of channels alone: shuffles, slices and concatenations that leave pixels where they are.

use egret_ir::{Dim, Graph, NodeId, Op};
use smallvec::SmallVec;

/// By channel of an image, the stored image that it is a channel of, and which.
pub type Channels = Vec<(NodeId, u32)>;

/// Where the channels of an image come from, when movement, or a concatenation of channels at the end, makes it of stored
/// images of the same batch and extents. `stored` says which values to look for.
pub fn channels(graph: &Graph, id: NodeId, stored: &dyn Fn(NodeId) -> bool) -> Option<Channels> {
    let node = graph.node(id);
    match &node.op {
        Op::Concat(concat) if concat.axis == 1 && !stored(id) => {
            let parts: Option<Vec<Channels>> = node.operands.iter().map(|part| moved(graph, *part, stored)).collect();
            Some(parts?.concat())
        }
        _ => moved(graph, id, stored),
    }
}

/// The same without concatenation.
fn moved(graph: &Graph, id: NodeId, stored: &dyn Fn(NodeId) -> bool) -> Option<Channels> {
    let mut path: SmallVec<[NodeId; 8]> = SmallVec::new();
    let mut at = id;
    while !stored(at) {
        let node = graph.node(at);
        match node.op {
            Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::StopGradient(_) | Op::Recompute(_) => path.push(at),
            _ => return None,
        }
        at = node.operands[0];
    }
    let mut image = Image::stored(graph, at)?;
    for step in path.iter().rev() {
        image.follow(graph, *step)?;
    }
    let (from, to) = (&graph.tensor_type(at).shape, &graph.tensor_type(id).shape);
    let same = from.rank() == to.rank() && from[0] == to[0] && from[2..] == to[2..];
    let same = same && image.channels.len() == 1 && image.pixels[..] == to[2..];
    same.then(|| image.taken.into_iter().map(|channel| (at, channel)).collect())
}

/// A value whose first axis is that of a stored image, whose last ones are its pixels in order, and those between its
/// channels in some order.
struct Image {
    batch: Dim,
    /// Extents of the axes between.
    channels: SmallVec<[usize; 4]>,
    /// Channels of the stored image, row-major over these axes.
    taken: Vec<u32>,
    pixels: SmallVec<[Dim; 4]>,
}

impl Image {
    fn stored(graph: &Graph, id: NodeId) -> Option<Image> {
        let shape = &graph.tensor_type(id).shape;
        if shape.rank() < 3 {
            return None;
        }
        let channels = u32::try_from(shape[1].as_const()?).ok()?;
        Some(Image {
            batch: shape[0].clone(),
            channels: smallvec::smallvec![channels as usize],
            taken: (0..channels).collect(),
            pixels: shape[2..].into(),
        })
    }

    /// The value after one step of movement; `None` where more than channels moves.
    fn follow(&mut self, graph: &Graph, step: NodeId) -> Option<()> {
        let shape = &graph.tensor_type(step).shape;
        let pixels_at = 1 + self.channels.len();
        match &graph.node(step).op {
            Op::Reshape(_) => {
                let product = |dims: &[Dim]| dims.iter().fold(Dim::ONE, |n, dim| n * dim.clone());
                let pixels = product(&self.pixels);
                if shape.first() != Some(&self.batch) {
                    return None;
                }
                let of_channels = |end: &usize| product(&shape[1..*end]).is(self.taken.len() as i64);
                let end = (1..=shape.rank()).find(|end| of_channels(end) && product(&shape[*end..]) == pixels)?;
                self.channels = shape[1..end].iter().map(extent).collect::<Option<_>>()?;
                self.pixels = shape[end..].into();
            }
            Op::Transpose(transpose) => {
                let (first, rest) = transpose.permutation.split_first()?;
                let (order, last) = rest.split_at_checked(self.channels.len())?;
                let pixels_stay = last.iter().copied().eq(pixels_at..shape.rank());
                if *first != 0 || !pixels_stay || order.iter().any(|axis| !(1..pixels_at).contains(axis)) {
                    return None;
                }
                let extents: SmallVec<[usize; 4]> = order.iter().map(|axis| self.channels[axis - 1]).collect();
                self.pick(&extents, |index, all| {
                    for (i, axis) in order.iter().enumerate() {
                        all[axis - 1] = index[i];
                    }
                });
            }
            Op::Slice(slice) => {
                let before = &graph.tensor_type(graph.node(step).operands[0]).shape;
                let whole =
                    |axis: usize| slice.start[axis].is(0) && slice.limit[axis] == before[axis] && slice.step[axis] == 1;
                if (0..shape.rank()).any(|axis| !(1..pixels_at).contains(&axis) && !whole(axis)) {
                    return None;
                }
                let starts: SmallVec<[usize; 4]> =
                    slice.start[1..pixels_at].iter().map(extent).collect::<Option<_>>()?;
                let extents: SmallVec<[usize; 4]> = shape[1..pixels_at].iter().map(extent).collect::<Option<_>>()?;
                self.pick(&extents, |index, all| {
                    for (i, at) in index.iter().enumerate() {
                        all[i] = starts[i] + at * slice.step[1 + i] as usize;
                    }
                });
            }
            _ => {}
        }
        Some(())
    }

    /// Other axes for the channels: `source` writes the index before from each index after.
    fn pick(&mut self, extents: &[usize], source: impl Fn(&[usize], &mut [usize])) {
        let mut from: SmallVec<[usize; 4]> = SmallVec::from_elem(0, self.channels.len());
        let mut index: SmallVec<[usize; 4]> = SmallVec::from_elem(0, extents.len());
        let count: usize = extents.iter().product();
        let taken = (0..count).map(|flat| {
            let mut rest = flat;
            for (at, extent) in index.iter_mut().zip(extents).rev() {
                (*at, rest) = (rest % extent, rest / extent);
            }
            source(&index, &mut from);
            self.taken[from.iter().zip(&self.channels).fold(0, |flat, (at, extent)| flat * extent + at)]
        });
        self.taken = taken.collect();
        self.channels = extents.into();
    }
}

fn extent(dim: &Dim) -> Option<usize> {
    dim.as_const().and_then(|n| usize::try_from(n).ok())
}
