//! Which of the waiting prompts fit now.
//!
//! Two things are certain: in the cache there is room for what starts, and cache and host together have room for
//! everything that was begun at its greatest length. Where the host can help, a third one is expected: that the cache alone
//! has room for nearly everything at its expected length, so that little is swapped.

use std::collections::HashSet;

use super::{
    Scheduler, Seq, WaitingGroup,
    forecast::{Forecast, Lengths, Span},
    prompts::step_tokens,
};
use crate::{
    EngineLimits,
    block_table::{BlockDemand, own_window},
    prefix_cache::NodeId,
};

/// The prompts at the front of the queue that fit now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Admission {
    pub(super) num_groups: usize,
    pub(super) num_tokens: usize,
    /// Responses that can start right after the prefill.
    pub(super) num_seqs: usize,
    pub(super) limited_by: Option<Limit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    PrefillTokens,
    Room,
}

/// An admission that goes on while prompts are queued, so that each of them is looked at once. It holds until anything
/// else changes.
#[derive(Debug)]
pub(super) struct Admitting {
    admission: Admission,
    room: Room,
    /// Pieces that the prompts admitted compute in the same step.
    planned: HashSet<NodeId>,
    /// Queued prompts that were looked at.
    num_seen: usize,
}

/// A request, as far as room is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) demand: BlockDemand,
    pub(super) num_seqs: usize,
    pub(super) max_new_tokens: u32,
    /// Tokens that each response is likely to have.
    pub(super) known_tokens: Option<u32>,
}

/// What is left for others.
#[derive(Debug)]
pub(super) struct Room {
    num_seats: usize,
    /// Blocks of cache and host that nobody holds or was promised.
    num_blocks: usize,
    /// Blocks of the cache that are free now.
    num_free_blocks: usize,
    /// None where nothing is swapped.
    forecast: Option<Forecast>,
    /// Nothing runs, so something must begin.
    is_idle: bool,
    limits: EngineLimits,
    lengths: Lengths,
}

impl Room {
    /// Takes room for as many responses of a request as fit side by side, and its prompt; returns how many.
    fn take(&mut self, wish: Wish) -> usize {
        let Wish { demand, num_seqs, .. } = wish;
        let at_start = demand.own_at_start();
        let first = demand.prompt() + if num_seqs > 1 { at_start } else { demand.at_start_of_last() };
        if self.num_seats == 0
            || demand.minimum(num_seqs) > self.num_blocks
            || first > self.num_free_blocks
            || !self.expect_first(wish)
        {
            return 0;
        }
        let divided = |num_blocks: usize, own: usize| {
            (num_blocks - demand.prompt()).checked_div(own).unwrap_or(num_seqs).clamp(1, num_seqs)
        };
        let has_all = demand.total(num_seqs) <= self.num_blocks
            && first + num_seqs.saturating_sub(1) * at_start <= self.num_free_blocks;
        let num_certain = match has_all {
            true => num_seqs,
            false => divided(self.num_blocks, demand.own()).min(divided(self.num_free_blocks, at_start)),
        };
        self.is_idle = false;
        let num_fit = self.expect_others(wish, num_certain.min(self.num_seats));
        self.num_seats -= num_fit;
        self.num_blocks = self.num_blocks.saturating_sub(demand.total(num_fit));
        self.num_free_blocks =
            self.num_free_blocks.saturating_sub(first + num_fit.saturating_sub(1) * at_start);
        num_fit
    }

    /// Counts in the prompt and its first response, if they are expected to fit.
    fn expect_first(&mut self, wish: Wish) -> bool {
        let own = self.own_span(wish);
        self.expect(&[Span { num_blocks: wish.demand.shared(), time: own.time, growth: 0 }, own])
    }

    /// How many of at most `num_seqs` responses are expected to fit; the first is counted in already.
    fn expect_others(&mut self, wish: Wish, num_seqs: usize) -> usize {
        1 + (1..num_seqs).take_while(|_| self.expect(&[self.own_span(wish)])).count()
    }

    /// Whether one more response of a request whose prompt is computed may start.
    pub(super) fn may_start(&mut self, wish: Wish) -> bool {
        let Wish { demand, num_seqs: num_left, .. } = wish;
        let num_needed = if num_left == 1 { demand.own_of_last() } else { demand.own() };
        let own = self.own_span(wish);
        let may_start = self.num_seats > 0 && num_needed <= self.num_blocks && self.expect(&[own]);
        // It is counted in when it has started.
        if let (true, Some(forecast)) = (may_start, &mut self.forecast) {
            forecast.remove(own);
        }
        may_start
    }

    /// The own blocks of a response that has not started.
    fn own_span(&self, wish: Wish) -> Span {
        let expected_tokens = self.lengths.expected(0, wish.max_new_tokens, wish.known_tokens) as usize;
        let time = expected_tokens / self.limits.block_size_tokens;
        match wish.demand.own() {
            0 => Span { num_blocks: 0, time, growth: 0 },
            _ => Span::of_response(&self.limits, 1, time),
        }
    }

    /// Counts in `spans` if they fit, or something must run in any case.
    fn expect(&mut self, spans: &[Span]) -> bool {
        let num_blocks = self.limits.num_blocks;
        let Some(forecast) = &mut self.forecast else { return true };
        spans.iter().for_each(|&span| forecast.add(span));
        let fits = self.is_idle || forecast.peak() <= num_blocks + num_blocks / OVERCOMMITTED_PART;
        if !fits {
            spans.iter().for_each(|&span| forecast.remove(span));
        }
        fits
    }
}

/// What is expected to be in use may be more than the cache by this part of it. When it comes so, the youngest responses
/// are preempted, most of them late, and their blocks cross the bus twice, which takes a few milliseconds for a response;
/// without it a few that did not fit would follow by themselves, in as many steps as all the others took.
const OVERCOMMITTED_PART: usize = 8;

/// So many columns of a prompt that its responses share for some time.
fn shared_span(limits: &EngineLimits, num_columns: usize, time: usize) -> Span {
    Span { num_blocks: limits.tables.num_blocks(num_columns, own_window(limits)), time, growth: 0 }
}

/// What the responses of a request share. What came from another prompt is counted there.
fn num_shared_columns(first: &Seq) -> usize {
    first.num_shared_columns - first.num_cached_columns
}

impl Scheduler {
    /// What fits of the queue. It is found out step by step while prompts are queued, and anew when anything else changed
    /// ([`Scheduler::changed`]).
    pub(super) fn admissible(&mut self) -> Admission {
        let none = Admission { limited_by: Some(Limit::Room), ..Admission::default() };
        if !self.starting.is_empty() || !self.preempted.is_empty() || self.partial.is_some() {
            return none;
        }
        // Spares the forecast, most of the time.
        if self.waiting.is_empty() {
            return Admission::default();
        }
        if self.num_free_seats() == 0 {
            return none;
        }
        let mut admitting = self.admitting.take().unwrap_or_else(|| self.begin_admission());
        while admitting.admission.limited_by.is_none()
            && let Some(waiting) = self.waiting.get(admitting.num_seen)
        {
            admitting.num_seen += 1;
            self.admit(waiting, &mut admitting);
        }
        self.admitting.insert(admitting).admission
    }

    fn begin_admission(&self) -> Admitting {
        Admitting { admission: Admission::default(), room: self.room(), planned: HashSet::new(), num_seen: 0 }
    }

    /// What fits of the queue, looked at from its front on.
    #[cfg(test)]
    pub(super) fn admissible_anew(&mut self) -> Admission {
        self.changed();
        self.admissible()
    }

    /// Something changed that admission depends on, apart from the end of the queue.
    pub(super) fn changed(&mut self) {
        self.admitting = None;
    }

    /// Takes room for one more prompt, or says why there is none.
    fn admit(&self, waiting: &WaitingGroup, admitting: &mut Admitting) {
        let Admitting { admission, room, planned, .. } = admitting;
        let WaitingGroup { group, path, .. } = waiting;
        let num_seqs = group.num_seqs as usize;
        let (found, num_cached_tokens) = self.find_cached(waiting, |node| planned.contains(&node));
        let num_tokens = step_tokens(group.prompt.len(), num_cached_tokens);
        if admission.num_groups > 0 && admission.num_tokens + num_tokens > self.limits.max_prefill_tokens {
            admission.limited_by = Some(Limit::PrefillTokens);
            return;
        }
        let demand = self.demand(group).without(found.num_held_blocks);
        let known_tokens = group.foresight.expected_tokens;
        let wish = Wish { demand, num_seqs, max_new_tokens: group.max_new_tokens, known_tokens };
        let num_fit = room.take(wish);
        if num_fit > 0 {
            admission.num_groups += 1;
            admission.num_tokens += num_tokens;
            planned.extend(&path[found.num_pieces..]);
            admission.num_seqs += num_fit;
        }
        if num_fit < num_seqs {
            admission.limited_by = Some(Limit::Room);
        }
    }

    /// What is left for others than what runs.
    pub(super) fn room(&self) -> Room {
        Room {
            num_seats: self.num_free_seats(),
            num_blocks: self.num_unpromised_blocks(),
            num_free_blocks: self.pool.num_free(),
            forecast: self.forecast(),
            is_idle: !self.running.iter().any(Seq::goes_on),
            limits: self.limits,
            lengths: self.lengths,
        }
    }

    /// Counts in a response that has just started, the youngest that runs as soon as it does.
    pub(super) fn count_started(&self, room: &mut Room, seq: &Seq) {
        room.num_seats = room.num_seats.saturating_sub(1);
        room.num_blocks = self.num_unpromised_blocks();
        room.num_free_blocks = self.pool.num_free();
        room.is_idle &= !seq.goes_on();
        let Some(forecast) = &mut room.forecast else { return };
        let group_idx = seq.id.group_idx;
        let known_tokens = self.siblings.known(group_idx, seq.expected_tokens);
        let own = seq.expected_span(self.lengths, known_tokens, &self.limits);
        forecast.add(own);
        if self.running.last().is_none_or(|youngest| youngest.id.group_idx != group_idx) {
            forecast.add(shared_span(&self.limits, num_shared_columns(seq), own.time));
        }
    }

    fn forecast(&self) -> Option<Forecast> {
        if self.limits.num_host_blocks == 0 {
            return None;
        }
        let mut forecast = Forecast::default();
        for group in self.running.chunk_by(|a, b| a.id.group_idx == b.id.group_idx) {
            let Some(first) = group.first() else { continue };
            let known_tokens = self.siblings.known(first.id.group_idx, first.expected_tokens);
            let mut time = 0;
            for seq in group {
                let span = seq.expected_span(self.lengths, known_tokens, &self.limits);
                time = time.max(span.time);
                forecast.add(span);
            }
            forecast.add(shared_span(&self.limits, num_shared_columns(first), time));
        }
        Some(forecast)
    }
}
