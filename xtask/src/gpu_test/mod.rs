//! `cargo xtask gpu-test`: every check of kernels, engine, texts and hashes that needs a GPU.
//!
//! The checks run whole programs, so that the same ones run in the repository and, with `--pack` and `--from`, on a machine
//! that has a GPU and a torch but neither cargo nor the repository. A line for each result, the counts at the end.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::counts::Counts;
use crate::setup;
use crate::workspace::{Workspace, say};

mod build;
mod cuts;
mod hashes;
mod job;
mod kit;
mod logits;
mod models;
mod pack;
mod part;
mod process;
mod report;
mod scores;
mod texts;
mod torch;

use build::{CUDA_SMOKE, FAMILY_CHECK, GPU_CHECK};
use kit::{Device, Kit};
use process::{End, Event, Next};
use report::Report;

/// As `aligner-gen` and the programs that try the GPU end when there is none.
const NO_DEVICE: u8 = 5;
/// For a program of many cases; NVRTC compiles its kernels first.
const PART_LIMIT: Duration = Duration::from_secs(400);
const PROBE_LIMIT: Duration = Duration::from_secs(120);

/// Choices of the GPU test.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs these checks only
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Shows the checks and stops
    #[arg(long)]
    list: bool,
    /// Builds everything into this folder, to be carried to a machine with a GPU, and stops
    #[arg(long, value_name = "DIR", conflicts_with_all = ["from", "only"])]
    pack: Option<PathBuf>,
    /// Takes programs and fixtures from a folder of `--pack`. Libtorch is LIBTORCH's, or that of python3's torch
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// `cpu` puts the CPU in the GPU's place, to try the checks themselves; what only a GPU can do is skipped
    #[arg(long, value_enum, default_value = "cuda")]
    device: Device,
}

/// A check: a name for `--only`, and what it does.
struct Check {
    name: &'static str,
    what: &'static str,
    needs_gpu: bool,
    run: fn(&Kit, &mut Report<'_>) -> Result<()>,
}

const CHECKS: &[Check] = &[
    Check {
        name: CUDA_SMOKE,
        what: "every entry of the CUDA runtime",
        needs_gpu: true,
        run: |kit, report| part::run(report, CUDA_SMOKE, &mut kit.command(CUDA_SMOKE)?, PART_LIMIT),
    },
    Check {
        name: GPU_CHECK,
        what: "every kernel against a slow reference",
        needs_gpu: true,
        run: |kit, report| part::run(report, GPU_CHECK, &mut kit.command(GPU_CHECK)?, PART_LIMIT),
    },
    Check {
        name: "logits",
        what: "logits of the fixtures against the original software's",
        needs_gpu: false,
        run: logits::all,
    },
    Check {
        name: "families",
        what: "every family of models, with made-up weights: logits and texts are the CPU's, one text for any batch",
        needs_gpu: true,
        run: |kit, report| {
            let mut command = kit.command(FAMILY_CHECK)?;
            part::run(report, "families", command.arg(kit.fixture(models::FAMILIES)), PART_LIMIT)
        },
    },
    Check {
        name: "cuts",
        what: "prompts in parts are bitwise identical to whole ones; 24 GB of GPU memory",
        needs_gpu: false,
        run: cuts::check,
    },
    Check {
        name: "text-fp32",
        what: "whole runs: the texts of the GPU are those of the CPU",
        needs_gpu: false,
        run: texts::against_cpu,
    },
    Check {
        name: "text-bf16",
        what: "whole runs: one text for any batch, number of responses and ranks, and after kills",
        needs_gpu: false,
        run: texts::invariance,
    },
    Check {
        name: "text-fp8",
        what: "whole runs: weights stored in FP8 have the texts of those made while loading, one for any batch",
        needs_gpu: false,
        run: texts::fp8,
    },
    Check {
        name: "score",
        what: "scores of what was generated have the bits of generation; those of transformers",
        needs_gpu: false,
        run: scores::check,
    },
    Check {
        name: "bench-tiny",
        what: "hashes of the benchmark, a small shape",
        needs_gpu: false,
        run: |kit, report| hashes::check(kit, report, "tiny"),
    },
    Check {
        name: "bench-tiny-moe",
        what: "the same, with experts",
        needs_gpu: false,
        run: |kit, report| hashes::check(kit, report, "tiny-moe"),
    },
    Check {
        name: "ranks-tiny",
        what: "tensor-parallel ranks and pipeline stages: the hashes of one rank, a small shape",
        needs_gpu: false,
        run: |kit, report| hashes::check_ranks(kit, report, "tiny"),
    },
    Check {
        name: "ranks-tiny-moe",
        what: "the same, with experts whose widths ranks share",
        needs_gpu: false,
        run: |kit, report| hashes::check_ranks(kit, report, "tiny-moe"),
    },
    Check {
        name: "bench-gpt-2b",
        what: "the same, GPT-2B-001; 8 GB of GPU memory",
        needs_gpu: true,
        run: |kit, report| hashes::check(kit, report, "gpt-2b"),
    },
    Check {
        name: "bench-llama2-7b",
        what: "the same, Llama 2 7B; 24 GB of GPU memory",
        needs_gpu: true,
        run: |kit, report| hashes::check(kit, report, "llama2-7b"),
    },
];

/// Runs the checks. The exit code is 0 when all passed, 1 when one failed and 5 when there is no GPU.
///
/// # Errors
/// When the programs cannot be built, packed or found.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        let mut out = std::io::stdout();
        CHECKS.iter().try_for_each(|check| writeln!(out, "{:<16} {}", check.name, check.what))?;
        return Ok(ExitCode::SUCCESS);
    }
    let checks = chosen(&args.only, args.device)?;
    if let Some(dir) = &args.pack {
        pack::make(&Workspace::locate()?, dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    let kit = match &args.from {
        Some(dir) => Kit::open(dir, args.device, std::env::var_os("LIBTORCH"))?,
        None if args.device == Device::Cuda && !setup::has_driver() => {
            return Ok(no_gpu(
                "no NVIDIA driver is loaded here; `--pack DIR` makes a folder to carry to a machine with one",
            ));
        }
        None => Kit::build(&Workspace::locate()?, args.device)?,
    };
    match perform(&kit, &checks, &mut std::io::stdout())? {
        Ending::NoGpu(reason) => Ok(no_gpu(&reason)),
        Ending::Checked(counts) if counts.failed == 0 => Ok(ExitCode::SUCCESS),
        Ending::Checked(_) => Ok(ExitCode::FAILURE),
    }
}

fn no_gpu(reason: &str) -> ExitCode {
    say(&format!("error: this needs a GPU: {reason}"));
    ExitCode::from(NO_DEVICE)
}

/// The checks that were named, or all; in their own order.
fn chosen(only: &[String], device: Device) -> Result<Vec<&'static Check>> {
    if let Some(unknown) = only.iter().find(|name| !CHECKS.iter().any(|check| check.name == name.as_str())) {
        let known: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        bail!("no check is called `{unknown}`; there are {}", known.join(", "));
    }
    let is_wanted = |check: &&Check| only.is_empty() || only.iter().any(|name| name == check.name);
    let (possible, skipped): (Vec<_>, Vec<_>) =
        CHECKS.iter().filter(is_wanted).partition(|check| device == Device::Cuda || !check.needs_gpu);
    for check in skipped {
        say(&format!("skipped, it needs a GPU: {}", check.name));
    }
    Ok(possible)
}

#[derive(Debug, PartialEq, Eq)]
enum Ending {
    NoGpu(String),
    Checked(Counts),
}

fn perform(kit: &Kit, checks: &[&Check], out: &mut dyn Write) -> Result<Ending> {
    let mut report = Report::new(out);
    if kit.device == Device::Cuda {
        match probe(kit)? {
            Probe::Answered => {}
            Probe::NoGpu(reason) => return Ok(Ending::NoGpu(reason)),
            Probe::Silent(problem) => {
                report.record("all checks, before the first", &Err(problem))?;
                return report.finish().map(Ending::Checked);
            }
        }
    }
    for check in checks {
        if let Err(error) = (check.run)(kit, &mut report) {
            report.record(check.name, &Err(format!("{error:#}")))?;
        }
    }
    report.finish().map(Ending::Checked)
}

/// What a first look at the GPU gave.
enum Probe {
    /// The program runs; whatever else is wrong is left to the checks.
    Answered,
    NoGpu(String),
    /// The program does not even start, for want of a library for example, and no other would.
    Silent(String),
}

fn probe(kit: &Kit) -> Result<Probe> {
    let mut last_line = String::new();
    let mut keep = |event: Event<'_>| {
        if let Event::Line(line) = event {
            line.clone_into(&mut last_line);
        }
        Ok(Next::GoOn)
    };
    let probe = process::run(kit.command(CUDA_SMOKE)?.arg("device"), PROBE_LIMIT, &mut keep)?;
    Ok(match probe.problem() {
        Some(_) if probe.end == End::Exited(i32::from(NO_DEVICE)) => {
            Probe::NoGpu(process::last_words(&last_line))
        }
        Some(problem) if last_line.is_empty() => Probe::Silent(format!("{CUDA_SMOKE} {problem}")),
        _ => Probe::Answered,
    })
}

#[cfg(test)]
mod tests;
