//! The cluster: munged, slurmctld and two slurmd, stopped when it is dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, probe, shell_line};

use super::wait_until;

/// Two nodes on one machine.
pub(super) struct Cluster {
    config: PathBuf,
    daemons: Vec<Child>,
}

impl Cluster {
    pub(super) fn start(workspace: &Workspace, folder: &Path) -> Result<Self> {
        let state = folder.join("slurm");
        std::fs::create_dir_all(state.join("state")).context("cannot make a folder for Slurm")?;
        let host = probe(Command::new("hostname").arg("-s")).context("cannot run `hostname`")?;
        let template = workspace.path("tools/slurm/slurm.conf");
        let text = std::fs::read_to_string(&template)
            .with_context(|| format!("cannot read `{}`", template.display()))?;
        let config = folder.join("slurm.conf");
        std::fs::write(&config, text.replace("HOST", &host).replace("STATE", &state.display().to_string()))
            .with_context(|| format!("cannot write `{}`", config.display()))?;
        let mut cluster = Self { config, daemons: Vec::new() };
        if probe(Command::new("munge").arg("-n")).is_none() {
            let folder = "mkdir -p /run/munge && chown munge /run/munge && exec runuser -u munge -- munged --foreground";
            cluster.daemon(Command::new("sh").args(["-c", folder]))?;
            wait_until("munged", || Ok(probe(Command::new("munge").arg("-n")).is_some()))?;
        }
        let config = cluster.config.clone();
        cluster.daemon(Command::new("slurmctld").args(["-D", "-c", "-f"]).arg(&config))?;
        for node in ["n1", "n2"] {
            cluster.daemon(Command::new("slurmd").args(["-D", "-N", node, "-f"]).arg(&config))?;
        }
        wait_until("two idle nodes", || {
            Ok(cluster
                .ask("sinfo", &["-h", "-N", "-o", "%t"])
                .is_ok_and(|text| text.lines().eq(["idle", "idle"])))
        })?;
        Ok(cluster)
    }

    fn daemon(&mut self, command: &mut Command) -> Result<()> {
        let line = shell_line(command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.daemons.push(child.with_context(|| format!("cannot start `{line}`"))?);
        Ok(())
    }

    /// What one of Slurm's programs says.
    pub(super) fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).env("SLURM_CONF", &self.config);
        let line = shell_line(&command);
        let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
        if !output.status.success() {
            bail!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Submits a script; returns the job's number.
    pub(super) fn submit(&self, script: &Path) -> Result<String> {
        let path = script.display().to_string();
        let output = script.with_extension("slurm").display().to_string();
        self.ask("sbatch", &["--parsable", "-o", &output, &path])
    }

    /// The state of a job, `COMPLETED` for example, and its exit code.
    pub(super) fn state(&self, job: &str) -> Result<(String, String)> {
        let text = self.ask("scontrol", &["show", "job", job])?;
        let field = |name: &str| {
            let value = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().to_owned()
        };
        Ok((field("JobState"), field("ExitCode")))
    }

    /// Waits for the end of a job, which must be a good one.
    pub(super) fn wait_completed(&self, job: &str) -> Result<()> {
        let mut last = (String::new(), String::new());
        wait_until("the end of the job", || {
            last = self.state(job)?;
            Ok(!matches!(
                last.0.as_str(),
                "PENDING"
                    | "RUNNING"
                    | "COMPLETING"
                    | "CONFIGURING"
                    | "REQUEUED"
                    | "REQUEUE_HOLD"
                    | "SUSPENDED"
            ))
        })?;
        if last.0 != "COMPLETED" {
            bail!("job {job} ended as {} with exit code {}", last.0, last.1);
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            // `sh` stands before munged, which ends with its parent's group; the others are the daemons themselves.
            let _ = Command::new("kill").arg(daemon.id().to_string()).status();
            let _ = daemon.wait();
        }
    }
}
