//! One sequence from another: a decoder looks at all that an encoder read, by attention (Luong et al., 2015).
//!
//! ```text
//! cargo run --release --example seq2seq_attention -- [--data DIR] [--epochs N]
//! ```
//!
//! `DIR` holds `pairs.tsv`, lines of a source of words and a target of characters with a tab between them. Without it,
//! numbers are written out: `three hundred twelve thousand six` is to become `312006`.

mod common;

use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::ir::random::Random;
use egret::nn::data::{self, DataSet, Table};
use egret::nn::{Adam, Clip, ClipBy, Embedding, Gru, Layer, Linear, Params, Schedule};
use egret::{DType, Device, Fit, Literal, Objective, Progress, Tensor, Trainer, Var, i64, shape};

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with `pairs.tsv`.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Passes over the pairs.
    #[arg(long, default_value_t = 2)]
    epochs: u64,
    /// Steps of a pass, if fewer than the pairs are enough for.
    #[arg(long)]
    steps: Option<usize>,
    /// Pairs of a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Features.
    #[arg(long, default_value_t = 64)]
    features: usize,
    /// Learning rate at the beginning; a cosine takes it to 0.
    #[arg(long, default_value_t = 0.005)]
    rate: f64,
    /// Seed of weights and order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs: `cpu`, or a GPU as `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

/// Begins a target; 0 fills up what is shorter than the longest, and ends a target.
const BEGIN: i64 = 1;

/// Symbols by number, from 2 on.
struct Symbols(Vec<String>);

impl Symbols {
    fn of<'a>(all: impl Iterator<Item = &'a str>) -> Symbols {
        let mut symbols: Vec<String> = all.map(str::to_string).collect();
        symbols.sort_unstable();
        symbols.dedup();
        Symbols(symbols)
    }

    fn len(&self) -> usize {
        self.0.len() + 2
    }

    fn number(&self, symbol: &str) -> i64 {
        self.0.binary_search_by(|have| have.as_str().cmp(symbol)).map_or(0, |i| i as i64 + 2)
    }

    fn text(&self, numbers: &[i64], between: &str) -> String {
        let until = numbers.iter().take_while(|n| **n != 0);
        until.filter_map(|n| self.0.get(*n as usize - 2)).cloned().collect::<Vec<_>>().join(between)
    }
}

fn main() {
    common::run(|| learn(&Args::parse()));
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    let pairs: Vec<(String, String)> = match &args.data {
        Some(folder) => {
            let text = data::read_text(folder, "pairs.tsv")?;
            let pair = |line: &str| line.split_once('\t').map(|(a, b)| (a.to_string(), b.to_string()));
            text.lines().filter_map(pair).collect()
        }
        None => {
            println!("No --data given: numbers below a million, written out by this program.");
            let mut random = Random::new(args.seed);
            (0..12_000).map(|_| random.below(1_000_000)).map(|n| (written_out(n), n.to_string())).collect()
        }
    };
    let words = Symbols::of(pairs.iter().flat_map(|(source, _)| source.split_whitespace()));
    let signs = Symbols::of(pairs.iter().flat_map(|(_, target)| target.split("").filter(|s| !s.is_empty())));
    let table = numbered(&pairs, &words, &signs)?;
    let [from, to] = [0, 2].map(|i| table.tensors()[i].1.shape()[1]);
    let (train, valid) = data::split(&table, 0.05, args.seed);

    let optimiser = Clip::new(ClipBy::Norm(5.0), Adam::default());
    let mut trainer = Trainer::new(&args.device, &optimiser, args.seed, |p| {
        let t = p.tracer();
        let source = t.input("source", i64(shape!["batch", from]));
        let (given, wanted) = (t.input("given", i64(shape!["batch", to])), t.input("wanted", i64(shape!["batch", to])));
        let logits = translated(p, source, given, args.features, [words.len(), signs.len()]);
        // the sign that ends a target counts, what fills it up does not
        let counts = given.not_equal(0i64).cast(DType::F32);
        let loss = (logits.cross_entropy(wanted) * counts).sum() / counts.sum();
        Objective::new(loss).output("logits", logits)
    })?;
    let (train, valid) = (common::first(&train, args.steps, args.batch), common::first(&valid, args.steps, args.batch));
    let fit = Fit::new(args.epochs).batch(args.batch).seed(args.seed).full_batches(true).progress(Progress::Lines);
    let steps = fit.steps(train.len());
    let history = trainer.fit(&train, Some(&valid), &fit.schedule(Schedule::cosine(args.rate, steps)))?;

    let batch = valid.batch(&(0..valid.len()).collect::<Vec<_>>())?;
    let written = translate(&mut trainer, &batch[0].1, to, signs.len())?;
    let rows = |i: usize| batch[i].1.as_slice::<i64>().unwrap_or_default();
    let all: Vec<(&[i64], String, String)> = rows(0)
        .chunks(from)
        .zip(rows(2).chunks(to))
        .zip(written.chunks(to))
        .map(|((source, wanted), written)| (source, signs.text(wanted, ""), signs.text(written, "")))
        .collect();
    for (source, wanted, written) in all.iter().take(6) {
        let mark = if wanted == written { "" } else { "  (wrong)" };
        println!("{} → {written}{mark}", words.text(source, " "));
    }
    let right = all.iter().filter(|(_, wanted, written)| wanted == written).count();
    println!("{:.1} % of {} are right to the last sign", 100.0 * right as f64 / all.len().max(1) as f64, all.len());
    Ok(common::learnt(&history, &trainer))
}

/// Logits of the sign that follows each one given.
fn translated<'t>(
    p: &Params<'_, 't>,
    source: Var<'t>,
    given: Var<'t>,
    features: usize,
    [words, signs]: [usize; 2],
) -> Var<'t> {
    let t = p.tracer();
    let read = Embedding::new(words, features).forward(&p.at("words"), source);
    let read = Gru::new(features).bidirectional().forward(&p.at("encoder"), read);
    let said = Embedding::new(signs, features).forward(&p.at("signs"), given);
    let asked = Gru::new(2 * features).forward(&p.at("decoder"), said);
    let scores = asked.dot_general(read, "bqf,bkf->bqk") * (1.0 / (2.0 * features as f64).sqrt());
    let nothing = t.scalar(Literal::float(-1e9, DType::F32));
    let shares = source.equal(0i64).unsqueeze(&[1]).select(nothing, scores).softmax(-1);
    let seen = shares.dot_general(read, "bqk,bkf->bqf");
    let joined = Linear::new(2 * features).forward(&p.at("join"), t.concat(&[asked, seen], -1)).tanh();
    Linear::new(signs).forward(&p.at("out"), joined)
}

/// The likeliest sign after those before it, again and again.
fn translate(trainer: &mut Trainer, source: &Tensor, to: usize, signs: usize) -> egret::Result<Vec<i64>> {
    let n = source.shape()[0];
    let (mut given, mut written) = (vec![0i64; n * to], vec![0i64; n * to]);
    given.chunks_mut(to).for_each(|row| row[0] = BEGIN);
    for at in 0..to {
        let Some(so_far) = Tensor::new(&[n, to], &given) else { break };
        let outputs = trainer.evaluate_batch(&[("source", source), ("given", &so_far), ("wanted", &so_far)])?;
        let logits = outputs.get("logits").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
        for (row, logits) in logits.chunks(to * signs).enumerate() {
            let logits = &logits[at * signs..][..signs];
            let best = (0..signs).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as i64;
            written[row * to + at] = best;
            if at + 1 < to {
                given[row * to + at + 1] = best;
            }
        }
    }
    Ok(written)
}

/// Pairs as numbers: sources, targets with their beginning, and targets with their end.
fn numbered(pairs: &[(String, String)], words: &Symbols, signs: &Symbols) -> egret::Result<Table> {
    let sources: Vec<Vec<i64>> =
        pairs.iter().map(|(source, _)| source.split_whitespace().map(|w| words.number(w)).collect()).collect();
    let sign = |target: &str| target.chars().map(|c| signs.number(c.encode_utf8(&mut [0; 4]))).collect::<Vec<i64>>();
    let wanted: Vec<Vec<i64>> = pairs.iter().map(|(_, target)| sign(target)).collect();
    let given: Vec<Vec<i64>> = wanted.iter().map(|row| [&[BEGIN], row.as_slice()].concat()).collect();
    let filled = |rows: &[Vec<i64>], longest: usize| {
        let row = |row: &Vec<i64>| row.iter().copied().chain(std::iter::repeat(0)).take(longest).collect::<Vec<i64>>();
        Tensor::new(&[rows.len(), longest], &rows.iter().flat_map(row).collect::<Vec<i64>>())
    };
    let longest = |rows: &[Vec<i64>]| rows.iter().map(Vec::len).max().unwrap_or(0);
    let (from, to) = (longest(&sources), longest(&given));
    let all = [("source", filled(&sources, from)), ("given", filled(&given, to)), ("wanted", filled(&wanted, to))];
    Ok(Table::new(all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))))?)
}

/// A number below a million in English words.
fn written_out(n: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let rest = |n: usize| if n == 0 { String::new() } else { format!(" {}", written_out(n)) };
    match n {
        0..20 => SMALL[n].to_string(),
        20..100 => format!("{}{}", TENS[n / 10], rest(n % 10)),
        100..1000 => format!("{} hundred{}", SMALL[n / 100], rest(n % 100)),
        _ => format!("{} thousand{}", written_out(n / 1000), rest(n % 1000)),
    }
}
