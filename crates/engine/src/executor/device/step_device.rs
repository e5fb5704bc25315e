//! What the executor's bookkeeping asks of a GPU: [`StepDevice`] and the plain data that goes to it and comes from it.

use std::time::Duration;

use model_core::{Batch, BlockMove};
use sampling::{RowMasks, RowRules, SampledToken};

use crate::EngineError;

/// One first token to draw, behind a prompt that the batch completes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstToken<'a> {
    /// Which of those prompts.
    pub(crate) logits_row: usize,
    pub(crate) owner: Owner,
    /// The prompt, for the repetition penalty.
    pub(crate) prompt: &'a [u32],
    /// Where the run's do not hold.
    pub(crate) own: Option<&'a RowRules>,
    /// Bits of the tokens that it may be, where not all may.
    pub(crate) allowed: Option<&'a [u32]>,
}

/// Whose token a record holds: part of the random key, and of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Position of the sample in the input file.
    pub(crate) sample_idx: u64,
    pub(crate) response_idx: u32,
}

/// The size of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DecodeStep {
    /// Rows that it is padded to.
    pub(crate) num_rows: usize,
    /// Rows in use, which are the first.
    pub(crate) num_used: usize,
    /// Whether some are consecutive tokens of one sequence.
    pub(crate) has_drafts: bool,
}

/// A token, or why none could be drawn. That matters only where the token is used.
pub(crate) type DrawnToken = Result<SampledToken, EngineError>;

/// What the bookkeeping asks of a GPU. Everything is enqueued in the order of the calls; only `reset` and `read` wait.
pub(crate) trait StepDevice: Send {
    /// Newest tokens of sequences without a row, kept on the device until they have one: the first ones of a prefill, or
    /// those of preempted responses.
    type KeptTokens: Send;
    /// The records of a step on their way to the host.
    type Records: Send;

    /// Waits for everything that was enqueued.
    fn reset(&mut self) -> Result<(), EngineError>;

    /// Starts a step with the moves of blocks.
    fn begin(&mut self, moves: &[BlockMove]) -> Result<(), EngineError>;

    /// Computes prompts or parts of them, draws first tokens behind those that are complete and ends the step. Without a
    /// draw there are no first tokens.
    fn prefill(
        &mut self,
        batch: &Batch,
        draws: &[FirstToken<'_>],
    ) -> Result<(Option<Self::KeptTokens>, Self::Records), EngineError>;

    /// Keeps the newest tokens of some rows.
    fn keep(&mut self, rows: &[i64]) -> Result<Self::KeptTokens, EngineError>;

    /// Brings newest tokens into the order of the rows: row i takes over number `from[i]` among all rows of the tables and,
    /// behind them, those of each of `waiting`.
    fn gather(&mut self, from: &[i64], waiting: &[&Self::KeptTokens]) -> Result<(), EngineError>;

    /// Writes the tables, laid out by [`TableLayout`](super::TableLayout).
    fn upload(&mut self, words: &[i32]) -> Result<(), EngineError>;

    /// Makes rows of drafted tokens: where `drafts[i]` is not empty, the newest token of row i is its last one, and the
    /// others stand between that and the token that the row had.
    fn put_drafts(&mut self, drafts: &[&[u32]]) -> Result<(), EngineError>;

    /// Runs a decode step, which moves the rows in use on by a token, and ends the step.
    fn decode(&mut self, step: DecodeStep) -> Result<Self::Records, EngineError>;

    /// The first part of a decode step whose tokens are drawn later, with masks that are not known yet.
    fn decode_model(&mut self, step: DecodeStep) -> Result<(), EngineError>;

    /// The second part of the step, the latest whose first one was enqueued. `masks`: of the rows in use.
    fn draw_masked(&mut self, step: DecodeStep, masks: &RowMasks) -> Result<Self::Records, EngineError>;

    /// Waits for a step, the oldest that was not read: its tokens, one for each owner, and how long it took.
    fn read(
        &mut self,
        records: Self::Records,
        owners: &[Owner],
    ) -> Result<(Vec<DrawnToken>, StepTimes), EngineError>;

    /// Whether rows of one sequence get the bits of single steps.
    fn verifies_drafts(&self) -> bool;

    /// Whether the responses of one sample are all the same.
    fn is_greedy(&self) -> bool;
}

/// How long a step took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepTimes {
    pub(crate) whole: Duration,
    /// The part of it that blocks were moved in.
    pub(crate) moves: Duration,
    /// Whether a graph was made for it.
    pub(crate) has_new_graph: bool,
}
