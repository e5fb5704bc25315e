//! Attention by the CPU kernels.

use cpu_kernels::{AttentionStep, HeadShape, PagedSequence, RotaryTable};
use tch::Tensor;

use super::CpuState;
use crate::ModelError;
use crate::attention_context::AttentionContext;
use crate::kv_cache::KvCache;
use crate::layers::rotary::RotaryId;
use crate::ops::AttentionOp;

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct CpuAttention {
    pub(super) layer_idx: usize,
    pub(super) heads: HeadShape,
    pub(super) rotary: Option<RotaryId>,
}

impl AttentionOp<CpuState> for CpuAttention {
    fn run(
        &self,
        qkv: &Tensor,
        step: &AttentionContext,
        cache: &mut KvCache,
        at: &mut CpuState,
    ) -> Result<Tensor, ModelError> {
        let table = cache.table_of(self.layer_idx);
        let sequences: Vec<PagedSequence<'_>> = step
            .sequences
            .iter()
            .map(|sequence| PagedSequence {
                query_start: sequence.query_start,
                query_len: sequence.query_len,
                context_len: sequence.context_len,
                block_table: step.blocks(table, sequence),
            })
            .collect();
        let CpuState { kernels, rotary, .. } = at;
        let rotary = match self.rotary {
            Some(id) => {
                let table = rotary.get(id)?;
                RotaryTable { cos: table.cos(), sin: table.sin(), rotary_dim: 2 * table.half_dims() }
            }
            None => RotaryTable { cos: &[], sin: &[], rotary_dim: 0 },
        };
        let (pool, layer_idx) = cache.packed_layer(self.layer_idx)?;
        let attention = AttentionStep { heads: self.heads, rotary, sequences: &sequences, layer_idx };
        Ok(kernels.attention(qkv, &attention, pool)?)
    }

    fn prompt_cut_tokens(&self, _at: &CpuState) -> Option<usize> {
        Some(1)
    }
}
