//! From a graph to something that runs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egret_compiler::{CompileOptions, Compiled};
use egret_ir::{Diagnostic, Graph, Tensor, Weight};
use egret_program::Program;
use egret_runtime::LoadOptions;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::state::State;
use crate::tuner::Tuning;

/// What runs a graph.
#[derive(Clone)]
pub(crate) enum Engine {
    Cpu(Arc<egret_runtime::Executable>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<egret_runtime::cuda::Executable>),
    /// The graph, without `grad` nodes.
    Interpreter(Arc<Graph>),
}

/// A graph that is ready to run; clones share it.
#[derive(Clone)]
pub struct Executable {
    pub(crate) engine: Engine,
    graph: Graph,
    compiled: Option<Arc<Compiled>>,
    tuning: Option<Arc<Tuning>>,
    load_time: Duration,
}

/// Compiles a graph for a device and loads it.
///
/// # Errors
/// What is wrong with the graph, with the nodes at fault.
pub fn compile(graph: &Graph, device: &Device) -> Result<Executable> {
    compile_with(graph, device, &CompileOptions::default())
}

/// [`compile`], with options.
///
/// # Errors
/// As [`compile`].
pub fn compile_with(graph: &Graph, device: &Device, options: &CompileOptions) -> Result<Executable> {
    let Some(description) = device.description()? else {
        if device.tuner().is_some() {
            let error = Diagnostic::new("E0808", "the interpreter has no schedules that could be tuned");
            return Err(error.help("tune for `cpu` or a GPU").into());
        }
        let engine = Engine::Interpreter(Arc::new(egret_ir::autodiff::expand(graph)?));
        return Ok(Executable::bare(engine, graph.clone(), Duration::ZERO));
    };
    let mut tuning = None;
    let compiled = match device.tuner() {
        None => egret_compiler::compile(graph, &description, options)?,
        Some(tuner) => egret_compiler::compile_choosing(graph, &description, options, &mut |planned| {
            let found = tuner.tune(planned, device, &description, &options.plan())?;
            for (tuned, why) in found.left_out() {
                tracing::warn!(problem = %tuned.key, origin = tuned.origin, why, "a problem was not tuned");
            }
            for (tuned, schedule, why) in found.dropped() {
                tracing::warn!(problem = %tuned.key, origin = tuned.origin, %schedule, why, "a schedule was dropped");
            }
            let schedules = options.schedules.or(&found.schedules());
            tuning = Some(Arc::new(found));
            Ok::<_, Error>(schedules)
        })?,
    };
    let start = Instant::now();
    let program = Arc::new(compiled.program.clone());
    let engine = load(program, device, &|name| weight(graph, name))?;
    let bare = Executable::bare(engine, graph.clone(), start.elapsed());
    Ok(Executable { compiled: Some(Arc::new(compiled)), tuning, ..bare })
}

/// Loads a program where it runs.
pub(crate) fn load(program: Arc<Program>, device: &Device, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<Engine> {
    #[cfg(feature = "cuda")]
    if let Some((gpu, cache)) = device.gpu()? {
        let options = egret_runtime::cuda::LoadOptions { cache };
        return Ok(Engine::Cuda(egret_runtime::cuda::Executable::load(program, &gpu, weights, &options)?));
    }
    let options = LoadOptions { threads: device.threads(), isa: None };
    Ok(Engine::Cpu(egret_runtime::Executable::load(program, weights, options)?))
}

fn weight(graph: &Graph, name: &str) -> Option<Tensor> {
    graph.weights.get(name).map(Weight::materialise)
}

impl Executable {
    /// What is loaded, without the stages of its compilation.
    pub(crate) fn bare(engine: Engine, graph: Graph, load_time: Duration) -> Executable {
        Executable { engine, graph, compiled: None, tuning: None, load_time }
    }

    /// What was measured to choose its schedules, where its device has a tuner.
    pub fn tuning(&self) -> Option<&Tuning> {
        self.tuning.as_deref()
    }

    /// The graph as it was given.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Every stage of its compilation; `None` of the interpreter.
    pub fn compiled(&self) -> Option<&Compiled> {
        self.compiled.as_deref()
    }

    /// The program; `None` of the interpreter.
    pub fn program(&self) -> Option<&Program> {
        self.compiled().map(|compiled| &compiled.program)
    }

    /// Writes the program and its weights to a file, which `egret_runtime::Executable::open` loads: a program that opens
    /// it needs neither the compiler nor an importer.
    ///
    /// # Errors
    /// `E0804` of the interpreter, which has no program; `E0515` when the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let Some(program) = self.program() else {
            return Err(Diagnostic::new("E0804", "the interpreter compiles nothing that could be saved").into());
        };
        Ok(egret_runtime::artefact::write(path, program, &|name| weight(&self.graph, name))?)
    }

    /// How long it took to map code and to prepare weights.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// A session; where the graph has state, with one of its own.
    ///
    /// # Errors
    /// No memory; a state without a first value.
    pub fn session(&self) -> Result<Session> {
        self.session_with(&self.state()?)
    }

    /// A session that shares `state` with others.
    ///
    /// # Errors
    /// A state of another device or without what the graph needs; no memory.
    pub fn session_with(&self, state: &State) -> Result<Session> {
        Session::new(self, state)
    }

    /// The states of this graph with their first values.
    ///
    /// # Errors
    /// A state without a first value; no memory.
    pub fn state(&self) -> Result<State> {
        State::new(self)
    }

    /// The first value of a param or state.
    pub(crate) fn first_value(&self, name: &str) -> Option<Tensor> {
        weight(&self.graph, name)
    }

    pub(crate) fn device_name(&self) -> &'static str {
        match self.engine {
            Engine::Cpu(_) => "cpu",
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => "cuda",
            Engine::Interpreter(_) => "interpreter",
        }
    }
}
