//! The executor for models whose logits and samplers the host drives step by step.
//!
//! It computes whole prompts, chunks of prompts and decoded tokens in any mixture. Every step is computed when it is
//! started; collecting only hands it over.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use model_core::{Batch, BlockId, BlockMove, CausalLm, KvCache, ModelError};
use sampling::{RowState, TokenSampler};
use tch::Tensor;

use super::{Executor, unknown, unknown_prompt};
use crate::{
    EngineError,
    plan::{GrownSeq, NewPrompt, NewSeq, RowId, RowSpan, SeqId, StepOutput, StepPlan, TableDelta, ends_of},
};

const NAME: &str = "host";

/// What the executor needs of a model and its cache. Tests put a fake in its place that sees every block that is
/// written, read and copied.
pub(crate) trait BatchModel: Send {
    /// The logits that the batch asks for: float32 `[num_logits, padded_vocab_size]`.
    fn forward(&mut self, batch: &Batch) -> Result<Tensor, ModelError>;

    /// [`CausalLm::prompt_cut_tokens`].
    fn prompt_cut_tokens(&self) -> Option<usize>;

    /// Moves whole blocks of every layer, in order.
    fn move_blocks(&mut self, moves: &[BlockMove]) -> Result<(), ModelError>;
}

/// A real model and its cache.
pub(crate) struct CachedModel {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) cache: KvCache,
}

impl BatchModel for CachedModel {
    fn forward(&mut self, batch: &Batch) -> Result<Tensor, ModelError> {
        self.model.forward(batch, &mut self.cache)
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        self.model.prompt_cut_tokens()
    }

    fn move_blocks(&mut self, moves: &[BlockMove]) -> Result<(), ModelError> {
        self.cache.move_blocks(moves)
    }
}

/// A sequence whose tokens the host holds.
struct HostSeq {
    sample_idx: u64,
    prompt_len_tokens: usize,
    /// Prompt and generated tokens.
    history: Vec<u32>,
    /// None until it decodes.
    block_table: Vec<BlockId>,
}

/// A token to draw.
#[derive(Clone, Copy)]
struct Draw {
    id: SeqId,
    logits_row: usize,
}

/// A model and a sampler, called one after the other.
pub(crate) struct HostExecutor {
    model: Box<dyn BatchModel>,
    sampler: Box<dyn TokenSampler>,
    run_ahead: usize,
    prompts: HashMap<u64, NewPrompt>,
    seqs: HashMap<SeqId, HostSeq>,
    outputs: VecDeque<StepOutput>,
}

impl HostExecutor {
    pub(crate) fn new(model: Box<dyn BatchModel>, sampler: Box<dyn TokenSampler>) -> Self {
        Self {
            model,
            sampler,
            run_ahead: 0,
            prompts: HashMap::new(),
            seqs: HashMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Lets the engine run ahead as it does on a device, for tests.
    #[cfg(test)]
    pub(crate) fn with_run_ahead(self, run_ahead: usize) -> Self {
        Self { run_ahead, ..self }
    }

    fn learn(&mut self, tables: TableDelta) -> Result<(), EngineError> {
        for id in &tables.ended {
            self.seqs.remove(id);
        }
        self.prompts.extend(tables.prompts.into_iter().map(|prompt| (prompt.group_idx, prompt)));
        for NewSeq { id, block_table } in tables.started {
            self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?.block_table = block_table;
        }
        for GrownSeq { id, new_blocks } in tables.grown {
            self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?.block_table.extend(new_blocks);
        }
        Ok(())
    }

    /// Adds a row of a prompt to the batch, and its responses to the sequences when it is the last of that prompt.
    fn add_prompt(&mut self, group_idx: u64, row: &RowSpan, batch: &mut Batch) -> Result<(), EngineError> {
        let prompt = self.prompts.get(&group_idx).ok_or_else(|| unknown_prompt(group_idx))?;
        let end = row.context_len as usize + row.query_len as usize;
        let Some(tokens) = prompt.tokens.get(row.context_len as usize..end) else {
            return Err(unsupported("more tokens than a prompt has"));
        };
        batch.push(tokens, row.context_len, row.draws.min(1), &prompt.block_table);
        if row.draws == 0 {
            return Ok(());
        }
        if end != prompt.tokens.len() {
            return Err(unsupported("a token drawn inside a prompt"));
        }
        for response_idx in 0..row.draws {
            let seq = HostSeq {
                sample_idx: prompt.sample_idx,
                prompt_len_tokens: prompt.tokens.len(),
                history: prompt.tokens.clone(),
                block_table: Vec::new(),
            };
            self.seqs.insert(SeqId { group_idx, response_idx }, seq);
        }
        self.prompts.remove(&group_idx);
        Ok(())
    }

    /// Adds a row of a response to the batch.
    fn add_response(&self, id: SeqId, row: &RowSpan, batch: &mut Batch) -> Result<(), EngineError> {
        let seq = self.seqs.get(&id).ok_or_else(|| unknown(id))?;
        if row.query_len != 1 || row.draws != 1 {
            return Err(unsupported("drafted tokens to verify"));
        }
        let Some((newest, before)) = seq.history.split_last() else { return Err(unknown(id)) };
        if before.len() != row.context_len as usize {
            return Err(unsupported("a response at a place other than its end"));
        }
        batch.push(&[*newest], row.context_len, 1, &seq.block_table);
        Ok(())
    }

    /// Draws the tokens and appends them.
    fn sample(
        &mut self,
        logits: Tensor,
        draws: &[Draw],
        started: Instant,
    ) -> Result<StepOutput, EngineError> {
        let logits = repeat_rows(logits, draws)?; // [num_draws, padded_vocab_size]
        let forward_time = started.elapsed();
        let started = Instant::now();
        let states =
            draws.iter().map(|draw| row_state(&self.seqs, draw.id)).collect::<Result<Vec<_>, _>>()?;
        let tokens = if draws.is_empty() { Vec::new() } else { self.sampler.sample(&logits, &states)? };
        let sample_time = started.elapsed();
        for (draw, sampled) in draws.iter().zip(&tokens) {
            if let Some(seq) = self.seqs.get_mut(&draw.id) {
                seq.history.push(sampled.token);
            }
        }
        Ok(StepOutput { tokens, forward_time, sample_time, ..StepOutput::default() })
    }
}

impl Executor for HostExecutor {
    fn reset(&mut self) -> Result<(), EngineError> {
        self.prompts.clear();
        self.seqs.clear();
        self.outputs.clear();
        Ok(())
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        let StepPlan { tables, moves, rows } = plan;
        self.learn(tables)?;
        let mut batch = Batch::default();
        let mut draws = Vec::new();
        let mut num_logits = 0;
        for row in &rows {
            let logits_row = num_logits;
            match row.id {
                RowId::Prompt(group_idx) => {
                    self.add_prompt(group_idx, row, &mut batch)?;
                    let ids = (0..row.draws).map(|response_idx| SeqId { group_idx, response_idx });
                    draws.extend(ids.map(|id| Draw { id, logits_row }));
                }
                RowId::Response(id) => {
                    self.add_response(id, row, &mut batch)?;
                    draws.push(Draw { id, logits_row });
                }
            }
            num_logits += row.draws.min(1) as usize;
        }
        let started = Instant::now();
        if !moves.is_empty() {
            self.model.move_blocks(&moves)?;
        }
        let move_time = started.elapsed();
        let logits = self.model.forward(&batch)?; // [num_logits, padded_vocab_size]
        let output = self.sample(logits, &draws, started)?;
        self.outputs.push_back(StepOutput { ends: ends_of(&rows), move_time, ..output });
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        Ok(self.outputs.pop_front().unwrap_or_default())
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        self.model.prompt_cut_tokens()
    }

    fn run_ahead(&self) -> usize {
        self.run_ahead
    }

    fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }
}

fn unsupported(what: &'static str) -> EngineError {
    EngineError::UnsupportedStep { executor: NAME, what }
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

/// `logits`: `[num_logits, padded_vocab_size]` to `[num_draws, padded_vocab_size]`, a row for each token to draw.
fn repeat_rows(logits: Tensor, draws: &[Draw]) -> Result<Tensor, EngineError> {
    if draws.iter().enumerate().all(|(row, draw)| row == draw.logits_row) {
        return Ok(logits);
    }
    let row_idxs: Vec<i64> = draws.iter().map(|draw| draw.logits_row as i64).collect();
    let row_idxs = Tensor::f_from_slice(&row_idxs)?.f_to_device(logits.device())?;
    Ok(logits.f_index_select(0, &row_idxs)?)
}
