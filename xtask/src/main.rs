//! The project's own tasks: `cargo xtask setup`, `demo`, `test` and the rest. Builds without libtorch.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod cluster;
mod convert_checkpoint;
mod demo;
mod docs;
mod fixtures;
mod setup;
mod soak;
mod suite;
mod templates;
mod tidy;
mod wheels;
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
    /// Runs set-up, all checks and all tests
    Test,
    /// Checks what the compiler does not: crate edges, module docs, sizes, paths and links in the documentation
    Tidy,
    /// Builds the book and the documentation of the crates into `target/docs`
    Docs,
    /// Renders the chat templates that well-known packages ship, and compares with transformers
    Templates,
    /// Converts a checkpoint of any readable kind to a Megatron-Core `.nemo` or a Hugging Face folder
    ConvertCheckpoint(convert_checkpoint::ConvertCheckpointArgs),
    /// Makes the test checkpoints anew, or one checkpoint of a named shape with dummy weights
    Fixtures(fixtures::Args),
    /// Starts a Slurm cluster on this machine and runs a job under every launcher
    ClusterTest(cluster::Args),
    /// The long tests that texts stay the same and nothing is lost
    Soak(soak::Args),
    /// Measures speed beside other programs
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Workspace::locate().and_then(|workspace| match cli.task {
        Task::Setup { cuda } => setup::report(&workspace, cuda),
        Task::Demo => demo::run(&workspace),
        Task::Test => suite::run(&workspace),
        Task::Tidy => tidy::run(&workspace),
        Task::Docs => docs::run(&workspace),
        Task::Templates => templates::run(&workspace),
        Task::ConvertCheckpoint(args) => convert_checkpoint::run(&args),
        Task::Fixtures(args) => fixtures::run(&workspace, &args),
        Task::ClusterTest(args) => cluster::run_all(&workspace, &args),
        Task::Soak(args) => soak::run(&workspace, &args),
        Task::Bench(bench) => bench::run(&workspace, &bench),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            workspace::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
