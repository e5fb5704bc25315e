//! A checkpoint as a whole: its configuration, its tensors, its artifacts.

use std::path::Path;
use std::sync::Arc;

use hydra_config::Node;

use crate::archive::Archive;
use crate::dist_ckpt::{FOLDER, TorchDist};
use crate::{FormatError, TensorMeta, TensorSource};

const CONFIG: &str = "model_config.yaml";
/// Members up to this size enter the fingerprint whole; of larger ones, samples of this size do.
const SAMPLE_BYTES: usize = 64 << 10;
/// Samples taken of a large member.
const NUM_SAMPLES: usize = 64;

/// An open checkpoint. Opening reads no weights.
#[derive(Debug)]
pub struct Checkpoint {
    archive: Arc<Archive>,
    config: Node,
    config_text: String,
    tensors: TorchDist,
}

/// A tensor as the checkpoint's own files name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensorInfo {
    /// The file's own name; stacked layers have none of their numbers in it.
    pub name: String,
    /// Type and global shape.
    pub meta: TensorMeta,
}

impl Checkpoint {
    /// Opens a `.nemo` archive or the folder extracted from one.
    ///
    /// # Errors
    /// When the file is not a checkpoint, is damaged, or is of a kind that cannot be read yet.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let archive = Arc::new(Archive::open(path)?);
        let config_bytes = archive.member(CONFIG)?;
        let bad =
            |reason: String| FormatError::BadConfig { file: format!("{}: {CONFIG}", path.display()), reason };
        let config_text =
            std::str::from_utf8(config_bytes).map_err(|error| bad(error.to_string()))?.to_owned();
        let document =
            hydra_config::yaml::parse(&config_text, CONFIG).map_err(|error| bad(error.to_string()))?;
        let config = match document.get("model") {
            Some(model @ Node::Map(_)) => model.clone(),
            _ => document,
        };
        check_weights(&archive)?;
        let tensors = TorchDist::open(Arc::clone(&archive))?;
        Ok(Self { archive, config, config_text, tensors })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.archive.path()
    }

    /// What it is, for display.
    pub fn format(&self) -> &'static str {
        if self.archive.is_tar() {
            "Megatron-Core .nemo (tar), torch_dist"
        } else {
            "Megatron-Core folder, torch_dist"
        }
    }

    /// The model section of `model_config.yaml`.
    pub fn model_config(&self) -> &Node {
        &self.config
    }

    /// `model_config.yaml` as it stands.
    pub fn model_config_text(&self) -> &str {
        &self.config_text
    }

    /// The weights, under canonical names.
    pub fn tensors(&self) -> &dyn TensorSource {
        &self.tensors
    }

    /// The weights as the files name them.
    pub fn stored_tensors(&self) -> Vec<StoredTensorInfo> {
        let info = |(name, meta): (&str, &TensorMeta)| StoredTensorInfo {
            name: name.to_owned(),
            meta: meta.clone(),
        };
        self.tensors.stored().map(info).collect()
    }

    /// Size of all members.
    pub fn size_bytes(&self) -> u64 {
        self.archive.names().filter_map(|name| self.archive.get(name)).map(|bytes| bytes.len() as u64).sum()
    }

    /// Members beside the configuration and the weights.
    pub fn artifact_names(&self) -> Vec<&str> {
        self.archive.names().filter(|name| !name.contains('/') && *name != CONFIG).collect()
    }

    /// The file that a value of the configuration refers to: `nemo:<member>`, or a path whose base name, with or
    /// without hash prefixes, is a member. Paths of the machine that saved the checkpoint are never followed.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn artifact(&self, reference: &str) -> Result<Vec<u8>, FormatError> {
        let name = reference.strip_prefix("nemo:").unwrap_or(reference);
        let base = name.rsplit('/').next().unwrap_or(name);
        let found = self.archive.get(name).or_else(|| self.archive.get(base)).or_else(|| {
            let suffix = format!("_{base}");
            let member = self.artifact_names().into_iter().find(|member| member.ends_with(&suffix))?;
            self.archive.get(member)
        });
        found.map(<[u8]>::to_vec).ok_or_else(|| FormatError::MissingMember {
            path: self.path().to_owned(),
            member: name.to_owned(),
        })
    }

    /// A hash that changes when the checkpoint does, without reading all of a large one: the members' names and
    /// sizes, small members whole, samples of large ones. An archive and the folder extracted from it agree.
    pub fn fingerprint(&self) -> String {
        let mut names: Vec<&str> = self.archive.names().collect();
        names.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for name in names {
            let bytes = self.archive.get(name).unwrap_or_default();
            hasher.update(name.as_bytes());
            hasher.update(&[0]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            if bytes.len() <= SAMPLE_BYTES * NUM_SAMPLES {
                hasher.update(bytes);
            } else {
                let step = (bytes.len() - SAMPLE_BYTES) / (NUM_SAMPLES - 1);
                for sample in 0..NUM_SAMPLES {
                    hasher.update(&bytes[sample * step..sample * step + SAMPLE_BYTES]);
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Says in one sentence which kinds of weights are there when they are not the kind that is read.
fn check_weights(archive: &Archive) -> Result<(), FormatError> {
    let unsupported = |what: &str| {
        let hint = "only Megatron-Core checkpoints of the torch_dist backend are read so far".to_owned();
        Err(FormatError::Unsupported { what: format!("`{}`, {what},", archive.path().display()), hint })
    };
    if archive.names().any(|name| name.ends_with("model_weights.ckpt")) {
        return unsupported("a checkpoint with `model_weights.ckpt`");
    }
    let metadata = archive.member(&format!("{FOLDER}/metadata.json"))?;
    let parsed: serde_json::Value =
        serde_json::from_slice(metadata).map_err(|error| FormatError::Damaged {
            file: format!("{FOLDER}/metadata.json"),
            offset_bytes: error.column() as u64,
            reason: error.to_string(),
        })?;
    match parsed.get("sharded_backend").and_then(serde_json::Value::as_str) {
        Some("torch_dist") => Ok(()),
        Some("zarr") => unsupported("a checkpoint of the zarr backend"),
        other => unsupported(&format!("a checkpoint of the backend `{}`", other.unwrap_or("none"))),
    }
}
