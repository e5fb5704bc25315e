//! Which sequences run in the next step: admission, packing of prompts, start and end of responses.
//!
//! It is pure: no tensors, no clock, and of tokens only prompts, which it passes on. The shape follows nano-vllm's `engine/scheduler.py`;
//! preemption does not. A response gets blocks as it grows, and those it could need at the most are promised to it when it
//! starts. Preemption by recomputation would fit more sequences, but a recomputed cache has other rounding than a decoded
//! one, so the text of a sample would depend on its neighbours.
//!
//! A sequence may be in a step before the last one's tokens are known, so that a device is kept one step ahead of the
//! host. What a step computes of a sequence that had ended is thrown away; its blocks go to others only in later steps.
//!
//! Deadlock is impossible: a running response never waits for a block, because promised ones are not given to others; prompts are admitted in order, and a
//! request only part of whose responses fit stops all admission until the rest have started.

use std::collections::VecDeque;

use model_core::BlockId;
use model_spec::blocks_for;

use crate::{
    EngineError, EngineLimits,
    block_table::{BlockAllocator, BlockDemand, GROW_AHEAD_BLOCKS, PromptBlocks},
    plan::{BlockCopy, GrownSeq, NewPrompt, NewSeq, RowId, RowSpan, SeqId, StepPlan, TableDelta},
};

/// All responses to one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeqGroup {
    /// Position of the sample in the input file.
    pub(crate) sample_idx: u64,
    /// At least one token.
    pub(crate) prompt: Vec<u32>,
    /// Number of responses, at least 1.
    pub(crate) num_seqs: u32,
    /// Budget of each, at least 1.
    pub(crate) max_new_tokens: u32,
}

/// What to compute next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// This: either whole prompts with the first token of each of their responses, or one token more for each response
    /// that runs.
    Run(StepPlan),
    /// All tokens that every sequence may have are in flight; who ended must be reported first.
    Wait,
    /// Nothing is left of what was added.
    Done,
}

/// Decides the steps of a run.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: EngineLimits,
    allocator: BlockAllocator,
    /// Free blocks that running responses may still need.
    num_promised_blocks: usize,
    num_added: u64,
    waiting: VecDeque<WaitingGroup>,
    starting: VecDeque<StartingGroup>,
    /// Groups whose responses have one token: they never decode, and hold their prompt until they end.
    single: Vec<StartingGroup>,
    /// Oldest first, which is the order of their ids.
    running: Vec<RunningSeq>,
    /// For the next step.
    copies: Vec<BlockCopy>,
    /// The responses that start in the next step, and those that ended since the last.
    tables: TableDelta,
    /// The last step was a prefill: what runs is waiting already.
    has_paused: bool,
    input_ended: bool,
    /// Input is temporarily dry.
    input_paused: bool,
}

/// A group whose prompt is not computed.
#[derive(Debug)]
struct WaitingGroup {
    group_idx: u64,
    group: SeqGroup,
}

/// A group whose prompt is computed and some of whose responses wait for room.
#[derive(Debug)]
struct StartingGroup {
    group_idx: u64,
    prompt_len_tokens: usize,
    max_new_tokens: u32,
    demand: BlockDemand,
    prompt: PromptBlocks,
    response_idxs: VecDeque<u32>,
}

/// A response that decodes.
#[derive(Debug)]
struct RunningSeq {
    id: SeqId,
    block_table: Vec<BlockId>,
    /// Tokens in the cache after the steps whose tokens were reported.
    context_len: u32,
    /// Tokens that steps in flight add.
    in_flight: u32,
    /// Some of them are drafts: how many stay must be known before the next step.
    is_verifying: bool,
    /// Tokens that it may have in the cache: all but the last it may be given.
    max_context_len: u32,
    /// Blocks for as many.
    max_blocks: usize,
}

impl RunningSeq {
    /// Tokens in the cache after the next step, if it may be in it.
    fn next_len(&self) -> Option<u32> {
        let context_len = self.context_len + self.in_flight;
        (!self.is_verifying && context_len < self.max_context_len).then_some(context_len + 1)
    }
}

/// The prompts at the front of the queue that fit now.
#[derive(Debug, Default)]
struct Admission {
    num_groups: usize,
    num_tokens: usize,
    /// Responses that can start right after the prefill.
    num_seqs: usize,
    limited_by: Option<Limit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    PrefillTokens,
    Room,
}

impl Scheduler {
    /// Nothing added yet, all blocks free.
    ///
    /// # Errors
    /// When a limit is 0.
    pub(crate) fn new(limits: EngineLimits) -> Result<Self, EngineError> {
        let limits = limits.check()?;
        Ok(Self {
            limits,
            allocator: BlockAllocator::new(limits.num_blocks),
            num_promised_blocks: 0,
            num_added: 0,
            waiting: VecDeque::new(),
            starting: VecDeque::new(),
            single: Vec::new(),
            running: Vec::new(),
            copies: Vec::new(),
            tables: TableDelta::default(),
            has_paused: false,
            input_ended: false,
            input_paused: false,
        })
    }

    /// Queues a group behind the others; returns its number.
    ///
    /// # Errors
    /// When the group could never run.
    pub(crate) fn add(&mut self, group: SeqGroup) -> Result<u64, EngineError> {
        let prompt_tokens = group.prompt.len();
        if prompt_tokens == 0 {
            return Err(EngineError::EmptyPrompt { sample_idx: group.sample_idx });
        }
        let needed_blocks = self.demand(&group).minimum(group.num_seqs as usize);
        if needed_blocks > self.limits.num_blocks {
            return Err(EngineError::RequestTooLarge {
                sample_idx: group.sample_idx,
                prompt_tokens,
                max_new_tokens: group.max_new_tokens,
                needed_blocks,
                num_blocks: self.limits.num_blocks,
                block_size_tokens: self.limits.block_size_tokens,
            });
        }
        let group_idx = self.num_added;
        self.num_added += 1;
        self.input_paused = false;
        self.waiting.push_back(WaitingGroup { group_idx, group });
        Ok(group_idx)
    }

    /// Nothing will be added any more, so there is no use in waiting for a fuller prefill.
    pub(crate) fn end_input(&mut self) {
        self.input_ended = true;
    }

    /// Whether nothing will be added any more.
    pub(crate) fn has_ended_input(&self) -> bool {
        self.input_ended
    }

    /// Input is temporarily dry: do not delay a prefill to batch more.
    pub(crate) fn pause_input(&mut self) {
        self.input_paused = true;
    }

    /// Whether one more group might start in the next prefill: the caller should not fetch more than that.
    pub(crate) fn has_room(&self) -> bool {
        let admission = self.admissible();
        !self.input_ended
            && self.starting.is_empty()
            && admission.limited_by.is_none()
            && admission.num_seqs < self.num_free_seats()
            && admission.num_tokens < self.limits.max_prefill_tokens
    }

    /// The next step. Every sequence is taken as going on until [`Scheduler::end`] says otherwise: the next step may be
    /// asked for before this one's tokens are known.
    pub(crate) fn next_step(&mut self) -> Step {
        let admission = self.admissible();
        if self.should_prefill(&admission) {
            return Step::Run(self.prefill(admission.num_groups));
        }
        let rows = self.decode();
        if !rows.is_empty() {
            return Step::Run(StepPlan { rows, ..self.take_changes() });
        }
        let is_idle = self.running.is_empty() && self.starting.is_empty() && self.single.is_empty();
        if is_idle { Step::Done } else { Step::Wait }
    }

    /// A step in flight is known: of the `query_len` tokens that it computed of a sequence, `num_accepted` stay. One that
    /// has ended is passed over.
    pub(crate) fn accept(&mut self, id: SeqId, query_len: u32, num_accepted: u32) {
        if let Ok(idx) = self.running.binary_search_by_key(&id, |running| running.id) {
            let running = &mut self.running[idx];
            running.in_flight = running.in_flight.saturating_sub(query_len);
            running.is_verifying = false;
            running.context_len += num_accepted;
        }
    }

    /// These sequences ended: their blocks are free for later steps. Steps that were given out already may still
    /// compute them.
    pub(crate) fn end(&mut self, ended: &[SeqId]) {
        let Self { running, allocator, num_promised_blocks, copies, tables, .. } = self;
        tables.ended.extend_from_slice(ended);
        tables.started.retain(|seq| !ended.contains(&seq.id));
        running.retain(|seq| {
            let goes_on = !ended.contains(&seq.id);
            if !goes_on {
                // A copy that nobody will read must not reach a block that has a new holder by then.
                copies.retain(|(_, to)| !seq.block_table.contains(to));
                allocator.release(&seq.block_table);
                *num_promised_blocks -= seq.max_blocks - seq.block_table.len();
            }
            goes_on
        });
        let goes_on = |group: &mut StartingGroup| {
            let group_idx = group.group_idx;
            group.response_idxs.retain(|&response_idx| !ended.contains(&SeqId { group_idx, response_idx }));
            !group.response_idxs.is_empty()
        };
        let mut freed = Vec::new();
        let mut keep = |group: &mut StartingGroup| {
            let keeps = goes_on(group);
            if !keeps {
                freed.extend(group.prompt.table());
            }
            keeps
        };
        self.starting.retain_mut(&mut keep);
        self.single.retain_mut(&mut keep);
        self.allocator.release(&freed);
        self.start_responses();
    }

    fn demand(&self, group: &SeqGroup) -> BlockDemand {
        BlockDemand::new(group.prompt.len(), group.max_new_tokens, self.limits.block_size_tokens)
    }

    /// Blocks that are neither held nor promised.
    fn num_free_blocks(&self) -> usize {
        self.allocator.num_free() - self.num_promised_blocks
    }

    fn num_free_seats(&self) -> usize {
        self.limits.max_num_seqs - self.running.len()
    }

    fn admissible(&self) -> Admission {
        let mut admission = Admission::default();
        if !self.starting.is_empty() {
            return Admission { limited_by: Some(Limit::Room), ..admission };
        }
        let mut free_blocks = self.num_free_blocks();
        for WaitingGroup { group, .. } in &self.waiting {
            let demand = self.demand(group);
            let num_seqs = group.num_seqs as usize;
            let free_seats = self.num_free_seats() - admission.num_seqs;
            if admission.num_groups > 0
                && admission.num_tokens + group.prompt.len() > self.limits.max_prefill_tokens
            {
                admission.limited_by = Some(Limit::PrefillTokens);
                break;
            }
            if free_seats == 0 || demand.minimum(num_seqs) > free_blocks {
                admission.limited_by = Some(Limit::Room);
                break;
            }
            admission.num_groups += 1;
            admission.num_tokens += group.prompt.len();
            if num_seqs > free_seats || demand.total(num_seqs) > free_blocks {
                let for_responses = free_blocks - demand.prompt();
                let num_fit = for_responses.checked_div(demand.own()).unwrap_or(num_seqs);
                admission.num_seqs += num_fit.min(free_seats).min(num_seqs);
                admission.limited_by = Some(Limit::Room);
                break;
            }
            admission.num_seqs += num_seqs;
            free_blocks -= demand.total(num_seqs);
        }
        admission
    }

    /// A prefill stops all decoding for its time, so it waits until it starts an eighth of what runs, or 16
    /// sequences; but never when nothing runs, when it is as large as a prefill may be, right after another, or when
    /// no more input comes.
    fn should_prefill(&self, admission: &Admission) -> bool {
        let worthwhile = (self.running.len() / 8).clamp(1, 16);
        let is_last = (self.input_ended || self.input_paused) && admission.num_groups == self.waiting.len();
        admission.num_groups > 0
            && (self.running.is_empty()
                || self.has_paused
                || admission.limited_by == Some(Limit::PrefillTokens)
                || admission.num_seqs >= worthwhile
                || is_last)
    }

    /// A plan without rows, with everything that changed since the last step.
    fn take_changes(&mut self) -> StepPlan {
        StepPlan {
            tables: std::mem::take(&mut self.tables),
            copies: std::mem::take(&mut self.copies),
            ..StepPlan::default()
        }
    }

    fn prefill(&mut self, num_groups: usize) -> StepPlan {
        let mut plan = self.take_changes();
        for _ in 0..num_groups {
            let Some(WaitingGroup { group_idx, group }) = self.waiting.pop_front() else { break };
            let demand = self.demand(&group);
            let Some(block_table) = self.allocator.allocate(demand.prompt()) else {
                self.waiting.push_front(WaitingGroup { group_idx, group });
                break;
            };
            let SeqGroup { sample_idx, prompt: tokens, num_seqs, max_new_tokens } = group;
            plan.rows.push(RowSpan {
                id: RowId::Prompt(group_idx),
                context_len: 0,
                query_len: tokens.len() as u32,
                draws: num_seqs,
            });
            let started = StartingGroup {
                group_idx,
                prompt_len_tokens: tokens.len(),
                max_new_tokens,
                demand,
                prompt: PromptBlocks::new(block_table.clone(), &demand),
                response_idxs: (0..num_seqs).collect(),
            };
            plan.tables.prompts.push(NewPrompt { group_idx, sample_idx, tokens, block_table });
            if max_new_tokens == 1 {
                self.single.push(started);
            } else {
                self.starting.push_back(started);
            }
        }
        self.has_paused = true;
        self.start_responses();
        plan
    }

    /// A row for each sequence that may get one more token, as it is before it.
    fn decode(&mut self) -> Vec<RowSpan> {
        self.has_paused = false;
        self.grow();
        let mut rows = Vec::with_capacity(self.running.len());
        for running in &mut self.running {
            if let Some(next_len) = running.next_len() {
                running.in_flight += 1;
                let context_len = next_len - 1;
                rows.push(RowSpan { id: RowId::Response(running.id), context_len, query_len: 1, draws: 1 });
            }
        }
        rows
    }

    /// Puts drafted tokens behind the responses of a step that was just given out, as far as each has room: `drafts` are in
    /// the order of the responses.
    pub(crate) fn add_drafts(&mut self, plan: &mut StepPlan, drafts: &[Vec<u32>]) {
        let of_responses = plan.rows.iter_mut().filter_map(|row| match row.id {
            RowId::Response(id) => Some((id, row)),
            RowId::Prompt(_) => None,
        });
        let of_responses: Vec<_> = of_responses.collect();
        let mut num_free = self.limits.max_decode_tokens().saturating_sub(of_responses.len());
        for ((id, row), tokens) in of_responses.into_iter().zip(drafts) {
            let Ok(idx) = self.running.binary_search_by_key(&id, |running| running.id) else { continue };
            let running = &mut self.running[idx];
            let num_slots = running.block_table.len() * self.limits.block_size_tokens;
            let most = num_slots.min(running.max_context_len as usize);
            let room = most.saturating_sub((row.context_len + row.query_len) as usize);
            let tokens = &tokens[..tokens.len().min(room).min(num_free)];
            num_free -= tokens.len();
            let num_drafts = tokens.len() as u32;
            running.in_flight += num_drafts;
            running.is_verifying = num_drafts > 0;
            row.query_len += num_drafts;
            row.draws += num_drafts;
            plan.drafts.extend_from_slice(tokens);
        }
    }

    /// Gives blocks to what runs when one sequence of the next step has too few: to all of them, so that not every step
    /// gives some to another.
    fn grow(&mut self) {
        let block_size_tokens = self.limits.block_size_tokens;
        let blocks = |seq: &RunningSeq| blocks_for(seq.next_len().unwrap_or(0) as usize, block_size_tokens);
        if self.running.iter().all(|seq| blocks(seq) <= seq.block_table.len()) {
            return;
        }
        for seq in &mut self.running {
            let wanted = (blocks(seq) + GROW_AHEAD_BLOCKS).min(seq.max_blocks);
            let num_new = wanted.saturating_sub(seq.block_table.len());
            // They are promised, so they are there.
            let Some(new_blocks) = self.allocator.allocate(num_new) else { continue };
            if !new_blocks.is_empty() {
                self.num_promised_blocks -= num_new;
                seq.block_table.extend_from_slice(&new_blocks);
                self.tables.grown.push(GrownSeq { id: seq.id, new_blocks });
            }
        }
    }

    /// Moves responses from `starting` to `running`, in order, as far as seats and blocks go.
    fn start_responses(&mut self) {
        while self.num_free_seats() > 0
            && let Some(mut starting) = self.starting.pop_front()
        {
            let num_at_start = starting.demand.own_at_start();
            let max_blocks = starting.demand.of_response();
            let is_last = starting.response_idxs.len() == 1;
            let num_needed = if is_last { starting.demand.own_of_last() } else { starting.demand.own() };
            if num_needed > self.num_free_blocks() {
                self.starting.push_front(starting);
                return;
            }
            let Some(response_idx) = starting.response_idxs.pop_front() else { continue };
            let id = SeqId { group_idx: starting.group_idx, response_idx };
            let context_len = starting.prompt_len_tokens as u32;
            let max_context_len = context_len + starting.max_new_tokens.saturating_sub(1);
            let block_table = if is_last {
                match self.allocator.fork_last(starting.prompt, num_at_start) {
                    Ok(block_table) => block_table,
                    Err(prompt) => {
                        starting.response_idxs.push_front(response_idx);
                        self.starting.push_front(StartingGroup { prompt, ..starting });
                        return;
                    }
                }
            } else {
                let Some((block_table, copy)) = self.allocator.fork(&starting.prompt, num_at_start) else {
                    starting.response_idxs.push_front(response_idx);
                    self.starting.push_front(starting);
                    return;
                };
                self.copies.extend(copy);
                self.starting.push_front(starting);
                block_table
            };
            self.num_promised_blocks += max_blocks - block_table.len();
            self.tables.started.push(NewSeq { id, block_table: block_table.clone() });
            self.running.push(RunningSeq {
                id,
                block_table,
                context_len,
                in_flight: 0,
                is_verifying: false,
                max_context_len,
                max_blocks,
            });
        }
    }
}

#[cfg(test)]
mod tests;
