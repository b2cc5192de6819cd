//! Whole runs: epochs of shuffled batches, with validation, checkpoints and an early end.

use std::path::PathBuf;
use std::time::Instant;

use egret_ir::{Tensor, Tensors};
use egret_nn::data::{self, Batch, DataSet};
use egret_nn::{DataError, Schedule};

use super::checkpoint::{self, Position};
use super::curve::{self, Point};
use super::numerics;
use super::progress::{Meter, Progress};
use super::{Evaluation, Trainer};
use crate::error::{Error, Result};

/// Batches that wait while a step runs.
const AHEAD: usize = 2;
/// Points of the loss curve in an epoch.
const POINTS: u64 = 50;

/// How [`Trainer::fit`] trains.
///
/// ```
/// use egret::Fit;
/// use egret::nn::Schedule;
/// let fit = Fit::new(5).batch(64).seed(1);
/// let fit = fit.clone().schedule(Schedule::cosine(1e-3, fit.steps(60_000)));
/// assert_eq!(fit.steps(60_000), 5 * 938);
/// ```
#[derive(Clone, Debug)]
pub struct Fit {
    epochs: u64,
    batch: usize,
    full_batches: bool,
    schedule: Schedule,
    seed: u64,
    early: Option<EarlyStopping>,
    folder: Option<PathBuf>,
    every: u64,
    resume: bool,
    progress: Progress,
    curve: Option<PathBuf>,
    check_numerics: bool,
}

/// When a run ends before its last epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyStopping {
    /// Epochs in a row without a better loss.
    pub patience: u64,
    /// How much lower a loss must be to be better.
    pub least: f64,
    /// Whether the states of the best epoch are put back at the end.
    pub restore: bool,
}

/// What a run gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Each epoch, those before a resumption too.
    pub epochs: Vec<Epoch>,
    /// Steps in all.
    pub steps: u64,
    /// The epoch of the lowest loss, counted from 1: that of validation, or of training where there is none.
    pub best: u64,
    /// Whether patience ended it.
    pub stopped_early: bool,
}

/// An epoch of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Epoch {
    /// Its number, from 1.
    pub number: u64,
    /// Steps from the beginning to its end.
    pub steps: u64,
    /// Mean loss of its examples, each before the step that it was part of.
    pub loss: f64,
    /// Mean loss of the validation set.
    pub valid_loss: Option<f64>,
    /// Share of the validation set that is classified right.
    pub accuracy: Option<f64>,
    /// Learning rate of its last step.
    pub rate: f64,
    /// How long its training took; from the resumption on, where it was resumed in the middle.
    pub seconds: f64,
}

impl Fit {
    /// That many passes over the data, in shuffled batches of 32 at a learning rate of 0.001.
    pub fn new(epochs: u64) -> Fit {
        Fit {
            epochs,
            batch: 32,
            full_batches: false,
            schedule: Schedule::constant(1e-3),
            seed: 0,
            early: None,
            folder: None,
            every: 0,
            resume: false,
            progress: Progress::default(),
            curve: None,
            check_numerics: false,
        }
    }

    /// Examples of a step, at least 1.
    pub fn batch(mut self, examples: usize) -> Fit {
        self.batch = examples.max(1);
        self
    }

    /// Whether examples that fill no batch are left out of an epoch; by default they are a smaller one. A set smaller than
    /// a batch is one batch.
    pub fn full_batches(mut self, only: bool) -> Fit {
        self.full_batches = only;
        self
    }

    /// The learning rate by step.
    pub fn schedule(mut self, schedule: Schedule) -> Fit {
        self.schedule = schedule;
        self
    }

    /// The seed of the order of examples, which differs from epoch to epoch.
    pub fn seed(mut self, seed: u64) -> Fit {
        self.seed = seed;
        self
    }

    /// Ends a run when the loss (of validation; of training, where there is none) is no better for `patience` epochs, and
    /// puts the best states back.
    pub fn patience(self, patience: u64) -> Fit {
        self.early_stopping(EarlyStopping { patience, least: 0.0, restore: true })
    }

    /// [`Fit::patience`], in detail.
    pub fn early_stopping(mut self, early: EarlyStopping) -> Fit {
        self.early = Some(early);
        self
    }

    /// Writes `checkpoint.safetensors` into a folder at the end of each epoch, and `best.safetensors` when the loss is the
    /// lowest so far. The folder is made.
    pub fn checkpoints(mut self, folder: impl Into<PathBuf>) -> Fit {
        self.folder = Some(folder.into());
        self
    }

    /// Writes a checkpoint also after each so many steps.
    pub fn checkpoint_every(mut self, steps: u64) -> Fit {
        self.every = steps;
        self
    }

    /// Goes on from the checkpoint in the folder, if there is one: a run that was killed and resumed ends with the bits of
    /// one that was not.
    pub fn resume(mut self, resume: bool) -> Fit {
        self.resume = resume;
        self
    }

    /// What is shown meanwhile.
    pub fn progress(mut self, progress: Progress) -> Fit {
        self.progress = progress;
        self
    }

    /// Writes the losses by step as `PATH.csv` and `PATH.svg`, at the end of each epoch.
    pub fn curve(mut self, path: impl Into<PathBuf>) -> Fit {
        self.curve = Some(path.into());
        self
    }

    /// Looks at all states after each step; where the loss or a state is not finite, the step is repeated on the
    /// interpreter, and the error names the operator that made the first such value. Copies all states a step.
    pub fn check_numerics(mut self, check: bool) -> Fit {
        self.check_numerics = check;
        self
    }

    /// Steps of a run over that many examples.
    pub fn steps(&self, examples: usize) -> u64 {
        self.epochs * self.batches(examples)
    }

    /// Steps of an epoch.
    fn batches(&self, examples: usize) -> u64 {
        let whole = examples / self.batch;
        let rest = usize::from(!examples.is_multiple_of(self.batch) && (!self.full_batches || whole == 0));
        (whole + rest) as u64
    }

    /// The examples of each batch of an epoch from the batch `first` on.
    fn rows(&self, examples: usize, epoch: u64, first: u64) -> Vec<Vec<usize>> {
        // each epoch has an order of its own, and each seed another sequence of them
        let order = data::shuffled(examples, self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(epoch));
        let batches = self.batches(examples) as usize;
        order.chunks(self.batch).take(batches).skip(first as usize).map(<[usize]>::to_vec).collect()
    }
}

/// Names and tensors as sessions take them.
pub(super) fn borrowed(batch: &Batch) -> Vec<(&str, &Tensor)> {
    batch.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// A run under way.
struct Run<'a> {
    fit: &'a Fit,
    train: &'a dyn DataSet,
    valid: Option<&'a dyn DataSet>,
    at: Position,
    /// The states of the best epoch, where they are put back.
    best: Option<Tensors>,
    /// All states before the next step, where numbers are checked.
    before: Option<Tensors>,
}

impl Trainer {
    /// Trains on a set. Each epoch takes the examples in an order drawn from the seed and the epoch; batches are made on a
    /// thread of their own while steps run. After each epoch the model is evaluated on `valid`.
    ///
    /// The names of the set's tensors are those of the model's inputs.
    ///
    /// ```
    /// use egret::nn::{Layer, Linear, Sgd, data, loss};
    /// use egret::{Device, Fit, Objective, Tensor, Trainer, f32, shape};
    /// let x: Vec<f32> = (0..64).map(|i| i as f32 / 32.0 - 1.0).collect();
    /// let y: Vec<f32> = x.iter().map(|x| 3.0 * x - 1.0).collect();
    /// let column = |v: &[f32]| Tensor::new(&[64, 1], v).unwrap();
    /// let line = data::Table::new([("x", column(&x)), ("y", column(&y))])?;
    /// let (train, valid) = data::split(&line, 0.25, 1);
    ///
    /// let mut trainer = Trainer::new(&Device::interpreter(), &Sgd::momentum(0.9), 1, |p| {
    ///     let y = Linear::new(1).forward(p, p.tracer().input("x", f32(shape!["batch", 1])));
    ///     Objective::new(loss::mse(y, p.tracer().input("y", f32(shape!["batch", 1]))))
    /// })?;
    /// let fit = Fit::new(20).batch(16).schedule(egret::nn::Schedule::constant(0.05));
    /// let history = trainer.fit(&train, Some(&valid), &fit)?;
    /// assert!(history.epochs[19].valid_loss.unwrap() < 1e-2);
    /// # Ok::<(), egret::Error>(())
    /// ```
    ///
    /// # Errors
    /// `E0605` a set without examples, `E0806` a loss that is not finite, `E0805` a checkpoint that cannot be written or is
    /// of another run, `E0807` a file that cannot be written; what a step or the set may fail with.
    pub fn fit(&mut self, train: &dyn DataSet, valid: Option<&dyn DataSet>, fit: &Fit) -> Result<History> {
        let at = Position::new(fit.seed, fit.batch, train.len(), fit.full_batches);
        let mut run = Run { fit, train, valid, at, best: None, before: None };
        for (set, what) in [(Some(train), "training"), (valid, "validation")] {
            if set.is_some_and(|set| set.is_empty()) {
                return Err(DataError::Empty { what }.into());
            }
        }
        if let Some(folder) = &fit.folder {
            std::fs::create_dir_all(folder).map_err(|e| Error::written(folder, &e))?;
            if fit.resume
                && let Some(at) = checkpoint::resume(self, folder, &run.at)?
            {
                run.at = at;
                if fit.early.is_some_and(|early| early.restore) && run.at.best_epoch > 0 {
                    run.best = Some(checkpoint::read_best(self, folder)?);
                }
            }
        }
        if fit.check_numerics {
            run.before = Some(self.state().tensors()?);
        }
        let mut stopped_early = run.is_patient_no_more();
        while run.at.epoch < fit.epochs && !stopped_early {
            run.epoch(self)?;
            stopped_early = run.is_patient_no_more();
        }
        if let Some(best) = &run.best {
            self.state().set_all(best).map_err(|why| Error::Checkpoint { path: "the best epoch".into(), why })?;
        }
        let Position { epochs, step, best_epoch, .. } = run.at;
        Ok(History { epochs, steps: step, best: best_epoch, stopped_early })
    }
}

impl Run<'_> {
    fn is_patient_no_more(&self) -> bool {
        self.fit.early.is_some_and(|early| self.at.waited >= early.patience.max(1))
    }

    /// What is left of the epoch.
    fn epoch(&mut self, trainer: &mut Trainer) -> Result<()> {
        let (fit, examples) = (self.fit, self.train.len());
        let (start, batches) = (Instant::now(), fit.batches(examples));
        let rows = fit.rows(examples, self.at.epoch, self.at.batch);
        let whole: usize = rows.iter().map(Vec::len).sum::<usize>() + self.at.seen as usize;
        let mut meter = Meter::new(fit.progress, self.at.epoch + 1, fit.epochs, whole, self.at.seen);
        let mut rate = fit.schedule.at(self.at.step.saturating_sub(1));
        data::prefetch(self.train, rows, AHEAD, |ready| -> Result<()> {
            for next in ready {
                let (rows, batch) = next?;
                rate = fit.schedule.at(self.at.step);
                let loss = self.step(trainer, &batch, rate)?;
                self.at.took(loss, rows.len(), (batches / POINTS).max(1));
                meter.step(rows.len(), self.at.mean_loss());
                // that of the last step is written with the epoch
                let due = fit.every > 0 && self.at.step.is_multiple_of(fit.every) && self.at.batch < batches;
                if let (true, Some(folder)) = (due, &fit.folder) {
                    checkpoint::save(trainer, folder, &self.at)?;
                }
            }
            Ok(())
        })?;
        let evaluation = self.valid.map(|valid| trainer.evaluate(valid, fit.batch)).transpose()?;
        let seconds = start.elapsed().as_secs_f64();
        self.end_epoch(trainer, evaluation.as_ref(), rate, seconds)?;
        meter.finish(self.at.epochs.last());
        Ok(())
    }

    /// A step; checks its loss, and all states where that is asked for.
    fn step(&mut self, trainer: &mut Trainer, batch: &Batch, rate: f64) -> Result<f64> {
        trainer.set_learning_rate(rate);
        let loss = trainer.step(&borrowed(batch))?;
        let step = self.at.step + 1;
        let Some(before) = &self.before else {
            return match loss.is_finite() {
                true => Ok(loss),
                false => Err(Error::NotFinite { what: "the loss".into(), value: loss, step, made_by: None }),
            };
        };
        let after = trainer.state().tensors()?;
        let wrong = match loss.is_finite() {
            false => Some(("the loss".to_string(), loss)),
            true => numerics::not_finite(&after).map(|(name, value)| (format!("the state `{name}`"), value)),
        };
        if let Some((what, value)) = wrong {
            let made_by = numerics::maker(trainer, &borrowed(batch), before)?;
            return Err(Error::NotFinite { what, value, step, made_by });
        }
        self.before = Some(after);
        Ok(loss)
    }

    fn end_epoch(&mut self, trainer: &Trainer, evaluation: Option<&Evaluation>, rate: f64, seconds: f64) -> Result<()> {
        let (valid_loss, accuracy) = (evaluation.map(|e| e.loss), evaluation.and_then(Evaluation::accuracy));
        if let Some(value) = valid_loss.filter(|loss| !loss.is_finite()) {
            let what = "the mean loss of validation".to_string();
            return Err(Error::NotFinite { what, value, step: self.at.step, made_by: None });
        }
        let loss = self.at.mean_loss();
        self.at.end_epoch(Epoch {
            number: self.at.epoch + 1,
            steps: self.at.step,
            loss,
            valid_loss,
            accuracy,
            rate,
            seconds,
        });
        let least = self.fit.early.map_or(0.0, |early| early.least);
        let better = self.at.rate(valid_loss.unwrap_or(loss), least);
        if better && self.fit.early.is_some_and(|early| early.restore) {
            self.best = Some(trainer.state().tensors()?);
        }
        if let Some(folder) = &self.fit.folder {
            // first, because the checkpoint says that it is there
            if better {
                checkpoint::save_best(trainer, folder)?;
            }
            checkpoint::save(trainer, folder, &self.at)?;
        }
        match &self.fit.curve {
            Some(path) => curve::write(path, &self.at.points),
            None => Ok(()),
        }
    }
}

impl Position {
    /// Counts a step of that mean loss.
    fn took(&mut self, loss: f64, examples: usize, every: u64) {
        self.step += 1;
        self.batch += 1;
        self.seen += examples as u64;
        self.loss_sum += loss * examples as f64;
        self.point_sum += loss;
        self.point_steps += 1;
        if self.point_steps >= every {
            self.point();
        }
    }

    /// Mean loss of the epoch so far.
    fn mean_loss(&self) -> f64 {
        self.loss_sum / self.seen.max(1) as f64
    }

    fn point(&mut self) {
        if self.point_steps > 0 {
            let loss = Some(self.point_sum / self.point_steps as f64);
            self.points.push(Point { step: self.step, epoch: self.epoch + 1, loss, valid_loss: None, accuracy: None });
            (self.point_sum, self.point_steps) = (0.0, 0);
        }
    }

    fn end_epoch(&mut self, epoch: Epoch) {
        self.point();
        let Epoch { number, valid_loss, accuracy, .. } = epoch;
        if valid_loss.is_some() {
            match self.points.last_mut().filter(|point| point.step == self.step) {
                Some(point) => (point.valid_loss, point.accuracy) = (valid_loss, accuracy),
                None => self.points.push(Point { step: self.step, epoch: number, loss: None, valid_loss, accuracy }),
            }
        }
        self.epochs.push(epoch);
        self.epoch += 1;
        (self.batch, self.seen, self.loss_sum) = (0, 0, 0.0);
    }

    /// Whether a loss is the best so far; counts the epochs since the best.
    fn rate(&mut self, loss: f64, least: f64) -> bool {
        let better = self.best_epoch == 0 || loss < self.best - least;
        if better {
            (self.best, self.best_epoch, self.waited) = (loss, self.epoch, 0);
        } else {
            self.waited += 1;
        }
        better
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_take_every_example_in_orders_of_their_own() {
        let fit = Fit::new(3).batch(4).seed(9);
        let (first, second) = (fit.rows(10, 0, 0), fit.rows(10, 1, 0));
        assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        assert_ne!(first, second);
        assert_ne!(first, Fit::new(3).batch(4).seed(8).rows(10, 0, 0));
        for rows in [&first, &second] {
            let mut all = rows.concat();
            all.sort_unstable();
            assert_eq!(all, (0..10).collect::<Vec<_>>());
        }
        assert_eq!(fit.rows(10, 1, 2), second[2..]);
        assert_eq!(fit.steps(10), 9);
        let full = fit.full_batches(true);
        assert_eq!(full.rows(10, 0, 0), first[..2]);
        assert_eq!((full.steps(10), full.steps(3), full.rows(3, 0, 0).len()), (6, 3, 1));
    }
}
