//! What a core reads and copies, by vectors of the instruction set.

use crate::Isa;
use crate::vector::{Vector, by_isa};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Rate at which one core reads `data` over and over, in GB/s, for `span` and at least one pass. `None` if the host lacks
/// the instruction set. How large `data` is says which level of the hierarchy is measured.
pub fn read_bandwidth(isa: Isa, data: &[f32], span: Duration) -> Option<f64> {
    let pass = reader(isa)?;
    let stream = Stream { from: data.as_ptr(), to: std::ptr::null_mut(), n: data.len() };
    // SAFETY: the host has the instruction set.
    Some(rate(std::mem::size_of_val(data), span, || unsafe { pass(&stream) }))
}

/// Rate at which one core copies `from` to `to`, in GB/s, bytes read and written counted, as [`read_bandwidth`] measures.
pub fn copy_bandwidth(isa: Isa, from: &[f32], to: &mut [f32], span: Duration) -> Option<f64> {
    let pass = copier(isa)?;
    let stream = Stream { from: from.as_ptr(), to: to.as_mut_ptr(), n: from.len().min(to.len()) };
    // SAFETY: the host has the instruction set; both are that long.
    Some(rate(8 * stream.n, span, || unsafe { pass(&stream) }))
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

/// Floats to read, or to copy to `to`.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// What is read.
    pub from: *const f32,
    /// Where copies go.
    pub to: *mut f32,
    /// Floats; what is beyond whole vectors is left out.
    pub n: usize,
}

by_isa! {
    /// Reads a [`Stream`]; `None` if the host lacks the instruction set.
    reader = read(Stream)
}

by_isa! {
    /// Copies a [`Stream`]; `None` if the host lacks the instruction set.
    copier = copy(Stream)
}

#[inline(always)]
unsafe fn read<V: Vector>(stream: &Stream) {
    unsafe {
        // eight chains, so that no addition waits for another
        let mut sums = [V::zero(); 8];
        let step = 8 * V::LANES;
        let mut i = 0;
        while i + step <= stream.n {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(V::load(stream.from.add(i + j * V::LANES)));
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
unsafe fn copy<V: Vector>(stream: &Stream) {
    unsafe {
        let mut i = 0;
        while i + V::LANES <= stream.n {
            V::load(stream.from.add(i)).store(stream.to.add(i));
            i += V::LANES;
        }
        black_box(stream.to);
    }
}

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
