//! Batches that are made while others are used.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::{Batch, DataSet};
use crate::error::DataError;

/// Batches in order, each with the numbers of its examples.
pub type Batches = Receiver<Result<(Vec<usize>, Batch), DataError>>;

/// Runs `work` on the batches of these examples, which a thread makes up to `depth` ahead. Where `work` ends before
/// the batches do, the thread ends too; after an error there are no more batches.
///
/// ```
/// use egret_nn::data::{self, DataSet};
/// let digits = data::digits(10, 1);
/// let rows = vec![vec![0, 1, 2], vec![3, 4]];
/// let sizes = data::prefetch(&digits, rows, 2, |batches| {
///     batches.into_iter().map(|batch| batch.map(|(rows, _)| rows.len())).collect::<Result<Vec<_>, _>>()
/// })?;
/// assert_eq!(sizes, [3, 2]);
/// # Ok::<(), egret_nn::DataError>(())
/// ```
pub fn prefetch<R>(
    data: &dyn DataSet,
    rows: impl IntoIterator<Item = Vec<usize>> + Send,
    depth: usize,
    work: impl FnOnce(Batches) -> R,
) -> R {
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(depth.max(1));
        scope.spawn(move || {
            for rows in rows {
                let batch = data.batch(&rows);
                let failed = batch.is_err();
                // nobody listens when the work has ended
                if sender.send(batch.map(|batch| (rows, batch))).is_err() || failed {
                    break;
                }
            }
        });
        work(receiver)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex};

    /// Counts what was asked for, and says so.
    #[derive(Default)]
    struct Counting {
        asked: Mutex<usize>,
        changed: Condvar,
        bad: AtomicUsize,
    }

    impl DataSet for Counting {
        fn len(&self) -> usize {
            100
        }

        fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
            *self.asked.lock().unwrap() += 1;
            self.changed.notify_all();
            match rows[0] == self.bad.load(Ordering::Relaxed) {
                true => Err(DataError::Row { row: rows[0], len: 100 }),
                false => Ok(Vec::new()),
            }
        }
    }

    #[test]
    fn batches_are_made_ahead_but_not_far() {
        let data = Counting { bad: AtomicUsize::new(usize::MAX), ..Counting::default() };
        prefetch(&data, (0..100).map(|i| vec![i]), 3, |batches| {
            batches.recv().unwrap().unwrap();
            // three wait and one more is made, while nothing is taken
            let asked = data.asked.lock().unwrap();
            let wait = std::time::Duration::from_secs(60);
            let (asked, late) = data.changed.wait_timeout_while(asked, wait, |asked| *asked < 5).unwrap();
            assert!(!late.timed_out() && *asked == 5, "{asked} were made ahead");
        });
        assert!(*data.asked.lock().unwrap() <= 6, "the thread ends with the work");
    }

    #[test]
    fn an_error_comes_at_its_place_and_is_the_last() {
        let data = Counting { bad: AtomicUsize::new(2), ..Counting::default() };
        let got: Vec<bool> =
            prefetch(&data, (0..9).map(|i| vec![i]), 4, |batches| batches.into_iter().map(|b| b.is_ok()).collect());
        assert_eq!(got, [true, true, false]);
    }
}
