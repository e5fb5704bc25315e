//! The libraries of an older system, to run the program with: those of Debian 11, with glibc 2.31 and GCC 10.
//!
//! The oldest that Debian still hands out. It has what changed since 2.28: threads and `dlopen` in libraries of their own, how
//! a program starts, `stat`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::Packages;
use crate::workspace::{Workspace, say};

pub(super) const NAME: &str = "Debian 11 (glibc 2.31, GCC 10)";
const PACKAGES: Packages = Packages {
    suite: "bullseye",
    architecture: "amd64",
    names: &["libc6", "libgcc-s1", "libstdc++6"],
    with_dependencies: false,
};
const FOLDER: &str = ".tools/debian-11";
const LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// Written last.
const STAMP: &str = "complete";

/// The libraries, or `None` with a line that says why, where they cannot be had.
pub(super) fn fetch(workspace: &Workspace) -> Option<OldSystem> {
    let folder = workspace.path(FOLDER);
    if !folder.join(STAMP).is_file()
        && let Err(error) = fill(workspace, &folder)
    {
        say(&format!("skipped, not to be had: the libraries of {NAME}: {error:#}"));
        return None;
    }
    Some(OldSystem { folder })
}

/// Libraries of an older system.
pub(super) struct OldSystem {
    folder: PathBuf,
}

impl OldSystem {
    /// A program that is run with them, by their loader.
    pub(super) fn command(&self, workspace: &Workspace, program: &Path) -> Command {
        let libraries = LIBRARIES.map(|name| self.folder.join(name).display().to_string());
        let mut command = workspace.command(self.folder.join(LOADER));
        command.args(["--library-path", &libraries.join(":")]).arg(program);
        command
    }
}

fn fill(workspace: &Workspace, folder: &Path) -> Result<()> {
    PACKAGES.unpack(workspace, folder)?;
    ensure!(folder.join(LOADER).is_file(), "its packages hold no `{LOADER}`");
    fs::write(folder.join(STAMP), "").with_context(|| format!("cannot write `{FOLDER}/{STAMP}`"))
}
