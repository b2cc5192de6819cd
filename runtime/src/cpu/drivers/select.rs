//! Sorting, and results whose size only the data tell. Those are written behind each other, and their number last.

use std::cmp::Ordering;

use egret_ir::DType;
use egret_program::driver::{NonZeroProblem, SuppressionProblem, TopKProblem, UniqueProblem};

use super::{DriverError, ScratchNeed, ScratchPool, Shared, chunk_count, part};
use crate::cpu::team::Team;

/// An element that has an order.
trait Element: Copy + Send + Sync {
    /// Ascending or descending, NaN last in either order.
    fn order(self, other: Self, descending: bool) -> Ordering;
}

macro_rules! integers {
    ($($ty:ty)*) => { $(impl Element for $ty {
        fn order(self, other: Self, descending: bool) -> Ordering {
            if descending { other.cmp(&self) } else { self.cmp(&other) }
        }
    })* };
}
integers!(u8 u16 u32 u64 i8 i16 i32 i64);

macro_rules! floats {
    ($($ty:ty)*) => { $(impl Element for $ty {
        fn order(self, other: Self, descending: bool) -> Ordering {
            match (self.is_nan(), other.is_nan()) {
                (false, false) => {
                    let ascending = self.partial_cmp(&other).unwrap_or(Ordering::Equal);
                    if descending { ascending.reverse() } else { ascending }
                }
                (a, b) => a.cmp(&b),
            }
        }
    })* };
}
floats!(f32 f64);

/// Calls a generic function for an element type.
macro_rules! by_dtype {
    ($dtype:expr, $f:ident ( $($arg:expr),* )) => {
        match $dtype {
            DType::Bool | DType::U8 => $f::<u8>($($arg),*),
            DType::U16 => $f::<u16>($($arg),*),
            DType::U32 => $f::<u32>($($arg),*),
            DType::U64 => $f::<u64>($($arg),*),
            DType::I8 => $f::<i8>($($arg),*),
            DType::I16 => $f::<i16>($($arg),*),
            DType::I32 => $f::<i32>($($arg),*),
            DType::I64 => $f::<i64>($($arg),*),
            DType::F64 => $f::<f64>($($arg),*),
            // plans refuse halves
            DType::F32 | DType::F16 | DType::BF16 => $f::<f32>($($arg),*),
        }
    };
}

fn check_dtype(dtype: DType) -> Result<(), DriverError> {
    match dtype {
        DType::F16 | DType::BF16 => Err(DriverError::Unsupported("an order of halves")),
        _ => Ok(()),
    }
}

fn product(extents: &[usize], size: usize) -> Result<usize, DriverError> {
    let bytes = extents.iter().try_fold(size, |n, d| n.checked_mul(*d));
    bytes.filter(|bytes| *bytes <= isize::MAX as usize).ok_or(DriverError::Problem("the extents overflow"))
}

/// The places `0..extent` in scratch.
///
/// # Safety
/// `scratch` has room for them, and is aligned.
unsafe fn all_places<'a>(scratch: *mut usize, extent: usize) -> &'a mut [usize] {
    // SAFETY: the caller's; scratch is zeroed or holds numbers.
    let places = unsafe { std::slice::from_raw_parts_mut(scratch, extent) };
    places.iter_mut().enumerate().for_each(|(i, place)| *place = i);
    places
}

/// [`TopKProblem`], bound.
#[derive(Clone, Debug)]
pub struct TopKPlan(TopKProblem);

impl TopKPlan {
    /// Binds.
    ///
    /// # Errors
    /// Halves, or `k` above the extent.
    pub fn new(problem: &TopKProblem) -> Result<TopKPlan, DriverError> {
        check_dtype(problem.dtype)?;
        if problem.k > problem.extent {
            return Err(DriverError::Problem("k is above the extent of its axis"));
        }
        product(&[problem.outer, problem.extent, problem.inner], 8)?;
        Ok(TopKPlan(problem.clone()))
    }

    /// Scratch that `run` needs.
    pub fn scratch(&self) -> ScratchNeed {
        ScratchNeed { per_worker: self.0.extent * size_of::<usize>(), shared: 0 }
    }

    /// Writes values and places.
    ///
    /// # Safety
    /// The tensors have the problem's extents; `values` and `places` have `k` in the place of the extent.
    pub unsafe fn run(&self, x: *const u8, values: *mut u8, places: *mut i64, team: &Team, scratch: &ScratchPool) {
        // SAFETY: the caller's.
        unsafe { by_dtype!(self.0.dtype, top_k(&self.0, x, values, places, team, scratch)) }
    }
}

unsafe fn top_k<T: Element>(
    p: &TopKProblem,
    x: *const u8,
    values: *mut u8,
    places: *mut i64,
    team: &Team,
    scratch: &ScratchPool,
) {
    let (x, values, places) = (Shared(x.cast_mut().cast::<T>()), Shared(values.cast::<T>()), Shared(places));
    let lines = p.outer * p.inner;
    let chunks = chunk_count(lines, 1, team.size());
    if lines == 0 || p.k == 0 {
        return;
    }
    team.parallel(chunks, &|chunk, worker| {
        let (x, values, places) = (&x, &values, &places);
        let (begin, end) = part(lines, chunk, chunks);
        for line in begin..end {
            let (o, i) = (line / p.inner, line % p.inner);
            // SAFETY: places of a line lie within the tensors; each line is one chunk's.
            unsafe {
                let element = |place: usize| *x.0.add((o * p.extent + place) * p.inner + i);
                let order = |a: &usize, b: &usize| element(*a).order(element(*b), p.largest).then(a.cmp(b));
                let all = all_places(scratch.worker(worker).cast(), p.extent);
                if p.k < p.extent {
                    all.select_nth_unstable_by(p.k - 1, order);
                }
                let first = &mut all[..p.k];
                first.sort_unstable_by(order);
                for (rank, place) in first.iter().enumerate() {
                    let at = (o * p.k + rank) * p.inner + i;
                    *values.0.add(at) = element(*place);
                    *places.0.add(at) = *place as i64;
                }
            }
        }
    });
}

/// [`NonZeroProblem`], bound.
#[derive(Clone, Debug)]
pub struct NonZeroPlan(NonZeroProblem);

impl NonZeroPlan {
    /// Binds.
    ///
    /// # Errors
    /// Extents that overflow.
    pub fn new(problem: &NonZeroProblem) -> Result<NonZeroPlan, DriverError> {
        product(&problem.shape, 8 * problem.shape.len().max(1))?;
        Ok(NonZeroPlan(problem.clone()))
    }

    /// Writes the places, one row an axis, and how many there are.
    ///
    /// # Safety
    /// `x` has the problem's extents; `places` has room for every element.
    pub unsafe fn run(&self, x: *const u8, places: *mut i64, count: *mut i64) {
        let elements = self.0.shape.iter().product();
        // SAFETY: the caller's.
        let x = unsafe { std::slice::from_raw_parts(x, elements) };
        let found = x.iter().filter(|v| **v != 0).count();
        let true_places = x.iter().enumerate().filter(|(_, v)| **v != 0).map(|(place, _)| place);
        for (j, place) in true_places.enumerate() {
            let mut rest = place;
            for (axis, extent) in self.0.shape.iter().enumerate().rev() {
                // SAFETY: the caller's: the row of an axis has `found` places.
                unsafe { *places.add(axis * found + j) = (rest % extent) as i64 };
                rest /= extent;
            }
        }
        // SAFETY: the caller's.
        unsafe { *count = found as i64 };
    }
}

/// [`UniqueProblem`], bound.
#[derive(Clone, Debug)]
pub struct UniquePlan(UniqueProblem);

/// What [`UniquePlan::run`] writes.
pub struct UniqueArgs {
    /// The operand.
    pub x: *const u8,
    /// The distinct slices.
    pub values: *mut u8,
    /// The place of the first of each.
    pub first: *mut i64,
    /// By slice: the number of the distinct one.
    pub inverse: *mut i64,
    /// How often each occurs.
    pub counts: *mut i64,
    /// How many there are.
    pub count: *mut i64,
}

impl UniquePlan {
    /// Binds.
    ///
    /// # Errors
    /// Halves, or extents that overflow.
    pub fn new(problem: &UniqueProblem) -> Result<UniquePlan, DriverError> {
        check_dtype(problem.dtype)?;
        product(&[problem.outer, problem.extent, problem.inner], 8)?;
        product(&[problem.extent, 3], size_of::<usize>())?;
        Ok(UniquePlan(problem.clone()))
    }

    /// Scratch that `run` needs.
    pub fn scratch(&self) -> ScratchNeed {
        ScratchNeed { per_worker: 0, shared: 3 * self.0.extent * size_of::<usize>() }
    }

    /// Writes the results.
    ///
    /// # Safety
    /// The tensors have room for as many distinct slices as there are slices.
    pub unsafe fn run(&self, args: &UniqueArgs, scratch: &ScratchPool) {
        // SAFETY: the caller's.
        unsafe { by_dtype!(self.0.dtype, unique(&self.0, args, scratch)) }
    }
}

unsafe fn unique<T: Element>(p: &UniqueProblem, args: &UniqueArgs, scratch: &ScratchPool) {
    let (x, values) = (args.x.cast::<T>(), args.values.cast::<T>());
    let width = p.outer * p.inner;
    let at = |slices: usize, slice: usize, i: usize| (i / p.inner * slices + slice) * p.inner + i % p.inner;
    // SAFETY: places lie within the operand.
    let element = |slice: usize, i: usize| unsafe { *x.add(at(p.extent, slice, i)) };
    let compare = |a: usize, b: usize| {
        (0..width).map(|i| element(a, i).order(element(b, i), false)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    };
    let room = scratch.shared().cast::<usize>();
    // SAFETY: the plan asked for three such lists, and values for as many slices as there are.
    unsafe {
        // equal slices stand together, the first of them first
        let sorted = all_places(room, p.extent);
        sorted.sort_unstable_by(|a, b| compare(*a, *b).then(a.cmp(b)));
        let pairs = std::slice::from_raw_parts_mut(room.add(p.extent).cast::<[usize; 2]>(), p.extent);
        let mut found = 0;
        for i in 0..p.extent {
            if i > 0 && compare(sorted[i - 1], sorted[i]) == Ordering::Equal {
                pairs[found - 1][1] = i + 1;
            } else {
                pairs[found] = [i, i + 1];
                found += 1;
            }
        }
        let groups = &mut pairs[..found];
        if !p.sorted {
            groups.sort_unstable_by_key(|[start, _]| sorted[*start]);
        }
        for (number, [start, end]) in groups.iter().enumerate() {
            let first = sorted[*start];
            for i in 0..width {
                *values.add(at(found, number, i)) = element(first, i);
            }
            *args.first.add(number) = first as i64;
            *args.counts.add(number) = (end - start) as i64;
            sorted[*start..*end].iter().for_each(|slice| *args.inverse.add(*slice) = number as i64);
        }
        *args.count = found as i64;
    }
}

/// [`SuppressionProblem`], bound.
#[derive(Clone, Debug)]
pub struct SuppressionPlan(SuppressionProblem);

/// Operands and results of [`SuppressionPlan::run`].
pub struct SuppressionArgs {
    /// `[batch][boxes][4]`.
    pub boxes: *const f64,
    /// `[batch][classes][boxes]`.
    pub scores: *const f64,
    /// The most boxes of a class.
    pub most: *const i64,
    /// The greatest overlap of two boxes that stay.
    pub overlap: *const f64,
    /// What a score must be above.
    pub score: *const f64,
    /// Rows of batch entry, class and box.
    pub rows: *mut i64,
    /// How many there are.
    pub count: *mut i64,
}

/// Least and greatest y and x.
type Corners = [f64; 4];

/// Intersection over union.
fn overlap(a: Corners, b: Corners) -> f64 {
    let area = |c: Corners| (c[2] - c[0]) * (c[3] - c[1]);
    let (height, width) = (a[2].min(b[2]) - a[0].max(b[0]), a[3].min(b[3]) - a[1].max(b[1]));
    let common = height.max(0.0) * width.max(0.0);
    let union = area(a) + area(b) - common;
    if common > 0.0 && union > 0.0 { common / union } else { 0.0 }
}

impl SuppressionPlan {
    /// Binds.
    ///
    /// # Errors
    /// Extents that overflow.
    pub fn new(problem: &SuppressionProblem) -> Result<SuppressionPlan, DriverError> {
        product(&[problem.batch, problem.classes.max(1), problem.boxes, 4], 8)?;
        Ok(SuppressionPlan(problem.clone()))
    }

    /// Scratch that `run` needs: places, and corners of boxes that were taken.
    pub fn scratch(&self) -> ScratchNeed {
        ScratchNeed { per_worker: 0, shared: self.0.boxes * (size_of::<usize>() + size_of::<Corners>()) }
    }

    fn corners(&self, [a, b, c, d]: [f64; 4]) -> Corners {
        if self.0.center {
            return [b - d / 2.0, a - c / 2.0, b + d / 2.0, a + c / 2.0];
        }
        [a.min(c), b.min(d), a.max(c), b.max(d)]
    }

    /// Writes the rows of boxes that stay, by batch entry and class, the best first.
    ///
    /// # Safety
    /// The tensors have the problem's extents; `rows` has room for every box of every class.
    pub unsafe fn run(&self, args: &SuppressionArgs, scratch: &ScratchPool) {
        let p = &self.0;
        let corners_room = scratch.shared().cast::<Corners>();
        // SAFETY: the plan asked for both lists.
        let places_room = unsafe { corners_room.add(p.boxes).cast::<usize>() };
        // SAFETY: the caller's.
        let (most, limit, threshold) = unsafe { (*args.most, *args.overlap, *args.score) };
        let most = usize::try_from(most).unwrap_or(0);
        let mut rows = 0;
        for (b, class) in (0..p.batch).flat_map(|b| (0..p.classes).map(move |c| (b, c))) {
            // SAFETY: places lie within the tensors, and there are at most as many rows as places.
            unsafe {
                let score = |i: usize| *args.scores.add((b * p.classes + class) * p.boxes + i);
                let all = all_places(places_room, p.boxes);
                let mut candidates = 0;
                for i in 0..p.boxes {
                    if score(i) > threshold {
                        all[candidates] = i;
                        candidates += 1;
                    }
                }
                let places = &mut all[..candidates];
                places.sort_unstable_by(|i, j| score(*i).order(score(*j), true).then(i.cmp(j)));
                let mut taken = 0;
                for place in places.iter() {
                    if taken >= most {
                        break;
                    }
                    let corners = self.corners(*args.boxes.add((b * p.boxes + place) * 4).cast::<[f64; 4]>());
                    let others = std::slice::from_raw_parts(corners_room, taken);
                    if others.iter().all(|other| overlap(*other, corners) <= limit) {
                        *corners_room.add(taken) = corners;
                        taken += 1;
                        for (i, value) in [b, class, *place].into_iter().enumerate() {
                            *args.rows.add(3 * rows + i) = value as i64;
                        }
                        rows += 1;
                    }
                }
            }
        }
        // SAFETY: the caller's.
        unsafe { *args.count = rows as i64 };
    }
}
