//! Vector mathematics on strips of floats.
//!
//! Each function is a polynomial or rational form written once over the vectors of all instruction sets. An element's
//! result depends on nothing but its value: tails go through the same vector code under a mask. NaN gives NaN, and
//! infinities give the limits.

mod functions;
#[cfg(test)]
mod tests;

use crate::Isa;
use crate::vector::{Portable8, Vector};
pub(crate) use functions::exp;

/// `dst[i] = f(src[i])` for `i < n`. `dst` may be `src`.
///
/// # Safety
/// The host has the instruction set; both pointers are valid for `n` floats and are equal or do not overlap.
pub type VectorFn = unsafe extern "C" fn(dst: *mut f32, src: *const f32, n: usize);

/// The functions that exist, with their greatest error in units in the last place (measured against f64 in the tests,
/// on all instruction sets).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VectorFunction {
    /// e^x, 1.5 ulp; subnormal results to half the least float more.
    Exp,
    /// Natural logarithm, 2 ulp; -inf at zero, NaN below.
    Log,
    /// Hyperbolic tangent, 2 ulp.
    Tanh,
    /// Error function, 2 ulp.
    Erf,
    /// 1 / (1 + e^-x), 2.5 ulp.
    Sigmoid,
    /// Sine, 2 ulp or 2^-24 absolutely, whichever is greater; any argument.
    Sin,
    /// Cosine, 2 ulp or 2^-24 absolutely, whichever is greater; any argument.
    Cos,
    /// e^x - 1, 2.5 ulp.
    Expm1,
    /// log(1 + x), 2.5 ulp.
    Log1p,
}

impl VectorFunction {
    /// All of them.
    pub const ALL: [VectorFunction; 9] = [
        VectorFunction::Exp,
        VectorFunction::Log,
        VectorFunction::Tanh,
        VectorFunction::Erf,
        VectorFunction::Sigmoid,
        VectorFunction::Sin,
        VectorFunction::Cos,
        VectorFunction::Expm1,
        VectorFunction::Log1p,
    ];

    /// The name under which generated code calls it.
    pub const fn name(self) -> &'static str {
        match self {
            VectorFunction::Exp => "exp",
            VectorFunction::Log => "log",
            VectorFunction::Tanh => "tanh",
            VectorFunction::Erf => "erf",
            VectorFunction::Sigmoid => "sigmoid",
            VectorFunction::Sin => "sin",
            VectorFunction::Cos => "cos",
            VectorFunction::Expm1 => "expm1",
            VectorFunction::Log1p => "log1p",
        }
    }

    /// The function of that [`name`](VectorFunction::name).
    pub fn from_name(name: &str) -> Option<VectorFunction> {
        VectorFunction::ALL.into_iter().find(|f| f.name() == name)
    }
}

#[inline(always)]
unsafe fn strip<V: Vector>(dst: *mut f32, src: *const f32, n: usize, f: impl Fn(V) -> V) {
    unsafe {
        let mut i = 0;
        while i + V::LANES <= n {
            f(V::load(src.add(i))).store(dst.add(i));
            i += V::LANES;
        }
        if i < n {
            let mask = V::first(n - i);
            f(V::load_masked(src.add(i), mask)).store_masked(dst.add(i), mask);
        }
    }
}

macro_rules! instances {
    ($($variant:ident $function:ident,)*) => {
        mod portable {
            use super::{Portable8, functions, strip};
            $(pub(super) unsafe extern "C" fn $function(dst: *mut f32, src: *const f32, n: usize) {
                unsafe { strip::<Portable8>(dst, src, n, |x| functions::$function(x)) }
            })*
        }
        #[cfg(target_arch = "aarch64")]
        mod neon {
            use super::{functions, strip};
            use crate::vector::Neon8;
            $(#[target_feature(enable = "neon")]
            pub(super) unsafe extern "C" fn $function(dst: *mut f32, src: *const f32, n: usize) {
                unsafe { strip::<Neon8>(dst, src, n, #[inline(always)] |x| functions::$function(x)) }
            })*
        }
        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            use super::{functions, strip};
            use std::arch::x86_64::__m256;
            $(#[target_feature(enable = "avx2,fma")]
            pub(super) unsafe extern "C" fn $function(dst: *mut f32, src: *const f32, n: usize) {
                unsafe { strip::<__m256>(dst, src, n, #[inline(always)] |x| functions::$function(x)) }
            })*
        }
        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            use super::{functions, strip};
            use std::arch::x86_64::__m512;
            $(#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            pub(super) unsafe extern "C" fn $function(dst: *mut f32, src: *const f32, n: usize) {
                unsafe { strip::<__m512>(dst, src, n, #[inline(always)] |x| functions::$function(x)) }
            })*
        }

        /// The function for `isa`; `None` if the host lacks it.
        pub fn vector_function(isa: Isa, function: VectorFunction) -> Option<VectorFn> {
            isa.is_supported().then_some(match (isa, function) {
                $(
                    #[cfg(target_arch = "aarch64")]
                    (Isa::Neon, VectorFunction::$variant) => neon::$function,
                    #[cfg(target_arch = "x86_64")]
                    (Isa::Avx512, VectorFunction::$variant) => avx512::$function,
                    #[cfg(target_arch = "x86_64")]
                    (Isa::Avx2, VectorFunction::$variant) => avx2::$function,
                    (_, VectorFunction::$variant) => portable::$function,
                )*
            })
        }
    };
}

instances! {
    Exp exp,
    Log log,
    Tanh tanh,
    Erf erf,
    Sigmoid sigmoid,
    Sin sin,
    Cos cos,
    Expm1 expm1,
    Log1p log1p,
}
