//! What a problem is run on when it is measured.

use egret_ir::random::Random;
use egret_ir::{DType, ScalarValue, Tensor};
use egret_program::Program;

/// Floats are quarters: sums of as many products of two as there may be are exact in `f32`, in whatever order.
const QUARTER: f64 = 4.0;

/// A number of an input: quarters from −1 to 1, bytes up to three, other integers 0 or 1, which are legal indices almost
/// everywhere.
pub(super) fn drawn(random: &mut Random, dtype: DType) -> ScalarValue {
    match dtype {
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 => {
            ScalarValue::Float((random.below(9) as f64 - QUARTER) / QUARTER)
        }
        DType::I8 => ScalarValue::Int(random.below(7) as i128 - 3),
        DType::U8 => ScalarValue::Int(random.below(4) as i128),
        _ => ScalarValue::Int(random.below(2) as i128),
    }
}

/// Drawn inputs of a problem's program by name, the same for each of its candidates; `None` where one is beyond what memory
/// can have.
pub fn inputs(program: &Program) -> Option<Vec<(String, Tensor)>> {
    program
        .inputs
        .iter()
        .map(|port| {
            let shape = port.ty.shape.constant()?;
            let shape: Vec<usize> = shape.into_iter().map(|n| usize::try_from(n).ok()).collect::<Option<_>>()?;
            let mut random = Random::new(seed(&port.name));
            let mut tensor = Tensor::zeros(port.ty.dtype, &shape);
            // a period that no extent is a multiple of
            let period: Vec<ScalarValue> = (0..PERIOD).map(|_| drawn(&mut random, port.ty.dtype)).collect();
            fill(&mut tensor, &period);
            Some((port.name.clone(), tensor))
        })
        .collect()
}

/// Numbers that are drawn of an input, repeated to its end: a prime, so that no two rows are alike.
const PERIOD: usize = 8191;

fn seed(name: &str) -> u64 {
    egret_program::fingerprint(&[name.as_bytes()]) as u64
}

/// Fills a tensor with a list over and over.
fn fill(tensor: &mut Tensor, period: &[ScalarValue]) {
    let first = period.len().min(tensor.elements());
    for (i, value) in period[..first].iter().enumerate() {
        tensor.set(i, *value);
    }
    let size = tensor.dtype().size();
    let bytes = tensor.bytes_mut();
    let (mut filled, total) = (first * size, bytes.len());
    while filled < total {
        let more = filled.min(total - filled);
        bytes.copy_within(0..more, filled);
        filled += more;
    }
}
