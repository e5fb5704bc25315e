//! What carries out the steps of a run: a model with its cache and a sampler, on the host or on a device.
//!
//! Steps are started and collected apart, so that a device can be given the next step before the host has read the
//! tokens of this one. The newest token of a response stays with the executor; the engine learns of it when it collects.

#[cfg(any(feature = "cuda", test))]
pub(crate) mod device;
pub(crate) mod host;

use std::sync::Arc;

use sampling::Vocabulary;

use crate::{
    EngineError,
    plan::{SeqId, StepOutput, StepPlan},
};

/// Carries out steps in the order in which they are started.
pub trait Executor: Send {
    /// Forgets every sequence and every step.
    ///
    /// # Errors
    /// When a device fails.
    fn reset(&mut self) -> Result<(), EngineError>;

    /// Gives it what structures are followed with. Without it no response may have one.
    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>);

    /// Starts a step.
    ///
    /// # Errors
    /// When the plan speaks of sequences that it does not know, has rows that this executor does not compute, or the model,
    /// the sampler or the device fails. The executor can then only be reset.
    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError>;

    /// The tokens of the oldest step that was started and not collected; waits for it.
    ///
    /// # Errors
    /// When the device fails, or no token of a row can be chosen.
    fn collect(&mut self) -> Result<StepOutput, EngineError>;

    /// Rows that a step of one sequence has: more than one where smaller steps are padded.
    fn min_rows(&self) -> usize {
        1
    }

    /// At multiples of how many tokens prompts may be cut: their tokens are then those of prompts computed whole. None where
    /// they are computed whole.
    fn prompt_cut_tokens(&self) -> Option<usize> {
        None
    }

    /// How many steps may be in flight when another is started.
    fn run_ahead(&self) -> usize;

    /// Into how many sets responses are divided whose steps are in flight side by side: one, or as many as a model has
    /// pipeline stages, so that none of them waits. With more than one a response is in no step before its last token is
    /// known.
    fn num_sets(&self) -> usize {
        1
    }

    /// Whether it computes drafted tokens, with the bits that they get one by one.
    fn verifies_drafts(&self) -> bool {
        false
    }

    /// Whether the responses of one sample are all the same, so that one of them is enough.
    fn is_greedy(&self) -> bool;
}

/// What every executor says of a structure that it cannot follow.
const NO_VOCABULARY: &str = "a structure, which it was not given the tokens for";
/// The same of drafts: what may be next is known of the newest token alone.
const DRAFTS_IN_STRUCTURE: &str = "drafted tokens in a response with a structure";

fn unknown(id: SeqId) -> EngineError {
    EngineError::UnknownSequence { group_idx: id.group_idx, response_idx: id.response_idx }
}

fn unknown_prompt(group_idx: u64) -> EngineError {
    unknown(SeqId { group_idx, response_idx: 0 })
}
