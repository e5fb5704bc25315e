//! What a GPU exchanges with those of the other tensor-parallel ranks.

use cuda_kernels::{Inbox, KernelConfig, ScoreKind, TensorRanks};
use cuda_runtime::kernel_cache;
use tch::{Kind, Tensor};

use super::linear::CudaWeight;
use super::{CudaLinear, CudaState};
use crate::ModelError;
use crate::ids::Ids;
use crate::kinds::TensorFormat;
use crate::model_ranks::{LostRank, ModelRanks};
use crate::ops::PiecedLinear;
use crate::parallel::{SLOT_ELEMS, SharedTable};

/// Rows whose partial sums are in memory at once.
const ROWS_AT_ONCE: i64 = 1024;

const NO_RANKS: ModelError =
    ModelError::NoBackend { backend: "CUDA", reason: "the ranks that share the model were not joined" };

/// The GPUs that share the model.
#[derive(Debug)]
pub(super) struct DeviceRanks {
    group: TensorRanks,
}

impl DeviceRanks {
    /// Shares memory with the ranks of `others`; with this GPU alone where there are none.
    pub(super) fn join(
        state: &CudaState,
        others: Option<&mut (dyn ModelRanks + 'static)>,
        (tp_rank, tp_size): (usize, usize),
    ) -> Result<Self, ModelError> {
        let inbox = Inbox::new(&state.device, tp_size, SLOT_ELEMS as i64)?;
        let handles = match others {
            Some(others) => others.all_gather(&inbox.handle()?)?,
            None => vec![Vec::new()],
        };
        // No kernel of these knows heads.
        let config = KernelConfig {
            kind: state.numerics.compute.kind(),
            head_dim: 16,
            queries_per_group: 1,
            has_fp8_kv: false,
            scores: ScoreKind::default(),
        };
        let group =
            TensorRanks::new(&state.device, &config, kernel_cache().as_deref(), inbox, (&handles, tp_rank))?;
        Ok(Self { group })
    }

    /// Whether all ranks came to every launch so far.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        match self.group.lost() {
            Some(rank) => Err(LostRank(format!(
                "the GPU of tensor-parallel rank {rank} did not come to a sum within 30 s: its process has ended or stands still"
            ))
            .into()),
            None => Ok(()),
        }
    }
}

impl CudaState {
    pub(super) fn device_ranks(&self) -> Result<&DeviceRanks, ModelError> {
        self.device_ranks.as_ref().ok_or(NO_RANKS)
    }

    /// `residual`, in place, plus the pieces of all ranks.
    pub(super) fn add_pieced(
        &mut self,
        layer: &PiecedLinear<CudaLinear>,
        x: &Tensor,
        residual: &Tensor,
    ) -> Result<(), ModelError> {
        let num_rows = x.size2()?.0;
        let mut start = 0;
        while start < num_rows {
            let rows = ROWS_AT_ONCE.min(num_rows - start);
            // Not fewer than have their own bits in every batch: the rest goes with the rows before.
            let rows = if num_rows - start - rows < super::MIN_ROWS { num_rows - start } else { rows };
            let x = x.f_narrow(0, start, rows)?;
            let sums = match layer.parts.as_slice() {
                [CudaLinear { weight: CudaWeight::Float(weight), .. }] => {
                    piece_sums(&x, weight, layer.num_pieces as i64)?
                }
                _ => layer.own_sum(&x, self)?.f_unsqueeze(0)?,
            };
            let kind = self.numerics.compute.kind();
            let into = residual.f_narrow(0, start, rows)?;
            let group = &self.device_ranks()?.group;
            group.reduce_add(&self.stream()?, kind, (&sums, &into), layer.bias.as_ref())?;
            start += rows;
        }
        Ok(())
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
        self.device_ranks()?.group.reduce_add(&self.stream()?, kind, (&mine.f_unsqueeze(0)?, &rows), None)?;
        Ok(rows)
    }
}

/// float32 `[num_pieces, num_rows, num_out]`: the product of each piece of the inputs, by one batched GEMM.
fn piece_sums(x: &Tensor, weight: &Tensor, num_pieces: i64) -> Result<Tensor, ModelError> {
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
