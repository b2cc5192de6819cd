//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use egret::{CompileOptions, Device, Effort, F32Products, Level, Policy, RewriteSet, Tuner, Winograd};

/// A kernel compiler for neural-network graphs.
///
/// Exit status: 0 it ran, 1 it failed or a result is wrong, 2 wrong usage, 3 not supported.
#[derive(Parser)]
#[command(name = "egret", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Write results as JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run a model.
    Run(RunArgs),
    /// Write a stage of compilation as text.
    Dump(DumpArgs),
    /// Compare a compiled model with the reference interpreter, and find where they part.
    Verify(VerifyArgs),
    /// List operators and element types.
    Ops,
    /// Say how each kernel came to be.
    Explain(ExplainArgs),
    /// List the rules of rewriting.
    Rules(RulesArgs),
    /// Measure compilation and runs.
    Bench(BenchArgs),
    /// Measure this machine, and describe it for the compiler.
    Hwbench(HwbenchArgs),
    /// Train a model further on files.
    Train(TrainArgs),
    /// Write a program that the runtime loads without a compiler.
    Compile(SaveArgs),
    /// Write a graph as an ONNX model.
    Export(ExportArgs),
    /// Model time and memory on devices that need not be there.
    Estimate(EstimateArgs),
    /// List, explain or clear what is kept: kernels compiled for GPUs, and what tuning measured.
    Cache(CacheArgs),
    /// Compile the kernels of a model for GPUs, and run them on simulated ones with all checks.
    #[cfg(feature = "sim")]
    CheckKernels(CheckArgs),
}

/// How a model is compiled, and for what.
#[derive(Args)]
pub struct TargetArgs {
    /// Where it runs: cpu, cpu:FILE with a description by `egret hwbench`, interpreter, cuda:N; with the feature `sim`, cuda-sim:NAME of a shipped description.
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// Threads; as many as the process may use if not given.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How much is rewritten: none, greedy, full.
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    pub rewrite: Level,
    /// No FMA contraction, and no rule that holds over the reals only.
    #[arg(long)]
    pub exact: bool,
    /// How f32 is multiplied: fma; on a GPU tf32 (operands rounded to 10 bits of fraction), tf32x3 (three products of such);
    /// on a CPU with AVX-512 BF16 or AMX bf16 (to 7 bits; sums in f32).
    #[arg(long, value_name = "HOW", default_value = "fma")]
    pub f32_products: F32Products,
    /// Tiles of Winograd's minimal filtering for 3×3 convolutions on a CPU: off, f2, f4 (less exact than a sum; the others
    /// are not). Off with `--exact`.
    #[arg(long, value_name = "TILES", default_value = "f2")]
    pub winograd: Winograd,
    /// Leaves a rule out; `egret rules` lists them.
    #[arg(long, value_name = "RULE", value_parser = rule_name)]
    pub without: Vec<String>,
    /// What gradients keep of the forward pass: save_everything, save_nothing, save_contractions, min_cut.
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub remat: Policy,
    /// Choose schedules by measuring them on the device: 1 a few of each problem, 2 more. What was measured is kept, and
    /// taken from there by later compilations.
    #[arg(long, value_name = "EFFORT")]
    pub tune: Option<Effort>,
}

fn rule_name(name: &str) -> Result<String, String> {
    RewriteSet::standard().without(name).map(|_| name.to_string()).map_err(|e| e.message)
}

impl TargetArgs {
    /// The device with its threads.
    pub fn device(&self) -> Device {
        self.device_with(self.threads.unwrap_or(0))
    }

    /// The device with that many threads.
    pub fn device_with(&self, threads: usize) -> Device {
        let device = self.device.clone().with_threads(threads);
        match self.tune {
            Some(effort) => device.with_tuner(Tuner::new(effort)),
            None => device,
        }
    }

    /// Options of the compiler.
    pub fn options(&self) -> CompileOptions {
        // each name was looked up when it was parsed
        let without = |set: RewriteSet, name: &String| set.clone().without(name).unwrap_or(set);
        let rules = self.without.iter().fold(RewriteSet::standard(), without);
        CompileOptions {
            level: self.rewrite,
            exact: self.exact,
            rules,
            remat: self.remat,
            products: self.f32_products,
            winograd: self.winograd,
            ..CompileOptions::default()
        }
    }
}

/// As many as were asked for, else as many as the process may use.
pub fn threads(asked: Option<usize>) -> usize {
    match asked {
        Some(n) if n > 0 => n,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// A model, and how it is compiled.
#[derive(Args)]
pub struct CompileArgs {
    /// The model: `.onnx`, or a graph as `egret dump` writes it.
    pub model: PathBuf,
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Where inputs come from.
#[derive(Args)]
pub struct InputArgs {
    /// A folder with `input_0.pb`, … (the i-th graph input that is no initializer), or `.npy` or `.npz` by input name;
    /// without it, inputs are drawn.
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
    /// The size of a symbol of drawn inputs; 1 if not given.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = dim)]
    pub dims: Vec<(String, i64)>,
    /// Seed of drawn inputs.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

fn dim(text: &str) -> Result<(String, i64), String> {
    let (name, size) = text.split_once('=').ok_or("a size is given as NAME=N")?;
    let size: i64 = size.parse().map_err(|e| format!("`{size}`: {e}"))?;
    if size < 0 || name.is_empty() { Err("a size is given as NAME=N".into()) } else { Ok((name.into(), size)) }
}

/// `egret run`.
#[derive(Args)]
pub struct RunArgs {
    /// The model: `.onnx`, or a graph as `egret dump` writes it.
    #[arg(required_unless_present = "batch")]
    pub model: Option<PathBuf>,
    /// Run many models: a file of lines `model<TAB>inputs<TAB>outputs`. Each outputs folder gets `output_0.pb`, … and
    /// `status`: `ok`, `unsupported: why` or `error: why`.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["model", "inputs", "outputs", "expect"])]
    pub batch: Option<PathBuf>,
    /// Models of a batch that run at a time, each on one thread unless `--threads` is given.
    #[arg(long, value_name = "N", requires = "batch")]
    pub jobs: Option<usize>,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    /// A folder for `output_0.pb`, …
    #[arg(long, value_name = "DIR")]
    pub outputs: Option<PathBuf>,
    /// A file for a trace of the run, each step measured, as Chrome and Perfetto show it.
    #[arg(long, value_name = "FILE", conflicts_with = "batch")]
    pub trace: Option<PathBuf>,
    /// A folder with the expected outputs, named as inputs are: `output_0.pb`, …
    #[arg(long, value_name = "DIR")]
    pub expect: Option<PathBuf>,
    /// Allowed difference relative to the expected element.
    #[arg(long, default_value_t = 1e-3)]
    pub rtol: f64,
    /// Allowed difference beside that.
    #[arg(long, default_value_t = 1e-4)]
    pub atol: f64,
}

/// A stage of compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// The graph as read.
    Imported,
    /// After raise and differentiation.
    Raised,
    /// After rewriting.
    Rewritten,
    /// After rewriting, with what is computed again for gradients.
    Rematerialised,
    /// Text of each kernel.
    Kernels,
    /// Buffers and steps.
    Plan,
    /// Cranelift's IR.
    Clif,
    /// Machine code.
    Asm,
    /// CUDA C.
    Cuda,
    /// What NVRTC makes of that.
    #[cfg(feature = "cuda")]
    Ptx,
    /// Registers, spills, shared memory, occupancy and modelled time of each CUDA kernel.
    #[cfg(feature = "cuda")]
    Stats,
}

/// How a graph is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The text form, which `egret run` reads.
    Text,
    /// For Graphviz.
    Dot,
    /// Nodes with operands, types and origins.
    Json,
}

/// What results are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Against {
    /// The reference interpreter.
    Interpreter,
    /// The host's processor with standard options: quicker, for a GPU or for other options.
    Cpu,
    /// Nothing: that it compiles and runs is enough.
    None,
}

/// `egret verify`.
#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    /// What results are compared with.
    #[arg(long, default_value = "interpreter")]
    pub against: Against,
    /// Allowed difference relative to the expected element.
    #[arg(long, default_value_t = 1e-3)]
    pub rtol: f64,
    /// Allowed difference beside that.
    #[arg(long, default_value_t = 1e-4)]
    pub atol: f64,
    /// Where the smallest graph that shows a difference goes: FILE.txt, and FILE.inputs beside it.
    #[arg(short, value_name = "FILE", default_value = "difference")]
    pub output: PathBuf,
}

/// `egret dump`.
#[derive(Args)]
pub struct DumpArgs {
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Which stage.
    #[arg(long)]
    pub stage: Stage,
    /// The shipped description to compile for, instead of the host's; `sm_80` for CUDA C if not given.
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// How a graph is written; only text can be read back.
    #[arg(long, default_value = "text")]
    pub format: Format,
    /// A folder with inputs, for a model whose shapes depend on them.
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
    /// The file; a graph's weights go into a `.safetensors` file beside it. Standard output if not given.
    #[arg(short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `egret explain`.
#[derive(Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Only kernels that compute nodes with this in their name.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Why two nodes, by what is in their names, are one kernel or not.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with = "node")]
    pub pair: Option<Vec<String>>,
    /// What gradients keep of the forward pass, and what they compute again.
    #[arg(long, conflicts_with_all = ["node", "pair"])]
    pub saved: bool,
}

/// `egret rules`.
#[derive(Args)]
pub struct RulesArgs {
    /// Only this rule.
    pub name: Option<String>,
    /// The rules that no model among these files and folders uses.
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with = "name")]
    pub unused: Option<Vec<PathBuf>>,
}

/// `egret bench`.
#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    /// Measured runs.
    #[arg(long, default_value_t = 50)]
    pub runs: usize,
    /// Also shows each step beside the least time that this processor could do it in, the farthest above it first.
    #[arg(long)]
    pub roofline: bool,
}

/// `egret hwbench`.
#[derive(Args)]
pub struct HwbenchArgs {
    /// Threads that measure together, after one alone; as many as the process may use if not given.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// A file for the description, which `--device cpu:FILE` takes.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Milliseconds that each of a figure's nine samples takes.
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pub span: u64,
    /// The name in the description.
    #[arg(long, default_value = "host")]
    pub name: String,
}

/// `egret compile`.
#[derive(Args)]
pub struct SaveArgs {
    #[command(flatten)]
    pub compile: CompileArgs,
    /// A folder with inputs, for a model whose shapes depend on them.
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
    /// The file of the program and its weights.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// `egret cache`.
#[derive(Args)]
pub struct CacheArgs {
    /// What is done.
    #[command(subcommand)]
    pub action: CacheAction,
}

/// What is done with the cache.
#[derive(Subcommand)]
pub enum CacheAction {
    /// Says what is kept, the latest first.
    List,
    /// Says of each kernel of a model whether it is kept.
    #[cfg(feature = "cuda")]
    Explain {
        /// The model.
        model: PathBuf,
        /// The shipped description of a GPU.
        #[arg(long, value_name = "NAME", default_value = "sm_80")]
        arch: String,
    },
    /// Removes all.
    Clear,
}

/// `egret check-kernels`.
#[cfg(feature = "sim")]
#[derive(Args)]
pub struct CheckArgs {
    /// The model.
    pub model: PathBuf,
    /// Shipped descriptions of GPUs.
    #[arg(long, value_name = "NAME", default_values = ["sm_80", "sm_90a"])]
    pub arch: Vec<String>,
    #[command(flatten)]
    pub inputs: InputArgs,
}

/// `egret export`.
#[derive(Args)]
pub struct ExportArgs {
    /// The model: a graph as `egret dump` writes it, or `.onnx`.
    pub model: PathBuf,
    /// A folder with inputs, for a model whose shapes depend on them.
    #[arg(long, value_name = "DIR")]
    pub inputs: Option<PathBuf>,
    /// The ONNX file.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossKind {
    /// Of classes under the output as logits (or as the softmax that it ends with).
    CrossEntropy,
    /// Mean squared difference of output and target.
    Mse,
}

/// A rule of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OptimiserKind {
    /// Gradient descent.
    Sgd,
    /// With momentum 0.9.
    Momentum,
    /// Adam.
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
    /// RMSprop.
    Rmsprop,
    /// Adagrad.
    Adagrad,
}

/// `egret train`.
#[derive(Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub compile: CompileArgs,
    /// A folder or file: MNIST's IDX files; `.npz`, `.npy`, `.safetensors` by input name; `.csv`; folders of images or WAV
    /// files, one a class.
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// What is minimised, of the model's first output.
    #[arg(long)]
    pub loss: LossKind,
    /// The tensor or column that is wanted; `target`, `labels`, `label`, `y`, or the last column, if not given.
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Passes over the data.
    #[arg(long, default_value_t = 10)]
    pub epochs: u64,
    /// Examples of a step; that of the model, if it takes no other.
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 0.001)]
    pub rate: f64,
    /// Takes the rate to 0 along a cosine.
    #[arg(long)]
    pub cosine: bool,
    /// Steps over which the rate rises.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub warm_up: u64,
    /// The rule.
    #[arg(long, default_value = "adam")]
    pub optimiser: OptimiserKind,
    /// Weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub decay: f64,
    /// Share of the examples that validates.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub valid: f64,
    /// Seed of order and parts.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Params whose names begin so stay as they are; may be given often.
    #[arg(long, value_name = "NAME")]
    pub freeze: Vec<String>,
    /// Ends when the loss is no better for so many epochs, with the parameters of the best.
    #[arg(long, value_name = "EPOCHS")]
    pub patience: Option<u64>,
    /// A folder for checkpoints, one after each epoch.
    #[arg(long, value_name = "DIR")]
    pub checkpoints: Option<PathBuf>,
    /// A checkpoint also after each so many steps.
    #[arg(long, value_name = "STEPS", default_value_t = 0, requires = "checkpoints")]
    pub every: u64,
    /// Goes on from the checkpoint in the folder, if there is one.
    #[arg(long, requires = "checkpoints")]
    pub resume: bool,
    /// Writes the losses as PATH.csv and PATH.svg.
    #[arg(long, value_name = "PATH")]
    pub curve: Option<PathBuf>,
    /// Where a value is not finite, names the operator that made it.
    #[arg(long)]
    pub check_numerics: bool,
    /// No progress bars.
    #[arg(long)]
    pub quiet: bool,
    /// The trained model: `.onnx`, its parameters alone as `.safetensors`, or a graph as text.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `egret estimate`.
#[derive(Args)]
pub struct EstimateArgs {
    /// The model: `.onnx`, or a graph as `egret dump` writes it.
    pub model: PathBuf,
    /// A shipped description by its name, or `all`.
    #[arg(long, default_value = "all")]
    pub device: String,
    /// The size of a symbol; 1 if not given.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = dim)]
    pub dims: Vec<(String, i64)>,
    /// How much is rewritten: none, greedy, full.
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    pub rewrite: Level,
}
