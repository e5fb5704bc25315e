//! Known model shapes with dummy weights made in memory, for measurements without a checkpoint.
//!
//! All tensors are slices of one buffer of random numbers, so that making a model of 7 billion parameters takes a second.
//! Norms leave their input as it is. Where the model is to copy its prompt, embedding and output layer are made by
//! themselves (`copying.rs`).

use std::collections::BTreeMap;

use model_core::{ModelConfig, RawModelConfig};
use model_spec::{ModelSpec, Module, NamedShape, Part, PositionEmbedding, ShapeSpec, TableRows, TensorSpec};
use nemo_format::{DType, FormatError, Region, TensorMeta, TensorSource};
use rayon::prelude::*;
use serde_json::json;

use super::copying;
use crate::exit::Failure;

/// Neighbouring tensors start this many numbers apart, so that no two are equal.
const OFFSET_ELEMS: usize = 7919;
/// Standard deviation of the weights, as in training from scratch.
pub(super) const WEIGHT_STD: f32 = 0.02;
/// Tokens that a sequence may have, whatever the shape.
pub(super) const MAX_SEQ_LEN_TOKENS: usize = 4096;

/// What the text is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// Anything.
    Random,
    /// Mostly the prompt's.
    Copying,
}

/// A model of a named shape.
pub(super) fn source(shape: NamedShape, weights: Weights) -> Result<(ModelConfig, DummySource), Failure> {
    let ShapeSpec { uniform, padded_vocab_size, .. } = shape.shape();
    let (activation, openai_gelu) = uniform
        .activation
        .to_nemo()
        .ok_or_else(|| anyhow::anyhow!("NeMo has no name for the activation of `{}`", shape.name()))?;
    let mut keys = json!({
        "num_layers": uniform.num_layers,
        "hidden_size": uniform.hidden_size,
        "ffn_hidden_size": uniform.ffn_hidden_size,
        "num_attention_heads": uniform.heads.num_attention_heads,
        "num_query_groups": uniform.heads.num_query_groups,
        "kv_channels": uniform.heads.kv_channels,
        "qk_layernorm": uniform.qk_layernorm,
        "encoder_seq_length": MAX_SEQ_LEN_TOKENS,
        "normalization": uniform.norm.nemo_name(),
        "activation": activation,
        "openai_gelu": openai_gelu,
        "bias_activation_fusion": false,
        "bias": uniform.bias,
        "share_embeddings_and_output_weights": uniform.output.tied,
    });
    if let Some(moe) = &uniform.moe {
        keys["num_moe_experts"] = json!(moe.experts.num_experts);
        keys["moe_router_topk"] = json!(moe.experts.router.topk);
        keys["moe_ffn_hidden_size"] = json!(moe.experts.ffn_hidden_size);
    }
    if let PositionEmbedding::Rope(rotary) = uniform.position_embedding {
        keys["position_embedding_type"] = json!("rope");
        keys["rotary_percentage"] = json!(rotary.rotary_dims as f64 / uniform.heads.kv_channels as f64);
        keys["rotary_base"] = json!(rotary.rotary_base);
    }
    let raw: RawModelConfig = serde_json::from_value(keys).map_err(anyhow::Error::from)?;
    let config = ModelConfig::try_from(raw)?;
    let rows = TableRows { vocab: padded_vocab_size, positions: MAX_SEQ_LEN_TOKENS as u64 };
    let mut source = DummySource::new(&config.spec(rows));
    if weights == Weights::Copying {
        let (vocab_size, hidden_size) = (padded_vocab_size as usize, config.uniform.hidden_size);
        let refused = |why| Failure::usage(format!("weights of `{}` cannot copy: {why}", shape.name()));
        if uniform.output.tied {
            return Err(refused("the output layer is the embedding table"));
        }
        source.tables =
            Some(copying::Tables::new(&source.random, WEIGHT_STD, vocab_size, hidden_size).map_err(refused)?);
    }
    Ok((config, source))
}

/// The tensors of a dummy model, bfloat16.
pub(super) struct DummySource {
    metas: BTreeMap<String, (TensorMeta, Module, Fill)>,
    random: Vec<half::bf16>,
    /// In place of random ones.
    tables: Option<copying::Tables>,
    ones: Vec<half::bf16>,
    zeros: Vec<half::bf16>,
}

#[derive(Clone, Copy, Debug)]
enum Fill {
    Random { start_elems: usize },
    One,
    Zero,
}

impl DummySource {
    fn new(spec: &ModelSpec) -> Self {
        let mut tensors: Vec<TensorSpec> = spec.tensors().collect();
        // Where a weight starts among the random numbers goes by its place in this order, and so do all results.
        tensors.sort_by_key(|tensor| tensor.id.layer.is_some());
        let gain = if spec.final_norm.zero_centered_gamma { Fill::Zero } else { Fill::One };
        let mut metas = BTreeMap::new();
        let (mut start_elems, mut num_random, mut num_constant) = (0, 0, 0);
        for tensor in tensors {
            let num_elems = tensor.num_elems() as usize;
            let fill = match (tensor.id.module.is_norm(), tensor.id.part) {
                (true, Part::Weight) => gain,
                (_, Part::Bias | Part::Offset) => Fill::Zero,
                (false, Part::Weight) => Fill::Random { start_elems },
            };
            if let Fill::Random { .. } = fill {
                num_random = num_random.max(start_elems + num_elems);
                start_elems += OFFSET_ELEMS;
            } else {
                num_constant = num_constant.max(num_elems);
            }
            let meta = TensorMeta { dtype: DType::BF16, shape: tensor.shape() };
            metas.insert(tensor.name, (meta, tensor.id.module, fill));
        }
        Self {
            metas,
            random: random_weights(num_random),
            tables: None,
            ones: vec![half::bf16::ONE; num_constant],
            zeros: vec![half::bf16::ZERO; num_constant],
        }
    }
}

impl TensorSource for DummySource {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.metas.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.metas.get(name).map(|(meta, ..)| meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        if let (Some(meta), Some(bytes)) = (self.meta(name), self.mapped_bytes(name)) {
            meta.check_region(name, region, dst.len())?;
            dst.copy_from_slice(&bytes[..dst.len()]);
        }
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        let (meta, module, fill) = self.metas.get(name)?;
        if let Some(table) = self.tables.as_ref().and_then(|tables| tables.of(*module)) {
            return Some(bytemuck::cast_slice(table));
        }
        let num_elems = usize::try_from(meta.num_elems()?).ok()?;
        let elems = match *fill {
            Fill::Random { start_elems } => self.random.get(start_elems..start_elems + num_elems),
            Fill::One => self.ones.get(..num_elems),
            Fill::Zero => self.zeros.get(..num_elems),
        };
        elems.map(bytemuck::cast_slice)
    }
}

/// Normal numbers: the sum of four uniform ones, from a hash of the position.
pub(super) fn random_weights(num_elems: usize) -> Vec<half::bf16> {
    // A uniform number on [0, 1) has variance 1/12, so the sum of four less 2 has standard deviation 1/sqrt(3).
    const SCALE: f32 = WEIGHT_STD * 1.732_050_8;
    (0..num_elems)
        .into_par_iter()
        .map(|position| {
            // SplitMix64's finaliser.
            let mut bits = (position as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            bits ^= bits >> 31;
            let sum: f32 = (0..4).map(|part| (bits >> (16 * part) & 0xFFFF) as f32 / 65_536.0).sum();
            half::bf16::from_f32((sum - 2.0) * SCALE)
        })
        .collect()
}
