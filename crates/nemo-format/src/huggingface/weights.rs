//! The weights of a Hugging Face folder: safetensors, else torch files, either in shards or in one file.
//!
//! The order is that of transformers' `_get_resolved_checkpoint_files` (5.24): one safetensors file, an index of such, one
//! torch file, an index of such. What lies beside and is not taken is compared, and named where it differs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::torch_files::TorchFileSource;
use crate::safetensors::{INDEX_NAME, SINGLE_NAME};
use crate::weight_index::WeightIndex;
use crate::{FormatError, SafetensorsSource, SourceNote, TensorSource};

const TORCH_INDEX_NAME: &str = "pytorch_model.bin.index.json";
const TORCH_SINGLE_NAME: &str = "pytorch_model.bin";
/// In the order in which they are looked for.
const NAMES: [&str; 4] = [SINGLE_NAME, INDEX_NAME, TORCH_SINGLE_NAME, TORCH_INDEX_NAME];
/// Endings of files that may hold weights.
const ENDINGS: [&str; 10] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".ot", ".index.json"];
/// What such files begin with that hold the state of a training.
const TRAINING: [&str; 6] =
    ["training_args", "optimizer", "scheduler", "rng_state", "random_states", "scaler"];

/// The weights that count, and what else there was.
pub(crate) struct HfWeights {
    pub(crate) source: Box<dyn TensorSource>,
    pub(crate) notes: Vec<SourceNote>,
}

/// Weights under one of the names, opened.
struct Candidate {
    source: Box<dyn TensorSource>,
    /// The index and its shards, or the one file.
    files: Vec<String>,
    notes: Vec<SourceNote>,
}

/// Opens the weights of `folder`. `named` is the file that `config.json` itself names (`transformers_weights`).
pub(crate) fn open_weights(folder: &Path, named: Option<&str>) -> Result<HfWeights, FormatError> {
    let mut present = NAMES.into_iter().filter(|name| folder.join(name).is_file());
    let first = match named {
        Some(named) => {
            check_named(folder, named)?;
            named
        }
        None => present.next().ok_or_else(|| FormatError::MissingMember {
            path: folder.to_path_buf(),
            member: format!("{SINGLE_NAME}`, `{INDEX_NAME}`, `{TORCH_SINGLE_NAME}` or `{TORCH_INDEX_NAME}"),
        })?,
    };
    let used = Candidate::open(folder, first)?;
    let mut notes = used.notes;
    let mut known: BTreeSet<String> = used.files.into_iter().collect();
    for other in present.filter(|other| *other != first) {
        known.insert(other.to_owned());
        let difference = match Candidate::open(folder, other) {
            Ok(other) => {
                known.extend(other.files);
                difference(&*used.source, &*other.source)?
            }
            Err(error) => {
                // Its shards are not strangers for that.
                if let Ok(index) = WeightIndex::read(&folder.join(other)) {
                    known.extend(index.shards().into_iter().map(str::to_owned));
                }
                let reason = error.to_string().replace(&format!("{}/", folder.display()), "");
                Some(format!("it cannot be read ({reason})"))
            }
        };
        if let Some(difference) = difference {
            let used = match named {
                Some(_) => format!("`{first}`, which `transformers_weights` of `config.json` names,"),
                None => format!("`{first}`, which transformers looks for first,"),
            };
            notes.push(SourceNote::Contradiction { used, ignored: format!("`{other}`"), difference });
        }
    }
    let files = others(folder, &known)?;
    if !files.is_empty() {
        notes.push(SourceNote::OtherFiles { files });
    }
    Ok(HfWeights { source: used.source, notes })
}

fn check_named(folder: &Path, named: &str) -> Result<(), FormatError> {
    let is_plain = Path::new(named).file_name() == Some(named.as_ref());
    let is_known = named.ends_with(".safetensors") || named.ends_with(".safetensors.index.json");
    if !is_plain || !is_known {
        return Err(FormatError::BadConfig {
            file: folder.join("config.json").display().to_string(),
            reason: format!(
                "the key `transformers_weights` is `{named}`, expected the name of a .safetensors file of the folder or of \
                 its index"
            ),
        });
    }
    if folder.join(named).is_file() {
        return Ok(());
    }
    Err(FormatError::MissingMember { path: folder.to_path_buf(), member: named.to_owned() })
}

impl Candidate {
    fn open(folder: &Path, name: &str) -> Result<Self, FormatError> {
        let path = folder.join(name);
        let is_torch = name.starts_with(TORCH_SINGLE_NAME);
        if !name.ends_with(".index.json") {
            let source: Box<dyn TensorSource> = if is_torch {
                Box::new(TorchFileSource::open(folder, &[path])?)
            } else {
                Box::new(SafetensorsSource::open_file(&path)?)
            };
            return Ok(Self { source, files: vec![name.to_owned()], notes: Vec::new() });
        }
        let index = WeightIndex::read(&path)?;
        index.check_shards(folder)?;
        let shards = index.shards();
        let mut files: Vec<String> = shards.iter().map(|&shard| shard.to_owned()).collect();
        files.push(name.to_owned());
        let (source, notes): (Box<dyn TensorSource>, _) = if is_torch {
            let paths: Vec<PathBuf> = shards.iter().map(|shard| folder.join(shard)).collect();
            let source = TorchFileSource::open(folder, &paths)?;
            let notes = index.notes(&source, &|_| None);
            (Box::new(source), notes)
        } else {
            let source = SafetensorsSource::open_files(folder, shards.iter().copied())?;
            let notes = index.notes(&source, &|name| source.file_of(name));
            (Box::new(source), notes)
        };
        index.check(&*source)?;
        Ok(Self { source, files, notes })
    }
}

/// Where `other` differs from what is used: in a name, a shape, a type, a number. `None` when it does not.
fn difference(used: &dyn TensorSource, other: &dyn TensorSource) -> Result<Option<String>, FormatError> {
    if let Some(name) = used.names().find(|name| other.meta(name).is_none()) {
        return Ok(Some(format!("it has no `{name}`")));
    }
    if let Some(name) = other.names().find(|name| used.meta(name).is_none()) {
        return Ok(Some(format!("it also has `{name}`")));
    }
    for name in used.names() {
        let (Some(this), Some(that)) = (used.meta(name), other.meta(name)) else { continue };
        if this.shape != that.shape {
            return Ok(Some(format!("`{name}` has shape {:?} there and {:?} here", that.shape, this.shape)));
        }
        if this.dtype != that.dtype {
            let (this, that) = (this.dtype.name(), that.dtype.name());
            return Ok(Some(format!("`{name}` is {that} there and {this} here")));
        }
        if used.read_whole(name)? != other.read_whole(name)? {
            return Ok(Some(format!("`{name}` has other numbers there")));
        }
    }
    Ok(None)
}

/// Files that may hold weights and are not known.
fn others(folder: &Path, known: &BTreeSet<String>) -> Result<Vec<String>, FormatError> {
    let entries = std::fs::read_dir(folder).map_err(|source| FormatError::io("list", folder, source))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_other = |name: &String| {
        ENDINGS.iter().any(|ending| name.ends_with(ending))
            && !TRAINING.iter().any(|start| name.starts_with(start))
            && !known.contains(name)
    };
    let mut files: Vec<String> = names.filter(is_other).collect();
    files.sort_unstable();
    Ok(files)
}
