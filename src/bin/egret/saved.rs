//! `egret explain --saved`: what gradients keep of the forward pass, and what they compute again.

use egret::ir::{NodeId, Op};
use egret::{Compiled, Policy};
use egret_compiler::cost::SYMBOL_HINT;
use serde_json::{Value, json};

/// Lists the values that live until the backward pass reads them, and the nodes that are computed again for it.
pub fn print(compiled: &Compiled, policy: Policy, as_json: bool) {
    let made = &compiled.rematerialised;
    let name = |id: &NodeId| {
        let graph = &made.graph;
        let origins: Vec<String> = graph.origins(*id).iter().map(|origin| origin.to_string()).collect();
        let op = match &graph.node(*id).op {
            Op::Fused(fused) => fused.anchor.home().name(),
            op => op.home().name(),
        };
        let place = if origins.is_empty() { String::new() } else { format!(" of {}", origins.join(", ")) };
        format!("%{} {op}{place}", id.index())
    };
    let bytes: Vec<i64> = made.saved.iter().map(|saved| saved.bytes.hint(SYMBOL_HINT)).collect();
    let (total, time) = (bytes.iter().sum::<i64>(), made.recomputed.iter().map(|again| again.time).sum::<f64>());
    if as_json {
        let saved = made.saved.iter().zip(&bytes).map(|(saved, bytes)| {
            let readers: Vec<String> = saved.readers.iter().map(name).collect();
            json!({
                "value": name(&saved.value), "type": made.graph.ty(saved.value).to_string(), "bytes": bytes,
                "readers": readers,
            })
        });
        let again = made.recomputed.iter().map(|again| {
            json!({ "node": name(&again.node), "flops": again.flops, "bytes": again.bytes, "cost_us": again.time })
        });
        let (saved, again): (Vec<Value>, Vec<Value>) = (saved.collect(), again.collect());
        let policy = policy.to_string();
        println!("{:#}", json!({ "policy": policy, "saved_bytes": total, "saved": saved, "recomputed": again }));
        return;
    }
    println!("policy {policy}: {total} bytes of {} values are kept for gradients", bytes.len());
    for (saved, bytes) in made.saved.iter().zip(&bytes) {
        println!("{bytes:>12}  {}: {}", name(&saved.value), made.graph.ty(saved.value));
        saved.readers.iter().for_each(|reader| println!("{:>12}    read by {}", "", name(reader)));
    }
    if !made.recomputed.is_empty() {
        println!("computed again: {} nodes, modelled {time:.2} µs as kernels of their own", made.recomputed.len());
    }
    for again in &made.recomputed {
        println!("{:>9.2} µs  {}: {:.0} flops, {:.0} bytes", again.time, name(&again.node), again.flops, again.bytes);
    }
}
