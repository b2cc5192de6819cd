//! The ceiling that other figures are measured against.

use crate::Isa;
use crate::vector::{Portable8, Vector};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Multiply-add rate of one core in GFLOP/s, from independent chains in registers, over `span` and at least one round of
/// a quarter of a millisecond. `None` if the host lacks the instruction set.
///
/// Clocks move with the neighbours and fall after a few milliseconds of wide vectors (a burst is up to a tenth above
/// what lasts), so measure it in turn with what it is compared to, and as long.
pub fn peak(isa: Isa, span: Duration) -> Option<f64> {
    if !isa.is_supported() {
        return None;
    }
    const STEPS: usize = 100_000;
    let chains = match isa {
        Isa::Portable => 4,
        _ => CHAINS,
    };
    let start = Instant::now();
    let mut rounds_run = 0usize;
    loop {
        // SAFETY: support was checked above.
        unsafe {
            match isa {
                Isa::Portable => rounds::<Portable8, 4>(STEPS),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2(STEPS),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512(STEPS),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => neon(STEPS),
                _ => return None,
            }
        }
        rounds_run += 1;
        let elapsed = start.elapsed();
        if elapsed >= span {
            let flops = (rounds_run * STEPS * chains * isa.lanes_f32() * 2) as f64;
            return Some(flops / elapsed.as_secs_f64() / 1e9);
        }
    }
}

const CHAINS: usize = 12;

#[inline(always)]
unsafe fn rounds<V: Vector, const N: usize>(steps: usize) {
    unsafe {
        let a = V::splat(black_box(0.999_999));
        let b = V::splat(black_box(1e-9));
        let mut acc = [V::splat(1.0); N];
        for _ in 0..steps {
            for x in &mut acc {
                *x = x.fma(a, b);
            }
        }
        let mut sum = acc[0];
        for x in &acc[1..] {
            sum = sum.add(*x);
        }
        let mut out = [0f32; 16];
        sum.store(out.as_mut_ptr());
        black_box(out);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512(steps: usize) {
    unsafe { rounds::<std::arch::x86_64::__m512, CHAINS>(steps) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(steps: usize) {
    unsafe { rounds::<crate::vector::Neon8, CHAINS>(steps) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(steps: usize) {
    unsafe { rounds::<std::arch::x86_64::__m256, CHAINS>(steps) }
}
