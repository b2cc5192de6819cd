//! Depth: a residual net of 1,001 layers is differentiated and compiled on a small stack, each distinct layer once.

use egret_compiler::{CompileOptions, Compiled, Level, compile};
use egret_ir::{Graph, Tracer, Weight, f32, trace};
use egret_program::DeviceDescription;

/// 1 MB: what a thread has on some platforms.
const STACK: usize = 1 << 20;

/// Pairs of convolutions with a residual, and the gradients of all filters.
fn residual_net(layers: usize) -> Graph {
    trace(|t: &Tracer<'_>| {
        let filters = |layer: usize| {
            let values: Vec<f32> = (0..8 * 8 * 9).map(|i| ((i * 31 + layer) % 17) as f32 / 200.0 - 0.04).collect();
            let tensor = egret_ir::Tensor::new(&[8, 8, 3, 3], &values).expect("as many values as the shape has");
            t.param(&format!("layer{layer}"), Weight::Tensor(tensor))
        };
        let mut x = t.input("x", f32([1i64, 8, 6, 6]));
        let mut params = Vec::new();
        for pair in 0..layers / 2 {
            let (first, second) = (filters(2 * pair), filters(2 * pair + 1));
            let inner = x.conv2d(first, [1, 1], [1, 1]).relu().conv2d(second, [1, 1], [1, 1]);
            x = (x + inner).relu();
            params.extend([first, second]);
        }
        let last = filters(layers);
        x = x.conv2d(last, [1, 1], [1, 1]);
        params.push(last);
        t.grad(x.mean(), &params).into_iter().enumerate().map(|(i, g)| (format!("grad{i}"), g)).collect::<Vec<_>>()
    })
    .unwrap_or_else(|e| panic!("{e}"))
}

fn compiled(layers: usize) -> Compiled {
    let device = DeviceDescription::named("x86-64-avx512").expect("a shipped description");
    let options = CompileOptions { level: Level::Full, exact: false };
    compile(&residual_net(layers), &device, &options).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_thousand_layers_on_a_small_stack() {
    let run = || {
        let (shallow, deep) = (compiled(101), compiled(1001));
        let time = |c: &Compiled| c.phases.iter().map(|(_, time)| time.as_secs_f64()).sum::<f64>();
        println!("101 layers {:.3} s, 1,001 layers {:.3} s", time(&shallow), time(&deep));
        // layers repeat: depth adds steps, but neither parts to search nor kernels to compile
        let (few, many) = (shallow.rewritten.report(), deep.rewritten.report());
        assert_eq!(few.distinct, many.distinct, "distinct parts grow with depth");
        assert_eq!(few.nodes, many.nodes, "the e-graphs grow with depth");
        assert_eq!(shallow.program.kernels.len(), deep.program.kernels.len(), "distinct kernels grow with depth");
        let launches = |c: &Compiled| c.program.launches().len();
        let (few, many) = (launches(&shallow), launches(&deep));
        assert!(many - few <= 900 * few.div_ceil(101), "{few} launches become {many}");
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(run).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
