//! Test data: where they are, and how they get there.

mod suite;

use std::path::{Path, PathBuf};

pub use suite::{Case, cases, generate as generate_suite, suite};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The folder of test data: `EGRET_TEST_DATA`, or `shared` beside the checkout.
pub fn data() -> PathBuf {
    std::env::var_os("EGRET_TEST_DATA").map_or_else(|| root().join("../shared"), PathBuf::from)
}

/// The folder that fetched and unpacked data go into.
pub fn fetched() -> PathBuf {
    root().join("target/test-data")
}
