//! AMX, in inline assembly: its intrinsics are not stable. No other code of the process touches tile registers, and each
//! thread's are configured only within [`Configured`].

use super::{COLUMNS, WORDS, WordTile};
use crate::vector::prefetch;
use std::arch::asm;
use std::sync::OnceLock;

/// Rows of a tile register.
const HALF: usize = 16;

/// Whether the processor has AMX with bf16 and the system lets the process use it. The first call asks the system.
pub(super) fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        const LEAF: u32 = 7;
        let (most, _) = std::arch::x86_64::__get_cpuid_max(0);
        most >= LEAF
            && std::arch::x86_64::__cpuid_count(LEAF, 0).edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE
            && request_permission()
    })
}

/// Linux saves tile registers only for processes that asked: `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`.
fn request_permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of the process.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight registers of 16 rows of 64 bytes.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Tile registers of this thread in use; they are released in the end, because a switch of threads would save them.
pub(super) struct Configured(());

impl Configured {
    /// # Safety
    /// The host has AMX and the process may use it.
    pub(super) unsafe fn new() -> Configured {
        // SAFETY: the caller's.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly, preserves_flags)) };
        Configured(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: configured by `new` on this thread.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// # Safety
/// [`Configured`] on this thread; what the fields name is readable and writable.
pub(super) unsafe fn tile(t: &WordTile) {
    // SAFETY: the caller's.
    unsafe { if t.rows > HALF { whole(t) } else { half(t) } }
}

/// Up to 32 rows: registers 0 to 3 hold the sums.
unsafe fn whole(t: &WordTile) {
    // SAFETY: the caller's.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        let mut b = t.b;
        let mut ahead = t.prefetch;
        for i in 0..t.tap_count {
            let a = t.a.add(*t.taps.add(i));
            asm!(
                "tileloadd tmm6, [{b} + {b_row}*1]",
                "tileloadd tmm4, [{a} + {a_row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {b_row}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + {a_row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                a = in(reg) a,
                lower = in(reg) a.wrapping_add(HALF * t.a_row),
                a_row = in(reg) 4 * t.a_row,
                b = in(reg) b,
                b_row = in(reg) 4 * COLUMNS,
                options(nostack, readonly, preserves_flags)
            );
            for _ in 0..t.prefetch_lines {
                prefetch(ahead);
                ahead = ahead.wrapping_add(16);
            }
            b = b.wrapping_add(WORDS * COLUMNS);
        }
        asm!(
            "tilestored [{acc} + {row}*1], tmm0",
            "tilestored [{acc} + {row}*1 + 64], tmm1",
            "tilestored [{acc} + {row}*1 + 2048], tmm2",
            "tilestored [{acc} + {row}*1 + 2112], tmm3",
            acc = in(reg) t.acc,
            row = in(reg) 4 * COLUMNS,
            options(nostack, preserves_flags)
        );
    }
}

/// Up to 16 rows.
unsafe fn half(t: &WordTile) {
    // SAFETY: the caller's.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        let mut b = t.b;
        let mut ahead = t.prefetch;
        for i in 0..t.tap_count {
            asm!(
                "tileloadd tmm4, [{a} + {a_row}*1]",
                "tileloadd tmm6, [{b} + {b_row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {b_row}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                a = in(reg) t.a.add(*t.taps.add(i)),
                a_row = in(reg) 4 * t.a_row,
                b = in(reg) b,
                b_row = in(reg) 4 * COLUMNS,
                options(nostack, readonly, preserves_flags)
            );
            for _ in 0..t.prefetch_lines {
                prefetch(ahead);
                ahead = ahead.wrapping_add(16);
            }
            b = b.wrapping_add(WORDS * COLUMNS);
        }
        asm!(
            "tilestored [{acc} + {row}*1], tmm0",
            "tilestored [{acc} + {row}*1 + 64], tmm1",
            acc = in(reg) t.acc,
            row = in(reg) 4 * COLUMNS,
            options(nostack, preserves_flags)
        );
    }
}
