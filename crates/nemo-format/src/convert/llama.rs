//! Llama weights as Megatron-Core tensors: fused QKV by query group, `linear_fc1` as `[gate; up]`.
//!
//! The source's own names come from a [`LlamaNames`]; nothing here reads a file.

use super::arch::{Biases, LlamaArch};
use super::rows::{Piece, PieceFrom, RowSource};
use crate::{FormatError, TensorSource};

/// How a source names its tensors and orders the rows of q and k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LlamaNames {
    /// `model.layers.0.self_attn.q_proj`, half-split rotary rows.
    HuggingFace,
    /// `blk.0.attn_q`, rows permuted for ggml's paired rotary embedding.
    Gguf,
}

/// A part of a layer.
#[derive(Clone, Copy, Debug)]
enum Part {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    AttentionNorm,
    MlpNorm,
}

impl LlamaNames {
    fn part(self, layer: u64, part: Part, suffix: &str) -> String {
        match self {
            Self::HuggingFace => {
                let stem = match part {
                    Part::Q => "self_attn.q_proj",
                    Part::K => "self_attn.k_proj",
                    Part::V => "self_attn.v_proj",
                    Part::O => "self_attn.o_proj",
                    Part::Gate => "mlp.gate_proj",
                    Part::Up => "mlp.up_proj",
                    Part::Down => "mlp.down_proj",
                    Part::AttentionNorm => "input_layernorm",
                    Part::MlpNorm => "post_attention_layernorm",
                };
                format!("model.layers.{layer}.{stem}.{suffix}")
            }
            Self::Gguf => {
                let stem = match part {
                    Part::Q => "attn_q",
                    Part::K => "attn_k",
                    Part::V => "attn_v",
                    Part::O => "attn_output",
                    Part::Gate => "ffn_gate",
                    Part::Up => "ffn_up",
                    Part::Down => "ffn_down",
                    Part::AttentionNorm => "attn_norm",
                    Part::MlpNorm => "ffn_norm",
                };
                format!("blk.{layer}.{stem}.{suffix}")
            }
        }
    }

    pub(super) fn embedding(self) -> &'static str {
        match self {
            Self::HuggingFace => "model.embed_tokens.weight",
            Self::Gguf => "token_embd.weight",
        }
    }

    pub(super) fn output(self) -> &'static str {
        match self {
            Self::HuggingFace => "lm_head.weight",
            Self::Gguf => "output.weight",
        }
    }

    fn final_norm(self) -> &'static str {
        match self {
            Self::HuggingFace => "model.norm.weight",
            Self::Gguf => "output_norm.weight",
        }
    }

    /// Which linear layers of the source have biases.
    pub(super) fn biases(self, source: &dyn TensorSource) -> Biases {
        let has = |part| source.meta(&self.part(0, part, "bias")).is_some();
        if [Part::O, Part::Gate, Part::Up, Part::Down].into_iter().any(has) {
            Biases::All
        } else if [Part::Q, Part::K, Part::V].into_iter().any(has) {
            Biases::Qkv
        } else {
            Biases::None
        }
    }
}

/// Presents `source` under Megatron-Core names.
pub(super) fn canonical<S: TensorSource>(
    source: S,
    arch: &LlamaArch,
    names: LlamaNames,
) -> Result<RowSource<S>, FormatError> {
    let embedding = names.embedding();
    let dtype = source
        .meta(embedding)
        .ok_or_else(|| FormatError::MissingTensor { name: embedding.to_owned() })?
        .dtype;
    let mut builder = Builder { out: RowSource::new(source, dtype), arch, names };
    let (vocab_size, hidden_size) = (arch.vocab_size, arch.hidden_size);
    let whole = |name: &str, rows| vec![Piece { rows: 0..rows, from: PieceFrom::Tensor(name.to_owned()) }];
    builder.out.add(
        "model.embedding.word_embeddings.weight".into(),
        vec![vocab_size, hidden_size],
        whole(embedding, vocab_size),
    )?;
    for layer in 0..arch.num_layers {
        builder.layer(layer)?;
    }
    builder.out.add(
        "model.decoder.final_layernorm.weight".into(),
        vec![hidden_size],
        whole(names.final_norm(), hidden_size),
    )?;
    if !arch.tied {
        builder.out.add(
            "model.output_layer.weight".into(),
            vec![vocab_size, hidden_size],
            whole(names.output(), vocab_size),
        )?;
    }
    Ok(builder.out)
}

struct Builder<'a, S> {
    out: RowSource<S>,
    arch: &'a LlamaArch,
    names: LlamaNames,
}

impl<S: TensorSource> Builder<'_, S> {
    fn layer(&mut self, layer: u64) -> Result<(), FormatError> {
        let arch = self.arch;
        let (hidden_size, ffn_hidden_size) = (arch.hidden_size, arch.ffn_hidden_size);
        let attention_rows = arch.num_attention_heads * arch.head_dim;
        let qkv_rows = attention_rows + 2 * arch.num_query_groups * arch.head_dim;
        let has_qkv_bias = arch.biases != Biases::None;
        let has_bias = arch.biases == Biases::All;
        let mut suffixes = vec![("weight", true, true)];
        suffixes.push(("bias", has_qkv_bias, has_bias));
        let norm = |names: LlamaNames, part| {
            vec![Piece { rows: 0..hidden_size, from: PieceFrom::Tensor(names.part(layer, part, "weight")) }]
        };
        let prefix = format!("model.decoder.layers.{layer}");
        self.out.add(
            format!("{prefix}.self_attention.linear_qkv.layer_norm_weight"),
            vec![hidden_size],
            norm(self.names, Part::AttentionNorm),
        )?;
        self.out.add(
            format!("{prefix}.mlp.linear_fc1.layer_norm_weight"),
            vec![hidden_size],
            norm(self.names, Part::MlpNorm),
        )?;
        for (suffix, in_qkv, elsewhere) in suffixes {
            let shape = |rows, columns| if suffix == "bias" { vec![rows] } else { vec![rows, columns] };
            if in_qkv {
                let pieces = self.qkv(layer, suffix);
                let name = format!("{prefix}.self_attention.linear_qkv.{suffix}");
                self.out.add(name, shape(qkv_rows, hidden_size), pieces)?;
            }
            if elsewhere {
                let pieces = vec![self.piece(layer, Part::O, suffix, 0..hidden_size)];
                let name = format!("{prefix}.self_attention.linear_proj.{suffix}");
                self.out.add(name, shape(hidden_size, attention_rows), pieces)?;
                let pieces = [Part::Gate, Part::Up]
                    .map(|part| self.piece(layer, part, suffix, 0..ffn_hidden_size))
                    .to_vec();
                let name = format!("{prefix}.mlp.linear_fc1.{suffix}");
                self.out.add(name, shape(2 * ffn_hidden_size, hidden_size), pieces)?;
                let pieces = vec![self.piece(layer, Part::Down, suffix, 0..hidden_size)];
                let name = format!("{prefix}.mlp.linear_fc2.{suffix}");
                self.out.add(name, shape(hidden_size, ffn_hidden_size), pieces)?;
            }
        }
        Ok(())
    }

    /// For each query group its query heads, then its key head, then its value head.
    fn qkv(&self, layer: u64, suffix: &str) -> Vec<Piece> {
        let arch = self.arch;
        let head_dim = arch.head_dim;
        let group_rows = arch.num_attention_heads / arch.num_query_groups * head_dim;
        let mut pieces = Vec::new();
        for group in 0..arch.num_query_groups {
            let parts = [
                (Part::Q, group * group_rows, group_rows),
                (Part::K, group * head_dim, head_dim),
                (Part::V, group * head_dim, head_dim),
            ];
            for (part, start, num_rows) in parts {
                pieces.push(self.piece(layer, part, suffix, start..start + num_rows));
            }
        }
        pieces
    }

    fn piece(&self, layer: u64, part: Part, suffix: &str, rows: std::ops::Range<u64>) -> Piece {
        let name = self.names.part(layer, part, suffix);
        let is_missing = suffix == "bias" && self.out.inner().meta(&name).is_none();
        let from = if is_missing {
            PieceFrom::Zeros
        } else if self.names == LlamaNames::Gguf && matches!(part, Part::Q | Part::K) {
            PieceFrom::PairedRotary { name, head_dim: self.arch.head_dim }
        } else {
            PieceFrom::Tensor(name)
        };
        Piece { rows, from }
    }
}
