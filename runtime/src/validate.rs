//! Checks of a program before it is trusted with memory.

use egret_program::program::VERSION;
use egret_program::{Arg, Carried, DeviceDescription, KernelBody, Place, Port, Program, SizeValue, Step, Target};
use egret_simd::Isa;

use crate::RuntimeError;
use crate::cpu::bind::every_step;
use crate::cpu::lifetime::roots;

/// The instruction set that a program runs with here: the one asked for, else that of its description.
pub(crate) fn isa(program: &Program, asked: Option<Isa>) -> Result<Isa, RuntimeError> {
    if program.version != VERSION {
        return Err(RuntimeError::Version { found: program.version, expected: VERSION });
    }
    let refuse = |why: String| RuntimeError::Device { device: program.device.clone(), why };
    let described = match DeviceDescription::named(&program.device).map(|d| d.target) {
        Ok(Target::Cuda { .. }) => return Err(refuse("that is no CPU".into())),
        Ok(Target::Cpu { arch, isa, .. }) => {
            let code = program.kernels.iter().any(|k| !matches!(k.body, KernelBody::Driver { .. }));
            if code && arch != std::env::consts::ARCH {
                return Err(refuse(format!("its code is for {arch}, this is {}", std::env::consts::ARCH)));
            }
            let isa = Isa::from_name(&isa).ok_or_else(|| refuse(format!("`{isa}` is no instruction set")))?;
            if code && !isa.is_supported() {
                return Err(refuse(format!("its code needs {isa}, which this processor lacks")));
            }
            Some(isa)
        }
        // A description of the user's own.
        Err(_) => None,
    };
    let fits = |isa: &Isa| isa.is_supported() && isa.lanes_f32() == program.lanes;
    let isa = asked.or(described).or_else(|| Isa::ALL.into_iter().rev().find(fits));
    match isa {
        Some(isa) if fits(&isa) => Ok(isa),
        Some(isa) if isa.is_supported() => {
            Err(refuse(format!("its layouts have {} lanes, {isa} has {}", program.lanes, isa.lanes_f32())))
        }
        Some(isa) => Err(refuse(format!("this processor lacks {isa}"))),
        None => Err(refuse(format!("this processor has no vectors of {} floats", program.lanes))),
    }
}

/// Checks that every number names something, and that nothing writes what is only to be read.
pub(crate) fn program(program: &Program) -> Result<(), RuntimeError> {
    let wrong = RuntimeError::malformed;
    for (i, buffer) in program.buffers.iter().enumerate() {
        let (number, count) = match &buffer.place {
            Place::Input(k) => (*k, program.inputs.len()),
            Place::Output(k) => (*k, program.outputs.len()),
            Place::Param(k) => (*k, program.params.len()),
            Place::Constant(k) => (*k, program.constants.len()),
            Place::State(k) => (*k, program.states.len()),
            Place::Slice { of, .. } | Place::Part { of, .. } => (of.0, program.buffers.len()),
            Place::Prepared | Place::Arena => continue,
        };
        if number as usize >= count {
            return Err(wrong(format!("buffer {i} is number {number} of {count}")));
        }
    }
    let Some(root) = roots(program) else {
        return Err(wrong("a buffer is a slice of itself".to_string()));
    };
    for (i, buffer) in program.buffers.iter().enumerate() {
        if let Place::Part { of, .. } = &buffer.place
            && !matches!(program.buffers[of.0 as usize].place, Place::Arena | Place::Part { .. })
        {
            return Err(wrong(format!("buffer {i} is part of one that is not in the arena")));
        }
    }
    let ports = |ports: &[Port], what: &str, is: &dyn Fn(&Place, u32) -> bool| {
        for (i, port) in ports.iter().enumerate() {
            match program.buffers.get(port.buffer.0 as usize) {
                Some(buffer) if is(&buffer.place, i as u32) => {}
                _ => return Err(RuntimeError::malformed(format!("the buffer of {what} `{}` is no such", port.name))),
            }
        }
        Ok(())
    };
    ports(&program.inputs, "input", &|place, i| *place == Place::Input(i))?;
    ports(&program.params, "param", &|place, i| *place == Place::Param(i))?;
    ports(&program.states, "state", &|place, i| *place == Place::State(i))?;
    ports(&program.outputs, "output", &|place, _| !matches!(place, Place::Slice { .. } | Place::Part { .. }))?;

    let arg = |arg: &Arg, writes: bool, prepare: bool| {
        let Some(root) = root.get(arg.buffer.0 as usize) else {
            return Err(RuntimeError::malformed(format!("there is no buffer {}", arg.buffer.0)));
        };
        let place = &program.buffers[*root].place;
        let allowed = match place {
            Place::Arena => true,
            Place::Prepared => prepare || !writes,
            Place::Param(_) | Place::Constant(_) => !writes,
            Place::Input(_) => !prepare && !writes,
            Place::Output(_) | Place::State(_) => !prepare,
            Place::Slice { .. } | Place::Part { .. } => false,
        };
        if !allowed {
            let phase = if prepare { "preparation" } else { "run" };
            let does = if writes { "writes" } else { "reads" };
            return Err(RuntimeError::malformed(format!("a step of the {phase} {does} buffer {}", arg.buffer.0)));
        }
        Ok(())
    };
    let carried = |carry: &Carried, prepare: bool| {
        arg(&carry.first, false, prepare)?;
        arg(&carry.next, false, prepare)?;
        let offset = egret_ir::Dim::ZERO;
        arg(&Arg { buffer: carry.current, offset, writes: true }, true, prepare)
    };
    for (steps, prepare) in [(&program.prepare, true), (&program.steps, false)] {
        for step in every_step(steps) {
            match step {
                Step::Launch(launch) => {
                    let Some(kernel) = program.kernels.get(launch.kernel.0 as usize) else {
                        return Err(wrong(format!("there is no kernel {}", launch.kernel.0)));
                    };
                    if let KernelBody::Driver { hook, finisher, .. } = &kernel.body {
                        for id in [hook, finisher].into_iter().flatten() {
                            if !matches!(program.kernels.get(id.0 as usize).map(|k| &k.body), Some(KernelBody::Hook(_)))
                            {
                                return Err(wrong(format!("kernel {} is no hook", id.0)));
                            }
                        }
                    }
                    launch.args.iter().try_for_each(|a| arg(a, a.writes, prepare))?;
                    launch.clear.iter().try_for_each(|halo| arg(&halo.arg, true, prepare))?;
                }
                Step::Copy { source, destination, .. } => {
                    arg(source, false, prepare)?;
                    arg(destination, true, prepare)?;
                }
                Step::Loop(inner) => inner.carried.iter().try_for_each(|c| carried(c, prepare))?,
                Step::While(inner) => {
                    inner.carried.iter().try_for_each(|c| carried(c, prepare))?;
                    arg(&inner.test, false, prepare)?;
                    arg(&inner.trips, true, prepare)?;
                }
                Step::Branch(branch) => arg(&branch.condition, false, prepare)?,
                Step::Size(size) => {
                    if let SizeValue::Read(read) = &size.value {
                        arg(read, false, prepare)?;
                    }
                }
                Step::Check(_) => {}
            }
        }
    }
    Ok(())
}

/// By buffer: whether a driver reads whole vectors of it, beyond its end too. Of an image that is row-major, forward
/// convolutions copy rows as long as they are.
pub(crate) fn needs_slack(program: &Program) -> Vec<bool> {
    use egret_program::driver::{ConvForm, ConvInput, Driver};
    let root = roots(program).unwrap_or_default();
    let mut needs = vec![false; program.buffers.len()];
    for step in every_step(&program.steps).chain(every_step(&program.prepare)) {
        if let Step::Launch(launch) = step
            && let KernelBody::Driver { driver: Driver::Conv(problem, _), .. } = &program.kernel(launch.kernel).body
        {
            let exact = problem.input == ConvInput::Image && problem.form == ConvForm::Forward;
            for arg in launch.args.iter().skip(usize::from(exact)).filter(|a| !a.writes) {
                if let Some(root) = root.get(arg.buffer.0 as usize) {
                    needs[*root] = true;
                }
            }
        }
    }
    needs
}
