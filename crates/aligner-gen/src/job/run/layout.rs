//! How many ranks share a model: what the user says, or the fewest that it fits.

use model_core::{Backend, LoadOptions, Reduction};
use model_spec::{ExpertSharing, LayerSpec, ModelSpec, Numerics, ShardPlace};
use tch::Device;

use crate::cluster::topology::{Coordinates, Topology};
use crate::config::parallel::{EXPERT, PIPELINE, ParallelPlan, TENSOR};
use crate::exit::Failure;
use crate::model::memory::MemoryPlan;
use crate::table::{columns, human_bytes};

/// The sizes of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) tensor: u32,
    pub(crate) pipeline: u32,
    /// What tensor-parallel ranks have of experts.
    pub(crate) experts: ExpertSharing,
}

/// The ranks there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranks {
    pub(crate) world_size: u32,
    /// On each machine.
    pub(crate) local_size: u32,
}

/// Which kinds of sharing the kernels can.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    pub(crate) tensor: Result<(), &'static str>,
    pub(crate) pipeline: Result<(), &'static str>,
    /// Of whole experts.
    pub(crate) experts: Result<(), &'static str>,
}

impl Abilities {
    /// Of the kernels of a device.
    pub(crate) fn of(options: LoadOptions) -> Self {
        const STAGES: &str = "pipeline stages are computed on the CPU only so far; tensor-parallel ranks share a model on GPUs";
        const EXPERTS: &str = "ranks have whole experts on the CPU only so far: leave it out, and every rank has a part of each";
        const PLAIN: &str = "libtorch's products have other bits for each number of ranks that share a layer: set \
                             `trainer.generation.trt_llm.enable=true`";
        match (options.device, options.backend) {
            (Device::Cpu, Backend::Fused) => Self { tensor: Ok(()), pipeline: Ok(()), experts: Ok(()) },
            (Device::Cpu, Backend::Plain) => {
                Self { tensor: Err(PLAIN), pipeline: Ok(()), experts: Err(PLAIN) }
            }
            (_, Backend::Fused) => Self { tensor: Ok(()), pipeline: Err(STAGES), experts: Err(EXPERTS) },
            (_, Backend::Plain) => Self { tensor: Err(PLAIN), pipeline: Err(STAGES), experts: Err(PLAIN) },
        }
    }
}

/// Chooses the sizes. `fits` says whether every rank of a replica of such sizes has memory enough.
///
/// Where the user says nothing: the smallest tensor-parallel size that fits, and pipeline stages only where that is not
/// enough. Where nothing fits that these ranks allow, one rank is chosen, and the memory plan says what is missing.
///
/// # Errors
/// When what the user says contradicts the model, the ranks, or the kernels.
pub(crate) fn choose(
    wish: &ParallelPlan,
    ranks: Ranks,
    model: &ModelSpec,
    abilities: Abilities,
    fits: &dyn Fn(Sizes) -> bool,
) -> Result<Sizes, Failure> {
    let num_layers = u32::try_from(model.layers.len()).unwrap_or(u32::MAX);
    let experts = wish.experts;
    let possible = model.tensor_parallel_sizes(experts);
    if let Some(tensor) = wish.tensor {
        if experts == ExpertSharing::Numbers {
            check_experts(tensor, model, abilities)?;
        }
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
    let sizes = |pipeline| tensors.iter().map(move |&tensor| Sizes { tensor, pipeline, experts });
    let all = pipelines.iter().flat_map(|&pipeline| sizes(pipeline));
    let allowed: Vec<Sizes> = all.filter(|&sizes| divides(sizes)).collect();
    let Some(&first) = allowed.first() else { return Err(contradiction(wish, ranks)) };
    // The fewest ranks, and of those the fewest stages.
    let by_ranks = |sizes: &&Sizes| (sizes.tensor * sizes.pipeline, sizes.pipeline);
    Ok(allowed.iter().filter(|&&sizes| fits(sizes)).min_by_key(by_ranks).copied().unwrap_or(first))
}

/// The fewest ranks that a model fits, and of those with as many the fewest stages.
pub(crate) fn fewest_ranks(
    model: &ModelSpec,
    experts: ExpertSharing,
    abilities: Abilities,
    fits: &dyn Fn(Sizes) -> bool,
) -> Option<Sizes> {
    const MOST_STAGES: usize = 64;
    let tensors = if abilities.tensor.is_ok() { model.tensor_parallel_sizes(experts) } else { vec![1] };
    let most_stages = if abilities.pipeline.is_ok() { model.layers.len().min(MOST_STAGES) as u32 } else { 1 };
    let sizes = |pipeline| tensors.iter().map(move |&tensor| Sizes { tensor, pipeline, experts });
    let all = (1..=most_stages).flat_map(sizes);
    all.filter(|&sizes| fits(sizes)).min_by_key(|sizes| (sizes.tensor * sizes.pipeline, sizes.pipeline))
}

/// Whether ranks can have whole experts of a model.
fn check_experts(size: u32, model: &ModelSpec, abilities: Abilities) -> Result<(), Failure> {
    if let Err(reason) = abilities.experts {
        return Err(Failure::usage(format!("`{EXPERT}={size}`: {reason}")));
    }
    let mut numbers = model.layers.iter().filter_map(LayerSpec::moe).map(|moe| moe.experts.num_experts);
    let Some(first) = numbers.next() else {
        return Err(Failure::usage(format!("`{EXPERT}={size}`: the model has no experts; leave it out")));
    };
    match std::iter::once(first).chain(numbers).find(|number| !number.is_multiple_of(size as usize)) {
        Some(number) => Err(Failure::usage(format!(
            "`{EXPERT}={size}`: so many ranks cannot have as many of {number} experts each (`num_moe_experts`)"
        ))),
        None => Ok(()),
    }
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
pub(crate) fn places(model: &ModelSpec, sizes: Sizes, numerics: &Numerics) -> Vec<ShardPlace> {
    let stages = model.stages(sizes.pipeline as usize, numerics).unwrap_or_default();
    let of_stage = |layers: std::ops::Range<usize>| {
        (0..sizes.tensor).map(move |tp_rank| ShardPlace {
            tp_rank,
            tp_size: sizes.tensor,
            experts: sizes.experts,
            layers: layers.clone(),
        })
    };
    stages.into_iter().flat_map(of_stage).collect()
}

/// The part of one rank.
pub(crate) fn place_of(places: &[ShardPlace], topology: Topology, rank: u32) -> Option<ShardPlace> {
    let Coordinates { pipeline_rank, tensor_rank, .. } = topology.coordinates(rank)?;
    let [_, _, tensor] = topology.sizes();
    places.get((pipeline_rank * tensor + tensor_rank) as usize).cloned()
}

/// What each rank of a replica takes of memory, in the order of [`places`]: the cache has as many blocks on each as the
/// rank has that can have the fewest.
pub(crate) fn describe_memory(ranks: &[(ShardPlace, MemoryPlan)]) -> String {
    let num_blocks = ranks.iter().map(|(_, plan)| plan.limits.num_blocks).min().unwrap_or(0) as u64;
    let cells = |(place, plan): &(ShardPlace, MemoryPlan)| {
        let block_bytes = plan.kv_cache_bytes / (plan.limits.num_blocks as u64).max(1);
        let kv_cache_bytes = block_bytes.saturating_mul(num_blocks);
        let all = plan.weight_bytes.saturating_add(plan.workspace_bytes).saturating_add(kv_cache_bytes);
        let part = format!(
            "layers {} to {}, tensor {} of {}",
            place.layers.start,
            place.layers.end.saturating_sub(1),
            place.tp_rank,
            place.tp_size
        );
        let sizes = [plan.weight_bytes, plan.workspace_bytes, kv_cache_bytes, all].map(human_bytes);
        std::iter::once(part).chain(sizes).collect::<Vec<_>>()
    };
    let head = ["rank of a replica", "weights", "intermediate results", "KV cache", "in all"];
    let rows: Vec<Vec<String>> =
        std::iter::once(head.map(str::to_owned).to_vec()).chain(ranks.iter().map(cells)).collect();
    columns(&rows)
}

/// What the start says of the layout.
pub(crate) fn describe(topology: Topology, reduction: Reduction, experts: ExpertSharing) -> Option<String> {
    let [data, pipeline, tensor] = topology.sizes();
    let experts = match experts {
        ExpertSharing::Numbers => " with whole experts each",
        ExpertSharing::Widths => "",
    };
    let sums = match reduction {
        Reduction::Chain => "",
        Reduction::Tree => "; sums over ranks and pieces in one tree",
    };
    (pipeline * tensor > 1 || reduction == Reduction::Tree).then(|| {
        format!(
            "{data} {}, each of {tensor} tensor-parallel x {pipeline} pipeline ranks{experts}{sums}",
            if data == 1 { "replica" } else { "replicas" }
        )
    })
}

#[cfg(test)]
mod tests;
