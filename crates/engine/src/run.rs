//! One run: requests become sequences of the scheduler, its steps go to the executor, tokens become completions.

use std::{
    collections::{HashMap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use model_core::BlockMove;
use sampling::{FinishReason, SampledToken, StopConditions, StopState, TokenBytes, TopToken};
use speculation::{Pace, Proposer, StepTime};

use crate::live::{Cancellation, Cancellations, LiveCounts};
use crate::{
    Activity, Completion, Draftable, EngineError, EngineLimits, Executor, OwnRules, Request, RunStats,
    plan::{RowId, RowSpan, SeqId, StepOutput, StepPlan},
    scheduler::{PromptParts, Scheduler, SeqGroup},
};

/// A request in flight; its prompt is the scheduler's.
struct ActiveRequest {
    sample_idx: u64,
    num_responses: u32,
    max_new_tokens: u32,
    num_unfinished: u32,
    /// Its responses are all alike, so that one is computed and repeated.
    is_repeated: bool,
    /// What ends them, where that is not what ends those of the run.
    stop: Option<Arc<StopConditions>>,
    /// Its responses have a structure: each token must be known before it is known what may be next.
    has_structure: bool,
    /// A part of its prompt was in a step.
    has_begun: bool,
}

/// A response in flight.
struct ActiveSeq {
    token_ids: Vec<u32>,
    max_new_tokens: u32,
    stop: StopState,
    /// Of its request's own.
    stop_conditions: Option<Arc<StopConditions>>,
    may_have_drafts: bool,
    logprobs: Vec<f32>,
    top_logprobs: Vec<Vec<TopToken>>,
}

impl ActiveSeq {
    fn new(max_new_tokens: u32, stop_conditions: Option<Arc<StopConditions>>, may_have_drafts: bool) -> Self {
        Self {
            token_ids: Vec::new(),
            max_new_tokens,
            stop: StopState::new(max_new_tokens),
            stop_conditions,
            may_have_drafts,
            logprobs: Vec::new(),
            top_logprobs: Vec::new(),
        }
    }
}

/// A response that ended in the step.
struct Ended {
    id: SeqId,
    seq: ActiveSeq,
    reason: FinishReason,
    error: Option<String>,
}

/// The time since some moment.
pub(crate) type Clock = Box<dyn Fn() -> Duration + Send>;

/// What serves one run after the other.
pub(crate) struct EngineParts {
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) proposer: Option<Box<dyn Proposer<SeqId>>>,
    /// The time since some moment. What a proposer measures by it decides what is drafted, and no text.
    pub(crate) clock: Clock,
    pub(crate) stop: StopConditions,
    pub(crate) token_bytes: Arc<dyn TokenBytes + Send + Sync>,
    pub(crate) limits: EngineLimits,
    pub(crate) shares_prefixes: bool,
    pub(crate) live: Arc<LiveCounts>,
    pub(crate) cancellations: Arc<Cancellations>,
}

/// The state of one run.
pub(crate) struct Run<'e, 'c> {
    engine: &'e mut EngineParts,
    on_completion: &'c mut dyn FnMut(Completion) -> ControlFlow<()>,
    pub(crate) scheduler: Scheduler,
    pub(crate) stats: RunStats,
    requests: HashMap<u64, ActiveRequest>,
    seqs: HashMap<SeqId, ActiveSeq>,
    /// A sequence among their rows may have ended with an earlier step.
    in_flight: VecDeque<InFlight>,
    /// The next step shall have drafts.
    wants_drafts: bool,
    /// When the tokens of the last step were read, or, where nothing ran then, when the next one was begun.
    last_read: Option<Duration>,
}

/// A step that was started and not collected.
struct InFlight {
    rows: Vec<RowSpan>,
    /// Blocks go to the host or come back.
    swaps: bool,
    pace: Pace,
}

impl<'e, 'c> Run<'e, 'c> {
    pub(crate) fn new(
        engine: &'e mut EngineParts,
        on_completion: &'c mut dyn FnMut(Completion) -> ControlFlow<()>,
    ) -> Result<Self, EngineError> {
        let parts = PromptParts {
            cut_tokens: engine.executor.prompt_cut_tokens(),
            shares_prefixes: engine.shares_prefixes,
        };
        let scheduler =
            Scheduler::new(engine.limits)?.with_parts(parts).with_sets(engine.executor.num_sets());
        engine.executor.reset()?;
        // Of an earlier run.
        engine.cancellations.take();
        if let Some(proposer) = &mut engine.proposer {
            proposer.reset();
        }
        Ok(Self {
            engine,
            on_completion,
            scheduler,
            stats: RunStats::default(),
            requests: HashMap::new(),
            seqs: HashMap::new(),
            in_flight: VecDeque::new(),
            wants_drafts: false,
            last_read: None,
        })
    }

    /// How many steps may stay in flight when nothing can be started before one of them is known.
    pub(crate) fn num_to_wait_with(&self) -> usize {
        if self.engine.executor.num_sets() > 1 { self.in_flight.len().saturating_sub(1) } else { 0 }
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
        let is_repeated = match &request.own {
            Some(own) => own.row.params.use_greedy,
            None => self.engine.executor.is_greedy(),
        };
        let num_seqs = if is_repeated { 1 } else { request.num_responses };
        let Request { sample_idx, prompt, num_responses, max_new_tokens, own, foresight } = request;
        let (own, stop) = match own.map(|own| *own) {
            Some(OwnRules { row, stop }) => (Some(Box::new(row)), Some(Arc::new(stop))),
            None => (None, None),
        };
        let has_structure = own.as_ref().is_some_and(|own| own.structure.is_some());
        let active = ActiveRequest {
            sample_idx,
            num_responses,
            max_new_tokens,
            num_unfinished: num_seqs,
            is_repeated,
            stop,
            has_structure,
            has_begun: false,
        };
        if max_new_tokens == 0 {
            let empty = ActiveSeq::new(0, None, false);
            return Ok((0..num_seqs).try_for_each(|response_idx| {
                self.deliver(&active, response_idx, &empty, (FinishReason::Length, None))
            }));
        }
        let group_idx =
            self.scheduler.add(SeqGroup { sample_idx, prompt, num_seqs, max_new_tokens, own, foresight })?;
        self.requests.insert(group_idx, active);
        Ok(ControlFlow::Continue(()))
    }

    /// Ends the responses that nobody wants any more: their rows and blocks are free for others from the next step on.
    /// Steps in flight may still compute them; what that gives is dropped, as behind the end of any response.
    pub(crate) fn cancel_unwanted(&mut self) {
        for Cancellation { sample_idx, last_wanted } in self.engine.cancellations.take() {
            let of_sample = self.requests.iter().filter(|(_, active)| active.sample_idx == sample_idx);
            let group_idxs: Vec<u64> = of_sample.map(|(&group_idx, _)| group_idx).collect();
            group_idxs.into_iter().for_each(|group_idx| self.cancel_behind(group_idx, last_wanted));
        }
    }

    fn cancel_behind(&mut self, group_idx: u64, last_wanted: u32) {
        let Some(active) = self.requests.get_mut(&group_idx) else { return };
        let idxs = last_wanted.saturating_add(1)..active.num_responses;
        let mut cancelled = Vec::new();
        for id in idxs.map(|response_idx| SeqId { group_idx, response_idx }) {
            // One without a token is still behind its prompt, and what is repeated is computed for the first one.
            let has_begun = self.seqs.get(&id).is_some_and(|seq| !seq.token_ids.is_empty());
            if has_begun && let Some(seq) = self.seqs.remove(&id) {
                if let Some(proposer) = &mut self.engine.proposer {
                    proposer.end(id);
                }
                self.engine.live.ended(seq.token_ids.len() as u64);
                cancelled.push(id);
            }
        }
        active.num_unfinished -= cancelled.len() as u32;
        if active.num_unfinished == 0 {
            self.requests.remove(&group_idx);
        }
        self.stats.num_cancelled += cancelled.len() as u64;
        self.scheduler.cancel(&cancelled);
    }

    /// Has drafts put behind the responses of a step, where all their tokens are known.
    fn add_drafts(&mut self, plan: &mut StepPlan) {
        let Self { engine, scheduler, seqs, in_flight, .. } = self;
        let Some(proposer) = &mut engine.proposer else { return };
        for prompt in &plan.tables.prompts {
            // One that has begun is told to the executor again when its blocks have moved between its parts.
            let Some(active) = self.requests.get(&prompt.group_idx).filter(|active| !active.has_begun) else {
                continue;
            };
            let group_idx = prompt.group_idx;
            let ids: Vec<SeqId> =
                (0..active.num_unfinished).map(|response_idx| SeqId { group_idx, response_idx }).collect();
            proposer.prompt(&prompt.tokens, &ids);
        }
        if !self.wants_drafts || !in_flight.is_empty() {
            return;
        }
        let responses: Vec<Draftable> = responses_of(&plan.rows)
            .map(|id| {
                let seq = seqs.get(&id).filter(|seq| seq.may_have_drafts);
                let num_left = seq.map_or(0, |seq| seq.max_new_tokens as usize - seq.token_ids.len());
                Draftable { id, max_drafts: num_left.saturating_sub(1) }
            })
            .collect();
        if !responses.is_empty() {
            let mut drafts = proposer.propose(&responses);
            // A proposer that gives more than it is asked for changes no text either.
            drafts
                .iter_mut()
                .zip(&responses)
                .for_each(|(draft, response)| draft.truncate(response.max_drafts));
            scheduler.add_drafts(plan, &drafts);
        }
    }

    /// Starts a step; returns how many steps may stay in flight behind it.
    pub(crate) fn start(&mut self, mut plan: StepPlan) -> Result<usize, EngineError> {
        if self.last_read.is_none() {
            self.last_read = Some((self.engine.clock)());
        }
        self.add_drafts(&mut plan);
        let mut num_responses = 0;
        for row in &plan.rows {
            match row.id {
                RowId::Prompt(group_idx) => {
                    let unknown = unknown(SeqId { group_idx, response_idx: 0 });
                    let request = self.requests.get_mut(&group_idx).ok_or(unknown)?;
                    let (max_new_tokens, stop) = (request.max_new_tokens, request.stop.clone());
                    let may_have_drafts = !request.has_structure;
                    self.stats.prompt_tokens += u64::from(row.query_len);
                    self.engine.live.prompt(u64::from(row.query_len));
                    if !std::mem::replace(&mut request.has_begun, true) {
                        self.stats.cached_prompt_tokens += u64::from(row.context_len);
                    }
                    let ids = (0..row.draws).map(|response_idx| SeqId { group_idx, response_idx });
                    self.seqs.extend(
                        ids.map(|id| (id, ActiveSeq::new(max_new_tokens, stop.clone(), may_have_drafts))),
                    );
                }
                RowId::Response(_) => num_responses += 1,
            }
        }
        match has_prompts(&plan.rows) {
            true => self.stats.num_prefill_steps += 1,
            false => self.stats.num_decode_steps += 1,
        }
        self.stats.peak_rows = self.stats.peak_rows.max(num_responses);
        self.stats.decode_rows += num_responses as u64;
        let has_drafts = !plan.drafts.is_empty();
        let pace = if self.in_flight.is_empty() { Pace::Alone } else { Pace::Ahead };
        let step = InFlight { rows: plan.rows.clone(), swaps: self.count_swaps(&plan), pace };
        self.engine.executor.start(plan)?;
        self.in_flight.push_back(step);
        Ok(if has_drafts { 0 } else { self.engine.executor.run_ahead() })
    }

    /// How many of the steps in flight may stay there: none where the next step shall have drafts.
    pub(crate) fn may_stay(&mut self) -> usize {
        let (num_in_flight, goal) = (self.in_flight.len(), self.scheduler.goal());
        let proposer = self.engine.proposer.as_mut();
        self.wants_drafts = proposer.is_some_and(|proposer| proposer.wants_drafts(num_in_flight, goal));
        if self.wants_drafts { 0 } else { num_in_flight }
    }

    /// Whether a step swaps blocks.
    fn count_swaps(&mut self, plan: &StepPlan) -> bool {
        let (mut num_out, mut num_in) = (0, 0);
        for block_move in &plan.moves {
            match block_move {
                BlockMove::Copy { .. } => {}
                BlockMove::SwapOut { .. } => num_out += 1,
                BlockMove::SwapIn { .. } => num_in += 1,
            }
        }
        self.stats.num_preemptions += plan.tables.preempted.len() as u64;
        self.stats.num_swapped_out_blocks += num_out;
        self.stats.num_swapped_in_blocks += num_in;
        num_out + num_in > 0
    }

    /// Takes the tokens of the oldest steps in flight until there are at most so many.
    pub(crate) fn collect_down_to(&mut self, most_in_flight: usize) -> Result<ControlFlow<()>, EngineError> {
        let mut flow = ControlFlow::Continue(());
        while flow.is_continue() && self.in_flight.len() > most_in_flight {
            flow = self.collect()?;
        }
        if self.requests.is_empty() {
            // The caller may have nothing for a while, and that is no step's time.
            self.last_read = None;
        }
        Ok(flow)
    }

    /// Takes the tokens of the oldest step in flight.
    fn collect(&mut self) -> Result<ControlFlow<()>, EngineError> {
        let Some(InFlight { rows, swaps, pace }) = self.in_flight.pop_front() else {
            return Ok(ControlFlow::Continue(()));
        };
        let output = self.engine.executor.collect()?;
        let now = (self.engine.clock)();
        let time = now.saturating_sub(self.last_read.replace(now).unwrap_or(now));
        // What a stage of several takes says nothing of the step, which others compute too, beside other steps.
        let is_staged = self.engine.executor.num_sets() > 1;
        let step_time = if is_staged { time } else { output.forward_time };
        match has_prompts(&rows) {
            true => self.stats.prefill_time += step_time,
            false => self.stats.decode_time += step_time,
        }
        if !is_staged {
            self.stats.sample_time += output.sample_time;
        }
        if swaps {
            self.stats.swap_time += output.move_time;
        }
        let ended = self.append(&rows, &output)?;
        if let Some(proposer) = &mut self.engine.proposer {
            let num_tokens = rows.iter().map(|row| row.query_len as usize).sum();
            match has_prompts(&rows) || output.is_first_of_kind {
                true => proposer.not_comparable(time),
                false => proposer.measured(StepTime { num_rows: rows.len(), num_tokens, pace, time }),
            }
        }
        self.deliver_ended(ended)
    }

    /// Gives each row of a step its tokens, reports them to the scheduler, and takes out the responses that end with them.
    fn append(&mut self, rows: &[RowSpan], output: &StepOutput) -> Result<Vec<Ended>, EngineError> {
        let mut ended = Vec::new();
        let mut of_rows = output.rows();
        let mut failed = output.failed.iter().peekable();
        let mut end = 0;
        for (idx, row) in rows.iter().enumerate() {
            let tokens = of_rows.next().unwrap_or_default();
            let num_tokens = tokens.len() as u32;
            end += num_tokens;
            let mut failure = |before: u32| {
                let next = failed.next_if(|failed| failed.token_idx < before);
                next.map(|failed| failed.reason.as_str())
            };
            let bad = EngineError::BadOutput { row: idx, draws: row.draws, actual: tokens.len() };
            match row.id {
                RowId::Prompt(_) if num_tokens != row.draws => return Err(bad),
                RowId::Prompt(group_idx) => {
                    if row.draws > 0 {
                        self.scheduler.drew(group_idx);
                    }
                    for (response_idx, token) in (0..row.draws).zip(tokens) {
                        let id = SeqId { group_idx, response_idx };
                        let failure = failure(end - num_tokens + response_idx + 1);
                        ended.extend(self.append_to(id, std::slice::from_ref(token), failure)?);
                    }
                }
                RowId::Response(_) if !(1..=row.draws).contains(&num_tokens) => return Err(bad),
                RowId::Response(id) => {
                    self.scheduler.accept(id, row.query_len, num_tokens);
                    self.stats.drafted_tokens += u64::from(row.query_len - 1);
                    self.stats.accepted_tokens += u64::from(num_tokens - 1);
                    ended.extend(self.append_to(id, tokens, failure(end))?);
                }
            }
        }
        let ended_ids: Vec<SeqId> = ended.iter().map(|ended| ended.id).collect();
        self.scheduler.end(&ended_ids);
        Ok(ended)
    }

    /// Appends tokens to a response, up to the one that ends it. A step that was started before the end of a sequence was
    /// known has a row of it too: what that gives is dropped. With a `failure` it ends before them.
    fn append_to(
        &mut self,
        id: SeqId,
        tokens: &[SampledToken],
        failure: Option<&str>,
    ) -> Result<Option<Ended>, EngineError> {
        let Some(seq) = self.seqs.get_mut(&id) else { return Ok(None) };
        let num_before = seq.token_ids.len();
        let tokens = if failure.is_some() { &[] } else { tokens };
        let reason = tokens.iter().find_map(|sampled| {
            seq.token_ids.push(sampled.token);
            seq.logprobs.extend(sampled.logprob);
            if !sampled.top.is_empty() {
                seq.top_logprobs.push(sampled.top.clone());
            }
            self.stats.generated_tokens += 1;
            let token_bytes = self.engine.token_bytes.bytes(sampled.token);
            let conditions = seq.stop_conditions.as_deref().unwrap_or(&self.engine.stop);
            seq.stop.push(conditions, sampled.token, token_bytes)
        });
        let reason = reason.or(failure.map(|_| FinishReason::Error));
        if let Some(proposer) = &mut self.engine.proposer {
            if seq.token_ids.len() > num_before {
                proposer.append(id, &seq.token_ids[num_before..]);
            }
            if reason.is_some() {
                proposer.end(id);
            }
        }
        self.engine.live.generated((seq.token_ids.len() - num_before) as u64);
        let Some(reason) = reason else { return Ok(None) };
        let seq = self.seqs.remove(&id).ok_or_else(|| unknown(id))?;
        self.engine.live.ended(seq.token_ids.len() as u64);
        Ok(Some(Ended { id, seq, reason, error: failure.map(str::to_owned) }))
    }

    fn deliver_ended(&mut self, ended: Vec<Ended>) -> Result<ControlFlow<()>, EngineError> {
        for Ended { id, seq, reason, error } in ended {
            let mut active = self.requests.remove(&id.group_idx).ok_or_else(|| unknown(id))?;
            let flow = self.deliver(&active, id.response_idx, &seq, (reason, error));
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
        request: &ActiveRequest,
        response_idx: u32,
        seq: &ActiveSeq,
        (finish_reason, error): (FinishReason, Option<String>),
    ) -> ControlFlow<()> {
        let response_idxs =
            if request.is_repeated { 0..request.num_responses } else { response_idx..response_idx + 1 };
        let is_whole = |len: usize| len == seq.token_ids.len() && len > 0;
        for response_idx in response_idxs {
            (self.on_completion)(Completion {
                sample_idx: request.sample_idx,
                response_idx,
                token_ids: seq.token_ids.clone(),
                finish_reason,
                error: error.clone(),
                logprobs: is_whole(seq.logprobs.len()).then(|| seq.logprobs.clone()),
                top_logprobs: is_whole(seq.top_logprobs.len()).then(|| seq.top_logprobs.clone()),
            })?;
        }
        ControlFlow::Continue(())
    }
}

fn responses_of(rows: &[RowSpan]) -> impl Iterator<Item = SeqId> {
    rows.iter().filter_map(|row| if let RowId::Response(id) = row.id { Some(id) } else { None })
}

fn has_prompts(rows: &[RowSpan]) -> bool {
    rows.iter().any(|row| row.id.prompt().is_some())
}

fn unknown(id: SeqId) -> EngineError {
    EngineError::UnknownSequence { group_idx: id.group_idx, response_idx: id.response_idx }
}
