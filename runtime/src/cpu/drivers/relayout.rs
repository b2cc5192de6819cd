//! Changes of layout, and packing at load.

use super::conv::gradient_phases;
use super::kernels::{check_isa, check_lanes};
use super::{DriverError, Shared};
use crate::cpu::team::Team;
use egret_program::driver::{ConvForm, ConvInput, Direction, PackForm, PackProblem, Products, RelayoutProblem, Words};
use egret_simd::pack::{ConvPanels, PanelPacker, depthwise_weights};
use egret_simd::winograd::matrices;
use egret_simd::words::{COLUMNS, WORDS, pair};
use egret_simd::{Element, Isa, TransposeFn, transpose};

/// A change of layout whose extents are known.
#[derive(Debug)]
pub struct RelayoutPlan {
    problem: RelayoutProblem,
    transpose: TransposeFn,
    spatial: [usize; 3],
    halo: [usize; 3],
}

impl RelayoutPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the layout is not that of `isa`, or lists differ in length.
    pub fn new(problem: &RelayoutProblem, isa: Isa) -> Result<RelayoutPlan, DriverError> {
        check_isa(isa, problem.lanes)?;
        let rank = problem.spatial.len();
        if rank > 3 || problem.halo.len() != rank {
            return Err(DriverError::Problem("a relayout has up to 3 spatial dims, each with a halo"));
        }
        let pad = |list: &[usize], missing| {
            let mut out = [missing; 3];
            out[3 - rank..].copy_from_slice(list);
            out
        };
        Ok(RelayoutPlan {
            transpose: transpose(isa).ok_or(DriverError::Unsupported("this instruction set"))?,
            spatial: pad(&problem.spatial, 1),
            halo: pad(&problem.halo, 0),
            problem: problem.clone(),
        })
    }

    /// Converts `src` to `dst`.
    ///
    /// # Safety
    /// The tensors have the extents of the problem, and do not overlap.
    pub unsafe fn run(&self, src: *const f32, dst: *mut f32, team: &Team) {
        let blocks = self.problem.channels.div_ceil(self.problem.lanes);
        let planes = self.spatial[0] + 2 * self.halo[0];
        let (src, dst) = (Shared(src.cast_mut()), Shared(dst));
        team.parallel(self.problem.batch * blocks * planes, &|chunk, _| {
            let (src, dst) = (&src, &dst);
            let (unit, plane) = (chunk / planes, chunk % planes);
            let (item, block) = (unit / blocks, unit % blocks);
            // SAFETY: chunks write different planes.
            unsafe {
                match self.problem.direction {
                    Direction::ToBlocked => self.block_plane(src.0, dst.0, item, block, plane),
                    Direction::ToRowMajor => self.unblock_plane(src.0, dst.0, item, block, plane),
                }
            }
        });
    }

    /// Offsets of a padded plane in the blocked tensor, and of the plane of the first channel in the other; the latter
    /// is `None` in the halo.
    fn offsets(&self, item: usize, block: usize, plane: usize) -> (usize, Option<usize>) {
        let p = &self.problem;
        let extent = |d: usize| self.spatial[d] + 2 * self.halo[d];
        let area = extent(1) * extent(2) * p.lanes;
        let blocked = item * p.blocked_batch_stride + (block * extent(0) + plane) * area;
        let inner = plane.checked_sub(self.halo[0]).filter(|&i| i < self.spatial[0]);
        let image: usize = self.spatial.iter().product();
        let row_major = inner
            .map(|i| item * p.row_major_batch_stride + block * p.lanes * image + i * self.spatial[1] * self.spatial[2]);
        (blocked, row_major)
    }

    unsafe fn block_plane(&self, src: *const f32, dst: *mut f32, item: usize, block: usize, plane: usize) {
        let (l, [_, h, w]) = (self.problem.lanes, self.spatial);
        let [_, hh, hw] = self.halo;
        let row_len = (w + 2 * hw) * l;
        let (to, from) = self.offsets(item, block, plane);
        let image: usize = self.spatial.iter().product();
        let channels = (self.problem.channels - block * l).min(l);
        // SAFETY: offsets within the tensors.
        unsafe {
            let to = dst.add(to);
            let Some(from) = from else {
                std::ptr::write_bytes(to, 0, (h + 2 * hh) * row_len);
                return;
            };
            std::ptr::write_bytes(to, 0, hh * row_len);
            std::ptr::write_bytes(to.add((hh + h) * row_len), 0, hh * row_len);
            for row in 0..h {
                let to = to.add((hh + row) * row_len);
                std::ptr::write_bytes(to, 0, hw * l);
                std::ptr::write_bytes(to.add((hw + w) * l), 0, hw * l);
                let inner = to.add(hw * l);
                if channels < l {
                    std::ptr::write_bytes(inner, 0, w * l);
                }
                (self.transpose)(inner, l, src.add(from + row * w), image, channels, w);
            }
        }
    }

    unsafe fn unblock_plane(&self, src: *const f32, dst: *mut f32, item: usize, block: usize, plane: usize) {
        let (l, [_, h, w]) = (self.problem.lanes, self.spatial);
        let [_, hh, hw] = self.halo;
        let row_len = (w + 2 * hw) * l;
        let (from, to) = self.offsets(item, block, plane);
        let image: usize = self.spatial.iter().product();
        let channels = (self.problem.channels - block * l).min(l);
        let Some(to) = to else { return };
        for row in 0..h {
            // SAFETY: offsets within the tensors.
            unsafe {
                let from = src.add(from + (hh + row) * row_len + hw * l);
                (self.transpose)(dst.add(to + row * w), image, from, l, w, channels);
            }
        }
    }
}

/// Packing of weights.
#[derive(Debug)]
pub struct PackPlan {
    problem: PackProblem,
    packer: PanelPacker,
    packer_f64: PanelPacker<f64>,
}

impl PackPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the layout is not that of `isa`, or there is no such form.
    pub fn new(problem: &PackProblem, isa: Isa) -> Result<PackPlan, DriverError> {
        let lanes = match &problem.form {
            PackForm::Columns { products, .. } => products.lanes(isa.lanes_f32()),
            _ => isa.lanes_f32(),
        };
        check_lanes(isa, problem.lanes, lanes)?;
        if let PackForm::Conv { form: ConvForm::WeightGradient, .. } = problem.form {
            return Err(DriverError::Problem("a weight gradient reads no packed weights"));
        }
        if let PackForm::Winograd { outputs, .. } = problem.form
            && matrices(outputs).is_none()
        {
            return Err(DriverError::Unsupported("this tile of Winograd"));
        }
        let (Some(packer), Some(packer_f64)) = (PanelPacker::new(isa), PanelPacker::new(isa)) else {
            return Err(DriverError::Unsupported("this instruction set"));
        };
        Ok(PackPlan { problem: problem.clone(), packer, packer_f64 })
    }

    /// Elements that are written, of as many bytes as the [problem](PackProblem::element_bytes) says.
    pub fn packed_len(&self) -> usize {
        self.problem.packed_len()
    }

    /// Packs `src` into `dst`.
    ///
    /// # Safety
    /// `src` has the extents of the problem, `dst` [`packed_len`](PackPlan::packed_len) elements; both are aligned for them, and
    /// do not overlap.
    pub unsafe fn run(&self, src: *const u8, dst: *mut u8, team: &Team) {
        if let PackForm::Columns { products: Products::F64, .. } = self.problem.form {
            // SAFETY: the caller's.
            return unsafe { self.pack_columns::<f64>(&self.packer_f64, src.cast(), dst.cast(), team) };
        }
        let (src, dst) = (src.cast::<f32>(), dst.cast::<f32>());
        match &self.problem.form {
            // SAFETY: the caller's.
            PackForm::Conv { .. } => unsafe { self.pack_conv(src, dst) },
            PackForm::Winograd { outputs, words: Some(words), out_channels, in_channels } => {
                let Some(matrices) = matrices(*outputs) else { return };
                let (o, i, points) = (*out_channels, *in_channels, matrices.points().pow(2));
                let mut transformed = vec![0f32; o * i * points];
                let (src, to) = (Shared(src.cast_mut()), Shared(transformed.as_mut_ptr()));
                team.parallel(o, &|output, _| {
                    let (src, to) = (&src, &to);
                    for at in output * i..(output + 1) * i {
                        // SAFETY: chunks write different filters; filters and points are those of the problem.
                        unsafe {
                            let filter = &*src.0.add(at * 9).cast::<[f32; 9]>();
                            matrices.transform_filter(filter, |point, x| *to.0.add(at * points + point) = x);
                        }
                    }
                });
                let (panels, depth) = (o.div_ceil(COLUMNS), words.depth());
                let index = |chunk: usize, tap: usize, element: usize, column: usize| {
                    let (output, input) = (chunk % panels * COLUMNS + column, tap * depth + element);
                    (output < o && input < i).then_some((output * i + input) * points + chunk / panels)
                };
                // SAFETY: the caller's; places lie among the transformed filters.
                unsafe {
                    let shape = (points * panels, i.div_ceil(depth));
                    pack_words(*words, transformed.as_ptr(), dst, shape, team, &index);
                }
            }
            PackForm::Winograd { outputs, words: None, out_channels, in_channels } => {
                let Some(matrices) = matrices(*outputs) else { return };
                let (width, i) = (2 * self.problem.lanes, *in_channels);
                let (panels, points) = (out_channels.div_ceil(width), matrices.points().pow(2));
                let (src, dst) = (Shared(src.cast_mut()), Shared(dst));
                team.parallel(panels, &|panel, _| {
                    let (src, dst) = (&src, &dst);
                    for (input, column) in (0..i).flat_map(|input| (0..width).map(move |column| (input, column))) {
                        let output = panel * width + column;
                        let at = |point: usize| ((point * panels + panel) * i + input) * width + column;
                        // SAFETY: chunks write different panels; filters and points are those of the problem.
                        unsafe {
                            if output < *out_channels {
                                let filter = &*src.0.add((output * i + input) * 9).cast::<[f32; 9]>();
                                matrices.transform_filter(filter, |point, x| *dst.0.add(at(point)) = x);
                            } else {
                                (0..points).for_each(|point| *dst.0.add(at(point)) = 0.0);
                            }
                        }
                    }
                });
            }
            // SAFETY: the caller's.
            PackForm::WordConv { words, out_channels, in_channels, kernel } => unsafe {
                let (o, i, taps) = (*out_channels, *in_channels, kernel.iter().product::<usize>());
                let weight = |output: usize, input: usize, tap: usize| {
                    (output < o && input < i).then_some((output * i + input) * taps + tap)
                };
                let (panels, depth) = (o.div_ceil(COLUMNS), i.div_ceil(words.depth()));
                pack_words(*words, src, dst, (panels, depth * taps), team, &|panel, tap, element, column| {
                    weight(panel * COLUMNS + column, tap / taps * words.depth() + element, tap % taps)
                });
            },
            // SAFETY: the caller's.
            PackForm::Columns { products: Products::Words(words), count, matrix_stride, k, n, row, col } => unsafe {
                let (panels, depth) = (n.div_ceil(COLUMNS), words.depth());
                pack_words(
                    *words,
                    src,
                    dst,
                    (count * panels, k.div_ceil(depth)),
                    team,
                    &|panel, tap, element, column| {
                        let (matrix, along_n) = (panel / panels, panel % panels * COLUMNS + column);
                        let along_k = tap * depth + element;
                        (along_k < *k && along_n < *n).then_some(matrix * matrix_stride + along_k * row + along_n * col)
                    },
                );
            },
            // SAFETY: the caller's.
            PackForm::Columns { .. } => unsafe { self.pack_columns(&self.packer, src, dst, team) },
        }
    }

    /// # Safety
    /// As for `run`, for matrices of these elements.
    unsafe fn pack_columns<E: Element>(&self, packer: &PanelPacker<E>, src: *const E, dst: *mut E, team: &Team) {
        let PackForm::Columns { count, matrix_stride, k, n, row, col, .. } = &self.problem.form else { return };
        let width = 2 * self.problem.lanes;
        let panels = n.div_ceil(width);
        let (src, dst) = (Shared(src.cast_mut()), Shared(dst));
        team.parallel(count * panels, &|chunk, _| {
            let (src, dst) = (&src, &dst);
            let (matrix, panel) = (chunk / panels, chunk % panels);
            let columns = (n - panel * width).min(width);
            // SAFETY: chunks write different panels.
            unsafe {
                let from = src.0.add(matrix * matrix_stride + panel * width * col);
                let to = dst.0.add(chunk * k * width);
                packer.panel(to, width, from, *row, *col, *k, columns);
            }
        });
    }

    unsafe fn pack_conv(&self, src: *const f32, dst: *mut f32) {
        let PackForm::Conv { form, input, out_channels, in_channels, groups, kernel, stride, dilation, pad_begin } =
            &self.problem.form
        else {
            return;
        };
        let lanes = self.problem.lanes;
        let taps: usize = kernel.iter().product();
        let dims = |list: &[usize], missing| {
            let mut out = [missing; 3];
            out[3 - list.len()..].copy_from_slice(list);
            out
        };
        let gradient = *form == ConvForm::InputGradient;
        let phases = if gradient {
            gradient_phases(dims(kernel, 1), dims(stride, 1), dims(dilation, 1), dims(pad_begin, 0))
        } else {
            vec![(0..taps).collect()]
        };
        let (o, i) = (out_channels / groups, in_channels / groups);
        // SAFETY: the extents are the caller's promise.
        let (src, dst) = unsafe {
            (
                std::slice::from_raw_parts(src, out_channels * i * taps),
                std::slice::from_raw_parts_mut(dst, self.packed_len()),
            )
        };
        if *groups > 1 && groups == in_channels && groups == out_channels {
            depthwise_weights(dst, src, *groups, taps, &phases, lanes);
            return;
        }
        let (outputs, inputs) = if gradient { (i, o) } else { (o, i) };
        let block = if *input == ConvInput::Image { 1 } else { lanes };
        let panels = ConvPanels { lanes, block, groups: *groups, outputs, inputs, phases };
        panels.pack(dst, src, |group, output, input, tap| {
            let (o_index, i_index) = if gradient { (input, output) } else { (output, input) };
            ((group * o + o_index) * i + i_index) * taps + tap
        });
    }
}

/// Packs panels of so many taps, by the panel, tap, element of the tap's sum and column that each element has in `src`; those
/// that it does not have are zero.
///
/// # Safety
/// `dst` has room for the panels; indices lie within `src`.
unsafe fn pack_words(
    words: Words,
    src: *const f32,
    dst: *mut f32,
    (panels, taps): (usize, usize),
    team: &Team,
    index: &(dyn Fn(usize, usize, usize, usize) -> Option<usize> + Sync),
) {
    let (src, dst) = (Shared(src.cast_mut()), Shared(dst.cast::<u32>()));
    team.parallel(panels, &|panel, _| {
        let (src, dst) = (&src, &dst);
        let begin = dst.0.wrapping_add(panel * words.panel(taps));
        let to = begin.wrapping_add(words.lead() * COLUMNS);
        // SAFETY: the caller's; chunks write different panels.
        let value = |tap: usize, element: usize, column: usize| unsafe {
            index(panel, tap, element, column).map_or(0.0, |at| *src.0.add(at))
        };
        let mut sums = [0i32; COLUMNS];
        for (tap, at) in (0..taps).flat_map(|tap| (0..WORDS * COLUMNS).map(move |at| (tap, at))) {
            let (first, column) = (at / COLUMNS * words.depth() / WORDS, at % COLUMNS);
            let word = match words {
                Words::Bf16 => pair(std::array::from_fn(|i| value(tap, first + i, column))),
                Words::Bytes { .. } => {
                    let quad: [i32; 4] = std::array::from_fn(|i| value(tap, first + i, column).to_bits() as i32);
                    sums[column] = quad.iter().fold(sums[column], |sum, x| sum.wrapping_add(*x));
                    egret_simd::words::quad(quad)
                }
            };
            // SAFETY: as above.
            unsafe { *to.add(tap * WORDS * COLUMNS + at) = word };
        }
        if words.lead() > 0 {
            for (column, sum) in sums.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { *begin.add(column) = sum.wrapping_mul(words.low()) as u32 };
            }
        }
    });
}
