//! Egret's compiled program: plain data between compiler and runtime.

pub mod description;
pub mod driver;

pub use description::{DescriptionError, DeviceDescription, Target};
