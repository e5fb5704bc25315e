//! The runner for models whose logits and samplers the host drives step by step.
//!
//! Every step is computed when it is started; collecting only hands it over.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use model_core::{BlockId, CausalLm, DecodeBatch, KvCache, ModelError, PrefillBatch};
use sampling::{RowState, TokenSampler};
use tch::Tensor;

use crate::{
    EngineError,
    block_table::BlockCopy,
    runner::{FirstToken, Runner, StepOutput},
    scheduler::{DecodeSeq, SeqId},
};

/// What the runner needs of a model and its cache. Tests put a fake in its place that sees every block that is
/// written, read and copied.
pub(crate) trait Backend: Send {
    /// float32 `[num_seqs, padded_vocab_size]`: logits after each prompt.
    fn prefill(&mut self, batch: &PrefillBatch) -> Result<Tensor, ModelError>;

    /// float32 `[num_seqs, padded_vocab_size]`: logits after each new token.
    fn decode(&mut self, batch: &DecodeBatch) -> Result<Tensor, ModelError>;

    /// Copies whole blocks of every layer, `(source, destination)`.
    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ModelError>;
}

/// A real model and its cache.
pub(crate) struct CachedModel {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) cache: KvCache,
}

impl Backend for CachedModel {
    fn prefill(&mut self, batch: &PrefillBatch) -> Result<Tensor, ModelError> {
        self.model.prefill(batch, &mut self.cache)
    }

    fn decode(&mut self, batch: &DecodeBatch) -> Result<Tensor, ModelError> {
        self.model.decode(batch, &mut self.cache)
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ModelError> {
        self.cache.copy_blocks(copies)
    }
}

/// A sequence whose tokens the host holds.
struct HostSeq {
    sample_idx: u64,
    prompt_len_tokens: usize,
    /// Prompt and generated tokens.
    history: Vec<u32>,
}

/// A model and a sampler, called one after the other.
pub(crate) struct HostRunner {
    backend: Box<dyn Backend>,
    sampler: Box<dyn TokenSampler>,
    run_ahead: usize,
    seqs: HashMap<SeqId, HostSeq>,
    outputs: VecDeque<StepOutput>,
}

impl HostRunner {
    pub(crate) fn new(backend: Box<dyn Backend>, sampler: Box<dyn TokenSampler>) -> Self {
        Self { backend, sampler, run_ahead: 0, seqs: HashMap::new(), outputs: VecDeque::new() }
    }

    /// Lets the engine run ahead as it does on a device, for tests.
    #[cfg(test)]
    pub(crate) fn with_run_ahead(self, run_ahead: usize) -> Self {
        Self { run_ahead, ..self }
    }

    /// Draws a token for each of `ids` and appends it.
    fn sample(&mut self, logits: &Tensor, ids: &[SeqId], started: Instant) -> Result<(), EngineError> {
        let forward_time = started.elapsed();
        let started = Instant::now();
        let states = ids.iter().map(|&id| row_state(&self.seqs, id)).collect::<Result<Vec<_>, _>>()?;
        let sampled = self.sampler.sample(logits, &states)?;
        let sample_time = started.elapsed();
        for (id, sampled) in ids.iter().zip(&sampled) {
            if let Some(seq) = self.seqs.get_mut(id) {
                seq.history.push(sampled.token);
            }
        }
        self.outputs.push_back(StepOutput { sampled, forward_time, sample_time });
        Ok(())
    }
}

impl Runner for HostRunner {
    fn reset(&mut self) -> Result<(), EngineError> {
        self.seqs.clear();
        self.outputs.clear();
        Ok(())
    }

    fn prefill(
        &mut self,
        copies: &[BlockCopy],
        batch: PrefillBatch,
        rows: &[FirstToken],
    ) -> Result<(), EngineError> {
        let started = Instant::now();
        if !copies.is_empty() {
            self.backend.copy_blocks(copies)?;
        }
        let logits = self.backend.prefill(&batch)?; // [num_prompts, padded_vocab_size]
        let logits = repeat_rows(logits, rows)?; // [num_rows, padded_vocab_size]
        for row in rows {
            let prompt = batch.prompt(row.prompt_idx).unwrap_or_default();
            let seq = HostSeq {
                sample_idx: row.sample_idx,
                prompt_len_tokens: prompt.len(),
                history: prompt.to_vec(),
            };
            self.seqs.insert(row.id, seq);
        }
        let ids: Vec<SeqId> = rows.iter().map(|row| row.id).collect();
        self.sample(&logits, &ids, started)
    }

    fn decode(&mut self, copies: &[BlockCopy], seqs: &[DecodeSeq]) -> Result<(), EngineError> {
        let mut batch = DecodeBatch {
            tokens: Vec::with_capacity(seqs.len()),
            context_lens: Vec::with_capacity(seqs.len()),
            block_tables: Vec::with_capacity(seqs.len()),
        };
        let mut ids = Vec::with_capacity(seqs.len());
        for DecodeSeq { id, context_len, block_table } in seqs {
            let newest = self.seqs.get(id).and_then(|seq| seq.history.last().copied());
            batch.tokens.push(newest.ok_or_else(|| unknown(*id))?);
            batch.context_lens.push(*context_len);
            batch.block_tables.push(block_table.clone());
            ids.push(*id);
        }
        let started = Instant::now();
        if !copies.is_empty() {
            self.backend.copy_blocks(copies)?;
        }
        let logits = self.backend.decode(&batch)?; // [num_seqs, padded_vocab_size]
        self.sample(&logits, &ids, started)
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        Ok(self.outputs.pop_front().unwrap_or_default())
    }

    fn release(&mut self, ended: &[SeqId]) {
        for id in ended {
            self.seqs.remove(id);
        }
    }

    fn run_ahead(&self) -> usize {
        self.run_ahead
    }

    fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }
}

fn unknown(id: SeqId) -> EngineError {
    EngineError::UnknownSequence { group_idx: id.group_idx, response_idx: id.response_idx }
}

fn row_state(seqs: &HashMap<SeqId, HostSeq>, id: SeqId) -> Result<RowState<'_>, EngineError> {
    let seq = seqs.get(&id).ok_or_else(|| unknown(id))?;
    Ok(RowState {
        sample_idx: seq.sample_idx,
        response_idx: id.response_idx,
        num_generated: (seq.history.len() - seq.prompt_len_tokens) as u32,
        history: &seq.history,
    })
}

/// `logits`: `[num_prompts, padded_vocab_size]` to `[num_rows, padded_vocab_size]`, a row for each first token to
/// draw.
fn repeat_rows(logits: Tensor, rows: &[FirstToken]) -> Result<Tensor, EngineError> {
    if rows.iter().enumerate().all(|(row, first)| row == first.prompt_idx) {
        return Ok(logits);
    }
    let row_idxs: Vec<i64> = rows.iter().map(|row| row.prompt_idx as i64).collect();
    let row_idxs = Tensor::f_from_slice(&row_idxs)?.f_to_device(logits.device())?;
    Ok(logits.f_index_select(0, &row_idxs)?)
}
