//! Executable memory for JIT-compiled kernels: written first, then made executable, never both.

use std::io;
use std::ptr::NonNull;

/// Machine code of one function, as the compiler left it.
#[derive(Clone, Debug)]
pub struct Function<'a, S> {
    /// Code and its constants.
    pub bytes: &'a [u8],
    /// Offset of the entry in `bytes`.
    pub entry: usize,
    /// 8-byte absolute addresses to fill in.
    pub relocations: Vec<Relocation<'a, S>>,
}

/// A place that holds an absolute 8-byte address: of the symbol, plus the addend.
#[derive(Clone, Debug)]
pub struct Relocation<'a, S> {
    /// Offset in the function's bytes.
    pub offset: usize,
    /// The symbol.
    pub symbol: &'a S,
    /// Added to its address.
    pub addend: i64,
}

/// Why code could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The system refused the mapping.
    #[error("cannot map {bytes} bytes of code")]
    Map {
        /// How many bytes.
        bytes: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A function that code calls does not exist in this process.
    #[error("code calls an unknown function: {symbol}")]
    Symbol {
        /// The symbol.
        symbol: String,
    },
    /// An entry or a relocation lies outside the code.
    #[error("offset {offset} lies outside code of {bytes} bytes")]
    Offset {
        /// The offset.
        offset: usize,
        /// The code's size.
        bytes: usize,
    },
}

/// A mapping that holds functions, read-only and executable; dropping it unmaps them.
#[derive(Debug)]
pub struct Code {
    memory: NonNull<u8>,
    bytes: usize,
    entries: Vec<usize>,
}

// SAFETY: after `map` the memory is never written; addresses may be used from any thread.
unsafe impl Send for Code {}
// SAFETY: as above.
unsafe impl Sync for Code {}

/// Alignment of each function; constants need at most this.
const ALIGNMENT: usize = 64;

impl Code {
    /// Maps functions, each aligned to 64, with the addresses that `resolve` gives.
    ///
    /// ```
    /// # #[cfg(target_arch = "x86_64")] {
    /// use egret_runtime::cpu::code::{Code, Function};
    /// let f = Function::<&str> { bytes: &[0xc3], entry: 0, relocations: vec![] }; // ret
    /// let code = Code::map(&[f], |_| None).unwrap();
    /// // SAFETY: the function takes nothing and only returns.
    /// unsafe { std::mem::transmute::<*const u8, unsafe extern "C" fn()>(code.entry(0).unwrap())() };
    /// # }
    /// ```
    pub fn map<S: std::fmt::Debug>(
        functions: &[Function<'_, S>],
        resolve: impl Fn(&S) -> Option<*const u8>,
    ) -> Result<Code, CodeError> {
        let mut image = Vec::new();
        let mut entries = Vec::with_capacity(functions.len());
        for f in functions {
            image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
            let start = image.len();
            let outside = |offset| CodeError::Offset { offset, bytes: f.bytes.len() };
            if f.entry >= f.bytes.len() {
                return Err(outside(f.entry));
            }
            image.extend_from_slice(f.bytes);
            entries.push(start + f.entry);
            for r in &f.relocations {
                let symbol = || CodeError::Symbol { symbol: format!("{:?}", r.symbol) };
                let address = resolve(r.symbol).ok_or_else(symbol)?;
                let address = (address as u64).wrapping_add_signed(r.addend);
                let end = r.offset.checked_add(8).filter(|&end| end <= f.bytes.len());
                let end = end.ok_or_else(|| outside(r.offset))?;
                image[start + r.offset..start + end].copy_from_slice(&address.to_le_bytes());
            }
        }
        let memory = map_executable(&image)?;
        Ok(Code { memory, bytes: image.len().max(1), entries })
    }

    /// Address of the i-th function; valid as long as this value.
    pub fn entry(&self, i: usize) -> Option<*const u8> {
        let offset = *self.entries.get(i)?;
        // SAFETY: `map` checked that the offset lies in the mapping.
        Some(unsafe { self.memory.as_ptr().add(offset) })
    }

    /// How many functions there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this size, and nothing borrows from it.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

fn map_executable(image: &[u8]) -> Result<NonNull<u8>, CodeError> {
    let bytes = image.len().max(1);
    let failed = || CodeError::Map { bytes, source: io::Error::last_os_error() };
    // SAFETY: a fresh private mapping, written within its size, unmapped where protection fails.
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if memory == libc::MAP_FAILED {
            return Err(failed());
        }
        std::ptr::copy_nonoverlapping(image.as_ptr(), memory.cast::<u8>(), image.len());
        if libc::mprotect(memory, bytes, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            let error = failed();
            libc::munmap(memory, bytes);
            return Err(error);
        }
        #[cfg(target_arch = "aarch64")]
        flush_instruction_cache(memory.cast(), bytes);
        NonNull::new(memory.cast()).ok_or_else(failed)
    }
}

/// Makes what was written visible to instruction fetch.
#[cfg(target_arch = "aarch64")]
unsafe fn flush_instruction_cache(start: *mut u8, bytes: usize) {
    unsafe extern "C" {
        fn __clear_cache(start: *mut u8, end: *mut u8);
    }
    // SAFETY: the range is mapped.
    unsafe { __clear_cache(start, start.add(bytes)) }
}

macro_rules! libm {
    ($($name:ident $name_f:ident ($($x:ident),*) $body:expr;)*) => {
        $(
            extern "C" fn $name($($x: f64),*) -> f64 { $body }
            extern "C" fn $name_f($($x: f32),*) -> f32 { $body }
        )*
        /// The scalar functions that code may call, by their C names (`exp` for `f64`, `expf` for `f32`), and powers of
        /// integers.
        pub fn scalar_function(name: &str) -> Option<*const u8> {
            $(
                if name == stringify!($name) { return Some($name as *const u8); }
                if name == stringify!($name_f) { return Some($name_f as *const u8); }
            )*
            match name {
                "erf" => Some(erf as *const u8),
                "erff" => Some(erff as *const u8),
                "pow_i64" => Some(pow_i64 as *const u8),
                "pow_u64" => Some(pow_u64 as *const u8),
                _ => None,
            }
        }
    };
}

libm! {
    exp expf (x) x.exp();
    expm1 expm1f (x) x.exp_m1();
    log logf (x) x.ln();
    log1p log1pf (x) x.ln_1p();
    tanh tanhf (x) x.tanh();
    sin sinf (x) x.sin();
    cos cosf (x) x.cos();
    tan tanf (x) x.tan();
    asin asinf (x) x.asin();
    acos acosf (x) x.acos();
    atan atanf (x) x.atan();
    pow powf (x, y) x.powf(y);
    fmod fmodf (x, y) x % y;
}

/// Integer power as the reference computes it, modulo 2⁶⁴.
extern "C" fn pow_i64(x: i64, y: i64) -> i64 {
    match u64::try_from(y) {
        Ok(y) => x.wrapping_pow(exponent(y)),
        Err(_) => i64::from(x == 1),
    }
}

/// As [`pow_i64`], of unsigned numbers.
extern "C" fn pow_u64(x: u64, y: u64) -> u64 {
    x.wrapping_pow(exponent(y))
}

fn exponent(y: u64) -> u32 {
    u32::try_from(y).unwrap_or(u32::MAX)
}

unsafe extern "C" {
    fn erf(x: f64) -> f64;
    fn erff(x: f32) -> f32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_lies_outside() {
        let relocation = Relocation { offset: 1, symbol: &"exp", addend: 0 };
        let f = Function { bytes: &[0; 8], entry: 0, relocations: vec![relocation] };
        let mapped = Code::map(&[f], |name| scalar_function(name));
        assert!(matches!(mapped, Err(CodeError::Offset { offset: 1, bytes: 8 })));
        let f = Function::<&str> { bytes: &[], entry: 0, relocations: vec![] };
        assert!(matches!(Code::map(&[f], |_| None), Err(CodeError::Offset { .. })));
        let relocation = Relocation { offset: 0, symbol: &"nothing", addend: 0 };
        let f = Function { bytes: &[0; 8], entry: 0, relocations: vec![relocation] };
        let mapped = Code::map(&[f], |name| scalar_function(name));
        assert!(matches!(mapped, Err(CodeError::Symbol { symbol }) if symbol.contains("nothing")));
    }
}
