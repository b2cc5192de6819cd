//! Digits drawn by the program: something to train on where no data is at hand.

use egret_ir::Tensor;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::Images;
use crate::init::gaussian;

/// Extent of an image.
const SIDE: usize = 28;

type Point = (f64, f64);

/// The strokes of a digit, as lines of points in a box from (0, 0), top left, to (1, 1.6).
fn strokes(digit: usize) -> Vec<Vec<Point>> {
    // part of an ellipse, angles in eighths of a turn from the right, clockwise on the page
    let arc = |x: f64, y: f64, rx: f64, ry: f64, from: f64, to: f64| -> Vec<Point> {
        (0..=12)
            .map(|i| {
                let angle = (from + (to - from) * f64::from(i) / 12.0) * std::f64::consts::FRAC_PI_4;
                (x + rx * angle.cos(), y + ry * angle.sin())
            })
            .collect()
    };
    match digit {
        0 => vec![arc(0.5, 0.8, 0.45, 0.75, 0.0, 8.0)],
        1 => vec![vec![(0.2, 0.35), (0.55, 0.05), (0.55, 1.55)]],
        2 => {
            let mut top = arc(0.5, 0.45, 0.42, 0.4, 4.2, 8.8);
            top.extend([(0.05, 1.5), (0.95, 1.5)]);
            vec![top]
        }
        3 => vec![arc(0.45, 0.42, 0.42, 0.37, 4.5, 10.0), arc(0.45, 1.15, 0.46, 0.38, 6.0, 11.5)],
        4 => vec![vec![(0.65, 0.05), (0.05, 1.05), (0.95, 1.05)], vec![(0.68, 0.6), (0.68, 1.55)]],
        5 => vec![vec![(0.9, 0.08), (0.2, 0.08), (0.12, 0.7)], arc(0.45, 1.05, 0.45, 0.45, 5.2, 11.3)],
        6 => vec![vec![(0.75, 0.05), (0.3, 0.5), (0.08, 1.05)], arc(0.5, 1.12, 0.42, 0.4, 0.0, 8.0)],
        7 => vec![vec![(0.05, 0.08), (0.95, 0.08), (0.4, 1.55)]],
        8 => vec![arc(0.5, 0.42, 0.36, 0.36, 0.0, 8.0), arc(0.5, 1.15, 0.44, 0.38, 0.0, 8.0)],
        _ => vec![arc(0.48, 0.48, 0.4, 0.42, 0.0, 8.0), vec![(0.88, 0.5), (0.8, 1.1), (0.55, 1.55)]],
    }
}

fn distance((px, py): Point, (ax, ay): Point, (bx, by): Point) -> f64 {
    let (dx, dy) = (bx - ax, by - ay);
    let length = dx * dx + dy * dy;
    let along = if length > 0.0 { (((px - ax) * dx + (py - ay) * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    (px - ax - along * dx).hypot(py - ay - along * dy)
}

fn draw(digit: usize, rng: &mut Xoshiro256PlusPlus, pixels: &mut [u8]) {
    let mut within = |low: f64, high: f64| low + (high - low) * rng.random::<f64>();
    let (height, width) = (within(14.0, 20.0), within(7.0, 13.0));
    let (slant, turn) = (within(-0.25, 0.35), within(-0.2, 0.2));
    let (x, y) = (14.0 + within(-3.0, 3.0), 14.0 + within(-3.0, 3.0));
    let (thickness, grain) = (within(0.7, 1.8), within(0.0, 0.12));
    let mut bend = || within(-0.06, 0.06);
    let lines: Vec<Vec<Point>> = strokes(digit)
        .into_iter()
        .map(|line| {
            let points = line.into_iter().map(|(px, py)| {
                let (v, u) = ((py + bend()) / 1.6 - 0.5, px + bend() - 0.5);
                let (u, v) = ((u - slant * v) * width, v * height);
                (x + u * turn.cos() - v * turn.sin(), y + u * turn.sin() + v * turn.cos())
            });
            points.collect()
        })
        .collect();
    for (i, pixel) in pixels.iter_mut().enumerate() {
        let at = ((i % SIDE) as f64 + 0.5, (i / SIDE) as f64 + 0.5);
        let segments = lines.iter().flat_map(|line| line.windows(2));
        let near = segments.map(|s| distance(at, s[0], s[1])).fold(f64::INFINITY, f64::min);
        let ink = (thickness + 0.5 - near).clamp(0.0, 1.0) + grain * gaussian(rng);
        *pixel = (ink.clamp(0.0, 1.0) * 255.0) as u8;
    }
}

/// `count` digits of 28 × 28, shifted, scaled, slanted, turned, bent, of various thickness and with noise, each class
/// as often as the others. The same seed gives the same.
///
/// ```
/// let (digits, again) = (egret_nn::data::digits(20, 3), egret_nn::data::digits(20, 3));
/// assert_eq!(digits.batches(20).next(), again.batches(20).next());
/// ```
pub fn digits(count: usize, seed: u64) -> Images {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut pixels = vec![0; count * SIDE * SIDE];
    let labels: Vec<i64> = (0..count as i64).map(|i| i % 10).collect();
    for (image, label) in pixels.chunks_exact_mut(SIDE * SIDE).zip(&labels) {
        draw(*label as usize, &mut rng, image);
    }
    let tensors = Tensor::new(&[count, SIDE, SIDE], &pixels).zip(Tensor::new(&[count], &labels));
    // the shapes are those of the vectors above
    match tensors.and_then(|(images, labels)| Images::new(images, labels)) {
        Some(images) => images,
        None => unreachable!("{count} images have {count} labels"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_inside_and_differ() {
        let drawn = digits(200, 1);
        let (x, y) = drawn.batches(200).next().unwrap();
        let x = x.as_slice::<f32>().unwrap();
        let ink: Vec<f32> = x.chunks_exact(SIDE * SIDE).map(|image| image.iter().sum()).collect();
        assert!(ink.iter().all(|ink| (20.0..320.0).contains(ink)), "{ink:?}");
        // the mean of each class is nearer to its own images than that of others, as a rule
        let labels = y.as_slice::<i64>().unwrap();
        let mean = |class: i64| -> Vec<f32> {
            let mine = x.chunks_exact(SIDE * SIDE).zip(labels).filter(|(_, l)| **l == class).map(|(image, _)| image);
            mine.fold(vec![0.0; SIDE * SIDE], |sum, image| sum.iter().zip(image).map(|(a, b)| a + b / 20.0).collect())
        };
        let means: Vec<Vec<f32>> = (0..10).map(mean).collect();
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let nearest = |image: &[f32]| {
            (0..10).min_by(|a, b| far(image, &means[*a]).total_cmp(&far(image, &means[*b]))).unwrap() as i64
        };
        let right = x.chunks_exact(SIDE * SIDE).zip(labels).filter(|(image, l)| nearest(image) == **l).count();
        assert!(right > 120, "{right} of 200 are nearest to their class");
    }
}
