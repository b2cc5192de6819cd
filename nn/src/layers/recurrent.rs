//! Recurrent layers, on `[batch, sequence, features]`.

use egret_ir::{Dim, Literal, Var};

use super::Layer;
use crate::init::Init;
use crate::params::Params;

/// What a step does; gates in PyTorch's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    /// `h = tanh(x W + h U + b)`.
    Plain,
    /// Gates input, forget, cell, output (Hochreiter and Schmidhuber, 1997).
    Lstm,
    /// Gates reset, update, new (Cho et al., 2014), the reset gate after the product, as cuDNN has it.
    Gru,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Plain => 1,
            Cell::Lstm => 4,
            Cell::Gru => 3,
        }
    }
}

#[derive(Clone, Debug)]
struct Recurrent {
    cell: Cell,
    hidden: usize,
    layers: usize,
    both: bool,
}

macro_rules! recurrent {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// It starts from zeros. Parameters as PyTorch's: `weight_ih_l0` `[gates · hidden, in]`, `weight_hh_l0`
        /// `[gates · hidden, hidden]`, `bias_ih_l0`, `bias_hh_l0`, and the same with `_reverse` of the other direction.
        #[derive(Clone, Debug)]
        pub struct $name(Recurrent);

        impl $name {
            /// Several layers on top of each other.
            pub fn layers(mut self, layers: usize) -> $name {
                self.0.layers = layers;
                self
            }

            /// Both directions, side by side in the features.
            pub fn bidirectional(mut self) -> $name {
                self.0.both = true;
                self
            }
        }

        impl Layer for $name {
            fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
                self.0.build(p, x)
            }
        }
    )*};
}

recurrent! {
    /// A plain recurrent layer with tanh.
    Rnn;
    /// A long short-term memory.
    Lstm;
    /// A gated recurrent unit.
    Gru;
}

impl Rnn {
    /// One layer of `hidden` features.
    pub fn new(hidden: usize) -> Rnn {
        Rnn(Recurrent { cell: Cell::Plain, hidden, layers: 1, both: false })
    }
}

impl Lstm {
    /// One layer of `hidden` features.
    pub fn new(hidden: usize) -> Lstm {
        Lstm(Recurrent { cell: Cell::Lstm, hidden, layers: 1, both: false })
    }
}

impl Gru {
    /// One layer of `hidden` features.
    pub fn new(hidden: usize) -> Gru {
        Gru(Recurrent { cell: Cell::Gru, hidden, layers: 1, both: false })
    }
}

impl Recurrent {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        (0..self.layers).fold(x, |x, layer| {
            let forward = self.direction(p, x, &format!("_l{layer}"), false);
            if !self.both {
                return forward;
            }
            let backward = self.direction(p, x, &format!("_l{layer}_reverse"), true);
            p.tracer().concat(&[forward, backward], -1)
        })
    }

    /// One layer in one direction.
    fn direction<'t>(&self, p: &Params<'_, 't>, x: Var<'t>, suffix: &str, reverse: bool) -> Var<'t> {
        let (inputs, hidden, rows) = (p.extent(x, -1), self.hidden, self.cell.gates() * self.hidden);
        let init = Init::symmetric(1.0 / (hidden.max(1) as f64).sqrt());
        let get = |name: &str, shape: &[usize]| p.get(&format!("{name}{suffix}"), shape, init);
        let input_weight = get("weight_ih", &[rows, inputs]);
        let weight = get("weight_hh", &[rows, hidden]).t();
        let (input_bias, bias) = (get("bias_ih", &[rows]), get("bias_hh", &[rows]));
        // the part that does not depend on the loop, for all steps at once
        let (outer, inner) = match self.cell {
            Cell::Gru => (input_bias, Some(bias)),
            _ => (input_bias + bias, None),
        };
        let gates = (x.matmul(input_weight.t()) + outer).transpose(&[1, 0, 2]);
        let (batch, steps) = match &x.shape()[..] {
            [batch, steps, ..] => (batch.clone(), steps.clone()),
            _ => return p.fail(format!("a recurrent layer takes [batch, sequence, features], not {}", x.ty())),
        };
        let t = p.tracer();
        let zeros = t.scalar(Literal::float(0.0, x.dtype())).broadcast([batch, hidden.into()]);
        let carried = if self.cell == Cell::Lstm { vec![zeros; 2] } else { vec![zeros] };
        let parts = |v: Var<'t>| v.split(-1, &vec![Dim::from(hidden); self.cell.gates()]);
        let (_, all) = t.scan_of(steps, reverse, &carried, &[gates], |_, carried, slices| {
            let (h, given) = (carried[0], slices[0]);
            let own = h.matmul(weight);
            match self.cell {
                Cell::Plain => {
                    let h = (given + own).tanh();
                    (vec![h], vec![h])
                }
                Cell::Lstm => {
                    let gates = parts(given + own);
                    let c = gates[1].sigmoid() * carried[1] + gates[0].sigmoid() * gates[2].tanh();
                    let h = gates[3].sigmoid() * c.tanh();
                    (vec![h, c], vec![h])
                }
                Cell::Gru => {
                    let own = inner.map_or(own, |bias| own + bias);
                    let (given, own) = (parts(given), parts(own));
                    let reset = (given[0] + own[0]).sigmoid();
                    let update = (given[1] + own[1]).sigmoid();
                    let new = (given[2] + reset * own[2]).tanh();
                    let h = (1.0 - update) * new + update * h;
                    (vec![h], vec![h])
                }
            }
        });
        all[0].transpose(&[1, 0, 2])
    }
}
