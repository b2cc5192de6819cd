//! A restricted Boltzmann machine learns digits by contrastive divergence (Hinton, 2002), then dreams of some.
//!
//! ```text
//! cargo run --release --example rbm -- [--data DIR] [--steps N]
//! ```
//!
//! `DIR` holds MNIST's four IDX files. Without it, digits drawn by the program are learnt. There is no loss and no gradient:
//! the step is traced by hand, and moves its states itself.

mod common;

use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::nn::{Init, Mode, Params, data};
use egret::{Device, Tensor, Var, f32, shape};

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with MNIST's files.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Steps of training.
    #[arg(long, default_value_t = 2000)]
    steps: usize,
    /// Images of a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Hidden units.
    #[arg(long, default_value_t = 128)]
    hidden: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 0.05)]
    rate: f64,
    /// Seed of weights, order and units.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs: `cpu`, or a GPU as `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

/// Weights `[visible, hidden]` and the biases of both layers.
struct Machine<'t> {
    weight: Var<'t>,
    visible: Var<'t>,
    hidden: Var<'t>,
}

impl<'t> Machine<'t> {
    fn new(p: &Params<'_, 't>, visible: usize, hidden: usize) -> Machine<'t> {
        Machine {
            weight: p.get("weight", &[visible, hidden], Init::Normal { mean: 0.0, std: 0.01 }),
            visible: p.get("visible", &[visible], Init::Constant(-2.0)),
            hidden: p.get("hidden", &[hidden], Init::ZEROS),
        }
    }

    /// How likely each hidden unit is on.
    fn up(&self, v: Var<'t>) -> Var<'t> {
        (v.matmul(self.weight) + self.hidden).sigmoid()
    }

    /// How likely each visible unit is on.
    fn down(&self, h: Var<'t>) -> Var<'t> {
        (h.matmul(self.weight.t()) + self.visible).sigmoid()
    }
}

/// Units that are on with these likelihoods.
fn drawn<'t>(p: &Params<'_, 't>, likely: Var<'t>) -> Var<'t> {
    p.tracer().uniform(p.stream(), p.random_counter(), likely.ty()).less(likely).cast(likely.dtype())
}

fn main() {
    common::run(|| learn(&Args::parse()));
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    let images = match &args.data {
        Some(folder) => data::mnist(folder)?.0,
        None => {
            println!("No --data given: training on digits that this program draws, not on MNIST.");
            data::digits(10_000, 1)
        }
    };
    let (height, width) = images.extent();
    let pixels = height * width;
    let step = egret::trace(|t| {
        let p = Params::new(t, Mode::Train, args.seed);
        let m = Machine::new(&p, pixels, args.hidden);
        let images = t.input("images", f32(shape![args.batch, 1, height, width])).flatten(1);
        let v = drawn(&p, images);
        let h = m.up(v);
        let v_again = drawn(&p, m.down(drawn(&p, h)));
        let h_again = m.up(v_again);
        // what pairs of units do under the data, less what they do under the machine itself
        let by = args.rate / args.batch as f64;
        t.update(m.weight, m.weight + (v.t().matmul(h) - v_again.t().matmul(h_again)) * by);
        t.update(m.visible, m.visible + (v - v_again).reduce_sum(&[0], false) * by);
        t.update(m.hidden, m.hidden + (h - h_again).reduce_sum(&[0], false) * by);
        let missed = images - m.down(h);
        [("error", (missed * missed).mean())]
    })?;
    let dream = egret::trace(|t| {
        let p = Params::new(t, Mode::Evaluate, args.seed);
        let m = Machine::new(&p, pixels, args.hidden);
        let start = t.input("images", f32(shape!["batch", 1, height, width])).flatten(1);
        let (last, _) = t.scan_of(50.into(), false, &[start], &[], |_, v, _| {
            let h = m.up(v[0]);
            (vec![m.down(h.greater(0.5).cast(h.dtype()))], Vec::new())
        });
        [("dreamt", last[0])]
    })?;
    let (step, dream) = (egret::compile(&step, &args.device)?, egret::compile(&dream, &args.device)?);
    let programs = vec![step.clone(), dream.clone()];
    let state = step.state()?;
    let (mut step, mut dream) = (step.session_with(&state)?, dream.session_with(&state)?);

    let (mut done, mut sum, mut seen) = (0, 0.0, 0);
    let (mut first, mut last) = (f64::NAN, f64::NAN);
    'all: for epoch in 0.. {
        for (images, _) in images.shuffled(args.batch, epoch) {
            sum += step.run(&[("images", &images)])?.scalar("error").unwrap_or(f64::NAN);
            (done, seen) = (done + 1, seen + 1);
            if done % (args.steps / 8).max(1) == 0 || done == args.steps {
                last = sum / f64::from(seen);
                first = if first.is_nan() { last } else { first };
                println!("step {done}: mean squared error of what is seen again {last:.4}");
                (sum, seen) = (0.0, 0);
            }
            if done == args.steps {
                break 'all;
            }
        }
    }

    let Some((seen, _)) = images.take(3).batches(3).next() else { return Ok(Learnt { first, last, programs }) };
    println!("\nDigits, and what the machine makes of them in 50 turns:");
    common::show(&rows(&seen, pixels), width);
    let outputs = dream.run(&[("images", &seen)])?;
    let dreamt = outputs.get("dreamt").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
    common::show(&dreamt.chunks(pixels).collect::<Vec<_>>(), width);
    Ok(Learnt { first, last, programs })
}

fn rows(images: &Tensor, pixels: usize) -> Vec<&[f32]> {
    images.as_slice::<f32>().unwrap_or_default().chunks(pixels).collect()
}
