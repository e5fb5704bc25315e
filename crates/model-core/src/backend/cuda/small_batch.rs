//! The largest small batch: how many rows at most use the in-house GEMM instead of cuBLAS. It is as many as give every
//! linear layer of the model bitwise identical results.

use std::collections::HashMap;

use cuda_kernels::MAX_GEMM_ROWS;
use model_spec::Activation;
use tch::{Kind, Tensor};

use super::linear::{function, gating};
use super::{CudaLinear, CudaState, MIN_ROWS};
use crate::ModelError;
use crate::ops::{Epilogue, TrialLinear};

impl CudaState {
    /// Tries each kind of layer once, and keeps and returns the number; 0 where a bit differs.
    pub(super) fn find_max_small_batch<'a>(
        &mut self,
        linears: impl Iterator<Item = TrialLinear<'a, CudaLinear>>,
    ) -> Result<usize, ModelError> {
        // The weights may still be in flight, on another stream.
        self.device.synchronize()?;
        let mut max_rows = MAX_GEMM_ROWS;
        let mut different = HashMap::new();
        for (linear, activation) in linears {
            let (num_out, num_in) = linear.weight.size2()?;
            different
                .entry((num_out, num_in, linear.bias.is_some(), activation.is_some()))
                .or_insert((linear, activation));
        }
        for (&(num_out, num_in, ..), (_, activation)) in &different {
            let activated = activation.map(|activation| (function(activation), gating(activation)));
            max_rows = max_rows.min(self.kernels()?.max_gemm_rows([num_out, num_in], activated)?);
        }
        if max_rows == 0 {
            return Ok(0);
        }
        for num_rows in [1, max_rows] {
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
        self.max_small_batch = max_rows;
        Ok(max_rows as usize)
    }

    /// Numbers without a pattern that repeats within a row, signs and sizes mixed.
    fn numbers(&self, shape: [i64; 2]) -> Result<Tensor, ModelError> {
        let count = Tensor::f_arange(shape[0] * shape[1], (Kind::Float, self.tch_device()))?;
        Ok(count.f_mul_scalar(0.618_034)?.f_sin()?.f_to_kind(self.precision.kind())?.f_view(shape)?)
    }

    /// Whether both GEMMs give a layer bitwise identical results for `num_rows` rows, with every epilogue but an
    /// activation. Where the bias is added is the same code for both, so they are tried as they are run.
    fn same_bits(&self, linear: &CudaLinear, num_rows: i64) -> Result<bool, ModelError> {
        let x = self.numbers([num_rows.max(MIN_ROWS), linear.weight.size2()?.1])?;
        let small = x.f_narrow(0, 0, num_rows)?;
        let residual = self.numbers([num_rows.max(MIN_ROWS), linear.weight.size2()?.0])?;
        // Both are added to.
        let mut small_residual = self.empty(&[num_rows, linear.weight.size2()?.0], self.precision.kind())?;
        small_residual.f_copy_(&residual.f_narrow(0, 0, num_rows)?)?;
        let epilogues = [
            (Epilogue::Store, Epilogue::Store),
            (Epilogue::AddTo(small_residual), Epilogue::AddTo(residual)),
            (Epilogue::Logits, Epilogue::Logits),
        ];
        for (of_small, of_padded) in epilogues {
            let small = linear.run_small(&small, of_small, self)?;
            let padded = linear.run_cublas(&x, of_padded, self)?;
            if !small.f_equal(&padded.f_narrow(0, 0, num_rows)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same for a layer with an activation behind it, against cuBLAS and the activation's own kernel.
    fn same_activated_bits(
        &self,
        linear: &CudaLinear,
        activation: Activation,
        num_rows: i64,
    ) -> Result<bool, ModelError> {
        let x = self.numbers([num_rows.max(MIN_ROWS), linear.weight.size2()?.1])?;
        let small = linear.run_small(&x.f_narrow(0, 0, num_rows)?, Epilogue::Activate(activation), self)?;
        let padded = linear.run_cublas(&x, Epilogue::Activate(activation), self)?;
        Ok(small.f_equal(&padded.f_narrow(0, 0, num_rows)?)?)
    }
}
