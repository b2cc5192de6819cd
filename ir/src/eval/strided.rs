//! Walks over elements by strides, and windows as tables of offsets.

use crate::tensor::Tensor;

/// Row-major strides in elements.
pub(crate) fn row_major(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    strides
}

/// Strides that read a tensor of shape `from` as one of shape `to`: 0 where an extent of 1 repeats.
pub(crate) fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<isize> {
    let own = row_major(from);
    let lead = to.len().saturating_sub(from.len());
    (0..to.len()).map(|axis| if axis < lead || from[axis - lead] == 1 { 0 } else { own[axis - lead] }).collect()
}

/// Calls `f` with the offset of each element of `dims` in row-major order.
pub(crate) fn offsets(dims: &[usize], strides: &[isize], start: isize, mut f: impl FnMut(usize)) {
    if dims.contains(&0) {
        return;
    }
    let (inner, step) = match (dims.last(), strides.last()) {
        (Some(n), Some(s)) => (*n, *s),
        _ => return f(start as usize),
    };
    let outer = &dims[..dims.len() - 1];
    let mut index = vec![0usize; outer.len()];
    let mut base = start;
    loop {
        let mut at = base;
        for _ in 0..inner {
            f(at as usize);
            at += step;
        }
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            base += strides[axis];
            if index[axis] < outer[axis] {
                break;
            }
            base -= strides[axis] * outer[axis] as isize;
            index[axis] = 0;
        }
    }
}

/// The elements of `dims` read from `source` by strides, in row-major order.
pub(crate) fn gathered<T: Copy>(source: &[T], dims: &[usize], strides: &[isize], start: isize) -> Vec<T> {
    let mut out = Vec::with_capacity(dims.iter().product());
    offsets(dims, strides, start, |at| out.push(source[at]));
    out
}

/// A tensor of shape `dims` whose elements are read from `source` by strides, whatever their type.
pub(crate) fn copy_elements(source: &Tensor, dims: &[usize], strides: &[isize], start: isize) -> Tensor {
    fn go<const N: usize>(source: &Tensor, dims: &[usize], strides: &[isize], start: isize, out: &mut Tensor) {
        let (from, _) = source.bytes().as_chunks::<N>();
        let (to, _) = out.bytes_mut().as_chunks_mut::<N>();
        let mut to = to.iter_mut();
        offsets(dims, strides, start, |at| {
            if let Some(slot) = to.next() {
                *slot = from[at];
            }
        });
    }
    let mut out = Tensor::zeros(source.dtype(), dims);
    match source.dtype().size() {
        1 => go::<1>(source, dims, strides, start, &mut out),
        2 => go::<2>(source, dims, strides, start, &mut out),
        4 => go::<4>(source, dims, strides, start, &mut out),
        _ => go::<8>(source, dims, strides, start, &mut out),
    }
    out
}

/// By window element and window, the offset of the element in the (unpadded) input.
pub(crate) struct Taps {
    /// `[element][window]`; `PADDING` outside the input.
    at: Vec<u32>,
    /// Number of windows.
    pub windows: usize,
    /// Number of elements of a window.
    pub elements: usize,
}

/// Marks an element of a window that lies in the padding.
pub(crate) const PADDING: u32 = u32::MAX;

impl Taps {
    /// Windows of `size` over an input of extents `input`, `output` of them by axis.
    pub(crate) fn new(
        input: &[usize],
        size: &[usize],
        output: &[usize],
        stride: &[i64],
        pad_low: &[i64],
        dilation: &[i64],
    ) -> Taps {
        let windows = output.iter().product();
        let elements = size.iter().product();
        let mut at = vec![0u32; windows * elements];
        // one axis at a time: offset so far · extent + place on this axis
        for axis in 0..input.len() {
            let inner_windows: usize = output[axis + 1..].iter().product();
            let inner_elements: usize = size[axis + 1..].iter().product();
            for (i, slot) in at.iter_mut().enumerate() {
                let (element, window) = (i / windows, i % windows);
                let tap = (element / inner_elements % size[axis]) as i64;
                let place = (window / inner_windows % output[axis]) as i64;
                let x = place * stride[axis] - pad_low[axis] + tap * dilation[axis];
                *slot = match usize::try_from(x) {
                    Ok(x) if x < input[axis] && *slot != PADDING => *slot * input[axis] as u32 + x as u32,
                    _ => PADDING,
                };
            }
        }
        Taps { at, windows, elements }
    }

    /// For one element of the window, the offsets in all windows.
    pub(crate) fn of(&self, element: usize) -> &[u32] {
        &self.at[element * self.windows..][..self.windows]
    }
}

/// Puts the elements of `source`, in order, at the places in `out` that strides over its shape name.
pub(crate) fn place_elements(source: &Tensor, out: &mut Tensor, strides: &[isize], start: isize) {
    let size = source.dtype().size();
    let mut elements = source.bytes().chunks_exact(size);
    let bytes = out.bytes_mut();
    offsets(source.shape(), strides, start, |at| {
        if let Some(element) = elements.next() {
            bytes[at * size..][..size].copy_from_slice(element);
        }
    });
}
