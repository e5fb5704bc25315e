//! Carries out the steps of one run: builds batches, calls the model and the sampler, ends responses.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use model_core::{DecodeBatch, LogitsRows, PrefillBatch};
use sampling::{FinishReason, RowState, SampledToken, StopState};
use tch::Tensor;

use crate::{
    Completion, Engine, EngineError, Request, RunStats,
    block_table::BlockCopy,
    scheduler::{DecodeSeq, PrefillGroup, Scheduler, SeqGroup, SeqId},
};

/// A request in flight.
struct ActiveRequest {
    request: Request,
    num_unfinished: u32,
}

/// A response in flight.
struct ActiveSeq {
    /// Prompt and generated tokens.
    history: Vec<u32>,
    stop: StopState,
    logprobs: Vec<f32>,
}

/// A response that ended in the step.
struct Ended {
    id: SeqId,
    seq: ActiveSeq,
    reason: FinishReason,
}

/// The state of one run.
pub(crate) struct Run<'e, 'c> {
    engine: &'e mut Engine,
    on_completion: &'c mut dyn FnMut(Completion) -> ControlFlow<()>,
    pub(crate) scheduler: Scheduler,
    pub(crate) stats: RunStats,
    requests: HashMap<u64, ActiveRequest>,
    seqs: HashMap<SeqId, ActiveSeq>,
    next_group_idx: u64,
}

impl<'e, 'c> Run<'e, 'c> {
    pub(crate) fn new(
        engine: &'e mut Engine,
        on_completion: &'c mut dyn FnMut(Completion) -> ControlFlow<()>,
    ) -> Result<Self, EngineError> {
        let scheduler = Scheduler::new(engine.limits)?;
        Ok(Self {
            engine,
            on_completion,
            scheduler,
            stats: RunStats::default(),
            requests: HashMap::new(),
            seqs: HashMap::new(),
            next_group_idx: 0,
        })
    }

    /// Queues a request, or answers it at once if there is nothing to compute.
    pub(crate) fn submit(&mut self, request: Request) -> Result<ControlFlow<()>, EngineError> {
        if request.num_responses == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        // Greedy responses are all alike: one is computed and repeated.
        let num_seqs = if self.engine.sampler.is_greedy() { 1 } else { request.num_responses };
        if request.max_new_tokens == 0 {
            let empty =
                ActiveSeq { history: request.prompt.clone(), stop: StopState::new(0), logprobs: Vec::new() };
            return Ok((0..num_seqs).try_for_each(|response_idx| {
                self.deliver(&request, response_idx, &empty, FinishReason::Length)
            }));
        }
        let group_idx = self.next_group_idx;
        self.scheduler.add(SeqGroup {
            group_idx,
            sample_idx: request.sample_idx,
            prompt_len_tokens: request.prompt.len(),
            num_seqs,
            max_new_tokens: request.max_new_tokens,
        })?;
        self.next_group_idx += 1;
        self.requests.insert(group_idx, ActiveRequest { request, num_unfinished: num_seqs });
        Ok(ControlFlow::Continue(()))
    }

    pub(crate) fn prefill(&mut self, groups: &[PrefillGroup]) -> Result<ControlFlow<()>, EngineError> {
        let mut batch = PrefillBatch {
            tokens: Vec::new(),
            cu_seqlens: vec![0],
            block_tables: groups.iter().map(|group| group.block_table.clone()).collect(),
            logits: LogitsRows::Last,
        };
        let mut states = Vec::new();
        let mut ids = Vec::new();
        for group in groups {
            let request = &active(&self.requests, group.group_idx)?.request;
            batch.tokens.extend_from_slice(&request.prompt);
            batch.cu_seqlens.push(batch.tokens.len() as u32);
            for response_idx in 0..group.num_seqs {
                ids.push(SeqId { group_idx: group.group_idx, response_idx });
                states.push(row_state(request, response_idx, 0, &request.prompt));
            }
        }
        let start = Instant::now();
        let logits = self.engine.backend.prefill(&batch)?; // [num_groups, padded_vocab_size]
        let logits = repeat_rows(logits, groups)?; // [num_seqs, padded_vocab_size]
        let forward_time = start.elapsed();
        let (sampled, sample_time) = sample(self.engine, &logits, &states)?;
        for id in &ids {
            let request = &active(&self.requests, id.group_idx)?.request;
            let seq = ActiveSeq {
                history: request.prompt.clone(),
                stop: StopState::new(request.max_new_tokens),
                logprobs: Vec::new(),
            };
            self.seqs.insert(*id, seq);
        }
        self.stats.prompt_tokens += batch.tokens.len() as u64;
        self.stats.num_prefill_steps += 1;
        self.stats.prefill_time += forward_time;
        self.stats.sample_time += sample_time;
        self.finish_step(&ids, &sampled)
    }

    pub(crate) fn decode(
        &mut self,
        copies: &[BlockCopy],
        decode_seqs: Vec<DecodeSeq>,
    ) -> Result<ControlFlow<()>, EngineError> {
        let num_rows = decode_seqs.len();
        let mut batch = DecodeBatch {
            tokens: Vec::with_capacity(num_rows),
            context_lens: Vec::with_capacity(num_rows),
            block_tables: Vec::with_capacity(num_rows),
        };
        let mut states = Vec::with_capacity(num_rows);
        let mut ids = Vec::with_capacity(num_rows);
        for DecodeSeq { id, context_len, block_table } in decode_seqs {
            let request = &active(&self.requests, id.group_idx)?.request;
            let seq = self.seqs.get(&id).ok_or_else(|| unknown(id))?;
            batch.tokens.push(seq.history.last().copied().ok_or_else(|| unknown(id))?);
            batch.context_lens.push(context_len);
            batch.block_tables.push(block_table);
            states.push(row_state(request, id.response_idx, seq.stop.num_generated(), &seq.history));
            ids.push(id);
        }
        let start = Instant::now();
        if !copies.is_empty() {
            self.engine.backend.copy_blocks(copies)?;
        }
        let logits = self.engine.backend.decode(&batch)?; // [num_seqs, padded_vocab_size]
        let forward_time = start.elapsed();
        let (sampled, sample_time) = sample(self.engine, &logits, &states)?;
        self.stats.num_decode_steps += 1;
        self.stats.peak_rows = self.stats.peak_rows.max(num_rows);
        self.stats.decode_time += forward_time;
        self.stats.sample_time += sample_time;
        self.finish_step(&ids, &sampled)
    }

    /// Appends the sampled tokens, tells the scheduler who ended and hands those over.
    fn finish_step(
        &mut self,
        ids: &[SeqId],
        sampled: &[SampledToken],
    ) -> Result<ControlFlow<()>, EngineError> {
        let mut ended = Vec::new();
        for (&id, sampled) in ids.iter().zip(sampled) {
            let seq = self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?;
            seq.history.push(sampled.token);
            seq.logprobs.extend(sampled.logprob);
            let token_bytes = self.engine.token_bytes.bytes(sampled.token);
            if let Some(reason) = seq.stop.push(&self.engine.stop, sampled.token, token_bytes) {
                let seq = self.seqs.remove(&id).ok_or_else(|| unknown(id))?;
                ended.push(Ended { id, seq, reason });
            }
        }
        self.stats.generated_tokens += sampled.len() as u64;
        let ended_ids: Vec<SeqId> = ended.iter().map(|ended| ended.id).collect();
        self.scheduler.complete(&ended_ids);
        for Ended { id, seq, reason } in ended {
            let mut active = self.requests.remove(&id.group_idx).ok_or_else(|| unknown(id))?;
            let flow = self.deliver(&active.request, id.response_idx, &seq, reason);
            active.num_unfinished -= 1;
            if active.num_unfinished > 0 {
                self.requests.insert(id.group_idx, active);
            }
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn deliver(
        &mut self,
        request: &Request,
        response_idx: u32,
        seq: &ActiveSeq,
        finish_reason: FinishReason,
    ) -> ControlFlow<()> {
        let is_repeated = self.engine.sampler.is_greedy();
        let response_idxs =
            if is_repeated { 0..request.num_responses } else { response_idx..response_idx + 1 };
        let token_ids = seq.history.get(request.prompt.len()..).unwrap_or_default();
        let has_logprobs = seq.logprobs.len() == token_ids.len() && !token_ids.is_empty();
        for response_idx in response_idxs {
            (self.on_completion)(Completion {
                sample_idx: request.sample_idx,
                response_idx,
                token_ids: token_ids.to_vec(),
                finish_reason,
                logprobs: has_logprobs.then(|| seq.logprobs.clone()),
            })?;
        }
        ControlFlow::Continue(())
    }
}

fn active(requests: &HashMap<u64, ActiveRequest>, group_idx: u64) -> Result<&ActiveRequest, EngineError> {
    requests.get(&group_idx).ok_or(EngineError::UnknownSequence { group_idx, response_idx: 0 })
}

fn unknown(id: SeqId) -> EngineError {
    EngineError::UnknownSequence { group_idx: id.group_idx, response_idx: id.response_idx }
}

fn row_state<'a>(
    request: &Request,
    response_idx: u32,
    num_generated: u32,
    history: &'a [u32],
) -> RowState<'a> {
    RowState { sample_idx: request.sample_idx, response_idx, num_generated, history }
}

fn sample(
    engine: &mut Engine,
    logits: &Tensor,
    states: &[RowState<'_>],
) -> Result<(Vec<SampledToken>, Duration), EngineError> {
    let start = Instant::now();
    let sampled = engine.sampler.sample(logits, states)?;
    Ok((sampled, start.elapsed()))
}

/// `logits`: `[num_groups, padded_vocab_size]` to `[num_seqs, padded_vocab_size]`, a row for each first token
/// to draw.
fn repeat_rows(logits: Tensor, groups: &[PrefillGroup]) -> Result<Tensor, EngineError> {
    if groups.iter().all(|group| group.num_seqs == 1) {
        return Ok(logits);
    }
    let row_idxs: Vec<i64> = groups
        .iter()
        .enumerate()
        .flat_map(|(group_row, group)| std::iter::repeat_n(group_row as i64, group.num_seqs as usize))
        .collect();
    let row_idxs = Tensor::f_from_slice(&row_idxs)?.f_to_device(logits.device())?;
    Ok(logits.f_index_select(0, &row_idxs)?)
}
