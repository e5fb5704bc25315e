//! Whether cuBLAS's bits of a row depend on the number of rows, for all layers and row counts that the program uses.

use cuda_kernels::MAX_GEMM_ROWS;
use tch::{Kind, Tensor};
use torch_ext::cuda::blas;

use crate::cases::{Outcome, ensure};
use crate::support::{Gpu, same};

/// `linear_qkv`, `linear_proj`, `linear_fc1` and `linear_fc2` of the shapes that `aligner-gen bench` knows: 7B, 2B, 8B, whose
/// `linear_proj` is that of 7B.
pub(crate) const LAYERS: [[i64; 2]; 11] = [
    [12_288, 4_096],
    [4_096, 4_096],
    [22_016, 4_096],
    [4_096, 11_008],
    [6_144, 2_048],
    [2_048, 2_048],
    [10_880, 2_048],
    [2_048, 5_440],
    [6_144, 4_096],
    [28_672, 4_096],
    [4_096, 14_336],
];

/// Their output layers.
const OUTPUT_LAYERS: [[i64; 2]; 3] = [[32_000, 4_096], [256_000, 2_048], [128_256, 4_096]];

/// Decode steps have multiples of 32 rows, the prompts of a prefill any number up to 8,192 together.
static ROW_COUNTS: [i64; 16] =
    [32, 64, 96, 128, 160, 192, 224, 256, 320, 512, 777, 1024, 1999, 4096, 5003, 8192];

/// The most rows whose logits are computed at once.
const MAX_OUTPUT_ROWS: i64 = 1024;

pub(crate) fn row_counts(gpu: &Gpu) -> Outcome {
    blas::prefer_invariant()?;
    let counts = counts(gpu)?;
    for shape @ [num_out, num_in] in LAYERS {
        let (x, weight) = layer(gpu, shape)?;
        let old = gpu.random(&[x.size()[0], num_out], Kind::BFloat16)?;
        let mut all_added = old.f_detach_copy()?;
        blas::linear_add_out(&mut all_added, &x, &weight)?;
        let all = x.f_linear::<&Tensor>(&weight, None)?;
        for &num_rows in counts {
            let x = x.f_narrow(0, 0, num_rows)?;
            let out = x.f_linear::<&Tensor>(&weight, None)?;
            let mut added = old.f_narrow(0, 0, num_rows)?.f_detach_copy()?;
            blas::linear_add_out(&mut added, &x, &weight)?;
            for (few, all) in [(out, &all), (added, &all_added)] {
                ensure(same(&few, &all.f_narrow(0, 0, num_rows)?)?, || {
                    format!("{num_rows} rows of [{num_out}, {num_in}] differ from those of larger batches")
                })?;
            }
        }
    }
    for shape @ [num_out, num_in] in OUTPUT_LAYERS {
        let (x, weight) = layer(gpu, shape)?;
        let logits = |num_rows: i64| -> Result<Tensor, Box<dyn std::error::Error>> {
            let mut out = gpu.unset(&[num_rows, num_out], Kind::Float)?;
            blas::linear_f32_out(&mut out, &x.f_narrow(0, 0, num_rows)?, &weight)?;
            Ok(out)
        };
        let all = logits(MAX_OUTPUT_ROWS)?;
        for num_rows in counts.iter().copied().filter(|&num_rows| num_rows <= MAX_OUTPUT_ROWS) {
            ensure(same(&logits(num_rows)?, &all.f_narrow(0, 0, num_rows)?)?, || {
                format!(
                    "the logits of {num_rows} rows of [{num_out}, {num_in}] differ from those of larger batches"
                )
            })?;
        }
    }
    Ok(format!(
        "bitwise identical for {} to 8192 rows of {} layers, alone and added to the residual, and for up to {MAX_OUTPUT_ROWS} rows of logits",
        counts[0],
        LAYERS.len()
    ))
}

/// The counts that are left to cuBLAS: those of small batches are not where the in-house GEMM runs.
fn counts(gpu: &Gpu) -> Result<&'static [i64], Box<dyn std::error::Error>> {
    let has_small_batches = gpu.device.compute_capability()? == (9, 0);
    let first = if has_small_batches { ROW_COUNTS.partition_point(|&rows| rows <= MAX_GEMM_ROWS) } else { 0 };
    Ok(&ROW_COUNTS[first..])
}

/// As many rows as the largest count, and a weight.
fn layer(gpu: &Gpu, [num_out, num_in]: [i64; 2]) -> Result<(Tensor, Tensor), Box<dyn std::error::Error>> {
    let x = gpu.random(&[ROW_COUNTS[ROW_COUNTS.len() - 1], num_in], Kind::BFloat16)?;
    Ok((x, gpu.random(&[num_out, num_in], Kind::BFloat16)?))
}
