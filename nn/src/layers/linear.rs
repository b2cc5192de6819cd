//! Layers on the last axis.

use egret_ir::Var;

use super::Layer;
use crate::init::Init;
use crate::params::Params;

/// `x Wᵀ + b` along the last axis; parameters `weight` `[out, in]` and `bias` `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    out: usize,
    bias: bool,
    init: Init,
}

impl Linear {
    /// A layer of `out` features; the number of inputs is that of the value it is applied to.
    pub fn new(out: usize) -> Linear {
        Linear { out, bias: true, init: Init::torch_linear() }
    }

    /// Without bias.
    pub fn no_bias(mut self) -> Linear {
        self.bias = false;
        self
    }

    /// Another initialiser of the weight.
    pub fn init(mut self, init: Init) -> Linear {
        self.init = init;
        self
    }
}

impl Layer for Linear {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let inputs = p.extent(x, -1);
        let y = x.matmul(p.get("weight", &[self.out, inputs], self.init).t());
        if !self.bias {
            return y;
        }
        y + p.get("bias", &[self.out], Init::symmetric(1.0 / (inputs.max(1) as f64).sqrt()))
    }
}

/// Rows of a table, by integer; parameter `weight` `[count, features]`.
#[derive(Clone, Debug)]
pub struct Embedding {
    count: usize,
    features: usize,
    init: Init,
}

impl Embedding {
    /// A table of `count` rows of `features`.
    pub fn new(count: usize, features: usize) -> Embedding {
        Embedding { count, features, init: Init::Normal { mean: 0.0, std: 1.0 } }
    }

    /// Another initialiser of the table.
    pub fn init(mut self, init: Init) -> Embedding {
        self.init = init;
        self
    }
}

impl Layer for Embedding {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        p.get("weight", &[self.count, self.features], self.init).gather(x, 0)
    }
}
