//! What a GPU exchanges with those of the other tensor-parallel ranks.

use cuda_kernels::{Gemm, GemmOut, Inbox, KernelConfig, NormOfSum, ScoreKind, TensorRanks};
use cuda_runtime::{SharedIn, kernel_cache};
use tch::{Kind, Tensor};

use super::linear::CudaWeight;
use super::loader::Joining;
use super::{CudaLinear, CudaState};
use crate::ModelError;
use crate::fp8::Fp8Rows;
use crate::ids::Ids;
use crate::kinds::TensorFormat;
use crate::model_ranks::{Exchange, LostRank, ModelRanks, RankCheck};
use crate::ops::{Norm, PiecedLinear};
use crate::parallel::{SLOT_ELEMS, SharedTable};

/// Rows whose partial sums are in memory at once.
const ROWS_AT_ONCE: i64 = 1024;

const NO_RANKS: ModelError =
    ModelError::NoBackend { backend: "CUDA", reason: "the ranks that share the model were not joined" };

const NOT_FP8: ModelError =
    ModelError::NoBackend { backend: "CUDA", reason: "pieces of a layer are apart in FP8 only" };
const DETOUR: &str = "the GPUs that share the layers of a model do not reach each other's memory: their sums go through the \
                      host's, which is slower";

/// The GPUs that share the model.
#[derive(Debug)]
pub(super) struct DeviceRanks {
    group: TensorRanks,
    place: SharedIn,
}

impl DeviceRanks {
    /// Shares memory with the ranks of `others`; with this GPU alone where there are none. What one of them cannot reach in
    /// the others' GPUs lies in the host's memory, for all.
    pub(super) fn join(
        state: &CudaState,
        mut others: Option<&mut (dyn ModelRanks + 'static)>,
        joining: &Joining<'_>,
    ) -> Result<Self, ModelError> {
        let at = (joining.place.tp_rank as usize, joining.place.tp_size as usize);
        if at.1 == 1 {
            let (group, place) = (Self::share(state, None, SharedIn::Gpu, at)?, SharedIn::Gpu);
            return Ok(Self { group, place });
        }
        let mut share = |place| -> Result<Result<TensorRanks, ModelError>, ModelError> {
            let Some(others) = &mut others else { return Err(NO_RANKS) };
            let group = Self::share(state, Some(&mut **others), place, at);
            let is_open = [u8::from(group.is_ok())];
            let all = others.all_gather(&is_open)?;
            Ok(match all.iter().position(|other| other != &is_open && is_open == [1]) {
                Some(rank) => Err(LostRank(format!(
                    "tensor-parallel rank {rank} cannot reach the memory that the ranks of the model share"
                ))
                .into()),
                None => group,
            })
        };
        if joining.exchange == Exchange::Auto
            && let Ok(group) = share(SharedIn::Gpu)?
        {
            return Ok(Self { group, place: SharedIn::Gpu });
        }
        Ok(Self { group: share(SharedIn::Host)??, place: SharedIn::Host })
    }

    fn share(
        state: &CudaState,
        others: Option<&mut (dyn ModelRanks + 'static)>,
        place: SharedIn,
        (tp_rank, tp_size): (usize, usize),
    ) -> Result<TensorRanks, ModelError> {
        let inbox = Inbox::new(&state.device, tp_size, SLOT_ELEMS as i64, place);
        let handle = inbox.as_ref().map_err(|_| ()).and_then(|inbox| inbox.handle().map_err(|_| ()));
        // Who has none says so: all ranks make the same calls.
        let handle = handle.unwrap_or_default();
        let handles = match others {
            Some(others) => others.all_gather(&handle)?,
            None => vec![handle],
        };
        // No kernel of these knows heads.
        let config = KernelConfig {
            kind: state.numerics.compute.kind(),
            head_dim: 16,
            queries_per_group: 1,
            has_fp8_kv: false,
            scores: ScoreKind::default(),
        };
        let cache = kernel_cache();
        Ok(TensorRanks::new(&state.device, &config, cache.as_deref(), inbox?, (&handles, tp_rank))?)
    }

    /// What tells whether all ranks came to every launch so far.
    pub(super) fn check(&self) -> RankCheck {
        let lost = self.group.lost();
        Box::new(move || match (lost.read() as usize).checked_sub(1) {
            Some(rank) => Err(LostRank(format!(
                "the GPU of tensor-parallel rank {rank} did not come to a sum within 30 s: its process has ended or stands still"
            ))),
            None => Ok(()),
        })
    }

    /// That sums go through the host's memory, where they do.
    pub(super) fn detour(&self) -> Option<&'static str> {
        (self.place == SharedIn::Host).then_some(DETOUR)
    }
}

impl CudaState {
    /// `residual`, in place, plus partial sums of all ranks, float32 `[num_partials, num_rows, width]`.
    pub(super) fn add_partials(&self, partials: &Tensor, residual: &Tensor) -> Result<(), ModelError> {
        let kind = self.numerics.compute.kind();
        let group = &self.device_ranks()?.group;
        Ok(group.reduce_add(&self.stream()?, kind, (partials, residual), (None, None))?)
    }

    pub(super) fn device_ranks(&self) -> Result<&DeviceRanks, ModelError> {
        self.device_ranks.as_ref().ok_or(NO_RANKS)
    }

    /// `residual`, in place, plus the pieces of all ranks; and what the norm `next` makes of it.
    pub(super) fn add_pieced(
        &mut self,
        layer: &PiecedLinear<CudaLinear>,
        x: &Tensor,
        residual: &Tensor,
        next: Option<&Norm>,
    ) -> Result<Option<Tensor>, ModelError> {
        let num_rows = x.size2()?.0;
        let normed = next.map(|_| residual.f_empty_like()).transpose()?;
        let mut start = 0;
        while start < num_rows {
            let rows = ROWS_AT_ONCE.min(num_rows - start);
            // Not fewer than have their own bits in every batch: the rest goes with the rows before.
            let rows = if num_rows - start - rows < super::MIN_ROWS { num_rows - start } else { rows };
            let x = x.f_narrow(0, start, rows)?;
            let sums = match layer.parts.as_slice() {
                [CudaLinear { weight: CudaWeight::Float(weight), .. }]
                    if num_rows <= self.max_small_batch =>
                {
                    self.small_piece_sum(&x, weight, layer.num_pieces as i64)?.f_unsqueeze(0)?
                }
                [CudaLinear { weight: CudaWeight::Float(weight), .. }] => {
                    piece_sums(&x, weight, layer.num_pieces as i64)?
                }
                parts => self.fp8_piece_sums(&x, parts)?,
            };
            let kind = self.numerics.compute.kind();
            let into = residual.f_narrow(0, start, rows)?;
            let group = &self.device_ranks()?.group;
            let out = normed.as_ref().map(|normed| normed.f_narrow(0, start, rows)).transpose()?;
            let norm = next.zip(out.as_ref()).map(|(norm, out)| NormOfSum {
                normalization: norm.normalization,
                gain: &norm.gain,
                bias: norm.bias.as_ref(),
                eps: norm.epsilon as f32,
                out,
            });
            let behind = (layer.bias.as_ref(), norm.as_ref());
            group.reduce_add(&self.stream()?, kind, (&sums, &into), behind)?;
            start += rows;
        }
        Ok(normed)
    }

    /// float32 `[num_rows, num_out]`: the sum of all pieces of this rank, by the in-house GEMM.
    pub(super) fn small_piece_sum(
        &self,
        x: &Tensor,
        weight: &Tensor,
        num_pieces: i64,
    ) -> Result<Tensor, ModelError> {
        let out = self.empty(&[x.size2()?.0, weight.size2()?.0], Kind::Float)?;
        let launch = Gemm { x, weight, bias: None, num_pieces, out: GemmOut::Float(&out) };
        self.kernels()?.gemm(&self.stream()?, &launch)?;
        Ok(out)
    }

    /// float32 `[num_pieces, num_rows, num_out]`: the product of each piece of the inputs with a layer of its own. A piece of a
    /// row has a scale of its own, too.
    fn fp8_piece_sums(&self, x: &Tensor, parts: &[CudaLinear]) -> Result<Tensor, ModelError> {
        let ((num_rows, num_in), num_pieces) = (x.size2()?, parts.len().max(1) as i64);
        let width = num_in / num_pieces;
        let of_pieces = self.fp8_rows(&x.f_view([num_rows * num_pieces, width])?)?;
        let values = of_pieces.values.f_view([num_rows, num_in])?;
        let scales = of_pieces.scales.f_view([num_rows, num_pieces])?.f_transpose(0, 1)?.f_contiguous()?;
        let num_out = parts.first().map_or(Ok(0), |part| part.weight.values().size2().map(|(out, _)| out))?;
        let sums = self.empty(&[num_pieces, num_rows, num_out], Kind::Float)?;
        for (part, idx) in parts.iter().zip(0..) {
            let CudaWeight::Fp8(weight) = &part.weight else { return Err(NOT_FP8) };
            let rows = Fp8Rows { values: values.shallow_clone(), scales: scales.f_get(idx)? };
            CudaLinear::run_fp8_part(weight, (&rows, idx * width), &sums.f_get(idx)?, self)?;
        }
        Ok(sums)
    }

    /// The columns of logits of all ranks.
    pub(super) fn all_columns(&mut self, mine: &Tensor, model: &SharedTable) -> Result<Tensor, ModelError> {
        let starts = model.starts();
        let num_columns = starts.last().copied().unwrap_or(0);
        let out = self.empty(&[mine.size2()?.0, num_columns], Kind::Float)?;
        self.device_ranks()?.group.gather_columns(&self.stream()?, mine, &out, &starts)?;
        Ok(out)
    }

    /// Rows of a table that ranks share. A row is the sum of what all ranks have of it: its own and zeros.
    pub(super) fn embed_shared(
        &mut self,
        ids: &Tensor,
        table: &SharedTable,
        lookup: &mut dyn FnMut(Ids<'_>, &mut Self) -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        let (start, len) = table.own();
        let local = ids.f_sub_scalar(start)?;
        let is_own = local.f_ge(0)?.f_logical_and(&local.f_lt(len)?)?;
        // Never outside of the table, whatever the token.
        let local = local.f_clamp(0, len - 1)?.f_to_kind(Kind::Int)?;
        let mine = lookup(Ids::Device(&local), self)?;
        let mine = mine.f_to_kind(Kind::Float)?.f_mul(&is_own.f_unsqueeze(1)?.f_to_kind(Kind::Float)?)?;
        let kind = self.numerics.compute.kind();
        let rows = Tensor::f_zeros(mine.size().as_slice(), (kind, mine.device()))?;
        let sums = (&mine.f_unsqueeze(0)?, &rows);
        self.device_ranks()?.group.reduce_add(&self.stream()?, kind, sums, (None, None))?;
        Ok(rows)
    }
}

/// float32 `[num_pieces, num_rows, num_out]`: the product of each piece of the inputs, by one batched GEMM.
pub(super) fn piece_sums(x: &Tensor, weight: &Tensor, num_pieces: i64) -> Result<Tensor, ModelError> {
    let (num_rows, num_in) = x.size2()?;
    let num_out = weight.size2()?.0;
    let width = num_in / num_pieces.max(1);
    let x = x.f_view([num_rows, num_pieces, width])?.f_transpose(0, 1)?;
    let weight = weight.f_view([num_out, num_pieces, width])?.f_permute([1, 2, 0])?;
    let out = Tensor::f_empty([num_pieces, num_rows, num_out], (Kind::Float, x.device()))?;
    match x.kind() {
        Kind::Float => drop(x.f_bmm_out(&out, &weight)?),
        _ => drop(x.f_bmm_dtype_out(&out, &weight, Kind::Float)?),
    }
    Ok(out)
}
