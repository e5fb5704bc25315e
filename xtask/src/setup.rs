//! `cargo xtask setup`: brings libtorch into `.libtorch/`, once, whole or not at all.
//!
//! `.cargo/config.toml` points LIBTORCH at `.libtorch/torch` for every cargo command; a LIBTORCH of the user's own wins over it.
//! What a GPU needs in addition is `setup/cuda.rs`'s matter.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

mod cuda;

pub(crate) use cuda::{CudaParts, has_driver};

use crate::wheels::{self, install_line};
use crate::workspace::{Workspace, probe, say};

/// The one version of torch that the project is built and tested with.
pub(crate) const TORCH_VERSION: &str = "2.11.0";
const PINS: &str = "tools/libtorch-cpu.txt";
/// Holds the text of the pins it was made from, and is written last: a folder without it is not finished.
const STAMP: &str = "setup-stamp.txt";
const LIBRARY: &str = "lib/libtorch_cpu.so";

/// What set-up did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// The user's LIBTORCH, checked.
    UsersOwn(PathBuf),
    /// `.libtorch/` was complete.
    AlreadyThere,
    /// `.libtorch/` was filled.
    Installed,
}

/// Makes the machine ready to build the project.
///
/// # Errors
/// When a C++ compiler or pip is missing (with the command that installs it), the user's LIBTORCH is not one, or
/// the wheels cannot be fetched.
pub(crate) fn run(workspace: &Workspace) -> Result<Setup> {
    check_compiler(workspace)?;
    let users_own = users_own(std::env::var_os("LIBTORCH").map(PathBuf::from), &torch_dir(workspace));
    if let Some(libtorch) = users_own {
        check_users_own(&libtorch)?;
        return Ok(Setup::UsersOwn(libtorch));
    }
    let home = workspace.path(".libtorch");
    let pins = fs::read_to_string(workspace.path(PINS)).with_context(|| format!("cannot read `{PINS}`"))?;
    fill(&home, &pins, |target| {
        let news = format!("fetching libtorch {TORCH_VERSION} into `.libtorch/` (1.2 GB unpacked)");
        wheels::unpack(workspace, &workspace.path(PINS), target, &news)
    })
}

/// Runs set-up, with what a GPU needs when that is asked for, and says what it found.
pub(crate) fn report(workspace: &Workspace, cuda: Option<CudaParts>) -> Result<()> {
    let setup = run(workspace)?;
    say(&match &setup {
        Setup::UsersOwn(libtorch) => format!("using your own libtorch in `{}`", libtorch.display()),
        Setup::AlreadyThere => format!("libtorch {TORCH_VERSION} is in `.libtorch/`; nothing to do"),
        Setup::Installed => format!("libtorch {TORCH_VERSION} is now in `.libtorch/`"),
    });
    match (cuda, setup) {
        (None, _) => Ok(()),
        (Some(_), Setup::UsersOwn(libtorch)) => cuda::check_users_own(&libtorch),
        (Some(parts), _) => cuda::add(workspace, &workspace.path(".libtorch"), parts),
    }
}

/// Makes the machine ready to compile feature `cuda` too; `false` when a libtorch of the user's own has no headers for it.
///
/// # Errors
/// As [`run`], and when the wheels for CUDA cannot be fetched.
pub(crate) fn for_cuda(workspace: &Workspace) -> Result<bool> {
    match run(workspace)? {
        Setup::UsersOwn(libtorch) => Ok(cuda::check_users_own(&libtorch).is_ok()),
        _ => cuda::add(workspace, &workspace.path(".libtorch"), CudaParts::Build).map(|()| true),
    }
}

/// The folder that holds the folder of libtorch, and beside it those of the libraries that it is linked with.
#[cfg(feature = "all-tasks")]
pub(crate) fn home(workspace: &Workspace) -> PathBuf {
    let users_own = users_own(std::env::var_os("LIBTORCH").map(PathBuf::from), &torch_dir(workspace));
    let parent = users_own.as_deref().and_then(Path::parent).map(Path::to_owned);
    parent.unwrap_or_else(|| workspace.path(".libtorch"))
}

/// Where `.cargo/config.toml` points LIBTORCH.
fn torch_dir(workspace: &Workspace) -> PathBuf {
    workspace.path(".libtorch/torch")
}

/// A LIBTORCH that the user set: cargo hands on the configuration's own in the same variable.
fn users_own(libtorch: Option<PathBuf>, configured: &Path) -> Option<PathBuf> {
    libtorch.filter(|path| path != configured && !path.as_os_str().is_empty())
}

fn check_users_own(libtorch: &Path) -> Result<()> {
    if libtorch.is_relative() {
        bail!("LIBTORCH is `{}`: it must be an absolute path", libtorch.display());
    }
    let library = libtorch.join(LIBRARY);
    if !library.is_file() {
        bail!(
            "LIBTORCH is `{}`, but `{}` is not there: point it at a libtorch {TORCH_VERSION} or unset it",
            libtorch.display(),
            library.display()
        );
    }
    Ok(())
}

fn check_compiler(workspace: &Workspace) -> Result<()> {
    // torch-sys compiles with $CXX or `c++`; another name alone would fail later and less clearly.
    let chosen = std::env::var("CXX").ok().filter(|name| !name.is_empty());
    let compiler = chosen.clone().unwrap_or_else(|| "c++".into());
    let mut words = compiler.split_whitespace();
    let program = words.next().unwrap_or("c++");
    if probe(workspace.command(program).args(words).arg("--version")).is_some() {
        return Ok(());
    }
    if let Some(name) = chosen {
        bail!("CXX is `{name}`, which does not run: unset it or name a C++ compiler");
    }
    for other in ["g++", "clang++"] {
        if probe(workspace.command(other).arg("--version")).is_some() {
            bail!(
                "there is no `c++` on PATH, but `{other}` is there: run `export CXX={other}` and try again"
            );
        }
    }
    bail!(
        "a C++ compiler is missing: install one with `{}`",
        install_line(workspace, &["g++"], &["gcc-c++"])
    );
}

/// Fills `home` with what `unpack` puts into a folder, unless it was filled from the same pins before.
fn fill(home: &Path, pins: &str, unpack: impl FnOnce(&Path) -> Result<()>) -> Result<Setup> {
    if is_complete(home, pins) {
        return Ok(Setup::AlreadyThere);
    }
    let _lock = lock(home)?;
    if is_complete(home, pins) {
        return Ok(Setup::AlreadyThere);
    }
    // Inside `home`, so that the renames stay within one file system even where `.libtorch` is a link.
    let staging = home.join("partial");
    remove_dir(&staging)?;
    unpack(&staging)?;
    let torch = staging.join("torch");
    if !torch.join(LIBRARY).is_file() {
        bail!("the wheels hold no `torch/{LIBRARY}`");
    }
    // The wheel has no version file, and torch-sys checks the version only where there is one.
    fs::write(torch.join("build-version"), TORCH_VERSION).context("cannot write `build-version`")?;
    cuda::forget(home)?;
    for part in ["torch", "nvidia"] {
        remove_dir(&home.join(part))?;
        fs::rename(staging.join(part), home.join(part))
            .with_context(|| format!("cannot move `{part}` into `{}`", home.display()))?;
    }
    remove_dir(&staging)?;
    fs::write(home.join(STAMP), pins).with_context(|| format!("cannot write `{STAMP}`"))?;
    Ok(Setup::Installed)
}

/// Keeps other set-ups out of `home` until it is dropped.
fn lock(home: &Path) -> Result<File> {
    fs::create_dir_all(home).with_context(|| format!("cannot create `{}`", home.display()))?;
    let path = home.join("setup.lock");
    let lock = File::create(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock `{}`", path.display()))?;
    Ok(lock)
}

fn is_complete(home: &Path, pins: &str) -> bool {
    fs::read_to_string(home.join(STAMP)).is_ok_and(|stamp| stamp == pins)
        && home.join("torch").join(LIBRARY).is_file()
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack_small(target: &Path) -> Result<()> {
        fs::create_dir_all(target.join("torch/lib"))?;
        fs::create_dir_all(target.join("nvidia/cu13"))?;
        fs::write(target.join("torch/lib/libtorch_cpu.so"), "")?;
        Ok(())
    }

    #[test]
    fn fills_once_and_again_when_the_pins_change() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        assert_eq!(fill(&home, "a", unpack_small).unwrap(), Setup::Installed);
        assert_eq!(fs::read_to_string(home.join("torch/build-version")).unwrap(), "2.11.0");
        let again = fill(&home, "a", |_| bail!("must not be called")).unwrap();
        assert_eq!(again, Setup::AlreadyThere);
        assert_eq!(fill(&home, "b", unpack_small).unwrap(), Setup::Installed);
    }

    #[test]
    fn an_interrupted_run_is_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let torn = fill(dir.path(), "a", |target| {
            fs::create_dir_all(target.join("torch/lib"))?;
            bail!("the network is gone")
        });
        assert_eq!(torn.unwrap_err().to_string(), "the network is gone");
        assert!(!dir.path().join("torch").exists(), "half an install is in the way");
        assert_eq!(fill(dir.path(), "a", unpack_small).unwrap(), Setup::Installed);
        assert!(!dir.path().join("partial").exists());
    }

    #[test]
    fn the_configured_libtorch_is_not_the_users_own() {
        let configured = Path::new("/clone/.libtorch/torch");
        assert_eq!(users_own(None, configured), None);
        assert_eq!(users_own(Some(configured.into()), configured), None);
        assert_eq!(users_own(Some("".into()), configured), None);
        assert_eq!(users_own(Some("/opt/libtorch".into()), configured), Some("/opt/libtorch".into()));
    }

    #[test]
    fn a_users_libtorch_must_hold_the_library() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_users_own(dir.path()).unwrap_err().to_string();
        assert!(error.contains("libtorch_cpu.so` is not there"), "{error}");
        fs::create_dir_all(dir.path().join("lib")).unwrap();
        fs::write(dir.path().join(LIBRARY), "").unwrap();
        check_users_own(dir.path()).unwrap();
        assert!(check_users_own(Path::new("torch")).unwrap_err().to_string().contains("absolute"));
    }
}
