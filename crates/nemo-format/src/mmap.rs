//! Read-only memory maps of checkpoint files: the crate's one unsafe block.
#![expect(unsafe_code, reason = "mapping a file is unsafe while another process may shorten it")]

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::FormatError;

/// A mapped file.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Option<memmap2::Mmap>,
    path: PathBuf,
}

impl Mapped {
    /// Maps a whole file. An empty file has no map and no bytes.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let io = |action| move |source| FormatError::Io { action, path: path.to_owned(), source };
        let file = File::open(path).map_err(io("open"))?;
        Self::of_file(&file, path)
    }

    /// Maps an open file, which may have no name any more; `path` stands for it in errors.
    pub(crate) fn of_file(file: &File, path: &Path) -> Result<Self, FormatError> {
        let io = |action| move |source| FormatError::Io { action, path: path.to_owned(), source };
        let len_bytes = file.metadata().map_err(io("read the size of"))?.len();
        if len_bytes == 0 {
            return Ok(Self { map: None, path: path.to_owned() });
        }
        // SAFETY: the map is read-only and private to this process. Checkpoints are replaced by renaming, never
        // rewritten in place; a file that someone cuts short all the same raises SIGBUS, as for every mmap reader.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(io("map"))?;
        crate::lfs::refuse_pointer(|| path.display().to_string(), &map)?;
        Ok(Self { map: Some(map), path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}
