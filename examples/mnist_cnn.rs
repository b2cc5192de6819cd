//! A small convolutional network learns digits: the first example of Keras, in Rust.
//!
//! ```text
//! cargo run --release --example mnist_cnn -- [--data DIR] [--epochs N]
//! ```
//!
//! `DIR` holds MNIST's four IDX files, plain or `.gz`. Without it, digits drawn by the program are learnt.

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use egret::nn::{Adam, Conv2d, Flatten, Init, Layer, Linear, MaxPool2d, Sequential, data, loss};
use egret::{Device, Objective, ScalarFn, Trainer, f32, i64, shape};

#[derive(Parser)]
struct Args {
    /// Folder with MNIST's files.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Passes over the training images.
    #[arg(long, default_value_t = 1)]
    epochs: u64,
    /// Images of a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 0.001)]
    rate: f64,
    /// Threads; 0: as many as the process may use.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() {
    if let Err(error) = train(&Args::parse()) {
        eprintln!("error: {}", error.diagnostic());
        std::process::exit(1);
    }
}

fn train(args: &Args) -> egret::Result<()> {
    let (training, test) = match &args.data {
        Some(folder) => data::mnist(folder)?,
        None => {
            println!("No --data given: training on digits that this program draws, not on MNIST.");
            (data::digits(20_000, 1), data::digits(2_000, 2))
        }
    };
    let (height, width) = training.extent();
    let glorot = Init::XavierUniform { gain: 1.0 };
    let net = Sequential::new()
        .named("conv1", Conv2d::new(32, 3).init(glorot))
        .layer(ScalarFn::Relu)
        .layer(MaxPool2d::new(2))
        .named("conv2", Conv2d::new(64, 3).init(glorot))
        .layer(ScalarFn::Relu)
        .layer(MaxPool2d::new(2))
        .layer(Flatten)
        .named("dense", Linear::new(10).init(glorot));

    let device = Device::cpu().with_threads(args.threads);
    let mut trainer = Trainer::new(&device, &Adam::default(), 1, |p| {
        let t = p.tracer();
        let images = t.input("images", f32(shape!["batch", 1, height, width]));
        let labels = t.input("labels", i64(shape!["batch"]));
        let logits = net.forward(p, images);
        Objective::new(loss::cross_entropy(logits, labels)).output("logits", logits)
    })?;
    trainer.set_learning_rate(args.rate);
    if let Some(compiled) = trainer.step_program().compiled() {
        let kernels = compiled.program.launches().len();
        println!("A training step is {kernels} kernels, compiled in {:.0} ms.", compiled.total().as_secs_f64() * 1e3);
    }

    for epoch in 1..=args.epochs {
        let start = Instant::now();
        let (mut sum, mut steps) = (0.0, 0);
        for (images, labels) in training.shuffled(args.batch, epoch) {
            sum += trainer.step(&[("images", &images), ("labels", &labels)])?;
            steps += 1;
        }
        let seconds = start.elapsed().as_secs_f64();
        let (loss, pace) = (sum / f64::from(steps.max(1)), seconds * 1e3 / f64::from(steps.max(1)));
        println!("epoch {epoch}: mean loss {loss:.4}, {steps} steps in {seconds:.1} s, {pace:.2} ms a step");
    }

    let (mut right, mut all) = (0, 0);
    for (images, labels) in test.batches(500) {
        let outputs = trainer.evaluate(&[("images", &images), ("labels", &labels)])?;
        let logits = outputs.get("logits").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
        right += data::accuracy(logits, labels.as_slice().unwrap_or_default());
        all += labels.elements();
    }
    println!("test accuracy: {:.2} %", 100.0 * right as f64 / all.max(1) as f64);
    Ok(())
}
