//! Zeroing of borders.

/// The border of a blocked tensor `[outer][spatial + 2 halo][lanes]`, extents known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Border {
    pub(crate) outer: usize,
    pub(crate) spatial: [usize; 3],
    pub(crate) halo: [usize; 3],
    pub(crate) lanes: usize,
}

impl Border {
    /// Of up to three spatial axes.
    pub(crate) fn new(outer: usize, spatial: &[usize], halo: &[usize], lanes: usize) -> Option<Border> {
        if spatial.len() != halo.len() || spatial.len() > 3 {
            return None;
        }
        let mut border = Border { outer, spatial: [1; 3], halo: [0; 3], lanes };
        let first = 3 - spatial.len();
        border.spatial[first..].copy_from_slice(spatial);
        border.halo[first..].copy_from_slice(halo);
        Some(border)
    }

    /// Bytes of the tensor, if they fit.
    pub(crate) fn bytes(&self) -> Option<usize> {
        let mut bytes = self.outer.checked_mul(self.lanes)?.checked_mul(size_of::<f32>())?;
        for (s, h) in self.spatial.iter().zip(self.halo) {
            bytes = bytes.checked_mul(s.checked_add(h.checked_mul(2)?)?)?;
        }
        Some(bytes)
    }

    /// Padded rows of an item.
    pub(crate) fn lines(&self) -> usize {
        (self.spatial[0] + 2 * self.halo[0]) * (self.spatial[1] + 2 * self.halo[1])
    }

    /// Zeroes the part of it that is in the padded rows `first..end` of all items.
    ///
    /// # Safety
    /// `tensor` is valid for [`bytes`](Border::bytes), and there are so many rows.
    pub(crate) unsafe fn clear(&self, tensor: *mut f32, first: usize, end: usize) {
        let ([depth, height, width], [hd, hh, hw]) = (self.spatial, self.halo);
        let (row, side) = ((width + 2 * hw) * self.lanes, hw * self.lanes);
        let inside = |line: usize| {
            let (z, y) = (line / (height + 2 * hh), line % (height + 2 * hh));
            (hd..hd + depth).contains(&z) && (hh..hh + height).contains(&y)
        };
        for item in 0..self.outer {
            let start = tensor.wrapping_add(item * self.lines() * row);
            let mut before = false;
            for line in first..end {
                let at = start.wrapping_add(line * row);
                // SAFETY: all within the item, whose end is within the tensor.
                unsafe {
                    if !inside(line) {
                        std::ptr::write_bytes(at, 0, row);
                        before = false;
                        continue;
                    }
                    if side == 0 {
                        continue;
                    }
                    if !before {
                        std::ptr::write_bytes(at, 0, side);
                    }
                    // the end of a row and the start of the next lie side by side
                    before = line + 1 < end && inside(line + 1);
                    std::ptr::write_bytes(at.add(row - side), 0, if before { 2 * side } else { side });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_and_nothing_else() {
        for (spatial, halo) in [
            (vec![3, 4], vec![1, 2]),
            (vec![5], vec![2]),
            (vec![2, 3, 4], vec![1, 0, 2]),
            (vec![3, 1], vec![0, 1]),
            (vec![0, 2], vec![1, 1]),
            (vec![2, 2], vec![3, 0]),
        ] {
            let border = Border::new(2, &spatial, &halo, 8).unwrap();
            let mut tensor = vec![1f32; border.bytes().unwrap() / 4];
            let middle = border.lines() / 2;
            // SAFETY: as long as the border says.
            unsafe {
                border.clear(tensor.as_mut_ptr(), 0, middle);
                border.clear(tensor.as_mut_ptr(), middle, border.lines());
            }
            let extents: Vec<usize> = (0..3).map(|d| border.spatial[d] + 2 * border.halo[d]).collect();
            for (i, x) in tensor.iter().enumerate() {
                let mut rest = i / 8;
                let inside = (0..3).rev().all(|d| {
                    let at = rest % extents[d];
                    rest /= extents[d];
                    at >= border.halo[d] && at < border.halo[d] + border.spatial[d]
                });
                assert_eq!(*x == 1.0, inside, "{spatial:?} {halo:?} {i}");
            }
        }
        assert!(Border::new(1, &[1; 4], &[0; 4], 8).is_none() && Border::new(1, &[1], &[], 8).is_none());
    }
}
