use super::*;

fn bf16() -> impl Iterator<Item = WordKernels> {
    WordUnit::ALL.into_iter().filter(|unit| unit.per_word() == 2).filter_map(WordUnit::kernels)
}

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
    assert_eq!(pair([1.0, 2.0]), 0x4000_3f80);
    assert_eq!(quad([1, -1, 255, -128]), 0x80ff_ff01);
}

/// The unit rounds as the packer of weights does.
#[test]
fn narrowing() {
    for kernels in bf16() {
        let values: Vec<f32> = (0..96).map(|i| (i as f32 - 40.3) * 1.001_f32.powi(i * 37 % 91)).collect();
        let mut dst = vec![0u32; 3 * WORDS];
        let none = std::ptr::null();
        let parts = [values.as_ptr(), values[48..].as_ptr(), none, none];
        // SAFETY: three vectors of 16 in each half.
        unsafe { kernels.narrow(&Narrow { parts, step: 16, low: 0, dst: dst.as_mut_ptr(), count: 3 }) };
        for (i, got) in dst.iter().enumerate() {
            let (vector, at) = (i / WORDS, i % WORDS * 2);
            let element = |at: usize| values[if at < 16 { 16 * vector + at } else { 48 + 16 * vector + at - 16 }];
            assert_eq!(*got, pair([element(at), element(at + 1)]));
        }
        // SAFETY: as above.
        unsafe {
            let parts = [values.as_ptr(), none, none, none];
            kernels.narrow(&Narrow { parts, step: 16, low: 0, dst: dst.as_mut_ptr(), count: 1 });
        }
        assert!(dst[WORDS / 2..WORDS].iter().all(|x| *x == 0));
    }
}

/// Every height, against f64 over the rounded operands: products of bf16 are exact in f32, a tap's sums round.
#[test]
fn tiles() {
    let value = |i: usize| (i * 2_654_435_761 % 1021) as f32 / 512.0 - 1.0;
    for kernels in bf16() {
        let (taps, a_row) = ([0usize, 3 * 700, 5], 40);
        let a: Vec<u32> = (0..4000).map(|i| pair([value(2 * i), value(2 * i + 1)])).collect();
        let b: Vec<u32> = (0..3 * WORDS * COLUMNS).map(|i| pair([value(7 * i), value(11 * i + 3)])).collect();
        for rows in 1..=ROWS {
            let mut acc = vec![f32::NAN; ROWS * COLUMNS];
            let tile = WordTile {
                a: a.as_ptr(),
                a_row,
                rows,
                taps: taps.as_ptr(),
                tap_count: taps.len(),
                b: b.as_ptr(),
                start: std::ptr::null(),
                acc: acc.as_mut_ptr(),
                prefetch: b.as_ptr(),
                prefetch_lines: 1,
            };
            // SAFETY: the offsets lie within the vectors.
            kernels.enter(|unit| unsafe { unit.tile(&tile) });
            for (m, n) in (0..rows).flat_map(|m| (0..COLUMNS).map(move |n| (m, n))) {
                let (mut sum, mut size) = (0.0, 0.0);
                for (t, k) in (0..taps.len()).flat_map(|t| (0..WORDS).map(move |k| (t, k))) {
                    let (x, y) = (a[taps[t] + m * a_row + k], b[(t * WORDS + k) * COLUMNS + n]);
                    for (x, y) in [(x as u16, y as u16), ((x >> 16) as u16, (y >> 16) as u16)] {
                        sum += widened(x) * widened(y);
                        size += (widened(x) * widened(y)).abs();
                    }
                }
                let bound = (taps.len() * kernels.unit().depth()) as f64 * f64::from(f32::EPSILON) * size;
                let got = f64::from(acc[m * COLUMNS + n]);
                assert!((got - sum).abs() <= bound, "{:?} {rows} rows: {got} {sum}", kernels.unit());
            }
        }
    }
}

#[test]
fn narrowing_integers() {
    let Some(kernels) = WordUnit::ByteVectors.kernels() else { return };
    let values: Vec<i32> = (0..128).map(|i| i * 37 % 256 - 100).collect();
    let at = |i: usize| values[i..].as_ptr().cast::<f32>();
    let mut dst = vec![0u32; 2 * WORDS];
    let parts = [at(0), at(32), std::ptr::null(), at(96)];
    // SAFETY: two vectors of 16 in each part.
    unsafe { kernels.narrow(&Narrow { parts, step: 16, low: -100, dst: dst.as_mut_ptr(), count: 2 }) };
    let bytes: Vec<u8> = dst.iter().flat_map(|word| word.to_le_bytes()).collect();
    for (i, got) in bytes.into_iter().enumerate() {
        let (vector, part, lane) = (i / 64, i % 64 / 16, i % 16);
        let want = if part == 2 { 0 } else { values[32 * part + 16 * vector + lane] + 100 };
        assert_eq!(i32::from(got), want);
    }
}

/// Every height, exactly: the greatest products too, whose pairwise sums leave 16 bits.
#[test]
fn tiles_of_bytes() {
    let Some(kernels) = WordUnit::ByteVectors.kernels() else { return };
    let (taps, a_row) = ([0usize, 3 * 700, 5], 40);
    let a: Vec<u32> = (0..4000u32).map(|i| if i % 7 == 0 { u32::MAX } else { i.wrapping_mul(2_654_435_761) }).collect();
    let b: Vec<u32> = (0..3 * (WORDS * COLUMNS) as u32)
        .map(|i| if i % 5 == 0 { 0x7f7f_8080 } else { i.wrapping_mul(40_503) << 7 })
        .collect();
    let start: Vec<u32> = (0..COLUMNS as u32).map(|n| n.wrapping_sub(9)).collect();
    for (rows, start) in (1..=ROWS).flat_map(|rows| [(rows, None), (rows, Some(&start))]) {
        let mut acc = vec![f32::NAN; ROWS * COLUMNS];
        let tile = WordTile {
            a: a.as_ptr(),
            a_row,
            rows,
            taps: taps.as_ptr(),
            tap_count: taps.len(),
            b: b.as_ptr(),
            start: start.map_or(std::ptr::null(), |start| start.as_ptr()),
            acc: acc.as_mut_ptr(),
            prefetch: b.as_ptr(),
            prefetch_lines: 1,
        };
        // SAFETY: the offsets lie within the vectors.
        kernels.enter(|unit| unsafe { unit.tile(&tile) });
        for (m, n) in (0..rows).flat_map(|m| (0..COLUMNS).map(move |n| (m, n))) {
            let mut sum = start.map_or(0, |start| start[n] as i32);
            for (t, k) in (0..taps.len()).flat_map(|t| (0..WORDS).map(move |k| (t, k))) {
                let (x, y) = (a[taps[t] + m * a_row + k].to_le_bytes(), b[(t * WORDS + k) * COLUMNS + n].to_le_bytes());
                sum += x.into_iter().zip(y).map(|(x, y)| i32::from(x) * i32::from(y as i8)).sum::<i32>();
            }
            assert_eq!(acc[m * COLUMNS + n].to_bits() as i32, sum, "{rows} rows, {m} {n}");
        }
    }
}
