//! The linear layers behind which ranks add up: `linear_proj` and `linear_fc2`, whose inputs tensor-parallel ranks share.

use tch::Tensor;

use crate::ModelError;
use crate::ops::{Epilogue, LinearOp, StepState, tensor_bytes};
use crate::parallel::tree_sum;

/// A linear layer that adds to the residual stream.
pub(crate) enum RowParallel<S: StepState> {
    /// All inputs in one chain.
    Chain(S::Linear),
    /// Pieces of the inputs, each a linear layer without a bias, and those of other ranks.
    Tree {
        /// This rank's, in order: a power of two of them, equally wide.
        pieces: Vec<S::Linear>,
        /// float32 `[hidden_size]`.
        bias: Option<Tensor>,
    },
}

impl<S: StepState> RowParallel<S> {
    /// `residual` with the product of `x`, `[num_tokens, in_features of this rank]`, added.
    pub(crate) fn add_to(&self, residual: Tensor, x: &Tensor, at: &mut S) -> Result<Tensor, ModelError> {
        let (pieces, bias) = match self {
            Self::Chain(linear) => return linear.run(x, Epilogue::AddTo(residual), at),
            Self::Tree { pieces, bias } => (pieces, bias),
        };
        let width = x.size2()?.1 / pieces.len().max(1) as i64;
        let mut sums = Vec::with_capacity(pieces.len());
        for (piece, start) in pieces.iter().zip((0..).step_by(width.max(1) as usize)) {
            let inputs = x.f_narrow(1, start, width)?.f_contiguous()?;
            sums.push(piece.run(&inputs, Epilogue::Float32, at)?);
        }
        at.reduce_add(residual, tree_sum(sums)?, bias.as_ref())
    }

    /// The linear layers that it consists of.
    pub(crate) fn linears(&self) -> &[S::Linear] {
        match self {
            Self::Chain(linear) => std::slice::from_ref(linear),
            Self::Tree { pieces, .. } => pieces,
        }
    }

    /// Memory that its bias takes beside its linear layers.
    pub(crate) fn bias_bytes(&self) -> u64 {
        match self {
            Self::Tree { bias: Some(bias), .. } => tensor_bytes(bias),
            Self::Tree { bias: None, .. } | Self::Chain(_) => 0,
        }
    }
}
