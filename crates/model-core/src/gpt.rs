//! THE forward pass: Megatron-Core's pre-norm GPT, of which every family is a configuration.
//!
//! What a layer computes is in `layers.rs`, each layer with a shape of its own; how it is computed is up to the
//! backend behind [`StepState`].

use model_spec::{KvTables, ModelSpec, Numerics, ShardPlace};
use tch::{Kind, Tensor};

use crate::attention_context::AttentionContext;
use crate::causal_lm::CausalLm;
use crate::config::ModelConfig;
use crate::ids::Ids;
use crate::kinds::TensorFormat;
use crate::kv_cache::KvCache;
use crate::layers::Layer;
use crate::model_ranks::RankCheck;
use crate::ops::{AttentionOp, Epilogue, Hidden, LinearOp, StepState};
use crate::parallel::SharedTable;
use crate::upload::to_device;
use crate::weights::Weights;
use crate::{Batch, DeviceDecode, ModelError};

const NO_TABLE: ModelError =
    ModelError::NoBackend { backend: "pipeline", reason: "this stage has no embedding table" };

/// A model or a rank's part of it: its weights in the layouts of a backend, and that backend.
pub(crate) struct Gpt<S: StepState> {
    config: ModelConfig,
    shares: Shares,
    weights: Weights<S>,
    /// What embeddings are multiplied by.
    embedding_factor: Option<f64>,
    state: S,
}

/// What of the model this rank has, and what others have.
pub(crate) struct Shares {
    /// This rank's part, as a model of its own.
    part: ModelSpec,
    /// Rows of the whole embedding table.
    padded_vocab_size: usize,
    /// The table that tensor-parallel ranks share, where there are several.
    table: Option<SharedTable>,
    is_first_stage: bool,
}

impl Shares {
    pub(crate) fn new(model: &ModelSpec, place: &ShardPlace) -> Result<Self, ModelError> {
        Ok(Self {
            part: place.part_of(model)?,
            padded_vocab_size: usize::try_from(model.padded_vocab_size).unwrap_or(usize::MAX),
            table: (place.tp_size > 1).then(|| SharedTable::new(model.padded_vocab_size, place)),
            is_first_stage: place.is_first_stage(),
        })
    }
}

impl<S: StepState> Gpt<S> {
    pub(crate) fn new(
        config: ModelConfig,
        weights: Weights<S>,
        state: S,
        shares: Shares,
    ) -> Result<Self, ModelError> {
        let embedding_factor = match config.uniform.apply_embedding_scaling {
            // Megatron rounds the factor to the embedding's type before it multiplies.
            true => {
                let factor = Tensor::f_from_slice(&[(config.uniform.hidden_size as f64).sqrt()])?;
                Some(factor.f_to_kind(state.numerics().compute.kind())?.f_double_value(&[0])?)
            }
            false => config.uniform.multipliers.embedding,
        };
        Ok(Self { config, shares, weights, embedding_factor, state })
    }

    /// The residual stream after the last layer of this stage, `[num_tokens, hidden_size]`, which the next stage gets too;
    /// the step is planned.
    fn residual(
        &mut self,
        tokens: Ids<'_>,
        step: &AttentionContext,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let residual = match self.shares.is_first_stage {
            true => self.embed(tokens, step)?,
            false => {
                let shape = [tokens.len()? as i64, self.config.uniform.hidden_size as i64];
                self.state.receive_residual(shape, step)?
            }
        };
        let mut hidden = Hidden::of(residual);
        let layers = &self.weights.layers;
        let next = layers.iter().skip(1).map(Layer::first_norm).chain([None]);
        for (layer, next) in layers.iter().zip(next) {
            hidden = layer.forward(hidden, next, step, cache, &mut self.state)?;
        }
        if self.weights.head.is_none() {
            self.state.send_residual(&hidden.residual, step)?;
        }
        Ok(hidden.residual)
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), ModelError> {
        let padded_vocab_size = self.padded_vocab_size();
        match tokens.iter().find(|&&token| token as usize >= padded_vocab_size) {
            Some(&token) => Err(ModelError::BadToken { token, padded_vocab_size }),
            None => Ok(()),
        }
    }

    fn embed(&mut self, tokens: Ids<'_>, step: &AttentionContext) -> Result<Tensor, ModelError> {
        let Self { weights, state, shares, .. } = self;
        let mut lookup = |ids: Ids<'_>, state: &mut S| match (&weights.word_embeddings, &weights.head) {
            (Some(table), _) => state.embedding(ids, table),
            (None, Some(head)) => head.output.embedding(ids, state),
            (None, None) => Err(NO_TABLE),
        };
        let mut embedded = match &shares.table {
            Some(table) => state.shared_embedding(tokens, table, &mut lookup)?,
            None => lookup(tokens, state)?,
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

    /// float32 `[num_rows, padded_vocab_size]`, on the last stage; on the others `[num_rows, 0]`.
    fn logits(&mut self, residual: &Tensor) -> Result<Tensor, ModelError> {
        let Some(head) = &self.weights.head else {
            return Ok(Tensor::f_empty([residual.size2()?.0, 0], (Kind::Float, residual.device()))?);
        };
        let hidden = self.state.norm(residual, &head.final_norm)?;
        let logits = head.output.run(&hidden, Epilogue::Float32, &mut self.state)?;
        let mut logits = match &self.shares.table {
            Some(table) => self.state.gather_columns(logits, table)?,
            None => logits,
        };
        if let Some(multiplier) = self.config.uniform.multipliers.logits {
            let _ = logits.f_mul_scalar_(multiplier)?;
        }
        if let Some(softcap) = self.config.uniform.output.softcap {
            let _ = logits.f_div_scalar_(softcap)?.f_tanh_()?.f_mul_scalar_(softcap)?;
        }
        Ok(logits)
    }

    /// The rows of logits that the batch asks for. `residual`: `[at least num_tokens, hidden_size]`, as a backend may have
    /// padded the step.
    fn logits_of(&mut self, residual: &Tensor, batch: &Batch) -> Result<Tensor, ModelError> {
        let rows = batch.logits_rows();
        let (num_rows, min_rows) = (rows.len(), self.state.min_rows());
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

impl<S: StepState> CausalLm for Gpt<S> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn numerics(&self) -> Numerics {
        self.state.numerics()
    }

    fn padded_vocab_size(&self) -> usize {
        self.shares.padded_vocab_size
    }

    fn num_params(&self) -> u64 {
        self.weights.num_params
    }

    fn weight_bytes(&self) -> u64 {
        self.weights.size_bytes()
    }

    fn verifies_drafts(&self) -> bool {
        self.state.verifies_drafts()
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        let mut ops = self.weights.layers.iter().filter_map(Layer::attention);
        // All are powers of two, so the largest is a multiple of the others.
        ops.try_fold(1, |largest, op| Some(op.prompt_cut_tokens(&self.state)?.max(largest)))
    }

    fn new_cache_in(&mut self, num_blocks: usize, tables: KvTables) -> Result<KvCache, ModelError> {
        let Self { shares, state, .. } = self;
        let groups = shares.part.kv_groups_in(tables);
        let cache = KvCache::new(num_blocks, tables, &groups, |group| state.new_pool(group, num_blocks))?;
        state.serve(&cache)?;
        Ok(cache)
    }

    fn forward(&mut self, batch: &Batch, cache: &mut KvCache) -> Result<Tensor, ModelError> {
        self.check_tokens(&batch.tokens)?;
        let mut step = AttentionContext::new(batch, cache)?;
        self.state.plan(&batch.tokens, &mut step, cache)?;
        let residual = self.residual(step.token_ids(&batch.tokens), &step, cache)?;
        self.logits_of(&residual, batch)
    }

    fn reserve_decode(&mut self, max_rows: usize, max_blocks_per_seq: usize) -> Result<usize, ModelError> {
        self.state.reserve_decode(max_rows, max_blocks_per_seq)?;
        self.state.find_small_batch(self.weights.dense_linears())
    }

    fn rank_check(&self) -> RankCheck {
        self.state.rank_check()
    }

    fn detours(&self) -> Vec<&'static str> {
        self.state.detours()
    }

    fn begin_decode(&mut self, num_rows: usize) -> Result<(), ModelError> {
        self.state.begin_decode(num_rows)
    }

    fn end_decode(&mut self, num_rows: usize) -> Result<(), ModelError> {
        self.state.end_decode(num_rows)
    }

    fn decode_on_device(
        &mut self,
        rows: &DeviceDecode<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let mut step = AttentionContext::on_device(rows)?;
        self.state.plan(&[], &mut step, cache)?;
        let residual = self.residual(step.token_ids(&[]), &step, cache)?;
        self.logits(&residual)
    }
}

#[cfg(test)]
mod tests;
