//! The linear layers behind which ranks add up: `linear_proj` and `linear_fc2`, whose inputs tensor-parallel ranks share.

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::ops::{Epilogue, LinearOp, StepState, tensor_bytes};
use crate::parallel::tree_sum;

/// A linear layer that adds to the residual stream.
pub(crate) enum RowParallel<S: StepState> {
    /// All inputs in one chain.
    Chain(S::Linear),
    /// In pieces, which one tree adds up.
    Tree(PiecedLinear<S::Linear>),
}

/// A linear layer whose inputs are summed in pieces, as far as this rank has them.
pub(crate) struct PiecedLinear<L> {
    /// Linear layers without a bias: one for each piece, in order, or one for all where the backend cuts its sums itself.
    pub(crate) parts: Vec<L>,
    /// A power of two of equally wide ones.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "elsewhere there is a part for each"))]
    pub(crate) num_pieces: usize,
    /// float32 `[hidden_size]`.
    pub(crate) bias: Option<Tensor>,
    /// Its outputs.
    pub(crate) hidden_size: i64,
}

impl<S: StepState> RowParallel<S> {
    /// `residual` with the product of `x`, `[num_tokens, in_features of this rank]`, added.
    pub(crate) fn add_to(&self, residual: Tensor, x: &Tensor, at: &mut S) -> Result<Tensor, ModelError> {
        match self {
            Self::Chain(linear) => linear.run(x, Epilogue::AddTo(residual), at),
            Self::Tree(pieced) => at.add_pieces(pieced, x, residual),
        }
    }

    /// The product of `x` alone, `[num_tokens, hidden_size]`.
    pub(crate) fn output(&self, x: &Tensor, kind: Kind, at: &mut S) -> Result<Tensor, ModelError> {
        match self {
            Self::Chain(linear) => linear.run(x, Epilogue::Store, at),
            Self::Tree(pieced) => {
                let nothing = Tensor::f_zeros([x.size2()?.0, pieced.hidden_size], (kind, x.device()))?;
                at.add_pieces(pieced, x, nothing)
            }
        }
    }

    /// The linear layers that it consists of.
    pub(crate) fn linears(&self) -> &[S::Linear] {
        match self {
            Self::Chain(linear) => std::slice::from_ref(linear),
            Self::Tree(pieced) => &pieced.parts,
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

impl<L> PiecedLinear<L> {
    /// float32 `[num_tokens, hidden_size]`: what this rank's pieces, each a linear layer, add up to.
    pub(crate) fn own_sum<S: StepState<Linear = L>>(
        &self,
        x: &Tensor,
        at: &mut S,
    ) -> Result<Tensor, ModelError>
    where
        L: LinearOp<S>,
    {
        let width = x.size2()?.1 / self.parts.len().max(1) as i64;
        let mut sums = Vec::with_capacity(self.parts.len());
        for (part, start) in self.parts.iter().zip((0..).step_by(width.max(1) as usize)) {
            let inputs = x.f_narrow(1, start, width)?.f_contiguous()?;
            sums.push(part.run(&inputs, Epilogue::Float32, at)?);
        }
        tree_sum(sums)
    }
}
