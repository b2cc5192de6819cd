//! Binding, runs, loops, state and errors, with kernels that are Rust functions.
#![cfg(target_arch = "x86_64")]

mod support;

use std::sync::Arc;

use egret_ir::{DType, Dim, Tensor};
use egret_program::{Carried, Check, Loop, Place, Program, Step};
use egret_runtime::{Executable, LoadOptions, RuntimeError, Session, State};
use support::*;

/// `y = x + x + n` over `[n, 3]`, through the arena.
fn doubled() -> Program {
    let mut b = Builder::new();
    let (n, ty) = (Dim::symbol("n"), i32_type(["n".into(), Dim::from(3)]));
    let x = b.input("x", ty.clone());
    let y = b.output("y", ty);
    let count = n.clone() * Dim::from(3);
    let twice = b.arena(DType::I32, count.clone());
    let (add, add_dim) = (b.code("add", add, 4), b.code("add_dim", add_dim, 0));
    b.0.steps = vec![
        launch(add, vec![reads(x), reads(x), writes(twice)], vec![], count.clone()),
        launch(add_dim, vec![reads(twice), writes(y)], vec![n], count),
    ];
    b.0
}

fn load(program: Program, threads: usize) -> Arc<Executable> {
    Builder(program).load(&nothing, threads)
}

fn ints(session: &mut Session, inputs: &[(&str, &Tensor)]) -> Vec<i32> {
    let outputs = session.run(inputs).unwrap_or_else(|e| panic!("{e}"));
    outputs.at(0).unwrap().as_slice::<i32>().unwrap().to_vec()
}

#[test]
fn one_import_runs_several_sizes() {
    for threads in 1..=3 {
        let mut session = load(doubled(), threads).session().unwrap();
        for n in [4, 1, 100, 4, 33, 0] {
            let x = i32s(&[n, 3], |i| i as i32);
            if n == 0 {
                // Symbols are at least 1.
                assert_eq!(session.run(&[("x", &x)]).unwrap_err().code(), "E0208");
                continue;
            }
            let outputs = session.run(&[("x", &x)]).unwrap();
            let y = outputs.get("y").unwrap();
            assert_eq!((y.shape(), y.dtype(), y.name()), ([n, 3].as_slice(), DType::I32, "y"));
            let want: Vec<i32> = (0..3 * n).map(|i| (2 * i + n) as i32).collect();
            assert_eq!(y.as_slice::<i32>().unwrap(), want);
            assert_eq!(y.to_tensor().as_slice::<i32>().unwrap(), want);
            assert!(y.as_slice::<f32>().is_none());
        }
        let report = session.memory();
        assert_eq!((report.arena_bytes, report.logical_live_bytes), (448, 448));
        assert!(report.reserved_bytes >= 1200);
    }
}

#[test]
fn outputs_go_into_tensors_of_the_caller() {
    let mut session = load(doubled(), 2).session().unwrap();
    let x = i32s(&[5, 3], |i| i as i32);
    let mut y = Tensor::zeros(DType::I32, &[5, 3]);
    session.run_into(&[("x", &x)], &mut [("y", &mut y)]).unwrap();
    assert_eq!(y, i32s(&[5, 3], |i| 2 * i as i32 + 5));
    let mut small = Tensor::zeros(DType::I32, &[4, 3]);
    let error = session.run_into(&[("x", &x)], &mut [("y", &mut small)]).unwrap_err();
    assert!(error.to_string().contains("[5, 3]") && error.to_string().contains("[4, 3]"), "{error}");
    let error = session.run_into(&[("x", &x)], &mut [("z", &mut y)]).unwrap_err();
    assert!(matches!(&error, RuntimeError::UnknownOutput { known, .. } if known.contains("`y`")), "{error}");
    let mut again = y.clone();
    let twice = session.run_into(&[("x", &x)], &mut [("y", &mut y), ("y", &mut again)]);
    assert!(matches!(twice, Err(RuntimeError::Duplicate { .. })));
}

#[test]
fn what_does_not_fit_is_named() {
    let mut session = load(doubled(), 1).session().unwrap();
    let x = i32s(&[2, 3], |i| i as i32);
    let (floats, wide) = (f32s(&[2, 3], 1), i32s(&[2, 4], |_| 0));
    let cases: [(Vec<(&str, &Tensor)>, &str, &str); 6] = [
        (vec![], "E0201", "`x`: i32[n, 3]"),
        (vec![("z", &x)], "E0202", "`z`"),
        (vec![("x", &x), ("z", &x)], "E0202", "`x`: i32[n, 3]"),
        (vec![("x", &x), ("x", &x)], "E0507", "`x`"),
        (vec![("x", &floats)], "E0203", "f32"),
        (vec![("x", &wide)], "E0205", "axis 1 of input `x`"),
    ];
    for (inputs, code, part) in cases {
        let error = session.run(&inputs).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(part) && error.diagnostic().code == code, "{error}");
    }
    assert_eq!(ints(&mut session, &[("x", &x)]), [2, 4, 6, 8, 10, 12]);
}

#[test]
fn checks_name_both_sides() {
    let mut program = doubled();
    program.checks.push(Check {
        left: Dim::symbol("n"),
        right: Dim::from(4),
        what: "operands of add".into(),
        origin: "model.rs:7".into(),
    });
    let mut session = load(program, 1).session().unwrap();
    assert_eq!(ints(&mut session, &[("x", &i32s(&[4, 3], |_| 1))]), [6; 12]);
    let error = session.run(&[("x", &i32s(&[5, 3], |_| 1))]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`n` is 5") && text.contains("`4` is 4") && text.contains("model.rs:7"), "{text}");
}

#[test]
fn faults_are_the_same_for_every_team() {
    for threads in 1..=3 {
        let mut session = load(doubled(), threads).session().unwrap();
        let bad = i32s(&[40, 3], |i| if i % 50 == 49 { -1 } else { 1 });
        let error = session.run(&[("x", &bad)]).unwrap_err();
        assert_eq!(error.to_string(), "a number is negative (status 7 of node 0)");
        assert!(matches!(error, RuntimeError::Fault { code: 7, .. }));
        assert_eq!(ints(&mut session, &[("x", &i32s(&[40, 3], |_| 1))]), [42; 120]);
    }
}

/// Running sums over `t` of `x: [t, 5]`, forwards or backwards; every sum so far and the last.
fn sums(reverse: bool) -> Program {
    let mut b = Builder::new();
    let ty = i32_type(["t".into(), Dim::from(5)]);
    let x = b.input("x", ty.clone());
    let zero = b.input("zero", i32_type([5]));
    let y = b.output("y", ty);
    let last = b.output("last", i32_type([5]));
    let slice = |of| Place::Slice { of, stride: Dim::from(20) };
    let (x_t, y_t) = (slice(x), slice(y));
    let x_t = b.buffer(x_t, DType::I32, Dim::from(20));
    let y_t = b.buffer(y_t, DType::I32, Dim::from(20));
    let (sum, next) = (b.arena(DType::I32, 5), b.arena(DType::I32, 5));
    let add = b.code("add", add, 64);
    let carried = vec![Carried { first: reads(zero), current: sum, next: reads(next), bytes: Dim::from(20) }];
    let body = vec![
        launch(add, vec![reads(sum), reads(x_t), writes(next)], vec![], 5),
        Step::Copy { source: reads(next), destination: writes(y_t), bytes: Dim::from(20) },
    ];
    let copy = Step::Copy { source: reads(sum), destination: writes(last), bytes: Dim::from(20) };
    b.0.steps = vec![Step::Loop(Loop { length: Dim::symbol("t"), reverse, carried, body }), copy];
    b.0
}

#[test]
fn loops_carry_values_and_move_slices() {
    let zero = i32s(&[5], |_| 0);
    for threads in 1..=3 {
        for reverse in [false, true] {
            let mut session = load(sums(reverse), threads).session().unwrap();
            for t in [1usize, 6, 3] {
                let x = i32s(&[t, 5], |i| 1 << (i / 5));
                let outputs = session.run(&[("x", &x), ("zero", &zero)]).unwrap();
                let all = (1 << t) - 1;
                let want = |i: usize| if reverse { all - ((1 << (i / 5)) - 1) } else { (2 << (i / 5)) - 1 };
                assert_eq!(outputs.get("y").unwrap().to_tensor(), i32s(&[t, 5], want));
                assert_eq!(outputs.get("last").unwrap().as_slice::<i32>().unwrap(), [all; 5]);
            }
        }
    }
}

#[test]
fn carried_values_may_change_places() {
    // (a, b) <- (b, a + b)
    let mut b = Builder::new();
    let one = b.input("one", i32_type([1]));
    let y = b.output("y", i32_type([1]));
    let [a, c, next] = [(); 3].map(|()| b.arena(DType::I32, 1));
    let add = b.code("add", add, 64);
    let four = Dim::from(4);
    let carry = |current, next| Carried { first: reads(one), current, next: reads(next), bytes: Dim::from(4) };
    b.0.steps = vec![
        Step::Loop(Loop {
            length: Dim::from(8),
            reverse: false,
            carried: vec![carry(c, next), carry(a, c)],
            body: vec![launch(add, vec![reads(a), reads(c), writes(next)], vec![], 1)],
        }),
        Step::Copy { source: reads(a), destination: writes(y), bytes: four },
    ];
    let mut session = load(b.0, 1).session().unwrap();
    assert_eq!(ints(&mut session, &[("one", &i32s(&[1], |_| 1))]), [34]);
}

#[test]
fn nested_loops_have_slices_of_slices() {
    // y[i][j] = x[i][j] + i32 3 for a [2][4][3] tensor, a row at a time.
    let mut b = Builder::new();
    let x = b.input("x", i32_type([2, 4, 3]));
    let y = b.output("y", i32_type([2, 4, 3]));
    let mut slice = |of, stride: i64, bytes: i64| {
        b.buffer(Place::Slice { of, stride: Dim::from(stride) }, DType::I32, Dim::from(bytes))
    };
    let (x_i, y_i) = (slice(x, 48, 48), slice(y, 48, 48));
    let (x_ij, y_ij) = (slice(x_i, 12, 12), slice(y_i, 12, 12));
    let add_dim = b.code("add_dim", add_dim, 0);
    let inner = Loop {
        length: Dim::from(4),
        reverse: true,
        carried: vec![],
        body: vec![launch(add_dim, vec![reads(x_ij), writes(y_ij)], vec![Dim::from(3)], 3)],
    };
    let outer = Loop { length: Dim::from(2), reverse: false, carried: vec![], body: vec![Step::Loop(inner)] };
    b.0.steps = vec![Step::Loop(outer)];
    let mut session = load(b.0, 2).session().unwrap();
    let want: Vec<i32> = (3..27).collect();
    assert_eq!(ints(&mut session, &[("x", &i32s(&[2, 4, 3], |i| i as i32))]), want);
}

/// Adds `step` to the state `count`; gives the count before.
fn counter() -> Program {
    let mut b = Builder::new();
    let step = b.input("step", i32_type(["n"]));
    let count = b.state("count", i32_type(["n"]));
    let add = b.code("add", add, 64);
    let before = egret_program::Port { name: "before".into(), ty: i32_type(["n"]), buffer: count };
    b.0.outputs.push(before);
    b.0.steps = vec![launch(add, vec![reads(step), reads(count), writes(count)], vec![], "n")];
    b.0
}

#[test]
fn executables_share_state() {
    let (train, other) = (load(counter(), 1), load(counter(), 2));
    assert!(matches!(train.session(), Err(RuntimeError::StateNeeded { .. })));
    let first = |name: &str| (name == "count").then(|| i32s(&[3], |i| i as i32));
    assert!(matches!(State::new(&train, &nothing), Err(RuntimeError::StateValue { .. })));
    let state = State::new(&train, &first).unwrap();
    state.add(&other, &nothing).unwrap();
    let (mut a, mut b) = (train.session_with(&state).unwrap(), other.session_with(&state).unwrap());
    let step = i32s(&[3], |_| 10);
    assert_eq!(ints(&mut a, &[("step", &step)]), [0, 1, 2]);
    assert_eq!(ints(&mut b, &[("step", &step)]), [10, 11, 12]);
    assert_eq!(state.get("count").unwrap(), i32s(&[3], |i| i as i32 + 20));
    state.set("count", &i32s(&[3], |_| 0)).unwrap();
    assert_eq!(ints(&mut a, &[("step", &step)]), [0; 3]);
    state.set("count", &i32s(&[2], |_| 5)).unwrap();
    assert_eq!(a.run(&[("step", &step)]).unwrap_err().code(), "E0205");
    assert_eq!(ints(&mut a, &[("step", &i32s(&[2], |_| 1))]), [5, 5]);
    assert!(state.set("count", &f32s(&[2], 1)).is_err() && state.get("none").is_err());
    assert!(matches!(train.session_with(&State::empty()), Err(RuntimeError::UnknownState { .. })));
    assert_eq!((state.names(), state.bytes()), (vec!["count".to_string()], 8));
}

#[test]
fn executables_are_shared_and_sessions_move() {
    fn shared<T: Send + Sync>() {}
    fn moves<T: Send>() {}
    shared::<Executable>();
    shared::<State>();
    moves::<Session>();
}

#[test]
fn sessions_of_one_executable_run_at_once() {
    let exe = load(doubled(), 2);
    std::thread::scope(|scope| {
        for n in [3usize, 70] {
            let exe = &exe;
            scope.spawn(move || {
                let mut session = exe.session().unwrap();
                for round in 0..50 {
                    let x = i32s(&[n, 3], |i| i as i32 + round);
                    let want: Vec<i32> = (0..3 * n).map(|i| 2 * (i as i32 + round) + n as i32).collect();
                    assert_eq!(ints(&mut session, &[("x", &x)]), want);
                }
            });
        }
    });
}

#[test]
fn steps_are_measured_when_asked() {
    let mut session = load(sums(false), 1).session().unwrap();
    let (x, zero) = (i32s(&[6, 5], |_| 1), i32s(&[5], |_| 0));
    session.run(&[("x", &x), ("zero", &zero)]).unwrap();
    assert!(session.timings().is_empty());
    session.profile(true);
    session.run(&[("x", &x), ("zero", &zero)]).unwrap();
    let seen: Vec<(&str, u64)> = session.timings().iter().map(|t| (t.family.as_str(), t.calls)).collect();
    assert_eq!(seen, [("loop", 1), ("test", 6), ("copy", 6), ("copy", 1)]);
    assert_eq!(session.timings()[1].origin, "node 0");
}

#[test]
fn damaged_programs_are_refused() {
    let refuse = |change: &dyn Fn(&mut Program)| {
        let mut program = doubled();
        change(&mut program);
        match Executable::load(Arc::new(program), &nothing, LoadOptions { threads: 1, isa: None }) {
            Err(error) => error,
            Ok(exe) => exe.session().unwrap().run(&[("x", &i32s(&[2, 3], |_| 1))]).unwrap_err(),
        }
    };
    let first = |program: &mut Program, change: &dyn Fn(&mut egret_program::Launch)| match &mut program.steps[0] {
        Step::Launch(launch) => change(launch),
        _ => unreachable!("the first step is a launch"),
    };
    assert_eq!(refuse(&|p| p.version = 0).code(), "E0501");
    assert_eq!(refuse(&|p| p.device = "sm_80".into()).code(), "E0502");
    assert_eq!(refuse(&|p| p.lanes = 16).code(), "E0502");
    assert_eq!(refuse(&|p| first(p, &|l| l.kernel.0 = 9)).code(), "E0503");
    assert_eq!(refuse(&|p| first(p, &|l| l.args[2].buffer.0 = 0)).code(), "E0503");
    assert_eq!(refuse(&|p| first(p, &|l| l.args[0].buffer.0 = 99)).code(), "E0503");
    assert_eq!(refuse(&|p| first(p, &|l| l.args[0].offset = Dim::from(4000))).code(), "E0503");
    assert_eq!(refuse(&|p| first(p, &|l| l.grid = Dim::from(-1))).code(), "E0206");
    assert_eq!(refuse(&|p| p.buffers[0].bytes = Dim::from(9999)).code(), "E0503");
    assert_eq!(refuse(&|p| p.buffers[2].bytes = Dim::symbol("unknown")).code(), "E0206");
    assert_eq!(refuse(&|p| p.buffers[2].place = Place::Constant(0)).code(), "E0503");
}
