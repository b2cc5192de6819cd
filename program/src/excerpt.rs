//! A few launches of a program as a program of their own, which can be run and measured alone.
//!
//! What they read is given to each run, what they write is returned, both as flat lists of elements just as they lie: in
//! blocked channels, packed, or part of something larger. Sizes are numbers.

use std::collections::BTreeMap;

use egret_ir::dim::DimError;
use egret_ir::{Bindings, Dim, TensorType};

use crate::program::{Arg, Buffer, BufferId, Halo, KernelBody, KernelId, Launch, Place, Port, Program, Step};

/// What is taken of a program.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'p> {
    /// Launches, in order.
    pub launches: &'p [Launch],
    /// What buffers are called as inputs and outputs. Those without a name live in the arena: what one of the launches
    /// leaves for another.
    pub names: &'p [(BufferId, String)],
    /// The values of symbols.
    pub sizes: &'p Bindings,
}

/// Why launches are no program of their own.
#[derive(Debug, thiserror::Error)]
pub enum ExcerptError {
    /// A size that is not known, or not a size.
    #[error(transparent)]
    Size(#[from] DimError),
    /// A buffer whose bytes are no elements.
    #[error("{bytes} bytes are no elements of {dtype}")]
    Elements {
        /// Bytes.
        bytes: i64,
        /// Element type.
        dtype: egret_ir::DType,
    },
}

/// The program that runs these launches alone, and of each of its kernels its number in `program`.
///
/// Outputs begin as inputs of their names, so that what the launches leave alone has equal bytes whatever writes the rest.
///
/// # Errors
/// [`ExcerptError`].
pub fn excerpt(program: &Program, taken: &Taken) -> Result<(Program, Vec<KernelId>), ExcerptError> {
    let empty = Program::empty(&program.device, program.lanes);
    let mut cut = Cut { from: program, taken, to: empty, buffers: BTreeMap::new(), kernels: Vec::new() };
    let launches = taken.launches.iter().map(|launch| cut.launch(launch)).collect::<Result<Vec<_>, _>>()?;
    cut.to.steps.extend(launches.into_iter().map(Step::Launch));
    Ok((cut.to, cut.kernels))
}

struct Cut<'p> {
    from: &'p Program,
    taken: &'p Taken<'p>,
    to: Program,
    buffers: BTreeMap<BufferId, BufferId>,
    /// By kernel of the excerpt.
    kernels: Vec<KernelId>,
}

impl Cut<'_> {
    fn size(&self, dim: &Dim) -> Result<i64, DimError> {
        dim.eval(self.taken.sizes)
    }

    fn number(&self, dim: &Dim) -> Result<Dim, DimError> {
        Ok(Dim::from(self.size(dim)?))
    }

    fn numbers(&self, dims: &[Dim]) -> Result<Vec<Dim>, DimError> {
        dims.iter().map(|dim| self.number(dim)).collect()
    }

    fn launch(&mut self, launch: &Launch) -> Result<Launch, ExcerptError> {
        let kernel = self.kernel(launch.kernel)?;
        let args = launch.args.iter().map(|arg| self.arg(arg)).collect::<Result<_, _>>()?;
        let mut clear = Vec::new();
        for halo in &launch.clear {
            clear.push(Halo {
                arg: self.arg(&halo.arg)?,
                outer: self.number(&halo.outer)?,
                spatial: self.numbers(&halo.spatial)?,
                halo: self.numbers(&halo.halo)?,
            });
        }
        Ok(Launch {
            kernel,
            args,
            dims: self.numbers(&launch.dims)?,
            grid: self.number(&launch.grid)?,
            clear,
            flops: self.number(&launch.flops)?,
            bytes: self.number(&launch.bytes)?,
            ..launch.clone()
        })
    }

    fn kernel(&mut self, id: KernelId) -> Result<KernelId, ExcerptError> {
        if let Some(at) = self.kernels.iter().position(|have| *have == id) {
            return Ok(KernelId(at as u32));
        }
        let mut kernel = self.from.kernel(id).clone();
        if let KernelBody::Driver { driver, hook, finisher } = &mut kernel.body {
            for of in [hook, finisher].into_iter().flatten() {
                *of = self.kernel(*of)?;
            }
            let mut wrong = None;
            *driver = driver.map(&mut |dim| {
                self.number(dim).unwrap_or_else(|error| {
                    wrong.get_or_insert(error);
                    Dim::ZERO
                })
            });
            if let Some(error) = wrong {
                return Err(error.into());
            }
        }
        self.to.kernels.push(kernel);
        self.kernels.push(id);
        Ok(KernelId(self.to.kernels.len() as u32 - 1))
    }

    fn arg(&mut self, arg: &Arg) -> Result<Arg, ExcerptError> {
        Ok(Arg { buffer: self.buffer(arg.buffer)?, offset: self.number(&arg.offset)?, writes: arg.writes })
    }

    fn add(&mut self, place: Place, like: &Buffer) -> BufferId {
        self.to.buffers.push(Buffer { place, ..like.clone() });
        BufferId(self.to.buffers.len() as u32 - 1)
    }

    fn buffer(&mut self, id: BufferId) -> Result<BufferId, ExcerptError> {
        if let Some(buffer) = self.buffers.get(&id) {
            return Ok(*buffer);
        }
        let of = self.from.buffer(id);
        let bytes = self.size(&of.bytes)?;
        let like = Buffer { bytes: Dim::from(bytes), logical_bytes: self.number(&of.logical_bytes)?, ..of.clone() };
        let name = self.taken.names.iter().find(|(have, _)| *have == id).map(|(_, name)| name.clone());
        let buffer = match (&of.place, name) {
            (Place::Constant(k), _) => {
                let place = Place::Constant(self.to.constants.len() as u32);
                self.to.constants.push(self.from.constants[*k as usize].clone());
                self.add(place, &like)
            }
            (_, None) => self.add(Place::Arena, &like),
            (_, Some(name)) => self.port(id, name, bytes, &like)?,
        };
        self.buffers.insert(id, buffer);
        Ok(buffer)
    }

    /// A buffer that is an input, or an output that begins as one.
    fn port(&mut self, id: BufferId, name: String, bytes: i64, like: &Buffer) -> Result<BufferId, ExcerptError> {
        let (dtype, size) = (like.dtype, like.dtype.size() as i64);
        if bytes < 0 || bytes % size != 0 {
            return Err(ExcerptError::Elements { bytes, dtype });
        }
        let ty = TensorType { dtype, shape: [Dim::from(bytes / size)].into_iter().collect() };
        let input = self.add(Place::Input(self.to.inputs.len() as u32), like);
        self.to.inputs.push(Port { name: name.clone(), ty: ty.clone(), buffer: input });
        let halos = |launch: &Launch| launch.clear.iter().any(|halo| halo.arg.buffer == id);
        let writes = |launch: &Launch| launch.args.iter().any(|arg| arg.writes && arg.buffer == id);
        if !self.taken.launches.iter().any(|launch| writes(launch) || halos(launch)) {
            return Ok(input);
        }
        let output = self.add(Place::Output(self.to.outputs.len() as u32), like);
        self.to.outputs.push(Port { name, ty, buffer: output });
        self.to.steps.push(Step::Copy {
            source: Arg::read(input),
            destination: Arg::write(output),
            bytes: Dim::from(bytes),
        });
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Driver, GemmProblem, GemmSchedule, Products};
    use egret_ir::DType;

    /// A product of `n` rows, its operand in a state, its result a part of something larger.
    fn program() -> Program {
        let n = Dim::symbol("n");
        let buffer =
            |place: Place, bytes: Dim| Buffer { place, dtype: DType::F32, bytes: bytes.clone(), logical_bytes: bytes };
        let problem = GemmProblem::plain(1, 4, 3);
        let schedule = GemmSchedule::choose(&problem, Products::F32, 8);
        let mut problem = problem.map(&mut |d| Dim::from(*d));
        problem.m = n.clone();
        let kernel = crate::program::Kernel {
            name: "gemm".into(),
            family: "gemm".into(),
            text: String::new(),
            body: KernelBody::Driver { driver: Driver::Gemm(problem, schedule), hook: None, finisher: None },
        };
        let launch = Launch {
            kernel: KernelId(0),
            args: vec![Arg::read(BufferId(0)), Arg::read(BufferId(1)), Arg::write(BufferId(3))],
            dims: Vec::new(),
            grid: Dim::ONE,
            grain: 1,
            clear: Vec::new(),
            faults: Vec::new(),
            origin: "here".into(),
            flops: n.clone() * Dim::from(24),
            bytes: n.clone(),
        };
        Program {
            version: crate::program::VERSION,
            device: "x86-64-portable".into(),
            lanes: 8,
            inputs: Vec::new(),
            outputs: Vec::new(),
            params: Vec::new(),
            states: Vec::new(),
            checks: Vec::new(),
            kernels: vec![kernel],
            buffers: vec![
                buffer(Place::State(0), n.clone() * Dim::from(12)),
                buffer(Place::Prepared, Dim::from(48)),
                buffer(Place::Arena, n.clone() * Dim::from(32)),
                buffer(Place::Part { of: BufferId(2), offset: Dim::from(16) }, n * Dim::from(16)),
            ],
            constants: Vec::new(),
            prepare: Vec::new(),
            steps: vec![Step::Launch(launch)],
        }
    }

    #[test]
    fn what_is_read_is_given_and_what_is_written_is_returned() {
        let program = program();
        let launches: Vec<Launch> = program.launches().into_iter().cloned().collect();
        let names: Vec<(BufferId, String)> =
            [(0, "a"), (1, "b"), (3, "c")].map(|(id, name)| (BufferId(id), name.to_string())).to_vec();
        let sizes: Bindings = [("n".into(), 5)].into_iter().collect();
        let taken = Taken { launches: &launches, names: &names, sizes: &sizes };
        let (alone, kernels) = excerpt(&program, &taken).unwrap();
        assert_eq!(kernels, [KernelId(0)]);
        let of = |ports: &[Port]| ports.iter().map(|p| format!("{} {}", p.name, p.ty)).collect::<Vec<_>>().join(", ");
        assert_eq!(of(&alone.inputs), "a f32[15], b f32[12], c f32[20]");
        assert_eq!(of(&alone.outputs), "c f32[20]");
        assert!(matches!(alone.steps.as_slice(), [Step::Copy { .. }, Step::Launch(l)] if l.flops.is(120)));
        let KernelBody::Driver { driver: Driver::Gemm(problem, _), .. } = &alone.kernels[0].body else { panic!() };
        assert!(problem.m.is(5));
    }

    #[test]
    fn a_size_that_nobody_knows_is_refused() {
        let program = program();
        let launches: Vec<Launch> = program.launches().into_iter().cloned().collect();
        let taken = Taken { launches: &launches, names: &[], sizes: &Bindings::new() };
        assert!(matches!(excerpt(&program, &taken), Err(ExcerptError::Size(_))));
    }
}
