//! Branches, and loops that a condition ends: regions are planned once, over buffers that are theirs and ours.

use egret_ir::ops::{If, While};
use egret_ir::{Diagnostic, Dim, Graph, NodeId, Op};
use egret_program::{Arg, Branch, BufferId, Carried, Place, SizeValue, Step};

use super::frame::Frame;
use super::{Phase, Planner};
use crate::layout::Layout;
use crate::rewrite::term::BindingTime;

impl Planner<'_> {
    /// The frame of a region: what it captures is read where it is; the first `own` inputs are the caller's to store.
    pub(super) fn region(
        &mut self,
        frame: &mut Frame,
        region: &Graph,
        own: usize,
        captured: &[NodeId],
        phase: Phase,
        steps: &mut Vec<Step>,
    ) -> Result<Frame, Diagnostic> {
        let inputs = region.inputs().to_vec();
        let at_load: Vec<bool> = captured
            .iter()
            .map(|id| phase == Phase::Run && frame.time(*id) < BindingTime::Run && frame.is_stored(*id))
            .collect();
        let loaded = |input: NodeId| {
            let place = inputs.iter().position(|i| *i == input);
            place.and_then(|at| at.checked_sub(own)).is_some_and(|at| at_load.get(at) == Some(&true))
        };
        let mut inner = Frame::new(region.clone(), self.lanes, &loaded);
        for (input, operand) in inputs.iter().skip(own).zip(captured) {
            let source = self.row_major(frame, *operand, steps)?;
            // views with an offset are copied first
            let buffer = if source.offset.is(0) { source.buffer } else { self.materialise(frame, *operand, steps)? };
            inner.store((*input, 0), buffer, Layout::RowMajor);
        }
        for (leaf, node) in region.iter() {
            if let Op::Const(constant) = &node.op
                && !crate::partition::is_inline(&node.op)
            {
                let buffer = self.constant(&constant.value, region.tensor_type(leaf));
                inner.store((leaf, 0), buffer, Layout::RowMajor);
            }
        }
        Ok(inner)
    }

    /// What a region assumes: checked when it runs, or once its sizes are known.
    pub(super) fn region_checks(&mut self, region: &Graph, steps: &mut Vec<Step>) {
        for check in super::checks_of(region) {
            if check.left.is_data_dependent() || check.right.is_data_dependent() {
                self.awaited.push(check);
            } else {
                steps.push(Step::Check(check));
            }
        }
    }

    /// Plans a branch.
    pub(super) fn branch(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        phase: Phase,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let node = frame.graph.node(id).clone();
        let Op::If(branch) = &node.op else { return Err(Diagnostic::new("E0464", "a branch's group has no branch")) };
        let condition = self.row_major(frame, node.operands[0], steps)?.arg(false);
        let parts = node.ty.parts().len();
        let results: Vec<BufferId> = (0..parts).map(|i| self.result(frame, (id, i), place, None)).collect();
        let split = 1 + branch.then.inputs().len();
        let regions = [(&branch.then, &node.operands[1..split]), (&branch.otherwise, &node.operands[split..])];
        let mut bodies = Vec::new();
        for (region, captured) in regions {
            let mut inner = self.region(frame, region, 0, captured, phase, steps)?;
            let mut body = Vec::new();
            self.region_checks(region, &mut body);
            for ((_, output), buffer) in region.outputs().iter().zip(&results) {
                inner.direct.entry((*output, 0)).or_insert(*buffer);
            }
            self.lower(&mut inner, &mut body)?;
            for ((_, output), buffer) in region.outputs().iter().zip(&results) {
                self.copy_to(&mut inner, *output, *buffer, &mut body)?;
            }
            let own = |i: usize| region.tensor_type(region.outputs()[i].1).shape.clone();
            for (i, axis, dim) in open_extents(frame, id, branch) {
                self.size(frame, id, &dim, SizeValue::Known(own(i)[axis].clone()), &mut body);
            }
            bodies.push(body);
        }
        let otherwise = bodies.pop().unwrap_or_default();
        let then = bodies.pop().unwrap_or_default();
        steps.push(Step::Branch(Branch { condition, then, otherwise }));
        open_extents(frame, id, branch).iter().for_each(|(_, _, dim)| self.release(dim, steps));
        Ok(())
    }

    /// Plans a loop that a condition ends.
    pub(super) fn while_loop(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        phase: Phase,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let node = frame.graph.node(id).clone();
        let Op::While(looped) = &node.op else { return Err(Diagnostic::new("E0464", "a loop's group has no loop")) };
        let While { condition, body, carried, bound, .. } = &**looped;
        let (carried, tested) = (*carried, condition.inputs().len() - looped.carried);
        let bounded = bound.as_ref().is_some_and(|bound| bound.upper_bound().as_const() != Some(i64::MAX));
        if !bounded && body.outputs().len() > carried {
            let message = format!("a `while` without bound that stacks results has no kernel yet (%{})", id.index());
            let mut error = Diagnostic::new("E0465", message);
            error.origin = frame.graph.origins(id).iter().map(|o| (**o).clone()).collect();
            return Err(error.help("give the loop a bound, or use the device `interpreter`"));
        }
        let (initial, rest) = node.operands.split_at(carried);
        let (by_condition, by_body) = rest.split_at(tested);
        let mut test_frame = self.region(frame, condition, carried, by_condition, phase, steps)?;
        let mut body_frame = self.region(frame, body, carried, by_body, phase, steps)?;
        let mut firsts = Vec::new();
        for (i, operand) in initial.iter().enumerate() {
            firsts.push(self.row_major(frame, *operand, steps)?.arg(false));
            // after the loop the carried buffer holds its result
            let buffer = self.result(frame, (id, i), place, None);
            test_frame.store((condition.inputs()[i], 0), buffer, Layout::RowMajor);
            body_frame.store((body.inputs()[i], 0), buffer, Layout::RowMajor);
        }
        let trips = self.result(frame, (id, carried), place, None);

        let mut condition_steps = Vec::new();
        self.region_checks(condition, &mut condition_steps);
        self.lower(&mut test_frame, &mut condition_steps)?;
        let test = self.row_major(&mut test_frame, condition.outputs()[0].1, &mut condition_steps)?.arg(false);

        let stacks: Vec<BufferId> =
            (carried..body.outputs().len()).map(|y| self.result(frame, (id, y + 1), place, None)).collect();
        body_frame.invariant = body.inputs()[carried..].to_vec();
        let (carried, body) = self.loop_body(&mut body_frame, body, firsts, &stacks)?;
        steps.append(&mut body_frame.before);
        let condition = condition_steps;
        let step =
            egret_program::While { condition, test, bound: bound.clone(), carried, body, trips: Arg::write(trips) };
        steps.push(Step::While(step));
        let count = Arg::read(trips);
        self.tell(frame, id, &looped.trips(), SizeValue::Read(count), steps);
        Ok(())
    }

    /// The steps of a loop's body: slices of stacked results are written in place, then the carried values move on.
    pub(super) fn loop_body(
        &mut self,
        inner: &mut Frame,
        body: &Graph,
        firsts: Vec<Arg>,
        stacks: &[BufferId],
    ) -> Result<(Vec<Carried>, Vec<Step>), Diagnostic> {
        let (carried, stacked) = body.outputs().split_at(firsts.len());
        let mut slices = Vec::new();
        for ((_, output), whole) in stacked.iter().zip(stacks) {
            let ty = body.tensor_type(*output).clone();
            let slice = self.row_major_buffer(Place::Slice { of: *whole, stride: ty.bytes() }, &ty);
            if !carried.iter().any(|(_, o)| o == output) {
                inner.direct.entry((*output, 0)).or_insert(slice);
            }
            slices.push((*output, slice));
        }
        let mut steps = Vec::new();
        self.region_checks(body, &mut steps);
        self.lower(inner, &mut steps)?;
        for (output, slice) in slices {
            self.copy_to(inner, output, slice, &mut steps)?;
        }
        let carried = self.next_values(inner, firsts, &mut steps)?;
        Ok((carried, steps))
    }

    /// What the first outputs of a loop's body become: the next carried values.
    fn next_values(
        &mut self,
        inner: &mut Frame,
        firsts: Vec<Arg>,
        steps: &mut Vec<Step>,
    ) -> Result<Vec<Carried>, Diagnostic> {
        let (inputs, outputs) = (inner.graph.inputs().to_vec(), inner.graph.outputs().to_vec());
        let count = firsts.len();
        let mut carried = Vec::new();
        for (i, first) in firsts.into_iter().enumerate() {
            let mut next = self.row_major(inner, outputs[i].1, steps)?;
            let current = inner.buffers[&(inputs[i], 0)];
            let ty = inner.graph.tensor_type(inputs[i]).clone();
            let bytes = ty.bytes();
            // a carried value that becomes another one is set aside before any is replaced
            if inputs[..count].iter().any(|input| inner.buffers[&(*input, 0)] == next.buffer) {
                let aside = self.row_major_buffer(Place::Arena, &ty);
                steps.push(Step::Copy {
                    source: next.arg(false),
                    destination: Arg::write(aside),
                    bytes: bytes.clone(),
                });
                next.buffer = aside;
                next.offset = Dim::ZERO;
            }
            carried.push(Carried { first, current, next: next.arg(false), bytes });
        }
        Ok(carried)
    }
}

/// The extents in which the regions of a branch differ, which are those of the one that ran: result, axis and size.
fn open_extents(frame: &Frame, id: NodeId, branch: &If) -> Vec<(usize, usize, Dim)> {
    let shape = |graph: &Graph, i: usize| graph.tensor_type(graph.outputs()[i].1).shape.clone();
    let mut open = Vec::new();
    for (i, part) in frame.graph.ty(id).parts().iter().enumerate() {
        let (a, b) = (shape(&branch.then, i), shape(&branch.otherwise, i));
        let differing = part.shape.iter().enumerate().filter(|(axis, _)| a[*axis] != b[*axis]);
        open.extend(differing.map(|(axis, dim)| (i, axis, dim.clone())));
    }
    open
}
