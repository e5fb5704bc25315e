//! Rows that are consecutive tokens of one sequence, as drafted tokens are: computed in one step, they must have the bits of
//! steps of one token each.

use cuda_kernels::{
    DecodeAttention, DecodeAttentionQkv, DecodePlan, LayerKv, ModelKernels, PlanDecode, PlanSizes,
    RopeAndCache, RotaryArrays,
};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::pointwise::rotary_tables;
use crate::support::{Gpu, Heads, same};

const MAX_BLOCKS: i64 = 40;
/// The sequences: tokens cached before the step, and tokens of the step. Some cross a tile of 16 keys, a block of 32 or a
/// split of 512.
/// The longest step is that of `aligner-gen score`.
const SEQUENCES: [(i64, i64); 10] =
    [(0, 1), (0, 8), (15, 4), (31, 8), (100, 1), (480, 64), (511, 8), (700, 5), (1020, 8), (1100, 16)];

pub(crate) fn all_heads(gpu: &Gpu) -> Outcome {
    for (kind, d, q, g, has_fp8_kv) in [
        (Kind::BFloat16, 128, 1, 3, false),
        (Kind::BFloat16, 128, 4, 2, false),
        (Kind::BFloat16, 64, 71, 1, false),
        (Kind::BFloat16, 256, 8, 1, false),
        (Kind::Half, 96, 3, 2, false),
        (Kind::Float, 64, 4, 1, false),
        (Kind::BFloat16, 128, 1, 3, true),
        (Kind::BFloat16, 128, 4, 2, true),
        (Kind::Half, 96, 3, 2, true),
    ] {
        for (local_tokens, softcap) in [(None, None), (Some(70), None), (Some(600), Some(1.5))] {
            let heads = Heads { has_fp8_kv, local_tokens, softcap, ..Heads::new(kind, d, q, g) };
            let what = || {
                format!(
                    "{kind:?}, {d} elements, {q} queries a group, FP8 cache {has_fp8_kv}, window {local_tokens:?}"
                )
            };
            Case::new(gpu, heads)?.check(gpu).map_err(|error| format!("{}: {error}", what()))?;
        }
    }
    let num_rows: i64 = SEQUENCES.iter().map(|(_, num_tokens)| num_tokens).sum();
    Ok(format!("{num_rows} rows of {} sequences are bitwise identical to single steps", SEQUENCES.len()))
}

/// One row of the step.
#[derive(Clone, Copy)]
struct Row {
    sequence: i64,
    position: i64,
    /// The sequence's first row, and the blocks that were full before the step.
    prefix_group: [i64; 2],
}

struct Case {
    kernels: ModelKernels,
    heads: Heads,
    rows: Vec<Row>,
    /// `T[n, g * (q + 2) * d]`, a row for each of `rows`.
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    /// `[sequences, MAX_BLOCKS]` on the host.
    block_tables: Tensor,
    tables: [Tensor; 2],
}

impl Case {
    fn new(gpu: &Gpu, heads: Heads) -> Result<Self, Box<dyn std::error::Error>> {
        let Heads { kind, head_dim: d, queries: q, groups: g, .. } = heads;
        let mut rows = Vec::new();
        for (sequence, &(context_len, num_tokens)) in (0..).zip(&SEQUENCES) {
            let prefix_group = [rows.len() as i64, context_len / 32];
            let positions = context_len..context_len + num_tokens;
            rows.extend(positions.map(|position| Row { sequence, position, prefix_group }));
        }
        let num_sequences = SEQUENCES.len() as i64;
        let num_blocks = num_sequences * MAX_BLOCKS + 3;
        let block_tables = Tensor::f_randperm(num_blocks, (Kind::Int, tch::Device::Cpu))?
            .f_narrow(0, 0, num_sequences * MAX_BLOCKS)?
            .f_reshape([num_sequences, MAX_BLOCKS])?;
        let mut case = Self {
            kernels: gpu.kernels_for(&heads)?,
            heads,
            qkv: gpu.random(&[rows.len() as i64, g * (q + 2) * d], kind)?.f_mul_scalar(1.5)?,
            // What no sequence has written is NaN, which must not get anywhere.
            keys: gpu.unset(&[num_blocks, g, 32, d], kind)?,
            values: gpu.unset(&[num_blocks, g, 32, d], kind)?,
            tables: rotary_tables(gpu, MAX_BLOCKS * 32, d)?,
            block_tables,
            rows,
        };
        for (sequence, &(context_len, _)) in (0..).zip(&SEQUENCES) {
            for at in (0..context_len).step_by(32) {
                let len = (context_len - at).min(32);
                let block = case.block_tables.f_int64_value(&[sequence, at / 32])?;
                for cache in [&case.keys, &case.values] {
                    cache.f_get(block)?.f_narrow(1, 0, len)?.f_copy_(&gpu.random(&[g, len, d], kind)?)?;
                }
            }
        }
        (case.keys, case.values) = (heads.cached(&case.keys)?, heads.cached(&case.values)?);
        Ok(case)
    }

    fn check(&self, gpu: &Gpu) -> Result<(), Box<dyn std::error::Error>> {
        let singles = self.one_by_one(gpu)?;
        for shares in [false, true] {
            let together = self.together(gpu, shares)?;
            for (row, Row { sequence, position, .. }) in (0..).zip(&self.rows) {
                ensure(same(&singles.out.f_get(row)?, &together.out.f_get(row)?)?, || {
                    format!("sequence {sequence} differs at position {position}, shared: {shares}")
                })?;
            }
            for (what, one, other) in
                [("keys", &singles.keys, &together.keys), ("values", &singles.values, &together.values)]
            {
                ensure(
                    same(&one.f_nan_to_num(0.0, 0.0, 0.0)?, &other.f_nan_to_num(0.0, 0.0, 0.0)?)?,
                    || format!("the cached {what} differ, shared: {shares}"),
                )?;
            }
        }
        Ok(())
    }

    /// A step for each row, in order, of the fused kernel.
    fn one_by_one(&self, gpu: &Gpu) -> Result<Outputs, Box<dyn std::error::Error>> {
        let outputs = self.outputs(gpu)?;
        for (idx, row) in (0..).zip(&self.rows) {
            let step = self.plan(gpu, std::slice::from_ref(row), false)?;
            // The fused kernel may start early, and must not before the plan is there.
            gpu.stream.synchronize()?;
            let launch = DecodeAttentionQkv {
                qkv: &self.qkv.f_narrow(0, idx, 1)?,
                rotary: Some(self.rotary()),
                cache: outputs.cache(),
                block_tables: &step.block_tables,
                plan: &step.plan,
                scale: self.scale(),
                softcap: self.heads.softcap,
                out: &outputs.out.f_narrow(0, idx, 1)?,
            };
            self.kernels.decode_attention_qkv(&gpu.stream, &launch)?;
        }
        Ok(outputs)
    }

    /// All rows in one step: their keys and values first, then attention.
    fn together(&self, gpu: &Gpu, shares: bool) -> Result<Outputs, Box<dyn std::error::Error>> {
        let Heads { kind, head_dim: d, queries: q, groups: g, .. } = self.heads;
        let outputs = self.outputs(gpu)?;
        let num_rows = self.rows.len() as i64;
        let step = self.plan(gpu, &self.rows, shares)?;
        let queries = gpu.zeros(&[num_rows, g * q, d], kind)?;
        let launch = RopeAndCache {
            qkv: &self.qkv,
            positions: &step.positions,
            slots: &step.plan.slots(num_rows)?,
            rotary: Some(self.rotary()),
            cache: outputs.cache(),
            q_out: &queries,
            kv_out: None,
        };
        self.kernels.rope_and_cache(&gpu.stream, &launch)?;
        let launch = DecodeAttention {
            q: &queries,
            cache: outputs.cache(),
            block_tables: &step.block_tables,
            plan: &step.plan,
            scale: self.scale(),
            softcap: self.heads.softcap,
            out: &outputs.out,
        };
        self.kernels.decode_attention(&gpu.stream, &launch)?;
        Ok(outputs)
    }

    /// Plans a step of these rows.
    fn plan(&self, gpu: &Gpu, rows: &[Row], shares: bool) -> Result<Planned, Box<dyn std::error::Error>> {
        let num_rows = rows.len() as i64;
        let ints = |values: Vec<i64>, shape: &[i64]| {
            gpu.ints(&values.iter().map(|&value| value as i32).collect::<Vec<_>>(), shape)
        };
        let positions = ints(rows.iter().map(|row| row.position).collect(), &[num_rows])?;
        let groups = ints(rows.iter().flat_map(|row| row.prefix_group).collect(), &[num_rows, 2])?;
        let sequences: Vec<i64> = rows.iter().map(|row| row.sequence).collect();
        let block_tables = self.block_tables.f_index_select(0, &Tensor::f_from_slice(&sequences)?)?;
        let block_tables = gpu.put(&block_tables)?;
        let Heads { groups: num_groups, local_tokens, .. } = self.heads;
        let sizes = PlanSizes { max_rows: num_rows, max_blocks: MAX_BLOCKS, num_groups, local_tokens };
        let plan = DecodePlan::new(&self.kernels, &gpu.device, sizes)?;
        let step = PlanDecode {
            positions: &positions,
            block_tables: &block_tables,
            prefix_groups: shares.then_some(&groups),
            num_blocks: self.keys.size()[0],
            plan: &plan,
        };
        self.kernels.plan_decode(&gpu.stream, &step)?;
        Ok(Planned { positions, block_tables, plan })
    }

    /// Copies of the cache, and room for the results.
    fn outputs(&self, gpu: &Gpu) -> Result<Outputs, Box<dyn std::error::Error>> {
        let Heads { kind, head_dim: d, queries: q, groups: g, .. } = self.heads;
        Ok(Outputs {
            out: gpu.unset(&[self.rows.len() as i64, g * q, d], kind)?,
            keys: self.keys.f_detach_copy()?,
            values: self.values.f_detach_copy()?,
        })
    }

    fn rotary(&self) -> RotaryArrays<'_> {
        RotaryArrays { cos: &self.tables[0], sin: &self.tables[1] }
    }

    fn scale(&self) -> f32 {
        (self.heads.head_dim as f32).powf(-0.5)
    }
}

struct Planned {
    positions: Tensor,
    block_tables: Tensor,
    plan: DecodePlan,
}

struct Outputs {
    out: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Outputs {
    fn cache(&self) -> LayerKv<'_> {
        LayerKv { keys: &self.keys, values: &self.values }
    }
}
