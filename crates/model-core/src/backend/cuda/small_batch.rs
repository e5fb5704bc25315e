//! The largest small batch: how many rows at most use the in-house GEMM instead of cuBLAS. It is as many as give every
//! linear layer of the model bitwise identical results.
//!
//! It is compared with cuBLAS at the row counts that cuBLAS computes afterwards, not with the same few rows: on an H200
//! cuBLAS gives 32 rows of a `linear_fc2` of 2048 x 5440 other bits than larger batches.

use std::collections::HashMap;

use cuda_kernels::{GemmUse, MAX_GEMM_ROWS};
use model_spec::Activation;
use tch::{Kind, Tensor};

use super::linear::{CudaWeight, gating};
use super::ranks::piece_sums;
use super::{CudaLinear, CudaState, MIN_ROWS};
use crate::ModelError;
use crate::kinds::TensorFormat;
use crate::ops::{Epilogue, TrialLinear};
use crate::parallel::tree_sum;

/// A large decode batch, whose results those of smaller ones must not differ from.
const LARGE_BATCH: i64 = 256;

/// A layer that stands for all of its shape.
struct Tried<'a> {
    linear: &'a CudaLinear,
    weight: &'a Tensor,
    activation: Option<Activation>,
    num_pieces: usize,
}

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
        for TrialLinear { linear, activation, num_pieces } in linears {
            // The FP8 GEMM is one for all numbers of rows.
            let CudaWeight::Float(weight) = &linear.weight else { continue };
            let (num_out, num_in) = weight.size2()?;
            different
                .entry((num_out, num_in, linear.bias.is_some(), activation.is_some(), num_pieces))
                .or_insert(Tried { linear, weight, activation, num_pieces });
        }
        for (&(num_out, num_in, ..), tried) in &different {
            let activated = tried.activation.map(|activation| (activation.nonlinearity, gating(activation)));
            let of = GemmUse { num_out, num_in, activated, num_pieces: tried.num_pieces as i64 };
            max_rows = max_rows.min(self.kernels()?.max_gemm_rows(of)?);
        }
        if max_rows == 0 {
            return Ok(0);
        }
        // The smallest batch that is left to cuBLAS, and a large one.
        let cublas_batches = [(max_rows / MIN_ROWS + 1) * MIN_ROWS, LARGE_BATCH];
        for (small_rows, large_rows) in
            cublas_batches.into_iter().flat_map(|large| [(1, large), (max_rows, large)])
        {
            for tried in different.values() {
                let is_same = match tried.activation {
                    Some(activation) => {
                        self.same_activated_bits(tried, activation, small_rows, large_rows)?
                    }
                    None if tried.num_pieces > 1 => self.same_pieces(tried, small_rows, large_rows)?,
                    None => self.same_bits(tried, small_rows, large_rows)?,
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
        Ok(count.f_mul_scalar(0.618_034)?.f_sin()?.f_to_kind(self.numerics.compute.kind())?.f_view(shape)?)
    }

    /// Whether `small_rows` rows of the in-house GEMM are bitwise identical to the first ones of `large_rows` rows of
    /// cuBLAS, with every epilogue but an activation. Where the bias is added is the same code for both, so they are
    /// tried as they are run.
    fn same_bits(&self, tried: &Tried<'_>, small_rows: i64, large_rows: i64) -> Result<bool, ModelError> {
        let &Tried { linear, weight, .. } = tried;
        let (num_out, num_in) = weight.size2()?;
        let x = self.numbers([large_rows, num_in])?;
        let small = x.f_narrow(0, 0, small_rows)?;
        let residual = self.numbers([large_rows, num_out])?;
        // Both are added to.
        let mut small_residual = self.empty(&[small_rows, num_out], self.numerics.compute.kind())?;
        small_residual.f_copy_(&residual.f_narrow(0, 0, small_rows)?)?;
        let epilogues = [
            (Epilogue::Store, Epilogue::Store),
            (Epilogue::AddTo(small_residual), Epilogue::AddTo(residual)),
            (Epilogue::Float32, Epilogue::Float32),
        ];
        for (of_small, of_large) in epilogues {
            let small = linear.run_small(&small, weight, of_small, self)?;
            let large = linear.run_cublas(&x, weight, of_large, self)?;
            if !small.f_equal(&large.f_narrow(0, 0, small_rows)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same for the sums of pieces, which cuBLAS leaves apart.
    fn same_pieces(&self, tried: &Tried<'_>, small_rows: i64, large_rows: i64) -> Result<bool, ModelError> {
        let &Tried { weight, num_pieces, .. } = tried;
        let x = self.numbers([large_rows, weight.size2()?.1])?;
        let few = x.f_narrow(0, 0, small_rows)?;
        let small = self.small_piece_sum(&few, weight, num_pieces as i64)?;
        let pieces = piece_sums(&x, weight, num_pieces as i64)?;
        let large = tree_sum((0..num_pieces as i64).map(|idx| pieces.f_get(idx)).collect::<Result<_, _>>()?)?;
        Ok(small.f_equal(&large.f_narrow(0, 0, small_rows)?)?)
    }

    /// The same for a layer with an activation behind it, against cuBLAS and the separate activation kernel.
    fn same_activated_bits(
        &self,
        tried: &Tried<'_>,
        activation: Activation,
        small_rows: i64,
        large_rows: i64,
    ) -> Result<bool, ModelError> {
        let &Tried { linear, weight, .. } = tried;
        let x = self.numbers([large_rows, weight.size2()?.1])?;
        let few = x.f_narrow(0, 0, small_rows)?;
        let small = linear.run_small(&few, weight, Epilogue::Activate(activation), self)?;
        let large = linear.run_cublas(&x, weight, Epilogue::Activate(activation), self)?;
        Ok(small.f_equal(&large.f_narrow(0, 0, small_rows)?)?)
    }
}
