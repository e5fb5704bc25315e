//! The GEMM in clusters against cuBLAS, bitwise, and on odd shapes against float64.

use cuda_kernels::{Activate, Gating, Gemm, GemmOut, MAX_CLUSTER_GEMM_ROWS, ModelKernels};
use model_spec::Nonlinearity;
use tch::{Kind, Tensor};
use torch_ext::cuda::blas;

use crate::cases::{Outcome, ensure};
use crate::cublas::LAYERS;
use crate::support::{Checked, Gpu, double, relative_error, same, tolerance};

/// Parts of groups of rows, of clusters, and as many as there may be.
const ROW_COUNTS: [i64; 10] = [1, 65, 96, 128, 200, 256, 333, 512, 1000, MAX_CLUSTER_GEMM_ROWS];

/// One output, part of a tile, part of a stage, rounds of blocks.
const ODD_SHAPES: [[i64; 2]; 5] = [[1, 8], [7, 48], [100, 264], [1_000, 528], [40_003, 96]];

const GATED: (Nonlinearity, Gating) = (Nonlinearity::Silu, Gating::Gated);

pub(crate) fn against_cublas(gpu: &Gpu) -> Outcome {
    blas::prefer_invariant()?;
    let kernels = gpu.kernels(Kind::BFloat16, 128, 1)?;
    for [num_out, num_in] in LAYERS {
        let random = |shape: &[i64]| gpu.random(shape, Kind::BFloat16);
        let weight = random(&[num_out, num_in])?.f_mul_scalar(4.0 / (num_in as f64).sqrt())?;
        let x = random(&[MAX_CLUSTER_GEMM_ROWS, num_in])?;
        let old = random(&[MAX_CLUSTER_GEMM_ROWS, num_out])?;
        let expect = x.f_linear::<&Tensor>(&weight, None)?;
        let mut added = old.f_detach_copy()?;
        blas::linear_add_out(&mut added, &x, &weight)?;
        let gated = gpu.unset(&[MAX_CLUSTER_GEMM_ROWS, num_out / 2], Kind::BFloat16)?;
        let (activation, gating) = GATED;
        kernels.activate(&gpu.stream, &Activate { activation, gating, x: &expect, out: &gated })?;
        for num_rows in ROW_COUNTS {
            let x = x.f_narrow(0, 0, num_rows)?;
            let run =
                |out| kernels.cluster_gemm(&gpu.stream, &Gemm { x: &x, weight: &weight, bias: None, out });
            let outs = [
                gpu.unset(&[num_rows, num_out], Kind::BFloat16)?,
                old.f_narrow(0, 0, num_rows)?.f_detach_copy()?,
                gpu.unset(&[num_rows, num_out / 2], Kind::BFloat16)?,
            ];
            run(GemmOut::Rounded(&outs[0]))?;
            run(GemmOut::Added(&outs[1]))?;
            run(GemmOut::Activated(&outs[2], activation, gating))?;
            for (what, out, all) in
                [("stored", &outs[0], &expect), ("added", &outs[1], &added), ("gated", &outs[2], &gated)]
            {
                ensure(same(out, &all.f_narrow(0, 0, num_rows)?)?, || {
                    format!("{num_rows} rows of [{num_out}, {num_in}], {what}, differ from cuBLAS's")
                })?;
            }
        }
    }
    Ok(format!("{} layers, up to {MAX_CLUSTER_GEMM_ROWS} rows, bitwise identical", LAYERS.len()))
}

pub(crate) fn odd_shapes(gpu: &Gpu) -> Outcome {
    let mut worst: f64 = 0.0;
    for kind in [Kind::BFloat16, Kind::Half] {
        let kernels = gpu.kernels(kind, 64, 1)?;
        for shape in ODD_SHAPES {
            for num_rows in ROW_COUNTS {
                let error = check_sums(gpu, &kernels, shape, num_rows)?;
                ensure(error < tolerance(kind), || {
                    format!("{num_rows} rows of {shape:?}, {kind:?}, are off by {error:.1e}")
                })?;
                worst = worst.max(error);
            }
        }
        refused(gpu, &kernels)?;
    }
    Ok(format!("off by at most {worst:.1e}"))
}

/// With a bias, rounded and in float32; the larger error.
fn check_sums(
    gpu: &Gpu,
    kernels: &ModelKernels,
    [num_out, num_in]: [i64; 2],
    num_rows: i64,
) -> Result<f64, Box<dyn std::error::Error>> {
    let kind = kernels.config().kind;
    let (x, weight) = (gpu.random(&[num_rows, num_in], kind)?, gpu.random(&[num_out, num_in], kind)?);
    let bias = gpu.random(&[num_out], kind)?;
    let expect = double(&x)?.f_matmul(&double(&weight)?.f_transpose(0, 1)?)?;
    let run = |bias: Option<&Tensor>, out: GemmOut<'_>| {
        kernels.cluster_gemm(&gpu.stream, &Gemm { x: &x, weight: &weight, bias, out })
    };
    let rounded = gpu.unset(&[num_rows, num_out], kind)?;
    run(Some(&bias), GemmOut::Rounded(&rounded))?;
    let float = gpu.unset(&[num_rows, num_out], Kind::Float)?;
    run(None, GemmOut::Float(&float))?;
    let errors =
        [relative_error(&rounded, &expect.f_add(&double(&bias)?)?)?, relative_error(&float, &expect)?];
    // A NaN must not hide behind the other.
    Ok(errors.into_iter().fold(0.0, |worst, error| if error <= worst { worst } else { error }))
}

fn refused(gpu: &Gpu, kernels: &ModelKernels) -> Checked {
    let numbers = |shape: &[i64]| gpu.zeros(shape, kernels.config().kind);
    let (x, weight) = (numbers(&[MAX_CLUSTER_GEMM_ROWS + 1, 64])?, numbers(&[32, 64])?);
    let out = numbers(&[MAX_CLUSTER_GEMM_ROWS + 1, 32])?;
    let gemm = Gemm { x: &x, weight: &weight, bias: None, out: GemmOut::Rounded(&out) };
    let taken = kernels.cluster_gemm(&gpu.stream, &gemm).is_ok();
    ensure(!taken, || format!("{MAX_CLUSTER_GEMM_ROWS} rows and one more were taken"))
}
