//! The experts of a layer, and what they make of the rows that chose them.

mod exchange;

pub use self::exchange::RECEIVED_EXPERT_BYTES;
use model_spec::{Activation, ShardPlace};
use tch::{Kind, Tensor};

use super::{Epilogue, LinearOp, StepState, TrialLinear};
use crate::ModelError;
use crate::parallel::tree_sum;
use crate::routing::{ByExpert, Routing};
use crate::upload::to_device;

/// The experts of a layer, as far as this rank has them.
pub(crate) struct Experts<L> {
    /// In order of their numbers.
    pub(crate) experts: Vec<Expert<L>>,
    /// The function inside each.
    pub(crate) activation: Activation,
    /// Which of the layer's they are.
    pub(crate) owners: Owners,
}

/// Which rank has an expert, where tensor-parallel ranks have whole ones; otherwise one has all of them, or a part of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owners {
    /// Of the layer.
    pub(crate) num_experts: usize,
    /// How many ranks share them by their numbers, and this one's number.
    pub(crate) num_ranks: usize,
    pub(crate) rank: usize,
}

impl Owners {
    /// As a place shares them.
    pub(crate) fn of(place: &ShardPlace, num_experts: usize) -> Self {
        match place.has_some_experts() {
            true => Self { num_experts, num_ranks: place.tp_size as usize, rank: place.tp_rank as usize },
            false => Self { num_experts, num_ranks: 1, rank: 0 },
        }
    }

    /// The number of this rank's first expert.
    fn first(self) -> usize {
        self.rank * self.share()
    }

    /// How many experts a rank has.
    fn share(self) -> usize {
        self.num_experts / self.num_ranks.max(1)
    }

    /// The rank that has an expert.
    pub(crate) fn owner(self, expert: u32) -> usize {
        expert as usize / self.share().max(1)
    }
}

/// `linear_fc1`, an activation, `linear_fc2`.
pub(crate) struct Expert<L> {
    /// Run with [`Epilogue::Activate`].
    pub(crate) fc1: L,
    /// One, or a piece of the inputs each where their sums are taken in a tree and the backend does not cut them itself.
    pub(crate) fc2: Vec<L>,
    /// Pieces that its inputs are summed in, as far as this rank has them.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU cuts sums itself"))]
    pub(crate) num_pieces: usize,
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
        if self.owners.num_ranks > 1 {
            return exchange::run(self, x, routing, at);
        }
        let (num_tokens, hidden_size) = x.size2()?;
        let grouped = routing.by_expert(self.owners.num_experts);
        let outputs = self.empty_outputs(num_tokens * routing.topk as i64, hidden_size, x.device())?;
        self.run_own(x, &grouped, at, &mut |piece, sum, places| {
            let _ = outputs[piece].shallow_clone().f_index_copy_(0, places, sum)?;
            Ok(())
        })?;
        sum_slots(&outputs, routing)
    }

    /// Pieces of the inputs of `linear_fc2` that this rank has.
    fn num_pieces(&self) -> usize {
        self.experts.first().map_or(1, |expert| expert.fc2.len())
    }

    /// float32 `[num_places, hidden_size]` for each piece.
    fn empty_outputs(
        &self,
        num_places: i64,
        hidden_size: i64,
        device: tch::Device,
    ) -> Result<Vec<Tensor>, ModelError> {
        let empty = |_| Ok(Tensor::f_empty([num_places, hidden_size], (Kind::Float, device))?);
        (0..self.num_pieces()).map(empty).collect()
    }

    /// Runs this rank's experts on the rows that chose them, and gives to `keep` what each makes: the piece, its sums for
    /// some places, and these, in numbers of [`ByExpert::places`].
    fn run_own<S: StepState<Linear = L>>(
        &self,
        x: &Tensor,
        grouped: &ByExpert,
        at: &mut S,
        keep: &mut dyn FnMut(usize, &Tensor, &Tensor) -> Result<(), ModelError>,
    ) -> Result<(), ModelError>
    where
        L: LinearOp<S>,
    {
        let places = to_device(&grouped.places, x.device())?;
        let tokens = to_device(&grouped.tokens, x.device())?;
        let first = self.owners.first().min(grouped.counts.len());
        let mut start = grouped.counts[..first].iter().sum::<usize>() as i64;
        for (expert, &count) in self.experts.iter().zip(&grouped.counts[first..]) {
            let len = count as i64;
            if len == 0 {
                continue;
            }
            let rows = x.f_index_select(0, &tokens.f_narrow(0, start, len)?)?;
            let places = places.f_narrow(0, start, len)?;
            for (piece, sum) in expert.run(&rows, self.activation, at)?.iter().enumerate() {
                keep(piece, sum, &places)?;
            }
            start += len;
        }
        Ok(())
    }
}

/// float32 `[num_tokens, hidden_size]`: of `outputs`, `[num_places, hidden_size]` for each piece, the sum over the slots of
/// each token in their order, each times its weight; then the sum over the pieces, in a tree.
fn sum_slots(outputs: &[Tensor], routing: &Routing) -> Result<Tensor, ModelError> {
    let topk = routing.topk as i64;
    let mut sums = Vec::with_capacity(outputs.len());
    for output in outputs {
        let (num_places, hidden_size) = output.size2()?;
        let num_tokens = num_places / topk.max(1);
        let weights = to_device(&routing.weights, output.device())?.f_view([num_tokens, topk, 1])?;
        let output = output.f_view([num_tokens, topk, hidden_size])?;
        let of_slot = |slot| -> Result<Tensor, ModelError> {
            Ok(output.f_select(1, slot)?.f_mul(&weights.f_select(1, slot)?)?)
        };
        let mut sum = of_slot(0)?;
        for slot in 1..topk {
            let _ = sum.f_add_(&of_slot(slot)?)?;
        }
        sums.push(sum);
    }
    tree_sum(sums)
}
