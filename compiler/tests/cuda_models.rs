//! What NVRTC makes of every kernel of the shared models and of training steps (`support/texts.rs` says what is checked), and
//! how many texts, and bytes, ResNet-50 is.
//!
//! Continuous integration compiles the models of `SMALL` for both architectures and those of `MIDDLE` for one; `EGRET_DEEP=1`,
//! which `scripts/deep-check` sets, compiles all for all four.

#[path = "support/nvrtc.rs"]
mod nvrtc;
mod support {
    pub mod halves;
    pub mod models;
    pub mod sass;
    pub mod steps;
    pub mod texts;
}

use std::collections::BTreeMap;
use std::path::Path;

use egret_ir::{Bindings, DType, Graph, Tensors};
use egret_program::{Image, KernelBody, Program};
use egret_runtime::cuda::Cache;
use support::models::{model, recorded};
use support::steps::{cnn_training_step, transformer};
use support::texts::{Texts, program};
use support::{halves, sass};

const RESNET: &str = "light/test_light_resnet50";

/// Compiled for both architectures of continuous integration.
const SMALL: [&str; 8] = [
    RESNET,
    "blazeface_front",
    "byte_bidi_lstm",
    "dtln_1",
    "face_landmark",
    "magika_v3_3",
    "mnist_cntk",
    "super_resolution",
];

/// Compiled for the later one.
const MIDDLE: [&str; 6] = [
    "all_minilm_l6_v2",
    "light/test_light_squeezenet",
    "light/test_light_vgg19",
    "mlagents_dungeon_escape",
    "mlagents_gridworld",
    "silero_vad_op18_ifless",
];

/// Left to `scripts/deep-check`.
const LARGE: [&str; 9] = [
    "light/test_light_bvlc_alexnet",
    "light/test_light_densenet121",
    "light/test_light_inception_v1",
    "light/test_light_inception_v2",
    "light/test_light_shufflenet",
    "light/test_light_zfnet512",
    "ppocr_cls",
    "ppocr_v4_det",
    "ultraface_rfb320",
];

fn graph(name: &str) -> Option<Graph> {
    let folder = model(name)?;
    let path = folder.join("model.onnx");
    let names = egret_onnx::inputs(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    let given: Tensors = names.into_iter().map(|(name, _)| name).zip(recorded(&folder, "input")).collect();
    Some(egret_onnx::load_for(&path, &given).unwrap_or_else(|e| panic!("{name}: {e}")).graph)
}

#[test]
fn kernels_of_models_compile_within_limits() {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let deep = std::env::var_os("EGRET_DEEP").is_some();
    let mut texts = Texts::default();
    let sets: [(&[&str], &[&'static str]); 3] = [(&SMALL, &["sm_90a", "sm_80"]), (&MIDDLE, &["sm_90a"]), (&LARGE, &[])];
    for (names, wanted) in sets {
        let descriptions: &[&'static str] = if deep { &["sm_80", "sm_89", "sm_90a", "h200"] } else { wanted };
        let wanted = names.iter().filter(|_| !descriptions.is_empty());
        for (name, graph) in wanted.filter_map(|name| Some((*name, graph(name)?))) {
            descriptions.iter().for_each(|description| texts.add(name, &graph, description));
        }
    }
    for description in ["sm_80", "sm_90a"] {
        texts.add("cnn training step", &cnn_training_step(), description);
        texts.add("transformer training step", &transformer(2, true), description);
    }
    texts.check(nvrtc);
}

/// The check of innermost loops sees them: a kernel that may have few registers spills in its loop.
#[test]
fn spills_in_loops_are_seen() {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let sums: String = (0..64).map(|i| format!("a{i} = a{i} * y[l * 64 + {i}] + a{};\n", (i + 7) % 64)).collect();
    let many = |f: &dyn Fn(usize) -> String| (0..64).map(f).collect::<String>();
    let source = format!(
        "extern \"C\" __global__ void __launch_bounds__(1024) k(float* x, const float* y, int n) {{\n{}\
         #pragma unroll 1\nfor (int l = 0; l < n; ++l) {{\n{sums}}}\n{}}}",
        many(&|i| format!("float a{i} = x[threadIdx.x + {i}];\n")),
        many(&|i| format!("x[threadIdx.x + {i}] = a{i};\n")),
    );
    for arch in ["sm_80", "sm_89", "sm_90a"] {
        let few = nvrtc.compile(&source, "k", arch, &["--maxrregcount=32"]).unwrap_or_else(|e| panic!("{e}"));
        let (all, innermost) = sass::spills(&few.image, arch).expect("a CUBIN");
        assert!(all >= innermost && innermost > 0, "{arch}: {all} {innermost}");
        let enough = nvrtc.compile(&source.replace("1024", "256"), "k", arch, &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(sass::spills(&enough.image, arch), Some((0, 0)), "{arch}");
    }
}

/// Kernels that are compiled together have the code that each has by itself.
#[test]
fn kernels_compiled_together_have_the_same_code() {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let program = program("cnn training step", &cnn_training_step(), "sm_90a");
    let made = egret_runtime::cuda::compile(&program, "sm_90a", Image::Cubin, &Cache::none());
    let (images, report) = made.unwrap_or_else(|e| panic!("{e}"));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(report.compiled, program.kernels.len());
    assert!(report.compilations < report.compiled || processors >= report.compiled, "{report:?}");
    let mut same = 0;
    for (at, image) in images.all().iter().enumerate() {
        let together: BTreeMap<&str, &[u8]> = sass::code(image).expect("a CUBIN").into_iter().collect();
        for kernel in images.kernels(at).map(|kernel| &program.kernels[kernel]) {
            let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
            let alone = nvrtc.compile(&code.source, &kernel.name, "sm_90a", &[]).unwrap_or_else(|e| panic!("{e}"));
            let alone = sass::code(&alone.image).expect("a CUBIN");
            assert_eq!(together.get(kernel.name.as_str()), Some(&alone[0].1), "{}", kernel.name);
            same += 1;
        }
    }
    assert_eq!(same, program.kernels.len());
}

/// Equal kernels have equal texts: ResNet-50's blocks differ in few ways.
#[test]
fn resnet_has_few_distinct_texts() {
    let Some(graph) = graph(RESNET) else { return };
    for description in ["sm_80", "sm_90a"] {
        let program = program(RESNET, &graph, description);
        let (texts, launches) = (program.kernels.len(), program.launches().len());
        println!("{description}: {texts} texts, {launches} launches");
        assert!(texts <= 60 && launches <= 56, "{description}: {texts} texts, {launches} launches");
    }
}

/// Bytes that the launches of a program move.
fn moved(program: &Program) -> i64 {
    program.launches().iter().map(|launch| launch.bytes.eval(&Bindings::default()).expect("constant extents")).sum()
}

#[test]
fn resnet_in_halves_moves_half_as_much() {
    let Some(single) = graph(RESNET) else { return };
    // of few images at once sums are split, and their parts, which are f32, move too
    let graphs = [DType::F32, DType::BF16].map(|dtype| halves::of_type(&single, dtype, 16));
    for description in ["sm_80", "h200"] {
        let programs = graphs.each_ref().map(|graph| program(RESNET, graph, description));
        let [a, b] = [0, 1].map(|i| moved(&programs[i]));
        println!("{description}: {b} of {a} bytes, {:.3}", b as f64 / a as f64);
        assert!(b as f64 <= 0.55 * a as f64, "{description}: {b} of {a} bytes");
    }
}

/// Time to have all kernels of ResNet-50 as CUBINs: cold, and from the cache.
#[test]
#[ignore = "times, which are told and not asserted"]
fn times() {
    let (Some(_), Some(graph)) = (nvrtc::nvrtc(), graph(RESNET)) else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("times-{}", std::process::id()));
    let cache = Cache::at(&folder);
    for (what, graph) in [("f32", &graph), ("bf16", &halves::of_type(&graph, DType::BF16, 1))] {
        let program = program(RESNET, graph, "sm_90a");
        for temperature in ["cold", "warm"] {
            let made = egret_runtime::cuda::compile(&program, "sm_90a", Image::Cubin, &cache);
            let (_, report) = made.unwrap_or_else(|e| panic!("{e}"));
            println!("{what} {temperature}: {report:?}");
        }
    }
    std::fs::remove_dir_all(&folder).expect("the folder is removed");
}
