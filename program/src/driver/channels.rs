//! Images whose channels are channels of others.

use super::{List, map_all};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An image that channels are taken from, in blocked channels; its extents are those of the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChannelSource<D = usize> {
    /// C.
    pub channels: D,
    /// Halo in each spatial dim.
    pub halo: Vec<D>,
    /// Elements from a batch item to the next.
    pub batch_stride: D,
}

/// `y[n, c, ...] = x_s[n, k, ...]` with `(s, k) = taken[c]`: channel shuffles, slices of channels and concatenations, all in
/// blocked channels, elements of 4 bytes. The halo of y is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChannelsProblem<D = usize> {
    /// L.
    pub lanes: usize,
    /// N.
    pub batch: D,
    /// Spatial extents, 1 to 3 of them.
    pub spatial: Vec<D>,
    /// Halo of y in each spatial dim.
    pub halo: Vec<D>,
    /// Elements from a batch item of y to the next.
    pub batch_stride: D,
    /// The images, in the order of the arguments.
    pub sources: Vec<ChannelSource<D>>,
    /// By channel of y, the source and the channel there.
    pub taken: Vec<(u32, u32)>,
}

impl<D> ChannelsProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> ChannelsProblem<E> {
        ChannelsProblem {
            lanes: self.lanes,
            batch: f(&self.batch),
            spatial: map_all(&self.spatial, f),
            halo: map_all(&self.halo, f),
            batch_stride: f(&self.batch_stride),
            sources: (self.sources.iter())
                .map(|source| ChannelSource {
                    channels: f(&source.channels),
                    halo: map_all(&source.halo, f),
                    batch_stride: f(&source.batch_stride),
                })
                .collect(),
            taken: self.taken.clone(),
        }
    }
}

impl<D: fmt::Display> fmt::Display for ChannelsProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "channels lanes {} batch {} spatial {} halo {} batch_stride {}",
            self.lanes,
            self.batch,
            List(&self.spatial),
            List(&self.halo),
            self.batch_stride
        )?;
        for source in &self.sources {
            let (channels, stride) = (&source.channels, &source.batch_stride);
            write!(f, "\n  x channels {channels} halo {} batch_stride {stride}", List(&source.halo))?;
        }
        write!(f, "\n  y{}", Taken(&self.taken))
    }
}

/// Sources and the channels taken of them, as runs of equal distance: `source:first..last/distance`.
pub(super) struct Taken<'a>(pub(super) &'a [(u32, u32)]);

impl fmt::Display for Taken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let [(source, first), ..] = rest {
            let step = match rest {
                [_, (next, at), ..] if next == source => i64::from(*at) - i64::from(*first),
                _ => 1,
            };
            let at = |i: usize| i64::from(*first) + step * i as i64;
            let run = rest.iter().enumerate().take_while(|(i, (s, k))| s == source && i64::from(*k) == at(*i)).count();
            write!(f, " {source}:{first}")?;
            if run > 1 {
                write!(f, "..{}/{step}", at(run - 1))?;
            }
            rest = &rest[run..];
        }
        Ok(())
    }
}
