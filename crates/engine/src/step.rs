//! Carries out the steps of one run: builds batches, has them computed, ends responses.

use std::{
    collections::{HashMap, VecDeque},
    ops::ControlFlow,
};

use model_core::{LogitsRows, PrefillBatch};
use sampling::{FinishReason, SampledToken, StopState};

use crate::{
    Activity, Completion, Engine, EngineError, Request, RunStats,
    block_table::BlockCopy,
    runner::FirstToken,
    scheduler::{DecodeSeq, PrefillGroup, Scheduler, SeqGroup, SeqId},
};

/// A request in flight.
struct ActiveRequest {
    request: Request,
    num_unfinished: u32,
}

/// A response in flight.
struct ActiveSeq {
    token_ids: Vec<u32>,
    stop: StopState,
    logprobs: Vec<f32>,
}

impl ActiveSeq {
    fn new(max_new_tokens: u32) -> Self {
        Self { token_ids: Vec::new(), stop: StopState::new(max_new_tokens), logprobs: Vec::new() }
    }
}

/// A response that ended in the step.
struct Ended {
    id: SeqId,
    seq: ActiveSeq,
    reason: FinishReason,
}

/// A step that was started and not collected.
struct UnderWay {
    kind: StepKind,
    /// Its rows; a sequence among them may have ended with an earlier step.
    ids: Vec<SeqId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepKind {
    Prefill,
    Decode,
}

/// The state of one run.
pub(crate) struct Run<'e, 'c> {
    engine: &'e mut Engine,
    on_completion: &'c mut dyn FnMut(Completion) -> ControlFlow<()>,
    pub(crate) scheduler: Scheduler,
    pub(crate) stats: RunStats,
    requests: HashMap<u64, ActiveRequest>,
    seqs: HashMap<SeqId, ActiveSeq>,
    under_way: VecDeque<UnderWay>,
    next_group_idx: u64,
}

impl<'e, 'c> Run<'e, 'c> {
    pub(crate) fn new(
        engine: &'e mut Engine,
        on_completion: &'c mut dyn FnMut(Completion) -> ControlFlow<()>,
    ) -> Result<Self, EngineError> {
        let scheduler = Scheduler::new(engine.limits)?;
        engine.runner.reset()?;
        Ok(Self {
            engine,
            on_completion,
            scheduler,
            stats: RunStats::default(),
            requests: HashMap::new(),
            seqs: HashMap::new(),
            under_way: VecDeque::new(),
            next_group_idx: 0,
        })
    }

    /// Whether requests are in flight.
    pub(crate) fn activity(&self) -> Activity {
        if self.requests.is_empty() { Activity::Idle } else { Activity::Busy }
    }

    /// Queues a request, or answers it at once if there is nothing to compute.
    pub(crate) fn submit(&mut self, request: Request) -> Result<ControlFlow<()>, EngineError> {
        if request.num_responses == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        // Greedy responses are all alike: one is computed and repeated.
        let num_seqs = if self.engine.runner.is_greedy() { 1 } else { request.num_responses };
        if request.max_new_tokens == 0 {
            let empty = ActiveSeq::new(0);
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

    /// Steps that were started and not collected.
    pub(crate) fn num_under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Starts a prefill; returns how many steps may stay under way behind it.
    pub(crate) fn prefill(
        &mut self,
        copies: &[BlockCopy],
        groups: &[PrefillGroup],
    ) -> Result<usize, EngineError> {
        let mut batch = PrefillBatch {
            tokens: Vec::new(),
            cu_seqlens: vec![0],
            block_tables: groups.iter().map(|group| group.block_table.clone()).collect(),
            logits: LogitsRows::Last,
        };
        let mut rows = Vec::new();
        for (prompt_idx, group) in groups.iter().enumerate() {
            let request = &active(&self.requests, group.group_idx)?.request;
            batch.tokens.extend_from_slice(&request.prompt);
            batch.cu_seqlens.push(batch.tokens.len() as u32);
            for response_idx in 0..group.num_seqs {
                let id = SeqId { group_idx: group.group_idx, response_idx };
                rows.push(FirstToken { id, prompt_idx, sample_idx: request.sample_idx });
                self.seqs.insert(id, ActiveSeq::new(request.max_new_tokens));
            }
        }
        self.stats.prompt_tokens += batch.tokens.len() as u64;
        self.stats.num_prefill_steps += 1;
        self.engine.runner.prefill(copies, batch, &rows)?;
        let ids = rows.iter().map(|row| row.id).collect();
        self.under_way.push_back(UnderWay { kind: StepKind::Prefill, ids });
        Ok(self.engine.runner.run_ahead())
    }

    /// Starts a decode step; returns how many steps may stay under way behind it.
    pub(crate) fn decode(&mut self, copies: &[BlockCopy], seqs: &[DecodeSeq]) -> Result<usize, EngineError> {
        self.engine.runner.decode(copies, seqs)?;
        self.stats.num_decode_steps += 1;
        self.stats.peak_rows = self.stats.peak_rows.max(seqs.len());
        let ids = seqs.iter().map(|seq| seq.id).collect();
        self.under_way.push_back(UnderWay { kind: StepKind::Decode, ids });
        Ok(self.engine.runner.run_ahead())
    }

    /// Takes the tokens of the oldest step under way.
    pub(crate) fn collect(&mut self) -> Result<ControlFlow<()>, EngineError> {
        let Some(UnderWay { kind, ids }) = self.under_way.pop_front() else {
            return Ok(ControlFlow::Continue(()));
        };
        let output = self.engine.runner.collect()?;
        match kind {
            StepKind::Prefill => self.stats.prefill_time += output.forward_time,
            StepKind::Decode => self.stats.decode_time += output.forward_time,
        }
        self.stats.sample_time += output.sample_time;
        self.finish_step(&ids, &output.sampled)
    }

    /// Appends the sampled tokens, tells the scheduler who ended and hands those over.
    fn finish_step(
        &mut self,
        ids: &[SeqId],
        sampled: &[SampledToken],
    ) -> Result<ControlFlow<()>, EngineError> {
        let mut ended = Vec::new();
        for (&id, sampled) in ids.iter().zip(sampled) {
            // A step that was started before the end of a sequence was known has a row of it too.
            let Some(seq) = self.seqs.get_mut(&id) else { continue };
            seq.token_ids.push(sampled.token);
            seq.logprobs.extend(sampled.logprob);
            self.stats.generated_tokens += 1;
            let token_bytes = self.engine.token_bytes.bytes(sampled.token);
            if let Some(reason) = seq.stop.push(&self.engine.stop, sampled.token, token_bytes) {
                let seq = self.seqs.remove(&id).ok_or_else(|| unknown(id))?;
                ended.push(Ended { id, seq, reason });
            }
        }
        let ended_ids: Vec<SeqId> = ended.iter().map(|ended| ended.id).collect();
        self.engine.runner.release(&ended_ids);
        self.scheduler.end(&ended_ids);
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
        let is_repeated = self.engine.runner.is_greedy();
        let response_idxs =
            if is_repeated { 0..request.num_responses } else { response_idx..response_idx + 1 };
        let has_logprobs = seq.logprobs.len() == seq.token_ids.len() && !seq.token_ids.is_empty();
        for response_idx in response_idxs {
            (self.on_completion)(Completion {
                sample_idx: request.sample_idx,
                response_idx,
                token_ids: seq.token_ids.clone(),
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
