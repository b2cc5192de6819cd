//! Who will like what: a recommender after DLRM (Naumov et al., 2019). Users, items and weekdays are rows of tables, the
//! time of day is a few numbers; products of all pairs of these vectors say how they go together.
//!
//! ```text
//! cargo run --release --example recommender -- [--data DIR] [--epochs N]
//! ```
//!
//! `DIR` holds `ratings.csv` as MovieLens has it (`userId,movieId,rating,timestamp`): four stars or more count as liked.
//! Without it, users and items with hidden tastes are simulated.

mod common;

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::path::PathBuf;

use clap::Parser;
use common::Learnt;
use egret::ir::random::Random;
use egret::nn::data::{self, DataSet, Table};
use egret::nn::{Adam, Embedding, Init, Layer, Linear, Schedule, Sequential, loss};
use egret::{Device, Fit, Objective, Progress, ScalarFn, Tensor, Trainer, f32, i64, shape};

/// Features of each vector.
const WIDTH: usize = 8;

#[derive(Parser)]
pub(crate) struct Args {
    /// Folder with `ratings.csv`.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Passes over the ratings.
    #[arg(long, default_value_t = 6)]
    epochs: u64,
    /// Steps of a pass, if fewer than the ratings are enough for.
    #[arg(long)]
    steps: Option<usize>,
    /// Ratings of a step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Learning rate at the beginning; a cosine takes it to 0.
    #[arg(long, default_value_t = 0.003)]
    rate: f64,
    /// Seed of weights and order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs: `cpu`, or a GPU as `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

/// What was rated, when (in seconds), and whether it was liked.
#[derive(Default)]
struct Ratings {
    users: Vec<i64>,
    items: Vec<i64>,
    times: Vec<i64>,
    liked: Vec<f32>,
}

fn main() {
    common::run(|| learn(&Args::parse()));
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    let ratings = match &args.data {
        Some(folder) => Ratings::parse(&data::read_text(folder, "ratings.csv")?),
        None => {
            println!("No --data given: the tastes of 400 users for 300 items are simulated.");
            Ratings::simulated(60_000)
        }
    };
    let most = |numbers: &[i64]| numbers.iter().max().map_or(0, |most| *most as usize + 1);
    let (users, items) = (most(&ratings.users), most(&ratings.items));
    let table = ratings.table()?;
    let (train, valid) = data::split(&table, 0.1, args.seed);
    println!("{} ratings of {users} users and {items} items", table.len());

    let layer = |net: Sequential, n| net.layer(Linear::new(n)).layer(ScalarFn::Relu);
    let bottom = layer(layer(Sequential::new(), 32), WIDTH);
    let top = layer(layer(Sequential::new(), 64), 32).layer(Linear::new(1));
    let mut trainer = Trainer::new(&args.device, &Adam::w(0.02), args.seed, |p| {
        let t = p.tracer();
        let row = |name: &str, count: usize| {
            let table = Embedding::new(count, WIDTH).init(Init::Normal { mean: 0.0, std: 0.1 });
            table.forward(&p.at(name), t.input(name, i64(shape!["batch"]))).unsqueeze(&[1])
        };
        let time = bottom.forward(&p.at("bottom"), t.input("time", f32(shape!["batch", 4])));
        let rows = [time.unsqueeze(&[1]), row("user", users), row("item", items), row("weekday", 7)];
        let vectors = t.concat(&rows, 1);
        let pairs = vectors.dot_general(vectors, "bif,bjf->bij").flatten(1);
        let score = top.forward(&p.at("top"), t.concat(&[vectors.flatten(1), pairs], 1));
        let loss = loss::binary_cross_entropy(score, t.input("liked", f32(shape!["batch", 1])));
        Objective::new(loss).output("score", score)
    })?;
    let train = common::first(&train, args.steps, args.batch);
    let fit = Fit::new(args.epochs).batch(args.batch).seed(args.seed).full_batches(true).patience(2);
    let fit = fit.progress(Progress::Lines);
    let steps = fit.steps(train.len());
    let history = trainer.fit(&train, Some(&valid), &fit.schedule(Schedule::cosine(args.rate, steps)))?;

    let every: Vec<usize> = (0..valid.len()).collect();
    let batch = valid.batch(&every)?;
    let outputs = trainer.evaluate_batch(&common::named(&batch))?;
    let scores = outputs.get("score").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
    let liked = batch.iter().find(|(name, _)| name == "liked").and_then(|(_, t)| t.as_slice::<f32>());
    let area = area_under_curve(scores, liked.unwrap_or_default());
    println!("A liked item has the higher score in {:.1} % of the pairs with one that is not.", 100.0 * area);
    Ok(common::learnt(&history, &trainer))
}

impl Ratings {
    /// The lines of a file; those that are no ratings are left out. Users and items get numbers in order of appearance.
    fn parse(text: &str) -> Ratings {
        let (mut users, mut items, mut all) = (HashMap::new(), HashMap::new(), Ratings::default());
        for line in text.lines() {
            let mut fields = line.split(',');
            let mut field = || fields.next().unwrap_or_default().trim();
            let (user, item, rating, time) = (field(), field(), field().parse::<f32>(), field().parse::<i64>());
            let (Ok(rating), Ok(time)) = (rating, time) else { continue };
            let (next_user, next_item) = (users.len() as i64, items.len() as i64);
            all.users.push(*users.entry(user).or_insert(next_user));
            all.items.push(*items.entry(item).or_insert(next_item));
            all.times.push(time);
            all.liked.push(f32::from(u8::from(rating >= 4.0)));
        }
        all
    }

    /// Tastes of a few features, and some items that are for the evening.
    fn simulated(count: usize) -> Ratings {
        let mut random = Random::new(7);
        let mut taste = |n: usize| -> Vec<[f64; 4]> {
            (0..n).map(|_| std::array::from_fn(|_| random.unit() * 2.0 - 1.0)).collect()
        };
        let (users, items) = (taste(400), taste(300));
        let mut all = Ratings::default();
        for _ in 0..count {
            let (user, item) = (random.below(users.len()), random.below(items.len()));
            let time = random.below(7 * 86_400) as i64;
            let fits: f64 = users[user].iter().zip(&items[item]).map(|(a, b)| a * b).sum();
            let evening = (TAU * (time % 86_400) as f64 / 86_400.0 - 5.5).cos() * items[item][0];
            let likely = 1.0 / (1.0 + (-4.0 * fits - 2.0 * evening).exp());
            all.users.push(user as i64);
            all.items.push(item as i64);
            all.times.push(time);
            all.liked.push(f32::from(u8::from(random.unit() < likely)));
        }
        all
    }

    fn table(&self) -> egret::Result<Table> {
        let n = self.liked.len();
        let weekdays: Vec<i64> = self.times.iter().map(|t| t.div_euclid(86_400).rem_euclid(7)).collect();
        let clock = |t: &i64| {
            let angle = TAU * t.rem_euclid(86_400) as f64 / 86_400.0;
            [angle.sin(), angle.cos(), (2.0 * angle).sin(), (2.0 * angle).cos()].map(|v| v as f32)
        };
        let time: Vec<f32> = self.times.iter().flat_map(clock).collect();
        let vector = |numbers: &[i64]| Tensor::new(&[n], numbers);
        let all = [
            ("user", vector(&self.users)),
            ("item", vector(&self.items)),
            ("weekday", vector(&weekdays)),
            ("time", Tensor::new(&[n, 4], &time)),
            ("liked", Tensor::new(&[n, 1], &self.liked)),
        ];
        Ok(Table::new(all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))))?)
    }
}

/// The share of pairs of one liked and one not, in which the liked has the higher score: by ranks (Mann and Whitney, 1947).
fn area_under_curve(scores: &[f32], liked: &[f32]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let ranks: f64 =
        order.iter().enumerate().filter(|(_, i)| liked[**i] > 0.5).map(|(rank, _)| rank as f64 + 1.0).sum();
    let yes = liked.iter().filter(|l| **l > 0.5).count() as f64;
    let no = liked.len() as f64 - yes;
    (ranks - yes * (yes + 1.0) / 2.0) / (yes * no).max(1.0)
}
