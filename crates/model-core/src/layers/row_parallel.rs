//! The linear layers behind which ranks add up: `linear_proj` and `linear_fc2`, whose inputs tensor-parallel ranks share.

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::ops::{Epilogue, Hidden, Norm, PiecedLinear, Rows, StepState, TrialLinear, tensor_bytes};

/// A linear layer that adds to the residual stream.
pub(crate) enum RowParallel<S: StepState> {
    /// All inputs in one chain.
    Chain(S::Linear),
    /// In pieces, which one tree adds up.
    Tree(PiecedLinear<S::Linear>),
}

impl<S: StepState> RowParallel<S> {
    /// `residual` with the product of `x`, `[num_tokens, in_features of this rank]`, added; `next` is the norm that it goes
    /// through then.
    pub(crate) fn add_to(
        &self,
        residual: Tensor,
        x: &Rows,
        next: Option<&Norm>,
        at: &mut S,
    ) -> Result<Hidden, ModelError> {
        match self {
            Self::Chain(linear) => Ok(Hidden::of(at.run_rows(linear, x, Epilogue::AddTo(residual))?)),
            Self::Tree(pieced) => at.add_pieces(pieced, x.plain()?, residual, next),
        }
    }

    /// The product of `x` alone, `[num_tokens, hidden_size]`.
    pub(crate) fn output(&self, x: &Rows, kind: Kind, at: &mut S) -> Result<Tensor, ModelError> {
        match self {
            Self::Chain(linear) => at.run_rows(linear, x, Epilogue::Store),
            Self::Tree(pieced) => {
                let x = x.plain()?;
                let nothing = Tensor::f_zeros([x.size2()?.0, pieced.hidden_size], (kind, x.device()))?;
                Ok(at.add_pieces(pieced, x, nothing, None)?.residual)
            }
        }
    }

    /// The linear layers that it consists of, as they are run.
    pub(crate) fn trials(&self) -> impl Iterator<Item = TrialLinear<'_, S::Linear>> {
        let (linears, num_pieces) = match self {
            Self::Chain(linear) => (std::slice::from_ref(linear), 1),
            // Where there is one for all pieces, the backend cuts its sums.
            Self::Tree(pieced) => (pieced.parts.as_slice(), pieced.num_pieces / pieced.parts.len().max(1)),
        };
        linears.iter().map(move |linear| TrialLinear { num_pieces, ..TrialLinear::of(linear, None) })
    }

    /// The same, taken out of it, and the pieces that they have together.
    pub(crate) fn into_linears(self) -> (Vec<S::Linear>, usize) {
        match self {
            Self::Chain(linear) => (vec![linear], 1),
            Self::Tree(pieced) => (pieced.parts, pieced.num_pieces),
        }
    }

    /// Memory that its bias takes beside its linear layers.
    pub(crate) fn bias_bytes(&self) -> u64 {
        match self {
            Self::Tree(PiecedLinear { bias: Some(bias), .. }) => tensor_bytes(bias),
            Self::Tree(_) | Self::Chain(_) => 0,
        }
    }
}
