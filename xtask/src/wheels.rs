//! Unpacks pinned wheels into a folder with uv or pip. Nothing is installed for the system's Python, and nothing in the wheels is run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, probe, run, say};

/// pip takes each platform tag literally: `manylinux_2_28` alone would not find a wheel for an older one.
const PIP_PLATFORMS: [&str; 10] = [
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_26",
    "manylinux_2_25",
    "manylinux_2_24",
    "manylinux_2_18",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux_2_12",
    "manylinux2010",
];

/// Holds the text of the pins that a folder was made from.
const STAMP: &str = "pins.txt";

/// A fixed version makes one wheel, and one hash, right for whatever Python the machine has.
const WHEEL_PYTHON: &str = "3.11";

/// Whose wheels they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    X86,
    /// 64-bit Arm.
    Arm,
}

impl Machine {
    /// As tags of wheels have it.
    fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }
}

/// A program that can unpack wheels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Installer {
    Uv,
    Pip,
}

impl Installer {
    fn command(self, workspace: &Workspace, requirements: &Path, target: &Path, machine: Machine) -> Command {
        let machine = machine.name();
        let mut command = match self {
            Self::Uv => {
                let mut uv = workspace.command("uv");
                uv.args(["pip", "install", "--only-binary", ":all:", "--python-version", WHEEL_PYTHON]);
                uv.args(["--python-platform", &format!("{machine}-manylinux_2_28")]);
                uv
            }
            Self::Pip => {
                let mut pip = workspace.command("python3");
                pip.args(["-m", "pip", "install", "--no-compile", "--only-binary=:all:", "--quiet"]);
                pip.args(["--implementation", "cp", "--python-version", WHEEL_PYTHON]);
                for platform in PIP_PLATFORMS {
                    pip.args(["--platform", &format!("{platform}_{machine}")]);
                }
                // What a user may have switched on for their own installs, and what contradicts `--target`.
                pip.envs([
                    ("PIP_USER", "0"),
                    ("PIP_REQUIRE_VIRTUALENV", "0"),
                    ("PIP_ROOT_USER_ACTION", "ignore"),
                ]);
                pip.env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
                pip
            }
        };
        command.args(["--no-deps", "--require-hashes", "--target"]).arg(target);
        command.arg("-r").arg(requirements);
        command
    }
}

/// Unpacks the wheels of `requirements` (pinned with hashes) into `target`, which need not exist; `news` is printed before
/// it starts.
///
/// # Errors
/// When neither uv nor pip is there (the text says how to install pip), or a wheel cannot be fetched.
pub(crate) fn unpack(workspace: &Workspace, requirements: &Path, target: &Path, news: &str) -> Result<()> {
    unpack_for(workspace, requirements, target, Machine::X86, news)
}

/// The same into a folder that is kept until the pins change, for any machine. `pins` lies in the repository.
///
/// # Errors
/// As [`unpack`], and when the folder cannot be written.
pub(crate) fn keep(
    workspace: &Workspace,
    pins: &str,
    folder: &Path,
    machine: Machine,
    news: &str,
) -> Result<()> {
    let text = fs::read_to_string(workspace.path(pins)).with_context(|| format!("cannot read `{pins}`"))?;
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|known| known == text) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    unpack_for(workspace, &workspace.path(pins), folder, machine, news)?;
    // Last: what is interrupted before is done again.
    fs::write(&stamp, text).with_context(|| format!("cannot write `{}`", stamp.display()))
}

fn unpack_for(
    workspace: &Workspace,
    requirements: &Path,
    target: &Path,
    machine: Machine,
    news: &str,
) -> Result<()> {
    let installers = installers(workspace)?;
    say(news);
    let mut outcome = Ok(());
    for installer in installers {
        // A Python of a distribution may be managed by its packages only; pip does not mind with `--target`.
        outcome = run(&mut installer.command(workspace, requirements, target, machine));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn installers(workspace: &Workspace) -> Result<Vec<Installer>> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "there are wheels of libtorch for Linux on x86-64 only: on another machine set LIBTORCH to a libtorch 2.11"
        );
    }
    let has_uv = probe(workspace.command("uv").arg("--version")).is_some();
    let has_python = probe(workspace.command("python3").arg("--version")).is_some();
    let has_pip =
        has_python && probe(workspace.command("python3").args(["-m", "pip", "--version"])).is_some();
    let mut found = Vec::new();
    if has_uv {
        found.push(Installer::Uv);
    }
    if has_pip {
        found.push(Installer::Pip);
    }
    if found.is_empty() {
        let what = if has_python { "pip for Python 3 is missing" } else { "Python 3 with pip is missing" };
        bail!(
            "{what}: install it with `{}`",
            install_line(workspace, &["python3", "python3-pip"], &["python3-pip"])
        );
    }
    Ok(found)
}

/// The command that installs system packages on this machine.
pub(crate) fn install_line(workspace: &Workspace, debian: &[&str], fedora: &[&str]) -> String {
    let has = |program: &str| probe(workspace.command(program).arg("--version")).is_some();
    if !has("apt-get") && has("dnf") {
        format!("dnf install -y {}", fedora.join(" "))
    } else {
        format!("apt-get install -y {}", debian.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::shell_line;

    #[test]
    fn both_installers_check_hashes_and_leave_the_system_alone() {
        let workspace = Workspace::locate().unwrap();
        for installer in [Installer::Uv, Installer::Pip] {
            let command =
                installer.command(&workspace, Path::new("pins.txt"), Path::new("out"), Machine::Arm);
            let line = shell_line(&command);
            for part in [
                "--require-hashes",
                "--target out",
                "--no-deps",
                "-r pins.txt",
                "--python-version 3.11",
                "aarch64",
            ] {
                assert!(line.contains(part), "{part} is missing in {line}");
            }
        }
    }

    #[test]
    fn every_pin_has_a_version_and_a_hash() {
        let workspace = Workspace::locate().unwrap();
        for pins in [
            "tools/libtorch-cpu.txt",
            "tools/libtorch-cuda.txt",
            "tools/libtorch-cuda-run.txt",
            "tools/demo-model.txt",
            "tools/auditwheel.txt",
            "tools/libtorch-arm.txt",
        ] {
            let text = fs::read_to_string(workspace.path(pins)).unwrap();
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert!(!lines.is_empty(), "{pins} pins nothing");
            for line in lines {
                assert!(line.contains("==") && line.contains(" --hash=sha256:"), "{pins}: {line}");
            }
        }
    }
}
