//! What the examples share: how they end, what they give, how pictures are shown on a terminal.

#![allow(dead_code, reason = "each example reads a part of it")]

use egret::nn::data::{Batch, DataSet, Subset};
use egret::{Epoch, Executable, History, Tensor, Trainer};

/// What came of a run.
pub struct Learnt {
    /// What was to become less, at the beginning: a loss, as a rule.
    pub first: f64,
    /// The same at the end.
    pub last: f64,
    /// What ran.
    pub programs: Vec<Executable>,
}

/// The mean losses of the first and of the last epoch.
pub fn learnt(history: &History, trainer: &Trainer) -> Learnt {
    let loss = |epoch: Option<&Epoch>| epoch.map_or(f64::NAN, |epoch| epoch.loss);
    Learnt { first: loss(history.epochs.first()), last: loss(history.epochs.last()), programs: programs(trainer) }
}

/// The step of a trainer and its evaluation.
pub fn programs(trainer: &Trainer) -> Vec<Executable> {
    vec![trainer.step_program().clone(), trainer.evaluation_program().clone()]
}

/// Runs an example; an error is said, and ends the process with status 1.
pub fn run(example: impl FnOnce() -> egret::Result<Learnt>) {
    if let Err(error) = example() {
        eprintln!("error: {}", error.diagnostic());
        std::process::exit(1);
    }
}

/// The first examples of a set: those of `steps` batches, or all of them.
pub fn first(data: &dyn DataSet, steps: Option<usize>, batch: usize) -> Subset<'_> {
    let count = steps.map_or(data.len(), |steps| data.len().min(steps.saturating_mul(batch)));
    Subset::new(data, (0..count).collect())
}

/// Grey pictures side by side, from 0 (blank) to 1, two rows of pixels a line of text.
pub fn show(pictures: &[&[f32]], width: usize) {
    const INK: [char; 5] = [' ', '░', '▒', '▓', '█'];
    let height = pictures.first().map_or(0, |pixels| pixels.len() / width);
    let shade = |pixels: &[f32], row: usize, column: usize| {
        let two = [row, (row + 1).min(height - 1)].map(|row| pixels[row * width + column]);
        INK[(((two[0] + two[1]) / 2.0).clamp(0.0, 0.999) * INK.len() as f32) as usize]
    };
    for row in (0..height).step_by(2) {
        let line = |pixels: &&[f32]| (0..width).map(|column| shade(pixels, row, column)).collect::<String>();
        println!("  {}", pictures.iter().map(line).collect::<Vec<_>>().join("  "));
    }
}

/// The tensors of a batch as sessions take them.
pub fn named(batch: &Batch) -> Vec<(&str, &Tensor)> {
    batch.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}
