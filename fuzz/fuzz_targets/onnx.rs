//! Bytes as ONNX models: `cargo +nightly fuzz run onnx CORPUS`, where the corpus is any folder of models.
#![no_main]

#[path = "../../tests/support/attack.rs"]
mod attack;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    attack::attack(bytes, &egret::Tensors::new(), Some(egret::Level::Full));
});
