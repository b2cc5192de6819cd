//! Instances of the tile body, one for each instruction set, kind, height and width.

use super::body::{self, FEW, LANES, PACKED, STRIDED, TABLE};
use super::{Tile, TileFn, TileKind};
use crate::Isa;
use crate::vector::{Portable4, Portable8, Shorts};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m256d, __m512, __m512d};

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<__m512, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512_half<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<crate::vector::Half, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<__m256, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<crate::vector::Neon8, M, N, KIND, 0, 0>(t) }
}

unsafe fn portable<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<Portable8, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512_short<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<Shorts<__m512>, M, N, KIND, 0, 0>(t) }
}

/// As above, in one instruction a product.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn vnni_short<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<Shorts<__m512>, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_short<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<Shorts<__m256>, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon_short<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<Shorts<crate::vector::Neon8>, M, N, KIND, 0, 0>(t) }
}

unsafe fn portable_short<const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    unsafe { body::tile::<Shorts<Portable8>, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512_f64<const M: usize, const N: usize, const KIND: u8>(t: &Tile<f64>) {
    unsafe { body::tile::<__m512d, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_f64<const M: usize, const N: usize, const KIND: u8>(t: &Tile<f64>) {
    unsafe { body::tile::<__m256d, M, N, KIND, 0, 0>(t) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon_f64<const M: usize, const N: usize, const KIND: u8>(t: &Tile<f64>) {
    unsafe { body::tile::<crate::vector::Neon4, M, N, KIND, 0, 0>(t) }
}

unsafe fn portable_f64<const M: usize, const N: usize, const KIND: u8>(t: &Tile<f64>) {
    unsafe { body::tile::<Portable4, M, N, KIND, 0, 0>(t) }
}

/// The kernels of 1, 2, 3, ... rows.
macro_rules! heights {
    ($element:ty, $isa:ident, $n:literal, $kind:ident; $($m:literal)*) => {{
        const KERNELS: &[TileFn<$element>] = &[$($isa::<$m, $n, $kind>),*];
        KERNELS
    }};
}

/// The kernels of one instruction set by kind and vectors.
macro_rules! family {
    ($isa:ident, $kind:ident, $vectors:ident; $($m:literal)*) => {
        match ($kind, $vectors) {
            (TileKind::Lanes, 1) => heights!(f32, $isa, 1, LANES; $($m)*),
            _ => products!(f32, $isa, $kind, $vectors; $($m)*),
        }
    };
}

/// Those that products have.
macro_rules! products {
    ($element:ty, $isa:ident, $kind:ident, $vectors:ident; $($m:literal)*) => {
        match ($kind, $vectors) {
            (TileKind::Packed, 1) => heights!($element, $isa, 1, PACKED; $($m)*),
            (TileKind::Packed, 2) => heights!($element, $isa, 2, PACKED; $($m)*),
            (TileKind::Table, 1) => heights!($element, $isa, 1, TABLE; $($m)*),
            (TileKind::Table, 2) => heights!($element, $isa, 2, TABLE; $($m)*),
            (TileKind::Few, 1) => heights!($element, $isa, 1, FEW; 1 2 3),
            (TileKind::Few, 2) => heights!($element, $isa, 2, FEW; 1 2 3),
            _ => &[],
        }
    };
}

/// The caller has checked that the host supports `isa`.
pub(crate) fn lookup(isa: Isa, kind: TileKind, rows: usize, vectors: usize) -> Option<TileFn> {
    let kernels: &[TileFn] = match isa {
        Isa::Portable => family!(portable, kind, vectors; 1 2 3),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => family!(avx2, kind, vectors; 1 2 3 4 5 6),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => family!(avx512, kind, vectors; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => family!(neon, kind, vectors; 1 2 3 4 5 6),
        _ => &[],
    };
    kernels.get(rows - 1).copied()
}

/// The caller has checked that the host supports `isa`.
pub(crate) fn lookup_half(isa: Isa, kind: TileKind, rows: usize) -> Option<TileFn> {
    let kernels: &[TileFn] = match (isa, kind) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, TileKind::Table) => heights!(f32, avx512_half, 1, TABLE; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        _ => &[],
    };
    kernels.get(rows - 1).copied()
}

/// The caller has checked that the host supports `isa`.
pub(crate) fn lookup_f64(isa: Isa, kind: TileKind, rows: usize, vectors: usize) -> Option<TileFn<f64>> {
    let kernels: &[TileFn<f64>] = match isa {
        Isa::Portable => products!(f64, portable_f64, kind, vectors; 1 2 3),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => products!(f64, avx2_f64, kind, vectors; 1 2 3 4 5 6),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => products!(f64, avx512_f64, kind, vectors; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => products!(f64, neon_f64, kind, vectors; 1 2 3 4 5 6),
        _ => &[],
    };
    kernels.get(rows - 1).copied()
}

/// The caller has checked that the host supports `isa`.
pub(super) fn lookup_short(isa: Isa, kind: TileKind, rows: usize, vectors: usize) -> Option<TileFn> {
    let kernels: &[TileFn] = match isa {
        Isa::Portable => family!(portable_short, kind, vectors; 1 2 3),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => family!(avx2_short, kind, vectors; 1 2 3 4 5 6),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => {
            family!(vnni_short, kind, vectors; 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => family!(avx512_short, kind, vectors; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => family!(neon_short, kind, vectors; 1 2 3 4 5 6),
        _ => &[],
    };
    kernels.get(rows - 1).copied()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512_strided<const M: usize, const STEP: usize, const RUN: usize>(t: &Tile) {
    unsafe { body::tile::<__m512, M, 2, STRIDED, STEP, RUN>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_strided<const M: usize, const STEP: usize, const RUN: usize>(t: &Tile) {
    unsafe { body::tile::<__m256, M, 2, STRIDED, STEP, RUN>(t) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon_strided<const M: usize, const STEP: usize, const RUN: usize>(t: &Tile) {
    unsafe { body::tile::<crate::vector::Neon8, M, 2, STRIDED, STEP, RUN>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512_strided_half<const M: usize, const STEP: usize, const RUN: usize>(t: &Tile) {
    unsafe { body::tile::<crate::vector::Half, M, 1, STRIDED, STEP, RUN>(t) }
}

/// A match from (step, rows, run) to the kernel; steps of one and two pixels in blocked channels and in an image.
macro_rules! strided {
    ($kernel:ident, $key:expr; $($step:literal)*; $rows:tt; $pairs:tt) => {
        match $key { $(($step, rows, run) => strided!(@ $kernel, $step, rows, run; $rows; $pairs),)* _ => None }
    };
    (@ $kernel:ident, $step:literal, $m:ident, $run:ident; ($($rows:literal)*); ($($pair:literal $half:literal)*)) => {
        match ($m, $run) {
            $(($rows, $rows) => Some($kernel::<$rows, $step, $rows> as TileFn),)*
            $(($pair, $half) => Some($kernel::<$pair, $step, $half> as TileFn),)*
            _ => None,
        }
    };
}

/// The caller has checked that the host supports `isa`.
pub(super) fn lookup_strided(isa: Isa, step: usize, rows: usize, run: usize) -> Option<TileFn> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => strided!(avx512_strided, (step, rows, run); 1 2 16 32;
            (1 2 3 4 5 6 7 8 9 10 11 12 13 14); (10 5 12 6 14 7)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => strided!(avx2_strided, (step, rows, run); 1 2 8 16; (1 2 3 4 5 6); ()),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => strided!(neon_strided, (step, rows, run); 1 2 8 16; (1 2 3 4 5 6); ()),
        _ => {
            let _ = (step, rows, run);
            None
        }
    }
}

/// The caller has checked that the host supports `isa`.
pub(super) fn lookup_strided_half(isa: Isa, step: usize, rows: usize, run: usize) -> Option<TileFn> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => strided!(avx512_strided_half, (step, rows, run); 1 2 16;
            (1 2 3 4 5 6 7 8 9 10 11 12 13 14); (10 5 12 6 14 7)),
        _ => {
            let _ = (step, rows, run);
            None
        }
    }
}
