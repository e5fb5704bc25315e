//! A step as plain data: what to compute, and what it gave.
//!
//! A [`StepPlan`] holds no tensor and no reference, so it can be sent to another process. An executor learns only what
//! changed: a block table travels once, when its prompt or response is new, later only the blocks that a response gains,
//! and the executor keeps it until that one has ended.

use std::time::Duration;

use model_core::{BlockId, BlockMove};
use sampling::{RowRules, SampledToken};
use serde::{Deserialize, Serialize};

/// Blocks of a split of keys, of which a GPU's attention reads those once that all of some neighbouring rows share.
pub(crate) const BLOCKS_PER_SPLIT: usize = 16;

/// One response to a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeqId {
    /// The request, counted from the start of the run.
    pub group_idx: u64,
    /// Which response.
    pub response_idx: u32,
}

/// A response that goes on in the next step.
pub type Draftable = speculation::Draftable<SeqId>;

/// Whose tokens a row computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RowId {
    /// The prompt of this request, which all its responses share.
    Prompt(u64),
    /// A response.
    Response(SeqId),
}

impl RowId {
    /// The request whose prompt it is.
    pub(crate) fn prompt(self) -> Option<u64> {
        match self {
            Self::Prompt(group_idx) => Some(group_idx),
            Self::Response(_) => None,
        }
    }
}

/// The tokens of one sequence in a step, and how many new ones to draw behind them.
///
/// | row | `context_len` | `query_len` | `draws` |
/// | --- | --- | --- | --- |
/// | a whole prompt | 0 | its length | one for each response |
/// | a chunk of a prompt, not the last | tokens before it | its length | 0 |
/// | a response that decodes | tokens before it | 1 | 1 |
/// | a response with drafted tokens to verify | tokens before them | 1 + drafts | 1 + drafts |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSpan {
    /// Whose tokens.
    pub id: RowId,
    /// Tokens in the cache before this step.
    pub context_len: u32,
    /// Tokens that this step computes, at least 1.
    pub query_len: u32,
    /// Behind a prompt: the first tokens of its responses, from number 0 on, drawn from the same logits. In a response: the
    /// most tokens it may go on by.
    pub draws: u32,
}

/// A prompt that was not in a step before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPrompt {
    /// The request.
    pub group_idx: u64,
    /// Position of the sample in the input file: part of the random key.
    pub sample_idx: u64,
    /// The whole prompt, at least one token.
    pub tokens: Vec<u32>,
    /// What decides the tokens of its responses, where that is not what decides them in the run.
    pub own: Option<Box<RowRules>>,
    /// Blocks for all of it.
    pub block_table: Vec<BlockId>,
}

/// A response that decodes from this step on. Its first token was drawn behind its prompt, or it was preempted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSeq {
    /// Which response.
    pub id: SeqId,
    /// All its blocks so far; later ones come as [`GrownSeq`].
    pub block_table: Vec<BlockId>,
}

/// A response that has got more blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrownSeq {
    /// Which response.
    pub id: SeqId,
    /// They stand behind those it has.
    pub new_blocks: Vec<BlockId>,
}

/// What an executor must learn of sequences before a step. Prompts are forgotten when their first tokens are drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDelta {
    /// Responses that ended. They are in no later step.
    pub ended: Vec<SeqId>,
    /// Responses that have no row until they start again, and their blocks may move meanwhile.
    pub preempted: Vec<SeqId>,
    /// Prompts whose first row is in this step.
    pub prompts: Vec<NewPrompt>,
    /// Responses whose first decode, or first after they were preempted, is in this step.
    pub started: Vec<NewSeq>,
    /// Responses, of these and of earlier ones, with more blocks than before.
    pub grown: Vec<GrownSeq>,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepPlan {
    /// What changed since the last step.
    pub tables: TableDelta,
    /// Blocks to move before anything is computed, in order.
    pub moves: Vec<BlockMove>,
    /// What to compute, no sequence twice. Responses come oldest first and those of one request side by side.
    pub rows: Vec<RowSpan>,
    /// The drafted tokens of all responses, in the order of the rows: `query_len - 1` of each.
    pub drafts: Vec<u32>,
}

/// A token that could not be drawn. Its response ends before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedToken {
    /// Which of the step's tokens.
    pub token_idx: u32,
    /// Why, in a sentence.
    pub reason: String,
}

/// What one step gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutput {
    /// The tokens of all rows, in the order of the rows.
    pub tokens: Vec<SampledToken>,
    /// Where the tokens of each row end: `[num_rows]`.
    pub ends: Vec<u32>,
    /// Tokens that are none, because nothing may follow in the structure of their response.
    pub failed: Vec<FailedToken>,
    /// Time in the model, moves of blocks included.
    pub forward_time: Duration,
    /// The part of it that blocks were moved in.
    pub move_time: Duration,
    /// Time in the sampler, where it is not part of the model's.
    pub sample_time: Duration,
    /// Whether something was made for it that later steps use, such as the graph of a number of rows: its time says nothing
    /// of theirs.
    pub is_first_of_kind: bool,
}

impl StepOutput {
    /// The tokens of each row in order; a row past the end of `tokens` has none.
    pub fn rows(&self) -> impl Iterator<Item = &[SampledToken]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, &end)| self.tokens.get(start as usize..end as usize).unwrap_or_default())
    }
}
