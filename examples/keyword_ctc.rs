//! Spoken keywords, spelled letter by letter: a recurrent network learns by connectionist temporal classification (Graves et
//! al., 2006) when each letter sounds, from the spelling alone.
//!
//! ```text
//! cargo run --release --example keyword_ctc -- [--data DIR] [--epochs N]
//! ```
//!
//! `DIR` holds `sounds.npy`, f32 `[n, frames, bands]` (spectra, zeros after the end), and `words.txt`, one word a line. Without
//! it, words are simulated: a letter is a spectrum for a few frames, under noise.

mod common;

use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::ir::files::read_npy;
use egret::ir::random::Random;
use egret::nn::data::{self, DataSet, Table};
use egret::nn::{Adam, Clip, ClipBy, Gru, Layer, Linear, Schedule, loss};
use egret::{Device, Fit, Objective, Progress, Tensor, Trainer, f32, i64, shape};

/// Words that are simulated.
const WORDS: [&str; 12] = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "hello", "egret"];

/// Frames and bands of a simulated word.
const SOUND: [usize; 2] = [32, 12];

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with `sounds.npy` and `words.txt`.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Passes over the words.
    #[arg(long, default_value_t = 4)]
    epochs: u64,
    /// Steps of a pass, if fewer than the words are enough for.
    #[arg(long)]
    steps: Option<usize>,
    /// Words of a step.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Features of the recurrent layer, in each direction.
    #[arg(long, default_value_t = 48)]
    hidden: usize,
    /// Learning rate at the beginning; a cosine takes it to 0.
    #[arg(long, default_value_t = 0.006)]
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
    let (sounds, words) = match &args.data {
        Some(folder) => {
            let words = data::read_text(folder, "words.txt")?;
            (read_npy(&folder.join("sounds.npy"))?, words.lines().map(str::to_string).collect())
        }
        None => {
            println!("No --data given: the sounds of {} words are simulated.", WORDS.len());
            spoken(4000, args.seed)
        }
    };
    let mut letters: Vec<char> = words.iter().flat_map(|word: &String| word.chars()).collect();
    letters.sort_unstable();
    letters.dedup();
    let [_, frames, bands] = sounds.shape() else {
        let message = format!("sounds of shape {:?} have not three axes", sounds.shape());
        return Err(egret::Diagnostic::new("E0606", message).into());
    };
    let (frames, bands) = (*frames, *bands);
    let table = spelled(sounds, &words, &letters)?;
    let (train, valid) = data::split(&table, 0.1, args.seed);
    let most = table.tensors()[1].1.shape()[1];

    let optimiser = Clip::new(ClipBy::Norm(5.0), Adam::default());
    let mut trainer = Trainer::new(&args.device, &optimiser, args.seed, |p| {
        let t = p.tracer();
        let sounds = t.input("sounds", f32(shape!["batch", frames, bands]));
        let labels = t.input("labels", i64(shape!["batch", most]));
        let lengths = ["frame_lengths", "label_lengths"].map(|name| t.input(name, i64(shape!["batch"])));
        let heard = Gru::new(args.hidden).bidirectional().forward(&p.at("gru"), sounds);
        // class 0 is the blank
        let shares = Linear::new(letters.len() + 1).forward(&p.at("out"), heard).log_softmax(-1);
        Objective::new(loss::ctc(shares, labels, lengths[0], lengths[1])).output("shares", shares)
    })?;
    let (train, valid) = (common::first(&train, args.steps, args.batch), common::first(&valid, args.steps, args.batch));
    let fit = Fit::new(args.epochs).batch(args.batch).seed(args.seed).full_batches(true).progress(Progress::Lines);
    let steps = fit.steps(train.len());
    let history = trainer.fit(&train, Some(&valid), &fit.schedule(Schedule::cosine(args.rate, steps)))?;

    let batch = valid.batch(&(0..valid.len()).collect::<Vec<_>>())?;
    let outputs = trainer.evaluate_batch(&common::named(&batch))?;
    let shares = outputs.get("shares").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
    let labels = batch[1].1.as_slice::<i64>().unwrap_or_default();
    let spell =
        |labels: &[i64]| labels.iter().filter(|l| **l > 0).map(|l| letters[*l as usize - 1]).collect::<String>();
    let pairs: Vec<(String, String)> = shares
        .chunks(frames * (letters.len() + 1))
        .zip(labels.chunks(most))
        .map(|(shares, labels)| (spell(labels), spell(&collapsed(shares, letters.len() + 1))))
        .collect();
    for (said, heard) in pairs.iter().take(6) {
        println!("said `{said}`, heard `{heard}`");
    }
    let right = pairs.iter().filter(|(said, heard)| said == heard).count();
    println!("{:.1} % of {} words are spelled right", 100.0 * right as f64 / pairs.len().max(1) as f64, pairs.len());
    Ok(common::learnt(&history, &trainer))
}

/// The likeliest class of each frame; repeats are one, and blanks none.
fn collapsed(shares: &[f32], classes: usize) -> Vec<i64> {
    let best = |row: &[f32]| (0..classes).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0) as i64;
    let mut labels: Vec<i64> = shares.chunks(classes).map(best).collect();
    labels.dedup();
    labels.retain(|label| *label > 0);
    labels
}

/// Sounds with the numbers of their letters, from 1 on.
fn spelled(sounds: Tensor, words: &[String], letters: &[char]) -> egret::Result<Table> {
    let (n, frames) = (words.len(), sounds.shape()[1] as i64);
    let most = words.iter().map(|word| word.chars().count()).max().unwrap_or(0);
    let mut labels = vec![0i64; n * most];
    for (word, row) in words.iter().zip(labels.chunks_mut(most.max(1))) {
        let number = |c: char| letters.binary_search(&c).map_or(0, |i| i as i64 + 1);
        row.iter_mut().zip(word.chars()).for_each(|(label, c)| *label = number(c));
    }
    let lengths: Vec<i64> = words.iter().map(|word| word.chars().count() as i64).collect();
    let all = [
        ("sounds", Some(sounds)),
        ("labels", Tensor::new(&[n, most], &labels)),
        ("frame_lengths", Tensor::new(&[n], &vec![frames; n])),
        ("label_lengths", Tensor::new(&[n], &lengths)),
    ];
    Ok(Table::new(all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))))?)
}

/// Words whose letters are spectra of their own, each for three to five frames.
fn spoken(count: usize, seed: u64) -> (Tensor, Vec<String>) {
    let mut random = Random::new(seed);
    let [frames, bands] = SOUND;
    let timbre: Vec<f32> = (0..26 * bands).map(|_| (random.unit() * 2.0 - 1.0) as f32).collect();
    let (mut sounds, mut words) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let word = WORDS[random.below(WORDS.len())];
        let mut sound = vec![0f32; frames * bands];
        let mut at = random.below(4);
        for letter in word.bytes() {
            let until = (at + 3 + random.below(3)).min(frames);
            for frame in sound[at * bands..until * bands].chunks_mut(bands) {
                frame.copy_from_slice(&timbre[usize::from(letter - b'a') * bands..][..bands]);
            }
            at = until;
        }
        sounds.extend(sound.iter().map(|v| v + 0.8 * (random.unit() as f32 - 0.5)));
        words.push(word.to_string());
    }
    let sounds = Tensor::new(&[count, frames, bands], &sounds);
    (sounds.unwrap_or_else(|| unreachable!("as many frames")), words)
}
