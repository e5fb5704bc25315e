//! THE forward pass: Megatron-Core's pre-norm GPT, of which every family is a configuration.
//!
//! What a block computes is here; how, is in the backend behind [`Kernels`].

use tch::{Kind, Tensor};

use crate::attention_context::AttentionContext;
use crate::backend::plain::to_device;
use crate::causal_lm::CausalLm;
use crate::config::{ModelConfig, PositionEmbedding};
use crate::kernels::{AttentionStep, HeadLayout, Ids, Kernels};
use crate::kv_cache::{BLOCK_SIZE_TOKENS, KvCache};
use crate::layers::rotary::Rotary;
use crate::weights::{MlpInput, Weights};
use crate::{Batch, DeviceDecode, ModelError, Precision};

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
    fn residual(
        &mut self,
        tokens: Ids<'_>,
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

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), ModelError> {
        let padded_vocab_size = self.padded_vocab_size();
        match tokens.iter().find(|&&token| token as usize >= padded_vocab_size) {
            Some(&token) => Err(ModelError::BadToken { token, padded_vocab_size }),
            None => Ok(()),
        }
    }

    fn embed(&self, tokens: Ids<'_>, context: &AttentionContext) -> Result<Tensor, ModelError> {
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
            let _ = embedded.f_add_(&self.kernels.embedding(context.position_ids(), table)?)?;
        }
        if self.config.apply_embedding_scaling {
            // Megatron rounds the factor to the embedding's type before it multiplies.
            let factor = Tensor::f_from_slice(&[(self.config.hidden_size as f64).sqrt()])?;
            let factor = factor.f_to_kind(embedded.kind())?.f_double_value(&[0])?;
            embedded = embedded.f_mul_scalar(factor)?;
        }
        Ok(embedded)
    }

    fn logits(&self, residual: &Tensor) -> Result<Tensor, ModelError> {
        let hidden = self.kernels.norm(residual, &self.weights.final_norm)?;
        self.kernels.logits(&hidden, &self.weights.output)
    }

    /// The rows of logits that the batch asks for. `residual`: `[at least num_tokens, hidden_size]`, as a backend may have
    /// padded the step.
    fn logits_of(&self, residual: &Tensor, batch: &Batch) -> Result<Tensor, ModelError> {
        let rows = batch.logits_rows();
        let (num_rows, min_rows) = (rows.len(), self.kernels.min_rows());
        if num_rows == 0 {
            let shape = [0, self.padded_vocab_size() as i64];
            return Ok(Tensor::f_empty(shape, (Kind::Float, residual.device()))?);
        }
        if num_rows == batch.tokens.len() && num_rows >= min_rows {
            return self.logits(&residual.f_narrow(0, 0, num_rows as i64)?);
        }
        let mut rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
        rows.resize(num_rows.max(min_rows), 0);
        let rows = to_device(&rows, residual.device())?;
        let logits = self.logits(&residual.f_index_select(0, &rows)?)?;
        Ok(logits.f_narrow(0, 0, num_rows as i64)?)
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

    fn forward(&mut self, batch: &Batch, cache: &mut KvCache) -> Result<Tensor, ModelError> {
        self.check_tokens(&batch.tokens)?;
        let mut context = AttentionContext::new(batch, cache)?;
        self.kernels.prepare(&batch.tokens, &mut context)?;
        let residual = self.residual(context.token_ids(&batch.tokens), &context, cache)?;
        self.logits_of(&residual, batch)
    }

    fn reserve_decode(&mut self, max_rows: usize, max_blocks_per_seq: usize) -> Result<usize, ModelError> {
        if let Some(rotary) = &mut self.rotary {
            rotary.grow(max_blocks_per_seq * BLOCK_SIZE_TOKENS);
        }
        self.kernels.reserve_rows(max_rows, max_blocks_per_seq, self.config.num_query_groups)?;
        self.kernels.try_few_rows(&mut self.weights.linears(self.config.activation))
    }

    fn decode_on_device(
        &mut self,
        rows: &DeviceDecode<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let context = AttentionContext::on_device(rows)?;
        self.kernels.plan_rows(&context, cache)?;
        let residual = self.residual(context.token_ids(&[]), &context, cache)?;
        self.logits(&residual)
    }
}
