//! The cost of a kernel: a roofline in µs. The e-graph and partition ask the same function.

pub mod engine;
mod graph;

use egret_ir::ops::{ConvForm, Fused};
use egret_ir::{DType, ExprKind, Op, TensorType, Type};
use egret_program::DeviceDescription;
use egret_program::driver::ConvProblem;

pub use graph::{Memory, Work, memory, work};

/// The value that symbols take in cost estimates.
pub const SYMBOL_HINT: i64 = 128;

/// What a kernel does, as far as its time depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sketch {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written outside the core.
    pub bytes: f64,
    /// Share of the peak that the family reaches, at most 1.
    pub efficiency: f64,
    /// Kernels launched: 1, or a share where partition will put it into another kernel.
    pub launches: f64,
    /// What a prologue computes.
    pub prologue: Repeated,
    /// Bytes that a GPU copies for what is a view on a CPU: slices of an image's channels, which lie apart in memory whose
    /// channels come last.
    pub copied: f64,
}

/// Operations of a prologue, the repetitions counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Repeated {
    /// On a CPU, where blocks of rows share what lies under the windows of both.
    pub by_blocks: f64,
    /// On a GPU, where each tile of output channels and each tap computes its own.
    pub by_tiles: f64,
}

/// Share of the peak that a prologue reaches: it reads and writes a float for few operations.
const PROLOGUE_EFFICIENCY: f64 = 0.2;
/// Primitive operations in place of which a transcendental function counts.
const TRANSCENDENTAL: f64 = 16.0;
/// Output channels of a tile of a GPU's kernel.
const TILE: f64 = 64.0;

/// Modelled time of one kernel on a device, µs: the longer of arithmetic and traffic, and the launch.
pub fn kernel(sketch: &Sketch, device: &DeviceDescription) -> f64 {
    if sketch.copied > 0.0 && !device.is_cpu() {
        return sketch.copied / device.memory_gbps / 1e3 + device.launch_us;
    }
    let peak = device.core_gflops * f64::from(device.cores) * sketch.efficiency.max(1e-3);
    // what fits into the last-level cache travels at its speed
    let cache = device.l3_bytes.max(device.l2_bytes) as f64;
    let bandwidth = if sketch.bytes < cache / 2.0 { device.cache_gbps } else { device.memory_gbps };
    let repeated = if device.is_cpu() { sketch.prologue.by_blocks } else { sketch.prologue.by_tiles };
    let before = repeated / (device.core_gflops * f64::from(device.cores) * PROLOGUE_EFFICIENCY);
    let time = (sketch.flops / peak + before).max(sketch.bytes / bandwidth) / 1e3;
    time + sketch.launches * device.launch_us
}

fn elements(ty: &TensorType) -> f64 {
    ty.shape.iter().map(|dim| dim.hint(SYMBOL_HINT) as f64).product()
}

fn bytes(ty: &TensorType) -> f64 {
    elements(ty) * ty.dtype.size() as f64
}

/// Floating-point operations of an operator, a multiply-add counted as two.
pub fn flops(op: &Op, operands: &[&Type], result: &Type) -> f64 {
    let tensor = |i: usize| operands.get(i).and_then(|ty| ty.tensor());
    let parts = result.parts();
    // further results of a fused node are steps of its programs
    let counted = if matches!(op, Op::Fused(_)) { &parts[..1.min(parts.len())] } else { parts };
    let out: f64 = counted.iter().map(elements).sum();
    let first = tensor(0).map_or(0.0, elements);
    match op {
        Op::DotGeneral(dot) => {
            let (Some(a), Some(b)) = (tensor(0), tensor(1)) else { return out };
            let contracted: f64 = dot
                .contracted()
                .filter(|l| dot.rhs.has(*l))
                .filter_map(|l| dot.lhs.axis(l))
                .map(|axis| a.shape[axis].hint(SYMBOL_HINT) as f64)
                .product();
            let _ = b;
            2.0 * out * contracted
        }
        Op::Conv(conv) => {
            let (Some(a), Some(b)) = (tensor(0), tensor(1)) else { return out };
            // multiply-adds are the same in the three forms: outputs times the taps of one output
            match conv.form {
                ConvForm::Forward => 2.0 * out * elements(b) / (b.shape[0].hint(SYMBOL_HINT).max(1) as f64),
                ConvForm::InputGrad => 2.0 * elements(a) * elements(b) / (b.shape[0].hint(SYMBOL_HINT).max(1) as f64),
                ConvForm::WeightGrad => 2.0 * elements(b) * out / (b.shape[1].hint(SYMBOL_HINT).max(1) as f64),
            }
        }
        Op::Attention(attention) => {
            let (Some(q), Some(k), Some(v)) = (tensor(0), tensor(1), tensor(2)) else { return out };
            let key = attention.scores.0.last().and_then(|l| attention.k.axis(*l));
            let keys = key.map_or(1.0, |axis| k.shape[axis].hint(SYMBOL_HINT) as f64);
            let _ = v;
            4.0 * elements(q) * keys
        }
        Op::AttentionGrad(grad) => {
            let (Some(q), Some(k)) = (tensor(0), tensor(1)) else { return out };
            let key = grad.of.scores.0.last().and_then(|l| grad.of.k.axis(*l));
            10.0 * elements(q) * key.map_or(1.0, |axis| k.shape[axis].hint(SYMBOL_HINT) as f64)
        }
        Op::ReduceWindow(window) => out * window.window.size.iter().product::<i64>() as f64,
        Op::ReduceWindowGrad(window) => out * window.window.size.iter().product::<i64>() as f64,
        Op::Softmax(_) | Op::SoftmaxGrad(_) | Op::Norm(_) | Op::NormGrad(_) | Op::CrossEntropy(_) => 8.0 * first,
        Op::Reduce(_) => first,
        Op::Fused(fused) => {
            let one = Type::from(parts[0].clone());
            let base = flops(&fused.anchor, &operands[..fused.bases.min(operands.len())], &one);
            let steps: u32 = fused.epilogue.size() + fused.taps.iter().map(|t| t.size()).sum::<u32>();
            let rows = fused.rows.as_ref().map_or(0.0, |(_, finish)| 8.0 + f64::from(finish.size()));
            let before = fused.prologue.as_ref().map_or(0.0, |p| f64::from(p.program.size()));
            base + out * (f64::from(steps) + rows) + before * tensor(0).map_or(0.0, elements)
        }
        Op::Scan(scan) => {
            let steps = scan.length.hint(SYMBOL_HINT) as f64;
            let body: f64 = scan
                .body
                .iter()
                .map(|(_, node)| {
                    let types: Vec<&Type> = node.operands.iter().map(|o| scan.body.ty(*o)).collect();
                    flops(&node.op, &types, &node.ty)
                })
                .sum();
            steps * body
        }
        _ => out,
    }
}

/// Whether an operator is a view: no kernel, no traffic.
pub fn is_view(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape(_) | Op::Broadcast(_) | Op::Slice(_) | Op::Proj(_) | Op::StopGradient(_) | Op::Recompute(_)
    )
}

/// The sketch of an operator as a kernel of its own. `known` tells operands that are one number and cost no traffic.
pub fn sketch(op: &Op, operands: &[&Type], result: &Type, known: &dyn Fn(usize) -> bool) -> Sketch {
    if is_view(op) {
        let copied =
            if slices_channels(op, result) { 2.0 * result.parts().iter().map(bytes).sum::<f64>() } else { 0.0 };
        return Sketch { efficiency: 1.0, copied, ..Sketch::default() };
    }
    let anchor = match op {
        Op::Fused(fused) => &*fused.anchor,
        other => other,
    };
    let out: f64 = result.parts().iter().map(bytes).sum();
    let read: f64 = (0..operands.len())
        .filter(|i| !known(*i))
        .map(|i| match anchor {
            // a gather reads what it returns, not the table
            Op::Gather(_) if i == 0 => out,
            _ => operands[i].parts().iter().map(bytes).sum(),
        })
        .sum();
    let (efficiency, launches) = match anchor {
        Op::DotGeneral(_) | Op::Conv(_) => (0.85, 1.0),
        Op::Attention(_) | Op::AttentionGrad(_) => (0.7, 1.0),
        // partition puts what stays elementwise into a neighbour, most often
        Op::Pointwise(_) | Op::Cast(_) => (0.05, 0.25),
        _ => (0.05, 1.0),
    };
    let mut flops = flops(op, operands, result);
    if result.parts().first().is_some_and(|ty| ty.dtype == DType::F64) {
        flops *= 2.0;
    }
    let prologue = match op {
        Op::Fused(fused) => repeated(fused, operands, result),
        _ => Repeated::default(),
    };
    Sketch { flops, bytes: read + out, efficiency, launches, prologue, copied: 0.0 }
}

/// Whether channels of an image are cut.
fn slices_channels(op: &Op, result: &Type) -> bool {
    let (Op::Slice(slice), Some(ty)) = (op, result.tensor()) else { return false };
    ty.shape.rank() >= 4 && (!slice.start[1].is(0) || slice.limit[1] != ty.shape[1])
}

/// What the prologue of a convolution computes.
fn repeated(fused: &Fused, operands: &[&Type], result: &Type) -> Repeated {
    let tensor = |i: usize| operands.get(i).and_then(|ty| ty.tensor());
    let (Some(prologue), Op::Conv(conv), Some(x), Some(w), [y, ..]) =
        (&fused.prologue, &*fused.anchor, tensor(0), tensor(1), result.parts())
    else {
        return Repeated::default();
    };
    let mut steps = 0.0;
    prologue.program.visit(&mut |e| {
        if let ExprKind::Apply(f, _) = e.kind() {
            steps += if f.is_transcendental() { TRANSCENDENTAL } else { 1.0 };
        }
    });
    let work = steps * elements(x);
    let extent = |ty: &TensorType, axis: usize| ty.shape.get(axis).map_or(1, |d| d.hint(SYMBOL_HINT)).max(1) as usize;
    let (mut overlap, mut taps) = (1.0, 1.0);
    if conv.spatial() == 2 {
        let reach = (extent(w, 2) - 1) * conv.dilation[0] as usize + 1;
        let stride = conv.stride[0] as usize;
        let width = (extent(x, 3) as i64 + conv.pad_low[1] + conv.pad_high[1]).max(1) as usize;
        let rows = ConvProblem::prologue_rows(extent(x, 1), width, reach, stride).min(extent(y, 2));
        overlap = ((rows - 1) * stride + reach) as f64 / (rows * stride) as f64;
    }
    for axis in 0..conv.spatial() {
        taps *= extent(w, 2 + axis) as f64 / conv.stride[axis] as f64;
    }
    let tiles = (extent(w, 0) as f64 / TILE).ceil();
    Repeated { by_blocks: work * overlap.max(1.0), by_tiles: work * taps * tiles }
}
