//! Writing a Hugging Face folder: safetensors, sharded where they are large, and small files beside them.
//!
//! Layout: <https://github.com/huggingface/safetensors#format>; shards and their index as transformers writes them. The
//! folder is put together under another name and renamed when it is complete.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::eager::EagerFile;
use super::partial::Partial;
use super::stream::{Checksums, Event, Job, stream};
use super::{Overwrite, Progress, WriteOptions, WriteReport};
use crate::safetensors::{INDEX_NAME, SINGLE_NAME, dtype_name};
use crate::{FormatError, TensorMeta, TensorSource};

/// transformers cut at 5 GB, the limit of old hubs.
pub(crate) const MAX_SHARD_BYTES: u64 = 5_000_000_000;
/// Data starts on this boundary, as the format asks.
const ALIGNMENT: usize = 8;

/// A small file of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FolderFile {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// One safetensors file.
struct ShardFile<'a> {
    tensors: Vec<(&'a str, &'a TensorMeta)>,
    size_bytes: u64,
}

/// Writes the folder `output` with the tensors of `source` under their own names, in files of at most
/// `max_shard_bytes` unless one tensor is larger.
pub(crate) fn write_hf_folder(
    output: &Path,
    files: &[FolderFile],
    source: &dyn TensorSource,
    options: &WriteOptions<'_>,
    max_shard_bytes: u64,
) -> Result<WriteReport, FormatError> {
    check_target(output, options.overwrite)?;
    let folder = Partial::folder(output)?;
    let shards = plan(source, max_shard_bytes)?;
    let sizes = shards.iter().flat_map(|shard| &shard.tensors).map(|(_, meta)| size_of_tensor(meta));
    let mut progress = Progress::new(options.progress, sizes);
    let mut weight_map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => SINGLE_NAME.to_owned(),
            num_shards => format!("model-{:05}-of-{num_shards:05}.safetensors", index + 1),
        };
        write_shard(&folder.path().join(&name), shard, source, &mut progress)?;
        weight_map
            .extend(shard.tensors.iter().map(|(tensor, _)| ((*tensor).to_owned(), name.as_str().into())));
    }
    let total_bytes = progress.state.total_bytes;
    for file in files {
        let path = folder.path().join(&file.name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| FormatError::io("create", parent, source))?;
        }
        write_file(&path, &file.bytes)?;
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total_bytes}, "weight_map": weight_map});
        write_file(&folder.path().join(INDEX_NAME), format!("{index:#}\n").as_bytes())?;
    }
    let size_bytes = folder_bytes(folder.path())?;
    folder.persist(output).map_err(|source| FormatError::io("create", output, source))?;
    let metas = shards.iter().flat_map(|shard| &shard.tensors).map(|(_, meta)| meta);
    Ok(WriteReport {
        num_tensors: progress.state.num_tensors,
        num_parameters: metas.map(|meta| meta.num_elems().unwrap_or(0)).sum(),
        tensor_bytes: total_bytes,
        size_bytes,
        artifact_members: Vec::new(),
    })
}

/// Refuses what must not be replaced: anything without leave, and anything but an empty folder or a model's folder.
fn check_target(output: &Path, overwrite: Overwrite) -> Result<(), FormatError> {
    let Ok(metadata) = fs::symlink_metadata(output) else { return Ok(()) };
    if overwrite == Overwrite::Refuse {
        return Err(FormatError::OutputExists { path: output.to_owned() });
    }
    let is_empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if metadata.is_dir() && (output.join("config.json").is_file() || is_empty()) {
        return Ok(());
    }
    Err(FormatError::Unsupported {
        what: format!("`{}`, which would be replaced,", output.display()),
        hint: "only an empty folder or a folder with a `config.json` is replaced; name another".to_owned(),
    })
}

fn size_of_tensor(meta: &TensorMeta) -> u64 {
    meta.size_bytes().unwrap_or(u64::MAX)
}

fn plan(source: &dyn TensorSource, max_shard_bytes: u64) -> Result<Vec<ShardFile<'_>>, FormatError> {
    let mut shards: Vec<ShardFile<'_>> = Vec::new();
    for name in source.names() {
        let meta = source.meta(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        let size_bytes = size_of_tensor(meta);
        match shards.last_mut() {
            Some(shard) if shard.size_bytes.saturating_add(size_bytes) <= max_shard_bytes => {
                shard.size_bytes += size_bytes;
                shard.tensors.push((name, meta));
            }
            _ => shards.push(ShardFile { tensors: vec![(name, meta)], size_bytes }),
        }
    }
    Ok(shards)
}

fn write_shard(
    path: &Path,
    shard: &ShardFile<'_>,
    source: &dyn TensorSource,
    progress: &mut Progress<'_>,
) -> Result<(), FormatError> {
    let io_error = |source| FormatError::io("write", path, source);
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for (name, meta) in &shard.tensors {
        let end = at + size_of_tensor(meta);
        let entry = json!({"dtype": dtype_name(meta.dtype), "shape": meta.shape, "data_offsets": [at, end]});
        header.insert((*name).to_owned(), entry);
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let file = File::create_new(path).and_then(EagerFile::new).map_err(io_error)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| out.write_all(&header))
        .map_err(io_error)?;
    let jobs: Vec<Job<'_>> =
        shard.tensors.iter().map(|&(name, meta)| Job { name, dtype: meta.dtype }).collect();
    stream(source, &jobs, Checksums::None, &mut |event| match event {
        Event::Begin(_) => Ok(()),
        Event::Bytes(bytes) => out.write_all(bytes).map_err(io_error),
        Event::End(index, _) => {
            progress.advance(shard.tensors.get(index).map_or(0, |(_, meta)| size_of_tensor(meta)));
            Ok(())
        }
    })?;
    let file = out.into_inner().map_err(|error| io_error(error.into_error()))?;
    file.finish().map_err(io_error)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    let written =
        File::create_new(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|source| FormatError::io("write", path, source))
}

fn folder_bytes(folder: &Path) -> Result<u64, FormatError> {
    let sum =
        || -> std::io::Result<u64> { fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len())).sum() };
    sum().map_err(|source| FormatError::io("read", folder, source))
}
