use super::*;

fn reference(f: VectorFunction, x: f64) -> f64 {
    match f {
        VectorFunction::Exp => x.exp(),
        VectorFunction::Log => x.ln(),
        VectorFunction::Tanh => x.tanh(),
        VectorFunction::Erf => erf(x),
        VectorFunction::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        VectorFunction::Sin => x.sin(),
        VectorFunction::Cos => x.cos(),
        VectorFunction::Expm1 => x.exp_m1(),
        VectorFunction::Log1p => x.ln_1p(),
    }
}

/// The error function in f64: its series near zero, the continued fraction of its complement far from it.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= -a * a / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        return (2.0 / std::f64::consts::PI.sqrt() * sum).copysign(x);
    }
    let mut f = 0.0;
    for n in (1..80).rev() {
        f = n as f64 / 2.0 / (a + f);
    }
    let complement = (-a * a).exp() / ((a + f) * std::f64::consts::PI.sqrt());
    (1.0 - complement).copysign(x)
}

/// Error in units of the last place of the exact value.
fn ulps(got: f32, exact: f64) -> f64 {
    if exact.is_nan() || exact.abs() > f32::MAX as f64 * (1.0 + 1e-8) {
        let same = got.is_nan() == exact.is_nan() && (exact.is_nan() || got as f64 == exact.signum() / 0.0);
        return if same { 0.0 } else { f64::INFINITY };
    }
    let exponent = (exact.abs().max(f32::MIN_POSITIVE as f64)).log2().floor();
    (got as f64 - exact).abs() / (exponent - 23.0).exp2()
}

fn bound(f: VectorFunction, x: f32, exact: f64) -> f64 {
    match f {
        VectorFunction::Exp => 1.5,
        VectorFunction::Sigmoid | VectorFunction::Expm1 | VectorFunction::Log1p => 2.5,
        VectorFunction::Sin | VectorFunction::Cos if x.abs() > 0.7 => {
            let ulp = ((exact.abs().max(1e-30)).log2().floor() - 23.0).exp2();
            f64::max(2.0, (-24f64).exp2() / ulp)
        }
        _ => 2.0,
    }
}

#[test]
fn accuracy() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for f in VectorFunction::ALL {
            // Every float pattern at a stride, so that all exponents are seen, and a dense range.
            let mut xs: Vec<f32> = (0..u32::MAX).step_by(20_011).map(f32::from_bits).collect();
            xs.extend((-200_000..200_000).map(|i| i as f32 * 5.37e-5));
            xs.extend((-20_000..20_000).map(|i| i as f32 * 0.005_37));
            let mut ys = vec![0.0; xs.len()];
            unsafe { vector_function(isa, f).unwrap()(ys.as_mut_ptr(), xs.as_ptr(), xs.len()) };
            let mut worst = (0.0, 0.0, 0.0);
            for (&x, &y) in xs.iter().zip(&ys) {
                let exact = reference(f, x as f64);
                let error = ulps(y, exact) / bound(f, x, exact);
                if error > worst.0 {
                    worst = (error, x, y);
                }
            }
            let (error, x, y) = worst;
            let exact = reference(f, x as f64);
            println!("{isa} {}: {:.2} ulp at {x:e}", f.name(), ulps(y, exact));
            assert!(error <= 1.0, "{isa} {}: f({x:e}) = {y:e}, exact {exact:e}", f.name());
        }
    }
}

#[test]
fn results_do_not_depend_on_position() {
    let xs: Vec<f32> = (0..70).map(|i| i as f32 * 0.37 - 9.0 + (i % 7) as f32 * 200.0).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for f in VectorFunction::ALL {
            let function = vector_function(isa, f).unwrap();
            let mut whole = vec![0.0; xs.len()];
            unsafe { function(whole.as_mut_ptr(), xs.as_ptr(), xs.len()) };
            for start in 0..20 {
                for n in [0, 1, 5, 17, 33] {
                    let mut part = vec![7.0; n + 1];
                    unsafe { function(part.as_mut_ptr(), xs[start..].as_ptr(), n) };
                    assert_eq!(part[n], 7.0);
                    for i in 0..n {
                        assert_eq!(part[i].to_bits(), whole[start + i].to_bits(), "{isa} {f:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn names() {
    for f in VectorFunction::ALL {
        assert_eq!(VectorFunction::from_name(f.name()), Some(f));
    }
}
