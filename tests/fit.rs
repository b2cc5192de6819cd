//! Whole training runs: what they give, what stops them, and that a run which is killed loses nothing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use egret::ir::files;
use egret::nn::data::{self, Batch, DataSet, Table};
use egret::nn::{Adam, BatchNorm, DataError, Dropout, Layer, Linear, Optimiser, Schedule, Sequential, Sgd, loss};
use egret::{Device, EarlyStopping, Fit, Objective, ScalarFn, Tensor, Trainer, f32, i64, shape};

/// A folder of its own that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("egret-fit-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Points of four classes: the quadrant, which two features tell.
fn quadrants(count: usize) -> Table {
    let mut points = Vec::new();
    let mut labels = Vec::new();
    for i in 0..count {
        // two sequences of low discrepancy
        let (x, y) = ((i as f32 * 0.618_034).fract() * 2.0 - 1.0, (i as f32 * 0.754_877_7).fract() * 2.0 - 1.0);
        points.extend([x, y]);
        labels.push(i64::from(x > 0.0) * 2 + i64::from(y > 0.0));
    }
    let points = Tensor::new(&[count, 2], &points).unwrap();
    Table::new([("points", points), ("labels", Tensor::new(&[count], &labels).unwrap())]).unwrap()
}

/// A network with everything that a checkpoint must hold: moments, running statistics, a counter of random numbers.
fn classifier(optimiser: &dyn Optimiser) -> Trainer {
    let net = Sequential::new()
        .named("in", Linear::new(16))
        .layer(BatchNorm::default())
        .layer(ScalarFn::Relu)
        .layer(Dropout::new(0.1))
        .named("out", Linear::new(4));
    Trainer::new(&Device::cpu().with_threads(1), optimiser, 3, |p| {
        let logits = net.forward(p, p.tracer().input("points", f32(shape!["batch", 2])));
        let labels = p.tracer().input("labels", i64(shape!["batch"]));
        Objective::new(loss::cross_entropy(logits, labels)).classes(logits, labels)
    })
    .unwrap()
}

fn schedule() -> Fit {
    let fit = Fit::new(4).batch(16).seed(5);
    fit.clone().schedule(Schedule::cosine(0.02, fit.steps(200)).warm_up(5))
}

#[test]
fn a_run_learns_and_tells_its_history() {
    let folder = Folder::new("history");
    let data = quadrants(400);
    let (train, valid) = data::split(&data, 0.25, 1);
    let mut trainer = classifier(&Adam::default());
    let before = trainer.evaluate(&valid, 32).unwrap();
    let fit = Fit::new(12).batch(16).schedule(Schedule::constant(0.02)).curve(folder.0.join("curves/loss"));
    let history = trainer.fit(&train, Some(&valid), &fit).unwrap();
    assert_eq!((history.epochs.len(), history.steps, history.stopped_early), (12, 12 * 19, false));
    let last = &history.epochs[11];
    assert!(last.loss < 0.5 * history.epochs[0].loss, "{history:?}");
    let after = trainer.evaluate(&valid, 7).unwrap();
    // batches of another size, another order of sums
    assert!((after.loss - last.valid_loss.unwrap()).abs() < 1e-5 && after.accuracy() == last.accuracy);
    assert!(after.accuracy() > Some(0.85) && after.accuracy() > before.accuracy(), "{after:?}");
    assert_eq!((after.top(4), after.examples), (Some(1.0), 100));
    let confusion = after.classes.as_ref().unwrap().confusion().unwrap();
    let right: u64 = (0..4).map(|class| confusion[class][class]).sum();
    assert_eq!(Some(right as f64 / 100.0), after.accuracy());
    let csv = std::fs::read_to_string(folder.0.join("curves/loss.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 12 * 19);
    assert!(csv.lines().next_back().unwrap().starts_with("228,12,"), "{csv}");
    assert!(std::fs::read_to_string(folder.0.join("curves/loss.svg")).unwrap().contains("validation"));
}

#[test]
fn patience_ends_a_run_and_gives_the_best_epoch_back() {
    let data = quadrants(64);
    let (train, valid) = data::split(&data, 0.5, 1);
    let mut trainer = classifier(&Sgd::default());
    // steps so long that the loss must rise again
    let early = EarlyStopping { patience: 2, least: 0.0, restore: true };
    let fit = Fit::new(200).batch(32).schedule(Schedule::constant(30.0)).early_stopping(early);
    let history = trainer.fit(&train, Some(&valid), &fit).unwrap();
    assert!(history.stopped_early && history.epochs.len() < 200);
    assert_eq!(history.epochs.len() as u64, history.best + 2);
    let losses: Vec<f64> = history.epochs.iter().map(|epoch| epoch.valid_loss.unwrap()).collect();
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(losses[history.best as usize - 1], least);
    assert_eq!(trainer.evaluate(&valid, 32).unwrap().loss, least);
}

/// Examples that take their time, so that a run can be killed in the middle.
struct Slow(Table);

impl DataSet for Slow {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        std::thread::sleep(Duration::from_millis(20));
        self.0.batch(rows)
    }
}

/// Where the child process of the tests below works, and how.
const FOLDER: &str = "EGRET_TEST_FIT_FOLDER";

/// Runs the test `name` of this program alone, in that folder.
fn child(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored"]).env(FOLDER, folder);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command
}

/// Trains with checkpoints, from the last if there is one, and writes the states at the end.
#[test]
#[ignore = "the child process of another test"]
fn trains_in_a_folder() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("the folder"));
    let mut trainer = classifier(&Adam::w(0.01));
    let fit = schedule().checkpoints(&folder).checkpoint_every(3).resume(true).patience(3);
    trainer.fit(&Slow(quadrants(200)), Some(&quadrants(50)), &fit).unwrap();
    trainer.save(&folder.join("end.safetensors")).unwrap();
}

/// Epoch, batch and step of a checkpoint.
fn place(folder: &Path) -> Option<[u64; 3]> {
    let tensors = files::read_safetensors(&folder.join("checkpoint.safetensors")).ok()?;
    let at = tensors["egret.fit.at"].as_slice::<u64>()?;
    Some([at[0], at[1], at[2]])
}

fn wait_until(mut child: Child, what: impl Fn() -> bool) -> Child {
    let start = Instant::now();
    while !what() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended too early");
        assert!(start.elapsed() < Duration::from_secs(120), "the run does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_ends_with_the_same_bits() {
    use std::os::unix::process::ExitStatusExt;
    let (whole, killed) = (Folder::new("whole"), Folder::new("killed"));
    assert!(child("trains_in_a_folder", &whole.0).status().unwrap().success());
    // in the middle of the first epoch, and again in the third, where the best is known
    for reached in [5, 29] {
        let run = child("trains_in_a_folder", &killed.0).spawn().unwrap();
        let mut run = wait_until(run, || place(&killed.0).is_some_and(|[_, _, step]| step > reached));
        run.kill().unwrap();
        assert_eq!(run.wait().unwrap().signal(), Some(9));
        let [epoch, batch, step] = place(&killed.0).unwrap();
        assert!(batch > 0 && step == epoch * 13 + batch, "killed between epochs: {epoch} {batch} {step}");
        assert!(!killed.0.join("end.safetensors").exists());
    }
    assert!(child("trains_in_a_folder", &killed.0).status().unwrap().success());
    let end = |folder: &Folder| files::read_safetensors(&folder.0.join("end.safetensors")).unwrap();
    let (whole, killed) = (end(&whole), end(&killed));
    assert!(whole.len() > 10);
    for (name, tensor) in &whole {
        assert_eq!(tensor.bytes(), killed[name].bytes(), "{name}");
    }
}

/// Goes on from a checkpoint while no file may grow; says by its exit how that ended.
#[test]
#[ignore = "the child process of another test"]
fn trains_on_a_full_disk() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("the folder"));
    let mut trainer = classifier(&Adam::w(0.01));
    let fit = schedule().checkpoints(&folder).checkpoint_every(3).resume(true);
    let error = trainer.fit(&quadrants(200), None, &fit).unwrap_err().diagnostic();
    std::process::exit(if error.code == "E0805" { 42 } else { 1 });
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let folder = Folder::new("full");
    let mut trainer = classifier(&Adam::w(0.01));
    let fit = Fit::new(1).batch(16).seed(5).checkpoints(&folder.0);
    trainer.fit(&quadrants(200), None, &fit).unwrap();
    let file = folder.0.join("checkpoint.safetensors");
    let before = std::fs::read(&file).unwrap();
    // a limit of one block on files is a disk that takes no more; the signal is ignored, so that the write fails
    let inner = child("trains_on_a_full_disk", &folder.0);
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    command.env(FOLDER, &folder.0).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert_eq!(command.status().unwrap().code(), Some(42));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let files: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(files.len(), 2, "nothing half written is left: {files:?}");
}

#[test]
fn checkpoints_of_other_runs_are_refused() {
    let folder = Folder::new("other");
    let data = quadrants(64);
    let fit = |seed: u64| Fit::new(1).batch(16).seed(seed).checkpoints(&folder.0).resume(true);
    classifier(&Adam::default()).fit(&data, None, &fit(1)).unwrap();
    let error = classifier(&Adam::default()).fit(&data, None, &fit(2)).unwrap_err().diagnostic();
    assert!(error.code == "E0805" && error.message.contains("seed 1, batches of 16, 64 examples"), "{error}");
    let error = classifier(&Sgd::momentum(0.5)).fit(&data, None, &fit(1)).unwrap_err().diagnostic();
    assert!(error.code == "E0805" && error.message.contains("in.weight.momentum"), "{error}");
    // a file of states alone has no place
    classifier(&Adam::default()).save(&folder.0.join("checkpoint.safetensors")).unwrap();
    let error = classifier(&Adam::default()).fit(&data, None, &fit(1)).unwrap_err().diagnostic();
    assert!(error.code == "E0805" && error.message.contains("egret.fit"), "{error}");
}

#[test]
fn what_is_not_finite_is_an_error_with_its_maker() {
    let x = Tensor::new(&[8, 1], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -1.0]).unwrap();
    let data = Table::new([("x", x)]).unwrap();
    for device in [Device::cpu().with_threads(1), Device::interpreter()] {
        let trainer = || {
            Trainer::new(&device, &Sgd::default(), 1, |p| {
                let x = p.tracer().input("x", f32(shape!["batch", 1]));
                // at the eighth example, if not before
                let y = Linear::new(1).forward(p, x) * 0.0 + x.log();
                Objective::new(y.mean())
            })
            .unwrap()
        };
        let fit = Fit::new(1).batch(1).seed(1);
        let error = trainer().fit(&data, None, &fit).unwrap_err().diagnostic();
        assert!(error.code == "E0806" && error.message.contains("the loss is NaN after step"), "{error}");
        assert!(error.help.is_some() && error.origin.is_empty());
        let error = trainer().fit(&data, None, &fit.check_numerics(true)).unwrap_err().diagnostic();
        assert!(error.code == "E0806" && error.message.contains("= log : f32[batch, 1]"), "{error}");
        assert!(error.origin[0].to_string().contains("fit.rs"), "{error}");
    }
    // a loss that is finite, and an update that is not: √x at 0
    let mut trainer = Trainer::new(&Device::cpu().with_threads(1), &Sgd::default(), 1, |p| {
        let w = p.get("w", &[1], egret::nn::Init::ZEROS);
        Objective::new((w.abs().sqrt() + p.tracer().input("x", f32(shape!["batch", 1]))).mean())
    })
    .unwrap();
    let error = trainer.fit(&data, None, &Fit::new(1).check_numerics(true)).unwrap_err().diagnostic();
    assert!(error.code == "E0806" && error.message.contains("the state `w`"), "{error}");
    assert!(error.origin[0].to_string().contains("gradient of"), "{error}");
}

#[test]
fn bad_data_and_bad_losses_are_typed_errors() {
    let code = |result: egret::Result<egret::History>| result.unwrap_err().diagnostic().code;
    let none = quadrants(0);
    assert_eq!(code(classifier(&Adam::default()).fit(&none, None, &Fit::new(1))), "E0605");
    assert_eq!(code(classifier(&Adam::default()).fit(&quadrants(8), Some(&none), &Fit::new(1))), "E0605");
    assert_eq!(classifier(&Adam::default()).evaluate(&none, 4).unwrap_err().diagnostic().code, "E0605");
    // a fifth class
    let points = Tensor::new(&[2, 2], &[0.0f32; 4]).unwrap();
    let labels = Tensor::new(&[2], &[0i64, 4]).unwrap();
    let wrong = Table::new([("points", points), ("labels", labels)]).unwrap();
    let error = classifier(&Adam::default()).fit(&wrong, None, &Fit::new(1)).unwrap_err().diagnostic();
    assert!(
        error.code == "E0511" && error.message.contains("a label is outside 0..4 (status 1 of tests/fit.rs"),
        "{error}"
    );
    let unnamed = quadrants(8).renamed("points", "dots").unwrap();
    let error = classifier(&Adam::default()).fit(&unnamed, None, &Fit::new(1)).unwrap_err().diagnostic();
    assert!(error.message.contains("points") || error.message.contains("dots"), "{error}");
    // files that cannot be written
    let folder = Folder::new("taken");
    let taken = folder.0.join("taken");
    std::fs::write(&taken, "a file").unwrap();
    let fit = Fit::new(1).checkpoints(taken.join("inside"));
    assert_eq!(code(classifier(&Adam::default()).fit(&quadrants(8), None, &fit)), "E0807");
    let fit = Fit::new(1).curve(taken.join("inside"));
    assert_eq!(code(classifier(&Adam::default()).fit(&quadrants(8), None, &fit)), "E0807");
}
