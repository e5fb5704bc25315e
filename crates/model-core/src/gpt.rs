//! THE forward pass: Megatron-Core's pre-norm GPT, of which every family is a configuration.
//!
//! What a block computes is here; how, is in the backend behind [`Kernels`].

use tch::Tensor;

use crate::attention_context::AttentionContext;
use crate::causal_lm::CausalLm;
use crate::config::{ModelConfig, PositionEmbedding};
use crate::kernels::{AttentionStep, HeadLayout, Kernels};
use crate::kv_cache::KvCache;
use crate::layers::rotary::Rotary;
use crate::weights::{MlpInput, Weights};
use crate::{DecodeBatch, LogitsRows, ModelError, Precision, PrefillBatch};

/// Rotary positions computed at once; longer sequences grow the tables, so that a config's number alone allocates
/// nothing.
const INITIAL_POSITIONS: usize = 4096;

/// A model with its weights and kernels.
pub(crate) struct Gpt {
    config: ModelConfig,
    weights: Weights,
    rotary: Option<Rotary>,
    kernels: Box<dyn Kernels>,
}

impl Gpt {
    pub(crate) fn new(config: ModelConfig, weights: Weights, kernels: Box<dyn Kernels>) -> Self {
        let rotary = match &config.position_embedding {
            PositionEmbedding::Rope(rotary) => {
                Some(Rotary::new(rotary, config.encoder_seq_length.min(INITIAL_POSITIONS)))
            }
            PositionEmbedding::LearnedAbsolute => None,
        };
        Self { config, weights, rotary, kernels }
    }

    /// The residual stream after the last layer: `[num_tokens, hidden_size]`.
    fn forward(
        &mut self,
        tokens: &[u32],
        context: &AttentionContext,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        if let Some(rotary) = &mut self.rotary {
            rotary.grow(context.max_context_len());
        }
        let kernels = &self.kernels;
        let heads = HeadLayout {
            num_attention_heads: self.config.num_attention_heads,
            num_query_groups: self.config.num_query_groups,
            kv_channels: self.config.kv_channels,
        };
        let mut residual = self.embed(tokens, context)?;
        for (layer_idx, layer) in self.weights.layers.iter().enumerate() {
            let x = kernels.norm(&residual, &layer.input_norm)?;
            let qkv = kernels.linear(&x, &layer.qkv)?;
            let step = AttentionStep { layer_idx, heads, rotary: self.rotary.as_ref(), context };
            let attended = kernels.attention(&qkv, &step, cache)?;

            let add_attended = |residual: &mut Tensor| kernels.linear_add(&attended, &layer.proj, residual);
            let x = match &layer.mlp_input {
                MlpInput::Sequential(norm) => {
                    add_attended(&mut residual)?;
                    kernels.norm(&residual, norm)?
                }
                MlpInput::ParallelOwnNorm(norm) => {
                    let x = kernels.norm(&residual, norm)?;
                    add_attended(&mut residual)?;
                    x
                }
                MlpInput::ParallelSharedNorm => {
                    add_attended(&mut residual)?;
                    x
                }
            };
            let activated = kernels.linear_activate(&x, &layer.fc1, self.config.activation)?;
            kernels.linear_add(&activated, &layer.fc2, &mut residual)?;
        }
        Ok(residual)
    }

    fn embed(&self, tokens: &[u32], context: &AttentionContext) -> Result<Tensor, ModelError> {
        let padded_vocab_size = self.padded_vocab_size();
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= padded_vocab_size) {
            return Err(ModelError::BadToken { token, padded_vocab_size });
        }
        let mut embedded = match &self.weights.word_embeddings {
            Some(table) => self.kernels.embedding(tokens, table)?,
            None => self.kernels.tied_embedding(tokens, &self.weights.output)?,
        };
        if let Some(table) = &self.weights.position_embeddings {
            let limit = table.size2()?.0 as usize;
            let actual = context.max_context_len();
            if actual > limit {
                return Err(ModelError::TooLong { actual, limit });
            }
            let _ = embedded.f_add_(&self.kernels.embedding(&context.positions, table)?)?;
        }
        if self.config.apply_embedding_scaling {
            // Megatron rounds the factor to the embedding's type before it multiplies.
            let factor = Tensor::f_from_slice(&[(self.config.hidden_size as f64).sqrt()])?;
            embedded = embedded.f_mul(&factor.f_to_kind(embedded.kind())?)?;
        }
        Ok(embedded)
    }

    fn logits(&self, residual: &Tensor) -> Result<Tensor, ModelError> {
        let hidden = self.kernels.norm(residual, &self.weights.final_norm)?;
        self.kernels.logits(&hidden, &self.weights.output)
    }
}

impl CausalLm for Gpt {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn precision(&self) -> Precision {
        self.kernels.precision()
    }

    fn padded_vocab_size(&self) -> usize {
        self.weights.output.out_features()
    }

    fn num_params(&self) -> u64 {
        self.weights.num_params
    }

    fn weight_bytes(&self) -> u64 {
        self.weights.size_bytes()
    }

    fn new_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        self.kernels.new_cache(num_blocks, &self.config)
    }

    fn prefill(&mut self, batch: &PrefillBatch, cache: &mut KvCache) -> Result<Tensor, ModelError> {
        let context = AttentionContext::prefill(batch, cache)?;
        let residual = self.forward(&batch.tokens, &context, cache)?;
        match batch.logits {
            LogitsRows::All => self.logits(&residual),
            LogitsRows::Last => {
                let last_rows = context
                    .sequences
                    .iter()
                    .map(|sequence| (sequence.query_start + sequence.query_len - 1) as i64)
                    .collect::<Vec<_>>();
                self.logits(&residual.f_index_select(0, &Tensor::f_from_slice(&last_rows)?)?)
            }
        }
    }

    fn decode(&mut self, batch: &DecodeBatch, cache: &mut KvCache) -> Result<Tensor, ModelError> {
        let context = AttentionContext::decode(batch, cache)?;
        let residual = self.forward(&batch.tokens, &context, cache)?;
        self.logits(&residual)
    }
}
