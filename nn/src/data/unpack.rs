//! Files, plain or compressed by gzip.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::DataError;

/// Most bytes that a file may unpack to; a larger one is refused, not unpacked.
const MOST_BYTES: u64 = 1 << 32;

/// The file of that name in a folder, or the same with `.gz`.
pub(super) fn find(folder: &Path, name: &str) -> Result<PathBuf, DataError> {
    let (plain, packed) = (folder.join(name), folder.join(format!("{name}.gz")));
    let found = [plain, packed].into_iter().find(|p| p.is_file());
    found.ok_or_else(|| DataError::Missing { folder: folder.into(), name: name.into() })
}

/// The bytes of a file; one that begins as gzip does is unpacked.
pub(super) fn unpacked(path: &Path) -> Result<Vec<u8>, DataError> {
    let read = |source| DataError::Read { path: path.to_path_buf(), source };
    let mut file = BufReader::new(File::open(path).map_err(read)?);
    let mut start = [0; 2];
    let got = file.read(&mut start).map_err(read)?;
    let whole = start[..got].chain(file);
    let mut bytes = Vec::new();
    let count = if start == [0x1f, 0x8b] {
        MultiGzDecoder::new(whole).take(MOST_BYTES + 1).read_to_end(&mut bytes)
    } else {
        whole.take(MOST_BYTES + 1).read_to_end(&mut bytes)
    };
    match count.map_err(read)? as u64 > MOST_BYTES {
        true => {
            let why = format!("holds more than {MOST_BYTES} bytes");
            Err(DataError::Format { path: path.to_path_buf(), why })
        }
        false => Ok(bytes),
    }
}
