//! The disk cache of compiled kernels: one file a program, named by what it was made from, believed only when it is whole.
//!
//! A file is the key (32 bytes), the hash of the code (32 bytes) and the code.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::{Hash, OUT_LEN};

use crate::CudaError;

/// The folder of the user's cache where compiled kernels are kept, `aligner-gen/kernels` in XDG_CACHE_HOME or
/// `~/.cache`; `None` when it cannot be made or written to, as on a read-only home: kernels are then compiled at every
/// start, which takes seconds.
pub fn kernel_cache() -> Option<PathBuf> {
    let dir = cache_dir(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))?;
    std::fs::create_dir_all(&dir).ok()?;
    let attempt = dir.join(format!("{}.attempt", std::process::id()));
    std::fs::write(&attempt, b"").and_then(|()| std::fs::remove_file(&attempt)).ok()?;
    Some(dir)
}

/// The XDG rule: a relative path counts as none.
fn cache_dir(xdg_cache_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |dir: OsString| Some(PathBuf::from(dir)).filter(|dir| dir.is_absolute());
    let caches =
        xdg_cache_home.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
    Some(caches.join("aligner-gen/kernels"))
}

/// The code kept under `key`, or `None` when there is none or it is damaged.
///
/// # Errors
/// When the file is there and cannot be read.
pub(super) fn read(path: &Path, key: &Hash) -> Result<Option<Vec<u8>>, CudaError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CudaError::File { action: "read", path: path.to_owned(), source }),
    };
    let whole = bytes.split_at_checked(2 * OUT_LEN).is_some_and(|(head, code)| {
        head[..OUT_LEN] == *key.as_bytes() && head[OUT_LEN..] == *blake3::hash(code).as_bytes()
    });
    Ok(whole.then(|| bytes[2 * OUT_LEN..].to_vec()))
}

/// Keeps `code`. Several processes may do so at once: each writes a file of its own and renames it.
///
/// # Errors
/// When the folder cannot be made or written to.
pub(super) fn write(path: &Path, key: &Hash, code: &[u8]) -> Result<(), CudaError> {
    static NUM_WRITTEN: AtomicU64 = AtomicU64::new(0);
    let number = NUM_WRITTEN.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{}-{number}.partial", std::process::id()));
    let bytes = [key.as_bytes(), blake3::hash(code).as_bytes(), code].concat();
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&partial, bytes))
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|source| CudaError::File { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(xdg_cache_home: Option<&str>, home: Option<&str>, expect: Option<&str>) {
        let dir = cache_dir(xdg_cache_home.map(Into::into), home.map(Into::into));
        assert_eq!(dir.as_deref(), expect.map(Path::new));
    }

    #[test]
    fn the_cache_is_the_users() {
        check(Some("/c"), Some("/home/a"), Some("/c/aligner-gen/kernels"));
        check(None, Some("/home/a"), Some("/home/a/.cache/aligner-gen/kernels"));
        check(Some("relative"), Some("/home/a"), Some("/home/a/.cache/aligner-gen/kernels"));
        check(Some(""), None, None);
    }
}
