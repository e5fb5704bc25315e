//! Who guesses how responses go on, so that a step computes several tokens of one.
//!
//! A guess is only ever checked: the token of each position is drawn as without it, and it is used while it is that token.
//! So no guess changes a text, whoever makes it.

use std::time::Duration;

/// A response that goes on in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draftable<Id> {
    /// Which response.
    pub id: Id,
    /// Drafted tokens that it has use for: it ends, at the latest, with the token behind them.
    pub max_drafts: usize,
}

/// What is to be fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// All tokens together: other responses wait for the places of those that end.
    Throughput,
    /// The response that ends last: nothing waits.
    Finish,
}

/// How steps follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The step was started before the tokens of the one before it were read, so that a device never waited for the host.
    Ahead,
    /// Nothing was in flight when it was started. What the host did since the step before it is part of its time.
    Alone,
}

/// A step, none of whose tokens are of a prompt, and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTime {
    /// Responses that went on.
    pub num_rows: usize,
    /// Tokens that were computed: one of each response, and the drafts.
    pub num_tokens: usize,
    /// How it followed the step before it.
    pub pace: Pace,
    /// From when the tokens of the step before it were read until its own were.
    pub time: Duration,
}

/// Drafts tokens. It is told all that it may draw on: prompts, and tokens as they are drawn.
pub trait Proposer<Id>: Send {
    /// A new run: what is in flight is abandoned, and ids are given again.
    fn reset(&mut self);

    /// The prompt of a request, and the responses to it.
    fn prompt(&mut self, tokens: &[u32], responses: &[Id]);

    /// Tokens that a response went on by, the first ones included.
    fn append(&mut self, id: Id, tokens: &[u32]);

    /// A response ended.
    fn end(&mut self, id: Id);

    /// Whether the next step shall have drafts. The engine then waits until the tokens of the steps in flight are known,
    /// which a device need not. Asked before each step, when at most so many steps are in flight as a device may be ahead.
    fn wants_drafts(&mut self, num_in_flight: usize, goal: Goal) -> bool;

    /// Drafted tokens for each of the responses of a step, in their order, or none, when they were wanted. The next step that
    /// is measured is this one.
    fn propose(&mut self, responses: &[Draftable<Id>]) -> Vec<Vec<u32>>;

    /// How long a step of responses took. Its tokens were appended before.
    fn measured(&mut self, step: StepTime);

    /// How long a step took whose time says nothing of steps without prompts: it had prompts, or something was made for it
    /// that later steps use.
    fn not_comparable(&mut self, time: Duration);
}
