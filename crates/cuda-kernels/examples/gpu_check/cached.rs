//! The cache as the kernels have it: elements of the type, or FP8 with the exponents of scales, made and read by libtorch.

use cuda_kernels::E4M3;
use tch::{Kind, Tensor};

use crate::support::{Heads, double};

type Made = Result<Tensor, Box<dyn std::error::Error>>;

impl Heads {
    /// `T[blocks, g, 32, d]` as the cache holds it.
    pub(crate) fn cached(&self, elems: &Tensor) -> Made {
        if !self.has_fp8_kv {
            return Ok(elems.f_detach_copy()?);
        }
        let wide = elems.f_to_kind(Kind::Float)?;
        let max = wide.f_abs()?.f_amax([-1], true)?;
        let is_finite = max.f_isfinite()?;
        let bits = max.f_where_self(&is_finite, &max.f_zeros_like()?)?.f_view_dtype(Kind::Int)?;
        // 448 is 1.75 * 2^8.
        let exponent =
            bits.f_add_scalar(0x1f_ffff)?.f_bitwise_right_shift_tensor_scalar(23)?.f_sub_scalar(8)?;
        let exponent = exponent.f_clamp_min(127 - 60)?;
        let exponent = exponent.f_where_self(&is_finite, &exponent.f_full_like(127)?)?;
        let inverse = power_of_two(&exponent.f_neg()?.f_add_scalar(254)?)?;
        let numbers = wide.f_mul(&inverse)?;
        let nan = numbers.f_full_like(f64::NAN)?;
        let numbers = numbers.f_where_self(&is_finite, &nan)?.f_to_kind(E4M3)?.f_view_dtype(Kind::Uint8)?;
        let [blocks, groups, tokens, d] = numbers.size()[..] else { return Err("four dimensions".into()) };
        let exponent = exponent.f_to_kind(Kind::Uint8)?.f_view([blocks, groups, 4, 8])?.f_transpose(2, 3)?;
        Ok(Tensor::f_cat(
            &[
                numbers.f_reshape([blocks, groups, tokens * d])?,
                exponent.f_reshape([blocks, groups, tokens])?,
            ],
            2,
        )?)
    }

    /// What `cached` made, `[blocks, g, 32, d]` in float64.
    pub(crate) fn uncached(&self, cache: &Tensor) -> Made {
        if !self.has_fp8_kv {
            return double(cache);
        }
        let d = self.head_dim;
        let [blocks, groups, _] = cache.size()[..] else { return Err("three dimensions".into()) };
        let numbers = cache.f_narrow(2, 0, 32 * d)?.f_contiguous()?.f_view_dtype(E4M3)?;
        let exponent = cache.f_narrow(2, 32 * d, 32)?.f_view([blocks, groups, 8, 4])?.f_transpose(2, 3)?;
        let exponent = exponent.f_reshape([blocks, groups, 32, 1])?.f_to_kind(Kind::Int)?;
        let numbers = numbers.f_to_kind(Kind::Double)?.f_view([blocks, groups, 32, d])?;
        Ok(numbers.f_mul(&double(&power_of_two(&exponent)?)?)?)
    }

    /// The numbers of `[.., d]` that the cache holds, in the type.
    pub(crate) fn rounded(&self, heads: &Tensor) -> Made {
        let d = self.head_dim;
        let rows = heads.f_reshape([-1, d])?;
        let num_rows = rows.size()[0];
        let padded = rows.f_constant_pad_nd([0, 0, 0, (32 - num_rows % 32) % 32])?.f_view([-1, 1, 32, d])?;
        let back = self.uncached(&self.cached(&padded)?)?.f_reshape([-1, d])?.f_narrow(0, 0, num_rows)?;
        Ok(back.f_to_kind(heads.kind())?.f_reshape(heads.size())?)
    }
}

fn power_of_two(exponent: &Tensor) -> Result<Tensor, tch::TchError> {
    exponent.f_bitwise_left_shift_tensor_scalar(23)?.f_view_dtype(Kind::Float)
}
