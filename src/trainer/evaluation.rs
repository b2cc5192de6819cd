//! What a model is worth on a data set.

use egret_ir::Tensor;
use egret_nn::DataError;
use egret_nn::data::{self, DataSet};

use super::fit::borrowed;
use super::{LABELS, LOGITS, Trainer};
use crate::error::{Error, Result};
use crate::outputs::{Output, Outputs};

/// Most classes for which pairs are counted; a table of more is hardly read, and grows by the square.
const MOST_CLASSES: usize = 1024;

/// A model on a data set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Mean loss of the examples: of batches, by their numbers of examples.
    pub loss: f64,
    /// Number of examples.
    pub examples: usize,
    /// How they were classified, where the objective says what the classes are.
    pub classes: Option<Classification>,
}

impl Evaluation {
    /// Share of labels that have the greatest logit, where there are classes.
    pub fn accuracy(&self) -> Option<f64> {
        self.top(1)
    }

    /// Share of labels among the `k` greatest logits, where there are classes.
    pub fn top(&self, k: usize) -> Option<f64> {
        self.classes.as_ref().map(|classes| classes.top(k))
    }
}

/// How labels were met by logits. Of equal logits that of the lower class is the greater, as in `argmax`; NaN is the least.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Classification {
    /// Number of classes.
    classes: usize,
    /// How many labels there were whose logit was the greatest, the second, …
    ranks: Vec<u64>,
    /// By label, then by class of the greatest logit.
    pairs: Vec<u64>,
}

impl Classification {
    /// Counts logits `[…, classes]` with integer labels `[…]`.
    ///
    /// ```
    /// use egret::{Classification, Tensor};
    /// let logits = Tensor::new(&[3, 3], &[0.1f32, 0.9, 0.0, 0.5, 0.4, 0.3, 0.0, 0.2, 0.1]).unwrap();
    /// let mut seen = Classification::default();
    /// seen.count(&logits, &Tensor::new(&[3], &[1i64, 1, 2]).unwrap())?;
    /// assert_eq!((seen.top(1), seen.top(2)), (1.0 / 3.0, 1.0));
    /// assert_eq!(seen.confusion().unwrap(), [[0, 0, 0], [1, 1, 0], [0, 1, 0]]);
    /// # Ok::<(), egret::Error>(())
    /// ```
    ///
    /// # Errors
    /// `E0606` shapes that do not fit, also to those counted before; `E0608` a label that is no class.
    pub fn count(&mut self, logits: &Tensor, labels: &Tensor) -> Result<()> {
        let classes = logits.shape().last().copied().unwrap_or(0);
        let fit = logits.shape().split_last().is_some_and(|(_, rows)| rows == labels.shape());
        let before = if self.ranks.is_empty() { classes } else { self.classes };
        if !fit || classes != before || !logits.dtype().is_float() || !labels.dtype().is_int() {
            let ty = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
            let why = format!("{} are no logits of {before} classes for labels {}", ty(logits), ty(labels));
            return Err(DataError::Rows { why }.into());
        }
        self.classes = classes;
        self.ranks.resize(classes, 0);
        if classes <= MOST_CLASSES {
            self.pairs.resize(classes * classes, 0);
        }
        let wide: Vec<f32>;
        let logits = match logits.as_slice::<f32>() {
            Some(logits) => logits,
            None => {
                wide = logits.values().map(|x| x.as_f64() as f32).collect();
                &wide
            }
        };
        for (row, label) in logits.chunks_exact(classes.max(1)).zip(labels.values()) {
            let value = label.as_int();
            let label = usize::try_from(value).ok().filter(|label| *label < classes);
            let label = label.ok_or(DataError::Label { label: value, classes })?;
            // whether `a` goes before `b`
            let before = |a: usize, b: usize| match (row[a].is_nan(), row[b].is_nan()) {
                (false, false) if row[a] != row[b] => row[a] > row[b],
                (a_nan, b_nan) if a_nan != b_nan => b_nan,
                _ => a < b,
            };
            self.ranks[(0..classes).filter(|other| before(*other, label)).count()] += 1;
            if !self.pairs.is_empty() {
                let greatest = (1..classes).fold(0, |best, other| if before(other, best) { other } else { best });
                self.pairs[label * classes + greatest] += 1;
            }
        }
        Ok(())
    }

    /// How many labels were counted.
    pub fn len(&self) -> u64 {
        self.ranks.iter().sum()
    }

    /// Whether none were.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Share of labels among the `k` greatest logits.
    pub fn top(&self, k: usize) -> f64 {
        self.ranks.iter().take(k).sum::<u64>() as f64 / self.len().max(1) as f64
    }

    /// How often each label (rows) had each class as its greatest logit (columns); `None` of more than 1024 classes.
    pub fn confusion(&self) -> Option<Vec<&[u64]>> {
        (!self.pairs.is_empty()).then(|| self.pairs.chunks_exact(self.classes).collect())
    }
}

impl Trainer {
    /// Mean loss over a data set, and how it is classified, if the objective names [classes](super::Objective::classes). Of
    /// an optimiser that keeps averages of the weights, by these.
    ///
    /// # Errors
    /// `E0605` a set without examples, `E0608` a label that is no class; what a run or the set may fail with.
    pub fn evaluate(&mut self, data: &dyn DataSet, batch: usize) -> Result<Evaluation> {
        if data.is_empty() {
            return Err(DataError::Empty { what: "evaluation" }.into());
        }
        let rows: Vec<usize> = (0..data.len()).collect();
        let batches: Vec<Vec<usize>> = rows.chunks(batch.max(1)).map(<[usize]>::to_vec).collect();
        data::prefetch(data, batches, 2, |ready| {
            let mut evaluation = Evaluation::default();
            for next in ready {
                let (rows, batch) = next?;
                let outputs = self.evaluate_batch(&borrowed(&batch))?;
                evaluation.loss += loss_of(&outputs)? * rows.len() as f64;
                evaluation.examples += rows.len();
                if let (Some(logits), Some(labels)) = (outputs.get(LOGITS), outputs.get(LABELS)) {
                    let classes = evaluation.classes.get_or_insert_default();
                    classes.count(&Output::to_tensor(&logits), &labels.to_tensor())?;
                }
            }
            evaluation.loss /= evaluation.examples as f64;
            Ok(evaluation)
        })
    }
}

/// The loss that a run gave.
pub(super) fn loss_of(outputs: &Outputs<'_>) -> Result<f64> {
    let unknown = || Error::UnknownOutput { name: "loss".into(), known: "none that is one float".into() };
    outputs.scalar("loss").ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_order_of_argmax() {
        let mut seen = Classification::default();
        let nan = f64::NAN;
        let logits = Tensor::new(&[2, 2, 3], &[1.0, 1.0, 0.0, 1.0, 1.0, 0.0, nan, 2.0, 3.0, nan, nan, nan]).unwrap();
        seen.count(&logits, &Tensor::new(&[2, 2], &[0u8, 1, 0, 2]).unwrap()).unwrap();
        // first of two equal; second of them; NaN after all numbers; last of equal NaN
        assert_eq!(seen.ranks, [1, 1, 2]);
        assert_eq!(seen.confusion().unwrap(), [[1, 0, 1], [1, 0, 0], [1, 0, 0]]);
        assert_eq!((seen.top(1), seen.top(3), seen.len()), (0.25, 1.0, 4));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let logits = |rows: usize, classes: usize| Tensor::zeros(egret_ir::DType::F32, &[rows, classes]);
        let labels = |values: &[i64]| Tensor::new(&[values.len()], values).unwrap();
        let mut seen = Classification::default();
        let code = |result: Result<()>| result.unwrap_err().diagnostic().code;
        assert_eq!(code(seen.count(&logits(2, 3), &labels(&[0, 3]))), "E0608");
        assert_eq!(code(seen.count(&logits(2, 3), &labels(&[0, -1]))), "E0608");
        assert_eq!(code(seen.count(&logits(2, 3), &labels(&[0]))), "E0606");
        assert_eq!(code(seen.count(&logits(1, 4), &labels(&[0]))), "E0606");
        // as many classes as a vocabulary has: no pairs
        let mut words = Classification::default();
        words.count(&logits(1, 5000), &labels(&[7])).unwrap();
        assert!(words.confusion().is_none() && words.top(8) == 1.0 && words.top(7) == 0.0);
    }
}
