//! Room for drafted tokens in a step.

use model_spec::blocks_for;

use speculation::Goal;

use super::Scheduler;
use crate::block_table::own_window;
use crate::plan::{RowId, StepPlan};

impl Scheduler {
    /// Whether other responses wait for the places of those that run.
    pub(crate) fn goal(&self) -> Goal {
        let all_run = self.waiting.is_empty() && self.starting.is_empty() && self.partial.is_none();
        if self.input_ended && all_run && self.preempted.is_empty() { Goal::Finish } else { Goal::Throughput }
    }

    /// Puts drafted tokens behind the responses of a step that was just given out, as far as each has room: `drafts` are in
    /// the order of the responses.
    pub(crate) fn add_drafts(&mut self, plan: &mut StepPlan, drafts: &[Vec<u32>]) {
        let Self { limits, pool, num_promised_blocks, running, .. } = self;
        let StepPlan { tables, rows, drafts: of_rows, .. } = plan;
        let of_responses = rows.iter_mut().filter_map(|row| match row.id {
            RowId::Response(id) => Some((id, row)),
            RowId::Prompt(_) => None,
        });
        let of_responses: Vec<_> = of_responses.collect();
        let mut num_left = limits.max_decode_tokens().saturating_sub(of_responses.len());
        for ((id, row), tokens) in of_responses.into_iter().zip(drafts) {
            let Ok(idx) = running.binary_search_by_key(&id, |running| running.id) else { continue };
            let seq = &mut running[idx];
            let tokens = &tokens[..tokens.len().min(num_left)];
            let len = (row.context_len + row.query_len) as usize;
            // Of tables with a window it has no more than it was promised.
            let most_columns = match limits.tables.num_windowed {
                0 => seq.max_columns,
                _ => seq.max_columns.min(seq.blocks.num_passed() + own_window(limits)),
            };
            let wanted = blocks_for(len + tokens.len(), limits.block_size_tokens).min(most_columns);
            // Only free blocks: what moves from here on moves after this step.
            let num_tables = limits.tables.len();
            let num_missing = wanted.saturating_sub(seq.blocks.num_columns());
            let num_new = num_missing.min(pool.num_free() / num_tables) * num_tables;
            if let Some(new_blocks) = pool.allocate(num_new) {
                *num_promised_blocks -= num_new;
                seq.blocks.extend(new_blocks);
                seq.tell(pool, tables);
            }
            let num_slots = seq.blocks.num_columns() * limits.block_size_tokens;
            let most_tokens = num_slots.min(seq.max_context_len as usize);
            let tokens = &tokens[..tokens.len().min(most_tokens.saturating_sub(len))];
            num_left -= tokens.len();
            let num_drafts = tokens.len() as u32;
            seq.in_flight += num_drafts;
            seq.is_verifying = num_drafts > 0;
            row.query_len += num_drafts;
            row.draws += num_drafts;
            of_rows.extend_from_slice(tokens);
        }
    }
}
