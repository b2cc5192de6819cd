use super::*;

fn widened(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

#[test]
fn rounding() {
    for (x, want) in [(1.0, 0x3f80), (-0.0, 0x8000), (f32::INFINITY, 0x7f80), (f32::MAX, 0x7f80)] {
        assert_eq!(bf16_bits(x), want, "{x}");
    }
    // ties to even, on both sides
    assert_eq!(bf16_bits(f32::from_bits(0x3f80_8000)), 0x3f80);
    assert_eq!(bf16_bits(f32::from_bits(0x3f81_8000)), 0x3f82);
    assert_eq!(bf16_bits(f32::from_bits(0x3f80_8001)), 0x3f81);
    assert!(widened(bf16_bits(f32::from_bits(0x7f80_0001))).is_nan());
    assert_eq!(pair(1.0, 2.0), 0x4000_3f80);
}

/// The unit rounds as the packer of weights does.
#[test]
fn narrowing() {
    for kernels in Bf16Unit::ALL.into_iter().filter_map(Bf16Unit::kernels) {
        let values: Vec<f32> = (0..96).map(|i| (i as f32 - 40.3) * 1.001_f32.powi(i * 37 % 91)).collect();
        let mut dst = vec![0u32; 3 * PAIRS];
        let (low, high) = (values.as_ptr(), values[48..].as_ptr());
        // SAFETY: three vectors of 16 in each half.
        unsafe { kernels.narrow(&Narrow { low, high, step: 16, dst: dst.as_mut_ptr(), count: 3 }) };
        for (i, got) in dst.iter().enumerate() {
            let (vector, at) = (i / PAIRS, i % PAIRS * 2);
            let element = |at: usize| values[if at < 16 { 16 * vector + at } else { 48 + 16 * vector + at - 16 }];
            assert_eq!(*got, pair(element(at), element(at + 1)));
        }
        // SAFETY: as above.
        unsafe { kernels.narrow(&Narrow { low, high: std::ptr::null(), step: 16, dst: dst.as_mut_ptr(), count: 1 }) };
        assert!(dst[PAIRS / 2..PAIRS].iter().all(|x| *x == 0));
    }
}

/// Every height, against f64 over the rounded operands: products of bf16 are exact in f32, a tap's sums round.
#[test]
fn tiles() {
    let value = |i: usize| (i * 2_654_435_761 % 1021) as f32 / 512.0 - 1.0;
    for kernels in Bf16Unit::ALL.into_iter().filter_map(Bf16Unit::kernels) {
        let (taps, a_row) = ([0usize, 3 * 700, 5], 40);
        let a: Vec<u32> = (0..4000).map(|i| pair(value(2 * i), value(2 * i + 1))).collect();
        let b: Vec<u32> = (0..3 * PAIRS * COLUMNS).map(|i| pair(value(7 * i), value(11 * i + 3))).collect();
        for rows in 1..=ROWS {
            let mut acc = vec![f32::NAN; ROWS * COLUMNS];
            let tile = PairTile {
                a: a.as_ptr(),
                a_row,
                rows,
                taps: taps.as_ptr(),
                tap_count: taps.len(),
                b: b.as_ptr(),
                acc: acc.as_mut_ptr(),
                prefetch: b.as_ptr(),
                prefetch_lines: 1,
            };
            // SAFETY: the offsets lie within the vectors.
            kernels.enter(|unit| unsafe { unit.tile(&tile) });
            for (m, n) in (0..rows).flat_map(|m| (0..COLUMNS).map(move |n| (m, n))) {
                let (mut sum, mut size) = (0.0, 0.0);
                for (t, k) in (0..taps.len()).flat_map(|t| (0..PAIRS).map(move |k| (t, k))) {
                    let (x, y) = (a[taps[t] + m * a_row + k], b[(t * PAIRS + k) * COLUMNS + n]);
                    for (x, y) in [(x as u16, y as u16), ((x >> 16) as u16, (y >> 16) as u16)] {
                        sum += widened(x) * widened(y);
                        size += (widened(x) * widened(y)).abs();
                    }
                }
                let bound = (taps.len() * DEPTH) as f64 * f64::from(f32::EPSILON) * size;
                let got = f64::from(acc[m * COLUMNS + n]);
                assert!((got - sum).abs() <= bound, "{:?} {rows} rows: {got} {sum}", kernels.unit());
            }
        }
    }
}
