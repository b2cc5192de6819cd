//! `egret check-kernels`: every kernel of a model compiled for GPUs, and the whole model run on simulated ones.

use egret::{Device, Diagnostic};
use egret_program::Target;
use egret_runtime::RuntimeError;
use serde_json::{Value, json};

use crate::args::CheckArgs;
use crate::failure::Failure;
use crate::{dump, model};

/// Compiles, runs, and says what the simulator reports.
pub fn check(args: &CheckArgs, as_json: bool) -> Result<(), Failure> {
    let model::Given { graph, inputs, .. } = model::given(&args.model, &args.inputs)?;
    let (mut rows, mut reported) = (Vec::new(), false);
    for name in &args.arch {
        let description = model::description(name)?;
        let Target::Cuda { arch, shared_bytes, .. } = &description.target else {
            return Err(Failure::usage(format!("`{name}` is no GPU")));
        };
        let device = Device::cuda_sim(description.clone())?;
        let exe = egret::compile(&graph, &device)?;
        let program = exe.program().ok_or_else(|| Diagnostic::new("E0804", "a GPU without a program"))?;
        let stats = egret_runtime::cuda::stats(program, arch, *shared_bytes)
            .map_err(|e| egret::Error::from(RuntimeError::from(e)))?;
        let ran = exe.session().and_then(|mut session| session.run(&model::borrowed(&inputs)).map(|_| ()));
        let report = ran.err().map(|error| error.diagnostic());
        reported |= report.is_some();
        if as_json {
            let spills: u32 = stats.iter().map(|s| s.spill_bytes).sum();
            let report = report.map(|report| report.to_string());
            rows.push(json!({ "arch": name, "kernels": stats.len(), "spill_bytes": spills, "report": report }));
            continue;
        }
        println!("{name}\n{}", dump::table(program, &description, &stats));
        match report {
            Some(report) => println!("reported: {report}\n"),
            None => println!("no report\n"),
        }
    }
    if as_json {
        println!("{:#}", Value::from(rows));
    }
    if reported { Err(Failure::Mismatch) } else { Ok(()) }
}
