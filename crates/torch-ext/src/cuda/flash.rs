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
    /// The last so many of these, its own among them.
    Window(usize),
    /// Every key of its sequence.
    Full,
}

/// Rows of packed sequences: where each lies, and how long the longest is.
#[derive(Clone, Copy, Debug)]
pub struct PackedRows<'a> {
    /// The start of each sequence and the end of the last, `int32[num_seqs + 1]` on the GPU.
    pub cu_seqlens: &'a Tensor,
    /// The most rows of a sequence.
    pub max_len: i64,
}

/// Queries, and the keys and values they attend to, of sequences whose numbers of both may differ.
#[derive(Clone, Copy, Debug)]
pub struct Varlen<'a> {
    /// `[tokens, heads, d]`, bfloat16 or float16, `d` a multiple of 8 up to 256.
    pub q: &'a Tensor,
    /// `[keys, groups, d]` of the same type.
    pub k: &'a Tensor,
    /// As `k`.
    pub v: &'a Tensor,
    /// Where the sequences lie in `q`.
    pub queries: PackedRows<'a>,
    /// Where they lie in `k` and `v`.
    pub keys: PackedRows<'a>,
    /// How many of its keys each sequence has in use, `int32[num_seqs]`; all of them when `None`.
    pub used_keys: Option<&'a Tensor>,
    /// What scores are multiplied by.
    pub scale: f64,
    /// What a query may look at.
    pub mask: Mask,
}

/// Causal attention of sequences with themselves.
///
/// `q`, `k` and `v` are as in [`Varlen`], on one GPU. Gives `[tokens, heads, d]`.
///
/// # Errors
/// When a type or shape does not fit, or there is no memory.
pub fn varlen([q, k, v]: [&Tensor; 3], rows: PackedRows<'_>, scale: f64) -> Result<Tensor, ExtError> {
    varlen_with(&Varlen { q, k, v, queries: rows, keys: rows, used_keys: None, scale, mask: Mask::Causal })
}

/// Attention of packed queries with packed keys of other lengths. Gives `[tokens, heads, d]`.
///
/// # Errors
/// When a type or shape does not fit, or there is no memory.
pub fn varlen_with(step: &Varlen<'_>) -> Result<Tensor, ExtError> {
    let &Varlen { q, k, v, queries, keys, used_keys, scale, mask } = step;
    for (what, tensor) in [("q", q), ("k", k), ("v", v)] {
        check(what, tensor, 3, &[Kind::BFloat16, Kind::Half])?;
    }
    check("cu_seqlens of the queries", queries.cu_seqlens, 1, &[Kind::Int])?;
    check("cu_seqlens of the keys", keys.cu_seqlens, 1, &[Kind::Int])?;
    if let Some(used) = used_keys {
        check("used lengths of the keys", used, 1, &[Kind::Int])?;
    }
    let pointer = |tensor: &Tensor| tensor.as_ptr().cast::<c_void>();
    let tensors = [
        pointer(q),
        pointer(k),
        pointer(v),
        pointer(queries.cu_seqlens),
        pointer(keys.cu_seqlens),
        used_keys.map_or(std::ptr::null(), pointer),
    ];
    let arguments = TeVarlen {
        max_q: queries.max_len,
        max_k: keys.max_len,
        scale,
        is_causal: i32::from(mask != Mask::Full),
        window_left: match mask {
            Mask::Window(tokens) => i32::try_from(tokens.saturating_sub(1)).unwrap_or(i32::MAX),
            Mask::Causal | Mask::Full => -1,
        },
    };
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
