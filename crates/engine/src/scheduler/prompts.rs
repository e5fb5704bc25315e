//! Prompts on their way through prefill steps: what is cached of them, and in how many parts they are computed.
//!
//! A prompt that is longer than a step may be is cut, and alone in its steps; between two of them what runs goes on by a
//! token. Its blocks rest meanwhile, so that they can make room as those of a preempted response do.

use model_core::BlockId;
use model_spec::blocks_for;

use super::{Scheduler, StartingGroup, WaitingGroup, admission::Limit};
use crate::{
    block_table::{BlockDemand, PromptBlocks, SeqBlocks},
    plan::{NewPrompt, RowId, RowSpan, StepPlan, TableDelta},
    prefix_cache::{Found, NodeId, PrefixCache},
};

/// At which multiples of tokens prompts may be cut, and whether prompts that begin alike share what is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PromptParts {
    /// None where prompts are computed whole.
    pub(crate) cut_tokens: Option<usize>,
    pub(crate) shares_prefixes: bool,
}

/// A prompt that is computed, as far as it is.
#[derive(Debug)]
pub(super) struct Prompt {
    waiting: WaitingGroup,
    demand: BlockDemand,
    blocks: SeqBlocks,
    /// Columns at the front that it found cached.
    num_cached_columns: usize,
    /// Tokens that are cached, or will be by steps that were given out.
    num_computed_tokens: usize,
    /// What the executor was told.
    block_table: Vec<BlockId>,
}

/// How much of a step a cached token takes, in tokens that are computed: attention reads it, and a GPU gathers it into
/// memory that is planned for computed tokens, which take more than this of it.
const CACHED_TOKENS_PER_TOKEN: usize = 4;

/// How much of a step a prompt takes of which some tokens are cached, in tokens that are computed.
pub(super) fn step_tokens(prompt_len_tokens: usize, num_cached_tokens: usize) -> usize {
    prompt_len_tokens - num_cached_tokens + num_cached_tokens / CACHED_TOKENS_PER_TOKEN
}

impl Prompt {
    fn len_tokens(&self) -> usize {
        self.waiting.group.prompt.len()
    }

    /// Blocks that it may still get.
    fn num_promised_blocks(&self) -> usize {
        self.demand.prompt().saturating_sub(self.blocks.num_held_from(0))
    }
}

/// Rows and prompts of the step that is planned.
#[derive(Debug, Default)]
struct PrefillStep {
    rows: Vec<RowSpan>,
    prompts: Vec<NewPrompt>,
    /// By [`step_tokens`].
    num_tokens: usize,
}

impl Scheduler {
    /// The same with prompts in parts.
    pub(crate) fn with_parts(mut self, parts: PromptParts) -> Self {
        let cut_tokens = parts.cut_tokens.filter(|&cut_tokens| cut_tokens > 0);
        self.prefixes = cut_tokens
            .filter(|_| parts.shares_prefixes)
            .map(|cut_tokens| PrefixCache::new(cut_tokens, &self.limits));
        self.max_part_tokens = cut_tokens
            .map(|cut_tokens| (self.limits.max_prefill_tokens / cut_tokens * cut_tokens).max(cut_tokens));
        self
    }

    /// What is cached of a queued prompt, and the tokens of that.
    pub(super) fn find_cached(
        &self,
        waiting: &WaitingGroup,
        is_planned: impl Fn(NodeId) -> bool,
    ) -> (Found, usize) {
        let Some(prefixes) = &self.prefixes else { return (Found::default(), 0) };
        let found = prefixes.find(&waiting.path, waiting.group.prompt.len(), &self.pool, is_planned);
        (found, found.num_pieces * prefixes.piece_tokens())
    }

    /// The next part of the prompt that is computed in parts, unless what runs must go on by a token first.
    pub(super) fn continue_prompt(&mut self) -> Option<StepPlan> {
        let must_wait = self.has_paused && self.running.iter().any(super::Seq::goes_on);
        if must_wait || !self.preempted.is_empty() {
            return None;
        }
        let prompt = self.partial.take()?;
        let num_missing = self.num_missing_blocks_of(&prompt);
        let mut prompt = prompt;
        if !self.pool.use_again(&prompt.blocks.held(), num_missing) {
            self.partial = Some(prompt);
            return None;
        }
        if !self.extend_prompt(&mut prompt) {
            self.pool.rest(&prompt.blocks.held());
            self.partial = Some(prompt);
            return None;
        }
        let mut step = PrefillStep::default();
        let rest = self.advance(prompt, &mut step);
        Some(self.plan_prefill(step, rest))
    }

    /// A step of the first of the queued prompts.
    pub(super) fn prefill(&mut self, num_groups: usize) -> StepPlan {
        let mut step = PrefillStep::default();
        let mut rest = None;
        for _ in 0..num_groups {
            if rest.is_some() {
                break;
            }
            let Some(waiting) = self.waiting.pop_front() else { break };
            match self.begin_prompt(waiting, &step) {
                Ok(prompt) => rest = self.advance(prompt, &mut step),
                Err(waiting) => {
                    self.waiting.push_front(waiting);
                    break;
                }
            }
        }
        self.plan_prefill(step, rest)
    }

    /// Gives a prompt its blocks, those that are cached and new ones. It comes back when there are too few, or when less is
    /// cached than was thought and the step would be too long.
    fn begin_prompt(&mut self, waiting: WaitingGroup, step: &PrefillStep) -> Result<Prompt, WaitingGroup> {
        let demand = self.demand(&waiting.group);
        let (found, num_computed_tokens) = self.find_cached(&waiting, |_| false);
        let num_tokens = step.num_tokens + step_tokens(waiting.group.prompt.len(), num_computed_tokens);
        if !step.rows.is_empty() && num_tokens > self.limits.max_prefill_tokens {
            return Err(waiting);
        }
        let Self { prefixes, pool, .. } = self;
        let mut blocks = match prefixes {
            Some(prefixes) => prefixes.take(&waiting.path[..found.num_pieces], pool),
            None => SeqBlocks::new(self.limits.tables, Vec::new()),
        };
        blocks.pass(num_computed_tokens, self.limits.block_size_tokens, pool);
        let num_cached_columns = blocks.num_columns();
        let block_table = Vec::new();
        let mut prompt =
            Prompt { waiting, demand, blocks, num_cached_columns, num_computed_tokens, block_table };
        self.num_promised_blocks += prompt.num_promised_blocks();
        if self.extend_prompt(&mut prompt) {
            return Ok(prompt);
        }
        self.num_promised_blocks -= prompt.num_promised_blocks();
        self.pool.release(&prompt.blocks.held());
        Err(prompt.waiting)
    }

    /// Blocks that a prompt has too few for its next part. Where no layer has a window it gets all at once.
    fn num_missing_blocks_of(&self, prompt: &Prompt) -> usize {
        let num_columns = match self.limits.tables.num_windowed {
            0 => prompt.demand.prompt_columns(),
            _ => {
                let end = prompt.num_computed_tokens + self.part_tokens(prompt);
                blocks_for(end, self.limits.block_size_tokens)
            }
        };
        num_columns.saturating_sub(prompt.blocks.num_columns()) * self.limits.tables.len()
    }

    /// Gives a prompt the blocks for its next part, if there are enough.
    fn extend_prompt(&mut self, prompt: &mut Prompt) -> bool {
        let Some(new_blocks) = self.pool.allocate(self.num_missing_blocks_of(prompt)) else { return false };
        let before = prompt.num_promised_blocks();
        prompt.blocks.extend(new_blocks);
        self.num_promised_blocks -= before - prompt.num_promised_blocks();
        true
    }

    /// Tokens of the next part of a prompt.
    fn part_tokens(&self, prompt: &Prompt) -> usize {
        let num_left = prompt.len_tokens() - prompt.num_computed_tokens;
        match self.max_part_tokens {
            Some(max_part_tokens) if num_left > self.limits.max_prefill_tokens => {
                num_left.min(max_part_tokens)
            }
            _ => num_left,
        }
    }

    /// Adds the next part of a prompt to a step. The prompt comes back when that was not the last one.
    fn advance(&mut self, mut prompt: Prompt, step: &mut PrefillStep) -> Option<Prompt> {
        let num_left = prompt.len_tokens() - prompt.num_computed_tokens;
        let query_len = self.part_tokens(&prompt);
        let is_last = query_len == num_left;
        let WaitingGroup { group_idx, group, path } = &prompt.waiting;
        step.rows.push(RowSpan {
            id: RowId::Prompt(*group_idx),
            context_len: prompt.num_computed_tokens as u32,
            query_len: query_len as u32,
            draws: if is_last { group.num_seqs } else { 0 },
        });
        step.num_tokens += step_tokens(prompt.num_computed_tokens + query_len, prompt.num_computed_tokens);
        let block_table = prompt.blocks.table(0, &self.pool);
        // It is new, or its blocks have moved.
        if block_table != prompt.block_table {
            step.prompts.push(NewPrompt {
                group_idx: *group_idx,
                sample_idx: group.sample_idx,
                tokens: group.prompt.clone(),
                own: group.own.clone(),
                block_table: block_table.clone(),
            });
            prompt.block_table = block_table;
        }
        prompt.num_computed_tokens += query_len;
        if let Some(prefixes) = &mut self.prefixes {
            let num_pieces = prompt.num_computed_tokens / prefixes.piece_tokens();
            prefixes.store(&path[..num_pieces], &prompt.blocks, &mut self.pool);
        }
        if !is_last {
            return Some(prompt);
        }
        self.complete(prompt);
        None
    }

    /// The responses to a prompt can start.
    fn complete(&mut self, prompt: Prompt) {
        self.num_promised_blocks -= prompt.num_promised_blocks();
        let Prompt {
            waiting: WaitingGroup { group_idx, group, path },
            demand,
            blocks,
            num_cached_columns,
            ..
        } = prompt;
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.leave(&path, &mut self.pool);
        }
        self.lengths.num_tokens += u64::from(group.num_seqs);
        let started = StartingGroup {
            group_idx,
            prompt_len_tokens: group.prompt.len(),
            max_new_tokens: group.max_new_tokens,
            expected_tokens: group.foresight.expected_tokens,
            demand,
            prompt: PromptBlocks::new(blocks, &demand),
            num_cached_columns,
            is_used: true,
            response_idxs: (0..group.num_seqs).collect(),
        };
        if group.max_new_tokens == 1 {
            self.single.push(started);
        } else {
            self.starting.push_back(started);
        }
    }

    fn plan_prefill(&mut self, step: PrefillStep, rest: Option<Prompt>) -> StepPlan {
        self.has_paused = true;
        self.changed();
        let PrefillStep { rows, prompts, .. } = step;
        let mut plan = StepPlan { rows, ..self.take_changes() };
        plan.tables = TableDelta { prompts, ..plan.tables };
        // What moves or is given back from here on is that after this step.
        let Self { starting, single, pool, limits, .. } = self;
        for group in starting.iter_mut().chain(single) {
            group.pass_window(limits.block_size_tokens, pool);
        }
        if let Some(mut rest) = rest {
            let before = rest.num_promised_blocks();
            rest.blocks.pass(rest.num_computed_tokens, limits.block_size_tokens, pool);
            self.num_promised_blocks += rest.num_promised_blocks() - before;
            self.pool.rest(&rest.blocks.held());
            self.partial = Some(rest);
        }
        self.start_responses();
        plan
    }

    /// Whether a prefill is as large as it may be.
    pub(super) fn is_full(&self, num_tokens: usize, limited_by: Option<Limit>) -> bool {
        limited_by == Some(Limit::PrefillTokens) || num_tokens >= self.limits.max_prefill_tokens
    }
}

#[cfg(test)]
mod tests;
