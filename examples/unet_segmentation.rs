//! A small U-Net (Ronneberger et al., 2015) says of each pixel what it belongs to.
//!
//! ```text
//! cargo run --release --example unet_segmentation -- [--data DIR] [--epochs N]
//! ```
//!
//! `DIR` holds `images.npy`, f32 `[n, channels, height, width]`, and `masks.npy`, i64 `[n, height, width]`, with extents that
//! are multiples of 4. Without it, discs and squares are drawn under noise.

mod common;

use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::ir::files::read_npy;
use egret::ir::random::Random;
use egret::nn::data::{self, DataSet, Table};
use egret::nn::{Adam, BatchNorm, Conv2d, ConvTranspose2d, Layer, MaxPool2d, Params, Schedule, Sequential, loss};
use egret::{Device, Fit, Objective, Progress, ScalarFn, Tensor, Trainer, Var, f32, i64, shape};

/// Extent of a drawn image.
const EXTENT: usize = 32;

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with `images.npy` and `masks.npy`.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Passes over the images.
    #[arg(long, default_value_t = 4)]
    epochs: u64,
    /// Steps of a pass, if fewer than the images are enough for.
    #[arg(long)]
    steps: Option<usize>,
    /// Images of a step.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Channels of the first level; each further one has twice as many.
    #[arg(long, default_value_t = 12)]
    channels: usize,
    /// Learning rate at the beginning; a cosine takes it to 0.
    #[arg(long, default_value_t = 0.004)]
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

/// Two convolutions that keep the extents.
fn double(channels: usize) -> Sequential {
    let one = |net: Sequential| {
        net.layer(Conv2d::new(channels, 3).padding(1).no_bias()).layer(BatchNorm::default()).layer(ScalarFn::Relu)
    };
    one(one(Sequential::new()))
}

/// Down to a quarter of the extents and up again; each level up also sees what the level down saw.
fn unet<'t>(p: &Params<'_, 't>, images: Var<'t>, channels: usize, classes: usize) -> Var<'t> {
    let t = p.tracer();
    let down = |x| MaxPool2d::new(2).forward(p, x);
    let up = |name: &str, x, n| ConvTranspose2d::new(n, 2).stride(2).forward(&p.at(name), x);
    let first = double(channels).forward(&p.at("down1"), images);
    let second = double(channels * 2).forward(&p.at("down2"), down(first));
    let bottom = double(channels * 4).forward(&p.at("bottom"), down(second));
    let x = t.concat(&[second, up("up2", bottom, channels * 2)], 1);
    let x = double(channels * 2).forward(&p.at("join2"), x);
    let x = t.concat(&[first, up("up1", x, channels)], 1);
    let x = double(channels).forward(&p.at("join1"), x);
    // classes last, as losses take them
    Conv2d::new(classes, 1).forward(&p.at("out"), x).transpose(&[0, 2, 3, 1])
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    let (images, masks) = match &args.data {
        Some(folder) => (read_npy(&folder.join("images.npy"))?, read_npy(&folder.join("masks.npy"))?),
        None => {
            println!("No --data given: discs and squares that this program draws under noise.");
            drawn(1200, args.seed)
        }
    };
    let classes = masks.values().map(|v| v.as_int()).max().map_or(1, |most| most as usize + 1);
    let [_, depth, height, width] = images.shape() else {
        let message = format!("images of shape {:?} have not four axes", images.shape());
        return Err(egret::Diagnostic::new("E0606", message).into());
    };
    let (depth, height, width) = (*depth, *height, *width);
    let table = Table::new([("images", images), ("masks", masks)])?;
    let (train, valid) = data::split(&table, 0.1, args.seed);

    let mut trainer = Trainer::new(&args.device, &Adam::default(), args.seed, |p| {
        let images = p.tracer().input("images", f32(shape!["batch", depth, height, width]));
        let masks = p.tracer().input("masks", i64(shape!["batch", height, width]));
        let logits = unet(p, images, args.channels, classes);
        Objective::new(loss::cross_entropy(logits, masks)).classes(logits, masks)
    })?;
    let (train, valid) = (common::first(&train, args.steps, args.batch), common::first(&valid, args.steps, args.batch));
    let fit = Fit::new(args.epochs).batch(args.batch).seed(args.seed).full_batches(true).progress(Progress::Lines);
    let steps = fit.steps(train.len());
    let history = trainer.fit(&train, Some(&valid), &fit.schedule(Schedule::cosine(args.rate, steps)))?;

    let result = trainer.evaluate(&valid, args.batch)?;
    println!("{:.2} % of the pixels are right", 100.0 * result.accuracy().unwrap_or_default());
    let seen = result.classes.as_ref().and_then(|classes| classes.confusion()).unwrap_or_default();
    for (class, row) in seen.iter().enumerate() {
        // what is both, over what is either
        let (both, is): (u64, u64) = (row[class], row.iter().sum());
        let said: u64 = seen.iter().map(|row| row[class]).sum();
        println!("class {class}: intersection over union {:.3}", both as f64 / (is + said - both).max(1) as f64);
    }
    Ok(common::learnt(&history, &trainer))
}

/// Grey images under noise, and what is on each pixel: nothing (0), a disc (1) or a square (2).
fn drawn(count: usize, seed: u64) -> (Tensor, Tensor) {
    let mut random = Random::new(seed);
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let shapes: Vec<[f64; 5]> = (0..1 + random.below(3))
            .map(|_| {
                let place = |random: &mut Random| random.unit() * EXTENT as f64;
                let (x, y) = (place(&mut random), place(&mut random));
                [x, y, 3.0 + 5.0 * random.unit(), random.below(2) as f64, 0.5 + 0.5 * random.unit()]
            })
            .collect();
        for at in 0..EXTENT * EXTENT {
            let (row, column) = ((at / EXTENT) as f64, (at % EXTENT) as f64);
            let covers = |[x, y, size, square, _]: &&[f64; 5]| match *square {
                0.0 => (row - y).hypot(column - x) < *size,
                _ => (row - y).abs().max((column - x).abs()) < *size,
            };
            // the last one lies on top
            let top = shapes.iter().rev().find(covers);
            pixels.push((top.map_or(0.0, |s| s[4]) + 0.6 * (random.unit() - 0.5)) as f32);
            classes.push(top.map_or(0, |s| 1 + s[3] as i64));
        }
    }
    let images = Tensor::new(&[count, 1, EXTENT, EXTENT], &pixels);
    let masks = Tensor::new(&[count, EXTENT, EXTENT], &classes);
    images.zip(masks).unwrap_or_else(|| unreachable!("as many pixels"))
}
