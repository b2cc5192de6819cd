//! Compiles and runs models, and compares with the interpreter.
use egret_compiler::*;
use std::sync::Arc;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let device = egret_program::DeviceDescription::named("x86-64-avx512").unwrap();
    for path in &args[2..] {
        let g = match egret_onnx::load(std::path::Path::new(path)) {
            Ok(g) => g,
            Err(e) => {
                println!("{path}: {e}");
                continue;
            }
        };
        let level = args[1].parse().unwrap();
        let t = std::time::Instant::now();
        let c = match compile(&g, &device, &CompileOptions { level, exact: false }) {
            Ok(c) => c,
            Err(e) => {
                println!("{path}: {e}");
                continue;
            }
        };
        println!(
            "{path}: nodes {} raised {} rewritten {} kernels {} prepare {} distinct {} total {:?}",
            g.nodes().len(),
            c.raised.nodes().len(),
            c.rewritten.graph.nodes().len(),
            c.program.launches().len(),
            c.program.prepare.len(),
            c.program.kernels.len(),
            t.elapsed()
        );
        for (n, d) in &c.phases {
            print!("  {n} {:.1}ms", d.as_secs_f64() * 1e3)
        }
        println!("\n  {:?}", c.rewritten.report());
        match c.rewritten.replay() {
            Ok(g) => println!("  replay equal: {}", g == c.rewritten.graph),
            Err(e) => println!("  replay: {e}"),
        }
        let mut fam = std::collections::BTreeMap::new();
        for l in c.program.launches() {
            *fam.entry(c.program.kernel(l.kernel).family.clone()).or_insert(0) += 1;
        }
        println!("  {fam:?}");
        if std::env::var("V").is_ok() {
            for (id, n) in c.rewritten.graph.iter() {
                println!("  {id:?} {:?} {:?} {:?}", n.op.home().name(), n.operands, n.ty);
                if std::env::var("VV").is_ok() {
                    println!("     {:?}", n.op)
                }
            }
        }
        if std::env::var("K").is_ok() {
            for l in c.program.launches() {
                println!("--- {} {}\n{}", c.program.kernel(l.kernel).family, l.origin, c.program.kernel(l.kernel).text)
            }
        }
        let dir = std::path::Path::new(path).parent().unwrap().join("test_data_set_0");
        let weights = g.weights.clone();
        let exe = match egret_runtime::Executable::load(
            Arc::new(c.program),
            &|n| weights.get(n).map(|w| w.materialise()),
            egret_runtime::LoadOptions { threads: 2, isa: None },
        ) {
            Ok(e) => e,
            Err(e) => {
                println!("  load: {e}");
                continue;
            }
        };
        let mut s = exe.session().unwrap();
        let mut inputs = vec![];
        for (i, id) in g.inputs().iter().enumerate() {
            let egret_ir::Op::Input(input) = &g.node(*id).op else { panic!() };
            match egret_onnx::read_tensor(&dir.join(format!("input_{i}.pb"))) {
                Ok((_, t)) => inputs.push((input.name.clone(), t)),
                Err(e) => println!("  {e}"),
            }
        }
        let refs: Vec<(&str, &egret_ir::Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        if let Err(e) = s.run(&refs) {
            println!("  run: {e}");
            continue;
        }
        s.profile(std::env::var("P").is_ok());
        let mut best = f64::INFINITY;
        let mut outs = vec![];
        for _ in 0..10 {
            let t = std::time::Instant::now();
            let o = s.run(&refs).unwrap();
            best = best.min(t.elapsed().as_secs_f64());
            outs = o.iter().map(|o| o.to_tensor()).collect::<Vec<_>>();
        }
        println!("  best {:.3} ms  {:?}", best * 1e3, s.memory());
        if std::env::var("P").is_ok() {
            let mut v: Vec<_> = s.timings().iter().collect();
            v.sort_by_key(|t| std::cmp::Reverse(t.ns));
            for t in v.iter().take(25) {
                println!(
                    "    {:8.1} us {} {} {:.1} GF/s  {}",
                    t.ns as f64 / 1e3 / t.calls.max(1) as f64,
                    t.family,
                    t.name,
                    t.flops / (t.ns as f64 / t.calls.max(1) as f64),
                    t.origin.chars().take(60).collect::<String>()
                )
            }
        }
        for (i, o) in outs.iter().enumerate() {
            let Ok((_, e)) = egret_onnx::read_tensor(&dir.join(format!("output_{i}.pb"))) else { continue };
            let (mut ma, mut mr, mut bad) = (0f64, 0f64, 0);
            for (x, y) in o.values().zip(e.values()) {
                let (x, y) = (x.as_f64(), y.as_f64());
                let d = (x - y).abs();
                if !(d <= 1e-4 + 1e-3 * y.abs()) {
                    bad += 1
                }
                ma = ma.max(d);
                mr = mr.max(d / y.abs().max(1e-6));
            }
            println!("  output {i} {:?} {:?} abs {ma:.2e} rel {mr:.2e} bad {bad}", o.shape(), e.shape());
        }
    }
}
