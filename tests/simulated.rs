//! Simulated GPUs through the façade: devices by name, a trained model, states and the device that they belong to.

use egret::{Device, Error, Tensor, f32, shape};
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
