//! Whole runs of `aligner-gen` on a fixture: what they write, undisturbed or killed on the way.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::build::ALIGNER_GEN;
use super::kit::{Device, Kit};
use super::models::Model;
use super::process::{self, End, Event, Finished, Next};
use crate::texts;

/// A run takes some seconds; reading libtorch from a cold disk takes longer.
const LIMIT: Duration = Duration::from_secs(180);
/// What the log says of the device, in the line of the memory plan.
const ON_GPU: &str = "kernels on GPU ";
const ON_CPU: &str = "kernels on the CPU";

/// A file of prompts.
pub(super) struct Data {
    path: PathBuf,
    num_rows: usize,
}

impl Data {
    /// Prompts of several lengths, all short enough for the smallest fixture.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write(kit: &Kit, num_rows: usize) -> Result<Self> {
        let line = |n: usize| {
            let question = format!("Tell me {}about number {n}.", "more and more ".repeat(n % 7 * 3 / 2));
            let turns = json!([{"from": "User", "value": question}, {"from": "Assistant", "value": ""}]);
            json!({"system": "", "mask": "User", "conversations": turns}).to_string() + "\n"
        };
        let path = kit.scratch().join(format!("data{num_rows}.jsonl"));
        let lines: String = (0..num_rows).map(line).collect();
        std::fs::write(&path, lines).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(Self { path, num_rows })
    }
}

/// A run and its settings.
#[derive(Clone)]
pub(super) struct Job<'a> {
    pub(super) model: &'a Model,
    pub(super) data: &'a Data,
    pub(super) device: Device,
    pub(super) num_responses: usize,
    pub(super) settings: Vec<&'a str>,
}

impl<'a> Job<'a> {
    /// The same with more settings; later ones win.
    pub(super) fn with(&self, settings: &[&'a str]) -> Self {
        let mut job = self.clone();
        job.settings.extend(settings);
        job
    }

    /// The bytes of `generations.jsonl`.
    ///
    /// # Errors
    /// When the run fails, takes too long, leaves something out or is not on the device it is meant for.
    pub(super) fn run(&self, kit: &Kit) -> Result<Vec<u8>> {
        let out = new_folder(kit)?;
        let finished = self.start(kit, &out, &mut |_| Ok(Next::GoOn))?;
        self.output(&out, &finished)
    }

    /// The same of a run that is killed and started again up to `kills` times, each time when it has committed more.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when the run ends before it is killed at all.
    pub(super) fn run_killed(&self, kit: &Kit, kills: u32) -> Result<Vec<u8>> {
        let out = new_folder(kit)?;
        let mut num_kills = 0;
        loop {
            let before = consumed_samples(&out);
            let mut kill = |event: Event<'_>| {
                let may_kill = num_kills < kills && matches!(event, Event::Tick);
                Ok(if may_kill && consumed_samples(&out) > before { Next::Kill } else { Next::GoOn })
            };
            let finished = self.start(kit, &out, &mut kill)?;
            if finished.end == End::Killed {
                num_kills += 1;
                continue;
            }
            let jsonl = self.output(&out, &finished)?;
            if num_kills == 0 {
                bail!("ended before it could be killed");
            }
            return Ok(jsonl);
        }
    }

    fn start(
        &self,
        kit: &Kit,
        out: &Path,
        watch: &mut dyn FnMut(Event<'_>) -> Result<Next>,
    ) -> Result<Finished> {
        process::run(&mut self.command(kit, out)?, LIMIT, watch)
    }

    /// What a run has written, if it is a success and nothing is missing.
    fn output(&self, out: &Path, finished: &Finished) -> Result<Vec<u8>> {
        if let Some(problem) = finished.problem() {
            bail!("{problem}");
        }
        self.check_device(finished)?;
        let path = out.join("generations/generations.jsonl");
        let jsonl = std::fs::read(&path).context("wrote no generations.jsonl")?;
        texts::check_complete(&jsonl, self.data.num_rows, self.num_responses)?;
        Ok(jsonl)
    }

    /// A program that cannot use a GPU may go on without: equal texts would say nothing then.
    fn check_device(&self, finished: &Finished) -> Result<()> {
        let (wanted, other) = match self.device {
            Device::Cuda => (ON_GPU, ON_CPU),
            Device::Cpu => (ON_CPU, ON_GPU),
        };
        if !finished.stderr.contains(wanted) || finished.stderr.contains(other) {
            bail!("its log does not say `{wanted}`, so it was computed elsewhere");
        }
        Ok(())
    }

    fn command(&self, kit: &Kit, out: &Path) -> Result<Command> {
        let mut command = kit.command(ALIGNER_GEN)?;
        command.args(["trainer.devices=1", "trainer.num_nodes=1"]);
        command.arg(format!("trainer.accelerator={}", self.device.accelerator()));
        command.arg(format!("trainer.generation.trt_llm.model_type={}", self.model.model_type));
        let checkpoint = kit.fixture(self.model.checkpoint);
        command.arg(format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()));
        command.arg(format!("model.data.train_ds.file_path={}", self.data.path.display()));
        // The last step may be short: no variant may leave its samples out.
        command.arg("model.data.train_ds.drop_last=false");
        command.arg(format!("exp_manager.explicit_log_dir={}", out.display()));
        command
            .args(["exp_manager.create_wandb_logger=false", "model.generation.length_params.max_length=24"]);
        command.arg(format!("model.generation.num_responses_to_gen={}", self.num_responses));
        command.args(&self.settings);
        Ok(command)
    }
}

fn new_folder(kit: &Kit) -> Result<PathBuf> {
    let folder = tempfile::tempdir_in(kit.scratch()).context("cannot create a working folder")?;
    Ok(folder.keep())
}

/// Samples that a run has committed so far.
fn consumed_samples(out: &Path) -> u64 {
    let manifest = std::fs::read(out.join("generations/manifest.json")).ok();
    let manifest: Option<Value> = manifest.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    manifest.and_then(|manifest| manifest.get("consumed_samples")?.as_u64()).unwrap_or(0)
}
