//! The container of a checkpoint: a plain tar read in place, or the same files in a folder.

mod dir;
mod tar;

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::FormatError;
use crate::mmap::Mapped;

/// Files by their names inside the checkpoint, `/`-separated and without a leading `./` or top folder.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    is_tar: bool,
    files: Vec<Mapped>,
    members: IndexMap<String, Member>,
}

/// Where a member's bytes are.
#[derive(Debug)]
struct Member {
    file_idx: usize,
    range: Range<usize>,
}

impl Archive {
    /// Opens a `.nemo` archive or an extracted folder. Nothing is unpacked.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let mut archive = if path.is_dir() { dir::open(path)? } else { tar::open(path)? };
        archive.strip_top_folder();
        Ok(archive)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_tar(&self) -> bool {
        self.is_tar
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// A member's bytes, if there is such a member.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let member = self.members.get(name)?;
        self.files.get(member.file_idx)?.bytes().get(member.range.clone())
    }

    /// A member's bytes, or the error that it is missing.
    pub(crate) fn member(&self, name: &str) -> Result<&[u8], FormatError> {
        self.get(name)
            .ok_or_else(|| FormatError::MissingMember { path: self.path.clone(), member: name.to_owned() })
    }

    /// NeMo takes what precedes the only `model_config.yaml` for a folder that everything lies in.
    fn strip_top_folder(&mut self) {
        let mut configs =
            self.members.keys().filter(|name| name.rsplit('/').next() == Some("model_config.yaml"));
        let prefix = match (configs.next(), configs.next()) {
            (Some(name), None) => name.strip_suffix("model_config.yaml").unwrap_or_default().to_owned(),
            _ => return,
        };
        if !prefix.is_empty() {
            let members = std::mem::take(&mut self.members);
            let strip = |name: String| name.strip_prefix(&prefix).map(str::to_owned);
            self.members =
                members.into_iter().filter_map(|(name, member)| Some((strip(name)?, member))).collect();
        }
    }
}
