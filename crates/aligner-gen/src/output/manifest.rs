//! `generations/manifest.json`: what is committed, and what it was made from.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::disk::{self, Disk, RealDisk};
use super::{OutputError, ResumePoint};

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) program_version: String,
    #[serde(flatten)]
    pub(crate) committed: ResumePoint,
    /// Samples that the run is to generate in all.
    pub(crate) num_samples: u64,
    /// The [`super::Identity`] as it was recorded, by this version of the program or another.
    pub(crate) identity: Value,
    /// The resolved configuration.
    pub(crate) config: Value,
}

impl Manifest {
    pub(crate) const FILE_NAME: &'static str = "manifest.json";

    /// The manifest of `folder`, if there is one.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, OutputError> {
        Self::read_on(&RealDisk, folder)
    }

    /// The same on another disk.
    pub(super) fn read_on<D: Disk>(disk: &D, folder: &Path) -> Result<Option<Self>, OutputError> {
        let path = folder.join(Self::FILE_NAME);
        let reader = disk.reader(&path, 0).map_err(OutputError::io("read", &path))?;
        let Some(mut reader) = reader else { return Ok(None) };
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(OutputError::io("read", &path))?;
        let sealed = serde_json::from_slice::<Sealed<Self>>(&bytes).and_then(|sealed| {
            let is_whole = sealed.manifest.checksum()? == sealed.checksum;
            Ok(is_whole.then_some(sealed.manifest))
        });
        match sealed {
            Ok(Some(manifest)) => Ok(Some(manifest)),
            Ok(None) => {
                let reason = "its checksum does not fit".to_owned();
                Err(OutputError::BadManifest { path, reason })
            }
            Err(error) => Err(OutputError::BadManifest { path, reason: error.to_string() }),
        }
    }

    /// Replaces the manifest of `folder` so that a reader sees the old or the new one, never a mixture.
    pub(super) fn write_on<D: Disk>(&self, disk: &D, folder: &Path) -> std::io::Result<()> {
        let sealed = Sealed { checksum: self.checksum()?, manifest: self };
        let mut bytes = serde_json::to_vec_pretty(&sealed)?;
        bytes.push(b'\n');
        disk::replace(disk, folder, Self::FILE_NAME, &bytes)
    }

    /// Of every field, so that no damage is taken for what a run committed.
    fn checksum(&self) -> serde_json::Result<String> {
        Ok(blake3::hash(&serde_json::to_vec(self)?).to_hex().to_string())
    }
}

/// The manifest as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Sealed<M> {
    #[serde(flatten)]
    manifest: M,
    checksum: String,
}

/// Writes `folder/name` through a synced temporary file and a rename, and syncs the folder.
pub(crate) fn write_atomically(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    disk::replace(&RealDisk, folder, name, bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn written_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), None);
        let manifest = Manifest {
            program_version: "0".to_owned(),
            committed: ResumePoint { committed_bytes: 5, step: 1, consumed_samples: 2 },
            num_samples: 3,
            identity: json!({"version": 2}),
            config: json!({"b": 1, "a": 2}),
        };
        manifest.write_on(&RealDisk, folder.path()).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), Some(manifest));
        std::fs::write(folder.path().join(Manifest::FILE_NAME), "{").unwrap();
        assert!(matches!(Manifest::read(folder.path()), Err(OutputError::BadManifest { .. })));
    }
}
