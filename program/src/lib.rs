//! Egret's compiled program: plain data between compiler and runtime.

pub mod description;
pub mod driver;
pub mod excerpt;
mod fingerprint;
pub mod memory;
pub mod program;

pub use description::{DescriptionError, DeviceDescription, Image, Target};
pub use excerpt::excerpt;
pub use fingerprint::fingerprint;
pub use program::{
    Arg, Branch, Buffer, BufferId, Carried, Check, Code, CudaCode, Fault, Halo, Kernel, KernelBody, KernelId, Launch,
    Loop, Place, Port, Program, Relocation, Size, SizeValue, Step, Symbol, While,
};
