//! `aligner-gen`: bulk generation from NeMo checkpoints.
//!
//! Nothing is decided here: arguments go to a command, and what comes back becomes an exit code.

mod bench;
mod cluster;
mod commands;
mod config;
mod env;
mod exit;
mod job;
mod logging;
mod metrics;
mod model;
mod node_json;
mod output;
mod report;
mod signals;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use cluster::spawn;
use config::cli;

fn main() -> ExitCode {
    let started = Instant::now();
    report::hook_panics();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return report::refuse(error),
    };
    let logging = logging::Logging::start(cli.job.log);
    let launcher = env::of_launcher(spawn::LAUNCHER_VARIABLE);
    if let Err(error) = spawn::follow_launcher(launcher.as_deref()) {
        report::show(&anyhow::Error::from(error).into(), &logging);
        return exit::ExitStatus::Failed.into();
    }
    model::device::limit_threads();
    match report::dispatch(&cli, &logging, started) {
        Ok(status) => status.into(),
        Err(failure) => {
            report::show(&failure, &logging);
            match launcher.is_some() && failure.is_of_another_rank() {
                true => spawn::BY_ANOTHER_RANK.into(),
                false => failure.status.into(),
            }
        }
    }
}
