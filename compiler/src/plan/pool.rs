//! Pooling in blocked channels, and its gradient, on their drivers.

use egret_ir::ops::{ReduceWindow, WindowKind};
use egret_ir::{DType, Diagnostic, Dim, NodeId, Op};
use egret_program::driver::{Driver, Epilogue, PoolGradProblem, PoolKind, PoolProblem};
use egret_program::{Arg, BufferId, Place, Step};
use smallvec::SmallVec;

use super::conv::dims;
use super::frame::Frame;
use super::{DriverLaunch, Planner};
use crate::layout::Layout;

/// The pooling of a node that the driver has: from blocked channels, or into them. What leaves blocked channels is written
/// row-major at once.
fn pooling(frame: &Frame, id: NodeId) -> Option<ReduceWindow> {
    let node = frame.graph.node(id);
    let (anchor, fused) = match &node.op {
        Op::Fused(fused) => (&*fused.anchor, true),
        other => (other, false),
    };
    let Op::ReduceWindow(op) = anchor else { return None };
    let (x, y) = (frame.graph.tensor_type(node.operands[0]), frame.graph.tensor_type(id));
    let source = crate::schedule::scope::value_of(&frame.graph, node.operands[0]);
    let is_blocked = |value| matches!(frame.layouts.get(&value), Some(Layout::Blocked { .. }));
    let blocked = is_blocked((id, 0)) || is_blocked(source) && !fused;
    // an epilogue may quantise
    let f32 = x.dtype == DType::F32 && (y.dtype == DType::F32 || fused && y.dtype == DType::I32);
    let spatial = op.window.size.len() + 2 == x.shape.rank() && op.window.size.len() <= 3;
    (blocked && f32 && spatial).then(|| (**op).clone())
}

impl Planner<'_> {
    /// Plans a pooling on the driver; `false` if it has to be generated.
    pub(super) fn pool(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        direct: Option<BufferId>,
        steps: &mut Vec<Step>,
    ) -> Result<bool, Diagnostic> {
        let Some(op) = pooling(frame, id) else { return self.pool_gradient(frame, id, place, steps) };
        let node = frame.graph.node(id).clone();
        let no_halo: SmallVec<[i64; 3]> = SmallVec::from_elem(0, op.window.size.len());
        let input = self.blocked(frame, node.operands[0], &no_halo, steps)?;
        let (halo, row_major) = match frame.layouts.get(&(id, 0)) {
            Some(Layout::Blocked { halo }) => (halo.clone(), false),
            _ => (no_halo, true),
        };
        let result = self.result(frame, (id, 0), place, direct);
        let x = frame.graph.tensor_type(node.operands[0]).shape.clone();
        let y = frame.graph.tensor_type(id).shape.clone();
        let out = Arg::write(result);
        let mut args = vec![input.read(), out.clone()];
        let (mut epilogue, mut hook) = (Epilogue::none(), None);
        if let Op::Fused(fused) = &node.op {
            (epilogue, hook) = self.image_epilogue(frame, id, fused, &halo, false, &mut args, steps)?;
            args.push(out);
        }
        let problem = PoolProblem {
            kind: kind_of(op.kind),
            lanes: self.lanes as usize,
            batch: x[0].clone(),
            channels: x[1].clone(),
            in_spatial: x[2..].to_vec(),
            out_spatial: y[2..].to_vec(),
            kernel: dims(&op.window.size),
            stride: dims(&op.window.stride),
            dilation: dims(&op.window.dilation),
            pad_begin: dims(&op.window.pad_low),
            in_halo: dims(&input.halo),
            out_halo: dims(&halo),
            in_batch_stride: input.item,
            out_batch_stride: if row_major { Dim::ZERO } else { self.item(&y, &halo) },
            row_major,
            epilogue,
        };
        let clear = self.halos(frame, id);
        let driver = Driver::Pool(problem);
        self.drive(frame, id, DriverLaunch { driver, hook, finisher: None, args, clear, family: "pool" }, steps);
        Ok(true)
    }

    /// Plans the gradient of a pooling in blocked channels; `false` if it has to be generated.
    fn pool_gradient(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        steps: &mut Vec<Step>,
    ) -> Result<bool, Diagnostic> {
        let node = frame.graph.node(id).clone();
        let Op::ReduceWindowGrad(op) = &node.op else { return Ok(false) };
        let Some(Layout::Blocked { halo }) = frame.layouts.get(&(id, 0)).cloned() else { return Ok(false) };
        if frame.graph.tensor_type(id).dtype != DType::F32 || op.window.size.len() != halo.len() {
            return Ok(false);
        }
        let no_halo: SmallVec<[i64; 3]> = SmallVec::from_elem(0, halo.len());
        let dy = self.blocked(frame, node.operands[1], &no_halo, steps)?;
        // only maxima look at x
        let x = match op.kind {
            WindowKind::Max => Some(self.blocked(frame, node.operands[0], &no_halo, steps)?),
            _ => None,
        };
        let result = self.result(frame, (id, 0), place, None);
        let shape = frame.graph.tensor_type(id).shape.clone();
        let windows = frame.graph.tensor_type(node.operands[1]).shape.clone();
        let pool = PoolProblem {
            kind: kind_of(op.kind),
            lanes: self.lanes as usize,
            batch: shape[0].clone(),
            channels: shape[1].clone(),
            in_spatial: shape[2..].to_vec(),
            out_spatial: windows[2..].to_vec(),
            kernel: dims(&op.window.size),
            stride: dims(&op.window.stride),
            dilation: dims(&op.window.dilation),
            pad_begin: dims(&op.window.pad_low),
            in_halo: dims(x.as_ref().map_or(&no_halo, |x| &x.halo)),
            out_halo: dims(&dy.halo),
            in_batch_stride: x.as_ref().map_or_else(|| self.item(&shape, &no_halo), |x| x.item.clone()),
            out_batch_stride: dy.item.clone(),
            row_major: false,
            epilogue: Epilogue::none(),
        };
        let dx_batch_stride = self.item(&shape, &halo);
        let driver = Driver::PoolGrad(PoolGradProblem { pool, dx_halo: dims(&halo), dx_batch_stride });
        let args = vec![x.as_ref().unwrap_or(&dy).read(), dy.read(), Arg::write(result)];
        let clear = self.halos(frame, id);
        let launch = DriverLaunch { driver, hook: None, finisher: None, args, clear, family: "pool_grad" };
        self.drive(frame, id, launch, steps);
        Ok(true)
    }
}

fn kind_of(kind: WindowKind) -> PoolKind {
    match kind {
        WindowKind::Max => PoolKind::Max,
        WindowKind::Sum => PoolKind::Sum,
        WindowKind::MeanValid => PoolKind::MeanValid,
        WindowKind::MeanAll => PoolKind::MeanAll,
    }
}
