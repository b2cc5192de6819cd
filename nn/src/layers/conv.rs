//! Layers on images `[batch, channels, height, width]`.

use egret_ir::Var;
use egret_ir::ops::Conv;

use super::Layer;
use crate::init::Init;
use crate::params::Params;

/// A convolution; parameters `weight` `[out, in / groups, kernel, kernel]` and `bias` `[out]`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    out: usize,
    kernel: usize,
    stride: i64,
    padding: i64,
    dilation: i64,
    groups: usize,
    bias: bool,
    init: Init,
}

impl Conv2d {
    /// A layer of `out` channels and a square kernel, stride 1, without padding.
    pub fn new(out: usize, kernel: usize) -> Conv2d {
        let init = Init::torch_linear();
        Conv2d { out, kernel, stride: 1, padding: 0, dilation: 1, groups: 1, bias: true, init }
    }

    /// Distance of windows.
    pub fn stride(mut self, stride: i64) -> Conv2d {
        self.stride = stride;
        self
    }

    /// Zeros on every side.
    pub fn padding(mut self, padding: i64) -> Conv2d {
        self.padding = padding;
        self
    }

    /// Distance of elements in a window.
    pub fn dilation(mut self, dilation: i64) -> Conv2d {
        self.dilation = dilation;
        self
    }

    /// Groups of channels that do not mix.
    pub fn groups(mut self, groups: usize) -> Conv2d {
        self.groups = groups.max(1);
        self
    }

    /// Without bias.
    pub fn no_bias(mut self) -> Conv2d {
        self.bias = false;
        self
    }

    /// Another initialiser of the weight.
    pub fn init(mut self, init: Init) -> Conv2d {
        self.init = init;
        self
    }
}

impl Layer for Conv2d {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let inputs = p.extent(x, 1) / self.groups;
        let filters = p.get("weight", &[self.out, inputs, self.kernel, self.kernel], self.init);
        let (padding, dilation) = ([self.padding; 2], [self.dilation; 2]);
        let conv = Conv::forward(&[self.stride; 2], &padding, &padding, &dilation, self.groups as i64);
        let y = x.conv(filters, conv);
        if !self.bias {
            return y;
        }
        let fan = (inputs * self.kernel * self.kernel).max(1) as f64;
        let bias = p.get("bias", &[self.out], Init::symmetric(1.0 / fan.sqrt()));
        y + bias.reshape([self.out as i64, 1, 1])
    }
}

/// The greatest element of each window.
#[derive(Clone, Debug)]
pub struct MaxPool2d {
    size: i64,
    stride: i64,
    padding: i64,
}

impl MaxPool2d {
    /// Square windows side by side.
    pub fn new(size: i64) -> MaxPool2d {
        MaxPool2d { size, stride: size, padding: 0 }
    }

    /// Distance of windows.
    pub fn stride(mut self, stride: i64) -> MaxPool2d {
        self.stride = stride;
        self
    }

    /// Padding on every side; it never wins.
    pub fn padding(mut self, padding: i64) -> MaxPool2d {
        self.padding = padding;
        self
    }
}

impl Layer for MaxPool2d {
    fn build<'t>(&self, _: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        x.max_pool(&[self.size; 2], &[self.stride; 2], &[self.padding; 2])
    }
}
