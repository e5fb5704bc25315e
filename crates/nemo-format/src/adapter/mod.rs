//! LoRA adapters, added to the weights of their model while these are read.
//!
//! Read are the adapters of NeMo 1 (`.nemo` with `peft` in its configuration), NeMo 2, Megatron-Bridge and Hugging Face's
//! PEFT. Each becomes pairs of factors for rows of the linear layers of attention and MLP; [`merge`] adds
//! `scale * B A` in float32. Whatever is not such a pair is refused by its name: nothing of an adapter is left out.

mod base_model;
mod config;
mod megatron;
mod merge;
mod peft;
mod summary;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hydra_config::Node;

use self::base_model::BaseModel;
pub(crate) use self::merge::{AdaptedSource, Precision};
pub use self::summary::AdapterSummary;
use crate::adapter_names::Target;
use crate::archive::{Archive, CONFIG};
use crate::convert_dtype::{convert_into, is_float};
use crate::iterations::{self, Iteration};
use crate::{DType, FormatError, TensorSource, nemo2};

/// `[rows, columns]`, row-major.
#[derive(Clone, Debug, PartialEq)]
struct Matrix {
    rows: u64,
    columns: u64,
    values: Vec<f32>,
}

/// The two factors of an update of one linear layer, or of a part of its rows.
#[derive(Clone, Debug)]
struct Pair {
    target: Target,
    /// What the adapter calls it, for messages.
    name: String,
    /// `A`, `[rank, in_features]`.
    down: Matrix,
    /// `B`, `[out_features, rank]`.
    up: Matrix,
    /// What the product is multiplied by.
    scale: f32,
    /// The number that the scale follows from, where the adapter states one.
    alpha: Option<f64>,
}

/// An adapter that has been read whole.
#[derive(Debug)]
struct Adapter {
    path: String,
    format: &'static str,
    pairs: Vec<Pair>,
    /// The model that it was trained on, as the adapter itself calls it.
    trained_on: Option<String>,
}

impl Adapter {
    /// Opens an adapter of any kind, to be added to `base`.
    fn open(path: &Path, base: &BaseModel) -> Result<Self, FormatError> {
        let is_file = |name: &str| path.join(name).is_file();
        let adapter = if is_file(peft::CONFIG) {
            peft::open(path, base)?
        } else if let Some(Iteration::Bridge(iteration)) = iterations::find(path)? {
            megatron::open_bridge(&iteration, base)?
        } else if path.is_dir() && is_file("config.json") && !is_file(CONFIG) {
            return Err(not_an_adapter(path, "a Hugging Face model: it has no `adapter_config.json`"));
        } else {
            let archive = Arc::new(Archive::open(path)?);
            if archive.get(CONFIG).is_some() {
                megatron::open_nemo(&archive, base)?
            } else if archive.names().any(|name| name.starts_with(nemo2::CONTEXT)) {
                megatron::open_nemo2(&archive, base)?
            } else {
                let what = "a folder without `adapter_config.json`, `model_config.yaml`, `context/` or `run_config.yaml`";
                return Err(not_an_adapter(path, what));
            }
        };
        if adapter.pairs.is_empty() {
            return Err(not_an_adapter(path, "without a single pair of factors"));
        }
        Ok(adapter)
    }
}

/// Opens adapters and puts them on top of `onto`, in their order. `config` is the configuration of the model and
/// `base_name` what messages call it.
///
/// # Errors
/// When an adapter is damaged, is more than a LoRA of linear layers, or is of another model.
pub(crate) fn adapt<S: TensorSource>(
    onto: &mut AdaptedSource<S>,
    config: &Node,
    base_name: &str,
    paths: &[PathBuf],
) -> Result<Vec<AdapterSummary>, FormatError> {
    let model = BaseModel::read(config, base_name)?;
    let mut summaries = Vec::new();
    for path in paths {
        let adapter = Adapter::open(path, &model)?;
        summaries.push(AdapterSummary::of(&adapter));
        onto.add(adapter, &model)?;
    }
    Ok(summaries)
}

/// A tensor of an adapter as float32.
fn matrix(source: &dyn TensorSource, file: &str, name: &str) -> Result<Matrix, FormatError> {
    let meta = source.meta(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
    let &[rows, columns] = meta.shape.as_slice() else {
        let reason = format!("it has shape {:?} in `{file}`, expected a matrix", meta.shape);
        return Err(FormatError::bad_tensor(name, reason));
    };
    if rows == 0 || columns == 0 {
        let reason = format!("it has shape {:?} in `{file}`, a factor without elements", meta.shape);
        return Err(FormatError::bad_tensor(name, reason));
    }
    if !is_float(meta.dtype) {
        return Err(FormatError::Unsupported {
            what: format!("tensor `{name}` of dtype {} in `{file}`", meta.dtype.name()),
            hint: "save the adapter as float32, bfloat16 or float16".to_owned(),
        });
    }
    let bytes = source.read_whole(name)?;
    Ok(Matrix { rows, columns, values: floats(&bytes, meta.dtype) })
}

/// Little-endian elements as numbers.
fn floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let mut wide = vec![0; bytes.len() / dtype.size_bytes() * DType::F32.size_bytes()];
    convert_into(bytes, dtype, &mut wide, DType::F32, 0.0);
    wide.as_chunks::<4>().0.iter().map(|elem| f32::from_le_bytes(*elem)).collect()
}

fn not_an_adapter(path: &Path, what: &str) -> FormatError {
    FormatError::Unsupported {
        what: format!("`{}`, {what},", path.display()),
        hint: "an adapter is a LoRA of NeMo 1 (`.nemo`), NeMo 2, Megatron-Bridge or Hugging Face's PEFT"
            .to_owned(),
    }
}

/// The refusal of what is more than, or other than, a plain LoRA.
fn refused(file: &str, what: &str) -> FormatError {
    FormatError::Unsupported {
        what: format!("`{file}`, {what},"),
        hint: "what is merged is a plain LoRA of the linear layers of attention and MLP; merge it with the software that \
               trained it, and give the merged model"
            .to_owned(),
    }
}
