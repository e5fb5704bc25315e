//! What the checks work with: the programs, the fixtures, and where the programs find libtorch.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::build::{self, ALIGNER_GEN, PROGRAMS};
use super::{models, pack, torch};
use crate::demo;
use crate::setup::{self, CudaParts};
use crate::workspace::Workspace;

/// Where what is checked is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Device {
    /// The first GPU.
    Cuda,
    /// The CPU in the GPU's place, to try the checks themselves.
    Cpu,
}

impl Device {
    /// The value of `--device`.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        }
    }

    /// The value of `trainer.accelerator`.
    pub(super) fn accelerator(self) -> &'static str {
        match self {
            Self::Cuda => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

/// The programs and files of one run of the checks.
pub(super) struct Kit {
    pub(super) device: Device,
    programs: BTreeMap<String, PathBuf>,
    /// The folder that the paths of `models` start from.
    fixtures: PathBuf,
    /// For programs whose run path names another machine's libtorch.
    library_path: Option<OsString>,
    scratch: TempDir,
}

impl Kit {
    /// Builds the programs in the repository.
    ///
    /// # Errors
    /// When set-up or the build fails.
    pub(super) fn build(workspace: &Workspace, device: Device) -> Result<Self> {
        let programs = match device {
            Device::Cuda => {
                setup::report(workspace, Some(CudaParts::Run))?;
                build::for_gpu(workspace, &[])?
            }
            Device::Cpu => {
                setup::report(workspace, None)?;
                BTreeMap::from([(ALIGNER_GEN.to_owned(), demo::build(workspace)?)])
            }
        };
        Self::new(device, programs, workspace.path(models::FOLDER), None)
    }

    /// Takes what `cargo xtask gpu-test --pack` put into `dir`, and finds a libtorch of its version.
    ///
    /// # Errors
    /// When a file is missing or damaged, and when there is no libtorch or another one than it was built with.
    pub(super) fn open(dir: &Path, device: Device, libtorch: Option<OsString>) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("cannot open `{}`", dir.display()))?;
        let manifest = pack::open(&dir)?;
        let torch = torch::find(libtorch, &manifest.torch)?;
        let library_path = torch::library_path(&torch, std::env::var_os(torch::LIBRARY_PATH))?;
        let programs = PROGRAMS.iter().map(|program| (program.name.to_owned(), dir.join(program.name)));
        Self::new(device, programs.collect(), dir.join(models::FOLDER), Some(library_path))
    }

    fn new(
        device: Device,
        programs: BTreeMap<String, PathBuf>,
        fixtures: PathBuf,
        library_path: Option<OsString>,
    ) -> Result<Self> {
        let scratch = tempfile::tempdir().context("cannot create a working folder")?;
        Ok(Self { device, programs, fixtures, library_path, scratch })
    }

    /// A command that runs one of the programs, on the first GPU alone.
    ///
    /// # Errors
    /// When this kit has no such program.
    pub(super) fn command(&self, name: &str) -> Result<Command> {
        self.command_on(name, Gpus::First)
    }

    /// The same on some of the GPUs.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub(super) fn command_on(&self, name: &str, gpus: Gpus) -> Result<Command> {
        let Some(path) = self.programs.get(name) else { bail!("there is no `{name}` here") };
        let mut command = Command::new(path);
        if let Some(library_path) = &self.library_path {
            command.env(torch::LIBRARY_PATH, library_path);
        }
        // Several ranks must share a GPU on every machine.
        if gpus == Gpus::First {
            command.env(VISIBLE, first_gpu(std::env::var(VISIBLE).ok()));
        }
        Ok(command)
    }

    /// Whether programs may use more GPUs than one.
    pub(super) fn has_several_gpus(&self) -> bool {
        let num_gpus = std::env::var(VISIBLE).map_or_else(
            |_| std::fs::read_dir(INSTALLED).map_or(0, Iterator::count),
            |list| list.split(',').filter(|gpu| !gpu.trim().is_empty()).count(),
        );
        self.device == Device::Cuda && num_gpus > 1
    }

    pub(super) fn fixture(&self, relative: &str) -> PathBuf {
        self.fixtures.join(relative)
    }

    /// A folder for what the checks write; it goes away with the kit.
    pub(super) fn scratch(&self) -> &Path {
        self.scratch.path()
    }
}

const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// Where the driver lists the GPUs.
const INSTALLED: &str = "/proc/driver/nvidia/gpus";

/// Which GPUs a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gpus {
    /// One, which its ranks share.
    First,
    /// All that the user lets programs see.
    All,
}

/// The first of the GPUs that the user lets programs see.
fn first_gpu(visible: Option<String>) -> String {
    let first = visible.and_then(|list| Some(list.split(',').next()?.trim().to_owned()));
    first.unwrap_or_else(|| "0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_visible_gpu_is_used() {
        for (visible, expect) in
            [(None, "0"), (Some("2,3"), "2"), (Some("GPU-8, GPU-9"), "GPU-8"), (Some(""), "")]
        {
            assert_eq!(first_gpu(visible.map(str::to_owned)), expect);
        }
    }
}
