//! Copies of values in another layout, for kernels of GPUs.

use egret_ir::ops::StopGradient;
use egret_ir::{Diagnostic, NodeId};
use egret_program::{BufferId, Place, Step};

use super::Planner;
use super::frame::Frame;
use crate::layout::Layout;
use crate::partition::{Family, Group};
use crate::rewrite::term::BindingTime;
use crate::schedule::scope::value_of;

impl Planner<'_> {
    /// Copies what a convolution reads to channels-last memory, where its layout asks for that: weights, once when they are
    /// loaded if they are known then, and images.
    pub(super) fn channels_last_operands(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let copied = frame.copied.get(&id).copied().unwrap_or_default();
        for (number, _) in copied.into_iter().enumerate().filter(|(_, copied)| *copied) {
            let operand = frame.graph.node(id).operands[number];
            let value = value_of(&frame.graph, operand);
            let row_major = frame.layouts.get(&value) == Some(&Layout::RowMajor);
            if !row_major || frame.channels_last.contains_key(&value) {
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
