//! Which engine computes a convolution on a CPU: a roofline of each.

use egret_program::DeviceDescription;
use egret_program::driver::ConvProblem;

/// Which tiles of Winograd's minimal filtering convolutions on CPUs may use; none where exact results are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Winograd {
    /// None: every convolution is one sum an output.
    Off,
    /// F(2×2, 3×3): rounding errors are mostly below those of the direct sum.
    #[default]
    F2,
    /// Also F(4×4, 3×3), whose errors are three to five times those of the direct sum (some 10⁻⁵ of the largest output).
    F4,
}

impl std::str::FromStr for Winograd {
    type Err = String;

    fn from_str(text: &str) -> Result<Winograd, String> {
        match text {
            "off" => Ok(Winograd::Off),
            "f2" => Ok(Winograd::F2),
            "f4" => Ok(Winograd::F4),
            other => Err(format!("`{other}` is no choice of Winograd tiles: off, f2, f4")),
        }
    }
}

/// The extent m of Winograd's tiles that computes a problem fastest; `None`: the direct sum does.
pub fn winograd(problem: &ConvProblem<usize>, allowed: Winograd, device: &DeviceDescription) -> Option<usize> {
    let tiles: &[usize] = match allowed {
        Winograd::Off => &[],
        Winograd::F2 => &[2],
        Winograd::F4 => &[2, 4],
    };
    if !problem.has_winograd() {
        return None;
    }
    let mut best = (None, direct_us(problem, device));
    for m in tiles {
        let time = winograd_us(problem, *m, device);
        if time < best.1 {
            best = (Some(*m), time);
        }
    }
    best.0
}

/// Weights come from memory once; the rest lies in caches.
fn us(flops: f64, efficiency: f64, weights: f64, device: &DeviceDescription) -> f64 {
    let peak = device.core_gflops * f64::from(device.cores);
    (flops / (peak * efficiency)).max(weights / (device.memory_gbps * STREAM)) / 1e3
}

/// Channels as the lanes of vectors have them.
fn channels(problem: &ConvProblem<usize>, device: &DeviceDescription) -> (f64, f64) {
    let lanes = device.lanes() as usize;
    (problem.in_channels as f64, problem.out_channels.next_multiple_of(lanes) as f64)
}

fn direct_us(problem: &ConvProblem<usize>, device: &DeviceDescription) -> f64 {
    let (i, o) = channels(problem, device);
    let pixels = (problem.batch * problem.out_spatial.iter().product::<usize>()) as f64;
    us(2.0 * 9.0 * pixels * i * o, DIRECT, 4.0 * 9.0 * i * o, device)
}

fn winograd_us(problem: &ConvProblem<usize>, m: usize, device: &DeviceDescription) -> f64 {
    let (i, o) = channels(problem, device);
    let points = ((m + 2) * (m + 2)) as f64;
    let tiles = (problem.batch * problem.out_spatial.iter().map(|extent| extent.div_ceil(m)).product::<usize>()) as f64;
    let products = us(2.0 * points * tiles * i * o, PRODUCTS, 4.0 * points * i * o, device);
    // Each element of a patch is written and read, each sum of products too: in vectors, at the rate of the second-level
    // cache, which is to the multipliers as so many operations to an element.
    let peak = device.core_gflops * f64::from(device.cores);
    products + TRANSFORM * points * tiles * (i + o) / peak / 1e3
}

/// Shares of the peak that the tile kernels reach in each engine, the share of the bandwidth at which weights stream past
/// them, and operations that fit into the time that one element takes to be transformed: from `runtime/examples/engines.rs`
/// on AVX-512 cores (layers of 64 and more channels at 14 and more pixels gain 1.4 to 1.9 times, 32 channels 1.15, 16 at 56
/// pixels 1.1, 512 at 7 pixels as much only while one core has the bandwidth to itself).
const DIRECT: f64 = 0.92;
const PRODUCTS: f64 = 0.85;
const STREAM: f64 = 0.75;
const TRANSFORM: f64 = 32.0;

#[cfg(test)]
mod tests {
    use super::*;
    use egret_program::driver::{ConvForm, ConvInput, Epilogue};

    fn layer(channels: (usize, usize), extent: usize, kernel: usize, stride: usize) -> ConvProblem<usize> {
        ConvProblem {
            form: ConvForm::Forward,
            input: ConvInput::Blocked,
            batch: 1,
            in_channels: channels.0,
            out_channels: channels.1,
            groups: 1,
            in_spatial: vec![extent; 2],
            out_spatial: vec![extent / stride; 2],
            kernel: vec![kernel; 2],
            stride: vec![stride; 2],
            dilation: vec![1; 2],
            pad_begin: vec![kernel / 2; 2],
            in_halo: vec![kernel / 2; 2],
            out_halo: vec![0; 2],
            in_batch_stride: 0,
            out_batch_stride: 0,
            prologue: None,
            epilogue: Epilogue::none(),
        }
    }

    #[test]
    fn where_it_pays() {
        let device = DeviceDescription::named("x86-64-avx512").unwrap();
        let choice = |p: &ConvProblem<usize>, allowed| winograd(p, allowed, &device);
        // ResNet-50 and VGG-19
        for (channels, extent) in [(64, 56), (128, 28), (256, 14), (64, 224), (256, 56), (512, 28), (512, 14)] {
            assert_eq!(
                choice(&layer((channels, channels), extent, 3, 1), Winograd::F2),
                Some(2),
                "{channels} at {extent}"
            );
        }
        assert_eq!(choice(&layer((64, 64), 56, 3, 1), Winograd::F4), Some(4));
        assert_eq!(choice(&layer((64, 64), 56, 3, 1), Winograd::Off), None);
        // the transforms outweigh few channels, and weights few pixels
        assert_eq!(choice(&layer((16, 16), 56, 3, 1), Winograd::F2), None);
        for extent in [3, 7] {
            assert_eq!(choice(&layer((512, 512), extent, 3, 1), Winograd::F4), None);
        }
        for other in [layer((64, 64), 56, 3, 2), layer((64, 64), 56, 1, 1), layer((64, 64), 56, 5, 1)] {
            assert_eq!(choice(&other, Winograd::F4), None);
        }
    }

    /// Weights are 16/9 as large: with a sixteenth of the bandwidth they decide.
    #[test]
    fn bandwidth_decides() {
        let mut device = DeviceDescription::named("x86-64-avx512").unwrap();
        let problem = layer((256, 256), 14, 3, 1);
        assert_eq!(winograd(&problem, Winograd::F2, &device), Some(2));
        device.memory_gbps /= 16.0;
        assert_eq!(winograd(&problem, Winograd::F2, &device), None);
    }
}
