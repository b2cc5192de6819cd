//! Two networks against each other (Goodfellow et al., 2014): a generator makes points or digits of noise, a critic tells
//! them from real ones. Two compiled steps share one state; each moves its own network and reads the other's.
//!
//! ```text
//! cargo run --release --example gan -- [--data DIR] [--steps N]
//! ```
//!
//! `DIR` holds MNIST's four IDX files. Without it, the generator learns a ring of eight clouds of points that the program
//! draws.

mod common;

use std::f64::consts::TAU;
use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::ir::random::Random;
use egret::nn::{Adam, Layer, Linear, Mode, Optimiser, Params, Sequential, data, loss};
use egret::{DType, Device, ScalarFn, Session, State, Tensor, TensorType, Tracer, Var, f32, shape};

/// Numbers that a sample is made of.
const NOISE: usize = 16;

/// Clouds of the ring.
const CLOUDS: usize = 8;

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with MNIST's files.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Steps of both networks.
    #[arg(long, default_value_t = 4000)]
    steps: u64,
    /// Samples of a step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 5e-4)]
    rate: f64,
    /// Seed of weights and data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs: `cpu`, or a GPU as `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

fn main() {
    common::run(|| learn(&Args::parse()));
}

/// The networks, for samples of so many numbers.
struct Pair {
    generator: Sequential,
    critic: Sequential,
}

impl Pair {
    fn new(features: usize) -> Pair {
        let hidden = |net: Sequential, n| net.layer(Linear::new(n)).layer(ScalarFn::Silu);
        let generator = hidden(hidden(Sequential::new(), 128), 128).layer(Linear::new(features));
        let generator = if features == 2 { generator } else { generator.layer(ScalarFn::Sigmoid) };
        Pair { generator, critic: hidden(hidden(Sequential::new(), 128), 128).layer(Linear::new(1)) }
    }

    /// Samples of noise that each run draws anew.
    fn samples<'t>(&self, p: &Params<'_, 't>, noise: Var<'t>) -> Var<'t> {
        self.generator.forward(&p.at("generator"), noise)
    }

    fn judged<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        self.critic.forward(&p.at("critic"), x)
    }
}

fn noise<'t>(p: &Params<'_, 't>, batch: usize) -> Var<'t> {
    p.tracer().normal(p.stream(), p.random_counter(), f32([batch, NOISE]))
}

/// How far logits are from saying `real` everywhere.
fn saying<'t>(logits: Var<'t>, real: f64) -> Var<'t> {
    loss::binary_cross_entropy(logits, (logits * 0.0 + real).stop_gradient())
}

fn rate<'t>(t: &Tracer<'t>) -> Var<'t> {
    t.input("rate", TensorType::new(DType::F64, shape![]))
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    let (images, features) = match &args.data {
        Some(folder) => {
            let images = data::mnist(folder)?.0;
            let (height, width) = images.extent();
            (Some(images), height * width)
        }
        None => {
            println!("No --data given: the generator learns a ring of {CLOUDS} clouds of points.");
            (None, 2)
        }
    };
    let pair = Pair::new(features);
    let rule = Adam { beta1: 0.5, ..Adam::default() };
    // what one step trains, the other reads: a network that is not trained has its parameters from `fixed`
    let critic = egret::trace(|t| {
        let (p, fixed) = (Params::new(t, Mode::Train, args.seed), Params::new(t, Mode::Evaluate, args.seed));
        let real = t.input("real", f32([args.batch, features]));
        let made = pair.samples(&fixed, noise(&p, args.batch)).stop_gradient();
        let loss = (saying(pair.judged(&p, real), 1.0) + saying(pair.judged(&p, made), 0.0)) * 0.5;
        rule.minimise(&p.at("critic"), loss, rate(t));
        [("loss", loss)]
    })?;
    let generator = egret::trace(|t| {
        let (p, fixed) = (Params::new(t, Mode::Train, args.seed), Params::new(t, Mode::Evaluate, args.seed));
        let made = pair.samples(&p, noise(&p, args.batch));
        let loss = saying(pair.judged(&fixed, made), 1.0);
        rule.minimise(&p.at("generator"), loss, rate(t));
        [("loss", loss)]
    })?;
    let sampler = egret::trace(|t| {
        let p = Params::new(t, Mode::Evaluate, args.seed);
        [("samples", pair.samples(&p, t.input("noise", f32(shape!["batch", NOISE]))))]
    })?;

    let device = args.device.clone();
    let [critic, generator, sampler] = [&critic, &generator, &sampler].map(|graph| egret::compile(graph, &device));
    let (critic, generator, sampler) = (critic?, generator?, sampler?);
    let programs = vec![critic.clone(), generator.clone(), sampler.clone()];
    let state: State = critic.state()?;
    state.add(&generator)?;
    let mut sampler = sampler.session_with(&state)?;
    let (mut critic, mut generator) = (critic.session_with(&state)?, generator.session_with(&state)?);

    let mut random = Random::new(args.seed);
    let (mut losses, mut batches, mut last) = ([0.0; 2], Vec::new(), 1.0);
    for step in 1..=args.steps {
        let share = step as f64 / args.steps as f64;
        let rate = Tensor::new(&[], &[args.rate * (1.0 - share).max(0.05)]).unwrap_or_else(|| unreachable!("a scalar"));
        let real = match &images {
            None => ring(args.batch, &mut random),
            Some(images) => {
                if batches.is_empty() {
                    batches = images.shuffled(args.batch, step).map(|(x, _)| x).collect();
                }
                let x = batches.pop().and_then(|x| x.reshaped(&[args.batch, features]));
                x.unwrap_or_else(|| unreachable!("whole batches"))
            }
        };
        losses[0] += critic.run(&[("real", &real), ("rate", &rate)])?.scalar("loss").unwrap_or(f64::NAN);
        losses[1] += generator.run(&[("rate", &rate)])?.scalar("loss").unwrap_or(f64::NAN);
        if step == args.steps || step % (args.steps / 10).max(1) == 0 {
            let steps = (args.steps / 10).max(1) as f64;
            let [critic, generator] = losses.map(|sum| sum / steps);
            losses = [0.0; 2];
            print!("step {step}: critic {critic:.3}, generator {generator:.3}");
            last = judge(&mut sampler, features, &mut random)?;
        }
    }
    Ok(Learnt { first: 1.0, last, programs })
}

/// Says how good samples are: how many clouds they reach, or what they look like. Gives the share that is in no cloud.
fn judge(sampler: &mut Session, features: usize, random: &mut Random) -> egret::Result<f64> {
    let count = if features == 2 { 1000 } else { 5 };
    let noise: Vec<f32> = (0..count * NOISE).map(|_| normal(random) as f32).collect();
    let noise = Tensor::new(&[count, NOISE], &noise).unwrap_or_else(|| unreachable!("as many numbers"));
    let outputs = sampler.run(&[("noise", &noise)])?;
    let samples = outputs.get("samples").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
    if features != 2 {
        println!();
        common::show(&samples.chunks(features).collect::<Vec<_>>(), (features as f64).sqrt() as usize);
        return Ok(0.0);
    }
    let (mut reached, mut near) = ([0; CLOUDS], 0);
    for point in samples.chunks(2) {
        for (cloud, hits) in reached.iter_mut().enumerate() {
            let (x, y) = centre(cloud);
            if (f64::from(point[0]) - x).hypot(f64::from(point[1]) - y) < 0.6 {
                (*hits, near) = (*hits + 1, near + 1);
            }
        }
    }
    let clouds = reached.iter().filter(|hits| **hits > count / 50).count();
    println!("; {clouds} of {CLOUDS} clouds reached, {} % of the samples in one", 100 * near / count);
    Ok(1.0 - near as f64 / count as f64)
}

fn centre(cloud: usize) -> (f64, f64) {
    let angle = TAU * cloud as f64 / CLOUDS as f64;
    (2.0 * angle.cos(), 2.0 * angle.sin())
}

/// Points of clouds on a ring.
fn ring(count: usize, random: &mut Random) -> Tensor {
    let point = |_| {
        let (x, y) = centre(random.below(CLOUDS));
        [x + 0.2 * normal(random), y + 0.2 * normal(random)].map(|v| v as f32)
    };
    let points: Vec<f32> = (0..count).flat_map(point).collect();
    Tensor::new(&[count, 2], &points).unwrap_or_else(|| unreachable!("as many numbers"))
}

fn normal(random: &mut Random) -> f64 {
    (-2.0 * (1.0 - random.unit()).ln()).sqrt() * (TAU * random.unit()).cos()
}
