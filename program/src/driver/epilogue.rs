//! What happens to an accumulator tile.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Which way a bias runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Bias {
    /// An element for each column (for convolution: each output channel).
    PerColumn,
    /// An element for each row (products only).
    PerRow,
}

/// Activations that run in registers. NaN passes through.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Activation {
    /// Identity.
    None,
    /// max(x, 0).
    Relu,
    /// min(max(x, lo), hi).
    Clamp(f32, f32),
}

impl Eq for Activation {}

impl std::hash::Hash for Activation {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        if let Activation::Clamp(lo, hi) = self {
            (lo.to_bits(), hi.to_bits()).hash(state);
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation::None => f.write_str("none"),
            Activation::Relu => f.write_str("relu"),
            Activation::Clamp(lo, hi) => write!(f, "clamp({lo:?}, {hi:?})"),
        }
    }
}

/// How an extra operand of a hook is addressed. The driver moves it to the tile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operand<D = usize> {
    /// One element.
    Scalar,
    /// An element for each column (convolution: each output channel), the same for all rows and batches.
    PerColumn,
    /// An element for each row, the same for all columns and batches (products only).
    PerRow,
    /// As the output. For a product: C's strides. For a convolution: blocked channels over the output's extents, with
    /// this halo for each spatial dim and this batch stride.
    Full {
        /// Halo (convolution; empty for products).
        halo: Vec<D>,
        /// Elements from a batch item to the next (convolution).
        batch_stride: D,
    },
    /// Any strides: one for each batch dim, then row and column (0 or 1). Products only.
    Strided {
        /// Stride for each batch dim.
        batch: Vec<D>,
        /// From a row to the next.
        row: D,
        /// From a column to the next: 0 or 1.
        col: D,
    },
}

impl<D> Operand<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> Operand<E> {
        match self {
            Operand::Scalar => Operand::Scalar,
            Operand::PerColumn => Operand::PerColumn,
            Operand::PerRow => Operand::PerRow,
            Operand::Full { halo, batch_stride } => {
                Operand::Full { halo: super::map_all(halo, f), batch_stride: f(batch_stride) }
            }
            Operand::Strided { batch, row, col } => {
                Operand::Strided { batch: super::map_all(batch, f), row: f(row), col: f(col) }
            }
        }
    }
}

impl<D: fmt::Display> fmt::Display for Operand<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Scalar => f.write_str("scalar"),
            Operand::PerColumn => f.write_str("column"),
            Operand::PerRow => f.write_str("row"),
            Operand::Full { halo, batch_stride } => {
                write!(f, "full(halo {}, batch {batch_stride})", super::List(halo))
            }
            Operand::Strided { batch, row, col } => {
                write!(f, "strided(batch {}, row {row}, col {col})", super::List(batch))
            }
        }
    }
}

/// What is done with an accumulator tile once its sum is complete.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Epilogue<D = usize> {
    /// `activation(acc + bias + residual)` in registers. Extra operands, in this order: the bias if there is one, the
    /// residual if there is one.
    Direct {
        /// Bias.
        bias: Option<Bias>,
        /// A residual, addressed as [`Operand::Full`] or (products) [`Operand::Strided`] with column stride 1.
        residual: Option<Operand<D>>,
        /// Activation.
        activation: Activation,
    },
    /// An [`EpilogueFn`](super::hook::EpilogueFn).
    Hook {
        /// How each extra operand is addressed.
        extras: Vec<Operand<D>>,
        /// How each output is addressed, 1 to 4; all f32 or of any type whose size is given.
        outs: Vec<Operand<D>>,
        /// Bytes of an element of each extra operand, then of each output.
        element_bytes: Vec<u8>,
    },
}

impl<D> Epilogue<D> {
    /// Nothing but the store.
    pub fn none() -> Epilogue<D> {
        Epilogue::Direct { bias: None, residual: None, activation: Activation::None }
    }

    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> Epilogue<E> {
        match self {
            Epilogue::Direct { bias, residual, activation } => {
                Epilogue::Direct { bias: *bias, residual: residual.as_ref().map(|r| r.map(f)), activation: *activation }
            }
            Epilogue::Hook { extras, outs, element_bytes } => Epilogue::Hook {
                extras: extras.iter().map(|x| x.map(f)).collect(),
                outs: outs.iter().map(|x| x.map(f)).collect(),
                element_bytes: element_bytes.clone(),
            },
        }
    }
}

impl<D: fmt::Display> fmt::Display for Epilogue<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Epilogue::Direct { bias, residual, activation } => {
                f.write_str("direct")?;
                match bias {
                    None => {}
                    Some(Bias::PerColumn) => f.write_str(" bias column")?,
                    Some(Bias::PerRow) => f.write_str(" bias row")?,
                }
                if let Some(r) = residual {
                    write!(f, " residual {r}")?;
                }
                write!(f, " activation {activation}")
            }
            Epilogue::Hook { extras, outs, element_bytes } => write!(
                f,
                "hook extras {} outs {} bytes {}",
                super::List(extras),
                super::List(outs),
                super::List(element_bytes)
            ),
        }
    }
}

/// A [`RowsFn`](super::hook::RowsFn) over complete rows of a product. With a finisher the tiles go to scratch as they are summed, after
/// the direct epilogue, and the finisher writes the outputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Finisher<D = usize> {
    /// How each extra operand is addressed.
    pub extras: Vec<Operand<D>>,
    /// How each output is addressed, 1 to 4.
    pub outs: Vec<Operand<D>>,
    /// Bytes of an element of each extra operand, then of each output.
    pub element_bytes: Vec<u8>,
}

impl<D> Finisher<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> Finisher<E> {
        Finisher {
            extras: self.extras.iter().map(|x| x.map(f)).collect(),
            outs: self.outs.iter().map(|x| x.map(f)).collect(),
            element_bytes: self.element_bytes.clone(),
        }
    }
}

impl<D: fmt::Display> fmt::Display for Finisher<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "finisher extras {} outs {} bytes {}",
            super::List(&self.extras),
            super::List(&self.outs),
            super::List(&self.element_bytes)
        )
    }
}
