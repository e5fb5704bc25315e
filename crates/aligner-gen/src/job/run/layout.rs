//! How many ranks share a model: what the user says, or the fewest that it fits.

use model_core::Reduction;
use model_spec::{ModelSpec, Numerics, ShardPlace};

use crate::cluster::topology::{Coordinates, Topology};
use crate::config::parallel::{PIPELINE, ParallelPlan, TENSOR};
use crate::exit::Failure;

/// The sizes of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) tensor: u32,
    pub(super) pipeline: u32,
}

/// The ranks there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranks {
    pub(super) world_size: u32,
    /// On each machine.
    pub(super) local_size: u32,
}

/// Which kinds of sharing the kernels can.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    pub(super) tensor: Result<(), &'static str>,
    pub(super) pipeline: Result<(), &'static str>,
}

/// Chooses the sizes. `fits` says whether every rank of a replica of such sizes has memory enough.
///
/// Where the user says nothing: the smallest tensor-parallel size that fits, and pipeline stages only where that is not
/// enough. Where nothing fits that these ranks allow, one rank is chosen, and the memory plan says what is missing.
///
/// # Errors
/// When what the user says contradicts the model, the ranks, or the kernels.
pub(super) fn choose(
    wish: &ParallelPlan,
    ranks: Ranks,
    model: &ModelSpec,
    abilities: Abilities,
    fits: &dyn Fn(Sizes) -> bool,
) -> Result<Sizes, Failure> {
    let num_layers = u32::try_from(model.layers.len()).unwrap_or(u32::MAX);
    let possible = model.tensor_parallel_sizes();
    if let Some(tensor) = wish.tensor {
        check_tensor(tensor, ranks, &possible, abilities)?;
    }
    if let Some(pipeline) = wish.pipeline {
        if pipeline > 1
            && let Err(reason) = abilities.pipeline
        {
            return Err(Failure::usage(format!("`{PIPELINE}={pipeline}`: {reason}")));
        }
        if pipeline > num_layers {
            return Err(Failure::usage(format!(
                "`{PIPELINE}={pipeline}`: the model has {num_layers} layers, and each stage needs one"
            )));
        }
    }
    let divides = |sizes: Sizes| ranks.world_size.is_multiple_of(sizes.tensor.saturating_mul(sizes.pipeline));
    let tensors = match wish.tensor {
        Some(tensor) => vec![tensor],
        None if abilities.tensor.is_err() => vec![1],
        None => possible.into_iter().filter(|&size| ranks.local_size.is_multiple_of(size)).collect(),
    };
    let pipelines = match wish.pipeline {
        Some(pipeline) => vec![pipeline],
        None if abilities.pipeline.is_err() => vec![1],
        None => (1..=num_layers.min(ranks.world_size)).collect(),
    };
    let all =
        pipelines.iter().flat_map(|&pipeline| tensors.iter().map(move |&tensor| Sizes { tensor, pipeline }));
    let allowed: Vec<Sizes> = all.filter(|&sizes| divides(sizes)).collect();
    let Some(&first) = allowed.first() else { return Err(contradiction(wish, ranks)) };
    // The fewest ranks, and of those the fewest stages.
    let by_ranks = |sizes: &&Sizes| (sizes.tensor * sizes.pipeline, sizes.pipeline);
    Ok(allowed.iter().filter(|&&sizes| fits(sizes)).min_by_key(by_ranks).copied().unwrap_or(first))
}

/// The fewest ranks that a model fits, and of those with as many the fewest stages.
pub(super) fn fewest_ranks(
    model: &ModelSpec,
    abilities: Abilities,
    fits: &dyn Fn(Sizes) -> bool,
) -> Option<Sizes> {
    const MOST_STAGES: usize = 64;
    let tensors = if abilities.tensor.is_ok() { model.tensor_parallel_sizes() } else { vec![1] };
    let most_stages = if abilities.pipeline.is_ok() { model.layers.len().min(MOST_STAGES) as u32 } else { 1 };
    let all =
        (1..=most_stages).flat_map(|pipeline| tensors.iter().map(move |&tensor| Sizes { tensor, pipeline }));
    all.filter(|&sizes| fits(sizes)).min_by_key(|sizes| (sizes.tensor * sizes.pipeline, sizes.pipeline))
}

fn check_tensor(tensor: u32, ranks: Ranks, possible: &[u32], abilities: Abilities) -> Result<(), Failure> {
    if tensor > 1
        && let Err(reason) = abilities.tensor
    {
        return Err(Failure::usage(format!("`{TENSOR}={tensor}`: {reason}")));
    }
    if !possible.contains(&tensor) {
        let names: Vec<String> = possible.iter().map(u32::to_string).collect();
        return Err(Failure::usage(format!(
            "`{TENSOR}={tensor}`: so many ranks cannot share the heads and the MLP of this model; {} can",
            names.join(", ")
        )));
    }
    if !ranks.local_size.is_multiple_of(tensor) {
        return Err(Failure::usage(format!(
            "`{TENSOR}={tensor}`: the ranks that share a layer are on one machine, and there are {} on each: set \
             `trainer.devices` to a multiple of {tensor}",
            ranks.local_size
        )));
    }
    Ok(())
}

fn contradiction(wish: &ParallelPlan, ranks: Ranks) -> Failure {
    let (tensor, pipeline) = (wish.tensor.unwrap_or(1), wish.pipeline.unwrap_or(1));
    let size = tensor.saturating_mul(pipeline);
    let nearest = ranks.world_size.div_ceil(size.max(1)).saturating_mul(size);
    Failure::usage(format!(
        "there are {} ranks (`trainer.devices` x `trainer.num_nodes`), and a model takes {size}, `{TENSOR}={tensor}` x \
         `{PIPELINE}={pipeline}`: the ranks must be a multiple of that, {nearest} for example",
        ranks.world_size
    ))
}

/// What each rank of a replica has: by pipeline rank, then by tensor rank.
pub(super) fn places(model: &ModelSpec, sizes: Sizes, numerics: &Numerics) -> Vec<ShardPlace> {
    let stages = model.stages(sizes.pipeline as usize, numerics).unwrap_or_default();
    let of_stage = |layers: std::ops::Range<usize>| {
        (0..sizes.tensor).map(move |tp_rank| ShardPlace {
            tp_rank,
            tp_size: sizes.tensor,
            layers: layers.clone(),
        })
    };
    stages.into_iter().flat_map(of_stage).collect()
}

/// The part of one rank.
pub(super) fn place_of(places: &[ShardPlace], topology: Topology, rank: u32) -> Option<ShardPlace> {
    let Coordinates { pipeline_rank, tensor_rank, .. } = topology.coordinates(rank)?;
    let [_, _, tensor] = topology.sizes();
    places.get((pipeline_rank * tensor + tensor_rank) as usize).cloned()
}

/// What the start says of the layout.
pub(super) fn describe(topology: Topology, reduction: Reduction) -> Option<String> {
    let [data, pipeline, tensor] = topology.sizes();
    let sums = match reduction {
        Reduction::Chain => "",
        Reduction::Tree => "; sums over ranks and pieces in one tree",
    };
    (pipeline * tensor > 1 || reduction == Reduction::Tree).then(|| {
        format!(
            "{data} {}, each of {tensor} tensor-parallel x {pipeline} pipeline ranks{sums}",
            if data == 1 { "replica" } else { "replicas" }
        )
    })
}

#[cfg(test)]
mod tests;
