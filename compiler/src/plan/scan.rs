//! Loops over slices: the body is planned once, over buffers that move.

use egret_ir::{Diagnostic, NodeId, Op};
use egret_program::{BufferId, Loop, Place, Step};

use super::frame::Frame;
use super::{Phase, Planner};
use crate::layout::Layout;

impl Planner<'_> {
    /// Plans a loop.
    pub(super) fn scan(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        phase: Phase,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let node = frame.graph.node(id).clone();
        let Op::Scan(scan) = &node.op else { return Err(Diagnostic::new("E0464", "a loop's group has no loop")) };
        let body = &*scan.body;
        let (initial, rest) = node.operands.split_at(scan.carried);
        let (scanned, captured) = rest.split_at(scan.scanned);
        let mut inner = self.region(frame, body, scan.carried + scan.scanned, captured, phase, steps)?;
        for (input, operand) in body.inputs().iter().skip(scan.carried).zip(scanned) {
            let source = self.row_major(frame, *operand, steps)?;
            let ty = body.tensor_type(*input).clone();
            let slice = Place::Slice { of: source.buffer, stride: ty.bytes() };
            let buffer = self.row_major_buffer(slice, &ty);
            inner.store((*input, 0), buffer, Layout::RowMajor);
        }
        let mut firsts = Vec::new();
        for (i, (input, operand)) in body.inputs().iter().zip(initial).enumerate() {
            firsts.push(self.row_major(frame, *operand, steps)?.arg(false));
            // after the loop the carried buffer holds the loop's result
            let buffer = self.result(frame, (id, i), place, None);
            inner.store((*input, 0), buffer, Layout::RowMajor);
        }
        let stacks: Vec<BufferId> =
            (scan.carried..body.outputs().len()).map(|y| self.result(frame, (id, y), place, None)).collect();
        inner.invariant = body.inputs()[scan.carried + scan.scanned..].to_vec();
        let (carried, body) = self.loop_body(&mut inner, body, firsts, &stacks)?;
        steps.append(&mut inner.before);
        steps.push(Step::Loop(Loop { length: scan.length.clone(), reverse: scan.reverse, carried, body }));
        Ok(())
    }
}
