//! `cargo xtask dist`: the program as a wheel, as a tar archive with libtorch, and a Containerfile, in `target/dist`.
//!
//! The wheel holds the program twice, for the CPU and for GPUs, and a front in Python that starts the right one. It needs
//! torch of the minor version that the program was built with, and finds its libraries beside itself. The tar archive has
//! libtorch in it, for machines without Python, and is for the CPU: what a GPU needs in addition is gigabytes.

mod audit;
mod check;
mod old_system;
mod program;
mod tarball;
mod wheel;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::workspace::{Workspace, say};
use crate::{oldest, setup};
use program::{Profile, Variant};

const FOLDER: &str = "target/dist";
const CONTAINERFILE: &str = "packaging/Containerfile";

/// What is made.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Installs what was made into fresh virtual environments of the Pythons at hand, and runs it
    #[arg(long)]
    check: bool,
    /// With which cargo profile the programs are built; `dev` is for trying the packaging itself
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Leaves the program for GPUs out
    #[arg(long)]
    no_cuda: bool,
    /// Leaves the tar archive out
    #[arg(long)]
    no_tarball: bool,
}

/// What there is to check.
struct Made {
    wheel: PathBuf,
    tarball: Option<PathBuf>,
}

/// Makes the packages, and tries them.
///
/// # Errors
/// When a program cannot be built or packed, or a package does not work.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    setup::report(workspace, (!args.no_cuda).then_some(setup::CudaParts::Build))?;
    let folder = workspace.path(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{FOLDER}`"))?;
    }
    let staging = folder.join("staging");
    fs::create_dir_all(&staging).with_context(|| format!("cannot create `{FOLDER}`"))?;
    let old = workspace.with_old_libraries(oldest::prepare(workspace)?);
    let mut programs = vec![program::build(&old, args.profile, Variant::Cpu, &staging)?];
    if !args.no_cuda {
        programs.push(program::build(&old, args.profile, Variant::Cuda, &staging)?);
    }
    let wheel = wheel::write(workspace, &programs, &folder)?;
    let tarball =
        if args.no_tarball { None } else { Some(tarball::write(workspace, &programs[0], &folder)?) };
    let containerfile = folder.join("Containerfile");
    fs::copy(workspace.path(CONTAINERFILE), &containerfile)
        .with_context(|| format!("cannot copy `{CONTAINERFILE}`"))?;
    fs::remove_dir_all(&staging).context("cannot remove the staging folder")?;
    for path in [Some(&wheel), tarball.as_ref(), Some(&containerfile)].into_iter().flatten() {
        let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let name = path.strip_prefix(workspace.root()).unwrap_or(path);
        say(&format!("{} ({:.1} MB)", name.display(), size as f64 / 1e6));
    }
    if args.check {
        check::run_all(workspace, &Made { wheel, tarball })?;
    }
    Ok(())
}
