//! LeNet-5 (LeCun et al., 1998), by stochastic gradients with momentum, learns digits.
//!
//! ```text
//! cargo run --release --example lenet_sgd -- [--data DIR] [--epochs N]
//! ```
//!
//! `DIR` holds MNIST's four IDX files, plain or `.gz`. Without it, digits drawn by the program are learnt.

mod common;

use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::nn::{AvgPool2d, Conv2d, Flatten, Layer, Linear, Schedule, Sequential, Sgd, data, loss};
use egret::{Device, Fit, Objective, Progress, ScalarFn, Trainer, f32, i64, shape};

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with MNIST's files.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Passes over the training images.
    #[arg(long, default_value_t = 2)]
    epochs: u64,
    /// Steps of a pass, if fewer than the images are enough for.
    #[arg(long)]
    steps: Option<usize>,
    /// Images of a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Learning rate; a tenth of it from two thirds of the steps on.
    #[arg(long, default_value_t = 0.05)]
    rate: f64,
    /// Seed of weights and order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs: `cpu`, or a GPU as `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

fn main() {
    common::run(|| learn(&Args::parse()));
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    let (training, test) = match &args.data {
        Some(folder) => data::mnist(folder)?,
        None => {
            println!("No --data given: training on digits that this program draws, not on MNIST.");
            (data::digits(20_000, 1), data::digits(2_000, 2))
        }
    };
    let (height, width) = training.extent();
    let net = Sequential::new()
        .named("c1", Conv2d::new(6, 5).padding(2))
        .layer(ScalarFn::Tanh)
        .layer(AvgPool2d::new(2))
        .named("c3", Conv2d::new(16, 5))
        .layer(ScalarFn::Tanh)
        .layer(AvgPool2d::new(2))
        .layer(Flatten)
        .named("c5", Linear::new(120))
        .layer(ScalarFn::Tanh)
        .named("f6", Linear::new(84))
        .layer(ScalarFn::Tanh)
        .named("out", Linear::new(10));
    let mut trainer = Trainer::new(&args.device, &Sgd::momentum(0.9), args.seed, |p| {
        let images = p.tracer().input("images", f32(shape!["batch", 1, height, width]));
        let labels = p.tracer().input("labels", i64(shape!["batch"]));
        let logits = net.forward(p, images);
        Objective::new(loss::cross_entropy(logits, labels)).classes(logits, labels)
    })?;

    let (training, test) = (common::first(&training, args.steps, args.batch), common::first(&test, args.steps, 500));
    let fit = Fit::new(args.epochs).batch(args.batch).seed(args.seed).full_batches(true).progress(Progress::Lines);
    let steps = fit.steps(egret::nn::data::DataSet::len(&training));
    let fit = fit.schedule(Schedule::step(args.rate, (steps * 2 / 3).max(1), 0.1));
    let history = trainer.fit(&training, Some(&test), &fit)?;

    let result = trainer.evaluate(&test, 500)?;
    println!("test accuracy: {:.2} %", 100.0 * result.accuracy().unwrap_or_default());
    Ok(common::learnt(&history, &trainer))
}
