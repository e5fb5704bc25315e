//! Decode attention against a softmax in float64, and against itself: shared, alone and in two kernels.

use cuda_kernels::{
    DecodeAttention, DecodeAttentionQkv, DecodePlan, LayerKv, ModelKernels, PlanDecode, PlanSizes,
    RopeAndCache, RotaryArrays,
};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::pointwise::{rotary_tables, rotated};
use crate::support::{Checked, Gpu, Heads, double, relative_error, same};

const MAX_BLOCKS: i64 = 70;
/// Positions around the edges of blocks and splits; -1 is no row, 2240 is past the table.
const POSITIONS: [i32; 17] =
    [0, 1, 31, 32, 511, 512, 513, -1, 1500, 1090, -1, 1111, 2239, 2240, 1300, 1056, 1570];
/// Rows that share a prefix: in the first group one of them has no token.
const SHARING: [std::ops::Range<i64>; 2] = [8..12, 14..17];
const SHARED_BLOCKS: i64 = 33;
/// Copies of the rows in one step: with many, rows and groups of them are done whole, and some with fewer.
const FEW_COPIES: i64 = 16;
const MANY_ROWS_AND_GROUPS: i64 = 5000;

/// Type, elements of a head, queries of a group, groups.
const HEADS: [(Kind, i64, i64, i64); 10] = [
    (Kind::BFloat16, 128, 1, 3),
    (Kind::BFloat16, 128, 4, 2),
    (Kind::BFloat16, 64, 71, 1),
    (Kind::BFloat16, 80, 1, 2),
    (Kind::BFloat16, 112, 2, 1),
    (Kind::BFloat16, 256, 8, 1),
    (Kind::Half, 96, 3, 2),
    (Kind::Half, 16, 5, 1),
    (Kind::Float, 128, 1, 2),
    (Kind::Float, 64, 4, 1),
];

pub(crate) fn all_heads(gpu: &Gpu) -> Outcome {
    check_all(gpu, |heads| heads)
}

pub(crate) fn fp8_cache(gpu: &Gpu) -> Outcome {
    check_all(gpu, Heads::with_fp8_kv)
}

/// Type, head size, queries of a group, groups, window, cap.
type WindowCase = (Kind, i64, i64, i64, Option<i64>, Option<f32>);

/// Windows inside a split and over several, and capped scores, over both kinds of cache.
pub(crate) fn windows_and_caps(gpu: &Gpu) -> Outcome {
    const CASES: [WindowCase; 9] = [
        (Kind::BFloat16, 128, 1, 3, Some(100), None),
        (Kind::BFloat16, 256, 2, 2, Some(1024), Some(1.5)),
        (Kind::BFloat16, 256, 2, 2, None, Some(1.5)),
        (Kind::BFloat16, 64, 8, 1, Some(1), None),
        (Kind::BFloat16, 128, 4, 2, Some(513), None),
        (Kind::BFloat16, 128, 4, 2, Some(4000), None),
        (Kind::Half, 96, 3, 2, Some(37), Some(0.7)),
        (Kind::Float, 128, 1, 2, Some(37), Some(1.5)),
        (Kind::Float, 64, 4, 1, Some(700), None),
    ];
    let mut facts = Vec::new();
    for (kind, d, q, g, local_tokens, softcap) in CASES {
        for has_fp8_kv in [false, true] {
            let heads = Heads { softcap, local_tokens, has_fp8_kv, ..Heads::new(kind, d, q, g) };
            facts.push(
                check(gpu, heads)
                    .map_err(|error| format!("window {local_tokens:?}, cap {softcap:?}: {error}"))?,
            );
        }
    }
    Ok(format!("shared, alone and unfused bits equal; off by {}", facts.join(", ")))
}

fn check_all(gpu: &Gpu, with: fn(Heads) -> Heads) -> Outcome {
    let facts = HEADS.map(|(kind, d, q, g)| check(gpu, with(Heads::new(kind, d, q, g))));
    let facts = facts.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(format!("shared, alone and unfused bits equal; off by {}", facts.join(", ")))
}

fn check(gpu: &Gpu, heads: Heads) -> Result<String, Box<dyn std::error::Error>> {
    let Heads { kind, head_dim, queries, .. } = heads;
    let error = Case::new(gpu, heads)?
        .check(gpu)
        .map_err(|error| format!("{kind:?}, {head_dim} elements, {queries} queries a group: {error}"))?;
    Ok(format!("{head_dim}/{queries} {error:.1e}"))
}

struct Case {
    kernels: ModelKernels,
    heads: Heads,
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    positions: Tensor,
    tables: [Tensor; 2],
}

impl Case {
    fn new(gpu: &Gpu, heads: Heads) -> Result<Self, Box<dyn std::error::Error>> {
        let Heads { kind, head_dim: d, queries: q, groups: g, .. } = heads;
        let n = POSITIONS.len() as i64;
        let num_blocks = n * MAX_BLOCKS + 3;
        let block_tables = Tensor::f_randperm(num_blocks, (Kind::Int, tch::Device::Cpu))?
            .f_narrow(0, 0, n * MAX_BLOCKS)?
            .f_reshape([n, MAX_BLOCKS])?;
        for (first, row) in SHARING.iter().flat_map(|rows| rows.clone().map(|row| (rows.start, row))) {
            let shared = block_tables.f_get(first)?.f_narrow(0, 0, SHARED_BLOCKS)?.f_detach_copy()?;
            block_tables.f_get(row)?.f_narrow(0, 0, SHARED_BLOCKS)?.f_copy_(&shared)?;
        }
        let mut case = Self {
            kernels: gpu.kernels_for(&heads)?,
            heads,
            qkv: gpu.random(&[n, g, q + 2, d], kind)?.f_mul_scalar(1.5)?,
            // What no sequence has written is NaN, which must not get anywhere.
            keys: gpu.unset(&[num_blocks, g, 32, d], kind)?,
            values: gpu.unset(&[num_blocks, g, 32, d], kind)?,
            positions: gpu.ints(&POSITIONS, &[n])?,
            tables: rotary_tables(gpu, 2300, if d == 80 { 20 } else { d })?,
            block_tables: gpu.put(&block_tables)?,
        };
        for row in case.live_rows() {
            for at in 0..i64::from(POSITIONS[row as usize]) {
                if at % 32 == 0 {
                    let len = (i64::from(POSITIONS[row as usize]) - at).min(32);
                    let block = block_tables.f_int64_value(&[row, at / 32])?;
                    for cache in [&case.keys, &case.values] {
                        cache.f_get(block)?.f_narrow(1, 0, len)?.f_copy_(&gpu.random(&[g, len, d], kind)?)?;
                    }
                }
            }
        }
        (case.keys, case.values) = (heads.cached(&case.keys)?, heads.cached(&case.values)?);
        Ok(case)
    }

    fn live_rows(&self) -> Vec<i64> {
        let live = |&(_, &position): &(i64, &i32)| (0..MAX_BLOCKS * 32).contains(&i64::from(position));
        (0..).zip(&POSITIONS).filter(live).map(|(row, _)| row).collect()
    }

    /// Attention of some rows, each several times, from copies of the cache; `shares` names the shared prefixes.
    fn attend(
        &self,
        gpu: &Gpu,
        rows: std::ops::Range<i64>,
        copies: i64,
        shares: bool,
    ) -> Result<Outputs, Box<dyn std::error::Error>> {
        let Heads { head_dim: d, queries: q, groups: g, .. } = self.heads;
        let n = (rows.end - rows.start) * copies;
        let part =
            |tensor: &Tensor| tensor.f_narrow(0, rows.start, rows.end - rows.start)?.f_repeat([copies, 1]);
        let positions = part(&self.positions.f_unsqueeze(1)?)?.f_squeeze_dim(1)?;
        let block_tables = part(&self.block_tables)?;
        let (keys, values) = (self.keys.f_detach_copy()?, self.values.f_detach_copy()?);
        let groups: Vec<i32> = (0..n)
            .flat_map(|at| {
                let row = rows.start + at % (rows.end - rows.start);
                let group = SHARING.iter().find(|group| group.contains(&row));
                group.map_or([at, 0], |group| [at - (row - group.start), SHARED_BLOCKS]).map(|n| n as i32)
            })
            .collect();
        let groups = gpu.ints(&groups, &[n, 2])?;
        let plan = DecodePlan::new(&self.kernels, &gpu.device, self.sizes(n))?;
        let out = gpu.unset(&[n, g * q, d], self.heads.kind)?;
        self.kernels.plan_decode(
            &gpu.stream,
            &PlanDecode {
                positions: &positions,
                block_tables: &block_tables,
                prefix_groups: shares.then_some(&groups),
                num_blocks: self.keys.size()[0],
                plan: &plan,
            },
        )?;
        let step = DecodeAttentionQkv {
            qkv: &part(&self.qkv.f_flatten(1, -1)?)?,
            rotary: Some(self.rotary()),
            cache: LayerKv { keys: &keys, values: &values },
            block_tables: &block_tables,
            plan: &plan,
            scale: self.scale(),
            softcap: self.heads.softcap,
            out: &out,
        };
        // Twice, as a second layer would: what the first leaves behind must not matter.
        // It may start early, and must not before the plan is there.
        gpu.stream.synchronize()?;
        self.kernels.decode_attention_qkv(&gpu.stream, &step)?;
        self.kernels.decode_attention_qkv(&gpu.stream, &step)?;
        Ok(Outputs { out, keys, values })
    }

    /// The same in two kernels.
    fn attend_unfused(&self, gpu: &Gpu) -> Result<Tensor, Box<dyn std::error::Error>> {
        let Heads { head_dim: d, queries: q, groups: g, .. } = self.heads;
        let n = POSITIONS.len() as i64;
        let (keys, values) = (self.keys.f_detach_copy()?, self.values.f_detach_copy()?);
        let cache = LayerKv { keys: &keys, values: &values };
        let plan = DecodePlan::new(&self.kernels, &gpu.device, self.sizes(n))?;
        let (queries, out) =
            (gpu.zeros(&[n, g * q, d], self.heads.kind)?, gpu.unset(&[n, g * q, d], self.heads.kind)?);
        let (positions, block_tables) = (&self.positions, &self.block_tables);
        let num_blocks = self.keys.size()[0];
        self.kernels.plan_decode(
            &gpu.stream,
            &PlanDecode { positions, block_tables, prefix_groups: None, num_blocks, plan: &plan },
        )?;
        self.kernels.rope_and_cache(
            &gpu.stream,
            &RopeAndCache {
                qkv: &self.qkv.f_flatten(1, -1)?,
                positions,
                slots: &plan.slots(n)?,
                rotary: Some(self.rotary()),
                cache,
                q_out: &queries,
                kv_out: None,
            },
        )?;
        let (scale, softcap) = (self.scale(), self.heads.softcap);
        self.kernels.decode_attention(
            &gpu.stream,
            &DecodeAttention { q: &queries, cache, block_tables, plan: &plan, scale, softcap, out: &out },
        )?;
        Ok(out)
    }

    fn check(&self, gpu: &Gpu) -> Result<f64, Box<dyn std::error::Error>> {
        let n = POSITIONS.len() as i64;
        let all = self.attend(gpu, 0..n, 1, false)?;
        let shared = self.attend(gpu, 0..n, 1, true)?.out;
        let many = MANY_ROWS_AND_GROUPS / (n * self.heads.groups);
        for (copies, shares) in [(FEW_COPIES, false), (FEW_COPIES, true), (many, false), (many, true)] {
            let out = self.attend(gpu, 0..n, copies, shares)?.out;
            let out = out.f_view([copies, n, out.size()[1], out.size()[2]])?;
            for row in self.live_rows() {
                let expected = all.out.f_get(row)?.f_unsqueeze(0)?.f_expand([copies, -1, -1], false)?;
                ensure(same(&expected, &out.f_select(1, row)?)?, || {
                    format!("row {row} differs among {copies} copies, shared: {shares}")
                })?;
            }
        }
        let unfused = self.attend_unfused(gpu)?;
        let mut worst: f64 = 0.0;
        for row in self.live_rows() {
            let bits = all.out.f_get(row)?;
            ensure(same(&bits, &shared.f_get(row)?)?, || {
                format!("row {row} differs when its prefix is shared")
            })?;
            ensure(same(&bits, &unfused.f_get(row)?)?, || format!("row {row} differs in two kernels"))?;
            let alone = self.attend(gpu, row..row + 1, 1, false)?.out;
            ensure(same(&bits, &alone.f_get(0)?)?, || format!("row {row} differs when it is alone"))?;
            worst = worst.max(relative_error(&bits, &self.reference(&all, row)?)?);
        }
        for row in (0..n).filter(|row| !self.live_rows().contains(row)) {
            let num_nan = all.out.f_get(row)?.f_isnan()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            ensure(num_nan == all.out.f_get(row)?.numel() as i64, || {
                format!("row {row} has no token, but a result")
            })?;
        }
        // Weights are rounded to the type before they meet the values.
        let limit = if self.heads.kind == Kind::Float {
            1e-5
        } else {
            2.0 * crate::support::tolerance(self.heads.kind)
        };
        ensure(worst < limit, || format!("off by {worst:.1e}, limit {limit:.1e}"))?;
        Ok(worst)
    }

    /// `[H, d]` in float64, from the cache as the kernel left it.
    fn reference(&self, outputs: &Outputs, row: i64) -> Result<Tensor, Box<dyn std::error::Error>> {
        let Heads { head_dim: d, queries: q, groups: g, .. } = self.heads;
        let len = i64::from(POSITIONS[row as usize]) + 1;
        let blocks = self.block_tables.f_get(row)?.f_narrow(0, 0, (len + 31) / 32)?;
        let context = |cache: &Tensor| -> Result<Tensor, Box<dyn std::error::Error>> {
            let blocks = self.heads.uncached(&cache.f_index_select(0, &blocks)?)?.f_transpose(0, 1)?;
            Ok(blocks.f_reshape([g, -1, d])?.f_narrow(1, 0, len)?) // of [G, blocks, 32, d]
        };
        let (keys, values) = (context(&outputs.keys)?, context(&outputs.values)?); // [G, len, d]
        let position = self.positions.f_narrow(0, row, 1)?;
        let heads = rotated(&self.qkv.f_narrow(0, row, 1)?.f_narrow(2, 0, q)?, &self.tables, &position)?;
        let queries = double(&heads.f_get(0)?.f_to_kind(self.heads.kind)?)?; // [G, q, d]
        let mut scores = queries.f_matmul(&keys.f_transpose(1, 2)?)?.f_mul_scalar(f64::from(self.scale()))?;
        if let Some(cap) = self.heads.softcap.map(f64::from) {
            scores = scores.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?;
        }
        if let Some(tokens) = self.heads.local_tokens.filter(|&tokens| tokens < len) {
            let _ = scores.f_narrow(2, 0, len - tokens)?.f_fill_(f64::NEG_INFINITY)?;
        }
        Ok(scores.f_softmax(-1, Kind::Double)?.f_matmul(&values)?.f_reshape([g * q, d])?)
    }

    fn sizes(&self, max_rows: i64) -> PlanSizes {
        let Heads { groups: num_groups, local_tokens, .. } = self.heads;
        PlanSizes { max_rows, max_blocks: MAX_BLOCKS, num_groups, local_tokens }
    }

    fn rotary(&self) -> RotaryArrays<'_> {
        RotaryArrays { cos: &self.tables[0], sin: &self.tables[1] }
    }

    fn scale(&self) -> f32 {
        (self.heads.head_dim as f32).powf(-0.5)
    }
}

struct Outputs {
    out: Tensor,
    keys: Tensor,
    values: Tensor,
}

pub(crate) fn wrong_shapes(gpu: &Gpu) -> Outcome {
    let kernels = gpu.kernels(Kind::BFloat16, 64, 4)?;
    let plan = DecodePlan::new(
        &kernels,
        &gpu.device,
        PlanSizes { max_rows: 4, max_blocks: 8, num_groups: 2, local_tokens: None },
    )?;
    let step = |rows: i64, blocks: i64| -> Checked {
        let positions = gpu.zeros(&[rows], Kind::Int)?;
        let block_tables = gpu.zeros(&[rows, blocks], Kind::Int)?;
        let step = PlanDecode {
            positions: &positions,
            block_tables: &block_tables,
            prefix_groups: None,
            num_blocks: 3,
            plan: &plan,
        };
        Ok(kernels.plan_decode(&gpu.stream, &step)?)
    };
    step(3, 8)?;
    ensure(step(5, 8).is_err(), || "a plan took more rows than it has memory for".to_owned())?;
    ensure(step(4, 1000).is_err(), || "a plan took longer tables than it has memory for".to_owned())?;

    let cache = gpu.zeros(&[3, 2, 32, 64], Kind::BFloat16)?;
    let layer = LayerKv { keys: &cache, values: &cache };
    let attend = |rows: i64, kind: Kind| -> Checked {
        let q = gpu.zeros(&[rows, 8, 64], kind)?;
        let block_tables = gpu.zeros(&[rows, 8], Kind::Int)?;
        let step = DecodeAttention {
            q: &q,
            cache: layer,
            block_tables: &block_tables,
            plan: &plan,
            scale: 1.0,
            softcap: None,
            out: &q,
        };
        Ok(kernels.decode_attention(&gpu.stream, &step)?)
    };
    attend(3, Kind::BFloat16)?;
    ensure(attend(2, Kind::BFloat16).is_err(), || "attention took other rows than were planned".to_owned())?;
    ensure(attend(3, Kind::Half).is_err(), || "attention took another type".to_owned())?;
    gpu.device.synchronize()?;
    Ok("rows, tables and types".to_owned())
}
