//! What a run gives.

use egret_ir::{DType, Element, Tensor};

/// An output of a run, valid until the session's next.
#[derive(Clone, Copy, Debug)]
pub enum Output<'s> {
    #[doc(hidden)]
    Device(egret_runtime::Output<'s>),
    #[doc(hidden)]
    Host(&'s str, &'s Tensor),
}

impl<'s> Output<'s> {
    /// Its name.
    pub fn name(&self) -> &'s str {
        match self {
            Output::Device(output) => output.name(),
            Output::Host(name, _) => name,
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Output::Device(output) => output.dtype(),
            Output::Host(_, tensor) => tensor.dtype(),
        }
    }

    /// Extents.
    pub fn shape(&self) -> &'s [usize] {
        match self {
            Output::Device(output) => output.shape(),
            Output::Host(_, tensor) => tensor.shape(),
        }
    }

    /// The elements as bytes, row-major.
    pub fn bytes(&self) -> &'s [u8] {
        match self {
            Output::Device(output) => output.bytes(),
            Output::Host(_, tensor) => tensor.bytes(),
        }
    }

    /// The elements, or `None` when they are of another type.
    pub fn as_slice<T: Element>(&self) -> Option<&'s [T]> {
        match self {
            Output::Device(output) => output.as_slice(),
            Output::Host(_, tensor) => tensor.as_slice(),
        }
    }

    /// A copy that outlives the session.
    pub fn to_tensor(&self) -> Tensor {
        match self {
            Output::Device(output) => output.to_tensor(),
            Output::Host(_, tensor) => (*tensor).clone(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Held<'s> {
    Device(egret_runtime::Outputs<'s>),
    Host(&'s [(String, Tensor)]),
}

/// The outputs of a run, valid until the session's next.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'s>(pub(crate) Held<'s>);

impl<'s> Outputs<'s> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self.0 {
            Held::Device(outputs) => outputs.len(),
            Held::Host(outputs) => outputs.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Output `index`.
    pub fn at(&self, index: usize) -> Option<Output<'s>> {
        match self.0 {
            Held::Device(outputs) => outputs.at(index).map(Output::Device),
            Held::Host(outputs) => outputs.get(index).map(|(name, tensor)| Output::Host(name, tensor)),
        }
    }

    /// The output of that name.
    pub fn get(&self, name: &str) -> Option<Output<'s>> {
        self.iter().find(|output| output.name() == name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Output<'s>> + use<'s> {
        let this = *self;
        (0..this.len()).filter_map(move |i| this.at(i))
    }

    /// The one element of the output of that name, if it is a float.
    pub fn scalar(&self, name: &str) -> Option<f64> {
        let output = self.get(name)?;
        match (output.as_slice::<f32>(), output.as_slice::<f64>()) {
            (Some([value]), _) => Some(f64::from(*value)),
            (_, Some([value])) => Some(*value),
            _ if output.dtype().is_float() && output.bytes().len() == output.dtype().size() => {
                Some(output.to_tensor().get(0).as_f64())
            }
            _ => None,
        }
    }
}
