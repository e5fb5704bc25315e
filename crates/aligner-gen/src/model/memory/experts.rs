//! What a step of experts takes between its layers.

use model_core::{RECEIVED_EXPERT_BYTES, Reduction};
use model_spec::{ExpertsSpec, MoeSpec, ShardPlace, reduction_pieces};

use super::WIDEST_ELEM_BYTES;

/// How the outputs of experts are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpertSums {
    pub(super) reduction: Reduction,
    /// Ranks that have parts of the same expert, and so of its pieces.
    pub(super) num_sharing: usize,
    /// Whether ranks have whole experts.
    pub(super) has_some: bool,
}

impl ExpertSums {
    pub(super) fn of(place: &ShardPlace, reduction: Reduction) -> Self {
        let has_some = place.has_some_experts();
        Self { reduction, num_sharing: if has_some { 1 } else { place.tp_size.max(1) as usize }, has_some }
    }

    /// Elements for each token while experts run: rows of one that every token chose, their outputs for each piece of the
    /// inputs, sums of these, and both halves of an expert. Where ranks have whole experts a rank keeps the outputs of its
    /// own until the others have them.
    pub(super) fn elems(self, hidden_size: usize, moe: &MoeSpec) -> usize {
        let ExpertsSpec { ffn_hidden_size, router, shared, .. } = moe.experts;
        let widest = shared.map_or(ffn_hidden_size, |shared| shared.ffn_hidden_size.max(ffn_hidden_size));
        let others = (router.topk + 1) * hidden_size + 3 * widest;
        self.num_pieces(moe) * (router.topk + 1) * hidden_size + others
    }

    /// Of the inputs of an expert's second layer, as far as a rank has them.
    fn num_pieces(self, moe: &MoeSpec) -> usize {
        match self.reduction {
            Reduction::Chain => 1,
            Reduction::Tree => {
                let width = moe.experts.ffn_hidden_size * self.num_sharing;
                (reduction_pieces(width) / self.num_sharing).max(1)
            }
        }
    }

    /// What is received of other ranks at once, as bytes, as tensors and put together.
    pub(super) fn received_bytes(self, hidden_size: usize, moe: &MoeSpec, num_tokens: u64) -> u64 {
        if !self.has_some {
            return 0;
        }
        let of_token =
            (self.num_pieces(moe) * moe.experts.router.topk * hidden_size) as u64 * WIDEST_ELEM_BYTES;
        3 * of_token.saturating_mul(num_tokens).min(RECEIVED_EXPERT_BYTES.max(of_token))
    }
}
