//! `model.safetensors.index.json` and `pytorch_model.bin.index.json`: which shard has which tensor.
//!
//! transformers takes the list of shards from an index and all tensors from the shards; so does this reader. Where the
//! two disagree, it says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::{FormatError, SourceNote, TensorSource};

/// An index lists names only: real ones stay below a few MiB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A parsed index.
#[derive(Debug)]
pub(crate) struct WeightIndex {
    /// The file's own name.
    name: String,
    shard_of: BTreeMap<String, String>,
    /// `metadata.total_size`.
    total_size_bytes: Option<u64>,
}

#[derive(serde::Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: Value,
    weight_map: BTreeMap<String, String>,
}

impl WeightIndex {
    /// Reads an index. Shards are plain file names.
    pub(crate) fn read(path: &Path) -> Result<Self, FormatError> {
        let size_bytes =
            std::fs::metadata(path).map_err(|source| FormatError::io("open", path, source))?.len();
        let file = path.display().to_string();
        if size_bytes > MAX_INDEX_BYTES {
            return Err(FormatError::Limit {
                file,
                what: "bytes",
                value: size_bytes,
                limit: MAX_INDEX_BYTES,
            });
        }
        let text = crate::lfs::read(path)?;
        let index: RawIndex = serde_json::from_slice(&text)
            .map_err(|source| FormatError::damaged(&file, 0, source.to_string()))?;
        if index.weight_map.is_empty() {
            return Err(FormatError::damaged(&file, 0, "its `weight_map` names no tensor"));
        }
        for shard in index.weight_map.values() {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                let reason = format!("the shard `{shard}` is not a plain file name");
                return Err(FormatError::damaged(&file, 0, reason));
            }
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let total_size_bytes = index.metadata.get("total_size").and_then(Value::as_u64);
        Ok(Self { name, shard_of: index.weight_map, total_size_bytes })
    }

    /// The files that it names, each once, in order.
    pub(crate) fn shards(&self) -> BTreeSet<&str> {
        self.shard_of.values().map(String::as_str).collect()
    }

    /// Every shard must be there.
    pub(crate) fn check_shards(&self, folder: &Path) -> Result<(), FormatError> {
        let shards = self.shards();
        let missing: Vec<&str> =
            shards.iter().filter(|shard| !folder.join(shard).is_file()).copied().collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let reason = format!(
            "{} of the {} shards that it names are not in the folder, first `{first}`; copy them, or remove the index if it \
             belongs to another model",
            missing.len(),
            shards.len()
        );
        Err(FormatError::damaged(&folder.join(&self.name).display().to_string(), 0, reason))
    }

    /// Every tensor that it names must be stored.
    pub(crate) fn check(&self, source: &dyn TensorSource) -> Result<(), FormatError> {
        match self.shard_of.iter().find(|(name, _)| source.meta(name).is_none()) {
            None => Ok(()),
            Some((name, shard)) => {
                let reason = format!("the index says it is in `{shard}`, and no shard has it");
                Err(FormatError::bad_tensor(name, reason))
            }
        }
    }

    /// What the index says and the shards do not bear out, and the reverse. `shard_of` tells where a tensor is.
    pub(crate) fn notes(
        &self,
        source: &dyn TensorSource,
        shard_of: &dyn Fn(&str) -> Option<String>,
    ) -> Vec<SourceNote> {
        let mut notes = Vec::new();
        let mut say = |used: String, difference: String| {
            notes.push(SourceNote::Contradiction { used, ignored: format!("`{}`", self.name), difference });
        };
        let unnamed: Vec<&str> = source.names().filter(|name| !self.shard_of.contains_key(*name)).collect();
        if let Some(first) = unnamed.first() {
            let difference =
                format!("it does not name {} of the tensors in its shards, first `{first}`", unnamed.len());
            say("what the shards hold".to_owned(), difference);
        }
        let is_elsewhere =
            |(name, shard): &(&String, &String)| shard_of(name).is_some_and(|actual| actual != **shard);
        if let Some((name, shard)) = self.shard_of.iter().find(is_elsewhere) {
            let actual = shard_of(name).unwrap_or_default();
            let difference = format!("it says that `{name}` is in `{shard}`");
            say(format!("`{name}` of `{actual}`"), difference);
        }
        let sizes = source.names().filter_map(|name| source.meta(name)?.size_bytes());
        let stored_bytes = sizes.fold(0_u64, u64::saturating_add);
        if let Some(stated) = self.total_size_bytes.filter(|&stated| stated != stored_bytes) {
            let difference = format!("its `total_size` is {stated} bytes, the tensors have {stored_bytes}");
            say("what the shards hold".to_owned(), difference);
        }
        notes
    }
}
