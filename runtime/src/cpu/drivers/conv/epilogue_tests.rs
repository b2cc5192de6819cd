use super::tests::{blocked, expected, forms, run, sizes};
use super::*;
use crate::cpu::drivers::testing::{assert_close, buffer, isas, values};
use egret_program::driver::hook::View2;
use egret_program::driver::{Activation, Bias, Epilogue, Operand};

#[test]
fn direct_epilogue() {
    for isa in isas() {
        for form in [ConvForm::Forward, ConvForm::InputGradient] {
            for mut p in forms(form, isa.lanes_f32()) {
                let forward = form == ConvForm::Forward;
                let (x, w, y) = sizes(&p);
                let (n, a) = if forward { (y, x) } else { (x, y) };
                let (channels, spatial) =
                    if forward { (p.out_channels, &p.out_spatial) } else { (p.in_channels, &p.in_spatial) };
                let pixels: usize = spatial.iter().product();
                let (a, w) = (values(a, 1), values(w, 2));
                let (bias, residual) = (values(channels, 3), values(n, 4));
                // The residual has a halo of its own.
                let mut like = p.clone();
                let halo = vec![2; spatial.len()];
                let stride = ConvProblem::blocked_len(channels, spatial, &halo, isa.lanes_f32());
                if forward {
                    (like.out_halo, like.out_batch_stride) = (halo.clone(), stride);
                } else {
                    (like.in_halo, like.in_batch_stride) = (halo.clone(), stride);
                }
                let residual_blocked = blocked(&like, !forward, &residual, isa);
                let bias_buffer = buffer(&bias);
                let want = expected(&p, &a, &w, n);
                p.epilogue = Epilogue::Direct {
                    bias: Some(Bias::PerColumn),
                    residual: Some(Operand::Full { halo, batch_stride: stride }),
                    activation: Activation::Clamp(-0.25, 1.0),
                };
                let extras = [bias_buffer.as_ptr(), residual_blocked.as_ptr()];
                let got = run(&p, isa, &a, &w, &extras, None);
                for (i, g) in got.iter().enumerate() {
                    let add = bias[i / pixels % channels] as f64 + residual[i] as f64;
                    let v = (want[i].0 + add).clamp(-0.25, 1.0);
                    assert_close(*g, v, 2000, want[i].1 + 2.0, &format_args!("{isa} {p}"));
                }
            }
        }
    }
}

/// out = (acc * channel scale + full) * scalar + 1
unsafe extern "C" fn hook(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2) {
    unsafe {
        let at = |v: &View2, i: i64, j: i64| v.ptr.cast::<f32>().offset((i * v.row + j * v.col) as isize);
        let (acc, extras, out) = (&*acc, std::slice::from_raw_parts(extras, 3), &*outs);
        for i in 0..rows {
            for j in 0..cols {
                let v = *at(acc, i, j) * *at(&extras[0], i, j) + *at(&extras[1], i, j);
                *at(out, i, j) = v * *at(&extras[2], i, j) + 1.0;
            }
        }
    }
}

#[test]
fn hooked_epilogue() {
    for isa in isas() {
        for form in [ConvForm::Forward, ConvForm::InputGradient] {
            for mut p in forms(form, isa.lanes_f32()) {
                let forward = form == ConvForm::Forward;
                let (x, w, y) = sizes(&p);
                let (n, a) = if forward { (y, x) } else { (x, y) };
                let (channels, spatial) =
                    if forward { (p.out_channels, &p.out_spatial) } else { (p.in_channels, &p.in_spatial) };
                let pixels: usize = spatial.iter().product();
                let (a, w) = (values(a, 1), values(w, 2));
                let (scale, full) = (values(channels, 3), values(n, 4));
                let full_blocked = blocked(&p, !forward, &full, isa);
                let (scale_buffer, scalar) = (buffer(&scale), buffer(&[0.5f32]));
                let want = expected(&p, &a, &w, n);
                let (halo, stride) = if forward {
                    (p.out_halo.clone(), p.out_batch_stride)
                } else {
                    (p.in_halo.clone(), p.in_batch_stride)
                };
                let operand = Operand::Full { halo, batch_stride: stride };
                p.epilogue = Epilogue::Hook {
                    extras: vec![Operand::PerColumn, operand.clone(), Operand::Scalar],
                    outs: vec![operand],
                    element_bytes: vec![4; 4],
                };
                let extras = [scale_buffer.as_ptr(), full_blocked.as_ptr(), scalar.as_ptr()];
                let got = run(&p, isa, &a, &w, &extras, Some(hook));
                for (i, g) in got.iter().enumerate() {
                    let v = want[i].0 * scale[i / pixels % channels] as f64 + full[i] as f64;
                    assert_close(*g, v * 0.5 + 1.0, 2000, want[i].1 + 3.0, &format_args!("{isa} {p}"));
                }
            }
        }
    }
}
