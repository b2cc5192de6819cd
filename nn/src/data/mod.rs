//! Data sets: what they are, IDX files, drawn digits, text, batches.

mod batches;
mod digits;
mod idx;
mod prefetch;
mod set;
mod text;
mod unpack;

pub use batches::{Batches, Images, accuracy};
pub use digits::digits;
pub use idx::{mnist, read_idx};
pub use prefetch::prefetch;
pub use set::{Batch, DataSet, Subset, Table, shuffled, split};
pub use text::{Characters, Windows, read_text};
