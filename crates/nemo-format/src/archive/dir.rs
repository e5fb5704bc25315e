//! An extracted checkpoint: every file of a folder, mapped.

use std::path::Path;

use super::Archive;
use crate::FormatError;

/// Folders below the checkpoint's own: `model_weights/<key>/shard_…` is the deepest that exists.
const MAX_DEPTH: usize = 8;

pub(super) fn open(path: &Path) -> Result<Archive, FormatError> {
    let mut archive = Archive::of_files(path, &[])?;
    walk(&mut archive, path, "", 0)?;
    Ok(archive)
}

fn walk(archive: &mut Archive, folder: &Path, prefix: &str, depth: usize) -> Result<(), FormatError> {
    let io = |source| FormatError::Io { action: "list", path: folder.to_owned(), source };
    if depth > MAX_DEPTH {
        let file = folder.display().to_string();
        return Err(FormatError::Limit {
            file,
            what: "nested folders",
            value: depth as u64,
            limit: MAX_DEPTH as u64,
        });
    }
    let mut entries: Vec<_> = std::fs::read_dir(folder).map_err(io)?.collect::<Result<_, _>>().map_err(io)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_dir() {
            walk(archive, &path, &format!("{name}/"), depth + 1)?;
        } else if path.is_file() {
            archive.add_file(name, &path)?;
        } else {
            // Opening a pipe would wait for ever.
            let reason = "only files and folders are allowed";
            let file = folder.display().to_string();
            return Err(FormatError::RefusedMember { file, member: name, offset_bytes: 0, reason });
        }
    }
    Ok(())
}
