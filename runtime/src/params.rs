//! Which params steps read: those of runs stay, those of the preparation alone go after the last step that reads them.

use egret_program::{Place, Program, Step};

use crate::cpu::bind::every_step;
use crate::cpu::lifetime::roots;
use crate::executable::each_buffer;

/// A param's buffer and its number.
pub(crate) type Param = (usize, u32);

/// The params that a program reads.
pub(crate) struct ParamReads {
    of_runs: Vec<Param>,
    of_steps: Vec<Vec<Param>>,
    /// By step of the preparation, the buffers that nothing reads after it.
    done: Vec<Vec<usize>>,
}

impl ParamReads {
    /// Looks through the steps of runs and of the preparation.
    pub(crate) fn of(program: &Program) -> ParamReads {
        let root = roots(program).unwrap_or_default();
        let read = |steps: &[Step]| {
            let mut params: Vec<Param> = Vec::new();
            let mut add = |at: usize| {
                if let Place::Param(number) = program.buffers[at].place {
                    params.push((at, number));
                }
            };
            for step in every_step(steps) {
                each_buffer(step, &mut |id| add(root[id.0 as usize]));
            }
            params.sort_unstable();
            params.dedup();
            params
        };
        let mut of_runs = read(&program.steps);
        for port in &program.outputs {
            let at = port.buffer.0 as usize;
            if let Place::Param(number) = program.buffers[at].place {
                of_runs.push((at, number));
            }
        }
        of_runs.sort_unstable();
        of_runs.dedup();
        let of_steps: Vec<Vec<Param>> = program.prepare.iter().map(|step| read(std::slice::from_ref(step))).collect();
        let mut done = vec![Vec::new(); of_steps.len()];
        let mut needed = vec![false; program.buffers.len()];
        of_runs.iter().for_each(|(at, _)| needed[*at] = true);
        for (step, params) in of_steps.iter().enumerate().rev() {
            for (at, _) in params {
                if !std::mem::replace(&mut needed[*at], true) {
                    done[step].push(*at);
                }
            }
        }
        ParamReads { of_runs, of_steps, done }
    }

    /// Params that runs read.
    pub(crate) fn of_runs(&self) -> &[Param] {
        &self.of_runs
    }

    /// Params that a step of the preparation reads.
    pub(crate) fn of_step(&self, step: usize) -> &[Param] {
        &self.of_steps[step]
    }

    /// Buffers of params that nothing reads after a step of the preparation.
    pub(crate) fn done_after(&self, step: usize) -> &[usize] {
        &self.done[step]
    }
}
