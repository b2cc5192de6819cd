//! What a run shows.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::fit::Epoch;

/// What a run shows, on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// A bar an epoch: loss, metric, examples a second, time left. Nothing where standard error is no terminal.
    #[default]
    Bars,
    /// A line an epoch, anywhere.
    Lines,
    /// Nothing.
    Off,
}

/// An epoch as it is shown.
pub(super) struct Meter {
    how: Progress,
    bar: ProgressBar,
    epochs: u64,
    start: Instant,
    examples: u64,
}

impl Meter {
    pub fn new(how: Progress, epoch: u64, epochs: u64, examples: usize, seen: u64) -> Meter {
        let target = match how {
            // of a terminal only
            Progress::Bars => ProgressDrawTarget::stderr(),
            Progress::Lines | Progress::Off => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(examples as u64), target).with_position(seen);
        let template = "{prefix} {bar:24} {pos}/{len}  {pace}  {eta} left  {msg}";
        // the template is constant, and a test draws it
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("pace", |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = write!(text, "{:.0}/s", state.per_sec());
        }));
        bar.set_prefix(format!("epoch {epoch}/{epochs}"));
        bar.reset_eta();
        Meter { how, bar, epochs, start: Instant::now(), examples: examples as u64 - seen.min(examples as u64) }
    }

    pub fn step(&mut self, examples: usize, loss: f64) {
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("loss {loss:.4}"));
        }
        self.bar.inc(examples as u64);
    }

    pub fn finish(self, epoch: Option<&Epoch>) {
        let Some(epoch) = epoch else { return };
        let mut told = format!("loss {:.4}", epoch.loss);
        if let Some(loss) = epoch.valid_loss {
            told += &format!("  validation {loss:.4}");
        }
        if let Some(accuracy) = epoch.accuracy {
            told += &format!("  accuracy {:.2} %", accuracy * 100.0);
        }
        if self.how == Progress::Lines {
            let seconds = self.start.elapsed().as_secs_f64();
            let pace = self.examples as f64 / epoch.seconds.max(1e-9);
            eprintln!("epoch {}/{}: {told}, {seconds:.1} s, {pace:.0} examples/s", epoch.number, self.epochs);
        }
        self.bar.finish_with_message(told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::InMemoryTerm;

    #[test]
    fn bars_show_loss_pace_and_time_left() {
        let term = InMemoryTerm::new(4, 160);
        let mut meter = Meter::new(Progress::Bars, 2, 5, 100, 0);
        meter.bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(term.clone())));
        meter.step(40, 0.5);
        meter.bar.tick();
        let shown = term.contents();
        assert!(shown.contains("epoch 2/5") && shown.contains("40/100") && shown.contains("/s"), "{shown}");
        assert!(shown.contains("left") && shown.contains("loss 0.5000"), "{shown}");
        let epoch = Epoch {
            number: 2,
            steps: 9,
            loss: 0.25,
            valid_loss: Some(0.5),
            accuracy: Some(0.975),
            rate: 0.1,
            seconds: 1.0,
        };
        meter.finish(Some(&epoch));
        let shown = term.contents();
        assert!(shown.contains("loss 0.2500  validation 0.5000  accuracy 97.50 %"), "{shown}");
        assert!(Meter::new(Progress::Off, 1, 1, 1, 0).bar.is_hidden());
    }
}
