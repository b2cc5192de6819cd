//! The tuner on injected clocks and results, and on the processor.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use egret_compiler::CompileOptions;
use egret_compiler::tune::Candidate;
use egret_ir::{ScalarValue, f32, trace};
use egret_program::Program;

use super::*;
use crate::Error;
use crate::tuner::bench::Runs;

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        Folder(std::env::temp_dir().join(format!("egret-tuner-{name}-{}", std::process::id())))
    }

    fn table(&self) -> Cache {
        Cache::at(&self.0)
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(&self.0).map(|files| files.flatten().map(|file| file.path()).collect());
        files.unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A clock that gives each candidate the time of its place, and results that may be tampered with.
struct Made {
    /// By candidate, µs.
    times: Vec<f64>,
    /// Whose result is made wrong.
    wrong: Option<usize>,
    /// Whether the first does not load.
    fails: bool,
    /// How often something was loaded.
    loaded: Cell<usize>,
    description: DeviceDescription,
    device: Device,
}

struct MadeRuns {
    us: f64,
    wrong: bool,
    real: Box<dyn Runs>,
}

impl Runs for MadeRuns {
    fn results(&mut self) -> Result<Vec<Tensor>> {
        let mut results = self.real.results()?;
        if self.wrong {
            let last = results[0].elements() - 1;
            let value = results[0].get(last).as_f64();
            results[0].set(last, ScalarValue::Float(value + 0.5));
        }
        Ok(results)
    }

    fn time(&mut self) -> Result<f64> {
        Ok(self.us)
    }
}

impl Bench for Made {
    fn environment(&self) -> String {
        "made".into()
    }

    fn roofline(&self) -> DeviceDescription {
        self.description.clone()
    }

    fn is_steady(&self) -> bool {
        false
    }

    fn load(&self, candidates: Vec<Candidate>) -> Vec<Result<Box<dyn Runs>>> {
        self.loaded.set(self.loaded.get() + 1);
        let real = OnDevice::new(&self.device, &self.description).unwrap().load(candidates);
        let one = |(at, real): (usize, Result<Box<dyn Runs>>)| {
            if self.fails && at == 0 {
                return Err(not_loaded());
            }
            let us = self.times.get(at).copied().unwrap_or(1e6);
            real.map(|real| Box::new(MadeRuns { us, wrong: self.wrong == Some(at), real }) as Box<dyn Runs>)
        };
        real.into_iter().enumerate().map(one).collect()
    }
}

fn made(times: &[f64], wrong: Option<usize>) -> Made {
    let device = Device::cpu().with_threads(1);
    let mut description = device.description().unwrap().unwrap();
    // no time that is made up is near what this could do
    description.core_gflops *= 1e3;
    description.cache_gbps *= 1e3;
    description.memory_gbps *= 1e3;
    Made { times: times.to_vec(), wrong, fails: false, loaded: Cell::new(0), description, device }
}

/// Two products of which the problems differ, one twice.
fn graph() -> Graph {
    let weights = |n: usize| Tensor::new(&[64, n], &vec![0.5f32; 64 * n]).unwrap();
    let graph = trace(|t| {
        let x = t.input("x", f32([2000, 64]));
        let y = x.matmul(t.param("a", weights(64))).relu();
        let z = y.matmul(t.param("b", weights(64))).relu();
        z.matmul(t.param("c", weights(160)))
    });
    graph.unwrap()
}

/// What a bench tells a tuner of a graph, and the program that comes of it.
fn tuned(tuner: &Tuner, bench: &Made) -> (Tuning, Program) {
    let options = CompileOptions::default();
    let mut tuning = None;
    let compiled = egret_compiler::compile_choosing(&graph(), &bench.description, &options, &mut |planned| {
        let found = tuner.tune_on(planned, &bench.description, &options.plan(), bench)?;
        let schedules = found.schedules();
        tuning = Some(found);
        Ok::<_, Error>(schedules)
    });
    (tuning.unwrap(), compiled.unwrap_or_else(|e| panic!("{e}")).program)
}

fn untuned(bench: &Made) -> Program {
    egret_compiler::compile(&graph(), &bench.description, &CompileOptions::default()).unwrap().program
}

fn texts(program: &Program) -> Vec<&str> {
    program.kernels.iter().map(|kernel| kernel.text.as_str()).collect()
}

#[test]
fn the_fastest_is_chosen_and_the_plan_follows() {
    let bench = made(&[50.0, 40.0, 30.0, 45.0], None);
    let tuner = Tuner::new(Effort::Few).with_table(Cache::none());
    let (tuning, program) = tuned(&tuner, &bench);
    // equal problems are measured once
    assert_eq!(tuning.problems.iter().map(|p| p.uses).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(bench.loaded.get(), 2);
    assert_eq!(tuning.dropped().count(), 0);
    for problem in &tuning.problems {
        assert_eq!(problem.chosen, 2, "{problem:?}");
        assert_eq!(problem.times(), Some((50.0, 30.0)));
        let Outcome::Timed { us } = &problem.measurements[2].outcome else { panic!() };
        assert_eq!(us.len(), Effort::Few.rounds());
        let schedule = problem.other().unwrap().to_string();
        assert!(texts(&program).iter().any(|text| text.contains(&schedule)), "{schedule}");
        assert!(!texts(&untuned(&bench)).iter().any(|text| text.contains(&schedule)), "{schedule}");
    }
    // where the model's choice is the fastest, or near it, the plan is as it would be
    let near = made(&[50.0, 49.9, 60.0, 60.0], None);
    let (tuning, program) = tuned(&tuner, &near);
    assert!(tuning.problems.iter().all(|p| p.other().is_none()));
    assert_eq!(program, untuned(&bench));
}

#[test]
fn what_is_wrong_is_dropped_and_told() {
    let bench = made(&[50.0, 1.0, 30.0, 45.0], Some(1));
    let (tuning, program) = tuned(&Tuner::new(Effort::Few).with_table(Cache::none()), &bench);
    for problem in &tuning.problems {
        assert_eq!(problem.chosen, 2, "{problem:?}");
        assert!(matches!(problem.measurements[1].outcome, Outcome::Wrong { by } if by == 0.5), "{problem:?}");
        let wrong = problem.measurements[1].schedule.to_string();
        assert!(!texts(&program).iter().any(|text| text.contains(&wrong)));
    }
    let told: Vec<String> = tuning.dropped().map(|(_, _, why)| why).collect();
    assert_eq!(told, ["its results differ by 5e-1", "its results differ by 5e-1"]);
}

/// Nothing is chosen of what cannot be compared, and nothing is kept of it.
#[test]
fn a_problem_whose_own_schedule_fails_is_left_out() {
    let folder = Folder::new("failed");
    let mut bench = made(&[50.0, 1.0], None);
    bench.fails = true;
    let (tuning, program) = tuned(&Tuner::new(Effort::Few).with_table(folder.table()), &bench);
    assert_eq!((tuning.left_out().count(), tuning.dropped().count()), (2, 0), "{tuning:?}");
    assert!(tuning.problems.iter().all(|problem| problem.measurements.len() == 1 && problem.chosen == 0));
    assert_eq!(program, untuned(&bench));
    assert!(folder.files().is_empty());
}

#[test]
fn the_table_gives_the_same_program() {
    let folder = Folder::new("table");
    let tuner = Tuner::new(Effort::Few).with_table(folder.table());
    let bench = made(&[50.0, 40.0, 30.0, 45.0], None);
    let (first, program) = tuned(&tuner, &bench);
    assert_eq!(first.sources(), (2, 0));
    assert_eq!(folder.files().len(), 2);
    // another clock would choose otherwise
    let other = made(&[10.0, 40.0, 30.0, 45.0], None);
    let (second, again) = tuned(&tuner, &other);
    assert_eq!(second.sources(), (0, 2));
    assert_eq!(other.loaded.get(), 0);
    assert_eq!(again, program);
    let measured = |tuning: &Tuning| tuning.problems.iter().map(|p| p.measurements.clone()).collect::<Vec<_>>();
    assert_eq!(measured(&second), measured(&first));
    assert!(folder.table().entries().iter().all(|entry| entry.about.contains("30.0 µs (50.0 by the model)")));
    // more candidates are more than the table has; and then fewer are less
    let more = made(&[50.0, 40.0, 30.0, 45.0], None);
    let (third, _) = tuned(&Tuner::new(Effort::Many).with_table(folder.table()), &more);
    assert!(third.sources().0 > 0);
    assert_eq!(tuned(&tuner, &more).0.sources(), (0, 2));
}

#[test]
fn sizes_and_descriptions_have_entries_of_their_own() {
    let folder = Folder::new("sizes");
    let tuner = Tuner::new(Effort::Few).with_table(folder.table());
    let mut bench = made(&[50.0, 30.0], None);
    tuned(&tuner, &bench);
    bench.description.memory_gbps *= 2.0;
    assert_eq!(tuned(&tuner, &bench).0.sources(), (2, 0));
    assert_eq!(folder.files().len(), 4);
}

fn damage(files: &[PathBuf], how: impl Fn(&Path)) {
    files.iter().for_each(|file| how(file));
}

#[test]
fn a_table_that_is_damaged_or_foreign_is_measured_again() {
    let folder = Folder::new("damaged");
    let tuner = Tuner::new(Effort::Few).with_table(folder.table());
    let bench = made(&[50.0, 40.0, 30.0, 45.0], None);
    let (_, program) = tuned(&tuner, &bench);
    damage(&folder.files(), |file| std::fs::write(file, b"nothing of ours").unwrap());
    let (tuning, again) = tuned(&tuner, &bench);
    assert_eq!((tuning.sources(), &again), ((2, 0), &program));

    // whole entries that say something else
    let names: Vec<u128> = folder.files().iter().map(|file| name_of(file)).collect();
    for content in [
        "{}",
        "[]",
        "not even JSON",
        r#"{"asked": [], "measurements": [], "chosen": 9, "least_us": 1, "at_roofline": false}"#,
    ] {
        names.iter().for_each(|key| folder.table().put([(*key, "foreign".into(), content.as_bytes())]));
        let (tuning, again) = tuned(&tuner, &bench);
        assert_eq!((tuning.sources(), &again), ((2, 0), &program), "{content}");
    }
    // one that names a schedule that the problem does not have: the plan is the model's
    let table = folder.table();
    for key in &names {
        let text = String::from_utf8(table.get(*key).unwrap()).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record["measurements"][2]["schedule"]["driver"]["gemm"]["m_block"] = 12_345.into();
        table.put([(*key, "foreign".into(), record.to_string().as_bytes())]);
    }
    let (tuning, plain) = tuned(&tuner, &bench);
    assert_eq!(tuning.sources(), (0, 2));
    assert_eq!(plain, untuned(&bench));
}

fn name_of(file: &Path) -> u128 {
    u128::from_str_radix(file.file_stem().unwrap().to_str().unwrap(), 16).unwrap()
}

#[test]
fn times_are_taken_in_turn_and_end_at_the_roofline() {
    let fresh =
        || vec![Outcome::Timed { us: Vec::new() }, Outcome::Wrong { by: 1.0 }, Outcome::Timed { us: Vec::new() }];
    let order = RefCell::new(Vec::new());
    let mut time = |at: usize| {
        order.borrow_mut().push(at);
        Ok(if at == 0 { 9.0 } else { 4.0 })
    };
    let mut outcomes = fresh();
    assert!(!race::race(&mut outcomes, 3, 1.0, &mut time));
    assert_eq!(*order.borrow(), [0, 2, 0, 2, 0, 2]);
    assert_eq!(race::winner(&outcomes), 2);
    order.borrow_mut().clear();
    // four is within five percent of what the device can do
    let mut outcomes = fresh();
    assert!(race::race(&mut outcomes, 3, 3.9, &mut time));
    assert_eq!(*order.borrow(), [0, 2]);
}

#[test]
fn what_fails_while_it_is_timed_is_dropped() {
    let mut outcomes = vec![Outcome::Timed { us: Vec::new() }; 2];
    let mut turn = 0;
    race::race(&mut outcomes, 3, 0.0, &mut |at| {
        turn += 1;
        match (at, turn) {
            (1, 4) => Err(not_loaded()),
            (1, _) => Ok(1.0),
            _ => Ok(9.0),
        }
    });
    assert!(matches!(&outcomes[1], Outcome::Failed { why } if why.contains("E0808") || why.contains("not loaded")));
    assert_eq!(outcomes[0], Outcome::Timed { us: vec![9.0; 3] });
    assert_eq!(race::winner(&outcomes), 0);
}

#[test]
fn medians() {
    assert_eq!(race::median(&[]), None);
    assert_eq!(race::median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(race::median(&[4.0, 1.0]), Some(2.5));
}

/// On the processor itself, by its own clock: whatever is chosen, every bit of the results is as without tuning.
#[test]
fn a_processor_keeps_its_results() {
    let folder = Folder::new("real");
    let x =
        Tensor::new(&[2000, 64], &(0..2000 * 64).map(|i| (i % 37) as f32 / 37.0 - 0.5).collect::<Vec<_>>()).unwrap();
    let run = |device: &Device| {
        let exe = crate::compile(&graph(), device).unwrap_or_else(|e| panic!("{e}"));
        let mut session = exe.session().unwrap();
        let y = session.run(&[("x", &x)]).unwrap().at(0).unwrap().to_tensor();
        (y, exe.tuning().cloned(), Arc::new(exe.program().unwrap().clone()))
    };
    let (want, none, plain) = run(&Device::cpu());
    assert_eq!(none, None);
    // without a tuner nothing is measured, and nothing changes
    assert_eq!(*run(&Device::cpu()).2, *plain);
    for threads in [1, 2] {
        let tuner = Tuner::new(Effort::Few).with_table(folder.table());
        let device = Device::cpu().with_threads(threads).with_tuner(tuner);
        let (have, tuning, program) = run(&device);
        let tuning = tuning.unwrap();
        assert_eq!(tuning.sources(), (2, 0));
        assert_eq!(tuning.dropped().count(), 0, "{tuning:?}");
        assert_eq!(have.bytes(), want.bytes());
        let (have, tuning, again) = run(&device);
        assert_eq!((have.bytes(), tuning.unwrap().sources()), (want.bytes(), (0, 2)));
        assert_eq!(*again, *program);
    }
}

#[test]
fn the_interpreter_has_nothing_to_tune() {
    let device = Device::interpreter().with_tuner(Tuner::new(Effort::Few).with_table(Cache::none()));
    let error = crate::compile(&graph(), &device).err().unwrap().diagnostic();
    assert_eq!(error.code, "E0808", "{error}");
}
