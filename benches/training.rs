//! Times of training steps, or of a forward and a backward pass, of five small models.
//!
//! ```text
//! cargo bench --bench training -- [--threads N] [--seconds S] [CASE…]
//! ```
//!
//! A line a case: `egret CASE THREADS MEDIAN MIN MAX`, in ms; the time to compile goes to the error stream. Inputs and
//! parameters are drawn: the time of none of these steps depends on values.

use std::time::Instant;

use clap::Parser;
use egret::nn::{
    Adam, Conv2d, Flatten, Layer, Linear, Lstm, MaxPool2d, Mode, MultiHeadAttention, Optimiser, Params, Sequential,
    Sgd, TransformerBlock, loss,
};
use egret::{DType, Device, Dim, Graph, Literal, ScalarFn, Session, Shape, Tensor, Var, f32, i64};

#[derive(Parser)]
struct Args {
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seconds that each case is measured for.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Also prints the steps that take longest.
    #[arg(long)]
    profile: bool,
    /// Cases; all if none is given.
    cases: Vec<String>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

const CASES: [&str; 5] = ["mnist_cnn", "lenet_cifar", "mlp", "lstm_fwdbwd", "transformer_fwdbwd"];

/// Steps before measuring.
const WARM_UP: usize = 5;

fn main() {
    let args = Args::parse();
    let wanted = |case: &&str| args.cases.is_empty() || args.cases.iter().any(|have| have == case);
    for case in CASES.iter().filter(|case| wanted(case)) {
        if let Err(error) = measure(case, &args) {
            eprintln!("{case}: {}", error.diagnostic());
            std::process::exit(1);
        }
    }
}

/// Numbers between −1 and 1 that look drawn.
fn drawn(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    Tensor::new(shape, &(0..n).map(value).collect::<Vec<f32>>()).expect("as many values as elements")
}

fn measure(case: &str, args: &Args) -> egret::Result<()> {
    let device = Device::cpu().with_threads(args.threads);
    let start = Instant::now();
    let (graph, inputs) = match case {
        "mnist_cnn" => classifier(&[64, 1, 28, 28], &Adam::default(), &mnist_cnn())?,
        "lenet_cifar" => classifier(&[64, 3, 32, 32], &Sgd::momentum(0.9), &lenet())?,
        "mlp" => classifier(&[128, 784], &Adam::default(), &mlp())?,
        "lstm_fwdbwd" => gradients(&[32, 64, 256], &Lstm::new(256))?,
        _ => gradients(&[8, 128, 256], &transformer())?,
    };
    let exe = egret::compile(&graph, &device)?;
    let mut session = exe.session()?;
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
    eprintln!("# {case}: traced, compiled and loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    for _ in 0..WARM_UP {
        session.run(&inputs)?;
    }
    if args.profile {
        print_profile(&mut session, &inputs)?;
    }
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < 15 || begin.elapsed().as_secs_f64() < args.seconds {
        let start = Instant::now();
        session.run(&inputs)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let (median, last) = (times[times.len() / 2], times[times.len() - 1]);
    println!("egret {case} {} {median:.3} {:.3} {last:.3}", args.threads, times[0]);
    Ok(())
}

fn mnist_cnn() -> Sequential {
    Sequential::new()
        .layer(Conv2d::new(32, 3))
        .layer(ScalarFn::Relu)
        .layer(MaxPool2d::new(2))
        .layer(Conv2d::new(64, 3))
        .layer(ScalarFn::Relu)
        .layer(MaxPool2d::new(2))
        .layer(Flatten)
        .layer(Linear::new(10))
}

fn lenet() -> Sequential {
    Sequential::new()
        .layer(Conv2d::new(6, 5))
        .layer(ScalarFn::Relu)
        .layer(MaxPool2d::new(2))
        .layer(Conv2d::new(16, 5))
        .layer(ScalarFn::Relu)
        .layer(MaxPool2d::new(2))
        .layer(Flatten)
        .layer(Linear::new(120))
        .layer(ScalarFn::Relu)
        .layer(Linear::new(84))
        .layer(ScalarFn::Relu)
        .layer(Linear::new(10))
}

fn mlp() -> Sequential {
    Sequential::new()
        .layer(Linear::new(512))
        .layer(ScalarFn::Relu)
        .layer(Linear::new(512))
        .layer(ScalarFn::Relu)
        .layer(Linear::new(10))
}

fn transformer() -> Sequential {
    let block = || TransformerBlock::new(MultiHeadAttention::new(4), 1024).norm_last().activation(ScalarFn::Relu);
    Sequential::new().layer(block()).layer(block())
}

/// A graph and its inputs.
type Case = (Graph, Vec<(&'static str, Tensor)>);

fn shape_of(extents: &[usize]) -> Shape {
    extents.iter().map(|n| Dim::from(*n)).collect()
}

/// A step with cross-entropy over ten classes.
fn classifier(extents: &[usize], optimiser: &dyn Optimiser, net: &Sequential) -> egret::Result<Case> {
    let graph = egret::trace(|t| {
        let p = Params::new(t, Mode::Train, 0);
        let logits = net.forward(&p, t.input("x", f32(shape_of(extents))));
        let loss = loss::cross_entropy(logits, t.input("y", i64([extents[0]])));
        optimiser.minimise(&p, loss, t.scalar(Literal::float(1e-3, DType::F64)));
        [("loss", loss)]
    })?;
    let labels: Vec<i64> = (0..extents[0] as i64).map(|i| i * 7 % 10).collect();
    let labels = Tensor::new(&[extents[0]], &labels).expect("a label an item");
    Ok((graph, vec![("x", drawn(extents)), ("y", labels)]))
}

/// The gradients of the mean square of a layer's results by its parameters.
fn gradients(extents: &[usize], net: &dyn Layer) -> egret::Result<Case> {
    let graph = egret::trace(|t| {
        let p = Params::new(t, Mode::Train, 0);
        let y = net.forward(&p, t.input("x", f32(shape_of(extents))));
        let wrt: Vec<Var> = p.all().iter().map(|parameter| parameter.value).collect();
        for (i, gradient) in t.grad((y * y).mean(), &wrt).into_iter().enumerate() {
            t.output(&format!("g{i}"), gradient);
        }
    })?;
    Ok((graph, vec![("x", drawn(extents))]))
}

/// The steps of a run that take longest, and all together.
fn print_profile(session: &mut Session, inputs: &[(&str, &Tensor)]) -> egret::Result<()> {
    session.profile(true);
    session.run(inputs)?;
    session.run(inputs)?;
    let mut timings = session.timings().to_vec();
    timings.sort_by_key(|time| std::cmp::Reverse(time.ns));
    let all: u64 = timings.iter().map(|time| time.ns).sum();
    eprintln!("# {} steps, {:.3} ms", timings.len(), all as f64 / 1e6);
    for time in timings.iter().take(25) {
        let rate = time.flops * time.calls as f64 / time.ns.max(1) as f64;
        let (us, calls) = (time.ns as f64 / 1e3, time.calls);
        eprintln!("# {us:9.1} us {calls:4} x {rate:7.1} GFLOP/s  {:9} {:24} {}", time.family, time.name, time.origin);
    }
    session.profile(false);
    Ok(())
}
