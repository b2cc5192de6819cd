//! Matrix products.

use super::{Epilogue, Finisher, List, Words};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A batch dim of a product.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BatchDim<D = usize> {
    /// Extent.
    pub extent: D,
    /// Stride in A (0: shared).
    pub a: D,
    /// Stride in B (0: shared). For prepacked B, in elements of packed matrices.
    pub b: D,
    /// Stride in C.
    pub c: D,
}

impl<D: fmt::Display> fmt::Display for BatchDim<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:({}, {}, {})", self.extent, self.a, self.b, self.c)
    }
}

/// How B is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MatrixForm {
    /// With strides; packed on the fly.
    Strided,
    /// Packed at load by [`PackForm::Columns`](super::PackForm::Columns); its strides are not read.
    Packed,
}

/// `C[m][n] = epilogue(sum over k of A[m][k] B[k][n])`, for each batch item.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GemmProblem<D = usize> {
    /// Batch dims, outermost first.
    pub batch: Vec<BatchDim<D>>,
    /// Rows of C.
    pub m: D,
    /// Columns of C.
    pub n: D,
    /// Length of the sums.
    pub k: D,
    /// Stride of A along m.
    pub a_row: D,
    /// Stride of A along k.
    pub a_col: D,
    /// How B is given.
    pub b: MatrixForm,
    /// Stride of B along k.
    pub b_row: D,
    /// Stride of B along n.
    pub b_col: D,
    /// Stride of C along m.
    pub c_row: D,
    /// Stride of C along n. With hooks or a finisher it must be 1.
    pub c_col: D,
    /// Epilogue.
    pub epilogue: Epilogue<D>,
    /// Finisher over complete rows.
    pub finisher: Option<Finisher<D>>,
}

impl<D> GemmProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> GemmProblem<E> {
        GemmProblem {
            batch: self
                .batch
                .iter()
                .map(|d| BatchDim { extent: f(&d.extent), a: f(&d.a), b: f(&d.b), c: f(&d.c) })
                .collect(),
            m: f(&self.m),
            n: f(&self.n),
            k: f(&self.k),
            a_row: f(&self.a_row),
            a_col: f(&self.a_col),
            b: self.b,
            b_row: f(&self.b_row),
            b_col: f(&self.b_col),
            c_row: f(&self.c_row),
            c_col: f(&self.c_col),
            epilogue: self.epilogue.map(f),
            finisher: self.finisher.as_ref().map(|x| x.map(f)),
        }
    }
}

impl GemmProblem<usize> {
    /// `m x k` by `k x n`, all row-major without gaps, no batch, no epilogue.
    pub fn plain(m: usize, n: usize, k: usize) -> GemmProblem<usize> {
        GemmProblem {
            batch: vec![],
            m,
            n,
            k,
            a_row: k,
            a_col: 1,
            b: MatrixForm::Strided,
            b_row: n,
            b_col: 1,
            c_row: n,
            c_col: 1,
            epilogue: Epilogue::none(),
            finisher: None,
        }
    }

    /// Multiply-adds count two.
    pub fn flops(&self) -> f64 {
        let items: usize = self.batch.iter().map(|d| d.extent).product();
        2.0 * items as f64 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

impl<D: fmt::Display> fmt::Display for GemmProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "gemm m {} n {} k {} batch {}", self.m, self.n, self.k, List(&self.batch))?;
        write!(f, "  a ({}, {}) b ", self.a_row, self.a_col)?;
        match self.b {
            MatrixForm::Strided => write!(f, "({}, {})", self.b_row, self.b_col)?,
            MatrixForm::Packed => f.write_str("packed")?,
        }
        writeln!(f, " c ({}, {})", self.c_row, self.c_col)?;
        write!(f, "  epilogue {}", self.epilogue)?;
        if let Some(x) = &self.finisher {
            write!(f, "\n  {x}")?;
        }
        Ok(())
    }
}

/// How products are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Products {
    /// Of `f32`, in f32.
    #[default]
    F32,
    /// Of operands narrowed to words (AVX-512; B packed at load).
    Words(Words),
    /// Of `i32` operands that fit `i16`, sums in `i32`, which wrap (no direct activation; B is packed as floats are).
    Shorts,
    /// Of `f64`, in f64, in vectors of half as many lanes.
    F64,
}

impl Products {
    /// Whether sums are `i32`.
    pub fn is_integer(self) -> bool {
        match self {
            Products::F32 | Products::F64 => false,
            Products::Shorts => true,
            Products::Words(words) => words.is_integer(),
        }
    }

    /// Bytes of an element of the operands, of packed B unless that is of words, and of the sums.
    pub fn element_bytes(self) -> usize {
        match self {
            Products::F32 | Products::Words(_) | Products::Shorts => 4,
            Products::F64 => 8,
        }
    }

    /// Lanes of its vectors on a device whose vectors have so many of `f32`.
    pub fn lanes(self, lanes_f32: usize) -> usize {
        lanes_f32 * 4 / self.element_bytes()
    }
}

/// Schedule of a product.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GemmSchedule {
    /// L of packed panels: 16 for AVX-512, else 8; half of that for [`Products::F64`]. The runtime refuses another than its own.
    pub lanes: usize,
    /// Longest partial sum in registers; longer products are summed block by block.
    pub k_block: usize,
    /// Rows in a chunk of work, at most; columns are divided among threads by panels.
    pub m_block: usize,
    /// How products are computed.
    pub products: Products,
}

impl GemmSchedule {
    /// The analytic choice for a device whose vectors have `lanes` of `f32`, of products that are not of words; never depends on
    /// the number of threads.
    pub fn choose(problem: &GemmProblem<usize>, products: Products, lanes: usize) -> GemmSchedule {
        // A chunk's rows of A stay in L2 while panels of B pass: about 512 KB of them. As many of `f64` take twice that: fewer would
        // have B read from memory more often, which costs more.
        const CHUNK: usize = 128 << 10;
        let tile = if lanes == 16 { 14 } else { 6 };
        let tiles = problem.m.div_ceil(tile).max(1);
        let fits = (CHUNK / (problem.k.max(1) * tile)).clamp(1, 16);
        let m_block = tiles.div_ceil(tiles.div_ceil(fits)) * tile;
        GemmSchedule { lanes: products.lanes(lanes), k_block: 4096, m_block, products }
    }

    /// The choice for [`Products::Words`]: sums are never cut, and a chunk's narrowed rows of A stay in L2.
    pub fn words(problem: &GemmProblem<usize>, words: Words, lanes: usize) -> GemmSchedule {
        const CHUNK_BYTES: usize = 512 << 10;
        const TILE: usize = 32;
        let tiles = problem.m.div_ceil(TILE).max(1);
        let bytes = problem.k.next_multiple_of(words.depth()) * 64 / words.depth();
        let fits = (CHUNK_BYTES / (bytes.max(1) * TILE)).max(1);
        let m_block = tiles.div_ceil(tiles.div_ceil(fits)) * TILE;
        GemmSchedule { lanes, k_block: problem.k.max(1), m_block, products: Products::Words(words) }
    }
}

impl fmt::Display for GemmSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  schedule lanes {} k_block {} m_block {}", self.lanes, self.k_block, self.m_block)?;
        match self.products {
            Products::F32 => Ok(()),
            Products::Words(words) => write!(f, " products {words}"),
            Products::Shorts => f.write_str(" products shorts"),
            Products::F64 => f.write_str(" products f64"),
        }
    }
}
