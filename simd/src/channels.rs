//! Rows of pixels whose lanes are lanes of other rows.

use crate::vector::{Vector, by_isa};

/// The most lanes that a vector has on any instruction set, and so the most rows that one row is taken from.
pub const MAX_LANES: usize = 16;

/// Which lane of a source each lane takes; negative where another source has it.
pub type Taken = [i32; MAX_LANES];

/// Rows of a block that lanes are taken from. Distances are in floats.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The first pixel.
    pub at: *const f32,
    /// From a row to the next.
    pub row: usize,
}

/// Rows of one block of channels. All distances are in floats.
///
/// ```text
/// for i in 0..rows, j in 0..pixels, l in 0..L
///     dst[i dst_row + j L + l] = sources[s].at[i sources[s].row + j L + taken[s][l]]   of the last s where taken[s][l] >= 0
/// ```
///
/// Lanes that no source has are zero.
#[derive(Clone, Copy, Debug)]
pub struct ChannelRows {
    /// Where it goes.
    pub dst: *mut f32,
    /// From a row to the next.
    pub dst_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Pixels in a row.
    pub pixels: usize,
    /// `count` blocks that lanes come from.
    pub sources: *const Source,
    /// What is taken of each.
    pub taken: *const Taken,
    /// Number of blocks.
    pub count: usize,
}

by_isa! {
    /// The kernel for `isa`; `None` if the host lacks it.
    channel_rows = rows(ChannelRows)
}

#[inline(always)]
unsafe fn rows<V: Vector>(all: &ChannelRows) {
    for row in 0..all.rows {
        let dst = all.dst.wrapping_add(row * all.dst_row);
        let mut pixel = 0;
        // SAFETY: pixels of the rows.
        unsafe {
            while pixel + 4 <= all.pixels {
                pixels::<V, 4>(all, row, pixel, dst);
                pixel += 4;
            }
            while pixel < all.pixels {
                pixels::<V, 1>(all, row, pixel, dst);
                pixel += 1;
            }
        }
    }
}

/// `N` pixels at once, so that they do not wait for each other.
#[inline(always)]
unsafe fn pixels<V: Vector, const N: usize>(all: &ChannelRows, row: usize, pixel: usize, dst: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        let mut made = [V::zero(); N];
        for s in 0..all.count {
            let source = &*all.sources.add(s);
            let from = source.at.wrapping_add(row * source.row + pixel * V::LANES);
            let taken = V::load(all.taken.add(s).cast());
            for (i, made) in made.iter_mut().enumerate() {
                *made = made.take(V::load(from.wrapping_add(i * V::LANES)), taken);
            }
        }
        for (i, made) in made.iter().enumerate() {
            made.store(dst.wrapping_add((pixel + i) * V::LANES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn lanes_of_three_blocks() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let l = isa.lanes_f32();
            let (rows, pixels, src_row, dst_row) = (3, 7, 9 * l, 8 * l);
            // bits that are no numbers stay what they are
            let src: Vec<f32> = (0..3 * rows * src_row).map(|i| f32::from_bits(0x7f80_0000 + i as u32)).collect();
            let mut taken = [[-1; MAX_LANES]; 3];
            let (from, lane) = (|lane: usize| lane % 4, |lane: usize| (lane * 5 + 3) % l);
            for at in (0..l).filter(|at| from(*at) < 3) {
                taken[from(at)][at] = lane(at) as i32;
            }
            let sources: Vec<Source> =
                (0..3).map(|s| Source { at: src[s * rows * src_row..].as_ptr(), row: src_row }).collect();
            let mut dst = vec![9.0; rows * dst_row];
            let all = ChannelRows {
                dst: dst.as_mut_ptr(),
                dst_row,
                rows,
                pixels,
                sources: sources.as_ptr(),
                taken: taken.as_ptr(),
                count: 3,
            };
            unsafe { channel_rows(isa).unwrap()(&all) };
            for (i, got) in dst.iter().enumerate() {
                let (row, pixel, at) = (i / dst_row, i % dst_row / l, i % l);
                let want = match (pixel < pixels, from(at)) {
                    (false, _) => 9.0,
                    (true, 3) => 0.0,
                    (true, s) => src[(s * rows + row) * src_row + pixel * l + lane(at)],
                };
                assert_eq!(got.to_bits(), want.to_bits(), "{isa} row {row} pixel {pixel} lane {at}");
            }
        }
    }
}
