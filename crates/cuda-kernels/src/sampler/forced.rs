//! Texts that are known, whose tokens are chosen in place of drawn ones.

use tch::{Kind, Tensor};

use super::Sample;
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, shape_of};

/// Texts that are known, one for each sample: their tokens are chosen whatever the logits are, and the log-probabilities are
/// those of tokens that are drawn.
#[derive(Clone, Copy, Debug)]
pub struct ForcedTokens<'a> {
    /// `int32[n]`: all texts, one after the other.
    pub tokens: &'a Tensor,
    /// `int64[m + 1]`: where the text of each sample begins, ascending, and where the last one ends, at most n. Samples from
    /// m on have none.
    pub starts: &'a Tensor,
}

/// Texts that are known, where they begin, and how many there are; zeros where there are none.
pub(super) fn forced_addresses(
    tensors: &Tensors<'_>,
    sample: &Sample<'_>,
) -> Result<(Address, Address, i64), KernelError> {
    let Some(ForcedTokens { tokens, starts }) = sample.forced else { return Ok((0, 0, 0)) };
    let rules = sample.rules;
    if !rules.use_greedy
        || !rules.compute_logprob
        || sample.masks.is_some()
        || sample.state.row_rules.is_some()
    {
        return Err(bad(
            "forced",
            "given with greedy rules that give log-probabilities, and for all rows alike",
            1,
        ));
    }
    let ([num_tokens], [num_starts]) =
        (shape_of(tokens, "forced tokens")?, shape_of(starts, "forced starts")?);
    if num_starts < 1 {
        return Err(bad("forced starts", "at least 1", num_starts));
    }
    Ok((
        tensors.address(tokens, "forced tokens", Kind::Int, &[num_tokens])?,
        tensors.address(starts, "forced starts", Kind::Int64, &[num_starts])?,
        num_starts - 1,
    ))
}
