use egret_compiler::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let device = egret_program::DeviceDescription::named("x86-64-avx512").unwrap();
    for path in &args[2..] {
        let g = match egret_onnx::load(std::path::Path::new(path)) { Ok(g) => g, Err(e) => { println!("{path}: {e}"); continue } };
        let level = args[1].parse().unwrap();
        let t = std::time::Instant::now();
        let c = match compile(&g, &device, &CompileOptions { level, exact: false }) { Ok(c) => c, Err(e) => { println!("{path}: {e}"); continue } };
        println!("{path}: nodes {} raised {} rewritten {} kernels {} prepare {} distinct {} total {:?}", g.nodes().len(), c.raised.nodes().len(), c.rewritten.graph.nodes().len(), c.program.launches().len(), c.program.prepare.len(), c.program.kernels.len(), t.elapsed());
        for (n, d) in &c.phases { print!("  {n} {:.1}ms", d.as_secs_f64() * 1e3) }
        println!("\n  {:?}", c.rewritten.report());
        match c.rewritten.replay() { Ok(g) => println!("  replay equal: {}", g == c.rewritten.graph), Err(e) => println!("  replay: {e}") }
        let mut fam = std::collections::BTreeMap::new();
        for l in c.program.launches() { *fam.entry(c.program.kernel(l.kernel).family.clone()).or_insert(0) += 1; }
        println!("  {fam:?}");
        if std::env::var("V").is_ok() { for (id, n) in c.rewritten.graph.iter() { println!("  {id:?} {:?} {:?} {:?}", n.op.home().name(), n.operands, n.ty); if std::env::var("VV").is_ok() { println!("     {:?}", n.op) } } }
        if std::env::var("K").is_ok() { for l in c.program.launches() { println!("--- {} {}\n{}", c.program.kernel(l.kernel).family, l.origin, c.program.kernel(l.kernel).text) } }
    }
}
