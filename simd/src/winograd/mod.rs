//! Winograd's minimal filtering F(m×m, 3×3): `m × m` outputs of a 3×3 convolution from `(m + 2)²` products.
//!
//! `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A` for a patch `d` of `(m + 2) × (m + 2)` inputs and a filter `g`, summed over channels
//! before the last transform. Matrices: Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks* (2016), with the
//! points 0, 1, −1 and, for `m = 4`, 2, −2.
//!
//! What a patch holds reaches all its outputs: one infinity or NaN makes up to `m²` outputs NaN.

mod transform;

pub use transform::{
    InputFn, InputTiles, OutputFn, OutputTiles, input_transform, input_transform_pairs, output_transform,
};

/// The matrices of F(m×m, 3×3), rows one after the other.
#[derive(Debug, PartialEq)]
pub struct Matrices {
    /// `m`.
    pub outputs: usize,
    /// `Bᵀ`: `m + 2` rows of `m + 2`.
    pub input: &'static [f64],
    /// `G`: `m + 2` rows of 3.
    pub weights: &'static [f64],
    /// `Aᵀ`: `m` rows of `m + 2`.
    pub output: &'static [f64],
}

#[rustfmt::skip]
static F2: Matrices = Matrices {
    outputs: 2,
    input: &[
        1.0,  0.0, -1.0,  0.0,
        0.0,  1.0,  1.0,  0.0,
        0.0, -1.0,  1.0,  0.0,
        0.0,  1.0,  0.0, -1.0,
    ],
    weights: &[
        1.0,  0.0, 0.0,
        0.5,  0.5, 0.5,
        0.5, -0.5, 0.5,
        0.0,  0.0, 1.0,
    ],
    output: &[
        1.0, 1.0,  1.0,  0.0,
        0.0, 1.0, -1.0, -1.0,
    ],
};

#[rustfmt::skip]
static F4: Matrices = Matrices {
    outputs: 4,
    input: &[
        4.0,  0.0, -5.0,  0.0, 1.0, 0.0,
        0.0, -4.0, -4.0,  1.0, 1.0, 0.0,
        0.0,  4.0, -4.0, -1.0, 1.0, 0.0,
        0.0, -2.0, -1.0,  2.0, 1.0, 0.0,
        0.0,  2.0, -1.0, -2.0, 1.0, 0.0,
        0.0,  4.0,  0.0, -5.0, 0.0, 1.0,
    ],
    weights: &[
         1.0 /  4.0,  0.0,         0.0,
        -1.0 /  6.0, -1.0 /  6.0, -1.0 / 6.0,
        -1.0 /  6.0,  1.0 /  6.0, -1.0 / 6.0,
         1.0 / 24.0,  1.0 / 12.0,  1.0 / 6.0,
         1.0 / 24.0, -1.0 / 12.0,  1.0 / 6.0,
         0.0,         0.0,         1.0,
    ],
    output: &[
        1.0, 1.0,  1.0, 1.0,  1.0, 0.0,
        0.0, 1.0, -1.0, 2.0, -2.0, 0.0,
        0.0, 1.0,  1.0, 4.0,  4.0, 0.0,
        0.0, 1.0, -1.0, 8.0, -8.0, 1.0,
    ],
};

/// The matrices for `outputs` = m of 2 or 4; there are no others.
pub fn matrices(outputs: usize) -> Option<&'static Matrices> {
    [&F2, &F4].into_iter().find(|m| m.outputs == outputs)
}

impl Matrices {
    /// `m + 2`.
    pub const fn points(&self) -> usize {
        self.outputs + 2
    }

    /// `G g Gᵀ` of a row-major 3×3 filter, row-major: computed in f64, each element rounded once. `to` takes the place and
    /// the value.
    pub fn transform_filter(&self, g: &[f32; 9], mut to: impl FnMut(usize, f32)) {
        let n = self.points();
        for (i, a) in self.weights.chunks_exact(3).enumerate() {
            let half: [f64; 3] = std::array::from_fn(|l| (0..3).map(|k| a[k] * f64::from(g[3 * k + l])).sum());
            for (j, b) in self.weights.chunks_exact(3).enumerate() {
                to(i * n + j, (0..3).map(|l| half[l] * b[l]).sum::<f64>() as f32);
            }
        }
    }

    /// By how much the method may magnify rounding: the error of an output is at most `growth² · γ · Σ |x| |w|` for the
    /// largest `|x|` of the patch, `γ` being the number of roundings on its way times the unit roundoff.
    ///
    /// An output's absolute terms are `|Aᵀ|(|G||g||Gᵀ| ⊙ |Bᵀ||d||B|)|A|`. With every `|d|` at most 1 each dim contributes
    /// `max over i, k of Σ_ξ |Aᵀ_iξ| · (Σ_r |Bᵀ_ξr|) · |G_ξk|`: 4 for m = 2, 88/3 for m = 4.
    pub fn growth(&self) -> f64 {
        let n = self.points();
        let row = |xi: usize| self.input[xi * n..][..n].iter().map(|b| b.abs()).sum::<f64>();
        let one = |i: usize, k: usize| {
            (0..n).map(|xi| self.output[i * n + xi].abs() * row(xi) * self.weights[3 * xi + k].abs()).sum::<f64>()
        };
        (0..self.outputs).flat_map(|i| (0..3).map(move |k| one(i, k))).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// `left · x · leftᵀ` for a square `x` of extent `n`.
    fn both_sides(left: &[f64], n: usize, x: &[f64]) -> Vec<f64> {
        let rows = left.len() / n;
        let at = |i: usize, j: usize| -> f64 {
            (0..n)
                .flat_map(|k| (0..n).map(move |l| (k, l)))
                .map(|(k, l)| left[i * n + k] * x[k * n + l] * left[j * n + l])
                .sum()
        };
        (0..rows * rows).map(|e| at(e / rows, e % rows)).collect()
    }

    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7 + seed * 13) * 2_654_435_761 % 17) as f32 - 8.0).collect()
    }

    /// The identity that the method rests on, exactly: all numbers are dyadic, or cancel to within f64's rounding.
    #[test]
    fn the_matrices_filter() {
        for m in [matrices(2), matrices(4)].into_iter().flatten() {
            let n = m.points();
            let (d, g) = (integers(n * n, 1), integers(9, 2));
            let d64: Vec<f64> = d.iter().map(|x| f64::from(*x)).collect();
            let g64: Vec<f64> = g.iter().map(|x| f64::from(*x)).collect();
            let mut spread = vec![0.0; n * n];
            for (i, a) in m.weights.chunks_exact(3).enumerate() {
                for (j, b) in m.weights.chunks_exact(3).enumerate() {
                    spread[i * n + j] = (0..9).map(|t| a[t / 3] * g64[t] * b[t % 3]).sum();
                }
            }
            let products: Vec<f64> = both_sides(m.input, n, &d64).iter().zip(&spread).map(|(x, w)| x * w).collect();
            let got = both_sides(m.output, n, &products);
            for (e, got) in got.iter().enumerate() {
                let (y, x) = (e / m.outputs, e % m.outputs);
                let want: f64 = (0..9).map(|t| d64[(y + t / 3) * n + x + t % 3] * g64[t]).sum();
                assert!((got - want).abs() < 1e-9, "F({}): {got} {want}", m.outputs);
            }
            let mut rounded = vec![0.0; n * n];
            m.transform_filter(g.as_slice().try_into().unwrap(), |at, x| rounded[at] = x);
            assert!(rounded.iter().zip(&spread).all(|(x, w)| (f64::from(*x) - w).abs() <= w.abs() * 6e-8 + 1e-15));
        }
        assert!(matrices(3).is_none());
        assert_eq!(matrices(2).unwrap().growth(), 4.0);
        assert!((matrices(4).unwrap().growth() - 88.0 / 3.0).abs() < 1e-12, "{}", matrices(4).unwrap().growth());
    }

    /// The vector forms are the matrices: integers are exact in both. Tiles in the middle and cut at both ends.
    #[test]
    fn the_transforms_are_the_matrices() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for m in [matrices(2), matrices(4)].into_iter().flatten() {
                let (l, n, tiles) = (isa.lanes_f32(), m.points(), 3);
                let (rows, columns) = (n - 1, 2 * m.outputs + n - 1);
                let pixels = integers(rows * columns * l, 3);
                let point = tiles * l + l;
                let mut points = vec![f32::NAN; n * n * point];
                let tile = InputTiles {
                    pixels: pixels.as_ptr(),
                    row: columns * l,
                    rows,
                    columns,
                    tiles,
                    points: points.as_mut_ptr(),
                    point,
                };
                // SAFETY: as many pixels and points as the numbers say.
                unsafe { input_transform(isa, m.outputs).unwrap()(&tile) };
                let pixel = |y: usize, x: usize, lane: usize| {
                    if y < rows && x < columns { f64::from(pixels[(y * columns + x) * l + lane]) } else { 0.0 }
                };
                for t in 0..tiles {
                    for lane in 0..l {
                        let d: Vec<f64> = (0..n * n).map(|e| pixel(e / n, t * m.outputs + e % n, lane)).collect();
                        for (xi, want) in both_sides(m.input, n, &d).iter().enumerate() {
                            assert_eq!(f64::from(points[xi * point + t * l + lane]), *want, "{isa} F({})", m.outputs);
                        }
                    }
                }
                check_output(isa, m);
            }
        }
    }

    fn check_output(isa: Isa, m: &Matrices) {
        let (l, n, tiles) = (isa.lanes_f32(), m.points(), 3);
        let (rows, columns, lanes) = (m.outputs - 1, tiles * m.outputs - 1, l - 1);
        let point = tiles * l + l;
        let products = integers(n * n * point, 4);
        let (bias, residual) = (integers(l, 5), integers(rows * columns * l, 6));
        let mut out = vec![99.0f32; m.outputs * tiles * m.outputs * l];
        let row = tiles * m.outputs * l;
        let tile = OutputTiles {
            products: products.as_ptr(),
            point,
            tiles,
            tile: l,
            out: out.as_mut_ptr(),
            row,
            rows,
            columns,
            lanes,
            bias: bias.as_ptr(),
            residual: residual.as_ptr(),
            residual_row: columns * l,
            lo: -50.0,
            hi: 500.0,
        };
        // SAFETY: as many products and pixels as the numbers say.
        unsafe { output_transform(isa, m.outputs).unwrap()(&tile) };
        for (y, x, lane) in (0..m.outputs * tiles * m.outputs * l).map(|e| (e / row, e % row / l, e % l)) {
            let got = out[y * row + x * l + lane];
            if y >= rows || x >= columns {
                assert_eq!(got, 99.0, "beyond the image");
            } else if lane >= lanes {
                assert_eq!(got, 0.0, "absent lane");
            } else {
                let t = x / m.outputs;
                let of_tile: Vec<f64> = (0..n * n).map(|xi| f64::from(products[xi * point + t * l + lane])).collect();
                let sum = both_sides(m.output, n, &of_tile)[y * m.outputs + x % m.outputs];
                let want = sum + f64::from(bias[lane]) + f64::from(residual[(y * columns + x) * l + lane]);
                assert_eq!(f64::from(got), want.clamp(-50.0, 500.0), "{isa} F({})", m.outputs);
            }
        }
    }
}
