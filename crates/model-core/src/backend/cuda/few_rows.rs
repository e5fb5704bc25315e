//! Up to how many rows the project's own products stand in for cuBLAS's: as many as give the model's layers the same bits.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use cuda_kernels::{GemmOut, MAX_GEMM_ROWS};
use tch::{Kind, Tensor};
use torch_ext::cuda::blas;

use super::{CudaKernels, MIN_ROWS, function, gating, tensors};
use crate::ModelError;
use crate::config::Activation;
use crate::kernels::Linear;

impl CudaKernels {
    /// Tries each kind of layer once, and keeps and returns the number; 0 where a bit differs.
    pub(super) fn find_few_rows(
        &self,
        linears: &mut dyn Iterator<Item = (&Linear, Option<Activation>)>,
    ) -> Result<usize, ModelError> {
        // The weights may still be on their way, on another stream.
        self.device.synchronize()?;
        let mut few_rows = MAX_GEMM_ROWS;
        let mut different = HashMap::new();
        for (linear, activation) in linears {
            let (weight, bias) = tensors(linear)?;
            let (num_out, num_in) = weight.size2()?;
            different
                .entry((num_out, num_in, bias.is_some(), activation.is_some()))
                .or_insert((linear, activation));
        }
        for (&(num_out, num_in, ..), (_, activation)) in &different {
            let activated = activation.map(|activation| (function(activation), gating(activation)));
            few_rows = few_rows.min(self.kernels.max_gemm_rows([num_out, num_in], activated)?);
        }
        if few_rows == 0 {
            return Ok(0);
        }
        for num_rows in [1, few_rows] {
            for &(linear, activation) in different.values() {
                let is_same = match activation {
                    Some(activation) => self.same_activated_bits(linear, activation, num_rows)?,
                    None => self.same_bits(linear, num_rows)?,
                };
                if !is_same {
                    return Ok(0);
                }
            }
        }
        self.few_rows.store(few_rows, Ordering::Relaxed);
        Ok(few_rows as usize)
    }

    /// Numbers without a pattern that repeats within a row, signs and sizes mixed.
    fn numbers(&self, shape: [i64; 2]) -> Result<Tensor, ModelError> {
        let count = Tensor::f_arange(shape[0] * shape[1], (Kind::Float, self.tch_device()))?;
        Ok(count.f_mul_scalar(0.618_034)?.f_sin()?.f_to_kind(self.precision.kind())?.f_view(shape)?)
    }

    /// Whether the own kernel gives a layer's products of `num_rows` rows the bits of cuBLAS's, in all three kinds of outputs.
    fn same_bits(&self, linear: &Linear, num_rows: i64) -> Result<bool, ModelError> {
        let (weight, bias) = tensors(linear)?;
        let (num_out, num_in) = weight.size2()?;
        let kind = self.precision.kind();
        let many_rows = num_rows.max(MIN_ROWS);
        let x = self.numbers([many_rows, num_in])?;
        let few = x.f_narrow(0, 0, num_rows)?;
        let is_same = |few: &Tensor, many: &Tensor| few.f_equal(&many.f_narrow(0, 0, num_rows)?);

        let rounded = self.empty(&[num_rows, num_out], kind)?;
        self.product(&few, weight, bias, GemmOut::Rounded(&rounded))?;
        if !is_same(&rounded, &x.f_linear(weight, bias)?)? {
            return Ok(false);
        }
        let mut many = self.numbers([many_rows, num_out])?;
        let mut added = self.empty(&[num_rows, num_out], kind)?;
        added.f_copy_(&many.f_narrow(0, 0, num_rows)?)?;
        self.product(&few, weight, None, GemmOut::Added(&added))?;
        let _ = many.f_addmm_(&x, &weight.f_transpose(0, 1)?)?;
        if !is_same(&added, &many)? {
            return Ok(false);
        }
        let float = self.empty(&[num_rows, num_out], Kind::Float)?;
        self.product(&few, weight, None, GemmOut::Float(&float))?;
        let mut many = self.empty(&[many_rows, num_out], Kind::Float)?;
        blas::linear_f32_out(&mut many, &x, weight)?;
        Ok(is_same(&float, &many)?)
    }

    /// The same for a layer with an activation behind it, against cuBLAS and the activation's own kernel.
    fn same_activated_bits(
        &self,
        linear: &Linear,
        activation: Activation,
        num_rows: i64,
    ) -> Result<bool, ModelError> {
        let (weight, bias) = tensors(linear)?;
        let many_rows = num_rows.max(MIN_ROWS);
        let x = self.numbers([many_rows, weight.size2()?.1])?;
        let few = self.product_activated(&x.f_narrow(0, 0, num_rows)?, weight, bias, activation)?;
        let many = self.activate(&x.f_linear(weight, bias)?, activation)?;
        Ok(few.f_equal(&many.f_narrow(0, 0, num_rows)?)?)
    }
}
