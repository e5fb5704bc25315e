//! Responses to prompts that are computed: how they come to run.

use std::collections::VecDeque;

use super::{
    Scheduler, Seq,
    admission::{Room, Wish},
    forecast::Siblings,
};
use crate::{
    block_pool::BlockPool,
    block_table::{BlockDemand, PromptBlocks},
    plan::SeqId,
};

/// A group whose prompt is computed and some of whose responses wait for room.
#[derive(Debug)]
pub(super) struct StartingGroup {
    pub(super) group_idx: u64,
    pub(super) prompt_len_tokens: usize,
    pub(super) max_new_tokens: u32,
    pub(super) expected_tokens: Option<u32>,
    pub(super) demand: BlockDemand,
    pub(super) prompt: PromptBlocks,
    /// Columns at the front that other prompts had computed.
    pub(super) num_cached_columns: usize,
    /// Whether the prompt is in use, or rests.
    pub(super) is_used: bool,
    pub(super) response_idxs: VecDeque<u32>,
}

impl StartingGroup {
    pub(super) fn rest(&mut self, pool: &mut BlockPool) {
        if std::mem::take(&mut self.is_used) {
            pool.rest(&self.prompt.held());
        }
    }

    /// Gives back what none of its responses reads.
    pub(super) fn pass_window(&mut self, block_size_tokens: usize, pool: &mut BlockPool) {
        if self.is_used {
            self.prompt.pass(self.prompt_len_tokens, block_size_tokens, pool);
        }
    }

    /// Room for the responses that have not started.
    pub(super) fn wish(&self, siblings: &Siblings) -> Wish {
        Wish {
            demand: self.demand,
            num_seqs: self.response_idxs.len(),
            max_new_tokens: self.max_new_tokens,
            known_tokens: siblings.known(self.group_idx, self.expected_tokens),
        }
    }
}

impl Scheduler {
    /// Moves responses from `starting` to `running`, in order, as far as seats and blocks go.
    pub(super) fn start_responses(&mut self) {
        // Found once: with a thousand responses that run, finding it for each that starts would take longer than a step.
        let mut room = None;
        while self.preempted.is_empty()
            && let Some(mut group) = self.starting.pop_front()
        {
            while let Some(seq) = self.start_response(&mut group, &mut room) {
                if let Some(room) = &mut room {
                    self.count_started(room, &seq);
                }
                self.running.push(seq);
                self.changed();
            }
            if !group.response_idxs.is_empty() {
                self.starting.push_front(group);
                break;
            }
        }
        for group in &mut self.starting {
            group.rest(&mut self.pool);
        }
    }

    /// Starts the next response of a group, if there is one and room for it. The last one takes the prompt over.
    fn start_response(&mut self, group: &mut StartingGroup, room: &mut Option<Room>) -> Option<Seq> {
        let &response_idx = group.response_idxs.front()?;
        let wish = group.wish(&self.siblings);
        if !room.get_or_insert_with(|| self.room()).may_start(wish) {
            return None;
        }
        let is_last = group.response_idxs.len() == 1;
        let (pool, demand) = (&mut self.pool, &group.demand);
        if !group.is_used {
            let num_new = if is_last { demand.at_start_of_last() } else { demand.own_at_start() };
            group.is_used = pool.use_again(&group.prompt.held(), num_new);
            if !group.is_used {
                return None;
            }
        }
        let blocks = match is_last {
            true => group.prompt.fork_last(pool, demand.own_columns_at_start())?,
            false => group.prompt.fork(pool, demand.own_columns_at_start())?,
        };
        group.response_idxs.pop_front();
        let prompt_len_tokens = group.prompt_len_tokens as u32;
        let seq = Seq {
            id: SeqId { group_idx: group.group_idx, response_idx },
            blocks,
            num_known_columns: 0,
            num_shared_columns: demand.shared_columns(),
            num_cached_columns: group.num_cached_columns,
            prompt_len_tokens,
            context_len: prompt_len_tokens,
            in_flight: 0,
            is_verifying: false,
            max_context_len: prompt_len_tokens + group.max_new_tokens.saturating_sub(1),
            max_columns: demand.response_columns(),
            max_own_blocks: demand.own(),
            expected_tokens: group.expected_tokens,
        };
        self.num_promised_blocks += seq.num_promised_blocks();
        Some(seq)
    }
}
