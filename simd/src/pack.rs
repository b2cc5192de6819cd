//! Packed forms of weights and matrices.
//!
//! | what | form |
//! |---|---|
//! | convolution weights | `[group][outputs/2L][phase][inputs/B][taps of the phase][B][2L]`, `B` = L on blocked channels, 1 on a row-major image |
//! | depthwise weights | `[channels/L][phase][taps of the phase][L]` |
//! | columns of a matrix (operand B) | `[columns/2L][k][2L]` |
//! | rows of a matrix (operand A) | `[rows/R][k][R]`, the last panel as narrow as it must be |
//!
//! Rows, columns and channels that do not exist are zero. A *phase* is a set of kernel taps that are used together: a
//! forward convolution has one with all taps, the gradient of a strided one has several.

use crate::{Isa, TransposeFn, transpose};

/// The shape of packed convolution weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvPanels {
    /// Floats in a vector, `L`.
    pub lanes: usize,
    /// Inputs in a block: `L`, or 1 for a row-major image.
    pub block: usize,
    /// Groups.
    pub groups: usize,
    /// Output channels of a group.
    pub outputs: usize,
    /// Input channels of a group.
    pub inputs: usize,
    /// Kernel taps of each phase, as indices into the row-major kernel.
    pub phases: Vec<Vec<usize>>,
}

impl ConvPanels {
    /// Panels of `2 L` outputs in a group.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(2 * self.lanes)
    }

    /// Floats from the beginning of a panel to that of a phase in it.
    pub fn phase_offset(&self, phase: usize) -> usize {
        let taps: usize = self.phases[..phase].iter().map(Vec::len).sum();
        taps * self.steps_per_tap() * 2 * self.lanes
    }

    /// Floats in one panel.
    pub fn panel_len(&self) -> usize {
        self.phase_offset(self.phases.len())
    }

    /// Floats in all.
    pub fn len(&self) -> usize {
        self.groups * self.panels() * self.panel_len()
    }

    /// Whether there are no weights at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn steps_per_tap(&self) -> usize {
        self.inputs.next_multiple_of(self.block)
    }

    /// Packs; `at(group, output, input, tap)` is the index of a weight in `src`.
    ///
    /// # Panics
    /// If `dst` is shorter than [`len`](ConvPanels::len) or an index lies outside `src`.
    pub fn pack(&self, dst: &mut [f32], src: &[f32], at: impl Fn(usize, usize, usize, usize) -> usize) {
        let width = 2 * self.lanes;
        let mut rows = dst[..self.len()].chunks_exact_mut(width);
        for group in 0..self.groups {
            for panel in 0..self.panels() {
                for taps in &self.phases {
                    for block in (0..self.inputs).step_by(self.block) {
                        for &tap in taps {
                            for input in block..block + self.block {
                                let row = rows.next().expect("as many rows as len counts");
                                for (lane, x) in row.iter_mut().enumerate() {
                                    let output = panel * width + lane;
                                    let exists = output < self.outputs && input < self.inputs;
                                    *x = if exists { src[at(group, output, input, tap)] } else { 0.0 };
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Packs depthwise weights `[channels][taps]` by phases (see the module's table).
///
/// # Panics
/// If a slice is too short.
pub fn depthwise_weights(
    dst: &mut [f32],
    src: &[f32],
    channels: usize,
    taps: usize,
    phases: &[Vec<usize>],
    lanes: usize,
) {
    let used: usize = phases.iter().map(Vec::len).sum();
    for block in 0..channels.div_ceil(lanes) {
        for (k, &tap) in phases.iter().flatten().enumerate() {
            for lane in 0..lanes {
                let channel = block * lanes + lane;
                dst[(block * used + k) * lanes + lane] =
                    if channel < channels { src[channel * taps + tap] } else { 0.0 };
            }
        }
    }
}

/// Floats in `[columns/2L][k][2L]`.
pub fn column_panels_len(k: usize, columns: usize, lanes: usize) -> usize {
    columns.div_ceil(2 * lanes) * 2 * lanes * k
}

/// A packer of matrix panels.
#[derive(Clone, Copy, Debug)]
pub struct PanelPacker {
    transpose: TransposeFn,
}

impl PanelPacker {
    /// `None` if the host lacks the instruction set.
    pub fn new(isa: Isa) -> Option<PanelPacker> {
        Some(PanelPacker { transpose: transpose(isa)? })
    }

    /// Writes one panel `dst[k][width]`, `dst[i][j] = src[i * k_stride + j * stride]` for `j < count`, zero for the
    /// other `j < width`.
    ///
    /// # Safety
    /// `dst` is writable for `k * width` floats, `src` readable at the elements named.
    pub unsafe fn panel(
        &self,
        dst: *mut f32,
        width: usize,
        src: *const f32,
        k_stride: usize,
        stride: usize,
        k: usize,
        count: usize,
    ) {
        unsafe {
            if stride == 1 {
                for i in 0..k {
                    std::ptr::copy_nonoverlapping(src.add(i * k_stride), dst.add(i * width), count);
                }
            } else if k_stride == 1 {
                (self.transpose)(dst, width, src, stride, count, k);
            } else {
                for i in 0..k {
                    for j in 0..count {
                        *dst.add(i * width + j) = *src.add(i * k_stride + j * stride);
                    }
                }
            }
            if count < width {
                for i in 0..k {
                    std::ptr::write_bytes(dst.add(i * width + count), 0, width - count);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolution() {
        let shape =
            ConvPanels { lanes: 8, block: 8, groups: 1, outputs: 17, inputs: 3, phases: vec![vec![0, 1, 2, 3]] };
        assert_eq!((shape.panels(), shape.len()), (2, 2 * 4 * 8 * 16));
        let src: Vec<f32> = (0..17 * 3 * 4).map(|x| x as f32 + 1.0).collect();
        let mut dst = vec![-1.0; shape.len()];
        shape.pack(&mut dst, &src, |_, o, i, t| (o * 3 + i) * 4 + t);
        let at = |panel: usize, tap: usize, i: usize, o: usize| dst[((panel * 4 + tap) * 8 + i) * 16 + o];
        assert_eq!(at(0, 1, 2, 5), src[(5 * 3 + 2) * 4 + 1]);
        assert_eq!(at(1, 3, 0, 0), src[16 * 12 + 3]);
        assert_eq!((at(1, 3, 0, 1), at(0, 0, 3, 0)), (0.0, 0.0));
    }

    #[test]
    fn panels() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let packer = PanelPacker::new(isa).unwrap();
            let src: Vec<f32> = (0..2000).map(|x| x as f32).collect();
            for (ks, s) in [(1, 40), (40, 1), (3, 40)] {
                let mut dst = vec![-1.0; 10 * 16];
                unsafe { packer.panel(dst.as_mut_ptr(), 16, src.as_ptr(), ks, s, 10, 11) };
                for i in 0..10 {
                    for j in 0..16 {
                        let want = if j < 11 { src[i * ks + j * s] } else { 0.0 };
                        assert_eq!(dst[i * 16 + j], want);
                    }
                }
            }
        }
    }
}
