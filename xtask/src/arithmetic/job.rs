//! One job: run to its end, or until it has written so many lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::{Workspace, run, shell_word};

const POLL: Duration = Duration::from_millis(5);

/// A job with a log folder of its own.
pub(super) struct Job<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) program: &'a Path,
    pub(super) checkpoint: &'a Path,
    pub(super) data: &'a Path,
    pub(super) options: &'a [&'a str],
    pub(super) folder: PathBuf,
    pub(super) num_ranks: u32,
    pub(super) num_responses: u32,
    pub(super) seed: u64,
}

impl Job<'_> {
    pub(super) fn jsonl(&self) -> PathBuf {
        self.folder.join("generations/generations.jsonl")
    }

    pub(super) fn summary(&self) -> Result<Value> {
        let path = self.folder.join("summary.json");
        let text = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("`{}` is not JSON", path.display()))
    }

    pub(super) fn run_to_its_end(&self) -> Result<()> {
        run(&mut self.command()?)
    }

    /// Kills the job when it has written so many lines. Gives how many there are.
    pub(super) fn run_until(&self, num_lines: usize) -> Result<usize> {
        let mut child = self.command()?.stderr(Stdio::null()).spawn().context("cannot start aligner-gen")?;
        loop {
            let found =
                fs::read(self.jsonl()).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count();
            if found >= num_lines {
                // SIGKILL: the program notices nothing, and its ranks die with it.
                child.kill().context("cannot kill aligner-gen")?;
                child.wait().context("cannot wait for aligner-gen")?;
                return Ok(found);
            }
            if let Some(status) = child.try_wait().context("cannot wait for aligner-gen")? {
                bail!("aligner-gen ended with {status} after {found} lines, before it was killed");
            }
            std::thread::sleep(POLL);
        }
    }

    fn command(&self) -> Result<Command> {
        let checker = std::env::current_exe().context("cannot find this program's own file")?;
        let checker = checker.to_string_lossy();
        // The file may have been built anew since this program was started.
        let checker = checker.strip_suffix(" (deleted)").unwrap_or(&checker);
        let checker = format!("exec {} arithmetic-check", shell_word(checker));
        let mut command = self.workspace.command(self.program);
        command.args(self.options);
        command.arg("--quiet");
        command.args(["--on-response", &checker, "--pass-at-k"]);
        command.arg(if self.num_responses == 1 {
            "1".to_owned()
        } else {
            format!("1,{}", self.num_responses)
        });
        command.arg(format!("trainer.devices={}", self.num_ranks));
        command.arg(format!("pretrained_checkpoint.restore_from_path={}", self.checkpoint.display()));
        command.arg(format!("model.data.train_ds.file_path={}", self.data.display()));
        command.arg("++model.data.train_ds.drop_last=false");
        command.arg(format!("exp_manager.explicit_log_dir={}", self.folder.display()));
        command.arg(format!("model.generation.num_responses_to_gen={}", self.num_responses));
        command.arg("model.generation.output_fields=[index,metadata,responses_clean]");
        command.args(["model.micro_batch_size=1", "model.global_batch_size=4"]);
        command.arg(format!("model.seed={}", self.seed));
        Ok(command)
    }
}
