use super::tests::{expected, forms, run_mapped, sizes};
use super::*;
use crate::cpu::drivers::testing::{assert_close, buffer, isas, values};
use egret_program::driver::hook::View2;
use egret_program::driver::{Activation, Epilogue, Operand, Prologue};

/// Forms that a prologue may stand before.
fn mapped(lanes: usize) -> impl Iterator<Item = ConvProblem> {
    forms(ConvForm::Forward, lanes).into_iter().filter(has_prologue)
}

fn has_prologue(p: &ConvProblem) -> bool {
    p.form == ConvForm::Forward && (p.groups == 1 || p.is_depthwise()) && p.in_spatial.len() <= 2
}

fn map(p: &ConvProblem, x: &[f32], f: impl Fn(f32, usize) -> f32) -> Vec<f32> {
    let pixels: usize = p.in_spatial.iter().product();
    x.iter().enumerate().map(|(i, x)| f(*x, i / pixels % p.in_channels)).collect()
}

#[test]
fn affine() {
    for isa in isas() {
        for mut p in mapped(isa.lanes_f32()) {
            let (x, w, y) = sizes(&p);
            let (x, w) = (values(x, 1), values(w, 2));
            let (scale, shift) = (values(p.in_channels, 3), values(p.in_channels, 4));
            let operands = [buffer(&scale), buffer(&shift)];
            for case in 0..4 {
                let (scaled, shifted) = (case & 1 == 1, case & 2 == 2);
                let activation = [Activation::Relu, Activation::Clamp(-0.5, 0.25), Activation::None][case % 3];
                p.prologue = Some(Prologue::Affine { scale: scaled, shift: shifted, activation });
                let read = map(&p, &x, |x, c| {
                    let x = if scaled { x * scale[c] } else { x };
                    let x = if shifted { x + shift[c] } else { x };
                    match activation {
                        Activation::None => x,
                        Activation::Relu => x.max(0.0),
                        Activation::Clamp(lo, hi) => x.clamp(lo, hi),
                    }
                });
                let used = [scaled, shifted];
                let extras: Vec<*mut u8> =
                    operands.iter().zip(used).filter(|(_, used)| *used).map(|(o, _)| o.as_ptr()).collect();
                let want = expected(&p, &read, &w, y);
                let got = run_mapped(&p, isa, &x, &w, (&[], None), (&extras, None));
                for (g, (sum, size)) in got.iter().zip(&want) {
                    assert_close(*g, *sum, 2000, *size, &format_args!("{isa} {p}"));
                }
            }
        }
    }
}

unsafe fn at(v: &View2, i: i64, j: i64) -> *mut f32 {
    unsafe { v.ptr.cast::<f32>().offset((i * v.row + j * v.col) as isize) }
}

/// out = acc * acc * channel + scalar
unsafe extern "C" fn square(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2) {
    unsafe {
        let extras = std::slice::from_raw_parts(extras, 2);
        for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
            let x = *at(&*acc, i, j);
            *at(&*outs, i, j) = x * x * *at(&extras[0], i, j) + *at(&extras[1], i, j);
        }
    }
}

/// out = acc + channel
unsafe extern "C" fn biased(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2) {
    unsafe {
        for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
            *at(&*outs, i, j) = *at(&*acc, i, j) + *at(&*extras, i, j);
        }
    }
}

/// A prologue's hook, with a hook after the sum as well: the padding is zero and not the prologue of zero.
#[test]
fn hooked() {
    for isa in isas() {
        for mut p in mapped(isa.lanes_f32()) {
            let (x, w, y) = sizes(&p);
            let (x, w) = (values(x, 1), values(w, 2));
            let (scale, bias) = (values(p.in_channels, 3), values(p.out_channels, 4));
            let (scale_buffer, scalar, bias_buffer) = (buffer(&scale), buffer(&[0.5f32]), buffer(&bias));
            p.prologue = Some(Prologue::Hook { by_channel: vec![true, false], element_bytes: vec![4, 4] });
            let (halo, batch_stride) = (p.out_halo.clone(), p.out_batch_stride);
            p.epilogue = Epilogue::Hook {
                extras: vec![Operand::PerColumn],
                outs: vec![Operand::Full { halo, batch_stride }],
                element_bytes: vec![4; 2],
            };
            let read = map(&p, &x, |x, c| x * x * scale[c] + 0.5);
            let want = expected(&p, &read, &w, y);
            let epilogue: (&[*mut u8], _) = (&[bias_buffer.as_ptr()], Some(biased as EpilogueFn));
            let prologue: (&[*mut u8], _) = (&[scale_buffer.as_ptr(), scalar.as_ptr()], Some(square as EpilogueFn));
            let got = run_mapped(&p, isa, &x, &w, epilogue, prologue);
            let pixels: usize = p.out_spatial.iter().product();
            for (i, g) in got.iter().enumerate() {
                let want = (want[i].0 + f64::from(bias[i / pixels % p.out_channels]), want[i].1 + 1.0);
                assert_close(*g, want.0, 2000, want.1, &format_args!("{isa} {p}"));
            }
        }
    }
}

/// Channels of a wider image, in another order, one of them twice.
#[test]
fn taken() {
    for isa in isas() {
        let lanes = isa.lanes_f32();
        for mut p in mapped(lanes) {
            let of = p.in_channels + lanes + 3;
            let mut channels: Vec<u32> = (0..p.in_channels).map(|c| ((c * 7 + 2) % of) as u32).collect();
            channels[0] = channels[p.in_channels - 1];
            p.in_batch_stride = ConvProblem::blocked_len(of, &p.in_spatial, &p.in_halo, lanes);
            p.prologue = Some(Prologue::Taken { of: of as u32, channels: channels.clone() });
            let (_, w, y) = sizes(&p);
            let pixels: usize = p.in_spatial.iter().product();
            let (image, w) = (values(p.batch * of * pixels, 1), values(w, 2));
            let from = |item: usize, channel: u32| (item * of + channel as usize) * pixels;
            let places = (0..p.batch).flat_map(|item| channels.iter().map(move |channel| from(item, *channel)));
            let read: Vec<f32> = places.flat_map(|at| image[at..at + pixels].to_vec()).collect();
            let want = expected(&p, &read, &w, y);
            let got = run_mapped(&p, isa, &image, &w, (&[], None), (&[], None));
            for (g, (sum, size)) in got.iter().zip(&want) {
                assert_close(*g, *sum, 2000, *size, &format_args!("{isa} {p}"));
            }
            let refused = |p: &ConvProblem| ConvPlan::new(p, &ConvSchedule::choose(p, lanes), isa).is_err();
            channels[0] = of as u32;
            p.prologue = Some(Prologue::Taken { of: of as u32, channels: channels.clone() });
            assert!(refused(&p));
            channels.pop();
            p.prologue = Some(Prologue::Taken { of: of as u32 + 1, channels });
            assert!(refused(&p));
        }
    }
}

/// An image needs no halo before a prologue; gradients, groups and row-major images have none.
#[test]
fn what_has_no_prologue_is_an_error() {
    let isa = Isa::Portable;
    let prologue = Prologue::Affine { scale: false, shift: false, activation: Activation::Relu };
    for form in [ConvForm::Forward, ConvForm::InputGradient, ConvForm::WeightGradient] {
        for mut p in forms(form, 8) {
            p.prologue = Some(prologue.clone());
            let plan = ConvPlan::new(&p, &ConvSchedule::choose(&p, 8), isa);
            assert_eq!(plan.is_ok(), has_prologue(&p), "{p}");
            assert!(p.read_halo().iter().all(|halo| *halo == 0));
            p.input = ConvInput::Image;
            assert!(ConvPlan::new(&p, &ConvSchedule::choose(&p, 8), isa).is_err());
        }
    }
}
