//! What a core reads and copies, by vectors of the instruction set.

use crate::Isa;
use crate::vector::{Portable8, Vector};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Rate at which one core reads `data` over and over, in GB/s, for `span` and at least one pass. `None` if the host lacks
/// the instruction set. How large `data` is says which level of the hierarchy is measured.
pub fn read_bandwidth(isa: Isa, data: &[f32], span: Duration) -> Option<f64> {
    let pass = passes(isa)?.0;
    // SAFETY: the host has the instruction set.
    Some(rate(std::mem::size_of_val(data), span, || unsafe { pass(data.as_ptr(), data.len()) }))
}

/// Rate at which one core copies `from` to `to`, in GB/s, bytes read and written counted, as [`read_bandwidth`] measures.
pub fn copy_bandwidth(isa: Isa, from: &[f32], to: &mut [f32], span: Duration) -> Option<f64> {
    let pass = passes(isa)?.1;
    let n = from.len().min(to.len());
    // SAFETY: the host has the instruction set; both are that long.
    Some(rate(8 * n, span, || unsafe { pass(to.as_mut_ptr(), from.as_ptr(), n) }))
}

fn rate(bytes: usize, span: Duration, mut pass: impl FnMut()) -> f64 {
    pass();
    let (start, mut passes) = (Instant::now(), 0usize);
    loop {
        pass();
        passes += 1;
        let elapsed = start.elapsed();
        if elapsed >= span {
            return (bytes * passes) as f64 / elapsed.as_secs_f64() / 1e9;
        }
    }
}

type Read = unsafe fn(*const f32, usize);
type Copy = unsafe fn(*mut f32, *const f32, usize);

fn passes(isa: Isa) -> Option<(Read, Copy)> {
    isa.is_supported().then_some(match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (avx512::read as Read, avx512::copy as Copy),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (avx2::read, avx2::copy),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => (neon::read, neon::copy),
        _ => (portable::read as Read, portable::copy as Copy),
    })
}

#[inline(always)]
unsafe fn read<V: Vector>(data: *const f32, n: usize) {
    unsafe {
        // eight chains, so that no addition waits for another
        let mut sums = [V::zero(); 8];
        let step = 8 * V::LANES;
        let mut i = 0;
        while i + step <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(V::load(data.add(i + j * V::LANES)));
            }
            i += step;
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = total.add(*sum);
        }
        let mut out = [0f32; 16];
        total.store(out.as_mut_ptr());
        black_box(out);
    }
}

#[inline(always)]
unsafe fn copy<V: Vector>(to: *mut f32, from: *const f32, n: usize) {
    unsafe {
        let mut i = 0;
        while i + V::LANES <= n {
            V::load(from.add(i)).store(to.add(i));
            i += V::LANES;
        }
        black_box(to);
    }
}

macro_rules! instance {
    ($module:ident, $vector:ty $(, $feature:literal)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::Portable8;

            $(#[target_feature(enable = $feature)])?
            pub(super) unsafe fn read(data: *const f32, n: usize) {
                unsafe { super::read::<$vector>(data, n) }
            }
            $(#[target_feature(enable = $feature)])?
            pub(super) unsafe fn copy(to: *mut f32, from: *const f32, n: usize) {
                unsafe { super::copy::<$vector>(to, from, n) }
            }
        }
    };
}

instance!(portable, Portable8);
#[cfg(target_arch = "aarch64")]
instance!(neon, crate::vector::Neon8, "neon");
#[cfg(target_arch = "x86_64")]
instance!(avx2, std::arch::x86_64::__m256, "avx2,fma");
#[cfg(target_arch = "x86_64")]
instance!(avx512, std::arch::x86_64::__m512, "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_that_is_here_has_a_rate() {
        let (from, mut to) = (vec![1.5f32; 1000], vec![0f32; 1000]);
        for isa in Isa::ALL {
            let read = read_bandwidth(isa, &from, Duration::from_micros(50));
            let copied = copy_bandwidth(isa, &from, &mut to, Duration::from_micros(50));
            assert_eq!((read.is_some(), copied.is_some()), (isa.is_supported(), isa.is_supported()));
            assert!(read.is_none_or(|rate| rate > 0.0 && rate.is_finite()));
        }
        assert_eq!(from[..992], to[..992], "whole vectors were copied");
    }
}
