//! The libtorch of a machine that has no repository: the user's LIBTORCH, or the one in python3's torch.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::probe;

/// The variable that the dynamic linker reads.
pub(super) const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

const LIBRARY: &str = "lib/libtorch_cuda.so";
/// Finds the package without importing it.
const FIND_SPEC: &str =
    "import importlib.util as u; spec = u.find_spec('torch'); print(spec.origin if spec else '')";

/// The folder of a libtorch of version `wanted`, which has `lib` in it.
///
/// # Errors
/// When there is none, or one of another version: what is built against one may compute anything with another.
pub(super) fn find(libtorch: Option<OsString>, wanted: &str) -> Result<PathBuf> {
    let dir = match libtorch.filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => of_python()?,
    };
    let library = dir.join(LIBRARY);
    if !library.is_file() {
        bail!(
            "`{}` is missing: a torch with CUDA {wanted} is needed, by LIBTORCH or in python3",
            library.display()
        );
    }
    let found = version(&dir)?;
    // What stands behind `+` is the variant, `cu130` for example.
    if found.split('+').next() != Some(wanted) {
        bail!("the torch in `{}` is {found}, and the programs were built with {wanted}", dir.display());
    }
    Ok(dir)
}

fn of_python() -> Result<PathBuf> {
    let origin = probe(Command::new("python3").args(["-c", FIND_SPEC])).unwrap_or_default();
    let dir = Path::new(&origin).parent().filter(|dir| dir.is_absolute());
    dir.map(Path::to_path_buf)
        .context("LIBTORCH is not set, and `python3` finds no torch: set LIBTORCH to a folder with `lib/libtorch_cuda.so`")
}

/// What torch's Python says it is.
fn version(dir: &Path) -> Result<String> {
    let path = dir.join("version.py");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let version = text.lines().find_map(|line| line.strip_prefix("__version__ = '")?.strip_suffix('\''));
    version.map(str::to_owned).with_context(|| format!("`{}` has no `__version__`", path.display()))
}

/// Where the dynamic linker finds that libtorch and the CUDA libraries beside it, before what `inherited` names.
///
/// # Errors
/// When a folder's name has a colon.
pub(super) fn library_path(torch: &Path, inherited: Option<OsString>) -> Result<OsString> {
    let mut dirs = vec![torch.join("lib")];
    let nvidia = torch.parent().map(|packages| packages.join("nvidia"));
    let entries = nvidia.and_then(|nvidia| fs::read_dir(nvidia).ok()).into_iter().flatten();
    let mut beside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path().join("lib")).collect();
    beside.retain(|dir| dir.is_dir());
    beside.sort();
    dirs.extend(beside);
    if let Some(inherited) = inherited.filter(|path| !path.is_empty()) {
        dirs.extend(std::env::split_paths(&inherited));
    }
    std::env::join_paths(dirs).with_context(|| format!("cannot name `{}` in {LIBRARY_PATH}", torch.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn torch(packages: &Path, version: &str) -> PathBuf {
        let torch = packages.join("torch");
        fs::create_dir_all(torch.join("lib")).unwrap();
        fs::write(torch.join(LIBRARY), "").unwrap();
        fs::write(torch.join("version.py"), format!("__version__ = '{version}'\ndebug = False\n")).unwrap();
        torch
    }

    #[test]
    fn only_the_version_it_was_built_with_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let problem = |torch: &Path| find(Some(torch.into()), "2.11.0").unwrap_err().to_string();
        assert!(problem(dir.path()).contains("lib/libtorch_cuda.so` is missing"));
        let good = torch(dir.path(), "2.11.0+cu130");
        assert_eq!(find(Some(good.clone().into()), "2.11.0").unwrap(), good);
        torch(dir.path(), "2.11.1");
        assert!(problem(&good).ends_with("is 2.11.1, and the programs were built with 2.11.0"));
        fs::write(good.join("version.py"), "").unwrap();
        assert!(problem(&good).ends_with("has no `__version__`"));
    }

    #[test]
    fn the_libraries_of_cuda_lie_beside_torch() {
        let dir = tempfile::tempdir().unwrap();
        let torch = torch(dir.path(), "2.11.0");
        for name in ["cudnn", "cu13"] {
            fs::create_dir_all(dir.path().join("nvidia").join(name).join("lib")).unwrap();
        }
        fs::create_dir_all(dir.path().join("nvidia/empty")).unwrap();
        let path = library_path(&torch, Some("/own".into())).unwrap().into_string().unwrap();
        let root = dir.path().display();
        assert_eq!(path, format!("{root}/torch/lib:{root}/nvidia/cu13/lib:{root}/nvidia/cudnn/lib:/own"));
    }
}
