//! Finding named tensors among the ports of a program.

use egret_ir::Tensor;
use egret_program::Port;

use crate::RuntimeError;
use crate::binding::Binding;
use crate::error::listed;

/// Finds each input among what was given: its place there. Allocates nothing where all is well.
pub(crate) fn match_inputs(
    ports: &[Port],
    inputs: &[(&str, &Tensor)],
    given: &mut [usize],
) -> Result<(), RuntimeError> {
    let mut known = 0;
    for (i, port) in ports.iter().enumerate() {
        let here = inputs.get(i).is_some_and(|(name, _)| *name == port.name);
        let at = if here { Some(i) } else { inputs.iter().position(|(name, _)| *name == port.name) };
        let Some(at) = at else {
            let (name, ty) = (port.name.clone(), port.ty.to_string());
            // A name that is close to this one is best told first.
            check_unknown(inputs, ports)?;
            return Err(RuntimeError::MissingInput { name, ty, known: listed(ports) });
        };
        given[i] = at;
        known += 1;
    }
    if known == inputs.len() {
        return Ok(());
    }
    check_unknown(inputs, ports)?;
    let twice = inputs.iter().enumerate().find(|(i, (name, _))| inputs[..*i].iter().any(|(n, _)| n == name));
    let name = twice.map(|(_, (name, _))| name.to_string()).unwrap_or_default();
    Err(RuntimeError::Duplicate { name })
}

/// The output that a tensor of the caller's is for; it has its type and shape.
pub(crate) fn match_output(
    ports: &[Port],
    binding: &Binding,
    name: &str,
    tensor: &Tensor,
) -> Result<usize, RuntimeError> {
    let Some(k) = ports.iter().position(|port| port.name == name) else {
        return Err(RuntimeError::UnknownOutput { name: name.to_string(), known: listed(ports) });
    };
    let shape = &binding.outputs[k].shape;
    if tensor.dtype() != ports[k].ty.dtype || tensor.shape() != shape.as_slice() {
        return Err(RuntimeError::OutputShape {
            name: name.to_string(),
            dtype: ports[k].ty.dtype,
            shape: shape.clone(),
            given_dtype: tensor.dtype(),
            given_shape: tensor.shape().to_vec(),
        });
    }
    Ok(k)
}

fn check_unknown(inputs: &[(&str, &Tensor)], ports: &[egret_program::Port]) -> Result<(), RuntimeError> {
    match inputs.iter().find(|(name, _)| ports.iter().all(|port| port.name != *name)) {
        Some((name, _)) => Err(RuntimeError::UnknownInput { name: name.to_string(), known: listed(ports) }),
        None => Ok(()),
    }
}
