//! How much memory a run takes, and how many sequences the KV cache is made for.

use engine::EngineLimits;
use model_core::{BLOCK_SIZE_TOKENS, KvCache, LoadOptions, ModelConfig};
use nemo_format::Checkpoint;
use tch::Device;

use crate::device;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::table::{human_bytes, thousands, two_columns};

/// Past this many rows a step on a CPU takes longer in proportion: the matrix units are busy.
const MAX_NUM_SEQS: usize = 64;
/// On a GPU a step is bound by memory up to some 256 rows, and cuBLAS takes more of them for free.
const MAX_NUM_SEQS_ON_GPU: usize = 256;
/// As many tokens as keep the matrix units busy without large intermediate tensors.
const MAX_PREFILL_TOKENS: usize = 2048;
const MAX_PREFILL_TOKENS_ON_GPU: usize = 8192;
/// The cache is zeroed when it is made, so it is not made larger than helps.
const SMALL_CACHE_BYTES: u64 = 4 << 30;
/// What a GPU needs beside weights and cache: activations of a prefill, graphs, workspaces of libraries.
const GPU_WORKSPACE_BYTES: u64 = 3 << 30;

/// What the run needs, known before the weights are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Most tokens of one sequence, prompt and response.
    pub(crate) longest_sequence_tokens: usize,
    /// Responses to generate in all.
    pub(crate) num_sequences: usize,
    /// Ranks that share the device's memory.
    pub(crate) num_sharing_ranks: u32,
}

/// What the device of a run allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    is_gpu: bool,
    available_bytes: Option<u64>,
    max_num_seqs: usize,
    max_prefill_tokens: usize,
}

impl Place {
    fn new(options: LoadOptions) -> Self {
        let available_bytes = device::available_bytes(options.device);
        if options.device == Device::Cpu { Self::host(available_bytes) } else { Self::gpu(available_bytes) }
    }

    /// The part of one of several ranks that share the memory.
    fn shared_by(mut self, num_ranks: u32) -> Self {
        let num_ranks = u64::from(num_ranks.max(1));
        self.available_bytes = self.available_bytes.map(|bytes| bytes / num_ranks);
        self
    }

    fn host(available_bytes: Option<u64>) -> Self {
        Self {
            is_gpu: false,
            available_bytes,
            max_num_seqs: MAX_NUM_SEQS,
            max_prefill_tokens: MAX_PREFILL_TOKENS,
        }
    }

    fn gpu(available_bytes: Option<u64>) -> Self {
        Self {
            is_gpu: true,
            available_bytes,
            max_num_seqs: MAX_NUM_SEQS_ON_GPU,
            max_prefill_tokens: MAX_PREFILL_TOKENS_ON_GPU,
        }
    }

    /// Most bytes that the KV cache may take: on a GPU what is left, elsewhere others want memory too.
    fn cache_bytes(&self, weight_bytes: u64) -> u64 {
        let wanted_bytes = SMALL_CACHE_BYTES.max(weight_bytes / 2);
        match self.available_bytes.map(|available| available.saturating_sub(weight_bytes)) {
            Some(left) if self.is_gpu => left.saturating_sub(GPU_WORKSPACE_BYTES),
            Some(left) => wanted_bytes.min(left / 2),
            None => wanted_bytes,
        }
    }
}

/// The memory plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    pub(crate) weight_bytes: u64,
    pub(crate) kv_cache_bytes: u64,
    pub(crate) available_bytes: Option<u64>,
    pub(crate) limits: EngineLimits,
    pub(crate) longest_sequence_tokens: usize,
}

impl MemoryPlan {
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        options: LoadOptions,
        demand: Demand,
    ) -> Result<Self, Failure> {
        let num_params: u64 = checkpoint
            .tensors()
            .names()
            .filter_map(|name| checkpoint.tensors().meta(name)?.num_elems())
            .fold(0, u64::saturating_add);
        let weight_bytes = num_params.saturating_mul(options.precision.size_bytes() as u64);
        let bytes_per_block = KvCache::bytes_per_block(config, options) as u64;
        let place = Place::new(options).shared_by(demand.num_sharing_ranks);
        Self::fit(place, weight_bytes, bytes_per_block, demand)
    }

    fn fit(place: Place, weight_bytes: u64, bytes_per_block: u64, demand: Demand) -> Result<Self, Failure> {
        let Place { available_bytes, .. } = place;
        let max_num_seqs = demand.num_sequences.clamp(1, place.max_num_seqs);
        // One block more, because a shared prompt's last block is copied when the responses part.
        let blocks_per_sequence = demand.longest_sequence_tokens.div_ceil(BLOCK_SIZE_TOKENS) + 1;
        let wanted_blocks = (blocks_per_sequence * max_num_seqs) as u64;
        let cache_bytes = place.cache_bytes(weight_bytes);
        let affordable_blocks = cache_bytes / bytes_per_block.max(1);
        let num_blocks = wanted_blocks.min(affordable_blocks).max(blocks_per_sequence as u64);
        let kv_cache_bytes = num_blocks.saturating_mul(bytes_per_block);
        if let Some(available) = available_bytes
            && weight_bytes.saturating_add(kv_cache_bytes) > available
        {
            return Err(anyhow::anyhow!(
                "the model needs {} for weights and at least {} for the KV cache of one sequence, {} of memory are available",
                human_bytes(weight_bytes),
                human_bytes(blocks_per_sequence as u64 * bytes_per_block),
                human_bytes(available),
            ))
            .exit_with(ExitStatus::Device);
        }
        let limits = EngineLimits {
            max_num_seqs,
            max_prefill_tokens: place.max_prefill_tokens,
            num_blocks: usize::try_from(num_blocks).unwrap_or(usize::MAX),
            block_size_tokens: BLOCK_SIZE_TOKENS,
        };
        let longest_sequence_tokens = demand.longest_sequence_tokens;
        Ok(Self { weight_bytes, kv_cache_bytes, available_bytes, limits, longest_sequence_tokens })
    }

    /// The table shown before the run.
    pub(crate) fn table(&self) -> String {
        let available = self.available_bytes.map_or_else(|| "unknown".to_owned(), human_bytes);
        two_columns(&[
            ("weights", human_bytes(self.weight_bytes)),
            (
                "KV cache",
                format!(
                    "{} ({} blocks of {} tokens)",
                    human_bytes(self.kv_cache_bytes),
                    thousands(self.limits.num_blocks as u64),
                    self.limits.block_size_tokens
                ),
            ),
            ("sequences at once", format!("up to {}", self.limits.max_num_seqs)),
            ("memory available", available),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand { longest_sequence_tokens: 100, num_sequences: 8, num_sharing_ranks: 1 };

    fn fit(weight_bytes: u64, bytes_per_block: u64, available: Option<u64>) -> Option<(usize, usize)> {
        let plan = MemoryPlan::fit(Place::host(available), weight_bytes, bytes_per_block, DEMAND).ok()?;
        Some((plan.limits.max_num_seqs, plan.limits.num_blocks))
    }

    #[test]
    fn cache_is_what_is_needed_or_what_fits() {
        assert_eq!(fit(1 << 20, 1 << 20, Some(1 << 34)), Some((8, 40)));
        assert_eq!(fit(1 << 20, 1 << 27, Some(1 << 34)), Some((8, 32)));
        assert_eq!(fit(1 << 20, 1 << 20, Some(13 << 20)), Some((8, 6)));
        assert_eq!(fit(1 << 20, 1 << 20, Some(7 << 20)), Some((8, 5)));
        assert_eq!(fit(1 << 20, 1 << 20, Some(5 << 20)), None);
        assert_eq!(fit(1 << 20, 1 << 20, None), Some((8, 40)));
    }

    #[test]
    fn a_gpu_gives_the_cache_what_is_left() {
        let place = Place::gpu(Some(80 << 30));
        assert_eq!(place.cache_bytes(13 << 30), 64 << 30);
        assert_eq!(place.cache_bytes(90 << 30), 0);
        let demand = Demand { longest_sequence_tokens: 320, num_sequences: 1000, num_sharing_ranks: 1 };
        let plan = MemoryPlan::fit(place, 13 << 30, 16 << 20, demand).unwrap();
        assert_eq!((plan.limits.max_num_seqs, plan.limits.num_blocks), (256, 256 * 11));
    }
}
