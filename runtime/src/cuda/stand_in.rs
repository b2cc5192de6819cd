//! The driver that stands in for a GPU: finding it, giving it GPUs, and what it says of faults.

#[cfg(not(feature = "sim"))]
/// Nothing: there is no such driver.
pub(super) fn last_fault() -> String {
    String::new()
}

#[cfg(feature = "sim")]
pub(super) use with_sim::{add, last_fault, lose};

#[cfg(feature = "sim")]
mod with_sim {
    use std::ffi::{CString, c_char, c_int};
    use std::path::PathBuf;
    use std::sync::OnceLock;

    use cudarc::driver::sys;
    use egret_program::{DeviceDescription, Target};

    use crate::cuda::driver::load;
    use crate::cuda::error::CudaError;

    /// Names the library; otherwise it is looked for beside the program.
    const PATH_VARIABLE: &str = "EGRET_SIM_DRIVER";
    const FILE: &str = "libegret_sim_driver.so";

    type Add = unsafe extern "C" fn(*const c_char, c_int, c_int, c_int, c_int, u64) -> c_int;
    type LastFault = unsafe extern "C" fn(*mut c_char, usize) -> usize;

    /// Gives the stand-in a GPU; its number.
    pub(in crate::cuda) fn add(description: &DeviceDescription) -> Result<usize, CudaError> {
        static OPENED: OnceLock<Result<(), CudaError>> = OnceLock::new();
        OPENED.get_or_init(open).clone()?;
        let fail = |why: String| CudaError::NoStandIn { why };
        let Target::Cuda { arch, shared_bytes, .. } = &description.target else {
            return Err(fail(format!("`{}` is no GPU", description.name)));
        };
        let number = arch.strip_prefix("sm_").and_then(|n| n.trim_end_matches('a').parse::<c_int>().ok());
        let number = number.ok_or_else(|| fail(format!("`{arch}` is no architecture")))?;
        let name = CString::new(description.name.as_str()).map_err(|e| fail(e.to_string()))?;
        let add = symbol::<Add>(b"egret_sim_add_device\0")
            .ok_or_else(|| fail("this process has loaded NVIDIA's driver already".into()))?;
        let (major, minor) = (number / 10, number % 10);
        let (cores, shared) = (description.cores as c_int, *shared_bytes as c_int);
        // SAFETY: the function's signature; the name ends with NUL.
        let ordinal = unsafe { add(name.as_ptr(), major, minor, cores, shared, description.memory_bytes) };
        let ordinal = usize::try_from(ordinal).map_err(|_| fail(format!("it refuses `{}`", description.name)))?;
        // a driver without a GPU does not initialise
        load()?;
        Ok(ordinal)
    }

    /// What the stand-in says of the last fault; empty of another driver.
    pub(in crate::cuda) fn last_fault() -> String {
        let Some(last) = symbol::<LastFault>(b"egret_sim_last_fault\0") else { return String::new() };
        let mut text = vec![0u8; 4096];
        // SAFETY: writes at most as many bytes, and tells how many.
        let len = unsafe { last(text.as_mut_ptr().cast(), text.len()) };
        text.truncate(len);
        if text.is_empty() { String::new() } else { format!(": {}", String::from_utf8_lossy(&text)) }
    }

    /// Loses a GPU of the stand-in's.
    pub(in crate::cuda) fn lose(ordinal: usize) {
        type Lose = unsafe extern "C" fn(c_int) -> c_int;
        if let Some(lose) = symbol::<Lose>(b"egret_sim_lose_device\0") {
            // SAFETY: the function's signature.
            unsafe { lose(ordinal as c_int) };
        }
    }

    fn symbol<F: Copy>(name: &[u8]) -> Option<F> {
        // SAFETY: a driver was loaded before any device was; the type is the function's.
        unsafe { sys::culib().get::<F>(name).ok().map(|f| *f) }
    }

    /// Opens the library: cudarc then finds it by the driver's name, which is its own.
    fn open() -> Result<(), CudaError> {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        let mut why =
            format!("{FILE} was not found; build the package egret-sim-driver, or name it in {PATH_VARIABLE}");
        for path in places() {
            if !path.exists() {
                continue;
            }
            // SAFETY: our own library, whose initialisation does nothing.
            match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => {
                    std::mem::forget(library);
                    return Ok(());
                }
                Err(e) => why = e.to_string(),
            }
        }
        Err(CudaError::NoStandIn { why })
    }

    fn places() -> Vec<PathBuf> {
        if let Some(named) = std::env::var_os(PATH_VARIABLE).filter(|v| !v.is_empty()) {
            return vec![named.into()];
        }
        let program = std::env::current_exe().unwrap_or_default();
        let near = program.ancestors().skip(1).take(2);
        near.flat_map(|folder| [folder.join(FILE), folder.join("deps").join(FILE)]).collect()
    }
}
