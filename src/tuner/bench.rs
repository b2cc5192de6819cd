//! Running problems alone on a device.

use std::sync::Arc;
use std::time::Duration;

use egret_compiler::tune::{self, Candidate};
use egret_ir::{Diagnostic, Graph, Tensor};
use egret_program::{DeviceDescription, Program};

use crate::compile::{Executable, load};
use crate::device::Device;
use crate::error::Result;
use crate::session::Session;

/// What measures.
pub(super) trait Bench {
    /// What times depend on beside the description: versions, threads.
    fn environment(&self) -> String;

    /// What the device can do at best.
    fn roofline(&self) -> DeviceDescription;

    /// Whether every time of a schedule is the same: the clock is modelled.
    fn is_steady(&self) -> bool;

    /// Makes the candidates of a problem ready.
    fn load(&self, candidates: Vec<Candidate>) -> Vec<Result<Box<dyn Runs>>>;
}

/// A candidate that is ready to run.
pub(super) trait Runs: Send {
    /// Runs it, and gives its results.
    fn results(&mut self) -> Result<Vec<Tensor>>;

    /// Runs it, and gives the time of its kernels, µs.
    fn time(&mut self) -> Result<f64>;
}

/// The device itself.
pub(super) struct OnDevice<'d> {
    device: &'d Device,
    description: &'d DeviceDescription,
    environment: String,
}

impl<'d> OnDevice<'d> {
    /// A device that compiles.
    pub(super) fn new(device: &'d Device, description: &'d DeviceDescription) -> Result<OnDevice<'d>> {
        Ok(OnDevice { device, description, environment: device.environment()? })
    }
}

impl Bench for OnDevice<'_> {
    fn environment(&self) -> String {
        format!("egret {}, {}", env!("CARGO_PKG_VERSION"), self.environment)
    }

    fn roofline(&self) -> DeviceDescription {
        let mut description = self.description.clone();
        if description.is_cpu() {
            // a description counts the cores of a machine, and a session has threads
            description.cores = self.device.thread_count() as u32;
        }
        description
    }

    fn is_steady(&self) -> bool {
        self.device.is_simulated()
    }

    fn load(&self, candidates: Vec<Candidate>) -> Vec<Result<Box<dyn Runs>>> {
        let one = |candidate: Candidate| {
            let alone = Alone::new(candidate.program?, self.device)?;
            Ok(Box::new(alone) as Box<dyn Runs>)
        };
        if !self.description.is_cpu() {
            // NVRTC takes its time: all at once
            return std::thread::scope(|scope| {
                let threads: Vec<_> = candidates.into_iter().map(|candidate| scope.spawn(|| one(candidate))).collect();
                let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<Box<dyn Runs>>>| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(Diagnostic::new("E0808", "loading a schedule panicked").into()))
                };
                threads.into_iter().map(ended).collect()
            });
        }
        candidates.into_iter().map(one).collect()
    }
}

/// A program of one problem, with inputs.
struct Alone {
    session: Session,
    inputs: Vec<(String, Tensor)>,
}

impl Alone {
    fn new(program: Program, device: &Device) -> Result<Alone> {
        let Some(inputs) = tune::inputs(&program) else {
            return Err(Diagnostic::new("E0808", "a problem's operands are too large to be drawn").into());
        };
        let engine = load(Arc::new(program), device, &|_| None)?;
        let mut session = Executable::bare(engine, Graph::new(), Duration::ZERO).session()?;
        session.profile(true);
        Ok(Alone { session, inputs })
    }

    fn run(&mut self) -> Result<crate::outputs::Outputs<'_>> {
        let given: Vec<(&str, &Tensor)> = self.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        self.session.run(&given)
    }
}

impl Runs for Alone {
    fn results(&mut self) -> Result<Vec<Tensor>> {
        Ok(self.run()?.iter().map(|output| output.to_tensor()).collect())
    }

    fn time(&mut self) -> Result<f64> {
        self.run()?;
        // what results begin as is copied: that is no part of the problem
        let kernels = self.session.timings().iter().filter(|step| step.family != "copy");
        Ok(kernels.map(|step| step.ns).sum::<u64>() as f64 / 1e3)
    }
}
