//! Attributes and operand types of operators, drawn for a wanted result.

use egret_ir::ops::{
    Broadcast, Cast, Concat, Conv, ConvForm, Cumulative, CumulativeKind, DotGeneral, Fused, Gather, Labels, Norm,
    NormKind, Pad, Places, Real, Reduce, ReduceKind, ReduceWindow, ReduceWindowGrad, Reshape, Reverse, Slice, Softmax,
    StopGradient, Transpose, Window, WindowKind,
};
use egret_ir::{DType, Dim, Literal, NodeId, Op, ScalarExpr, ScalarFn, Shape, TensorType};
use smallvec::{SmallVec, smallvec};

use super::super::pattern::Pattern;
use super::instance::Sampler;

type Drawn = Option<(Op, SmallVec<[NodeId; 4]>)>;

fn extents(shape: &Shape) -> Option<Vec<i64>> {
    shape.constant()
}

fn shape_of(extents: &[i64]) -> Shape {
    extents.iter().map(|n| Dim::from(*n)).collect()
}

impl Sampler<'_> {
    /// An operator of that name with operands that the patterns match, for a result of the wanted type; `None` when the
    /// draw does not fit.
    pub(super) fn operator(
        &mut self,
        name: &'static str,
        patterns: &[Pattern],
        rest: bool,
        want: &TensorType,
    ) -> Drawn {
        let one = patterns.first()?;
        let like = |shape: Shape| TensorType { dtype: want.dtype, shape };
        match name {
            "cast" => {
                let dtype = self.dtype();
                let x = self.pattern(one, &TensorType { dtype, shape: want.shape.clone() })?;
                Some((Cast { dtype: want.dtype }.into(), smallvec![x]))
            }
            "stop_gradient" => {
                let x = self.pattern(one, want)?;
                Some((StopGradient.into(), smallvec![x]))
            }
            "reshape" => {
                let inner = self.refactored(&want.shape)?;
                let x = self.pattern(one, &like(inner))?;
                let same = self.ty(x).shape.elements() == want.shape.elements();
                let shape = if same { want.shape.clone() } else { self.refactored(&self.ty(x).shape)? };
                Some((Reshape { shape }.into(), smallvec![x]))
            }
            "broadcast" => {
                let inner = if self.chance(20) { want.shape.clone() } else { self.narrower(&want.shape) };
                let x = self.pattern(one, &like(inner))?;
                Some((Broadcast { shape: want.shape.clone() }.into(), smallvec![x]))
            }
            "transpose" => {
                let permutation = self.permutation(want.shape.rank());
                let mut inner = extents(&want.shape)?;
                permutation.iter().enumerate().for_each(|(i, axis)| {
                    inner[*axis] = extents(&want.shape).map_or(1, |e| e[i]);
                });
                let x = self.pattern(one, &like(shape_of(&inner)))?;
                let rank = self.ty(x).shape.rank();
                let permutation = if rank == permutation.len() { permutation } else { self.permutation(rank) };
                Some((Transpose { permutation }.into(), smallvec![x]))
            }
            "reverse" => {
                let x = self.pattern(one, want)?;
                let axes: SmallVec<[usize; 4]> = (0..self.ty(x).shape.rank()).filter(|_| self.chance(50)).collect();
                Some((Reverse { axes: axes.into_iter().collect() }.into(), smallvec![x]))
            }
            "slice" => self.slice(one, want),
            "pad" => self.pad(one, want),
            "concat" => self.concat(patterns, rest, want),
            "softmax" | "log_softmax" => {
                let x = self.pattern(one, want)?;
                let axis = self.axis(x)?;
                Some((Softmax { axis, log: name == "log_softmax" }.into(), smallvec![x]))
            }
            "layer_norm" | "rms_norm" => {
                let x = self.pattern(one, want)?;
                let axis = self.axis(x)?;
                let kind = if name == "layer_norm" { NormKind::Layer } else { NormKind::Rms };
                let eps = Real::new([1e-5, 1e-3, 0.1][self.random.below(3)]);
                Some((Norm { kind, axis, eps }.into(), smallvec![x]))
            }
            "cumulative_sum" | "cumulative_prod" => {
                let x = self.pattern(one, want)?;
                let axis = self.axis(x)?;
                let kind = if name == "cumulative_prod" { CumulativeKind::Prod } else { CumulativeKind::Sum };
                let (reverse, exclusive) = (self.chance(30), self.chance(30));
                Some((Cumulative { kind, axis, reverse, exclusive }.into(), smallvec![x]))
            }
            "reduce_sum" => self.reduce(ReduceKind::Sum, one, want),
            "reduce_mean" => self.reduce(ReduceKind::Mean, one, want),
            "reduce_max" => self.reduce(ReduceKind::Max, one, want),
            "reduce_min" => self.reduce(ReduceKind::Min, one, want),
            "reduce_prod" => self.reduce(ReduceKind::Prod, one, want),
            "window_max" => self.window(WindowKind::Max, one, want),
            "window_sum" => self.window(WindowKind::Sum, one, want),
            "window_mean_valid" => self.window(WindowKind::MeanValid, one, want),
            "window_mean_all" => self.window(WindowKind::MeanAll, one, want),
            "window_max_grad" => self.window_gradient(WindowKind::Max, patterns, want),
            "gather" => self.gather(patterns, want),
            "gather_elements" => self.gather_elements(patterns, want),
            "dot_general" => self.dot(patterns, rest, want),
            "conv" | "conv_input_grad" | "conv_weight_grad" => self.conv(name, patterns, rest, want),
            other => {
                self.unknown = Some(other);
                None
            }
        }
    }

    /// An axis of a value, most often the last.
    fn axis(&mut self, x: NodeId) -> Option<usize> {
        let rank = self.ty(x).shape.rank();
        let last = rank.checked_sub(1)?;
        Some(if self.chance(60) { last } else { self.random.below(rank) })
    }

    fn permutation(&mut self, rank: usize) -> SmallVec<[usize; 6]> {
        let mut axes: SmallVec<[usize; 6]> = (0..rank).collect();
        if self.chance(85) {
            for i in (1..rank).rev() {
                axes.swap(i, self.random.below(i + 1));
            }
        }
        axes
    }

    /// Another shape of as many elements: extents joined, split, or ones put in.
    fn refactored(&mut self, shape: &Shape) -> Option<Shape> {
        let mut extents = extents(shape)?;
        for _ in 0..self.random.below(4) {
            match self.random.below(3) {
                0 if extents.len() > 1 => {
                    let at = self.random.below(extents.len() - 1);
                    let second = extents.remove(at + 1);
                    extents[at] *= second;
                }
                1 if !extents.is_empty() => {
                    let at = self.random.below(extents.len());
                    if let Some(factor) = (2..extents[at]).find(|f| extents[at] % f == 0) {
                        extents[at] /= factor;
                        extents.insert(at, factor);
                    }
                }
                _ => extents.insert(self.random.below(extents.len() + 1), 1),
            }
        }
        Some(shape_of(&extents))
    }

    fn reduce(&mut self, kind: ReduceKind, pattern: &Pattern, want: &TensorType) -> Drawn {
        let keep = self.chance(80);
        let mut inner = extents(&want.shape)?;
        let mut axes: SmallVec<[usize; 4]> = SmallVec::new();
        if keep {
            for (axis, extent) in inner.iter_mut().enumerate().filter(|(_, extent)| **extent == 1) {
                *extent = self.extent();
                axes.push(axis);
            }
        } else {
            let at = self.random.below(inner.len() + 1);
            inner.insert(at, self.extent());
            axes.push(at);
        }
        let planned = shape_of(&inner);
        let x = self.pattern(pattern, &TensorType { dtype: want.dtype, shape: planned.clone() })?;
        let shape = self.ty(x).shape;
        let rank = shape.rank();
        if shape != planned && rank == want.shape.rank() {
            // of a value that was there before, the axes that are gone in what is wanted
            axes = (0..rank).filter(|axis| want.shape[*axis].is(1) && !shape[*axis].is(1)).collect();
        }
        if axes.is_empty() || axes.iter().any(|axis| *axis >= rank) {
            axes = match self.random.below(5) {
                0 => (0..rank).filter(|_| self.chance(50)).collect(),
                1 => (self.random.below(rank.max(1))..rank).collect(),
                2 => (0..rank).skip(self.random.below(rank.max(1))).take(1).collect(),
                _ => (rank.saturating_sub(1)..rank).collect(),
            };
        }
        Some((Reduce { kind, axes, keep }.into(), smallvec![x]))
    }

    fn slice(&mut self, pattern: &Pattern, want: &TensorType) -> Drawn {
        let outer = extents(&want.shape)?;
        let (mut inner, mut slice) = (Vec::new(), Slice { start: smallvec![], limit: smallvec![], step: smallvec![] });
        for extent in outer {
            let whole = self.chance(50);
            let (start, step) =
                if whole { (0, 1) } else { (self.random.below(3) as i64, 1 + self.random.below(2) as i64) };
            let limit = start + (extent - 1) * step + 1;
            inner.push(limit + if whole { 0 } else { self.random.below(3) as i64 });
            slice.start.push(start.into());
            slice.limit.push(limit.into());
            slice.step.push(step);
        }
        let x = self.pattern(pattern, &TensorType { dtype: want.dtype, shape: shape_of(&inner) })?;
        Some((slice.into(), smallvec![x]))
    }

    fn pad(&mut self, pattern: &Pattern, want: &TensorType) -> Drawn {
        let value = Literal::new(egret_ir::ScalarValue::Float([0.0, 1.0, -2.0][self.random.below(3)]), want.dtype);
        let mut pad = Pad { low: smallvec![], high: smallvec![], interior: smallvec![], value };
        let mut inner = Vec::new();
        for extent in extents(&want.shape)? {
            let (low, high) =
                if self.chance(50) { (0, 0) } else { (self.random.below(3) as i64, self.random.below(3) as i64) };
            inner.push((extent - low - high).max(1));
            pad.low.push(low.into());
            pad.high.push(high.into());
            pad.interior.push(if self.chance(90) { 0 } else { 1 });
        }
        let x = self.pattern(pattern, &TensorType { dtype: want.dtype, shape: shape_of(&inner) })?;
        Some((pad.into(), smallvec![x]))
    }

    fn concat(&mut self, patterns: &[Pattern], rest: bool, want: &TensorType) -> Drawn {
        let rank = want.shape.rank();
        let axis = self.random.below(rank);
        let inner = extents(&want.shape).filter(|e| !e.is_empty())?;
        let part = |extent: i64| {
            let mut inner = inner.clone();
            inner[axis] = extent;
            TensorType { dtype: want.dtype, shape: shape_of(&inner) }
        };
        let mut ids = SmallVec::new();
        for pattern in patterns {
            let ty = part(self.extent());
            ids.push(self.pattern(pattern, &ty)?);
        }
        for _ in 0..if rest { self.random.below(3) } else { 0 } {
            let ty = part(self.extent());
            ids.push(self.leaf(&ty)?);
        }
        Some((Concat { axis }.into(), ids))
    }

    fn window(&mut self, kind: WindowKind, pattern: &Pattern, want: &TensorType) -> Drawn {
        let outer = extents(&want.shape)?;
        let spatial = outer.len().checked_sub(2).filter(|n| *n > 0)?;
        let (inner, window) = self.windows(&outer[2..]);
        let shape: Vec<i64> = outer[..2].iter().copied().chain(inner).collect();
        debug_assert_eq!(window.size.len(), spatial);
        let x = self.pattern(pattern, &TensorType { dtype: want.dtype, shape: shape_of(&shape) })?;
        Some((ReduceWindow { kind, window }.into(), smallvec![x]))
    }

    fn window_gradient(&mut self, kind: WindowKind, patterns: &[Pattern], want: &TensorType) -> Drawn {
        let [x, dy] = patterns else { return None };
        let x = self.pattern(x, want)?;
        let ty = self.ty(x);
        let spatial = ty.shape.rank().checked_sub(2).filter(|n| *n > 0)?;
        let (_, window) = self.windows(&vec![1; spatial]);
        let windows = TensorType { dtype: ty.dtype, shape: window.output(&ty.shape).ok()? };
        let dy = self.pattern(dy, &windows)?;
        Some((ReduceWindowGrad { kind, window }.into(), smallvec![x, dy]))
    }

    /// Windows over as many axes, and the extents before them.
    fn windows(&mut self, outer: &[i64]) -> (Vec<i64>, Window) {
        let n = outer.len();
        let mut list = |least: i64, count: usize| -> SmallVec<[i64; 3]> {
            (0..n).map(|_| least + self.random.below(count) as i64).collect()
        };
        let (size, stride, dilation) = (list(1, 3), list(1, 2), list(1, 2));
        let (pad_low, pad_high) = (list(0, 2), list(0, 2));
        let inner = (0..n).map(|i| {
            let reach = (size[i] - 1) * dilation[i] + 1;
            ((outer[i] - 1) * stride[i] + reach - pad_low[i] - pad_high[i]).max(1)
        });
        (inner.collect(), Window { size, stride, pad_low, pad_high, dilation })
    }

    fn gather(&mut self, patterns: &[Pattern], want: &TensorType) -> Drawn {
        let [table, places] = patterns else { return None };
        let outer = extents(&want.shape).filter(|e| !e.is_empty())?;
        let axis = self.random.below(outer.len());
        let mut inner = outer.clone();
        // indices are 1 to 9
        inner[axis] = 10;
        let table = self.pattern(table, &TensorType { dtype: want.dtype, shape: shape_of(&inner) })?;
        let at = TensorType { dtype: DType::U8, shape: shape_of(&[outer[axis]]) };
        let places = self.pattern(places, &at)?;
        Some((Gather { places: Places::Rows { axis } }.into(), smallvec![table, places]))
    }

    fn gather_elements(&mut self, patterns: &[Pattern], want: &TensorType) -> Drawn {
        let [table, places] = patterns else { return None };
        let outer = extents(&want.shape).filter(|e| !e.is_empty())?;
        let axis = if self.chance(70) { outer.len() - 1 } else { self.random.below(outer.len()) };
        let mut inner = outer.clone();
        // indices are 1 to 9
        inner[axis] = 10;
        let table = self.pattern(table, &TensorType { dtype: want.dtype, shape: shape_of(&inner) })?;
        let places = self.pattern(places, &TensorType { dtype: DType::U8, shape: want.shape.clone() })?;
        Some((Gather { places: Places::Elements { axis } }.into(), smallvec![table, places]))
    }

    fn dot(&mut self, patterns: &[Pattern], rest: bool, want: &TensorType) -> Drawn {
        let [a, b] = patterns else { return None };
        let outer = extents(&want.shape)?;
        let mut lhs: SmallVec<[(u8, i64); 8]> = SmallVec::new();
        let mut rhs = lhs.clone();
        let mut label = b'a';
        for (i, extent) in outer.iter().enumerate() {
            let last = i + 1 == outer.len();
            match (self.random.below(10), last) {
                (0..8, true) | (0..2, false) => rhs.push((label, *extent)),
                (2..6, false) | (8, true) => lhs.push((label, *extent)),
                _ => {
                    lhs.push((label, *extent));
                    rhs.push((label, *extent));
                }
            }
            label += 1;
        }
        for _ in 0..1 + usize::from(self.chance(15)) {
            let extent = self.extent();
            lhs.push((label, extent));
            let at = if self.chance(60) { rhs.len().saturating_sub(1) } else { rhs.len() };
            rhs.insert(at, (label, extent));
            label += 1;
        }
        for side in [&mut lhs, &mut rhs] {
            if self.chance(30) {
                let i = self.random.below(side.len());
                side.swap(0, i);
            }
        }
        let labels = |side: &[(u8, i64)]| Labels(side.iter().map(|(label, _)| *label).collect());
        let ty = |side: &[(u8, i64)]| TensorType {
            dtype: want.dtype,
            shape: shape_of(&side.iter().map(|(_, extent)| *extent).collect::<Vec<_>>()),
        };
        let out = Labels((0..outer.len()).map(|i| b'a' + i as u8).collect());
        let dot = DotGeneral::new(labels(&lhs), labels(&rhs), out);
        let a = self.pattern(a, &ty(&lhs))?;
        let b = self.pattern(b, &ty(&rhs))?;
        self.absorbing(dot.into(), smallvec![a, b], rest)
    }

    fn conv(&mut self, name: &str, patterns: &[Pattern], rest: bool, want: &TensorType) -> Drawn {
        let [a, b] = patterns else { return None };
        let outer = extents(&want.shape).filter(|e| (3..=5).contains(&e.len()))?;
        let (n, o) = (outer[0], outer[1]);
        let (inner, window) = self.windows(&outer[2..]);
        let groups = if self.chance(70) { 1 } else { (2..=o).find(|g| o % g == 0).unwrap_or(1) };
        let each = 1 + self.random.below(3) as i64;
        let x: Vec<i64> = [n, each * groups].into_iter().chain(inner.iter().copied()).collect();
        let w: Vec<i64> = [o, each].into_iter().chain(window.size.iter().copied()).collect();
        let y = outer.clone();
        let mut conv = Conv::forward(&window.stride, &window.pad_low, &window.pad_high, &window.dilation, groups);
        let (first, second) = match name {
            "conv" => (x, w),
            "conv_input_grad" => {
                conv.form = ConvForm::InputGrad;
                conv.extent = shape_of(&inner);
                (y, w)
            }
            _ => {
                conv.form = ConvForm::WeightGrad;
                conv.extent = shape_of(&window.size);
                (x, y)
            }
        };
        let ty = |extents: &[i64]| TensorType { dtype: want.dtype, shape: shape_of(extents) };
        let a = self.pattern(a, &ty(&first))?;
        let b = self.pattern(b, &ty(&second))?;
        self.absorbing(conv.into(), smallvec![a, b], rest)
    }

    /// An anchor as it is, or with a program over extra operands where a pattern has room for them.
    pub(super) fn absorbing(&mut self, anchor: Op, mut operands: SmallVec<[NodeId; 4]>, rest: bool) -> Drawn {
        if self.chance(if rest { 50 } else { 85 }) {
            return Some((anchor, operands));
        }
        let bases = operands.len();
        let result = self.add(anchor.clone(), &operands)?;
        let ty = self.ty(result);
        let apply = |f, args: &[ScalarExpr]| ScalarExpr::apply(f, args.iter().cloned(), ty.dtype);
        let mut program = ScalarExpr::arg(0);
        for i in 0..if rest { self.random.below(3) } else { 0 } {
            let f = [ScalarFn::Add, ScalarFn::Mul, ScalarFn::Sub][self.random.below(3)];
            let shape = self.narrower(&ty.shape);
            operands.push(self.leaf(&TensorType { dtype: ty.dtype, shape })?);
            program = apply(f, &[program, ScalarExpr::arg(i + 1)]);
        }
        if program.is_arg(0) || self.chance(40) {
            program = apply(ScalarFn::Relu, &[program]);
        }
        let mut fused = Fused::epilogue(anchor, bases, program, ty.dtype);
        if ty.dtype.is_float() && ty.shape.rank() > 0 && self.chance(15) {
            let softmax = Softmax { axis: ty.shape.rank() - 1, log: false };
            fused.rows = Some((Box::new(softmax.into()), ScalarExpr::arg(0)));
        }
        Some((fused.into(), operands))
    }
}
