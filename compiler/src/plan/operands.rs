//! Operands of kernels: where they are, in which layout, or copies that are made for a driver.

use egret_ir::{Diagnostic, Dim, NodeId};
use egret_program::{BufferId, Place, Step};
use smallvec::SmallVec;

use super::frame::Frame;
use super::{Operand, Planner};
use crate::layout::Layout;
use crate::partition::{Family, Group, is_movement};
use crate::schedule::scope::value_of;

impl Planner<'_> {
    /// A value in row-major memory: where it is, or a copy made now.
    pub(super) fn row_major(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        steps: &mut Vec<Step>,
    ) -> Result<Operand, Diagnostic> {
        let element = frame.graph.tensor_type(id).dtype.size();
        let at = |buffer| Operand { buffer, offset: Dim::ZERO, element };
        if let Some(buffer) = frame.row_major_buffer(id) {
            return Ok(at(buffer));
        }
        let value = value_of(&frame.graph, id);
        if frame.is_stored(id) {
            return self.unblock(frame, value, steps).map(at);
        }
        self.materialise(frame, id, steps).map(at)
    }

    /// Stores a value that is computed where it is read.
    pub(super) fn materialise(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        steps: &mut Vec<Step>,
    ) -> Result<BufferId, Diagnostic> {
        // movement of a blocked value goes faster from a row-major copy
        let source = frame.source(id);
        if is_movement(&frame.graph.node(id).op) && frame.is_stored(source) && !frame.is_row_major(source) {
            self.unblock(frame, value_of(&frame.graph, source), steps)?;
            if let Some(view) = frame.view(id)
                && view.offset.is(0)
                && view.strides == crate::schedule::view::row_major(&frame.graph.tensor_type(id).shape)
                && let Some(buffer) = frame.row_major_buffer(view.source)
            {
                frame.store((id, 0), buffer, Layout::RowMajor);
                return Ok(buffer);
            }
        }
        if self.alias(frame, id) {
            return Ok(frame.buffers[&(id, 0)]);
        }
        let group = Group::new(Family::Map, id);
        frame.layouts.insert((id, 0), Layout::RowMajor);
        self.generated(frame, &group, Place::Arena, None, steps)?;
        Ok(frame.buffers[&(id, 0)])
    }

    /// A driver's operand as a strided view; stored first when no strides describe it.
    pub(super) fn strided(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        steps: &mut Vec<Step>,
    ) -> Result<(Operand, SmallVec<[Dim; 6]>, NodeId), Diagnostic> {
        if frame.view(id).is_none() {
            let source = frame.source(id);
            if frame.is_stored(source) && !frame.is_row_major(source) {
                self.unblock(frame, value_of(&frame.graph, source), steps)?;
            }
        }
        if frame.view(id).is_none() {
            self.materialise(frame, id, steps)?;
        }
        let view = frame.view(id).ok_or_else(|| Diagnostic::new("E0464", "a stored value has no strides"))?;
        let buffer = frame
            .row_major_buffer(view.source)
            .ok_or_else(|| Diagnostic::new("E0464", "a strided view reads a value that is not stored"))?;
        let element = frame.graph.tensor_type(id).dtype.size();
        Ok((Operand { buffer, offset: view.offset, element }, view.strides, view.source))
    }
}
