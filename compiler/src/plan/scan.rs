//! Loops over slices: the body is planned once, over buffers that move.

use egret_ir::{Diagnostic, NodeId, Op};
use egret_program::{BufferId, Loop, Place, Step};
use rustc_hash::FxHashMap;

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
        // slices of stacked results are written in place
        let mut direct: FxHashMap<NodeId, BufferId> = FxHashMap::default();
        let mut stacked = Vec::new();
        for (y, (_, output)) in body.outputs().iter().enumerate().skip(scan.carried) {
            let whole = self.result(frame, (id, y), place, None);
            let ty = body.tensor_type(*output).clone();
            let slice = self.row_major_buffer(Place::Slice { of: whole, stride: ty.bytes() }, &ty);
            let carried_too = body.outputs()[..scan.carried].iter().any(|(_, o)| o == output);
            if !carried_too {
                direct.entry(*output).or_insert(slice);
            }
            stacked.push((*output, slice));
        }
        let mut body_steps = Vec::new();
        self.region_checks(body, &mut body_steps);
        self.lower(&mut inner, &direct, &mut body_steps)?;
        for (output, slice) in stacked {
            self.copy_to(&mut inner, output, slice, &mut body_steps)?;
        }
        let carried = self.next_values(&mut inner, firsts, &mut body_steps)?;
        steps.push(Step::Loop(Loop { length: scan.length.clone(), reverse: scan.reverse, carried, body: body_steps }));
        Ok(())
    }
}
