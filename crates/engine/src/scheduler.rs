//! Which sequences run in the next step: admission, packing of prompts, start and end of responses.
//!
//! It is pure: no tensors, no clock, and of tokens only prompts, which it passes on. The shape follows nano-vllm's
//! `engine/scheduler.py`, and vLLM's preemption by swapping: a response gets blocks as it grows, and when there are too
//! few, the youngest ones stop until there are more. What they hold goes to the host as far as its place is needed, and
//! comes back with the same bits. Nothing is computed twice: a recomputed cache has other rounding than a decoded one, so
//! the text of a sample would depend on its neighbours.
//!
//! A sequence may be in a step before the last one's tokens are known, so that a device is kept one step ahead of the
//! host. What a step computes of a sequence that had ended is thrown away; its blocks go to others only in later steps.
//!
//! Deadlock is impossible. All that was begun has room at its greatest length in cache and host together, so the oldest
//! response gets every block that it needs: all others can leave the cache for it. Prompts are admitted in order, none
//! while a response is preempted, and a request only part of whose responses fit stops all admission until the rest have
//! started.

use std::collections::{HashSet, VecDeque};

use sampling::RowRules;

use crate::{
    EngineError, EngineLimits, Foresight,
    block_pool::BlockPool,
    block_table::{BlockDemand, GROW_AHEAD_BLOCKS},
    plan::{RowSpan, SeqId, StepPlan, TableDelta},
    prefix_cache::{NodeId, PrefixCache},
};

mod admission;
mod drafts;
mod forecast;
mod prompts;
mod row_order;
mod seq;
mod starting;

use admission::{Admission, Admitting};
use forecast::{Lengths, Siblings};
use prompts::Prompt;
pub(crate) use prompts::PromptParts;
use row_order::RowOrder;
use seq::Seq;
use starting::StartingGroup;

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
    /// For the executor.
    pub(crate) own: Option<Box<RowRules>>,
    pub(crate) foresight: Foresight,
}

/// What to compute next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// This: either prompts with the first token of each of their responses, or one token more for each response that
    /// runs. A prompt that is too long for a step comes in parts, the last of which draws the first tokens.
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
    pool: BlockPool,
    /// Blocks that responses which have started may still need.
    num_promised_blocks: usize,
    lengths: Lengths,
    siblings: Siblings,
    num_added: u64,
    /// None where prompts share nothing.
    prefixes: Option<PrefixCache>,
    /// The longest part of a prompt; None where prompts are computed whole.
    max_part_tokens: Option<usize>,
    waiting: VecDeque<WaitingGroup>,
    /// What is known of how many of them fit.
    admitting: Option<Admitting>,
    /// The prompt that is computed in parts. Its blocks rest between two of them.
    partial: Option<Prompt>,
    starting: VecDeque<StartingGroup>,
    /// Groups whose responses have one token: they never decode, and hold their prompt until they end.
    single: Vec<StartingGroup>,
    /// Oldest first, which is the order of their ids.
    running: Vec<Seq>,
    row_order: RowOrder,
    /// Sets of responses whose steps are in flight side by side; with one, a response may be in several of them.
    num_sets: usize,
    /// With several sets, the requests whose responses have their first tokens in flight.
    drawing: HashSet<u64>,
    /// Responses that had to make room, oldest first.
    preempted: Vec<Seq>,
    /// Those that ended or were preempted since the last step.
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
    /// The prompt in the prefix cache.
    path: Vec<NodeId>,
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
            pool: BlockPool::new(limits),
            num_promised_blocks: 0,
            lengths: Lengths::default(),
            siblings: Siblings::default(),
            num_added: 0,
            prefixes: None,
            max_part_tokens: None,
            waiting: VecDeque::new(),
            admitting: None,
            partial: None,
            starting: VecDeque::new(),
            single: Vec::new(),
            running: Vec::new(),
            row_order: RowOrder::default(),
            num_sets: 1,
            drawing: HashSet::new(),
            preempted: Vec::new(),
            tables: TableDelta::default(),
            has_paused: false,
            input_ended: false,
            input_paused: false,
        })
    }

    /// The same with responses in so many sets.
    pub(crate) fn with_sets(self, num_sets: usize) -> Self {
        Self { num_sets: num_sets.max(1), ..self }
    }

    /// The first tokens of the responses to a request are known.
    pub(crate) fn drew(&mut self, group_idx: u64) {
        self.drawing.remove(&group_idx);
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
        let path = match &mut self.prefixes {
            Some(prefixes) => prefixes.enter(&group.prompt, group.foresight.prefix, &mut self.pool),
            None => Vec::new(),
        };
        self.waiting.push_back(WaitingGroup { group_idx, group, path });
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
    pub(crate) fn has_room(&mut self) -> bool {
        if self.input_ended {
            return false;
        }
        let admission = self.admissible();
        admission.limited_by.is_none()
            && admission.num_seqs < self.num_free_seats()
            && admission.num_tokens < self.limits.max_prefill_tokens
    }

    /// The next step. Every sequence is taken as going on until [`Scheduler::end`] says otherwise: the next step may be
    /// asked for before this one's tokens are known.
    pub(crate) fn next_step(&mut self) -> Step {
        self.resume();
        self.start_responses();
        if let Some(plan) = self.continue_prompt() {
            return Step::Run(self.drawn_by(plan));
        }
        let admission = self.admissible();
        if self.should_prefill(&admission) {
            let plan = self.prefill(admission.num_groups);
            return Step::Run(self.drawn_by(plan));
        }
        let rows = self.decode();
        if !rows.is_empty() {
            return Step::Run(StepPlan { rows, ..self.take_changes() });
        }
        let begun = [self.running.len(), self.preempted.len(), self.starting.len(), self.single.len()];
        if begun == [0; 4] && self.partial.is_none() { Step::Done } else { Step::Wait }
    }

    /// Remembers whose first tokens a step draws, where that matters.
    fn drawn_by(&mut self, plan: StepPlan) -> StepPlan {
        if self.num_sets > 1 {
            let drawing = plan.rows.iter().filter(|row| row.draws > 0);
            self.drawing.extend(drawing.filter_map(|row| row.id.prompt()));
        }
        plan
    }

    /// A step in flight is known: of the `query_len` tokens that it computed of a sequence, `num_accepted` stay. One that
    /// has ended is passed over.
    pub(crate) fn accept(&mut self, id: SeqId, query_len: u32, num_accepted: u32) {
        self.changed();
        for seqs in [&mut self.running, &mut self.preempted] {
            if let Ok(idx) = seqs.binary_search_by_key(&id, |seq| seq.id) {
                let seq = &mut seqs[idx];
                seq.in_flight = seq.in_flight.saturating_sub(query_len);
                seq.is_verifying = false;
                seq.context_len += num_accepted;
                self.lengths.num_tokens += u64::from(num_accepted);
            }
        }
    }

    /// These sequences ended: their blocks are free for later steps. Steps that were given out already may still
    /// compute them.
    pub(crate) fn end(&mut self, ended: &[SeqId]) {
        self.lengths.num_ended += ended.len() as u64;
        self.take_out(ended, Lesson::Length);
    }

    /// The same for sequences that nobody wants any more: how long they would have become is not known.
    pub(crate) fn cancel(&mut self, cancelled: &[SeqId]) {
        if !cancelled.is_empty() {
            self.take_out(cancelled, Lesson::Nothing);
        }
    }

    fn take_out(&mut self, ended: &[SeqId], lesson: Lesson) {
        self.changed();
        self.tables.ended.extend_from_slice(ended);
        self.tables.preempted.retain(|id| !ended.contains(id));
        let Self { running, preempted, starting, single, pool, num_promised_blocks, siblings, .. } = self;
        let mut learn = |group_idx, num_tokens| {
            if lesson == Lesson::Length {
                siblings.add(group_idx, num_tokens);
            }
        };
        for seq in running.extract_if(.., |seq| ended.contains(&seq.id)) {
            learn(seq.id.group_idx, seq.num_tokens());
            *num_promised_blocks -= seq.num_promised_blocks();
            pool.release(&seq.blocks.held());
        }
        for seq in preempted.extract_if(.., |seq| ended.contains(&seq.id)) {
            learn(seq.id.group_idx, seq.num_tokens());
            *num_promised_blocks -= seq.num_promised_blocks();
            pool.release_resting(&seq.blocks.held());
        }
        let mut goes_on = |group: &mut StartingGroup| {
            let group_idx = group.group_idx;
            let num_before = group.response_idxs.len();
            group.response_idxs.retain(|&response_idx| !ended.contains(&SeqId { group_idx, response_idx }));
            // They had their first token.
            (group.response_idxs.len()..num_before).for_each(|_| learn(group_idx, 1));
            let goes_on = !group.response_idxs.is_empty();
            if !goes_on {
                group.rest(pool);
                pool.release_resting(&group.prompt.held());
            }
            goes_on
        };
        starting.retain_mut(&mut goes_on);
        single.retain_mut(&mut goes_on);
        for id in ended {
            self.forget_siblings(id.group_idx);
        }
        self.start_responses();
    }

    /// Forgets the lengths of the responses to a prompt when the last of them has ended.
    fn forget_siblings(&mut self, group_idx: u64) {
        let is_among = |seqs: &[Seq]| {
            let first = seqs.partition_point(|seq| seq.id.group_idx < group_idx);
            seqs.get(first).is_some_and(|seq| seq.id.group_idx == group_idx)
        };
        let is_starting = self.starting.iter().any(|group| group.group_idx == group_idx);
        if !is_starting && !is_among(&self.running) && !is_among(&self.preempted) {
            self.siblings.forget(group_idx);
        }
    }

    fn demand(&self, group: &SeqGroup) -> BlockDemand {
        let prompt_len_tokens = group.prompt.len();
        let part_tokens = match self.max_part_tokens {
            Some(max_part_tokens) => {
                prompt_len_tokens.min(max_part_tokens.max(self.limits.max_prefill_tokens))
            }
            None => prompt_len_tokens,
        };
        BlockDemand::new(prompt_len_tokens, group.max_new_tokens, part_tokens, &self.limits)
    }

    /// Blocks of cache and host that are neither held nor promised.
    fn num_unpromised_blocks(&self) -> usize {
        self.pool.capacity().saturating_sub(self.pool.num_held() + self.num_promised_blocks)
    }

    fn num_free_seats(&self) -> usize {
        self.limits.max_num_seqs - self.running.len()
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
                || self.is_full(admission.num_tokens, admission.limited_by)
                || admission.num_seqs >= worthwhile
                || is_last)
    }

    /// A plan without rows, with everything that changed since the last step.
    fn take_changes(&mut self) -> StepPlan {
        StepPlan {
            tables: std::mem::take(&mut self.tables),
            moves: self.pool.take_moves(),
            ..StepPlan::default()
        }
    }

    /// A row for each sequence that may get one more token, as it is before it; those that share blocks are neighbours.
    fn decode(&mut self) -> Vec<RowSpan> {
        self.has_paused = false;
        self.changed();
        self.pass_windows();
        self.grow();
        let Self { running, row_order, pool, tables, limits, num_sets, drawing, .. } = self;
        let most_rows = running.iter().filter(|seq| seq.goes_on()).count().div_ceil(*num_sets);
        let mut rows = Vec::with_capacity(most_rows);
        for &idx in row_order.of(running) {
            let seq = &mut running[idx];
            let is_in_flight = seq.in_flight > 0 || drawing.contains(&seq.id.group_idx);
            if *num_sets > 1 && (is_in_flight || rows.len() == most_rows) {
                continue;
            }
            if seq.num_missing_columns(0, limits.block_size_tokens) > 0 {
                continue;
            }
            if let Some(row) = seq.step() {
                rows.push(row);
                seq.tell(pool, tables);
            }
        }
        rows
    }

    /// Gives back what windows have passed of what runs: a step in flight may still read it, and it goes to others only in
    /// later steps.
    fn pass_windows(&mut self) {
        let Self { running, pool, limits, num_promised_blocks, .. } = self;
        if limits.tables.num_windowed == 0 {
            return;
        }
        for seq in running {
            let before = seq.num_promised_blocks();
            seq.pass_window(limits.block_size_tokens, pool);
            *num_promised_blocks += seq.num_promised_blocks() - before;
        }
    }

    /// Blocks that what runs has too few for the next step and `ahead` blocks' tokens after it.
    fn num_missing_blocks(&self, ahead: usize) -> usize {
        let EngineLimits { block_size_tokens, tables, .. } = self.limits;
        let of_running = self.running.iter().map(|seq| seq.num_missing_columns(ahead, block_size_tokens));
        of_running.sum::<usize>() * tables.len()
    }

    /// Gives blocks to what runs when a sequence of the next step has too few: to all of them, so that not every step gives
    /// some to another. The youngest ones make room where that is needed.
    fn grow(&mut self) {
        if self.num_missing_blocks(0) == 0 {
            return;
        }
        while self.num_missing_blocks(0) > self.pool.num_available() && self.preempt_youngest() {}
        let mut aheads = (1..=GROW_AHEAD_BLOCKS).rev();
        let ahead = aheads.find(|&ahead| self.num_missing_blocks(ahead) <= self.pool.num_free()).unwrap_or(0);
        for seq in &mut self.running {
            let num_missing_columns = seq.num_missing_columns(ahead, self.limits.block_size_tokens);
            let num_missing = num_missing_columns * self.limits.tables.len();
            // There are too few only where some are held by what is about to end; the sequence waits for that.
            let Some(new_blocks) = self.pool.allocate(num_missing) else { continue };
            self.num_promised_blocks -= num_missing;
            seq.blocks.extend(new_blocks);
        }
    }

    /// Takes the youngest response out of the steps, but not the oldest one.
    fn preempt_youngest(&mut self) -> bool {
        let oldest = self.running.iter().position(Seq::goes_on);
        let Some(youngest) = self.running.iter().rposition(Seq::goes_on) else { return false };
        if oldest == Some(youngest) {
            return false;
        }
        let mut seq = self.running.remove(youngest);
        self.pool.rest(&seq.blocks.held());
        if std::mem::take(&mut seq.num_known_columns) > 0 {
            self.tables.preempted.push(seq.id);
        }
        insert_by_age(&mut self.preempted, seq);
        true
    }

    /// Lets preempted responses go on, oldest first, where that leaves a block for each that runs: with less they would
    /// soon be preempted again.
    fn resume(&mut self) {
        while self.num_free_seats() > 0
            && let Some(idx) = self.preempted.iter().position(Seq::goes_on)
        {
            let seq = &self.preempted[idx];
            let num_spare = self.running.iter().filter(|seq| seq.goes_on()).count();
            let num_missing = seq.num_missing_columns(0, self.limits.block_size_tokens);
            let num_more = (num_missing + num_spare) * self.limits.tables.len();
            if !self.pool.use_again(&seq.blocks.held(), num_more) {
                return;
            }
            let seq = self.preempted.remove(idx);
            self.changed();
            insert_by_age(&mut self.running, seq);
        }
    }
}

/// What the end of a sequence says of the lengths of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lesson {
    Length,
    Nothing,
}

/// Keeps `seqs` in the order of their ids.
fn insert_by_age(seqs: &mut Vec<Seq>, seq: Seq) {
    let idx = seqs.partition_point(|other| other.id < seq.id);
    seqs.insert(idx, seq);
}

#[cfg(test)]
mod tests;
