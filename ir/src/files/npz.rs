//! The `.npz` format of NumPy: a zip archive of `.npy` files, stored or deflated.

use std::io::Read;
use std::path::Path;

use flate2::{Crc, read::DeflateDecoder};

use super::{io, malformed, npy_from_bytes, npy_to_bytes, of};
use crate::diagnostic::Diagnostic;
use crate::eval::Tensors;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;

/// No array is larger, so that a small archive cannot fill the memory.
const MAX_ARRAY: u64 = 1 << 36;

/// Reads a file; see [`npz_from_bytes`].
///
/// # Errors
/// `E0651` when the file cannot be read, and those of [`npz_from_bytes`].
pub fn read_npz(path: &Path) -> Result<Tensors, Diagnostic> {
    let bytes = std::fs::read(path).map_err(|e| io(path, &e))?;
    npz_from_bytes(&bytes).map_err(of(path))
}

/// Writes a file; arrays are stored, not deflated.
///
/// # Errors
/// `E0651` when it cannot be written, `E0653` for bf16, which the format does not have.
pub fn write_npz(path: &Path, tensors: &Tensors) -> Result<(), Diagnostic> {
    std::fs::write(path, npz_to_bytes(tensors)?).map_err(|e| io(path, &e))
}

/// Little-endian numbers at places of an archive.
struct Archive<'a>(&'a [u8]);

impl<'a> Archive<'a> {
    fn part(&self, at: u64, length: u64) -> Result<&'a [u8], Diagnostic> {
        let range = usize::try_from(at).ok().zip(usize::try_from(at.saturating_add(length)).ok());
        range.and_then(|(a, b)| self.0.get(a..b)).ok_or_else(|| malformed("a zip archive is cut short"))
    }

    fn number(&self, at: u64, bytes: u64) -> Result<u64, Diagnostic> {
        Ok(self.part(at, bytes)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn is(&self, at: u64, signature: u32) -> bool {
        self.number(at, 4) == Ok(u64::from(signature))
    }

    /// Where the directory begins, and its number of entries.
    fn directory(&self) -> Result<(u64, u64), Diagnostic> {
        let length = self.0.len() as u64;
        // the end record is 22 bytes and a comment
        let first = length.saturating_sub(22 + 0xffff);
        let end = (first..=length.saturating_sub(22)).rev().find(|at| self.is(*at, END));
        let end = end.ok_or_else(|| malformed("not a zip archive"))?;
        if end >= 20 && self.is(end - 20, LOCATOR64) {
            let record = self.number(end - 12, 8)?;
            if !self.is(record, END64) {
                return Err(malformed("the directory of a zip archive is lost"));
            }
            return Ok((self.number(record.saturating_add(48), 8)?, self.number(record.saturating_add(32), 8)?));
        }
        Ok((self.number(end + 16, 4)?, self.number(end + 10, 2)?))
    }
}

/// One file of an archive, as its directory lists it.
struct Entry {
    name: String,
    method: u64,
    crc: u64,
    packed: u64,
    size: u64,
    local: u64,
    /// Where the next entry is.
    next: u64,
}

fn entry(archive: &Archive, at: u64) -> Result<Entry, Diagnostic> {
    if !archive.is(at, CENTRAL) {
        return Err(malformed("the directory of a zip archive is damaged"));
    }
    let (name, extra) = (archive.number(at + 28, 2)?, archive.number(at + 30, 2)?);
    let text = archive.part(at + 46, name)?;
    let text = std::str::from_utf8(text).map_err(|_| malformed("a name in a zip archive is not text"))?;
    let mut found = Entry {
        name: text.to_string(),
        method: archive.number(at + 10, 2)?,
        crc: archive.number(at + 16, 4)?,
        packed: archive.number(at + 20, 4)?,
        size: archive.number(at + 24, 4)?,
        local: archive.number(at + 42, 4)?,
        next: at + 46 + name + extra + archive.number(at + 32, 2)?,
    };
    // large values stand in the extra field, in this order, those that do not fit in 32 bits only
    let (mut field, last) = (at + 46 + name, at + 46 + name + extra);
    while field + 4 <= last {
        let (kind, length) = (archive.number(field, 2)?, archive.number(field + 2, 2)?);
        if kind == 1 {
            let mut place = field + 4;
            for value in [&mut found.size, &mut found.packed, &mut found.local] {
                if *value == u64::from(u32::MAX) {
                    *value = archive.number(place, 8)?;
                    place += 8;
                }
            }
        }
        field += 4 + length;
    }
    Ok(found)
}

/// The arrays of an archive by name, without `.npy`. Sizes and checksums are verified.
///
/// # Errors
/// `E0652` when the bytes are no such archive, `E0653` when an element type is not supported.
pub fn npz_from_bytes(bytes: &[u8]) -> Result<Tensors, Diagnostic> {
    let archive = Archive(bytes);
    let (mut at, count) = archive.directory()?;
    let mut tensors = Tensors::new();
    for _ in 0..count {
        let entry = entry(&archive, at)?;
        at = entry.next;
        let wrong = |why: &str| malformed(format!("`{}` in a zip archive {why}", entry.name));
        if !archive.is(entry.local, LOCAL) {
            return Err(wrong("is lost"));
        }
        let local = entry.local;
        let start = local + 30 + archive.number(local + 26, 2)? + archive.number(local + 28, 2)?;
        let packed = archive.part(start, entry.packed)?;
        if entry.size > MAX_ARRAY {
            return Err(wrong("is too large"));
        }
        let data = match entry.method {
            0 => packed.to_vec(),
            8 => {
                let mut data = Vec::new();
                // one byte more than promised shows that the promise was wrong
                let mut reader = DeflateDecoder::new(packed).take(entry.size + 1);
                reader.read_to_end(&mut data).map_err(|_| wrong("is damaged"))?;
                data
            }
            _ => return Err(wrong("is neither stored nor deflated")),
        };
        let mut crc = Crc::new();
        crc.update(&data);
        if data.len() as u64 != entry.size || u64::from(crc.sum()) != entry.crc {
            return Err(wrong("is damaged"));
        }
        let name = entry.name.strip_suffix(".npy").unwrap_or(&entry.name).to_string();
        tensors.insert(name, npy_from_bytes(&data)?);
    }
    Ok(tensors)
}

/// The bytes of an archive of stored arrays.
///
/// # Errors
/// `E0652` when it would be larger than the plain format allows (4 GiB), `E0653` for bf16.
pub fn npz_to_bytes(tensors: &Tensors) -> Result<Vec<u8>, Diagnostic> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let data = npy_to_bytes(tensor)?;
        let name = format!("{name}.npy");
        let mut crc = Crc::new();
        crc.update(&data);
        let large = |_| malformed("an archive of more than 4 GiB");
        let (offset, size) = (u32::try_from(bytes.len()).map_err(large)?, u32::try_from(data.len()).map_err(large)?);
        let length = u16::try_from(name.len()).map_err(|_| malformed("a name is too long"))?;
        // version 2.0, no flags, stored, the first day that the format can write
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc.sum().to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend(length.to_le_bytes());
        common.extend([0, 0]);
        bytes.extend(LOCAL.to_le_bytes());
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(&data);
        directory.extend(CENTRAL.to_le_bytes());
        directory.extend([20, 0]);
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let large = |_| malformed("an archive of more than 4 GiB");
    let (start, length) = (u32::try_from(bytes.len()).map_err(large)?, u32::try_from(directory.len()).map_err(large)?);
    let count = u16::try_from(tensors.len()).map_err(|_| malformed("an archive of more than 65535 arrays"))?;
    bytes.extend(directory);
    bytes.extend(END.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0; 2]);
    Ok(bytes)
}
