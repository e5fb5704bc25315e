//! Attention by the CPU kernels.

use cpu_kernels::{AttentionStep, HeadShape, PagedSequence, RotaryTable};
use tch::Tensor;
use torch_ext::view;

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
    /// Of each head.
    pub(super) sinks: Option<Vec<f32>>,
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
        let sinks = self.sinks.as_deref();
        let attention = AttentionStep { heads: self.heads, rotary, sequences: &sequences, layer_idx, sinks };
        Ok(kernels.attention(qkv, &attention, pool)?)
    }

    fn set_sinks(&mut self, sinks: Tensor) -> Result<(), ModelError> {
        self.sinks = Some(view::f32_slice(&sinks, "the sinks of a layer")?.to_vec());
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.sinks.as_ref().map_or(0, |sinks| size_of_val(sinks.as_slice()) as u64)
    }

    fn prompt_cut_tokens(&self, _at: &CpuState) -> Option<usize> {
        Some(1)
    }
}
