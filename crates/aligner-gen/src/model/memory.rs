//! How much memory a run takes, and how many sequences the KV cache is made for.

mod experts;
mod sizes;

use engine::{EngineLimits, MAX_NUM_SEQS_ON_GPU};
use model_core::{BLOCK_SIZE_TOKENS, ExchangeParts, LoadOptions, ModelConfig, ModelError, Reduction};
use model_spec::{
    AttentionSpec, Float, Footprint, HeadLayout, KvTables, LayerSpec, MlpSpec, ModelSpec, Numerics,
    ShardPlace, blocks_for,
};
use nemo_format::Checkpoint;
use tch::Device;

use self::experts::ExpertSums;
use super::{device, host_memory};
use crate::config::plan::{RoomPlan, RowStructures};
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::table::{human_bytes, thousands, two_columns};
use sizes::{LongestBlocks, Sizes, WindowSaving};

/// Past this many rows a step on a CPU takes longer in proportion. Vector units are busy from 64 on, matrix units here.
const MAX_NUM_SEQS: usize = 128;
/// How many sequences a step on a GPU may have, the more the better: with 8B at a context of 512, 256 of them give 21,000
/// tokens a second on an H200, 512 give 23,600 and 1,024 give 24,600. A smaller number is taken where the cache would not
/// hold as many at half their greatest length, because what is kept for each row takes memory from it.
const NUM_SEQS_ON_GPU: [usize; 3] = [MAX_NUM_SEQS_ON_GPU, 512, 256];
/// What of the host's free memory KV blocks may be swapped to; it is taken when it is needed.
const SWAP_SPACE_SHARE: u64 = 4;
/// As many tokens as keep the matrix units busy without large intermediate tensors, and without making a signal wait.
const MAX_PREFILL_TOKENS: usize = 1024;
const MAX_PREFILL_TOKENS_ON_GPU: usize = 8192;
/// The cache is zeroed when it is made, so it is not made larger than helps.
const SMALL_CACHE_BYTES: u64 = 4 << 30;
/// What a GPU needs beside weights and cache, at least: activations of a prefill, graphs, workspaces of libraries.
const GPU_WORKSPACE_BYTES: u64 = 3 << 30;
/// The same without what grows with the rows of a step.
const GPU_WORKSPACE_WITHOUT_ROWS_BYTES: u64 = 2 << 30;
/// Keys of a split of decode attention, which keeps a result for each split of each head.
const SPLIT_KEYS: usize = 512;
/// Intermediate results on the host are float32 at the widest, whatever the precision.
const WIDEST_ELEM_BYTES: u64 = 4;

/// What the run needs, known before the weights are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Most tokens of one sequence, prompt and response.
    pub(crate) longest_sequence_tokens: usize,
    /// Responses to generate in all.
    pub(crate) num_sequences: usize,
    pub(crate) neighbours: Neighbours,
    pub(crate) limits: RoomPlan,
    pub(crate) structures: RowStructures,
}

/// Ranks that share memory with a rank, itself included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbours {
    pub(crate) num_on_device: u32,
    pub(crate) num_on_host: u32,
}

/// What the device of a run allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    is_gpu: bool,
    available_bytes: Option<u64>,
    /// Of the host, where the device has memory of its own.
    swap_space_bytes: u64,
    max_num_seqs: usize,
    max_prefill_tokens: usize,
}

impl Room {
    fn new(options: LoadOptions) -> Self {
        let available_bytes = device::available_bytes(options.device);
        if options.device == Device::Cpu { Self::host(available_bytes) } else { Self::gpu(available_bytes) }
    }

    /// The part of one of several ranks that share the memory.
    fn shared_by(self, neighbours: Neighbours) -> Self {
        let part = |bytes: u64, num_ranks: u32| bytes / u64::from(num_ranks.max(1));
        Self {
            available_bytes: self.available_bytes.map(|bytes| part(bytes, neighbours.num_on_device)),
            swap_space_bytes: part(self.swap_space_bytes, neighbours.num_on_host),
            ..self
        }
    }

    fn host(available_bytes: Option<u64>) -> Self {
        Self {
            is_gpu: false,
            available_bytes,
            swap_space_bytes: 0,
            max_num_seqs: MAX_NUM_SEQS,
            max_prefill_tokens: MAX_PREFILL_TOKENS,
        }
    }

    fn gpu(available_bytes: Option<u64>) -> Self {
        Self {
            is_gpu: true,
            available_bytes,
            swap_space_bytes: host_memory::available_bytes().unwrap_or(0) / SWAP_SPACE_SHARE,
            max_num_seqs: NUM_SEQS_ON_GPU[0],
            max_prefill_tokens: MAX_PREFILL_TOKENS_ON_GPU,
        }
    }

    /// Most sequences at once.
    fn num_seqs(&self, demand: Demand) -> usize {
        demand.limits.max_batch.unwrap_or(self.max_num_seqs).min(demand.num_sequences).max(1)
    }

    /// On a GPU the number of sequences of a step that its memory allows, where the user sets none.
    fn with_rows(self, demand: Demand, sizes_in: impl Fn(Self) -> Sizes) -> Self {
        if !self.is_gpu {
            return self;
        }
        let rooms = NUM_SEQS_ON_GPU.map(|max_num_seqs| Self { max_num_seqs, ..self });
        let half_blocks = blocks_for(demand.longest_sequence_tokens.div_ceil(2), BLOCK_SIZE_TOKENS) + 1;
        let holds_half = |room: &Self| {
            let sizes = sizes_in(*room);
            let blocks_of_half = sizes.tables.num_blocks_of(half_blocks);
            let wanted_blocks = blocks_of_half.saturating_mul(room.num_seqs(demand)) as u64;
            room.cache_bytes(sizes) / sizes.bytes_per_block.max(1) >= wanted_blocks
        };
        let [.., fewest] = rooms;
        rooms.into_iter().find(holds_half).unwrap_or(fewest)
    }

    /// What the results between the layers take.
    fn workspace_bytes(&self, model: &ModelSpec, how: ExpertSums, demand: Demand) -> u64 {
        let most =
            |of_layer: &dyn Fn(&LayerSpec) -> usize| model.layers.iter().map(of_layer).max().unwrap_or(0);
        let of_heads = |layer: &LayerSpec, count: &dyn Fn(&AttentionSpec) -> usize| {
            layer.attention.as_ref().map_or(0, count)
        };
        if self.is_gpu {
            // A result of a split has a maximum and a sum. Logits are there twice, of a decode step and of a prefill, and a
            // third time where those of a step wait for what may be drawn from them.
            let of_split: usize = kinds_of_attention(model)
                .iter()
                .map(|heads| heads.num_attention_heads * (heads.kv_channels + 2))
                .sum();
            let num_splits = demand.longest_sequence_tokens.div_ceil(SPLIT_KEYS);
            let num_logits = match demand.structures {
                RowStructures::Some => 3,
                RowStructures::None => 2,
            };
            let of_row = (num_splits * of_split) as u64 + num_logits * model.padded_vocab_size;
            let of_rows =
                of_row.saturating_mul(WIDEST_ELEM_BYTES).saturating_mul(self.num_seqs(demand) as u64);
            return GPU_WORKSPACE_WITHOUT_ROWS_BYTES.saturating_add(of_rows).max(GPU_WORKSPACE_BYTES);
        }
        // The tensors of a prefill that live at once: residual, normed rows, QKV or both halves of the MLP.
        let widest = most(&|layer| {
            let heads = of_heads(layer, &|of| of.heads.query_size() + of.heads.qkv_size());
            let mlp = layer.mlp().map_or(0, |mlp: &MlpSpec| 3 * mlp.ffn_hidden_size);
            mlp.max(layer.moe().map_or(0, |moe| how.elems(model.hidden_size, moe))).max(heads)
        });
        let per_token = (2 * model.hidden_size + widest) as u64;
        let num_tokens = self.max_prefill_tokens.max(demand.longest_sequence_tokens) as u64;
        // The logits of a step, and a copy for the sampler.
        let logits = 2 * model.padded_vocab_size * self.num_seqs(demand) as u64;
        let of_tokens =
            num_tokens.saturating_mul(per_token).saturating_add(logits).saturating_mul(WIDEST_ELEM_BYTES);
        let received = model.layers.iter().filter_map(LayerSpec::moe);
        let received = received.map(|moe| how.received_bytes(model.hidden_size, moe, num_tokens)).max();
        of_tokens.saturating_add(received.unwrap_or(0))
    }

    /// Most bytes that the KV cache may take: on a GPU what is left, elsewhere others want memory too.
    fn cache_bytes(&self, sizes: Sizes) -> u64 {
        let wanted_bytes = SMALL_CACHE_BYTES.max(sizes.weight_bytes / 2);
        match self.available_bytes.map(|available| available.saturating_sub(sizes.fixed_bytes())) {
            Some(left) if self.is_gpu => left,
            Some(left) => wanted_bytes.min(left / 4 * 3),
            None => wanted_bytes,
        }
    }
}

/// The heads of each kind of attention, whose kernels keep results of their own: by heads, caps and windows.
fn kinds_of_attention(model: &ModelSpec) -> Vec<HeadLayout> {
    let mut kinds = Vec::new();
    for of in model.layers.iter().filter_map(|layer| layer.attention.as_ref()) {
        let kind = (of.heads, of.softcap.is_some(), of.local_tokens);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.into_iter().map(|(heads, ..)| heads).collect()
}

/// The memory plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    pub(crate) weight_bytes: u64,
    pub(crate) workspace_bytes: u64,
    pub(crate) kv_cache_bytes: u64,
    /// Memory of the host that is taken when blocks are swapped out.
    pub(crate) swap_space_bytes: u64,
    pub(crate) available_bytes: Option<u64>,
    pub(crate) limits: EngineLimits,
    pub(crate) longest_sequence_tokens: usize,
    /// Sequences of the greatest length that the cache holds at once.
    pub(crate) num_longest_seqs: usize,
    /// What windows save, where layers have one that is shorter than sequences.
    windows: Option<WindowSaving>,
    /// What FP8 saves, where the run has it.
    saving: Option<Saving>,
}

/// A run in FP8 beside the same one without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Saving {
    plain: Float,
    /// Without, and with.
    weight_bytes: [u64; 2],
    bytes_per_block: [u64; 2],
    /// Sequences of the greatest length that the cache would hold; None where not even one fits.
    num_longest_seqs_without: Option<usize>,
}

impl MemoryPlan {
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        options: LoadOptions,
        (place, reduction): (&ShardPlace, Reduction),
        demand: Demand,
    ) -> Result<Self, Failure> {
        let model = config.spec_of(checkpoint.tensors());
        let plain = options.numerics.compute;
        let without = LoadOptions { numerics: Numerics::uniform(plain), ..options };
        let room = Room::new(options);
        let (plan, sizes) = Self::of_part(&model, options, (place, reduction), room, demand)?;
        if without.numerics == options.numerics {
            return Ok(plan);
        }
        let (_, footprint) = part_of(&model, without, place, sizes.tables)?;
        let plan_without = Self::of_part(&model, without, (place, reduction), room, demand).ok();
        let saving = Saving {
            plain,
            weight_bytes: [footprint.weight_bytes, sizes.weight_bytes],
            bytes_per_block: [footprint.bytes_per_block(), sizes.bytes_per_block],
            num_longest_seqs_without: plan_without.map(|(plan, _)| plan.num_longest_seqs),
        };
        Ok(Self { saving: Some(saving), ..plan })
    }

    fn of_part(
        model: &ModelSpec,
        options: LoadOptions,
        (place, reduction): (&ShardPlace, Reduction),
        room: Room,
        demand: Demand,
    ) -> Result<(Self, Sizes), Failure> {
        let tables = model.kv_tables(demand.longest_sequence_tokens);
        let (part, footprint) = part_of(model, options, place, tables)?;
        let exchanged_bytes = exchanged_bytes(options, place, reduction);
        let how = ExpertSums::of(place, reduction);
        let sizes_in = |room: Room| Sizes {
            weight_bytes: footprint.weight_bytes,
            workspace_bytes: room.workspace_bytes(&part, how, demand) + exchanged_bytes,
            bytes_per_block: footprint.bytes_per_block(),
            tables,
            cuts_prompts: model_core::cuts_prompts(options),
        };
        let room = room.shared_by(demand.neighbours).with_rows(demand, sizes_in);
        let sizes = sizes_in(room);
        let plan = Self::fit(room, sizes, demand)?;
        if tables == KvTables::ONE {
            return Ok((plan, sizes));
        }
        let (_, undivided) = part_of(model, options, place, KvTables::ONE)?;
        let token_blocks = blocks_for(demand.longest_sequence_tokens, BLOCK_SIZE_TOKENS) as u64 + 1;
        let windows = WindowSaving {
            window_tokens: tables.window_tokens,
            bytes: sizes.bytes_per_block.saturating_mul(sizes.longest_blocks(room, demand).each as u64),
            bytes_without: undivided.bytes_per_block().saturating_mul(token_blocks),
        };
        Ok((Self { windows: Some(windows), ..plan }, sizes))
    }

    /// Weights and intermediate results come first, the cache gets of the rest what it can use: with less of it, responses
    /// wait for each other instead of running side by side.
    fn fit(room: Room, sizes: Sizes, demand: Demand) -> Result<Self, Failure> {
        let Room { available_bytes, .. } = room;
        let Sizes { weight_bytes, workspace_bytes, bytes_per_block, .. } = sizes;
        let longest_sequence_tokens = demand.longest_sequence_tokens;
        let max_num_seqs = room.num_seqs(demand);
        if room.is_gpu && max_num_seqs > MAX_NUM_SEQS_ON_GPU {
            return Err(Failure::usage(format!(
                "`trainer.generation.max_batch` asks for {max_num_seqs} sequences at once, and a GPU takes at most \
                 {MAX_NUM_SEQS_ON_GPU}"
            )));
        }
        let LongestBlocks { each: blocks_per_sequence, least, wanted } = sizes.longest_blocks(room, demand);
        let (least_blocks, wanted_blocks) = (least as u64, wanted as u64);
        let affordable_blocks = match demand.limits.kv_cache_memory_bytes {
            Some(bytes) => given_blocks(bytes, least_blocks, sizes, demand)?,
            None => room.cache_bytes(sizes) / bytes_per_block.max(1),
        };
        let num_blocks = wanted_blocks.min(affordable_blocks).max(least_blocks);
        let kv_cache_bytes = num_blocks.saturating_mul(bytes_per_block);
        if let Some(available) = available_bytes
            && sizes.fixed_bytes().saturating_add(kv_cache_bytes) > available
        {
            return Err(anyhow::anyhow!(
                "the model needs {} for weights, {} for intermediate results and at least {} for the KV cache of one \
                 sequence of {} tokens; {} of memory are available",
                human_bytes(weight_bytes),
                human_bytes(workspace_bytes),
                human_bytes(least_blocks.saturating_mul(bytes_per_block)),
                thousands(longest_sequence_tokens as u64),
                human_bytes(available),
            ))
            .exit_with(ExitStatus::Device);
        }
        // libtorch hands out page-locked memory in powers of two.
        let swapped_bytes = if room.is_gpu { bytes_per_block.next_power_of_two() } else { bytes_per_block };
        let num_missing_blocks = wanted_blocks.saturating_sub(num_blocks);
        let swap_space_bytes = demand.limits.swap_space_bytes.unwrap_or(room.swap_space_bytes);
        let num_host_blocks = match swap_space_bytes / swapped_bytes.max(1) {
            _ if num_missing_blocks == 0 => 0,
            num_affordable => num_affordable.min(num_missing_blocks + 1),
        };
        let limits = EngineLimits {
            max_num_seqs,
            max_prefill_tokens: room.max_prefill_tokens,
            num_blocks: usize::try_from(num_blocks).unwrap_or(usize::MAX),
            num_host_blocks: usize::try_from(num_host_blocks).unwrap_or(usize::MAX),
            block_size_tokens: BLOCK_SIZE_TOKENS,
            tables: sizes.tables,
        };
        Ok(Self {
            weight_bytes,
            workspace_bytes,
            kv_cache_bytes,
            swap_space_bytes: num_host_blocks.saturating_mul(swapped_bytes),
            available_bytes,
            limits,
            longest_sequence_tokens,
            num_longest_seqs: (limits.num_blocks / blocks_per_sequence).min(max_num_seqs),
            windows: None,
            saving: None,
        })
    }

    /// The table shown before the run.
    pub(crate) fn table(&self) -> String {
        let available = self.available_bytes.map_or_else(|| "unknown".to_owned(), human_bytes);
        let mut rows = vec![
            ("weights", human_bytes(self.weight_bytes)),
            ("intermediate results", human_bytes(self.workspace_bytes)),
            (
                "KV cache",
                format!(
                    "{} ({} blocks of {} tokens)",
                    human_bytes(self.kv_cache_bytes),
                    thousands(self.limits.num_blocks as u64),
                    self.limits.block_size_tokens
                ),
            ),
            ("sequences at once", self.sequences_at_once()),
            ("memory available", available),
        ];
        if self.limits.num_host_blocks > 0 {
            let num_blocks = thousands(self.limits.num_host_blocks as u64);
            let text =
                format!("up to {} of the host ({num_blocks} blocks)", human_bytes(self.swap_space_bytes));
            rows.insert(3, ("swap space", text));
        }
        if let Some(windows) = &self.windows {
            rows.push(("sliding windows", windows.line(self.longest_sequence_tokens)));
        }
        if let Some(saving) = &self.saving {
            rows.push(("FP8 saves", saving.line(self.num_longest_seqs)));
        }
        two_columns(&rows)
    }

    fn sequences_at_once(&self) -> String {
        let most = self.limits.max_num_seqs;
        if self.num_longest_seqs < most {
            return format!("up to {most}, {} of the greatest length", self.num_longest_seqs);
        }
        format!("up to {most}")
    }
}

impl Saving {
    /// What is saved, of bytes and of rows.
    fn line(&self, num_longest_seqs: usize) -> String {
        let Self { plain, weight_bytes, bytes_per_block, num_longest_seqs_without } = self;
        let saved = |[without, with]: [u64; 2]| without.saturating_sub(with);
        let share = |sizes: [u64; 2]| saved(sizes) as f64 * 100.0 / sizes[0].max(1) as f64;
        if saved(*weight_bytes) == 0 && saved(*bytes_per_block) == 0 {
            return format!("nothing here: these kernels hold the numbers of FP8 as {plain}");
        }
        let mut parts = Vec::new();
        if saved(*weight_bytes) > 0 {
            parts.push(format!(
                "{} of weights ({:.1} %)",
                human_bytes(saved(*weight_bytes)),
                share(*weight_bytes)
            ));
        }
        if saved(*bytes_per_block) > 0 {
            parts.push(format!(
                "{} of each block of the KV cache ({:.1} %)",
                human_bytes(saved(*bytes_per_block)),
                share(*bytes_per_block)
            ));
        }
        let rows = match num_longest_seqs_without {
            None => "the model does not fit without".to_owned(),
            Some(without) => {
                format!("{num_longest_seqs} sequences of the greatest length at once, {without} without")
            }
        };
        format!("{}; {rows}", parts.join(", "))
    }
}

/// A rank's part of a model, with the logits of all of it, and what it takes.
fn part_of(
    model: &ModelSpec,
    options: LoadOptions,
    place: &ShardPlace,
    tables: KvTables,
) -> Result<(ModelSpec, Footprint), Failure> {
    let padded_vocab_size = model.padded_vocab_size;
    let part = ModelSpec { padded_vocab_size, ..place.part_of(model).map_err(ModelError::from)? };
    Ok((part, model_core::footprint_in(model, options, place, tables)?))
}

/// What a GPU sets aside for what it exchanges with others.
fn exchanged_bytes(options: LoadOptions, place: &ShardPlace, reduction: Reduction) -> u64 {
    let parts =
        ExchangeParts { tp_size: place.tp_size, reduction, has_previous_stage: !place.is_first_stage() };
    if options.device == Device::Cpu { 0 } else { model_core::exchange_bytes(parts) }
}

/// Whether a rank's part of a model, with the cache of one sequence, fits `total_bytes` of memory: what is free changes
/// while other ranks load, and all must come to the same answer.
pub(crate) fn fits(
    model: &ModelSpec,
    options: LoadOptions,
    (place, reduction): (&ShardPlace, Reduction),
    demand: Demand,
    total_bytes: u64,
) -> bool {
    let available_bytes = Some(total_bytes / 10 * 9);
    let room =
        if options.device == Device::Cpu { Room::host(available_bytes) } else { Room::gpu(available_bytes) };
    let room = room.shared_by(demand.neighbours);
    let tables = model.kv_tables(demand.longest_sequence_tokens);
    let how = ExpertSums::of(place, reduction);
    part_of(model, options, place, tables).is_ok_and(|(part, footprint)| {
        let sizes = Sizes {
            weight_bytes: footprint.weight_bytes,
            workspace_bytes: room.workspace_bytes(&part, how, demand)
                + exchanged_bytes(options, place, reduction),
            bytes_per_block: footprint.bytes_per_block(),
            tables,
            cuts_prompts: model_core::cuts_prompts(options),
        };
        MemoryPlan::fit(room, sizes, demand).is_ok()
    })
}

/// Blocks of a cache whose size the user sets.
fn given_blocks(bytes: u64, least_blocks: u64, sizes: Sizes, demand: Demand) -> Result<u64, Failure> {
    let num_blocks = bytes / sizes.bytes_per_block.max(1);
    if num_blocks >= least_blocks {
        return Ok(num_blocks);
    }
    Err(Failure::usage(format!(
        "`trainer.generation.kv_cache_memory_bytes` must be at least {}, which one sequence of {} tokens takes, found {bytes}",
        least_blocks.saturating_mul(sizes.bytes_per_block),
        thousands(demand.longest_sequence_tokens as u64),
    )))
}

#[cfg(test)]
mod tests;
