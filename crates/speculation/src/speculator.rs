//! Drafts for the responses of a run, learned from while it goes on.
//!
//! While none are drafted, tokens are only stored. What the index takes is a small part of all time ([`WORK_SHARE`]): some
//! of the responses, in turn, are put into it and looked at. What is expected of them is compared with the tokens that
//! come, so that it is known how often finds of each kind are right without a single draft being computed; and as many
//! drafts are counted as all responses would have if they were like these. Only if that is worth more than the pace of
//! steps without drafts, those in flight are waited for.
//!
//! What a step costs is only known when such steps are run: they are, a little longer ones at a time, as long as that loses
//! no more than the account has.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::acceptance::{Acceptance, Trust};
use crate::account::Account;
use crate::choice::{Choice, Draft, Offer};
use crate::costs::Costs;
use crate::library::{Expected, Library, PORTION};
use crate::proposer::{Draftable, Goal, Pace, Proposer, StepTime};
use crate::texts::TextId;

/// The most drafts of one response in a step.
const MAX_DRAFTS: usize = 15;
/// What part of all time may go into the index while nothing is drafted.
const WORK_SHARE: f64 = 0.005;
/// Seconds to write a slot of the index: 17 ns on a busy server.
const OP_SECONDS: f64 = 20e-9;
/// The most seconds of work that are saved up.
const MOST_WORK_SECONDS: f64 = 4e-3;
/// The most responses that are looked at before a step.
const MOST_WATCHED: usize = 32;
/// What part of a step with drafts the tokens of its responses may take that are not in the index, and what one takes.
const CATCH_UP_SHARE: f64 = 0.05;
const CATCH_UP_SECONDS: f64 = 5.0 * OP_SECONDS;
/// Steps with drafts after which some without are run, to see what they cost by now.
const PLAIN_AFTER: u64 = 256;
/// The most steps until drafts are wanted again after they were and there was none.
const MOST_PAUSED: u64 = 1024;
/// A step with drafts takes no longer than its tokens in steps without, and one such step more, for the pace. What
/// took longer is a hiccup of the machine, and no measure of what was lost.
const MOST_PACE: f64 = 1.0;

/// A prompt and the responses to it that go on.
#[derive(Debug)]
struct Request {
    prompt: TextId,
    num_responses: usize,
}

/// A response in flight.
#[derive(Debug)]
struct Response {
    /// It begins with the end of the prompt.
    text: TextId,
    /// The number of its request among those of all runs.
    scope: u64,
    /// Its place in the order.
    place: usize,
    /// What it was expected to go on with when it was looked at.
    expected: Vec<Expected>,
    /// How well it is predicted.
    trust: Trust,
    /// Seconds that drafts were to save it, since nothing else waits.
    saved_seconds: f64,
}

/// A step that drafts were asked for, until it is measured.
#[derive(Debug)]
struct Proposed<Id> {
    /// What it takes without drafts.
    plain_seconds: f64,
    /// Tokens that are expected of each response.
    rows: Vec<(Id, f64)>,
}

/// Drafts tokens and decides how many.
pub struct Speculator<Id> {
    library: Library,
    acceptance: Acceptance,
    costs: Costs,
    account: Account,
    /// Seconds that the index may take; below 0 it took too many.
    work_seconds: f64,
    /// By number among those of all runs.
    requests: HashMap<u64, Request>,
    num_requests: u64,
    responses: HashMap<Id, Response>,
    /// Of all responses, and whose turn it is to be looked at.
    order: Vec<Id>,
    turn: usize,
    goal: Goal,
    is_drafting: bool,
    /// Steps until drafts may be wanted again, and how many they were at first.
    pause: u64,
    pause_at_first: u64,
    /// Steps with drafts since one without was measured.
    steps_since_plain: u64,
    /// Of the last step.
    num_rows: usize,
    proposed: Option<Proposed<Id>>,
    /// Tokens that came since drafts were proposed.
    num_new_tokens: usize,
    /// Since nothing else waits: what drafts saved on average, and how far the response that they were to save least is
    /// behind where it would be without, or 0.
    saved_seconds: f64,
    behind_seconds: f64,
}

impl<Id> Default for Speculator<Id> {
    fn default() -> Self {
        Self {
            library: Library::default(),
            acceptance: Acceptance::default(),
            costs: Costs::default(),
            account: Account::default(),
            work_seconds: 0.0,
            requests: HashMap::new(),
            num_requests: 0,
            responses: HashMap::new(),
            order: Vec::new(),
            turn: 0,
            goal: Goal::Throughput,
            is_drafting: false,
            pause: 0,
            pause_at_first: 0,
            steps_since_plain: 0,
            num_rows: 0,
            proposed: None,
            num_new_tokens: 0,
            saved_seconds: 0.0,
            behind_seconds: 0.0,
        }
    }
}

impl<Id: Copy + Eq + Hash + Send> Proposer<Id> for Speculator<Id> {
    /// What was read and measured stays.
    fn reset(&mut self) {
        self.proposed = None;
        self.is_drafting = false;
        (self.saved_seconds, self.behind_seconds) = (0.0, 0.0);
        while let Some(&id) = self.order.last() {
            self.end(id);
        }
    }

    fn prompt(&mut self, tokens: &[u32], responses: &[Id]) {
        let scope = self.num_requests;
        self.num_requests += 1;
        let prompt = self.library.begin_prompt(tokens, scope);
        self.requests.insert(scope, Request { prompt, num_responses: responses.len() });
        for &id in responses {
            let text = self.library.begin_response(tokens, scope);
            let place = self.order.len();
            self.order.push(id);
            let (expected, trust) = (Vec::new(), Trust::default());
            self.responses.insert(id, Response { text, scope, place, expected, trust, saved_seconds: 0.0 });
        }
    }

    fn append(&mut self, id: Id, tokens: &[u32]) {
        let Some(response) = self.responses.get_mut(&id) else { return };
        self.library.push(response.text, tokens);
        self.num_new_tokens += tokens.len();
        if response.expected.is_empty() {
            return;
        }
        let mut num_right = 0;
        for (expected, token) in response.expected.iter().zip(tokens) {
            let is_right = expected.token == *token;
            response.trust.count(self.acceptance.rate(expected.kind), is_right);
            self.acceptance.count(expected.kind, is_right);
            num_right += usize::from(is_right);
            if !is_right {
                break;
            }
        }
        let is_as_expected = num_right == tokens.len().min(response.expected.len());
        response.expected.drain(..if is_as_expected { num_right } else { response.expected.len() });
    }

    fn end(&mut self, id: Id) {
        let Some(response) = self.responses.remove(&id) else { return };
        self.library.end(response.text);
        self.order.swap_remove(response.place);
        if let Some(moved) = self.order.get(response.place).and_then(|id| self.responses.get_mut(id)) {
            moved.place = response.place;
        }
        let Some(request) = self.requests.get_mut(&response.scope) else { return };
        request.num_responses = request.num_responses.saturating_sub(1);
        if request.num_responses == 0 {
            self.library.end(request.prompt);
            self.requests.remove(&response.scope);
        }
    }

    fn wants_drafts(&mut self, num_in_flight: usize, goal: Goal) -> bool {
        self.goal = goal;
        if !self.is_drafting {
            self.is_drafting = self.is_promising(num_in_flight);
        }
        self.is_drafting
    }

    fn propose(&mut self, responses: &[Draftable<Id>]) -> Vec<Vec<u32>> {
        self.is_drafting = false;
        let drafts = self.drafts(responses);
        self.pause_at_first = match self.is_drafting {
            true => 0,
            false => (2 * self.pause_at_first).clamp(1, MOST_PAUSED),
        };
        self.pause = self.pause_at_first;
        self.num_new_tokens = 0;
        drafts
    }

    fn measured(&mut self, step: StepTime) {
        self.costs.add(step);
        self.num_rows = step.num_rows;
        self.pause = self.pause.saturating_sub(1);
        let has_drafts = step.num_tokens > step.num_rows;
        if has_drafts {
            self.steps_since_plain += 1;
        } else if step.pace == Pace::Ahead || !self.costs.runs_ahead() {
            self.steps_since_plain = 0;
        }
        // A step alone and without drafts lost the pace of those that are not alone.
        if let Some(proposed) = self.proposed.take()
            && (has_drafts || self.costs.runs_ahead())
        {
            self.settle(&proposed, step);
        }
        self.earn(step.time);
    }

    fn not_comparable(&mut self, time: Duration) {
        // What was lost to making something is lost once, and not by drafts that do not pay.
        self.proposed = None;
        self.earn_work(time.as_secs_f64());
    }
}

impl<Id: Copy + Eq + Hash> Speculator<Id> {
    /// Whether drafts would be worth while for all responses of the next step, if they are like some of them.
    fn is_promising(&mut self, num_in_flight: usize) -> bool {
        // A response whose prompt is not in the index would only wait for the others' drafts.
        self.work(Library::work_on_prompts);
        if !self.library.has_prompts() {
            return false;
        }
        let mut offered = Vec::new();
        let num_watched = self.watch(num_in_flight, &mut offered);
        self.work(Library::work_on_ended);
        self.pause == 0 && self.choose(self.num_rows, num_watched, &mut offered) != Choice::Nothing
    }

    /// Looks at responses in turn, while there is time for it; returns how many. Offers what they may go on with behind the
    /// tokens of the steps in flight.
    fn watch(&mut self, num_in_flight: usize, offered: &mut Vec<Draft>) -> usize {
        let most = self.order.len().min(MOST_WATCHED).min(self.num_rows);
        let mut row = 0;
        while row < most && self.work_seconds > 0.0 {
            self.turn = if self.turn + 1 < self.order.len() { self.turn + 1 } else { 0 };
            let Some(&id) = self.order.get(self.turn) else { break };
            let mut room = PORTION;
            let expected = self.look_at(id, MAX_DRAFTS + num_in_flight, &mut room);
            let behind = expected.iter().skip(num_in_flight);
            offered.extend(behind.map(|&Expected { probability, .. }| Draft { row, probability }));
            row += 1;
            self.pay_for_work();
        }
        row
    }

    /// Works on the index while there is time for it and something to do.
    fn work(&mut self, portion: fn(&mut Library) -> bool) {
        while self.work_seconds > 0.0 && portion(&mut self.library) {
            self.pay_for_work();
        }
    }

    /// Takes what the index was used for out of the time for it.
    fn pay_for_work(&mut self) {
        self.work_seconds -= self.library.take_ops() as f64 * OP_SECONDS;
    }

    /// What a response may go on with, when it and its prompt are in the index, as far as there is room for that many more
    /// tokens before a step.
    fn look_at(&mut self, id: Id, most_tokens: usize, room: &mut usize) -> &[Expected] {
        let Some(response) = self.responses.get_mut(&id) else { return &[] };
        // The prompt first, so that what is newer takes its places.
        let prompt = self.requests.get(&response.scope).map(|request| request.prompt);
        for text in prompt.into_iter().chain([response.text]) {
            *room -= self.library.catch_up(text, *room);
        }
        let rate = |kind| response.trust.rate(self.acceptance.rate(kind));
        self.library.continue_text(response.text, most_tokens, rate, &mut response.expected);
        &response.expected
    }

    /// How many of these drafts to take, of responses that stand for all of a step; the most likely come first then.
    fn choose(&self, num_rows: usize, num_watched: usize, offered: &mut [Draft]) -> Choice {
        let Some(credit) = self.account.seconds() else { return Choice::Nothing };
        // What was lost must be earned first, and what a step without drafts costs must be known.
        if offered.is_empty() || credit < 0.0 || self.steps_since_plain >= PLAIN_AFTER {
            return Choice::Nothing;
        }
        let Some(costs) = self.costs.of(num_rows) else { return Choice::Nothing };
        // Stable, so that the drafts of a response keep their order where they are equally likely.
        offered.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        Offer { goal: self.goal, num_rows, num_watched, drafts: offered, costs: &costs, credit }.choose()
    }

    fn drafts(&mut self, responses: &[Draftable<Id>]) -> Vec<Vec<u32>> {
        let num_rows = responses.len();
        let mut drafts: Vec<Vec<u32>> = vec![Vec::new(); num_rows];
        let Some(plain_seconds) = self.costs.of(num_rows).map(|costs| costs.plain_seconds) else {
            return drafts;
        };
        let mut room = (CATCH_UP_SHARE * plain_seconds / CATCH_UP_SECONDS) as usize + num_rows;
        let mut offered = Vec::new();
        for (row, response) in responses.iter().enumerate() {
            let expected = self.look_at(response.id, MAX_DRAFTS.min(response.max_drafts).max(1), &mut room);
            let useful = &expected[..expected.len().min(response.max_drafts)];
            offered.extend(useful.iter().map(|&Expected { probability, .. }| Draft { row, probability }));
            drafts[row].extend(useful.iter().map(|expected| expected.token));
        }
        // It is part of the step's time.
        self.library.take_ops();
        self.work(Library::work_on_prompts);
        let choice = self.choose(num_rows, num_rows, &mut offered);
        let mut num_taken = vec![0; num_rows];
        let mut rows: Vec<(Id, f64)> = responses.iter().map(|response| (response.id, 1.0)).collect();
        for &Draft { row, probability } in &offered[..choice.num_taken()] {
            num_taken[row] += 1;
            rows[row].1 += probability;
        }
        drafts.iter_mut().zip(num_taken).for_each(|(drafts, num_taken)| drafts.truncate(num_taken));
        self.proposed = Some(Proposed { plain_seconds, rows });
        self.is_drafting = choice != Choice::Nothing;
        drafts
    }

    /// Adds to the account what a step saved, or takes off what it lost.
    fn settle(&mut self, proposed: &Proposed<Id>, step: StepTime) {
        let Proposed { plain_seconds, ref rows } = *proposed;
        let per_row = |num_tokens: usize| num_tokens as f64 / step.num_rows.max(1) as f64;
        let most_seconds = plain_seconds * (per_row(step.num_tokens) + MOST_PACE);
        let seconds = step.time.as_secs_f64().min(most_seconds);
        let saved = per_row(self.num_new_tokens) * plain_seconds - seconds;
        if self.goal == Goal::Throughput {
            self.account.settle(saved);
            return;
        }
        // The run ends with its slowest response, whatever the others gain. What is expected of each counts, because a few
        // tokens more or less are chance.
        self.saved_seconds += saved;
        let mut least = self.saved_seconds;
        for &(id, num_expected) in rows {
            let Some(response) = self.responses.get_mut(&id) else { continue };
            response.saved_seconds += num_expected * plain_seconds - seconds;
            least = least.min(response.saved_seconds);
        }
        let behind = (-least).max(0.0);
        self.account.settle(self.behind_seconds - behind);
        self.behind_seconds = behind;
    }

    fn earn(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.account.earn(seconds);
        self.earn_work(seconds);
    }

    fn earn_work(&mut self, seconds: f64) {
        self.work_seconds = (self.work_seconds + WORK_SHARE * seconds).min(MOST_WORK_SECONDS);
    }
}

#[cfg(test)]
mod tests;
