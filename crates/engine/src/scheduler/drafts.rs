//! Room for drafted tokens in a step.

use model_spec::blocks_for;

use super::Scheduler;
use crate::plan::{GrownSeq, RowId, StepPlan};

impl Scheduler {
    /// Puts drafted tokens behind the responses of a step that was just given out, as far as each has room: `drafts` are in
    /// the order of the responses.
    pub(crate) fn add_drafts(&mut self, plan: &mut StepPlan, drafts: &[Vec<u32>]) {
        let Self { limits, allocator, num_promised_blocks, running, .. } = self;
        let StepPlan { tables, rows, drafts: of_rows, .. } = plan;
        let of_responses = rows.iter_mut().filter_map(|row| match row.id {
            RowId::Response(id) => Some((id, row)),
            RowId::Prompt(_) => None,
        });
        let of_responses: Vec<_> = of_responses.collect();
        let mut num_free = limits.max_decode_tokens().saturating_sub(of_responses.len());
        for ((id, row), tokens) in of_responses.into_iter().zip(drafts) {
            let Ok(idx) = running.binary_search_by_key(&id, |running| running.id) else { continue };
            let seq = &mut running[idx];
            let tokens = &tokens[..tokens.len().min(num_free)];
            let len = row.context_len + row.query_len;
            let wanted =
                blocks_for(len as usize + tokens.len(), limits.block_size_tokens).min(seq.max_blocks);
            let num_new = wanted.saturating_sub(seq.block_table.len());
            if let Some(new_blocks) = allocator.allocate(num_new).filter(|new_blocks| !new_blocks.is_empty())
            {
                *num_promised_blocks -= num_new;
                seq.block_table.extend_from_slice(&new_blocks);
                tables.grown.push(GrownSeq { id, new_blocks });
            }
            let most_tokens =
                (seq.block_table.len() * limits.block_size_tokens).min(seq.max_context_len as usize);
            let room = most_tokens.saturating_sub(len as usize);
            let tokens = &tokens[..tokens.len().min(room)];
            num_free -= tokens.len();
            let num_drafts = tokens.len() as u32;
            seq.in_flight += num_drafts;
            seq.is_verifying = num_drafts > 0;
            row.query_len += num_drafts;
            row.draws += num_drafts;
            of_rows.extend_from_slice(tokens);
        }
    }
}
