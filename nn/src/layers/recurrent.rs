//! Recurrent layers, on `[batch, sequence, features]`.

use egret_ir::{Dim, Literal, Var};

use super::Layer;
use crate::init::Init;
use crate::params::Params;

/// A long short-term memory that starts from zeros; parameters as PyTorch's: `weight_ih_l0` `[4 hidden, in]`,
/// `weight_hh_l0` `[4 hidden, hidden]`, `bias_ih_l0`, `bias_hh_l0`, gates in the order input, forget, cell, output.
#[derive(Clone, Debug)]
pub struct Lstm {
    hidden: usize,
    layers: usize,
}

impl Lstm {
    /// One layer of `hidden` features.
    pub fn new(hidden: usize) -> Lstm {
        Lstm { hidden, layers: 1 }
    }

    /// Several layers on top of each other.
    pub fn layers(mut self, layers: usize) -> Lstm {
        self.layers = layers;
        self
    }

    fn one<'t>(&self, p: &Params<'_, 't>, x: Var<'t>, layer: usize) -> Var<'t> {
        let (inputs, hidden) = (p.extent(x, -1), self.hidden);
        let init = Init::symmetric(1.0 / (hidden.max(1) as f64).sqrt());
        let get = |name: &str, shape: &[usize]| p.get(&format!("{name}_l{layer}"), shape, init);
        let input_weight = get("weight_ih", &[4 * hidden, inputs]);
        let weight = get("weight_hh", &[4 * hidden, hidden]).t();
        let bias = get("bias_ih", &[4 * hidden]) + get("bias_hh", &[4 * hidden]);
        // the part that does not depend on the loop, for all steps at once
        let gates = (x.matmul(input_weight.t()) + bias).transpose(&[1, 0, 2]);
        let batch = x.shape().first().cloned().unwrap_or(Dim::ONE);
        let t = p.tracer();
        let zeros = t.scalar(Literal::float(0.0, x.dtype())).broadcast([batch, hidden.into()]);
        let (_, all) = t.scan(&[zeros, zeros], &[gates], |_, carried, slices| {
            let (h, c) = (carried[0], carried[1]);
            let gates = (slices[0] + h.matmul(weight)).split(-1, &[(); 4].map(|()| Dim::from(hidden)));
            let c = gates[1].sigmoid() * c + gates[0].sigmoid() * gates[2].tanh();
            let h = gates[3].sigmoid() * c.tanh();
            (vec![h, c], vec![h])
        });
        all[0].transpose(&[1, 0, 2])
    }
}

impl Layer for Lstm {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        (0..self.layers).fold(x, |x, layer| self.one(p, x, layer))
    }
}
