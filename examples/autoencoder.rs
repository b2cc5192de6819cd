//! An autoencoder squeezes digits through a few numbers, and draws them again.
//!
//! ```text
//! cargo run --release --example autoencoder -- [--data DIR] [--epochs N] [--code N]
//! ```
//!
//! `DIR` holds MNIST's four IDX files, plain or `.gz`. Without it, digits drawn by the program are squeezed.

mod common;

use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::nn::data::{self, DataSet, Images, Table};
use egret::nn::{Adam, Flatten, Layer, Linear, Schedule, Sequential, loss};
use egret::{Device, Fit, Objective, Progress, ScalarFn, Trainer, f32, shape};

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with MNIST's files.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Passes over the training images.
    #[arg(long, default_value_t = 10)]
    epochs: u64,
    /// Steps of a pass, if fewer than the images are enough for.
    #[arg(long)]
    steps: Option<usize>,
    /// Numbers that an image becomes.
    #[arg(long, default_value_t = 16)]
    code: usize,
    /// Images of a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Learning rate at the beginning; a cosine takes it to 0.
    #[arg(long, default_value_t = 0.002)]
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

/// The images without their labels.
fn unlabelled(images: &Images) -> egret::Result<Table> {
    let all: Vec<usize> = (0..images.len()).collect();
    Ok(Table::new(images.batch(&all)?.into_iter().take(1))?)
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    let (training, test) = match &args.data {
        Some(folder) => data::mnist(folder)?,
        None => {
            println!("No --data given: digits that this program draws, not MNIST.");
            (data::digits(10_000, 1), data::digits(1_000, 2))
        }
    };
    let (height, width) = training.extent();
    let (training, test) = (unlabelled(&training)?, unlabelled(&test)?);
    let wide = |n| Sequential::new().layer(Linear::new(n)).layer(ScalarFn::Relu);
    let encoder = Sequential::new().layer(Flatten).layer(wide(256)).layer(wide(64)).layer(Linear::new(args.code));
    let decoder = Sequential::new().layer(wide(64)).layer(wide(256)).layer(Linear::new(height * width));

    let mut trainer = Trainer::new(&args.device, &Adam::default(), args.seed, |p| {
        let images = p.tracer().input("images", f32(shape!["batch", 1, height, width]));
        let code = encoder.forward(&p.at("encoder"), images);
        let logits = decoder.forward(&p.at("decoder"), code);
        let seen = logits.sigmoid();
        Objective::new(loss::binary_cross_entropy(logits, images.flatten(1))).output("code", code).output("seen", seen)
    })?;
    let (training, test) = (common::first(&training, args.steps, args.batch), common::first(&test, args.steps, 500));
    let fit = Fit::new(args.epochs).batch(args.batch).seed(args.seed).full_batches(true).progress(Progress::Lines);
    let steps = fit.steps(training.len());
    let history = trainer.fit(&training, Some(&test), &fit.schedule(Schedule::cosine(args.rate, steps)))?;

    let some = test.batch(&(0..test.len().min(3)).collect::<Vec<_>>())?;
    let outputs = trainer.evaluate_batch(&common::named(&some))?;
    let seen = outputs.get("seen").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
    println!("\nDigits that were not trained on, and the same from {} numbers:", args.code);
    let given = some[0].1.as_slice::<f32>().unwrap_or_default();
    common::show(&given.chunks(height * width).collect::<Vec<_>>(), width);
    common::show(&seen.chunks(height * width).collect::<Vec<_>>(), width);
    Ok(common::learnt(&history, &trainer))
}
