//! `cargo xtask setup --cuda`: what feature `cuda` needs beside libtorch, put between its files in `.libtorch/`.
//!
//! In two parts, since most machines that compile the feature have no GPU and the libraries to run it are 3 GB.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{lock, remove_dir};
use crate::wheels;
use crate::workspace::{Workspace, say};

/// The last header that libtorch's own include.
const HEADER: &str = "include/crt/host_config.h";
/// What the NVIDIA driver has while it is loaded; a container may show one of them alone.
const DRIVER: [&str; 2] = ["/proc/driver/nvidia/version", "/dev/nvidiactl"];

/// How much of it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CudaParts {
    /// `run` where the NVIDIA driver is installed, `build` elsewhere.
    Auto,
    /// Headers, and NVRTC to compile the kernels: about 90 MB to fetch.
    Build,
    /// The libraries for a GPU in addition: about 2 GB to fetch.
    Run,
}

/// Wheels that are brought together.
struct Part {
    pins: &'static str,
    /// Holds the text of the pins when the part is complete.
    stamp: &'static str,
    /// A file below `.libtorch/` that the part brings.
    holds: &'static str,
    what: &'static str,
}

const BUILD: Part = Part {
    pins: "tools/libtorch-cuda.txt",
    stamp: "setup-stamp-cuda.txt",
    holds: "nvidia/cu13/include/crt/host_config.h",
    what: "the CUDA headers and NVRTC",
};
const RUN: Part = Part {
    pins: "tools/libtorch-cuda-run.txt",
    stamp: "setup-stamp-cuda-run.txt",
    holds: "nvidia/cu13/lib/libcublas.so.13",
    what: "the CUDA libraries for a GPU",
};

/// Adds the parts to the libtorch in `home`.
///
/// # Errors
/// When the wheels cannot be fetched or put into place.
pub(super) fn add(workspace: &Workspace, home: &Path, parts: CudaParts) -> Result<()> {
    let has_driver = has_driver();
    let chosen: &[Part] = if wants_libraries(parts, has_driver) { &[BUILD, RUN] } else { &[BUILD] };
    for part in chosen {
        let pins = fs::read_to_string(workspace.path(part.pins))
            .with_context(|| format!("cannot read `{}`", part.pins))?;
        let added = fill(home, part, &pins, |target| {
            let news = format!("fetching {} into `.libtorch/`", part.what);
            wheels::unpack(workspace, &workspace.path(part.pins), target, &news)
        })?;
        say(&format!("{} are {} `.libtorch/`", part.what, if added { "now in" } else { "already in" }));
    }
    if parts == CudaParts::Auto && !has_driver {
        say("no NVIDIA driver here, so the libraries for a GPU were left out: `--cuda=run` brings them");
    }
    Ok(())
}

/// Whether the NVIDIA driver is loaded.
pub(crate) fn has_driver() -> bool {
    DRIVER.iter().any(|path| Path::new(path).exists())
}

fn wants_libraries(parts: CudaParts, has_driver: bool) -> bool {
    match parts {
        CudaParts::Auto => has_driver,
        CudaParts::Build => false,
        CudaParts::Run => true,
    }
}

/// Checks that a user's own libtorch can be compiled against; the places are those of `crates/torch-ext/build.rs`.
pub(super) fn check_users_own(libtorch: &Path) -> Result<()> {
    let beside = libtorch.parent().map(|home| home.join("nvidia/cu13"));
    let toolkit = std::env::var_os("CUDA_HOME").map(Into::into);
    let found = [beside, toolkit, Some("/usr/local/cuda".into())]
        .into_iter()
        .flatten()
        .find(|dir| dir.join(HEADER).is_file());
    match found {
        Some(dir) => {
            say(&format!("using the CUDA headers in `{}`", dir.join("include").display()));
            Ok(())
        }
        None => bail!(
            "LIBTORCH is your own, so nothing is fetched for it, and there are no CUDA headers: `{HEADER}` is neither in `nvidia/cu13` beside it, nor in CUDA_HOME, nor in `/usr/local/cuda`"
        ),
    }
}

/// Lets every part be fetched again, since the folder that holds them is replaced.
pub(super) fn forget(home: &Path) -> Result<()> {
    for part in [BUILD, RUN] {
        let stamp = home.join(part.stamp);
        match fs::remove_file(&stamp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove `{}`", stamp.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Puts what `unpack` brings into a folder between the files of `home`, unless it was done from the same pins before.
fn fill(home: &Path, part: &Part, pins: &str, unpack: impl FnOnce(&Path) -> Result<()>) -> Result<bool> {
    let is_complete = || {
        fs::read_to_string(home.join(part.stamp)).is_ok_and(|stamp| stamp == pins)
            && home.join(part.holds).is_file()
    };
    if is_complete() {
        return Ok(false);
    }
    let _lock = lock(home)?;
    if is_complete() {
        return Ok(false);
    }
    let staging = home.join("partial");
    remove_dir(&staging)?;
    unpack(&staging)?;
    merge(&staging.join("nvidia"), &home.join("nvidia"))?;
    remove_dir(&staging)?;
    if !home.join(part.holds).is_file() {
        bail!("the wheels of `{}` hold no `{}`", part.pins, part.holds);
    }
    // Last: a set-up that is interrupted before is done again.
    fs::write(home.join(part.stamp), pins).with_context(|| format!("cannot write `{}`", part.stamp))?;
    Ok(true)
}

/// Moves all of `from` into `to`, over what has the same name there.
fn merge(from: &Path, to: &Path) -> Result<()> {
    if !(from.is_dir() && to.is_dir()) {
        return fs::rename(from, to)
            .with_context(|| format!("cannot move `{}` to `{}`", from.display(), to.display()));
    }
    let entries = fs::read_dir(from).with_context(|| format!("cannot list `{}`", from.display()))?;
    for entry in entries {
        let name = entry.with_context(|| format!("cannot list `{}`", from.display()))?.file_name();
        merge(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn unpack_small(target: &Path) -> Result<()> {
        write(&target.join(BUILD.holds), "new");
        write(&target.join("nvidia/cu13/lib/libnvrtc.so.13"), "");
        Ok(())
    }

    #[test]
    fn parts_go_between_what_is_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path();
        write(&home.join("nvidia/cu13/lib/libcudart.so.13"), "old");
        write(&home.join("nvidia/cu13/include/cuda.h"), "old");
        assert!(fill(home, &BUILD, "a", unpack_small).unwrap());
        for file in ["lib/libcudart.so.13", "include/cuda.h", "lib/libnvrtc.so.13", HEADER] {
            assert!(home.join("nvidia/cu13").join(file).is_file(), "{file} is missing");
        }
        assert!(!home.join("partial").exists());
        assert!(!fill(home, &BUILD, "a", |_| bail!("must not be called")).unwrap());
        assert!(fill(home, &BUILD, "b", unpack_small).unwrap());
        forget(home).unwrap();
        assert!(fill(home, &BUILD, "b", unpack_small).unwrap());
    }

    #[test]
    fn wheels_without_what_is_needed_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("nvidia")).unwrap();
        let error = fill(dir.path(), &RUN, "a", unpack_small).unwrap_err().to_string();
        assert!(error.contains("hold no `nvidia/cu13/lib/libcublas.so.13`"), "{error}");
        assert!(!dir.path().join(RUN.stamp).exists());
    }

    #[test]
    fn the_libraries_come_where_there_is_a_driver() {
        assert!(wants_libraries(CudaParts::Auto, true));
        assert!(!wants_libraries(CudaParts::Auto, false));
        assert!(!wants_libraries(CudaParts::Build, true));
        assert!(wants_libraries(CudaParts::Run, false));
    }

    #[test]
    fn a_users_libtorch_needs_headers_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("nvidia/cu13").join(HEADER), "");
        check_users_own(&dir.path().join("torch")).unwrap();
    }
}
