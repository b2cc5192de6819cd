//! Where NVRTC may be.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::NvrtcError;
use super::library::Library;

/// The environment variable that names NVRTC's library or its folder.
pub const PATH_VARIABLE: &str = "EGRET_NVRTC";

/// Where Python packages of CUDA 13 and 12 put it, below site-packages.
const PACKAGES: [&str; 2] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];

/// The first NVRTC that loads.
pub(super) fn find() -> Result<Library, NvrtcError> {
    let mut tried = Vec::new();
    let mut refused = None;
    // What the user names is binding: there is no falling back from it.
    if let Some(named) = env::var_os(PATH_VARIABLE).filter(|v| !v.is_empty()) {
        let named = PathBuf::from(named);
        let mut libraries = if named.is_dir() { in_folder(&named) } else { vec![named.clone()] };
        libraries.truncate(1);
        return match libraries.first() {
            Some(library) => Library::open(library),
            None => Err(NvrtcError::NotFound { tried: vec![named] }),
        };
    }
    // Asking Python takes most of a tenth of a second, so it comes last.
    let places: [fn() -> Vec<PathBuf>; 2] = [known_places, python_places];
    for places in places {
        for path in places() {
            match Library::open(&path) {
                Ok(library) => return Ok(library),
                // A bare name that the loader does not know is no defect.
                Err(error) if path.is_absolute() => refused = refused.or(Some(error)),
                Err(_) => {}
            }
            tried.push(path);
        }
    }
    Err(refused.unwrap_or(NvrtcError::NotFound { tried }))
}

/// The libraries of a folder whose names start so, newest version first; `alt` builds are left out.
pub(super) fn libraries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let matches = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with(prefix)
    };
    let mut found: Vec<_> = entries.flatten().map(|e| e.path()).filter(matches).collect();
    found.sort();
    found.reverse();
    found
}

fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let below = PACKAGES.iter().map(|p| folder.join(p));
    std::iter::once(folder.to_path_buf()).chain(below).flat_map(|f| libraries(&f, "libnvrtc.so")).collect()
}

fn known_places() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let variables = |names: [&'static str; 2]| names.into_iter().filter_map(env::var_os).map(PathBuf::from);
    for toolkit in variables(["CUDA_HOME", "CUDA_PATH"]) {
        found.extend(in_folder(&toolkit.join("lib64")));
        found.extend(in_folder(&toolkit.join("lib")));
    }
    for environment in variables(["VIRTUAL_ENV", "CONDA_PREFIX"]) {
        for python in libraries(&environment.join("lib"), "python3") {
            found.extend(in_folder(&python.join("site-packages")));
        }
    }
    for toolkit in libraries(Path::new("/usr/local"), "cuda") {
        found.extend(in_folder(&toolkit.join("lib64")));
    }
    found.extend(["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"].map(PathBuf::from));
    found
}

fn python_places() -> Vec<PathBuf> {
    let program = "import site; print('\\n'.join(site.getsitepackages() + [site.getusersitepackages()]))";
    let Ok(output) = Command::new("python3").args(["-c", program]).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().flat_map(|site| in_folder(Path::new(site))).collect()
}
