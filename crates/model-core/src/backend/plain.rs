//! The plain backend: every operation written with libtorch's own.
//!
//! The clear implementation that the fused one is measured against. libtorch picks kernels, and so roundings, by shape:
//! rows are therefore fed in blocks of one fixed shape, and attention goes sequence by sequence.

mod attention;
mod linear;

use model_spec::{AttentionSpec, HeadLayout, KvGroup, Normalization, Numerics};
use tch::{Device, Kind, Tensor};
use torch_ext::mkl;

pub(crate) use self::attention::{PlainAttention, ScoreRule};
#[cfg(feature = "cuda")]
pub(crate) use self::attention::{QUERIES_PER_CHUNK, attend};
use self::linear::PlainWeight;
pub(crate) use self::linear::{PlainLinear, activate};
use crate::attention_context::AttentionContext;
use crate::fp8::Fp8Rows;
use crate::ids::Ids;
use crate::kinds::TensorFormat;
use crate::kv_cache::{KvCache, KvPool};
use crate::layers::rotary::RotaryTables;
use crate::model_ranks::ModelRanks;
use crate::ops::{
    Experts, HeadNorms, LinearRole, LinearSource, Loader, Norm, StepState, StoredLinearWeight, WeightBytes,
};
use crate::ops::{Router, SharedExpert};
use crate::parallel::HostRanks;
use crate::upload::to_device;
use crate::{AttentionSwitches, ModelError};

/// Rows in every GEMM and norm.
const ROWS_PER_BLOCK: i64 = 32;

/// What libtorch's operations need between steps.
#[derive(Debug)]
pub(crate) struct PlainState {
    numerics: Numerics,
    device: Device,
    rotary: RotaryTables,
    ranks: HostRanks,
}

impl PlainState {
    fn index(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        to_device(&ids, self.device)
    }
}

impl StepState for PlainState {
    type Linear = PlainLinear;
    type Attention = PlainAttention;
    type Experts = ();

    fn numerics(&self) -> Numerics {
        self.numerics
    }

    fn new_pool(&mut self, group: &KvGroup, num_blocks: usize) -> Result<KvPool, ModelError> {
        let Numerics { compute, kv, .. } = self.numerics;
        KvPool::tensors(group, num_blocks, kv.unpacked(compute).kind(), self.device)
    }

    fn plan(
        &mut self,
        _tokens: &[u32],
        step: &mut AttentionContext,
        _cache: &KvCache,
    ) -> Result<(), ModelError> {
        self.rotary.grow(step.max_context_len());
        Ok(())
    }

    fn embedding(&mut self, ids: Ids<'_>, table: &Tensor) -> Result<Tensor, ModelError> {
        Ok(table.f_index_select(0, &self.index(ids.on_host("plain")?)?)?)
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError> {
        by_row_blocks(x, ROWS_PER_BLOCK, |rows| {
            Ok(normalised(rows, norm)?.f_to_kind(self.numerics.compute.kind())?)
        })
    }

    fn norm_heads(
        &mut self,
        qkv: &mut Tensor,
        heads: HeadLayout,
        norms: &HeadNorms,
    ) -> Result<(), ModelError> {
        let queries_per_group = heads.queries_per_group() as i64;
        let (groups, channels) = (heads.num_query_groups as i64, heads.kv_channels as i64);
        *qkv = by_row_blocks(qkv, ROWS_PER_BLOCK, |rows| {
            let grouped = rows.f_view([ROWS_PER_BLOCK, groups, queries_per_group + 2, channels])?;
            let part = |start, len| grouped.f_narrow(2, start, len)?.f_contiguous();
            let kind = self.numerics.compute.kind();
            let queries = normed_heads(&part(0, queries_per_group)?, &norms.query)?.f_to_kind(kind)?;
            let keys = normed_heads(&part(queries_per_group, 1)?, &norms.key)?.f_to_kind(kind)?;
            let all = Tensor::f_cat(&[queries, keys, part(queries_per_group + 1, 1)?], 2)?;
            Ok(all.f_view(rows.size().as_slice())?)
        })?;
        Ok(())
    }

    fn ranks(&mut self) -> &mut HostRanks {
        &mut self.ranks
    }
}

/// float32 norm of heads, `[rows, groups, heads of a group, channels]`, whose gains are for all of them or `[heads, channels]`.
fn normed_heads(x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError> {
    if norm.gain.dim() == 1 {
        return normalised(x, norm);
    }
    let (_, groups, heads, channels) = x.size4()?;
    let ones = norm.gain.f_select(0, 0)?.f_ones_like()?;
    let plain = Norm { gain: ones, bias: None, ..*norm };
    let normed = normalised(x, &plain)?;
    let of_heads = |values: &Tensor| values.f_view([groups, heads, channels]);
    let normed = normed.f_mul(&of_heads(&norm.gain)?)?;
    match &norm.bias {
        Some(bias) => Ok(normed.f_add(&of_heads(bias)?)?),
        None => Ok(normed),
    }
}

/// float32 norm over the last axis, of any number of them.
fn normalised(x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError> {
    let x = x.f_to_kind(Kind::Float)?;
    Ok(match norm.normalization {
        Normalization::LayerNorm => {
            let bias = norm.bias.as_ref();
            x.f_layer_norm(norm.gain.size(), Some(&norm.gain), bias, norm.epsilon, false)?
        }
        Normalization::RmsNorm => {
            let mean_square = x.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
            let scale = mean_square.f_add_scalar(norm.epsilon)?.f_rsqrt()?;
            x.f_mul(&scale)?.f_mul(&norm.gain)?
        }
    })
}

/// Makes tensors of stored weights.
#[derive(Debug)]
pub(crate) struct PlainLoader {
    state: PlainState,
    switches: AttentionSwitches,
}

impl PlainLoader {
    /// For sequences of up to `max_seq_len_tokens`, with an attention that `switches` allow.
    pub(crate) fn new(
        numerics: Numerics,
        device: Device,
        switches: AttentionSwitches,
        max_seq_len_tokens: usize,
        ranks: Option<Box<dyn ModelRanks>>,
    ) -> Result<Self, ModelError> {
        mkl::check_mode()?;
        let rotary = RotaryTables::new(max_seq_len_tokens);
        Ok(Self { state: PlainState { numerics, device, rotary, ranks: HostRanks(ranks) }, switches })
    }
}

impl Loader for PlainLoader {
    type State = PlainState;

    fn numerics(&self) -> Numerics {
        self.state.numerics
    }

    fn tensor(&mut self, source: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError> {
        Ok(tensor_from_bytes(source, kind)?.f_to_device(self.state.device)?)
    }

    fn linear(&mut self, source: LinearSource<'_>, role: LinearRole) -> Result<PlainLinear, ModelError> {
        let numerics = self.numerics();
        let kind = role.kind(numerics);
        let bias = source.bias.map(|bias| self.tensor(bias, kind)).transpose()?;
        let weight = match source.weight {
            StoredLinearWeight::Fp8(stored) => {
                let Fp8Rows { values, scales } = Fp8Rows::stored(stored)?;
                let device = self.state.device;
                let rows =
                    Fp8Rows { values: values.f_to_device(device)?, scales: scales.f_to_device(device)? };
                PlainWeight::Fp8(rows)
            }
            StoredLinearWeight::Float(weight) => {
                let weight = self.tensor(weight, kind)?;
                match role.is_fp8(numerics) {
                    true => PlainWeight::Fp8(Fp8Rows::of(&weight)?),
                    false => PlainWeight::Float(weight),
                }
            }
        };
        Ok(PlainLinear { weight, bias })
    }

    fn attention(&mut self, layer_idx: usize, spec: &AttentionSpec) -> Result<PlainAttention, ModelError> {
        let PlainState { numerics, device, rotary, .. } = &mut self.state;
        // The other algorithms of libtorch know neither caps nor windows nor sinks.
        let switches = match (spec.softcap, spec.local_tokens, spec.has_sinks) {
            (None, None, false) => self.switches,
            _ => AttentionSwitches { flash: false, fused: false, ..self.switches },
        };
        Ok(PlainAttention {
            layer_idx,
            heads: spec.heads,
            scores: ScoreRule { scale: spec.scale, softcap: spec.softcap, local_tokens: spec.local_tokens },
            rotary: spec.rotary.map(|config| rotary.add(&config)),
            algorithm: switches.choose(*device, numerics.compute, spec.heads.kv_channels)?,
            sinks: None,
        })
    }

    fn group(
        &mut self,
        _router: &Router<PlainState>,
        _experts: &Experts<PlainLinear>,
        _shared: Option<&SharedExpert<PlainState>>,
    ) -> Result<(), ModelError> {
        Ok(())
    }

    fn finish(self) -> Result<PlainState, ModelError> {
        Ok(self.state)
    }
}

/// Copies stored numbers into a tensor of the given kind.
pub(crate) fn tensor_from_bytes(weight: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError> {
    let shape: Vec<i64> = weight.shape.iter().map(|&dim| dim as i64).collect();
    Ok(Tensor::f_from_data_size(weight.bytes, &shape, weight.dtype.kind())?.f_to_kind(kind)?)
}

/// Applies `op` to blocks of exactly `rows_per_block` rows, the last one padded with zeros.
fn by_row_blocks(
    x: &Tensor,
    rows_per_block: i64,
    op: impl Fn(&Tensor) -> Result<Tensor, ModelError>,
) -> Result<Tensor, ModelError> {
    let (num_rows, _) = x.size2()?;
    let mut blocks = Vec::new();
    let mut start = 0;
    while start < num_rows {
        let len = rows_per_block.min(num_rows - start);
        let rows = x.f_narrow(0, start, len)?;
        if len == rows_per_block {
            blocks.push(op(&rows.f_contiguous()?)?);
        } else {
            let padded = rows.f_constant_pad_nd([0, 0, 0, rows_per_block - len])?;
            blocks.push(op(&padded)?.f_narrow(0, 0, len)?);
        }
        start += len;
    }
    Ok(Tensor::f_cat(&blocks, 0)?)
}
