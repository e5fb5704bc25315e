//! Conversion of a dummy checkpoint of some gigabytes, compared with a plain copy of the same bytes on the same disk.
//!
//! Both end with the bytes on disk (fsync). Each conversion is a process of its own, whose anonymous memory is what it
//! needs beyond the page cache. Files are removed as soon as they are measured.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use model_spec::NamedShape;

use crate::fixtures::{shape_parser, write_dummy};
use crate::workspace::{Workspace, say};

/// Peaks shorter than this can be missed.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Choices of the conversion benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The checkpoint's shape: a Llama, which a Hugging Face folder can hold
    #[arg(long, default_value = "sheared-llama-2.7b", value_parser = shape_parser())]
    shape: NamedShape,
    /// Where to put the files: needs four times the checkpoint's size
    #[arg(long, value_name = "DIR", default_value = ".bench")]
    work_dir: PathBuf,
    /// How often each is measured; the fastest counts
    #[arg(long, default_value_t = 2)]
    rounds: u32,
}

/// A conversion and what it needs.
struct Direction {
    name: &'static str,
    options: &'static [&'static str],
    output: &'static str,
}

const EXPORT: Direction =
    Direction { name: ".nemo to Hugging Face", options: &["--to", "hf"], output: "exported" };
const IMPORT: Direction = Direction { name: "Hugging Face to .nemo", options: &[], output: "imported.nemo" };
const REWRITE: Direction = Direction { name: ".nemo to .nemo", options: &[], output: "rewritten.nemo" };

/// Measures, and prints a line for each direction.
///
/// # Errors
/// When a file cannot be written or a conversion fails.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let parent = workspace.path(&args.work_dir);
    fs::create_dir_all(&parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
    let folder = tempfile::tempdir_in(&parent).context("cannot create a working folder")?;
    let nemo = folder.path().join("dummy.nemo");
    say(&format!("making a checkpoint of the shape {}", args.shape.name()));
    write_dummy(workspace, args.shape, None, &nemo)?;
    measure(&REWRITE, &nemo, args.rounds)?;
    measure(&EXPORT, &nemo, args.rounds)?;
    let exported = folder.path().join("hf");
    convert(&EXPORT, &nemo, &exported)?;
    remove(&nemo)?;
    measure(&IMPORT, &exported, args.rounds)
}

/// Alternates copies and conversions, so that both find the disk in the same state.
fn measure(direction: &Direction, input: &Path, rounds: u32) -> Result<()> {
    let folder = input.parent().unwrap_or(Path::new("."));
    let (copied, output) = (folder.join("copy"), folder.join(direction.output));
    let (mut copy_s, mut convert_s, mut peak_bytes) = (f64::INFINITY, f64::INFINITY, 0);
    let size_bytes = total_bytes(input)?;
    for _ in 0..rounds.max(1) {
        let start = Instant::now();
        copy(input, &copied)?;
        copy_s = copy_s.min(start.elapsed().as_secs_f64());
        remove(&copied)?;
        let start = Instant::now();
        peak_bytes = peak_bytes.max(convert(direction, input, &output)?);
        convert_s = convert_s.min(start.elapsed().as_secs_f64());
        remove(&output)?;
    }
    let speed = |elapsed_s: f64| size_bytes as f64 / 1e6 / elapsed_s;
    say(&format!(
        "{}: {:.2} GB, plain copy {copy_s:.1} s ({:.0} MB/s), conversion {convert_s:.1} s ({:.0} MB/s), ratio {:.2}, peak \
         {:.0} MB of anonymous memory",
        direction.name,
        size_bytes as f64 / 1e9,
        speed(copy_s),
        speed(convert_s),
        copy_s / convert_s,
        peak_bytes as f64 / 1e6,
    ));
    Ok(())
}

/// Runs this program's own conversion; the result is its peak of anonymous memory.
fn convert(direction: &Direction, input: &Path, output: &Path) -> Result<u64> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.arg("convert-checkpoint").arg("--input").arg(input).arg("--output").arg(output);
    let mut child = command
        .args(direction.options)
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start the conversion")?;
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak_bytes = 0;
    loop {
        peak_bytes = peak_bytes.max(anonymous_bytes(&status_file));
        if let Some(status) = child.try_wait().context("cannot wait for the conversion")? {
            if !status.success() {
                bail!("the conversion of `{}` failed with {status}", input.display());
            }
            return Ok(peak_bytes);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// `RssAnon` of a process, 0 once it has ended.
fn anonymous_bytes(status_file: &str) -> u64 {
    let status = fs::read_to_string(status_file).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// The files of a checkpoint: itself, or what lies in its folder.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn total_bytes(path: &Path) -> Result<u64> {
    files(path)?.iter().map(|file| Ok(fs::metadata(file)?.len())).sum()
}

fn copy(input: &Path, output: &Path) -> Result<()> {
    fs::create_dir(output).with_context(|| format!("cannot create `{}`", output.display()))?;
    for file in files(input)? {
        let target = output.join(file.file_name().unwrap_or_default());
        fs::copy(&file, &target).with_context(|| format!("cannot copy `{}`", file.display()))?;
        File::open(&target)?.sync_all()?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("cannot remove `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_this_process_is_found() {
        assert!(anonymous_bytes("/proc/self/status") > 100_000);
        assert_eq!(anonymous_bytes("/proc/none/status"), 0);
    }
}
