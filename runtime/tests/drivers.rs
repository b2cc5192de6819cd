//! Programs of loop-nest drivers: the order of arguments, preparation, halos, and equal bits for every team.

mod support;

use egret_ir::{DType, Dim, Shape, Tensor};
use egret_program::driver::hook::View2;
use egret_program::driver::{
    Activation, AttentionGradProblem, AttentionOperand, AttentionProblem, AttentionSchedule, Bias, ConvForm, ConvInput,
    ConvProblem, ConvSchedule, Direction, Driver, Epilogue, Finisher, GemmProblem, GemmSchedule, MatrixForm, Operand,
    PackForm, PackProblem, Products, RelayoutProblem, Score,
};
use egret_program::{Halo, KernelBody, Place, Step};
use egret_runtime::Executable;
use std::sync::Arc;
use support::*;

fn symbolic(d: &usize) -> Dim {
    Dim::from(*d)
}

fn floats(shape: impl Into<Shape>) -> egret_ir::TensorType {
    egret_ir::f32(shape)
}

fn assert_close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= 1e-5 * (1.0 + want.abs()), "{i}: {got} {want}");
    }
}

/// Runs with 1, 2 and 3 threads, asserts equal bits, and gives the outputs.
fn run(load: &dyn Fn(usize) -> Arc<Executable>, inputs: &[(&str, &Tensor)]) -> Vec<Tensor> {
    let mut all: Vec<Vec<Tensor>> = (1..=3)
        .map(|threads| {
            let mut session = load(threads).session().unwrap();
            let first: Vec<Tensor> = session.run(inputs).unwrap().iter().map(|o| o.to_tensor()).collect();
            let again: Vec<Tensor> = session.run(inputs).unwrap().iter().map(|o| o.to_tensor()).collect();
            assert_eq!(first, again);
            first
        })
        .collect();
    assert!(all[1] == all[0] && all[2] == all[0]);
    all.swap_remove(0)
}

/// `y = relu(conv(relu(conv(x, w) + b), v))` of 8 channels, 3x3, padding 1, symbolic batch; the middle tensor's halo is
/// cleared by the first launch.
fn two_convolutions(x_blocked: bool) -> Builder {
    let mut b = Builder::new();
    let n = Dim::symbol("n");
    let (c, h, w) = (8usize, 7usize, 5usize);
    let ty = floats([n.clone(), c.into(), h.into(), w.into()]);
    let x = b.input("x", ty.clone());
    let y = b.output("y", ty);
    let bias = b.param("bias", floats([c]));
    let padded = c * (h + 2) * (w + 2);
    let plain = ConvProblem {
        form: ConvForm::Forward,
        input: if x_blocked { ConvInput::Blocked } else { ConvInput::Image },
        batch: 1,
        in_channels: c,
        out_channels: c,
        groups: 1,
        in_spatial: vec![h, w],
        out_spatial: vec![h, w],
        kernel: vec![3, 3],
        stride: vec![1, 1],
        dilation: vec![1, 1],
        pad_begin: vec![1, 1],
        in_halo: if x_blocked { vec![1, 1] } else { vec![0, 0] },
        out_halo: vec![1, 1],
        in_batch_stride: if x_blocked { padded } else { c * h * w },
        out_batch_stride: padded,
        prologue: None,
        epilogue: Epilogue::Direct { bias: Some(Bias::PerColumn), residual: None, activation: Activation::Relu },
    };
    let second = ConvProblem {
        input: ConvInput::Blocked,
        in_halo: vec![1, 1],
        out_halo: vec![0, 0],
        in_batch_stride: padded,
        out_batch_stride: c * h * w,
        prologue: None,
        epilogue: Epilogue::Direct { bias: None, residual: None, activation: Activation::Relu },
        ..plain.clone()
    };
    let mut conv = |name: &str, problem: &ConvProblem, weights: &str| {
        let schedule = ConvSchedule::choose(problem, 8);
        let pack = PackProblem::for_conv(problem, &schedule);
        let source = b.param(weights, floats([c, c, 3, 3]));
        let packed = b.buffer(Place::Prepared, DType::F32, Dim::from(4 * pack.packed_len()));
        let kernel = b.driver("pack", Driver::Pack(pack.map(&mut symbolic)));
        b.0.prepare.push(launch(kernel, vec![reads(source), writes(packed)], vec![], 0));
        let problem = ConvProblem { batch: n.clone(), ..problem.map(&mut symbolic) };
        (b.driver(name, Driver::Conv(problem, schedule)), packed)
    };
    let (first, first_weights) = conv("conv1", &plain, "w");
    let (second, second_weights) = conv("conv2", &second, "v");
    let relayout = |direction, halo: usize, blocked: usize| {
        Driver::Relayout(RelayoutProblem {
            direction,
            lanes: 8,
            batch: n.clone(),
            channels: Dim::from(c),
            spatial: vec![Dim::from(h), Dim::from(w)],
            halo: vec![Dim::from(halo); 2],
            blocked_batch_stride: Dim::from(blocked),
            row_major_batch_stride: Dim::from(c * h * w),
        })
    };
    let mut x_in = x;
    if x_blocked {
        x_in = b.arena(DType::F32, n.clone() * Dim::from(padded));
        let to = b.driver("to", relayout(Direction::ToBlocked, 1, padded));
        b.0.steps.push(launch(to, vec![reads(x), writes(x_in)], vec![], 0));
    }
    // Something that leaves rubbish where the halo will be.
    let rubbish = b.arena(DType::F32, n.clone() * Dim::from(padded));
    let bytes = n.clone() * Dim::from(4 * c * h * w);
    b.0.steps.insert(0, Step::Copy { source: reads(x), destination: writes(rubbish), bytes });
    let middle = b.arena(DType::F32, n.clone() * Dim::from(padded));
    let mut step = launch(first, vec![reads(x_in), reads(first_weights), writes(middle), reads(bias)], vec![], 0);
    if let Step::Launch(launch) = &mut step {
        let (spatial, halo) = (vec![Dim::from(h), Dim::from(w)], vec![Dim::ONE; 2]);
        launch.clear.push(Halo { arg: writes(middle), outer: n.clone(), spatial, halo });
    }
    b.0.steps.push(step);
    let result = b.arena(DType::F32, n.clone() * Dim::from(c * h * w));
    b.0.steps.push(launch(second, vec![reads(middle), reads(second_weights), writes(result)], vec![], 0));
    let from = b.driver("from", relayout(Direction::ToRowMajor, 0, c * h * w));
    b.0.steps.push(launch(from, vec![reads(result), writes(y)], vec![], 0));
    b
}

fn reference_conv(x: &[f64], w: &[f32], bias: Option<&[f32]>, n: usize) -> Vec<f64> {
    let (c, h, wd) = (8usize, 7usize, 5usize);
    let mut y = vec![0.0; n * c * h * wd];
    for (i, out) in y.iter_mut().enumerate() {
        let (item, o, row, col) = (i / (c * h * wd), i / (h * wd) % c, i / wd % h, i % wd);
        let mut sum = bias.map_or(0.0, |b| f64::from(b[o]));
        for ic in 0..c {
            for (ky, kx) in (0..9).map(|t| (t / 3, t % 3)) {
                let (iy, ix) = (row + ky, col + kx);
                if (1..=h).contains(&iy) && (1..=wd).contains(&ix) {
                    let at = ((item * c + ic) * h + iy - 1) * wd + ix - 1;
                    sum += x[at] * f64::from(w[((o * c + ic) * 3 + ky) * 3 + kx]);
                }
            }
        }
        *out = sum.max(0.0);
    }
    y
}

#[test]
fn convolutions_with_prepared_weights() {
    let (w, v, bias) = (f32s(&[8, 8, 3, 3], 1), f32s(&[8, 8, 3, 3], 2), f32s(&[8], 3));
    let weights = |name: &str| match name {
        "w" => Some(w.clone()),
        "v" => Some(v.clone()),
        "bias" => Some(bias.clone()),
        _ => None,
    };
    for x_blocked in [true, false] {
        let load = |threads| two_convolutions(x_blocked).load(&weights, threads);
        for n in [1, 3] {
            let x = f32s(&[n, 8, 7, 5], 4);
            let wide: Vec<f64> = x.as_slice::<f32>().unwrap().iter().map(|x| f64::from(*x)).collect();
            let middle = reference_conv(&wide, w.as_slice().unwrap(), bias.as_slice(), n);
            let want = reference_conv(&middle, v.as_slice().unwrap(), None, n);
            let got = run(&load, &[("x", &x)]);
            assert_close(got[0].as_slice().unwrap(), &want);
        }
    }
    let error = Executable::load(Arc::new(two_convolutions(true).0), &nothing, Default::default()).unwrap_err();
    assert!(error.to_string().contains("`bias`: f32[8]") && error.code() == "E0506", "{error}");
}

#[test]
fn products_with_packed_weights() {
    let (m, n, k) = (13usize, 21usize, 9usize);
    let plain = GemmProblem {
        b: MatrixForm::Packed,
        epilogue: Epilogue::Direct { bias: Some(Bias::PerColumn), residual: None, activation: Activation::None },
        ..GemmProblem::plain(m, n, k)
    };
    let build = || {
        let mut b = Builder::new();
        let a = b.input("a", floats(["m".into(), Dim::from(k)]));
        let c = b.output("c", floats(["m".into(), Dim::from(n)]));
        let (w, bias) = (b.param("w", floats([k, n])), b.param("bias", floats([n])));
        let form = PackForm::Columns { products: Products::F32, count: 1, matrix_stride: 0, k, n, row: n, col: 1 };
        let pack = PackProblem { lanes: 8, form };
        let packed = b.buffer(Place::Prepared, DType::F32, Dim::from(4 * pack.packed_len()));
        let pack = b.driver("pack", Driver::Pack(pack.map(&mut symbolic)));
        b.0.prepare = vec![launch(pack, vec![reads(w), writes(packed)], vec![], 0)];
        let schedule = GemmSchedule::choose(&plain, Products::F32, 8);
        let problem = GemmProblem { m: "m".into(), ..plain.map(&mut symbolic) };
        let gemm = b.driver("gemm", Driver::Gemm(problem, schedule));
        b.0.steps = vec![launch(gemm, vec![reads(a), reads(packed), writes(c), reads(bias)], vec![], 0)];
        b
    };
    let (w, bias) = (f32s(&[k, n], 1), f32s(&[n], 2));
    let weights = |name: &str| Some(if name == "w" { w.clone() } else { bias.clone() });
    let a = f32s(&[m, k], 3);
    let got = run(&|threads| build().load(&weights, threads), &[("a", &a)]);
    let at = |t: &Tensor, i: usize| f64::from(t.as_slice::<f32>().unwrap()[i]);
    let want: Vec<f64> = (0..m * n)
        .map(|i| at(&bias, i % n) + (0..k).map(|p| at(&a, i / n * k + p) * at(&w, p * n + i % n)).sum::<f64>())
        .collect();
    assert_close(got[0].as_slice().unwrap(), &want);
}

/// `outs[0] = 2 acc + extra`, `outs[1] = acc`.
#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn twice_plus(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2) {
    let at = |v: &View2, i: i64, j: i64| v.ptr.cast::<f32>().wrapping_offset((i * v.row + j * v.col) as isize);
    unsafe {
        for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
            let x = *at(&*acc, i, j);
            *at(&*outs, i, j) = 2.0 * x + *at(&*extras, i, j);
            *at(&*outs.add(1), i, j) = x;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn hooks_and_finishers_of_products() {
    let (m, n, k) = (7usize, 19usize, 5usize);
    let full = || Operand::Full { halo: vec![], batch_stride: 0 };
    let (extras, outs, element_bytes) = (vec![Operand::PerRow], vec![full(), full()], vec![4, 4, 4]);
    let hooked = GemmProblem {
        epilogue: Epilogue::Hook { extras: extras.clone(), outs: outs.clone(), element_bytes: element_bytes.clone() },
        ..GemmProblem::plain(m, n, k)
    };
    let finished = GemmProblem {
        epilogue: Epilogue::Direct { bias: Some(Bias::PerColumn), residual: None, activation: Activation::None },
        finisher: Some(Finisher { extras, outs, element_bytes }),
        ..GemmProblem::plain(m, n, k)
    };
    let build = || {
        let mut b = Builder::new();
        let (a, w) = (b.input("a", floats([m, k])), b.input("w", floats([k, n])));
        let (bias, row) = (b.input("bias", floats([n])), b.input("row", floats([m])));
        let out = ["h0", "h1", "f0", "f1"].map(|name| b.output(name, floats([m, n])));
        let hook = b.hook("hook", twice_plus);
        for (problem, finisher) in [(&hooked, false), (&finished, true)] {
            let schedule = GemmSchedule::choose(problem, Products::F32, 8);
            let gemm = b.driver("gemm", Driver::Gemm(problem.map(&mut symbolic), schedule));
            let KernelBody::Driver { hook: h, finisher: f, .. } = &mut b.0.kernels[gemm.0 as usize].body else {
                return b;
            };
            *(if finisher { f } else { h }) = Some(hook);
            let out = if finisher { &out[2..] } else { &out[..2] };
            let mut args = vec![reads(a), reads(w), writes(out[0])];
            args.extend(finisher.then(|| reads(bias)));
            args.extend([reads(row), writes(out[0]), writes(out[1])]);
            b.0.steps.push(launch(gemm, args, vec![], 0));
        }
        b
    };
    let tensors = [f32s(&[m, k], 1), f32s(&[k, n], 2), f32s(&[n], 3), f32s(&[m], 4)];
    let inputs: Vec<(&str, &Tensor)> = ["a", "w", "bias", "row"].into_iter().zip(&tensors).collect();
    let got = run(&|threads| build().load(&nothing, threads), &inputs);
    let at = |t: usize, i: usize| f64::from(tensors[t].as_slice::<f32>().unwrap()[i]);
    let dot = |i: usize| (0..k).map(|p| at(0, i / n * k + p) * at(1, p * n + i % n)).sum::<f64>();
    let all = |f: &dyn Fn(usize) -> f64| (0..m * n).map(f).collect::<Vec<f64>>();
    assert_close(got[0].as_slice().unwrap(), &all(&|i| 2.0 * dot(i) + at(3, i / n)));
    assert_close(got[1].as_slice().unwrap(), &all(&dot));
    assert_close(got[2].as_slice().unwrap(), &all(&|i| 2.0 * (dot(i) + at(2, i % n)) + at(3, i / n)));
    assert_close(got[3].as_slice().unwrap(), &all(&|i| dot(i) + at(2, i % n)));
}

#[test]
fn drivers_that_refuse_name_the_kernel() {
    let mut b = Builder::new();
    let (a, c) = (b.input("a", floats([4, 4])), b.output("c", floats([4, 4])));
    let schedule = GemmSchedule::choose(&GemmProblem::plain(4, 4, 4), Products::F32, 8);
    let gemm = b.driver("gemm_1", Driver::Gemm(GemmProblem::plain(4, 4, 4).map(&mut symbolic), schedule));
    b.0.steps = vec![launch(gemm, vec![reads(a), writes(c)], vec![], 0)];
    let error = b.load(&nothing, 1).session().unwrap().run(&[("a", &f32s(&[4, 4], 1))]).unwrap_err();
    assert!(error.code() == "E0510" && error.to_string().starts_with("gemm_1 at node 0"), "{error}");
}

#[test]
fn attention_and_its_gradient() {
    let (heads, len, dim) = (2usize, 6usize, 4usize);
    let operand = || AttentionOperand { outer: vec![len * dim], row: dim };
    let problem = AttentionProblem {
        outer: vec![heads],
        shared: 0,
        q_len: len,
        k_len: len,
        head_dim: dim,
        value_dim: dim,
        q: operand(),
        k: operand(),
        v: operand(),
        o: operand(),
        lse: Some(AttentionOperand { outer: vec![len], row: 1 }),
        score: Score::Plain { scale: 0.5, mask: None, truth: None },
        causal: None,
        empty_is_zero: false,
    };
    let build = || {
        let mut b = Builder::new();
        let ty = floats([1, heads, len, dim]);
        let [q, k, v, go] = ["q", "k", "v", "go"].map(|name| b.input(name, ty.clone()));
        let [o, gq, gk, gv] = ["o", "gq", "gk", "gv"].map(|name| b.output(name, ty.clone()));
        let lse = b.arena(DType::F32, heads * len);
        let schedule = AttentionSchedule::choose(8);
        let forward = b.driver("attention", Driver::Attention(problem.map(&mut symbolic), schedule.clone()));
        let gradient = AttentionGradProblem {
            forward: problem.clone(),
            grad_o: operand(),
            grad_q: operand(),
            grad_k: operand(),
            grad_v: operand(),
        };
        let backward = b.driver("gradient", Driver::AttentionGrad(gradient.map(&mut symbolic), schedule));
        let args =
            vec![reads(q), reads(k), reads(v), reads(o), reads(lse), reads(go), writes(gq), writes(gk), writes(gv)];
        b.0.steps = vec![
            launch(forward, vec![reads(q), reads(k), reads(v), writes(o), writes(lse)], vec![], 0),
            launch(backward, args, vec![], 0),
        ];
        b
    };
    let shape = [1, heads, len, dim];
    let tensors: Vec<Tensor> = (1..=4).map(|seed| f32s(&shape, seed)).collect();
    let inputs: Vec<(&str, &Tensor)> = ["q", "k", "v", "go"].into_iter().zip(&tensors).collect();
    let got = run(&|threads| build().load(&nothing, threads), &inputs);
    let wide = |t: &Tensor| t.as_slice::<f32>().unwrap().iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let [q, k, v, go] = [0, 1, 2, 3].map(|i| wide(&tensors[i]));
    let size = heads * len * dim;
    let (mut o, mut gq, mut gk, mut gv) = (vec![0.0; size], vec![0.0; size], vec![0.0; size], vec![0.0; size]);
    for (h, i) in (0..heads * len).map(|x| (x / len, x % len)) {
        let at = |row: usize, c: usize| (h * len + row) * dim + c;
        let dot = |a: &[f64], r: usize, b: &[f64], s: usize| (0..dim).map(|c| a[at(r, c)] * b[at(s, c)]).sum::<f64>();
        let e: Vec<f64> = (0..len).map(|j| (0.5 * dot(&q, i, &k, j)).exp()).collect();
        let sum: f64 = e.iter().sum();
        for j in 0..len {
            for c in 0..dim {
                o[at(i, c)] += e[j] / sum * v[at(j, c)];
            }
        }
        let delta = dot(&go, i, &o, i);
        for j in 0..len {
            let ds = e[j] / sum * (dot(&go, i, &v, j) - delta) * 0.5;
            for c in 0..dim {
                gv[at(j, c)] += e[j] / sum * go[at(i, c)];
                gq[at(i, c)] += ds * k[at(j, c)];
                gk[at(j, c)] += ds * q[at(i, c)];
            }
        }
    }
    for (got, want) in got.iter().zip([o, gq, gk, gv]) {
        assert_close(got.as_slice().unwrap(), &want);
    }
}
