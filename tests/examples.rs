//! Each example for a few steps: it ends well, and what it learns by becomes less.

#![allow(dead_code, clippy::duplicate_mod, reason = "each example has an entry point and what all share")]

use clap::Parser;

macro_rules! examples {
    ($($test:ident: $name:ident [$($arg:literal)*], $share:literal;)*) => {
        $(
            #[test]
            fn $test() {
                let args = $name::Args::parse_from([stringify!($name) $(, $arg)*]);
                let learnt = $name::learn(&args).unwrap_or_else(|e| panic!("{}", e.diagnostic()));
                assert!(learnt.last <= learnt.first * $share, "{learnt:?}");
            }
        )*
    };
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

// the test, the example, what it is given, and the share of the first loss that the last is at most
examples! {
    an_autoencoder: autoencoder ["--epochs" "2" "--steps" "20"], 0.8;
    a_transformer: char_lm ["--steps" "20" "--length" "16" "--features" "32" "--write" "8"], 0.9;
    an_lstm: char_lm ["--model" "lstm" "--steps" "60" "--length" "12" "--features" "24" "--write" "8"], 0.9;
    two_adversaries: gan ["--steps" "300"], 0.9;
    keywords: keyword_ctc ["--epochs" "2" "--steps" "8" "--hidden" "16"], 0.9;
    lenet: lenet_sgd ["--epochs" "2" "--steps" "60"], 0.9;
    a_policy: policy_gradient ["--steps" "30"], 0.8;
    a_boltzmann_machine: rbm ["--steps" "80"], 0.9;
    a_recommender: recommender ["--epochs" "3" "--steps" "100"], 0.99;
    two_sequences: seq2seq_attention ["--epochs" "2" "--steps" "25" "--features" "32"], 0.95;
    a_unet: unet_segmentation ["--epochs" "2" "--steps" "10" "--channels" "4" "--rate" "0.01"], 0.95;
}
