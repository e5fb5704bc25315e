//! A family's weights as Megatron-Core tensors: fused QKV by query group, `linear_fc1` as `[gate; up]`.
//!
//! The source's own names come from a [`NameMap`]; nothing here reads a file.

use std::collections::HashMap;

use super::arch::{Biases, Family, ModelArch, Normalization};
use super::names::{Linear, NameMap, Qkv, is_buffer};
use super::rows::{Piece, PieceFrom, RowSource, Values};
use crate::{DType, FormatError, TensorSource};

/// Which linear layers of the source have biases.
pub(super) fn biases(names: &NameMap, source: &dyn TensorSource) -> Biases {
    let has = |stem: &&str| source.meta(&names.in_layer(0, stem, "bias")).is_some();
    if [names.proj, names.fc2].iter().chain(names.fc1).any(has) {
        Biases::All
    } else if names.qkv_stems().iter().any(has) {
        Biases::Qkv
    } else {
        Biases::None
    }
}

/// Presents `source` under Megatron-Core names, floating-point values as `dtype`.
pub(super) fn canonical(
    source: Box<dyn TensorSource>,
    arch: &ModelArch,
    names: NameMap,
    dtype: DType,
) -> Result<RowSource, FormatError> {
    let mut builder = Builder { out: RowSource::new(source, dtype), arch, names };
    let (vocab_size, hidden_size) = (arch.vocab_size, arch.hidden_size);
    builder.whole(
        "model.embedding.word_embeddings.weight",
        vec![vocab_size, hidden_size],
        names.embedding(),
    )?;
    if let Some(positions) = names.positions {
        let shape = vec![arch.max_position_embeddings, hidden_size];
        let from = names.outside(positions, "weight");
        builder.whole("model.embedding.position_embeddings.weight", shape, from)?;
    }
    for layer in 0..arch.num_layers {
        builder.layer(layer)?;
    }
    builder.norm("model.decoder.final_layernorm.", &|suffix| names.outside(names.final_norm, suffix))?;
    if !arch.tied {
        builder.whole("model.output_layer.weight", vec![vocab_size, hidden_size], names.output("weight"))?;
    }
    if arch.family == Family::GptJ {
        builder.whole("model.output_layer.bias", vec![vocab_size], names.output("bias"))?;
    }
    check_all_used(&builder.out, arch, &names)?;
    Ok(builder.out)
}

/// Every row of the source must have been used: an unused row means another architecture.
fn check_all_used(out: &RowSource, arch: &ModelArch, names: &NameMap) -> Result<(), FormatError> {
    let mut used_rows: HashMap<&str, u64> = HashMap::new();
    for (from, rows) in out.used() {
        *used_rows.entry(from).or_default() += rows;
    }
    let (output_weight, family) = (names.output("weight"), arch.family.name());
    for name in out.inner().names() {
        let Some(&used) = used_rows.get(name) else {
            if is_buffer(name) || (arch.tied && name == output_weight) {
                continue;
            }
            let reason = format!(
                "a model of type `{family}` with this configuration has no such tensor; the configuration and the weights do not \
                 belong together, or it is a variant that is not supported"
            );
            return Err(FormatError::bad_tensor(name, reason));
        };
        let stored = out.num_rows(name);
        if used != stored {
            let reason = format!(
                "it has {stored} rows, the configuration needs {used}; the configuration and the weights do not belong together"
            );
            return Err(FormatError::bad_tensor(name, reason));
        }
    }
    Ok(())
}

struct Builder<'a> {
    out: RowSource,
    arch: &'a ModelArch,
    names: NameMap,
}

impl Builder<'_> {
    /// A tensor that is one of the source's.
    fn whole(&mut self, name: &str, shape: Vec<u64>, from: String) -> Result<(), FormatError> {
        let rows = 0..shape.first().copied().unwrap_or(0);
        let pieces = vec![Piece { rows, from: PieceFrom::Tensor(from) }];
        self.out.add(name.to_owned(), shape, pieces, Values::Kept)
    }

    fn norm(&mut self, stem: &str, from: &dyn Fn(&str) -> String) -> Result<(), FormatError> {
        let hidden_size = self.arch.hidden_size;
        let pieces = |suffix| vec![Piece { rows: 0..hidden_size, from: PieceFrom::Tensor(from(suffix)) }];
        // 1 + w does not fit the type of w.
        let values = if self.arch.family == Family::Gemma {
            Values::Shifted { by: 1.0, dtype: DType::F32 }
        } else {
            Values::Kept
        };
        self.out.add(format!("{stem}weight"), vec![hidden_size], pieces("weight"), values)?;
        if self.arch.normalization == Normalization::RmsNorm {
            return Ok(());
        }
        self.out.add(format!("{stem}bias"), vec![hidden_size], pieces("bias"), Values::Kept)
    }

    fn layer(&mut self, layer: u64) -> Result<(), FormatError> {
        let (arch, names) = (self.arch, self.names);
        let (hidden_size, ffn_hidden_size) = (arch.hidden_size, arch.ffn_hidden_size);
        let attention_rows = arch.num_attention_heads * arch.head_dim;
        let qkv_rows = attention_rows + 2 * arch.num_query_groups * arch.head_dim;
        let prefix = format!("model.decoder.layers.{layer}");
        self.norm(&format!("{prefix}.self_attention.linear_qkv.layer_norm_"), &|suffix| {
            names.in_layer(layer, names.attention_norm, suffix)
        })?;
        if let Some(mlp_norm) = names.mlp_norm {
            self.norm(&format!("{prefix}.mlp.linear_fc1.layer_norm_"), &|suffix| {
                names.in_layer(layer, mlp_norm, suffix)
            })?;
        }
        let fc1_rows = ffn_hidden_size * names.fc1.len() as u64;
        for suffix in ["weight", "bias"] {
            let shape = |rows, columns| if suffix == "bias" { vec![rows] } else { vec![rows, columns] };
            if suffix == "weight" || arch.biases != Biases::None {
                let name = format!("{prefix}.self_attention.linear_qkv.{suffix}");
                let pieces = self.qkv(layer, suffix);
                self.out.add(name, shape(qkv_rows, hidden_size), pieces, Values::Kept)?;
            }
            if suffix == "weight" || arch.biases == Biases::All {
                let name = format!("{prefix}.self_attention.linear_proj.{suffix}");
                let pieces = vec![self.piece(layer, names.proj, suffix, 0..hidden_size)];
                self.out.add(name, shape(hidden_size, attention_rows), pieces, Values::Kept)?;
                let name = format!("{prefix}.mlp.linear_fc1.{suffix}");
                let pieces = names
                    .fc1
                    .iter()
                    .map(|stem| self.piece(layer, stem, suffix, 0..ffn_hidden_size))
                    .collect();
                self.out.add(name, shape(fc1_rows, hidden_size), pieces, Values::Kept)?;
                let name = format!("{prefix}.mlp.linear_fc2.{suffix}");
                let pieces = vec![self.piece(layer, names.fc2, suffix, 0..hidden_size)];
                self.out.add(name, shape(hidden_size, ffn_hidden_size), pieces, Values::Kept)?;
            }
        }
        Ok(())
    }

    /// For each query group its query heads, then its key head, then its value head.
    fn qkv(&self, layer: u64, suffix: &str) -> Vec<Piece> {
        let arch = self.arch;
        let (head_dim, num_groups) = (arch.head_dim, arch.num_query_groups);
        let group_rows = arch.num_attention_heads / num_groups * head_dim;
        let (q_rows, kv_rows) = (num_groups * group_rows, num_groups * head_dim);
        // Each of q, k and v: its tensor, and where its rows start there.
        let parts = match self.names.qkv {
            Qkv::PerGroup(stem) => return vec![self.piece(layer, stem, suffix, 0..q_rows + 2 * kv_rows)],
            Qkv::Separate([q, k, v]) | Qkv::SeparatePaired([q, k, v]) => [(q, 0), (k, 0), (v, 0)],
            Qkv::Stacked(stem) => [(stem, 0), (stem, q_rows), (stem, q_rows + kv_rows)],
        };
        let mut pieces = Vec::new();
        for group in 0..num_groups {
            for ((stem, base), num_rows) in parts.into_iter().zip([group_rows, head_dim, head_dim]) {
                let start = base + group * num_rows;
                pieces.push(self.piece(layer, stem, suffix, start..start + num_rows));
            }
        }
        pieces
    }

    fn piece(&self, layer: u64, stem: &str, suffix: &str, rows: std::ops::Range<u64>) -> Piece {
        let name = self.names.in_layer(layer, stem, suffix);
        let is_paired = matches!(self.names.qkv, Qkv::SeparatePaired([q, k, _]) if [q, k].contains(&stem));
        let from = if suffix == "bias" && self.lacks_bias(&name, stem) {
            PieceFrom::Zeros
        } else if is_paired {
            PieceFrom::PairedRotary { name, head_dim: self.arch.head_dim }
        } else if self.names.linear == Linear::RowsIn && suffix == "weight" {
            PieceFrom::Transposed(name)
        } else {
            PieceFrom::Tensor(name)
        };
        Piece { rows, from }
    }

    /// Whether a linear layer has no bias by design: in no layer of the model, and in a family where that happens.
    fn lacks_bias(&self, name: &str, stem: &str) -> bool {
        let is_optional = match self.arch.family {
            Family::Gpt2 | Family::Falcon => false,
            Family::GptJ | Family::GptNeoX => {
                self.names.qkv_stems().contains(&stem) || stem == self.names.proj
            }
            Family::Llama | Family::Mistral | Family::Gemma | Family::Nemotron => true,
        };
        let is_missing = |name: &str| self.out.inner().meta(name).is_none();
        is_optional && is_missing(name) && is_missing(&self.names.in_layer(0, stem, "bias"))
    }
}
