//! An extracted checkpoint: every file of a folder, mapped.

use std::path::Path;

use indexmap::IndexMap;

use super::{Archive, Member};
use crate::FormatError;
use crate::mmap::Mapped;

/// Folders below the checkpoint's own: `model_weights/<key>/shard_…` is the deepest that exists.
const MAX_DEPTH: usize = 8;

pub(super) fn open(path: &Path) -> Result<Archive, FormatError> {
    let mut archive =
        Archive { path: path.to_owned(), is_tar: false, files: Vec::new(), members: IndexMap::new() };
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
        } else {
            let file = Mapped::open(&path)?;
            let member = Member { file_idx: archive.files.len(), range: 0..file.bytes().len() };
            archive.files.push(file);
            archive.members.insert(name, member);
        }
    }
    Ok(())
}
