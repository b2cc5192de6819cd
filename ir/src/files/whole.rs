//! Files that are there whole or not at all.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file that takes its place when it is finished: where writing fails or is cut off, an older one stays as it was.
pub struct WholeFile {
    partial: NamedTempFile,
    place: PathBuf,
}

impl WholeFile {
    /// Begins the file of that path.
    ///
    /// # Errors
    /// When its folder cannot be written to.
    pub fn create(place: &Path) -> io::Result<WholeFile> {
        let folder = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut partial = tempfile::Builder::new();
        #[cfg(unix)]
        {
            // those of any file, as the process's mask allows; a temporary one would be its owner's alone
            use std::os::unix::fs::PermissionsExt;
            partial.permissions(std::fs::Permissions::from_mode(0o666));
        }
        Ok(WholeFile { partial: partial.tempfile_in(folder)?, place: place.to_path_buf() })
    }

    /// Where it is until it is finished.
    pub fn path(&self) -> &Path {
        self.partial.path()
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// When what was written cannot be stored.
    pub fn finish(self) -> io::Result<()> {
        self.partial.as_file().sync_all()?;
        self.partial.persist(self.place).map(|_| ()).map_err(|e| e.error)
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.partial.flush()
    }
}
