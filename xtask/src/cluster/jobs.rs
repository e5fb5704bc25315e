//! The job that every launcher runs, and the ways to start it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, run};

use super::slurm::Cluster;
use super::wait_until;

/// Steps of this many prompts, which two, three and four ranks divide.
const STEP: usize = 12;
const NUM_SAMPLES: usize = 3_000;
/// Above the ports of the cluster's daemons.
const PORT: &str = "17850";

/// Sums of a single rank that have the bits of every layout.
const TREE: &str = "++model.generation.reduction=tree";
/// Two tensor-parallel ranks, and with four ranks two replicas of them.
const TENSOR: [&str; 2] = [TREE, "model.tensor_model_parallel_size=2"];
/// Two pipeline stages of two tensor-parallel ranks.
const TENSOR_AND_STAGES: [&str; 3] =
    [TREE, "model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2"];

/// Where everything is.
pub(super) struct Job {
    program: PathBuf,
    checkpoint: PathBuf,
    folder: PathBuf,
    data: PathBuf,
    guide: String,
    slurm_page: String,
}

impl Job {
    pub(super) fn new(
        workspace: &Workspace,
        folder: &Path,
        program: PathBuf,
        checkpoint: PathBuf,
    ) -> Result<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(workspace.path(path)).with_context(|| format!("cannot read `{path}`"))
        };
        let data = folder.join("data.jsonl");
        let record = |n: usize| {
            format!(
                "{{\"system\": \"\", \"mask\": \"User\", \"conversations\": [{{\"from\": \"User\", \"value\": \"Question {n}?\"}}, \
                 {{\"from\": \"Assistant\", \"value\": \"\"}}]}}\n"
            )
        };
        std::fs::write(&data, (0..NUM_SAMPLES).map(record).collect::<String>())
            .context("cannot write the prompts")?;
        Ok(Self {
            program,
            checkpoint,
            folder: folder.to_owned(),
            data,
            guide: read("docs/guide.rst")?,
            slurm_page: read("docs/guide/slurm.md")?,
        })
    }

    /// Where the scripts and their outputs lie.
    pub(super) fn root(&self) -> &Path {
        &self.folder
    }

    /// A results folder for the job of this name.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        self.folder.join(name)
    }

    /// What of the small model differs from the guides' command lines.
    fn own_settings() -> Vec<String> {
        [
            "trainer.precision=32",
            "trainer.accelerator=cpu",
            "trainer.generation.trt_llm.model_type=llama",
            "model.generation.length_params.max_length=60",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn settings(&self, results: &Path, num_nodes: usize, devices: usize) -> Vec<String> {
        let mut settings = vec![
            format!("trainer.num_nodes={num_nodes}"),
            format!("trainer.devices={devices}"),
            format!("pretrained_checkpoint.restore_from_path={}", self.checkpoint.display()),
            format!("model.data.train_ds.file_path={}", self.data.display()),
            format!("exp_manager.explicit_log_dir={}", results.display()),
            format!("model.global_batch_size={STEP}"),
            "model.generation.num_responses_to_gen=1".to_owned(),
            "trainer.generation.trt_llm.enable=true".to_owned(),
        ];
        settings.extend(Self::own_settings());
        settings
    }

    /// The file that one rank writes.
    pub(super) fn one_rank(&self) -> Result<Vec<u8>> {
        self.written_by_one_rank("one rank", &[])
    }

    /// The same for models that several ranks share.
    pub(super) fn one_rank_in_a_tree(&self) -> Result<Vec<u8>> {
        self.written_by_one_rank("one rank, tree", &[TREE])
    }

    fn written_by_one_rank(&self, name: &str, more: &[&str]) -> Result<Vec<u8>> {
        let results = self.folder(name);
        run(Command::new(&self.program).args(self.settings(&results, 1, 1)).args(more).arg("--quiet"))?;
        std::fs::read(results.join("generations/generations.jsonl")).context("one rank left no file")
    }

    /// One replica of two pipeline stages with two tensor-parallel ranks each.
    pub(super) fn mpirun_shared(&self, results: &Path) -> Result<()> {
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-np", "4"]).arg(&self.program);
        run(command.args(self.settings(results, 1, 4)).args(TENSOR_AND_STAGES).arg("--quiet"))
    }

    /// The script of `docs/guide/slurm.md` with a model that the ranks of each of two nodes share.
    pub(super) fn shared_by_nodes(&self, cluster: &Cluster, results: &Path) -> Result<()> {
        let script = self.write_script("shared", &self.page_text(results, &TENSOR)?)?;
        let job = cluster.submit(&script)?;
        cluster.wait_completed(&job)
    }

    pub(super) fn mpirun(&self, results: &Path) -> Result<()> {
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-np", "3"]).arg(&self.program);
        run(command.args(self.settings(results, 1, 3)).arg("--quiet"))
    }

    pub(super) fn torchrun(&self, results: &Path) -> Result<()> {
        let mut command = Command::new("torchrun");
        command.args(["--nproc-per-node=3", "--no-python"]).arg(&self.program);
        run(command.args(self.settings(results, 1, 3)).arg("--quiet"))
    }

    /// What torchrun sets, for two machines with two ranks each.
    pub(super) fn torchrun_variables(&self, results: &Path) -> Result<()> {
        let start = |rank: usize| {
            let mut command = Command::new(&self.program);
            command.args(self.settings(results, 2, 2)).arg("--quiet");
            command
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", "4")
                .env("LOCAL_RANK", (rank % 2).to_string());
            command.env("LOCAL_WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", PORT);
            command.spawn().with_context(|| format!("cannot start rank {rank}"))
        };
        let ranks = (0..4).map(start).collect::<Result<Vec<_>>>()?;
        for (rank, mut child) in ranks.into_iter().enumerate() {
            let status = child.wait()?;
            if !status.success() {
                bail!("rank {rank} ended with {status}");
            }
        }
        Ok(())
    }

    /// The user guide's script: containers aside, with the paths filled in, on two nodes with two tasks each.
    pub(super) fn guide_script(&self, cluster: &Cluster, results: &Path) -> Result<()> {
        let script = self.write_script("guide", &self.guide_text(results)?)?;
        let job = cluster.submit(&script)?;
        cluster.wait_completed(&job)?;
        for task in 0..4 {
            for kind in ["out", "err"] {
                let log = results.join(format!("rm-{job}_{task}.{kind}"));
                if !log.exists() {
                    bail!("there is no `{}`", log.display());
                }
            }
        }
        Ok(())
    }

    fn guide_text(&self, results: &Path) -> Result<String> {
        let lines = self.guide.lines().map(str::trim_start);
        let script: Vec<&str> =
            lines.skip_while(|line| *line != "#!/bin/bash").take_while(|line| *line != "set +x").collect();
        if script.is_empty() {
            bail!("`docs/guide.rst` has no batch script any more");
        }
        let folder = self.folder.display();
        let mut text = String::new();
        for line in script {
            let is_of_other_machines =
                ["#SBATCH -A", "#SBATCH -p", "#SBATCH -J", "#SBATCH --gpus", "#SBATCH --exclusive"];
            if is_of_other_machines.iter().any(|start| line.starts_with(start))
                || ["CONTAINER=", "MOUNTS="].iter().any(|start| line.starts_with(start))
            {
                continue;
            }
            let line = match line.split_once('=') {
                Some(("GPFS", _)) => format!("GPFS={folder}"),
                Some(("PRETRAINED_CHECKPOINT_NEMO_FILE", _)) => {
                    format!("PRETRAINED_CHECKPOINT_NEMO_FILE={}", self.checkpoint.display())
                }
                Some(("TRAIN_DATA_PATH", _)) => format!("TRAIN_DATA_PATH={}", self.data.display()),
                Some(("RESULTS_DIR", _)) => format!("RESULTS_DIR={}", results.display()),
                _ => line.to_owned(),
            };
            let line = line
                .replace("-N 4", "-N 2")
                .replace("--ntasks-per-node=8", "--ntasks-per-node=2")
                .replace("trainer.devices=8", "trainer.devices=2")
                .replace("model.global_batch_size=32", &format!("model.global_batch_size={STEP}"))
                .replace(
                    "python -u ${GPFS}/examples/nlp/gpt/run_generation.py",
                    &format!("{} {}", self.program.display(), Self::own_settings().join(" ")),
                )
                .replace("--container-image=$CONTAINER $MOUNTS", "");
            text.push_str(&line);
            text.push('\n');
        }
        Ok(with_local_address(&text))
    }

    /// The script of `docs/guide/slurm.md`.
    fn page_text(&self, results: &Path, more: &[&str]) -> Result<String> {
        let (_, rest) =
            self.slurm_page.split_once("```bash\n").context("`docs/guide/slurm.md` has no script")?;
        let (script, _) = rest.split_once("```").context("`docs/guide/slurm.md` has no end of its script")?;
        let own = [Self::own_settings().join(" "), more.join(" ")].join(" ");
        let filled_in =
            script.lines().filter(|line| !line.contains("--gpus") && !line.contains("--exclusive"));
        let lines = filled_in.map(|line| match line.split_once('=') {
            Some(("PROGRAM", _)) => format!("PROGRAM={}", self.program.display()),
            Some(("CHECKPOINT", _)) => format!("CHECKPOINT={}", self.checkpoint.display()),
            Some(("DATA", _)) => format!("DATA={}", self.data.display()),
            Some(("RESULTS", _)) => format!("RESULTS={}", results.display()),
            _ => line
                .replace("#SBATCH -N 4", "#SBATCH -N 2\n#SBATCH --overcommit")
                .replace("--ntasks-per-node=8", "--ntasks-per-node=2")
                .replace("model.global_batch_size=256", &format!("model.global_batch_size={STEP} {own}")),
        });
        Ok(with_local_address(&lines.map(|line| line + "\n").collect::<String>()))
    }

    fn submit_page(&self, cluster: &Cluster, name: &str, results: &Path) -> Result<String> {
        let script = self.write_script(name, &self.page_text(results, &[])?)?;
        cluster.submit(&script)
    }

    pub(super) fn cancel_and_resubmit(&self, cluster: &Cluster, results: &Path) -> Result<()> {
        let job = self.submit_page(cluster, "cancel", results)?;
        wait_for_steps(results)?;
        cluster.ask("scancel", &[&job])?;
        wait_until("the cancelled job", || Ok(cluster.state(&job)?.0 == "CANCELLED"))?;
        must_be_unfinished(results)?;
        let again = self.submit_page(cluster, "cancel", results)?;
        cluster.wait_completed(&again)
    }

    /// As at the time limit: SIGTERM to the tasks, and the script requeues its job.
    pub(super) fn requeue_itself(&self, cluster: &Cluster, results: &Path) -> Result<()> {
        let job = self.submit_page(cluster, "requeue", results)?;
        wait_for_steps(results)?;
        cluster.ask("scancel", &["--signal=TERM", &job])?;
        self.wait_requeued(cluster, &job, results)
    }

    pub(super) fn requeued(&self, cluster: &Cluster, results: &Path) -> Result<()> {
        let job = self.submit_page(cluster, "requeued", results)?;
        wait_for_steps(results)?;
        cluster.ask("scontrol", &["requeue", &job])?;
        self.wait_requeued(cluster, &job, results)
    }

    fn wait_requeued(&self, cluster: &Cluster, job: &str, results: &Path) -> Result<()> {
        wait_until("the requeued job", || Ok(cluster.state(job)?.0 == "PENDING"))?;
        must_be_unfinished(results)?;
        // Slurm holds a requeued job back for two minutes. What it revoked of the first run it tells from the second by
        // the second of the clock.
        std::thread::sleep(Duration::from_secs(5));
        cluster.ask("scontrol", &["update", &format!("jobid={job}"), "starttime=now"])?;
        cluster.wait_completed(job)
    }

    fn write_script(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{name}.sh"));
        std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(path)
    }
}

/// The names of the nodes are known to Slurm alone.
fn with_local_address(script: &str) -> String {
    script.replacen("\nsrun ", "\nexport MASTER_ADDR=127.0.0.1 OMP_NUM_THREADS=1\nsrun ", 1)
}

fn num_lines(results: &Path) -> usize {
    let text = std::fs::read(results.join("generations/generations.jsonl")).unwrap_or_default();
    text.iter().filter(|&&byte| byte == b'\n').count()
}

fn wait_for_steps(results: &Path) -> Result<()> {
    wait_until("the first steps", || Ok(num_lines(results) >= 2 * STEP))
}

fn must_be_unfinished(results: &Path) -> Result<()> {
    let num_done = num_lines(results);
    if num_done >= NUM_SAMPLES || !num_done.is_multiple_of(STEP) {
        bail!(
            "{num_done} of {NUM_SAMPLES} samples were saved: the job should have been stopped between two steps"
        );
    }
    Ok(())
}
