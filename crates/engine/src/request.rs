//! What goes into the engine and what comes out of it.

use std::time::Duration;

use model_spec::KvTables;
use sampling::{FinishReason, RowRules, StopConditions, TopToken};
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// One prompt to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Position of the sample in the input file; part of the random key.
    pub sample_idx: u64,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How many responses; none gives no completion.
    pub num_responses: u32,
    /// Budget of each response; 0 gives empty completions.
    pub max_new_tokens: u32,
    /// What decides its tokens and their end, where that is not what decides them in the run.
    pub own: Option<Box<OwnRules>>,
    /// What is known of it beforehand.
    pub foresight: Foresight,
}

/// How one request is answered, in place of what holds for the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRules {
    /// How its tokens are chosen.
    pub row: RowRules,
    /// What ends its responses.
    pub stop: StopConditions,
}

/// What is known of a request before it is computed. It decides how soon things are done, and no text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foresight {
    /// Tokens that a response to it is likely to have; None where only its budget is known.
    pub expected_tokens: Option<u32>,
    /// Later requests that begin as it does; None where none is known of.
    pub prefix: Option<PlannedPrefix>,
}

/// Requests that begin with the same tokens, for which what is computed of those is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedPrefix {
    /// The same for all of them.
    pub id: u32,
    /// How many are still to come.
    pub num_later: u32,
    /// Among how many requests they come, for this engine or for others: after as many none is waited for any more.
    pub within: u32,
}

/// What the engine gets when it asks for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supply {
    /// One more to answer.
    Request(Request),
    /// None at the moment: ask again.
    Later,
    /// None any more.
    End,
}

impl From<Option<Request>> for Supply {
    fn from(request: Option<Request>) -> Self {
        request.map_or(Self::End, Self::Request)
    }
}

/// Whether the engine has something to compute while it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It has: the answer should come at once.
    Busy,
    /// It has not: the answer may wait a little for a request to come.
    Idle,
}

/// One finished response.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Position of the sample in the input file.
    pub sample_idx: u64,
    /// Which response of the sample.
    pub response_idx: u32,
    /// The generated tokens, those that ended the response included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Where it could not go on: why.
    pub error: Option<String>,
    /// One a token, when the sampler computes them.
    pub logprobs: Option<Vec<f32>>,
    /// The most likely tokens at the place of each, when the sampler is asked for them.
    pub top_logprobs: Option<Vec<Vec<TopToken>>>,
}

/// The most sequences of a step on a GPU: what its kernels are checked with (`gpu_check`).
pub const MAX_NUM_SEQS_ON_GPU: usize = 1024;

/// What the device can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most sequences in one decode step.
    pub max_num_seqs: usize,
    /// Most prompt tokens in one prefill step, of which cached ones count a quarter. A longer prompt goes alone, in parts
    /// where that gives the same bits.
    pub max_prefill_tokens: usize,
    /// Blocks in the KV cache.
    pub num_blocks: usize,
    /// Blocks that may be swapped out to the host at once; 0 where everything that was begun has room in the cache.
    pub num_host_blocks: usize,
    /// Tokens in a block.
    pub block_size_tokens: usize,
    /// The block tables of a sequence.
    pub tables: KvTables,
}

/// Most tokens of a decode step that has drafts: past these a step takes longer in proportion, so drafts gain nothing.
const MAX_TOKENS_WITH_DRAFTS: usize = 256;
/// Most tokens of one sequence in a decode step.
const MAX_TOKENS_PER_SEQ: usize = 16;

impl EngineLimits {
    /// Most tokens of responses in one decode step: the newest of each, and drafts.
    pub fn max_decode_tokens(&self) -> usize {
        let with_drafts = self.max_num_seqs.saturating_mul(MAX_TOKENS_PER_SEQ).min(MAX_TOKENS_WITH_DRAFTS);
        self.max_num_seqs.max(with_drafts)
    }

    pub(crate) fn check(self) -> Result<Self, EngineError> {
        let limits = [
            ("max_num_seqs", self.max_num_seqs),
            ("max_prefill_tokens", self.max_prefill_tokens),
            ("num_blocks", self.num_blocks),
            ("block_size_tokens", self.block_size_tokens),
            ("tables", self.tables.len()),
            ("window_tokens", self.tables.window_tokens),
        ];
        match limits.into_iter().find(|&(_, actual)| actual == 0) {
            Some((limit, actual)) => {
                Err(EngineError::BadLimit { limit, expected: "at least 1".to_owned(), actual })
            }
            None => Ok(self),
        }
    }
}

/// Whether a run came to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunEnd {
    /// Every request was answered.
    #[default]
    Finished,
    /// The caller stopped it; requests in flight were abandoned.
    Stopped,
}

/// What a run did and where its time went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Whether it was stopped.
    pub end: RunEnd,
    /// Prompt tokens computed, each prompt once.
    pub prompt_tokens: u64,
    /// Prompt tokens that were not computed, because an earlier prompt began with the same ones.
    pub cached_prompt_tokens: u64,
    /// Tokens sampled.
    pub generated_tokens: u64,
    /// Responses that were cancelled before their end.
    pub num_cancelled: u64,
    /// Prefill steps.
    pub num_prefill_steps: u64,
    /// Decode steps.
    pub num_decode_steps: u64,
    /// Most sequences in one decode step.
    pub peak_rows: usize,
    /// Sequences of all decode steps: how often a response went on.
    pub decode_rows: u64,
    /// Tokens that were drafted for them.
    pub drafted_tokens: u64,
    /// How many of those were the tokens drawn.
    pub accepted_tokens: u64,
    /// How often a sequence had to make room for others.
    pub num_preemptions: u64,
    /// KV blocks that went to the host.
    pub num_swapped_out_blocks: u64,
    /// KV blocks that came back.
    pub num_swapped_in_blocks: u64,
    /// Time in which blocks went and came, part of those below.
    pub swap_time: Duration,
    /// Time in the model's prefill.
    pub prefill_time: Duration,
    /// Time in the model's decode, moves of blocks included.
    pub decode_time: Duration,
    /// Time in the sampler.
    pub sample_time: Duration,
}
