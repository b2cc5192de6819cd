//! Packed forms of weights and matrices.
//!
//! | what | form |
//! |---|---|
//! | convolution weights | `[panel][phase][segment of inputs][taps of the phase][inputs of the segment][2L]` |
//! | depthwise weights | `[channels/L][phase][taps of the phase][L]` |
//! | columns of a matrix (operand B) | `[columns/2L][k][2L]` |
//! | rows of a matrix (operand A) | `[rows/R][k][R]`, the last panel as narrow as it must be |
//!
//! Panels and segments are those of [`ConvPanels`]. Rows, columns and outputs that do not exist are zero. A *phase* is a set of kernel taps that are used together: a
//! forward convolution has one with all taps, the gradient of a strided one has several.

use crate::{Element, Isa, RowsFn, TransposeFn, copy_rows, transpose};

/// The shape of packed convolution weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvPanels {
    /// Floats in a vector, `L`.
    pub lanes: usize,
    /// Channels in a block of the input: `L`, or 1 for a row-major image.
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

/// Outputs of one group in at most two vectors of the blocked channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputPanel {
    /// The group.
    pub group: usize,
    /// Its first output channel, over all groups.
    pub first: usize,
    /// Output channels.
    pub count: usize,
}

/// The panels of all groups: each begins with a vector of the blocked channels, or where its group does within one, so
/// that two groups may share a vector.
pub fn output_panels(groups: usize, outputs: usize, lanes: usize) -> Vec<OutputPanel> {
    let mut panels = Vec::new();
    for group in 0..groups {
        let (mut first, end) = (group * outputs, (group + 1) * outputs);
        while first < end {
            let next = end.min(first / lanes * lanes + 2 * lanes);
            panels.push(OutputPanel { group, first, count: next - first });
            first = next;
        }
    }
    panels
}

/// The inputs of a group, cut where a block of `block` channels ends: over all groups, so that the first may be short.
pub fn input_segments(group: usize, inputs: usize, block: usize) -> Vec<std::ops::Range<usize>> {
    let (mut from, end) = (group * inputs, (group + 1) * inputs);
    let mut segments = Vec::new();
    while from < end {
        let next = end.min((from / block + 1) * block);
        segments.push(from..next);
        from = next;
    }
    segments
}

impl ConvPanels {
    /// Floats from the beginning of a panel to that of a phase in it.
    pub fn phase_offset(&self, phase: usize) -> usize {
        let taps: usize = self.phases[..phase].iter().map(Vec::len).sum();
        taps * self.inputs * 2 * self.lanes
    }

    /// Floats in one panel.
    pub fn panel_len(&self) -> usize {
        self.phase_offset(self.phases.len())
    }

    /// Floats in all.
    pub fn len(&self) -> usize {
        output_panels(self.groups, self.outputs, self.lanes).len() * self.panel_len()
    }

    /// Whether there are no weights at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packs; `at(group, output, input, tap)` is the index of a weight in `src`.
    ///
    /// # Panics
    /// If `dst` is shorter than [`len`](ConvPanels::len) or an index lies outside `src`.
    pub fn pack(&self, dst: &mut [f32], src: &[f32], at: impl Fn(usize, usize, usize, usize) -> usize) {
        let mut rows = dst[..self.len()].chunks_exact_mut(2 * self.lanes);
        for panel in output_panels(self.groups, self.outputs, self.lanes) {
            let (group, lane) = (panel.group, panel.first % self.lanes);
            let output = panel.first - group * self.outputs;
            let segments = input_segments(group, self.inputs, self.block);
            for taps in &self.phases {
                for segment in &segments {
                    for &tap in taps {
                        for input in segment.clone() {
                            let row = rows.next().expect("as many rows as len counts");
                            row.fill(0.0);
                            for (i, x) in row[lane..lane + panel.count].iter_mut().enumerate() {
                                *x = src[at(group, output + i, input - group * self.inputs, tap)];
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

/// Elements in `[columns/2L][k][2L]`.
pub fn column_panels_len(k: usize, columns: usize, lanes: usize) -> usize {
    columns.div_ceil(2 * lanes) * 2 * lanes * k
}

/// A packer of matrix panels.
#[derive(Clone, Copy, Debug)]
pub struct PanelPacker<E = f32> {
    transpose: TransposeFn<E>,
    copy: RowsFn<E>,
}

impl<E: Element> PanelPacker<E> {
    /// `None` if the host lacks the instruction set.
    pub fn new(isa: Isa) -> Option<PanelPacker<E>> {
        Some(PanelPacker { transpose: transpose(isa)?, copy: copy_rows(isa)? })
    }

    /// Writes one panel `dst[k][width]`, `dst[i][j] = src[i * k_stride + j * stride]` for `j < count`, zero for the
    /// other `j < width`.
    ///
    /// # Safety
    /// `dst` is writable for `k * width` elements, `src` readable at the elements named.
    pub unsafe fn panel(
        &self,
        dst: *mut E,
        width: usize,
        src: *const E,
        k_stride: usize,
        stride: usize,
        k: usize,
        count: usize,
    ) {
        unsafe {
            if stride == 1 {
                (self.copy)(dst, width, src, k_stride, k, count);
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
        assert_eq!(shape.len(), 2 * 4 * 3 * 16);
        let src: Vec<f32> = (0..17 * 3 * 4).map(|x| x as f32 + 1.0).collect();
        let mut dst = vec![-1.0; shape.len()];
        shape.pack(&mut dst, &src, |_, o, i, t| (o * 3 + i) * 4 + t);
        let at = |panel: usize, tap: usize, i: usize, o: usize| dst[((panel * 4 + tap) * 3 + i) * 16 + o];
        assert_eq!(at(0, 1, 2, 5), src[(5 * 3 + 2) * 4 + 1]);
        assert_eq!(at(1, 3, 0, 0), src[16 * 12 + 3]);
        assert_eq!(at(1, 3, 0, 1), 0.0);
    }

    #[test]
    fn groups_that_share_vectors() {
        let panels = output_panels(3, 6, 8);
        let all: Vec<_> = panels.iter().map(|p| (p.group, p.first, p.count)).collect();
        assert_eq!(all, [(0, 0, 6), (1, 6, 6), (2, 12, 6)]);
        assert_eq!(output_panels(1, 40, 16).iter().map(|p| p.count).collect::<Vec<_>>(), [32, 8]);
        assert_eq!(output_panels(2, 20, 8).iter().map(|p| p.count).collect::<Vec<_>>(), [16, 4, 12, 8]);
        assert_eq!(input_segments(1, 6, 8), [6..8, 8..12]);
        assert_eq!(input_segments(0, 16, 8), [0..8, 8..16]);
        let shape = ConvPanels { lanes: 8, block: 8, groups: 3, outputs: 6, inputs: 6, phases: vec![vec![0]] };
        let src: Vec<f32> = (0..3 * 36).map(|x| x as f32 + 1.0).collect();
        let mut dst = vec![-1.0; shape.len()];
        shape.pack(&mut dst, &src, |g, o, i, _| (g * 6 + o) * 6 + i);
        // Group 1 begins in lane 6 of its panel.
        let row = |panel: usize, input: usize| &dst[(panel * 6 + input) * 16..][..16];
        assert_eq!(
            (row(1, 2)[5], row(1, 2)[6], row(1, 2)[11], row(1, 2)[12]),
            (0.0, src[38], src[36 + 5 * 6 + 2], 0.0)
        );
    }

    fn panels<E: Element + std::fmt::Debug>() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let packer = PanelPacker::new(isa).unwrap();
            let src: Vec<E> = (0..2000).map(|x| E::from(x as f32)).collect();
            for (ks, s) in [(1, 40), (40, 1), (3, 40)] {
                let mut dst = vec![E::from(-1.0); 10 * 16];
                unsafe { packer.panel(dst.as_mut_ptr(), 16, src.as_ptr(), ks, s, 10, 11) };
                for i in 0..10 {
                    for j in 0..16 {
                        let want = if j < 11 { src[i * ks + j * s] } else { E::ZERO };
                        assert_eq!(dst[i * 16 + j], want);
                    }
                }
            }
        }
    }

    #[test]
    fn panels_of_floats_and_doubles() {
        panels::<f32>();
        panels::<f64>();
    }
}
