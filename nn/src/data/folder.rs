//! Folders of files by class.

use std::path::{Path, PathBuf};

use crate::error::DataError;

/// Files with their classes: the names of the subfolders, in order.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    pub names: Vec<String>,
    pub files: Vec<(PathBuf, i64)>,
}

/// The files with one of these extensions in each subfolder, in the order of their names.
///
/// # Errors
/// When a folder cannot be read, or there is no such file in any subfolder.
pub(super) fn classes(folder: &Path, extensions: &[&str]) -> Result<Classes, DataError> {
    let mut found = Classes { names: Vec::new(), files: Vec::new() };
    for class in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let fits = |path: &PathBuf| {
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            path.is_file() && extensions.iter().any(|wanted| extension.eq_ignore_ascii_case(wanted))
        };
        let label = found.names.len() as i64;
        let before = found.files.len();
        found.files.extend(entries(&class)?.into_iter().filter(fits).map(|path| (path, label)));
        // a folder of something else is no class
        if found.files.len() > before {
            found.names.push(class.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    if found.files.is_empty() {
        let why = format!("holds no folders with .{} files", extensions.join(", ."));
        return Err(DataError::Format { path: folder.into(), why });
    }
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Read { path: folder.into(), source };
    let listed = std::fs::read_dir(folder).map_err(failed)?;
    let mut paths = listed.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}
