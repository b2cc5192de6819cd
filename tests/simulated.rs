//! Simulated GPUs through the façade: devices by name, a trained model, states and the device that they belong to.

use egret::{Device, Effort, Error, Tensor, Tuner, f32, shape};
use egret_runtime::cuda::{Cache, nvrtc::Nvrtc};

/// A GPU with a cache of the tests' own; `None` where this machine has no NVRTC, which continuous integration must have.
fn device() -> Option<Device> {
    if let Err(error) = Nvrtc::get() {
        assert!(!std::env::var("CI").is_ok_and(|v| v == "true"), "{error}");
        eprintln!("skipped: {error}");
        return None;
    }
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let device: Device = "cuda-sim:sm_80".parse().unwrap();
    Some(device.with_cache(Cache::at(folder)).unwrap_or_else(|e| panic!("{e}")))
}

/// Values in −1 to 1, the same on every run.
fn values(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let all: Vec<f32> = (0..count).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect();
    Tensor::new(shape, &all).unwrap()
}

#[test]
fn devices_have_names() {
    for wrong in ["cuda-sim:", "cuda-sim:x86-64-avx2", "cuda-sim:sm_1", "cuda:x"] {
        assert!(wrong.parse::<Device>().unwrap_err().contains("cuda-sim:NAME"), "{wrong}");
    }
    // what is named is opened when it is needed
    let absent: Device = "cuda:900".parse().unwrap();
    let graph = egret::trace(|t| t.input("x", f32([2])).exp()).unwrap();
    let error = egret::compile(&graph, &absent).err().unwrap().diagnostic();
    assert!(["E0520", "E0521", "E0522"].contains(&error.code), "{error}");
}

#[test]
fn a_trained_model() {
    let Some(device) = device() else { return };
    let model = xtask::data().join("models/mnist_cntk");
    let Ok(files) = std::fs::read_dir(&model) else {
        eprintln!("skipped: {} is not there", model.display());
        return;
    };
    let file = files.flatten().map(|f| f.path()).find(|path| path.extension().is_some_and(|e| e == "onnx"));
    let graph = egret::onnx::load(&file.expect("a model")).unwrap();
    let name = graph.inputs().iter().find_map(|id| match &graph.node(*id).op {
        egret::ir::Op::Input(input) => Some(input.name.clone()),
        _ => None,
    });
    let (name, x) = (name.unwrap(), values(&[1, 1, 28, 28]));
    let given = [(name.as_str(), &x)];
    let run = |device: &Device| {
        let exe = egret::compile(&graph, device).unwrap_or_else(|e| panic!("{e}"));
        let mut session = exe.session().unwrap_or_else(|e| panic!("{e}"));
        let outputs = session.run(&given).unwrap_or_else(|e| panic!("{e}"));
        outputs.at(0).unwrap().to_tensor()
    };
    let (have, want) = (run(&device), run(&Device::cpu()));
    let most = want.values().fold(0.0, |m: f64, v| m.max(v.as_f64().abs()));
    for (a, b) in have.values().zip(want.values()) {
        assert!((a.as_f64() - b.as_f64()).abs() <= 1e-5 * most, "{a:?} for {b:?}");
    }
}

/// Schedules are measured by the simulator's clock, which is the same in every run; the table gives the same program again.
#[test]
fn schedules_are_tuned() {
    let Some(device) = device() else { return };
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tuning-{}", std::process::id()));
    let graph = egret::trace(|t| {
        let of = |shape: [i64; 2]| egret::TensorType { dtype: egret::DType::BF16, shape: shape.into() };
        let product = t.input("x", of([40, 96])).matmul(t.input("w", of([96, 264])));
        (product * 0.125).tanh()
    });
    let graph = graph.unwrap();
    let bf16 = |shape: &[usize]| {
        let (from, mut to) = (values(shape), Tensor::zeros(egret::DType::BF16, shape));
        (0..to.elements()).for_each(|i| to.set(i, from.get(i)));
        to
    };
    let (x, w) = (bf16(&[40, 96]), bf16(&[96, 264]));
    let run = |device: &Device| {
        let exe = egret::compile(&graph, device).unwrap_or_else(|e| panic!("{e}"));
        let mut session = exe.session().unwrap_or_else(|e| panic!("{e}"));
        let y = session.run(&[("x", &x), ("w", &w)]).unwrap().at(0).unwrap().to_tensor();
        (y, exe.tuning().cloned(), exe.program().unwrap().clone())
    };
    let (want, _, plain) = run(&device);
    let tuned = |table: Cache| run(&device.clone().with_tuner(Tuner::new(Effort::Many).with_table(table)));
    let (have, tuning, program) = tuned(Cache::at(&folder));
    let tuning = tuning.unwrap();
    assert_eq!((tuning.sources(), tuning.dropped().count()), ((1, 0), 0), "{tuning:?}");
    let measured = &tuning.problems[0].measurements;
    assert!(measured.len() > 4, "{measured:?}");
    // sums of sixty-fourths are exact: another schedule gives the same bits
    assert_eq!(have.bytes(), want.bytes());
    assert_eq!(program == plain, tuning.problems[0].other().is_none());

    let (_, again, same) = tuned(Cache::at(&folder));
    assert_eq!((again.unwrap().sources(), &same), ((0, 1), &program));
    let (_, anew, _) = tuned(Cache::none());
    assert_eq!(&anew.unwrap().problems[0].measurements, measured, "the clock is modelled");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn states_belong_to_their_device() {
    let Some(device) = device() else { return };
    let graph = egret::trace(|t| {
        let total = t.state("total", values(&[3]));
        let next = total + t.input("x", f32(shape![3]));
        t.update(total, next);
        next
    });
    let graph = graph.unwrap();
    let (gpu, cpu) = (egret::compile(&graph, &device).unwrap(), egret::compile(&graph, &Device::cpu()).unwrap());
    let state = gpu.state().unwrap();
    assert!(matches!(cpu.session_with(&state), Err(Error::OtherDevice { have: "cuda", want: "cpu", .. })));
    let mut session = gpu.session_with(&state).unwrap();
    let x = values(&[3]);
    for _ in 0..3 {
        session.run(&[("x", &x)]).unwrap();
    }
    let want: Vec<f32> = x.as_slice::<f32>().unwrap().iter().map(|v| 4.0 * v).collect();
    assert_eq!(state.get("total").unwrap().as_slice::<f32>().unwrap(), want);
}
