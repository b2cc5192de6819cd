//! Each example for a few steps: it ends well, and what it learns by becomes less. And its kernels for GPUs, at the sizes that
//! it has by itself: `compiler/tests/support/texts.rs` says what is checked.

#![allow(dead_code, clippy::duplicate_mod, reason = "each example has an entry point and what all share")]

use clap::Parser;

macro_rules! examples {
    ($($test:ident: $name:ident [$($arg:literal)*], $share:literal, [$($once:literal)*];)*) => {
        $(
            #[test]
            fn $test() {
                let args = $name::Args::parse_from([stringify!($name) $(, $arg)*]);
                let learnt = $name::learn(&args).unwrap_or_else(|e| panic!("{}", e.diagnostic()));
                assert!(learnt.last <= learnt.first * $share, "{} after {}", learnt.last, learnt.first);
            }
        )*

        /// The graphs of every example, which runs for a step or two.
        #[cfg(feature = "cuda")]
        fn graphs() -> Vec<(&'static str, egret::Graph)> {
            let runs: Vec<fn() -> Vec<(&'static str, egret::Graph)>> = vec![$(|| {
                let args = $name::Args::parse_from([stringify!($name) $(, $once)*]);
                let learnt = $name::learn(&args).unwrap_or_else(|e| panic!("{}", e.diagnostic()));
                learnt.programs.iter().map(|exe| (stringify!($test), exe.graph().clone())).collect()
            }),*];
            std::thread::scope(|scope| {
                let runs: Vec<_> = runs.into_iter().map(|run| scope.spawn(run)).collect();
                let graphs = |run: std::thread::ScopedJoinHandle<'_, Vec<_>>| run.join().expect("an example");
                runs.into_iter().flat_map(graphs).collect()
            })
        }
    };
}

#[cfg(feature = "cuda")]
#[path = "../compiler/tests/support/nvrtc.rs"]
mod nvrtc;
#[cfg(feature = "cuda")]
mod support {
    #[path = "../../compiler/tests/support/sass.rs"]
    pub mod sass;
    #[path = "../../compiler/tests/support/texts.rs"]
    pub mod texts;
}

#[path = "../examples/autoencoder.rs"]
mod autoencoder;
#[path = "../examples/char_lm.rs"]
mod char_lm;
#[path = "../examples/gan.rs"]
mod gan;
#[path = "../examples/keyword_ctc.rs"]
mod keyword_ctc;
#[path = "../examples/lenet_sgd.rs"]
mod lenet_sgd;
#[path = "../examples/mnist_cnn.rs"]
mod mnist_cnn;
#[path = "../examples/policy_gradient.rs"]
mod policy_gradient;
#[path = "../examples/rbm.rs"]
mod rbm;
#[path = "../examples/recommender.rs"]
mod recommender;
#[path = "../examples/seq2seq_attention.rs"]
mod seq2seq_attention;
#[path = "../examples/unet_segmentation.rs"]
mod unet_segmentation;

// the test, the example, what it is given, the share of the first loss that the last is at most, and what lets it run for a
// step or two at its own sizes
examples! {
    an_autoencoder: autoencoder ["--epochs" "2" "--steps" "20"], 0.8, ["--epochs" "1" "--steps" "1"];
    a_transformer: char_lm ["--steps" "20" "--length" "16" "--features" "32" "--write" "8"], 0.9,
        ["--steps" "1" "--write" "1"];
    an_lstm: char_lm ["--model" "lstm" "--steps" "60" "--length" "12" "--features" "24" "--write" "8"], 0.9,
        ["--model" "lstm" "--steps" "1" "--write" "1"];
    two_adversaries: gan ["--steps" "300"], 0.9, ["--steps" "1"];
    keywords: keyword_ctc ["--epochs" "2" "--steps" "8" "--hidden" "16"], 0.9, ["--epochs" "1" "--steps" "1"];
    lenet: lenet_sgd ["--epochs" "2" "--steps" "60"], 0.9, ["--epochs" "1" "--steps" "1"];
    digits: mnist_cnn ["--epochs" "2" "--steps" "20"], 0.9, ["--epochs" "1" "--steps" "1"];
    a_policy: policy_gradient ["--steps" "30"], 0.8, ["--steps" "1"];
    a_boltzmann_machine: rbm ["--steps" "80"], 0.9, ["--steps" "1"];
    a_recommender: recommender ["--epochs" "3" "--steps" "100"], 0.99, ["--epochs" "1" "--steps" "1"];
    two_sequences: seq2seq_attention ["--epochs" "2" "--steps" "25" "--features" "32"], 0.95,
        ["--epochs" "1" "--steps" "1"];
    a_unet: unet_segmentation ["--epochs" "2" "--steps" "10" "--channels" "4" "--rate" "0.01"], 0.95,
        ["--epochs" "1" "--steps" "1"];
}

#[cfg(feature = "cuda")]
#[test]
fn kernels_for_gpus_compile_within_limits() {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let mut texts = support::texts::Texts::default();
    let mut graphs = graphs();
    // the model of `embed_sentences`, its lengths open
    let folders = [xtask::fetched(), xtask::data()].map(|data| data.join("models/all_minilm_l6_v2"));
    match folders.iter().find(|folder| folder.join("model.safetensors").exists()) {
        Some(folder) => {
            let graph = egret::onnx::load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
            graphs.push(("sentences", graph));
        }
        None => println!("skipped: all_minilm_l6_v2 has no weights; scripts/fetch-test-data fetches them"),
    }
    for (name, graph) in &graphs {
        ["sm_80", "sm_90a"].into_iter().for_each(|description| texts.add(name, graph, description));
    }
    texts.check(nvrtc);
}
