//! Rules made of rules, less precision, gradients of one's own, and programs that share their states: compiled.

use egret::nn::data::{DataSet, Table};
use egret::nn::{
    Accumulate, Adam, BatchNorm, Clip, ClipBy, Conv2d, Dropout, Ema, Flatten, Init, Layer, LayerNorm, Linear,
    LossScaled, Optimiser, Params, Precision, Schedule, Sequential, Sgd, loss,
};
use egret::{Copied, DType, Device, Fit, Objective, ScalarFn, Tensor, Trainer, Var, f32, i64, shape};

fn cpu() -> Device {
    Device::cpu().with_threads(1)
}

/// Numbers in −1..1 that repeat late.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32).map(|i| (((i + 1) * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// `y = relu(x · a) · b` of fixed a and b.
fn pairs(count: usize) -> Table {
    let x = numbers(count * 4, 1);
    let (a, b) = (numbers(4 * 3, 2), numbers(3, 3));
    let y: Vec<f32> = x
        .chunks(4)
        .map(|x| {
            let hidden = |j: usize| (0..4).map(|i| x[i] * a[i * 3 + j]).sum::<f32>().max(0.0);
            (0..3).map(|j| hidden(j) * b[j]).sum()
        })
        .collect();
    let x = Tensor::new(&[count, 4], &x).unwrap();
    Table::new([("x", x), ("y", Tensor::new(&[count, 1], &y).unwrap())]).unwrap()
}

fn regression(optimiser: &dyn Optimiser) -> Trainer {
    let net = Sequential::new().named("a", Linear::new(8)).layer(ScalarFn::Relu).named("b", Linear::new(1));
    Trainer::new(&cpu(), optimiser, 1, |p| {
        let y = net.forward(p, p.tracer().input("x", f32(shape!["batch", 4])));
        Objective::new(loss::mse(y, p.tracer().input("y", f32(shape!["batch", 1])))).output("y", y)
    })
    .unwrap()
}

/// Steps of so many examples, from these on.
fn steps(trainer: &mut Trainer, data: &Table, examples: usize, first: &[usize]) {
    for first in first {
        let batch = data.batch(&(*first..first + examples).collect::<Vec<_>>()).unwrap();
        let batch: Vec<(&str, &Tensor)> = batch.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        trainer.step(&batch).unwrap();
    }
}

fn far(a: &Tensor, b: &Tensor) -> f64 {
    a.values().zip(b.values()).map(|(a, b)| (a.as_f64() - b.as_f64()).abs()).fold(0.0, f64::max)
}

#[test]
fn two_small_batches_are_one_large() {
    let data = pairs(64);
    let mut large = regression(&Adam::default());
    let mut small = regression(&Accumulate::new(Adam::default(), 2));
    large.set_learning_rate(0.01);
    small.set_learning_rate(0.01);
    for _ in 0..3 {
        steps(&mut large, &data, 32, &[0, 32]);
        steps(&mut small, &data, 16, &[0, 16, 32, 48]);
    }
    for name in large.parameters() {
        let (a, b) = (large.parameter(name).unwrap(), small.parameter(name).unwrap());
        // two orders of summing gradients, through six steps of Adam
        assert!(far(&a, &b) < 1e-4, "{name}: {}", far(&a, &b));
    }
    let before = small.parameter("a.weight").unwrap();
    steps(&mut small, &data, 16, &[0]);
    assert_eq!(small.parameter("a.weight").unwrap(), before, "half a step moves nothing");
}

#[test]
fn evaluation_reads_the_averages() {
    let data = pairs(32);
    let mut trainer = regression(&Ema::new(Sgd::default(), 0.5));
    trainer.set_learning_rate(0.1);
    let first = trainer.parameter("a.weight").unwrap();
    assert_eq!(trainer.parameter("a.weight.average").unwrap(), first);
    steps(&mut trainer, &data, 32, &[0]);
    let moved = trainer.parameter("a.weight").unwrap();
    let average = trainer.parameter("a.weight.average").unwrap();
    let mean = |i: usize| (first.get(i).as_f64() + moved.get(i).as_f64()) / 2.0;
    assert!(far(&first, &moved) > 1e-4);
    assert!((0..average.elements()).all(|i| (average.get(i).as_f64() - mean(i)).abs() < 1e-6));
    // with the averages as weights, a trainer without any gives the same
    let values = trainer.parameters().iter();
    let values = values.map(|name| (name.clone(), trainer.parameter(&format!("{name}.average")).unwrap()));
    let values: Vec<_> = values.collect();
    let mut plain = regression(&Sgd::default());
    values.iter().for_each(|(name, value)| plain.state().set(name, value).unwrap());
    assert_eq!(trainer.evaluate(&data, 32).unwrap(), plain.evaluate(&data, 32).unwrap());
}

/// A network with everything that precision must treat in its own way.
fn mixed(dtype: DType, optimiser: &dyn Optimiser) -> Trainer {
    let net = Sequential::new()
        .named("conv", Conv2d::new(4, 3).padding(1))
        .layer(BatchNorm::default())
        .layer(ScalarFn::Relu)
        .layer(Flatten)
        .named("hidden", Linear::new(16))
        .layer(LayerNorm::default())
        .layer(ScalarFn::Gelu)
        .named("out", Linear::new(2));
    let net = Precision::new(dtype, net);
    Trainer::new(&cpu(), optimiser, 1, |p| {
        let logits = net.forward(p, p.tracer().input("x", f32(shape!["batch", 1, 6, 6])));
        let labels = p.tracer().input("y", i64(shape!["batch"]));
        Objective::new(loss::cross_entropy(logits, labels)).classes(logits, labels)
    })
    .unwrap()
}

/// Images that are brighter on the left, or on the right.
fn sides(count: usize) -> Table {
    let mut images = numbers(count * 36, 5);
    let labels: Vec<i64> = (0..count as i64).map(|i| i % 2).collect();
    for (image, label) in images.chunks_mut(36).zip(&labels) {
        for (i, pixel) in image.iter_mut().enumerate() {
            *pixel += if i64::from(i % 6 < 3) == *label { 0.5 } else { -0.5 };
        }
    }
    let images = Tensor::new(&[count, 1, 6, 6], &images).unwrap();
    Table::new([("x", images), ("y", Tensor::new(&[count], &labels).unwrap())]).unwrap()
}

#[test]
fn halves_learn_with_masters_of_full_precision() {
    let data = sides(96);
    let fit = Fit::new(8).batch(16).schedule(Schedule::constant(3e-3));
    let scaled = LossScaled::new(Adam::default());
    let rules: [(DType, &dyn Optimiser); 2] = [(DType::BF16, &Adam::default()), (DType::F16, &scaled)];
    for (dtype, rule) in rules {
        let mut trainer = mixed(dtype, rule);
        let graph = trainer.step_program().graph();
        let computed = graph
            .nodes()
            .iter()
            .any(|node| matches!(node.op, egret::ir::Op::Conv(_)) && node.ty.parts()[0].dtype == dtype);
        assert!(computed, "the convolution is not computed in {dtype}");
        let history = trainer.fit(&data, Some(&data), &fit).unwrap();
        let last = &history.epochs[7];
        assert!(last.valid_loss.unwrap() < 0.5 * history.epochs[0].loss, "{dtype}: {history:?}");
        assert!(last.accuracy > Some(0.9), "{dtype}: {last:?}");
        for name in trainer.state().names().iter().filter(|name| !name.contains("optimiser")) {
            assert_eq!(trainer.parameter(name).unwrap().dtype(), DType::F32, "{name}");
        }
        // moves smaller than the half's own steps are kept
        let weight = trainer.parameter("out.weight").unwrap();
        let held = |x: f64| {
            let mut half = Tensor::zeros(dtype, &[]);
            half.set(0, egret::ScalarValue::Float(x));
            half.get(0).as_f64() == x
        };
        assert!(weight.values().any(|x| !held(x.as_f64())), "{name} is rounded", name = "out.weight");
    }
}

#[test]
fn a_step_that_overflows_is_left_out() {
    let data = sides(16);
    let rule = LossScaled { initial: 1e30, ..LossScaled::new(Clip::new(ClipBy::Norm(1.0), Adam::default())) };
    let mut trainer = mixed(DType::F16, &rule);
    let before = trainer.parameter("out.weight").unwrap();
    steps(&mut trainer, &data, 16, &[0]);
    assert_eq!(trainer.parameter("out.weight").unwrap(), before);
    let scale = trainer.state().get("optimiser.loss_scale").unwrap().get(0).as_f64();
    assert!((scale / 5e29 - 1.0).abs() < 1e-6, "{scale}");
    // halved until gradients fit, and steps move again
    for _ in 0..120 {
        steps(&mut trainer, &data, 16, &[0]);
    }
    assert_ne!(trainer.parameter("out.weight").unwrap(), before);
    let finite = |t: Tensor| t.values().all(|x| x.as_f64().is_finite());
    assert!(trainer.parameters().iter().all(|name| finite(trainer.parameter(name).unwrap())));
}

/// Two programs, one state: what is drawn approaches the data, although each half sees the other through its weights
/// alone.
#[test]
fn a_step_copies_nothing_but_its_batch_and_its_loss() {
    let net = Sequential::new()
        .layer(Conv2d::new(6, 3))
        .layer(BatchNorm::default())
        .layer(ScalarFn::Relu)
        .layer(Flatten)
        .layer(Dropout::new(0.2))
        .layer(Linear::new(5));
    let accumulated = Accumulate::new(Ema::new(Sgd::momentum(0.9), 0.9), 2);
    let clipped = Clip::new(ClipBy::Norm(1.0), Adam::w(0.01));
    let plain = Sgd::default();
    let rules = [&Adam::default() as &dyn Optimiser, &accumulated, &clipped, &plain, &Sgd::momentum(0.9)];
    for optimiser in rules {
        let mut trainer = Trainer::new(&cpu(), optimiser, 1, |p| {
            let logits = net.forward(p, p.tracer().input("x", f32(shape!["batch", 3, 8, 8])));
            Objective::new(loss::cross_entropy(logits, p.tracer().input("y", i64(shape!["batch"]))))
        })
        .unwrap();
        let x = Tensor::new(&[4, 3, 8, 8], &numbers(4 * 192, 1)).unwrap();
        let y = Tensor::new(&[4], &[0i64, 1, 2, 3]).unwrap();
        for _ in 0..3 {
            trainer.step(&[("x", &x), ("y", &y)]).unwrap();
            let Copied { inputs, outputs, within } = trainer.copied();
            assert!(inputs <= x.bytes().len() + y.bytes().len() && outputs <= 4, "{:?}", trainer.copied());
            assert_eq!(within, 0, "no state is copied");
        }
    }
}

#[test]
fn a_gan_trains_with_two_programs_that_share_states() {
    let generator =
        || Sequential::new().named("in", Linear::new(16)).layer(ScalarFn::Relu).named("out", Linear::new(1));
    let discriminator =
        || Sequential::new().named("in", Linear::new(16)).layer(ScalarFn::Relu).named("out", Linear::new(1));
    // noise of each step is the graph's own
    fn drawn<'t>(p: &Params<'_, 't>, of: &dyn Fn(&Params<'_, 't>, Var<'t>) -> Var<'t>) -> Var<'t> {
        let noise = p.tracer().normal(p.stream(), p.random_counter(), f32(shape![64, 2]));
        of(&p.at("generator"), noise)
    }
    let rule = Adam { beta1: 0.5, ..Adam::default() };
    let mut judge = Trainer::new(&cpu(), &rule, 3, |p| {
        let real = p.tracer().input("real", f32(shape![64, 1]));
        let net = generator();
        let fake = drawn(p, &|p, x| net.forward(p, x)).stop_gradient();
        let judged = |x| discriminator().forward(&p.at("discriminator"), x);
        let one = p.tracer().scalar(egret::Literal::float(1.0, DType::F32));
        let loss = loss::binary_cross_entropy(judged(real), one) + judged(fake).softplus().mean();
        Objective::new(loss).below("discriminator").output("fake", fake)
    })
    .unwrap();
    let mut forger = Trainer::sharing(judge.state(), &cpu(), &rule, 3, |p| {
        let net = generator();
        let fake = drawn(p, &|p, x| net.forward(p, x));
        let judged = discriminator().forward(&p.at("discriminator"), fake);
        Objective::new((-judged).softplus().mean()).below("generator").output("fake", fake)
    })
    .unwrap();
    assert!(judge.parameters().iter().all(|name| name.starts_with("discriminator.")));
    assert!(forger.parameters().iter().all(|name| name.starts_with("generator.")));
    judge.set_learning_rate(0.005);
    forger.set_learning_rate(0.005);
    // data: mean 3, deviation 0.5
    let real = |step: u32| {
        let values: Vec<f32> = numbers(64, step).iter().map(|x| 3.0 + 0.866 * x).collect();
        Tensor::new(&[64, 1], &values).unwrap()
    };
    let mean = |trainer: &mut Trainer| {
        let outputs = trainer.evaluate_batch(&[]).unwrap();
        let fake = outputs.get("fake").unwrap().to_tensor();
        fake.values().map(|x| x.as_f64()).sum::<f64>() / 64.0
    };
    let first = mean(&mut forger);
    for step in 0..600 {
        let before = forger.parameter("generator.out.weight").unwrap();
        judge.step(&[("real", &real(step))]).unwrap();
        assert_eq!(judge.parameter("generator.out.weight").unwrap(), before, "the judge does not move the forger");
        let before = judge.parameter("discriminator.out.weight").unwrap();
        forger.step(&[]).unwrap();
        assert_eq!(forger.parameter("discriminator.out.weight").unwrap(), before);
    }
    let last = mean(&mut forger);
    assert!((first - 3.0).abs() > 2.0 && (last - 3.0).abs() < 1.0, "the mean goes from {first} to {last}");
    // each half counts its own steps
    for half in ["discriminator", "generator"] {
        assert_eq!(judge.state().get(&format!("{half}.optimiser.steps")).unwrap().get(0).as_int(), 600);
    }
}

#[test]
fn gradients_of_ones_own_are_compiled() {
    let graph = egret::trace(|t| {
        let x = t.input("x", f32(shape!["n", 3]));
        let w = t.param("w", Tensor::new(&[3, 2], &numbers(6, 4)).unwrap());
        let product = t.custom_vjp(
            &[x, w],
            |_, v| vec![v[0].matmul(v[1])],
            |_, b| {
                let (x, w, dy) = (b.operands[0], b.operands[1], b.upstream[0]);
                // by x as it is, by w twice as long
                vec![dy.matmul(w.t()), x.t().matmul(dy) * 2.0]
            },
        )[0];
        let (value, gradients) = t.value_and_grad(&[x, w], |_| (product.tanh() * product).sum());
        [("value", value), ("by_x", gradients[0]), ("by_w", gradients[1])]
    })
    .unwrap();
    let x = Tensor::new(&[5, 3], &numbers(15, 9)).unwrap();
    let run = |device: &Device| {
        let exe = egret::compile(&graph, device).unwrap();
        let mut session = exe.session().unwrap();
        let outputs = session.run(&[("x", &x)]).unwrap();
        ["value", "by_x", "by_w"].map(|name| outputs.get(name).unwrap().to_tensor())
    };
    let (have, want) = (run(&cpu()), run(&Device::interpreter()));
    for (have, want) in have.iter().zip(&want) {
        assert!(far(have, want) < 1e-5, "{have:?} for {want:?}");
    }
    // and it is the rule's: twice that of the plain product
    let plain = egret::trace(|t| {
        let x = t.input("x", f32(shape!["n", 3]));
        let w = t.param("w", Tensor::new(&[3, 2], &numbers(6, 4)).unwrap());
        let product = x.matmul(w);
        t.grad((product.tanh() * product).sum(), &[w])
    })
    .unwrap();
    let exe = egret::compile(&plain, &cpu()).unwrap();
    let mut session = exe.session().unwrap();
    let plain = session.run(&[("x", &x)]).unwrap().at(0).unwrap().to_tensor();
    let twice: Vec<f32> = plain.values().map(|x| 2.0 * x.as_f64() as f32).collect();
    assert!(far(&have[2], &Tensor::new(&[3, 2], &twice).unwrap()) < 1e-5);
}

#[test]
fn an_operator_without_gradient_is_named_with_its_place() {
    let trainer = Trainer::new(&cpu(), &Sgd::default(), 1, |p| {
        let w = p.get("w", &[4], Init::ONES);
        let (last, _, _) = p.tracer().while_loop(
            None,
            &[w.sum()],
            |t, v| v[0].less(t.scalar(egret::Literal::float(100.0, DType::F32))),
            |_, v| (vec![v[0] * 2.0], vec![]),
        );
        Objective::new(last[0])
    });
    let error = trainer.err().unwrap().diagnostic();
    assert!(error.code == "E0402" && error.origin[0].to_string().contains("optimisers.rs"), "{error}");
}
