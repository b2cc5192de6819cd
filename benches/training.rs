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
use egret::{Device, Dim, Objective, ScalarFn, Session, Shape, Tensor, Trainer, Var, f32, i64};

#[derive(Parser)]
struct Args {
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seconds that each case is measured for.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Also prints the kernels of each case.
    #[arg(long)]
    kernels: bool,
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
    let mut step: Box<dyn FnMut() -> egret::Result<f64>> = match case {
        "mnist_cnn" => classifier(&device, args, &[64, 1, 28, 28], &Adam::default(), &mnist_cnn())?,
        "lenet_cifar" => classifier(&device, args, &[64, 3, 32, 32], &Sgd::momentum(0.9), &lenet())?,
        "mlp" => classifier(&device, args, &[128, 784], &Adam::default(), &mlp())?,
        "lstm_fwdbwd" => gradients(&device, args, &[32, 64, 256], &Lstm::new(256))?,
        _ => gradients(&device, args, &[8, 128, 256], &transformer())?,
    };
    eprintln!("# {case}: traced, compiled and loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    for _ in 0..WARM_UP {
        step()?;
    }
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < 15 || begin.elapsed().as_secs_f64() < args.seconds {
        let start = Instant::now();
        step()?;
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

type Step = Box<dyn FnMut() -> egret::Result<f64>>;

/// A step with cross-entropy over ten classes.
fn classifier(
    device: &Device,
    args: &Args,
    shape: &[usize],
    optimiser: &dyn Optimiser,
    net: &Sequential,
) -> egret::Result<Step> {
    let mut trainer = Trainer::new(device, optimiser, 0, |p| {
        let logits = net.forward(p, p.tracer().input("x", f32(shape.iter().map(|n| Dim::from(*n)).collect::<Shape>())));
        Objective::new(loss::cross_entropy(logits, p.tracer().input("y", i64([shape[0]]))))
    })?;
    if args.kernels {
        print_kernels(trainer.step_program());
    }
    let labels: Vec<i64> = (0..shape[0] as i64).map(|i| i * 7 % 10).collect();
    let (x, y) = (drawn(shape), Tensor::new(&[shape[0]], &labels).expect("a label an item"));
    Ok(Box::new(move || trainer.step(&[("x", &x), ("y", &y)])))
}

/// The gradients of the mean square of a layer's results by its parameters.
fn gradients(device: &Device, args: &Args, shape: &[usize], net: &dyn Layer) -> egret::Result<Step> {
    let graph = egret::trace(|t| {
        let p = Params::new(t, Mode::Train, 0);
        let y: Var = net.forward(&p, t.input("x", f32(shape.iter().map(|n| Dim::from(*n)).collect::<Shape>())));
        let wrt: Vec<Var> = p.all().iter().map(|parameter| parameter.value).collect();
        for (i, gradient) in t.grad((y * y).mean(), &wrt).into_iter().enumerate() {
            t.output(&format!("g{i}"), gradient);
        }
    })?;
    let exe = egret::compile(&graph, device)?;
    if args.kernels {
        print_kernels(&exe);
    }
    let mut session: Session = exe.session()?;
    let x = drawn(shape);
    Ok(Box::new(move || session.run(&[("x", &x)]).map(|_| 0.0)))
}

fn print_kernels(exe: &egret::Executable) {
    if let Some(compiled) = exe.compiled() {
        eprintln!("{}", egret::ir::text::print(&compiled.rewritten.graph));
    }
}
