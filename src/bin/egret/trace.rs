//! Profiled runs as traces that Chrome (`chrome://tracing`) and Perfetto show.

use egret::{Span, StepTime};
use serde_json::{Value, json};

/// A trace in the Trace Event Format: an event an execution of a step, times in microseconds.
pub fn chrome(steps: &[StepTime], spans: &[Span], device: &str) -> Value {
    let event = |span: &Span| {
        let step = steps.get(span.step)?;
        let name = if step.name.is_empty() { &step.family } else { &step.name };
        Some(json!({
            "name": name,
            "cat": step.family,
            "ph": "X",
            "ts": span.begin as f64 / 1e3,
            "dur": span.ns as f64 / 1e3,
            "pid": 0,
            "tid": 0,
            "args": { "step": span.step, "nodes": step.origin, "flops": step.flops, "bytes": step.bytes },
        }))
    };
    let process =
        json!({ "name": "process_name", "ph": "M", "pid": 0, "args": { "name": format!("egret on {device}") } });
    let events: Vec<Value> = std::iter::once(process).chain(spans.iter().filter_map(event)).collect();
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_name_their_steps() {
        let step = StepTime { name: "k_1".into(), family: "map".into(), origin: "a, b".into(), ..StepTime::default() };
        let spans = [Span { step: 0, begin: 2_000, ns: 500 }, Span { step: 9, begin: 0, ns: 1 }];
        let trace = chrome(&[step], &spans, "cpu");
        let events = trace["traceEvents"].as_array().unwrap();
        // what names no step is left out
        assert_eq!(events.len(), 2);
        assert_eq!((&events[1]["ts"], &events[1]["dur"]), (&json!(2.0), &json!(0.5)));
        assert_eq!((&events[1]["name"], &events[1]["args"]["nodes"]), (&json!("k_1"), &json!("a, b")));
    }
}
