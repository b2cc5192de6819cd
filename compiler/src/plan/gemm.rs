//! Contractions as products: labels become rows, columns, sums and batches of the driver.

use egret_ir::ops::{Broadcast, Fused, Labels, Transpose};
use egret_ir::{DType, Diagnostic, Dim, NodeId, Op, ScalarExpr};
use egret_program::driver::{
    BatchDim, Bias, Driver, Epilogue, Finisher, GemmProblem, GemmSchedule, MatrixForm, Operand as Addressing, PackForm,
    PackProblem, Products,
};
use egret_program::{Arg, BufferId, Place, Step};
use smallvec::{SmallVec, smallvec};

use super::frame::Frame;
use super::{DriverLaunch, Operand, Phase, Planner};
use crate::cost::SYMBOL_HINT;
use crate::layout::Layout;
use crate::rewrite::term::BindingTime;
use crate::schedule::epilogue::{self, Extra};

/// An axis of the product: its extent and its stride in each tensor.
#[derive(Clone, Debug)]
struct Axis {
    extent: Dim,
    strides: SmallVec<[Dim; 6]>,
}

/// Joins neighbouring axes that one stride a tensor describes; the innermost comes first.
fn collapse(axes: Vec<Axis>) -> Vec<Axis> {
    let mut joined: Vec<Axis> = Vec::new();
    for axis in axes.into_iter().rev() {
        if axis.extent.is(1) {
            continue;
        }
        if let Some(inner) = joined.last_mut() {
            let fits = axis
                .strides
                .iter()
                .zip(&inner.strides)
                .all(|(outer, stride)| *outer == stride.clone() * inner.extent.clone());
            if fits {
                inner.extent = inner.extent.clone() * axis.extent;
                continue;
            }
        }
        joined.push(axis);
    }
    joined
}

/// A tensor of the product with its stride by label.
struct Labelled {
    operand: Operand,
    strides: [Option<Dim>; 26],
}

impl Labelled {
    fn stride(&self, label: u8) -> Dim {
        self.strides[usize::from(label - b'a')].clone().unwrap_or(Dim::ZERO)
    }
}

fn by_label(operand: Operand, labels: &Labels, strides: &[Dim]) -> Labelled {
    let mut table: [Option<Dim>; 26] = Default::default();
    for (label, stride) in labels.0.iter().zip(strides) {
        let slot = &mut table[usize::from(label - b'a')];
        *slot = Some(slot.clone().map_or(stride.clone(), |have| have + stride.clone()));
    }
    Labelled { operand, strides: table }
}

impl Planner<'_> {
    /// Plans a contraction on the product driver; false when it has no such form.
    pub(super) fn gemm(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        direct: Option<BufferId>,
        phase: Phase,
        steps: &mut Vec<Step>,
    ) -> Result<bool, Diagnostic> {
        let node = frame.graph.node(id).clone();
        let (dot, fused) = match &node.op {
            Op::DotGeneral(dot) => (dot.clone(), None),
            Op::Fused(fused) => match &*fused.anchor {
                Op::DotGeneral(dot) => (dot.clone(), Some(fused.clone())),
                _ => return Ok(false),
            },
            _ => return Ok(false),
        };
        let result_type = frame.graph.tensor_type(id).clone();
        let Some(products) = self.products_of(&frame.graph, &node.operands[..2]).filter(|_| self.device.is_cpu())
        else {
            return Ok(false);
        };
        // finishers of rows are of `f32`
        let of_f32 = matches!(products, Products::F32 | Products::Words(_));
        if !of_f32 && fused.as_ref().is_some_and(|fused| fused.rows.is_some()) {
            return Ok(false);
        }
        let distinct = |labels: &Labels| (0..labels.0.len()).all(|i| !labels.0[..i].contains(&labels.0[i]));
        let lone = |l: &u8, other: &Labels| !dot.out.has(*l) && !other.has(*l);
        if !distinct(&dot.lhs)
            || !distinct(&dot.rhs)
            || dot.lhs.0.iter().any(|l| lone(l, &dot.rhs))
            || dot.rhs.0.iter().any(|l| lone(l, &dot.lhs))
        {
            return Ok(false);
        }
        // columns must be the result's innermost axis: the operands change places if need be
        let swap = dot.out.0.last().is_some_and(|l| dot.lhs.has(*l) && !dot.rhs.has(*l));
        let (lhs, rhs) = if swap { (&dot.rhs, &dot.lhs) } else { (&dot.lhs, &dot.rhs) };
        let (a_node, b_node) =
            if swap { (node.operands[1], node.operands[0]) } else { (node.operands[0], node.operands[1]) };
        let products = match self.bytes(&frame.graph, a_node, b_node) {
            Some(bytes) if products == Products::Shorts => Products::Words(bytes),
            _ => products,
        };
        let mut extents: [Option<Dim>; 26] = Default::default();
        for (labels, operand) in [(lhs, a_node), (rhs, b_node)] {
            for (label, dim) in labels.0.iter().zip(frame.graph.tensor_type(operand).shape.iter()) {
                extents[usize::from(label - b'a')] = Some(dim.clone());
            }
        }
        let extent = |label: u8| extents[usize::from(label - b'a')].clone().unwrap_or(Dim::ONE);
        let (a_operand, a_strides, _) = self.strided(frame, a_node, steps)?;
        let (b_operand, b_strides, mut b_source) = self.strided(frame, b_node, steps)?;
        let mut a = by_label(a_operand, lhs, &a_strides);
        let mut b = by_label(b_operand, rhs, &b_strides);
        // sums over several axes are one where both operands have these side by side, in one order: else they are copied
        let summed = |labels: &Labels| labels.0.iter().copied().filter(|l| !dot.out.has(*l)).collect::<Vec<u8>>();
        let mut order = summed(lhs);
        if order.len() > 1 {
            let apart = |x: &Labelled, order: &[u8]| {
                let axes = order.iter().map(|l| Axis { extent: extent(*l), strides: smallvec![x.stride(*l)] });
                collapse(axes.collect()).len() > 1
            };
            let size = |frame: &Frame, id: NodeId| frame.graph.tensor_type(id).bytes().hint(SYMBOL_HINT);
            let cost = |frame: &Frame, order: &[u8]| {
                [(&a, a_node), (&b, b_node)]
                    .iter()
                    .map(|(x, id)| if apart(x, order) { size(frame, *id) } else { 0 })
                    .sum::<i64>()
            };
            let other = summed(rhs);
            if cost(frame, &other) < cost(frame, &order) {
                order = other;
            }
            if apart(&a, &order) {
                (a, _) = self.summed_first(frame, a_node, lhs, &order, steps)?;
            }
            if apart(&b, &order) {
                (b, b_source) = self.summed_first(frame, b_node, rhs, &order, steps)?;
            }
        }
        let out_strides = crate::schedule::view::row_major(&result_type.shape);

        let extra_nodes: SmallVec<[NodeId; 8]> =
            fused.as_ref().map_or(SmallVec::new(), |f| f.split(&node.operands).1.into());
        let mut extras: Vec<Labelled> = Vec::new();
        for extra in &extra_nodes {
            extras.push(self.extra(frame, *extra, &dot.out, &result_type.shape, steps)?);
        }
        let element = result_type.dtype.size();
        let c = by_label(Operand { buffer: BufferId(0), offset: Dim::ZERO, element }, &dot.out, &out_strides);

        let axis = |label: u8, tensors: &[&Labelled]| Axis {
            extent: extent(label),
            strides: tensors.iter().map(|t| t.stride(label)).collect(),
        };
        let tensors: Vec<&Labelled> = [&a, &b, &c].into_iter().chain(&extras).collect();
        let pick = |keep: &dyn Fn(u8) -> bool| -> Vec<Axis> {
            dot.out.0.iter().copied().filter(|l| keep(*l)).map(|l| axis(l, &tensors)).collect()
        };
        let last = dot.out.0.last().copied();
        let has_rows = fused.as_ref().is_some_and(|f| f.rows.is_some());
        // whole rows end at the last axis
        let column_axes = pick(&|l| rhs.has(l) && !lhs.has(l));
        let mut columns = if has_rows { column_axes.into_iter().rev().collect() } else { collapse(column_axes) };
        let mut rows = collapse(pick(&|l| lhs.has(l) && !rhs.has(l)));
        let batches = collapse(pick(&|l| lhs.has(l) && rhs.has(l)));
        let sums = collapse(order.iter().map(|l| axis(*l, &[&a, &b])).collect());
        if sums.len() > 1 {
            return Ok(false);
        }
        let one = || Axis { extent: Dim::ONE, strides: SmallVec::from_elem(Dim::ZERO, tensors.len()) };
        let n = if columns.is_empty() { one() } else { columns.remove(0) };
        let m = if rows.is_empty() { one() } else { rows.remove(0) };
        let k = sums.into_iter().next().unwrap_or(Axis { extent: Dim::ONE, strides: smallvec![Dim::ZERO, Dim::ZERO] });
        // a column axis that the row operator does not end at cannot be finished
        if has_rows && last.is_none_or(|l| !rhs.has(l) || lhs.has(l)) {
            return Err(Diagnostic::new("E0464", "a row operator joined a product whose rows are not its columns"));
        }
        // outermost first
        let outer: Vec<Axis> = batches.into_iter().chain(rows).chain(columns).rev().collect();
        let col_unit = |axis: &Axis, t: usize| axis.strides[t].is(1) || axis.extent.is(1);
        let c_col = if n.extent.is(1) { Dim::ONE } else { n.strides[2].clone() };

        let (b_form, b_arg, pack_strides) =
            self.columns(frame, &b, (b_source, b_node), products, &n, &k, &outer, phase, steps);
        let batch: Vec<BatchDim<Dim>> = outer
            .iter()
            .map(|axis| BatchDim {
                extent: axis.extent.clone(),
                a: axis.strides[0].clone(),
                b: pack_strides
                    .clone()
                    .map_or(axis.strides[1].clone(), |s| if axis.strides[1].is(0) { Dim::ZERO } else { s }),
                c: axis.strides[2].clone(),
            })
            .collect();
        let mut problem = GemmProblem {
            batch,
            m: m.extent.clone(),
            n: n.extent.clone(),
            k: k.extent.clone(),
            a_row: m.strides[0].clone(),
            a_col: k.strides[0].clone(),
            b: b_form,
            b_row: k.strides[1].clone(),
            b_col: n.strides[1].clone(),
            c_row: m.strides[2].clone(),
            c_col,
            epilogue: Epilogue::none(),
            finisher: None,
        };
        // how each extra is addressed
        let mut addressing: Vec<Addressing<Dim>> = Vec::new();
        for t in 3..tensors.len() {
            if !col_unit(&n, t) && !n.strides[t].is(0) {
                return Ok(false);
            }
            let flat_batch = outer.iter().all(|axis| axis.strides[t].is(0));
            let (row, col) = (m.strides[t].clone(), n.strides[t].clone());
            addressing.push(match (flat_batch, row.is(0), col.is(0)) {
                (true, true, true) => Addressing::Scalar,
                (true, true, false) => Addressing::PerColumn,
                _ => {
                    Addressing::Strided { batch: outer.iter().map(|axis| axis.strides[t].clone()).collect(), row, col }
                }
            });
        }
        let extra_operands: Vec<Operand> = extras.iter().map(|e| e.operand.clone()).collect();
        let extra_types: Vec<DType> = extra_nodes.iter().map(|e| frame.graph.tensor_type(*e).dtype).collect();
        let out = self.result(frame, (id, 0), place, direct);
        let c_arg = Arg::write(out);
        let mut outs = vec![c_arg.clone()];
        for part in 1..frame.graph.ty(id).parts().len() {
            frame.layouts.insert((id, part), Layout::RowMajor);
            outs.push(Arg::write(self.result(frame, (id, part), place, None)));
        }
        let mut args = vec![a.operand.arg(false), b_arg, c_arg.clone()];
        let (mut hook, mut finisher) = (None, None);
        let acc = match products {
            Products::F64 => DType::F64,
            _ if products.is_integer() => DType::I32,
            _ => DType::F32,
        };
        if let Some(fused) = &fused {
            let made = self.product_epilogue(fused, acc, &addressing, &extra_types, &mut problem)?;
            args.extend(made.epilogue_args.iter().map(|i| extra_operands[*i].arg(false)));
            if made.hook.is_some() {
                args.extend(outs.iter().cloned());
            }
            args.extend(made.finisher_args.iter().map(|i| extra_operands[*i].arg(false)));
            if made.finisher.is_some() {
                args.extend(outs);
            }
            hook = made.hook;
            finisher = made.finisher;
        }
        let numbers = problem.map(&mut |d| d.hint(SYMBOL_HINT).max(0) as usize);
        let lanes = self.lanes as usize;
        let schedule = match products {
            Products::Words(words) if problem.b == MatrixForm::Packed => GemmSchedule::words(&numbers, words, lanes),
            Products::Words(words) if words.is_integer() => GemmSchedule::choose(&numbers, Products::Shorts, lanes),
            Products::Words(_) => GemmSchedule::choose(&numbers, Products::F32, lanes),
            _ => GemmSchedule::choose(&numbers, products, lanes),
        };
        let driver = Driver::Gemm(problem, schedule);
        frame.layouts.insert((id, 0), Layout::RowMajor);
        self.drive(frame, id, DriverLaunch { driver, hook, finisher, args, clear: Vec::new(), family: "gemm" }, steps);
        Ok(true)
    }

    /// A copy of an operand in which the axes of `order` come first, in that order, with the source that it is now.
    fn summed_first(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        labels: &Labels,
        order: &[u8],
        steps: &mut Vec<Step>,
    ) -> Result<(Labelled, NodeId), Diagnostic> {
        let others = labels.0.iter().copied().filter(|l| !order.contains(l));
        let moved = Labels(order.iter().copied().chain(others).collect());
        let place = |l: &u8| labels.0.iter().position(|have| have == l).unwrap_or(0);
        let permutation = moved.0.iter().map(place).collect();
        let copy = frame.add(Transpose { permutation }, &[id])?;
        self.materialise(frame, copy, steps)?;
        let (operand, strides, source) = self.strided(frame, copy, steps)?;
        Ok((by_label(operand, &moved, &strides), source))
    }

    /// An extra operand with its strides by label of the result.
    fn extra(
        &mut self,
        frame: &mut Frame,
        extra: NodeId,
        out: &Labels,
        shape: &egret_ir::Shape,
        steps: &mut Vec<Step>,
    ) -> Result<Labelled, Diagnostic> {
        let own = frame.graph.tensor_type(extra).shape.clone();
        let (operand, strides, _) = self.strided(frame, extra, steps)?;
        let lead = shape.rank() - own.rank();
        let aligned: SmallVec<[Dim; 6]> = (0..shape.rank())
            .map(|axis| match axis.checked_sub(lead) {
                Some(inner) if !own[inner].is(1) => strides[inner].clone(),
                _ => Dim::ZERO,
            })
            .collect();
        // the innermost stride must be 0 or 1
        let innermost = aligned.last().cloned().unwrap_or(Dim::ZERO);
        if innermost.is(0) || innermost.is(1) {
            return Ok(by_label(operand, out, &aligned));
        }
        let full = frame.add(Broadcast { shape: shape.clone() }, &[extra])?;
        self.materialise(frame, full, steps)?;
        let (operand, strides, _) = self.strided(frame, full, steps)?;
        Ok(by_label(operand, out, &strides))
    }

    /// The second operand: packed at load when it is known then, before the loop whose steps all read it, else with
    /// strides. With packing, the stride of a batch of packed matrices.
    fn columns(
        &mut self,
        frame: &mut Frame,
        b: &Labelled,
        (source, b_node): (NodeId, NodeId),
        products: Products,
        n: &Axis,
        k: &Axis,
        outer: &[Axis],
        phase: Phase,
        steps: &mut Vec<Step>,
    ) -> (MatrixForm, Arg, Option<Dim>) {
        let plain = (MatrixForm::Strided, b.operand.arg(false), None);
        let known = frame.time(source) < BindingTime::Run && frame.time(b_node) < BindingTime::Run;
        let invariant = frame.invariant.contains(&source);
        if !known && !invariant || phase == Phase::Prepare {
            return plain;
        }
        let batches: SmallVec<[&Axis; 2]> = outer.iter().filter(|axis| !axis.strides[1].is(0)).collect();
        let (count, matrix_stride) = match batches.as_slice() {
            [] => (Dim::ONE, Dim::ZERO),
            [only] => (only.extent.clone(), only.strides[1].clone()),
            _ => return plain,
        };
        let lanes = products.lanes(self.lanes as usize);
        let panel = Dim::from(2 * lanes as i64);
        let depth = match products {
            // rows of words, to the end of a tap
            Products::Words(words) => {
                let taps = k.extent.ceil_div(&Dim::from(words.depth() as i64));
                taps * Dim::from(16) + Dim::from(words.lead() as i64)
            }
            Products::F32 | Products::Shorts | Products::F64 => k.extent.clone(),
        };
        let packed_matrix = depth * n.extent.ceil_div(&panel) * panel;
        if count.as_const().is_none() || packed_matrix.as_const().is_none() {
            return plain;
        }
        let problem = PackProblem {
            lanes,
            form: PackForm::Columns {
                products,
                count: count.clone(),
                matrix_stride,
                k: k.extent.clone(),
                n: n.extent.clone(),
                row: k.strides[1].clone(),
                col: n.strides[1].clone(),
            },
        };
        let elements = count * packed_matrix.clone();
        let mut before = std::mem::take(&mut frame.before);
        let once = if known { steps } else { &mut before };
        let buffer = self.packed(frame, b_node, &b.operand, problem, elements, known, once);
        frame.before = before;
        (MatrixForm::Packed, Arg::read(buffer), Some(packed_matrix))
    }

    /// Packs an operand, at load when it is known then; each operand and form once.
    pub(super) fn packed(
        &mut self,
        frame: &Frame,
        id: NodeId,
        operand: &Operand,
        problem: PackProblem<Dim>,
        elements: Dim,
        at_load: bool,
        steps: &mut Vec<Step>,
    ) -> BufferId {
        // a number that a run writes to memory first is known at load, and not there
        let place = &self.program.buffer(operand.buffer).place;
        let at_load = at_load && matches!(place, Place::Param(_) | Place::Constant(_) | Place::Prepared);
        let key = format!("{:?} {} {problem}", operand.buffer, operand.offset);
        if at_load && let Some(buffer) = self.packs.get(&key) {
            return *buffer;
        }
        let element = problem.element_bytes();
        let bytes = elements * Dim::from(element as i64);
        let logical = frame.graph.tensor_type(id).bytes();
        let place = if at_load { Place::Prepared } else { Place::Arena };
        let dtype = if element == 8 { DType::F64 } else { DType::F32 };
        let buffer = self.buffer(place, dtype, bytes, logical);
        let args = vec![operand.arg(false), Arg::write(buffer)];
        let driver = Driver::Pack(problem);
        let launch = DriverLaunch { driver, hook: None, finisher: None, args, clear: Vec::new(), family: "pack" };
        if at_load {
            let mut prepare = std::mem::take(&mut self.program.prepare);
            self.drive(frame, id, launch, &mut prepare);
            self.program.prepare = prepare;
            self.packs.insert(key, buffer);
        } else {
            self.drive(frame, id, launch, steps);
        }
        buffer
    }

    /// Puts a fused program into a product whose sums are of type `acc`: in registers, as a hook, or as a finisher of rows.
    fn product_epilogue(
        &self,
        fused: &Fused,
        acc: DType,
        addressing: &[Addressing<Dim>],
        types: &[DType],
        problem: &mut GemmProblem<Dim>,
    ) -> Result<MadeEpilogue, Diagnostic> {
        let is_vector = |arg: usize| addressing[arg - 1] == Addressing::PerColumn && types[arg - 1] == acc;
        let is_full = |arg: usize| {
            matches!(&addressing[arg - 1], Addressing::Strided { col, .. } if col.is(1)) && types[arg - 1] == acc
        };
        // in registers there is one result: what is tapped must be what a finisher begins with
        let one = fused.taps.iter().all(|tap| fused.rows.is_some() && *tap == fused.epilogue);
        let direct = (acc.is_float() && fused.dtype == acc && one)
            .then(|| epilogue::direct(&fused.epilogue, &is_vector, &is_full))
            .flatten();
        let mut made = MadeEpilogue::default();
        if let Some(direct) = &direct {
            problem.epilogue = Epilogue::Direct {
                bias: direct.bias.map(|_| Bias::PerColumn),
                residual: direct.residual.map(|arg| addressing[arg - 1].clone()),
                activation: direct.activation,
            };
            made.epilogue_args = direct.bias.into_iter().chain(direct.residual).map(|arg| arg - 1).collect();
        }
        let fail = |findings: Vec<crate::kernel::Finding>| {
            let error = Diagnostic::new("E0461", "no hook can be made for an epilogue");
            findings.into_iter().fold(error, |error, finding| error.note(finding.to_string()))
        };
        let outs = vec![Addressing::Full { halo: Vec::new(), batch_stride: Dim::ZERO }; 1 + fused.taps.len()];
        let out_bytes = vec![fused.dtype.size() as u8; outs.len()];
        if let Some((row_op, finish)) = &fused.rows {
            let first = if direct.is_some() { ScalarExpr::arg(0) } else { fused.epilogue.clone() };
            let taps = fused.taps.iter().map(|tap| if direct.is_some() { first.clone() } else { tap.clone() });
            let taps: Vec<ScalarExpr> = taps.collect();
            let (used, programs) = compact(&[&first, finish].into_iter().chain(&taps).collect::<Vec<_>>());
            let hook_extras = hook_extras(&used, addressing, types);
            let (first, finish, taps) = (&programs[0], &programs[1], &programs[2..]);
            made.finisher =
                Some(epilogue::finisher(first, row_op, finish, taps, &hook_extras, self.exact).map_err(fail)?);
            problem.finisher = Some(Finisher {
                extras: used.iter().map(|i| addressing[*i].clone()).collect(),
                outs,
                element_bytes: used.iter().map(|i| types[*i].size() as u8).chain(out_bytes).collect(),
            });
            made.finisher_args = used;
        } else if direct.is_none() {
            let (used, programs) = compact(&std::iter::once(&fused.epilogue).chain(&fused.taps).collect::<Vec<_>>());
            let hook_extras = hook_extras(&used, addressing, types);
            let (program, taps) = (&programs[0], &programs[1..]);
            made.hook =
                Some(epilogue::hook(program, taps, &hook_extras, (acc, fused.dtype), self.exact).map_err(fail)?);
            problem.epilogue = Epilogue::Hook {
                extras: used.iter().map(|i| addressing[*i].clone()).collect(),
                outs,
                element_bytes: used.iter().map(|i| types[*i].size() as u8).chain(out_bytes).collect(),
            };
            made.epilogue_args = used;
        }
        Ok(made)
    }
}

/// Hooks of a fused program, and which extras they read in order.
#[derive(Default)]
struct MadeEpilogue {
    epilogue_args: Vec<usize>,
    hook: Option<crate::kernel::Kernel>,
    finisher_args: Vec<usize>,
    finisher: Option<crate::kernel::Kernel>,
}

/// Extras that programs read, by number, and the programs over those alone.
pub(super) fn compact(programs: &[&ScalarExpr]) -> (Vec<usize>, Vec<ScalarExpr>) {
    let mut used: Vec<usize> = Vec::new();
    for arg in programs.iter().flat_map(|p| p.args()).filter(|arg| *arg > 0) {
        if !used.contains(&(arg - 1)) {
            used.push(arg - 1);
        }
    }
    let place = |arg: usize| used.iter().position(|u| u + 1 == arg).map_or(0, |p| p + 1);
    let renamed = programs.iter().map(|p| p.substitute(&mut |arg| ScalarExpr::arg(place(arg)))).collect();
    (used, renamed)
}

fn hook_extras(used: &[usize], addressing: &[Addressing<Dim>], types: &[DType]) -> Vec<Extra> {
    used.iter()
        .map(|i| {
            let by_column = match &addressing[*i] {
                Addressing::Scalar | Addressing::PerRow => false,
                Addressing::PerColumn | Addressing::Full { .. } => true,
                Addressing::Strided { col, .. } => !col.is(0),
            };
            Extra { dtype: types[*i], by_column }
        })
        .collect()
}
