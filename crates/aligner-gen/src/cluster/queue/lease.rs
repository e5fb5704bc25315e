//! Who computes which sample: the lease table of rank 0. Pure: numbers and times in, numbers out.
//!
//! Samples are given out in the order of the file, a few past what is committed at most, so that finished samples that
//! wait for an earlier one take a bounded amount of memory. A rank that is not heard from loses its leases. When
//! nothing is left to give out, a fast rank also gets what a slow one still computes: a sample's text does not depend
//! on who computes it, so the first answer is taken and the second is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A rank's global number.
pub(crate) type Rank = u32;

/// How much faster a rank must be than a lease's holder to compute the sample a second time.
const FASTER: f64 = 1.5;
/// How fast a rank's past is forgotten, a factor for each sample: a rank that slows down is noticed soon.
const FORGET: f64 = 0.95;

/// What the table is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseLimits {
    /// Samples of a step. Those of the step to be committed next are given out whatever the other limits say.
    pub(crate) step_samples: usize,
    /// Samples past the last committed one that may be given out.
    pub(crate) run_ahead_samples: usize,
    /// Bytes of finished samples that wait for earlier ones, past which no later step is begun.
    pub(crate) max_waiting_bytes: usize,
    /// A rank that is silent for this long loses its leases.
    pub(crate) lease: Duration,
}

/// What a finished sample is to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// The first answer.
    First,
    /// Another rank was faster: this one is dropped.
    Duplicate,
}

/// How a rank stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Presence {
    /// Not heard from yet; its share is kept for it.
    #[default]
    Expected,
    Present,
    /// Its leases ran out.
    Silent,
    Gone,
}

#[derive(Clone, Debug, Default)]
struct RankState {
    presence: Presence,
    /// Samples that it can hold at once.
    capacity: usize,
    heard: Duration,
    held: BTreeSet<usize>,
    /// Sums over finished samples, the older ones fading.
    tokens: f64,
    seconds: f64,
}

impl RankState {
    /// Tokens a second of one sequence.
    fn speed(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.tokens / self.seconds)
    }

    fn is_sharing(&self) -> bool {
        matches!(self.presence, Presence::Expected | Presence::Present)
    }
}

/// Who holds a sample, and since when.
#[derive(Clone, Copy, Debug)]
struct Holder {
    rank: Rank,
    since: Duration,
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct LeaseTable {
    limits: LeaseLimits,
    /// The first position that was never given out, and the end of all.
    next: usize,
    end: usize,
    /// All before it are on disk.
    committed: usize,
    /// Given out, and lost.
    returned: BTreeSet<usize>,
    leased: BTreeMap<usize, Vec<Holder>>,
    waiting_bytes: BTreeMap<usize, usize>,
    num_waiting_bytes: usize,
    ranks: Vec<RankState>,
}

impl LeaseTable {
    /// A table of the positions `start..end` for `world_size` ranks.
    pub(crate) fn new(start: usize, end: usize, world_size: u32, limits: LeaseLimits) -> Self {
        Self {
            limits,
            next: start,
            end,
            committed: start,
            returned: BTreeSet::new(),
            leased: BTreeMap::new(),
            waiting_bytes: BTreeMap::new(),
            num_waiting_bytes: 0,
            ranks: vec![RankState::default(); world_size as usize],
        }
    }

    /// A rank is ready for samples.
    pub(crate) fn join(&mut self, rank: Rank, capacity: usize, now: Duration) {
        self.hear(rank, now);
        if let Some(state) = self.ranks.get_mut(rank as usize) {
            state.capacity = capacity;
        }
    }

    /// A sign of life: renews the leases of a rank. True when it had been silent.
    pub(crate) fn hear(&mut self, rank: Rank, now: Duration) -> bool {
        let Some(state) = self.ranks.get_mut(rank as usize) else { return false };
        let was_silent = state.presence == Presence::Silent;
        if state.presence != Presence::Gone {
            state.presence = Presence::Present;
        }
        state.heard = now;
        was_silent
    }

    /// A rank leaves: others get what it holds.
    pub(crate) fn leave(&mut self, rank: Rank) {
        self.take_back(rank, Presence::Gone);
    }

    /// Takes the leases of ranks that are silent for too long; returns those ranks and how many samples each held.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<(Rank, usize)> {
        let is_late = |state: &RankState| {
            state.presence == Presence::Present && now.saturating_sub(state.heard) > self.limits.lease
        };
        let late = self.ranks.iter().zip(0..).filter(|(state, _)| is_late(state)).map(|(_, rank)| rank);
        let late: Vec<Rank> = late.collect();
        late.into_iter().map(|rank| (rank, self.take_back(rank, Presence::Silent))).collect()
    }

    fn take_back(&mut self, rank: Rank, presence: Presence) -> usize {
        let Some(state) = self.ranks.get_mut(rank as usize) else { return 0 };
        state.presence = presence;
        let held = std::mem::take(&mut state.held);
        for &position in &held {
            if let Some(holders) = self.leased.get_mut(&position) {
                holders.retain(|holder| holder.rank != rank);
                if holders.is_empty() {
                    self.leased.remove(&position);
                    self.returned.insert(position);
                }
            }
        }
        held.len()
    }

    /// The samples that a rank may start now, with the time of the lease.
    pub(crate) fn grant(&mut self, rank: Rank, now: Duration) -> Vec<usize> {
        let mut granted = Vec::new();
        while self.may_hold_more(rank) {
            let Some(position) = self.next_for(rank, now) else { break };
            self.leased.entry(position).or_default().push(Holder { rank, since: now });
            if let Some(state) = self.ranks.get_mut(rank as usize) {
                state.held.insert(position);
            }
            granted.push(position);
        }
        granted
    }

    /// A rank holds what it has room for, and near the end no more than its part of what is left, by its speed.
    fn may_hold_more(&self, rank: Rank) -> bool {
        let Some(state) = self.ranks.get(rank as usize) else { return false };
        if state.presence != Presence::Present || state.held.len() >= state.capacity {
            return false;
        }
        let sharing = || self.ranks.iter().filter(|state| state.is_sharing());
        let (sum, num) = sharing().filter_map(RankState::speed).fold((0.0, 0), |(s, n), x| (s + x, n + 1));
        let mean = if num == 0 { 1.0 } else { sum / f64::from(num) };
        let all: f64 = sharing().map(|state| state.speed().unwrap_or(mean)).sum();
        let part = state.speed().unwrap_or(mean) / all.max(f64::MIN_POSITIVE);
        let share = (self.num_unfinished() as f64 * part).ceil().max(1.0);
        (state.held.len() as f64) < share
    }

    fn next_for(&mut self, rank: Rank, now: Duration) -> Option<usize> {
        if let Some(position) = self.returned.pop_first() {
            return Some(position);
        }
        let is_within = |num_samples| self.next < self.committed.saturating_add(num_samples);
        let has_memory = self.num_waiting_bytes < self.limits.max_waiting_bytes;
        let may_start =
            is_within(self.limits.step_samples) || is_within(self.limits.run_ahead_samples) && has_memory;
        if self.next < self.end && may_start {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.slow_lease(rank, now)
    }

    /// The first sample that one other rank holds and that this one would probably finish sooner.
    fn slow_lease(&self, rank: Rank, now: Duration) -> Option<usize> {
        let state = self.ranks.get(rank as usize)?;
        let speed = state.speed()?;
        let is_slow = |holder: &Holder| {
            let held_for = now.saturating_sub(holder.since);
            let holder_speed = self.ranks.get(holder.rank as usize).and_then(RankState::speed);
            // A holder that has finished nothing yet is judged by how long it takes; half a lease is too long anyway.
            let is_late = now.saturating_sub(holder.since) > self.limits.lease.mul_f64(0.5);
            holder.rank != rank
                && match holder_speed {
                    Some(holder_speed) => holder_speed * FASTER < speed,
                    None => is_late && held_for.as_secs_f64() > state.seconds,
                }
        };
        let alone_and_slow = |holders: &Vec<Holder>| matches!(holders.as_slice(), [one] if is_slow(one));
        self.leased.iter().find(|(_, holders)| alone_and_slow(holders)).map(|(&position, _)| position)
    }

    /// A rank finished a sample of `num_tokens` tokens in its longest response, `num_bytes` to keep until it is committed.
    pub(crate) fn complete(
        &mut self,
        rank: Rank,
        position: usize,
        (num_tokens, num_bytes): (usize, usize),
        now: Duration,
    ) -> Completion {
        let holders = self.leased.remove(&position);
        for holder in holders.iter().flatten() {
            let Some(state) = self.ranks.get_mut(holder.rank as usize) else { continue };
            state.held.remove(&position);
            if holder.rank == rank {
                let seconds = now.saturating_sub(holder.since).as_secs_f64();
                state.tokens = state.tokens * FORGET + num_tokens as f64;
                state.seconds = state.seconds * FORGET + seconds;
            }
        }
        if holders.is_none() && !self.returned.remove(&position) {
            return Completion::Duplicate;
        }
        self.waiting_bytes.insert(position, num_bytes);
        self.num_waiting_bytes += num_bytes;
        Completion::First
    }

    /// All positions before `end` are on disk.
    pub(crate) fn commit(&mut self, end: usize) {
        self.committed = self.committed.max(end);
        let rest = self.waiting_bytes.split_off(&end);
        let written = std::mem::replace(&mut self.waiting_bytes, rest);
        self.num_waiting_bytes -= written.values().sum::<usize>();
    }

    /// Samples that nobody has finished.
    pub(crate) fn num_unfinished(&self) -> usize {
        self.end - self.next + self.returned.len() + self.leased.len()
    }

    /// Bytes of finished samples that wait for earlier ones.
    #[cfg(test)]
    fn num_waiting_bytes(&self) -> usize {
        self.num_waiting_bytes
    }
}

#[cfg(test)]
mod tests;
