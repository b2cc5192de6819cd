//! How results of one problem under two schedules agree: from the interpreter's error bounds.
//!
//! [`inputs`](super::inputs) are such that sums of products are exact whatever their order. What is left is what becomes of
//! the sums: bounded by the interpreter on a sample of them, and on a GPU alone, because schedules of a CPU keep every bit.

use egret_ir::bound::interpret_bounded;
use egret_ir::ops::{DotGeneral, Fused, Reshape};
use egret_ir::random::Random;
use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId, Op, Shape, Tensor, TensorType, Tensors, trace};
use egret_program::DeviceDescription;

use super::inputs::drawn;
use crate::cost::{self, SYMBOL_HINT};
use crate::schedule::attention::Roles;
use crate::schedule::row::anchor;

/// How results under two schedules agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agreement {
    /// In every bit.
    Bits,
    /// To within so much.
    Within(f64),
}

impl Agreement {
    /// The greatest difference of results that do not agree; infinite where no number tells it, 0 where only bits differ that
    /// have to be equal.
    pub fn difference(self, want: &[Tensor], have: &[Tensor]) -> Option<f64> {
        let alike = |(a, b): (&Tensor, &Tensor)| (a.dtype(), a.shape()) == (b.dtype(), b.shape());
        if want.len() != have.len() || !want.iter().zip(have).all(alike) {
            return Some(f64::INFINITY);
        }
        let within = match self {
            Agreement::Bits => 0.0,
            Agreement::Within(bound) => bound,
        };
        let mut worst: Option<f64> = None;
        for (want, have) in want.iter().zip(have).filter(|(want, have)| want.bytes() != have.bytes()) {
            let pairs = want.values().zip(have.values()).map(|(a, b)| (a.as_f64(), b.as_f64()));
            let off = pairs.map(|(a, b)| match (a - b).abs() {
                _ if a == b || a.is_nan() && b.is_nan() => 0.0,
                off if off.is_nan() => f64::INFINITY,
                off => off,
            });
            let off = off.fold(0.0, f64::max);
            if off > within || self == Agreement::Bits {
                worst = Some(worst.unwrap_or(0.0).max(off));
            }
        }
        worst
    }
}

/// Shares of a bound that an implementation may use, and that two of them may lie apart: four times the bound each, as in
/// the tests of random graphs.
const SIDES: f64 = 2.0 * 4.0;
/// Rows of a sample.
const ROWS: usize = 8;
/// Columns of a sample, where rows are not whole.
const COLUMNS: i64 = 64;
/// Terms up to which sums of products of two quarters are exact: sixteenths, of at most one each, in 24 bits.
const EXACT_TERMS: f64 = (1 << 20) as f64;
/// Terms of a sampled sum, and keys of a sampled attention.
const MOST_TERMS: i64 = 1 << 14;

/// How the results of a node agree under two schedules on a device.
pub fn agreement(graph: &Graph, id: NodeId, device: &DeviceDescription) -> Agreement {
    let floats = graph.ty(id).parts().iter().any(|part| part.dtype.is_float());
    if device.is_cpu() || !floats {
        return Agreement::Bits;
    }
    let sampled = match &graph.node(id).op {
        Op::Attention(_) | Op::AttentionGrad(_) => attention(graph, id),
        op if matches!(anchor(op), Op::Softmax(_) | Op::Norm(_)) => rows(graph, id),
        op => product(graph, id, op),
    };
    match sampled {
        Ok(Some(bound)) if bound.is_finite() => Agreement::Within(SIDES * bound),
        // nothing is known: only what is the same will do
        _ => Agreement::Bits,
    }
}

/// The greatest bound on the first result of a graph on these inputs.
fn greatest(graph: &Graph, given: &Tensors) -> Option<f64> {
    let results = interpret_bounded(graph, given).ok()?;
    results.iter().flat_map(|(_, result)| &result.error).copied().reduce(f64::max)
}

/// Draws inputs of a graph: of the sums themselves as far as sums of so many terms go.
fn draw(graph: &Graph, sums: Option<(NodeId, f64)>) -> Tensors {
    let mut random = Random::new(0);
    let leaf = |id: &NodeId| match &graph.node(*id).op {
        Op::Input(input) => Some((*id, input.clone())),
        _ => None,
    };
    let mut given = Tensors::new();
    for (id, input) in graph.inputs().iter().filter_map(leaf) {
        let shape: Vec<usize> = input.ty.shape.iter().map(|d| d.hint(SYMBOL_HINT).max(0) as usize).collect();
        let mut tensor = Tensor::zeros(input.ty.dtype, &shape);
        for i in 0..tensor.elements() {
            let value = match sums {
                // of so many terms of either sign
                Some((of, terms)) if of == id => {
                    let most = (16.0 * terms.sqrt()).max(16.0) as usize;
                    egret_ir::ScalarValue::Float((random.below(2 * most + 1) as f64 - most as f64) / 16.0)
                }
                _ => drawn(&mut random, input.ty.dtype),
            };
            tensor.set(i, value);
        }
        given.insert(input.name.clone(), tensor);
    }
    given
}

fn input(graph: &mut Graph, name: &str, dtype: DType, shape: Shape) -> Result<NodeId, Diagnostic> {
    let ty = TensorType { dtype, shape };
    graph.add(egret_ir::ops::Input { name: name.into(), ty }, &[])
}

/// The bound of what becomes of a product's sums.
fn product(graph: &Graph, id: NodeId, op: &Op) -> Result<Option<f64>, Diagnostic> {
    let node = graph.node(id);
    let result = graph.ty(id).parts()[0].clone();
    let plain;
    let fused = match op {
        Op::Fused(fused) => &**fused,
        other => {
            let sum = egret_ir::ScalarExpr::arg(0);
            plain = Fused::epilogue(other.clone(), node.operands.len(), sum, result.dtype);
            &plain
        }
    };
    let types: Vec<&egret_ir::Type> = node.operands.iter().map(|o| graph.ty(*o)).collect();
    let (bases, extras, _) = fused.split(&types);
    let sum_dtype = match &*fused.anchor {
        Op::DotGeneral(dot) if dot.wide => DType::I32,
        Op::Conv(conv) if conv.wide => DType::I32,
        _ => bases.first().and_then(|ty| ty.tensor()).map_or(DType::F32, |ty| ty.dtype),
    };
    let sums = TensorType { dtype: sum_dtype, shape: result.shape.clone() };
    let elements: f64 = sums.shape.iter().map(|d| d.hint(SYMBOL_HINT) as f64).product();
    let terms = cost::flops(&fused.anchor, bases, &sums.into()) / 2.0 / elements.max(1.0);
    let exact = fused.prologue.is_none() && terms <= EXACT_TERMS;

    // a few rows, whole where an operator of rows follows
    let rank = result.shape.rank();
    let last = result.shape.last().map_or(1, |d| d.hint(SYMBOL_HINT));
    let columns = if fused.rows.is_some() { last } else { last.min(COLUMNS) };
    let extent = |axis: usize| match rank - axis {
        1 => columns,
        2 => ROWS as i64,
        _ => 1,
    };
    let sample: Shape = (0..rank).map(|axis| Dim::from(extent(axis))).collect();
    let mut small = Graph::new();
    let (anchor, mut operands, of) = if exact || rank != 2 {
        let sums = input(&mut small, "sums", sum_dtype, sample.clone())?;
        (Op::from(Reshape { shape: sample.clone() }), vec![sums], Some((sums, terms)))
    } else {
        let terms = Dim::from((terms as i64).clamp(1, MOST_TERMS));
        let shape = |a: Dim, b: Dim| [a, b].into_iter().collect();
        let left = input(&mut small, "left", sum_dtype, shape(Dim::from(ROWS as i64), terms.clone()))?;
        let right = input(&mut small, "right", sum_dtype, shape(terms, Dim::from(columns)))?;
        let Some(dot) = DotGeneral::parse("ab,bc->ac") else { return Ok(None) };
        (dot.into(), vec![left, right], None)
    };
    let bases = operands.len();
    for (i, extra) in extras.iter().enumerate() {
        let Some(ty) = extra.tensor() else { return Ok(None) };
        let lead = rank - ty.shape.rank().min(rank);
        let axis = |(axis, dim): (usize, &Dim)| if dim.is(1) { Dim::ONE } else { Dim::from(extent(axis + lead)) };
        let shape: Shape = ty.shape.iter().enumerate().map(axis).collect();
        operands.push(input(&mut small, &format!("extra{i}"), ty.dtype, shape)?);
    }
    let mut worst: Option<f64> = Some(0.0);
    // each result by itself
    for program in std::iter::once(None).chain(fused.taps.iter().map(Some)) {
        let mut one = small.clone();
        let alone = Fused {
            anchor: Box::new(anchor.clone()),
            bases,
            prologue: None,
            epilogue: program.unwrap_or(&fused.epilogue).clone(),
            dtype: fused.dtype,
            rows: if program.is_none() { fused.rows.clone() } else { None },
            taps: Vec::new(),
        };
        let value = one.add(alone, &operands)?;
        one.add_output("result", value);
        let bound = greatest(&one, &draw(&one, of));
        worst = worst.zip(bound).map(|(a, b)| a.max(b));
    }
    // of sums that are not exact and no matrices the bound is that of a matrix
    if !exact && rank != 2 {
        let own = sum_bound(sum_dtype, terms)?;
        worst = worst.zip(own).map(|(finish, sums)| finish + sums);
    }
    Ok(worst)
}

/// The bound of sums of so many terms.
fn sum_bound(dtype: DType, terms: f64) -> Result<Option<f64>, Diagnostic> {
    let terms = (terms as i64).clamp(1, MOST_TERMS);
    let of = |a: i64, b: i64| TensorType { dtype, shape: [Dim::from(a), Dim::from(b)].into_iter().collect() };
    let graph = trace(|t| t.input("left", of(ROWS as i64, terms)).matmul(t.input("right", of(terms, COLUMNS))))?;
    Ok(greatest(&graph, &draw(&graph, None)))
}

/// The bound of a softmax or norm of a few whole rows.
fn rows(graph: &Graph, id: NodeId) -> Result<Option<f64>, Diagnostic> {
    let node = graph.node(id);
    let shape = &graph.ty(id).parts()[0].shape;
    let own = match anchor(&node.op) {
        Op::Softmax(softmax) => softmax.axis..softmax.axis + 1,
        Op::Norm(norm) => norm.axis..shape.rank(),
        _ => return Ok(None),
    };
    let extent = |axis: usize| match own.contains(&axis) {
        true => shape[axis].hint(SYMBOL_HINT),
        false if axis + 1 == own.start => ROWS as i64,
        false => 1,
    };
    let mut small = Graph::new();
    let mut operands = Vec::new();
    for (i, operand) in node.operands.iter().enumerate() {
        let Some(ty) = graph.ty(*operand).tensor() else { return Ok(None) };
        let lead = shape.rank().saturating_sub(ty.shape.rank());
        let axis = |(axis, dim): (usize, &Dim)| if dim.is(1) { Dim::ONE } else { Dim::from(extent(axis + lead)) };
        let shape: Shape = ty.shape.iter().enumerate().map(axis).collect();
        operands.push(input(&mut small, &format!("operand{i}"), ty.dtype, shape)?);
    }
    let value = small.add(node.op.clone(), &operands)?;
    small.add_output("result", value);
    Ok(greatest(&small, &draw(&small, None)))
}

/// The bound of a plain attention of as many keys and channels, or of its gradient.
fn attention(graph: &Graph, id: NodeId) -> Result<Option<f64>, Diagnostic> {
    let node = graph.node(id);
    let (of, gradient) = match &node.op {
        Op::Attention(of) => (&**of, false),
        Op::AttentionGrad(grad) => (&grad.of, true),
        _ => return Ok(None),
    };
    let Some(roles) = Roles::new(of) else { return Ok(None) };
    let extent = |operand: usize, label: Option<u8>| -> i64 {
        let labels = [&of.q, &of.k, &of.v][operand];
        let axis = label.and_then(|label| labels.axis(label));
        axis.map_or(1, |axis| graph.tensor_type(node.operands[operand]).shape[axis].hint(SYMBOL_HINT))
    };
    let dtype = graph.tensor_type(node.operands[0]).dtype;
    let all_queries = extent(0, roles.query);
    let (queries, keys) = (all_queries.min(ROWS as i64), extent(1, Some(roles.key)).min(MOST_TERMS));
    let (head, value) = (extent(0, Some(roles.channel)), extent(2, Some(roles.value)));
    let of = |a: i64, b: i64| TensorType { dtype, shape: [Dim::from(a), Dim::from(b)].into_iter().collect() };
    let small = trace(|t| {
        let (q, k, v) = (t.input("q", of(queries, head)), t.input("k", of(keys, head)), t.input("v", of(keys, value)));
        let scale = (head as f64).powf(-0.5);
        let weights = (q.matmul(k.transpose(&[1, 0])) * scale).softmax(-1);
        if !gradient {
            return vec![weights.matmul(v)];
        }
        let d_o = t.input("do", of(queries, value));
        let change = d_o.matmul(v.transpose(&[1, 0]));
        let slope = weights * (change - (weights * change).reduce_sum(&[1], true)) * scale;
        vec![slope.matmul(k), slope.transpose(&[1, 0]).matmul(q), weights.transpose(&[1, 0]).matmul(d_o)]
    })?;
    // gradients of keys and values are sums over all queries
    let share = if gradient { all_queries as f64 / queries.max(1) as f64 } else { 1.0 };
    Ok(greatest(&small, &draw(&small, None)).map(|bound| bound * share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::f32;

    fn of(graph: &Graph, device: &str) -> Agreement {
        let device = DeviceDescription::named(device).unwrap();
        let id = graph.outputs()[0].1;
        let id = match &graph.node(id).op {
            Op::Proj(_) => graph.node(id).operands[0],
            _ => id,
        };
        agreement(graph, id, &device)
    }

    #[test]
    fn results_agree_or_differ_by_so_much() {
        let of = |values: &[f32]| vec![Tensor::new(&[values.len()], values).unwrap()];
        let want = of(&[1.0, f32::NAN, f32::INFINITY, 0.0]);
        let near = of(&[1.25, f32::NAN, f32::INFINITY, 0.0]);
        assert_eq!(Agreement::Bits.difference(&want, &want), None);
        assert_eq!(Agreement::Bits.difference(&want, &near), Some(0.25));
        assert_eq!(Agreement::Within(0.5).difference(&want, &near), None);
        assert_eq!(Agreement::Within(0.125).difference(&want, &near), Some(0.25));
        assert_eq!(Agreement::Bits.difference(&want, &of(&[1.0, f32::NAN, f32::INFINITY, -0.0])), Some(0.0));
        let lost = of(&[1.0, 2.0, f32::INFINITY, 0.0]);
        assert_eq!(Agreement::Within(0.5).difference(&want, &lost), Some(f64::INFINITY));
        assert_eq!(Agreement::Within(0.5).difference(&want, &of(&[1.0])), Some(f64::INFINITY));
    }

    #[test]
    fn sums_are_exact_and_a_cpu_keeps_bits() {
        let graph = trace(|t| t.input("x", f32([64, 512])).matmul(t.input("w", f32([512, 64])))).unwrap();
        assert_eq!(of(&graph, "sm_80"), Agreement::Within(0.0));
        assert_eq!(of(&graph, "x86-64-avx512"), Agreement::Bits);
    }

    #[test]
    fn what_becomes_of_sums_has_a_bound() {
        let graph = trace(|t| {
            let product = t.input("x", f32([64, 512])).matmul(t.input("w", f32([512, 64])));
            (product * 0.01 + t.input("b", f32([64]))).tanh()
        });
        let device = DeviceDescription::named("sm_80").unwrap();
        let made = crate::optimise(&graph.unwrap(), &device, &crate::CompileOptions::default()).unwrap();
        let Agreement::Within(bound) = of(&made.rewritten.graph, "sm_80") else { panic!() };
        assert!(bound > 1e-7 && bound < 1e-4, "{bound}");
    }

    #[test]
    fn attention_has_a_bound() {
        let graph = trace(|t| {
            let [q, k, v] = ["q", "k", "v"].map(|name| t.input(name, f32([2, 4, 256, 64])));
            (q.matmul(k.transpose(&[0, 1, 3, 2])) * 0.125).softmax(-1).matmul(v)
        });
        let device = DeviceDescription::named("sm_80").unwrap();
        let made = crate::optimise(&graph.unwrap(), &device, &crate::CompileOptions::default()).unwrap();
        let Agreement::Within(bound) = of(&made.rewritten.graph, "sm_80") else { panic!() };
        assert!(bound > 1e-7 && bound < 1e-2, "{bound}");
    }
}
