//! The experts of a layer, and what they make of the rows that chose them.

use model_spec::Activation;
use tch::{Kind, Tensor};

use super::{Epilogue, LinearOp, StepState, TrialLinear};
use crate::ModelError;
use crate::parallel::tree_sum;
use crate::routing::Routing;
use crate::upload::to_device;

/// All experts of a layer, as far as this rank has them.
pub(crate) struct Experts<L> {
    /// In order of their numbers.
    pub(crate) experts: Vec<Expert<L>>,
    /// The function inside each.
    pub(crate) activation: Activation,
}

/// `linear_fc1`, an activation, `linear_fc2`.
pub(crate) struct Expert<L> {
    /// Run with [`Epilogue::Activate`].
    pub(crate) fc1: L,
    /// One, or a piece of the inputs each where their sums are taken in a tree.
    pub(crate) fc2: Vec<L>,
}

impl<L> Expert<L> {
    /// Its linear layers, each with the activation that follows it.
    pub(crate) fn linears(&self, activation: Activation) -> impl Iterator<Item = TrialLinear<'_, L>> {
        let fc2 = self.fc2.iter().map(|linear| TrialLinear::of(linear, None));
        std::iter::once(TrialLinear::of(&self.fc1, Some(activation))).chain(fc2)
    }

    /// What each piece of it makes of some rows, `[num_rows, hidden_size]` in float32.
    pub(crate) fn run<S: StepState<Linear = L>>(
        &self,
        x: &Tensor,
        activation: Activation,
        at: &mut S,
    ) -> Result<Vec<Tensor>, ModelError>
    where
        L: LinearOp<S>,
    {
        let activated = self.fc1.run(x, Epilogue::Activate(activation), at)?;
        if let [whole] = self.fc2.as_slice() {
            return Ok(vec![whole.run(&activated, Epilogue::Float32, at)?]);
        }
        let width = activated.size2()?.1 / self.fc2.len().max(1) as i64;
        let mut sums = Vec::with_capacity(self.fc2.len());
        for (piece, start) in self.fc2.iter().zip((0..).step_by(width.max(1) as usize)) {
            let inputs = activated.f_narrow(1, start, width)?.f_contiguous()?;
            sums.push(piece.run(&inputs, Epilogue::Float32, at)?);
        }
        Ok(sums)
    }
}

impl<L> Experts<L> {
    /// float32 `[num_tokens, hidden_size]`: of each row of `x` the outputs of its experts, each times its weight, added in
    /// the order of [`Routing::experts`]; where inputs are in pieces, one such sum for each, added in a tree.
    ///
    /// One expert after the other: its rows are put together, and its outputs into their places. A backend with a kernel for
    /// all experts at once replaces this.
    pub(crate) fn run_one_by_one<S: StepState<Linear = L>>(
        &self,
        x: &Tensor,
        routing: &Routing,
        at: &mut S,
    ) -> Result<Tensor, ModelError>
    where
        L: LinearOp<S>,
    {
        let (num_tokens, hidden_size) = x.size2()?;
        let topk = routing.topk as i64;
        let grouped = routing.by_expert(self.experts.len());
        let tokens = to_device(&grouped.tokens, x.device())?;
        let places = to_device(&grouped.places, x.device())?;
        let rows = x.f_index_select(0, &tokens)?;
        let num_pieces = self.experts.first().map_or(1, |expert| expert.fc2.len());
        let shape = [num_tokens * topk, hidden_size];
        let mut outputs = (0..num_pieces)
            .map(|_| Tensor::f_empty(shape, (Kind::Float, x.device())))
            .collect::<Result<Vec<_>, _>>()?;
        let mut start = 0;
        for (expert, &count) in self.experts.iter().zip(&grouped.counts) {
            let len = count as i64;
            if len == 0 {
                continue;
            }
            let sums = expert.run(&rows.f_narrow(0, start, len)?, self.activation, at)?;
            let places = places.f_narrow(0, start, len)?;
            for (output, sum) in outputs.iter_mut().zip(sums) {
                let _ = output.f_index_copy_(0, &places, &sum)?;
            }
            start += len;
        }
        let weights = to_device(&routing.weights, x.device())?.f_view([num_tokens, topk, 1])?;
        let of_slot = |output: &Tensor, slot| -> Result<Tensor, ModelError> {
            Ok(output.f_select(1, slot)?.f_mul(&weights.f_select(1, slot)?)?)
        };
        let mut sums = Vec::with_capacity(outputs.len());
        for output in outputs {
            let output = output.f_view([num_tokens, topk, hidden_size])?;
            let mut sum = of_slot(&output, 0)?;
            for slot in 1..topk {
                let _ = sum.f_add_(&of_slot(&output, slot)?)?;
            }
            sums.push(sum);
        }
        tree_sum(sums)
    }
}
