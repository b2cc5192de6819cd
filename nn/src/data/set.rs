//! What a data set is, and sets in memory.

use std::path::Path;

use egret_ir::Tensor;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use super::Images;
use crate::error::DataError;

/// Some examples: tensors by name, the leading extent of each the number of examples.
pub type Batch = Vec<(String, Tensor)>;

/// Examples that are given by number, as any number of named tensors. What is named here are inputs of the model.
///
/// A set may hold its examples or read them when they are asked for; [`prefetch`](super::prefetch()) asks on a thread of
/// its own.
pub trait DataSet: Send + Sync {
    /// Number of examples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These examples, in this order.
    ///
    /// # Errors
    /// A number that is too large, or what keeps an example from being read.
    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError>;
}

/// Named tensors in memory whose leading extents are equal: example `i` is row `i` of each.
///
/// ```
/// use egret_ir::Tensor;
/// use egret_nn::data::{DataSet, Table};
/// let x = Tensor::new(&[3, 2], &[0.0f32, 0.1, 1.0, 1.1, 2.0, 2.1]).unwrap();
/// let table = Table::new([("x", x)])?;
/// let batch = table.batch(&[2, 0])?;
/// assert_eq!(batch[0].1.as_slice::<f32>().unwrap(), [2.0, 2.1, 0.0, 0.1]);
/// # Ok::<(), egret_nn::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Table {
    tensors: Vec<(String, Tensor)>,
    len: usize,
}

impl Table {
    /// A set of these tensors.
    ///
    /// # Errors
    /// `E0606` tensors without rows, of unequal numbers of rows, or of one name.
    pub fn new<N: Into<String>>(tensors: impl IntoIterator<Item = (N, Tensor)>) -> Result<Table, DataError> {
        let tensors: Vec<(String, Tensor)> = tensors.into_iter().map(|(name, t)| (name.into(), t)).collect();
        let mut len = None;
        for (i, (name, tensor)) in tensors.iter().enumerate() {
            let Some(rows) = tensor.shape().first().copied() else {
                return Err(DataError::Rows { why: format!("`{name}` is a scalar and has no rows") });
            };
            if tensors[..i].iter().any(|(have, _)| have == name) {
                return Err(DataError::Rows { why: format!("`{name}` is given twice") });
            }
            if let Some(len) = len.filter(|len| *len != rows) {
                let first = &tensors[0].0;
                return Err(DataError::Rows { why: format!("`{first}` has {len} rows, `{name}` {rows}") });
            }
            len = Some(rows);
        }
        Ok(Table { tensors, len: len.unwrap_or(0) })
    }

    /// The tensors of an `.npz`, `.npy` or safetensors file; safetensors are mapped, not read.
    ///
    /// # Errors
    /// `E0603` a file that cannot be read, or whose tensors have unequal numbers of rows.
    pub fn read(path: &Path) -> Result<Table, DataError> {
        let wrong = |why: String| DataError::Format { path: path.into(), why };
        let tensors = egret_ir::files::read(path).map_err(|e| wrong(e.message))?;
        Table::new(tensors).map_err(|e| wrong(e.to_string()))
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &[(String, Tensor)] {
        &self.tensors
    }

    /// With another name for a tensor: that of an input of the model.
    ///
    /// # Errors
    /// `E0606` where there is none of that name, or one of the new name.
    pub fn renamed(mut self, from: &str, to: &str) -> Result<Table, DataError> {
        let known = || self.tensors.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let Some(place) = self.tensors.iter().position(|(name, _)| name == from) else {
            return Err(DataError::Rows { why: format!("there is no tensor `{from}`; there are {}", known()) });
        };
        self.tensors[place].0 = to.into();
        Table::new(self.tensors)
    }
}

/// Rows of a tensor, stacked.
pub(crate) fn rows_of(tensor: &Tensor, rows: &[usize]) -> Result<Tensor, DataError> {
    let (len, inner) = tensor.shape().split_first().map_or((0, &[][..]), |(len, inner)| (*len, inner));
    if let Some(row) = rows.iter().find(|row| **row >= len) {
        return Err(DataError::Row { row: *row, len });
    }
    let mut shape = vec![rows.len()];
    shape.extend(inner);
    let mut taken = Tensor::zeros(tensor.dtype(), &shape);
    let width = inner.iter().product::<usize>() * tensor.dtype().size();
    if width > 0 {
        let from = tensor.bytes();
        for (to, row) in taken.bytes_mut().chunks_exact_mut(width).zip(rows) {
            to.copy_from_slice(&from[row * width..][..width]);
        }
    }
    Ok(taken)
}

impl DataSet for Table {
    fn len(&self) -> usize {
        self.len
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        self.tensors.iter().map(|(name, tensor)| Ok((name.clone(), rows_of(tensor, rows)?))).collect()
    }
}

/// `images` `f32[n, 1, height, width]` in 0..1 and `labels` `i64[n]`.
impl DataSet for Images {
    fn len(&self) -> usize {
        Images::len(self)
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        let len = Images::len(self);
        if let Some(row) = rows.iter().find(|row| **row >= len) {
            return Err(DataError::Row { row: *row, len });
        }
        let (images, labels) = self.stacked(rows);
        Ok(vec![("images".into(), images), ("labels".into(), labels)])
    }
}

/// Some examples of a set.
#[derive(Clone)]
pub struct Subset<'a> {
    of: &'a dyn DataSet,
    rows: Vec<usize>,
}

impl<'a> Subset<'a> {
    /// The examples of these numbers, in this order.
    pub fn new(of: &'a dyn DataSet, rows: Vec<usize>) -> Subset<'a> {
        Subset { of, rows }
    }
}

impl DataSet for Subset<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        let len = self.rows.len();
        let inner = rows.iter().map(|row| self.rows.get(*row).copied().ok_or(DataError::Row { row: *row, len }));
        self.of.batch(&inner.collect::<Result<Vec<usize>, _>>()?)
    }
}

/// A set in two parts, drawn from `seed`: the second has `share` of the examples, rounded to the nearest.
///
/// ```
/// use egret_nn::data::{self, DataSet};
/// let digits = data::digits(50, 1);
/// let (train, valid) = data::split(&digits, 0.1, 7);
/// assert_eq!((train.len(), valid.len()), (45, 5));
/// ```
pub fn split(data: &dyn DataSet, share: f64, seed: u64) -> (Subset<'_>, Subset<'_>) {
    let mut rows = shuffled(data.len(), seed);
    // a share that is no number is none
    let second = (data.len() as f64 * share.clamp(0.0, 1.0)).round() as usize;
    let rest = rows.split_off(data.len() - second.min(data.len()));
    (Subset::new(data, rows), Subset::new(data, rest))
}

/// The numbers below `len` in an order drawn from `seed`; the same seed gives the same order.
pub fn shuffled(len: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(rows: usize, columns: usize) -> Tensor {
        let values: Vec<i64> = (0..(rows * columns) as i64).collect();
        Tensor::new(&[rows, columns], &values).unwrap()
    }

    #[test]
    fn rows_of_all_tensors_go_together() {
        let table = Table::new([("a", ramp(5, 2)), ("b", ramp(5, 1))]).unwrap().renamed("b", "c").unwrap();
        let batch = table.batch(&[4, 1]).unwrap();
        assert_eq!(batch[0], ("a".to_string(), Tensor::new(&[2, 2], &[8i64, 9, 2, 3]).unwrap()));
        assert_eq!(batch[1], ("c".to_string(), Tensor::new(&[2, 1], &[4i64, 1]).unwrap()));
        assert!(matches!(table.batch(&[5]), Err(DataError::Row { row: 5, len: 5 })));
        assert!(matches!(table.clone().renamed("x", "y"), Err(DataError::Rows { .. })));
        assert!(matches!(table.renamed("a", "c"), Err(DataError::Rows { .. })));
    }

    #[test]
    fn files_of_tensors_are_tables() {
        let folder = std::env::temp_dir().join(format!("egret-table-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let tensors = egret_ir::Tensors::from([("a".to_string(), ramp(3, 2)), ("b".to_string(), ramp(3, 1))]);
        let (npz, mapped) = (folder.join("x.npz"), folder.join("x.safetensors"));
        egret_ir::files::write_npz(&npz, &tensors).unwrap();
        egret_ir::files::write_safetensors(&mapped, &tensors).unwrap();
        for path in [&npz, &mapped] {
            let batch = Table::read(path).unwrap().batch(&[2]).unwrap();
            assert_eq!(batch[0].1.as_slice::<i64>().unwrap(), [4, 5]);
        }
        let uneven = egret_ir::Tensors::from([("a".to_string(), ramp(3, 2)), ("b".to_string(), ramp(2, 1))]);
        egret_ir::files::write_npz(&npz, &uneven).unwrap();
        assert!(Table::read(&npz).unwrap_err().to_string().ends_with("x.npz: `a` has 3 rows, `b` 2"));
        assert!(matches!(Table::read(&folder.join("none.npz")), Err(DataError::Format { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn tables_of_unequal_rows_are_refused() {
        let error = Table::new([("a", ramp(5, 2)), ("b", ramp(4, 1))]).unwrap_err();
        assert_eq!(error.to_string(), "`a` has 5 rows, `b` 4");
        assert!(Table::new([("a", Tensor::zeros(egret_ir::DType::F32, &[]))]).is_err());
        assert!(Table::new([("a", ramp(1, 1)), ("a", ramp(1, 1))]).is_err());
        assert!(Table::new(Vec::<(String, Tensor)>::new()).unwrap().is_empty());
        // rows without elements are rows all the same
        assert_eq!(Table::new([("a", ramp(3, 0))]).unwrap().batch(&[2, 2]).unwrap()[0].1.shape(), [2, 0]);
    }

    #[test]
    fn a_split_gives_every_example_once() {
        let table = Table::new([("a", ramp(10, 1))]).unwrap();
        let (train, valid) = split(&table, 0.3, 5);
        assert_eq!((train.len(), valid.len()), (7, 3));
        let of = |set: &Subset| {
            let rows: Vec<usize> = (0..set.len()).collect();
            set.batch(&rows).unwrap()[0].1.as_slice::<i64>().unwrap().to_vec()
        };
        let mut all = [of(&train), of(&valid)].concat();
        assert!(!all.is_sorted(), "{all:?}");
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<i64>>());
        assert_eq!(of(&split(&table, 0.3, 5).1), of(&valid));
        assert!(matches!(valid.batch(&[3]), Err(DataError::Row { row: 3, len: 3 })));
        assert_eq!(split(&table, f64::NAN, 1).1.len(), 0);
    }
}
