//! The text form of graphs: what people read, diff and edit, and what parses back to an equal graph.
//!
//! ```text
//! graph {
//!   %0 = input "x" : f32[batch, 3]
//!   %1 = const [1.5, -2.0, 0.25] : f32[3]
//!   %2 = add(%0, %1) : f32[batch, 3]
//!   %3 = reduce_sum(%2) {axes=[1], keep=false} : f32[batch]
//!   output "y" = %3
//! }
//! ```
//!
//! A symbol that may be any size from 1 is its name; `n[2..8]` is one within a range. Large constants and weights stand
//! in a safetensors file beside the text; a constant there is named by the hash of its type and elements.

mod cursor;
mod parse;
mod print;
mod program;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::Tensors;
use crate::files;
use crate::graph::Graph;
use crate::ops::{Block, Op};
use crate::scalar::{Literal, ScalarExpr};
use crate::tensor::Tensor;
use crate::weights::Weight;

pub use parse::{Attributes, parse, parse_with};
pub use print::print;

/// The value of an attribute in text.
#[derive(Clone, Debug)]
pub enum Attr {
    /// An integer.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// A float.
    Real(f64),
    /// Integers.
    Ints(Vec<i64>),
    /// A size.
    Dim(Dim),
    /// Sizes.
    Dims(Vec<Dim>),
    /// A word, such as einsum labels.
    Word(String),
    /// A constant with its element type.
    Literal(Literal),
    /// A scalar program.
    Expr(ScalarExpr),
    /// Scalar programs.
    Exprs(Vec<ScalarExpr>),
    /// The program of a `generate`, and the number of its first value.
    Program(Block, usize),
    /// A graph of its own.
    Region(Arc<Graph>),
    /// An operator with its attributes, without operands.
    Op(Op),
}

impl Attr {
    /// Places as integers.
    pub fn places(list: &[usize]) -> Attr {
        Attr::Ints(list.iter().map(|i| *i as i64).collect())
    }
}

/// Constants of at most this many elements are written into the text.
const INLINE: usize = 64;

/// The name of a constant in the file beside the text: a hash of its type and elements (FNV-1a, 64 bits).
fn constant_name(tensor: &Tensor) -> String {
    let ty = format!("{}{:?}", tensor.dtype(), tensor.shape());
    let hash = ty
        .bytes()
        .chain(tensor.bytes().iter().copied())
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("const.{hash:016x}")
}

fn is_large(tensor: &Tensor) -> bool {
    tensor.elements() > INLINE
}

/// The large constants of a graph and of its regions, by the names that the text uses.
pub fn large_constants(graph: &Graph) -> Tensors {
    let mut found = Tensors::new();
    let mut open = vec![graph];
    while let Some(graph) = open.pop() {
        for node in graph.nodes() {
            if let Op::Const(leaf) = &node.op
                && is_large(&leaf.value)
            {
                found.insert(constant_name(&leaf.value), leaf.value.clone());
            }
            open.extend(node.op.home().regions().into_iter().map(|region| &**region));
        }
    }
    found
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("safetensors")
}

/// Writes the text, and large constants and weights into a file of the same name that ends in `.safetensors`.
///
/// # Errors
/// `E0651` when a file cannot be written.
pub fn save(path: &Path, graph: &Graph) -> Result<(), Diagnostic> {
    let mut tensors = large_constants(graph);
    for (name, weight) in graph.weights.iter() {
        if let Weight::Tensor(tensor) = weight {
            tensors.insert(name.clone(), tensor.clone());
        }
    }
    if !tensors.is_empty() {
        files::write_safetensors(&beside(path), &tensors)?;
    }
    let io = |e: std::io::Error| Diagnostic::new("E0651", format!("{}: {e}", path.display()));
    std::fs::write(path, print(graph)).map_err(io)
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// `E0651` when a file cannot be read, and those of [`parse_with`].
pub fn load(path: &Path) -> Result<Graph, Diagnostic> {
    let io = |e: std::io::Error| Diagnostic::new("E0651", format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(io)?;
    let file = beside(path);
    let tensors = if file.exists() { files::read_safetensors(&file)? } else { Tensors::new() };
    let mut graph = parse_with(&text, &tensors)?;
    let weights = Arc::make_mut(&mut graph.weights);
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| !name.starts_with("const.")) {
        weights.entry(name).or_insert(Weight::Tensor(tensor));
    }
    Ok(graph)
}
