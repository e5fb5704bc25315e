//! Linear layers by cuBLAS, and the switches that make a row's result independent of the number of rows.

use tch::{Kind, Tensor};

use super::ffi;
use crate::{BadTensor, ExtError};

/// Prefers cuBLASLt, without split-K and without sums in reduced precision, for the whole process: the bits of a row are
/// then the same for every number of rows from 8 up (measured on an H100 for the shapes of 2B, 7B and 8B models).
///
/// # Errors
/// When libtorch refuses.
pub fn prefer_invariant() -> Result<(), ExtError> {
    set_invariant(true)
}

/// Lets libtorch and cuBLAS choose freely again.
///
/// # Errors
/// When libtorch refuses.
pub fn unconstrained() -> Result<(), ExtError> {
    set_invariant(false)
}

#[expect(unsafe_code, reason = "the shim has a C interface")]
fn set_invariant(invariant: bool) -> Result<(), ExtError> {
    // SAFETY: the entry takes any number.
    ffi::check("setBlasPreferredBackend", unsafe { ffi::te_blas_set_invariant(i32::from(invariant)) })
}

/// `out[n, k] = x[n, h] * weight[k, h]^T (+ bias[k])`, all of one type; sums are in float32.
///
/// # Errors
/// When the shapes or types do not fit.
pub fn linear_out(
    out: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(), ExtError> {
    match bias {
        Some(bias) => {
            check_shape("bias", bias, &[columns(out)?])?;
            drop(bias.f_addmm_out(out_of(out, x, weight)?, x, &weight.f_transpose(0, 1)?)?);
        }
        None => {
            drop(x.f_mm_out(out_of(out, x, weight)?, &weight.f_transpose(0, 1)?)?);
        }
    }
    Ok(())
}

/// `residual[n, k] += x[n, h] * weight[k, h]^T`, rounded once.
///
/// # Errors
/// When the shapes or types do not fit.
pub fn linear_add_out(residual: &mut Tensor, x: &Tensor, weight: &Tensor) -> Result<(), ExtError> {
    let residual = out_of(residual, x, weight)?;
    drop(residual.f_addmm_out(residual, x, &weight.f_transpose(0, 1)?)?);
    Ok(())
}

/// `out[n, k] = x[n, h] * weight[k, h]^T` with `out` in float32, whatever the other two are: logits without a rounding.
///
/// # Errors
/// When the shapes or types do not fit.
pub fn linear_f32_out(out: &mut Tensor, x: &Tensor, weight: &Tensor) -> Result<(), ExtError> {
    let out = out_of(out, x, weight)?;
    if x.kind() == Kind::Float {
        drop(x.f_mm_out(out, &weight.f_transpose(0, 1)?)?);
    } else {
        drop(x.f_mm_dtype_out(out, &weight.f_transpose(0, 1)?, Kind::Float)?);
    }
    Ok(())
}

/// libtorch would give an `out` of another shape new memory, and a graph would go on with the old.
fn out_of<'a>(out: &'a Tensor, x: &Tensor, weight: &Tensor) -> Result<&'a Tensor, ExtError> {
    let (Ok((num_rows, _)), Ok((num_columns, _))) = (x.size2(), weight.size2()) else {
        return Err(ExtError::BadTensor(BadTensor {
            what: "x or weight",
            expected: "a matrix".to_owned(),
            actual: format!("{:?} and {:?}", x.size(), weight.size()),
        }));
    };
    check_shape("out", out, &[num_rows, num_columns])?;
    Ok(out)
}

fn check_shape(what: &'static str, tensor: &Tensor, shape: &[i64]) -> Result<(), ExtError> {
    if tensor.size() == shape {
        return Ok(());
    }
    Err(ExtError::BadTensor(BadTensor {
        what,
        expected: format!("{shape:?}"),
        actual: format!("{:?}", tensor.size()),
    }))
}

fn columns(out: &Tensor) -> Result<i64, ExtError> {
    out.size().last().copied().ok_or_else(|| {
        ExtError::BadTensor(BadTensor {
            what: "out",
            expected: "a matrix".to_owned(),
            actual: "a single number".to_owned(),
        })
    })
}
