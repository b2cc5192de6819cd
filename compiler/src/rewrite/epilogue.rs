//! The generic epilogue: elementwise nodes join the anchor that makes their operand.
//!
//! Three cases: a function of the anchor's value alone; one with a foreign operand; one of which several operands are
//! epilogues of the same anchor (x·Φ(x), SiLU close this way). No operator pair has a rule of its own.

use egg::Id;
use egret_ir::ops::{ConvForm, Fused};
use egret_ir::{InferCx, Op, ScalarExpr, ScalarFn, TensorType};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::RewriteSet;
use super::activation;
use super::journal::{How, Journal, Refusal, Step};
use super::part::Part;
use super::saturate::leaf_number;
use super::term::{BindingTime, Graph, Kind, OpId, Term, add, tensor_type};

/// Most functions in a program.
pub const MAX_STEPS: u32 = 48;
/// Most extra operands of an anchor.
pub const MAX_EXTRAS: usize = 8;

/// Which nodes of the part depend on which.
pub struct Dependencies {
    bits: Vec<Vec<u64>>,
    ids: Vec<Id>,
    /// By node, the nodes that read it; one more where its value leaves the part.
    readers: Vec<usize>,
}

impl Dependencies {
    /// Transitive operands of every node of a part; `ids` are the nodes' classes.
    pub fn new(part: &Part, ids: &[Id]) -> Dependencies {
        let words = part.nodes.len().div_ceil(64);
        let mut bits: Vec<Vec<u64>> = Vec::with_capacity(part.nodes.len());
        for node in &part.nodes {
            let mut mine = vec![0u64; words];
            for operand in &node.operands {
                if let super::part::Ref::Node(n) = operand {
                    let n = *n as usize;
                    mine.iter_mut().zip(&bits[n]).for_each(|(a, b)| *a |= b);
                    mine[n / 64] |= 1 << (n % 64);
                }
            }
            bits.push(mine);
        }
        let mut readers = vec![0; part.nodes.len()];
        for node in &part.nodes {
            let mut read: SmallVec<[u32; 4]> = SmallVec::new();
            for operand in &node.operands {
                if let super::part::Ref::Node(n) = operand
                    && !read.contains(n)
                {
                    read.push(*n);
                    readers[*n as usize] += 1;
                }
            }
        }
        part.outputs.iter().for_each(|n| readers[*n as usize] += 1);
        Dependencies { bits, ids: ids.to_vec(), readers }
    }

    /// How many nodes of the part read a class; one that rules made is read by one.
    pub fn readers(&self, egraph: &Graph, class: Id) -> usize {
        self.nodes_of(egraph, class).into_iter().map(|n| self.readers[n]).sum::<usize>().max(1)
    }

    /// The nodes of the part that are in a class.
    pub fn nodes_of(&self, egraph: &Graph, class: Id) -> SmallVec<[usize; 4]> {
        let class = egraph.find(class);
        (0..self.ids.len()).filter(|i| egraph.find(self.ids[*i]) == class).collect()
    }

    /// Whether `y` was computed from `x`.
    fn reads(&self, egraph: &Graph, y: Id, x: Id) -> bool {
        let (ys, xs) = (self.nodes_of(egraph, y), self.nodes_of(egraph, x));
        !ys.is_empty() && ys.iter().all(|i| xs.iter().any(|j| self.bits[*i][j / 64] >> (j % 64) & 1 == 1))
    }
}

/// Whether an operator can carry an epilogue.
pub fn carries(op: &Op) -> bool {
    use Op::*;
    match op {
        Fused(fused) => fused.taps.is_empty(),
        // the weight gradient's loops write sums over pixels: no tile is complete before the last of them
        Conv(conv) => conv.form != ConvForm::WeightGrad,
        DotGeneral(_) | Reduce(_) | ReduceWindow(_) | Softmax(_) | SoftmaxGrad(_) | Norm(_) | NormGrad(_) => true,
        _ => false,
    }
}

/// An anchor taken apart.
struct Anchor {
    fused: Fused,
    bases: SmallVec<[Id; 4]>,
    extras: SmallVec<[Id; 4]>,
    /// Operands of its prologue.
    own: SmallVec<[Id; 4]>,
}

impl Anchor {
    fn of(egraph: &Graph, term: &Term) -> Option<Anchor> {
        let op = egraph.analysis.op(term.op);
        if !carries(op) {
            return None;
        }
        let operands: SmallVec<[Id; 4]> = term.operands.iter().map(|id| egraph.find(*id)).collect();
        let fused = match op {
            Op::Fused(fused) => (**fused).clone(),
            plain => {
                let dtype = tensor_type(egraph, egraph.lookup(term.clone())?)?.dtype;
                Fused::epilogue(plain.clone(), operands.len(), ScalarExpr::arg(0), dtype)
            }
        };
        let (bases, extras, own) = fused.split(&operands);
        let (bases, extras, own) = (bases.into(), extras.into(), own.into());
        Some(Anchor { fused, bases, extras, own })
    }

    /// The program that the next function joins.
    fn program(&self) -> &ScalarExpr {
        self.fused.rows.as_ref().map_or(&self.fused.epilogue, |(_, finish)| finish)
    }

    /// Same kernel up to that program.
    fn same(&self, other: &Anchor) -> bool {
        let rows =
            |a: &Anchor| a.fused.rows.as_ref().map(|(op, _)| (op.clone(), a.fused.epilogue.clone(), a.extras.clone()));
        let before = |a: &Anchor| (a.fused.prologue.clone(), a.own.clone());
        self.fused.anchor == other.fused.anchor
            && self.bases == other.bases
            && before(self) == before(other)
            && rows(self) == rows(other)
    }

    fn rank(&self) -> (usize, u32) {
        (self.extras.len(), self.program().size())
    }
}

/// Whether an operator may join an anchor's program.
pub fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Pointwise(_) | Op::Cast(_))
}

/// The kinds that may join an anchor.
pub fn elementwise_kinds() -> impl Iterator<Item = Kind> {
    ScalarFn::ALL.iter().map(|f| Kind::named(f.name())).chain([Kind::named("cast")])
}

/// Which of the rules of this file are used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    unary: bool,
    binary: bool,
    both: bool,
    /// No activation is named: it would round once where its spelling rounds often.
    exact: bool,
}

impl Used {
    /// Those that a set has.
    pub fn of(set: &RewriteSet, exact: bool) -> Used {
        let has = |name| set.has(name);
        Used { unary: has("epilogue-unary"), binary: has("epilogue-binary"), both: has("epilogue-both"), exact }
    }
}

/// What was tried to join what: the node, its operand, the anchor, and how many nodes the classes of the operands had, among
/// which epilogues of the same anchor may be.
#[derive(Default)]
pub struct Tried(FxHashSet<(Term, usize, Term, SmallVec<[usize; 2]>)>);

/// One pass in class order, operands before users, so that a whole chain is absorbed at once. What was tried before is not
/// tried again. Returns the unions made.
pub fn absorb(
    egraph: &mut Graph,
    dependencies: &Dependencies,
    journal: &mut Journal,
    used: Used,
    tried: &mut Tried,
) -> usize {
    let mut list: Vec<(Id, Term)> = Vec::new();
    for kind in elementwise_kinds() {
        for class in egraph.classes_for_op(&kind).into_iter().flatten() {
            if egraph[class].data.time < BindingTime::Run {
                continue;
            }
            let nodes =
                egraph[class].nodes.iter().filter(|n| n.kind == kind && is_elementwise(egraph.analysis.op(n.op)));
            list.extend(nodes.map(|n| (class, n.clone())));
        }
    }
    list.sort();
    let mut unions = 0;
    for (class, node) in list {
        // the anchor as its interned number, and its own operands
        let mut seen: FxHashSet<(OpId, SmallVec<[Id; 4]>, SmallVec<[Id; 4]>)> = FxHashSet::default();
        for at in 0..node.operands.len() {
            let operand = egraph.find(node.operands[at]);
            if egraph[operand].data.time < BindingTime::Run {
                continue;
            }
            let mut anchors: Vec<(Anchor, Term)> = egraph[operand]
                .nodes
                .iter()
                .filter_map(|term| Some((Anchor::of(egraph, term)?, term.clone())))
                .collect();
            // of several epilogues of one base, the one with the fewest extras, then the shortest
            anchors.sort_by(|a, b| a.0.rank().cmp(&b.0.rank()).then_with(|| a.1.cmp(&b.1)));
            for (anchor, term) in anchors {
                let plain = egraph.analysis.op_id(&anchor.fused.anchor);
                if !seen.insert((plain, anchor.bases.clone(), anchor.own.clone())) {
                    continue;
                }
                let sizes = node.operands.iter().map(|id| egraph[*id].nodes.len()).collect();
                if !tried.0.insert((node.clone(), at, term.clone(), sizes)) {
                    continue;
                }
                match join(egraph, Some(dependencies), class, &node, at, &anchor, used.exact) {
                    Ok(joined) if !joined.allowed(used) => {}
                    Ok(joined) => unions += usize::from(unite(egraph, journal, class, node.clone(), at, term, joined)),
                    Err(guard) => {
                        let nodes = dependencies.nodes_of(egraph, class);
                        journal.refuse(Refusal { node: nodes.iter().map(|n| *n as u32).collect(), guard });
                    }
                }
            }
        }
    }
    unions
}

/// Repeats one absorption, for replay.
pub fn rejoin(
    egraph: &Graph,
    class: Id,
    node: &Term,
    at: usize,
    anchor: &Term,
    exact: bool,
) -> Option<(Op, SmallVec<[Id; 4]>)> {
    let anchor = Anchor::of(egraph, anchor)?;
    let joined = join(egraph, None, class, node, at, &anchor, exact).ok()?;
    Some((joined.op, joined.operands))
}

/// An anchor with one more function in its program.
struct Joined {
    op: Op,
    operands: SmallVec<[Id; 4]>,
    /// Epilogues of the same anchor that the program took in.
    siblings: SmallVec<[Term; 2]>,
    /// Comparisons that the program makes itself.
    compared: SmallVec<[Term; 2]>,
    /// The function has an operand that is neither the anchor's value nor a number.
    foreign: bool,
}

impl Joined {
    fn rule(&self) -> &'static str {
        match (self.siblings.is_empty(), self.foreign) {
            (false, _) => "epilogue-both",
            (true, true) => "epilogue-binary",
            (true, false) => "epilogue-unary",
        }
    }

    fn allowed(&self, used: Used) -> bool {
        match (self.siblings.is_empty(), self.foreign) {
            (false, _) => used.both,
            (true, true) => used.binary,
            (true, false) => used.unary,
        }
    }
}

/// The anchor with `node` in its program, or the guard that refuses.
fn join(
    egraph: &Graph,
    dependencies: Option<&Dependencies>,
    class: Id,
    node: &Term,
    at: usize,
    anchor: &Anchor,
    exact: bool,
) -> Result<Joined, &'static str> {
    let consumed = egraph.find(node.operands[at]);
    let out = tensor_type(egraph, class).ok_or("the result is a tuple")?.clone();
    let base = tensor_type(egraph, consumed).ok_or("the operand is a tuple")?;
    if base.shape != out.shape {
        return Err("the function broadcasts the anchor's result");
    }
    let mut extras: SmallVec<[Id; 4]> = anchor.extras.clone();
    let mut args: SmallVec<[ScalarExpr; 3]> = SmallVec::new();
    let (mut siblings, mut compared) = (SmallVec::new(), SmallVec::new());
    let mut foreign = false;
    for (i, operand) in node.operands.iter().enumerate() {
        let operand = egraph.find(*operand);
        if i == at || operand == consumed {
            args.push(anchor.program().clone());
            continue;
        }
        let sibling = egraph[operand]
            .nodes
            .iter()
            .filter_map(|t| Some((Anchor::of(egraph, t)?, t)))
            .filter(|(a, _)| a.same(anchor))
            .min_by_key(|(a, _)| a.rank());
        if let Some((sibling, term)) = sibling {
            siblings.push(term.clone());
            let slots: SmallVec<[usize; 4]> = sibling.extras.iter().map(|e| slot(&mut extras, *e)).collect();
            args.push(rename(sibling.program(), &slots));
            continue;
        }
        let ty = tensor_type(egraph, operand).ok_or("an operand is a tuple")?;
        // a vector of equal numbers stays an operand: equal layers get equal kernels whatever their weights
        let single = ty.shape.iter().all(|dim| dim.is(1));
        if let Some(literal) = egraph[operand].data.splat.filter(|_| single) {
            args.push(ScalarExpr::constant(literal));
            continue;
        }
        if !broadcasts(ty, &out) {
            return Err("an operand does not broadcast to the anchor's result");
        }
        if dependencies.is_some_and(|d| d.reads(egraph, operand, consumed)) {
            return Err("another operand was computed from the anchor's result");
        }
        foreign = true;
        if let Some((term, value, program)) = comparison(egraph, operand) {
            let place = slot(&mut extras, value) + 1;
            compared.push(term);
            args.push(program.substitute(&mut |_| ScalarExpr::arg(place)));
            continue;
        }
        args.push(ScalarExpr::arg(slot(&mut extras, operand) + 1));
    }
    let program = match egraph.analysis.op(node.op) {
        Op::Cast(cast) => args.swap_remove(0).cast(cast.dtype),
        Op::Pointwise(pointwise) => ScalarExpr::apply(pointwise.f, args, out.dtype),
        _ => return Err("the function is not elementwise"),
    };
    let (op, operands) = finish(egraph, anchor, program, extras, &out, exact)?;
    Ok(Joined { op, operands, siblings, compared, foreign })
}

/// The comparison with a number that a class is, of a value that is stored anyway: it, the value, and its program. A program
/// that reads the value makes the comparison itself; truth values beside it would only be written and read.
fn comparison(egraph: &Graph, class: Id) -> Option<(Term, Id, ScalarExpr)> {
    let compares = |term: &&Term| match egraph.analysis.op(term.op) {
        Op::Pointwise(pointwise) => pointwise.f.is_predicate() && !pointwise.f.is_logical(),
        _ => false,
    };
    let mut comparisons = egraph[class].nodes.iter().filter(compares);
    let (Some(term), None) = (comparisons.next(), comparisons.next()) else { return None };
    let Op::Pointwise(pointwise) = egraph.analysis.op(term.op) else { return None };
    let [a, b] = term.operands.as_slice() else { return None };
    let shape = &tensor_type(egraph, class)?.shape;
    let number = |id: &Id| {
        let single = tensor_type(egraph, *id)?.shape.iter().all(|dim| dim.is(1));
        egraph[*id].data.splat.filter(|_| single).map(ScalarExpr::constant)
    };
    let is_stored = |term: &Term| {
        let op = egraph.analysis.op(term.op);
        leaf_number(op).is_some() || matches!(op, Op::ReduceWindow(_))
    };
    let (value, args) = match (number(a), number(b)) {
        (None, Some(number)) => (*a, [ScalarExpr::arg(0), number]),
        (Some(number), None) => (*b, [number, ScalarExpr::arg(0)]),
        _ => return None,
    };
    let value = egraph.find(value);
    let whole = tensor_type(egraph, value)?.shape == *shape;
    if !whole || !egraph[value].nodes.iter().any(is_stored) {
        return None;
    }
    let dtype = tensor_type(egraph, class)?.dtype;
    Some((term.clone(), value, ScalarExpr::apply(pointwise.f, args, dtype)))
}

fn slot(extras: &mut SmallVec<[Id; 4]>, id: Id) -> usize {
    extras.iter().position(|e| *e == id).unwrap_or_else(|| {
        extras.push(id);
        extras.len() - 1
    })
}

/// The program with extra `i` renamed to `slots[i]`.
fn rename(program: &ScalarExpr, slots: &[usize]) -> ScalarExpr {
    program.substitute(&mut |arg| ScalarExpr::arg(if arg == 0 { 0 } else { slots[arg - 1] + 1 }))
}

/// Names activations, numbers the extras by first use and checks the bounds.
fn finish(
    egraph: &Graph,
    anchor: &Anchor,
    program: ScalarExpr,
    extras: SmallVec<[Id; 4]>,
    out: &TensorType,
    exact: bool,
) -> Result<(Op, SmallVec<[Id; 4]>), &'static str> {
    let dtype_of = |id: &Id| tensor_type(egraph, *id).map_or(out.dtype, |ty| ty.dtype);
    let mut dtypes: SmallVec<[_; 8]> = SmallVec::new();
    dtypes.push(anchor.fused.dtype);
    dtypes.extend(extras.iter().map(dtype_of));
    let program = if exact { program } else { activation::recognise(&program, &dtypes) };
    if program.size() > MAX_STEPS {
        return Err("the program would have more than 48 steps");
    }
    if anchor.fused.rows.is_some() && out.dtype != anchor.fused.dtype {
        return Err("the element type changes after a row operator");
    }
    let mut fused = anchor.fused.clone();
    match &mut fused.rows {
        Some((_, finish)) => *finish = program,
        None => {
            fused.epilogue = program;
            fused.dtype = out.dtype;
        }
    }
    let (renamed, order) = {
        let rows = fused.rows.as_ref().map(|(_, finish)| finish);
        let programs: SmallVec<[&ScalarExpr; 2]> = std::iter::once(&fused.epilogue).chain(rows).collect();
        numbered(&programs, extras.len())
    };
    if order.len() + anchor.own.len() > MAX_EXTRAS {
        return Err("the anchor would have more than 8 extra operands");
    }
    let mut renamed = renamed.into_iter();
    if let Some(program) = renamed.next() {
        fused.epilogue = program;
    }
    if let (Some((_, finish)), Some(program)) = (&mut fused.rows, renamed.next()) {
        *finish = program;
    }
    let mut operands = anchor.bases.clone();
    operands.extend(order.iter().map(|o| extras[*o]));
    operands.extend(anchor.own.iter().copied());
    let plain = fused.rows.is_none() && fused.prologue.is_none() && fused.epilogue.is_arg(0);
    Ok((if plain { *fused.anchor } else { fused.into() }, operands))
}

/// Programs whose extras, of which there are `count`, are numbered by first use; and by number, which of them it is.
pub fn numbered(programs: &[&ScalarExpr], count: usize) -> (SmallVec<[ScalarExpr; 2]>, SmallVec<[usize; 8]>) {
    let mut order: SmallVec<[usize; 8]> = SmallVec::new();
    for arg in programs.iter().flat_map(|p| p.args()).filter(|arg| *arg > 0) {
        if !order.contains(&(arg - 1)) {
            order.push(arg - 1);
        }
    }
    let place = |i: usize| order.iter().position(|o| *o == i).unwrap_or(0);
    let slots: SmallVec<[usize; 8]> = (0..count).map(place).collect();
    (programs.iter().map(|program| rename(program, &slots)).collect(), order)
}

fn broadcasts(ty: &TensorType, to: &TensorType) -> bool {
    let mut cx = InferCx::default();
    cx.broadcast([&ty.shape, &to.shape]).is_ok_and(|shape| shape == to.shape) && cx.assumptions.is_empty()
}

fn unite(
    egraph: &mut Graph,
    journal: &mut Journal,
    class: Id,
    node: Term,
    at: usize,
    anchor: Term,
    joined: Joined,
) -> bool {
    let rule = joined.rule();
    let Joined { op, operands, siblings, compared, .. } = joined;
    let before = egraph.total_number_of_nodes();
    let Some(new) = add(egraph, &op, &operands) else { return false };
    if egraph[new].data.ty != egraph[class].data.ty || egraph.find(new) == egraph.find(class) {
        return false;
    }
    let term = Term { kind: Kind::of(&op), op: egraph.analysis.op_id(&op), operands };
    let joined = egraph.total_number_of_nodes() == before;
    let matched: Vec<Term> = [node.clone(), anchor.clone()].into_iter().chain(siblings).chain(compared).collect();
    let step = Step {
        rule,
        how: How::Epilogue { node, at, anchor },
        unions: SmallVec::from_slice(&[(class, new)]),
        added: vec![(term, new)],
        needs: SmallVec::new(),
        origins: SmallVec::new(),
        joined,
    };
    journal.record(egraph, step, &matched);
    egraph.union(class, new)
}
