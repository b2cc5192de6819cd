//! Loops over slices: the body is planned once, over buffers that move.

use egret_ir::{Diagnostic, Dim, NodeId, Op};
use egret_program::{Arg, BufferId, Carried, Loop, Place, Step};
use rustc_hash::FxHashMap;

use super::frame::Frame;
use super::{Phase, Planner};
use crate::layout::Layout;
use crate::rewrite::term::BindingTime;

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
        let loaded: Vec<bool> = body
            .inputs()
            .iter()
            .enumerate()
            .map(|(i, _)| {
                let captured = i >= scan.carried + scan.scanned;
                captured
                    && phase == Phase::Run
                    && frame.time(node.operands[i]) < BindingTime::Run
                    && frame.is_stored(node.operands[i])
            })
            .collect();
        let inputs = body.inputs().to_vec();
        let is_loaded = |input: NodeId| inputs.iter().position(|i| *i == input).is_some_and(|i| loaded[i]);
        let mut inner = Frame::new(body.clone(), self.lanes, &is_loaded);
        for (input, operand) in inputs.iter().zip(&node.operands).skip(scan.carried + scan.scanned) {
            let source = self.row_major(frame, *operand, steps)?;
            // captured values are read where they are; views with an offset are copied first
            let buffer = if source.offset.is(0) { source.buffer } else { self.materialise(frame, *operand, steps)? };
            inner.store((*input, 0), buffer, Layout::RowMajor);
        }
        for (input, operand) in inputs.iter().zip(&node.operands).skip(scan.carried).take(scan.scanned) {
            let source = self.row_major(frame, *operand, steps)?;
            let ty = body.tensor_type(*input).clone();
            let place = Place::Slice { of: source.buffer, stride: ty.bytes() };
            let buffer = self.row_major_buffer(place, &ty);
            inner.store((*input, 0), buffer, Layout::RowMajor);
        }
        let mut firsts = Vec::new();
        for (i, (input, operand)) in inputs.iter().zip(&node.operands).take(scan.carried).enumerate() {
            firsts.push(self.row_major(frame, *operand, steps)?.arg(false));
            // after the loop the carried buffer holds the loop's result
            let buffer = self.result(frame, (id, i), place, None);
            inner.store((*input, 0), buffer, Layout::RowMajor);
        }
        let constants = body.clone();
        for (leaf, leaf_node) in constants.iter() {
            if let Op::Const(constant) = &leaf_node.op
                && !crate::partition::is_inline(&leaf_node.op)
            {
                let buffer = self.constant(&constant.value, constants.tensor_type(leaf));
                inner.store((leaf, 0), buffer, Layout::RowMajor);
            }
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
        self.lower(&mut inner, &direct, &mut body_steps)?;
        for (output, slice) in stacked {
            self.copy_to(&mut inner, output, slice, &mut body_steps)?;
        }
        let mut carried = Vec::new();
        for (i, first) in firsts.into_iter().enumerate() {
            let output = body.outputs()[i].1;
            let mut next = self.row_major(&mut inner, output, &mut body_steps)?;
            let current = inner.buffers[&(inputs[i], 0)];
            let ty = body.tensor_type(inputs[i]).clone();
            let bytes = ty.bytes();
            // a carried value that becomes another one is set aside before any is replaced
            if inputs[..scan.carried].iter().any(|input| inner.buffers[&(*input, 0)] == next.buffer) {
                let aside = self.row_major_buffer(Place::Arena, &ty);
                let destination = Arg { buffer: aside, offset: Dim::ZERO, writes: true };
                body_steps.push(Step::Copy { source: next.arg(false), destination, bytes: bytes.clone() });
                next.buffer = aside;
                next.offset = Dim::ZERO;
            }
            carried.push(Carried { first, current, next: next.arg(false), bytes });
        }
        steps.push(Step::Loop(Loop { length: scan.length.clone(), reverse: scan.reverse, carried, body: body_steps }));
        Ok(())
    }
}
