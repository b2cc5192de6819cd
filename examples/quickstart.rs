//! A small residual network: traced, compiled, shown, run.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```

use egret::ir::text;
use egret::nn::{Conv2d, Flatten, Layer, Linear, MaxPool2d, Mode, Params, Sequential};
use egret::{Device, ScalarFn, Tensor, f32, shape};

/// `relu(x + conv(relu(conv(x))))`.
struct Block {
    channels: usize,
}

impl Layer for Block {
    fn build<'t>(&self, p: &Params<'_, 't>, x: egret::Var<'t>) -> egret::Var<'t> {
        let conv = |name, x| Conv2d::new(self.channels, 3).padding(1).forward(&p.at(name), x);
        (x + conv("conv2", conv("conv1", x).relu())).relu()
    }
}

fn main() -> egret::Result<()> {
    let net = Sequential::new()
        .named("stem", Conv2d::new(16, 3).padding(1))
        .named("relu", ScalarFn::Relu)
        .named("block1", Block { channels: 16 })
        .named("pool", MaxPool2d::new(2))
        .named("block2", Block { channels: 16 })
        .named("flatten", Flatten)
        .named("head", Linear::new(10));
    let graph = egret::trace(|t| {
        let p = Params::new(t, Mode::Infer, 1);
        net.forward(&p, t.input("image", f32(shape!["batch", 3, 16, 16]))).softmax(-1)
    })?;
    println!("The graph as traced:\n\n{}", text::print(&graph));

    let exe = egret::compile(&graph, &Device::cpu())?;
    if let Some(compiled) = exe.compiled() {
        println!("The same, fused:\n\n{}", text::print(&compiled.rewritten.graph));
        println!("{} nodes became {} kernels:\n", graph.nodes().len(), compiled.program.launches().len());
        for launch in compiled.program.launches() {
            let kernel = compiled.program.kernel(launch.kernel);
            println!("  {:10} {:22} {}", kernel.family, kernel.name, launch.origin);
        }
        println!("\nCompiled in {:.1} ms, loaded in {:.1} ms.", millis(compiled.total()), millis(exe.load_time()));
    }

    let mut session = exe.session()?;
    for batch in [1, 4] {
        let pixels: Vec<f32> = (0..batch * 3 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
        let image = Tensor::new(&[batch, 3, 16, 16], &pixels).unwrap_or_else(|| unreachable!("as many pixels"));
        let outputs = session.run(&[("image", &image)])?;
        let Some(classes) = outputs.at(0) else { continue };
        let first: Vec<String> =
            classes.as_slice::<f32>().unwrap_or_default()[..10].iter().map(|p| format!("{p:.3}")).collect();
        println!("\nA batch of {batch} gives {:?}; the first row: {}", classes.shape(), first.join(" "));
        let reference = egret::interpret(&graph, &[("image".to_string(), image)].into(), &Default::default())?;
        let worst = classes
            .to_tensor()
            .values()
            .zip(reference.outputs[0].1.values())
            .fold(0f64, |most, (a, b)| most.max((a.as_f64() - b.as_f64()).abs()));
        println!("Largest difference from the reference interpreter: {worst:.1e}");
    }
    Ok(())
}

fn millis(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
