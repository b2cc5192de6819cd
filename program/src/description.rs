//! What the compiler knows of a device: a value, so that it compiles for any device on any host.

use serde::{Deserialize, Serialize};

/// A device as the compiler sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// The name users give: `x86-64-avx512`, `aarch64-neon`, `sm_90a`.
    pub name: String,
    /// What is compiled for it.
    pub target: Target,
    /// Cores of a CPU, streaming multiprocessors of a GPU.
    pub cores: u32,
    /// f32 multiply-adds, counted as two, of one core: GFLOP/s.
    pub core_gflops: f64,
    /// Memory bandwidth: GB/s.
    pub memory_gbps: f64,
    /// Bandwidth of the last-level cache: GB/s.
    pub cache_gbps: f64,
    /// Bytes of first-level cache of a core.
    pub l1_bytes: u64,
    /// Bytes of second-level cache: of a core on a CPU, of the device on a GPU.
    pub l2_bytes: u64,
    /// Bytes of the last-level cache; 0 if there is none beyond the second.
    pub l3_bytes: u64,
    /// Bytes of memory; 0 where that depends on the machine.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Cost of one more kernel: µs.
    pub launch_us: f64,
}

/// What code is made for a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Machine code of a CPU.
    Cpu {
        /// Instruction set of generated code: `x86_64`, `aarch64`.
        arch: String,
        /// Instruction set of the micro-kernels: `portable`, `neon`, `avx2`, `avx512`.
        isa: String,
        /// f32 elements of a vector, and channels of a block.
        lanes: u32,
        /// Rate of products of bf16, by AVX-512 BF16 (2 where it starts each cycle) or AMX, to that of `f32`; with 16 lanes.
        /// 0: there are none.
        #[serde(default)]
        bf16: f64,
        /// Products of bytes, by AVX-512 VNNI; with 16 lanes.
        #[serde(default)]
        bytes: bool,
    },
    /// CUDA C.
    Cuda {
        /// Architecture: `sm_90a`.
        arch: String,
        /// Bytes of shared memory that a block may have.
        shared_bytes: u32,
        /// Registers of a multiprocessor.
        registers: u32,
        /// Multiply-adds of halves by tensor cores, counted as two, of one multiprocessor: GFLOP/s; 0 where that is not
        /// known.
        #[serde(default)]
        matrix_gflops: f64,
        /// What is loaded.
        #[serde(default)]
        image: Image,
    },
}

/// What a CUDA driver is given of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Image {
    /// Machine code for the exact architecture.
    #[default]
    Cubin,
    /// PTX, which a driver that stands in for a GPU interprets.
    Ptx,
}

macro_rules! shipped {
    ($($name:literal),*) => {
        const SHIPPED: &[(&str, &str)] = &[$(($name, include_str!(concat!("../descriptions/", $name, ".json")))),*];
    };
}

shipped!(
    "x86-64-avx512",
    "x86-64-avx512-bf16",
    "x86-64-avx2",
    "x86-64-portable",
    "aarch64-neon",
    "sm_80",
    "sm_89",
    "sm_90a",
    "a100",
    "l4",
    "rtx-4090",
    "h100",
    "h200"
);

/// Why there is no description.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// Nothing of that name is shipped.
    #[error("no device description is named `{name}`; there are {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The file is not a description.
    #[error("the description `{name}` cannot be read: {why}")]
    Malformed {
        /// The description.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl DeviceDescription {
    /// Names of the descriptions that Egret ships.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// A description that Egret ships.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named(name: &str) -> Result<DeviceDescription, DescriptionError> {
        let Some((_, text)) = SHIPPED.iter().find(|(have, _)| *have == name) else {
            let known = DeviceDescription::names().collect::<Vec<_>>().join(", ");
            return Err(DescriptionError::Unknown { name: name.into(), known });
        };
        serde_json::from_str(text).map_err(|e| DescriptionError::Malformed { name: name.into(), why: e.to_string() })
    }

    /// A description from a file.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(path: &std::path::Path) -> Result<DeviceDescription, DescriptionError> {
        let malformed = |why: String| DescriptionError::Malformed { name: path.display().to_string(), why };
        let text = std::fs::read_to_string(path).map_err(|e| malformed(e.to_string()))?;
        serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))
    }

    /// f32 lanes of a vector; 1 on a GPU.
    pub fn lanes(&self) -> i64 {
        match &self.target {
            Target::Cpu { lanes, .. } => i64::from(*lanes),
            Target::Cuda { .. } => 1,
        }
    }

    /// The architecture of a GPU, such as `sm_90a`.
    pub fn arch(&self) -> Option<&str> {
        match &self.target {
            Target::Cpu { .. } => None,
            Target::Cuda { arch, .. } => Some(arch),
        }
    }

    /// Of a GPU's multiprocessor: bytes of shared memory, registers, and GFLOP/s of products of halves by tensor cores.
    pub fn block_limits(&self) -> (u32, u32, f64) {
        match &self.target {
            Target::Cpu { .. } => (0, 0, self.core_gflops),
            Target::Cuda { shared_bytes, registers, matrix_gflops, .. } => {
                // at the least, four times what is computed without them
                let rate = if *matrix_gflops > 0.0 { *matrix_gflops } else { 4.0 * self.core_gflops };
                (*shared_bytes, *registers, rate)
            }
        }
    }

    /// Rate of products of bf16 to that of `f32`, if it is a CPU with such.
    pub fn bf16(&self) -> Option<f64> {
        match self.target {
            Target::Cpu { bf16, lanes: 16, .. } if bf16 > 0.0 => Some(bf16),
            _ => None,
        }
    }

    /// Whether it is a CPU with products of bytes.
    pub fn has_bytes(&self) -> bool {
        matches!(self.target, Target::Cpu { bytes: true, lanes: 16, .. })
    }

    /// Whether it is a CPU.
    pub fn is_cpu(&self) -> bool {
        matches!(self.target, Target::Cpu { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_descriptions_read_back() {
        for name in DeviceDescription::names() {
            let description = DeviceDescription::named(name).unwrap();
            assert_eq!(description.name, name);
            assert!(description.core_gflops > 0.0 && description.memory_gbps > 0.0);
        }
        assert!(matches!(DeviceDescription::named("z80"), Err(DescriptionError::Unknown { .. })));
    }
}
