//! Learning rates over a run.

use std::f64::consts::PI;

/// A learning rate by step, counted from 0.
///
/// ```
/// use egret_nn::Schedule;
/// let rate = Schedule::cosine(0.1, 100).warm_up(10);
/// assert_eq!(rate.at(0), 0.1 / 10.0);
/// assert!((rate.at(9) - 0.1).abs() < 1e-12);
/// assert!(rate.at(99) < rate.at(50));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    rate: f64,
    shape: Shape,
    warm_up: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Constant,
    Step { every: u64, factor: f64 },
    Cosine { steps: u64, least: f64 },
}

impl Schedule {
    /// The same rate always.
    pub fn constant(rate: f64) -> Schedule {
        Schedule { rate, shape: Shape::Constant, warm_up: 0 }
    }

    /// Times `factor` after each `every` steps.
    pub fn step(rate: f64, every: u64, factor: f64) -> Schedule {
        Schedule { rate, shape: Shape::Step { every: every.max(1), factor }, warm_up: 0 }
    }

    /// Half a cosine from `rate` to 0 after `steps` steps (Loshchilov and Hutter, 2017, without restarts).
    pub fn cosine(rate: f64, steps: u64) -> Schedule {
        Schedule { rate, shape: Shape::Cosine { steps: steps.max(1), least: 0.0 }, warm_up: 0 }
    }

    /// A cosine that ends at `least`.
    pub fn down_to(mut self, least: f64) -> Schedule {
        if let Shape::Cosine { least: end, .. } = &mut self.shape {
            *end = least;
        }
        self
    }

    /// Rises evenly over the first `steps` steps; what follows is counted from their end.
    pub fn warm_up(mut self, steps: u64) -> Schedule {
        self.warm_up = steps;
        self
    }

    /// The rate of a step.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warm_up {
            return self.rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let step = step - self.warm_up;
        match self.shape {
            Shape::Constant => self.rate,
            Shape::Step { every, factor } => self.rate * factor.powf((step / every) as f64),
            Shape::Cosine { steps, least } => {
                let done = (step as f64 / steps as f64).min(1.0);
                least + (self.rate - least) * 0.5 * (1.0 + (PI * done).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_their_curves() {
        let step = Schedule::step(1.0, 10, 0.5);
        assert_eq!([0, 9, 10, 25].map(|s| step.at(s)), [1.0, 1.0, 0.5, 0.25]);
        let cosine = Schedule::cosine(2.0, 8).down_to(1.0);
        assert_eq!(cosine.at(0), 2.0);
        assert!((cosine.at(4) - 1.5).abs() < 1e-12);
        assert_eq!([cosine.at(8), cosine.at(1000)], [1.0, 1.0]);
        let warm = Schedule::constant(3.0).warm_up(3);
        assert_eq!([0, 1, 2, 3].map(|s| warm.at(s)), [1.0, 2.0, 3.0, 3.0]);
    }
}
