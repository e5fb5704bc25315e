//! Launcher of the sets of tokens that sequences hold, for the repetition penalty.

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Launch, Stream};
use tch::{Kind, Tensor};

use super::SamplerKernels;
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, count, int, shape_of};

/// Clears the sets of seen tokens of some slots and fills them with prompts.
#[derive(Clone, Copy, Debug)]
pub struct MarkSeen<'a> {
    /// `int32[total]`: the prompts, one after another. Tokens outside the vocabulary are left out.
    pub tokens: &'a Tensor,
    /// `int32[m + 1]`: where each starts, and the end of the last.
    pub cu_seqlens: &'a Tensor,
    /// `int32[m]`: the slot of each; below 0 the prompt is left out.
    pub slots: &'a Tensor,
    /// Bit sets, `int32[num_slots, ceil(vocab_size / 32)]`.
    pub seen: &'a Tensor,
    /// Tokens of the vocabulary.
    pub vocab_size: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MarkArgs {
    tokens: Address,
    cu_seqlens: Address,
    slots: Address,
    seen: Address,
    num_tokens: i32,
    num_slots: i32,
    words_per_slot: i32,
    vocab_size: i32,
}

impl SamplerKernels {
    /// Enqueues the marks.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn mark_seen(&self, stream: &Stream, mark: &MarkSeen<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let [num_prompts] = shape_of(mark.slots, "slots")?;
        let [num_tokens] = shape_of(mark.tokens, "tokens")?;
        let [num_slots, _] = shape_of(mark.seen, "seen")?;
        let words_per_slot = words_of(mark.vocab_size)?;
        let args = MarkArgs {
            tokens: tensors.address(mark.tokens, "tokens", Kind::Int, &[num_tokens])?,
            cu_seqlens: tensors.address(mark.cu_seqlens, "cu_seqlens", Kind::Int, &[num_prompts + 1])?,
            slots: tensors.address(mark.slots, "slots", Kind::Int, &[num_prompts])?,
            seen: tensors.address(mark.seen, "seen", Kind::Int, &[num_slots, words_per_slot])?,
            num_tokens: int(num_tokens, "tokens")?,
            num_slots: int(num_slots, "slots")?,
            words_per_slot: int(words_per_slot, "words of a slot")?,
            vocab_size: int(mark.vocab_size, "vocab_size")?,
        };
        let launch = Launch::linear(count(num_prompts, "prompts")?, 512);
        Ok(self.mark_seen.launch(&launch, stream, &[Arg::value(&args)])?)
    }
}

/// Words of the bit set of a vocabulary.
pub(super) fn words_of(vocab_size: i64) -> Result<i64, KernelError> {
    match u64::try_from(vocab_size) {
        Ok(size @ 1..) => Ok(size.div_ceil(32) as i64),
        _ => Err(bad("vocab_size", "at least 1", vocab_size)),
    }
}
