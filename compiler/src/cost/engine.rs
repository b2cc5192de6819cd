//! Which engine computes a convolution on a CPU: a roofline of each.

use egret_program::DeviceDescription;
use egret_program::driver::{ConvProblem, Words};

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

/// The engine that computes a forward problem of floats fastest, of those that may: the direct sum or Winograd's tiles of
/// floats, and where products of bf16 are asked for, both of such.
pub fn conv(problem: &ConvProblem<usize>, winograd: Winograd, bf16: bool, device: &DeviceDescription) -> Choice {
    let tiles: &[usize] = match winograd {
        Winograd::Off => &[],
        Winograd::F2 => &[2],
        Winograd::F4 => &[2, 4],
    };
    let rate = device.bf16().filter(|_| bf16 && problem.has_words(Words::Bf16, device.lanes() as usize));
    let floats = Rate { products: 1.0, bytes: 4.0, channels: [1, device.lanes() as usize] };
    let mut all = vec![(Choice::Direct, direct_us(problem, &floats, device))];
    if problem.has_winograd() {
        all.extend(tiles.iter().map(|m| (Choice::Winograd(*m, None), winograd_us(problem, *m, &floats, device))));
    }
    if let Some(products) = rate {
        let pairs = Rate { products, bytes: 2.0, channels: [Words::Bf16.depth(), 32] };
        all.push((Choice::Words(Words::Bf16), direct_us(problem, &pairs, device)));
        // rounding patches of larger tiles would cost more than bf16 does
        if problem.has_winograd() && !tiles.is_empty() {
            all.push((Choice::Winograd(2, Some(Words::Bf16)), winograd_us(problem, 2, &pairs, device)));
        }
    }
    let fastest = all.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
    fastest.map_or(Choice::Direct, |(choice, _)| choice)
}

/// An engine, and what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The direct sum of floats.
    Direct,
    /// That of words.
    Words(Words),
    /// The extent m of Winograd's tiles, of floats or of words.
    Winograd(usize, Option<Words>),
}

/// How factors are multiplied.
struct Rate {
    /// To that of floats.
    products: f64,
    /// Of a factor.
    bytes: f64,
    /// Multiples that input and output channels are filled up to.
    channels: [usize; 2],
}

/// Weights come from memory once; the rest lies in caches.
fn us(flops: f64, efficiency: f64, weights: f64, device: &DeviceDescription) -> f64 {
    let peak = device.core_gflops * f64::from(device.cores);
    (flops / (peak * efficiency)).max(weights / (device.memory_gbps * STREAM)) / 1e3
}

/// Channels as vectors, or words, have them.
fn channels(problem: &ConvProblem<usize>, rate: &Rate) -> (f64, f64) {
    let [inputs, outputs] = rate.channels;
    (problem.in_channels.next_multiple_of(inputs) as f64, problem.out_channels.next_multiple_of(outputs) as f64)
}

fn direct_us(problem: &ConvProblem<usize>, rate: &Rate, device: &DeviceDescription) -> f64 {
    let (i, o) = channels(problem, rate);
    let pixels = (problem.batch * problem.out_spatial.iter().product::<usize>()) as f64;
    let taps = problem.kernel.iter().product::<usize>() as f64;
    us(2.0 * taps * pixels * i * o, DIRECT * rate.products, rate.bytes * taps * i * o, device)
}

fn winograd_us(problem: &ConvProblem<usize>, m: usize, rate: &Rate, device: &DeviceDescription) -> f64 {
    let (i, o) = channels(problem, rate);
    let points = ((m + 2) * (m + 2)) as f64;
    let tiles = (problem.batch * problem.out_spatial.iter().map(|extent| extent.div_ceil(m)).product::<usize>()) as f64;
    let products = us(2.0 * points * tiles * i * o, PRODUCTS * rate.products, rate.bytes * points * i * o, device);
    // Each element of a patch is written and read, each sum of products too: in vectors, at the rate of the second-level
    // cache, which is to the multipliers as so many operations to an element.
    let peak = device.core_gflops * f64::from(device.cores);
    products + TRANSFORM * points * tiles * (i * rate.bytes / 4.0 + o) / peak / 1e3
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
        let choice = |p: &ConvProblem<usize>, allowed| match conv(p, allowed, false, &device) {
            Choice::Winograd(m, None) => Some(m),
            other => {
                assert_eq!(other, Choice::Direct);
                None
            }
        };
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
        assert_eq!(conv(&problem, Winograd::F2, false, &device), Choice::Winograd(2, None));
        device.memory_gbps /= 16.0;
        assert_eq!(conv(&problem, Winograd::F2, false, &device), Choice::Direct);
    }
}
