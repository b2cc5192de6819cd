use super::*;

fn values<E: Element>(n: usize, seed: u32) -> Vec<E> {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            E::from((s >> 8) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect()
}

/// Every kernel of every supported instruction set, with all parts of the epilogue, against a plain f64 sum; products of `f64`
/// round as that sum does.
fn all_kernels<E: Element>(epsilon: f64) {
    let here = MICRO_KERNELS.iter().filter(|k| k.isa.is_supported() && k.bytes == size_of::<E>());
    let mut seen = 0;
    for kernel in here {
        for rows in 1..=kernel.rows {
            let f = tile_kernel(kernel.isa, kernel.kind, rows, kernel.vectors).expect("supported");
            for lanes in [kernel.lanes, 1, kernel.lanes - 1] {
                check::<E>(kernel, f, rows, lanes, epsilon);
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

/// Those of half a vector do the same where there is no more.
#[test]
fn half_kernels() {
    for kernel in MICRO_KERNELS.iter().filter(|k| k.isa.is_supported() && k.vectors == 1 && k.bytes == 4) {
        for rows in 1..=kernel.rows {
            let half = half_kernel::<f32>(kernel.isa, kernel.kind, rows);
            assert_eq!(half.is_some(), kernel.isa == Isa::Avx512 && kernel.kind == TileKind::Table);
            for lanes in [1, 5, kernel.lanes / 2] {
                half.into_iter().for_each(|f| check(kernel, f, rows, lanes, f64::from(f32::EPSILON)));
            }
        }
    }
}

#[test]
fn all_kernels_of_floats() {
    all_kernels::<f32>(f64::from(f32::EPSILON));
}

#[test]
fn all_kernels_of_doubles() {
    all_kernels::<f64>(f64::EPSILON);
}

fn check<E: Element>(kernel: &MicroKernel, f: TileFn<E>, m: usize, last_lanes: usize, epsilon: f64) {
    let (l, n) = (kernel.lanes, kernel.vectors);
    let (taps, run, last_run) = ([0usize, 700, 350], 5, 3);
    let steps = 2 * run + last_run;
    let a_step = if kernel.kind == TileKind::Packed { m } else { 2 };
    let rows: Vec<usize> = (0..m).map(|i| if kernel.kind == TileKind::Packed { i } else { i * 19 % 97 }).collect();
    let a: Vec<E> = values(2000, 1);
    let b: Vec<E> = values(steps * n * l + 8 * 3, 2);
    let bias: Vec<E> = values(n * l, 3);
    let row_bias: Vec<E> = values(m, 4);
    let residual: Vec<E> = values(m * n * l, 5);
    let before: Vec<E> = values(m * n * l, 6);
    let mut c = before.clone();
    let c_rows: Vec<usize> = (0..m).map(|i| (m - 1 - i) * n * l).collect();
    let mut t = Tile::new(kernel.isa);
    t.a = a.as_ptr();
    t.rows = rows.as_ptr();
    t.taps = taps.as_ptr();
    (t.tap_count, t.run, t.last_run, t.a_step) = (3, run, last_run, a_step);
    (t.b, t.b_step, t.b_vector, t.b_skip) = (b.as_ptr(), n * l, l, 8);
    (t.c, t.c_rows, t.c_vector) = (c.as_mut_ptr(), c_rows.as_ptr(), l);
    (t.last_lanes, t.fill) = (last_lanes, m.is_multiple_of(2));
    (t.bias, t.row_bias) = (bias.as_ptr(), row_bias.as_ptr());
    (t.partial, t.partial_rows, t.partial_vector) = (c.as_ptr(), c_rows.as_ptr(), l);
    (t.residual, t.residual_rows, t.residual_vector) = (residual.as_ptr(), c_rows.as_ptr(), l);
    (t.clamp, t.lo, t.hi) = (true, E::from(-0.5), E::from(1.5));
    (t.prefetch, t.prefetch_lines, t.prefetch_a) = (b.as_ptr(), 1, 64);
    let wide = |x: E| -> f64 { x.into() };
    unsafe { f(&t) };

    for i in 0..m {
        for j in 0..n * l {
            let at = c_rows[i] + j;
            let exists = j < (n - 1) * l + last_lanes;
            if !exists {
                assert_eq!(wide(c[at]), if t.fill { 0.0 } else { wide(before[at]) }, "{}", kernel.name);
                continue;
            }
            let mut sum = 0f64;
            let mut size = 4f64;
            let mut k = 0;
            for (index, tap) in taps.iter().enumerate() {
                for step in 0..if index == 2 { last_run } else { run } {
                    let lane = if kernel.kind == TileKind::Lanes { j } else { 0 };
                    let x = wide(a[tap + step * a_step + rows[i] + lane]);
                    let y = wide(b[k * n * l + index * 8 + j]);
                    sum += x * y;
                    size += (x * y).abs();
                    k += 1;
                }
            }
            sum += wide(bias[j]) + wide(row_bias[i]) + wide(residual[at]) + wide(before[at]);
            let want = sum.clamp(-0.5, 1.5);
            let (bound, have) = ((steps + 4) as f64 * epsilon * size, wide(c[at]));
            assert!((have - want).abs() <= bound, "{} {m}: {have} {want}", kernel.name);
        }
    }
}

/// Every strided kernel gives the bits of the table kernel.
#[test]
fn strided_kernels() {
    let mut seen = 0;
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let l = isa.lanes_f32();
        for (step, m) in [1, 2, l, 2 * l].into_iter().flat_map(|step| (1..=MAX_ROWS).map(move |m| (step, m))) {
            for run in [m, m / 2] {
                let table =
                    |vectors| tile_kernel(isa, TileKind::Table, m, vectors).expect("as high as the strided one");
                if let Some(strided) = strided_kernel(isa, step, m, run) {
                    seen += 1;
                    same_bits(isa, [strided, table(2)], [m, 2, step, run], [l, 3]);
                }
                if let Some(strided) = strided_half_kernel(isa, step, m, run) {
                    seen += 1;
                    same_bits(isa, [strided, table(1)], [m, 1, step, run], [l / 2, 3]);
                }
            }
        }
    }
    assert!(seen > 0 || !Isa::Avx2.is_supported());
}

/// Both kernels, of `n` vectors of which the last has one of these numbers of lanes, write the same.
fn same_bits(isa: Isa, kernels: [TileFn; 2], [m, n, step, run]: [usize; 4], lanes: [usize; 2]) {
    let l = isa.lanes_f32();
    let rows: Vec<usize> = (0..m).map(|i| i / run * 500 + i % run * step).collect();
    let taps = [0usize, 37];
    let (a, b): (Vec<f32>, Vec<f32>) = (values(1200, 1), values(9 * n * l, 2));
    let (residual, bias): (Vec<f32>, Vec<f32>) = (values(m * n * l, 5), values(n * l, 3));
    let c_rows: Vec<usize> = (0..m).map(|i| i * n * l).collect();
    let (residuals, partials) = (Some(false), Some(true));
    for (added, clamp, hi, last_lanes, fill) in [
        (None, false, f32::INFINITY, lanes[0], false),
        (residuals, true, f32::INFINITY, lanes[0], false),
        (None, true, 0.5, lanes[0], true),
        (residuals, true, 0.5, lanes[1], false),
        (None, false, f32::INFINITY, lanes[1], true),
        (None, true, 0.5, lanes[1], true),
        (partials, false, f32::INFINITY, lanes[1], true),
        (partials, true, 0.5, lanes[0], true),
    ] {
        let run_kernel = |f: TileFn| {
            let mut c = vec![7.0f32; m * n * l];
            let mut t = Tile::new(isa);
            (t.a, t.rows, t.taps) = (a.as_ptr(), rows.as_ptr(), taps.as_ptr());
            (t.tap_count, t.run, t.last_run) = (2, 5, 4);
            (t.b, t.b_step, t.bias) = (b.as_ptr(), n * l, bias.as_ptr());
            (t.c, t.c_rows, t.last_lanes, t.fill) = (c.as_mut_ptr(), c_rows.as_ptr(), last_lanes, fill);
            (t.clamp, t.lo, t.hi) = (clamp, -0.25, hi);
            match added {
                Some(false) => (t.residual, t.residual_rows) = (residual.as_ptr(), c_rows.as_ptr()),
                Some(true) => (t.partial, t.partial_rows) = (c.as_ptr(), c_rows.as_ptr()),
                None => {}
            }
            (t.prefetch_a, t.prefetch, t.prefetch_lines) = (64, b.as_ptr(), 1);
            // SAFETY: all offsets lie within the vectors above.
            unsafe { f(&t) };
            c
        };
        let (got, want) = (run_kernel(kernels[0]), run_kernel(kernels[1]));
        assert!(got == want, "{isa} {m} rows, {step} apart in runs of {run}, {last_lanes} lanes of {n} vectors");
    }
}

fn nan_passes<E: Element>() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let a = [E::from(f32::NAN)];
        let b = vec![E::from(1.0); isa.lanes::<E>()];
        let mut c = vec![E::ZERO; isa.lanes::<E>()];
        let zero = [0usize];
        let mut t = Tile::new(isa);
        (t.a, t.rows, t.taps, t.tap_count, t.last_run) = (a.as_ptr(), zero.as_ptr(), zero.as_ptr(), 1, 1);
        (t.b, t.c, t.c_rows) = (b.as_ptr(), c.as_mut_ptr(), zero.as_ptr());
        (t.clamp, t.lo, t.hi) = (true, E::ZERO, E::from(6.0));
        unsafe { tile_kernel(isa, TileKind::Table, 1, 1).unwrap()(&t) };
        assert!(c.iter().all(|x| Into::<f64>::into(*x).is_nan()), "{isa}");
    }
}

#[test]
fn clamp_passes_nan() {
    nan_passes::<f32>();
    nan_passes::<f64>();
}

#[test]
fn unknown_shapes_have_no_kernel() {
    assert!(tile_kernel::<f32>(Isa::Portable, TileKind::Table, 0, 1).is_none());
    assert!(tile_kernel::<f32>(Isa::Portable, TileKind::Table, 4, 2).is_none());
    assert!(tile_kernel::<f32>(Isa::Portable, TileKind::Lanes, 1, 2).is_none());
    assert!(tile_kernel::<f64>(Isa::Portable, TileKind::Lanes, 1, 1).is_none());
    assert_eq!(max_rows::<f32>(Isa::Avx512, TileKind::Table, 2), 14);
    assert_eq!(max_rows::<f64>(Isa::Avx512, TileKind::Table, 2), 14);
    assert_eq!(max_rows::<f64>(Isa::Avx512, TileKind::Lanes, 1), 0);
}

/// Every kernel of integers, exactly: the greatest operands make sums wrap.
#[test]
fn short_kernels() {
    for kernel in MICRO_KERNELS.iter().filter(|k| k.isa.is_supported() && k.bytes == 4) {
        for (m, last_lanes) in (1..=kernel.rows).flat_map(|m| [(m, kernel.lanes), (m, 1)]) {
            let (l, n) = (kernel.lanes, kernel.vectors);
            let (taps, run, last_run) = ([0usize, 700, 350], 5, 3);
            let draw = |n: usize, seed: usize| -> Vec<i32> {
                let one = |i: usize| match (i + seed) % 7 {
                    0 => i16::MIN,
                    1 => i16::MAX,
                    2 => 0,
                    k => ((i * 40_503 * seed * k) >> 3) as i16,
                };
                (0..n).map(|i| i32::from(one(i))).collect()
            };
            let a_step = if kernel.kind == TileKind::Packed { m } else { 2 };
            let rows: Vec<usize> =
                (0..m).map(|i| if kernel.kind == TileKind::Packed { i } else { i * 19 % 97 }).collect();
            let (a, b) = (draw(2000, 1), draw((2 * run + last_run) * n * l + 8 * 3, 5));
            let before: Vec<i32> = (0..m * n * l).map(|i| i as i32 * 7 - 50).collect();
            let mut c = before.clone();
            let c_rows: Vec<usize> = (0..m).map(|i| i * n * l).collect();
            let mut t = Tile::new(kernel.isa);
            (t.a, t.rows, t.taps) = (a.as_ptr().cast(), rows.as_ptr(), taps.as_ptr());
            (t.tap_count, t.run, t.last_run, t.a_step) = (3, run, last_run, a_step);
            (t.b, t.b_step, t.b_vector, t.b_skip) = (b.as_ptr().cast(), n * l, l, 8);
            (t.c, t.c_rows, t.c_vector, t.last_lanes) = (c.as_mut_ptr().cast(), c_rows.as_ptr(), l, last_lanes);
            (t.partial, t.partial_rows, t.partial_vector) = (c.as_ptr().cast(), c_rows.as_ptr(), l);
            let f = short_kernel(kernel.isa, kernel.kind, m, n).expect("supported");
            // SAFETY: all offsets lie within the vectors above.
            unsafe { f(&t) };
            for (i, j) in (0..m).flat_map(|i| (0..n * l).map(move |j| (i, j))) {
                let exists = j < (n - 1) * l + last_lanes;
                let mut sum = before[i * n * l + j];
                let mut k = 0;
                for (index, tap) in taps.iter().enumerate().filter(|_| exists) {
                    for step in 0..if index == 2 { last_run } else { run } {
                        let lane = if kernel.kind == TileKind::Lanes { j } else { 0 };
                        let x = a[tap + step * a_step + rows[i] + lane];
                        sum = sum.wrapping_add(x * b[k * n * l + index * 8 + j]);
                        k += 1;
                    }
                }
                assert_eq!(c[i * n * l + j], sum, "{} of {m} rows at {i}, {j}", kernel.name);
            }
        }
    }
}
