//! Convolutions, on `[batch, channels, …]` with one to three spatial axes.

use egret_ir::ops::{Conv, ConvForm};
use egret_ir::{Dim, Shape, Var};

use super::Layer;
use crate::init::Init;
use crate::params::Params;

/// What convolutions and transposed ones have in common.
#[derive(Clone, Debug)]
struct Windows<const N: usize> {
    out: usize,
    kernel: [usize; N],
    stride: [i64; N],
    padding: [i64; N],
    dilation: [i64; N],
    groups: usize,
    bias: bool,
    init: Init,
}

impl<const N: usize> Windows<N> {
    fn new(out: usize, kernel: usize) -> Windows<N> {
        Windows {
            out,
            kernel: [kernel; N],
            stride: [1; N],
            padding: [0; N],
            dilation: [1; N],
            groups: 1,
            bias: true,
            init: Init::torch_linear(),
        }
    }

    fn conv(&self) -> Conv {
        Conv::forward(&self.stride, &self.padding, &self.padding, &self.dilation, self.groups as i64)
    }

    /// Weights `[first, second, kernel…]`.
    fn weight<'t>(&self, p: &Params<'_, 't>, first: usize, second: usize) -> Var<'t> {
        let shape: Vec<usize> = [first, second].into_iter().chain(self.kernel).collect();
        p.get("weight", &shape, self.init)
    }

    /// `y` with the bias, if there is one; `inputs` channels add up to an element.
    fn biased<'t>(&self, p: &Params<'_, 't>, y: Var<'t>, inputs: usize) -> Var<'t> {
        if !self.bias {
            return y;
        }
        let fan = (inputs * self.kernel.iter().product::<usize>()).max(1) as f64;
        let bias = p.get("bias", &[self.out], Init::symmetric(1.0 / fan.sqrt()));
        let axes: Vec<isize> = (1..=N as isize).collect();
        y + bias.unsqueeze(&axes)
    }
}

macro_rules! windows {
    ($name:ident) => {
        impl<const N: usize> $name<N> {
            /// Distance of windows.
            pub fn stride(mut self, stride: i64) -> Self {
                self.0.stride = [stride; N];
                self
            }

            /// Zeros on every side.
            pub fn padding(mut self, padding: i64) -> Self {
                self.0.padding = [padding; N];
                self
            }

            /// Distance of elements in a window.
            pub fn dilation(mut self, dilation: i64) -> Self {
                self.0.dilation = [dilation; N];
                self
            }

            /// Extents of the kernel by axis, where they differ.
            pub fn kernel(mut self, kernel: [usize; N]) -> Self {
                self.0.kernel = kernel;
                self
            }

            /// Groups of channels that do not mix.
            pub fn groups(mut self, groups: usize) -> Self {
                self.0.groups = groups.max(1);
                self
            }

            /// Without bias.
            pub fn no_bias(mut self) -> Self {
                self.0.bias = false;
                self
            }

            /// Another initialiser of the weight.
            pub fn init(mut self, init: Init) -> Self {
                self.0.init = init;
                self
            }
        }
    };
}

/// A convolution over `N` axes; parameters `weight` `[out, in / groups, kernel…]` and `bias` `[out]`.
#[derive(Clone, Debug)]
pub struct ConvNd<const N: usize>(Windows<N>);

/// A convolution of sequences `[batch, channels, length]`.
pub type Conv1d = ConvNd<1>;
/// A convolution of images `[batch, channels, height, width]`.
pub type Conv2d = ConvNd<2>;
/// A convolution of volumes `[batch, channels, depth, height, width]`.
pub type Conv3d = ConvNd<3>;

windows!(ConvNd);

impl<const N: usize> ConvNd<N> {
    /// A layer of `out` channels and a kernel of equal extents, stride 1, without padding.
    pub fn new(out: usize, kernel: usize) -> ConvNd<N> {
        ConvNd(Windows::new(out, kernel))
    }
}

impl<const N: usize> Layer for ConvNd<N> {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let inputs = p.extent(x, 1) / self.0.groups;
        let y = x.conv(self.0.weight(p, self.0.out, inputs), self.0.conv());
        self.0.biased(p, y, inputs)
    }
}

/// A transposed convolution over `N` axes, the gradient of a [`ConvNd`] by its operand; parameters `weight` `[in, out /
/// groups, kernel…]` and `bias` `[out]`. Extents become `(n − 1)·stride − 2 padding + dilation·(kernel − 1) + 1` and the
/// output padding.
#[derive(Clone, Debug)]
pub struct ConvTransposeNd<const N: usize>(Windows<N>, [i64; N]);

/// A transposed convolution of sequences.
pub type ConvTranspose1d = ConvTransposeNd<1>;
/// A transposed convolution of images.
pub type ConvTranspose2d = ConvTransposeNd<2>;
/// A transposed convolution of volumes.
pub type ConvTranspose3d = ConvTransposeNd<3>;

windows!(ConvTransposeNd);

impl<const N: usize> ConvTransposeNd<N> {
    /// A layer of `out` channels and a kernel of equal extents, stride 1, without padding.
    pub fn new(out: usize, kernel: usize) -> ConvTransposeNd<N> {
        ConvTransposeNd(Windows::new(out, kernel), [0; N])
    }

    /// More elements at the end of each axis, fewer than the stride.
    pub fn output_padding(mut self, padding: i64) -> Self {
        self.1 = [padding; N];
        self
    }
}

impl<const N: usize> Layer for ConvTransposeNd<N> {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let (windows, inputs, shape) = (&self.0, p.extent(x, 1), x.shape());
        if shape.rank() != N + 2 {
            return p.fail(format!("a transposed convolution of {N} axes takes {} axes, not {}", N + 2, x.ty()));
        }
        let each = windows.out / windows.groups;
        let extent = |axis: usize| {
            let reach = windows.dilation[axis] * (windows.kernel[axis] as i64 - 1) + 1 + self.1[axis];
            (shape[axis + 2].clone() - Dim::ONE) * Dim::from(windows.stride[axis])
                + Dim::from(reach - 2 * windows.padding[axis])
        };
        let extent: Shape = (0..N).map(extent).collect();
        let conv = Conv { form: ConvForm::InputGrad, extent, ..windows.conv() };
        let y = x.conv(windows.weight(p, inputs, each), conv);
        windows.biased(p, y, each)
    }
}
