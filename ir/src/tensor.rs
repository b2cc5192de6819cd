//! Tensors in host memory.

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};

use crate::dtype::DType;
use crate::scalar::{Literal, ScalarValue};

/// A row-major tensor in host memory; clones share the elements.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    /// Words, so that every element type is aligned.
    Owned(Arc<Vec<u64>>),
    /// A part of a mapped file; `offset` is aligned to the element type.
    Mapped(Arc<memmap2::Mmap>, usize),
}

/// A Rust type that is stored as an element type.
pub trait Element: Copy + Default + 'static {
    /// The element type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })* };
}
elements!(u8 => U8, u16 => U16, u32 => U32, u64 => U64, i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    f16 => F16, bf16 => BF16, f32 => F32, f64 => F64);

impl Tensor {
    /// Zeros.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Tensor { dtype, shape: shape.to_vec(), storage: Storage::Owned(Arc::new(vec![0; bytes.div_ceil(8)])) }
    }

    /// A tensor of these elements, or `None` when their number is not that of the shape.
    pub fn new<T: Element>(shape: &[usize], elements: &[T]) -> Option<Tensor> {
        // SAFETY: `Element` types are plain numbers without padding.
        let bytes = unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), std::mem::size_of_val(elements)) };
        Tensor::from_bytes(T::DTYPE, shape, bytes)
    }

    /// A tensor of little-endian bytes, or `None` when their number is not that of the type and shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
        let count = shape.iter().try_fold(dtype.size(), |n, dim| n.checked_mul(*dim))?;
        if count != bytes.len() {
            return None;
        }
        let mut tensor = Tensor::zeros(dtype, shape);
        tensor.bytes_mut().copy_from_slice(bytes);
        if dtype == DType::Bool {
            tensor.bytes_mut().iter_mut().for_each(|b| *b = u8::from(*b != 0));
        }
        Some(tensor)
    }

    /// A view of a mapped file from byte `offset`; copied when the elements would not be aligned there. `None` when the
    /// file is too short.
    pub fn mapped(dtype: DType, shape: &[usize], file: Arc<memmap2::Mmap>, offset: usize) -> Option<Tensor> {
        let count = shape.iter().try_fold(dtype.size(), |n, dim| n.checked_mul(*dim))?;
        let bytes = file.get(offset..offset.checked_add(count)?)?;
        if bytes.as_ptr().align_offset(dtype.size()) != 0 || dtype == DType::Bool {
            return Tensor::from_bytes(dtype, shape, bytes);
        }
        Some(Tensor { dtype, shape: shape.to_vec(), storage: Storage::Mapped(file, offset) })
    }

    /// A tensor whose every element is `value`.
    pub fn splat(value: Literal, shape: &[usize]) -> Tensor {
        let mut tensor = Tensor::zeros(value.dtype, shape);
        if tensor.elements() > 0 {
            let size = value.dtype.size();
            tensor.set(0, value.value());
            let bytes = tensor.bytes_mut();
            let (first, rest) = bytes.split_at_mut(size);
            rest.chunks_exact_mut(size).for_each(|e| e.copy_from_slice(first));
        }
        tensor
    }

    /// A scalar.
    pub fn scalar(value: Literal) -> Tensor {
        Tensor::splat(value, &[])
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements as bytes in host order.
    pub fn bytes(&self) -> &[u8] {
        let count = self.elements() * self.dtype.size();
        match &self.storage {
            // SAFETY: the words are initialised and at least `count` bytes long.
            Storage::Owned(words) => unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), count) },
            Storage::Mapped(file, offset) => &file[*offset..*offset + count],
        }
    }

    /// The elements as bytes, to change; copies what is shared or mapped.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let count = self.elements() * self.dtype.size();
        if let Storage::Mapped(file, offset) = &self.storage {
            let mut words = vec![0u64; count.div_ceil(8)];
            // SAFETY: the words hold at least `count` bytes.
            let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), count) };
            bytes.copy_from_slice(&file[*offset..*offset + count]);
            self.storage = Storage::Owned(Arc::new(words));
        }
        let Storage::Owned(words) = &mut self.storage else { unreachable!("mapped storage was copied above") };
        let words = Arc::make_mut(words);
        // SAFETY: as in `bytes`, and the vector is ours alone.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), count) }
    }

    /// The elements, or `None` when they are of another type.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        if T::DTYPE != self.dtype {
            return None;
        }
        let bytes = self.bytes();
        // SAFETY: the type is right, the start is aligned (words, or checked when mapped), every bit pattern is valid.
        Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.elements()) })
    }

    /// The elements, to change, or `None` when they are of another type.
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        if T::DTYPE != self.dtype {
            return None;
        }
        let count = self.elements();
        let bytes = self.bytes_mut();
        // SAFETY: as in `as_slice`.
        Some(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), count) })
    }

    /// The same elements in another shape, or `None` when their number differs.
    pub fn reshaped(&self, shape: &[usize]) -> Option<Tensor> {
        let same = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))? == self.elements();
        same.then(|| Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// Element `index` in row-major order.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn get(&self, index: usize) -> ScalarValue {
        use ScalarValue::{Bool, Float, Int};
        let size = self.dtype.size();
        let bytes = &self.bytes()[index * size..(index + 1) * size];
        macro_rules! read {
            ($ty:ty) => {{
                let mut raw = [0; std::mem::size_of::<$ty>()];
                raw.copy_from_slice(bytes);
                <$ty>::from_ne_bytes(raw)
            }};
        }
        match self.dtype {
            DType::Bool => Bool(bytes[0] != 0),
            DType::U8 => Int(read!(u8).into()),
            DType::U16 => Int(read!(u16).into()),
            DType::U32 => Int(read!(u32).into()),
            DType::U64 => Int(read!(u64).into()),
            DType::I8 => Int(read!(i8).into()),
            DType::I16 => Int(read!(i16).into()),
            DType::I32 => Int(read!(i32).into()),
            DType::I64 => Int(read!(i64).into()),
            DType::F16 => Float(f16::from_bits(read!(u16)).to_f64()),
            DType::BF16 => Float(bf16::from_bits(read!(u16)).to_f64()),
            DType::F32 => Float(read!(f32).into()),
            DType::F64 => Float(read!(f64)),
        }
    }

    /// Sets element `index`, converting `value` as [`ScalarValue::cast`] does.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn set(&mut self, index: usize, value: ScalarValue) {
        let dtype = self.dtype;
        let size = dtype.size();
        let rounded = value.cast(dtype);
        let int = rounded.as_int();
        let raw: [u8; 8] = match dtype {
            DType::F16 => word(u64::from(f16::from_f64(rounded.as_f64()).to_bits())),
            DType::BF16 => word(u64::from(bf16::from_f64(rounded.as_f64()).to_bits())),
            DType::F32 => word(u64::from((rounded.as_f64() as f32).to_bits())),
            DType::F64 => word(rounded.as_f64().to_bits()),
            _ => word(int as u64),
        };
        self.bytes_mut()[index * size..(index + 1) * size].copy_from_slice(&raw[..size]);
    }

    /// Every element, in row-major order.
    pub fn values(&self) -> impl Iterator<Item = ScalarValue> + '_ {
        (0..self.elements()).map(|i| self.get(i))
    }
}

fn word(bits: u64) -> [u8; 8] {
    bits.to_le_bytes()
}

impl PartialEq for Tensor {
    /// Same type, shape and bits.
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        let shown: Vec<String> = self.values().take(8).map(|v| v.as_f64().to_string()).collect();
        write!(f, " {}{}", shown.join(" "), if self.elements() > 8 { " …" } else { "" })
    }
}
