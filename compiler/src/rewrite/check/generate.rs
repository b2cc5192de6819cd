//! Graphs on which rules that are code apply: anchors with elementwise nodes behind them, spelled activations, products
//! of one operand.

use egret_ir::ops::{Cast, Concat, Conv, Pointwise};
use egret_ir::random::Random;
use egret_ir::{DType, ExprKind, Literal, NodeId, ScalarExpr, ScalarFn, TensorType};
use smallvec::SmallVec;

use super::super::pattern::Pattern;
use super::Case;
use super::instance::{Sampler, Values};

/// Operators that carry an epilogue.
const ANCHORS: [&str; 12] = [
    "dot_general",
    "conv",
    "conv_input_grad",
    "reduce_sum",
    "reduce_mean",
    "reduce_max",
    "window_max",
    "window_sum",
    "softmax",
    "log_softmax",
    "layer_norm",
    "rms_norm",
];

fn draw(seed: u64, build: impl Fn(&mut Sampler, DType) -> Option<Vec<NodeId>>) -> Case {
    let mut random = Random::new(seed);
    let dtype = [DType::F32, DType::F32, DType::F64, DType::F16][random.below(4)];
    loop {
        let values = if random.below(4) > 0 { Values::Positive } else { Values::Signed };
        let mut sampler = Sampler::new(&mut random, values);
        if let Some(results) = build(&mut sampler, dtype) {
            let outputs: Vec<(String, NodeId)> =
                results.into_iter().enumerate().map(|(i, id)| (format!("y{i}"), id)).collect();
            let (graph, inputs) = sampler.graph(&outputs);
            return Case { graph, inputs };
        }
    }
}

/// An anchor with one to six elementwise nodes behind it: of one operand, with a foreign one, of two that come from the
/// same value, or a cast.
pub fn anchors(seed: u64) -> Case {
    let name = ANCHORS[seed as usize % ANCHORS.len()];
    draw(seed, |sampler, dtype| {
        let rank = 1 + sampler.random.below(4);
        let shape = sampler.shape(rank);
        let x = sampler.anchor(name, &TensorType { dtype, shape })?;
        let mut value = x;
        for _ in 0..1 + sampler.random.below(6) {
            value = sampler.elementwise(value)?;
        }
        Some(vec![value])
    })
}

/// A product with an activation behind it, spelled in primitive functions.
pub fn activations(seed: u64) -> Case {
    draw(seed, |sampler, dtype| {
        let defined: Vec<ScalarFn> = ScalarFn::ALL
            .iter()
            .copied()
            .filter(|f| f.arity() == 1 && !f.is_primitive() && f.result_dtype(&[dtype]).is_ok_and(|d| d == dtype))
            .collect();
        let f = defined[seed as usize % defined.len()];
        let shape = sampler.shape(2);
        let x = sampler.anchor("dot_general", &TensorType { dtype, shape })?;
        let program = ScalarExpr::apply(f, [ScalarExpr::arg(0)], dtype).expand(&[dtype]);
        Some(vec![sampler.program(&program, x)?])
    })
}

/// A convolution of an image that functions of it and of its channels stand before; the image is an input, or a convolution's
/// result that is also needed itself.
pub fn mapped_images(seed: u64) -> Case {
    draw(seed, |sampler, _| {
        let dtype = DType::F32;
        let tensor = |extents: &[i64]| TensorType { dtype, shape: extents.iter().map(|n| (*n).into()).collect() };
        let (n, channels) = (1 + sampler.random.below(2) as i64, 8 + sampler.random.below(4) as i64);
        let (height, width) = (3 + sampler.random.below(4) as i64, 3 + sampler.random.below(3) as i64);
        let mut image = sampler.input(&tensor(&[n, channels, height, width]))?;
        let mut results = Vec::new();
        if sampler.chance(40) {
            let weights = sampler.param(&tensor(&[channels, channels, 1, 1]))?;
            image = sampler.add(Conv::forward(&[1, 1], &[0, 0], &[0, 0], &[1, 1], 1), &[image, weights])?;
            results.push(image);
        }
        for _ in 0..1 + sampler.random.below(4) {
            let f = [ScalarFn::Relu, ScalarFn::Tanh, ScalarFn::Neg][sampler.random.below(3)];
            let binary = [ScalarFn::Add, ScalarFn::Mul, ScalarFn::Sub][sampler.random.below(3)];
            image = match sampler.random.below(4) {
                0 => sampler.add(Pointwise { f }, &[image])?,
                1 => {
                    let number = sampler.number(Literal::float(1.5, dtype))?;
                    sampler.add(Pointwise { f: binary }, &[number, image])?
                }
                _ => {
                    let by_channel = tensor(&[channels, 1, 1]);
                    let other =
                        if sampler.chance(50) { sampler.param(&by_channel) } else { sampler.input(&by_channel) }?;
                    sampler.add(Pointwise { f: binary }, &[image, other])?
                }
            };
            // read twice, once by what follows
            if sampler.chance(15) {
                results.push(image);
            }
        }
        let (outputs, k) = (1 + sampler.random.below(4) as i64, 1 + 2 * sampler.random.below(2) as i64);
        let weights = sampler.param(&tensor(&[outputs, channels, k, k]))?;
        let (stride, pad) = (1 + sampler.random.below(2) as i64, k / 2);
        let conv = Conv::forward(&[stride, stride], &[pad, 0], &[pad, pad], &[1, 1], 1);
        let mut y = sampler.add(conv, &[image, weights])?;
        if sampler.chance(50) {
            y = sampler.add(Pointwise { f: ScalarFn::Relu }, &[y])?;
        }
        results.push(y);
        Some(results)
    })
}

/// A concatenation of anchors and inputs with one to three elementwise nodes behind it: of one operand, with a number, with an
/// operand that all parts read, with one that each part reads a part of, or with a second concatenation.
pub fn concatenations(seed: u64) -> Case {
    draw(seed, |sampler, dtype| {
        let rank = 2 + sampler.random.below(2);
        let (shape, axis) = (sampler.shape(rank), sampler.random.below(rank));
        let of_extent = |extent: i64| {
            let dims = (0..rank).map(|i| if i == axis { extent.into() } else { shape[i].clone() });
            TensorType { dtype, shape: dims.collect() }
        };
        let extents: Vec<i64> = (0..2 + sampler.random.below(2)).map(|_| 1 + sampler.random.below(4) as i64).collect();
        let part = |sampler: &mut Sampler, extent: i64| {
            let name = ANCHORS[sampler.random.below(ANCHORS.len())];
            if sampler.chance(60) {
                sampler.anchor(name, &of_extent(extent))
            } else {
                sampler.input(&of_extent(extent))
            }
        };
        let concat = |sampler: &mut Sampler| {
            let parts: Option<Vec<NodeId>> = extents.iter().map(|extent| part(sampler, *extent)).collect();
            sampler.add(Concat { axis }, &parts?)
        };
        let mut y = concat(sampler)?;
        let mut results = Vec::new();
        for _ in 0..1 + sampler.random.below(3) {
            let f = [ScalarFn::Relu, ScalarFn::Neg, ScalarFn::Tanh][sampler.random.below(3)];
            let binary = [ScalarFn::Add, ScalarFn::Mul, ScalarFn::Sub][sampler.random.below(3)];
            let other = match sampler.random.below(5) {
                0 => Some(sampler.number(Literal::float(1.5, dtype))?),
                1 => Some(sampler.input(&of_extent(1))?),
                2 => Some(sampler.input(&of_extent(extents.iter().sum()))?),
                3 => Some(concat(sampler)?),
                _ => None,
            };
            y = match other {
                Some(other) if sampler.chance(50) => sampler.add(Pointwise { f: binary }, &[other, y])?,
                Some(other) => sampler.add(Pointwise { f: binary }, &[y, other])?,
                None => sampler.add(Pointwise { f }, &[y])?,
            };
            if sampler.chance(15) {
                results.push(y);
            }
        }
        results.push(y);
        Some(results)
    })
}

/// Two to four products of one operand with params, each with a bias and an activation or all without.
pub fn products(seed: u64) -> Case {
    draw(seed, |sampler, dtype| {
        let (rows, inner) = (sampler.extent(), sampler.extent());
        let x = sampler.input(&TensorType { dtype, shape: [rows, inner].into() })?;
        let biased = sampler.chance(60);
        let f = [None, Some(ScalarFn::Relu), Some(ScalarFn::Tanh)][sampler.random.below(3)];
        let mut results = Vec::new();
        for _ in 0..2 + sampler.random.below(3) {
            let columns = sampler.extent();
            let w = sampler.param(&TensorType { dtype, shape: [inner, columns].into() })?;
            let dot = egret_ir::ops::DotGeneral::parse("ab,bc->ac")?;
            let mut y = sampler.add(dot, &[x, w])?;
            if biased {
                let bias = sampler.param(&TensorType { dtype, shape: [columns].into() })?;
                y = sampler.add(Pointwise { f: ScalarFn::Add }, &[y, bias])?;
            }
            if let Some(f) = f {
                y = sampler.add(Pointwise { f }, &[y])?;
            }
            results.push(y);
        }
        Some(results)
    })
}

/// Two to four convolutions of one image with equal windows, of which one may have a number of channels that is no multiple
/// of a vector's, each with a bias and an activation or all without.
pub fn convolutions(seed: u64) -> Case {
    draw(seed, |sampler, dtype| {
        let tensor = |extents: &[i64]| TensorType { dtype, shape: extents.iter().map(|n| (*n).into()).collect() };
        let (n, channels, k) = (
            1 + sampler.random.below(2) as i64,
            1 + sampler.random.below(4) as i64,
            1 + 2 * sampler.random.below(2) as i64,
        );
        let x = sampler.input(&tensor(&[n, channels, 4, 5]))?;
        let conv = Conv::forward(&[1, 2], &[k / 2, 0], &[0, k / 2], &[1, 1], 1);
        let (biased, activated) = (sampler.chance(60), sampler.chance(60));
        let parts = 2 + sampler.random.below(3);
        let ragged = sampler.random.below(parts + 1);
        let mut results = Vec::new();
        for i in 0..parts {
            let outputs = if i == ragged { 5 } else { 16 * (1 + sampler.random.below(2) as i64) };
            let w = sampler.param(&tensor(&[outputs, channels, k, k]))?;
            let mut y = sampler.add(conv.clone(), &[x, w])?;
            if biased {
                let shape: &[i64] = if seed.is_multiple_of(2) { &[1, outputs, 1, 1] } else { &[outputs, 1, 1] };
                let bias = sampler.param(&tensor(shape))?;
                y = sampler.add(Pointwise { f: ScalarFn::Add }, &[y, bias])?;
            }
            if activated {
                y = sampler.add(Pointwise { f: ScalarFn::Relu }, &[y])?;
            }
            results.push(y);
        }
        Some(results)
    })
}

impl Sampler<'_> {
    fn anchor(&mut self, name: &'static str, want: &TensorType) -> Option<NodeId> {
        let operands = if matches!(name, "dot_general" | "conv" | "conv_input_grad") { 2 } else { 1 };
        self.free(operands);
        let patterns: Vec<Pattern> = (0..operands).map(Pattern::Var).collect();
        let (op, ids) = self.operator(name, &patterns, false, want)?;
        self.add(op, &ids)
    }

    /// One more elementwise node behind a value.
    fn elementwise(&mut self, x: NodeId) -> Option<NodeId> {
        const UNARY: [ScalarFn; 6] =
            [ScalarFn::Relu, ScalarFn::Tanh, ScalarFn::Neg, ScalarFn::Abs, ScalarFn::Sigmoid, ScalarFn::Exp];
        const BINARY: [ScalarFn; 5] = [ScalarFn::Add, ScalarFn::Mul, ScalarFn::Sub, ScalarFn::Max, ScalarFn::Div];
        let ty = self.ty(x);
        let unary = UNARY[self.random.below(UNARY.len())];
        let binary = BINARY[self.random.below(BINARY.len())];
        match self.random.below(10) {
            0..3 => self.add(Pointwise { f: unary }, &[x]),
            3..7 => {
                let shape = if self.chance(40) { ty.shape.clone() } else { self.narrower(&ty.shape) };
                let other = self.leaf(&TensorType { dtype: ty.dtype, shape })?;
                let operands = if self.chance(50) { [x, other] } else { [other, x] };
                self.add(Pointwise { f: binary }, &operands)
            }
            7..9 => {
                let side = self.add(Pointwise { f: unary }, &[x])?;
                self.add(Pointwise { f: binary }, &[x, side])
            }
            _ => {
                let dtype = [DType::F32, DType::F16, DType::F64][self.random.below(3)];
                self.add(Cast { dtype }, &[x])
            }
        }
    }

    /// A scalar program of one value as elementwise nodes.
    fn program(&mut self, program: &ScalarExpr, x: NodeId) -> Option<NodeId> {
        match program.kind() {
            ExprKind::Arg(_) => Some(x),
            ExprKind::Const(literal) => self.number(*literal),
            ExprKind::Cast(dtype, inner) => {
                let inner = self.program(inner, x)?;
                self.add(Cast { dtype: *dtype }, &[inner])
            }
            ExprKind::Apply(f, operands) => {
                let ids: Option<SmallVec<[NodeId; 3]>> = operands.iter().map(|o| self.program(o, x)).collect();
                self.add(Pointwise { f: *f }, &ids?)
            }
        }
    }

    fn number(&mut self, literal: Literal) -> Option<NodeId> {
        self.builder.scalar(literal).ok()
    }
}
