//! What tuning did, as text and as JSON.

use egret::{Device, Executable, Graph, Outcome, Tensor, Tensors, Tuned, Tuning};
use serde_json::{Value, json};

use crate::failure::Failure;

/// A device whose tuner, if it has one, measures for the sizes of these inputs.
pub fn for_inputs(device: &Device, graph: &Graph, inputs: &[(String, Tensor)]) -> Result<Device, Failure> {
    let Some(tuner) = device.tuner() else { return Ok(device.clone()) };
    let given = inputs.iter().cloned().collect();
    let sizes = egret::ir::bind::bind(graph, &given, &Tensors::new())?;
    Ok(device.clone().with_tuner(tuner.clone().with_sizes(sizes)))
}

/// Tells on standard error what was measured, what it changed, and what was dropped.
pub fn report(exe: &Executable) {
    let Some(tuning) = exe.tuning() else { return };
    let (measured, known) = tuning.sources();
    eprintln!("tuned: {measured} problems measured, {known} from the table");
    for tuned in &tuning.problems {
        if let (Some(schedule), Some((model, chosen))) = (tuned.other(), tuned.times()) {
            let (family, uses) = (&tuned.family, tuned.uses);
            eprintln!("  {family} of {} (×{uses}): {schedule}, {chosen:.1} µs for {model:.1}", tuned.origin);
        }
    }
    for (tuned, why) in tuning.left_out() {
        eprintln!("warning: not tuned: {} of {}: {why}", tuned.family, tuned.origin);
    }
    for (tuned, schedule, why) in tuning.dropped() {
        eprintln!("warning: dropped for {} of {}: {schedule}: {why}", tuned.family, tuned.origin);
    }
}

/// What was measured; null where nothing was asked for.
pub fn as_value(tuning: Option<&Tuning>) -> Value {
    let problem = |tuned: &Tuned| -> Value {
        let measurement = |m: &egret::Measurement| {
            let schedule = m.schedule.to_string();
            match &m.outcome {
                Outcome::Timed { us } => json!({ "schedule": schedule, "us": us }),
                Outcome::Wrong { by } => json!({ "schedule": schedule, "differs_by": by }),
                Outcome::Failed { why } => json!({ "schedule": schedule, "failed": why }),
            }
        };
        json!({
            "problem": tuned.key.to_string(), "family": tuned.family, "origin": tuned.origin, "uses": tuned.uses,
            "least_us": tuned.least_us, "at_roofline": tuned.at_roofline, "from_table": tuned.from_table,
            "chosen": tuned.chosen,
            "measurements": tuned.measurements.iter().map(measurement).collect::<Vec<_>>(),
        })
    };
    tuning.map_or(Value::Null, |tuning| tuning.problems.iter().map(problem).collect())
}
