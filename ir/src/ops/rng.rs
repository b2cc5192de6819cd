//! `rng`: random bits from a counter.

use super::{InferCx, InferError, Op, Operator, arity, operand};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{TensorType, Type};

/// `(counter) → bits`, u32: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
///
/// Element `e`, counted in row-major order, is word `e mod 4` of the block whose 128-bit counter is, from the lowest word,
/// `e div 4` (64 bits) and the operand (64 bits), under the key `stream`. The operand is an integer scalar that each run
/// advances; streams of different numbers are independent. Equal operands give equal bits on every device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rng {
    /// The type of the result, of u32.
    pub ty: TensorType,
    /// The key.
    pub stream: u64,
}

/// Rounds of [`philox`].
pub const PHILOX_ROUNDS: usize = 10;
/// What a round of [`philox`] multiplies the first and the third word by.
pub const PHILOX_MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What is added to the words of the key of [`philox`] between rounds.
pub const PHILOX_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32-10: ten rounds of two 32-bit products, each with its own step of the key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [PHILOX_MULTIPLIERS[0] as u64, PHILOX_MULTIPLIERS[1] as u64];
    let (mut c, mut k) = (counter, key);
    for round in 0..PHILOX_ROUNDS {
        if round > 0 {
            k = [k[0].wrapping_add(PHILOX_STEPS[0]), k[1].wrapping_add(PHILOX_STEPS[1])];
        }
        let (a, b) = (u64::from(c[0]) * MULTIPLIERS[0], u64::from(c[2]) * MULTIPLIERS[1]);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
    }
    c
}

impl Operator for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let counter = operand(operands, 0)?;
        if !counter.dtype.is_int() || counter.shape.rank() != 0 {
            return Err(format!("the counter must be an integer scalar, not {counter}"));
        }
        if self.ty.dtype != DType::U32 {
            return Err(format!("gives u32, not {}", self.ty));
        }
        Ok(self.ty.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let counter = operands[0].get(0).as_int() as u64;
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let ([low, high], key) = (halves(counter), halves(self.stream));
        let mut out = Tensor::zeros(dtype, &shape);
        for (block, words) in out.as_mut_slice::<u32>().unwrap_or_default().chunks_mut(4).enumerate() {
            let [a, b] = halves(block as u64);
            words.copy_from_slice(&philox([a, b, low, high], key)[..words.len()]);
        }
        Ok(vec![out])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        // the text of an integer is signed
        vec![("stream", Attr::Int(self.stream as i64))]
    }

    fn no_gradient(&self) -> Option<&'static str> {
        Some("its result is bits of a counter")
    }

    /// Two products, four exclusive ors and two additions in each of ten rounds, for four elements.
    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        super::elements(result) * Dim::from(20)
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "rng" => Rng { ty: a.tensor_type()?, stream: a.int("stream")? as u64 }.into(),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::philox;

    /// The known answers that the authors publish with Random123 (`kat_vectors`, philox 4x32 10).
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox(pi, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }
}
