//! The way back: Megatron-Core tensors and `model_config.yaml` as a Hugging Face Llama, Mistral, Mixtral, Qwen2 or Qwen3
//! (with experts or without), OLMoE, Gemma or Gemma 2.
//!
//! Whatever the target's `config.json` cannot say is refused by name. Values are moved, never computed, except for the 1
//! that Gemma's norm weights are without.

mod config;
mod experts;
mod gemma2;
mod templates;
mod tokenizer;

use std::collections::HashSet;
use std::ops::Range;

use hydra_config::Node;
use model_spec::{Module, Part, TensorId, TensorSpec, parse_name};

use self::config::{NemoConfig, read_arch};
use super::arch::{Biases, ModelArch};
use super::family::{Announced, Family};
use super::rows::{Piece, PieceFrom, RowSource, Values};
use super::{ConvertNote, Converted};
use crate::names::{GEMMA2, LLAMA, MIXTRAL, NameMap, QWEN_MOE, Qkv};
use crate::writer::FolderFile;
use crate::{DType, FormatError, TensorSource};

/// Everything that is written.
pub(super) struct Exported {
    pub(super) files: Vec<FolderFile>,
    pub(super) source: RowSource,
    pub(super) dtype: DType,
    pub(super) notes: Vec<ConvertNote>,
}

/// Presents a loaded checkpoint as a Hugging Face folder.
pub(super) fn export(converted: Converted, dtype: Option<DType>) -> Result<Exported, FormatError> {
    let Converted { config, artifacts, source, .. } = converted;
    let embedding = TensorId::outside(Module::WordEmbeddings, Part::Weight).name();
    let embedding = source.meta(&embedding).ok_or(FormatError::MissingTensor { name: embedding })?;
    let dtype = dtype.unwrap_or(embedding.dtype);
    let config = NemoConfig::new(&config);
    let arch = read_arch(&config, embedding.shape.first().copied().unwrap_or(0))?;
    let has_mlp_bias = arch.biases() == Biases::All && any_mlp_bias(&*source, &arch)?;
    if has_mlp_bias && matches!(arch.family.facts().mlp_bias, Announced::Never) {
        return Err(FormatError::NotExported {
            what: format!("biases of the MLP, which no {} has,", arch.family.name()),
            hint: "leave `--to hf` out to write a `.nemo`, which generates as it is".to_owned(),
        });
    }
    let norm_shift = norm_shift(&config, &arch)?;
    let mut builder = Builder { out: RowSource::new(source, dtype), arch: &arch, norm_shift, dtype };
    builder.tensors(has_mlp_bias)?;
    let source = builder.out;
    refuse_left_over(&source, has_mlp_bias)?;
    let mut notes = Vec::new();
    let num_values = source.num_rounded()?;
    if num_values > 0 {
        notes.push(ConvertNote::RoundedNorms { num_values, dtype });
    }
    let tokenizer = tokenizer::files(config.node(), &artifacts, arch.family)?;
    if let Some(name) = tokenizer.missing {
        notes.push(ConvertNote::NoTokenizer { name });
    }
    let mut files = vec![config::config_json(&arch, &config, has_mlp_bias, dtype, &tokenizer.ids)];
    files.extend(tokenizer.files);
    Ok(Exported { files, source, dtype, notes })
}

/// Every tensor must have gone somewhere; one that has not is part of a model that the target is not.
fn refuse_left_over(out: &RowSource, has_mlp_bias: bool) -> Result<(), FormatError> {
    let used: HashSet<&str> = out.used().map(|(name, _)| name).collect();
    // Biases of zeros are left out where the target has none.
    let is_zero = |name: &str| !has_mlp_bias && parse_name(name).is_some_and(is_mlp_bias);
    match out.inner().names().find(|name| !used.contains(name) && !is_zero(name)) {
        None => Ok(()),
        Some(name) => Err(FormatError::NotExported {
            what: format!("the tensor `{name}`, for which its configuration has no use,"),
            hint: "correct `model_config.yaml`, or leave `--to hf` out to write a `.nemo`".to_owned(),
        }),
    }
}

/// What is added to a stored norm weight: Gemma's are without the 1 that `layernorm_zero_centered_gamma` also leaves out.
fn norm_shift(config: &NemoConfig<'_>, arch: &ModelArch) -> Result<f32, FormatError> {
    let is_stored_centred = config.bool("layernorm_zero_centered_gamma")?.unwrap_or(false);
    let is_wanted_centred =
        arch.family.facts().has_zero_centered_gamma || arch.model.norm.zero_centered_gamma;
    Ok(f32::from(i8::from(is_stored_centred) - i8::from(is_wanted_centred)))
}

/// Whether a bias of the feed-forward part says anything. Conversion writes zeros where the original had none.
fn any_mlp_bias(source: &dyn TensorSource, arch: &ModelArch) -> Result<bool, FormatError> {
    for tensor in arch.spec().tensors().filter(|tensor| is_mlp_bias(tensor.id)) {
        let bytes = source.read_whole(&tensor.name)?;
        if bytes.iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_mlp_bias(id: TensorId) -> bool {
    matches!(id.module, Module::Fc1 | Module::Fc2) && id.part == Part::Bias
}

struct Builder<'a> {
    out: RowSource,
    arch: &'a ModelArch,
    norm_shift: f32,
    dtype: DType,
}

impl Builder<'_> {
    fn tensors(&mut self, has_mlp_bias: bool) -> Result<(), FormatError> {
        for tensor in self.arch.spec().tensors() {
            if is_mlp_bias(tensor.id) && !has_mlp_bias {
                continue;
            }
            self.add(&tensor)?;
        }
        Ok(())
    }

    fn add(&mut self, tensor: &TensorSpec) -> Result<(), FormatError> {
        let names = names_of(self.arch.family);
        let TensorId { layer, expert, module, part } = tensor.id;
        let layer = layer.unwrap_or_default() as u64;
        let shape = tensor.shape();
        let Some((&num_rows, columns)) = shape.split_first() else { return Ok(()) };
        if let Some(to) = names.name_of(tensor.id) {
            return match (module.is_norm(), part) {
                (true, Part::Weight) => self.norm(to, &tensor.name, num_rows),
                _ => self.rows(to, &tensor.name, 0..num_rows, columns),
            };
        }
        if let Some(stems) = fc1_stems(&names, module, expert) {
            let width = num_rows / stems.len().max(1) as u64;
            for (start, stem) in (0..).step_by(width.max(1) as usize).zip(stems) {
                let to = names.in_layer(layer, &stem, part.suffix());
                self.rows(to, &tensor.name, start..start + width, columns)?;
            }
            return Ok(());
        }
        self.qkv(layer, &tensor.name, part, columns)?;
        let is_for_all_four = matches!(self.arch.family.facts().attention_bias, Announced::ByKey(..));
        if part == Part::Bias && self.arch.biases() == Biases::Qkv && is_for_all_four {
            // transformers' `attention_bias` is for the output of attention, too.
            let num_rows = self.arch.model.hidden_size as u64;
            let zeros = Piece { rows: 0..num_rows, from: PieceFrom::Zeros };
            let to = names.in_layer(layer, names.proj, part.suffix());
            self.out.add(to, vec![num_rows], vec![zeros], Values::Kept)?;
        }
        Ok(())
    }

    /// Takes the query heads, the key head and the value head out of every group.
    fn qkv(&mut self, layer: u64, from: &str, part: Part, columns: &[u64]) -> Result<(), FormatError> {
        let Qkv::Separate(stems) = LLAMA.qkv else { return Ok(()) };
        let heads = self.arch.model.heads;
        let (head_dim, num_groups) = (heads.kv_channels as u64, heads.num_query_groups as u64);
        let group_rows = heads.queries_per_group() as u64 * head_dim;
        let stride = group_rows + 2 * head_dim;
        let parts = [(0, group_rows), (group_rows, head_dim), (group_rows + head_dim, head_dim)];
        for (stem, (base, num_rows)) in stems.into_iter().zip(parts) {
            let pieces = (0..num_groups).map(|group| {
                let start = group * stride + base;
                Piece { rows: start..start + num_rows, from: PieceFrom::Tensor(from.to_owned()) }
            });
            let pieces: Vec<Piece> = pieces.collect();
            let shape = [&[num_rows * num_groups], columns].concat();
            self.out.add(LLAMA.in_layer(layer, stem, part.suffix()), shape, pieces, Values::Kept)?;
        }
        Ok(())
    }

    fn norm(&mut self, to: String, from: &str, num_rows: u64) -> Result<(), FormatError> {
        let values = if self.norm_shift == 0.0 {
            Values::Kept
        } else {
            Values::Shifted { by: self.norm_shift, dtype: self.dtype }
        };
        let piece = Piece { rows: 0..num_rows, from: PieceFrom::Tensor(from.to_owned()) };
        self.out.add(to, vec![num_rows], vec![piece], values)
    }

    /// Some rows of a tensor; `columns` are its other axes.
    fn rows(&mut self, to: String, from: &str, rows: Range<u64>, columns: &[u64]) -> Result<(), FormatError> {
        let shape = [&[rows.end - rows.start], columns].concat();
        let piece = Piece { rows, from: PieceFrom::Tensor(from.to_owned()) };
        self.out.add(to, shape, vec![piece], Values::Kept)
    }
}

/// What the target calls its tensors.
fn names_of(family: Family) -> NameMap {
    match family {
        Family::Gemma2 => GEMMA2,
        Family::Mixtral => MIXTRAL,
        Family::Qwen2Moe | Family::Qwen3Moe | Family::Olmoe => QWEN_MOE,
        _ => LLAMA,
    }
}

/// What the rows of a `linear_fc1` become, one after the other.
fn fc1_stems(names: &NameMap, module: Module, expert: Option<usize>) -> Option<Vec<String>> {
    match module {
        Module::Fc1 => Some(names.fc1.iter().map(|&stem| stem.to_owned()).collect()),
        Module::SharedFc1 | Module::ExpertFc1 => Some(names.experts?.fc1_of(expert).to_vec()),
        _ => None,
    }
}

/// A value of a configuration as text, for messages.
fn shown(value: &Node) -> String {
    value.to_yaml().trim_end().to_owned()
}
