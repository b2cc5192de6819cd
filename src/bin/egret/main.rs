//! The `egret` command: runs, verifies, shows, explains and measures models.

mod args;
mod batch;
mod bench;
mod cache;
#[cfg(feature = "sim")]
mod check;
mod compile;
mod dump;
mod estimate;
mod explain;
mod export;
mod failure;
mod hwbench;
mod model;
mod ops;
mod roofline;
mod rules;
mod run;
mod sample;
mod saved;
mod tensors;
mod trace;
mod train;
mod train_data;
mod tuning;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    // what reads our output may close it: `egret … | head` ends, and is no panic
    #[cfg(unix)]
    // SAFETY: no other thread runs yet, and the default action is no code of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    let cli = Cli::parse();
    let json = cli.json;
    let result = match &cli.command {
        Command::Run(args) => run::run(args, json),
        Command::Dump(args) => dump::dump(args),
        Command::Verify(args) => verify::verify(args, json),
        Command::Ops => {
            ops::ops(json);
            Ok(())
        }
        Command::Explain(args) => explain::explain(args, json),
        Command::Rules(args) => rules::rules(args, json),
        Command::Bench(args) => bench::bench(args, json),
        Command::Hwbench(args) => hwbench::hwbench(args, json),
        Command::Train(args) => train::train(args, json),
        Command::Compile(args) => compile::compile(args, json),
        Command::Export(args) => export::export(args, json),
        Command::Estimate(args) => estimate::run(args, json),
        Command::Cache(args) => cache::cache(args, json),
        #[cfg(feature = "sim")]
        Command::CheckKernels(args) => check::check(args, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}
