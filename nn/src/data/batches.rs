//! Labelled images, in batches.

use egret_ir::{DType, Tensor};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

/// Grey images of bytes with integer labels.
#[derive(Clone, Debug)]
pub struct Images {
    images: Tensor,
    labels: Tensor,
}

impl Images {
    /// Images `u8[n, height, width]` and labels `i64[n]`; `None` when they are not.
    pub fn new(images: Tensor, labels: Tensor) -> Option<Images> {
        let fit = images.dtype() == DType::U8 && labels.dtype() == DType::I64;
        let shapes = images.shape().len() == 3 && labels.shape() == &images.shape()[..1];
        (fit && shapes).then_some(Images { images, labels })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.elements()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Height and width.
    pub fn extent(&self) -> (usize, usize) {
        (self.images.shape()[1], self.images.shape()[2])
    }

    /// The first `count` images.
    pub fn take(&self, count: usize) -> Images {
        let count = count.min(self.len());
        let (h, w) = self.extent();
        let part = |t: &Tensor, shape: &[usize], bytes: usize| {
            Tensor::from_bytes(t.dtype(), shape, &t.bytes()[..bytes]).unwrap_or_else(|| t.clone())
        };
        Images {
            images: part(&self.images, &[count, h, w], count * h * w),
            labels: part(&self.labels, &[count], count * 8),
        }
    }

    /// The images of these numbers, which are there, in 0..1, and their labels.
    pub(crate) fn stacked(&self, rows: &[usize]) -> (Tensor, Tensor) {
        let (h, w) = self.extent();
        let mut x = Tensor::zeros(DType::F32, &[rows.len(), 1, h, w]);
        let mut y = Tensor::zeros(DType::I64, &[rows.len()]);
        let bytes = rows.iter().flat_map(|i| &self.images.bytes()[i * h * w..][..h * w]);
        let pixels = x.as_mut_slice::<f32>().unwrap_or_default();
        pixels.iter_mut().zip(bytes).for_each(|(pixel, byte)| *pixel = f32::from(*byte) / 255.0);
        let labels = self.labels.as_slice::<i64>().unwrap_or_default();
        y.as_mut_slice::<i64>().unwrap_or_default().iter_mut().zip(rows).for_each(|(y, i)| *y = labels[*i]);
        (x, y)
    }

    /// Batches of `size` in the order of the images, the last one smaller.
    pub fn batches(&self, size: usize) -> Batches<'_> {
        Batches { of: self, order: (0..self.len()).collect(), size: size.max(1), at: 0 }
    }

    /// Full batches in an order drawn from `seed`; what is left over is not given.
    pub fn shuffled(&self, size: usize, seed: u64) -> Batches<'_> {
        let size = size.max(1);
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
        order.truncate(self.len() / size * size);
        Batches { of: self, order, size, at: 0 }
    }
}

/// Batches of images `f32[batch, 1, height, width]` in 0..1 with labels `i64[batch]`.
pub struct Batches<'a> {
    of: &'a Images,
    order: Vec<usize>,
    size: usize,
    at: usize,
}

impl Iterator for Batches<'_> {
    type Item = (Tensor, Tensor);

    fn next(&mut self) -> Option<(Tensor, Tensor)> {
        let rest = self.order.get(self.at..).filter(|rest| !rest.is_empty())?;
        let chosen = &rest[..self.size.min(rest.len())];
        self.at += chosen.len();
        Some(self.of.stacked(chosen))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.order.len() - self.at).div_ceil(self.size);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches<'_> {}

/// How many rows of `logits` `f32[n, classes]` have their greatest element at the label.
pub fn accuracy(logits: &[f32], labels: &[i64]) -> usize {
    let classes = if labels.is_empty() { 1 } else { (logits.len() / labels.len()).max(1) };
    let best = |row: &[f32]| row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    logits.chunks_exact(classes).zip(labels).filter(|(row, label)| best(row) as i64 == **label).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(n: usize) -> Images {
        let pixels: Vec<u8> = (0..n).map(|i| i as u8).collect();
        let labels: Vec<i64> = (0..n as i64).collect();
        Images::new(Tensor::new(&[n, 1, 1], &pixels).unwrap(), Tensor::new(&[n], &labels).unwrap()).unwrap()
    }

    #[test]
    fn every_image_is_given_once_with_its_label() {
        let images = images(10);
        let mut seen = Vec::new();
        for (x, y) in images.shuffled(3, 5) {
            assert_eq!(x.shape(), [3, 1, 1, 1]);
            for (pixel, label) in x.as_slice::<f32>().unwrap().iter().zip(y.as_slice::<i64>().unwrap()) {
                assert_eq!(*pixel, *label as f32 / 255.0);
                seen.push(*label);
            }
        }
        assert_eq!(seen.len(), 9);
        assert!(!seen.is_sorted());
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 9);
        let sizes: Vec<usize> = images.batches(4).map(|(_, y)| y.elements()).collect();
        assert_eq!(sizes, [4, 4, 2]);
        assert_eq!(images.take(3).batches(9).len(), 1);
    }

    #[test]
    fn accuracy_counts_the_greatest() {
        assert_eq!(accuracy(&[0.1, 0.9, 0.8, 0.2, 0.0, 0.0], &[1, 0, 1]), 2);
        assert_eq!(accuracy(&[], &[]), 0);
    }
}
