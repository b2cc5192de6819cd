//! Runs.

use std::sync::{Arc, Mutex};

use egret_ir::{Graph, Tensor, Tensors, interpret};
use egret_runtime::{Copied, MemoryReport, RuntimeError, Span, StepTime};

use crate::compile::{Engine, Executable};
use crate::error::{Error, Result};
use crate::outputs::{Held, Outputs};
use crate::state::{State, Store, lock};

enum Runs {
    Cpu(Box<egret_runtime::Session>),
    #[cfg(feature = "cuda")]
    Cuda(Box<egret_runtime::cuda::Session>),
    Interpreter {
        graph: Arc<Graph>,
        state: Arc<Mutex<Tensors>>,
        outputs: Vec<(String, Tensor)>,
    },
}

/// Memory and threads for runs of an executable, one run at a time.
pub struct Session {
    runs: Runs,
}

impl Session {
    pub(crate) fn new(exe: &Executable, state: &State) -> Result<Session> {
        let runs = match (&exe.engine, &state.store) {
            (Engine::Cpu(loaded), Store::Cpu(state)) => Runs::Cpu(Box::new(loaded.session_with(state)?)),
            #[cfg(feature = "cuda")]
            (Engine::Cuda(loaded), Store::Cuda(state)) => Runs::Cuda(Box::new(loaded.session_with(state)?)),
            (Engine::Interpreter(graph), Store::Interpreter(state)) => {
                Runs::Interpreter { graph: graph.clone(), state: state.clone(), outputs: Vec::new() }
            }
            _ => return Err(state.other_device(exe)),
        };
        Ok(Session { runs })
    }

    /// Runs on inputs by name. The outputs are valid until the next run.
    ///
    /// # Errors
    /// Inputs that are missing, unknown, or of another type or shape; dims that contradict what the graph needs; an index
    /// out of range or an integer divided by zero; no memory.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Outputs<'_>> {
        match &mut self.runs {
            Runs::Cpu(session) => Ok(Outputs(Held::Device(session.run(inputs)?))),
            #[cfg(feature = "cuda")]
            Runs::Cuda(session) => Ok(Outputs(Held::Device(session.run(inputs)?))),
            Runs::Interpreter { graph, state, outputs } => {
                *outputs = reference(graph, state, inputs)?;
                Ok(Outputs(Held::Host(outputs)))
            }
        }
    }

    /// Runs, and puts outputs into tensors of their type and shape.
    ///
    /// # Errors
    /// As [`run`](Session::run), and a tensor of another type or shape.
    pub fn run_into(&mut self, inputs: &[(&str, &Tensor)], outputs: &mut [(&str, &mut Tensor)]) -> Result<()> {
        match &mut self.runs {
            Runs::Cpu(session) => Ok(session.run_into(inputs, outputs)?),
            #[cfg(feature = "cuda")]
            Runs::Cuda(session) => Ok(session.run_into(inputs, outputs)?),
            Runs::Interpreter { graph, state, .. } => {
                let results = reference(graph, state, inputs)?;
                for (name, tensor) in outputs {
                    let Some((_, value)) = results.iter().find(|(have, _)| have == name) else {
                        let known = results.iter().map(|(n, _)| format!("`{n}`")).collect::<Vec<_>>().join(", ");
                        return Err(Error::UnknownOutput { name: name.to_string(), known });
                    };
                    if (tensor.dtype(), tensor.shape()) != (value.dtype(), value.shape()) {
                        let ty = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
                        let (want, have) = (ty(value), ty(tensor));
                        return Err(Error::WrongTensor { name: name.to_string(), want, have });
                    }
                    tensor.bytes_mut().copy_from_slice(value.bytes());
                }
                Ok(())
            }
        }
    }

    /// Measures each step of the runs that follow, or no longer. The interpreter measures nothing.
    pub fn profile(&mut self, on: bool) {
        match &mut self.runs {
            Runs::Cpu(session) => session.profile(on),
            #[cfg(feature = "cuda")]
            Runs::Cuda(session) => session.profile(on),
            Runs::Interpreter { .. } => {}
        }
    }

    /// What [`profile`](Session::profile) measured in the last run.
    pub fn timings(&self) -> &[StepTime] {
        match &self.runs {
            Runs::Cpu(session) => session.timings(),
            #[cfg(feature = "cuda")]
            Runs::Cuda(session) => session.timings(),
            Runs::Interpreter { .. } => &[],
        }
    }

    /// When each step of the last profiled run was executed, by its place in [`timings`](Session::timings). The interpreter
    /// measures nothing.
    pub fn spans(&self) -> &[Span] {
        match &self.runs {
            Runs::Cpu(session) => session.spans(),
            #[cfg(feature = "cuda")]
            Runs::Cuda(session) => session.spans(),
            Runs::Interpreter { .. } => &[],
        }
    }

    /// What the last run copied. The interpreter counts nothing.
    pub fn copied(&self) -> Copied {
        match &self.runs {
            Runs::Cpu(session) => session.copied(),
            #[cfg(feature = "cuda")]
            Runs::Cuda(session) => session.copied(),
            Runs::Interpreter { .. } => Copied::default(),
        }
    }

    /// What memory the last run needed; zeros of the interpreter.
    pub fn memory(&self) -> MemoryReport {
        match &self.runs {
            Runs::Cpu(session) => session.memory(),
            #[cfg(feature = "cuda")]
            Runs::Cuda(session) => session.memory(),
            Runs::Interpreter { .. } => MemoryReport::default(),
        }
    }
}

fn reference(graph: &Graph, state: &Mutex<Tensors>, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>> {
    let mut given = Tensors::new();
    for (name, tensor) in inputs {
        if given.insert(name.to_string(), (*tensor).clone()).is_some() {
            return Err(RuntimeError::Duplicate { name: name.to_string() }.into());
        }
    }
    let mut held = lock(state);
    let own: Tensors = graph
        .iter()
        .filter_map(|(_, node)| match &node.op {
            egret_ir::Op::State(leaf) => Some((leaf.name.clone(), held.get(&leaf.name)?.clone())),
            _ => None,
        })
        .collect();
    let outcome = interpret(graph, &given, &own)?;
    held.extend(outcome.updates);
    Ok(outcome.outputs)
}
