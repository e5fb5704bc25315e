//! A program as it is shipped: built, stripped, looking for libtorch beside itself only, and what it needs of a system.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::programs;
use crate::workspace::{Workspace, run};

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
    /// The newest glibc that one of its symbols is from.
    pub(super) glibc: (u32, u32),
}

/// Builds one into `folder`.
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
    let glibc = newest_glibc(&path)?;
    Ok(Program { variant, path, glibc })
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

fn newest_glibc(program: &Path) -> Result<(u32, u32)> {
    let output = Command::new("readelf").args(["--version-info", "--wide"]).arg(program).output();
    let output = output.context("cannot start `readelf`, which comes with the C++ compiler's binutils")?;
    let versions = glibc_versions(&String::from_utf8_lossy(&output.stdout));
    versions.last().copied().context("the program needs no glibc, which cannot be")
}

fn glibc_versions(version_info: &str) -> BTreeSet<(u32, u32)> {
    let version = |word: &str| {
        let mut numbers = word.strip_prefix("GLIBC_")?.split('.').map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    version_info.split_whitespace().filter_map(version).collect()
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

    #[test]
    fn versions_of_glibc_are_compared_as_numbers() {
        let text = "0x0010:   Name: GLIBC_2.9  Flags: none\n 0x0020: Name: GLIBC_2.34 \nName: GLIBC_2.2.5 GLIBCXX_3.4";
        assert_eq!(glibc_versions(text).last(), Some(&(2, 34)));
    }
}
