//! Expert parallelism: tensor-parallel ranks have whole experts, and each sends what its own make of a step's rows.
//!
//! What is sent are outputs, in the pieces that their sums are taken in, and not sums over the experts of a row: the slots of
//! a row are added in their order, and the experts of neighbouring slots are on other ranks. Every rank adds them itself, and
//! has the bits of one rank that has all experts.

use tch::{Kind, Tensor};

use super::{Experts, LinearOp, StepState, sum_slots};
use crate::ModelError;
use crate::routing::Routing;

/// What a rank receives of others' experts at once, or more where one token takes more.
pub const RECEIVED_EXPERT_BYTES: u64 = 64 << 20;

/// Where the outputs of each place lie.
struct Places {
    /// The rank that has the expert of each place.
    owners: Vec<usize>,
    /// Which row it is of those of its rank.
    rows: Vec<i64>,
    /// How many each rank has.
    counts: Vec<i64>,
}

impl Places {
    fn of<L>(experts: &Experts<L>, routing: &Routing) -> Self {
        let mut places = Self {
            owners: Vec::with_capacity(routing.experts.len()),
            rows: Vec::with_capacity(routing.experts.len()),
            counts: vec![0; experts.owners.num_ranks],
        };
        for &expert in &routing.experts {
            let owner = experts.owners.owner(expert);
            places.owners.push(owner);
            places.rows.push(places.counts[owner]);
            places.counts[owner] += 1;
        }
        places
    }
}

/// [`Experts::run_one_by_one`] of ranks that share experts by their numbers. All of them have the same rows.
pub(super) fn run<L, S: StepState<Linear = L>>(
    experts: &Experts<L>,
    x: &Tensor,
    routing: &Routing,
    at: &mut S,
) -> Result<Tensor, ModelError>
where
    L: LinearOp<S>,
{
    let (num_tokens, hidden_size) = x.size2()?;
    let (num_pieces, rank) = (experts.num_pieces(), experts.owners.rank);
    let all = Places::of(experts, routing);
    let rows = Tensor::f_from_slice(&all.rows)?;
    // By place, so that the outputs of some tokens lie together.
    let shape = [all.counts[rank], num_pieces as i64, hidden_size];
    let own = Tensor::f_empty(shape, (Kind::Float, x.device()))?;
    let grouped = routing.by_expert(experts.owners.num_experts);
    experts.run_own(x, &grouped, at, &mut |piece, sum, places| {
        let rows = rows.f_index_select(0, places)?;
        let _ = own.f_select(1, piece as i64)?.f_index_copy_(0, &rows, sum)?;
        Ok(())
    })?;
    let token_bytes = routing.topk * num_pieces * hidden_size as usize * size_of::<f32>();
    let at_once = (RECEIVED_EXPERT_BYTES as usize / token_bytes.max(1)).max(1);
    let mut sums = Vec::new();
    let mut sent = 0;
    for start in (0..num_tokens as usize).step_by(at_once) {
        let part = routing.rows(start..(start + at_once).min(num_tokens as usize));
        let places = Places::of(experts, &part);
        let mine = own.f_narrow(0, sent, places.counts[rank])?;
        sent += places.counts[rank];
        let outputs = received(experts, &mine, &places, at)?;
        sums.push(sum_slots(&outputs, &part)?);
    }
    Ok(Tensor::f_cat(&sums, 0)?)
}

/// The outputs of all places, `[num_places, hidden_size]` for each piece; `mine` are this rank's,
/// `[its places, pieces, hidden_size]`.
fn received<L, S: StepState<Linear = L>>(
    experts: &Experts<L>,
    mine: &Tensor,
    places: &Places,
    at: &mut S,
) -> Result<Vec<Tensor>, ModelError> {
    let (_, num_pieces, hidden_size) = mine.size3()?;
    let parts = at.ranks().gather_rows(mine, &places.counts)?;
    let outputs = experts.empty_outputs(places.owners.len() as i64, hidden_size, mine.device())?;
    for (rank, part) in parts.iter().enumerate() {
        let of_rank = (0..).zip(&places.owners).filter(|&(_, &owner)| owner == rank);
        let own: Vec<i64> = of_rank.map(|(place, _)| place).collect();
        if own.is_empty() {
            continue;
        }
        let own = Tensor::f_from_slice(&own)?;
        let part = part.f_view([-1, num_pieces, hidden_size])?;
        for (piece, output) in (0..).zip(&outputs) {
            let _ = output.shallow_clone().f_index_copy_(0, &own, &part.f_select(1, piece)?)?;
        }
    }
    Ok(outputs)
}
