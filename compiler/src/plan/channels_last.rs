//! Copies of values in another layout, for kernels of GPUs.

use egret_ir::ops::{ConvForm, StopGradient};
use egret_ir::{Diagnostic, NodeId};
use egret_program::{BufferId, Place, Step};

use super::Planner;
use super::frame::Frame;
use crate::layout::channels_last::COPIED_CHANNELS;
use crate::layout::{Layout, conv_of};
use crate::partition::{Family, Group};
use crate::rewrite::term::BindingTime;
use crate::schedule::scope::value_of;

impl Planner<'_> {
    /// Copies what a convolution reads to channels-last memory, where its images are: weights, once when they are loaded if
    /// they are known then, and an image that enters a region.
    pub(super) fn channels_last_operands(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let node = frame.graph.node(id).clone();
        let Some(conv) = conv_of(&node.op) else { return Ok(()) };
        let last =
            |frame: &Frame, id: NodeId| frame.layouts.get(&value_of(&frame.graph, id)) == Some(&Layout::ChannelsLast);
        if ![id, node.operands[0], node.operands[1]].into_iter().any(|id| last(frame, id)) {
            return Ok(());
        }
        for (i, operand) in node.operands[..2].iter().copied().enumerate() {
            let value = value_of(&frame.graph, operand);
            let row_major = frame.layouts.get(&value) == Some(&Layout::RowMajor);
            let shape = frame.graph.tensor_type(operand).shape.clone();
            // where each channel has one pixel, or each pixel one channel, both layouts are the same
            let same = shape[1].is(1) || shape[2..].iter().all(|d| d.is(1));
            let weights = i == 1 && conv.form != ConvForm::WeightGrad;
            let pays = weights || shape[1].as_const().is_some_and(|n| n % COPIED_CHANNELS == 0);
            if !row_major || same || !pays || frame.channels_last.contains_key(&value) {
                continue;
            }
            let buffer = self.relaid(frame, operand, Layout::ChannelsLast, steps)?;
            frame.channels_last.insert(value, buffer);
        }
        Ok(())
    }

    /// A copy of a stored value in another layout, made when it is loaded if it is known then.
    pub(super) fn relaid(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        layout: Layout,
        steps: &mut Vec<Step>,
    ) -> Result<BufferId, Diagnostic> {
        let at_load = frame.time(id) < BindingTime::Run;
        let copy = frame.add(StopGradient, &[id])?;
        frame.layouts.insert((copy, 0), layout);
        let group = Group::new(Family::Map, copy);
        if at_load {
            let mut prepare = std::mem::take(&mut self.program.prepare);
            self.generated(frame, &group, Place::Prepared, None, &mut prepare)?;
            self.program.prepare = prepare;
        } else {
            self.generated(frame, &group, Place::Arena, None, steps)?;
        }
        Ok(frame.buffers[&(copy, 0)])
    }
}
