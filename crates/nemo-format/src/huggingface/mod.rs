//! Hugging Face folders: `config.json`, the weights beside it, and the tokenizer's files.
//!
//! What the numbers mean for a model is decided in `convert`, what the files mean for a tokenizer in `tokenizer`.

mod chat_templates;
mod config;
mod fp8;
mod gpt_oss;
mod tokenizer_files;
pub(crate) mod torch_files;
mod weights;

use std::path::Path;

pub(crate) use self::chat_templates::{DEFAULT, TEMPLATE_FILE, TEMPLATE_FOLDER};
pub(crate) use self::config::{HfConfig, HfRope};
pub(crate) use self::fp8::dequantized;
pub(crate) use self::gpt_oss::unstacked;
pub(crate) use self::tokenizer_files::{HfTokenizer, Vocabulary};
pub(crate) use self::weights::{HfWeights, open_weights};
use crate::FormatError;

/// Far above any real configuration; a tokenizer.json can have 20 MiB.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Reads a file that must be small, or `None` when it is not there.
pub(crate) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FormatError> {
    let size_bytes = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FormatError::io("open", path, source)),
    };
    if size_bytes > MAX_JSON_BYTES {
        return Err(FormatError::Limit {
            file: path.display().to_string(),
            what: "bytes",
            value: size_bytes,
            limit: MAX_JSON_BYTES,
        });
    }
    crate::lfs::read(path).map(Some)
}

/// Reads a JSON file, or `None` when it is not there.
pub(crate) fn read_json(path: &Path) -> Result<Option<serde_json::Value>, FormatError> {
    let Some(bytes) = read_optional(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| FormatError::BadConfig {
        file: path.display().to_string(),
        reason: error.to_string(),
    })
}
