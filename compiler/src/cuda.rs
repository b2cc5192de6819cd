//! A graph's program for a GPU with the kernels that it is made of, for those who look at kernels rather than run them.

use egret_ir::{Diagnostic, Graph};
use egret_program::{DeviceDescription, KernelId, Program, Step};

use crate::emit::cuda::{self, CudaSource};
use crate::kernel::Kernel;
use crate::plan;

/// A kernel of a program.
#[derive(Clone, Debug)]
pub struct CudaKernel {
    /// Its place in the program.
    pub id: KernelId,
    /// Its CUDA C.
    pub source: CudaSource,
    /// Its family.
    pub family: String,
    /// Where the nodes came from that it computes, first seen first.
    pub origin: Vec<String>,
    /// Its kernel IR.
    pub kernel: Kernel,
}

/// A program and its kernels.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// Each distinct kernel once, in order of the program.
    pub kernels: Vec<CudaKernel>,
    /// The program, without the kernels' text.
    pub program: Program,
}

/// The kernels of a rewritten graph, each distinct text once.
///
/// # Errors
/// `E0461` for a kernel beyond the bounds of the kernel IR, `E0462` when its text cannot be made or the device is no
/// GPU, `E0465` for a form that has no CUDA kernel yet; the diagnostic names the nodes.
pub fn kernels(graph: &Graph, device: &DeviceDescription) -> Result<Vec<CudaKernel>, Diagnostic> {
    Ok(lower(graph, device)?.kernels)
}

/// [`kernels`], and the program that launches them.
///
/// # Errors
/// As [`kernels`].
pub fn lower(graph: &Graph, device: &DeviceDescription) -> Result<Lowered, Diagnostic> {
    if device.is_cpu() {
        return Err(Diagnostic::new("E0462", format!("`{}` is no GPU", device.name)));
    }
    let (program, generated) = plan::kernels(graph, device, &plan::Options::default())?;
    let mut kernels = Vec::new();
    for (id, kernel) in generated {
        let source = cuda::emit(&kernel, &[])
            .map_err(|e| Diagnostic::new("E0462", format!("no CUDA C can be made: {e}")).note(kernel.text()))?;
        let family = program.kernel(id).family.clone();
        kernels.push(CudaKernel { id, source, family, origin: Vec::new(), kernel });
    }
    let mut todo: Vec<&Step> = program.prepare.iter().chain(&program.steps).rev().collect();
    while let Some(step) = todo.pop() {
        let Step::Launch(launch) = step else {
            todo.extend(step.inner().into_iter().rev().flat_map(|steps| steps.iter().rev()));
            continue;
        };
        if let Some(kernel) = kernels.iter_mut().find(|kernel| kernel.id == launch.kernel)
            && !kernel.origin.contains(&launch.origin)
        {
            kernel.origin.push(launch.origin.clone());
        }
    }
    Ok(Lowered { kernels, program })
}
