//! Instruction sets.

use crate::Element;
use std::fmt;

/// An instruction set for which this crate has kernels.
///
/// The order is that of preference: a greater one is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust over groups of eight floats; runs everywhere. Multiplies and adds are rounded separately.
    Portable,
    /// NEON of AArch64, two registers to a vector.
    Neon,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, DQ, BW, VL.
    Avx512,
}

impl Isa {
    /// All instruction sets, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512];

    /// The best instruction set of the host.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_supported()).unwrap_or(Isa::Portable)
    }

    /// Whether the host can run kernels of this instruction set.
    pub fn is_supported(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            _ => false,
        }
    }

    /// Floats in one vector: the `L` of every blocked layout. 16 with AVX-512, else 8.
    pub const fn lanes_f32(self) -> usize {
        match self {
            Isa::Avx512 => 16,
            Isa::Avx2 | Isa::Neon | Isa::Portable => 8,
        }
    }

    /// Elements in one vector of a type: half of [`lanes_f32`](Isa::lanes_f32) for `f64`.
    pub const fn lanes<E: Element>(self) -> usize {
        self.lanes_f32() * size_of::<f32>() / size_of::<E>()
    }

    /// The lower-case name, as in device descriptions.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// The instruction set of that [`name`](Isa::name).
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
