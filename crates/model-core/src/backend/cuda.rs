//! The fused backend on a GPU: the in-house CUDA kernels (`cuda_kernels`) around cuBLAS's GEMMs.
//!
//! Everything is enqueued on the current stream and nothing waits for it, so a decode step can be recorded as a CUDA
//! graph. Norms, rotation, activation and attention compute a row alike in any batch; cuBLAS does with
//! [`blas::prefer_invariant`], from [`MIN_ROWS`] rows on (measured, `docs/performance.md`). Small batches use the
//! in-house GEMM instead where it is found to be bitwise identical (`small_batch.rs`).

mod attention;
mod experts;
mod fp8;
mod linear;
mod loader;
mod prompts;
mod ranks;
mod small_batch;
mod stages;

use cuda_kernels::{
    DecodePlan, Embed, ModelKernels, NormHeads, Normalize, PlanDecode, PlanSizes, RotaryArrays,
};
use cuda_runtime::{Device, Stream};
use model_spec::{HeadLayout, KvGroup, Numerics, WeightFormat};
use tch::{Kind, Tensor};

pub(crate) use self::attention::CudaAttention;
pub(crate) use self::experts::CudaExperts;
use self::experts::ExpertKernels;
pub(crate) use self::linear::CudaLinear;
pub(crate) use self::loader::{CudaLoader, Joining};
use self::ranks::DeviceRanks;
use self::stages::DeviceStages;
use crate::ModelError;
use crate::attention_context::{AttentionContext, DeviceAttention, DeviceContext};
use crate::ids::Ids;
use crate::kinds::TensorFormat;
use crate::kv_cache::{BLOCK_SIZE_TOKENS, KvCache, KvPool};
use crate::layers::rotary::{RotaryId, RotaryTables};
use crate::model_ranks::RankCheck;
use crate::ops::{
    Epilogue, HeadNorms, Hidden, LinearOp, Moe, Norm, PiecedLinear, Rows, StepState, TrialLinear,
};
use crate::parallel::{HostRanks, SharedTable};
use crate::upload::to_device;

/// Batches of fewer rows are padded: below, cuBLAS picks kernels whose sums depend on the number of rows.
const MIN_ROWS: i64 = 32;

const NO_ROOM: ModelError =
    ModelError::NoBackend { backend: "CUDA", reason: "no room was made for decode steps" };
const NOT_PLANNED: ModelError =
    ModelError::NoBackend { backend: "CUDA", reason: "the step was not brought to the device" };

/// One GPU with the kernels of a model, and the tables and plans that its steps share.
#[derive(Debug)]
pub(crate) struct CudaState {
    numerics: Numerics,
    device: Device,
    /// By the heads of the layers, which know theirs by index.
    heads: Vec<HeadKernels>,
    /// Batches of at most this many rows use the in-house GEMM.
    max_small_batch: i64,
    /// By the activation of experts; layers know theirs by index.
    experts: Vec<ExpertKernels>,
    rotary: RotaryTables,
    /// Copies of the host's tables, by [`RotaryId::index`].
    device_rotary: Vec<RotaryOnDevice>,
    ranks: HostRanks,
    /// Where sums are taken in a tree.
    device_ranks: Option<DeviceRanks>,
    stages: DeviceStages,
}

/// The kernels for layers with such attention. Those of the first do all that no head matters to.
#[derive(Debug)]
struct HeadKernels {
    shape: HeadShape,
    kernels: ModelKernels,
    /// The layers.
    layers: Vec<usize>,
    /// The attention of the current decode step, for each table of the cache that has some of the layers; there when room
    /// was made for such steps.
    plans: Vec<(usize, DecodePlan)>,
}

impl HeadKernels {
    fn plan(&self, table: usize) -> Result<&DecodePlan, ModelError> {
        self.plans.iter().find(|(of, _)| *of == table).map(|(_, plan)| plan).ok_or(NO_ROOM)
    }

    /// Makes room for the steps of a cache where the first plan has room already: what is kept within a kernel is common to
    /// all plans.
    fn add_plans(&mut self, cache: &KvCache) -> Result<(), ModelError> {
        let mut tables: Vec<usize> = self.layers.iter().map(|&layer| cache.table_of(layer)).collect();
        tables.sort_unstable();
        tables.dedup();
        let Some((first, plan)) = self.plans.first_mut() else { return Err(NO_ROOM) };
        *first = tables.first().copied().unwrap_or_default();
        let more = tables.iter().skip(1).map(|&table| Ok((table, plan.beside()?)));
        let more = more.collect::<Result<Vec<_>, ModelError>>()?;
        self.plans.truncate(1);
        self.plans.extend(more);
        Ok(())
    }
}

/// What kernels and plans of attention depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HeadShape {
    heads: HeadLayout,
    is_capped: bool,
    /// How many keys a row sees, where not all.
    local_tokens: Option<usize>,
}

/// float32 `[num_positions, half_dims]` each.
#[derive(Debug)]
struct RotaryOnDevice {
    num_positions: usize,
    cos: Tensor,
    sin: Tensor,
}

impl CudaState {
    /// The kernels that no head matters to.
    fn kernels(&self) -> Result<&ModelKernels, ModelError> {
        let first = self.heads.first().map(|heads| &heads.kernels);
        first.ok_or(ModelError::NoBackend { backend: "CUDA", reason: "no layer has attention" })
    }

    fn stream(&self) -> Result<Stream, ModelError> {
        Ok(Stream::current(&self.device)?)
    }

    fn empty(&self, shape: &[i64], kind: Kind) -> Result<Tensor, ModelError> {
        Ok(Tensor::f_empty(shape, (kind, self.tch_device()))?)
    }

    fn tch_device(&self) -> tch::Device {
        tch::Device::Cuda(self.device.index())
    }

    /// The tables of a layer on the device.
    fn rotary(&self, id: RotaryId) -> Result<RotaryArrays<'_>, ModelError> {
        let RotaryOnDevice { cos, sin, .. } = self.device_rotary.get(id.index()).ok_or(NOT_PLANNED)?;
        Ok(RotaryArrays { cos, sin })
    }

    /// Brings tables that are new or have grown to the device.
    fn upload_rotary(&mut self) -> Result<(), ModelError> {
        let device = self.tch_device();
        for (idx, table) in self.rotary.iter().enumerate() {
            let num_positions = table.num_positions();
            if self.device_rotary.get(idx).is_some_and(|copy| copy.num_positions >= num_positions) {
                continue;
            }
            let shape = [num_positions as i64, table.half_dims() as i64];
            let upload = |values: &[f32]| Ok::<_, ModelError>(to_device(values, device)?.f_view(shape)?);
            let copy = RotaryOnDevice { num_positions, cos: upload(table.cos())?, sin: upload(table.sin())? };
            match self.device_rotary.get_mut(idx) {
                Some(older) => *older = copy,
                None => self.device_rotary.push(copy),
            }
        }
        Ok(())
    }

    /// Plans decode attention on the device, once for all layers with the same heads and table.
    fn plan_decode(&self, step: &DeviceContext, cache: &KvCache) -> Result<(), ModelError> {
        let DeviceAttention::Decode { block_tables, prefix_groups, .. } = &step.attention else {
            return Err(NO_ROOM);
        };
        for HeadKernels { kernels, plans, .. } in &self.heads {
            for (table, plan) in plans {
                let launch = PlanDecode {
                    positions: &step.positions,
                    block_tables: block_tables.get(*table).ok_or(NOT_PLANNED)?,
                    prefix_groups: Some(prefix_groups),
                    num_blocks: cache.num_blocks() as i64,
                    plan,
                };
                kernels.plan_decode(&self.stream()?, &launch)?;
            }
        }
        Ok(())
    }
}

fn device_context(step: &AttentionContext) -> Result<&DeviceContext, ModelError> {
    step.device.as_ref().ok_or(NOT_PLANNED)
}

impl StepState for CudaState {
    type Linear = CudaLinear;
    type Attention = CudaAttention;
    type Experts = CudaExperts;

    fn numerics(&self) -> Numerics {
        self.numerics
    }

    fn min_rows(&self) -> usize {
        MIN_ROWS as usize
    }

    fn verifies_drafts(&self) -> bool {
        true
    }

    fn serve(&mut self, cache: &KvCache) -> Result<(), ModelError> {
        // Steps that the host describes need no plans.
        let planned = self.heads.iter_mut().filter(|heads| !heads.plans.is_empty());
        planned.into_iter().try_for_each(|heads| heads.add_plans(cache))
    }

    fn new_pool(&mut self, group: &KvGroup, num_blocks: usize) -> Result<KvPool, ModelError> {
        KvPool::device(group, num_blocks, self.numerics.kv, self.tch_device())
    }

    fn plan(
        &mut self,
        tokens: &[u32],
        step: &mut AttentionContext,
        cache: &KvCache,
    ) -> Result<(), ModelError> {
        self.rotary.grow(step.max_context_len());
        self.upload_rotary()?;
        match &step.device {
            Some(step) => self.plan_decode(step, cache),
            None => self.upload_prompts(tokens, step, cache.tables()),
        }
    }

    fn embedding(&mut self, ids: Ids<'_>, table: &Tensor) -> Result<Tensor, ModelError> {
        let Ids::Device(ids) = ids else { return Err(NOT_PLANNED) };
        let out = self.empty(&[ids.size1()?, table.size2()?.1], self.numerics.compute.kind())?;
        self.kernels()?.embed(&self.stream()?, &Embed { tokens: ids, table, out: &out })?;
        Ok(out)
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError> {
        let out = x.f_empty_like()?;
        let launch = Normalize {
            normalization: norm.normalization,
            x,
            gain: &norm.gain,
            bias: norm.bias.as_ref(),
            eps: norm.epsilon as f32,
            out: &out,
        };
        self.kernels()?.norm(&self.stream()?, &launch)?;
        Ok(out)
    }

    fn norm_rows(&mut self, x: &Tensor, norm: &Norm) -> Result<Rows, ModelError> {
        match self.numerics.weights {
            WeightFormat::Fp8 => Ok(Rows::Fp8(self.norm_fp8(x, norm)?)),
            WeightFormat::Float(_) => Ok(Rows::Plain(self.norm(x, norm)?)),
        }
    }

    fn run_rows(&mut self, linear: &CudaLinear, x: &Rows, epilogue: Epilogue) -> Result<Tensor, ModelError> {
        match x {
            Rows::Plain(x) => linear.run(x, epilogue, self),
            Rows::Fp8(rows) => linear.run_fp8(rows, epilogue, self),
        }
    }

    fn norm_heads(
        &mut self,
        qkv: &mut Tensor,
        heads: HeadLayout,
        HeadNorms { query, key, .. }: &HeadNorms,
    ) -> Result<(), ModelError> {
        let known = self.heads.iter().find(|known| known.shape.heads == heads).ok_or(NOT_PLANNED)?;
        let launch = NormHeads {
            normalization: query.normalization,
            qkv,
            gains: [&query.gain, &key.gain],
            biases: [query.bias.as_ref(), key.bias.as_ref()],
            eps: query.epsilon as f32,
        };
        known.kernels.norm_heads(&self.stream()?, &launch)?;
        Ok(())
    }

    fn ranks(&mut self) -> &mut HostRanks {
        &mut self.ranks
    }

    fn add_pieces(
        &mut self,
        layer: &PiecedLinear<CudaLinear>,
        x: &Tensor,
        residual: Tensor,
        next: Option<&Norm>,
    ) -> Result<Hidden, ModelError> {
        let normed = self.add_pieced(layer, x, &residual, next)?;
        Ok(Hidden { residual, normed })
    }

    fn add_experts(&mut self, moe: &Moe<Self>, residual: Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        self.add_moe(moe, residual, x)
    }

    fn gather_columns(&mut self, mine: Tensor, table: &SharedTable) -> Result<Tensor, ModelError> {
        self.all_columns(&mine, table)
    }

    fn shared_embedding(
        &mut self,
        ids: Ids<'_>,
        table: &SharedTable,
        lookup: &mut dyn FnMut(Ids<'_>, &mut Self) -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        let Ids::Device(ids) = ids else { return Err(NOT_PLANNED) };
        self.embed_shared(ids, table, lookup)
    }

    fn rank_check(&self) -> RankCheck {
        let of_sums = self.device_ranks.as_ref().map(DeviceRanks::check);
        let checks: Vec<RankCheck> = of_sums.into_iter().chain(self.stages.checks()).collect();
        Box::new(move || checks.iter().try_for_each(|check| check()))
    }

    fn detours(&self) -> Vec<&'static str> {
        let of_sums = self.device_ranks.as_ref().and_then(DeviceRanks::detour);
        of_sums.into_iter().chain(self.stages.detours()).collect()
    }

    fn send_residual(&mut self, residual: &Tensor, step: &AttentionContext) -> Result<(), ModelError> {
        match &device_context(step)?.attention {
            DeviceAttention::Decode { .. } => self.stages.keep_outgoing(residual),
            DeviceAttention::Prefill(_) => self.send_to_next_stage(residual),
        }
    }

    fn receive_residual(&mut self, shape: [i64; 2], step: &AttentionContext) -> Result<Tensor, ModelError> {
        match &device_context(step)?.attention {
            DeviceAttention::Decode { .. } => self.stages.take_incoming(shape),
            DeviceAttention::Prefill(_) => {
                let residual = self.empty(&shape, self.numerics.compute.kind())?;
                self.receive_from_previous_stage(&residual)?;
                Ok(residual)
            }
        }
    }

    fn begin_decode(&mut self, num_rows: usize) -> Result<(), ModelError> {
        match self.stages.incoming(num_rows)? {
            Some(rows) => self.receive_from_previous_stage(&rows),
            None => Ok(()),
        }
    }

    fn end_decode(&mut self, num_rows: usize) -> Result<(), ModelError> {
        match self.stages.outgoing(num_rows)? {
            Some(rows) => self.send_to_next_stage(&rows),
            None => Ok(()),
        }
    }

    fn reserve_decode(&mut self, max_rows: usize, max_blocks_per_seq: usize) -> Result<(), ModelError> {
        self.rotary.grow(max_blocks_per_seq * BLOCK_SIZE_TOKENS);
        for HeadKernels { shape, kernels, plans, .. } in &mut self.heads {
            let sizes = PlanSizes {
                max_rows: max_rows as i64,
                max_blocks: max_blocks_per_seq as i64,
                num_groups: shape.heads.num_query_groups as i64,
                local_tokens: shape.local_tokens.map(|tokens| tokens as i64),
            };
            *plans = vec![(0, DecodePlan::new(kernels, &self.device, sizes)?)];
        }
        let on_device = (self.numerics.compute.kind(), self.tch_device());
        self.stages.reserve_decode(max_rows, on_device)
    }

    fn find_small_batch<'a>(
        &mut self,
        linears: impl Iterator<Item = TrialLinear<'a, CudaLinear>>,
    ) -> Result<usize, ModelError> {
        // Ranks have other layers, and all of them need steps of the same rows.
        let own = self.find_max_small_batch(linears)? as u64;
        Ok(self.ranks.least(own, self.stages.neighbours())? as usize)
    }
}
