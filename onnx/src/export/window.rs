//! Pooling.

use egret_ir::ops::{ReduceWindow, WindowKind};
use egret_ir::{DType, Diagnostic, Dim, Shape, TensorType};

use super::{Arg, Export};
use crate::export::writer::{flag, ints};

impl Export<'_> {
    /// Windows of the last axes; all axes before them are one axis of channels.
    pub(super) fn pool(&mut self, pool: &ReduceWindow, x: &Arg, y: &TensorType) -> Result<String, Diagnostic> {
        let window = &pool.window;
        if window.pad_low.iter().chain(&window.pad_high).any(|pad| *pad < 0) {
            return Err(self.refuse("its padding is negative"));
        }
        let lead = x.ty.shape.rank() - window.size.len();
        let channels = |shape: &Shape| -> Shape {
            let all = shape[..lead].iter().fold(Dim::ONE, |n, dim| n * dim.clone());
            [Dim::ONE, all].into_iter().chain(shape[lead..].iter().cloned()).collect()
        };
        let mut name = x.name.to_string();
        if lead != 2 {
            name = self.reshape(&name, &channels(&x.ty.shape))?;
        }
        // there are pools of floats, and maxima of bytes
        let direct = x.ty.dtype.is_float() || pool.kind == WindowKind::Max && x.ty.dtype.size() == 1;
        if !direct {
            let exact = x.ty.dtype.size() <= 4;
            if !exact {
                return Err(self.refuse(&format!("there are no windows of {}", x.ty.dtype)));
            }
            name = self.w.cast(&name, DType::F64);
        }
        let mut attributes = vec![
            ints("kernel_shape", window.size.to_vec()),
            ints("strides", window.stride.to_vec()),
            ints("dilations", window.dilation.to_vec()),
            ints("pads", window.pad_low.iter().chain(&window.pad_high).copied().collect()),
        ];
        if pool.kind == WindowKind::Max {
            name = self.w.op_with("MaxPool", &[&name], attributes);
        } else {
            attributes.push(flag("count_include_pad", pool.kind != WindowKind::MeanValid));
            let wide = pool.kind == WindowKind::Sum && matches!(x.ty.dtype, DType::F16 | DType::BF16);
            if wide {
                name = self.w.cast(&name, DType::F32);
            }
            name = self.w.op_with("AveragePool", &[&name], attributes);
            if pool.kind == WindowKind::Sum {
                name = self.sum_of_mean(name, &window.size, x.ty.dtype, direct)?;
            }
            if wide {
                name = self.w.cast(&name, x.ty.dtype);
            }
        }
        if !direct {
            name = self.w.cast(&name, x.ty.dtype);
        }
        if lead == 2 { Ok(name) } else { self.reshape(&name, &y.shape) }
    }

    /// The sum of windows by their mean; a sum of integers is the whole number next to it.
    fn sum_of_mean(&mut self, mean: String, size: &[i64], dtype: DType, float: bool) -> Result<String, Diagnostic> {
        let count = size.iter().try_fold(1i64, |n, k| n.checked_mul(*k));
        let count = count.ok_or_else(|| self.refuse("its window is too large"))?;
        let wide = match dtype {
            _ if !float => DType::F64,
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        };
        let count = self.w.float(count as f64, wide);
        let sum = self.w.op("Mul", &[&mean, &count]);
        if float {
            return Ok(sum);
        }
        let sum = self.w.op("Round", &[&sum]);
        // integers wrap
        Ok(self.w.cast(&sum, DType::I64))
    }
}
