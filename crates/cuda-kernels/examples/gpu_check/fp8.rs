//! FP8 linear layers: conversion against libtorch's on the CPU, bitwise; norms that convert against those
//! that do not, bitwise; GEMMs against float64, and every number of rows against all of them, bitwise.

use cuda_kernels::{E4M3, Fp8Out, Fp8RowsOut, GemmFp8, ModelKernels, Normalize, NormalizeFp8, QuantizeRows};
use model_spec::Normalization;
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::support::{Checked, Gpu, double, relative_error, same};

/// The tensor cores keep 14 bits of a sum of 128 products.
const SUM_ERROR: f64 = 2e-4;

/// Parts of a tile and of a stage, more tiles than the GPU holds at once, layers of 8B.
const SHAPES: [[i64; 2]; 6] =
    [[8, 16], [1_000, 528], [6_144, 4_096], [4_096, 14_336], [28_672, 4_096], [40_008, 144]];

const ROW_COUNTS: [i64; 13] = [1, 3, 8, 33, 64, 65, 128, 129, 256, 300, 512, 700, 1_999];

pub(crate) struct Fp8Rows {
    values: Tensor,
    scales: Tensor,
}

impl Fp8Rows {
    /// Poisoned: 0xff is a NaN.
    pub(crate) fn unset(gpu: &Gpu, shape: &[i64]) -> Result<Self, Box<dyn std::error::Error>> {
        let bytes = Tensor::f_full(shape, 255, (Kind::Uint8, gpu.device.tch()))?;
        Ok(Self { values: bytes.f_view_dtype(E4M3)?, scales: gpu.unset(&shape[..1], Kind::Float)? })
    }

    pub(crate) fn out(&self) -> Fp8RowsOut<'_> {
        Fp8RowsOut { values: &self.values, scales: &self.scales }
    }

    fn has_bits_of(&self, other: &Self) -> Result<bool, Box<dyn std::error::Error>> {
        Ok(same(&bits(&self.values, Kind::Uint8)?, &bits(&other.values, Kind::Uint8)?)?
            && same(&bits(&self.scales, Kind::Int)?, &bits(&other.scales, Kind::Int)?)?)
    }
}

fn quantize(gpu: &Gpu, kernels: &ModelKernels, x: &Tensor) -> Result<Fp8Rows, Box<dyn std::error::Error>> {
    let rows = Fp8Rows::unset(gpu, &x.size())?;
    kernels.quantize_rows(&gpu.stream, &QuantizeRows { x, out: rows.out() })?;
    Ok(rows)
}

/// Bits, so that NaN equals NaN.
fn bits(tensor: &Tensor, kind: Kind) -> Result<Tensor, Box<dyn std::error::Error>> {
    Ok(tensor.f_contiguous()?.f_view_dtype(kind)?)
}

pub(crate) fn conversion(gpu: &Gpu) -> Outcome {
    for kind in [Kind::BFloat16, Kind::Half] {
        let kernels = gpu.kernels(kind, 64, 1)?;
        for shape in [[1, 16], [6, 4_096], [300, 14_336], [3, 53_248]] {
            let mut x = gpu.random(&shape, kind)?.f_mul_scalar(3.0)?.f_to_kind(kind)?;
            if shape[0] == 6 {
                // Zeros, NaN, infinity, the smallest numbers.
                let _ = x.f_narrow(0, 1, 1)?.f_zero_()?;
                for (row, value) in [(2, f64::NAN), (3, f64::INFINITY)] {
                    let _ = x.f_narrow(0, row, 1)?.f_narrow(1, 7, 1)?.f_fill_(value)?;
                }
                x = x.f_mul(
                    &gpu.put(&Tensor::from_slice(&[1.0, 1.0, 1.0, 1.0, 1e-37, 1e4]).f_view([6, 1])?)?,
                )?;
                x = x.f_to_kind(kind)?;
            }
            let rows = quantize(gpu, &kernels, &x)?;
            let wide = x.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?;
            let max = wide.f_abs()?.f_amax([1], true)?.f_clamp_min((-100_f64).exp2())?;
            let largest = max.f_full_like(448.0)?;
            let expect = wide.f_mul(&largest.f_div(&max)?)?.f_to_kind(E4M3)?;
            let expect_scales = max.f_div(&largest)?.f_view([-1])?;
            let values = bits(&rows.values.f_to_device(tch::Device::Cpu)?, Kind::Uint8)?;
            // The sign of NaN is nobody's promise.
            let nan = expect.f_to_kind(Kind::Float)?.f_isnan()?;
            let unsigned = |bits: Tensor| bits.f_where_self(&nan.f_logical_not()?, &bits.f_full_like(127)?);
            ensure(same(&unsigned(values)?, &unsigned(bits(&expect, Kind::Uint8)?)?)?, || {
                format!("{shape:?} in {kind:?} has other numbers than libtorch's")
            })?;
            let scales = rows.scales.f_to_device(tch::Device::Cpu)?;
            let filled = |scales: &Tensor| scales.f_nan_to_num(7.0, 8.0, 9.0);
            ensure(same(&filled(&scales)?, &filled(&expect_scales)?)?, || {
                format!("{shape:?} in {kind:?} has other scales")
            })?;
        }
    }
    Ok("bitwise identical to libtorch's, NaN and infinity included".to_owned())
}

/// Rows of norms that are in use, odd ones, and the widest; one row, some, many.
const NORM_SHAPES: [[i64; 2]; 9] = [
    [1, 64],
    [3, 4_544],
    [7, 2_056],
    [2, 16_384],
    [1, 4_096],
    [64, 4_096],
    [300, 8_192],
    [33, 5_120],
    [1_024, 3_072],
];

pub(crate) fn fused(gpu: &Gpu) -> Outcome {
    for kind in [Kind::BFloat16, Kind::Half] {
        let kernels = gpu.kernels(kind, 64, 1)?;
        for shape in NORM_SHAPES {
            for normalization in [Normalization::RmsNorm, Normalization::LayerNorm] {
                for has_bias in [false, true] {
                    let x = with_odd_rows(&gpu.random(&shape, kind)?)?;
                    let [gain, bias] = [0, 1].map(|_| gpu.random(&shape[1..], Kind::Float));
                    let (gain, bias) = (gain?, bias?);
                    let bias = has_bias.then_some(&bias);
                    let out = gpu.unset(&shape, kind)?;
                    let norm = Normalize { normalization, x: &x, gain: &gain, bias, eps: 1e-5, out: &out };
                    kernels.norm(&gpu.stream, &norm)?;
                    let rows = Fp8Rows::unset(gpu, &shape)?;
                    let norm =
                        NormalizeFp8 { normalization, x: &x, gain: &gain, bias, eps: 1e-5, out: rows.out() };
                    kernels.norm_fp8(&gpu.stream, &norm)?;
                    ensure(rows.has_bits_of(&quantize(gpu, &kernels, &out)?)?, || {
                        format!("{normalization:?} {kind:?} {shape:?}, bias: {has_bias}: other bits")
                    })?;
                }
            }
        }
    }
    Ok("norms have the bits of separate kernels, NaN and zeros included".to_owned())
}

/// With a row of zeros and one with a NaN, where there are several.
fn with_odd_rows(x: &Tensor) -> Result<Tensor, Box<dyn std::error::Error>> {
    if x.size2()?.0 > 2 {
        let _ = x.f_narrow(0, 1, 1)?.f_zero_()?;
        let _ = x.f_narrow(0, 2, 1)?.f_narrow(1, 5, 1)?.f_fill_(f64::NAN)?;
    }
    Ok(x.shallow_clone())
}

pub(crate) fn gemms(gpu: &Gpu) -> Outcome {
    let mut worst: f64 = 0.0;
    let kernels = gpu.kernels(Kind::BFloat16, 64, 1)?;
    for shape @ [num_out, num_in] in SHAPES {
        kernels.load_fp8(num_out, num_in)?;
        let most = ROW_COUNTS[ROW_COUNTS.len() - 1];
        let x = quantize(gpu, &kernels, &gpu.random(&[most, num_in], Kind::BFloat16)?)?;
        let weight = quantize(gpu, &kernels, &gpu.random(&[num_out, num_in], Kind::BFloat16)?)?;
        let [bias, old] =
            [vec![num_out], vec![most, num_out]].map(|shape| gpu.random(&shape, Kind::BFloat16));
        let (bias, old) = (bias?, old?);
        let run = |num_rows: i64, bias: Option<&Tensor>, out: Fp8Out<'_>| -> Checked {
            let gemm = GemmFp8 {
                x: &x.values.f_narrow(0, 0, num_rows)?,
                x_start: 0,
                x_scales: &x.scales.f_narrow(0, 0, num_rows)?,
                weight: &weight.values,
                weight_scales: &weight.scales,
                bias,
                out,
            };
            Ok(kernels.gemm_fp8(&gpu.stream, &gemm)?)
        };
        let all = gpu.unset(&[most, num_out], Kind::Float)?;
        run(most, None, Fp8Out::Float(&all))?;
        let products = double(&x.values)?.f_matmul(&double(&weight.values)?.f_transpose(0, 1)?)?;
        let expect = products.f_mul(&double(&x.scales)?.f_unsqueeze(1)?)?.f_mul(&double(&weight.scales)?)?;
        let error = relative_error(&all, &expect)?;
        ensure(error < SUM_ERROR, || format!("{shape:?} is off by {error:.1e}"))?;
        worst = worst.max(error);
        for num_rows in ROW_COUNTS {
            let few = |tensor: &Tensor| tensor.f_narrow(0, 0, num_rows);
            let float = gpu.unset(&[num_rows, num_out], Kind::Float)?;
            run(num_rows, None, Fp8Out::Float(&float))?;
            let rounded = gpu.unset(&[num_rows, num_out], Kind::BFloat16)?;
            run(num_rows, Some(&bias), Fp8Out::Rounded(&rounded))?;
            let added = few(&old)?.f_detach_copy()?;
            run(num_rows, None, Fp8Out::Added(&added))?;
            let with_bias = few(&all)?.f_add(&bias.f_to_kind(Kind::Float)?)?.f_to_kind(Kind::BFloat16)?;
            let with_old = few(&all)?.f_to_kind(Kind::BFloat16)?.f_add(&few(&old)?)?;
            for (what, out, expect) in [
                ("float32", float, few(&all)?),
                ("with a bias", rounded, with_bias),
                ("added to the residual", added, with_old),
            ] {
                ensure(same(&out, &expect)?, || {
                    format!("{num_rows} rows of {shape:?} {what} differ from those of {most}")
                })?;
            }
        }
    }
    refused(gpu, &kernels)?;
    Ok(format!(
        "off by at most {worst:.1e}; bitwise identical for 1 to {} rows",
        ROW_COUNTS[ROW_COUNTS.len() - 1]
    ))
}

/// Sizes that the copy engine or the stores do not take.
fn refused(gpu: &Gpu, kernels: &ModelKernels) -> Checked {
    let e4m3 = |shape: [i64; 2]| Tensor::f_zeros(shape, (E4M3, gpu.device.tch()));
    let ones = |size: i64| gpu.random(&[size], Kind::Float);
    for (x, weight, out) in [
        ([1, 24], [8, 24], [1, 8]),
        ([1, 16], [12, 16], [1, 12]),
        ([1, 16], [8, 32], [1, 8]),
        ([1, 16], [8, 16], [1, 16]),
    ] {
        let gemm = GemmFp8 {
            x: &e4m3(x)?,
            x_start: 0,
            x_scales: &ones(x[0])?,
            weight: &e4m3(weight)?,
            weight_scales: &ones(weight[0])?,
            bias: None,
            out: Fp8Out::Rounded(&gpu.zeros(&out, Kind::BFloat16)?),
        };
        ensure(kernels.gemm_fp8(&gpu.stream, &gemm).is_err(), || {
            format!("{x:?} by {weight:?} to {out:?} was taken")
        })?;
    }
    Ok(())
}
