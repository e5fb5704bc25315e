//! What goes from one part of a layer to the next.

use tch::Tensor;

use super::{Norm, Rows, StepState};
use crate::ModelError;

/// The residual stream between two parts.
pub(crate) struct Hidden {
    /// `[num_tokens, hidden_size]`.
    pub(crate) residual: Tensor,
    /// Its rows as the norm behind it makes them, where they came out with it.
    pub(crate) normed: Option<Tensor>,
}

impl Hidden {
    /// Alone.
    pub(crate) fn of(residual: Tensor) -> Self {
        Self { residual, normed: None }
    }

    /// The rows that a part of a layer reads. `norm` is the one that was announced to whoever made the stream.
    pub(crate) fn inputs<S: StepState>(
        &mut self,
        norm: Option<&Norm>,
        at: &mut S,
    ) -> Result<Rows, ModelError> {
        match (self.normed.take(), norm) {
            (Some(normed), Some(_)) => Ok(Rows::Plain(normed)),
            (_, Some(norm)) => at.norm_rows(&self.residual, norm),
            (_, None) => Ok(Rows::Plain(self.residual.shallow_clone())),
        }
    }

    /// The same for a part that reads them in what is computed in.
    pub(crate) fn plain_inputs<S: StepState>(
        &mut self,
        norm: Option<&Norm>,
        at: &mut S,
    ) -> Result<Tensor, ModelError> {
        match (self.normed.take(), norm) {
            (Some(normed), Some(_)) => Ok(normed),
            (_, Some(norm)) => at.norm(&self.residual, norm),
            (_, None) => Ok(self.residual.shallow_clone()),
        }
    }
}
