//! Launchers of decode attention: one plan a step, then one kernel a layer.

use std::sync::Mutex;

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Device, Launch, Stream};
use tch::{Kind, Tensor};
use torch_ext::BadTensor;

use super::rope::RotaryArgs;
use super::{BLOCK_SIZE_TOKENS, LayerKv, ModelKernels, RotaryArrays};
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, int, shape_of};

/// What the attention of a step has to do, found by [`ModelKernels::plan_decode`], and its working memory. One is enough for
/// all row buckets, as long as steps follow each other on one stream.
#[derive(Debug)]
pub struct DecodePlan {
    max_rows: i64,
    max_splits: i64,
    num_groups: i64,
    /// Keys that a row sees, where not all.
    local_tokens: i32,
    /// `int32[max_rows]`: where the token of each row goes in the cache.
    slots: Tensor,
    /// `int32[max_rows]`: keys of each row.
    contexts: Tensor,
    /// `int32[max_rows * max_splits, 8]`.
    items: Tensor,
    /// `int32[1]`.
    num_items: Tensor,
    /// `int32[max_rows * G * query tiles]`: finished splits, zero between launches.
    counters: Tensor,
    /// `int32[2]`: works that blocks have asked for and blocks that have ended, zero between launches.
    tickets: Tensor,
    /// `float32[max_rows * H * max_splits, d]`: unnormalised results of splits.
    partial_outs: Tensor,
    /// `float32[max_rows * H * max_splits, 2]`: maximum and sum of each.
    partial_stats: Tensor,
    /// Rows and table width of the step planned last: its attention must have the same.
    planned: Mutex<[i64; 2]>,
}

/// What the steps of a [`DecodePlan`] may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanSizes {
    /// Most rows.
    pub max_rows: i64,
    /// Most cache blocks of a row.
    pub max_blocks: i64,
    /// Key and value heads.
    pub num_groups: i64,
    /// How many keys a row sees, its own among them, where that is not all before it: of kernels for windows.
    pub local_tokens: Option<i64>,
}

impl DecodePlan {
    /// Memory for steps of up to these sizes.
    ///
    /// # Errors
    /// When the GPU has no memory for it.
    pub fn new(kernels: &ModelKernels, device: &Device, sizes: PlanSizes) -> Result<Self, KernelError> {
        let PlanSizes { max_rows, max_blocks, num_groups, local_tokens } = sizes;
        let config = kernels.config();
        let num_heads = num_groups * i64::from(config.queries_per_group);
        let query_tiles = i64::from(kernels.query_tiles());
        let split_keys = i64::from(kernels.split_keys());
        if max_rows <= 0 || max_blocks <= 0 || num_groups <= 0 {
            return Err(bad(
                "rows, blocks and groups of a plan",
                "at least 1",
                max_rows.min(max_blocks).min(num_groups),
            ));
        }
        if local_tokens.is_some() != config.scores.is_local || local_tokens.is_some_and(|tokens| tokens < 1) {
            let expected = if config.scores.is_local { "at least 1" } else { "none for these kernels" };
            return Err(bad("keys of a window", expected, local_tokens.unwrap_or(0)));
        }
        let max_splits = (max_blocks * BLOCK_SIZE_TOKENS + split_keys - 1) / split_keys;
        let zeros = |shape: &[i64], kind| Tensor::f_zeros(shape, (kind, device.tch()));
        let num_parts = max_rows * num_heads * max_splits;
        Ok(Self {
            max_rows,
            max_splits,
            num_groups,
            local_tokens: int(local_tokens.unwrap_or(0), "keys of a window")?,
            slots: zeros(&[max_rows], Kind::Int)?,
            contexts: zeros(&[max_rows], Kind::Int)?,
            items: zeros(&[max_rows * max_splits, 8], Kind::Int)?,
            num_items: zeros(&[1], Kind::Int)?,
            counters: zeros(&[max_rows * num_groups * query_tiles], Kind::Int)?,
            tickets: zeros(&[2], Kind::Int)?,
            partial_outs: zeros(&[num_parts, i64::from(config.head_dim)], Kind::Float)?,
            partial_stats: zeros(&[num_parts, 2], Kind::Float)?,
            planned: Mutex::new([0; 2]),
        })
    }

    /// A plan of the same sizes for the same kernels and other block tables. What a kernel keeps while it runs is common to
    /// both, so kernels that use them must follow each other on one stream.
    ///
    /// # Errors
    /// When the GPU has no memory for it.
    pub fn beside(&self) -> Result<Self, KernelError> {
        let same = Tensor::shallow_clone;
        Ok(Self {
            slots: self.slots.f_zeros_like()?,
            contexts: self.contexts.f_zeros_like()?,
            items: self.items.f_zeros_like()?,
            num_items: self.num_items.f_zeros_like()?,
            counters: same(&self.counters),
            tickets: same(&self.tickets),
            partial_outs: same(&self.partial_outs),
            partial_stats: same(&self.partial_stats),
            planned: Mutex::new([0; 2]),
            ..*self
        })
    }

    /// Where the tokens of the step go in the cache, `int32[num_rows]`, for [`ModelKernels::rope_and_cache`].
    ///
    /// # Errors
    /// When the plan has fewer rows.
    pub fn slots(&self, num_rows: i64) -> Result<Tensor, KernelError> {
        Ok(self.slots.f_narrow(0, 0, num_rows)?)
    }

    fn set_planned(&self, shape: [i64; 2]) {
        *self.planned.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = shape;
    }

    /// Whether a step of this shape was planned: the kernel would read past smaller tensors.
    fn check_planned(&self, shape: [i64; 2]) -> Result<(), KernelError> {
        let planned = *self.planned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if shape == planned {
            return Ok(());
        }
        Err(KernelError::BadTensor(BadTensor {
            what: "block_tables",
            expected: format!("of the shape that the step was planned with, {planned:?}"),
            actual: format!("{shape:?}"),
        }))
    }
}

/// Finds the slots of a step's tokens and cuts its attention into items.
#[derive(Clone, Copy, Debug)]
pub struct PlanDecode<'a> {
    /// `int32[n]`: where each row's token stands; below 0 the row has none, costs nothing and writes nothing.
    pub positions: &'a Tensor,
    /// `int32[n, max_blocks]`: each row's cache blocks. A row whose position is past them is left out of the step.
    pub block_tables: &'a Tensor,
    /// `int32[n, 2]`: the first row of each row's group and how many leading blocks the group shares. A group's rows are
    /// neighbours and have the same pair; a row alone has (itself, 0). None: no row shares. Results do not depend on it.
    pub prefix_groups: Option<&'a Tensor>,
    /// Blocks of the cache.
    pub num_blocks: i64,
    /// Where the plan goes.
    pub plan: &'a DecodePlan,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PlanArgs {
    positions: Address,
    block_tables: Address,
    prefix_groups: Address,
    slots: Address,
    contexts: Address,
    items: Address,
    num_items: Address,
    num_rows: i32,
    table_width: i32,
    num_blocks: i32,
    works_per_item: i32,
    num_workers: i32,
    local_tokens: i32,
}

/// Attention of one token a row to its whole context, whose keys and values all are in the cache already.
#[derive(Clone, Copy, Debug)]
pub struct DecodeAttention<'a> {
    /// `T[n, H, d]`, rotated.
    pub q: &'a Tensor,
    /// The layer's cache.
    pub cache: LayerKv<'a>,
    /// As in the plan.
    pub block_tables: &'a Tensor,
    /// The step's plan.
    pub plan: &'a DecodePlan,
    /// Of the scores; 1 / sqrt(d) in most models.
    pub scale: f32,
    /// What they are capped at, of kernels that do.
    pub softcap: Option<f32>,
    /// `T[n, H, d]`. Rows without a token are left as they are.
    pub out: &'a Tensor,
}

/// [`RopeAndCache`](super::RopeAndCache) and [`DecodeAttention`] in one kernel, bitwise identical. In small batches it starts before
/// the kernel before it has ended and then waits for `qkv` alone, so between what writes the plan or the cache and this
/// there must be a kernel that does not start early, as the embedding of every step is.
#[derive(Clone, Copy, Debug)]
pub struct DecodeAttentionQkv<'a> {
    /// `T[n, G * (q + 2) * d]`, as Megatron fuses them.
    pub qkv: &'a Tensor,
    /// None for models without.
    pub rotary: Option<RotaryArrays<'a>>,
    /// The layer's cache; the rows' new keys and values are written to it.
    pub cache: LayerKv<'a>,
    /// As in the plan.
    pub block_tables: &'a Tensor,
    /// The step's plan.
    pub plan: &'a DecodePlan,
    /// Of the scores; 1 / sqrt(d) in most models.
    pub scale: f32,
    /// What they are capped at, of kernels that do.
    pub softcap: Option<f32>,
    /// `T[n, H, d]`. Rows without a token are left as they are.
    pub out: &'a Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttentionArgs {
    q: Address,
    keys: Address,
    values: Address,
    out: Address,
    block_tables: Address,
    slots: Address,
    contexts: Address,
    items: Address,
    num_items: Address,
    counters: Address,
    tickets: Address,
    partial_outs: Address,
    partial_stats: Address,
    rotary: RotaryArgs,
    num_groups: i32,
    table_width: i32,
    num_blocks: i32,
    max_splits: i32,
    max_items: i32,
    scale_log2: f32,
    local_tokens: i32,
    cap_log2: f32,
}

impl ModelKernels {
    /// Enqueues the plan of a step.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn plan_decode(&self, stream: &Stream, step: &PlanDecode<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let plan = step.plan;
        let shape @ [num_rows, table_width] = shape_of(step.block_tables, "block_tables")?;
        let split_keys = i64::from(self.split_keys());
        if num_rows > plan.max_rows || table_width * BLOCK_SIZE_TOKENS > plan.max_splits * split_keys {
            return Err(KernelError::BadTensor(BadTensor {
                what: "block_tables",
                expected: format!(
                    "at most {} rows of {} blocks, as the plan has",
                    plan.max_rows,
                    plan.max_splits * split_keys / BLOCK_SIZE_TOKENS
                ),
                actual: format!("{shape:?}"),
            }));
        }
        let args = PlanArgs {
            positions: tensors.address(step.positions, "positions", Kind::Int, &[num_rows])?,
            block_tables: tensors.address(step.block_tables, "block_tables", Kind::Int, &shape)?,
            prefix_groups: tensors.optional(
                step.prefix_groups,
                "prefix_groups",
                Kind::Int,
                &[num_rows, 2],
            )?,
            slots: tensors.address(&plan.slots, "slots", Kind::Int, &[plan.max_rows])?,
            contexts: tensors.address(&plan.contexts, "contexts", Kind::Int, &[plan.max_rows])?,
            items: tensors.address(&plan.items, "items", Kind::Int, &[plan.max_rows * plan.max_splits, 8])?,
            num_items: tensors.address(&plan.num_items, "num_items", Kind::Int, &[1])?,
            num_rows: int(num_rows, "rows")?,
            table_width: int(table_width, "blocks of a row")?,
            num_blocks: int(step.num_blocks, "blocks")?,
            works_per_item: int(plan.num_groups * i64::from(self.query_tiles()), "works of an item")?,
            num_workers: int(i64::from(self.attention_blocks()), "thread blocks")?,
            local_tokens: plan.local_tokens,
        };
        plan.set_planned(shape);
        Ok(self.plan_decode.launch(&Launch::linear(1, 1024), stream, &[Arg::value(&args)])?)
    }

    /// Enqueues the attention of one layer.
    ///
    /// # Errors
    /// When a tensor does not fit, or the step was not planned for these rows.
    pub fn decode_attention(&self, stream: &Stream, step: &DecodeAttention<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let mut args = self.attention_args(&tensors, step)?;
        args.q = tensors.address(step.q, "q", self.config.kind, &step.out.size())?;
        Ok(self.decode_attention.launch(&self.attention_launch(), stream, &[Arg::value(&args)])?)
    }

    /// Enqueues rotation, cache write and attention of one layer.
    ///
    /// # Errors
    /// When a tensor does not fit, or the step was not planned for these rows.
    pub fn decode_attention_qkv(
        &self,
        stream: &Stream,
        step: &DecodeAttentionQkv<'_>,
    ) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let &DecodeAttentionQkv { qkv, cache, block_tables, plan, scale, softcap, out, .. } = step;
        let other = DecodeAttention { q: qkv, cache, block_tables, plan, scale, softcap, out };
        let mut args = self.attention_args(&tensors, &other)?;
        let [num_rows, ..] = shape_of::<3>(out, "out")?;
        let shape = [num_rows, self.qkv_elems(plan.num_groups)];
        args.q = tensors.address(qkv, "qkv", self.config.kind, &shape)?;
        args.rotary = self.rotary(&tensors, step.rotary.as_ref())?;
        let launch = Launch { overlaps: self.overlaps(num_rows), ..self.attention_launch() };
        Ok(self.decode_attention_qkv.launch(&launch, stream, &[Arg::value(&args)])?)
    }

    /// As many blocks as run at once; they loop over the items.
    fn attention_launch(&self) -> Launch {
        Launch {
            shared_bytes: self.tiling.shared_bytes(&self.config),
            ..Launch::linear(self.attention_blocks(), 32 * self.tiling.num_warps)
        }
    }

    fn attention_blocks(&self) -> u32 {
        self.num_sms * self.tiling.blocks_per_sm
    }

    /// Thread blocks that share the queries of a group.
    fn query_tiles(&self) -> u32 {
        self.config.queries_per_group.div_ceil(self.tiling.query_tile())
    }

    /// All but the queries and the rotary embedding.
    fn attention_args(
        &self,
        tensors: &Tensors<'_>,
        step: &DecodeAttention<'_>,
    ) -> Result<AttentionArgs, KernelError> {
        let plan = step.plan;
        let shape @ [num_rows, table_width] = shape_of(step.block_tables, "block_tables")?;
        plan.check_planned(shape)?;
        let cache = self.layer_cache(tensors, &step.cache)?;
        if cache.num_groups != plan.num_groups {
            return Err(bad(
                "groups of `keys`",
                &format!("{}, as in the plan", plan.num_groups),
                cache.num_groups,
            ));
        }
        let is_capped = self.config.scores.is_capped;
        if step.softcap.is_some() != is_capped || step.softcap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
            let expected = if is_capped { "a positive number" } else { "none for these kernels" };
            let what = "the cap of scores";
            return Err(KernelError::BadTensor(BadTensor {
                what,
                expected: expected.to_owned(),
                actual: format!("{:?}", step.softcap),
            }));
        }
        let address = |tensor: &Tensor, what, kind| tensors.address(tensor, what, kind, &tensor.size());
        Ok(AttentionArgs {
            q: 0,
            keys: cache.keys,
            values: cache.values,
            out: tensors.address(
                step.out,
                "out",
                self.config.kind,
                &self.q_shape(num_rows, cache.num_groups),
            )?,
            block_tables: tensors.address(step.block_tables, "block_tables", Kind::Int, &shape)?,
            slots: address(&plan.slots, "slots", Kind::Int)?,
            contexts: address(&plan.contexts, "contexts", Kind::Int)?,
            items: address(&plan.items, "items", Kind::Int)?,
            num_items: address(&plan.num_items, "num_items", Kind::Int)?,
            counters: address(&plan.counters, "counters", Kind::Int)?,
            tickets: address(&plan.tickets, "tickets", Kind::Int)?,
            partial_outs: address(&plan.partial_outs, "partial_outs", Kind::Float)?,
            partial_stats: address(&plan.partial_stats, "partial_stats", Kind::Float)?,
            rotary: RotaryArgs::zeroed(),
            num_groups: int(cache.num_groups, "groups")?,
            table_width: int(table_width, "blocks of a row")?,
            num_blocks: int(cache.num_blocks, "blocks")?,
            max_splits: int(plan.max_splits, "splits")?,
            max_items: int(plan.max_rows * plan.max_splits, "items")?,
            scale_log2: step.scale * std::f32::consts::LOG2_E,
            local_tokens: plan.local_tokens,
            cap_log2: step.softcap.unwrap_or(0.0) * std::f32::consts::LOG2_E,
        })
    }
}
