//! Which sequences run in the next step: admission, packing of prompts, start and end of responses.
//!
//! It is pure: no tensors, no tokens, no clock. The shape follows nano-vllm's `engine/scheduler.py`;
//! preemption does not. A response gets all blocks it could ever need when it starts. Preemption by
//! recomputation would fit more sequences, but a recomputed cache has other rounding than a decoded one, so
//! the text of a sample would depend on its neighbours.
//!
//! A step is taken as done when it is given out, so that a device may be kept one step ahead of the host. What a
//! step computes of a sequence that had ended is thrown away; its blocks go to others only in later steps.
//!
//! Deadlock is impossible: a running response never waits for a block, prompts are admitted in order, and a
//! request only part of whose responses fit stops all admission until the rest have started.

use std::collections::VecDeque;

use model_core::BlockId;

use crate::{
    EngineError, EngineLimits,
    block_table::{BlockAllocator, BlockCopy, BlockDemand, PromptBlocks},
};

/// All responses to one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeqGroup {
    /// The caller's number for the request.
    pub(crate) group_idx: u64,
    /// Position of the sample in the input file, for messages.
    pub(crate) sample_idx: u64,
    /// Length of the prompt, at least 1.
    pub(crate) prompt_len_tokens: usize,
    /// Number of responses, at least 1.
    pub(crate) num_seqs: u32,
    /// Budget of each, at least 1.
    pub(crate) max_new_tokens: u32,
}

/// One response of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SeqId {
    /// The group's number.
    pub(crate) group_idx: u64,
    /// Which response.
    pub(crate) response_idx: u32,
}

/// A prompt to compute in a prefill step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrefillGroup {
    /// The group's number.
    pub(crate) group_idx: u64,
    /// How many first tokens to draw from the prompt's logits.
    pub(crate) num_seqs: u32,
    /// Blocks for the whole prompt.
    pub(crate) block_table: Vec<BlockId>,
}

/// A sequence in a decode step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DecodeSeq {
    /// Which sequence.
    pub(crate) id: SeqId,
    /// Tokens in the cache before this step.
    pub(crate) context_len: u32,
    /// Blocks for those and the new one, at least.
    pub(crate) block_table: Vec<BlockId>,
}

/// What to compute next, after the copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Whole prompts, then the first token of each of their responses.
    Prefill {
        /// Blocks to copy first.
        copies: Vec<BlockCopy>,
        /// The prompts.
        groups: Vec<PrefillGroup>,
    },
    /// One token more for each sequence.
    Decode {
        /// Blocks to copy first.
        copies: Vec<BlockCopy>,
        /// The sequences, oldest first.
        seqs: Vec<DecodeSeq>,
    },
    /// Every sequence has all its tokens under way; who ended must be told first.
    Wait,
    /// Nothing is left of what was added.
    Done,
}

/// Decides the steps of a run.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: EngineLimits,
    allocator: BlockAllocator,
    waiting: VecDeque<SeqGroup>,
    starting: VecDeque<StartingGroup>,
    /// Groups whose responses have one token: they never decode, and hold their prompt until they end.
    single: Vec<StartingGroup>,
    running: Vec<RunningSeq>,
    copies: Vec<BlockCopy>,
    /// The last step was a prefill: what runs is waiting already.
    has_paused: bool,
    input_ended: bool,
    /// Nothing more can be had just now.
    input_paused: bool,
}

/// A group whose prompt is computed and some of whose responses wait for room.
#[derive(Debug)]
struct StartingGroup {
    group: SeqGroup,
    demand: BlockDemand,
    prompt: PromptBlocks,
    response_idxs: VecDeque<u32>,
}

/// A response that decodes.
#[derive(Debug)]
struct RunningSeq {
    seq: DecodeSeq,
    /// Tokens that it may still be given.
    num_left: u32,
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
            waiting: VecDeque::new(),
            starting: VecDeque::new(),
            single: Vec::new(),
            running: Vec::new(),
            copies: Vec::new(),
            has_paused: false,
            input_ended: false,
            input_paused: false,
        })
    }

    /// Queues a group behind the others.
    ///
    /// # Errors
    /// When the group could never run.
    pub(crate) fn add(&mut self, group: SeqGroup) -> Result<(), EngineError> {
        if group.prompt_len_tokens == 0 {
            return Err(EngineError::EmptyPrompt { sample_idx: group.sample_idx });
        }
        let needed_blocks = self.demand(&group).minimum(group.num_seqs as usize);
        if needed_blocks > self.limits.num_blocks {
            return Err(EngineError::RequestTooLarge {
                sample_idx: group.sample_idx,
                prompt_tokens: group.prompt_len_tokens,
                max_new_tokens: group.max_new_tokens,
                needed_blocks,
                num_blocks: self.limits.num_blocks,
                block_size_tokens: self.limits.block_size_tokens,
            });
        }
        self.input_paused = false;
        self.waiting.push_back(group);
        Ok(())
    }

    /// Nothing will be added any more, so there is no use in waiting for a fuller prefill.
    pub(crate) fn end_input(&mut self) {
        self.input_ended = true;
    }

    /// Whether nothing will be added any more.
    pub(crate) fn has_ended_input(&self) -> bool {
        self.input_ended
    }

    /// Nothing can be added just now; until something is, there is no use in waiting either.
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

    /// The next step. It is taken as computed at once, and every sequence as going on until
    /// [`Scheduler::end`] says otherwise: the next step may be asked for before this one's tokens are known.
    pub(crate) fn next_step(&mut self) -> Step {
        let admission = self.admissible();
        if self.should_prefill(&admission) {
            return self.prefill(admission.num_groups);
        }
        let seqs = self.decode();
        if !seqs.is_empty() {
            return Step::Decode { copies: std::mem::take(&mut self.copies), seqs };
        }
        let is_idle = self.running.is_empty() && self.starting.is_empty() && self.single.is_empty();
        if is_idle { Step::Done } else { Step::Wait }
    }

    /// These sequences ended: their blocks are free for later steps. Steps that were given out already may still
    /// compute them.
    pub(crate) fn end(&mut self, ended: &[SeqId]) {
        let Self { running, allocator, copies, .. } = self;
        running.retain(|RunningSeq { seq, .. }| {
            let goes_on = !ended.contains(&seq.id);
            if !goes_on {
                // A copy that nobody will read must not reach a block that has a new holder by then.
                copies.retain(|(_, to)| !seq.block_table.contains(to));
                allocator.release(&seq.block_table);
            }
            goes_on
        });
        let goes_on = |group: &mut StartingGroup| {
            let group_idx = group.group.group_idx;
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
        BlockDemand::new(group.prompt_len_tokens, group.max_new_tokens, self.limits.block_size_tokens)
    }

    fn num_free_seats(&self) -> usize {
        self.limits.max_num_seqs - self.running.len()
    }

    fn admissible(&self) -> Admission {
        let mut admission = Admission::default();
        if !self.starting.is_empty() {
            return Admission { limited_by: Some(Limit::Room), ..admission };
        }
        let mut free_blocks = self.allocator.num_free();
        for group in &self.waiting {
            let demand = self.demand(group);
            let num_seqs = group.num_seqs as usize;
            let free_seats = self.num_free_seats() - admission.num_seqs;
            if admission.num_groups > 0
                && admission.num_tokens + group.prompt_len_tokens > self.limits.max_prefill_tokens
            {
                admission.limited_by = Some(Limit::PrefillTokens);
                break;
            }
            if free_seats == 0 || demand.minimum(num_seqs) > free_blocks {
                admission.limited_by = Some(Limit::Room);
                break;
            }
            admission.num_groups += 1;
            admission.num_tokens += group.prompt_len_tokens;
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

    fn prefill(&mut self, num_groups: usize) -> Step {
        let mut groups = Vec::with_capacity(num_groups);
        for _ in 0..num_groups {
            let Some(group) = self.waiting.pop_front() else { break };
            let demand = self.demand(&group);
            let Some(blocks) = self.allocator.allocate(demand.prompt()) else {
                self.waiting.push_front(group);
                break;
            };
            groups.push(PrefillGroup {
                group_idx: group.group_idx,
                num_seqs: group.num_seqs,
                block_table: blocks.clone(),
            });
            let prompt = PromptBlocks::new(blocks, &demand);
            let response_idxs = (0..group.num_seqs).collect();
            let started = StartingGroup { group, demand, prompt, response_idxs };
            if group.max_new_tokens == 1 {
                self.single.push(started);
            } else {
                self.starting.push_back(started);
            }
        }
        let copies = std::mem::take(&mut self.copies);
        self.has_paused = true;
        self.start_responses();
        Step::Prefill { copies, groups }
    }

    /// The sequences that get one more token, as they are before it.
    fn decode(&mut self) -> Vec<DecodeSeq> {
        self.has_paused = false;
        let mut seqs = Vec::with_capacity(self.running.len());
        for RunningSeq { seq, num_left } in self.running.iter_mut().filter(|running| running.num_left > 0) {
            seqs.push(seq.clone());
            seq.context_len += 1;
            *num_left -= 1;
        }
        seqs
    }

    /// Moves responses from `starting` to `running`, in order, as far as seats and blocks go.
    fn start_responses(&mut self) {
        while self.num_free_seats() > 0
            && let Some(mut starting) = self.starting.pop_front()
        {
            let num_own = starting.demand.own();
            let Some(response_idx) = starting.response_idxs.pop_front() else { continue };
            let context_len = starting.group.prompt_len_tokens as u32;
            let num_left = starting.group.max_new_tokens.saturating_sub(1);
            let id = SeqId { group_idx: starting.group.group_idx, response_idx };
            let block_table = if starting.response_idxs.is_empty() {
                match self.allocator.fork_last(starting.prompt, num_own) {
                    Ok(block_table) => block_table,
                    Err(prompt) => {
                        starting.response_idxs.push_front(response_idx);
                        self.starting.push_front(StartingGroup { prompt, ..starting });
                        return;
                    }
                }
            } else {
                let Some((block_table, copy)) = self.allocator.fork(&starting.prompt, num_own) else {
                    starting.response_idxs.push_front(response_idx);
                    self.starting.push_front(starting);
                    return;
                };
                self.copies.extend(copy);
                self.starting.push_front(starting);
                block_table
            };
            let seq = DecodeSeq { id, context_len, block_table };
            self.running.push(RunningSeq { seq, num_left });
        }
    }
}

#[cfg(test)]
mod tests;
