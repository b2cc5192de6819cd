//! Sorting, and operators whose results have a size that only the data tell: drivers, and a step that tells the size.

use egret_ir::ops::{Cast, Unique};
use egret_ir::{DType, Diagnostic, Dim, NodeId, Op, Shape, TensorType};
use egret_program::driver::{Driver, NonZeroProblem, SuppressionProblem, TopKProblem, UniqueProblem};
use egret_program::{Arg, Place, Size, SizeValue, Step};

use super::frame::Frame;
use super::{DriverLaunch, Planner};

fn elements(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::ONE, |n, d| n * d.clone())
}

impl Planner<'_> {
    /// Plans `top_k`, `non_zero`, `unique` or `non_max_suppression`.
    pub(super) fn select(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let node = frame.graph.node(id).clone();
        let x = node.operands[0];
        let ty = frame.graph.tensor_type(x).clone();
        match &node.op {
            Op::TopK(top) => {
                let driver = Driver::TopK(TopKProblem {
                    dtype: ty.dtype,
                    outer: elements(&ty.shape[..top.axis]),
                    extent: ty.shape[top.axis].clone(),
                    inner: elements(&ty.shape[top.axis + 1..]),
                    k: top.k.clone(),
                    largest: top.largest,
                });
                self.select_with(frame, id, &[x], driver, "top_k", None, place, steps)
            }
            Op::NonZero(_) => {
                let truth = self.converted(frame, x, DType::Bool)?;
                let driver = Driver::NonZero(NonZeroProblem { shape: ty.shape.to_vec() });
                let size = frame.graph.tensor_type(id).shape[1].clone();
                self.select_with(frame, id, &[truth], driver, "non_zero", Some(size), place, steps)
            }
            Op::Unique(unique) => {
                let Unique { axis, sorted, .. } = &**unique;
                let (outer, extent, inner) = match *axis {
                    Some(axis) => {
                        let extent = ty.shape[axis].clone();
                        (elements(&ty.shape[..axis]), extent, elements(&ty.shape[axis + 1..]))
                    }
                    None => (Dim::ONE, ty.shape.elements(), Dim::ONE),
                };
                let problem = UniqueProblem { dtype: ty.dtype, outer, extent, inner, sorted: *sorted };
                let size = frame.graph.ty(id).parts()[1].shape[0].clone();
                self.select_with(frame, id, &[x], Driver::Unique(problem), "unique", Some(size), place, steps)
            }
            Op::NonMaxSuppression(op) => {
                let scores = frame.graph.tensor_type(node.operands[1]).shape.clone();
                let driver = Driver::Suppression(SuppressionProblem {
                    batch: scores[0].clone(),
                    classes: scores[1].clone(),
                    boxes: scores[2].clone(),
                    center: op.center,
                });
                let types = [DType::F64, DType::F64, DType::I64, DType::F64, DType::F64];
                let mut operands = Vec::new();
                for (operand, dtype) in node.operands.iter().zip(types) {
                    operands.push(self.converted(frame, *operand, dtype)?);
                }
                let size = frame.graph.tensor_type(id).shape[0].clone();
                self.select_with(frame, id, &operands, driver, "suppression", Some(size), place, steps)
            }
            other => Err(Diagnostic::new("E0464", format!("`{}` is no selection", other.home().name()))),
        }
    }

    /// The value as another element type.
    fn converted(&mut self, frame: &mut Frame, id: NodeId, dtype: DType) -> Result<NodeId, Diagnostic> {
        if frame.graph.tensor_type(id).dtype == dtype { Ok(id) } else { frame.add(Cast { dtype }, &[id]) }
    }

    fn select_with(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        operands: &[NodeId],
        driver: Driver<Dim>,
        family: &'static str,
        size: Option<Dim>,
        place: &Place,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let mut args = Vec::new();
        for operand in operands {
            args.push(self.row_major(frame, *operand, steps)?.arg(false));
        }
        for part in 0..frame.graph.ty(id).parts().len() {
            args.push(Arg::write(self.result(frame, (id, part), place, None)));
        }
        let counter = size.map(|size| {
            let ty = TensorType { dtype: DType::I64, shape: Shape::scalar() };
            (self.row_major_buffer(Place::Arena, &ty), size)
        });
        args.extend(counter.iter().map(|(buffer, _)| Arg::write(*buffer)));
        let launch = DriverLaunch { driver, hook: None, finisher: None, args, clear: Vec::new(), family };
        self.drive(frame, id, launch, steps);
        if let Some((buffer, size)) = counter {
            let count = Arg::read(buffer);
            self.tell(frame, id, &size, SizeValue::Read(count), steps);
        }
        Ok(())
    }

    /// Tells a data-dependent size, and checks what was assumed of it as soon as all sizes of an assumption are known.
    pub(super) fn tell(&mut self, frame: &Frame, id: NodeId, size: &Dim, value: SizeValue, steps: &mut Vec<Step>) {
        self.size(frame, id, size, value, steps);
        self.release(size, steps);
    }

    /// The step that tells a data-dependent size.
    pub(super) fn size(&self, frame: &Frame, id: NodeId, size: &Dim, value: SizeValue, steps: &mut Vec<Step>) {
        let Some((number, bound)) = size.as_fresh() else { return };
        let origin = frame.graph.origins(id).iter().map(|o| o.to_string()).collect::<Vec<_>>().join(", ");
        let name = Dim::fresh_name(number).to_string();
        steps.push(Step::Size(Size { name, bound: bound.clone(), value, origin }));
    }

    /// Checks what waited for a data-dependent size, and for no other that is not told yet.
    pub(super) fn release(&mut self, size: &Dim, steps: &mut Vec<Step>) {
        let Some((number, _)) = size.as_fresh() else { return };
        self.told.insert(number);
        let told = &self.told;
        let ready = |dim: &Dim| {
            let mut ready = true;
            dim.fresh_sizes(&mut |number, _| ready &= told.contains(&number));
            ready
        };
        let all = std::mem::take(&mut self.awaited);
        let (now, later) = all.into_iter().partition(|check| ready(&check.left) && ready(&check.right));
        self.awaited = later;
        let now: Vec<egret_program::Check> = now;
        steps.extend(now.into_iter().map(Step::Check));
    }
}
