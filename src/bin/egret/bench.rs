//! `egret bench`.

use std::time::{Duration, Instant};

use egret::{Graph, Tensor, Tensors};
use serde_json::{Map, Value, json};

use crate::args::{BenchArgs, threads};
use crate::failure::Failure;
use crate::{model, roofline, sample, tuning};

/// Steps that a roofline shows.
const STEPS_SHOWN: usize = 25;

/// Runs before measuring.
const WARM_UP: usize = 3;

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Measures a model.
pub fn bench(args: &BenchArgs, as_json: bool) -> Result<(), Failure> {
    let model::Given { graph, inputs, .. } = model::given(&args.compile.model, &args.inputs)?;
    let given = model::borrowed(&inputs);
    let device = tuning::for_inputs(&args.compile.target.device(), &graph, &inputs)?;
    let exe = egret::compile_with(&graph, &device, &args.compile.target.options())?;
    tuning::report(&exe);
    let mut session = exe.session()?;
    for _ in 0..WARM_UP {
        session.run(&given)?;
    }
    // the peak moves with the clock and the neighbours: it is measured in turn with the model, as long. Meanwhile the
    // team falls asleep and its caches cool: a run that follows a run is what counts.
    let isa = egret_simd::Isa::detect();
    let mut pairs = Vec::with_capacity(args.runs.max(1));
    for _ in 0..args.runs.max(1) {
        session.run(&given)?;
        let start = Instant::now();
        session.run(&given)?;
        let time = start.elapsed();
        pairs.push((millis(time), egret_simd::peak(isa, time).unwrap_or(0.0)));
    }
    // what the steps themselves take: on a GPU by its own clock, without copies and what the host does
    session.profile(true);
    session.run(&given)?;
    let kernel_ms = session.timings().iter().map(|step| step.ns).sum::<u64>() as f64 / 1e6;
    session.profile(false);
    let mut times: Vec<f64> = pairs.iter().map(|(time, _)| *time).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    let latency = json!({ "median": at(0.5), "min": at(0.0), "p90": at(0.9), "p99": at(0.99) });

    let threads = threads(args.compile.target.threads);
    let on_cpu = exe.program().is_some_and(|program| program.lanes > 1);
    if args.roofline && !on_cpu {
        return Err(Failure::usage("--roofline is for programs of this processor"));
    }
    let roofline = match args.roofline {
        true => Some(roofline::measure(&mut session, &given, threads, weight_bytes(&graph))?),
        false => None,
    };

    let (flops, bytes) = exe.compiled().map_or(Ok((0.0, 0.0)), |compiled| work(&compiled.rewritten.graph, &inputs))?;
    let memory = session.memory();
    let share_of = |pairs: &[(f64, f64)]| {
        let median_peak = sample::median(pairs.iter().map(|(_, peak)| *peak)) * threads as f64;
        let rate = flops / (sample::median(pairs.iter().map(|(time, _)| *time)) * 1e6);
        if median_peak > 0.0 { rate / median_peak } else { 0.0 }
    };
    let peak = sample::median(pairs.iter().map(|(_, peak)| *peak)) * threads as f64;
    let peak_share = share_of(&pairs);
    let interval = sample::interval(&pairs, share_of);

    let mut phases = Map::new();
    let mut total = 0.0;
    for (name, time) in exe.compiled().map(|c| c.phases.as_slice()).unwrap_or_default() {
        phases.insert(name.to_string(), json!(millis(*time)));
        total += millis(*time);
    }
    phases.insert("total".into(), json!(total));
    let kernels = exe.program().map_or(0, |program| program.launches().len());
    let mut value = json!({
        "model": args.compile.model.display().to_string(), "threads": threads,
        "compile_ms": phases, "load_ms": millis(exe.load_time()), "latency_ms": latency, "kernel_ms": kernel_ms,
        "kernels": kernels,
        "flops": flops, "bytes": bytes, "arena_bytes": memory.arena_bytes,
        "live_bytes_bound": memory.live_bytes_bound, "peak_gflops": peak, "peak_share": peak_share,
        "peak_share_interval": [interval.0, interval.1],
        "tuning": tuning::as_value(exe.tuning()),
    });
    if as_json {
        value["roofline"] = roofline.map_or(Value::Null, |roofline| roofline.json());
        println!("{value:#}");
    } else {
        print(&value);
        roofline.into_iter().for_each(|roofline| roofline.print(STEPS_SHOWN));
    }
    Ok(())
}

/// Bytes of the params.
fn weight_bytes(graph: &Graph) -> f64 {
    let param = |node: &egret::ir::Node| match &node.op {
        egret::ir::Op::Param(param) => param.ty.bytes().as_const(),
        _ => None,
    };
    graph.nodes().iter().filter_map(param).sum::<i64>() as f64
}

/// Floating-point operations and bytes of one run under the sizes of these inputs.
fn work(graph: &Graph, inputs: &[(String, Tensor)]) -> Result<(f64, f64), Failure> {
    let given = inputs.iter().cloned().collect();
    let bindings = egret::ir::bind::bind(graph, &given, &Tensors::new())?;
    let work = egret_compiler::cost::work(graph, &bindings, None);
    Ok((work.flops, work.bytes))
}

fn print(value: &Value) {
    let number = |key: &str| value[key].as_f64().unwrap_or(0.0);
    let phases: Vec<String> = value["compile_ms"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| *name != "total")
        .map(|(name, time)| format!("{name} {:.1}", time.as_f64().unwrap_or(0.0)))
        .collect();
    let total = value["compile_ms"]["total"].as_f64().unwrap_or(0.0);
    println!("compile  {total:.1} ms: {}", phases.join(", "));
    println!("load     {:.1} ms", number("load_ms"));
    let latency = |key: &str| value["latency_ms"][key].as_f64().unwrap_or(0.0);
    let (median, min, p90, p99) = (latency("median"), latency("min"), latency("p90"), latency("p99"));
    println!("run      {median:.3} ms median, {min:.3} min, {p90:.3} p90, {p99:.3} p99, {} threads", value["threads"]);
    let share = number("peak_share") * 100.0;
    let gflops = if median > 0.0 { number("flops") / median / 1e6 } else { 0.0 };
    println!(
        "work     {} kernels, {:.4} GFLOP, {:.2} MB",
        value["kernels"],
        number("flops") / 1e9,
        number("bytes") / 1e6
    );
    let bound = |at: usize| value["peak_share_interval"][at].as_f64().unwrap_or(0.0) * 100.0;
    let (low, high, peak) = (bound(0), bound(1), number("peak_gflops"));
    println!("rate     {gflops:.1} GFLOP/s, {share:.1} % ({low:.1} to {high:.1}) of the peak of {peak:.1}");
    let (arena, bound) = (number("arena_bytes") / 1e6, number("live_bytes_bound") / 1e6);
    println!("memory   {arena:.2} MB of temporaries, {bound:.2} MB live at once");
}
