//! A small convolutional network learns digits: the first example of Keras, in Rust.
//!
//! ```text
//! cargo run --release --example mnist_cnn -- [--data DIR] [--epochs N]
//! ```
//!
//! `DIR` holds MNIST's four IDX files, plain or `.gz`. Without it, digits drawn by the program are learnt.

mod common;

use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::nn::augment::Standardise;
use egret::nn::data::DataSet;
use egret::nn::{Adam, Conv2d, Flatten, Init, Layer, Linear, MaxPool2d, Schedule, Sequential, data, loss};
use egret::{Device, Fit, Objective, Progress, ScalarFn, Trainer, f32, i64, shape};

/// Of the pixels of MNIST's training images.
const MEAN: f64 = 0.1307;
const DEVIATION: f64 = 0.3081;

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with MNIST's files.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Passes over the training images.
    #[arg(long, default_value_t = 1)]
    epochs: u64,
    /// Steps of an epoch, at most.
    #[arg(long)]
    steps: Option<usize>,
    /// Images of a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Learning rate at the beginning; a cosine takes it to 0.
    #[arg(long, default_value_t = 0.001)]
    rate: f64,
    /// Seed of weights and order.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for checkpoints and the loss curve; a run that was interrupted goes on from there.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Threads; 0: as many as the process may use.
    #[arg(long, default_value_t = 0)]
    threads: usize,
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
    let glorot = Init::XavierUniform { gain: 1.0 };
    let net = Sequential::new()
        .layer(Standardise::new(&[MEAN], &[DEVIATION]))
        .named("conv1", Conv2d::new(32, 3).init(glorot))
        .layer(ScalarFn::Relu)
        .layer(MaxPool2d::new(2))
        .named("conv2", Conv2d::new(64, 3).init(glorot))
        .layer(ScalarFn::Relu)
        .layer(MaxPool2d::new(2))
        .layer(Flatten)
        .named("dense", Linear::new(10).init(glorot));

    let device = args.device.clone().with_threads(args.threads);
    let mut trainer = Trainer::new(&device, &Adam::default(), args.seed, |p| {
        let images = p.tracer().input("images", f32(shape!["batch", 1, height, width]));
        let labels = p.tracer().input("labels", i64(shape!["batch"]));
        let logits = net.forward(p, images);
        Objective::new(loss::cross_entropy(logits, labels)).classes(logits, labels)
    })?;
    if let Some(compiled) = trainer.step_program().compiled() {
        let kernels = compiled.program.launches().len();
        println!("A training step is {kernels} kernels, compiled in {:.0} ms.", compiled.total().as_secs_f64() * 1e3);
    }

    let training = common::first(&training, args.steps, args.batch);
    let mut fit = Fit::new(args.epochs).batch(args.batch).seed(args.seed).full_batches(true).progress(Progress::Lines);
    fit = fit.clone().schedule(Schedule::cosine(args.rate, fit.steps(training.len())));
    if let Some(folder) = &args.out {
        fit = fit.checkpoints(folder).resume(true).curve(folder.join("loss"));
    }
    let history = trainer.fit(&training, None, &fit)?;

    let result = trainer.evaluate(&test, 500)?;
    let percent = |share: Option<f64>| 100.0 * share.unwrap_or_default();
    println!(
        "test: loss {:.4}, accuracy {:.2} %, {:.2} % among the first two",
        result.loss,
        percent(result.accuracy()),
        percent(result.top(2))
    );
    Ok(common::learnt(&history, &trainer))
}
