//! The disk cache of compiled kernels: one file a program, named by what it was made from, believed only when it is whole.
//!
//! A file is the key (32 bytes), the hash of the code (32 bytes) and the code.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::{Hash, OUT_LEN};

use crate::ExtError;

/// The code kept under `key`, or `None` when there is none or it is damaged.
///
/// # Errors
/// When the file is there and cannot be read.
pub(super) fn read(path: &Path, key: &Hash) -> Result<Option<Vec<u8>>, ExtError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ExtError::File { action: "read", path: path.to_owned(), source }),
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
pub(super) fn write(path: &Path, key: &Hash, code: &[u8]) -> Result<(), ExtError> {
    static NUM_WRITTEN: AtomicU64 = AtomicU64::new(0);
    let number = NUM_WRITTEN.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{}-{number}.partial", std::process::id()));
    let bytes = [key.as_bytes(), blake3::hash(code).as_bytes(), code].concat();
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&partial, bytes))
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|source| ExtError::File { action: "write", path: path.to_owned(), source })
}
