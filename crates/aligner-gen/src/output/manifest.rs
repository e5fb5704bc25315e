//! `generations/manifest.json`: what is committed, and what it was made from.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::OutputError;
use super::disk::{self, Disk, RealDisk};

/// Everything that decides the text of a sample, by the name a user knows it by. Values are compared as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity(pub(crate) BTreeMap<String, Value>);

impl Identity {
    /// The name under which the data's fingerprint stands.
    pub(crate) const DATA: &'static str = "data fingerprint";

    /// What ranks that do not read the data can be held to.
    pub(crate) fn without_data(mut self) -> Self {
        self.0.remove(Self::DATA);
        self
    }

    /// What differs, as `name: old -> new`; long values such as fingerprints by name alone.
    pub(crate) fn changes(&self, new: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(new.0.keys()).collect();
        names
            .into_iter()
            .filter_map(|name| {
                let (before, after) = (self.0.get(name), new.0.get(name));
                (before != after).then(|| match (before, after) {
                    (Some(before), Some(after)) if !name.ends_with("fingerprint") => {
                        format!("`{name}` (was {before}, now {after})")
                    }
                    _ => format!("`{}`", name.trim_end_matches(" fingerprint")),
                })
            })
            .collect()
    }
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) program_version: String,
    /// Bytes of `generations.jsonl` that hold whole, synced steps.
    pub(crate) committed_bytes: u64,
    /// The last committed step; 0 before the first.
    pub(crate) step: u64,
    /// Samples in committed steps.
    pub(crate) consumed_samples: u64,
    /// Samples that the run is to generate in all.
    pub(crate) num_samples: u64,
    pub(crate) identity: Identity,
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
        let sealed = serde_json::from_slice::<Sealed>(&bytes).and_then(|sealed| {
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
        let sealed = Sealed { checksum: self.checksum()?, manifest: self.clone() };
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
struct Sealed {
    #[serde(flatten)]
    manifest: Manifest,
    checksum: String,
}

/// Writes `folder/name` through a synced temporary file and a rename, and syncs the folder.
pub(crate) fn write_atomically(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    disk::replace(&RealDisk, folder, name, bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn identity(seed: u64, data: &str) -> Identity {
        Identity(
            [("model.seed".to_owned(), json!(seed)), ("data fingerprint".to_owned(), json!(data))]
                .into_iter()
                .collect(),
        )
    }

    #[test]
    fn changes_are_named() {
        assert_eq!(identity(1, "a").changes(&identity(1, "a")), Vec::<String>::new());
        assert_eq!(identity(1, "a").changes(&identity(2, "b")), ["`data`", "`model.seed` (was 1, now 2)"]);
    }

    #[test]
    fn written_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), None);
        let manifest = Manifest {
            program_version: "0".to_owned(),
            committed_bytes: 5,
            step: 1,
            consumed_samples: 2,
            num_samples: 3,
            identity: identity(1, "a"),
            config: json!({"b": 1, "a": 2}),
        };
        manifest.write_on(&RealDisk, folder.path()).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), Some(manifest));
        std::fs::write(folder.path().join(Manifest::FILE_NAME), "{").unwrap();
        assert!(matches!(Manifest::read(folder.path()), Err(OutputError::BadManifest { .. })));
    }
}
