//! How many ranks share a model: `model.tensor_model_parallel_size`, `model.pipeline_model_parallel_size`, and what follows
//! from them for sums.
//!
//! A checkpoint states the sizes that it was saved with under the same keys. Those are not followed: only what the user
//! typed counts.

use hydra_config::{Composer, Node, Resolved};
use model_core::Reduction;

use super::CHECKPOINT_LAYER;
use super::range::out_of_range;
use crate::exit::Failure;

pub(crate) const TENSOR: &str = "model.tensor_model_parallel_size";
pub(crate) const PIPELINE: &str = "model.pipeline_model_parallel_size";
/// Megatron's sizes of groups of ranks that have some of the experts each, or parts of them.
const OF_EXPERTS: [&str; 2] = ["model.expert_model_parallel_size", "model.expert_tensor_parallel_size"];
const REDUCTION: &str = "model.generation.reduction";
const AUTO: &str = "auto";

/// What the user wishes; `None` for `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParallelPlan {
    pub(crate) tensor: Option<u32>,
    pub(crate) pipeline: Option<u32>,
    /// `model.generation.reduction`; see [`Self::reduction`].
    pub(crate) reduction: Option<Reduction>,
}

/// Whether it is one of the sizes.
pub(super) fn is_size(key: &str) -> bool {
    [TENSOR, PIPELINE].contains(&key)
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
        for key in OF_EXPERTS {
            if let Some(size) = users(key).filter(|size| size.as_i64() != Some(1)) {
                return Err(Failure::usage(format!(
                    "`{key}` must be 1, not {}: every rank has all experts of its layers, or with `{TENSOR}` a part of each of \
                     them; leave it out",
                    size.describe()
                )));
            }
        }
        let size = |key| match users(key) {
            None | Some(Node::Null) => Ok(None),
            Some(node) => match node.as_i64().and_then(|size| u32::try_from(size).ok()) {
                Some(size @ 1..) => Ok(Some(size)),
                Some(0) | None => Err(out_of_range(key, "a number from 1 or `auto`", &node.describe())),
            },
        };
        Ok(Self {
            tensor: size(TENSOR)?,
            pipeline: size(PIPELINE)?,
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
