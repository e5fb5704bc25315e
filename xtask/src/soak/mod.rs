//! `cargo xtask soak`: the long tests of the guarantees in `docs/GUARANTEES.md`, on the demo's model and on a random GPT.
//!
//! `cargo xtask test` has short versions of them. Here the release build runs, and a table is printed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::demo;
use crate::workspace::Workspace;

mod layouts;
mod memory;
mod sameness;
mod stop;

const RANDOM_GPT: &str = "tests/fixtures/dummy/tiny-gpt.nemo";

/// Choices of the soak test.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs these parts only
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Kills of each run that is killed and resumed
    #[arg(long, default_value_t = 20)]
    kills: u64,
    /// Prompts of the run whose memory is watched
    #[arg(long, default_value_t = 100_000)]
    prompts: u64,
    /// Skips the demo's model, which takes long on a slow machine
    #[arg(long)]
    no_demo: bool,
    /// Runs this program in place of a release build of the workspace
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// A part of the soak test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One hash for any batch, backend, number of responses and ranks, and after kills
    Same,
    /// One hash for every layout of ranks, and for runs that go on with another layout after kills
    Layouts,
    /// How long the program takes to stop under load
    Stop,
    /// Memory over many short prompts
    Memory,
}

/// A model and the arguments of its runs.
struct Model {
    name: &'static str,
    arguments: Vec<String>,
    /// How many tensor-parallel ranks may share it.
    tensor_sizes: &'static [u32],
}

/// Runs the parts and prints their tables.
///
/// # Errors
/// When a run fails, or a promise does not hold.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    crate::setup::report(workspace, None)?;
    let program = match &args.program {
        Some(program) => {
            std::path::absolute(program).with_context(|| format!("cannot find `{}`", program.display()))?
        }
        None => demo::build(workspace)?,
    };
    let is_wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut models = vec![random_gpt(workspace)];
    if !args.no_demo {
        models.push(demo_model(workspace, &program)?);
    }
    let mut broken = Vec::new();
    for model in &models {
        let runner = Runner::new(workspace, &program, model)?;
        if is_wanted(Part::Same) {
            broken.extend(sameness::run(&runner, args.kills)?);
        }
        if is_wanted(Part::Layouts) {
            broken.extend(layouts::run(&runner, args.kills)?);
        }
        if is_wanted(Part::Stop) {
            broken.extend(stop::run(&runner)?);
        }
    }
    if is_wanted(Part::Memory) {
        broken.extend(memory::run(&Runner::new(workspace, &program, &models[0])?, args.prompts)?);
    }
    if !broken.is_empty() {
        bail!("broken: {}", broken.join("; "));
    }
    Ok(())
}

fn random_gpt(workspace: &Workspace) -> Model {
    let checkpoint = workspace.path(RANDOM_GPT);
    let mut arguments: Vec<String> =
        ["trainer.devices=1", "trainer.num_nodes=1", "trainer.accelerator=cpu"].map(str::to_owned).into();
    arguments.push(format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()));
    Model { name: "random GPT", arguments, tensor_sizes: &[1, 2, 4] }
}

fn demo_model(workspace: &Workspace, program: &Path) -> Result<Model> {
    let model = demo::prepare_model(workspace, program)?;
    let folder = workspace.path("configs/demo");
    let arguments = vec![
        "--config-path".to_owned(),
        folder.display().to_string(),
        "--config-name".to_owned(),
        "smollm2".to_owned(),
        format!("pretrained_checkpoint.restore_from_path={}", model.checkpoint.display()),
    ];
    // It has nine heads.
    Ok(Model { name: "SmolLM2-135M", arguments, tensor_sizes: &[1] })
}

/// Runs the program on one model, in a temporary folder.
struct Runner<'a> {
    workspace: &'a Workspace,
    program: &'a Path,
    model: &'a Model,
    folder: tempfile::TempDir,
}

impl<'a> Runner<'a> {
    fn new(workspace: &'a Workspace, program: &'a Path, model: &'a Model) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a working folder")?;
        Ok(Self { workspace, program, model, folder })
    }

    /// Puts a data file into the folder.
    fn write_data(&self, lines: &str) -> Result<()> {
        let path = self.folder.path().join("data.jsonl");
        std::fs::write(&path, lines).with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// The command of a run with its results in the folder `name`; later arguments win.
    fn command(&self, name: &str, overrides: &[&str]) -> Command {
        let mut command = self.workspace.command(self.program);
        command.args(&self.model.arguments);
        command.arg(format!(
            "model.data.train_ds.file_path={}",
            self.folder.path().join("data.jsonl").display()
        ));
        command.arg(format!("exp_manager.explicit_log_dir={}", self.folder.path().join(name).display()));
        command.args(overrides).arg("--quiet").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn start(&self, name: &str, overrides: &[&str]) -> Result<Child> {
        self.command(name, overrides).spawn().context("cannot start the program")
    }

    /// A whole run: the bytes of its output.
    fn output(&self, name: &str, overrides: &[&str]) -> Result<Vec<u8>> {
        crate::workspace::run(&mut self.command(name, overrides))?;
        let path = self.jsonl(name);
        std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))
    }

    fn jsonl(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("generations/generations.jsonl")
    }

    /// Samples that the run has committed so far.
    fn consumed_samples(&self, name: &str) -> u64 {
        let path = self.folder.path().join(name).join("generations/manifest.json");
        let manifest: Option<Value> =
            std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        manifest.and_then(|manifest| manifest.get("consumed_samples")?.as_u64()).unwrap_or(0)
    }
}

/// A chat record that asks `question`.
fn record(question: &str) -> String {
    let conversations = serde_json::json!([
        {"from": "user", "value": question},
        {"from": "assistant", "value": ""},
    ]);
    serde_json::json!({"system": "", "mask": "user", "conversations": conversations}).to_string() + "\n"
}
