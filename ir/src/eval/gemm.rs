//! The product of two f64 matrices, quick enough that whole networks can be evaluated.

/// Rows and columns of one register tile.
const ROWS: usize = 4;
const COLUMNS: usize = 16;

/// `c[m, n] += a[m, k] · b[k, n]`. Each element is summed in order of `k` without fused multiply-add, so that every
/// machine gives the same bits.
pub(super) fn gemm(m: usize, n: usize, k: usize, a: &[f64], b: &[f64], c: &mut [f64]) {
    if k == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected.
            return unsafe { gemm_avx512(m, n, k, a, b, c) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected.
            return unsafe { gemm_avx2(m, n, k, a, b, c) };
        }
    }
    strips(m, n, k, a, b, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn gemm_avx512(m: usize, n: usize, k: usize, a: &[f64], b: &[f64], c: &mut [f64]) {
    strips(m, n, k, a, b, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn gemm_avx2(m: usize, n: usize, k: usize, a: &[f64], b: &[f64], c: &mut [f64]) {
    strips(m, n, k, a, b, c);
}

/// Strips of `COLUMNS` columns of `b`, each copied together once and read by all rows of `a`.
#[inline(always)]
fn strips(m: usize, n: usize, k: usize, a: &[f64], b: &[f64], c: &mut [f64]) {
    let mut strip = vec![0.0; k * COLUMNS];
    for j in (0..n).step_by(COLUMNS) {
        let width = COLUMNS.min(n - j);
        for (packed, row) in strip.chunks_exact_mut(COLUMNS).zip(b.chunks_exact(n)) {
            packed[..width].copy_from_slice(&row[j..j + width]);
        }
        for i in (0..m).step_by(ROWS) {
            let height = ROWS.min(m - i);
            // rows past the last repeat it; their sums are dropped
            let row = |r: usize| &a[(i + r.min(height - 1)) * k..][..k];
            let sums = tile([row(0), row(1), row(2), row(3)], &strip);
            for (r, sums) in sums.iter().enumerate().take(height) {
                let out = &mut c[(i + r) * n + j..][..width];
                out.iter_mut().zip(sums).for_each(|(c, s)| *c += s);
            }
        }
    }
}

#[inline(always)]
fn tile(rows: [&[f64]; ROWS], strip: &[f64]) -> [[f64; COLUMNS]; ROWS] {
    let mut sums = [[0.0; COLUMNS]; ROWS];
    let [r0, r1, r2, r3] = rows;
    for ((((b, a0), a1), a2), a3) in strip.chunks_exact(COLUMNS).zip(r0).zip(r1).zip(r2).zip(r3) {
        for j in 0..COLUMNS {
            sums[0][j] += a0 * b[j];
            sums[1][j] += a1 * b[j];
            sums[2][j] += a2 * b[j];
            sums[3][j] += a3 * b[j];
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_sum_at_odd_sizes() {
        for (m, n, k) in [(1, 1, 1), (5, 17, 3), (4, 16, 9), (7, 33, 2), (3, 5, 0)] {
            let a: Vec<f64> = (0..m * k).map(|i| (i as f64 * 0.7).sin()).collect();
            let b: Vec<f64> = (0..k * n).map(|i| (i as f64 * 0.3).cos()).collect();
            let mut c = vec![1.0; m * n];
            gemm(m, n, k, &a, &b, &mut c);
            for i in 0..m {
                for j in 0..n {
                    let sum = (0..k).fold(0.0, |s, p| s + a[i * k + p] * b[p * n + j]);
                    assert_eq!(c[i * n + j], 1.0 + sum);
                }
            }
        }
    }
}
