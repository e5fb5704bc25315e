//! The fused backend on a GPU: the project's CUDA kernels (`cuda_kernels`) around cuBLAS's products.
//!
//! Everything is enqueued on the current stream and nothing waits for it, so a decode step can be recorded as a CUDA
//! graph. Norms, rotation, activation and attention compute a row alike in any batch; cuBLAS does with
//! [`blas::prefer_invariant`], from [`MIN_ROWS`] rows on (measured, `docs/performance.md`). A few rows have products of
//! the project's own, where these are found to have the same bits.

mod few_rows;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cuda_kernels::{
    Activate, DecodeAttentionQkv, DecodePlan, Embed, Gating, Gemm, GemmOut, KernelConfig, LayerCache,
    ModelKernels, Norm as NormLaunch, NormKind, PlanDecode, RopeAndCache, Rotary as RotaryTables,
};
use cuda_runtime::{Device, Stream, Uploader, kernel_cache};
use tch::{Kind, Tensor};
use torch_ext::cuda::{blas, flash};

use super::plain::{attend, stored_kind, to_device};
use crate::attention_context::{AttentionContext, DeviceAttention, DeviceContext};
use crate::config::{Activation, ModelConfig, Nonlinearity, Normalization};
use crate::kernels::{AttentionStep, Ids, Kernels, Linear, LinearRole, LinearSource, Norm, WeightBytes};
use crate::kv_cache::KvCache;
use crate::layers::rotary::Rotary;
use crate::{ModelError, Precision};

/// Fewer rows are filled up: below, cuBLAS picks kernels whose sums depend on the number of rows.
const MIN_ROWS: i64 = 32;

/// The CUDA kernels of one model on one GPU.
pub(crate) struct CudaKernels {
    precision: Precision,
    device: Device,
    kernels: ModelKernels,
    heads_per_group: usize,
    /// Up to so many rows the products are the project's own.
    few_rows: AtomicI64,
    tables: Mutex<Tables>,
    uploader: Mutex<Uploader>,
}

/// What is made once and then read by every step.
#[derive(Default)]
struct Tables {
    rotary: Option<RotaryOnDevice>,
    plan: Option<DecodePlan>,
}

/// float32 `[num_positions, half_dims]` each.
struct RotaryOnDevice {
    num_positions: usize,
    cos: Tensor,
    sin: Tensor,
}

impl CudaKernels {
    /// Compiles the kernels for this model, or takes them from the cache on disk.
    pub(crate) fn new(
        config: &ModelConfig,
        precision: Precision,
        device_idx: usize,
    ) -> Result<Self, ModelError> {
        let device = Device::open(device_idx)?;
        blas::prefer_invariant()?;
        let heads_per_group = config.num_attention_heads / config.num_query_groups.max(1);
        let kernel_config = KernelConfig {
            kind: precision.kind(),
            head_dim: config.kv_channels as u32,
            queries_per_group: heads_per_group as u32,
        };
        let kernels = ModelKernels::load(&device, &kernel_config, kernel_cache().as_deref())?;
        let uploader = Mutex::new(Uploader::new(&device)?);
        Ok(Self {
            precision,
            device,
            kernels,
            heads_per_group,
            few_rows: AtomicI64::new(0),
            tables: Mutex::default(),
            uploader,
        })
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl CudaKernels {
    /// Causal attention of whole prompts where flash attention has no float32, sequence by sequence.
    fn attend_f32(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        step: &AttentionStep<'_>,
    ) -> Result<Tensor, ModelError> {
        let (num_rows, heads, channels) = queries.size3()?;
        let (groups, per_group) = (step.heads.num_query_groups as i64, self.heads_per_group as i64);
        let out = Tensor::f_zeros([num_rows, heads, channels], (Kind::Float, self.tch_device()))?;
        for sequence in &step.context.sequences {
            let rows =
                |tensor: &Tensor| tensor.f_narrow(0, sequence.query_start as i64, sequence.query_len as i64);
            let of_group = |tensor: &Tensor| rows(tensor)?.f_transpose(0, 1)?.f_contiguous();
            let queries = rows(queries)?.f_view([-1, groups, per_group, channels])?;
            let attended = attend(&queries, &of_group(keys)?, &of_group(values)?, 0)?;
            rows(&out)?.f_copy_(&attended.f_view([-1, heads, channels])?)?;
        }
        Ok(out)
    }
}

impl CudaKernels {
    /// Whether `x` has so few rows that the project's own kernel multiplies it.
    fn is_few(&self, x: &Tensor) -> Result<bool, ModelError> {
        Ok(x.size2()?.0 <= self.few_rows.load(Ordering::Relaxed))
    }

    fn product(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        out: GemmOut<'_>,
    ) -> Result<(), ModelError> {
        Ok(self.kernels.gemm(&self.stream()?, &Gemm { x, weight, bias, out })?)
    }

    fn product_activated(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor, ModelError> {
        let ffn = ffn_of(weight.size2()?.0, activation);
        let out = self.empty(&[x.size2()?.0, ffn], self.precision.kind())?;
        self.product(x, weight, bias, GemmOut::Activated(&out, function(activation), gating(activation)))?;
        Ok(out)
    }

    fn activate(&self, x: &Tensor, activation: Activation) -> Result<Tensor, ModelError> {
        let (num_rows, num_columns) = x.size2()?;
        let out = self.empty(&[num_rows, ffn_of(num_columns, activation)], self.precision.kind())?;
        let launch = Activate { activation: function(activation), gating: gating(activation), x, out: &out };
        self.kernels.activate(&self.stream()?, &launch)?;
        Ok(out)
    }
}

fn tensors(linear: &Linear) -> Result<(&Tensor, Option<&Tensor>), ModelError> {
    match linear {
        Linear::Tensors { weight, bias } => Ok((weight, bias.as_ref())),
        Linear::Packed(_) => {
            Err(ModelError::NoBackend { backend: "CUDA", reason: "the weights are packed for another" })
        }
    }
}

fn device_context(context: &AttentionContext) -> Result<&DeviceContext, ModelError> {
    context
        .device
        .as_ref()
        .ok_or(ModelError::NoBackend { backend: "CUDA", reason: "the step was not brought to the device" })
}

/// The tables on the device; made again only when the host's have grown.
fn rotary_on_device<'a>(
    tables: &'a mut Option<RotaryOnDevice>,
    rotary: &Rotary,
    device: tch::Device,
) -> Result<RotaryTables<'a>, ModelError> {
    let num_positions = rotary.num_positions();
    if tables.as_ref().is_none_or(|tables| tables.num_positions < num_positions) {
        let shape = [num_positions as i64, rotary.half_dims() as i64];
        let upload = |values: &[f32]| Ok::<_, ModelError>(to_device(values, device)?.f_view(shape)?);
        let (cos, sin) = (upload(rotary.cos())?, upload(rotary.sin())?);
        *tables = Some(RotaryOnDevice { num_positions, cos, sin });
    }
    let RotaryOnDevice { cos, sin, .. } = tables.as_ref().ok_or(NO_TABLES)?;
    Ok(RotaryTables { cos, sin })
}

const NO_TABLES: ModelError =
    ModelError::NoBackend { backend: "CUDA", reason: "no room was made for decode steps" };

impl Kernels for CudaKernels {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn min_rows(&self) -> usize {
        MIN_ROWS as usize
    }

    fn prepare(&self, tokens: &[u32], context: &mut AttentionContext) -> Result<(), ModelError> {
        let longest = context.sequences.iter().map(|sequence| sequence.query_len).max().unwrap_or(0);
        if context.sequences.iter().any(|sequence| sequence.context_len > 0) {
            return Err(ModelError::NoBackend {
                backend: "CUDA",
                reason: "decode steps are planned on the device",
            });
        }
        let num_rows = tokens.len().max(MIN_ROWS as usize);
        let starts = context.sequences.iter().map(|sequence| sequence.query_start);
        // One copy for all four lists: tokens, positions and slots, each filled up to `num_rows`, and the starts.
        let mut packed = Vec::with_capacity(3 * num_rows + context.sequences.len() + 1);
        for (list, filler) in [(tokens, 0), (&context.positions, -1), (&context.slots, -1)] {
            packed.extend(list.iter().map(|&value| value as i32));
            packed.resize(packed.len().next_multiple_of(num_rows), filler);
        }
        packed.extend(starts.map(|start| start as i32).chain([tokens.len() as i32]));
        let num_starts = (packed.len() - 3 * num_rows) as i64;
        let packed = to_device(&packed, self.tch_device())?;
        let num_rows = num_rows as i64;
        context.device = Some(DeviceContext {
            tokens: packed.f_narrow(0, 0, num_rows)?,
            positions: packed.f_narrow(0, num_rows, num_rows)?,
            attention: DeviceAttention::Prefill {
                slots: packed.f_narrow(0, 2 * num_rows, num_rows)?,
                cu_seqlens: packed.f_narrow(0, 3 * num_rows, num_starts)?,
                max_len_tokens: longest,
            },
        });
        Ok(())
    }

    fn reserve_rows(
        &self,
        max_rows: usize,
        max_blocks_per_seq: usize,
        num_query_groups: usize,
    ) -> Result<(), ModelError> {
        let sizes = [max_rows as i64, max_blocks_per_seq as i64];
        let plan = DecodePlan::new(&self.kernels, &self.device, sizes, num_query_groups as i64)?;
        self.tables().plan = Some(plan);
        Ok(())
    }

    fn plan_rows(&self, context: &AttentionContext, cache: &KvCache) -> Result<(), ModelError> {
        let context = device_context(context)?;
        let DeviceAttention::Decode { block_tables, prefix_groups } = &context.attention else {
            return Err(NO_TABLES);
        };
        let tables = self.tables();
        let plan = PlanDecode {
            positions: &context.positions,
            block_tables,
            prefix_groups: Some(prefix_groups),
            num_blocks: cache.num_blocks() as i64,
            plan: tables.plan.as_ref().ok_or(NO_TABLES)?,
        };
        Ok(self.kernels.plan_decode(&self.stream()?, &plan)?)
    }

    fn try_few_rows(
        &self,
        linears: &mut dyn Iterator<Item = (&Linear, Option<Activation>)>,
    ) -> Result<usize, ModelError> {
        self.find_few_rows(linears)
    }

    fn loads_in_order(&self) -> bool {
        true
    }

    fn tensor(&self, source: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError> {
        let shape: Vec<i64> = source.shape.iter().map(|&dim| dim as i64).collect();
        let stored = self.empty(&shape, stored_kind(source.dtype))?;
        self.uploader.lock().unwrap_or_else(PoisonError::into_inner).upload(source.bytes, &stored)?;
        // Converted there: the GPU is faster at it, and fewer bytes may have to be brought over.
        Ok(stored.f_to_kind(kind)?)
    }

    fn pack_linear(&self, source: LinearSource<'_>, _role: LinearRole) -> Result<Linear, ModelError> {
        let kind = self.precision.kind();
        Ok(Linear::Tensors {
            weight: self.tensor(source.weight, kind)?,
            bias: source.bias.map(|bias| self.tensor(bias, kind)).transpose()?,
        })
    }

    fn new_cache(&self, num_blocks: usize, config: &ModelConfig) -> Result<KvCache, ModelError> {
        KvCache::on_device(num_blocks, config, self.precision.kind(), self.tch_device())
    }

    fn embedding(&self, ids: Ids<'_>, table: &Tensor) -> Result<Tensor, ModelError> {
        let Ids::Device(ids) = ids else { return Err(NO_TABLES) };
        let out = self.empty(&[ids.size1()?, table.size2()?.1], self.precision.kind())?;
        self.kernels.embed(&self.stream()?, &Embed { tokens: ids, table, out: &out })?;
        Ok(out)
    }

    fn tied_embedding(&self, ids: Ids<'_>, output: &Linear) -> Result<Tensor, ModelError> {
        self.embedding(ids, tensors(output)?.0)
    }

    fn norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError> {
        let out = x.f_empty_like()?;
        let launch = NormLaunch {
            kind: match norm.normalization {
                Normalization::LayerNorm => NormKind::LayerNorm,
                Normalization::RmsNorm => NormKind::RmsNorm,
            },
            x,
            gain: &norm.gain,
            bias: norm.bias.as_ref(),
            eps: norm.epsilon as f32,
            out: &out,
        };
        self.kernels.norm(&self.stream()?, &launch)?;
        Ok(out)
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        let (weight, bias) = tensors(linear)?;
        if self.is_few(x)? {
            let out = self.empty(&[x.size2()?.0, weight.size2()?.0], self.precision.kind())?;
            self.product(x, weight, bias, GemmOut::Rounded(&out))?;
            return Ok(out);
        }
        Ok(x.f_linear(weight, bias)?)
    }

    fn linear_add(&self, x: &Tensor, linear: &Linear, residual: &mut Tensor) -> Result<(), ModelError> {
        let (weight, bias) = tensors(linear)?;
        if self.is_few(x)? {
            self.product(x, weight, None, GemmOut::Added(residual))?;
        } else {
            let _ = residual.f_addmm_(x, &weight.f_transpose(0, 1)?)?;
        }
        if let Some(bias) = bias {
            let _ = residual.f_add_(bias)?;
        }
        Ok(())
    }

    fn linear_activate(
        &self,
        x: &Tensor,
        fc1: &Linear,
        activation: Activation,
    ) -> Result<Tensor, ModelError> {
        if self.is_few(x)? {
            let (weight, bias) = tensors(fc1)?;
            return self.product_activated(x, weight, bias, activation);
        }
        self.activate(&self.linear(x, fc1)?, activation)
    }

    fn attention(
        &self,
        qkv: &Tensor,
        step: &AttentionStep<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let stream = self.stream()?;
        let context = device_context(step.context)?;
        let kind = self.precision.kind();
        let num_rows = qkv.size2()?.0;
        let channels = step.heads.kv_channels as i64;
        let (heads, groups) = (step.heads.num_attention_heads as i64, step.heads.num_query_groups as i64);
        let (keys, values) = cache.device_layer(step.layer_idx)?;
        let layer = LayerCache { keys: &keys, values: &values };
        let mut tables = self.tables();
        let tables = &mut *tables;
        let rotary = step
            .rotary
            .map(|rotary| rotary_on_device(&mut tables.rotary, rotary, self.tch_device()))
            .transpose()?;
        let scale = 1.0 / (step.heads.kv_channels as f32).sqrt();
        let attended = match &context.attention {
            DeviceAttention::Prefill { slots, cu_seqlens, max_len_tokens } => {
                let queries = self.empty(&[num_rows, heads, channels], kind)?;
                let new_keys = self.empty(&[num_rows, groups, channels], kind)?;
                let new_values = self.empty(&[num_rows, groups, channels], kind)?;
                let launch = RopeAndCache {
                    qkv,
                    positions: &context.positions,
                    slots,
                    rotary,
                    cache: layer,
                    q_out: &queries,
                    kv_out: Some((&new_keys, &new_values)),
                };
                self.kernels.rope_and_cache(&stream, &launch)?;
                if kind == Kind::Float {
                    self.attend_f32(&queries, &new_keys, &new_values, step)?
                } else {
                    flash::varlen(
                        [&queries, &new_keys, &new_values],
                        cu_seqlens,
                        *max_len_tokens as i64,
                        f64::from(scale),
                    )?
                }
            }
            DeviceAttention::Decode { block_tables, .. } => {
                let plan = tables.plan.as_ref().ok_or(NO_TABLES)?;
                let out = self.empty(&[num_rows, heads, channels], kind)?;
                let launch =
                    DecodeAttentionQkv { qkv, rotary, cache: layer, block_tables, plan, scale, out: &out };
                self.kernels.decode_attention_qkv(&stream, &launch)?;
                out
            }
        };
        Ok(attended.f_view([num_rows, heads * channels])?)
    }

    fn logits(&self, hidden: &Tensor, output: &Linear) -> Result<Tensor, ModelError> {
        let (weight, bias) = tensors(output)?;
        let shape = [hidden.size2()?.0, weight.size2()?.0];
        let mut logits = self.empty(&shape, Kind::Float)?; // [num_rows, padded_vocab_size]
        if self.is_few(hidden)? {
            self.product(hidden, weight, None, GemmOut::Float(&logits))?;
        } else {
            blas::linear_f32_out(&mut logits, hidden, weight)?;
        }
        Ok(match bias {
            Some(bias) => logits.f_add(bias)?,
            None => logits,
        })
    }
}

fn gating(activation: Activation) -> Gating {
    if activation.gated { Gating::Gated } else { Gating::Plain }
}

/// How wide the feed-forward part is whose first layer has so many outputs.
fn ffn_of(num_out: i64, activation: Activation) -> i64 {
    if activation.gated { num_out / 2 } else { num_out }
}

fn function(activation: Activation) -> cuda_kernels::Nonlinearity {
    use cuda_kernels::Nonlinearity as Function;
    match activation.nonlinearity {
        Nonlinearity::Gelu => Function::Gelu,
        Nonlinearity::GeluTanh => Function::GeluTanh,
        Nonlinearity::QuickGelu => Function::QuickGelu,
        Nonlinearity::Silu => Function::Silu,
        Nonlinearity::Relu => Function::Relu,
        Nonlinearity::SquaredRelu => Function::SquaredRelu,
    }
}
