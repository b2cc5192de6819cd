//! The images of a program's kernels: from the cache, or by NVRTC, on all processors.
//!
//! Before NVRTC comes to a kernel it reads its own declarations and the prelude and sets its passes up, which takes as long as
//! half of a large kernel or several small ones. So kernels are compiled together, and an image holds several.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use egret_program::{CudaCode, Image, Kernel, KernelBody, Program, Step};

use super::error::CudaError;
use super::nvrtc::{Nvrtc, NvrtcError};
use crate::cache::Cache;
use crate::cpu::bind::every_step;

/// Bytes of functions that are compiled together, about: enough that what they share is a small part of the time, few enough
/// that processors finish together.
const TOGETHER_BYTES: usize = 16 * 1024;

/// What compiling the kernels of a program took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileReport {
    /// Kernels that NVRTC compiled.
    pub compiled: usize,
    /// In how many compilations.
    pub compilations: usize,
    /// Kernels from the cache.
    pub cached: usize,
    /// Whether the cache had the program as a whole.
    pub whole: bool,
    /// Time from the first to the last.
    pub time: Duration,
}

/// Images, and which of them has which kernel of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    all: Vec<Vec<u8>>,
    /// By kernel; what is no CUDA code has none.
    of: Vec<Option<usize>>,
}

impl Images {
    /// The images.
    pub fn all(&self) -> &[Vec<u8>] {
        &self.all
    }

    /// The image that has a kernel, by number; what is no CUDA code has none.
    pub fn of(&self, kernel: usize) -> Option<usize> {
        self.of.get(kernel).copied().flatten()
    }

    /// The kernels that an image has.
    pub fn kernels(&self, image: usize) -> impl Iterator<Item = usize> {
        (0..self.of.len()).filter(move |kernel| self.of[*kernel] == Some(image))
    }

    fn add(&mut self, image: Vec<u8>, kernels: &[usize]) {
        kernels.iter().for_each(|kernel| self.of[*kernel] = Some(self.all.len()));
        self.all.push(image);
    }

    /// The images one after the other, each after its kernels and its length.
    fn pack(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.all.iter().map(|image| image.len() + 64).sum());
        for (number, image) in self.all.iter().enumerate() {
            let kernels: Vec<u64> = self.kernels(number).map(|kernel| kernel as u64).collect();
            let head = [kernels.len() as u64].into_iter().chain(kernels).chain([image.len() as u64]);
            head.for_each(|n| bytes.extend(n.to_le_bytes()));
            bytes.extend(image);
        }
        bytes
    }

    /// What [`Images::pack`] packed, for the kernels that have code; `None` of anything else.
    fn unpack(bytes: &[u8], kernels: &[Option<u128>]) -> Option<Images> {
        let mut images = Images { all: Vec::new(), of: vec![None; kernels.len()] };
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut number = || {
                let (number, after) = rest.split_first_chunk::<8>()?;
                rest = after;
                usize::try_from(u64::from_le_bytes(*number)).ok()
            };
            let count = number().filter(|count| *count <= kernels.len())?;
            let of = (0..count).map(|_| number().filter(|n| *n < kernels.len())).collect::<Option<Vec<usize>>>()?;
            let len = number()?;
            let (image, after) = rest.split_at_checked(len)?;
            images.add(image.to_vec(), &of);
            rest = after;
        }
        let all = kernels.iter().zip(&images.of).all(|(kernel, image)| kernel.is_some() == image.is_some());
        all.then_some(images)
    }

    /// The images that a cache has of kernels.
    fn cached(cache: &Cache, kernels: &[Option<u128>]) -> Images {
        let mut images = Images { all: Vec::new(), of: vec![None; kernels.len()] };
        let mut read: BTreeMap<u128, Vec<usize>> = BTreeMap::new();
        for (kernel, key) in kernels.iter().enumerate() {
            let named = key.and_then(|key| cache.get(key));
            if let Some(image) = named.and_then(|bytes| Some(u128::from_le_bytes(bytes.try_into().ok()?))) {
                read.entry(image).or_default().push(kernel);
            }
        }
        for (key, kernels) in read {
            if let Some(image) = cache.get(key) {
                images.add(image, &kernels);
            }
        }
        images
    }
}

/// Where the cache says which image has a kernel.
///
/// # Errors
/// No NVRTC: its version is part of what an image depends on.
pub fn cache_key(code: &CudaCode, arch: &str, image: Image) -> Result<u128, NvrtcError> {
    let (major, minor) = Nvrtc::get()?.version();
    let kind: &[u8] = match image {
        Image::Cubin => b"cubin",
        Image::Ptx => b"ptx",
    };
    let version = [major.to_le_bytes(), minor.to_le_bytes()].concat();
    Ok(Cache::key(&[code.source.as_bytes(), kind, arch.as_bytes(), &version]))
}

/// The key of what is made of several keys.
fn key_of(keys: impl IntoIterator<Item = u128>, what: &[u8]) -> u128 {
    let listed: Vec<[u8; 16]> = keys.into_iter().map(u128::to_le_bytes).collect();
    Cache::key(&[what].into_iter().chain(listed.iter().map(<[u8; 16]>::as_slice)).collect::<Vec<_>>())
}

/// The images of a program's kernels.
///
/// # Errors
/// [`CudaError::Compile`] where there is no NVRTC, or it refuses a kernel.
pub fn compile(
    program: &Program,
    arch: &str,
    image: Image,
    cache: &Cache,
) -> Result<(Images, CompileReport), CudaError> {
    let start = Instant::now();
    let keys = for_each(program, |_, code| cache_key(code, arch, image))?;
    let count = keys.iter().flatten().count();
    let key = key_of(keys.iter().flatten().copied(), b"program");
    if let Some(images) = cache.get(key).and_then(|bytes| Images::unpack(&bytes, &keys)) {
        let report = CompileReport { cached: count, whole: true, time: start.elapsed(), ..CompileReport::default() };
        return Ok((images, report));
    }
    let mut images = Images::cached(cache, &keys);
    let missing = program.kernels.iter().enumerate().filter(|(at, _)| images.of[*at].is_none());
    let missing: Vec<(usize, usize)> = missing.filter_map(|(at, kernel)| Some((at, function_len(kernel)?))).collect();
    let compiled = missing.len();
    let batches = batches(missing, processors());
    let made = in_parallel(batches.len(), |at| {
        let made = together(program, &batches[at], arch, image)?;
        made.iter().for_each(|(image, kernels)| keep(cache, program, &keys, arch, image, kernels));
        Ok(made)
    });
    let mut compilations = 0;
    for (image, kernels) in made?.into_iter().flatten() {
        images.add(image, &kernels);
        compilations += 1;
    }
    // one kernel tells as much itself
    if count > 1 {
        cache.put([(key, format!("a program of {count} kernels {}", by(arch)), images.pack().as_slice())]);
    }
    let cached = count - compiled;
    Ok((images, CompileReport { compiled, compilations, cached, whole: false, time: start.elapsed() }))
}

/// Puts an image of some kernels of a program into the cache.
fn keep(cache: &Cache, program: &Program, keys: &[Option<u128>], arch: &str, image: &[u8], kernels: &[usize]) {
    let by = by(arch);
    let key = key_of(kernels.iter().filter_map(|kernel| keys[*kernel]), b"image");
    let name = key.to_le_bytes();
    let whole = (key, format!("an image of {} kernels {by}", kernels.len()), image);
    let one = |at: &usize| {
        let kernel = &program.kernels[*at];
        Some((keys[*at]?, format!("{} ({}) {by}", kernel.name, kernel.family), name.as_slice()))
    };
    cache.put([whole].into_iter().chain(kernels.iter().filter_map(one)));
}

/// What compiled an entry, and for what.
fn by(arch: &str) -> String {
    let (major, minor) = Nvrtc::get().map_or((0, 0), Nvrtc::version);
    format!("for {arch} by NVRTC {major}.{minor}")
}

/// Bytes of a kernel's function, without the prelude; of what is no CUDA code none.
fn function_len(kernel: &Kernel) -> Option<usize> {
    let KernelBody::Cuda(code) = &kernel.body else { return None };
    Some(code.parts().map_or(code.source.len(), |(_, function)| function.len()))
}

/// Which kernels are compiled together, of kernels with the bytes of their functions: some batches a thread, with about as
/// much text each.
fn batches(mut kernels: Vec<(usize, usize)>, threads: usize) -> Vec<Vec<usize>> {
    let total: usize = kernels.iter().map(|(_, len)| len).sum();
    let count = (total.div_ceil(TOGETHER_BYTES * threads).max(1) * threads).min(kernels.len());
    let mut batches = vec![(0, Vec::new()); count];
    kernels.sort_by_key(|(kernel, len)| (Reverse(*len), *kernel));
    for (kernel, len) in kernels {
        // the longest first, each to where least is
        if let Some((sum, batch)) = batches.iter_mut().min_by_key(|(sum, _)| *sum) {
            *sum += len;
            batch.push(kernel);
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

/// Compiles kernels together, or each by itself where that fails: then the error is that of the kernel at fault.
fn together(
    program: &Program,
    kernels: &[usize],
    arch: &str,
    kind: Image,
) -> Result<Vec<(Vec<u8>, Vec<usize>)>, CudaError> {
    let compile = |source: &str, kernel: usize| {
        let made = Nvrtc::get()?.compile(source, &program.kernels[kernel].name, arch, &[])?;
        Ok(match kind {
            Image::Cubin => made.image,
            Image::Ptx => made.ptx.into_bytes(),
        })
    };
    let code = |kernel: &usize| match &program.kernels[*kernel].body {
        KernelBody::Cuda(code) => Some(code),
        _ => None,
    };
    let codes: Vec<&CudaCode> = kernels.iter().filter_map(code).collect();
    if let ([first, _, ..], Some(source)) = (kernels, CudaCode::together(&codes))
        && let Ok(image) = compile(&source, *first)
    {
        return Ok(vec![(image, kernels.to_vec())]);
    }
    let alone = kernels.iter().zip(codes).map(|(kernel, code)| match compile(&code.source, *kernel) {
        Ok(image) => Ok((image, vec![*kernel])),
        Err(error) => Err(refused(program, *kernel, error)),
    });
    alone.collect()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does something with each of so many things, on all processors, in their order; the results in that order, or what went
/// wrong with the first that failed.
fn in_parallel<T: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, CudaError> + Sync,
) -> Result<Vec<T>, CudaError> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<T, CudaError>)>> = Mutex::new(Vec::with_capacity(count));
    let some = || {
        loop {
            let at = next.fetch_add(1, Relaxed);
            if at >= count {
                return;
            }
            let result = work(at);
            if result.is_err() {
                // the rest need not be tried
                next.store(count, Relaxed);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..processors().min(count) {
            scope.spawn(some);
        }
        some();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Does something with the code of every CUDA kernel of a program, on all processors; the results by kernel, or what went
/// wrong with the first that failed.
pub(super) fn for_each<T: Send>(
    program: &Program,
    work: impl Fn(&Kernel, &CudaCode) -> Result<T, NvrtcError> + Sync,
) -> Result<Vec<Option<T>>, CudaError> {
    let one = |at: usize| match &program.kernels[at].body {
        KernelBody::Cuda(code) => {
            work(&program.kernels[at], code).map(Some).map_err(|error| refused(program, at, error))
        }
        _ => Ok(None),
    };
    in_parallel(program.kernels.len(), one)
}

/// The error of a kernel that NVRTC refuses, with the nodes that it computes where it is first launched.
fn refused(program: &Program, kernel: usize, source: NvrtcError) -> CudaError {
    let origin = every_step(&program.prepare)
        .chain(every_step(&program.steps))
        .find_map(|step| match step {
            Step::Launch(launch) if launch.kernel.0 as usize == kernel => Some(launch.origin.clone()),
            _ => None,
        })
        .unwrap_or_default();
    CudaError::Compile { kernel: program.kernels[kernel].name.clone(), origin, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_about_as_much_text_each() {
        let all: Vec<(usize, usize)> = (0..10).map(|i| (i, TOGETHER_BYTES / 8 * (1 + i % 3))).collect();
        for threads in [1, 2, 3] {
            let batches = batches(all.clone(), threads);
            assert_eq!(batches.len() % threads, 0);
            let mut kernels = batches.concat();
            kernels.sort_unstable();
            assert_eq!(kernels, (0..10).collect::<Vec<_>>());
            let sums = batches.iter().map(|batch| batch.iter().map(|kernel| all[*kernel].1).sum::<usize>());
            assert!(sums.clone().max().unwrap() <= TOGETHER_BYTES + TOGETHER_BYTES / 8, "{batches:?}");
            assert!(sums.min().unwrap() >= TOGETHER_BYTES / 4, "{batches:?}");
        }
        assert_eq!(batches(all[..2].to_vec(), 8), [[1], [0]]);
        assert!(batches(Vec::new(), 2).is_empty());
    }

    #[test]
    fn images_are_unpacked_as_they_were_packed() {
        let images =
            Images { all: vec![vec![1, 2, 3], vec![], vec![9]], of: vec![Some(0), None, Some(2), Some(0), Some(1)] };
        let keys = [Some(5), None, Some(6), Some(7), Some(8)];
        let bytes = images.pack();
        assert_eq!(Images::unpack(&bytes, &keys).as_ref(), Some(&images));
        assert_eq!(images.kernels(0).collect::<Vec<_>>(), [0, 3]);
        for end in 1..bytes.len() {
            assert_ne!(Images::unpack(&bytes[..end], &keys).as_ref(), Some(&images), "{end}");
        }
        // of another program
        assert_eq!(Images::unpack(&bytes, &[Some(5); 5]), None);
        assert_eq!(Images::unpack(&bytes, &keys[..4]), None);
        assert_eq!(Images::unpack(&[], &[]), Some(Images::default()));
    }
}
