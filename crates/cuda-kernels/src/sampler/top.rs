//! Launcher of the most likely tokens of raw logits, with their log-probabilities.

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Launch, Stream};
use tch::{Kind, Tensor};

use super::SamplerKernels;
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, count, int, shape_of};

/// Most tokens of a row.
pub const MAX_TOP: i64 = 20;
/// Threads of a block, which has a row.
const NUM_THREADS: u32 = 512;

/// The most likely tokens of some rows.
#[derive(Clone, Copy, Debug)]
pub struct TopTokens<'a> {
    /// `float32[m, padded_vocab_size]`.
    pub logits: &'a Tensor,
    /// None where row i of `out` is of row i of the logits. Else int32 `[n, w]`, whose first words are rows of the logits.
    pub logits_rows: Option<&'a Tensor>,
    /// `int32[n, 2 * num_top]`: a token, below 0 for none, and the bits of its log-probability.
    pub out: &'a Tensor,
    /// The tokenizer's; logits past it are padding.
    pub vocab_size: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TopArgs {
    logits: Address,
    logits_rows: Address,
    out: Address,
    logits_stride: i64,
    rows_stride: i32,
    num_logits_rows: i32,
    vocab_size: i32,
    num_top: i32,
}

impl SamplerKernels {
    /// Enqueues it.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn top_tokens(&self, stream: &Stream, top: &TopTokens<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let logits_shape @ [num_logits_rows, padded_vocab_size] = shape_of(top.logits, "logits")?;
        let out_shape @ [num_rows, words] = shape_of(top.out, "out")?;
        if words % 2 != 0 || !(2..=2 * MAX_TOP).contains(&words) {
            return Err(bad("columns of `out`", &format!("even, from 2 to {}", 2 * MAX_TOP), words));
        }
        if !(1..=padded_vocab_size).contains(&top.vocab_size) {
            return Err(bad("vocab_size", &format!("from 1 to {padded_vocab_size}"), top.vocab_size));
        }
        let rows_shape = match top.logits_rows {
            Some(rows) => shape_of(rows, "logits_rows")?,
            None => [num_rows, 1],
        };
        if rows_shape[0] != num_rows || (top.logits_rows.is_none() && num_rows > num_logits_rows) {
            return Err(bad("rows of `out`", "those of the logits or of `logits_rows`", num_rows));
        }
        let args = TopArgs {
            logits: tensors.address(top.logits, "logits", Kind::Float, &logits_shape)?,
            logits_rows: tensors.optional(top.logits_rows, "logits_rows", Kind::Int, &rows_shape)?,
            out: tensors.address(top.out, "out", Kind::Int, &out_shape)?,
            logits_stride: padded_vocab_size,
            rows_stride: int(rows_shape[1], "columns of `logits_rows`")?,
            num_logits_rows: int(num_logits_rows, "rows of `logits`")?,
            vocab_size: int(top.vocab_size, "vocab_size")?,
            num_top: int(words / 2, "tokens of a row")?,
        };
        let launch = Launch::linear(count(num_rows, "rows of `out`")?, NUM_THREADS);
        Ok(self.top_tokens.launch(&launch, stream, &[Arg::value(&args)])?)
    }
}
