//! What only a run tells: extents of data-dependent size, and launches that have such.

use egret_ir::{Bindings, Dim, DimError};
use egret_program::driver::Driver;
use egret_program::driver::hook::EpilogueFn;
use egret_program::{Arg, Halo, KernelBody, Launch, Program};
use egret_simd::Isa;

use super::bind::Binder;
use super::bound::{Entry, KernelFn};
use super::driver_plan::DriverPlan;
use super::drivers::ScratchNeed;
use super::halo::Border;
use crate::RuntimeError;

/// A number, or what it is computed from.
#[derive(Clone, Debug)]
pub(crate) enum Extent {
    /// Known when the session was bound.
    Known(usize),
    /// Known once its data-dependent sizes are.
    Late(Dim),
}

impl Extent {
    /// Its value in a run.
    pub(crate) fn value(&self, sizes: &Bindings) -> Result<usize, RuntimeError> {
        match self {
            Extent::Known(value) => Ok(*value),
            Extent::Late(dim) => number(dim, sizes, &|| "a data-dependent size".into()),
        }
    }
}

fn number(dim: &Dim, sizes: &Bindings, what: &dyn Fn() -> String) -> Result<usize, RuntimeError> {
    let value = dim.eval(sizes).map_err(|why: DimError| RuntimeError::size(what(), &why))?;
    usize::try_from(value)
        .map_err(|_| RuntimeError::Size { what: what(), why: format!("`{dim}` is {value}, below zero") })
}

/// What is launched.
#[derive(Debug)]
enum Body {
    Code {
        entry: KernelFn,
        scratch_bytes: usize,
    },
    Device {
        kernel: usize,
    },
    Driver {
        driver: Box<Driver<Dim>>,
        hook: Option<EpilogueFn>,
        finisher: Option<EpilogueFn>,
        isa: Isa,
        kernel: String,
    },
}

/// A launch that is bound whenever it runs.
#[derive(Debug)]
pub(crate) struct LateLaunch {
    body: Body,
    args: Vec<Arg>,
    /// By argument: bytes of its buffer.
    bytes: Vec<Dim>,
    dims: Vec<Dim>,
    grid: Dim,
    grain: usize,
    clear: Vec<Halo>,
    origin: String,
    threads: usize,
    lanes: usize,
}

/// A launch whose extents are known.
pub(crate) enum Ready {
    /// Generated code: its dims, points of its grid, and how many chunks they are cut into.
    Code { entry: KernelFn, dims: Vec<i64>, grid: usize, chunks: usize },
    /// A kernel of a GPU: its number, dims, and points of its grid.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only GPUs need it"))]
    Device { kernel: usize, dims: Vec<i64>, grid: usize },
    /// A driver.
    Driver(Box<DriverPlan>),
}

/// Whether a launch has an extent that only a run tells.
pub(crate) fn is_late(launch: &Launch, program: &Program) -> bool {
    let mut late = launch.grid.is_data_dependent()
        || launch.dims.iter().any(Dim::is_data_dependent)
        || launch.args.iter().any(|arg| arg.offset.is_data_dependent())
        || launch.clear.iter().any(|halo| halo.outer.is_data_dependent());
    if let KernelBody::Driver { driver, .. } = &program.kernel(launch.kernel).body {
        driver.map(&mut |dim: &Dim| late |= dim.is_data_dependent());
    }
    late
}

impl LateLaunch {
    /// Takes what does not depend on extents.
    pub(crate) fn new(launch: &Launch, binder: &Binder<'_>) -> Result<LateLaunch, RuntimeError> {
        let kernel = binder.program.kernel(launch.kernel);
        let entry = |id: &Option<egret_program::KernelId>| match id.map(|id| binder.entries[id.0 as usize]) {
            Some(Entry::Hook(hook)) => Some(hook),
            _ => None,
        };
        let body = match (&kernel.body, binder.entries[launch.kernel.0 as usize]) {
            (KernelBody::Code(code), Entry::Kernel(entry)) => Body::Code { entry, scratch_bytes: code.scratch_bytes },
            (KernelBody::Cuda(_), Entry::Device) => Body::Device { kernel: launch.kernel.0 as usize },
            (KernelBody::Driver { driver, hook, finisher }, _) => Body::Driver {
                driver: Box::new(driver.clone()),
                hook: entry(hook),
                finisher: entry(finisher),
                isa: binder.isa,
                kernel: kernel.name.clone(),
            },
            _ => return Err(RuntimeError::malformed(format!("the kernel `{}` is launched, but a hook", kernel.name))),
        };
        Ok(LateLaunch {
            body,
            args: launch.args.clone(),
            bytes: launch.args.iter().map(|arg| binder.program.buffer(arg.buffer).bytes.clone()).collect(),
            dims: launch.dims.clone(),
            grid: launch.grid.clone(),
            grain: usize::try_from(launch.grain).unwrap_or(1).max(1),
            clear: launch.clear.clone(),
            origin: launch.origin.clone(),
            threads: binder.threads,
            lanes: binder.program.lanes,
        })
    }

    /// Scratch for the most that the extents may be.
    pub(crate) fn scratch(
        &self,
        binder: &Binder<'_>,
        most: &dyn Fn(&Dim) -> Result<usize, RuntimeError>,
    ) -> Result<ScratchNeed, RuntimeError> {
        match &self.body {
            Body::Device { .. } => Ok(ScratchNeed::default()),
            Body::Code { scratch_bytes, .. } => Ok(ScratchNeed { per_worker: *scratch_bytes, shared: 0 }),
            Body::Driver { driver, hook, finisher, kernel, .. } => {
                let mut failed = None;
                let driver = driver.map(&mut |dim: &Dim| {
                    most(dim).unwrap_or_else(|error| {
                        failed.get_or_insert(error);
                        0
                    })
                });
                if let Some(error) = failed {
                    return Err(error);
                }
                let plan = DriverPlan::new(&driver, *hook, *finisher, self.args.len(), binder.isa);
                plan.map(|plan| plan.scratch()).map_err(|source| RuntimeError::Driver {
                    kernel: kernel.clone(),
                    origin: self.origin.clone(),
                    source,
                })
            }
        }
    }

    /// Offset of each argument in its buffer, checked to lie within.
    pub(crate) fn offsets(&self, sizes: &Bindings, room: &[usize]) -> Result<Vec<(u32, usize)>, RuntimeError> {
        let what = || self.origin.clone();
        self.args
            .iter()
            .zip(&self.bytes)
            .map(|(arg, bytes)| {
                let (offset, bytes) = (number(&arg.offset, sizes, &what)?, number(bytes, sizes, &what)?);
                if bytes > room[arg.buffer.0 as usize] || offset > bytes {
                    let why = format!("buffer {} has not the room of {bytes} bytes", arg.buffer.0);
                    return Err(RuntimeError::malformed(why));
                }
                Ok((arg.buffer.0, offset))
            })
            .collect()
    }

    /// Borders that are zeroed before the launch.
    pub(crate) fn borders(&self, sizes: &Bindings) -> Result<Vec<(Border, u32, usize)>, RuntimeError> {
        let what = || format!("halo of {}", self.origin);
        self.clear
            .iter()
            .map(|halo| {
                let outer = number(&halo.outer, sizes, &what)?;
                let all = |dims: &[Dim]| dims.iter().map(|d| number(d, sizes, &what)).collect::<Result<Vec<_>, _>>();
                let (spatial, around) = (all(&halo.spatial)?, all(&halo.halo)?);
                let border = Border::new(outer, &spatial, &around, self.lanes)
                    .filter(|border| border.bytes().is_some())
                    .ok_or_else(|| RuntimeError::malformed(what()))?;
                Ok((border, halo.arg.buffer.0, number(&halo.arg.offset, sizes, &what)?))
            })
            .collect()
    }

    /// Dim parameters and points of the grid of a generated kernel.
    fn shape(&self, sizes: &Bindings) -> Result<(Vec<i64>, usize), RuntimeError> {
        let value = |dim: &Dim| dim.eval(sizes).map_err(|why| RuntimeError::size(self.origin.clone(), &why));
        let dims = self.dims.iter().map(value).collect::<Result<Vec<_>, _>>()?;
        let grid = number(&self.grid, sizes, &|| format!("grid of {}", self.origin))?;
        Ok((dims, grid))
    }

    /// The launch with its extents as numbers.
    pub(crate) fn ready(&self, sizes: &Bindings) -> Result<Ready, RuntimeError> {
        match &self.body {
            Body::Device { kernel } => {
                let (dims, grid) = self.shape(sizes)?;
                Ok(Ready::Device { kernel: *kernel, dims, grid })
            }
            Body::Code { entry, .. } => {
                let (dims, grid) = self.shape(sizes)?;
                let wanted = if self.threads == 1 { 1 } else { 4 * self.threads };
                Ok(Ready::Code { entry: *entry, dims, grid, chunks: (grid / self.grain).clamp(1, wanted) })
            }
            Body::Driver { driver, hook, finisher, isa, kernel } => {
                let mut failed = None;
                let driver = driver.map(&mut |dim: &Dim| {
                    number(dim, sizes, &|| self.origin.clone()).unwrap_or_else(|error| {
                        failed.get_or_insert(error);
                        0
                    })
                });
                if let Some(error) = failed {
                    return Err(error);
                }
                let plan = DriverPlan::new(&driver, *hook, *finisher, self.args.len(), *isa);
                plan.map(|plan| Ready::Driver(Box::new(plan))).map_err(|source| RuntimeError::Driver {
                    kernel: kernel.clone(),
                    origin: self.origin.clone(),
                    source,
                })
            }
        }
    }
}
