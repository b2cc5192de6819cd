//! NVRTC for tests.

pub use egret_runtime::cuda::nvrtc::Nvrtc;

/// NVRTC, or `None` where this machine has none; continuous integration must have one.
pub fn nvrtc() -> Option<&'static Nvrtc> {
    match Nvrtc::get() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if std::env::var("CI").is_ok_and(|v| v == "true") => panic!("{error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}
