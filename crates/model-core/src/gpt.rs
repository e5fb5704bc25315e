//! THE forward pass: Megatron-Core's pre-norm GPT, of which every family is a configuration.
//!
//! What a layer computes is in `layers.rs`, each layer with a shape of its own; how it is computed is up to the
//! backend behind [`StepState`].

use tch::Tensor;

use crate::attention_context::AttentionContext;
use crate::backend::plain::to_device;
use crate::causal_lm::CausalLm;
use crate::config::ModelConfig;
use crate::kv_cache::KvCache;
use crate::ops::{Epilogue, Ids, LinearOp, StepState};
use crate::weights::Weights;
use crate::{DecodeBatch, DecodeRows, LogitsRows, ModelError, Precision, PrefillBatch};

/// A model: its weights in the layouts of a backend, and that backend.
pub(crate) struct Gpt<S: StepState> {
    config: ModelConfig,
    weights: Weights<S>,
    /// What embeddings are multiplied by.
    embedding_factor: Option<f64>,
    state: S,
}

impl<S: StepState> Gpt<S> {
    pub(crate) fn new(config: ModelConfig, weights: Weights<S>, state: S) -> Result<Self, ModelError> {
        let embedding_factor = match config.apply_embedding_scaling {
            // Megatron rounds the factor to the embedding's type before it multiplies.
            true => {
                let factor = Tensor::f_from_slice(&[(config.hidden_size as f64).sqrt()])?;
                Some(factor.f_to_kind(state.precision().kind())?.f_double_value(&[0])?)
            }
            false => None,
        };
        Ok(Self { config, weights, embedding_factor, state })
    }

    /// The residual stream after the last layer, `[num_tokens, hidden_size]`; the step is planned.
    fn forward(
        &mut self,
        tokens: Ids<'_>,
        step: &AttentionContext,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let mut residual = self.embed(tokens, step)?;
        for layer in &self.weights.layers {
            residual = layer.forward(residual, step, cache, &mut self.state)?;
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

    fn embed(&mut self, tokens: Ids<'_>, step: &AttentionContext) -> Result<Tensor, ModelError> {
        let Self { weights, state, .. } = self;
        let mut embedded = match &weights.word_embeddings {
            Some(table) => state.embedding(tokens, table)?,
            None => weights.output.embedding(tokens, state)?,
        };
        if let Some(table) = &weights.position_embeddings {
            let limit = table.size2()?.0 as usize;
            let actual = step.max_context_len();
            if actual > limit {
                return Err(ModelError::TooLong { actual, limit });
            }
            let _ = embedded.f_add_(&state.embedding(step.position_ids(), table)?)?;
        }
        if let Some(factor) = self.embedding_factor {
            embedded = embedded.f_mul_scalar(factor)?;
        }
        Ok(embedded)
    }

    /// float32 `[num_rows, padded_vocab_size]`.
    fn logits(&mut self, residual: &Tensor) -> Result<Tensor, ModelError> {
        let hidden = self.state.norm(residual, &self.weights.final_norm)?;
        self.weights.output.run(&hidden, Epilogue::Logits, &mut self.state)
    }
}

impl<S: StepState> CausalLm for Gpt<S> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn precision(&self) -> Precision {
        self.state.precision()
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

    fn new_cache(&mut self, num_blocks: usize) -> Result<KvCache, ModelError> {
        self.state.new_cache(num_blocks, &self.config)
    }

    fn prefill(&mut self, batch: &PrefillBatch, cache: &mut KvCache) -> Result<Tensor, ModelError> {
        self.check_tokens(&batch.tokens)?;
        let mut step = AttentionContext::prefill(batch, cache)?;
        self.state.plan(&batch.tokens, &mut step, cache)?;
        let residual = self.forward(step.token_ids(&batch.tokens), &step, cache)?;
        match batch.logits {
            // A backend may have padded the step.
            LogitsRows::All => self.logits(&residual.f_narrow(0, 0, batch.tokens.len() as i64)?),
            LogitsRows::Last => {
                let mut last_rows = step
                    .sequences
                    .iter()
                    .map(|sequence| (sequence.query_start + sequence.query_len - 1) as i64)
                    .collect::<Vec<_>>();
                let num_seqs = last_rows.len();
                last_rows.resize(num_seqs.max(self.state.min_rows()), 0);
                let last_rows = to_device(&last_rows, residual.device())?;
                let logits = self.logits(&residual.f_index_select(0, &last_rows)?)?;
                Ok(logits.f_narrow(0, 0, num_seqs as i64)?)
            }
        }
    }

    fn decode(&mut self, batch: &DecodeBatch, cache: &mut KvCache) -> Result<Tensor, ModelError> {
        self.check_tokens(&batch.tokens)?;
        let mut step = AttentionContext::decode(batch, cache)?;
        self.state.plan(&batch.tokens, &mut step, cache)?;
        let residual = self.forward(step.token_ids(&batch.tokens), &step, cache)?;
        self.logits(&residual)
    }

    fn reserve_rows(&mut self, max_rows: usize, max_blocks_per_seq: usize) -> Result<usize, ModelError> {
        self.state.reserve_rows(max_rows, max_blocks_per_seq)?;
        self.state.find_small_batch(self.weights.linears())
    }

    fn decode_rows(&mut self, rows: &DecodeRows<'_>, cache: &mut KvCache) -> Result<Tensor, ModelError> {
        let mut step = AttentionContext::on_device(rows)?;
        self.state.plan(&[], &mut step, cache)?;
        let residual = self.forward(step.token_ids(&[]), &step, cache)?;
        self.logits(&residual)
    }
}
