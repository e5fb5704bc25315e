//! Drafts for the responses of a run, learned from while it goes on.
//!
//! Before a token is taken in, the index is asked what it would have been, so that it is known how often finds of each kind
//! are right without a single draft being computed. What a step costs is only known when such steps are run: they are, a
//! little longer ones at a time, as long as that loses no more than [`CREDIT_PER_STEP`] of the time.

use std::collections::HashMap;
use std::time::Duration;

use crate::acceptance::Acceptance;
use crate::choice::Offer;
use crate::costs::Costs;
use crate::index::{Find, Index, MAX_CONTEXT_LEN, Place};
use crate::texts::{TextId, Texts};

/// The most drafts of one response in a step.
const MAX_DRAFTS: usize = 15;
/// Drafts less likely than this are not looked for.
const LEAST_PROBABILITY: f64 = 0.02;
/// What part of its time each step adds to the time that may be lost.
const CREDIT_PER_STEP: f64 = 0.0075;
/// The credit at the start and the most of it, in steps.
const FIRST_CREDIT: f64 = 0.25;
const MOST_CREDIT: f64 = 4.0;
/// Steps with drafts after which one without is run, to see what it costs by now.
const PLAIN_AFTER: u64 = 256;
/// The most steps without a look for drafts after one that found none worth while.
const MOST_SKIPPED: u64 = 64;
/// Tokens of texts that ended.
const MOST_ENDED_TOKENS: usize = 1 << 20;
/// 32 MiB, for all contexts of about half a million tokens.
const SLOTS_LOG2: u32 = 22;

/// One response to a request of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResponseId {
    /// The request.
    pub request: u64,
    /// Which response.
    pub response: u32,
}

/// A response that goes on in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draftable {
    /// Which response.
    pub id: ResponseId,
    /// The most drafted tokens that it has use for.
    pub max_drafts: usize,
}

/// A prompt and the responses to it that go on.
#[derive(Debug)]
struct Request {
    prompt: TextId,
    num_responses: u32,
}

/// A response in flight. Its text begins with the end of the prompt.
#[derive(Clone, Copy, Debug)]
struct Response {
    text: TextId,
    /// The number of its request among those of all runs.
    scope: u64,
}

/// A step with drafts that was run, until it is known what it gave.
#[derive(Clone, Copy, Debug)]
struct Settling {
    num_rows: usize,
    /// What it took.
    seconds: f64,
    /// What a step without drafts takes.
    plain_seconds: f64,
    num_tokens: usize,
}

/// A step whose drafts were proposed.
#[derive(Clone, Copy, Debug)]
struct Proposed {
    num_rows: usize,
    /// What it takes without drafts.
    plain_seconds: f64,
}

/// Drafts tokens and decides how many.
pub struct Speculator {
    texts: Texts,
    index: Index,
    requests: HashMap<u64, Request>,
    responses: HashMap<ResponseId, Response>,
    /// Of all runs.
    num_requests: u64,
    acceptance: Acceptance,
    costs: Costs,
    /// Seconds that may be lost; none before the first step.
    credit: Option<f64>,
    steps_since_plain: u64,
    /// Steps until drafts are looked for again, where looking costs something; and how many they were at first.
    skips: u64,
    skips_at_first: u64,
    proposed: Option<Proposed>,
    settling: Option<Settling>,
}

impl Default for Speculator {
    fn default() -> Self {
        Self {
            texts: Texts::default(),
            index: Index::new(SLOTS_LOG2),
            requests: HashMap::new(),
            responses: HashMap::new(),
            num_requests: 0,
            acceptance: Acceptance::default(),
            costs: Costs::default(),
            credit: None,
            steps_since_plain: 0,
            skips: 0,
            skips_at_first: 0,
            proposed: None,
            settling: None,
        }
    }
}

impl Speculator {
    /// A new run, whose requests are other ones. What was read and measured stays.
    pub fn reset(&mut self) {
        self.settle();
        self.proposed = None;
        for (_, response) in self.responses.drain() {
            self.texts.end(response.text, MOST_ENDED_TOKENS);
        }
        for (_, request) in self.requests.drain() {
            self.texts.end(request.prompt, MOST_ENDED_TOKENS);
        }
    }

    /// The prompt of a request, and how many responses it gets.
    pub fn prompt(&mut self, request: u64, tokens: &[u32], num_responses: u32) {
        self.settle();
        let scope = self.num_requests;
        self.num_requests += 1;
        let prompt = self.texts.begin(tokens.to_vec());
        for end in 1..tokens.len() as u32 {
            self.index.insert(&self.texts, Place { text: prompt, end }, scope);
        }
        let tail = &tokens[tokens.len().saturating_sub(MAX_CONTEXT_LEN)..];
        for response in 0..num_responses {
            let text = self.texts.begin(tail.to_vec());
            self.responses.insert(ResponseId { request, response }, Response { text, scope });
        }
        self.requests.insert(request, Request { prompt, num_responses });
    }

    /// Tokens that a response went on by.
    pub fn append(&mut self, id: ResponseId, tokens: &[u32]) {
        let Some(&Response { text, scope }) = self.responses.get(&id) else { return };
        for &token in tokens {
            let context = self.texts.get(text);
            let place = Place { text, end: context.len() as u32 };
            if let Some(Find { token: expected, kind }) = self.index.find(&self.texts, context, scope) {
                self.acceptance.count(kind, expected == token);
            }
            self.texts.push(text, token);
            self.index.insert(&self.texts, place, scope);
        }
        if let Some(settling) = &mut self.settling {
            settling.num_tokens += tokens.len();
        }
    }

    /// A response ended.
    pub fn end(&mut self, id: ResponseId) {
        let Some(response) = self.responses.remove(&id) else { return };
        self.texts.end(response.text, MOST_ENDED_TOKENS);
        let Some(request) = self.requests.get_mut(&id.request) else { return };
        request.num_responses = request.num_responses.saturating_sub(1);
        if request.num_responses == 0 {
            self.texts.end(request.prompt, MOST_ENDED_TOKENS);
            self.requests.remove(&id.request);
        }
    }

    /// Whether to ask for drafts for the next step, where asking has a price. After a step for which none were worth while
    /// there is a pause, and a longer one each time.
    pub fn is_drafting(&self) -> bool {
        self.skips == 0
    }

    /// Drafted tokens for each response of a step, in their order: as many as pay.
    pub fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        let drafts = self.drafts(responses);
        self.skips_at_first = match self.proposed {
            Some(_) => 0,
            None => (2 * self.skips_at_first).clamp(1, MOST_SKIPPED),
        };
        self.skips = self.skips_at_first;
        drafts
    }

    fn drafts(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        self.settle();
        self.proposed = None;
        let num_rows = responses.len();
        let mut drafts = vec![Vec::new(); num_rows];
        let (Some(curve), Some(credit)) = (self.costs.curve(), self.credit) else { return drafts };
        // What a step without drafts costs must be known, and what was lost must be earned first.
        if credit < 0.0 || curve.fewest_tokens() > num_rows || self.steps_since_plain >= PLAIN_AFTER {
            return drafts;
        }
        let mut offered = Vec::new();
        for (row, (response, drafts)) in responses.iter().zip(&mut drafts).enumerate() {
            let likely = self.continuation(response);
            offered.extend(likely.iter().map(|&(_, probability)| (probability, row)));
            drafts.extend(likely.iter().map(|&(token, _)| token));
        }
        // Stable, so that the drafts of a response keep their order where they are equally likely.
        offered.sort_by(|a, b| b.0.total_cmp(&a.0));
        let probabilities: Vec<f64> = offered.iter().map(|&(probability, _)| probability).collect();
        let offer = Offer { num_rows, probabilities: &probabilities, curve: &curve, credit };
        let num_drafts = offer.choose();
        let mut num_taken = vec![0; num_rows];
        offered[..num_drafts].iter().for_each(|&(_, row)| num_taken[row] += 1);
        drafts.iter_mut().zip(num_taken).for_each(|(drafts, num_taken)| drafts.truncate(num_taken));
        if num_drafts > 0 {
            self.proposed = Some(Proposed { num_rows, plain_seconds: offer.seconds(num_rows) });
        }
        drafts
    }

    /// How long a step took that computed this many tokens, none of them of a prompt.
    pub fn measured(&mut self, num_tokens: usize, time: Duration) {
        self.settle();
        self.costs.add(num_tokens, time);
        self.skips = self.skips.saturating_sub(1);
        let seconds = time.as_secs_f64();
        // There may have been room for fewer drafts, or for none.
        let proposed = self.proposed.take().filter(|of| num_tokens > of.num_rows);
        self.settling = proposed.map(|Proposed { num_rows, plain_seconds }| Settling {
            num_rows,
            // More than in several steps without drafts is a hiccup of the machine, and not the drafts' fault.
            seconds: seconds.min(plain_seconds * num_tokens as f64 / num_rows as f64),
            plain_seconds,
            num_tokens: 0,
        });
        self.steps_since_plain = if self.settling.is_some() { self.steps_since_plain + 1 } else { 0 };
        let earned = CREDIT_PER_STEP * seconds;
        let credit = self.credit.map_or(FIRST_CREDIT * seconds, |credit| credit + earned);
        self.credit = Some(credit.min(MOST_CREDIT * seconds));
    }

    /// Adds to the credit what a step with drafts saved, or takes off what it lost.
    fn settle(&mut self) {
        let (Some(step), Some(credit)) = (self.settling.take(), &mut self.credit) else { return };
        let saved = step.num_tokens as f64 / step.num_rows as f64 * step.plain_seconds - step.seconds;
        *credit = (*credit + saved).min(MOST_CREDIT * step.plain_seconds);
    }

    /// How a response may go on: each token, with the probability that it and all before it are right.
    fn continuation(&mut self, response: &Draftable) -> Vec<(u32, f64)> {
        let Some(&Response { text, scope }) = self.responses.get(&response.id) else { return Vec::new() };
        let num_tokens = self.texts.get(text).len();
        let mut likely = Vec::new();
        let mut probability = 1.0;
        while likely.len() < response.max_drafts.min(MAX_DRAFTS)
            && let Some(Find { token, kind }) = self.index.find(&self.texts, self.texts.get(text), scope)
        {
            probability *= self.acceptance.rate(kind);
            if probability < LEAST_PROBABILITY {
                break;
            }
            likely.push((token, probability));
            self.texts.push(text, token);
        }
        self.texts.truncate(text, num_tokens);
        likely
    }
}

#[cfg(test)]
mod tests;
