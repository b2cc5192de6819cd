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
    dtype: Cell<DType>,
    /// What layers compute in, where that is not the parameters' own element type.
    compute: Cell<Option<DType>>,
    /// Whether averages stand for parameters.
    averaged: Cell<bool>,
    given: BTreeMap<String, Tensor>,
    made: RefCell<Vec<Parameter<'t>>>,
    /// The state that random numbers are counted by, once a layer asked for it.
    counter: Cell<Option<Var<'t>>>,
    streams: Cell<u64>,
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
        let shared = Shared {
            mode,
            seed,
            dtype: Cell::new(DType::F32),
            compute: Cell::new(None),
            averaged: Cell::new(false),
            given,
            made: RefCell::default(),
            counter: Cell::new(None),
            streams: Cell::new(0),
            line: Cell::new(None),
        };
        Params { tracer, shared: Rc::new(shared), path: String::new() }
    }

    /// Parameters of that element type from here on; f32 before.
    pub fn of(&self, dtype: DType) -> &Params<'a, 't> {
        self.shared.dtype.set(dtype);
        self
    }

    /// The element type of parameters.
    pub fn dtype(&self) -> DType {
        self.shared.dtype.get()
    }

    /// What layers compute in: parameters are rounded to it where they are read. `None`: in their own element type.
    pub fn compute(&self) -> Option<DType> {
        self.shared.compute.get()
    }

    /// Runs `build` with layers that compute in `dtype`; [`Precision`](crate::Precision) does for a layer.
    pub fn computing<R>(&self, dtype: Option<DType>, build: impl FnOnce() -> R) -> R {
        let before = self.shared.compute.replace(dtype);
        let result = build();
        self.shared.compute.set(before);
        result
    }

    /// Whether parameters of [`Mode::Evaluate`] are the averages that [`Ema`](crate::Ema) keeps.
    pub fn averaged(&self, averaged: bool) -> &Params<'a, 't> {
        self.shared.averaged.set(averaged);
        self
    }

    /// Where these parameters are: what their names begin with; empty at the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The parameters made so far below this path, in order.
    pub fn below(&self) -> Vec<Parameter<'t>> {
        let below = |name: &str| {
            let rest = name.strip_prefix(self.path.as_str());
            self.path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.shared.made.borrow().iter().filter(|p| below(&p.name)).cloned().collect()
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

    /// A parameter; the same name gives the same value again. Rounded to what layers [compute](Params::compute) in.
    pub fn get(&self, name: &str, shape: &[usize], init: Init) -> Var<'t> {
        let Some(value) = self.first(name, self.dtype(), shape, init) else { return self.fail_silently() };
        let value = self.make(name, value);
        self.compute().map_or(value, |dtype| value.cast(dtype))
    }

    /// A parameter that begins with a value, unless another was given for its name.
    pub fn weight(&self, name: &str, value: Weight) -> Var<'t> {
        let value = match self.shared.given.contains_key(&self.named(name)) {
            false => Some(value),
            true => self.first(name, value.ty().dtype, value.shape(), Init::ZEROS),
        };
        let Some(value) = value else { return self.fail_silently() };
        self.make(name, value)
    }

    /// A value that belongs to a layer and that no optimiser moves, such as a running mean: a state in training, and what
    /// the layer updates itself.
    pub fn buffer(&self, name: &str, shape: &[usize], init: Init) -> Var<'t> {
        match self.first(name, self.dtype(), shape, init) {
            Some(value) => self.leaf(&self.named(name), value),
            None => self.fail_silently(),
        }
    }

    /// The state `random.counter`, which each step of training advances by one.
    pub fn random_counter(&self) -> Var<'t> {
        if let Some(counter) = self.shared.counter.get() {
            return counter;
        }
        let zero = Weight::Fill { value: Literal::int(0, DType::U64), shape: Vec::new() };
        let counter = self.tracer.state("random.counter", zero);
        self.tracer.update(counter, counter + 1i64);
        self.shared.counter.set(Some(counter));
        counter
    }

    /// A stream of random numbers that no other layer has.
    pub fn stream(&self) -> u64 {
        let stream = self.shared.streams.get();
        self.shared.streams.set(stream + 1);
        mixed(self.shared.seed, "random").wrapping_add(stream)
    }

    fn make(&self, name: &str, value: Weight) -> Var<'t> {
        let name = self.named(name);
        let averaged = self.shared.averaged.get() && self.mode() == Mode::Evaluate;
        let value = self.leaf(&if averaged { average_of(&name) } else { name.clone() }, value);
        let mut made = self.shared.made.borrow_mut();
        if made.iter().all(|p| p.name != name) {
            made.push(Parameter { name, value });
        }
        value
    }

    fn leaf(&self, name: &str, value: Weight) -> Var<'t> {
        match self.shared.mode {
            Mode::Train | Mode::Evaluate => self.tracer.state(name, value),
            Mode::Infer => self.tracer.param(name, value),
        }
    }

    /// The first value of that name; `None`, and an error, where one of another shape was given.
    fn first(&self, name: &str, dtype: DType, shape: &[usize], init: Init) -> Option<Weight> {
        let name = self.named(name);
        match (self.shared.given.get(&name), init) {
            (Some(tensor), _) if tensor.shape() != shape => {
                let message = format!("the value given for `{name}` has shape {:?}, not {shape:?}", tensor.shape());
                self.tracer.fail(Diagnostic::new("E0611", message));
                None
            }
            (Some(tensor), _) if tensor.dtype() == dtype => Some(Weight::Tensor(tensor.clone())),
            (Some(tensor), _) => {
                let mut cast = Tensor::zeros(dtype, shape);
                tensor.values().enumerate().for_each(|(i, value)| cast.set(i, value));
                Some(Weight::Tensor(cast))
            }
            (None, Init::Constant(value)) => {
                Some(Weight::Fill { value: Literal::float(value, dtype), shape: shape.to_vec() })
            }
            (None, init) => Some(Weight::Tensor(init.tensor(dtype, shape, mixed(self.shared.seed, &name)))),
        }
    }

    /// Something to go on with after an error that has been reported.
    fn fail_silently(&self) -> Var<'t> {
        self.tracer.fail(Diagnostic::new("E0611", "a parameter has another shape than its layer needs"))
    }

    /// An error of a layer.
    pub(crate) fn fail(&self, message: String) -> Var<'t> {
        self.tracer.fail(Diagnostic::new("E0610", message))
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

/// The state that holds the average of a parameter.
pub(crate) fn average_of(name: &str) -> String {
    format!("{name}.average")
}

/// A seed for one name (FNV-1a over the name, from the common seed).
fn mixed(seed: u64, name: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    name.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
