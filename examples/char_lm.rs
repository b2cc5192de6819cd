//! A model of text, character by character: an LSTM or a small transformer, which then writes text of its own.
//!
//! ```text
//! cargo run --release --example char_lm -- [--model lstm|transformer] [--data DIR] [--minutes M]
//! ```
//!
//! `DIR` holds `input.txt`, plain or `.gz`; its last tenth validates. Without it, the text is of sentences that the program
//! makes up.

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use common::Learnt;
use egret::ir::random::Random;
use egret::nn::data::{self, Characters, DataSet};
use egret::nn::{
    Adam, Clip, ClipBy, Embedding, Init, Layer, LayerNorm, Linear, Lstm, MultiHeadAttention, Params, Schedule,
    Sequential, TransformerBlock, loss,
};
use egret::{DType, Device, Dim, Objective, Tensor, TensorType, Trainer, Var};

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with `input.txt`.
    #[arg(long)]
    data: Option<PathBuf>,
    /// What learns.
    #[arg(long, value_enum, default_value_t = Model::Transformer)]
    model: Model,
    /// Steps of training.
    #[arg(long, default_value_t = 200)]
    steps: u64,
    /// Ends training after so many minutes; the learning rate falls with the time.
    #[arg(long)]
    minutes: Option<f64>,
    /// Texts of a step.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Characters that the model looks back at most.
    #[arg(long, default_value_t = 64)]
    length: usize,
    /// Features of a character.
    #[arg(long, default_value_t = 128)]
    features: usize,
    /// Layers.
    #[arg(long, default_value_t = 3)]
    layers: usize,
    /// Learning rate at its highest.
    #[arg(long, default_value_t = 3e-3)]
    rate: f64,
    /// Characters to write at the end.
    #[arg(long, default_value_t = 300)]
    write: usize,
    /// Seed of weights and data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs: `cpu`, or a GPU as `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

#[derive(Clone, Copy, ValueEnum)]
enum Model {
    Lstm,
    Transformer,
}

fn main() {
    common::run(|| learn(&Args::parse()));
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    let text = match &args.data {
        Some(folder) => data::read_text(folder, "input.txt")?,
        None => {
            println!("No --data given: training on sentences that this program makes up.");
            sentences(4000, args.seed)
        }
    };
    let text = Characters::new(&text)?;
    let (train, valid) = text.split(0.1);
    let (train, valid) = (train.windows(args.length, 1)?, valid.windows(args.length, args.length)?);
    println!("{} characters, {} of them different", text.len(), text.vocabulary().len());

    let classes = text.vocabulary().len();
    let optimiser = Clip::new(ClipBy::Norm(1.0), Adam { beta2: 0.99, ..Adam::w(0.01) });
    let mut trainer = Trainer::new(&args.device, &optimiser, args.seed, |p| {
        let time = Dim::symbol_in("time", 1, args.length as i64);
        let ty = TensorType::new(DType::I64, [Dim::from("batch"), time].as_slice());
        let (characters, next) = (p.tracer().input("characters", ty.clone()), p.tracer().input("next", ty));
        let logits = model(args, p, characters, classes);
        Objective::new(loss::cross_entropy(logits, next)).output("logits", logits)
    })?;

    let (start, mut random) = (Instant::now(), Random::new(args.seed));
    let limit = args.minutes.map(|m| Duration::from_secs_f64(m * 60.0));
    let plan = Schedule::cosine(args.rate, 1000).warm_up(30);
    let (mut sum, mut seen, mut step, mut first) = (0.0, 0, 0, f64::NAN);
    loop {
        let share = |step: u64| match limit {
            Some(limit) => start.elapsed().as_secs_f64() / limit.as_secs_f64(),
            None => step as f64 / args.steps as f64,
        };
        let ends = share(step + 1) >= 1.0;
        trainer.set_learning_rate(plan.at((share(step) * 1000.0) as u64).max(args.rate * 0.02));
        let rows: Vec<usize> = (0..args.batch).map(|_| random.below(train.len())).collect();
        let batch = train.batch(&rows)?;
        let loss = trainer.step(&common::named(&batch))?;
        first = if step == 0 { loss } else { first };
        sum += loss;
        (step, seen) = (step + 1, seen + 1);
        if ends || step % 100 == 0 {
            let loss = trainer.evaluate(&common::first(&valid, Some(8), 32), 32)?.loss;
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "step {step}: {:.3} nats a character, {loss:.3} of unseen text, {seconds:.0} s",
                sum / f64::from(seen)
            );
            (sum, seen) = (0.0, 0);
        }
        if ends {
            break;
        }
    }
    let whole = trainer.evaluate(&valid, 32)?;
    println!("all unseen text: {:.4} nats a character", whole.loss);
    let written = write(&mut trainer, &text, args, &mut random)?;
    println!("\n{written}");
    Ok(Learnt { first, last: whole.loss, programs: common::programs(&trainer) })
}

/// Logits of the next character at each place.
fn model<'t>(args: &Args, p: &Params<'_, 't>, characters: Var<'t>, classes: usize) -> Var<'t> {
    let x = Embedding::new(classes, args.features).init(Init::Normal { mean: 0.0, std: 0.1 });
    let mut x = x.forward(&p.at("characters"), characters);
    match args.model {
        Model::Lstm => x = Lstm::new(args.features * 2).layers(args.layers).forward(&p.at("lstm"), x),
        Model::Transformer => {
            let places = p.get("places", &[args.length, args.features], Init::Normal { mean: 0.0, std: 0.02 });
            x = x + places.narrow(0, 0, characters.shape()[1].clone());
            let heads = (args.features / 32).max(1);
            let blocks = (0..args.layers).fold(Sequential::new(), |blocks, _| {
                blocks.layer(TransformerBlock::new(MultiHeadAttention::new(heads).causal(), args.features * 4))
            });
            x = LayerNorm::default().forward(&p.at("norm"), blocks.forward(&p.at("blocks"), x));
        }
    }
    Linear::new(classes).forward(&p.at("out"), x)
}

/// Text drawn from the model, character by character.
fn write(trainer: &mut Trainer, text: &Characters, args: &Args, random: &mut Random) -> egret::Result<String> {
    let mut ids = text.encode("\n").unwrap_or(vec![0]);
    for _ in 0..args.write {
        let seen = &ids[ids.len().saturating_sub(args.length)..];
        let Some(input) = Tensor::new(&[1, seen.len()], seen) else { break };
        let outputs = trainer.evaluate_batch(&[("characters", &input), ("next", &input)])?;
        let logits = outputs.get("logits").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
        let last = &logits[logits.len().saturating_sub(text.vocabulary().len())..];
        // a little below 1: fewer slips of the pen
        let weights: Vec<f64> = last.iter().map(|x| (f64::from(*x) / 0.8).exp()).collect();
        let mut at = random.unit() * weights.iter().sum::<f64>();
        let next = weights.iter().position(|w| {
            at -= w;
            at < 0.0
        });
        ids.push(next.unwrap_or(0) as i64);
    }
    Ok(text.decode(&ids))
}

/// Sentences with subject, verb and object that agree.
fn sentences(count: usize, seed: u64) -> String {
    let mut random = Random::new(seed);
    let people = ["the heron", "a tall egret", "the miller", "my sister", "an old fisher", "the ferryman"];
    let verbs = ["watches", "follows", "paints", "remembers", "carries home", "waits for"];
    let things = ["the river", "seven fish", "a wooden boat", "the grey reeds", "the morning rain", "a lost bell"];
    let ends = [".", ", and the tide turns.", " until it is dark.", "; nobody knows why."];
    let mut pick = |words: &[&'static str]| random.pick(words).copied().unwrap_or_default();
    let one = |_| format!("{} {} {}{}\n", pick(&people), pick(&verbs), pick(&things), pick(&ends));
    (0..count).map(one).collect()
}
