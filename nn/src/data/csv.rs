//! Tables of text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use egret_ir::Tensor;

use crate::error::DataError;

/// A table of comma-separated values (RFC 4180) whose first line names its columns.
///
/// ```
/// use egret_nn::data::{Csv, Table};
/// let csv = Csv::parse("width,length,kind\n0.5,2,reed\n1.5,3,oak\n".as_bytes())?;
/// let (labels, kinds) = csv.classes("kind")?;
/// assert_eq!(kinds, ["oak", "reed"]);
/// let table = Table::new([("x", csv.numbers(&["length", "width"])?), ("y", labels)])?;
/// assert_eq!(table.tensors()[0].1.as_slice::<f32>().unwrap(), [2.0, 0.5, 3.0, 1.5]);
/// # Ok::<(), egret_nn::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Csv {
    path: PathBuf,
    names: Vec<String>,
    /// By row, then by column.
    cells: Vec<String>,
}

impl Csv {
    /// Reads a file.
    ///
    /// # Errors
    /// `E0602` a file that cannot be read, `E0603` lines of unequal length, with the line.
    pub fn read(path: &Path) -> Result<Csv, DataError> {
        let file = std::fs::File::open(path).map_err(|source| DataError::Read { path: path.into(), source })?;
        Csv::from(path, std::io::BufReader::new(file))
    }

    /// Reads what is in memory.
    ///
    /// # Errors
    /// As [`Csv::read`].
    pub fn parse(text: &[u8]) -> Result<Csv, DataError> {
        Csv::from(Path::new("the table"), text)
    }

    fn from(path: &Path, text: impl std::io::Read) -> Result<Csv, DataError> {
        let failed = |error: csv::Error| DataError::Format { path: path.into(), why: error.to_string() };
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
        let names: Vec<String> = reader.headers().map_err(failed)?.iter().map(String::from).collect();
        let mut cells = Vec::new();
        for record in reader.records() {
            cells.extend(record.map_err(failed)?.iter().map(String::from));
        }
        Ok(Csv { path: path.into(), names, cells })
    }

    /// Names of the columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.cells.len() / self.names.len().max(1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cells of a column.
    ///
    /// # Errors
    /// `E0603` where there is no such column.
    pub fn column(&self, name: &str) -> Result<impl Iterator<Item = &str>, DataError> {
        let place = self.names.iter().position(|have| have == name).ok_or_else(|| {
            let known = self.names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            self.wrong(format!("there is no column `{name}`; there are {known}"))
        })?;
        Ok(self.cells.iter().skip(place).step_by(self.names.len().max(1)).map(String::as_str))
    }

    /// Columns of numbers side by side: `f32[rows, columns]`.
    ///
    /// # Errors
    /// `E0603` a column that is not there, or a cell that is no number, with its row.
    pub fn numbers(&self, columns: &[&str]) -> Result<Tensor, DataError> {
        let mut values = vec![0f32; self.len() * columns.len()];
        for (place, name) in columns.iter().enumerate() {
            for (row, cell) in self.column(name)?.enumerate() {
                let number = cell
                    .parse()
                    .map_err(|_| self.wrong(format!("`{name}` of row {} is `{cell}`, which is no number", row + 1)))?;
                values[row * columns.len() + place] = number;
            }
        }
        Tensor::new(&[self.len(), columns.len()], &values).ok_or_else(|| self.wrong("is too large".into()))
    }

    /// A column as classes `i64[rows]`: its distinct cells, in order (of number, where all are integers).
    ///
    /// # Errors
    /// `E0603` where there is no such column.
    pub fn classes(&self, column: &str) -> Result<(Tensor, Vec<String>), DataError> {
        let cells: Vec<&str> = self.column(column)?.collect();
        let mut names: Vec<&str> = cells.iter().copied().collect::<BTreeSet<&str>>().into_iter().collect();
        if names.iter().all(|name| name.parse::<i64>().is_ok()) {
            names.sort_by_key(|name| name.parse::<i64>().unwrap_or_default());
        }
        let index: std::collections::BTreeMap<&str, i64> = names.iter().copied().zip(0..).collect();
        let labels: Vec<i64> = cells.iter().map(|cell| index[cell]).collect();
        let labels = Tensor::new(&[labels.len()], &labels).ok_or_else(|| self.wrong("is too large".into()))?;
        Ok((labels, names.into_iter().map(String::from).collect()))
    }

    fn wrong(&self, why: String) -> DataError {
        DataError::Format { path: self.path.clone(), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_their_columns() {
        let csv = Csv::parse(b"a,\"b,c\", n\n1,x,10\n-2e-1,\"y \"\"z\"\"\",9\n").unwrap();
        assert_eq!(csv.names(), ["a", "b,c", "n"]);
        assert_eq!(csv.numbers(&["n", "a"]).unwrap(), Tensor::new(&[2, 2], &[10.0f32, 1.0, 9.0, -0.2]).unwrap());
        assert_eq!(csv.classes("b,c").unwrap().1, ["x", "y \"z\""]);
        // 9 before 10
        assert_eq!(csv.classes("n").unwrap(), (Tensor::new(&[2], &[1i64, 0]).unwrap(), vec!["9".into(), "10".into()]));
        assert_eq!(csv.len(), 2);
    }

    #[test]
    fn what_is_no_table_of_numbers_says_where() {
        let csv = Csv::parse(b"a,b\n1,2\n,3\n").unwrap();
        let error = csv.numbers(&["a"]).unwrap_err();
        assert_eq!(error.to_string(), "the table: `a` of row 2 is ``, which is no number");
        assert!(csv.numbers(&["c"]).unwrap_err().to_string().contains("there are `a`, `b`"));
        assert!(Csv::parse(b"a,b\n1\n").unwrap_err().to_string().contains("line: 2"));
        assert!(matches!(Csv::read(Path::new("/nowhere")), Err(DataError::Read { .. })));
        assert!(Csv::parse(b"").unwrap().is_empty());
    }
}
