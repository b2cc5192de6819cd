//! The generic prologue: elementwise nodes join the convolution that reads what they make.
//!
//! DenseNet normalises and rectifies ever longer concatenations: scale, shift and ReLU stand before a convolution, and
//! nothing before them can take them, because a concatenation has many producers and many readers. Convolutions then map
//! what they read. A map that ends the kernel before it stays there, unless something else reads that kernel's result too:
//! then each side is in the e-graph.

use egg::Id;
use egret_ir::ops::{ConvForm, Fused, Prologue};
use egret_ir::{DType, Op, ScalarExpr, TensorType};
use egret_program::driver::ConvProblem;
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::epilogue::{Dependencies, MAX_EXTRAS, carries, is_elementwise, numbered};
use super::journal::{How, Journal, Refusal, Step};
use super::term::{BindingTime, Graph, Kind, Term, add, tensor_type};

/// The rule of this file.
pub const RULE: &str = "prologue";

/// Most functions in a program: it runs again where blocks of rows overlap.
const MAX_STEPS: u32 = 16;
/// Fewer channels than this are read from a row-major image.
const LEAST_CHANNELS: i64 = 8;

/// Elementwise nodes from what a convolution reads down to a value that it could read instead.
#[derive(Clone)]
struct Chain {
    source: Id,
    program: ScalarExpr,
    extras: SmallVec<[Id; 4]>,
    /// The nodes, the last to be computed first.
    path: Vec<Term>,
}

impl Chain {
    fn of(source: Id) -> Chain {
        Chain { source, program: ScalarExpr::arg(0), extras: SmallVec::new(), path: Vec::new() }
    }

    fn rank(&self) -> (usize, u32) {
        (self.extras.len(), self.program.size())
    }
}

/// One pass in class order. Returns the unions made.
pub fn absorb(egraph: &mut Graph, dependencies: &Dependencies, journal: &mut Journal) -> usize {
    let kind = Kind::named("conv");
    let mut convolutions: Vec<(Id, Term)> = Vec::new();
    for class in egraph.classes_for_op(&kind).into_iter().flatten() {
        let plain = egraph[class].nodes.iter().filter(|n| matches!(egraph.analysis.op(n.op), Op::Conv(_)));
        convolutions.extend(plain.map(|term| (class, term.clone())));
    }
    convolutions.sort();
    let mut unions = 0;
    for (class, term) in convolutions {
        let read = egraph.find(term.operands[0]);
        if maps(egraph, read).is_empty() || egraph[read].data.time < BindingTime::Run {
            continue;
        }
        let refuse = |journal: &mut Journal, class: Id, guard| {
            let nodes = dependencies.nodes_of(egraph, class).into_iter().map(|n| n as u32).collect();
            journal.refuse(Refusal { node: nodes, guard });
        };
        if let Err(guard) = takes(egraph, &term) {
            refuse(journal, class, guard);
            continue;
        }
        let (chains, refused) = chains(egraph, dependencies, read);
        refused.into_iter().for_each(|(class, guard)| refuse(journal, class, guard));
        for chain in chains {
            unions += usize::from(unite(egraph, journal, class, &term, chain));
        }
    }
    unions
}

/// The elementwise nodes of a class.
fn maps(egraph: &Graph, class: Id) -> SmallVec<[Term; 4]> {
    let nodes = egraph[class].nodes.iter();
    nodes.filter(|n| is_elementwise(egraph.analysis.op(n.op))).cloned().collect()
}

/// Whether a convolution can map what it reads: `f32`, forward, one group, one or two spatial axes, constant extents but for
/// the batch, and a row of the image fits into the scratch.
fn takes(egraph: &Graph, term: &Term) -> Result<(), &'static str> {
    let Op::Conv(conv) = egraph.analysis.op(term.op) else { return Err("only a convolution has a prologue") };
    if conv.form != ConvForm::Forward || conv.groups != 1 || conv.spatial() > 2 {
        return Err("a prologue needs a forward convolution of one group and at most two spatial axes");
    }
    let (Some(x), Some(w)) = (tensor_type(egraph, term.operands[0]), tensor_type(egraph, term.operands[1])) else {
        return Err("an operand is a tuple");
    };
    let extents =
        |ty: &TensorType| -> Option<SmallVec<[i64; 4]>> { ty.shape[1..].iter().map(|d| d.as_const()).collect() };
    let (Some(image), Some(kernel)) = (extents(x), extents(w)) else {
        return Err("a prologue needs constant extents");
    };
    if x.dtype != DType::F32 || w.dtype != DType::F32 {
        return Err("a prologue is of f32");
    }
    if image[0] < LEAST_CHANNELS {
        return Err("an image of few channels has no prologue");
    }
    let reach = |axis: usize| (kernel[1 + axis] - 1) * conv.dilation[axis] + 1;
    let width = image[image.len() - 1] + conv.pad_low[conv.spatial() - 1] + conv.pad_high[conv.spatial() - 1];
    let rows = if conv.spatial() == 2 { reach(0) } else { 1 };
    let bytes = rows.saturating_mul(width).saturating_mul(image[0]).saturating_mul(4);
    if bytes > ConvProblem::PROLOGUE_BYTES as i64 {
        return Err("the rows under a window do not fit into the prologue's scratch");
    }
    Ok(())
}

/// Why a map stays with the kernel that makes its operand.
const ENDS_A_KERNEL: &str = "the map before the convolution ends the kernel before it, whose result nothing else reads";

type Refused = Vec<(Id, &'static str)>;

/// Chains that end where they cannot go on, or at a value that something else reads too: of each such value the shortest,
/// with the fewest operands. None ends at the result of an anchor that nothing else reads, because that takes the map as
/// well. Also the guards that stopped some.
fn chains(egraph: &Graph, dependencies: &Dependencies, read: Id) -> (Vec<Chain>, Refused) {
    let mut found = vec![Chain::of(read)];
    let mut seen: FxHashSet<Id> = found.iter().map(|chain| chain.source).collect();
    let (mut ends, mut refused) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < found.len() {
        // those of one length, then all that are one longer
        let level = at..found.len();
        let mut longer: Vec<Chain> = Vec::new();
        for chain in &found[level.clone()] {
            let before = longer.len();
            for node in maps(egraph, chain.source) {
                match extend(egraph, chain, &node) {
                    Ok(more) => longer.push(more),
                    Err(guard) => refused.push((chain.source, guard)),
                }
            }
            let shared = dependencies.readers(egraph, chain.source) > 1;
            if chain.path.is_empty() || longer.len() > before && !shared {
                continue;
            }
            if !shared && egraph[chain.source].nodes.iter().any(|n| carries(egraph.analysis.op(n.op))) {
                refused.push((chain.source, ENDS_A_KERNEL));
                continue;
            }
            ends.push(chain.clone());
        }
        longer.sort_by(|a, b| a.rank().cmp(&b.rank()).then_with(|| a.path.cmp(&b.path)));
        found.extend(longer.into_iter().filter(|chain| seen.insert(chain.source)));
        at = level.end;
    }
    (ends, refused)
}

/// A chain with one more node, or the guard that refuses.
fn extend(egraph: &Graph, chain: &Chain, node: &Term) -> Result<Chain, &'static str> {
    let mapped = tensor_type(egraph, chain.source).ok_or("the map's result is a tuple")?;
    let mut carrier: Option<Id> = None;
    for operand in &node.operands {
        let operand = egraph.find(*operand);
        let full = tensor_type(egraph, operand).is_some_and(|ty| ty.shape == mapped.shape);
        if full && egraph[operand].data.time == BindingTime::Run && carrier.is_none_or(|have| have != operand) {
            if carrier.is_some() {
                return Err("the map before the convolution reads two images");
            }
            carrier = Some(operand);
        }
    }
    let source = carrier.ok_or("the map before the convolution makes an image of less")?;
    if source == egraph.find(chain.source) || tensor_type(egraph, source).is_none_or(|ty| ty.dtype != DType::F32) {
        return Err("the map before the convolution reads another element type");
    }
    let mut extras = chain.extras.clone();
    let mut args: SmallVec<[ScalarExpr; 3]> = SmallVec::new();
    for operand in &node.operands {
        let operand = egraph.find(*operand);
        if operand == source {
            args.push(ScalarExpr::arg(0));
            continue;
        }
        let ty = tensor_type(egraph, operand).ok_or("an operand of the map is a tuple")?;
        let single = ty.shape.iter().all(|dim| dim.is(1));
        if let Some(literal) = egraph[operand].data.splat.filter(|_| single) {
            args.push(ScalarExpr::constant(literal));
            continue;
        }
        if !by_channel(ty, mapped) {
            return Err("an operand of the map before the convolution varies along another axis than the channels");
        }
        let slot = extras.iter().position(|extra| *extra == operand).unwrap_or(extras.len());
        if slot == extras.len() {
            extras.push(operand);
        }
        args.push(ScalarExpr::arg(slot + 1));
    }
    let inner = match egraph.analysis.op(node.op) {
        Op::Cast(cast) => args.swap_remove(0).cast(cast.dtype),
        Op::Pointwise(pointwise) => ScalarExpr::apply(pointwise.f, args, mapped.dtype),
        _ => return Err("the function is not elementwise"),
    };
    let mut nested = |arg: usize| if arg == 0 { inner.clone() } else { ScalarExpr::arg(arg) };
    let program = chain.program.substitute(&mut nested);
    if program.size() > MAX_STEPS {
        return Err("the prologue would have more than 16 steps");
    }
    if extras.len() > MAX_EXTRAS {
        return Err("the prologue would have more than 8 operands");
    }
    let path = chain.path.iter().cloned().chain([node.clone()]).collect();
    Ok(Chain { source, program, extras, path })
}

/// Whether a value is one number, or one for each channel of an image.
fn by_channel(ty: &TensorType, image: &TensorType) -> bool {
    let Some(lead) = image.shape.rank().checked_sub(ty.shape.rank()) else { return false };
    ty.shape.iter().enumerate().all(|(i, dim)| dim.is(1) || i + lead == 1 && *dim == image.shape[1])
}

/// The convolution that reads the source of a chain.
fn mapping(egraph: &Graph, term: &Term, chain: &Chain) -> (Op, SmallVec<[Id; 4]>) {
    let anchor = egraph.analysis.op(term.op).clone();
    let (programs, order) = numbered(&[&chain.program], chain.extras.len());
    let program = programs.into_iter().next().unwrap_or_else(|| chain.program.clone());
    let prologue = Prologue { program, extras: order.len() };
    let plain = Fused::epilogue(anchor, term.operands.len(), ScalarExpr::arg(0), DType::F32);
    let mut operands: SmallVec<[Id; 4]> = term.operands.iter().map(|id| egraph.find(*id)).collect();
    operands[0] = chain.source;
    operands.extend(order.iter().map(|slot| chain.extras[*slot]));
    (Fused { prologue: Some(prologue), ..plain }.into(), operands)
}

/// Repeats one absorption, for replay.
pub fn rejoin(egraph: &Graph, term: &Term, path: &[Term]) -> Option<(Op, SmallVec<[Id; 4]>)> {
    takes(egraph, term).ok()?;
    let mut chain = Chain::of(egraph.find(term.operands[0]));
    for node in path {
        chain = extend(egraph, &chain, node).ok()?;
    }
    Some(mapping(egraph, term, &chain))
}

fn unite(egraph: &mut Graph, journal: &mut Journal, class: Id, term: &Term, chain: Chain) -> bool {
    let (op, operands) = mapping(egraph, term, &chain);
    // another program that reads the same value computes the same: one is enough
    let known = egraph[class].nodes.iter().any(|node| {
        let reads = |i: usize| node.operands.get(i).is_some_and(|id| egraph.find(*id) == operands[i]);
        let like = match egraph.analysis.op(node.op) {
            Op::Fused(fused) => fused.prologue.is_some() && *fused.anchor == *egraph.analysis.op(term.op),
            _ => false,
        };
        like && reads(0) && reads(1)
    });
    if known {
        return false;
    }
    let before = egraph.total_number_of_nodes();
    let Some(new) = add(egraph, &op, &operands) else { return false };
    if egraph[new].data.ty != egraph[class].data.ty || egraph.find(new) == egraph.find(class) {
        return false;
    }
    let made = Term { kind: Kind::of(&op), op: egraph.analysis.op_id(&op), operands };
    let matched: Vec<Term> = std::iter::once(term).chain(&chain.path).cloned().collect();
    let step = Step {
        rule: RULE,
        how: How::Prologue { conv: term.clone(), path: chain.path },
        unions: SmallVec::from_slice(&[(class, new)]),
        added: vec![(made, new)],
        needs: SmallVec::new(),
        origins: SmallVec::new(),
        joined: egraph.total_number_of_nodes() == before,
    };
    journal.record(egraph, step, &matched);
    egraph.union(class, new)
}
