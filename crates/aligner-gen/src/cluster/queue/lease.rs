//! Which replica computes which sample: the lease table of rank 0. Pure: numbers and times in, numbers out.
//!
//! Samples are given out in the order of the file but for a window (`order.rs`), a few past what is committed at most, so
//! that finished samples that wait for an earlier one take a bounded amount of memory. A replica that is not heard from loses its leases. When
//! nothing is left to give out, a fast replica also gets what a slow one still computes: a sample's text does not depend
//! on who computes it, so the first answer is taken and the second is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use engine::Foresight;

use super::order::{Work, WorkOf, WorkOrder};
use crate::cluster::topology::Replica;

/// How much faster a replica must be than a lease's holder to compute the sample a second time.
const FASTER: f64 = 1.5;
/// How fast a replica's past is forgotten, a factor for each sample: a replica that slows down is noticed soon.
const FORGET: f64 = 0.95;

/// What the table is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseLimits {
    /// Samples of a step. Those of the step to be committed next are given out whatever the other limits say.
    pub(crate) step_samples: usize,
    /// Samples past the last committed one that may be given out.
    pub(crate) run_ahead_samples: usize,
    /// Samples in whose order the file's may be left.
    pub(crate) window_samples: usize,
    /// Bytes of finished samples that wait for earlier ones, past which no later step is begun.
    pub(crate) max_waiting_bytes: usize,
    /// A replica that is silent for this long loses its leases.
    pub(crate) lease: Duration,
}

/// How large a finished sample is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SampleSize {
    /// Tokens of its longest response.
    pub(crate) longest_tokens: usize,
    /// Of all its responses.
    pub(crate) mean_tokens: u32,
    /// What it takes until it is committed.
    pub(crate) num_bytes: usize,
}

/// What a finished sample is to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The first answer.
    First,
    /// Another replica was faster: this one is dropped.
    Duplicate,
}

/// How a replica stands.
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
struct ReplicaState {
    presence: Presence,
    /// Samples that it can hold at once.
    capacity: usize,
    heard: Duration,
    held: BTreeSet<usize>,
    /// Sums over finished samples, the older ones fading.
    tokens: f64,
    seconds: f64,
}

impl ReplicaState {
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
    replica: Replica,
    since: Duration,
}

/// A sample that is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) position: usize,
    pub(crate) foresight: Foresight,
}

/// The table.
pub(crate) struct LeaseTable<'a> {
    limits: LeaseLimits,
    /// Those that were never given out.
    order: WorkOrder<'a>,
    /// All before it are on disk.
    committed: usize,
    /// Given out, and lost.
    returned: BTreeSet<usize>,
    leased: BTreeMap<usize, Vec<Holder>>,
    waiting_bytes: BTreeMap<usize, usize>,
    num_waiting_bytes: usize,
    replicas: Vec<ReplicaState>,
}

impl LeaseTable<'static> {
    /// A table of these positions for so many replicas, in their order.
    pub(crate) fn new(positions: Range<usize>, num_replicas: u32, limits: LeaseLimits) -> Self {
        Self::ordered(positions, num_replicas, limits, Box::new(|_| Work::default()))
    }
}

impl<'a> LeaseTable<'a> {
    /// The same in the order of the work that they will be.
    pub(crate) fn ordered(
        positions: Range<usize>,
        num_replicas: u32,
        limits: LeaseLimits,
        work_of: WorkOf<'a>,
    ) -> Self {
        Self {
            limits,
            committed: positions.start,
            order: WorkOrder::new(positions, num_replicas, work_of),
            returned: BTreeSet::new(),
            leased: BTreeMap::new(),
            waiting_bytes: BTreeMap::new(),
            num_waiting_bytes: 0,
            replicas: vec![ReplicaState::default(); num_replicas as usize],
        }
    }

    /// A replica is ready for samples.
    pub(crate) fn join(&mut self, replica: Replica, capacity: usize, now: Duration) {
        self.hear(replica, now);
        if let Some(state) = self.replicas.get_mut(replica.index()) {
            state.capacity = capacity;
        }
    }

    /// A sign of life: renews the leases of a replica. True when it had been silent.
    pub(crate) fn hear(&mut self, replica: Replica, now: Duration) -> bool {
        let Some(state) = self.replicas.get_mut(replica.index()) else { return false };
        let was_silent = state.presence == Presence::Silent;
        if state.presence != Presence::Gone {
            state.presence = Presence::Present;
        }
        state.heard = now;
        was_silent
    }

    /// A replica leaves: others get what it holds.
    pub(crate) fn leave(&mut self, replica: Replica) {
        self.take_back(replica, Presence::Gone);
    }

    /// Takes the leases of replicas that are silent for too long; returns those replicas and how many samples each held.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<(Replica, usize)> {
        let is_late = |state: &ReplicaState| {
            state.presence == Presence::Present && now.saturating_sub(state.heard) > self.limits.lease
        };
        let states = self.replicas.iter().zip((0..).map(Replica));
        let late: Vec<Replica> =
            states.filter(|(state, _)| is_late(state)).map(|(_, replica)| replica).collect();
        late.into_iter().map(|replica| (replica, self.take_back(replica, Presence::Silent))).collect()
    }

    fn take_back(&mut self, replica: Replica, presence: Presence) -> usize {
        let Some(state) = self.replicas.get_mut(replica.index()) else { return 0 };
        state.presence = presence;
        let held = std::mem::take(&mut state.held);
        for &position in &held {
            if let Some(holders) = self.leased.get_mut(&position) {
                holders.retain(|holder| holder.replica != replica);
                if holders.is_empty() {
                    self.leased.remove(&position);
                    self.returned.insert(position);
                }
            }
        }
        held.len()
    }

    /// The samples that a replica may start now, with the time of the lease.
    pub(crate) fn grant(&mut self, replica: Replica, now: Duration) -> Vec<Grant> {
        let mut granted = Vec::new();
        while self.may_hold_more(replica) {
            let Some(position) = self.next_for(replica, now) else { break };
            self.leased.entry(position).or_default().push(Holder { replica, since: now });
            if let Some(state) = self.replicas.get_mut(replica.index()) {
                state.held.insert(position);
            }
            granted.push(Grant { position, foresight: self.order.foresight(position) });
        }
        granted
    }

    /// A replica holds what it has room for, and near the end no more than its part of what is left, by its speed.
    fn may_hold_more(&self, replica: Replica) -> bool {
        let Some(state) = self.replicas.get(replica.index()) else { return false };
        if state.presence != Presence::Present || state.held.len() >= state.capacity {
            return false;
        }
        let sharing = || self.replicas.iter().filter(|state| state.is_sharing());
        let (sum, num) = sharing().filter_map(ReplicaState::speed).fold((0.0, 0), |(s, n), x| (s + x, n + 1));
        let mean = if num == 0 { 1.0 } else { sum / f64::from(num) };
        let all: f64 = sharing().map(|state| state.speed().unwrap_or(mean)).sum();
        let part = state.speed().unwrap_or(mean) / all.max(f64::MIN_POSITIVE);
        let share = (self.num_unfinished() as f64 * part).ceil().max(1.0);
        (state.held.len() as f64) < share
    }

    fn next_for(&mut self, replica: Replica, now: Duration) -> Option<usize> {
        if let Some(position) = self.returned.pop_first() {
            return Some(position);
        }
        let LeaseLimits { step_samples, run_ahead_samples, window_samples, .. } = self.limits;
        let has_memory = self.num_waiting_bytes < self.limits.max_waiting_bytes;
        let ahead = if has_memory { run_ahead_samples.max(step_samples) } else { step_samples };
        let limit = self.committed.saturating_add(ahead);
        let next = self.order.take(replica, window_samples, limit);
        next.or_else(|| self.slow_lease(replica, now))
    }

    /// The first sample that one other replica holds and that this one would probably finish sooner.
    fn slow_lease(&self, replica: Replica, now: Duration) -> Option<usize> {
        let state = self.replicas.get(replica.index())?;
        let speed = state.speed()?;
        let is_slow = |holder: &Holder| {
            let held_for = now.saturating_sub(holder.since);
            let holder_speed = self.replicas.get(holder.replica.index()).and_then(ReplicaState::speed);
            // A holder that has finished nothing yet is judged by how long it takes; half a lease is too long anyway.
            let is_late = now.saturating_sub(holder.since) > self.limits.lease.mul_f64(0.5);
            holder.replica != replica
                && match holder_speed {
                    Some(holder_speed) => holder_speed * FASTER < speed,
                    None => is_late && held_for.as_secs_f64() > state.seconds,
                }
        };
        let alone_and_slow = |holders: &Vec<Holder>| matches!(holders.as_slice(), [one] if is_slow(one));
        self.leased.iter().find(|(_, holders)| alone_and_slow(holders)).map(|(&position, _)| position)
    }

    /// A replica has finished a sample.
    pub(crate) fn complete(
        &mut self,
        replica: Replica,
        position: usize,
        size: SampleSize,
        now: Duration,
    ) -> Arrival {
        let holders = self.leased.remove(&position);
        for holder in holders.iter().flatten() {
            let Some(state) = self.replicas.get_mut(holder.replica.index()) else { continue };
            state.held.remove(&position);
            if holder.replica == replica {
                let seconds = now.saturating_sub(holder.since).as_secs_f64();
                state.tokens = state.tokens * FORGET + size.longest_tokens as f64;
                state.seconds = state.seconds * FORGET + seconds;
            }
        }
        if holders.is_none() && !self.returned.remove(&position) {
            return Arrival::Duplicate;
        }
        self.order.learn(position, size.mean_tokens);
        self.waiting_bytes.insert(position, size.num_bytes);
        self.num_waiting_bytes += size.num_bytes;
        Arrival::First
    }

    /// All positions before `end` are on disk.
    pub(crate) fn commit(&mut self, end: usize) {
        self.committed = self.committed.max(end);
        let rest = self.waiting_bytes.split_off(&end);
        let written = std::mem::replace(&mut self.waiting_bytes, rest);
        self.num_waiting_bytes -= written.values().sum::<usize>();
    }

    /// Whether nobody has finished a sample that was dealt out.
    pub(crate) fn is_open(&self, position: usize) -> bool {
        self.leased.contains_key(&position) || self.returned.contains(&position)
    }

    /// Samples that nobody has finished.
    pub(crate) fn num_unfinished(&self) -> usize {
        self.order.num_left() + self.returned.len() + self.leased.len()
    }

    /// Bytes of finished samples that wait for earlier ones.
    #[cfg(test)]
    fn num_waiting_bytes(&self) -> usize {
        self.num_waiting_bytes
    }
}

#[cfg(test)]
mod tests;
