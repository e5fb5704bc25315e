//! The libraries of an older system, to run the program with: those of Debian 11, with glibc 2.31 and GCC 10.
//!
//! The oldest that Debian still hands out. It has what changed since 2.28: threads and `dlopen` in libraries of their own, how
//! a program starts, `stat`. Its packages come through this machine's own apt, which checks their signatures; nothing of
//! them is installed, and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::workspace::{Workspace, probe, say};

pub(super) const NAME: &str = "Debian 11 (glibc 2.31, GCC 10)";
const SUITE: &str = "bullseye";
const PACKAGES: [&str; 3] = ["libc6", "libgcc-s1", "libstdc++6"];
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
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove `{FOLDER}`"))?;
    }
    let apt = folder.join("apt");
    for name in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(name)).with_context(|| format!("cannot create `{FOLDER}`"))?;
    }
    let site = site(workspace)?;
    let path = |name: &str| apt.join(name).display().to_string();
    let write = |name: &str, text: &str| {
        fs::write(apt.join(name), text).with_context(|| format!("cannot write `{FOLDER}/apt/{name}`"))
    };
    write("status", "")?;
    write("sources.list", &format!("deb {site} {SUITE} main\n"))?;
    let settings = format!(
        "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"/dev/null\";\nDir::State::lists \"{}\";\n\
         Dir::State::status \"{}\";\nDir::Cache \"{}\";\nAcquire::Languages \"none\";\n\
         Acquire::Retries \"2\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
         APT::Sandbox::User \"\";\n",
        path("sources.list"),
        path("lists"),
        path("status"),
        path("cache")
    );
    write("apt.conf", &settings)?;
    let get = |args: &[&str]| {
        let mut command = workspace.command("apt-get");
        command.arg("-qq").args(args).current_dir(&apt).env("APT_CONFIG", path("apt.conf"));
        finish(&mut command)
    };
    get(&["update"])?;
    get(&[&["download"][..], &PACKAGES].concat())?;
    for entry in fs::read_dir(&apt).with_context(|| format!("cannot list `{FOLDER}/apt`"))? {
        let package = entry.with_context(|| format!("cannot list `{FOLDER}/apt`"))?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            finish(workspace.command("dpkg-deb").arg("--extract").arg(&package).arg(folder))?;
        }
    }
    if !folder.join(LOADER).is_file() {
        bail!("its packages hold no `{LOADER}`");
    }
    fs::remove_dir_all(&apt).context("cannot remove what apt has fetched")?;
    fs::write(folder.join(STAMP), "").with_context(|| format!("cannot write `{FOLDER}/{STAMP}`"))
}

/// Where this machine's apt has the packages of its own Debian from: older ones are there too.
fn site(workspace: &Workspace) -> Result<String> {
    let system = fs::read_to_string("/etc/os-release").context("cannot read `/etc/os-release`")?;
    let codename = debian_codename(&system).ok_or_else(|| anyhow!("this machine is no Debian"))?;
    let mut targets = workspace.command("apt-get");
    targets.args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(RELEASE) $(COMPONENT) $(SITE)",
        "Created-By: Packages",
    ]);
    let printed = probe(&mut targets).ok_or_else(|| anyhow!("this machine has no apt"))?;
    let start = format!("{codename} main ");
    let site = printed.lines().find_map(|line| line.strip_prefix(&start));
    site.map(str::to_owned)
        .ok_or_else(|| anyhow!("this machine's apt has no packages of Debian `{codename}`"))
}

/// The name of the release in the text of `/etc/os-release`.
fn debian_codename(system: &str) -> Option<&str> {
    let value = |key: &str| system.lines().find_map(|line| Some(line.strip_prefix(key)?.trim_matches('"')));
    (value("ID=")? == "debian").then(|| value("VERSION_CODENAME=")).flatten()
}

/// Runs it; what it says on its way is shown only where it fails.
fn finish(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start `{name}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed: {}", stderr.lines().next().unwrap_or("it does not say why"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debian_is_known_by_its_name() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(debian_codename(debian), Some("bookworm"));
        assert_eq!(debian_codename("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(debian_codename("ID=\"debian\"\n"), None);
    }
}
