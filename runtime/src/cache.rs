//! What is kept on disk, so that a second process starts warm. Compiled kernels: an entry an image, which may hold several
//! kernels; an entry a kernel, which names its image, so that programs share it; and one with all images of a program, which is
//! read at once. What a tuner measured: an entry a problem.
//!
//! An entry's name is the hash of all that its content depends on. It is written beside its place and then renamed, so
//! that another process sees it whole or not at all; what is read is checked, and what is damaged is removed. A folder that
//! cannot be written costs time, not results.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Before the content of an entry.
const MAGIC: &[u8; 8] = b"EGRETK1\n";
/// Bytes that the cache may take; the entries that were used longest ago go first.
const MOST_BYTES: u64 = 1 << 30;
/// Bytes that a process writes between two looks at all entries of a folder, which may be tens of thousands.
const LOOK_BYTES: u64 = MOST_BYTES / 64;
/// How the files are called.
const EXTENSION: &str = "image";

/// A folder of entries.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// An entry of the cache.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// What it is, in one line: the kernel or program, the architecture, and what compiled it.
    pub about: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// When it was written or last used.
    pub used: SystemTime,
}

impl Cache {
    /// The user's, of compiled kernels: below `EGRET_CACHE`, `XDG_CACHE_HOME` or `~/.cache`; none where there is no such
    /// folder.
    pub fn standard() -> Cache {
        Cache::of_user("kernels")
    }

    /// The user's, of what was measured to choose schedules: beside that of kernels.
    pub fn tuning() -> Cache {
        Cache::of_user("tuning")
    }

    fn of_user(name: &str) -> Cache {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = variable("EGRET_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|f| f.join("egret")))
            .or_else(|| variable("HOME").map(|f| f.join(".cache").join("egret")));
        Cache { folder: folder.map(|f| f.join(name)) }
    }

    /// A cache in a folder, which is made when something is first written.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    /// No cache.
    pub fn none() -> Cache {
        Cache { folder: None }
    }

    /// Its folder.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The key of what `parts` make.
    pub fn key(parts: &[&[u8]]) -> u128 {
        egret_program::fingerprint(parts)
    }

    fn path(&self, key: u128) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key:032x}.{EXTENSION}")))
    }

    /// Whether there is an entry, without reading it.
    pub fn has(&self, key: u128) -> bool {
        self.path(key).is_some_and(|path| path.exists())
    }

    /// An entry, if there is one and it is whole.
    pub fn get(&self, key: u128) -> Option<Vec<u8>> {
        let path = self.path(key)?;
        let bytes = fs::read(&path).ok()?;
        let Some((_, content)) = parse(&bytes) else {
            let _ = fs::remove_file(&path);
            tracing::warn!(path = %path.display(), "a damaged cache entry was removed");
            return None;
        };
        // what is used stays; a folder that cannot be written is no reason to complain
        let now = fs::File::options().append(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        let _ = now;
        Some(content.to_vec())
    }

    /// Writes entries: key, what it is in one line, content. A failure is not the caller's concern.
    pub fn put<'a>(&self, entries: impl IntoIterator<Item = (u128, String, &'a [u8])>) {
        let mut written = 0;
        for (key, about, content) in entries {
            let Some(path) = self.path(key) else { return };
            if let Err(error) = write(&path, &about, content) {
                tracing::debug!(path = %path.display(), %error, "an entry is not kept");
                return;
            }
            written += content.len() as u64;
        }
        if self.is_look_due(written) {
            self.trim(MOST_BYTES);
        }
    }

    /// Whether all entries are to be looked at, now that so many bytes more are written: when a process writes first, and
    /// then every [`LOOK_BYTES`].
    fn is_look_due(&self, written: u64) -> bool {
        static SINCE: Mutex<BTreeMap<PathBuf, u64>> = Mutex::new(BTreeMap::new());
        let Some(folder) = &self.folder else { return false };
        let mut folders = SINCE.lock().unwrap_or_else(PoisonError::into_inner);
        let since = folders.entry(folder.clone()).or_insert(LOOK_BYTES);
        *since += written;
        let due = *since >= LOOK_BYTES;
        if due {
            *since = 0;
        }
        due
    }

    /// All whole entries, the latest first.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = self.files();
        entries.retain_mut(|entry| {
            let Ok(bytes) = fs::read(&entry.path) else { return false };
            let about = parse(&bytes).map(|(about, _)| about.to_string());
            entry.about = about.clone().unwrap_or_default();
            about.is_some()
        });
        entries
    }

    /// The files, the latest first; what they hold is not read.
    fn files(&self) -> Vec<Entry> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let Ok(files) = fs::read_dir(folder) else { return Vec::new() };
        let entry = |file: fs::DirEntry| {
            let (path, data) = (file.path(), file.metadata().ok()?);
            (path.extension()? == EXTENSION).then_some(())?;
            let used = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some(Entry { path, about: String::new(), bytes: data.len(), used })
        };
        let mut entries: Vec<Entry> = files.flatten().filter_map(entry).collect();
        entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
        entries
    }

    /// Removes all entries; how many there were.
    ///
    /// # Errors
    /// The first file that cannot be removed.
    pub fn clear(&self) -> std::io::Result<usize> {
        let entries = self.files();
        for entry in &entries {
            match fs::remove_file(&entry.path) {
                // another process was faster
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(entries.len())
    }

    /// Removes what was used longest ago until no more than `most` bytes are left.
    pub fn trim(&self, most: u64) {
        let mut total = 0;
        for entry in self.files() {
            total += entry.bytes;
            if total > most {
                let _ = fs::remove_file(&entry.path);
            }
        }
    }
}

fn write(path: &Path, about: &str, content: &[u8]) -> std::io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let about = about.replace('\n', " ");
    let mut bytes = Vec::with_capacity(content.len() + about.len() + 16);
    bytes.extend(MAGIC);
    bytes.extend([0; 4]);
    bytes.extend((about.len() as u32).to_le_bytes());
    bytes.extend(about.as_bytes());
    bytes.extend(content);
    let sum = crc32fast::hash(&bytes[12..]);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    let aside = folder.join(format!(".{}-{}.tmp", std::process::id(), NUMBER.fetch_add(1, Relaxed)));
    let done = fs::write(&aside, &bytes).and_then(|()| fs::rename(&aside, path));
    if done.is_err() {
        let _ = fs::remove_file(&aside);
    }
    done
}

/// What an entry is, and its content.
fn parse(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (about, content) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((std::str::from_utf8(about).ok()?, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_looked_at_first_and_then_now_and_again() {
        let cache = Cache::at("a folder that nothing is written to");
        let due = [0, 1, LOOK_BYTES - 2, 1, 1].map(|written| cache.is_look_due(written));
        assert_eq!(due, [true, false, false, true, false]);
        assert!(!Cache::none().is_look_due(LOOK_BYTES));
    }
}
