//! Symbols from actual shapes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::diagnostic::Diagnostic;
use crate::dim::{AtomKind, Bindings, Dim, DimError};
use crate::dtype::DType;
use crate::eval::Tensors;
use crate::graph::{Graph, NodeId};
use crate::ops::Op;
use crate::types::TensorType;

/// A declared type and what was given for it.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// What users call the value: ``input `x` ``.
    pub name: &'a str,
    /// The declared type.
    pub declared: &'a TensorType,
    /// The actual element type.
    pub dtype: DType,
    /// The actual extents.
    pub shape: &'a [usize],
}

/// Solves for the symbols of declared types, then checks every extent.
///
/// A dim that is linear in one unknown symbol gives that symbol; this is repeated until nothing more is learnt.
///
/// # Errors
/// `E0203` wrong element type, `E0204` wrong rank, `E0205` wrong extent, `E0206` a symbol that no extent gives or an
/// extent without a value, `E0208` a symbol outside its range. The message names the values and both places.
pub fn solve(given: &[Given]) -> Result<Bindings, Diagnostic> {
    let mut bindings = Bindings::new();
    let mut sources: BTreeMap<Arc<str>, String> = BTreeMap::new();
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (i, value) in given.iter().enumerate() {
        let (name, declared) = (value.name, value.declared);
        if declared.dtype != value.dtype {
            let message = format!("{name} is {declared}, but {} elements were given", value.dtype);
            return Err(Diagnostic::new("E0203", message));
        }
        if declared.shape.rank() != value.shape.len() {
            let message = format!("{name} is {declared}, but a tensor of shape {:?} was given", value.shape);
            return Err(Diagnostic::new("E0204", message));
        }
        open.extend((0..value.shape.len()).map(|axis| (i, axis)));
    }
    loop {
        let before = bindings.len();
        for (i, axis) in &open {
            let dim = given[*i].declared.shape[*axis].bind(&bindings);
            let extent = i64::try_from(given[*i].shape[*axis]).unwrap_or(i64::MAX);
            if let Some((name, value)) = linear(&dim, extent) {
                sources.insert(name.clone(), format!("axis {axis} of {}", given[*i].name));
                bindings.insert(name, value);
            }
        }
        if bindings.len() == before {
            break;
        }
    }
    for (i, axis) in open {
        let (value, dim) = (&given[i], &given[i].declared.shape[axis]);
        let extent = i64::try_from(value.shape[axis]).unwrap_or(i64::MAX);
        let want = dim.eval(&bindings).map_err(|why| unsolved(&why, value.name, dim))?;
        if want != extent {
            let mut error = Diagnostic::new(
                "E0205",
                format!("axis {axis} of {} has extent {extent}, but `{dim}` is {want}", value.name),
            );
            dim.symbols(&mut |name, _, _| {
                if let (Some(bound), Some(source)) = (bindings.get(name), sources.get(name)) {
                    error.notes.push(format!("`{name}` is {bound} by {source}"));
                }
            });
            return Err(error);
        }
    }
    Ok(bindings)
}

fn unsolved(why: &DimError, name: &str, dim: &Dim) -> Diagnostic {
    let code = if matches!(why, DimError::Range { .. }) { "E0208" } else { "E0206" };
    Diagnostic::new(code, why.to_string()).note(format!("it is needed for the extent `{dim}` of {name}"))
}

/// The symbol and its value, if the dim is `a·symbol + b` and equals `extent` for a whole number.
fn linear(dim: &Dim, extent: i64) -> Option<(Arc<str>, i64)> {
    let mut symbol = None;
    let mut rest = extent;
    for (coefficient, factors) in dim.polynomial() {
        match factors.as_slice() {
            [] => rest = rest.checked_sub(coefficient)?,
            [AtomKind::Symbol { name, .. }] if symbol.is_none() => symbol = Some((name.clone(), coefficient)),
            _ => return None,
        }
    }
    let (name, coefficient) = symbol?;
    (rest % coefficient == 0).then(|| (name, rest / coefficient))
}

/// Checks what the graph assumed of its symbols. What it assumed of data-dependent sizes is checked when they are known.
///
/// # Errors
/// `E0207` with the node, both sides and their values.
pub fn check_assumptions(graph: &Graph, bindings: &Bindings) -> Result<(), Diagnostic> {
    for assumption in graph.assumptions() {
        let equality = &assumption.equality;
        if equality.is_data_dependent() {
            continue;
        }
        let value = |dim: &Dim| dim.eval(bindings).map_err(|why| unsolved(&why, equality.what, dim));
        let (left, right) = (value(&equality.left)?, value(&equality.right)?);
        if left != right {
            let message = format!(
                "{} must be equal: `{}` is {left}, `{}` is {right}",
                equality.what, equality.left, equality.right
            );
            let mut error = Diagnostic::new("E0207", message);
            error.origin = graph.origins(assumption.node).iter().map(|o| (**o).clone()).collect();
            let node = graph.node(assumption.node);
            let operands = node.operands.iter().map(|id| format!("%{}: {}", id.index(), graph.ty(*id)));
            let operands: Vec<String> = operands.collect();
            return Err(error.note(format!(
                "%{} = {}({})",
                assumption.node.index(),
                node.op.home().name(),
                operands.join(", ")
            )));
        }
    }
    Ok(())
}

/// Binds the symbols of a graph to the shapes of its inputs and states, and checks all that must hold.
///
/// # Errors
/// `E0201` a missing input, `E0202` an unknown one, and those of [`solve`] and [`check_assumptions`].
pub fn bind(graph: &Graph, inputs: &Tensors, states: &Tensors) -> Result<Bindings, Diagnostic> {
    let mut names: Vec<(String, NodeId)> = Vec::new();
    let mut tensors = Vec::new();
    for id in graph.inputs() {
        let Op::Input(input) = &graph.node(*id).op else { continue };
        let Some(tensor) = inputs.get(&input.name) else {
            return Err(Diagnostic::new("E0201", format!("the input `{}` {} is missing", input.name, input.ty)));
        };
        names.push((format!("input `{}`", input.name), *id));
        tensors.push(tensor);
    }
    if let Some(name) = inputs.keys().find(|name| {
        !graph.inputs().iter().any(|id| matches!(&graph.node(*id).op, Op::Input(input) if input.name == **name))
    }) {
        let known: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Diagnostic::new("E0202", format!("the graph has no input `{name}`"))
            .help(format!("it has {}", known.join(", "))));
    }
    for (id, node) in graph.iter() {
        if let Op::State(state) = &node.op
            && let Some(tensor) = states.get(&state.name)
        {
            names.push((format!("state `{}`", state.name), id));
            tensors.push(tensor);
        }
    }
    let given: Vec<Given> = names
        .iter()
        .zip(&tensors)
        .map(|((name, id), tensor)| Given {
            name,
            declared: graph.tensor_type(*id),
            dtype: tensor.dtype(),
            shape: tensor.shape(),
        })
        .collect();
    let bindings = solve(&given)?;
    check_assumptions(graph, &bindings)?;
    Ok(bindings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given<'a>(name: &'a str, declared: &'a TensorType, shape: &'a [usize]) -> Given<'a> {
        Given { name, declared, dtype: declared.dtype, shape }
    }

    #[test]
    fn symbols_are_solved_through_each_other() {
        let two_n = Dim::symbol("n") * Dim::from(2) + Dim::ONE;
        let product = Dim::symbol("n") * Dim::symbol("m");
        let a = TensorType::new(DType::F32, [product, two_n]);
        let bindings = solve(&[given("a", &a, &[15, 11])]).unwrap();
        assert_eq!((bindings["n"], bindings["m"]), (5, 3));
    }

    #[test]
    fn errors_name_both_places_and_values() {
        let (a, b) = (crate::f32(["n", "k"]), crate::f32(["n"]));
        let error = solve(&[given("input `a`", &a, &[4, 2]), given("input `b`", &b, &[3])]).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code, "E0205");
        assert!(text.contains("input `b`") && text.contains("axis 0 of input `a`") && text.contains('4'), "{text}");
        let even = TensorType::new(DType::F32, [Dim::symbol("n") * Dim::from(2)]);
        assert_eq!(solve(&[given("c", &even, &[3])]).unwrap_err().code, "E0206");
        assert_eq!(solve(&[given("a", &b, &[0])]).unwrap_err().code, "E0208");
        assert_eq!(solve(&[given("a", &b, &[])]).unwrap_err().code, "E0204");
    }

    #[test]
    fn assumptions_are_checked_with_their_node() {
        let mut graph = Graph::new();
        let mut input = |name: &str, dim: &str| {
            graph.add(crate::ops::Input { name: name.into(), ty: crate::f32([dim]) }, &[]).unwrap()
        };
        let (x, y) = (input("x", "n"), input("y", "m"));
        let sum = graph.add(crate::ops::Pointwise { f: crate::ScalarFn::Add }, &[x, y]).unwrap();
        graph.add_output("sum", sum);
        let tensors = |n, m| {
            Tensors::from([
                ("x".to_string(), crate::Tensor::zeros(DType::F32, &[n])),
                ("y".to_string(), crate::Tensor::zeros(DType::F32, &[m])),
            ])
        };
        assert!(bind(&graph, &tensors(3, 3), &Tensors::new()).is_ok());
        let error = bind(&graph, &tensors(3, 4), &Tensors::new()).unwrap_err();
        assert_eq!(error.code, "E0207");
        assert!(error.to_string().contains("add(%0: f32[n], %1: f32[m])"), "{error}");
    }
}
