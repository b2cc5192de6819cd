//! Data sets: what they are; tables, IDX, CSV, `.npz`, safetensors and WAV files, folders of images, text; drawn digits;
//! parts, order, batches.

mod batches;
mod csv;
mod digits;
mod folder;
mod idx;
#[cfg(feature = "images")]
mod images;
mod prefetch;
mod set;
mod text;
mod unpack;
mod wav;

pub use batches::{Batches, Images, accuracy};
pub use csv::Csv;
pub use digits::digits;
pub use idx::{mnist, read_idx};
#[cfg(feature = "images")]
pub use images::{ImageFolder, read_image};
pub use prefetch::prefetch;
pub use set::{Batch, DataSet, Subset, Table, shuffled, split};
pub use text::{Characters, Windows, read_text};
pub use wav::{WavFolder, read_wav};
