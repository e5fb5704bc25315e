//! A program as it is shipped: built, stripped, looking for libtorch beside itself only, and what it needs of a system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, run};
use crate::{oldest, programs};

/// What the program's run path begins with; `crates/torch-ext/run_path/run_path.rs` puts the builder's libtorch behind it.
const RUN_PATH: &[u8] = b"$ORIGIN/../../torch/lib";

/// Which build it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    Cpu,
    Cuda,
}

impl Variant {
    /// The program's name in the packages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "aligner-gen-cpu",
            Self::Cuda => "aligner-gen-cuda",
        }
    }
}

/// How it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Profile {
    Release,
    Dev,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }
}

/// A program that can be packed.
pub(super) struct Program {
    pub(super) variant: Variant,
    pub(super) path: PathBuf,
}

/// Builds one into `folder`; `workspace` is one that links against old libraries.
///
/// # Errors
/// When it does not build, or is not as expected.
pub(super) fn build(
    workspace: &Workspace,
    profile: Profile,
    variant: Variant,
    folder: &Path,
) -> Result<Program> {
    let mut args = vec!["--workspace", "--bin", "aligner-gen"];
    if variant == Variant::Cuda {
        args.extend(["--features", "cuda"]);
    }
    let mut built = programs::build_with(workspace, profile.name(), &args)?;
    let built = built.remove("aligner-gen").context("cargo named no executable of `aligner-gen`")?;
    let path = folder.join(variant.name());
    run(Command::new("strip").arg("--strip-all").arg("-o").arg(&path).arg(&built))?;
    let mut bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    cut_run_path(&mut bytes)?;
    fs::write(&path, &bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
    let too_new = oldest::too_new(workspace, &path)?;
    if !too_new.is_empty() {
        bail!("`{}` needs what older systems lack: {}", variant.name(), too_new.join(", "));
    }
    Ok(Program { variant, path })
}

/// Takes the builder's own folder off the run path: what lies behind the part for packages becomes zeros.
fn cut_run_path(program: &mut [u8]) -> Result<()> {
    let starts: Vec<usize> = (0..program.len().saturating_sub(RUN_PATH.len()))
        .filter(|&at| program[at..].starts_with(RUN_PATH) && program[at + RUN_PATH.len()] == b':')
        .collect();
    let [start] = starts[..] else {
        bail!("the program has {} run paths for packages, and must have one", starts.len());
    };
    let behind = start + RUN_PATH.len();
    let len = program[behind..].iter().position(|&byte| byte == 0).context("its run path does not end")?;
    program[behind..behind + len].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builders_folder_is_taken_off() {
        let mut program = b"..$ORIGIN/../../torch/lib:/home/u/.libtorch\0next".to_vec();
        cut_run_path(&mut program).unwrap();
        assert_eq!(program, b"..$ORIGIN/../../torch/lib\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0next");
        assert!(cut_run_path(&mut b"no run path".to_vec()).is_err());
    }
}
