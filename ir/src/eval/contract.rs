//! The contraction of two buffers by einsum labels.

use super::numbers::Num;
use super::strided::{gathered, row_major};

/// Which axes an operand brings to a contraction, as extents and strides.
#[derive(Default)]
struct Axes {
    dims: Vec<usize>,
    strides: Vec<isize>,
}

/// `out[…] = Σ a[…]·b[…]` over labels that `out` lacks; `extent` gives the extent of each label. A label that occurs
/// twice in an operand reads its diagonal.
pub(crate) fn contract<N: Num>(
    (a, a_labels, a_shape): (&[N], &[u8], &[usize]),
    (b, b_labels, b_shape): (&[N], &[u8], &[usize]),
    out: &[u8],
) -> Vec<N> {
    let extent = |label: u8| {
        let find = |labels: &[u8], shape: &[usize]| labels.iter().position(|l| *l == label).map(|i| shape[i]);
        find(a_labels, a_shape).or_else(|| find(b_labels, b_shape)).unwrap_or(1)
    };
    let unique = |labels: &[u8]| {
        let mut seen: Vec<u8> = Vec::new();
        labels.iter().for_each(|l| {
            if !seen.contains(l) {
                seen.push(*l);
            }
        });
        seen
    };
    let (in_a, in_b) = (unique(a_labels), unique(b_labels));
    let pick = |from: &[u8], test: &dyn Fn(&u8) -> bool| from.iter().copied().filter(|l| test(l)).collect::<Vec<u8>>();
    let batch = pick(&in_a, &|l| in_b.contains(l) && out.contains(l));
    let rows = pick(&in_a, &|l| !in_b.contains(l) && out.contains(l));
    let columns = pick(&in_b, &|l| !in_a.contains(l) && out.contains(l));
    let inner = pick(&in_a, &|l| in_b.contains(l) && !out.contains(l));
    let only_a = pick(&in_a, &|l| !in_b.contains(l) && !out.contains(l));
    let only_b = pick(&in_b, &|l| !in_a.contains(l) && !out.contains(l));
    let count = |labels: &[u8]| labels.iter().map(|l| extent(*l)).product::<usize>();

    let left = arranged(a, a_labels, a_shape, &[&batch, &rows, &inner, &only_a]);
    let left = summed(left, count(&only_a));
    let right = arranged(b, b_labels, b_shape, &[&batch, &inner, &columns, &only_b]);
    let right = summed(right, count(&only_b));

    let (m, n, k) = (count(&rows), count(&columns), count(&inner));
    let mut product = vec![N::ZERO; count(&batch) * m * n];
    for i in 0..count(&batch) {
        N::gemm(m, n, k, &left[i * m * k..][..m * k], &right[i * k * n..][..k * n], &mut product[i * m * n..][..m * n]);
    }

    let order = [&batch[..], &rows, &columns].concat();
    if order == out {
        return product;
    }
    let shape: Vec<usize> = order.iter().map(|l| extent(*l)).collect();
    arranged(&product, &order, &shape, &[out])
}

/// The elements in the order of the label groups.
fn arranged<N: Num>(source: &[N], labels: &[u8], shape: &[usize], groups: &[&[u8]]) -> Vec<N> {
    let own = row_major(shape);
    let mut axes = Axes::default();
    for label in groups.concat() {
        let places = labels.iter().enumerate().filter(|(_, l)| **l == label).map(|(i, _)| i);
        axes.strides.push(places.clone().map(|i| own[i]).sum());
        axes.dims.push(places.clone().map(|i| shape[i]).next().unwrap_or(1));
    }
    if axes.dims == shape && axes.strides == own {
        return source.to_vec();
    }
    gathered(source, &axes.dims, &axes.strides, 0)
}

/// Runs of `n` elements added together.
fn summed<N: Num>(values: Vec<N>, n: usize) -> Vec<N> {
    match n {
        1 => values,
        0 => Vec::new(),
        _ => values.chunks_exact(n).map(|run| run.iter().fold(N::ZERO, |s, v| s.plus(*v))).collect(),
    }
}
