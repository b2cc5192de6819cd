//! From a graph to something that runs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egret_compiler::{CompileOptions, Compiled};
use egret_ir::{Diagnostic, Graph, Tensor, Weight};
use egret_program::Program;
use egret_runtime::LoadOptions;

use crate::device::Device;
use crate::error::Result;
use crate::session::Session;
use crate::state::State;

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
        let expanded = Arc::new(egret_ir::autodiff::expand(graph)?);
        let engine = Engine::Interpreter(expanded);
        return Ok(Executable { engine, graph: graph.clone(), compiled: None, load_time: Duration::ZERO });
    };
    let compiled = egret_compiler::compile(graph, &description, options)?;
    let start = Instant::now();
    let program = Arc::new(compiled.program.clone());
    Ok(Executable {
        engine: load(program, device, &|name| weight(graph, name))?,
        graph: graph.clone(),
        compiled: Some(Arc::new(compiled)),
        load_time: start.elapsed(),
    })
}

/// Loads a program where it runs.
fn load(program: Arc<Program>, device: &Device, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<Engine> {
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
