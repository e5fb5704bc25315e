//! The GEMM of small batches against float64 on odd shapes, and against cuBLAS, bitwise.

use cuda_kernels::{Activate, Gating, Gemm, GemmOut, GemmUse, MAX_GEMM_ROWS, ModelKernels};
use model_spec::Nonlinearity;
use tch::{Kind, Tensor};
use torch_ext::cuda::blas;

use crate::cases::{Outcome, ensure};
use crate::cublas::LAYERS;
use crate::pointwise::NONLINEARITIES;
use crate::support::{Checked, Gpu, double, relative_error, same, tolerance};

const HALF_KINDS: [Kind; 2] = [Kind::BFloat16, Kind::Half];

/// One output, part of a tile, parts of stages, more tiles than the GPU holds at once; with 64 rows a ring of two stages.
const ODD_SHAPES: [[i64; 2]; 6] = [[1, 8], [7, 48], [100, 264], [1000, 528], [70_003, 96], [46_464, 1_040]];

/// A layer that is wider than those of the known shapes.
const WIDE_LAYER: [i64; 2] = [28_672, 8_192];

/// A use with sums in one chain.
fn chain_of([num_out, num_in]: [i64; 2], activated: Option<(Nonlinearity, Gating)>) -> GemmUse {
    GemmUse { num_out, num_in, activated, num_pieces: 1 }
}

pub(crate) fn odd_shapes(gpu: &Gpu) -> Outcome {
    let mut worst: f64 = 0.0;
    for kind in HALF_KINDS {
        let kernels = gpu.kernels(kind, 64, 1)?;
        for shape in ODD_SHAPES {
            for num_rows in 1..=kernels.max_gemm_rows(chain_of(shape, None))? {
                let error = check_sums(gpu, &kernels, shape, num_rows)?;
                ensure(error < tolerance(kind), || {
                    format!("{num_rows} rows of {shape:?}, {kind:?}, are off by {error:.1e}")
                })?;
                worst = worst.max(error);
            }
        }
    }
    Ok(format!("1 to {MAX_GEMM_ROWS} rows, off by at most {worst:.1e}"))
}

/// All kinds of outputs; the largest error.
fn check_sums(
    gpu: &Gpu,
    kernels: &ModelKernels,
    [num_out, num_in]: [i64; 2],
    num_rows: i64,
) -> Result<f64, Box<dyn std::error::Error>> {
    let kind = kernels.config().kind;
    let (x, weight) = (gpu.random(&[num_rows, num_in], kind)?, gpu.random(&[num_out, num_in], kind)?);
    let (bias, old) = (gpu.random(&[num_out], kind)?, gpu.random(&[num_rows, num_out], kind)?);
    let expect = double(&x)?.f_matmul(&double(&weight)?.f_transpose(0, 1)?)?;
    let run = |bias: Option<&Tensor>, out: GemmOut<'_>| {
        kernels.gemm(&gpu.stream, &Gemm { x: &x, weight: &weight, bias, num_pieces: 1, out })
    };
    let rounded = gpu.unset(&[num_rows, num_out], kind)?;
    run(Some(&bias), GemmOut::Rounded(&rounded))?;
    let added = old.f_detach_copy()?;
    run(None, GemmOut::Added(&added))?;
    let float = gpu.unset(&[num_rows, num_out], Kind::Float)?;
    run(None, GemmOut::Float(&float))?;
    let errors = [
        relative_error(&rounded, &expect.f_add(&double(&bias)?)?)?,
        // The sum is rounded before it is added, as cuBLAS does.
        relative_error(&added, &double(&expect.f_to_kind(kind)?)?.f_add(&double(&old)?)?)?,
        relative_error(&float, &expect)?,
    ];
    // A NaN must not hide behind the others.
    Ok(errors.into_iter().fold(0.0, |worst, error| if error <= worst { worst } else { error }))
}

/// GEMM and activation in one kernel are bitwise identical to one after the other.
pub(crate) fn activated(gpu: &Gpu) -> Outcome {
    for kind in HALF_KINDS {
        let kernels = gpu.kernels(kind, 64, 1)?;
        for ([ffn, num_in], gating) in [
            ([5_440, 2_048], Gating::Gated),
            ([77, 264], Gating::Gated),
            ([1_000, 528], Gating::Plain),
            ([40_003, 96], Gating::Gated),
        ] {
            let num_out = if gating == Gating::Gated { 2 * ffn } else { ffn };
            let weight = gpu
                .random(&[num_out, num_in], kind)?
                .f_mul_scalar(4.0 / (num_in as f64).sqrt())?
                .f_to_kind(kind)?;
            let bias = gpu.random(&[num_out], kind)?;
            for activation in NONLINEARITIES {
                let most_rows =
                    kernels.max_gemm_rows(chain_of([num_out, num_in], Some((activation, gating))))?;
                for num_rows in [1, 3, 8, 9, 64] {
                    if num_rows > most_rows {
                        continue;
                    }
                    let x = gpu.random(&[num_rows, num_in], kind)?;
                    let run = |out| {
                        let gemm = Gemm { x: &x, weight: &weight, bias: Some(&bias), num_pieces: 1, out };
                        kernels.gemm(&gpu.stream, &gemm)
                    };
                    let wide = gpu.unset(&[num_rows, num_out], kind)?;
                    run(GemmOut::Rounded(&wide))?;
                    let expect = gpu.unset(&[num_rows, ffn], kind)?;
                    kernels
                        .activate(&gpu.stream, &Activate { activation, gating, x: &wide, out: &expect })?;
                    let out = gpu.unset(&[num_rows, ffn], kind)?;
                    run(GemmOut::Activated(&out, activation, gating))?;
                    ensure(same(&out, &expect)?, || {
                        format!("{num_rows} rows of {ffn} {activation:?} {gating:?} {kind:?} differ")
                    })?;
                }
            }
        }
    }
    Ok("six functions, plain and gated, bitwise identical".to_owned())
}

pub(crate) fn against_cublas(gpu: &Gpu) -> Outcome {
    blas::prefer_invariant()?;
    let kernels = gpu.kernels(Kind::BFloat16, 128, 1)?;
    for shape @ [num_out, num_in] in LAYERS.into_iter().chain([WIDE_LAYER]) {
        let x = gpu.random(&[MAX_GEMM_ROWS, num_in], Kind::BFloat16)?;
        let weight = gpu.random(&[num_out, num_in], Kind::BFloat16)?;
        let expect = x.f_linear::<&Tensor>(&weight, None)?;
        let most_rows = kernels.max_gemm_rows(chain_of(shape, None))?;
        ensure(most_rows > 0, || format!("{shape:?} does not fit"))?;
        for num_rows in 1..=most_rows {
            let out = gpu.unset(&[num_rows, num_out], Kind::BFloat16)?;
            let x = x.f_narrow(0, 0, num_rows)?;
            let gemm =
                Gemm { x: &x, weight: &weight, bias: None, num_pieces: 1, out: GemmOut::Rounded(&out) };
            kernels.gemm(&gpu.stream, &gemm)?;
            ensure(same(&out, &expect.f_narrow(0, 0, num_rows)?)?, || {
                format!("{num_rows} rows of {shape:?} differ from cuBLAS's")
            })?;
        }
    }
    refused(gpu, &kernels)?;
    Ok(format!("bitwise identical on {} layers", LAYERS.len() + 1))
}

/// Of float32 sums over up to 14,336 inputs, which tensor cores cut off where others round: of 2,048 they are off by 2.1e-6.
const PIECES_ERROR: f64 = 2e-5;

/// Sums of pieces in a tree, against float64, and bit by bit against the pieces as chains of their own: by the same kernel,
/// and by cuBLAS's batched GEMM, which large batches go through.
pub(crate) fn pieces(gpu: &Gpu) -> Outcome {
    blas::prefer_invariant()?;
    let mut worst: f64 = 0.0;
    let mut num_like_cublas = 0;
    // Pieces of whole stages, of a part of a tile, of an odd number of tiles; hidden sizes of one and of two blocks a
    // multiprocessor.
    let shapes =
        [[4_096, 4_096], [4_096, 11_008], [5_120, 13_824], [8_192, 28_672], [100, 128], [12_288, 4_096]];
    for kind in HALF_KINDS {
        let kernels = gpu.kernels(kind, 64, 1)?;
        for [num_out, num_in] in shapes {
            let weight = gpu.random(&[num_out, num_in], kind)?;
            let x = gpu.random(&[MAX_GEMM_ROWS, num_in], kind)?;
            let expect = double(&x)?.f_matmul(&double(&weight)?.f_transpose(0, 1)?)?;
            for num_pieces in [2, 4, 8] {
                let of = GemmUse { num_out, num_in, activated: None, num_pieces };
                let most_rows = kernels.max_gemm_rows(of)?;
                ensure(most_rows == MAX_GEMM_ROWS, || format!("{of:?} takes {most_rows} rows"))?;
                let run =
                    |x: &Tensor, weight: &Tensor, num_pieces| -> Result<Tensor, Box<dyn std::error::Error>> {
                        let out = gpu.unset(&[x.size()[0], num_out], Kind::Float)?;
                        let gemm = Gemm { x, weight, bias: None, num_pieces, out: GemmOut::Float(&out) };
                        kernels.gemm(&gpu.stream, &gemm)?;
                        Ok(out)
                    };
                let sums = run(&x, &weight, num_pieces)?;
                let error = relative_error(&sums, &expect)?;
                ensure(error < PIECES_ERROR, || format!("{of:?} {kind:?} is off by {error:.1e}"))?;
                worst = worst.max(error);
                for num_rows in [1, 7, 32] {
                    let few = run(&x.f_narrow(0, 0, num_rows)?, &weight, num_pieces)?;
                    ensure(same(&few, &sums.f_narrow(0, 0, num_rows)?)?, || {
                        format!("{num_rows} rows of {of:?} {kind:?} differ from {MAX_GEMM_ROWS}")
                    })?;
                }
                let width = num_in / num_pieces;
                let piece =
                    |tensor: &Tensor, idx: i64| tensor.f_narrow(1, idx * width, width)?.f_contiguous();
                let chains = (0..num_pieces)
                    .map(|idx| run(&piece(&x, idx)?, &piece(&weight, idx)?, 1))
                    .collect::<Result<Vec<_>, _>>()?;
                ensure(same(&sums, &tree(chains)?)?, || {
                    format!("{of:?} {kind:?} is not the tree of its pieces")
                })?;
                let batched = x.f_view([MAX_GEMM_ROWS, num_pieces, width])?.f_transpose(0, 1)?.f_bmm_dtype(
                    &weight.f_view([num_out, num_pieces, width])?.f_permute([1, 2, 0])?,
                    Kind::Float,
                )?;
                let batched = (0..num_pieces).map(|idx| batched.f_get(idx)).collect::<Result<Vec<_>, _>>()?;
                num_like_cublas += usize::from(same(&sums, &tree(batched)?)?);
            }
        }
    }
    let num_cases = HALF_KINDS.len() * shapes.len() * 3;
    Ok(format!("off by at most {worst:.1e}; {num_like_cublas} of {num_cases} have cuBLAS's bits"))
}

/// `((0 + 1) + (2 + 3)) + ...`
pub(crate) fn tree(mut sums: Vec<Tensor>) -> Result<Tensor, Box<dyn std::error::Error>> {
    while sums.len() > 1 {
        sums = sums.chunks(2).map(|pair| pair[0].f_add(&pair[1])).collect::<Result<_, _>>()?;
    }
    sums.pop().ok_or_else(|| "no sums".into())
}

fn refused(gpu: &Gpu, kernels: &ModelKernels) -> Checked {
    let numbers = |shape: &[i64]| gpu.zeros(shape, Kind::BFloat16);
    for (x, weight, out) in [
        (numbers(&[65, 64])?, numbers(&[32, 64])?, numbers(&[65, 32])?),
        (numbers(&[1, 36])?, numbers(&[32, 36])?, numbers(&[1, 32])?),
        (numbers(&[1, 64])?, numbers(&[32, 80])?, numbers(&[1, 32])?),
        (numbers(&[1, 64])?, numbers(&[32, 64])?, numbers(&[1, 31])?),
    ] {
        let gemm = Gemm { x: &x, weight: &weight, bias: None, num_pieces: 1, out: GemmOut::Rounded(&out) };
        let taken = kernels.gemm(&gpu.stream, &gemm).is_ok();
        ensure(!taken, || format!("{:?} by {:?} was taken", x.size(), weight.size()))?;
    }
    Ok(())
}
