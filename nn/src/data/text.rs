//! Text as numbers, character by character.

use std::path::Path;
use std::sync::Arc;

use egret_ir::Tensor;

use super::unpack::{find, unpacked};
use super::{Batch, DataSet};
use crate::error::DataError;

/// The text of a file of a folder, plain or with `.gz`.
///
/// # Errors
/// When it is missing, cannot be read, or is not UTF-8.
pub fn read_text(folder: &Path, name: &str) -> Result<String, DataError> {
    let path = find(folder, name)?;
    let bytes = unpacked(&path)?;
    String::from_utf8(bytes).map_err(|e| DataError::Format { path, why: format!("is not UTF-8: {e}") })
}

/// A text whose characters are numbers: their places among the different ones, in order.
///
/// ```
/// use egret_nn::data::{Characters, DataSet};
/// let text = Characters::new("abracadabra")?;
/// assert_eq!(text.vocabulary(), ['a', 'b', 'c', 'd', 'r']);
/// assert_eq!(text.encode("crab"), Some(vec![2, 4, 0, 1]));
/// let windows = text.windows(4, 1)?;
/// let batch = windows.batch(&[1])?;
/// assert_eq!(text.decode(batch[0].1.as_slice().unwrap()), "brac");
/// assert_eq!(text.decode(batch[1].1.as_slice().unwrap()), "raca");
/// # Ok::<(), egret_nn::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Characters {
    vocabulary: Arc<[char]>,
    numbers: Arc<[i64]>,
}

impl Characters {
    /// The characters of a text.
    ///
    /// # Errors
    /// `E0605` an empty text.
    pub fn new(text: &str) -> Result<Characters, DataError> {
        let mut vocabulary: Vec<char> = text.chars().collect();
        vocabulary.sort_unstable();
        vocabulary.dedup();
        let text_of = Characters { vocabulary: vocabulary.into(), numbers: Arc::from([]) };
        match text_of.encode(text) {
            Some(numbers) if !numbers.is_empty() => Ok(Characters { numbers: numbers.into(), ..text_of }),
            _ => Err(DataError::Empty { what: "a model of text" }),
        }
    }

    /// Number of characters.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The different characters, by number.
    pub fn vocabulary(&self) -> &[char] {
        &self.vocabulary
    }

    /// The numbers of another text's characters; `None` where one is not in the vocabulary.
    pub fn encode(&self, text: &str) -> Option<Vec<i64>> {
        text.chars().map(|c| self.vocabulary.binary_search(&c).ok().map(|i| i as i64)).collect()
    }

    /// The text of numbers; those that are no characters are left out.
    pub fn decode(&self, numbers: &[i64]) -> String {
        numbers.iter().filter_map(|i| usize::try_from(*i).ok().and_then(|i| self.vocabulary.get(i))).collect()
    }

    /// The text in two parts of one vocabulary: the second is the last `share`, in 0..=1.
    pub fn split(&self, share: f64) -> (Characters, Characters) {
        let second = (self.len() as f64 * share.clamp(0.0, 1.0)) as usize;
        let (a, b) = self.numbers.split_at(self.len() - second);
        let part = |numbers: &[i64]| Characters { vocabulary: self.vocabulary.clone(), numbers: numbers.into() };
        (part(a), part(b))
    }

    /// Windows of `length` characters, each beginning `step` after the one before, with the character that follows each.
    ///
    /// # Errors
    /// `E0605` a text of fewer than `length + 1` characters.
    pub fn windows(&self, length: usize, step: usize) -> Result<Windows, DataError> {
        match length > 0 && self.len() > length {
            true => Ok(Windows { numbers: self.numbers.clone(), length, step: step.max(1) }),
            false => Err(DataError::Empty { what: "windows of a text" }),
        }
    }
}

/// Windows of a text: `characters` `i64[n, length]`, and `next` `i64[n, length]`, the character that follows each.
#[derive(Clone, Debug)]
pub struct Windows {
    numbers: Arc<[i64]>,
    length: usize,
    step: usize,
}

impl DataSet for Windows {
    fn len(&self) -> usize {
        (self.numbers.len() - 1 - self.length) / self.step + 1
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        if let Some(row) = rows.iter().copied().find(|row| *row >= self.len()) {
            return Err(DataError::Row { row, len: self.len() });
        }
        let part = |after: usize| {
            let window = |row: &usize| &self.numbers[row * self.step + after..][..self.length];
            let numbers: Vec<i64> = rows.iter().flat_map(window).copied().collect();
            let too_many = || DataError::Rows { why: format!("{} windows are too many", rows.len()) };
            Tensor::new(&[rows.len(), self.length], &numbers).ok_or_else(too_many)
        };
        Ok(vec![("characters".into(), part(0)?), ("next".into(), part(1)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_where_the_text_does() {
        let text = Characters::new("0123456789").unwrap();
        let (first, last) = text.split(0.3);
        assert_eq!((first.len(), last.decode(&last.numbers)), (7, "789".to_string()));
        assert_eq!(text.windows(4, 1).unwrap().len(), 6);
        let apart = text.windows(4, 4).unwrap();
        let batch = apart.batch(&[1]).unwrap();
        assert_eq!((apart.len(), text.decode(batch[1].1.as_slice().unwrap())), (2, "5678".to_string()));
        assert!(matches!(apart.batch(&[2]), Err(DataError::Row { row: 2, len: 2 })));
        assert!(text.windows(10, 1).is_err() && text.windows(0, 1).is_err() && Characters::new("").is_err());
        assert_eq!(text.encode("12x"), None);
    }

    #[test]
    fn texts_are_read_plain_or_packed() {
        let folder = std::env::temp_dir().join(format!("egret-text-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(matches!(read_text(&folder, "a.txt"), Err(DataError::Missing { .. })));
        std::fs::write(folder.join("a.txt"), "grüße").unwrap();
        assert_eq!(read_text(&folder, "a.txt").unwrap(), "grüße");
        std::fs::write(folder.join("a.txt"), [0xff, 0xfe]).unwrap();
        assert!(matches!(read_text(&folder, "a.txt"), Err(DataError::Format { .. })));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
