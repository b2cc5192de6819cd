//! Rules against the reference interpreter: generated instances of each, and whole e-graphs.
//!
//! A type check alone passes `mean ⇒ sum`, and a transpose dropped from a square matrix. So every rule is tried on
//! instances of its left side with distinct extents: *exact* rules must keep every bit, ±0, ∞ and NaN included; others
//! stay within the sum of the interpreter's error bounds of both sides.

mod classes;
mod generate;
mod instance;
mod operators;

use std::fmt;

use egret_ir::bound::interpret_bounded;
use egret_ir::random::Random;
use egret_ir::{Graph, InferCx, Literal, Tensor, Tensors, interpret, text};

pub use classes::check_classes;
pub use generate::{activations, anchors, concatenations, convolutions, mapped_images, products};
use instance::{Instance, Sampler, Values};

use super::part::{Part, PartNode, Ref};
use super::pattern::{Class, Rule};
use super::saturate;

/// Draws of one case before the rule counts as one that nothing matches.
const DRAWS: usize = 40_000;
/// Cases that a rule is tried on when it is added to a set.
const SHAPE_CASES: usize = 8;

/// What is wrong with a rule.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No instance of the left side passes the guard, or there is no sampler for an operator of it.
    NoInstance(String),
    /// The right side has another type, on the graph given.
    Type {
        /// The left side's type.
        left: String,
        /// The right side's.
        right: String,
        /// The instance, as text.
        graph: String,
    },
    /// The right side never fits its operands.
    Unbuilt,
    /// Applied to its own results, the rule never ends.
    Grows,
    /// The sides differ in value.
    Differs {
        /// What differs, and where.
        what: String,
        /// The instance, as text.
        graph: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NoInstance(why) => write!(f, "no instance of its left side: {why}"),
            Fault::Type { left, right, graph } => {
                write!(f, "its sides differ in type: {left} on the left, {right} on the right, in\n{graph}")
            }
            Fault::Unbuilt => write!(f, "its right side never fits its operands"),
            Fault::Grows => write!(f, "it only grows terms: applied to its own results it never ends"),
            Fault::Differs { what, graph } => write!(f, "its sides differ in value: {what}, in\n{graph}"),
        }
    }
}

/// A graph with outputs that must be equal.
#[derive(Clone, Debug)]
pub struct Case {
    /// The graph.
    pub graph: Graph,
    /// Values of its inputs.
    pub inputs: Tensors,
}

/// How outputs are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equal {
    /// Every bit; two NaNs are equal.
    Bits,
    /// Within the sum of the error bounds of both.
    Bounds,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Elements.
    pub elements: usize,
    /// Of these, elements without a finite bound, which say nothing.
    pub skipped: usize,
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, other: Compared) {
        self.elements += other.elements;
        self.skipped += other.skipped;
    }
}

/// Checks the types of a rule's sides on instances, and that it comes to an end. A rule of which no instance can be drawn
/// passes: each application is type-checked again.
///
/// # Errors
/// [`Fault::Type`], [`Fault::Unbuilt`], [`Fault::Grows`].
pub fn shape_of(rule: &Rule) -> Result<(), Fault> {
    if rule.nests() {
        return Err(Fault::Grows);
    }
    let mut built = 0;
    for case in 0..SHAPE_CASES {
        let mut random = seeded(rule, case);
        let mut instance = match draw(rule, &mut random, Values::Signed) {
            Ok(instance) => instance,
            Err(_) => return Ok(()),
        };
        if grows(rule, &instance) {
            return Err(Fault::Grows);
        }
        built += usize::from(right_of(rule, &mut instance)?.is_some());
    }
    if built == 0 { Err(Fault::Unbuilt) } else { Ok(()) }
}

/// Compares the values of a rule's sides on `cases` instances of at most 4,096 elements.
///
/// # Errors
/// What is wrong with the rule, with the instance.
pub fn check(rule: &Rule, cases: usize) -> Result<Compared, Fault> {
    shape_of(rule)?;
    let mut compared = Compared::default();
    for case in 0..cases {
        let mut random = seeded(rule, case);
        let values = match (rule.class, case % 4) {
            (Class::Exact, 1 | 3) => Values::Special,
            (Class::Exact, 0) | (_, 0..3) => Values::Positive,
            _ => Values::Signed,
        };
        // a draw whose right side does not fit says nothing of values
        let instance = (0..8).find_map(|_| match draw(rule, &mut random, values) {
            Ok(mut instance) => match right_of(rule, &mut instance) {
                Ok(Some(right)) => Some(Ok((instance, right))),
                Ok(None) => None,
                Err(fault) => Some(Err(fault)),
            },
            Err(fault) => Some(Err(fault)),
        });
        let (instance, right) = instance.unwrap_or(Err(Fault::Unbuilt))?;
        let left = instance.root;
        let (graph, inputs) = instance.graph(&[("left", left), ("right", right)]);
        let equal = if rule.class == Class::Exact { Equal::Bits } else { Equal::Bounds };
        let case = Case { graph, inputs };
        compared += compare(&case, equal).map_err(|what| Fault::Differs { what, graph: text::print(&case.graph) })?;
    }
    Ok(compared)
}

/// Compares each output of a case with the first one of its name up to a `#`.
///
/// # Errors
/// The outputs and the element that differ, or why there is no value.
pub fn compare(case: &Case, equal: Equal) -> Result<Compared, String> {
    let mut compared = Compared::default();
    let outcome = interpret(&case.graph, &case.inputs, &Tensors::new()).map_err(|e| e.to_string())?;
    let bounds = match equal {
        Equal::Bits => Vec::new(),
        Equal::Bounds => interpret_bounded(&case.graph, &case.inputs).map_err(|e| e.to_string())?,
    };
    let group = |name: &str| name.split('#').next().unwrap_or_default().to_string();
    for (at, (name, value)) in outcome.outputs.iter().enumerate() {
        let whole = case.graph.outputs().len() == 2;
        let first = outcome.outputs.iter().position(|(n, _)| whole || group(n) == group(name)).unwrap_or(at);
        if first == at {
            continue;
        }
        let (other, want) = &outcome.outputs[first];
        for i in 0..value.elements().max(want.elements()) {
            compared.elements += 1;
            let differs = |why: String| format!("element {i} of `{name}` and of `{other}`: {why}");
            if value.shape() != want.shape() {
                return Err(differs(format!("shapes {:?} and {:?}", value.shape(), want.shape())));
            }
            let (have, want) = (value.get(i), want.get(i));
            match equal {
                Equal::Bits if !same_bits(value, &outcome.outputs[first].1, i) => {
                    return Err(differs(format!("{have:?} and {want:?}")));
                }
                Equal::Bits => {}
                Equal::Bounds => {
                    let error = bounds[at].1.error[i] + bounds[first].1.error[i];
                    let (have, want) = (have.as_f64(), want.as_f64());
                    if have == want || have.is_nan() && want.is_nan() {
                    } else if !error.is_finite() || !have.is_finite() || !want.is_finite() {
                        compared.skipped += 1;
                    } else if (have - want).abs() > error {
                        return Err(differs(format!("{have} and {want}, with bounds of {error:e}")));
                    }
                }
            }
        }
    }
    Ok(compared)
}

fn same_bits(a: &Tensor, b: &Tensor, i: usize) -> bool {
    let (a, b) = (Literal::new(a.get(i), a.dtype()), Literal::new(b.get(i), b.dtype()));
    a == b || a.as_f64().is_nan() && b.as_f64().is_nan()
}

fn seeded(rule: &Rule, case: usize) -> Random {
    let name =
        rule.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Random::new(name ^ (case as u64) << 32)
}

fn draw(rule: &Rule, random: &mut Random, values: Values) -> Result<Instance, Fault> {
    for _ in 0..DRAWS {
        match Sampler::new(random, values).instance(rule) {
            Ok(Some(instance)) => return Ok(instance),
            Ok(None) => {}
            Err(kind) => return Err(Fault::NoInstance(format!("there is no sampler for `{kind}`"))),
        }
    }
    Err(Fault::NoInstance(format!("none of {DRAWS} draws passes its guard")))
}

/// The right side of an instance; `None` when it does not fit its operands or is narrower than the left, so that the rule
/// would not be applied.
fn right_of(rule: &Rule, instance: &mut Instance) -> Result<Option<egret_ir::NodeId>, Fault> {
    let Some(right) = instance.right(rule) else { return Ok(None) };
    let graph = instance.builder.graph();
    let (left_ty, right_ty) = (graph.ty(instance.root), graph.ty(right));
    if left_ty == right_ty {
        return Ok(Some(right));
    }
    // a number or scale on the left that widens the result is a match that the rule's user refuses
    if let (Some(to), Some(from)) = (left_ty.tensor(), right_ty.tensor()) {
        let joined = InferCx::default().broadcast([&from.shape, &to.shape]);
        if from.dtype == to.dtype && joined.is_ok_and(|shape| shape == to.shape) {
            return Ok(None);
        }
    }
    let mut shown = graph.clone();
    shown.add_output("left", instance.root);
    shown.add_output("right", right);
    Err(Fault::Type { left: left_ty.to_string(), right: right_ty.to_string(), graph: text::print(&shown) })
}

/// Whether the rule, applied again and again, adds nodes without end.
fn grows(rule: &Rule, instance: &Instance) -> bool {
    let graph = instance.builder.graph();
    let mut part = Part::default();
    let mut refs = Vec::new();
    for (id, node) in graph.iter() {
        refs.push(if node.operands.is_empty() {
            let facts =
                super::term::LeafFacts { splat: instance.builder.splat_of_node(id), time: instance.builder.time(id) };
            part.leaves.push(super::part::Leaf { ty: node.ty.clone(), facts });
            Ref::Leaf(part.leaves.len() as u32 - 1)
        } else {
            let operands = node.operands.iter().map(|o| refs[o.index()]).collect();
            part.nodes.push(PartNode { op: node.op.clone(), operands, ty: node.ty.clone() });
            Ref::Node(part.nodes.len() as u32 - 1)
        });
    }
    !saturate::ends(&part, rule)
}
