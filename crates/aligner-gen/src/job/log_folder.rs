//! The start of a run in its log folder: old files make room, then the run says what it is.
//!
//! As in NeMo's `exp_manager.py`, files of earlier runs go to `run_<n>`, folders stay. NeMo moves the logs of its own job
//! too, where the guide's script puts them into this folder; here they stay. `lightning_logs.txt` is not written: there
//! is no Lightning whose messages it could hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::config::exp_manager::ExpManagerPlan;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::logging::Logging;

/// What rank 0 has to know when it begins.
pub(crate) struct Begin<'a> {
    /// Files that the run reads: they stay where they are.
    pub(crate) inputs: Vec<&'a Path>,
    pub(crate) local_rank: u32,
    pub(crate) world_size: u32,
}

/// Makes the log folder ready. Rank 0 alone does it, and holds the lock on the output folder, so that the files there are
/// nobody's any more, but for the logs that the other ranks have begun.
pub(crate) fn begin(
    plan: &ExpManagerPlan,
    logging: &Logging,
    command_line: &[String],
    begin: &Begin<'_>,
) -> Result<(), Failure> {
    let log_dir = &plan.log_dir;
    fs::create_dir_all(log_dir)
        .with_context(|| format!("cannot create `{}`", log_dir.display()))
        .exit_with(ExitStatus::Failed)?;
    let inputs = begin.inputs.iter().copied().chain(plan.files_to_copy.iter().map(PathBuf::as_path));
    let outputs = ["/proc/self/fd/1", "/proc/self/fd/2"].map(Path::new);
    let in_use = inputs.chain(outputs).filter_map(|path| path.canonicalize().ok()).collect();
    let job_id = crate::env::of_launcher("SLURM_JOB_ID");
    let own = OwnFiles { in_use, world_size: begin.world_size, job_id };
    let moved = move_old_files(log_dir, &own)?;
    for file in &plan.files_to_copy {
        copy_into(file, log_dir)?;
    }
    write(&log_dir.join("cmd-args.log"), &command_line.join(" "))?;
    if let Some(text) = git_info() {
        write(&log_dir.join("git-info.log"), &text)?;
    }
    logging
        .attach(log_dir, 0, begin.local_rank)
        .with_context(|| format!("cannot write to `{}`", log_dir.display()))
        .exit_with(ExitStatus::Failed)?;
    if let Some((num_files, folder)) = moved {
        tracing::info!("moved {num_files} files of earlier runs to `{}`", folder.display());
    }
    Ok(())
}

/// The files of this run that may be in the log folder at its start.
struct OwnFiles {
    /// What it reads, and where its outputs go.
    in_use: BTreeSet<PathBuf>,
    world_size: u32,
    /// Slurm's number of the job.
    job_id: Option<String>,
}

impl OwnFiles {
    fn contain(&self, path: &Path) -> bool {
        is_log_of_another_rank(path, self.world_size)
            || self.job_id.as_ref().is_some_and(|job_id| is_log_of_job(path, job_id))
            || path.canonicalize().is_ok_and(|path| self.in_use.contains(&path))
    }
}

/// Moves the files, not the folders, in `log_dir` to a new `run_<n>`; `n` is the number of those that are there.
fn move_old_files(log_dir: &Path, own: &OwnFiles) -> Result<Option<(usize, PathBuf)>, Failure> {
    let read = || -> std::io::Result<(Vec<PathBuf>, usize)> {
        let (mut files, mut num_runs) = (Vec::new(), 0);
        for entry in fs::read_dir(log_dir)? {
            let path = entry?.path();
            let is_run = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run_"));
            if path.is_dir() {
                num_runs += usize::from(is_run);
            } else if path.is_file() && !own.contain(&path) {
                files.push(path);
            }
        }
        Ok((files, num_runs))
    };
    let (files, num_runs) = read()
        .with_context(|| format!("cannot read `{}`", log_dir.display()))
        .exit_with(ExitStatus::Failed)?;
    if files.is_empty() {
        return Ok(None);
    }
    // The number may be taken when a folder before it was deleted.
    let mut folders = (num_runs..).map(|n| log_dir.join(format!("run_{n}")));
    let folder = folders.find(|folder| !folder.exists()).unwrap_or_else(|| log_dir.join("run"));
    fs::create_dir(&folder)
        .with_context(|| format!("cannot create `{}`", folder.display()))
        .exit_with(ExitStatus::Failed)?;
    for file in &files {
        let target = folder.join(file.file_name().unwrap_or_default());
        fs::rename(file, &target)
            .with_context(|| format!("cannot move `{}` to `{}`", file.display(), folder.display()))
            .exit_with(ExitStatus::Failed)?;
    }
    Ok(Some((files.len(), folder)))
}

/// Whether it is the log of a rank of this job other than rank 0.
fn is_log_of_another_rank(path: &Path, world_size: u32) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let rank = name
        .strip_prefix("nemo_log_globalrank-")
        .and_then(|rest| rest.split('_').next()?.parse::<u32>().ok());
    rank.is_some_and(|rank| (1..world_size).contains(&rank))
}

/// Whether the name has Slurm's number of the job in it, as `%j` of `--output` puts it there.
fn is_log_of_job(path: &Path, job_id: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(|c: char| !c.is_ascii_digit()).any(|number| number == job_id)
}

fn copy_into(file: &Path, log_dir: &Path) -> Result<(), Failure> {
    let copy = || -> anyhow::Result<()> {
        let name = file.file_name().context("it has no file name")?;
        let target = log_dir.join(name);
        // Copying a file onto itself would empty it.
        if file.canonicalize()? != target.canonicalize().unwrap_or_default() {
            fs::copy(file, &target)?;
        }
        Ok(())
    };
    copy()
        .with_context(|| {
            format!("`exp_manager.files_to_copy` names `{}`, which cannot be copied", file.display())
        })
        .exit_with(ExitStatus::Usage)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text)
        .with_context(|| format!("cannot write `{}`", path.display()))
        .exit_with(ExitStatus::Failed)
}

/// The commit and the changes of the repository that the program was started in, if it was.
fn git_info() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output();
        output.ok().filter(|output| output.status.success())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    // Without the user's own tools for showing differences, which could do anything.
    let changes = git(&["--no-pager", "diff", "--no-ext-diff", "--no-textconv"]);
    let changes = changes.map(|output| output.stdout).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(format!("commit hash: {}{}", text(&commit.stdout), text(&changes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn own(in_use: &[&Path], world_size: u32) -> OwnFiles {
        let in_use = in_use.iter().map(|path| path.canonicalize().unwrap()).collect();
        OwnFiles { in_use, world_size, job_id: None }
    }

    #[test]
    fn logs_of_the_same_slurm_job_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["rm-4711_0.out", "rm-4711_31.err", "rm-471_0.out", "rm-47110_0.out"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let own = OwnFiles { job_id: Some("4711".to_owned()), ..own(&[], 1) };
        let (_, moved) = move_old_files(folder.path(), &own).unwrap().unwrap();
        assert_eq!(names(&moved), ["rm-47110_0.out", "rm-471_0.out"]);
        assert_eq!(names(folder.path()), ["rm-4711_0.out", "rm-4711_31.err", "run_0"]);
    }

    #[test]
    fn old_files_go_to_a_folder_of_their_own_and_inputs_stay() {
        let folder = tempfile::tempdir().unwrap();
        let log_dir = folder.path();
        let data = log_dir.join("data.jsonl");
        fs::create_dir(log_dir.join("generations")).unwrap();
        for round in 0..3 {
            for name in ["data.jsonl", "cmd-args.log", "events.out.tfevents.1"] {
                fs::write(log_dir.join(name), name).unwrap();
            }
            let (num_files, moved) = move_old_files(log_dir, &own(&[&data], 1)).unwrap().unwrap();
            assert_eq!((num_files, moved), (2, log_dir.join(format!("run_{round}"))));
            assert_eq!(
                names(&log_dir.join(format!("run_{round}"))),
                ["cmd-args.log", "events.out.tfevents.1"]
            );
        }
        assert_eq!(names(log_dir), ["data.jsonl", "generations", "run_0", "run_1", "run_2"]);
        assert_eq!(move_old_files(log_dir, &own(&[&data], 1)).unwrap(), None);
        // With a folder deleted, the next free number is taken.
        fs::remove_dir_all(log_dir.join("run_0")).unwrap();
        let (_, moved) = move_old_files(log_dir, &own(&[], 1)).unwrap().unwrap();
        assert_eq!(moved, log_dir.join("run_3"));
        // Logs that other ranks of this job have begun stay; those of a larger job before it do not.
        for rank in 0..4 {
            fs::write(log_dir.join(format!("nemo_log_globalrank-{rank}_localrank-0.txt")), "").unwrap();
        }
        let (num_files, moved) = move_old_files(log_dir, &own(&[], 3)).unwrap().unwrap();
        let gone = ["nemo_log_globalrank-0_localrank-0.txt", "nemo_log_globalrank-3_localrank-0.txt"];
        assert_eq!((num_files, names(&moved)), (2, gone.map(str::to_owned).to_vec()));
    }

    #[test]
    fn files_are_copied_once() {
        let folder = tempfile::tempdir().unwrap();
        let log_dir = folder.path().join("log");
        fs::create_dir(&log_dir).unwrap();
        fs::write(folder.path().join("a.sh"), "x").unwrap();
        copy_into(&folder.path().join("a.sh"), &log_dir).unwrap();
        copy_into(&log_dir.join("a.sh"), &log_dir).unwrap();
        assert_eq!(fs::read_to_string(log_dir.join("a.sh")).unwrap(), "x");
        let message = copy_into(Path::new("/nowhere/b.sh"), &log_dir).unwrap_err().sentence();
        insta::assert_snapshot!(message, @"`exp_manager.files_to_copy` names `/nowhere/b.sh`, which cannot be copied: No such file or directory (os error 2)");
    }
}
