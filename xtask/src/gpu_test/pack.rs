//! `cargo xtask gpu-test --pack DIR`: programs and fixtures in a folder, for a machine that cannot build them.
//!
//! The manifest is written last and has the hash of every file, so a folder that was not finished or not copied whole is
//! refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::build::{self, PROGRAMS, Program};
use super::models;
use crate::setup::{self, TORCH_VERSION};
use crate::workspace::{Workspace, probe, run as run_command, say};

const MANIFEST: &str = "gpu-test.json";
/// Of the manifest and of the folder. Another number is another layout.
const FORMAT: u32 = 1;
/// What carries the folder may take no more.
const MAX_BYTES: u64 = 60_000_000;

/// The program that runs the checks there.
const RUNNER: Program = Program { name: "xtask", package: "xtask", target: "--bin" };

/// What is in the folder, and what it was made from.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Manifest {
    format: u32,
    /// The commit, with `-dirty` behind it where files were changed.
    commit: String,
    rustc: String,
    /// The version of torch that the programs need.
    pub(super) torch: String,
    /// The SHA-256 of each file.
    files: BTreeMap<String, String>,
}

/// Builds everything and fills `dir`.
///
/// # Errors
/// When something does not build, when `dir` holds something else, or when it becomes too large to be carried.
pub(super) fn make(workspace: &Workspace, dir: &Path) -> Result<()> {
    prepare(dir)?;
    if !setup::for_cuda(workspace)? {
        bail!("your own libtorch has no CUDA headers beside it: feature `cuda` cannot be built");
    }
    let built = build::for_gpu(workspace, &[RUNNER])?;
    for Program { name, .. } in PROGRAMS.iter().chain([&RUNNER]) {
        let program = built.get(*name).with_context(|| format!("`{name}` was not built"))?;
        run_command(workspace.command("strip").arg("-o").arg(dir.join(name)).arg(program))?;
    }
    for file in models::files(workspace.root())? {
        copy(&workspace.path(&file), &dir.join(&file))?;
    }
    let size_bytes = seal(dir, versions(workspace))?;
    let (dir, size_mb) = (dir.display(), size_bytes as f64 / 1e6);
    say(&format!("{size_mb:.1} MB in `{dir}`; on a machine with a GPU: `{dir}/xtask gpu-test --from {dir}`"));
    Ok(())
}

/// Makes the folder, or takes the manifest out of an earlier one, so that it is not taken for a finished one.
fn prepare(dir: &Path) -> Result<()> {
    let manifest = dir.join(MANIFEST);
    if manifest.is_file() {
        return fs::remove_file(&manifest).with_context(|| format!("cannot remove `{}`", manifest.display()));
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    let mut entries = fs::read_dir(dir).with_context(|| format!("cannot list `{}`", dir.display()))?;
    if entries.next().is_some() {
        bail!("`{}` is not empty and holds no `{MANIFEST}`: give another folder", dir.display());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
    }
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy `{}`", from.display()))
}

/// A manifest without files.
fn versions(workspace: &Workspace) -> Manifest {
    let unknown = || "unknown".to_owned();
    let git = |args: &[&str]| probe(workspace.command("git").args(args));
    let dirty = git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty());
    let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(unknown);
    Manifest {
        format: FORMAT,
        commit: if dirty { format!("{commit}-dirty") } else { commit },
        rustc: probe(Command::new("rustc").arg("--version")).unwrap_or_else(unknown),
        torch: TORCH_VERSION.to_owned(),
        files: BTreeMap::new(),
    }
}

/// Writes the manifest of what lies in `dir`; returns the bytes of all files.
fn seal(dir: &Path, mut manifest: Manifest) -> Result<u64> {
    let programs = PROGRAMS.iter().chain([&RUNNER]).map(|program| program.name.to_owned());
    let mut size_bytes = 0;
    for file in programs.chain(models::files(dir)?) {
        let bytes = read(&dir.join(&file))?;
        size_bytes += bytes.len() as u64;
        manifest.files.insert(file, hash(&bytes));
    }
    if size_bytes > MAX_BYTES {
        bail!("`{}` has {size_bytes} bytes, and {MAX_BYTES} are allowed", dir.display());
    }
    let path = dir.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest)?;
    fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(size_bytes)
}

/// Reads the manifest of a folder and compares every file with it.
///
/// # Errors
/// When the manifest or a file is missing, of another format or damaged.
pub(super) fn open(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let text =
        read(&path).context("this is no folder of `cargo xtask gpu-test --pack`, or it is not complete")?;
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("cannot read `{}`", path.display()))?;
    if manifest.format != FORMAT {
        bail!("`{}` has format {}, and this program reads {FORMAT}", path.display(), manifest.format);
    }
    for (file, expect) in &manifest.files {
        if hash(&read(&dir.join(file))?) != *expect {
            bail!("`{}` is not the file that was packed", dir.join(file).display());
        }
    }
    say(&format!("built from {} with {}", manifest.commit, manifest.rustc));
    Ok(manifest)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Puts `scripts` into `dir` as its programs, with the fixtures of the repository.
#[cfg(test)]
pub(super) fn make_of_scripts(dir: &Path, scripts: &[(&str, &str)]) {
    use std::io::Write;
    use std::process::Stdio;

    let workspace = Workspace::locate().unwrap();
    prepare(dir).unwrap();
    for Program { name, .. } in PROGRAMS.iter().chain([&RUNNER]) {
        let script = scripts.iter().find(|(of, _)| of == name).map_or("exit 1", |(_, script)| script);
        // Another process writes the file: while a test in another thread starts a program, the kernel would take a file
        // that this process writes for one that is still open, and not run it.
        let mut command = Command::new("install");
        command.args(["-m", "755", "/dev/stdin"]).arg(dir.join(name)).stdin(Stdio::piped());
        let mut install = command.spawn().unwrap();
        write!(install.stdin.take().unwrap(), "#!/bin/sh\n{script}\n").unwrap();
        assert!(install.wait().unwrap().success());
    }
    for file in models::files(workspace.root()).unwrap() {
        copy(&workspace.path(&file), &dir.join(&file)).unwrap();
    }
    seal(dir, versions(&workspace)).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_not_copied_whole_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("pack");
        make_of_scripts(&dir, &[]);
        assert_eq!(open(&dir).unwrap().torch, TORCH_VERSION);
        let checkpoint = dir.join(models::FOLDER).join(models::LLAMA.checkpoint);
        fs::write(&checkpoint, "damaged").unwrap();
        assert!(open(&dir).unwrap_err().to_string().ends_with("is not the file that was packed"));
        fs::remove_file(&checkpoint).unwrap();
        assert!(open(&dir).unwrap_err().to_string().starts_with("cannot read"));
        let manifest = fs::read_to_string(dir.join(MANIFEST)).unwrap();
        fs::write(dir.join(MANIFEST), manifest.replace("\"format\": 1", "\"format\": 7")).unwrap();
        assert!(open(&dir).unwrap_err().to_string().ends_with("has format 7, and this program reads 1"));
        fs::write(dir.join(MANIFEST), "{").unwrap();
        assert!(open(&dir).is_err());
    }

    #[test]
    fn only_a_folder_of_its_own_is_filled() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("new/pack");
        make_of_scripts(&dir, &[]);
        prepare(&dir).unwrap();
        assert!(open(&dir).is_err(), "the earlier manifest is gone");
        assert!(prepare(temp.path()).unwrap_err().to_string().contains("is not empty"));
    }
}
