//! How many ranks share a model: `model.tensor_model_parallel_size`, `model.pipeline_model_parallel_size`,
//! `model.expert_model_parallel_size`, and what follows from them for sums.
//!
//! A checkpoint states the sizes that it was saved with under the same keys. Those are not followed: only what the user
//! typed counts.

use hydra_config::{Composer, Node, Resolved};
use model_core::Reduction;
use model_spec::ExpertSharing;

use super::CHECKPOINT_LAYER;
use super::range::out_of_range;
use crate::exit::Failure;

pub(crate) const TENSOR: &str = "model.tensor_model_parallel_size";
pub(crate) const PIPELINE: &str = "model.pipeline_model_parallel_size";
/// How many groups of ranks have experts of their own, and how many ranks of a group have a part of each of them: together
/// these are the tensor-parallel ranks.
pub(crate) const EXPERT: &str = "model.expert_model_parallel_size";
const EXPERT_TENSOR: &str = "model.expert_tensor_parallel_size";
const REDUCTION: &str = "model.generation.reduction";
const AUTO: &str = "auto";

/// What the user wishes; `None` for `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParallelPlan {
    pub(crate) tensor: Option<u32>,
    pub(crate) pipeline: Option<u32>,
    /// What tensor-parallel ranks have of experts.
    pub(crate) experts: ExpertSharing,
    /// `model.generation.reduction`; see [`Self::reduction`].
    pub(crate) reduction: Option<Reduction>,
}

/// Whether it is one of the sizes.
pub(super) fn is_size(key: &str) -> bool {
    [TENSOR, PIPELINE, EXPERT, EXPERT_TENSOR].contains(&key)
}

/// Takes `auto` out of a user's configuration: what is interpolated from these keys is a number.
pub(super) fn take_auto(composer: &mut Composer) {
    for key in [TENSOR, PIPELINE] {
        if composer.node().get(key).and_then(Node::as_str) == Some(AUTO) {
            composer.take(key);
        }
    }
}

impl ParallelPlan {
    /// Reads the sizes of a resolved configuration, and `model.generation.reduction`, which is given.
    pub(crate) fn new(resolved: &Resolved, reduction: Option<&str>) -> Result<Self, Failure> {
        let users = |key: &str| {
            let is_users =
                resolved.origin(key).is_some_and(|origin| !origin.layer.starts_with(CHECKPOINT_LAYER));
            resolved.node().get(key).filter(|value| is_users && **value != Node::Null)
        };
        let number = |key, expected| match users(key) {
            None | Some(Node::Null) => Ok(None),
            Some(node) => match node.as_i64().and_then(|size| u32::try_from(size).ok()) {
                Some(size @ 1..) => Ok(Some(size)),
                Some(0) | None => Err(out_of_range(key, expected, &node.describe())),
            },
        };
        let size = |key| number(key, "a number from 1 or `auto`");
        let of_experts = |key| number(key, "a number from 1");
        let (tensor, experts) =
            of_tensor_ranks(size(TENSOR)?, of_experts(EXPERT)?, of_experts(EXPERT_TENSOR)?)?;
        Ok(Self {
            tensor,
            pipeline: size(PIPELINE)?,
            experts,
            reduction: match reduction {
                None | Some(AUTO) => None,
                Some("chain") => Some(Reduction::Chain),
                Some("tree") => Some(Reduction::Tree),
                Some(other) => {
                    return Err(out_of_range(REDUCTION, "`auto`, `chain` or `tree`", &format!("`{other}`")));
                }
            },
        })
    }

    /// How sums are taken where so many ranks share a layer.
    ///
    /// # Errors
    /// When they would have to be taken in one chain.
    pub(crate) fn reduction(&self, tensor_size: u32) -> Result<Reduction, Failure> {
        match (self.reduction, tensor_size) {
            (Some(Reduction::Chain), 2..) => Err(Failure::usage(format!(
                "`{REDUCTION}=chain` is for models of one tensor-parallel rank, and {tensor_size} share this one: leave it out, \
                 or set `{TENSOR}=1`"
            ))),
            (Some(reduction), _) => Ok(reduction),
            (None, 2..) => Ok(Reduction::Tree),
            (None, _) => Ok(Reduction::Chain),
        }
    }
}

/// The number of tensor-parallel ranks, and what they have of experts: either each has whole ones, or each has a part of all
/// of them.
fn of_tensor_ranks(
    tensor: Option<u32>,
    expert: Option<u32>,
    expert_tensor: Option<u32>,
) -> Result<(Option<u32>, ExpertSharing), Failure> {
    let groups = expert.unwrap_or(1);
    let experts = if groups > 1 { ExpertSharing::Numbers } else { ExpertSharing::Widths };
    let tensor = match (tensor, expert, expert_tensor) {
        (Some(tensor), ..) => tensor,
        (None, _, Some(parts)) => groups.saturating_mul(parts),
        (None, Some(2..), None) => groups,
        (None, _, None) => return Ok((None, experts)),
    };
    if groups != 1 && groups != tensor && tensor == 1 {
        return Err(Failure::usage(format!(
            "`{EXPERT}={groups}` needs `{TENSOR}={groups}`, and so many ranks: the ranks that share attention have whole experts each"
        )));
    }
    if groups != 1 && groups != tensor {
        return Err(Failure::usage(format!(
            "`{EXPERT}={groups}` with {tensor} tensor-parallel ranks: it must be 1, and every rank has a part of each expert, or \
             {tensor} as `{TENSOR}`, and every rank has whole experts"
        )));
    }
    let parts = tensor / groups;
    match expert_tensor {
        Some(other) if other != parts => Err(Failure::usage(format!(
            "`{EXPERT_TENSOR}={other}` must be {parts}: so many of {tensor} tensor-parallel ranks have parts of the same experts \
             with `{EXPERT}={groups}`; leave it out"
        ))),
        _ => Ok((Some(tensor), experts)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_whole_experts_or_parts_of_all() {
        let of = |tensor, expert, parts| {
            of_tensor_ranks(tensor, expert, parts).map_err(|failure| failure.sentence())
        };
        let (widths, numbers) = (ExpertSharing::Widths, ExpertSharing::Numbers);
        assert_eq!(of(None, None, None), Ok((None, widths)));
        assert_eq!(of(None, Some(1), None), Ok((None, widths)));
        assert_eq!(of(Some(4), None, None), Ok((Some(4), widths)));
        assert_eq!(of(Some(4), Some(1), Some(4)), Ok((Some(4), widths)));
        assert_eq!(of(Some(4), Some(4), None), Ok((Some(4), numbers)));
        assert_eq!(of(None, Some(4), None), Ok((Some(4), numbers)));
        assert_eq!(of(None, Some(4), Some(1)), Ok((Some(4), numbers)));
        assert_eq!(of(None, None, Some(2)), Ok((Some(2), widths)));
        assert_eq!(of(Some(1), Some(1), Some(1)), Ok((Some(1), widths)));
        let refusal = |tensor, expert, parts| of(tensor, expert, parts).unwrap_err();
        insta::assert_snapshot!(refusal(Some(4), Some(2), None), @"`model.expert_model_parallel_size=2` with 4 tensor-parallel ranks: it must be 1, and every rank has a part of each expert, or 4 as `model.tensor_model_parallel_size`, and every rank has whole experts");
        insta::assert_snapshot!(refusal(Some(1), Some(2), None), @"`model.expert_model_parallel_size=2` needs `model.tensor_model_parallel_size=2`, and so many ranks: the ranks that share attention have whole experts each");
        insta::assert_snapshot!(refusal(None, Some(2), Some(2)), @"`model.expert_model_parallel_size=2` with 4 tensor-parallel ranks: it must be 1, and every rank has a part of each expert, or 4 as `model.tensor_model_parallel_size`, and every rank has whole experts");
        insta::assert_snapshot!(refusal(Some(2), None, Some(1)), @"`model.expert_tensor_parallel_size=1` must be 2: so many of 2 tensor-parallel ranks have parts of the same experts with `model.expert_model_parallel_size=1`; leave it out");
        insta::assert_snapshot!(refusal(Some(2), Some(2), Some(2)), @"`model.expert_tensor_parallel_size=2` must be 1: so many of 2 tensor-parallel ranks have parts of the same experts with `model.expert_model_parallel_size=2`; leave it out");
    }
}
