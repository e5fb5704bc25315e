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
use crate::{EngineLimits, block_table::BlockDemand, prefix_cache::NodeId};

/// The prompts at the front of the queue that fit now.
#[derive(Debug, Default)]
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

/// A request, as far as room is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) demand: BlockDemand,
    pub(super) num_seqs: usize,
    pub(super) max_new_tokens: u32,
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
        self.expect(&[Span { num_blocks: wish.demand.num_shared(), grows: false, ..own }, own])
    }

    /// How many of at most `num_seqs` responses are expected to fit; the first is counted in already.
    fn expect_others(&mut self, wish: Wish, num_seqs: usize) -> usize {
        1 + (1..num_seqs).take_while(|_| self.expect(&[self.own_span(wish)])).count()
    }

    /// The own blocks of a response that has not started.
    fn own_span(&self, wish: Wish) -> Span {
        let expected_tokens = self.lengths.expected(0, wish.max_new_tokens) as usize;
        let num_blocks = wish.demand.own().min(1);
        Span { num_blocks, time: expected_tokens / self.limits.block_size_tokens, grows: num_blocks > 0 }
    }

    /// Counts in `spans` if they fit, or something must run in any case.
    fn expect(&mut self, spans: &[Span]) -> bool {
        let num_blocks = self.limits.num_blocks;
        let Some(forecast) = &mut self.forecast else { return true };
        spans.iter().for_each(|&span| forecast.add(span));
        let fits = forecast.peak() <= num_blocks + num_blocks / OVERCOMMITTED_PART || self.is_idle;
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

impl Scheduler {
    pub(super) fn admissible(&self) -> Admission {
        let mut admission = Admission::default();
        if !self.starting.is_empty() || !self.preempted.is_empty() || self.partial.is_some() {
            return Admission { limited_by: Some(Limit::Room), ..admission };
        }
        let mut room = self.room();
        // Pieces that the prompts before compute in the same step.
        let mut planned: HashSet<NodeId> = HashSet::new();
        for waiting in &self.waiting {
            let WaitingGroup { group, path, .. } = waiting;
            let num_seqs = group.num_seqs as usize;
            let (found, num_cached_tokens) = self.find_cached(waiting, |node| planned.contains(&node));
            let num_tokens = step_tokens(group.prompt.len(), num_cached_tokens);
            if admission.num_groups > 0 && admission.num_tokens + num_tokens > self.limits.max_prefill_tokens
            {
                admission.limited_by = Some(Limit::PrefillTokens);
                break;
            }
            let demand = self.demand(group).without(found.num_held_blocks);
            let wish = Wish { demand, num_seqs, max_new_tokens: group.max_new_tokens };
            let num_fit = room.take(wish);
            if num_fit > 0 {
                admission.num_groups += 1;
                admission.num_tokens += num_tokens;
                planned.extend(&path[found.num_pieces..]);
                admission.num_seqs += num_fit;
            }
            if num_fit < num_seqs {
                admission.limited_by = Some(Limit::Room);
                break;
            }
        }
        admission
    }

    /// Whether one more response of a group whose prompt is computed may start.
    pub(super) fn may_start(&self, wish: Wish) -> bool {
        let Wish { demand, num_seqs: num_left, .. } = wish;
        let num_needed = if num_left == 1 { demand.own_of_last() } else { demand.own() };
        let mut room = self.room();
        let own = room.own_span(wish);
        room.num_seats > 0 && num_needed <= room.num_blocks && room.expect(&[own])
    }

    fn room(&self) -> Room {
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

    fn forecast(&self) -> Option<Forecast> {
        if self.limits.num_host_blocks == 0 {
            return None;
        }
        let block_size_tokens = self.limits.block_size_tokens;
        let mut forecast = Forecast::default();
        for group in self.running.chunk_by(|a, b| a.id.group_idx == b.id.group_idx) {
            let mut time = 0;
            for seq in group {
                let span = seq.expected_span(self.lengths, block_size_tokens);
                time = time.max(span.time);
                forecast.add(span);
            }
            // What came from another prompt is counted there.
            let num_blocks = group.first().map_or(0, |seq| seq.num_shared_blocks - seq.num_cached_blocks);
            forecast.add(Span { num_blocks, time, grows: false });
        }
        Some(forecast)
    }
}
