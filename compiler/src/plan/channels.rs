//! Movement of channels between images in blocked channels, on its driver.

use egret_ir::{Diagnostic, NodeId};
use egret_program::driver::{ChannelSource, ChannelsProblem, Driver};
use egret_program::{Arg, BufferId, Place, Step};
use smallvec::SmallVec;

use super::conv::{dims, has_relayout};
use super::frame::Frame;
use super::{DriverLaunch, Planner};
use crate::layout::{Channels, Layout, channels};
use crate::schedule::scope::value_of;

impl Planner<'_> {
    /// Where the channels of an image come from, when the driver can take them there.
    pub(super) fn channels_of(&self, frame: &Frame, id: NodeId) -> Option<Channels> {
        let graph = &frame.graph;
        let blocked = |id: NodeId| {
            let value = value_of(graph, id);
            frame.buffers.contains_key(&value) && matches!(frame.layouts.get(&value), Some(Layout::Blocked { .. }))
        };
        if !self.device.is_cpu() || frame.is_stored(id) || !has_relayout(graph.tensor_type(id).dtype) {
            return None;
        }
        channels(graph, id, &blocked)
    }

    /// Plans movement and concatenation of channels in blocked channels; `false` if it has to be generated.
    pub(super) fn channels(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        steps: &mut Vec<Step>,
    ) -> Result<bool, Diagnostic> {
        let Some(Layout::Blocked { halo }) = frame.layouts.get(&(id, 0)).cloned() else { return Ok(false) };
        // some parts may lie there already
        let Some(taken) = self.channels_of(frame, id).filter(|_| !frame.hosts.contains_key(&id)) else {
            return Ok(false);
        };
        let buffer = self.result(frame, (id, 0), place, None);
        self.take_channels(frame, id, &taken, buffer, &halo, steps);
        Ok(true)
    }

    /// Writes an image whose channels are taken from stored ones.
    pub(super) fn take_channels(
        &mut self,
        frame: &Frame,
        id: NodeId,
        taken: &Channels,
        target: BufferId,
        halo: &SmallVec<[i64; 3]>,
        steps: &mut Vec<Step>,
    ) {
        let shape = frame.graph.tensor_type(id).shape.clone();
        let mut images: Vec<NodeId> = Vec::new();
        let by_source = taken.iter().map(|(image, channel)| {
            let source = images.iter().position(|known| known == image).unwrap_or(images.len());
            if source == images.len() {
                images.push(*image);
            }
            (source as u32, *channel)
        });
        let by_source = by_source.collect();
        let (mut sources, mut args) = (Vec::new(), Vec::new());
        for image in &images {
            let value = value_of(&frame.graph, *image);
            let Some(Layout::Blocked { halo }) = frame.layouts.get(&value) else { continue };
            let shape = &frame.graph.tensor_type(*image).shape;
            let (channels, halo, batch_stride) = (shape[1].clone(), dims(halo), self.item(shape, halo));
            sources.push(ChannelSource { channels, halo, batch_stride });
            args.push(Arg::read(frame.buffers[&value]));
        }
        args.push(Arg::write(target));
        let driver = Driver::Channels(ChannelsProblem {
            lanes: self.lanes as usize,
            batch: shape[0].clone(),
            spatial: shape[2..].to_vec(),
            halo: dims(halo),
            batch_stride: self.item(&shape, halo),
            sources,
            taken: by_source,
        });
        let clear = self.halo(&shape, halo, target);
        let launch = DriverLaunch { driver, hook: None, finisher: None, args, clear, family: "channels" };
        self.drive(frame, id, launch, steps);
    }
}
