//! The weights of a Hugging Face folder: safetensors where there are any, else the files of `torch.save`.
//!
//! Tensors keep the names of the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::safetensors::{INDEX_NAME, SINGLE_NAME, read_index};
use crate::torch_file::TorchFileSource;
use crate::{FormatError, SafetensorsSource, TensorSource};

const TORCH_INDEX_NAME: &str = "pytorch_model.bin.index.json";
const TORCH_SINGLE_NAME: &str = "pytorch_model.bin";

/// Opens the weights of `folder`, single or sharded.
pub(crate) fn open_weights(folder: &Path) -> Result<Box<dyn TensorSource>, FormatError> {
    let has = |name: &str| folder.join(name).is_file();
    if has(INDEX_NAME) || has(SINGLE_NAME) {
        return Ok(Box::new(SafetensorsSource::open_folder(folder)?));
    }
    if has(TORCH_INDEX_NAME) {
        let weight_map = read_index(&folder.join(TORCH_INDEX_NAME))?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let files: Vec<PathBuf> = shards.into_iter().map(|shard| folder.join(shard)).collect();
        let source = TorchFileSource::open(folder, &files)?;
        if let Some((name, shard)) = weight_map.iter().find(|(name, _)| source.meta(name).is_none()) {
            let reason = format!("the index says it is in `{shard}`, which does not have it");
            return Err(FormatError::bad_tensor(name, reason));
        }
        return Ok(Box::new(source));
    }
    if has(TORCH_SINGLE_NAME) {
        return Ok(Box::new(TorchFileSource::open(folder, &[folder.join(TORCH_SINGLE_NAME)])?));
    }
    Err(FormatError::MissingMember {
        path: folder.to_path_buf(),
        member: format!("{SINGLE_NAME}`, `{INDEX_NAME}`, `{TORCH_SINGLE_NAME}` or `{TORCH_INDEX_NAME}"),
    })
}
