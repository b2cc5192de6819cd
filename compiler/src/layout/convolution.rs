//! What a convolution of a GPU takes, by how its operands and its result lie.

use egret_ir::ops::{Conv, ConvForm};
use egret_ir::{DType, Dim, Graph, NodeId, Shape};
use egret_program::DeviceDescription;

use super::{anchor, conv_of, has_prologue};
use crate::cost;
use crate::kernel::MatrixKind;
use crate::schedule::cuda::contract::few_channels;
use crate::schedule::cuda::tiles::{self, Extents, Sides};
use crate::schedule::cuda::{F32Products, expected};

/// What an engine of multiply-adds gains where it reads neighbours: a share of its time.
const COALESCED: f64 = 0.1;

/// A convolution as a price list of layouts.
pub struct Convolution<'g> {
    conv: &'g Conv,
    /// Shapes of the image, the weights, and the result, whichever of them the form computes.
    x: &'g Shape,
    w: &'g Shape,
    y: &'g Shape,
    size: usize,
    /// What tensor cores do; `None`: multiply-adds.
    kind: Option<MatrixKind>,
    /// Whether a prologue maps the first operand.
    maps: bool,
    flops: f64,
    device: &'g DeviceDescription,
}

impl<'g> Convolution<'g> {
    /// The convolution of a node; `None` of other operators.
    pub fn new(
        graph: &'g Graph,
        id: NodeId,
        device: &'g DeviceDescription,
        products: F32Products,
    ) -> Option<Convolution<'g>> {
        let node = graph.node(id);
        let conv = conv_of(&node.op)?;
        let ty = |id: NodeId| graph.tensor_type(id);
        let [a, b] = [node.operands[0], node.operands[1]];
        let (x, w, y) = match conv.form {
            ConvForm::Forward => (a, b, id),
            ConvForm::InputGrad => (id, b, a),
            ConvForm::WeightGrad => (a, id, b),
        };
        let dtype = ty(a).dtype;
        let kind = match dtype {
            DType::I8 | DType::U8 if conv.wide => Some(MatrixKind::Int8 { signed: [true; 2] }),
            _ if ty(b).dtype != dtype => None,
            _ => tiles::matrix_kind(dtype, products),
        };
        let types = [graph.ty(a), graph.ty(b)];
        let mut convolution = Convolution {
            conv,
            x: &ty(x).shape,
            w: &ty(w).shape,
            y: &ty(y).shape,
            size: dtype.size(),
            kind,
            maps: has_prologue(&node.op),
            flops: cost::flops(anchor(&node.op), &types, &node.ty),
            device,
        };
        if few_channels(graph, id) || convolution.extents(false).is_thin() {
            convolution.kind = None;
        }
        Some(convolution)
    }

    /// Whether tensor cores compute it.
    pub fn is_matrix(&self) -> bool {
        self.kind.is_some()
    }

    /// Whether an operand is brought by more elements at once because it lies with channels last, or, because the weights do,
    /// the image in fewer operations.
    pub fn gains(&self, operand: usize, last: [bool; 2]) -> bool {
        let mut without = last;
        without[operand] = false;
        let wider = self.width(operand, last) > self.width(operand, without);
        wider || operand == 1 && self.is_divided(without) && !self.is_divided(last)
    }

    /// Whether the first operand is read through taps that each element's place is divided for.
    fn is_divided(&self, last: [bool; 2]) -> bool {
        let form = self.conv.form;
        let channels = if form == ConvForm::InputGrad { &self.w[0] } else { &self.w[1] };
        let groups = if form == ConvForm::InputGrad { self.conv.groups } else { 1 };
        let whole = channels.floor_div(&groups.into()).modulo(&tiles::step(self.size).into()).is(0);
        let parted = form == ConvForm::WeightGrad || !last[1] || !whole;
        parted && !last[0] && !self.has_one_tap()
    }

    /// Modelled nanoseconds where the operands marked `last` lie with channels last, and the result, if `result`.
    pub fn time(&self, last: [bool; 2], result: bool) -> f64 {
        let Some(kind) = self.kind else {
            let all = self.flops / (self.device.core_gflops * f64::from(self.device.cores));
            let neighbours = last[0] && (last[1] || self.conv.form == ConvForm::WeightGrad || self.has_one_tap());
            return if neighbours { (1.0 - COALESCED) * all } else { all };
        };
        let widths = [0, 1].map(|operand| self.width(operand, last));
        // the first operand has the rows where pixels are rows
        let first_is_left = result && self.conv.form != ConvForm::WeightGrad;
        let widths = if first_is_left { (widths[0], widths[1]) } else { (widths[1], widths[0]) };
        let is_divided = self.is_divided(last);
        let divided = (first_is_left && is_divided, !first_is_left && is_divided);
        let (extents, sides) = (self.extents(result), Sides { least: (0, 0), widths, divided });
        let tiles = tiles::best(kind, self.size, extents, sides, self.device);
        tiles::time(&tiles, self.size, extents, &sides, self.device)
    }

    fn has_one_tap(&self) -> bool {
        self.w[2..].iter().all(|tap| tap.is(1))
    }

    fn extents(&self, result: bool) -> Extents {
        let product = |dims: &[Dim]| dims.iter().map(expected).product::<i64>().max(1);
        let batch = self.conv.groups;
        let (inner, outer) = (expected(&self.w[1]), expected(&self.w[0]) / batch);
        let taps = product(&self.w[2..]);
        let pixels = |of: &Shape| expected(&of[0]) * product(&of[2..]);
        let (pixels, channels, sums) = match self.conv.form {
            ConvForm::Forward => (pixels(self.y), outer, inner * taps),
            ConvForm::InputGrad => (pixels(self.x), inner, outer * taps),
            ConvForm::WeightGrad => {
                return Extents { batch, rows: outer, columns: inner * taps, sums: pixels(self.y) };
            }
        };
        let (rows, columns) = if result { (pixels, channels) } else { (channels, pixels) };
        Extents { batch, rows, columns, sums }
    }

    /// Elements of an operand that are brought at once.
    fn width(&self, operand: usize, last: [bool; 2]) -> i64 {
        let limit = 16 / self.size as i64;
        let dividing = |dims: &[&Dim]| {
            let mut width = limit;
            while width > 1 && !dims.iter().fold(Dim::ONE, |n, d| n * (*d).clone()).modulo(&width.into()).is(0) {
                width /= 2;
            }
            width
        };
        let conv = self.conv;
        let outer = self.w[0].floor_div(&conv.groups.into());
        let one_tap = self.has_one_tap();
        let unit = |all: &[i64], n: i64| all.iter().all(|at| *at == n);
        let own = one_tap && unit(&conv.stride, 1) && unit(&conv.pad_low, 0) && unit(&conv.pad_high, 0);
        let pixels = |of: &Shape| {
            let all: Vec<&Dim> = of[2..].iter().collect();
            dividing(&all)
        };
        match (conv.form, operand) {
            _ if operand == 0 && self.maps => 1,
            (ConvForm::InputGrad, 0) if last[0] => dividing(&[&outer]),
            (_, 0) if last[0] => dividing(&[&self.w[1]]),
            (ConvForm::InputGrad, 0) if own => pixels(self.y),
            (_, 0) if own => pixels(self.x),
            (_, 0) => 1,
            (ConvForm::WeightGrad, _) if last[1] => dividing(&[&outer]),
            (ConvForm::WeightGrad, _) => pixels(self.y),
            (_, _) if last[1] || one_tap => dividing(&[&self.w[1]]),
            // terms are then channels and taps as they lie
            (ConvForm::Forward, _) if !last[0] => {
                let all: Vec<&Dim> = self.w[1..].iter().collect();
                dividing(&all)
            }
            _ => 1,
        }
    }
}
