//! Layers made of layers.

use std::panic::Location;

use egret_ir::Var;

use super::Layer;
use crate::params::Params;

struct Entry {
    name: String,
    layer: Box<dyn Layer>,
    line: &'static Location<'static>,
}

/// Layers one after the other. Nodes of a layer come from the line that added it.
#[derive(Default)]
pub struct Sequential {
    entries: Vec<Entry>,
}

impl Sequential {
    /// No layers: the identity.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// Appends a layer, named by its number.
    #[track_caller]
    pub fn layer(self, layer: impl Layer + 'static) -> Sequential {
        let name = self.entries.len().to_string();
        self.named(name, layer)
    }

    /// Appends a layer of that name.
    #[track_caller]
    pub fn named(mut self, name: impl Into<String>, layer: impl Layer + 'static) -> Sequential {
        self.entries.push(Entry { name: name.into(), layer: Box::new(layer), line: Location::caller() });
        self
    }
}

impl Layer for Sequential {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        self.entries.iter().fold(x, |x, entry| {
            let p = p.at(&entry.name);
            p.located(entry.line, || entry.layer.build(&p, x))
        })
    }
}

/// `x + layer(x)`.
pub struct Residual<L>(pub L);

impl<L: Layer> Layer for Residual<L> {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        x + self.0.build(p, x)
    }
}

/// All axes after the first as one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flatten;

impl Layer for Flatten {
    fn build<'t>(&self, _: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        x.flatten(1)
    }
}
