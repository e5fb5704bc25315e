//! Debian's packages: those of this machine, and those of other releases unpacked into a folder.
//!
//! The latter come through this machine's own apt, which checks their signatures. Nothing of them is installed, and no root
//! is needed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::workspace::{Workspace, probe, run};

/// Packages of a release.
pub(crate) struct Packages {
    pub(crate) suite: &'static str,
    pub(crate) architecture: &'static str,
    pub(crate) names: &'static [&'static str],
    /// Whether those that they depend on are wanted, too.
    pub(crate) with_dependencies: bool,
}

impl Packages {
    /// Unpacks them into `folder`, which is made anew.
    ///
    /// # Errors
    /// When this machine is no Debian, or they cannot be had.
    pub(crate) fn unpack(&self, workspace: &Workspace, folder: &Path) -> Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
        }
        let apt = folder.join("apt");
        self.download(workspace, &apt)?;
        let mut num = 0;
        for place in [apt.clone(), apt.join("cache/archives")] {
            let entries =
                fs::read_dir(&place).with_context(|| format!("cannot list `{}`", place.display()))?;
            for entry in entries {
                let package = entry.with_context(|| format!("cannot list `{}`", place.display()))?.path();
                if package.extension().is_some_and(|extension| extension == "deb") {
                    finish(workspace.command("dpkg-deb").arg("--extract").arg(&package).arg(folder))?;
                    num += 1;
                }
            }
        }
        ensure!(num >= self.names.len(), "apt brought {num} packages for {}", self.names.join(", "));
        fs::remove_dir_all(&apt).context("cannot remove what apt has fetched")
    }

    /// Fetches them with an apt that has its settings, lists and cache in a folder of its own.
    fn download(&self, workspace: &Workspace, apt: &Path) -> Result<()> {
        for name in ["lists/partial", "cache/archives/partial"] {
            let place = apt.join(name);
            fs::create_dir_all(&place).with_context(|| format!("cannot create `{}`", place.display()))?;
        }
        let path = |name: &str| apt.join(name).display().to_string();
        let write = |name: &str, text: &str| {
            fs::write(apt.join(name), text).with_context(|| format!("cannot write `{}`", path(name)))
        };
        write("status", "")?;
        write("sources.list", &format!("deb {} {} main\n", site(workspace)?, self.suite))?;
        let settings = format!(
            "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"/dev/null\";\nDir::State::lists \"{}\";\n\
             Dir::State::status \"{}\";\nDir::Cache \"{}\";\nAcquire::Languages \"none\";\n\
             Acquire::Retries \"2\";\nAcquire::http::Timeout \"20\";\nAPT::Architecture \"{arch}\";\n\
             APT::Architectures {{ \"{arch}\"; }};\nAPT::Sandbox::User \"\";\n\
             APT::Install-Recommends \"false\";\nDebug::NoLocking \"true\";\n",
            path("sources.list"),
            path("lists"),
            path("status"),
            path("cache"),
            arch = self.architecture
        );
        write("apt.conf", &settings)?;
        let get = |args: &[&str]| {
            let mut command = workspace.command("apt-get");
            command.args(args).args(["-qq", "-y"]).current_dir(apt).env("APT_CONFIG", path("apt.conf"));
            finish(&mut command)
        };
        get(&["update"])?;
        let how: &[&str] =
            if self.with_dependencies { &["install", "--download-only"] } else { &["download"] };
        get(&[how, self.names].concat())
    }
}

/// Where this machine's apt has the packages of its own Debian from: those of other releases are there too.
fn site(workspace: &Workspace) -> Result<String> {
    let system = fs::read_to_string("/etc/os-release").context("cannot read `/etc/os-release`")?;
    let codename = codename(&system).ok_or_else(|| anyhow!("this machine is no Debian"))?;
    let mut targets = workspace.command("apt-get");
    targets.args(["indextargets", "--no-release-info", "--format", "$(RELEASE) $(COMPONENT) $(SITE)"]);
    let printed =
        probe(targets.arg("Created-By: Packages")).ok_or_else(|| anyhow!("this machine has no apt"))?;
    let start = format!("{codename} main ");
    let site = printed.lines().find_map(|line| line.strip_prefix(&start));
    site.map(str::to_owned)
        .ok_or_else(|| anyhow!("this machine's apt has no packages of Debian `{codename}`"))
}

/// The name of the release in the text of `/etc/os-release`.
fn codename(system: &str) -> Option<&str> {
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

/// Whether this program runs as root.
pub(crate) fn is_root() -> bool {
    probe(Command::new("id").arg("-u")).is_some_and(|id| id == "0")
}

/// Installs packages whose programs are missing, where that may be done; false when something stays away. Each package
/// comes with a program of it.
pub(crate) fn install(workspace: &Workspace, packages: &[(&str, &str)]) -> bool {
    let is_there =
        |program: &str| probe(Command::new("sh").args(["-c", &format!("command -v {program}")])).is_some();
    let missing: Vec<&str> =
        packages.iter().filter(|(_, program)| !is_there(program)).map(|(package, _)| *package).collect();
    let install = || {
        // Do not wait for minutes on an unreachable mirror.
        let impatient = ["-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20"];
        let mut install = workspace.command("apt-get");
        install.args(impatient).args(["install", "-y", "--no-install-recommends"]).args(&missing);
        // The list of packages of a fresh machine is empty.
        run(&mut install).or_else(|_| {
            run(workspace.command("apt-get").args(impatient).arg("update"))?;
            run(&mut install)
        })
    };
    missing.is_empty() || is_root() && is_there("apt-get") && install().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debian_is_known_by_its_name() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(debian), Some("bookworm"));
        assert_eq!(codename("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(codename("ID=\"debian\"\n"), None);
    }
}
