//! Files as what a model is trained on.

use std::path::{Path, PathBuf};

use egret::ir::files;
use egret::nn::DataError;
use egret::nn::data::{self, Batch, Csv, DataSet, Table};
use egret::{DType, Diagnostic, ScalarValue, Tensor, TensorType};

use crate::args::{LossKind, TrainArgs};
use crate::failure::Failure;

/// Names that what is wanted has, if none is named.
const TARGETS: [&str; 5] = ["target", "targets", "labels", "label", "y"];

fn wrong(message: impl Into<String>) -> Failure {
    Failure::Failed(Diagnostic::new("E0957", message))
}

/// The data set of a file or folder: MNIST's IDX files; `.npz`, `.npy` (by the names of the files) and safetensors; one
/// `.csv` file; folders of images or recordings by class.
pub fn open(path: &Path, inputs: &[(String, TensorType)], args: &TrainArgs) -> Result<Box<dyn DataSet>, Failure> {
    let has = |path: &Path, extensions: &[&str]| {
        path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e))
    };
    if !path.is_dir() {
        return if has(path, &["csv"]) { csv(path, args) } else { Ok(Box::new(read(Table::read(path))?)) };
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Failure::file(path, &e))? {
        paths.push(entry.map_err(|e| Failure::file(path, &e))?.path());
    }
    paths.sort();
    let idx = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("train-images-idx3"));
    if paths.iter().any(idx) {
        return Ok(Box::new(read(data::mnist(path))?.0));
    }
    let tensors: Vec<&PathBuf> = paths.iter().filter(|p| has(p, &["npz", "npy", "safetensors"])).collect();
    if !tensors.is_empty() {
        let mut all = Vec::new();
        for file in tensors {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let named = |name: String| if has(file, &["npy"]) { stem.clone() } else { name };
            all.extend(files::read(file)?.into_iter().map(|(name, tensor)| (named(name), tensor)));
        }
        return Ok(Box::new(read(Table::new(all))?));
    }
    if let Some(file) = paths.iter().find(|p| has(p, &["csv"])) {
        return csv(file, args);
    }
    if paths.iter().any(|p| p.is_dir()) {
        return by_class(path, inputs);
    }
    Err(wrong(format!("{} holds no data that is known", path.display())))
}

fn read<T>(result: Result<T, DataError>) -> Result<T, Failure> {
    result.map_err(|e| Failure::from(egret::Error::from(e)))
}

/// All columns but that of the target as `features`; the target, the last column if none is named, as classes or numbers.
fn csv(path: &Path, args: &TrainArgs) -> Result<Box<dyn DataSet>, Failure> {
    let csv = read(Csv::read(path))?;
    let last = csv.names().last().cloned().unwrap_or_default();
    let target = args.target.clone().unwrap_or(last);
    let features: Vec<&str> = csv.names().iter().map(String::as_str).filter(|name| *name != target).collect();
    let wanted = match args.loss {
        LossKind::CrossEntropy => read(csv.classes(&target))?.0,
        LossKind::Mse => read(csv.numbers(&[&target]))?,
    };
    let features = read(csv.numbers(&features))?;
    let target = args.target.clone().unwrap_or_else(|| TARGETS[0].to_string());
    Ok(Box::new(read(Table::new([("features".to_string(), features), (target, wanted)]))?))
}

/// Images `[batch, channels, height, width]` or recordings `[batch, samples]`, by the type of the model's input.
fn by_class(path: &Path, inputs: &[(String, TensorType)]) -> Result<Box<dyn DataSet>, Failure> {
    let extents: Option<Vec<usize>> = match inputs {
        [(_, ty)] if ty.shape.rank() > 1 => {
            ty.shape[1..].iter().map(|dim| dim.as_const().and_then(|n| usize::try_from(n).ok())).collect()
        }
        _ => None,
    };
    match extents.as_deref() {
        #[cfg(feature = "images")]
        Some([1, height, width]) => Ok(Box::new(read(data::ImageFolder::open(path, *height, *width))?.grey())),
        #[cfg(feature = "images")]
        Some([3, height, width]) => Ok(Box::new(read(data::ImageFolder::open(path, *height, *width))?)),
        Some([samples]) => Ok(Box::new(read(data::WavFolder::any_rate(path, *samples))?)),
        _ => Err(wrong(format!(
            "{} holds folders: they are images for one input [batch, 1 or 3, height, width], or recordings for one \
             [batch, samples]",
            path.display()
        ))),
    }
}

/// Where an input comes from.
struct Place {
    from: String,
    to: String,
    dtype: DType,
    /// Extents of an example, where the model fixes them.
    inner: Option<Vec<usize>>,
}

/// A data set with the names, element types and shapes of a model's inputs.
pub struct Fitted<'a> {
    of: &'a dyn DataSet,
    places: Vec<Place>,
}

impl<'a> Fitted<'a> {
    /// Finds for each input the tensor of its name, or the only one that is not the target.
    pub fn new(
        of: &'a dyn DataSet,
        inputs: &[(String, TensorType)],
        target: (&str, &TensorType),
        named: Option<&str>,
    ) -> Result<Fitted<'a>, Failure> {
        if of.is_empty() {
            return Err(egret::Error::from(DataError::Empty { what: "training" }).into());
        }
        let example = read(of.batch(&[0]))?;
        let known = || example.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let has = |name: &str| example.iter().any(|(have, _)| have == name);
        let wanted = match named {
            Some(name) => Some(name).filter(|name| has(name)),
            None => TARGETS.into_iter().find(|name| has(name)),
        };
        let Some(wanted) = wanted else {
            let name = named.map_or("no target".to_string(), |name| format!("no `{name}`"));
            return Err(wrong(format!("the data has {name}; it has {}: name one with --target", known())));
        };
        let rest: Vec<&String> = example.iter().map(|(name, _)| name).filter(|name| *name != wanted).collect();
        let mut places = vec![place(&example, wanted, target.0, target.1)?];
        for (name, ty) in inputs {
            let from = match (rest.iter().find(|have| **have == name), &rest[..], inputs.len()) {
                (Some(same), _, _) => same.as_str(),
                (None, [only], 1) => only.as_str(),
                _ => {
                    return Err(wrong(format!("the model's input `{name}` is not in the data, which has {}", known())));
                }
            };
            places.push(place(&example, from, name, ty)?);
        }
        Ok(Fitted { of, places })
    }
}

/// How a tensor of the data becomes an input.
fn place(example: &Batch, from: &str, to: &str, ty: &TensorType) -> Result<Place, Failure> {
    let have = example.iter().find(|(name, _)| name == from).map(|(_, tensor)| tensor);
    let Some(have) = have else { return Err(wrong(format!("the data has no `{from}`"))) };
    let own = have.shape().get(1..).unwrap_or_default();
    let inner: Option<Vec<usize>> =
        ty.shape.iter().skip(1).map(|dim| dim.as_const().and_then(|n| usize::try_from(n).ok())).collect();
    let fits = match &inner {
        Some(inner) => inner.iter().product::<usize>() == own.iter().product::<usize>(),
        None => ty.shape.rank() == own.len() + 1,
    };
    let numbers = have.dtype().is_float() || have.dtype().is_int();
    if !fits || !(numbers || have.dtype() == ty.dtype) || (ty.dtype.is_int() && have.dtype().is_float()) {
        let message = format!("examples of `{from}` are {}{own:?}; `{to}` is {ty}", have.dtype());
        return Err(wrong(message));
    }
    Ok(Place { from: from.into(), to: to.into(), dtype: ty.dtype, inner })
}

impl DataSet for Fitted<'_> {
    fn len(&self) -> usize {
        self.of.len()
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        let mut batch = self.of.batch(rows)?;
        let fit = |place: &Place| {
            let missing = || DataError::Rows { why: format!("examples have no `{}`", place.from) };
            let at = batch.iter().position(|(name, _)| *name == place.from).ok_or_else(missing)?;
            let given = cast(batch[at].1.clone(), place.dtype);
            let shaped = match &place.inner {
                Some(inner) => {
                    let shape: Vec<usize> = std::iter::once(rows.len()).chain(inner.iter().copied()).collect();
                    given.reshaped(&shape)
                }
                None => Some(given),
            };
            let uneven = || DataError::Rows { why: format!("examples of `{}` differ in shape", place.from) };
            Ok((place.to.clone(), shaped.ok_or_else(uneven)?))
        };
        let fitted: Result<Batch, DataError> = self.places.iter().map(fit).collect();
        batch.clear();
        fitted
    }
}

/// The numbers in another element type.
fn cast(tensor: Tensor, dtype: DType) -> Tensor {
    if tensor.dtype() == dtype {
        return tensor;
    }
    let mut cast = Tensor::zeros(dtype, tensor.shape());
    let number = |value: ScalarValue| match dtype.is_float() {
        true => ScalarValue::Float(value.as_f64()),
        false => value,
    };
    tensor.values().enumerate().for_each(|(i, value)| cast.set(i, number(value)));
    cast
}
