use super::*;
use crate::cpu::drivers::PackPlan;
use crate::cpu::drivers::testing::{Number, assert_close, buffer, isas, values_of};
use crate::cpu::memory::Buffer;
use egret_program::driver::hook::View2;
use egret_program::driver::{
    Activation, BatchDim, Bias, Epilogue, Finisher, GemmProblem, GemmSchedule, MatrixForm, Operand, PackForm,
    PackProblem, Products,
};
use egret_simd::Isa;

const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 100, 37),
    (3, 33, 70),
    (8, 257, 130),
    (14, 32, 64),
    (29, 65, 33),
    (100, 1, 50),
    (61, 90, 0),
    (200, 17, 5),
    (15, 130, 4500),
    (130, 150, 90),
    (5, 5, 5),
];

struct Case<E> {
    problem: GemmProblem,
    a: Vec<E>,
    b: Vec<E>,
    c_len: usize,
}

/// Layout bits: A transposed, B transposed, C transposed, gaps everywhere, batch.
fn case<E: Number>((m, n, k): (usize, usize, usize), layout: usize) -> Case<E> {
    let gap = if layout & 8 != 0 { 3 } else { 0 };
    let strides = |rows: usize, cols: usize, transposed: bool| {
        if transposed { (1 + usize::from(gap > 0), rows * 2 + gap) } else { (cols + gap, 1) }
    };
    let mut p = GemmProblem::plain(m, n, k);
    (p.a_row, p.a_col) = strides(m, k, layout & 1 != 0);
    (p.b_row, p.b_col) = strides(k, n, layout & 2 != 0);
    (p.c_row, p.c_col) = strides(m, n, layout & 4 != 0);
    let len = |r: usize, c: usize, s: (usize, usize)| r * s.0 + c * s.1 + 5;
    let a_len = len(m, k, (p.a_row, p.a_col));
    let b_len = len(k, n, (p.b_row, p.b_col));
    let c_len = len(m, n, (p.c_row, p.c_col));
    if layout & 16 != 0 {
        p.batch = vec![
            BatchDim { extent: 2, a: a_len, b: 0, c: 3 * c_len },
            BatchDim { extent: 3, a: 0, b: b_len, c: c_len },
        ];
    }
    Case { problem: p, a: values_of(2 * a_len, 1), b: values_of(3 * b_len, 2), c_len: 6 * c_len }
}

/// Exact result of element (row, col) of a batch item, and the sum of absolute values.
fn exact<E: Number>(case: &Case<E>, item: usize, row: usize, col: usize) -> (f64, f64) {
    let p = &case.problem;
    let (a0, b0) = if p.batch.is_empty() { (0, 0) } else { (item / 3 * p.batch[0].a, item % 3 * p.batch[1].b) };
    (0..p.k).fold((0.0, 0.0), |(s, t), k| {
        let (a, b) = (case.a[a0 + row * p.a_row + k * p.a_col], case.b[b0 + k * p.b_row + col * p.b_col]);
        let v = a.into() * b.into();
        (s + v, t + v.abs())
    })
}

fn items(p: &GemmProblem) -> usize {
    p.batch.iter().map(|d| d.extent).product()
}

fn c_index(p: &GemmProblem, item: usize, row: usize, col: usize) -> usize {
    let batch = if p.batch.is_empty() { 0 } else { item * p.batch[1].c };
    batch + row * p.c_row + col * p.c_col
}

struct Extra<'a> {
    extras: &'a [*mut u8],
    finisher_extras: &'a [*mut u8],
    hook: Option<EpilogueFn>,
    finisher: Option<RowsFn>,
}

const NOTHING: Extra<'static> = Extra { extras: &[], finisher_extras: &[], hook: None, finisher: None };

fn products<E: Number>() -> Products {
    if size_of::<E>() == 8 { Products::F64 } else { Products::F32 }
}

fn run<E: Number>(case: &Case<E>, isa: Isa, packed: bool, extra: &Extra<'_>) -> Vec<E> {
    let mut problem = case.problem.clone();
    let lanes = isa.lanes::<E>();
    let (a, mut b) = (buffer(&case.a), buffer(&case.b));
    if packed {
        let p = &problem;
        let count = p.batch.get(1).map_or(1, |d| d.extent);
        let form = PackForm::Columns {
            products: products::<E>(),
            count,
            matrix_stride: p.batch.get(1).map_or(0, |d| d.b),
            k: p.k,
            n: p.n,
            row: p.b_row,
            col: p.b_col,
        };
        let pack = PackPlan::new(&PackProblem { lanes, form }, isa).unwrap();
        let to = Buffer::new(pack.packed_len() * size_of::<E>()).unwrap();
        unsafe { pack.run(b.as_ptr(), to.as_ptr(), &Team::new(1)) };
        b = to;
        let each = pack.packed_len() / count;
        problem.b = MatrixForm::Packed;
        if let Some(d) = problem.batch.get_mut(1) {
            d.b = each;
        }
    }
    let mut results: Vec<Vec<E>> = vec![];
    for threads in [1, 2, 3] {
        let mut schedule = GemmSchedule::choose(&problem, products::<E>(), isa.lanes_f32());
        if threads == 3 {
            schedule.m_block = 7;
        }
        let plan = GemmPlan::new(&problem, &schedule, isa).unwrap();
        let team = Team::new(threads);
        let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
        let c = buffer(&vec![E::from(7.0); case.c_len]);
        let args = GemmArgs {
            a: a.as_ptr(),
            b: b.as_ptr(),
            c: c.as_ptr(),
            extras: extra.extras,
            outs: &[c.as_ptr()],
            hook: extra.hook,
            finisher: extra.finisher,
            finisher_extras: extra.finisher_extras,
        };
        unsafe { plan.run(&args, &team, &scratch) };
        // SAFETY: as many elements as it was made with.
        results.push(unsafe { std::slice::from_raw_parts(c.as_ptr::<E>(), case.c_len) }.to_vec());
    }
    for r in &results[1..] {
        let same = r.iter().zip(&results[0]).all(|(a, b)| a.bits() == b.bits());
        assert!(same, "{isa} {problem}");
    }
    results.swap_remove(0)
}

fn check<E: Number>(case: &Case<E>, isa: Isa, got: &[E], f: impl Fn(f64, usize, usize, usize) -> f64) {
    let p = &case.problem;
    let mut written = vec![false; got.len()];
    for item in 0..items(p) {
        for row in 0..p.m {
            for col in 0..p.n {
                let (sum, size) = exact(case, item, row, col);
                let at = c_index(p, item, row, col);
                written[at] = true;
                let want = f(sum, at, row, col);
                assert_close(got[at], want, p.k, size + 3.0, &format_args!("{isa} {p}"));
            }
        }
    }
    for (g, w) in got.iter().zip(written) {
        assert!(w || (*g).into() == 7.0, "{isa} wrote outside C: {p}");
    }
}

fn all_layouts<E: Number>() {
    for isa in isas() {
        for shape in SHAPES {
            for layout in 0..32 {
                if shape.2 > 1000 && ![0, 3, 17].contains(&layout) {
                    continue;
                }
                let case = case::<E>(shape, layout);
                check(&case, isa, &run(&case, isa, false, &NOTHING), |s, _, _, _| s);
                if layout & 4 == 0 {
                    check(&case, isa, &run(&case, isa, true, &NOTHING), |s, _, _, _| s);
                }
            }
        }
    }
}

fn direct_epilogues<E: Number>() {
    for isa in isas() {
        for shape in SHAPES {
            for layout in [0, 4, 17, 20, 24] {
                for bias in [Bias::PerColumn, Bias::PerRow] {
                    let mut case = case::<E>(shape, layout);
                    let length = if bias == Bias::PerColumn { shape.1 } else { shape.0 };
                    let (b, r): (Vec<E>, Vec<E>) = (values_of(length, 5), values_of(case.c_len, 6));
                    let (bias_buffer, residual) = (buffer(&b), buffer(&r));
                    case.problem.epilogue = Epilogue::Direct {
                        bias: Some(bias),
                        residual: Some(Operand::Full { halo: vec![], batch_stride: 0 }),
                        activation: Activation::Relu,
                    };
                    let extras = [bias_buffer.as_ptr(), residual.as_ptr()];
                    let extra = Extra { extras: &extras, ..NOTHING };
                    let got = run(&case, isa, layout == 0, &extra);
                    check(&case, isa, &got, |s, at, row, col| {
                        let i = if bias == Bias::PerColumn { col } else { row };
                        (s + b[i].into() + r[at].into()).max(0.0)
                    });
                }
            }
        }
    }
}

/// out = acc * extras[0] + extras[1]
unsafe extern "C" fn hook<E: Number>(
    acc: *const View2,
    rows: i64,
    cols: i64,
    extras: *const View2,
    outs: *const View2,
) {
    unsafe {
        let at = |v: *const View2, i: i64, j: i64| (*v).ptr.cast::<E>().offset((i * (*v).row + j * (*v).col) as isize);
        for i in 0..rows {
            for j in 0..cols {
                *at(outs, i, j) = *at(acc, i, j) * *at(extras, i, j) + *at(extras.add(1), i, j);
            }
        }
    }
}

fn full() -> Operand {
    Operand::Full { halo: vec![], batch_stride: 0 }
}

fn hooks<E: Number>() {
    for isa in isas() {
        for shape in SHAPES {
            for layout in [0, 1, 10, 18, 24] {
                let mut case = case::<E>(shape, layout);
                let (rows, cols): (Vec<E>, Vec<E>) = (values_of(shape.0, 5), values_of(shape.1, 6));
                let (row_buffer, col_buffer) = (buffer(&rows), buffer(&cols));
                case.problem.epilogue = Epilogue::Hook {
                    extras: vec![Operand::PerRow, Operand::PerColumn],
                    outs: vec![full()],
                    element_bytes: vec![size_of::<E>() as u8; 3],
                };
                let extras = [row_buffer.as_ptr(), col_buffer.as_ptr()];
                let extra = Extra { extras: &extras, hook: Some(hook::<E>), ..NOTHING };
                let got = run(&case, isa, layout == 0, &extra);
                check(&case, isa, &got, |s, _, row, col| s * rows[row].into() + cols[col].into());
            }
        }
    }
}

/// out = acc - mean of the row + extras[0]
unsafe extern "C" fn centre<E: Number>(
    acc: *const View2,
    rows: i64,
    cols: i64,
    extras: *const View2,
    outs: *const View2,
) {
    unsafe {
        let at = |v: *const View2, i: i64, j: i64| (*v).ptr.cast::<E>().offset((i * (*v).row + j * (*v).col) as isize);
        for i in 0..rows {
            let sum: f64 = (0..cols).map(|j| -> f64 { (*at(acc, i, j)).into() }).sum();
            let mean = E::rounded(sum / cols as f64);
            for j in 0..cols {
                *at(outs, i, j) = *at(acc, i, j) - mean + *at(extras, i, j);
            }
        }
    }
}

fn finishers<E: Number>() {
    for isa in isas() {
        for shape in SHAPES {
            for layout in [0, 17, 24] {
                let mut case = case::<E>(shape, layout);
                let shift: Vec<E> = values_of(shape.0, 5);
                let shift_buffer = buffer(&shift);
                case.problem.finisher = Some(Finisher {
                    extras: vec![Operand::PerRow],
                    outs: vec![full()],
                    element_bytes: vec![size_of::<E>() as u8; 2],
                });
                let extras = [shift_buffer.as_ptr()];
                let extra = Extra { finisher_extras: &extras, finisher: Some(centre::<E>), ..NOTHING };
                let got = run(&case, isa, layout == 0, &extra);
                let p = &case.problem;
                for item in 0..items(p) {
                    for row in 0..p.m {
                        let sums: Vec<_> = (0..p.n).map(|c| exact(&case, item, row, c)).collect();
                        let mean = sums.iter().map(|s| s.0).sum::<f64>() / p.n as f64;
                        let size = sums.iter().map(|s| s.1).fold(3.0, f64::max);
                        for (col, sum) in sums.iter().enumerate() {
                            let want = sum.0 - mean + shift[row].into();
                            let g = got[c_index(p, item, row, col)];
                            assert_close(g, want, 2 * p.k + 4, size, &format_args!("{isa} {p}"));
                        }
                    }
                }
            }
        }
    }
}

/// Each on both element types.
macro_rules! of_both {
    ($($name:ident)*) => {
        mod of_f32 {
            $(#[test]
            fn $name() {
                super::$name::<f32>();
            })*
        }
        mod of_f64 {
            $(#[test]
            fn $name() {
                super::$name::<f64>();
            })*
        }
    };
}

of_both!(all_layouts direct_epilogues hooks finishers);

/// A plan takes the lanes of its own element type.
#[test]
fn lanes_of_f64_are_half() {
    for isa in isas() {
        let problem = GemmProblem::plain(4, 4, 4);
        let schedule = GemmSchedule::choose(&problem, Products::F64, isa.lanes_f32());
        assert_eq!(schedule.lanes * 2, isa.lanes_f32());
        assert!(GemmPlan::new(&problem, &schedule, isa).is_ok());
        let wrong = GemmSchedule { lanes: isa.lanes_f32(), ..schedule };
        let actual = isa.lanes::<f64>();
        let refused = DriverError::Isa { isa, scheduled: wrong.lanes, actual };
        assert_eq!(GemmPlan::new(&problem, &wrong, isa).err(), Some(refused));
    }
}
