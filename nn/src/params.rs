//! Where layers get their parameters.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;

use egret_ir::{DType, Diagnostic, Literal, Origin, Tensor, Tracer, Var, Weight};

use crate::init::Init;

/// What the parameters of a graph are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// States that an optimiser updates.
    Train,
    /// States that this graph only reads: evaluation between training steps.
    Evaluate,
    /// Params, fixed while an executable lives.
    Infer,
}

/// A parameter of a graph under construction.
#[derive(Clone, Debug)]
pub struct Parameter<'t> {
    /// Its name: the path of its layer and its own, `conv1.weight`.
    pub name: String,
    /// Its value.
    pub value: Var<'t>,
}

struct Shared<'t> {
    mode: Mode,
    seed: u64,
    given: BTreeMap<String, Tensor>,
    made: RefCell<Vec<Parameter<'t>>>,
    line: Cell<Option<&'static Location<'static>>>,
}

/// Makes parameters by name, below a path.
///
/// A first value depends on the seed and the name alone, so that graphs of the same layers agree in any order.
pub struct Params<'a, 't> {
    tracer: &'a Tracer<'t>,
    shared: Rc<Shared<'t>>,
    path: String,
}

impl<'a, 't> Params<'a, 't> {
    /// Parameters drawn from `seed`.
    pub fn new(tracer: &'a Tracer<'t>, mode: Mode, seed: u64) -> Params<'a, 't> {
        Params::with_values(tracer, mode, seed, BTreeMap::new())
    }

    /// Parameters with these values; those that are not named are drawn.
    pub fn with_values(
        tracer: &'a Tracer<'t>,
        mode: Mode,
        seed: u64,
        given: BTreeMap<String, Tensor>,
    ) -> Params<'a, 't> {
        let shared = Shared { mode, seed, given, made: RefCell::default(), line: Cell::new(None) };
        Params { tracer, shared: Rc::new(shared), path: String::new() }
    }

    /// The graph under construction.
    pub fn tracer(&self) -> &'a Tracer<'t> {
        self.tracer
    }

    /// What parameters are.
    pub fn mode(&self) -> Mode {
        self.shared.mode
    }

    /// The same, below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Params<'a, 't> {
        Params { tracer: self.tracer, shared: self.shared.clone(), path: self.named(&name.to_string()) }
    }

    /// The parameters made so far, in order.
    pub fn all(&self) -> Vec<Parameter<'t>> {
        self.shared.made.borrow().clone()
    }

    /// An f32 parameter; the same name gives the same value again.
    pub fn get(&self, name: &str, shape: &[usize], init: Init) -> Var<'t> {
        let name = self.named(name);
        let value = match (self.shared.given.get(&name), init) {
            (Some(tensor), _) if tensor.shape() == shape => Weight::Tensor(tensor.clone()),
            (Some(tensor), _) => {
                let message = format!("the value given for `{name}` has shape {:?}, not {shape:?}", tensor.shape());
                return self.tracer.fail(Diagnostic::new("E0611", message));
            }
            (None, Init::Constant(value)) => {
                Weight::Fill { value: Literal::float(value, DType::F32), shape: shape.to_vec() }
            }
            (None, init) => Weight::Tensor(init.tensor(DType::F32, shape, mixed(self.shared.seed, &name))),
        };
        let value = match self.shared.mode {
            Mode::Train | Mode::Evaluate => self.tracer.state(&name, value),
            Mode::Infer => self.tracer.param(&name, value),
        };
        let mut made = self.shared.made.borrow_mut();
        if made.iter().all(|p| p.name != name) {
            made.push(Parameter { name, value });
        }
        value
    }

    /// The extent of an axis that a layer sizes its parameters by; 0 and an error when it is not constant.
    pub(crate) fn extent(&self, x: Var<'t>, axis: isize) -> usize {
        let Some(place) = x.axis(axis) else { return 0 };
        let extent = x.shape()[place].clone();
        match extent.as_const().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => n,
            None => {
                let message =
                    format!("the layer `{}` needs a constant extent of axis {place} of {}", self.path, x.ty());
                self.tracer.fail(Diagnostic::new("E0610", message));
                0
            }
        }
    }

    /// Runs `build` so that its nodes come from `line`.
    pub(crate) fn located<R>(&self, line: &'static Location<'static>, build: impl FnOnce() -> R) -> R {
        let before = self.shared.line.replace(Some(line));
        self.point_to(Some(line));
        let result = build();
        self.shared.line.set(before);
        self.point_to(before);
        result
    }

    fn point_to(&self, line: Option<&'static Location<'static>>) {
        self.tracer.set_origins(line.map(|line| {
            let origin = Origin::Source { file: line.file().to_string(), line: line.line() };
            std::iter::once(Arc::new(origin)).collect()
        }));
    }

    fn named(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}

/// A seed for one name (FNV-1a over the name, from the common seed).
fn mixed(seed: u64, name: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    name.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
