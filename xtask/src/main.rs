//! The project's own tasks: `cargo xtask setup`, `demo`, `test` and the rest. Builds without libtorch.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod arithmetic;
mod arm;
mod bench;
mod browser;
mod cluster;
mod counts;
mod debian;
mod demo;
#[cfg(feature = "all-tasks")]
mod dist;
mod docs;
#[cfg(feature = "all-tasks")]
mod fixtures;
mod gpu_test;
mod oldest;
mod programs;
mod setup;
mod soak;
mod suite;
mod templates;
mod texts;
mod tidy;
mod wheels;
mod whole;
mod workspace;

use workspace::Workspace;

/// The project's own tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Brings libtorch into `.libtorch/`. A LIBTORCH of your own wins
    Setup {
        /// Adds what feature `cuda` needs: `build` to compile it and the kernels, `run` the libraries for a GPU too.
        /// Without a value: `run` where the NVIDIA driver is installed, `build` elsewhere
        #[arg(long, value_name = "PARTS", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
        cuda: Option<setup::CudaParts>,
    },
    /// Fetches a small chat model, answers real prompts with it on the CPU and shows the answers
    Demo,
    /// Checks answers of the demo's model to arithmetic questions while they are generated, kills the job on the way and
    /// compares the bytes
    Arithmetic(arithmetic::Args),
    /// What `arithmetic` checks answers with
    #[command(hide = true)]
    ArithmeticCheck,
    /// Runs set-up, all checks and all tests
    Test,
    /// Checks what the compiler does not: crate edges, module docs, sizes, paths and links in the documentation
    Tidy,
    /// Builds the book and the documentation of the crates into `target/docs`
    Docs,
    /// Renders the chat templates that well-known packages ship, and compares with transformers
    Templates,
    /// Converts a checkpoint of any readable kind to a Megatron-Core `.nemo` or a Hugging Face folder
    ConvertCheckpoint(whole::ConvertArgs),
    /// Rewrites the test checkpoints, or writes one checkpoint of a named shape with dummy weights
    Fixtures(whole::FixturesArgs),
    /// Makes the packages in `target/dist`: a wheel, a tar archive with libtorch, a Containerfile
    Dist(whole::DistArgs),
    /// Starts a Slurm cluster on this machine and runs a job under every launcher
    ClusterTest(cluster::Args),
    /// Compiles the CPU kernels for 64-bit Arm, and runs their tests under emulation
    ArmTest,
    /// Opens the page of `aligner-gen report` in a browser and uses it
    ReportTest,
    /// Runs every check that needs a GPU: kernels, engine, texts, hashes
    GpuTest(gpu_test::Args),
    /// The long tests that texts stay the same and nothing is lost
    Soak(soak::Args),
    /// Measures speed beside other programs
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    run(Cli::parse().task).unwrap_or_else(|error| {
        workspace::say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> Result<ExitCode> {
    let here = Workspace::locate;
    match task {
        Task::Setup { cuda } => setup::report(&here()?, cuda)?,
        Task::Demo => demo::run(&here()?)?,
        Task::Arithmetic(args) => arithmetic::run(&here()?, &args)?,
        Task::ArithmeticCheck => arithmetic::check(std::io::stdin().lock(), std::io::stdout().lock())?,
        Task::Test => suite::run(&here()?)?,
        Task::Tidy => tidy::run(&here()?)?,
        Task::Docs => docs::run(&here()?)?,
        Task::Templates => templates::run(&here()?)?,
        Task::ConvertCheckpoint(args) => whole::convert(&here()?, &args)?,
        Task::Fixtures(args) => whole::fixtures(&here()?, &args)?,
        Task::Dist(args) => whole::dist(&here()?, &args)?,
        Task::ArmTest => arm::run(&here()?)?,
        Task::ReportTest => browser::run(&here()?)?,
        Task::ClusterTest(args) => cluster::run_all(&here()?, &args)?,
        // Also runs where there is no repository.
        Task::GpuTest(args) => return gpu_test::run(&args),
        Task::Soak(args) => soak::run(&here()?, &args)?,
        Task::Bench(bench) => bench::run(&here()?, &bench)?,
    }
    Ok(ExitCode::SUCCESS)
}
