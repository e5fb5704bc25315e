//! `aligner-gen`: bulk generation from NeMo checkpoints.
//!
//! Nothing is decided here: arguments go to a command, and what comes back becomes an exit code.

mod bench;
mod checkpoint;
mod cli;
mod config;
mod device;
mod end_tokens;
mod env;
mod exit;
mod exp_manager;
mod follower;
mod generate;
mod host_memory;
mod inspect;
mod launch;
mod logging;
mod logits;
mod memory;
mod metrics;
mod model_type;
mod node_json;
mod nonfinite;
mod open_engine;
mod output;
mod plan;
mod progress;
mod raw;
mod records;
mod report;
mod run;
mod signals;
mod steps;
mod summary;
mod table;
mod tokenize;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let started = Instant::now();
    report::hook_panics();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return report::refuse(error),
    };
    let logging = logging::Logging::start(cli.job.log);
    let launcher = env::of_launcher(launch::spawn::LAUNCHER_VARIABLE);
    if let Err(error) = launch::spawn::follow_launcher(launcher.as_deref()) {
        report::show(&anyhow::Error::from(error).into(), &logging);
        return exit::ExitStatus::Failed.into();
    }
    match report::dispatch(&cli, &logging, started) {
        Ok(status) => status.into(),
        Err(failure) => {
            report::show(&failure, &logging);
            failure.status.into()
        }
    }
}
