//! Tries the packages as a user would: in fresh virtual environments, with everything that can be wrong with torch.
//!
//! What is fetched is auditwheel and the libraries of an older system, once: torch is `.libtorch/`'s, linked into the environment as pip would lay it. Without a GPU the program
//! for GPUs can only be looked at.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::wheel::torch_minor;
use super::{Made, audit, old_system};
use crate::setup::home;
use crate::workspace::{Workspace, probe, run, say, shell_line};

/// The minor versions of Python 3 that are looked for: the oldest that this torch is for, and the newest.
const OLDEST_PYTHON: u32 = 10;
const NEWEST_PYTHON: u32 = 14;
const CHECKPOINT: &str = "tests/fixtures/dummy/tiny-llama.nemo";
const PROMPTS: &str = "configs/demo/prompts.jsonl";
/// The program for the CPU, among an environment's packages.
const CPU_PROGRAM: &str = "aligner_gen/bin/aligner-gen-cpu";
const NUM_PROMPTS: usize = 16;

/// Installs and runs all.
///
/// # Errors
/// At the first thing that is not as it must be.
pub(super) fn run_all(workspace: &Workspace, made: &Made) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot create a working folder")?;
    let pythons = pythons(workspace);
    ensure!(!pythons.is_empty(), "no Python of version 3.10 or newer is on the PATH");
    audit::check(workspace, &pythons[0].0, &made.wheel)?;
    say("auditwheel: the wheel needs what its name says");
    let old_system = old_system::fetch(workspace);
    for (python, version) in &pythons {
        let venv = folder.path().join(version);
        let environment = Environment::create(workspace, python, &venv, &made.wheel)?;
        let front = environment.check(workspace).with_context(|| format!("Python {version}"))?;
        say(&format!(
            "Python {version}: installed, refuses what is wrong, generates; the front takes {front:.0} ms"
        ));
        if let Some(old_system) = &old_system {
            let program = environment.packages.join(CPU_PROGRAM);
            generates(old_system.command(workspace, &program)).context(old_system::NAME)?;
            say(&format!("{}: generates with its libraries", old_system::NAME));
        }
    }
    if let Some(tarball) = &made.tarball {
        check_tarball(workspace, tarball, folder.path())?;
        say("the tar archive: unpacked, generates");
    }
    Ok(())
}

/// The Pythons on the PATH that torch is for, each version once.
fn pythons(workspace: &Workspace) -> Vec<(String, String)> {
    let named = (OLDEST_PYTHON..=NEWEST_PYTHON).map(|minor| format!("python3.{minor}"));
    let mut found: Vec<(String, String)> = Vec::new();
    for python in named.chain(["python3".to_owned()]) {
        let script = "import sys; print('%d.%d' % sys.version_info[:2])";
        let Some(version) = probe(workspace.command(&python).args(["-c", script])) else { continue };
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok()).unwrap_or(0);
        if minor >= OLDEST_PYTHON && !found.iter().any(|(_, known)| *known == version) {
            found.push((python, version));
        }
    }
    found
}

/// A virtual environment with the wheel in it, and no torch.
struct Environment {
    program: PathBuf,
    packages: PathBuf,
}

impl Environment {
    fn create(workspace: &Workspace, python: &str, venv: &Path, wheel: &Path) -> Result<Self> {
        run(workspace.command(python).args(["-m", "venv"]).arg(venv))?;
        let bin = venv.join("bin");
        let mut pip = workspace.command(bin.join("python"));
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]).arg(wheel);
        run(pip.env("PIP_DISABLE_PIP_VERSION_CHECK", "1"))?;
        let script = "import sysconfig; print(sysconfig.get_path('platlib'))";
        let packages = probe(workspace.command(bin.join("python")).args(["-c", script]));
        let packages = PathBuf::from(packages.context("the environment's Python does not run")?);
        Ok(Self { program: bin.join("aligner-gen"), packages })
    }

    /// What the front costs, in milliseconds.
    fn check(&self, workspace: &Workspace) -> Result<f64> {
        let torch = self.packages.join("torch");
        let built_for = torch_minor();
        self.refuses("torch is not installed for ")?;
        fs::create_dir(&torch)?;
        self.refuses("is not whole, it has no version")?;
        fs::write(torch.join("version.py"), "__version__ = '2.9.1+cpu'\n")?;
        self.refuses(&format!(
            "this aligner-gen was built for torch {built_for}: pip install 'torch=={built_for}.*'"
        ))?;
        fs::write(torch.join("version.py"), format!("__version__ = '{built_for}.0'\n"))?;
        self.refuses("is not whole, it has no lib/libtorch_cpu.so")?;
        fs::remove_dir_all(&torch)?;
        let home = home(workspace);
        symlink(home.join("torch"), &torch)?;
        symlink(home.join("nvidia"), self.packages.join("nvidia"))?;

        let version = succeeds(clean(Command::new(&self.program)).arg("--version"))?;
        ensure!(version.trim() == concat!("aligner-gen ", env!("CARGO_PKG_VERSION")), "it says `{version}`");
        let doctor = succeeds(clean(Command::new(&self.program)).arg("doctor"))?;
        ensure!(doctor.contains(&format!("libtorch     {built_for}.")), "doctor says:\n{doctor}");
        generates(workspace.command(&self.program))?;
        self.front_ms()
    }

    /// What the front adds to a start: the fastest of some with it less the fastest of some without.
    fn front_ms(&self) -> Result<f64> {
        let native = self.packages.join(CPU_PROGRAM);
        let (mut with, mut without) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..8 {
            with = with.min(start_ms(&self.program)?);
            without = without.min(start_ms(&native)?);
        }
        Ok(with - without)
    }

    fn refuses(&self, expect: &str) -> Result<()> {
        let output = ran(clean(Command::new(&self.program)).arg("--version"))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let is_sentence = stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1;
        if output.status.success() || !is_sentence || !stderr.contains(expect) {
            bail!("expected the sentence `{expect}`, got {}: {stderr}", output.status);
        }
        Ok(())
    }
}

fn check_tarball(workspace: &Workspace, tarball: &Path, folder: &Path) -> Result<()> {
    let place = folder.join("unpacked");
    fs::create_dir(&place)?;
    run(workspace.command("tar").arg("-xf").arg(tarball).arg("-C").arg(&place))?;
    let top = fs::read_dir(&place)?.next().context("the archive is empty")??.path();
    generates(workspace.command(top.join("bin/aligner-gen")))
}

/// The guide's command, on a small model.
fn generates(program: Command) -> Result<()> {
    let results = tempfile::tempdir().context("cannot create a working folder")?;
    let mut command = clean(program);
    command.args(["trainer.num_nodes=1", "trainer.devices=1", "model.global_batch_size=8"]);
    command.args(["trainer.generation.trt_llm.enable=true", "model.generation.length_params.max_length=4"]);
    command.arg(format!("pretrained_checkpoint.restore_from_path={CHECKPOINT}"));
    command.arg(format!("model.data.train_ds.file_path={PROMPTS}"));
    command.arg(format!("exp_manager.explicit_log_dir={}", results.path().display()));
    succeeds(&mut command)?;
    let path = results.path().join("generations/generations.jsonl");
    let lines = fs::read_to_string(&path).context("the program has written no generations")?.lines().count();
    ensure!(lines == NUM_PROMPTS, "{lines} lines were written, not {NUM_PROMPTS}");
    Ok(())
}

/// Without what `cargo xtask` itself runs with.
fn clean(mut command: Command) -> Command {
    command.env_remove("LD_LIBRARY_PATH").env_remove("LIBTORCH");
    command
}

fn ran(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot start `{}`", shell_line(command)))
}

fn succeeds(command: &mut Command) -> Result<String> {
    let output = ran(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed with {}: {stderr}", shell_line(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn start_ms(program: &Path) -> Result<f64> {
    let start = Instant::now();
    succeeds(clean(Command::new(program)).arg("--version"))?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
