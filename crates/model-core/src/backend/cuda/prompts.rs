//! Prompts on their way to a GPU: whole ones, and parts behind tokens that are cached already.

use cuda_kernels::UNSEEN_SLOT;
use model_spec::KvTables;
use tch::Tensor;

use super::{CudaState, MIN_ROWS};
use crate::ModelError;
use crate::attention_context::{
    AttentionContext, CachedKeys, DeviceAttention, DeviceContext, DevicePrompts, slots_of,
};
use crate::upload::to_device;

/// Lists of int32 that one copy brings over.
#[derive(Default)]
struct Packed {
    words: Vec<i32>,
    /// Where each list ends.
    ends: Vec<usize>,
}

impl Packed {
    fn push(&mut self, list: impl Iterator<Item = i32>) {
        self.words.extend(list);
        self.ends.push(self.words.len());
    }

    /// The same, filled up to `len` words.
    fn push_padded(&mut self, list: &[u32], len: usize, filler: i32) {
        let padding = std::iter::repeat_n(filler, len.saturating_sub(list.len()));
        self.push(list.iter().map(|&value| value as i32).chain(padding));
    }

    /// The start of each of these many and the end of the last.
    fn push_starts(&mut self, lens: impl Iterator<Item = usize>) {
        let ends = lens.scan(0, |end, len| {
            *end += len as i32;
            Some(*end)
        });
        self.push(std::iter::once(0).chain(ends));
    }

    /// A list, where `all` holds the words.
    fn list(&self, all: &Tensor, idx: usize) -> Result<Tensor, ModelError> {
        let end_of = |idx: usize| self.ends.get(idx).copied().unwrap_or_default();
        let start = if idx == 0 { 0 } else { end_of(idx - 1) };
        Ok(all.f_narrow(0, start as i64, (end_of(idx) - start) as i64)?)
    }
}

/// The lists before those of the tables: tokens, positions, and where each sequence starts.
const FIRST_SLOTS: usize = 3;

impl CudaState {
    /// Brings the host's plan of prompts to the device.
    pub(super) fn upload_prompts(
        &self,
        tokens: &[u32],
        step: &mut AttentionContext,
        kv: KvTables,
    ) -> Result<(), ModelError> {
        let num_rows = tokens.len().max(MIN_ROWS as usize);
        let mut packed = Packed::default();
        packed.push_padded(tokens, num_rows, 0);
        packed.push_padded(&step.positions, num_rows, -1);
        packed.push_starts(step.sequences.iter().map(|sequence| sequence.query_len));
        let tables = 0..step.tables.len();
        for table in tables.clone() {
            packed.push_padded(step.slots(table), num_rows, -1);
        }
        let has_cached = step.sequences.iter().any(|sequence| sequence.context_len > 0);
        if has_cached {
            packed.push_starts(step.sequences.iter().map(|sequence| sequence.num_keys()));
            for table in tables.clone() {
                let slots = step.sequences.iter().flat_map(|sequence| {
                    // What a window has passed may be another sequence's by now.
                    let num_unseen =
                        if table < kv.num_full { 0 } else { kv.num_unseen(sequence.context_len) };
                    let seen = slots_of(step.blocks(table, sequence), num_unseen..sequence.num_keys());
                    std::iter::repeat_n(UNSEEN_SLOT, num_unseen).chain(seen.map(|slot| slot as i32))
                });
                packed.push(slots);
            }
        }
        let all = to_device(&packed.words, self.tch_device())?;
        let lists = |first: usize| -> Result<Vec<Tensor>, ModelError> {
            tables.clone().map(|table| packed.list(&all, first + table)).collect()
        };
        let cached = match has_cached {
            true => Some(CachedKeys {
                slots: lists(FIRST_SLOTS + tables.len() + 1)?,
                cu_seqlens: packed.list(&all, FIRST_SLOTS + tables.len())?,
                max_len_tokens: step.max_context_len(),
            }),
            false => None,
        };
        step.device = Some(DeviceContext {
            tokens: packed.list(&all, 0)?,
            positions: packed.list(&all, 1)?,
            attention: DeviceAttention::Prefill(DevicePrompts {
                slots: lists(FIRST_SLOTS)?,
                cu_seqlens: packed.list(&all, 2)?,
                max_len_tokens: step.sequences.iter().map(|sequence| sequence.query_len).max().unwrap_or(0),
                cached,
            }),
        });
        Ok(())
    }
}
