//! `cargo xtask cluster-test`: the launchers of other people, for real. A Slurm cluster of two nodes on this machine runs
//! the user guide's script and that of `docs/guide/slurm.md`; mpirun and torchrun start the same job, also with a model that
//! ranks share. Every output must be that of one rank, to the byte.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::debian;
use crate::workspace::{Workspace, probe, run, say};

mod jobs;
mod slurm;

use jobs::Job;
use slurm::Cluster;

/// Debian's packages, and a program of each.
const PACKAGES: [(&str, &str); 3] =
    [("slurm-wlm", "slurmctld"), ("munge", "munged"), ("openmpi-bin", "mpirun")];
/// Longest time for one job.
const PATIENCE: Duration = Duration::from_secs(240);

/// Which checkpoint the jobs run on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The checkpoint; by default a small one with dummy weights
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// A program that is built already
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Runs all jobs, or says what is missing.
///
/// # Errors
/// When a job fails or its output differs.
pub(crate) fn run_all(workspace: &Workspace, args: &Args) -> Result<()> {
    if !install(workspace) {
        return Ok(());
    }
    let program = match &args.program {
        Some(path) => path.canonicalize().with_context(|| format!("cannot find `{}`", path.display()))?,
        None => {
            run(workspace.cargo().args(["build", "-q", "--workspace", "--bin", "aligner-gen"]))?;
            workspace.path("target/debug/aligner-gen")
        }
    };
    let folder = tempfile::tempdir().context("cannot make a folder for the cluster")?;
    let checkpoint = match &args.checkpoint {
        Some(path) => path.canonicalize().with_context(|| format!("cannot find `{}`", path.display()))?,
        None => workspace.path("tests/fixtures/mcore_llama/llama_fp32_torch_dist.nemo"),
    };
    let job = Job::new(workspace, folder.path(), program, checkpoint)?;
    let started = Instant::now();
    let expect = job.one_rank()?;
    check("mpirun", &job, &expect, |results| job.mpirun(results))?;
    check("torchrun's variables", &job, &expect, |results| job.torchrun_variables(results))?;
    if probe(Command::new("torchrun").arg("--help")).is_some() {
        check("torchrun", &job, &expect, |results| job.torchrun(results))?;
    } else {
        say("skipped: torchrun itself (`pip install torch` brings it)");
    }
    let in_a_tree = job.one_rank_in_a_tree()?;
    check("mpirun, TP 2 x PP 2", &job, &in_a_tree, |results| job.mpirun_shared(results))?;
    let cluster = Cluster::start(workspace, folder.path())?;
    check("Slurm, TP 2 x DP 2", &job, &in_a_tree, |results| job.shared_by_nodes(&cluster, results))?;
    check("Slurm, the user guide's script", &job, &expect, |results| job.guide_script(&cluster, results))?;
    check("Slurm, scancel and the same again", &job, &expect, |results| {
        job.cancel_and_resubmit(&cluster, results)
    })?;
    check("Slurm, SIGTERM and requeue by the script", &job, &expect, |results| {
        job.requeue_itself(&cluster, results)
    })?;
    check("Slurm, requeue by the administrator", &job, &expect, |results| job.requeued(&cluster, results))?;
    say(&format!("all launchers wrote the same file, {:.0} s", started.elapsed().as_secs_f64()));
    Ok(())
}

fn check(name: &str, job: &Job, expect: &[u8], start: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let started = Instant::now();
    let results = job.folder(name);
    start(&results)
        .inspect_err(|_| [job.root(), &results].iter().for_each(|folder| show_logs(folder)))
        .with_context(|| format!("{name} failed"))?;
    let path = results.join("generations/generations.jsonl");
    let actual = std::fs::read(&path).with_context(|| format!("{name}: cannot read `{}`", path.display()))?;
    if actual != expect {
        bail!(
            "{name}: `{}` has {} bytes and differs from one rank's {}",
            path.display(),
            actual.len(),
            expect.len()
        );
    }
    say(&format!("{name}: same as one rank, {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// The last lines of every file in a folder of a job that failed.
fn show_logs(results: &Path) {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(results).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(6)..).unwrap_or_default();
        say(&format!("== {}\n{}", path.display(), last.join("\n")));
    }
}

/// Installs what is missing, where that may be done; false when something stays away.
fn install(workspace: &Workspace) -> bool {
    let has_all = debian::install(workspace, &PACKAGES) && debian::is_root();
    if !has_all {
        say(&format!(
            "skipped: a cluster on this machine needs root and Debian's packages (`apt-get install {}`)",
            PACKAGES.map(|(package, _)| package).join(" ")
        ));
    }
    has_all
}

/// Waits until `done`, at most for [`PATIENCE`].
fn wait_until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !done()? {
        if started.elapsed() > PATIENCE {
            bail!("{what}: not within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
