//! Data sets: IDX files, drawn digits, batches.

mod batches;
mod digits;
mod idx;

pub use batches::{Batches, Images, accuracy};
pub use digits::digits;
pub use idx::{mnist, read_idx};
