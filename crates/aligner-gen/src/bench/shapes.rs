//! Known model shapes with dummy weights made in memory, for measurements without a checkpoint.
//!
//! All tensors are slices of one buffer of random numbers, so that making a model of 7 billion parameters takes a second.
//! Norms leave their input as it is.

use std::collections::BTreeMap;

use model_core::{ModelConfig, RawModelConfig};
use nemo_format::{DType, FormatError, Region, TensorMeta, TensorSource};
use rayon::prelude::*;
use serde_json::json;

use crate::config::cli::ShapeName;
use crate::exit::Failure;

/// Neighbouring tensors start this many numbers apart, so that no two are equal.
const OFFSET_ELEMS: usize = 7919;
/// Standard deviation of the weights, as in training from scratch.
const WEIGHT_STD: f32 = 0.02;

impl ShapeName {
    /// Its config and the rows of its embedding table.
    fn config(self) -> Result<(ModelConfig, u64), Failure> {
        // Layers, hidden size, MLP, heads, groups, vocabulary, rotary base.
        let (sizes, rotary_base): ([u64; 6], f64) = match self {
            Self::Tiny => ([2, 128, 256, 4, 2, 512], 1e4),
            Self::Gpt2b => ([24, 2048, 5440, 16, 16, 256_000], 1e4),
            Self::Llama2_7b => ([32, 4096, 11_008, 32, 32, 32_000], 1e4),
            Self::Llama3_8b => ([32, 4096, 14_336, 32, 8, 128_256], 5e5),
        };
        let [num_layers, hidden_size, ffn_hidden_size, heads, groups, vocab] = sizes;
        let raw: RawModelConfig = serde_json::from_value(json!({
            "num_layers": num_layers,
            "hidden_size": hidden_size,
            "ffn_hidden_size": ffn_hidden_size,
            "num_attention_heads": heads,
            "num_query_groups": groups,
            "encoder_seq_length": 4096,
            "normalization": if self == Self::Gpt2b { "layernorm1p" } else { "rmsnorm" },
            "activation": "fast-swiglu",
            "bias": false,
            "position_embedding_type": "rope",
            "rotary_percentage": if self == Self::Gpt2b { 0.5 } else { 1.0 },
            "rotary_base": rotary_base,
            "share_embeddings_and_output_weights": false,
        }))
        .map_err(anyhow::Error::from)?;
        Ok((ModelConfig::try_from(raw)?, vocab))
    }

    /// A model of this shape.
    pub(super) fn source(self) -> Result<(ModelConfig, DummySource), Failure> {
        let (config, vocab) = self.config()?;
        let source = DummySource::new(&config, vocab);
        Ok((config, source))
    }
}

/// The tensors of a dummy model, bfloat16.
pub(super) struct DummySource {
    metas: BTreeMap<String, (TensorMeta, Fill)>,
    random: Vec<half::bf16>,
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
    fn new(config: &ModelConfig, vocab: u64) -> Self {
        let hidden = config.hidden_size as u64;
        let mut shapes = vec![
            ("model.embedding.word_embeddings.weight".to_owned(), vec![vocab, hidden]),
            ("model.output_layer.weight".to_owned(), vec![vocab, hidden]),
        ];
        let mut norms = vec!["model.decoder.final_layernorm.".to_owned()];
        for layer_idx in 0..config.num_layers {
            let prefix = format!("model.decoder.layers.{layer_idx}.");
            for (module, shape) in [
                ("self_attention.linear_qkv", [config.qkv_size() as u64, hidden]),
                ("self_attention.linear_proj", [hidden, config.query_size() as u64]),
                ("mlp.linear_fc1", [config.fc1_size() as u64, hidden]),
                ("mlp.linear_fc2", [hidden, config.ffn_hidden_size as u64]),
            ] {
                shapes.push((format!("{prefix}{module}.weight"), shape.to_vec()));
            }
            for module in ["self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_"] {
                norms.push(format!("{prefix}{module}"));
            }
        }
        let mut metas = BTreeMap::new();
        let mut longest = 0;
        for (nth, (name, shape)) in shapes.into_iter().enumerate() {
            let start_elems = nth * OFFSET_ELEMS;
            longest = longest.max(start_elems + shape.iter().product::<u64>() as usize);
            metas.insert(name, (TensorMeta { dtype: DType::BF16, shape }, Fill::Random { start_elems }));
        }
        let gain = if config.zero_centered_gamma { Fill::Zero } else { Fill::One };
        for prefix in norms {
            let meta = || TensorMeta { dtype: DType::BF16, shape: vec![hidden] };
            metas.insert(format!("{prefix}weight"), (meta(), gain));
            if config.normalization == model_core::Normalization::LayerNorm {
                metas.insert(format!("{prefix}bias"), (meta(), Fill::Zero));
            }
        }
        Self {
            metas,
            random: random_weights(longest),
            ones: vec![half::bf16::ONE; config.hidden_size],
            zeros: vec![half::bf16::ZERO; config.hidden_size],
        }
    }
}

impl TensorSource for DummySource {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.metas.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.metas.get(name).map(|(meta, _)| meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        if let (Some(meta), Some(bytes)) = (self.meta(name), self.mapped_bytes(name)) {
            region.check(name, meta, dst.len())?;
            dst.copy_from_slice(&bytes[..dst.len()]);
        }
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        let (meta, fill) = self.metas.get(name)?;
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
fn random_weights(num_elems: usize) -> Vec<half::bf16> {
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
