//! `cargo xtask bench`: speed compared with other programs on the same machine, in the same run.

use anyhow::Result;

use crate::whole;
use crate::workspace::Workspace;

#[cfg(feature = "all-tasks")]
pub(crate) mod convert;
mod cpu;
mod table;

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Bench {
    /// The demo's model on the CPU, compared with transformers and llama.cpp where pip can install them
    Cpu(cpu::Args),
    /// Conversion of a large checkpoint, compared with a plain copy of the same bytes, with its peak memory
    Convert(whole::BenchConvertArgs),
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
        Bench::Convert(args) => whole::bench_convert(workspace, args),
        Bench::Ranks => {
            let program = crate::demo::build(workspace)?;
            crate::workspace::run(workspace.command(&program).arg("bench-queue"))
        }
    }
}
