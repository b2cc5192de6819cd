//! Where programs run.

use egret_ir::Diagnostic;
use egret_program::DeviceDescription;
use egret_simd::Isa;

use crate::error::Result;

#[derive(Clone, Debug)]
enum Kind {
    Cpu(Option<DeviceDescription>),
    Interpreter,
}

/// A device, and how many threads sessions on it have.
///
/// ```
/// use egret::Device;
/// assert_eq!(Device::cpu().with_threads(2).name(), "cpu");
/// assert!(Device::interpreter().description().unwrap().is_none());
/// ```
#[derive(Clone, Debug)]
pub struct Device {
    kind: Kind,
    threads: usize,
}

impl Device {
    /// The host's processor, by the instruction set that it has.
    pub fn cpu() -> Device {
        Device { kind: Kind::Cpu(None), threads: 0 }
    }

    /// The reference interpreter: slow, and right by definition.
    pub fn interpreter() -> Device {
        Device { kind: Kind::Interpreter, threads: 1 }
    }

    /// A processor as described; loading fails where the host is another.
    pub fn described(description: DeviceDescription) -> Device {
        Device { kind: Kind::Cpu(Some(description)), threads: 0 }
    }

    /// That many threads; 0: as many as the process may use. Results have the same bits for any number.
    pub fn with_threads(mut self, threads: usize) -> Device {
        self.threads = threads;
        self
    }

    /// Threads; 0: as many as the process may use.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// `cpu` or `interpreter`.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Cpu(_) => "cpu",
            Kind::Interpreter => "interpreter",
        }
    }

    /// What the compiler knows of it; the interpreter has no compiler.
    ///
    /// # Errors
    /// `E0803` when the host is of an architecture that nothing describes.
    pub fn description(&self) -> Result<Option<DeviceDescription>> {
        match &self.kind {
            Kind::Interpreter => Ok(None),
            Kind::Cpu(Some(description)) => Ok(Some(description.clone())),
            Kind::Cpu(None) if cfg!(target_arch = "x86_64") => {
                Ok(Some(DeviceDescription::named(&format!("x86-64-{}", Isa::detect()))?))
            }
            Kind::Cpu(None) if cfg!(target_arch = "aarch64") => Ok(Some(DeviceDescription::named("aarch64-neon")?)),
            Kind::Cpu(None) => {
                let message = format!("no description of {} processors is shipped", std::env::consts::ARCH);
                Err(Diagnostic::new("E0803", message).help("use the device `interpreter`").into())
            }
        }
    }
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Device, String> {
        match text {
            "cpu" => Ok(Device::cpu()),
            "interpreter" => Ok(Device::interpreter()),
            other => Err(format!("`{other}` is no device: cpu, interpreter")),
        }
    }
}
