//! Flash attention over packed sequences of different lengths: libtorch's `_flash_attention_forward`, without padding.
#![expect(unsafe_code, reason = "the shim has a C interface")]

use std::ffi::c_void;

use tch::{Kind, Tensor};

use super::ffi::{self, TeVarlen};
use crate::{BadTensor, ExtError};

/// What a query may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Its own position and those before, counted from the end of the keys.
    Causal,
    /// Every key of its sequence.
    Full,
}

/// Where the sequences lie among the keys, when that is not where they lie among the queries.
#[derive(Debug)]
pub struct Keys<'a> {
    /// The start of each sequence and the end of the last, `int32[num_seqs + 1]`.
    pub cu_seqlens: &'a Tensor,
    /// The most keys of a sequence.
    pub max_len: i64,
    /// How many of its keys each sequence has in use, `int32[num_seqs]`; all of them when `None`.
    pub used: Option<&'a Tensor>,
}

/// Causal attention of sequences with themselves.
///
/// `q` is `[tokens, heads, d]`, `k` and `v` are `[tokens, groups, d]`, bfloat16 or float16, `d` a multiple of 8 up to
/// 256; `cu_seqlens` is the start of each sequence and the end of the last, `int32[num_seqs + 1]`, on the same GPU. Gives
/// `[tokens, heads, d]`.
///
/// # Errors
/// When a type or shape does not fit, or there is no memory.
pub fn varlen(qkv: [&Tensor; 3], cu_seqlens: &Tensor, max_len: i64, scale: f64) -> Result<Tensor, ExtError> {
    varlen_with(qkv, (cu_seqlens, max_len), &Keys { cu_seqlens, max_len, used: None }, scale, Mask::Causal)
}

/// Attention of packed queries with packed keys of other lengths; `queries` is their `cu_seqlens` and the longest.
///
/// # Errors
/// When a type or shape does not fit, or there is no memory.
pub fn varlen_with(
    [q, k, v]: [&Tensor; 3],
    (cu_seqlens_q, max_q): (&Tensor, i64),
    keys: &Keys<'_>,
    scale: f64,
    mask: Mask,
) -> Result<Tensor, ExtError> {
    for (what, tensor) in [("q", q), ("k", k), ("v", v)] {
        check(what, tensor, 3, &[Kind::BFloat16, Kind::Half])?;
    }
    check("cu_seqlens of the queries", cu_seqlens_q, 1, &[Kind::Int])?;
    check("cu_seqlens of the keys", keys.cu_seqlens, 1, &[Kind::Int])?;
    if let Some(used) = keys.used {
        check("used lengths of the keys", used, 1, &[Kind::Int])?;
    }
    let pointer = |tensor: &Tensor| tensor.as_ptr().cast::<c_void>();
    let tensors = [
        pointer(q),
        pointer(k),
        pointer(v),
        pointer(cu_seqlens_q),
        pointer(keys.cu_seqlens),
        keys.used.map_or(std::ptr::null(), pointer),
    ];
    let arguments =
        TeVarlen { max_q, max_k: keys.max_len, scale, is_causal: i32::from(mask == Mask::Causal) };
    let mut out = std::ptr::null_mut();
    // SAFETY: all tensors live over the call, and the shim takes six pointers of which the last may be null.
    let code = unsafe { ffi::te_flash_varlen(tensors.as_ptr(), &arguments, &mut out) };
    ffi::check("_flash_attention_forward", code)?;
    // SAFETY: the shim made a tensor of its own for us.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

fn check(what: &'static str, tensor: &Tensor, num_dims: usize, kinds: &[Kind]) -> Result<(), ExtError> {
    if tensor.device().is_cuda() && tensor.dim() == num_dims && kinds.contains(&tensor.kind()) {
        return Ok(());
    }
    Err(ExtError::BadTensor(BadTensor {
        what,
        expected: format!("a tensor of {num_dims} dimensions and type {kinds:?} on the GPU"),
        actual: format!("{:?} {:?} on {:?}", tensor.kind(), tensor.size(), tensor.device()),
    }))
}
