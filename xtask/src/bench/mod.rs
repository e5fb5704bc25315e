//! `cargo xtask bench`: speed compared with other programs on the same machine, in the same run.

use anyhow::Result;

#[cfg(not(feature = "all-tasks"))]
use crate::whole::{self, HandedOn as ConvertArgs};
use crate::workspace::Workspace;
#[cfg(feature = "all-tasks")]
use convert::Args as ConvertArgs;

#[cfg(feature = "all-tasks")]
mod convert;
mod cpu;
mod table;

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Bench {
    /// The demo's model on the CPU, compared with transformers and llama.cpp where pip can install them
    Cpu(cpu::Args),
    /// Conversion of a large checkpoint, compared with a plain copy of the same bytes, with its peak memory
    Convert(ConvertArgs),
    /// The queue of samples without a model: simulated jobs compared with the ideal and the original's static slices, and a real store
    Ranks,
}

/// Runs a benchmark.
///
/// # Errors
/// When the program's own figures cannot be had. A missing peer is only reported.
pub(crate) fn run(workspace: &Workspace, bench: &Bench) -> Result<()> {
    match bench {
        Bench::Cpu(args) => cpu::run(workspace, args),
        Bench::Convert(args) => bench_convert(workspace, args),
        Bench::Ranks => {
            let program = crate::demo::build(workspace)?;
            crate::workspace::run(workspace.command(&program).arg("bench-queue"))
        }
    }
}

#[cfg(feature = "all-tasks")]
fn bench_convert(workspace: &Workspace, args: &ConvertArgs) -> Result<()> {
    convert::run(workspace, args)
}

#[cfg(not(feature = "all-tasks"))]
fn bench_convert(workspace: &Workspace, args: &ConvertArgs) -> Result<()> {
    whole::hand_on(workspace, &["bench", "convert"], args)
}
