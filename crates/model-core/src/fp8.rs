//! FP8 where nothing multiplies it: linear layers with the same numbers and scales and with products and sums in float32, and
//! the numbers of an FP8 cache.
//!
//! A row, of a weight or of a layer's inputs, is scaled so that its largest element becomes 448, the largest number of e4m3.
//! The CUDA kernel (`crates/cuda-kernels/kernels/quantize.cu`) takes the same steps in float32 and gives the same bits. A
//! product of two such numbers is exact in float32, so only the order of the sums differs from a GPU's.

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::ops::Fp8Bytes;

/// The largest number of e4m3.
const LARGEST: f64 = 448.0;
/// 2^-100: a row of smaller numbers is scaled as if this were its largest, or the factor would leave the range of float32.
const SMALLEST_MAX: f64 = 1.0 / (1_u128 << 100) as f64;

/// Only the output layer is a table as well.
pub(crate) const NO_TABLE: ModelError =
    ModelError::NoBackend { backend: "FP8", reason: "a quantized linear layer is no embedding table" };

/// Rows in FP8.
#[derive(Debug)]
pub(crate) struct Fp8Rows {
    /// e4m3 `[num_rows, width]`.
    pub(crate) values: Tensor,
    /// float32 `[num_rows]`.
    pub(crate) scales: Tensor,
}

impl Fp8Rows {
    /// Of rows that are stored so.
    pub(crate) fn stored(weight: Fp8Bytes<'_>) -> Result<Self, ModelError> {
        let shape: Vec<i64> = weight.shape.iter().map(|&dim| dim as i64).collect();
        let values = Tensor::f_from_data_size(weight.numbers, &shape, Kind::Float8e4m3fn)?;
        Ok(Self { values, scales: Tensor::f_from_slice(weight.scales)? })
    }

    /// Of rows in any floating-point type. A row with NaN becomes NaN.
    pub(crate) fn of(x: &Tensor) -> Result<Self, ModelError> {
        let x = x.f_to_kind(Kind::Float)?;
        let max = x.f_abs()?.f_amax([1], true)?.f_clamp_min(SMALLEST_MAX)?;
        // A tensor, since libtorch would multiply by the reciprocal of a number.
        let largest = max.f_full_like(LARGEST)?;
        let values = x.f_mul(&largest.f_div(&max)?)?.f_to_kind(Kind::Float8e4m3fn)?;
        Ok(Self { values, scales: max.f_div(&largest)?.f_view([-1])? })
    }
}

/// Keys or values `[.., kv_channels]` as an FP8 cache holds them (`model_spec::KvFormat::Fp8`), in their own type. A head with
/// an infinity or a NaN becomes NaN. The CPU kernels (`crates/cpu-kernels/src/e4m3.rs`) and the CUDA kernels
/// (`crates/cuda-kernels/kernels/cached.cuh`) give the same numbers.
pub(crate) fn rounded_heads(heads: &Tensor) -> Result<Tensor, ModelError> {
    /// Of float32, below its exponent.
    const MANTISSA_BITS: i64 = 23;
    /// Above 1.75 a mantissa carries into the exponent: 448 is 1.75 * 2^8.
    const CARRY: i64 = 0x7f_ffff - 0x60_0000;
    /// Biased by 127 they are the exponents of 448 * 2^-60 and of infinity.
    const LEAST: i64 = 127 - 60;
    const INFINITY: f64 = f64::INFINITY;
    let wide = heads.f_to_kind(Kind::Float)?;
    let max = wide.f_abs()?.f_amax([-1], true)?;
    let is_finite = max.f_lt(INFINITY)?;
    let bits = max.f_where_self(&is_finite, &max.f_zeros_like()?)?.f_view_dtype(Kind::Int)?;
    let biased = bits
        .f_add_scalar(CARRY)?
        .f_bitwise_right_shift_tensor_scalar(MANTISSA_BITS)?
        .f_sub_scalar(8)?
        .f_clamp_min(LEAST)?;
    let power =
        |biased: &Tensor| biased.f_bitwise_left_shift_tensor_scalar(MANTISSA_BITS)?.f_view_dtype(Kind::Float);
    let scale = power(&biased)?;
    let inverse = power(&biased.f_neg()?.f_add_scalar(254)?)?;
    let numbers = wide.f_mul(&inverse)?.f_to_kind(Kind::Float8e4m3fn)?.f_to_kind(Kind::Float)?;
    let rounded = numbers.f_mul(&scale)?;
    let nan = rounded.f_full_like(f64::NAN)?;
    Ok(rounded.f_where_self(&is_finite, &nan)?.f_to_kind(heads.kind())?)
}

/// The results of a linear layer from the products of rows in FP8, float32 `[num_rows, out_features]`: each times the scales
/// of its row and its output, plus the bias, `[out_features]`.
pub(crate) fn scaled(
    products: &Tensor,
    row_scales: &Tensor,
    out_scales: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    let scaled = products.f_mul(&row_scales.f_unsqueeze(1)?)?.f_mul(out_scales)?;
    Ok(match bias {
        Some(bias) => scaled.f_add(&bias.f_to_kind(Kind::Float)?)?,
        None => scaled,
    })
}

#[cfg(test)]
mod tests {
    use model_spec::{Activation, Float, Nonlinearity, Numerics};
    use nemo_format::DType;

    use super::*;
    use crate::backend::cpu::CpuLoader;
    use crate::backend::plain::PlainLoader;
    use crate::kinds::{StoredFloat, TensorFormat};
    use crate::ops::{Epilogue, LinearOp, LinearRole, LinearSource, Loader, StoredLinearWeight, WeightBytes};
    use crate::{AttentionSwitches, Isa};

    fn of(rows: &[f32], width: i64) -> (Vec<u8>, Vec<f32>) {
        let Fp8Rows { values, scales } = Fp8Rows::of(&Tensor::from_slice(rows).view([-1, width])).unwrap();
        let bits = values.contiguous().view_dtype(Kind::Uint8).view([-1]);
        (Vec::try_from(bits).unwrap(), Vec::try_from(scales).unwrap())
    }

    #[test]
    fn the_largest_of_a_row_becomes_the_largest_number() {
        // e4m3: 448 is 0x7e, 224 is 0x76, -448 is 0xfe; of 448 / 3 * 0.5 = 74.67 the nearest is 72, 0x69.
        let (bits, scales) = of(&[1.0, 0.5, -1.0, 0.0, 3.0, 0.5, 0.0, -3.0], 4);
        assert_eq!(bits, [0x7e, 0x76, 0xfe, 0x00, 0x7e, 0x69, 0x00, 0xfe]);
        assert_eq!(scales, [1.0 / 448.0, 3.0 / 448.0]);
    }

    #[test]
    fn zeros_stay_and_nan_is_kept() {
        let (bits, scales) = of(&[0.0, -0.0, 1e-38, 0.0, f32::NAN, 1.0], 2);
        assert_eq!(bits[..2], [0x00, 0x80]);
        assert!(scales[0] > 0.0 && scales[0] == scales[1]);
        assert!(scales[2].is_nan() && bits[4] & 0x7f == 0x7f && bits[5] & 0x7f == 0x7f);
        let (_, scales) = of(&[f32::INFINITY, 1.0], 2);
        assert!(scales[0].is_infinite());
    }

    fn cached(head: &[f32]) -> Vec<f32> {
        let rounded = rounded_heads(&Tensor::from_slice(head).view([1, -1])).unwrap();
        Vec::try_from(rounded.view([-1])).unwrap()
    }

    /// The vectors of the CPU kernels' tests.
    #[test]
    fn a_head_is_scaled_by_the_least_power_of_two_that_fits() {
        assert_eq!(cached(&[1.0, 1.0 + 17.0 / 256.0, 0.3]), [1.0, 1.125, 0.3125]);
        assert_eq!(cached(&[448.0, 449.0, 1.0 / 512.0])[1..], [448.0, 0.0]);
        assert_eq!(cached(&[0.0, -0.0, 1e-30]), [0.0, -0.0, 0.0]);
        assert_eq!(cached(&[f32::MAX, 1.0]), [448.0 * 120_f32.exp2(), 0.0]);
        for bad in [f32::INFINITY, f32::NAN] {
            assert!(cached(&[1.0, bad, 0.0]).iter().all(|number| number.is_nan()));
        }
        let heads = Tensor::from_slice(&[1.0_f32, 0.3, 100.0, 30.0]).view([2, 2]).to_kind(Kind::BFloat16);
        let rounded = rounded_heads(&heads).unwrap();
        assert_eq!((rounded.kind(), rounded.size()), (Kind::BFloat16, vec![2, 2]));
        assert_eq!(
            Vec::<f32>::try_from(rounded.to_kind(Kind::Float).view([-1])).unwrap(),
            [1.0, 0.3125, 96.0, 30.0]
        );
    }

    /// A converted checkpoint has the bits of a job that quantizes while it loads.
    #[test]
    fn rows_are_those_that_checkpoints_are_written_with() {
        let mut values = Vec::<f32>::try_from((numbers(&[64, 33], 0.4) * 1e-3).view([-1])).unwrap();
        let odd = [0.0, -0.0, 1e-38, -1e-38, f32::MIN_POSITIVE, 1e-45, 3e38, -3e38, 1.0, 1e-30, 2e-31];
        values.extend(odd.iter().cycle().take(33 * 4));
        values.extend((0..33).map(|at| (at as f32 - 16.0) * 2.0_f32.powi(at - 20)));
        values.extend([f32::NAN; 33].iter().chain(&[f32::INFINITY; 33]));
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let wide = Tensor::from_slice(&values).view([-1, 33]);
        for (through, kind) in
            [(DType::F32, Kind::Float), (DType::BF16, Kind::BFloat16), (DType::F16, Kind::Half)]
        {
            let here = Fp8Rows::of(&wide.to_kind(kind)).unwrap();
            let there = nemo_format::quantize_rows(&bytes, DType::F32, through, 33).unwrap();
            let bits =
                Vec::<u8>::try_from(here.values.contiguous().view_dtype(Kind::Uint8).view([-1])).unwrap();
            let scales = Vec::<f32>::try_from(here.scales).unwrap();
            for (row, (one, two)) in scales.iter().zip(&there.scales).enumerate() {
                assert!(
                    one.to_bits() == two.to_bits() || (one.is_nan() && two.is_nan()),
                    "{row}: {one} {two}"
                );
            }
            // A NaN has either sign.
            let plain = |bits: &[u8]| -> Vec<u8> {
                bits.iter().map(|bits| if bits & 0x7f == 0x7f { 0x7f } else { *bits }).collect()
            };
            assert_eq!(plain(&bits), plain(&there.numbers), "{through:?}");
        }
    }

    const NUM_ROWS: i64 = 37;
    const NUM_IN: i64 = 96;
    const NUM_OUT: i64 = 40;

    /// Signs and sizes mixed.
    fn numbers(shape: &[i64], seed: f64) -> Tensor {
        let count = Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, tch::Device::Cpu));
        ((count * 0.618_034 + seed).sin() * 3.0).view(shape)
    }

    /// What a layer of this loader makes of rows, and the largest difference to float64 with the same numbers in e4m3.
    fn largest_error<L: Loader>(mut loader: L) -> f64 {
        let kind = loader.numerics().compute.kind();
        let (weight, bias) = (numbers(&[NUM_OUT, NUM_IN], 0.3), numbers(&[NUM_OUT], 0.7));
        let bytes = |tensor: &Tensor| {
            let values = Vec::<f32>::try_from(tensor.view([-1])).unwrap();
            values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
        };
        let (weight_bytes, bias_bytes) = (bytes(&weight), bytes(&bias));
        let shape = [NUM_OUT as u64, NUM_IN as u64];
        let stored = |bytes, shape| WeightBytes { bytes, dtype: StoredFloat::F32, shape };
        let source = LinearSource {
            weight: StoredLinearWeight::Float(stored(&weight_bytes, &shape)),
            bias: Some(stored(&bias_bytes, &shape[..1])),
        };
        let gated = Activation { nonlinearity: Nonlinearity::Silu, gated: true };
        let linear = loader.linear(source, LinearRole::Plain).unwrap();
        let first = loader.linear(source, LinearRole::FirstOfMlp(gated)).unwrap();
        let output = loader.linear(source, LinearRole::Output).unwrap();
        let mut state = loader.finish().unwrap();
        let x = numbers(&[NUM_ROWS, NUM_IN], 0.1).to_kind(kind);
        let double = |rows: Fp8Rows| {
            rows.values.to_kind(Kind::Double) * rows.scales.to_kind(Kind::Double).unsqueeze(1)
        };
        let of_weight = double(Fp8Rows::of(&weight.to_kind(kind)).unwrap());
        let wide_bias = bias.to_kind(kind).to_kind(Kind::Double);
        let expect = double(Fp8Rows::of(&x).unwrap()).matmul(&of_weight.tr()) + wide_bias;
        let residual = numbers(&[NUM_ROWS, NUM_OUT], 0.9).to_kind(kind);
        let wide_residual = residual.to_kind(Kind::Double);
        let [gate, up] = [0, NUM_OUT / 2].map(|start| expect.narrow(1, start, NUM_OUT / 2));
        let mut run = |layer: &<L::State as crate::ops::StepState>::Linear, epilogue| {
            layer.run(&x, epilogue, &mut state).unwrap().to_kind(Kind::Double)
        };
        let plain = run(&output, Epilogue::Float32);
        let unquantized =
            x.to_kind(Kind::Double).matmul(&weight.to_kind(Kind::Double).tr()) + bias.to_kind(Kind::Double);
        // The output layer is not quantized, and that can be told apart.
        let off = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(off(&plain, &unquantized) < 0.5 * off(&expect, &unquantized));
        [
            (run(&linear, Epilogue::Store), expect.shallow_clone()),
            (run(&linear, Epilogue::Float32), expect.shallow_clone()),
            (run(&linear, Epilogue::AddTo(residual.copy())), wide_residual + &expect),
            (run(&first, Epilogue::Activate(gated)), gate.silu() * up),
        ]
        .into_iter()
        .map(|(actual, expect)| off(&actual, &expect) / expect.abs().max().double_value(&[]))
        .fold(0.0, f64::max)
    }

    #[test]
    fn layers_compute_with_the_numbers_of_e4m3() {
        for (float, most) in [(Float::Fp32, 1e-6), (Float::Bf16, 1e-2)] {
            let numerics = Numerics::uniform(float).with_fp8_weights();
            let plain =
                PlainLoader::new(numerics, tch::Device::Cpu, AttentionSwitches::default(), 64, None).unwrap();
            for error in [
                largest_error(plain),
                largest_error(CpuLoader::new(numerics, Isa::detect(), 64, None).unwrap()),
            ] {
                assert!(error < most, "{float}: {error}");
            }
        }
    }

    #[test]
    fn results_are_scaled_by_row_and_output() {
        let products = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2]);
        let [rows, outputs, bias] =
            [[2.0_f32, 4.0], [0.5, 8.0], [1.0, -1.0]].map(|values| Tensor::from_slice(&values));
        let result = scaled(&products, &rows, &outputs, Some(&bias)).unwrap();
        assert_eq!(Vec::<f32>::try_from(result.view([-1])).unwrap(), [2.0, 31.0, 7.0, 127.0]);
    }
}
