//! Git LFS pointers: the small text that a clone without LFS has in place of a file.
//!
//! The format is <https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>: the first line names the version, keys
//! follow in a fixed order, and a pointer has less than 1024 bytes.

use std::path::Path;

use crate::FormatError;

const FIRST_LINE: &[u8] = b"version https://git-lfs.github.com/spec/";
/// What git-lfs wrote before 1.0.
const OLD_FIRST_LINE: &[u8] = b"version https://hawser.github.com/spec/";
/// Past this size nothing is a pointer.
const MAX_BYTES: usize = 1024;

/// Whether these bytes, all of a file, are a pointer.
pub(crate) fn is_pointer(bytes: &[u8]) -> bool {
    bytes.len() < MAX_BYTES && (bytes.starts_with(FIRST_LINE) || bytes.starts_with(OLD_FIRST_LINE))
}

/// Refuses a pointer in place of `file`.
pub(crate) fn refuse_pointer(file: impl FnOnce() -> String, bytes: &[u8]) -> Result<(), FormatError> {
    if is_pointer(bytes) { Err(FormatError::LfsPointer { file: file() }) } else { Ok(()) }
}

/// Reads a whole file that must not be a Git LFS pointer.
///
/// # Errors
/// When it cannot be read, or is a pointer.
pub fn read(path: &Path) -> Result<Vec<u8>, FormatError> {
    let bytes = std::fs::read(path).map_err(|source| FormatError::io("read", path, source))?;
    refuse_pointer(|| path.display().to_string(), &bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_known_by_their_first_line_and_size() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n";
        assert!(is_pointer(pointer.as_bytes()));
        assert!(is_pointer(b"version https://hawser.github.com/spec/v1\noid sha256:00\nsize 1\n"));
        assert!(!is_pointer(b"version: 1\n"));
        assert!(!is_pointer(b""));
        assert!(!is_pointer(&[pointer.as_bytes(), &[b' '; 1024]].concat()));
        let error = refuse_pointer(|| "model.safetensors".into(), pointer.as_bytes()).unwrap_err();
        insta::assert_snapshot!(error, @"`model.safetensors` is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository");
    }
}
