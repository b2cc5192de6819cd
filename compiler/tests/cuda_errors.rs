//! What a missing or old driver, a kernel that does not compile or launch, and a cache that is damaged or cannot be written
//! come to: a typed error, or nothing but time.

#[path = "support/graphs.rs"]
mod graphs;
#[path = "support/nvrtc.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use egret_compiler::{CompileOptions, compile};
use egret_program::{DeviceDescription, KernelBody, Program};
use egret_runtime::RuntimeError;
use egret_runtime::cuda::cache::Entry;
use egret_runtime::cuda::{Cache, CudaError, Device, Executable, LoadOptions};
use support::nvrtc;

fn description() -> DeviceDescription {
    DeviceDescription::named("sm_80").expect("a shipped description")
}

fn device() -> Arc<Device> {
    Device::simulated(&description()).unwrap_or_else(|e| panic!("{e}"))
}

fn program() -> Program {
    compile(&graphs::mlp(), &description(), &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

fn load(program: &Program, device: &Arc<Device>, cache: &Cache) -> Result<Arc<Executable>, RuntimeError> {
    Executable::load(Arc::new(program.clone()), device, &|_| None, &LoadOptions { cache: cache.clone() })
}

/// Runs a test of this file in a process of its own, with an environment variable; tells whether it passed.
fn alone(test: &str, name: &str, value: &str) {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads", "1"])
        .env(name, value)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}

#[test]
fn an_old_driver_is_refused() {
    if std::env::var_os("EGRET_SIM_VERSION").is_none() {
        return alone("an_old_driver_is_refused", "EGRET_SIM_VERSION", "11080");
    }
    let error = Device::simulated(&description()).unwrap_err();
    assert!(matches!(error, CudaError::OldDriver { found: 11_080 }), "{error}");
    assert!(error.to_string().contains("CUDA 11.8"), "{error}");
    assert_eq!(error.code(), "E0521");
}

#[test]
fn a_missing_stand_in_is_named() {
    if std::env::var_os("EGRET_SIM_DRIVER").is_none() {
        return alone("a_missing_stand_in_is_named", "EGRET_SIM_DRIVER", "/nowhere/libcuda.so.1");
    }
    let error = Device::simulated(&description()).unwrap_err();
    assert_eq!(error.code(), "E0528", "{error}");
    // without a driver a GPU is an error, and no panic; where there is one, there are not so many GPUs
    let error = Device::open(999).unwrap_err();
    assert!(["E0520", "E0521", "E0522"].contains(&error.code()), "{error}");
}

#[test]
fn a_gpu_that_is_not_there() {
    let device = device();
    let error = Device::open(device.ordinal() + 1000).unwrap_err();
    assert!(matches!(error, CudaError::NoDevice { count, .. } if count > device.ordinal()), "{error}");
    assert_eq!(error.code(), "E0522");
}

/// What a process of its own reports of loading the program with the cache of `EGRET_CACHE`.
const REPORT: &str = "EGRET_CACHE_REPORT";

#[test]
fn other_processes_start_warm() {
    if nvrtc().is_none() {
        return;
    }
    if let Some(path) = std::env::var_os(REPORT) {
        let report = load(&program(), &device(), &Cache::standard()).unwrap().compile_report();
        return std::fs::write(path, format!("{} {} {}", report.compiled, report.cached, report.whole)).unwrap();
    }
    let folder = folder("processes");
    std::fs::create_dir_all(&folder).unwrap();
    let start = |name: &str| {
        let report = folder.join(name);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_processes_start_warm", "--test-threads", "1"])
            .env(REPORT, &report)
            .env("EGRET_CACHE", &folder)
            .stdout(std::process::Stdio::null())
            .spawn();
        (child.unwrap(), report)
    };
    let finish = |(mut child, report): (std::process::Child, PathBuf)| {
        assert!(child.wait().unwrap().success());
        std::fs::read_to_string(report).unwrap()
    };
    let count = program().kernels.len();
    // one begins while another writes: whatever each finds, both load all
    let (first, during) = (start("first"), start("during"));
    for report in [finish(first), finish(during)] {
        let numbers: Vec<usize> = report.split(' ').filter_map(|n| n.parse().ok()).collect();
        assert_eq!(numbers.iter().sum::<usize>(), count, "{report}");
    }
    assert_eq!(finish(start("after")), format!("0 {count} true"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn programs_of_other_devices_are_refused() {
    let device = device();
    let later = DeviceDescription::named("sm_90a").unwrap();
    let later = compile(&graphs::mlp(), &later, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
    let error = load(&later, &device, &Cache::none()).unwrap_err();
    assert!(error.to_string().contains("sm_90a") && error.code() == "E0502", "{error}");
    let cpu = DeviceDescription::named("x86-64-avx2").unwrap();
    let cpu = compile(&graphs::mlp(), &cpu, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
    assert_eq!(load(&cpu, &device, &Cache::none()).unwrap_err().code(), "E0502");
    let (weights, options) = (|_: &str| None, egret_runtime::LoadOptions::default());
    let error = egret_runtime::Executable::load(Arc::new(program()), &weights, options).unwrap_err();
    assert_eq!(error.code(), "E0502", "{error}");
}

#[test]
fn what_has_no_kernel_is_named() {
    let error = match compile(&graphs::endless(), &description(), &CompileOptions::default()) {
        Ok(_) => panic!("results without bound have no memory"),
        Err(error) => error,
    };
    assert!(error.code == "E0465" && error.message.contains("while") && !error.origin.is_empty(), "{error}");
}

#[test]
fn kernels_that_do_not_compile_or_launch() {
    if nvrtc().is_none() {
        return;
    }
    let device = device();
    let change = |change: &dyn Fn(&mut egret_program::CudaCode)| {
        let mut program = program();
        let kernel = program.launches().last().map(|launch| launch.kernel.0 as usize).unwrap();
        let KernelBody::Cuda(code) = &mut program.kernels[kernel].body else { panic!("no CUDA") };
        change(code);
        program
    };
    let broken = change(&|code| code.source = code.source.replace("blockIdx.x;", "blockIdx.x + nothing;"));
    let error = load(&broken, &device, &Cache::none()).unwrap_err();
    assert!(error.code() == "E0523" && error.to_string().contains("graphs.rs"), "{error}");
    assert!(error.to_string().contains(" | ") && error.to_string().contains("nothing"), "{error}");
    let wide = change(&|code| code.threads = [2048, 1, 1]);
    let mut session = load(&wide, &device, &Cache::none()).unwrap().session().unwrap();
    let x = egret_ir::Tensor::zeros(egret_ir::DType::F32, &[1, 5, 32]);
    let [a, b, bias] = [&[32, 128][..], &[128, 32], &[128]].map(|s| egret_ir::Tensor::zeros(egret_ir::DType::F32, s));
    let given = [("x", &x), ("a", &a), ("b", &b), ("bias", &bias)];
    let error = session.run(&given).unwrap_err();
    assert!(error.code() == "E0527" && error.to_string().contains("2048"), "{error}");
    // the device goes on
    assert!(load(&program(), &device, &Cache::none()).unwrap().session().unwrap().run(&given).is_ok());
}

#[test]
fn a_second_load_is_warm_and_damage_costs_time_alone() {
    if nvrtc().is_none() {
        return;
    }
    let (device, program, folder) = (device(), program(), folder("cache"));
    let cache = Cache::at(&folder);
    let count = program.kernels.len();
    // two at once, into a folder that is not there yet
    std::thread::scope(|scope| {
        let loads = [(); 2].map(|()| scope.spawn(|| load(&program, &device, &cache).map(|exe| exe.compile_report())));
        for one in loads {
            let report = one.join().unwrap().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(report.compiled + report.cached, count);
        }
    });
    let report = load(&program, &device, &cache).unwrap().compile_report();
    assert_eq!((report.compiled, report.cached, report.whole), (0, count, true));
    let about = |what: &'static str| move |entry: &Entry| entry.about.starts_with(what);
    let (whole, entries): (Vec<_>, Vec<_>) = cache.entries().into_iter().partition(about("a program of"));
    let (images, kernels): (Vec<_>, Vec<_>) = entries.into_iter().partition(about("an image of"));
    assert_eq!((whole.len(), kernels.len()), (1, count));
    assert!(!images.is_empty());
    assert!(kernels.iter().chain(&images).all(|entry| entry.about.contains("for sm_80 by NVRTC")), "{kernels:?}");
    let damage = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    // without the program as a whole its kernels serve
    damage(&whole[0].path);
    let report = load(&program, &device, &cache).unwrap().compile_report();
    assert_eq!((report.compiled, report.cached, report.whole), (0, count, false));
    std::fs::remove_file(&whole[0].path).unwrap();
    // one is cut short, one has another byte
    std::fs::write(&kernels[0].path, b"EGRETK1\n").unwrap();
    damage(&kernels[1].path);
    let report = load(&program, &device, &cache).unwrap().compile_report();
    assert_eq!((report.compiled, report.cached), (2, count - 2));
    // without their images kernels are compiled anew
    std::fs::remove_file(&whole[0].path).unwrap();
    cache.entries().iter().filter(|entry| about("an image of")(entry)).for_each(|entry| damage(&entry.path));
    let report = load(&program, &device, &cache).unwrap().compile_report();
    assert_eq!((report.compiled, report.cached, report.whole), (count, 0, false));
    // what was used last stays
    let entries = cache.entries();
    cache.trim(entries.iter().map(|entry| entry.bytes).sum::<u64>() - 1);
    assert_eq!(cache.entries().len(), entries.len() - 1);
    assert_eq!(cache.clear().unwrap(), entries.len() - 1);
    assert!(cache.entries().is_empty());
    // a folder that cannot be made
    std::fs::write(folder.join("file"), b"").unwrap();
    let nowhere = Cache::at(folder.join("file").join("kernels"));
    let report = load(&program, &device, &nowhere).unwrap().compile_report();
    assert_eq!((report.compiled, report.cached), (count, 0));
    std::fs::remove_dir_all(&folder).unwrap();
}
