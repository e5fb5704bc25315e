//! A proposer that knows what comes, but is wrong as often as it is told to be.

use std::collections::HashMap;
use std::time::Duration;

use super::{Completions, VOCAB_SIZE};
use crate::{Draftable, Goal, Proposer, Request, SeqId, StepTime};

/// Knows the responses and drafts them, with mistakes.
pub(crate) struct Guesser {
    expect: HashMap<SeqId, Vec<u32>>,
    /// Tokens that were drawn.
    drawn: HashMap<SeqId, Vec<u32>>,
    right_percent: u64,
    most_drafts: u64,
    seed: u64,
    num_guesses: u64,
    /// Responses may be cancelled.
    may_cancel: bool,
}

impl Guesser {
    pub(crate) fn new(
        completions: &Completions,
        requests: &[Request],
        right_percent: u64,
        most_drafts: u64,
    ) -> Self {
        let computed =
            requests.iter().filter(|request| request.num_responses > 0 && request.max_new_tokens > 0);
        let expect = (0..).zip(computed).flat_map(|(group_idx, request)| {
            (0..request.num_responses).map(move |response_idx| {
                let completion = &completions[&(request.sample_idx, response_idx)];
                (SeqId { group_idx, response_idx }, completion.token_ids.clone())
            })
        });
        let expect = expect.collect();
        Self {
            expect,
            drawn: HashMap::new(),
            right_percent,
            most_drafts,
            seed: 1,
            num_guesses: 0,
            may_cancel: false,
        }
    }

    /// The same where responses may end before their last token.
    pub(crate) fn with_cancelling(self) -> Self {
        Self { may_cancel: true, ..self }
    }

    /// The tokens of a response that are to be drawn.
    pub(crate) fn what_follows(&self, id: SeqId) -> &[u32] {
        &self.expect[&id][self.drawn[&id].len()..]
    }

    /// Whether it is right at all.
    pub(crate) fn is_right(&self) -> bool {
        self.right_percent > 0
    }

    fn random(&mut self, limit: u64) -> u64 {
        self.num_guesses += 1;
        (sampling::uniform(self.seed, self.num_guesses, 0, 0) * limit as f64) as u64
    }
}

impl Proposer<SeqId> for Guesser {
    fn reset(&mut self) {
        self.drawn.clear();
    }

    fn prompt(&mut self, tokens: &[u32], responses: &[SeqId]) {
        assert!(!tokens.is_empty());
        for &id in responses {
            assert!(self.drawn.insert(id, Vec::new()).is_none());
        }
    }

    fn append(&mut self, id: SeqId, tokens: &[u32]) {
        let drawn = self.drawn.get_mut(&id).unwrap();
        drawn.extend_from_slice(tokens);
        assert!(!tokens.is_empty() && self.expect[&id].starts_with(drawn));
    }

    fn end(&mut self, id: SeqId) {
        let drawn = self.drawn.remove(&id);
        assert!(drawn.is_some() && (self.may_cancel || drawn.as_ref() == self.expect.get(&id)), "{drawn:?}");
    }

    /// More of them than there is room for, right ones behind wrong ones, and ends.
    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        let mut drafts = Vec::new();
        for response in responses {
            let num_drawn = self.drawn[&response.id].len();
            let most = self.most_drafts + 1;
            let num_drafts = self.random(most) as usize;
            let tokens = (num_drawn..num_drawn + num_drafts).map(|place| {
                let right = self.expect[&response.id].get(place).copied();
                let is_right = self.random(100) < self.right_percent;
                let wrong = self.random(VOCAB_SIZE as u64) as u32;
                right.filter(|_| is_right).unwrap_or(wrong)
            });
            drafts.push(tokens.collect());
        }
        drafts
    }

    /// Sometimes the engine may run ahead.
    fn wants_drafts(&mut self, _num_in_flight: usize, _goal: Goal) -> bool {
        self.num_guesses += 1;
        !self.num_guesses.is_multiple_of(3)
    }

    fn measured(&mut self, step: StepTime) {
        assert!((1..=step.num_tokens).contains(&step.num_rows));
    }

    fn not_comparable(&mut self, _time: Duration) {}
}
