//! Examples that are changed at random: layers of the graph, by the counter generator.
//!
//! In training each example is changed in its own way, which depends on the layer's stream and the state
//! `random.counter` alone: the same on every device and thread count, and in a resumed run. Evaluation and inference see
//! examples as they are. Images are `[n, channels, height, width]`.

use egret_ir::ops::Outside;
use egret_ir::{DType, Dim, Literal, Shape, TensorType, Var};

use crate::layers::Layer;
use crate::params::{Mode, Params};

/// Uniform in 0..1, one of each example.
fn draw<'t>(p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
    let examples = x.shape().first().cloned().unwrap_or(Dim::ONE);
    p.tracer().uniform(p.stream(), p.random_counter(), TensorType::new(DType::F32, [examples]))
}

/// Integers from 0 to `most`, one of each example.
fn draw_up_to<'t>(p: &Params<'_, 't>, x: Var<'t>, most: usize) -> Var<'t> {
    (draw(p, x) * (most + 1) as f64).floor().minimum(most as f64).cast(DType::I64)
}

/// Whether `x` is of images; records an error if not.
fn of_images<'t>(p: &Params<'_, 't>, x: Var<'t>) -> bool {
    let fits = x.rank() == 4 && x.dtype().is_float();
    if !fits {
        p.fail(format!("images are floats [n, channels, height, width], not {}", x.ty()));
    }
    fits
}

/// Windows of images: `y[n, c, i, j] = x[n, c, i + top[n] − margin, j + left[n] − margin]`, zero beyond the edges.
fn windows<'t>(x: Var<'t>, top: Var<'t>, left: Var<'t>, margin: i64, height: Dim, width: Dim) -> Var<'t> {
    let shape: Shape = [x.shape()[0].clone(), x.shape()[1].clone(), height, width].into_iter().collect();
    let zero = Outside::Fill(Literal::float(0.0, x.dtype()));
    x.tracer().generate(TensorType { dtype: x.dtype(), shape }, &[x, top, left], |g, i| {
        let (top, left) = (g.load(1, &i[..1], Outside::Clamp), g.load(2, &i[..1], Outside::Clamp));
        let place = [i[0].clone(), i[1].clone(), &i[2] + top - margin, &i[3] + left - margin];
        g.load(0, &place, zero)
    })
}

/// Mirrors an image from left to right, with this probability.
#[derive(Clone, Copy, Debug)]
pub struct RandomFlip(pub f64);

impl Layer for RandomFlip {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        if p.mode() != Mode::Train || !of_images(p, x) {
            return x;
        }
        let flips = draw(p, x).less(p.tracer().scalar(Literal::float(self.0, DType::F32)));
        flips.unsqueeze(&[1, 2, 3]).select(x.reverse(&[3]), x)
    }
}

/// A window of this height and width anywhere in an image; the middle one in evaluation and inference.
#[derive(Clone, Copy, Debug)]
pub struct RandomCrop(pub usize, pub usize);

impl Layer for RandomCrop {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        if !of_images(p, x) {
            return x;
        }
        let (height, width) = (p.extent(x, 2), p.extent(x, 3));
        let (Some(down), Some(right)) = (height.checked_sub(self.0), width.checked_sub(self.1)) else {
            return p.fail(format!("there is no window of {} × {} in {}", self.0, self.1, x.ty()));
        };
        if p.mode() != Mode::Train {
            return x.narrow(2, (down / 2) as i64, self.0 as i64).narrow(3, (right / 2) as i64, self.1 as i64);
        }
        let (top, left) = (draw_up_to(p, x, down), draw_up_to(p, x, right));
        windows(x, top, left, 0, self.0.into(), self.1.into())
    }
}

/// Shifts an image by up to so many pixels in each direction; zeros come in.
#[derive(Clone, Copy, Debug)]
pub struct RandomShift(pub usize);

impl Layer for RandomShift {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        if p.mode() != Mode::Train || !of_images(p, x) {
            return x;
        }
        let (top, left) = (draw_up_to(p, x, 2 * self.0), draw_up_to(p, x, 2 * self.0));
        windows(x, top, left, self.0 as i64, x.shape()[2].clone(), x.shape()[3].clone())
    }
}

/// Adds normal noise of this standard deviation to each element.
#[derive(Clone, Copy, Debug)]
pub struct GaussianNoise(pub f64);

impl Layer for GaussianNoise {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        match p.mode() {
            Mode::Train => x + p.tracer().normal(p.stream(), p.random_counter(), x.ty()) * self.0,
            Mode::Evaluate | Mode::Infer => x,
        }
    }
}

/// `(x − mean) / std` of each channel (axis 1), always: by numbers that are known of the data.
#[derive(Clone, Debug)]
pub struct Standardise {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Standardise {
    /// Mean and standard deviation of each channel; one of each is that of all channels.
    pub fn new(mean: &[f64], std: &[f64]) -> Standardise {
        Standardise { mean: mean.to_vec(), std: std.to_vec() }
    }
}

impl Layer for Standardise {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let channels = if x.rank() > 1 { p.extent(x, 1) } else { 1 };
        let along = |values: &[f64]| -> Var<'t> {
            let fits = values.len() == channels || values.len() == 1;
            if !fits || !x.dtype().is_float() {
                let message = format!("{} means or deviations do not fit the channels of {}", values.len(), x.ty());
                return p.fail(message);
            }
            let mut tensor = egret_ir::Tensor::zeros(x.dtype(), &[values.len()]);
            values.iter().enumerate().for_each(|(i, v)| tensor.set(i, egret_ir::ScalarValue::Float(*v)));
            let axes: Vec<isize> = (1..x.rank().saturating_sub(1)).map(|axis| axis as isize).collect();
            p.tracer().constant(tensor).unsqueeze(&axes)
        };
        (x - along(&self.mean)) / along(&self.std)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{Tensor, Tensors, f32, interpret, trace};

    /// What a layer makes of 64 images of 2 channels and 3 × 4 pixels, numbered from 1, and what in the next step.
    fn changed(layer: &dyn Layer, mode: Mode) -> (Tensor, Tensor, Tensor) {
        let graph = trace(|t| {
            let p = Params::new(t, mode, 5);
            layer.build(&p, t.input("x", f32([Dim::from("n"), 2.into(), 3.into(), 4.into()])))
        })
        .unwrap();
        let values: Vec<f32> = (1..=64 * 24).map(|i| i as f32).collect();
        let x = Tensor::new(&[64, 2, 3, 4], &values).unwrap();
        let inputs = Tensors::from([("x".into(), x.clone())]);
        let first = interpret(&graph, &inputs, &Tensors::new()).unwrap();
        let states: Tensors = first.updates.into_iter().collect();
        let second = interpret(&graph, &inputs, &states).unwrap();
        (x, first.outputs[0].1.clone(), second.outputs[0].1.clone())
    }

    fn images(x: &Tensor, pixels: usize) -> Vec<&[f32]> {
        x.as_slice::<f32>().unwrap().chunks_exact(pixels).collect()
    }

    #[test]
    fn flips_mirror_some_images_whole() {
        let (x, y, later) = changed(&RandomFlip(0.25), Mode::Train);
        let mirrored =
            |image: &[f32]| -> Vec<f32> { image.chunks(4).flat_map(|row| row.iter().rev().copied()).collect() };
        let mut flipped = 0;
        for (x, y) in images(&x, 24).into_iter().zip(images(&y, 24)) {
            assert!(x == y || mirrored(x) == y);
            flipped += usize::from(x != y);
        }
        assert!((6..28).contains(&flipped), "{flipped} of 64");
        assert_ne!(y, later);
        let (x, y, _) = changed(&RandomFlip(0.5), Mode::Evaluate);
        assert_eq!(x, y);
    }

    #[test]
    fn crops_are_windows_from_anywhere() {
        let (x, y, later) = changed(&RandomCrop(2, 3), Mode::Train);
        assert_eq!(y.shape(), [64, 2, 2, 3]);
        let window = |image: &[f32], top: usize, left: usize| -> Vec<f32> {
            let rows = image.chunks(12).flat_map(|channel| channel.chunks(4).skip(top).take(2));
            rows.flat_map(|row| row[left..left + 3].iter().copied()).collect()
        };
        let mut seen = std::collections::BTreeSet::new();
        for (x, y) in images(&x, 24).into_iter().zip(images(&y, 12)) {
            let places = [(0, 0), (0, 1), (1, 0), (1, 1)];
            seen.insert(*places.iter().find(|(top, left)| window(x, *top, *left) == y).expect("a window"));
        }
        assert_eq!(seen.len(), 4);
        assert_ne!(y, later);
        let (x, y, _) = changed(&RandomCrop(1, 2), Mode::Infer);
        assert_eq!(images(&y, 4)[0], [x.get(5), x.get(6), x.get(17), x.get(18)].map(|v| v.as_f64() as f32));
    }

    #[test]
    fn shifts_keep_the_extent_and_bring_zeros() {
        let (x, y, _) = changed(&RandomShift(1), Mode::Train);
        let mut seen = std::collections::BTreeSet::new();
        for (x, y) in images(&x, 24).into_iter().zip(images(&y, 24)) {
            let shifted = |down: i64, right: i64| -> Vec<f32> {
                let at = |i: i64| {
                    let (channel, row, column) = (i / 12, i / 4 % 3 + down, i % 4 + right);
                    let inside = (0..3).contains(&row) && (0..4).contains(&column);
                    if inside { x[(channel * 12 + row * 4 + column) as usize] } else { 0.0 }
                };
                (0..24).map(at).collect()
            };
            let all = (-1..=1).flat_map(|down| (-1..=1).map(move |right| (down, right)));
            seen.insert(all.into_iter().find(|(d, r)| shifted(*d, *r) == y).expect("a shift"));
        }
        assert_eq!(seen.len(), 9);
        assert_eq!(changed(&RandomShift(1), Mode::Infer).1, x);
    }

    #[test]
    fn noise_is_normal_and_standards_are_always() {
        let (x, y, later) = changed(&GaussianNoise(0.5), Mode::Train);
        let noise: Vec<f64> = x.values().zip(y.values()).map(|(x, y)| y.as_f64() - x.as_f64()).collect();
        let n = noise.len() as f64;
        let mean = noise.iter().sum::<f64>() / n;
        let deviation = (noise.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / n).sqrt();
        // five standard errors of 1536 draws
        assert!(mean.abs() < 0.064 && (deviation - 0.5).abs() < 0.046, "{mean} {deviation}");
        assert_ne!(y, later);
        assert_eq!(changed(&GaussianNoise(0.5), Mode::Evaluate).1, x);
        for mode in [Mode::Train, Mode::Infer] {
            let (x, y, _) = changed(&Standardise::new(&[1.0, 2.0], &[2.0, 4.0]), mode);
            assert_eq!(y.get(3).as_f64(), (x.get(3).as_f64() - 1.0) / 2.0);
            assert_eq!(y.get(13).as_f64(), (x.get(13).as_f64() - 2.0) / 4.0);
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let refused = |layer: &dyn Layer, shape: &[i64]| {
            trace(|t| layer.build(&Params::new(t, Mode::Train, 1), t.input("x", f32(Shape::from(shape)))))
                .map_err(|e| e.code)
                .err()
        };
        assert_eq!(refused(&RandomFlip(0.5), &[2, 3]), Some("E0610"));
        assert_eq!(refused(&RandomCrop(5, 2), &[1, 1, 4, 4]), Some("E0610"));
        assert_eq!(refused(&Standardise::new(&[0.0; 2], &[1.0; 2]), &[1, 3, 4]), Some("E0610"));
        assert_eq!(refused(&Standardise::new(&[0.0], &[1.0]), &[1, 3, 4]), None);
    }
}
