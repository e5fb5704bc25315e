//! The way back: Megatron-Core tensors and `model_config.yaml` as a Hugging Face Llama, Mistral or Gemma.
//!
//! Whatever the target's `config.json` cannot say is refused by name. Values are moved, never computed, except for the 1
//! that Gemma's norm weights are without.

mod config;
mod templates;
mod tokenizer;

use std::collections::HashSet;
use std::ops::Range;

use hydra_config::Node;

use self::config::{ModelConfig, read_arch};
use super::arch::{Biases, Family, ModelArch};
use super::names::{LLAMA, NameMap, Qkv};
use super::rows::{Piece, PieceFrom, RowSource, Values};
use super::{ConvertNote, Converted, EMBEDDING};
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
    let embedding =
        source.meta(EMBEDDING).ok_or_else(|| FormatError::MissingTensor { name: EMBEDDING.to_owned() })?;
    let dtype = dtype.unwrap_or(embedding.dtype);
    let config = ModelConfig::new(&config);
    let arch = read_arch(&config, embedding.shape.first().copied().unwrap_or(0), &*source)?;
    let has_mlp_bias = arch.biases == Biases::All && any_mlp_bias(&*source, &arch)?;
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
    let mut files = vec![config::config_json(&arch, &config, (has_mlp_bias, dtype), &tokenizer.ids)];
    files.extend(tokenizer.files);
    Ok(Exported { files, source, dtype, notes })
}

/// Every tensor must have gone somewhere; one that has not is part of a model that the target is not.
fn refuse_left_over(out: &RowSource, has_mlp_bias: bool) -> Result<(), FormatError> {
    let used: HashSet<&str> = out.used().map(|(name, _)| name).collect();
    // Biases of zeros are left out where the target has none.
    let is_zero = |name: &str| !has_mlp_bias && name.contains(".mlp.linear_fc") && name.ends_with(".bias");
    match out.inner().names().find(|name| !used.contains(name) && !is_zero(name)) {
        None => Ok(()),
        Some(name) => Err(FormatError::NotExported {
            what: format!("the tensor `{name}`, for which its configuration has no use,"),
            hint: "correct `model_config.yaml`, or leave `--to hf` out to write a `.nemo`".to_owned(),
        }),
    }
}

/// What is added to a stored norm weight: Gemma's are without the 1 that `layernorm_zero_centered_gamma` also leaves out.
fn norm_shift(config: &ModelConfig<'_>, arch: &ModelArch) -> Result<f32, FormatError> {
    let is_stored_centred = config.bool("layernorm_zero_centered_gamma")?.unwrap_or(false);
    let is_wanted_centred = arch.family == Family::Gemma;
    Ok(f32::from(i8::from(is_stored_centred) - i8::from(is_wanted_centred)))
}

/// Whether a bias of the feed-forward part says anything. Conversion writes zeros where the original had none.
fn any_mlp_bias(source: &dyn TensorSource, arch: &ModelArch) -> Result<bool, FormatError> {
    for layer in 0..arch.num_layers {
        for linear in ["linear_fc1", "linear_fc2"] {
            let bytes = source.read_whole(&format!("model.decoder.layers.{layer}.mlp.{linear}.bias"))?;
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

struct Builder<'a> {
    out: RowSource,
    arch: &'a ModelArch,
    norm_shift: f32,
    dtype: DType,
}

impl Builder<'_> {
    fn tensors(&mut self, has_mlp_bias: bool) -> Result<(), FormatError> {
        let (arch, names) = (self.arch, LLAMA);
        let (vocab_size, hidden_size) = (arch.vocab_size, arch.hidden_size);
        self.rows(names.embedding(), EMBEDDING, 0..vocab_size, Some(hidden_size))?;
        for layer in 0..arch.num_layers {
            self.layer(layer, &names, has_mlp_bias)?;
        }
        self.norm(names.outside(names.final_norm, "weight"), "model.decoder.final_layernorm.weight")?;
        if !arch.tied {
            self.rows(names.output("weight"), "model.output_layer.weight", 0..vocab_size, Some(hidden_size))?;
        }
        Ok(())
    }

    fn layer(&mut self, layer: u64, names: &NameMap, has_mlp_bias: bool) -> Result<(), FormatError> {
        let arch = self.arch;
        let prefix = format!("model.decoder.layers.{layer}");
        self.norm(
            names.in_layer(layer, names.attention_norm, "weight"),
            &format!("{prefix}.self_attention.linear_qkv.layer_norm_weight"),
        )?;
        if let Some(mlp_norm) = names.mlp_norm {
            self.norm(
                names.in_layer(layer, mlp_norm, "weight"),
                &format!("{prefix}.mlp.linear_fc1.layer_norm_weight"),
            )?;
        }
        for suffix in ["weight", "bias"] {
            let columns = |columns| (suffix == "weight").then_some(columns);
            let attention_columns = arch.num_attention_heads * arch.head_dim;
            if suffix == "weight" || arch.biases != Biases::None {
                self.qkv(layer, &format!("{prefix}.self_attention.linear_qkv.{suffix}"), suffix)?;
                let to = names.in_layer(layer, names.proj, suffix);
                let from = format!("{prefix}.self_attention.linear_proj.{suffix}");
                if suffix == "bias" && arch.biases == Biases::Qkv {
                    // transformers' `attention_bias` is for all four.
                    let zeros = Piece { rows: 0..arch.hidden_size, from: PieceFrom::Zeros };
                    self.out.add(to, vec![arch.hidden_size], vec![zeros], Values::Kept)?;
                } else {
                    self.rows(to, &from, 0..arch.hidden_size, columns(attention_columns))?;
                }
            }
            if suffix == "weight" || has_mlp_bias {
                let fc1 = format!("{prefix}.mlp.linear_fc1.{suffix}");
                let mut start = 0;
                for stem in names.fc1 {
                    let rows = start..start + arch.ffn_hidden_size;
                    start = rows.end;
                    self.rows(names.in_layer(layer, stem, suffix), &fc1, rows, columns(arch.hidden_size))?;
                }
                let fc2 = format!("{prefix}.mlp.linear_fc2.{suffix}");
                let to = names.in_layer(layer, names.fc2, suffix);
                self.rows(to, &fc2, 0..arch.hidden_size, columns(arch.ffn_hidden_size))?;
            }
        }
        Ok(())
    }

    /// Takes the query heads, the key head and the value head out of every group.
    fn qkv(&mut self, layer: u64, from: &str, suffix: &str) -> Result<(), FormatError> {
        let Qkv::Separate(stems) = LLAMA.qkv else { return Ok(()) };
        let arch = self.arch;
        let group_rows = arch.num_attention_heads / arch.num_query_groups * arch.head_dim;
        let stride = group_rows + 2 * arch.head_dim;
        let parts =
            [(0, group_rows), (group_rows, arch.head_dim), (group_rows + arch.head_dim, arch.head_dim)];
        for (stem, (base, num_rows)) in stems.into_iter().zip(parts) {
            let pieces = (0..arch.num_query_groups).map(|group| {
                let start = group * stride + base;
                Piece { rows: start..start + num_rows, from: PieceFrom::Tensor(from.to_owned()) }
            });
            let pieces: Vec<Piece> = pieces.collect();
            let mut shape = vec![num_rows * arch.num_query_groups];
            shape.extend((suffix == "weight").then_some(arch.hidden_size));
            self.out.add(LLAMA.in_layer(layer, stem, suffix), shape, pieces, Values::Kept)?;
        }
        Ok(())
    }

    fn norm(&mut self, to: String, from: &str) -> Result<(), FormatError> {
        let values = if self.norm_shift == 0.0 {
            Values::Kept
        } else {
            Values::Shifted { by: self.norm_shift, dtype: self.dtype }
        };
        let rows = 0..self.arch.hidden_size;
        let piece = Piece { rows, from: PieceFrom::Tensor(from.to_owned()) };
        self.out.add(to, vec![self.arch.hidden_size], vec![piece], values)
    }

    /// Some rows of a tensor; a bias has no columns.
    fn rows(
        &mut self,
        to: String,
        from: &str,
        rows: Range<u64>,
        columns: Option<u64>,
    ) -> Result<(), FormatError> {
        let mut shape = vec![rows.end - rows.start];
        shape.extend(columns);
        let piece = Piece { rows, from: PieceFrom::Tensor(from.to_owned()) };
        self.out.add(to, shape, vec![piece], Values::Kept)
    }
}

/// A value of a configuration as text, for messages.
fn shown(value: &Node) -> String {
    value.to_yaml().trim_end().to_owned()
}
