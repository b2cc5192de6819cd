//! A program bound to the extents of its inputs and states.

use egret_ir::bind::{Given, solve};
use egret_ir::{Bindings, Dim, Tensor};
use egret_program::{BufferId, Place, Program};

use crate::RuntimeError;
use crate::cpu::bound::Bound;
use crate::state::Table;

/// When an output is copied to where the caller finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputPlace {
    /// It is what a run begins with: an input, a state, a constant.
    Before,
    /// Steps write it.
    After,
}

/// An output whose extents are known.
#[derive(Debug)]
pub(crate) struct BoundOutput {
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: usize,
    /// Bytes that the session sets aside.
    pub(crate) room: usize,
    pub(crate) place: OutputPlace,
    /// Steps may write it straight into a tensor of the caller's.
    pub(crate) direct: bool,
}

/// What binding needs to know of a loaded program.
pub(crate) struct Loaded<'a> {
    pub(crate) program: &'a Program,
    /// Binds the steps of a run: symbols, inputs that are copied into the arena, buffers that are read afterwards.
    pub(crate) bind: &'a dyn Fn(&Bindings, &[bool], &[BufferId]) -> Result<Bound, RuntimeError>,
    /// Whether a buffer is read beyond its end.
    pub(crate) needs_slack: &'a dyn Fn(usize) -> bool,
    /// Whether every input is copied into the arena.
    pub(crate) stages_inputs: bool,
}

/// What a session knows once dims are known.
#[derive(Debug)]
pub(crate) struct Binding {
    /// Extents of all inputs, one behind the other.
    extents: Vec<usize>,
    generation: u64,
    /// Values of symbols.
    pub(crate) symbols: Bindings,
    pub(crate) bound: Bound,
    pub(crate) outputs: Vec<BoundOutput>,
    /// By input: bytes of what was given.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only GPUs need it"))]
    input_bytes: Vec<usize>,
    /// Buffers whose address is another in each run.
    pub(crate) moving: Vec<(usize, Place)>,
    /// When it was last used.
    pub(crate) used: u64,
}

impl Binding {
    /// Whether these inputs and states are those that were bound. Allocates nothing.
    pub(crate) fn fits(
        &self,
        program: &Program,
        inputs: &[(&str, &Tensor)],
        given: &[usize],
        state: Option<&Table>,
    ) -> bool {
        let mut rest = self.extents.as_slice();
        let same = program.inputs.iter().zip(given).all(|(port, at)| {
            let tensor = inputs[*at].1;
            let (shape, rank) = (tensor.shape(), port.ty.shape.rank());
            let (mine, others) = rest.split_at(rank.min(rest.len()));
            rest = others;
            tensor.dtype() == port.ty.dtype && mine == shape
        });
        same && state.is_none_or(|held| held.generation == self.generation)
    }

    /// By input: bytes of what was given.
    #[cfg(feature = "cuda")]
    pub(crate) fn input_bytes(&self) -> impl Iterator<Item = usize> {
        self.input_bytes.iter().copied()
    }

    /// Binds.
    pub(crate) fn new(
        loaded: &Loaded<'_>,
        inputs: &[(&str, &Tensor)],
        given: &[usize],
        state: Option<&Table>,
        state_entries: &[usize],
    ) -> Result<Binding, RuntimeError> {
        let program = loaded.program;
        let bindings = symbols(program, inputs, given, state, state_entries)?;
        check(program, &bindings)?;
        let size = |dim: &Dim, what: &dyn Fn() -> String| {
            // of what the run tells, the most that it may be
            let value = dim.upper_bound().eval(&bindings).map_err(|why| RuntimeError::size(what(), &why))?;
            usize::try_from(value)
                .map_err(|_| RuntimeError::Size { what: what(), why: format!("`{dim}` is {value}, below zero") })
        };

        let mut staged = vec![loaded.stages_inputs; program.inputs.len()];
        for (i, buffer) in program.buffers.iter().enumerate() {
            if let Place::Input(k) = buffer.place {
                staged[k as usize] |= (loaded.needs_slack)(i);
            }
        }
        let kept: Vec<_> = program.outputs.iter().map(|port| port.buffer).collect();
        let bound = (loaded.bind)(&bindings, &staged, &kept)?;

        let mut outputs = Vec::new();
        for (k, port) in program.outputs.iter().enumerate() {
            let what = || format!("output `{}`", port.name);
            let shape = port.ty.shape.iter().map(|dim| size(dim, &what)).collect::<Result<Vec<_>, _>>()?;
            let bytes = size(&port.ty.bytes(), &what)?;
            let place = match program.buffer(port.buffer).place {
                Place::Output(_) | Place::Arena => OutputPlace::After,
                _ => OutputPlace::Before,
            };
            if bytes > size(&program.buffer(port.buffer).bytes, &what)? {
                return Err(RuntimeError::malformed(format!("the buffer of {} is too small", what())));
            }
            let direct = program.buffer(port.buffer).place == Place::Output(k as u32);
            outputs.push(BoundOutput { shape, bytes, room: bytes, place, direct });
        }
        let mut moving = Vec::new();
        for (i, buffer) in program.buffers.iter().enumerate() {
            let what = || format!("bytes of buffer {i}");
            match buffer.place {
                Place::Input(k) => {
                    let bytes = inputs[given[k as usize]].1.bytes().len();
                    // A copy in the arena has exactly the buffer's room; a tensor of the caller's may have more.
                    let room = size(&buffer.bytes, &what)?;
                    if room > bytes || (staged[k as usize] && room < bytes) {
                        return Err(RuntimeError::malformed(format!("buffer {i} has not the size of its input")));
                    }
                }
                Place::State(k) => {
                    let bytes = state.map_or(0, |held| held.entries[state_entries[k as usize]].bytes);
                    if size(&buffer.bytes, &what)? > bytes {
                        return Err(RuntimeError::malformed(format!("buffer {i} has not the size of its state")));
                    }
                }
                Place::Output(k) => {
                    let room = size(&buffer.bytes, &what)?;
                    let output = &mut outputs[k as usize];
                    output.direct &= room <= output.bytes && !(loaded.needs_slack)(i);
                    output.room = output.room.max(room);
                }
                _ => {}
            }
            if matches!(buffer.place, Place::Input(_) | Place::Output(_)) {
                moving.push((i, buffer.place.clone()));
            }
        }
        let extents = given.iter().flat_map(|at| inputs[*at].1.shape().iter().copied()).collect();
        let generation = state.map_or(0, |held| held.generation);
        let input_bytes = given.iter().map(|at| inputs[*at].1.bytes().len()).collect();
        Ok(Binding { extents, generation, symbols: bindings, bound, outputs, input_bytes, moving, used: 0 })
    }
}

impl Binding {
    /// Gives outputs whose extents the run told their shapes.
    pub(crate) fn shape_outputs(&mut self, program: &Program, sizes: &Bindings) -> Result<(), RuntimeError> {
        for (port, output) in program.outputs.iter().zip(&mut self.outputs) {
            if !port.ty.shape.iter().any(Dim::is_data_dependent) {
                continue;
            }
            let what = || format!("output `{}`", port.name);
            for (extent, dim) in output.shape.iter_mut().zip(port.ty.shape.iter()) {
                let value = dim.eval(sizes).map_err(|why| RuntimeError::size(what(), &why))?;
                *extent = usize::try_from(value).map_err(|_| RuntimeError::malformed(what()))?;
            }
            output.bytes = output.shape.iter().product::<usize>() * port.ty.dtype.size();
            if output.bytes > output.room {
                return Err(RuntimeError::malformed(format!("{} is larger than its bound", what())));
            }
        }
        Ok(())
    }
}

/// The symbols' values.
fn symbols(
    program: &Program,
    inputs: &[(&str, &Tensor)],
    given: &[usize],
    state: Option<&Table>,
    state_entries: &[usize],
) -> Result<Bindings, RuntimeError> {
    let mut names = Vec::new();
    names.extend(program.inputs.iter().map(|port| format!("input `{}`", port.name)));
    names.extend(program.states.iter().map(|port| format!("state `{}`", port.name)));
    let inputs = program.inputs.iter().zip(given).map(|(port, at)| {
        let tensor = inputs[*at].1;
        (&port.ty, tensor.dtype(), tensor.shape())
    });
    let states = program.states.iter().zip(state_entries).filter_map(|(port, at)| {
        let entry = &state?.entries[*at];
        Some((&port.ty, entry.dtype, entry.shape.as_slice()))
    });
    let all: Vec<Given<'_>> = names
        .iter()
        .zip(inputs.chain(states))
        .map(|(name, (declared, dtype, shape))| Given { name, declared, dtype, shape })
        .collect();
    solve(&all).map_err(RuntimeError::Binding)
}

/// What must be equal.
fn check(program: &Program, bindings: &Bindings) -> Result<(), RuntimeError> {
    program.checks.iter().try_for_each(|check| holds(check, bindings))
}

/// That two sizes are equal.
pub(crate) fn holds(check: &egret_program::Check, bindings: &Bindings) -> Result<(), RuntimeError> {
    let value = |dim: &Dim| dim.eval(bindings).map_err(|why| RuntimeError::size(check.what.clone(), &why));
    let (left_value, right_value) = (value(&check.left)?, value(&check.right)?);
    if left_value == right_value {
        return Ok(());
    }
    Err(RuntimeError::Check {
        what: check.what.clone(),
        left: check.left.to_string(),
        left_value,
        right: check.right.to_string(),
        right_value,
        origin: check.origin.clone(),
    })
}
