//! Who guesses how responses go on, so that a step computes several tokens of one.
//!
//! A guess is only ever checked: the token of each position is drawn as without it, and it is used while it is that token.
//! So no guess changes a text, whoever makes it.

use std::time::Duration;

use speculation::{ResponseId, Speculator};

use crate::plan::SeqId;

/// A response that goes on in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draftable {
    /// Which response.
    pub id: SeqId,
    /// Drafted tokens that it has use for: it ends, at the latest, with the token behind them.
    pub max_drafts: usize,
}

/// Drafts tokens. It is told all that it may draw on: prompts, and tokens as they are drawn.
pub trait Proposer: Send {
    /// A new run: what is in flight is abandoned, and numbers of requests start again.
    fn reset(&mut self);

    /// The prompt of a request, and how many responses it gets.
    fn prompt(&mut self, group_idx: u64, tokens: &[u32], num_responses: u32);

    /// Tokens that a response went on by, the first ones included.
    fn append(&mut self, id: SeqId, tokens: &[u32]);

    /// A response ended.
    fn end(&mut self, id: SeqId);

    /// Whether it may draft for the next step. The engine then waits until the tokens of the last one are known, which a
    /// device need not.
    fn is_drafting(&self) -> bool;

    /// Drafted tokens for each of the responses of a step, in their order, or none.
    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>>;

    /// How long a step took that computed this many tokens, none of them of a prompt.
    fn measured(&mut self, num_tokens: usize, time: Duration);
}

impl From<SeqId> for ResponseId {
    fn from(id: SeqId) -> Self {
        Self { request: id.group_idx, response: id.response_idx }
    }
}

impl Proposer for Speculator {
    fn reset(&mut self) {
        self.reset();
    }

    fn prompt(&mut self, group_idx: u64, tokens: &[u32], num_responses: u32) {
        self.prompt(group_idx, tokens, num_responses);
    }

    fn append(&mut self, id: SeqId, tokens: &[u32]) {
        self.append(id.into(), tokens);
    }

    fn end(&mut self, id: SeqId) {
        self.end(id.into());
    }

    fn is_drafting(&self) -> bool {
        self.is_drafting()
    }

    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        let responses: Vec<speculation::Draftable> = responses
            .iter()
            .map(|&Draftable { id, max_drafts }| speculation::Draftable { id: id.into(), max_drafts })
            .collect();
        self.propose(&responses)
    }

    fn measured(&mut self, num_tokens: usize, time: Duration) {
        self.measured(num_tokens, time);
    }
}
