//! Files that a run goes on from: all states and the place in the data, in one safetensors file.

use std::path::Path;

use egret_ir::{DType, Literal, Tensor, Tensors, files};

use super::Trainer;
use super::curve::Point;
use super::fit::Epoch;
use crate::error::{Error, Result};

const CHECKPOINT: &str = "checkpoint.safetensors";
const BEST: &str = "best.safetensors";

/// Tensors of the file that are no states.
const RUN: &str = "egret.fit.run";
const AT: &str = "egret.fit.at";
const SUMS: &str = "egret.fit.sums";
const EPOCHS: &str = "egret.fit.epochs";
const POINTS: &str = "egret.fit.points";

/// Where a run is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Position {
    /// What tells one run's order of examples from another's: seed, batch, examples, whether batches are full.
    run: [u64; 4],
    /// Whole epochs.
    pub epoch: u64,
    /// Batches of the epoch under way.
    pub batch: u64,
    /// Steps in all.
    pub step: u64,
    /// Examples of the epoch under way.
    pub seen: u64,
    /// The epoch of the lowest loss, counted from 1; 0 before there is one.
    pub best_epoch: u64,
    /// Epochs since.
    pub waited: u64,
    /// Steps since the last point of the curve.
    pub point_steps: u64,
    /// Sum of their losses.
    pub point_sum: f64,
    /// Sum of the losses of all examples seen in the epoch.
    pub loss_sum: f64,
    /// The lowest loss.
    pub best: f64,
    pub epochs: Vec<Epoch>,
    pub points: Vec<Point>,
}

impl Position {
    pub fn new(seed: u64, batch: usize, examples: usize, full: bool) -> Position {
        Position {
            run: [seed, batch as u64, examples as u64, u64::from(full)],
            epoch: 0,
            batch: 0,
            step: 0,
            seen: 0,
            best_epoch: 0,
            waited: 0,
            point_steps: 0,
            point_sum: 0.0,
            loss_sum: 0.0,
            best: 0.0,
            epochs: Vec::new(),
            points: Vec::new(),
        }
    }

    fn tensors(&self) -> Tensors {
        let at = [self.epoch, self.batch, self.step, self.seen, self.best_epoch, self.waited, self.point_steps];
        let row = |e: &Epoch| {
            let of = |x: Option<f64>| x.unwrap_or(f64::NAN);
            [e.number as f64, e.steps as f64, e.loss, of(e.valid_loss), of(e.accuracy), e.rate, e.seconds]
        };
        let epochs: Vec<f64> = self.epochs.iter().flat_map(row).collect();
        let points: Vec<f64> = self.points.iter().flat_map(Point::row).collect();
        let sums = [self.point_sum, self.loss_sum, self.best];
        // the shapes are those of the vectors
        let whole = [
            (RUN, Tensor::new(&[self.run.len()], &self.run)),
            (AT, Tensor::new(&[at.len()], &at)),
            (SUMS, Tensor::new(&[sums.len()], &sums)),
            (EPOCHS, Tensor::new(&[self.epochs.len(), 7], &epochs)),
            (POINTS, Tensor::new(&[self.points.len(), Point::COLUMNS], &points)),
        ];
        let none = || Tensor::scalar(Literal::int(0, DType::U64));
        whole.into_iter().map(|(name, tensor)| (name.to_string(), tensor.unwrap_or_else(none))).collect()
    }

    /// The place that a file tells; the reason where it tells none.
    fn read(tensors: &Tensors) -> Result<Position, String> {
        let missing = |name: &str| format!("it has no `{name}`: `Trainer::restore` reads states alone");
        let numbers = |name: &str| tensors.get(name).and_then(|t| t.as_slice::<u64>()).ok_or_else(|| missing(name));
        let reals = |name: &str| tensors.get(name).and_then(|t| t.as_slice::<f64>()).ok_or_else(|| missing(name));
        let run = <[u64; 4]>::try_from(numbers(RUN)?).map_err(|_| missing(RUN))?;
        let (&[epoch, batch, step, seen, best_epoch, waited, point_steps], &[point_sum, loss_sum, best]) =
            (numbers(AT)?, reals(SUMS)?)
        else {
            return Err(missing(AT));
        };
        let some = |x: f64| (!x.is_nan()).then_some(x);
        let epochs = reals(EPOCHS)?.chunks_exact(7).map(|row| Epoch {
            number: row[0] as u64,
            steps: row[1] as u64,
            loss: row[2],
            valid_loss: some(row[3]),
            accuracy: some(row[4]),
            rate: row[5],
            seconds: row[6],
        });
        let epochs = epochs.collect();
        let points = reals(POINTS)?.chunks_exact(Point::COLUMNS).map(Point::of).collect();
        Ok(Position {
            run,
            epoch,
            batch,
            step,
            seen,
            best_epoch,
            waited,
            point_steps,
            point_sum,
            loss_sum,
            best,
            epochs,
            points,
        })
    }
}

fn failed(path: &Path) -> impl Fn(String) -> Error {
    let path = path.display().to_string();
    move |why| Error::Checkpoint { path: path.clone(), why }
}

/// Writes states and place, whole or not at all.
pub(super) fn save(trainer: &Trainer, folder: &Path, at: &Position) -> Result<()> {
    let path = folder.join(CHECKPOINT);
    let mut tensors = trainer.state().tensors()?;
    tensors.extend(at.tensors());
    files::write_safetensors(&path, &tensors).map_err(|e| failed(&path)(e.message))
}

/// Writes the states of the best epoch so far.
pub(super) fn save_best(trainer: &Trainer, folder: &Path) -> Result<()> {
    trainer.save(&folder.join(BEST))
}

/// Sets all states from the folder's checkpoint, and gives its place; `None` where there is none.
pub(super) fn resume(trainer: &Trainer, folder: &Path, new: &Position) -> Result<Option<Position>> {
    let path = folder.join(CHECKPOINT);
    if !path.exists() {
        return Ok(None);
    }
    let tensors = files::read_safetensors(&path).map_err(|e| failed(&path)(e.message))?;
    let at = Position::read(&tensors).map_err(failed(&path))?;
    if at.run != new.run {
        let told = |[seed, batch, examples, full]: [u64; 4]| {
            let full = if full > 0 { ", full ones only" } else { "" };
            format!("seed {seed}, batches of {batch}{full}, {examples} examples")
        };
        let why = format!("it is of a run with {}; this one has {}", told(at.run), told(new.run));
        return Err(failed(&path)(why));
    }
    trainer.state().set_all(&tensors).map_err(failed(&path))?;
    Ok(Some(at))
}

/// The states of the best epoch.
pub(super) fn read_best(trainer: &Trainer, folder: &Path) -> Result<Tensors> {
    let path = folder.join(BEST);
    let tensors = files::read_safetensors(&path).map_err(|e| failed(&path)(e.message))?;
    trainer.state().check(&tensors).map_err(failed(&path))?;
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_round_trip() {
        let mut at = Position::new(u64::MAX, 64, 1000, true);
        assert_eq!(Position::read(&at.tensors()).unwrap(), at);
        (at.epoch, at.batch, at.step, at.loss_sum, at.best, at.best_epoch) = (2, 7, 39, 0.1, 1.5, 2);
        at.points.push(Point { step: 3, epoch: 1, loss: Some(0.3), valid_loss: None, accuracy: None });
        at.points.push(Point { step: 4, epoch: 1, loss: None, valid_loss: Some(0.2), accuracy: Some(0.9) });
        let epoch =
            Epoch { number: 1, steps: 16, loss: 0.3, valid_loss: None, accuracy: None, rate: 1e-3, seconds: 2.0 };
        at.epochs.push(epoch);
        assert_eq!(Position::read(&at.tensors()).unwrap(), at);
        let mut cut = at.tensors();
        cut.remove(SUMS);
        assert!(Position::read(&cut).unwrap_err().contains(SUMS));
    }
}
