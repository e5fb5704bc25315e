//! Prompts on their way through prefill steps: what is cached of them, and in how many parts they are computed.
//!
//! A prompt that is longer than a step may be is cut, and alone in its steps; between two of them what runs goes on by a
//! token. Its blocks rest meanwhile, so that they can make room as those of a preempted response do.

use model_core::BlockId;

use super::{Scheduler, StartingGroup, WaitingGroup, admission::Limit};
use crate::{
    block_pool::KvBlock,
    block_table::{BlockDemand, PromptBlocks},
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
    blocks: Vec<KvBlock>,
    /// Those at the front that it found cached.
    num_cached_blocks: usize,
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
            .map(|cut_tokens| PrefixCache::new(cut_tokens, self.limits.block_size_tokens));
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
        if !self.pool.use_again(&prompt.blocks, 0) {
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
            None => Vec::new(),
        };
        let num_cached_blocks = blocks.len();
        match pool.allocate(demand.prompt() - num_cached_blocks) {
            Some(new) => blocks.extend(new),
            None => {
                pool.release(&blocks);
                return Err(waiting);
            }
        }
        let block_table = Vec::new();
        Ok(Prompt { waiting, demand, blocks, num_cached_blocks, num_computed_tokens, block_table })
    }

    /// Adds the next part of a prompt to a step. The prompt comes back when that was not the last one.
    fn advance(&mut self, mut prompt: Prompt, step: &mut PrefillStep) -> Option<Prompt> {
        let num_left = prompt.len_tokens() - prompt.num_computed_tokens;
        let query_len = match self.max_part_tokens {
            Some(max_part_tokens) if num_left > self.limits.max_prefill_tokens => {
                num_left.min(max_part_tokens)
            }
            _ => num_left,
        };
        let is_last = query_len == num_left;
        let WaitingGroup { group_idx, group, path } = &prompt.waiting;
        step.rows.push(RowSpan {
            id: RowId::Prompt(*group_idx),
            context_len: prompt.num_computed_tokens as u32,
            query_len: query_len as u32,
            draws: if is_last { group.num_seqs } else { 0 },
        });
        step.num_tokens += step_tokens(prompt.num_computed_tokens + query_len, prompt.num_computed_tokens);
        let block_table = self.pool.table(&prompt.blocks);
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
        let Prompt {
            waiting: WaitingGroup { group_idx, group, path },
            demand,
            blocks,
            num_cached_blocks,
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
            num_cached_blocks,
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
        // What moves from here on moves after this step.
        if let Some(rest) = rest {
            self.pool.rest(&rest.blocks);
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
