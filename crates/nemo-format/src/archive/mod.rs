//! The container of a checkpoint: a tar read in place, or the same files in a folder.

mod dir;
mod gzip;
mod tar;

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::FormatError;
use crate::mmap::Mapped;

/// The file without which nothing else in a NeMo 1 checkpoint can be understood.
pub(crate) const CONFIG: &str = "model_config.yaml";

/// Files by their names inside the checkpoint, `/`-separated and without a leading `./` or top folder.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    packing: Packing,
    files: Vec<Mapped>,
    members: IndexMap<String, Member>,
}

/// How the files are held together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Tar,
    GzipTar,
    Folder,
}

/// Where a member's bytes are.
#[derive(Debug)]
struct Member {
    file_idx: usize,
    range: Range<usize>,
}

impl Archive {
    /// Opens a `.nemo` archive or an extracted folder. A plain tar is read in place; a gzip tar is unpacked into an
    /// unnamed file.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let mut archive = if path.is_dir() { dir::open(path)? } else { tar::open(path)? };
        archive.strip_top_folder();
        Ok(archive)
    }

    /// Plain files that belong together, under their base names.
    pub(crate) fn of_files(folder: &Path, paths: &[PathBuf]) -> Result<Self, FormatError> {
        let mut archive = Self {
            path: folder.to_owned(),
            packing: Packing::Folder,
            files: Vec::new(),
            members: IndexMap::new(),
        };
        for path in paths {
            let name = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
            archive.add_file(name, path)?;
        }
        Ok(archive)
    }

    fn add_file(&mut self, name: String, path: &Path) -> Result<(), FormatError> {
        let file = Mapped::open(path)?;
        let member = Member { file_idx: self.files.len(), range: 0..file.bytes().len() };
        self.files.push(file);
        self.members.insert(name, member);
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn packing(&self) -> Packing {
        self.packing
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// A member's bytes, if there is such a member.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.bytes_of(self.members.get(name)?)
    }

    /// A member's bytes, or the error that it is missing.
    pub(crate) fn member(&self, name: &str) -> Result<&[u8], FormatError> {
        self.get(name)
            .ok_or_else(|| FormatError::MissingMember { path: self.path.clone(), member: name.to_owned() })
    }

    /// What [`Archive::at`] finds the member by.
    pub(crate) fn index_of(&self, name: &str) -> Result<usize, FormatError> {
        self.members
            .get_index_of(name)
            .ok_or_else(|| FormatError::MissingMember { path: self.path.clone(), member: name.to_owned() })
    }

    /// The bytes of the member of this index.
    pub(crate) fn at(&self, member_idx: usize) -> &[u8] {
        self.members.get_index(member_idx).and_then(|(_, member)| self.bytes_of(member)).unwrap_or_default()
    }

    /// The name of the member of this index.
    pub(crate) fn name_at(&self, member_idx: usize) -> &str {
        self.members.get_index(member_idx).map_or("", |(name, _)| name)
    }

    /// A member with the archive's own path, for errors.
    pub(crate) fn describe(&self, name: &str) -> String {
        match self.packing {
            Packing::Folder => self.path.join(name).display().to_string(),
            _ => format!("{}: {name}", self.path.display()),
        }
    }

    fn bytes_of(&self, member: &Member) -> Option<&[u8]> {
        self.files.get(member.file_idx)?.bytes().get(member.range.clone())
    }

    /// NeMo takes what precedes the only `model_config.yaml` for a folder that everything lies in.
    fn strip_top_folder(&mut self) {
        let mut configs = self.members.keys().filter(|name| name.rsplit('/').next() == Some(CONFIG));
        let prefix = match (configs.next(), configs.next()) {
            (Some(name), None) => name.strip_suffix(CONFIG).unwrap_or_default().to_owned(),
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
