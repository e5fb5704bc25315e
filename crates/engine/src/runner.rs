//! What carries out the steps of a run: a model with its cache and a sampler, on the host or on a device.
//!
//! Steps are started and collected apart, so that a device can be given the next step before the host has read the
//! tokens of this one. Tokens stay with the runner; the engine learns of them when it collects.

use std::time::Duration;

use model_core::PrefillBatch;
use sampling::SampledToken;

use crate::{
    EngineError,
    block_table::BlockCopy,
    scheduler::{DecodeSeq, SeqId},
};

/// The first token of one response, drawn from the logits after a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstToken {
    /// Which response.
    pub(crate) id: SeqId,
    /// Which prompt of the batch.
    pub(crate) prompt_idx: usize,
    /// Position of the sample in the input file: part of the random key.
    pub(crate) sample_idx: u64,
}

/// What one step gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StepOutput {
    /// A token for each row of the step, in order.
    pub(crate) sampled: Vec<SampledToken>,
    /// Time in the model, copies of blocks included.
    pub(crate) forward_time: Duration,
    /// Time in the sampler, where it is not part of the model's.
    pub(crate) sample_time: Duration,
}

/// Carries out steps in the order in which they are started.
pub(crate) trait Runner: Send {
    /// Forgets every sequence and every step.
    fn reset(&mut self) -> Result<(), EngineError>;

    /// Starts a prefill after the copies: fills the blocks of whole prompts and draws first tokens.
    fn prefill(
        &mut self,
        copies: &[BlockCopy],
        batch: PrefillBatch,
        rows: &[FirstToken],
    ) -> Result<(), EngineError>;

    /// Starts one more token for each sequence after the copies.
    fn decode(&mut self, copies: &[BlockCopy], seqs: &[DecodeSeq]) -> Result<(), EngineError>;

    /// The tokens of the oldest step that was started and not collected.
    fn collect(&mut self) -> Result<StepOutput, EngineError>;

    /// These sequences ended and will not be in a step again.
    fn release(&mut self, ended: &[SeqId]);

    /// Rows that a step of one sequence has: what is more than one is filled up.
    fn min_rows(&self) -> usize {
        1
    }

    /// How many steps may be under way when another is started.
    fn run_ahead(&self) -> usize;

    /// Whether the responses of one sample are all the same, so that one of them is enough.
    fn is_greedy(&self) -> bool;
}
