//! Normalisations.

use egret_ir::{Dim, Literal, Var};

use super::Layer;
use super::precision::in_full;
use crate::init::Init;
use crate::params::{Mode, Params};

/// `(x − mean) / √(var + eps)` along the last axis, scaled by `weight` and shifted by `bias`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    eps: f64,
}

impl Default for LayerNorm {
    fn default() -> LayerNorm {
        LayerNorm { eps: 1e-5 }
    }
}

impl LayerNorm {
    /// With that `eps`.
    pub fn new(eps: f64) -> LayerNorm {
        LayerNorm { eps }
    }
}

impl Layer for LayerNorm {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let features = p.extent(x, -1);
        in_full(p, x, |x| {
            let weight = p.get("weight", &[features], Init::ONES);
            x.layer_norm(-1, self.eps) * weight + p.get("bias", &[features], Init::ZEROS)
        })
    }
}

/// `x / √(mean x² + eps)` along the last axis (Zhang and Sennrich, 2019), scaled by `weight`.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    eps: f64,
}

impl Default for RmsNorm {
    fn default() -> RmsNorm {
        RmsNorm { eps: 1e-6 }
    }
}

impl RmsNorm {
    /// With that `eps`.
    pub fn new(eps: f64) -> RmsNorm {
        RmsNorm { eps }
    }
}

impl Layer for RmsNorm {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let features = p.extent(x, -1);
        in_full(p, x, |x| x.rms_norm(-1, self.eps) * p.get("weight", &[features], Init::ONES))
    }
}

/// Normalisation over groups of channels (axis 1) and all that follows (Wu and He, 2018), scaled by `weight` and shifted
/// by `bias`, one of each a channel.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// That many groups, which divide the channels.
    pub fn new(groups: usize) -> GroupNorm {
        GroupNorm { groups: groups.max(1), eps: 1e-5 }
    }

    /// Another `eps`.
    pub fn eps(mut self, eps: f64) -> GroupNorm {
        self.eps = eps;
        self
    }
}

impl Layer for GroupNorm {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let (channels, shape) = (p.extent(x, 1), x.shape());
        if channels % self.groups != 0 {
            return p.fail(format!("{} groups do not divide the {channels} channels of {}", self.groups, x.ty()));
        }
        let inner = shape[2..].iter().fold(Dim::from(channels / self.groups), |n, extent| n * extent.clone());
        in_full(p, x, |x| {
            let grouped = x.reshape([shape[0].clone(), self.groups.into(), inner]).layer_norm(2, self.eps);
            per_channel(p, grouped.reshape(shape), channels)
        })
    }
}

/// `x · weight + bias`, one of each a channel (axis 1).
fn per_channel<'t>(p: &Params<'_, 't>, x: Var<'t>, channels: usize) -> Var<'t> {
    let along = |v: Var<'t>| along_channels(v, x);
    x * along(p.get("weight", &[channels], Init::ONES)) + along(p.get("bias", &[channels], Init::ZEROS))
}

/// A value a channel, to be broadcast beside `x`.
fn along_channels<'t>(v: Var<'t>, x: Var<'t>) -> Var<'t> {
    let axes: Vec<isize> = (1..x.rank().saturating_sub(1)).map(|axis| axis as isize).collect();
    v.unsqueeze(&axes)
}

/// Batch normalisation over all axes but the channels' (axis 1) (Ioffe and Szegedy, 2015). In training by the batch's own
/// statistics, which move the states `running_mean` and `running_var` as PyTorch's do: `r = (1 − momentum)·r +
/// momentum·statistic`, the variance without bias. In evaluation and inference by those.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    eps: f64,
    momentum: f64,
}

impl Default for BatchNorm {
    fn default() -> BatchNorm {
        BatchNorm { eps: 1e-5, momentum: 0.1 }
    }
}

impl BatchNorm {
    /// With those.
    pub fn new(eps: f64, momentum: f64) -> BatchNorm {
        BatchNorm { eps, momentum }
    }
}

impl Layer for BatchNorm {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        in_full(p, x, |x| self.normalised(p, x))
    }
}

impl BatchNorm {
    fn normalised<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let channels = p.extent(x, 1);
        let running_mean = p.buffer("running_mean", &[channels], Init::ZEROS);
        let running_var = p.buffer("running_var", &[channels], Init::ONES);
        let (mean, var) = match p.mode() {
            Mode::Train => {
                let axes: Vec<isize> = (0..x.rank() as isize).filter(|axis| *axis != 1).collect();
                let mean = x.reduce_mean(&axes, false);
                let centred = x - along_channels(mean, x);
                let var = (centred * centred).reduce_mean(&axes, false);
                let t = p.tracer();
                let one = t.scalar(Literal::float(1.0, x.dtype()));
                let extents: Vec<Dim> = axes.iter().map(|axis| x.shape()[*axis as usize].clone()).collect();
                let count = one.broadcast(extents.into_iter().collect::<egret_ir::Shape>()).sum();
                let unbiased = var * (count / (count - 1.0).maximum(1.0));
                let moved =
                    |old: Var<'t>, new: Var<'t>| old * (1.0 - self.momentum) + new.stop_gradient() * self.momentum;
                t.update(running_mean, moved(running_mean, mean));
                t.update(running_var, moved(running_var, unbiased));
                (mean, var)
            }
            Mode::Evaluate | Mode::Infer => (running_mean, running_var),
        };
        let scale = (var + self.eps).rsqrt();
        per_channel(p, (x - along_channels(mean, x)) * along_channels(scale, x), channels)
    }
}
