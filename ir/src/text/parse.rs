//! From text to a graph.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::cursor::Cursor;
use crate::diagnostic::{Diagnostic, Origin};
use crate::dim::Dim;
use crate::eval::Tensors;
use crate::graph::{Graph, NodeId};
use crate::ops::{self, Block, Const, Input, Op, Param, State};
use crate::scalar::{Literal, ScalarExpr};
use crate::tensor::Tensor;
use crate::types::{TensorType, Type};
use crate::weights::Weight;

/// The graph of a text without large constants.
///
/// # Errors
/// `E0601` with line and column.
///
/// ```
/// let text = "graph { %0 = input \"x\" : f32[n, 2]  %1 = exp(%0) : f32[n, 2]  output \"y\" = %1 }";
/// let graph = egret_ir::text::parse(text).unwrap();
/// assert_eq!(egret_ir::text::parse(&egret_ir::text::print(&graph)).unwrap(), graph);
/// ```
pub fn parse(text: &str) -> Result<Graph, Diagnostic> {
    parse_with(text, &Tensors::new())
}

/// The graph of a text whose large constants are given by name.
///
/// # Errors
/// `E0601` with line and column; `E0701` for what no graph may be.
pub fn parse_with(text: &str, constants: &Tensors) -> Result<Graph, Diagnostic> {
    let mut cursor = Cursor::new(text);
    cursor.expect("graph")?;
    let graph = region(&mut cursor, constants)?;
    if !cursor.is_done() {
        return Err(cursor.error("there is text after the graph"));
    }
    crate::verify(&graph)?;
    Ok(graph)
}

/// The attributes of an operator, as an operator's home reads them.
pub struct Attributes<'a> {
    place: Cursor<'a>,
    values: Vec<(&'a str, Cursor<'a>)>,
    ty: Option<Type>,
    constants: &'a Tensors,
}

macro_rules! readers {
    ($($(#[$doc:meta])* $name:ident $ty:ty, $read:expr;)*) => {
        impl Attributes<'_> {
            $($(#[$doc])*
            ///
            /// # Errors
            /// When it is missing or written otherwise.
            pub fn $name(&self, name: &str) -> Result<$ty, Diagnostic> {
                self.read(name, $read)
            })*
        }
    };
}

readers! {
    /// An integer.
    int i64, |c| c.int();
    /// A place, such as an axis.
    place usize, |c| { let before = c.clone(); usize::try_from(c.int()?).map_err(|_| before.error("a place is expected")) };
    /// A truth value.
    truth bool, |c| c.truth();
    /// A float.
    real f64, |c| c.float();
    /// Integers.
    ints Vec<i64>, |c| c.list("[", "]", Cursor::int);
    /// Places, such as axes.
    places Vec<usize>, |c| {
        let before = c.clone();
        let list = c.list("[", "]", Cursor::int)?;
        list.into_iter().map(|i| usize::try_from(i).map_err(|_| before.error("places are expected"))).collect()
    };
    /// A size.
    dim Dim, |c| c.dim();
    /// Sizes.
    dims Vec<Dim>, |c| c.list("[", "]", Cursor::dim);
    /// A constant with its element type.
    literal Literal, |c| c.literal();
    /// A scalar program.
    expr ScalarExpr, |c| c.expr();
    /// Scalar programs.
    exprs Vec<ScalarExpr>, |c| c.list("[", "]", Cursor::expr);
    /// The number of a data-dependent size.
    fresh u32, |c| { let before = c.clone(); u32::try_from(c.int()?).map_err(|_| before.error("a number is expected")) };
    /// A word.
    word String, |c| Ok(c.word().to_string());
}

impl<'a> Attributes<'a> {
    fn read<T>(
        &self,
        name: &str,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<T, Diagnostic>,
    ) -> Result<T, Diagnostic> {
        let found = self.values.iter().find(|(have, _)| *have == name);
        let mut cursor = found
            .map(|(_, cursor)| cursor.clone())
            .ok_or_else(|| self.place.error(format!("the attribute `{name}` is missing")))?;
        let value = read(&mut cursor)?;
        if cursor.is_done() { Ok(value) } else { Err(cursor.error(format!("there is more than `{name}` here"))) }
    }

    /// Whether an attribute is given.
    pub fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(have, _)| *have == name)
    }

    /// A graph of its own.
    ///
    /// # Errors
    /// When it is missing or written otherwise.
    pub fn region(&self, name: &str) -> Result<Graph, Diagnostic> {
        self.read(name, |c| c.nested(|c| region(c, self.constants)))
    }

    /// The program of a `generate` whose first value has number `first`.
    ///
    /// # Errors
    /// When it is missing or written otherwise.
    pub fn program(&self, name: &str, first: usize) -> Result<Block, Diagnostic> {
        self.read(name, |c| super::program::parse(c, &mut first.clone()))
    }

    /// An operator without operands.
    ///
    /// # Errors
    /// When it is missing or written otherwise.
    pub fn op(&self, name: &str) -> Result<Op, Diagnostic> {
        self.read(name, |c| c.nested(|c| operator(c, self.constants)))
    }

    /// The type that is written behind the operator, if it is one tensor.
    ///
    /// # Errors
    /// When it is not.
    pub fn tensor_type(&self) -> Result<TensorType, Diagnostic> {
        let ty = self.ty.as_ref().and_then(Type::tensor).cloned();
        ty.ok_or_else(|| self.error("an operator whose type is written behind it is expected"))
    }

    /// An error at the operator.
    pub fn error(&self, message: &str) -> Diagnostic {
        self.place.error(message)
    }
}

/// `name {attributes}`, inside another operator.
fn operator(cursor: &mut Cursor, constants: &Tensors) -> Result<Op, Diagnostic> {
    let place = cursor.clone();
    let name = cursor.word();
    let values = attribute_list(cursor)?;
    let attributes = Attributes { place, values, ty: None, constants };
    ops::read(name, &attributes)
}

fn attribute_list<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<(&'a str, Cursor<'a>)>, Diagnostic> {
    let mut ahead = cursor.clone();
    if !ahead.eat("{") {
        return Ok(Vec::new());
    }
    cursor.list("{", "}", |c| {
        let name = c.word();
        c.expect("=")?;
        Ok((name, c.value()?))
    })
}

fn region(cursor: &mut Cursor, constants: &Tensors) -> Result<Graph, Diagnostic> {
    cursor.expect("{")?;
    let mut graph = Graph::new();
    let mut names: HashMap<String, NodeId> = HashMap::new();
    loop {
        let place = cursor.clone();
        if cursor.eat("}") {
            return Ok(graph);
        }
        if cursor.eat("%") {
            let name = cursor.word().to_string();
            cursor.expect("=")?;
            let id = node(cursor, &mut graph, &names, constants)?;
            if names.insert(name.clone(), id).is_some() {
                return Err(place.error(format!("%{name} is given twice")));
            }
            continue;
        }
        match cursor.word() {
            "output" => {
                let (name, id) = named(cursor, &names)?;
                graph.add_output(name, id);
            }
            "update" => {
                let (name, id) = named(cursor, &names)?;
                graph.add_update(name, id);
            }
            "weight" => {
                let name = cursor.quoted()?;
                cursor.expect("=")?;
                cursor.expect("fill")?;
                let value = cursor.literal()?;
                let before = cursor.clone();
                let sizes = cursor.list("[", "]", Cursor::int)?;
                let shape: Option<Vec<usize>> = sizes.iter().map(|n| usize::try_from(*n).ok()).collect();
                let shape = shape.ok_or_else(|| before.error("a negative extent"))?;
                Arc::make_mut(&mut graph.weights).insert(name, Weight::Fill { value, shape });
            }
            _ => return Err(place.error("a node, `output`, `update`, `weight` or `}` is expected")),
        }
    }
}

fn named(cursor: &mut Cursor, names: &HashMap<String, NodeId>) -> Result<(String, NodeId), Diagnostic> {
    let name = cursor.quoted()?;
    cursor.expect("=")?;
    Ok((name, value(cursor, names)?))
}

fn value(cursor: &mut Cursor, names: &HashMap<String, NodeId>) -> Result<NodeId, Diagnostic> {
    let before = cursor.clone();
    cursor.expect("%")?;
    let name = cursor.word();
    names.get(name).copied().ok_or_else(|| before.error(format!("%{name} is not defined above")))
}

fn node(
    cursor: &mut Cursor,
    graph: &mut Graph,
    names: &HashMap<String, NodeId>,
    constants: &Tensors,
) -> Result<NodeId, Diagnostic> {
    cursor.skip();
    let place = cursor.clone();
    let kind = cursor.word();
    let leaf = match kind {
        "input" | "param" | "state" => Some(cursor.quoted()?),
        _ => None,
    };
    let elements = if kind == "const" { Some(cursor.clone()) } else { None };
    if kind == "const" {
        // the type, which says how to read the elements, stands behind them
        match cursor.eat("@") {
            true => {
                cursor.word();
            }
            false => cursor.skip_past("]")?,
        }
    }
    let mut ahead = cursor.clone();
    let operands = match ahead.eat("(") {
        true => cursor.list("(", ")", |c| value(c, names))?,
        false => Vec::new(),
    };
    let values = attribute_list(cursor)?;
    cursor.expect(":")?;
    let before = cursor.clone();
    let ty = cursor.ty()?;
    let op = match (leaf, elements) {
        (Some(name), _) => {
            let Some(ty) = ty.tensor().cloned() else { return Err(before.error("a leaf is no tuple")) };
            match kind {
                "input" => Op::from(Input { name, ty }),
                "param" => Op::from(Param { name, ty }),
                _ => Op::from(State { name, ty }),
            }
        }
        (None, Some(mut elements)) => Const { value: constant(&mut elements, &ty, &before, constants)? }.into(),
        (None, None) => {
            let attributes = Attributes { place: place.clone(), values, ty: Some(ty.clone()), constants };
            ops::read(kind, &attributes)?
        }
    };
    let origin = SmallVec::from_iter([Arc::new(Origin::Text { line: place.line() })]);
    let id = graph.add_from(op, &operands, origin).map_err(|why| place.error(why.message))?;
    if *graph.ty(id) != ty {
        return Err(before.error(format!("the type is {}, not {ty}", graph.ty(id))));
    }
    Ok(id)
}

fn constant(cursor: &mut Cursor, ty: &Type, place: &Cursor, constants: &Tensors) -> Result<Tensor, Diagnostic> {
    let Some(ty) = ty.tensor() else { return Err(place.error("a constant is no tuple")) };
    let shape: Option<Vec<usize>> = ty.shape.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
    let shape = shape.ok_or_else(|| place.error("the shape of a constant must be fixed"))?;
    let before = cursor.clone();
    if cursor.eat("@") {
        let name = cursor.word();
        let tensor = constants.get(name).ok_or_else(|| before.error(format!("the constant `{name}` is not given")))?;
        if super::constant_name(tensor) != name {
            return Err(before.error(format!("the constant `{name}` is not the one that was saved")));
        }
        return match tensor.dtype() == ty.dtype && tensor.shape() == shape {
            true => Ok(tensor.clone()),
            false => Err(before.error(format!("the constant `{name}` is not {ty}"))),
        };
    }
    let values = cursor.list("[", "]", |c| c.element(ty.dtype))?;
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    if count != Some(values.len()) {
        return Err(before.error(format!("{} elements are not those of {ty}", values.len())));
    }
    let mut tensor = Tensor::zeros(ty.dtype, &shape);
    values.into_iter().enumerate().for_each(|(i, v)| tensor.set(i, v));
    Ok(tensor)
}
