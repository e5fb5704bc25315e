//! What a memory plan is made from, and what windows make of it.

use model_core::BLOCK_SIZE_TOKENS;
use model_spec::{KvTables, WINDOW_AHEAD_BLOCKS, blocks_for};

use super::{Demand, Room};
use crate::table::{human_bytes, thousands};

/// What the plan is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) weight_bytes: u64,
    pub(super) workspace_bytes: u64,
    pub(super) bytes_per_block: u64,
    pub(super) tables: KvTables,
    /// Whether prompts that are longer than a step are computed in parts.
    pub(super) cuts_prompts: bool,
}

/// Blocks that sequences of the greatest length take.
#[derive(Clone, Copy, Debug)]
pub(super) struct LongestBlocks {
    /// One while it goes on.
    pub(super) each: usize,
    /// One that runs alone, with what its prompt takes while it is computed: without as many nothing runs.
    pub(super) least: usize,
    /// As many as run at once, and what a step of prompts takes.
    pub(super) wanted: usize,
}

impl Sizes {
    pub(super) fn longest_blocks(self, room: Room, demand: Demand) -> LongestBlocks {
        let Self { tables, cuts_prompts, .. } = self;
        // One block more, because a shared prompt's last block is copied when the responses part.
        let token_blocks = blocks_for(demand.longest_sequence_tokens, BLOCK_SIZE_TOKENS) + 1;
        let each = tables.num_blocks_of(token_blocks);
        let of_prompt = match cuts_prompts {
            true => tables.window_blocks(room.max_prefill_tokens, BLOCK_SIZE_TOKENS).min(token_blocks),
            false => token_blocks,
        };
        let of_response = tables.window_blocks(1, BLOCK_SIZE_TOKENS) + WINDOW_AHEAD_BLOCKS;
        let least = tables.num_blocks(token_blocks, of_prompt + of_response);
        let of_step = tables.window_blocks(room.max_prefill_tokens, BLOCK_SIZE_TOKENS).min(token_blocks);
        let of_seqs = each.saturating_mul(room.num_seqs(demand));
        LongestBlocks {
            each,
            least,
            wanted: of_seqs.saturating_add(tables.num_windowed * of_step).max(least),
        }
    }

    pub(super) fn fixed_bytes(self) -> u64 {
        self.weight_bytes.saturating_add(self.workspace_bytes)
    }
}

/// The KV cache of one sequence of the greatest length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowSaving {
    pub(super) window_tokens: usize,
    pub(super) bytes: u64,
    /// If all layers kept all tokens.
    pub(super) bytes_without: u64,
}

impl WindowSaving {
    pub(super) fn line(self, longest_sequence_tokens: usize) -> String {
        let Self { window_tokens, bytes, bytes_without } = self;
        let shown = |tokens: usize| thousands(tokens as u64);
        format!(
            "layers with a window of {} tokens keep no more: {} for a sequence of {} tokens instead of {}",
            shown(window_tokens),
            human_bytes(bytes),
            shown(longest_sequence_tokens),
            human_bytes(bytes_without),
        )
    }
}
