//! Megatron distributed checkpoints: a folder of global arrays, `model_weights/` of a `.nemo` or `weights/` of NeMo 2.
//!
//! Tensors are listed under canonical names, one a layer, however the file stacks layers or shards them for tensor
//! parallelism. Optimizer state and `_extra_state` are skipped unread. Written by
//! `megatron.core.dist_checkpointing`, whose `metadata.json` marks the folder.

mod halves;
mod torch_dist;
mod zarr;

use std::sync::Arc;

use model_spec::LAYERS;

use crate::archive::Archive;
use crate::naming::{EVERY_EXPERT, TensorPlace, place};
use crate::pieced::{Array, PiecedSource};
use crate::{FormatError, StoredTensorInfo};

/// The folder inside a `.nemo`.
pub(crate) const FOLDER: &str = "model_weights";

/// A member of `folder`, which is empty where the files lie in the checkpoint's own.
fn member_of(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// How the arrays are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShardedBackend {
    TorchDist,
    Zarr,
}

impl ShardedBackend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TorchDist => "torch_dist",
            Self::Zarr => "zarr",
        }
    }

    fn detect(archive: &Archive, folder: &str) -> Result<Self, FormatError> {
        let member = member_of(folder, "metadata.json");
        let parsed: serde_json::Value =
            serde_json::from_slice(archive.member(&member)?).map_err(|error| {
                FormatError::damaged(&archive.describe(&member), error.column(), error.to_string())
            })?;
        match parsed.get("sharded_backend").and_then(serde_json::Value::as_str) {
            Some("torch_dist") => Ok(Self::TorchDist),
            Some("zarr") => Ok(Self::Zarr),
            other => Err(FormatError::Unsupported {
                what: format!(
                    "`{}`, whose `sharded_backend` is `{}`,",
                    archive.describe(&member),
                    other.unwrap_or("missing")
                ),
                hint: "save it with the `torch_dist` or the `zarr` backend".to_owned(),
            }),
        }
    }
}

/// What a folder of global arrays holds.
pub(crate) struct DistCkpt {
    pub(crate) backend: ShardedBackend,
    pub(crate) source: PiecedSource,
    pub(crate) stored: Vec<StoredTensorInfo>,
}

/// Opens `folder` of the archive; an empty name is the archive's own.
pub(crate) fn open(archive: &Arc<Archive>, folder: &str) -> Result<DistCkpt, FormatError> {
    let backend = ShardedBackend::detect(archive, folder)?;
    let arrays = match backend {
        ShardedBackend::TorchDist => torch_dist::arrays(archive, folder)?,
        ShardedBackend::Zarr => zarr::arrays(archive, folder)?,
    };
    let arrays = halves::joined(arrays)?;
    let mut source = PiecedSource::new(Arc::clone(archive));
    let mut stored = Vec::new();
    for array in arrays {
        let place = place(&array.name);
        stored.push(StoredTensorInfo {
            file: if folder.is_empty() { "the folder" } else { folder }.to_owned(),
            name: array.name.clone(),
            meta: array.meta.clone(),
            canonical: place.canonical(),
        });
        add(&mut source, place, array)?;
    }
    Ok(DistCkpt { backend, source, stored })
}

/// The torch file of what was saved beside sharded tensors, where it is inside a data file, and that file's name.
pub(crate) fn common_state<'a>(
    archive: &'a Archive,
    folder: &str,
) -> Result<Option<(&'a [u8], String)>, FormatError> {
    if ShardedBackend::detect(archive, folder)? != ShardedBackend::TorchDist {
        return Ok(None);
    }
    let Some((member_idx, item)) = torch_dist::common_state(archive, folder)? else { return Ok(None) };
    let bytes = archive.at(member_idx).get(item.start as usize..item.end as usize).unwrap_or_default();
    Ok(Some((bytes, archive.describe(archive.name_at(member_idx)))))
}

fn add(source: &mut PiecedSource, place: TensorPlace, array: Array) -> Result<(), FormatError> {
    match place {
        TensorPlace::Unused => Ok(()),
        TensorPlace::Outside(name) => source.add(name, array),
        TensorPlace::Layer { layer, rest, .. } => match split_experts(&rest) {
            Some((stem, rest)) => source
                .add_stack(array, ["expert"], |[expert]| format!("{LAYERS}{layer}.{stem}{expert}.{rest}")),
            None => source.add(format!("{LAYERS}{layer}.{rest}"), array),
        },
        TensorPlace::Stacked(rest) => match split_experts(&rest) {
            Some((stem, rest)) => source.add_stack(array, ["layer", "expert"], |[layer, expert]| {
                format!("{LAYERS}{layer}.{stem}{expert}.{rest}")
            }),
            None => source.add_stack(array, ["layer"], |[layer]| format!("{LAYERS}{layer}.{rest}")),
        },
    }
}

/// What stands before and behind the number of an expert, where an axis counts these.
fn split_experts(rest: &str) -> Option<(&str, &str)> {
    let (stem, behind) = rest.split_once(EVERY_EXPERT)?;
    Some((stem, behind.strip_prefix('.')?))
}
