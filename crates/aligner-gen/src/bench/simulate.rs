//! The queue with ranks that only pass time: how long a job takes beside the best that its ranks could do, and beside the
//! original's static slices. The lease table is the real one; time is simulated, so 256 ranks take seconds.
//!
//! A rank runs `seats` responses at once, each at the rank's speed, whatever else runs: the part of a real engine that the
//! order of work can change. The original gives each rank every n-th sample of a step, runs them until the longest
//! ends, and waits for the slowest rank (`megatron_batch_samplers.py`, the gather in NeMo-Aligner's `generation.py`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::job::generate::{RUN_AHEAD, WINDOW};

use crate::cluster::queue::lease::{Arrival, Grant, LeaseLimits, LeaseTable, SampleSize};
use crate::cluster::queue::order::Work;
use crate::cluster::topology::Replica;

/// A job without a model.
#[derive(Clone, Debug)]
pub(crate) struct Simulation {
    /// Tokens of each sample's response.
    pub(crate) lengths: Vec<u32>,
    /// Tokens a second of one response, by rank.
    pub(crate) speeds: Vec<f64>,
    /// Responses that a rank runs at once.
    pub(crate) seats: usize,
    /// From a rank to rank 0 or back.
    pub(crate) latency: Duration,
    pub(crate) global_batch_size: usize,
    /// Whether it is known beforehand how long each response is.
    pub(crate) knows_lengths: bool,
}

/// How a simulated job went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    /// Messages to rank 0 and from it.
    pub(crate) num_messages: u64,
    /// Samples that were computed a second time.
    pub(crate) num_repeated: u64,
    /// Most finished samples that waited for an earlier one.
    pub(crate) peak_waiting: usize,
}

/// Lengths with a long tail: log-normal, cut at `max_tokens`, the same for the same seed.
pub(crate) fn long_tail(num_samples: usize, median_tokens: f64, sigma: f64, max_tokens: u32) -> Vec<u32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    // SplitMix64.
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((mixed ^ (mixed >> 31)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    (0..num_samples)
        .map(|_| {
            let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
            (median_tokens * (sigma * normal).exp()).clamp(1.0, f64::from(max_tokens)) as u32
        })
        .collect()
}

/// What is to happen, the earliest first; the number keeps the order of what happens at once.
type Agenda = BinaryHeap<Reverse<(Duration, u64, Replica, Happening)>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// A rank has finished a response.
    Computed(usize),
    /// Rank 0 gets it.
    Arrived(usize),
    /// A rank gets a sample.
    Granted(usize),
    /// Rank 0 looks whether somebody has nothing to do.
    Look,
}

struct Run<'a> {
    simulation: &'a Simulation,
    table: LeaseTable<'a>,
    agenda: Agenda,
    order: u64,
    /// Samples that wait for a seat, by rank.
    backlogs: Vec<std::collections::VecDeque<usize>>,
    num_free_seats: Vec<usize>,
    done: Vec<bool>,
    committed: usize,
    num_waiting: usize,
    outcome: Outcome,
}

impl Simulation {
    /// Seconds that the ranks would take if work could be divided at will.
    pub(crate) fn ideal_seconds(&self) -> f64 {
        let num_tokens: f64 = self.lengths.iter().map(|&len| f64::from(len)).sum();
        num_tokens / (self.speeds.iter().sum::<f64>() * self.seats as f64)
    }

    /// Seconds with the original's slices: no rank goes on before the slowest has ended the step. A rank has as many
    /// seats as its slice has samples.
    pub(crate) fn static_seconds(&self) -> f64 {
        let step_seconds = |step: &[u32]| {
            let num_ranks = self.speeds.len();
            let of_rank = |(rank, speed): (usize, &f64)| {
                let longest = step.iter().skip(rank).step_by(num_ranks).max().copied().unwrap_or(0);
                f64::from(longest) / speed
            };
            self.speeds.iter().enumerate().map(of_rank).fold(0.0, f64::max)
        };
        self.lengths.chunks(self.global_batch_size.max(1)).map(step_seconds).sum()
    }

    /// Runs the job through the lease table.
    pub(crate) fn run(&self) -> Outcome {
        let num_ranks = self.speeds.len();
        let capacity = self.seats + self.seats.div_ceil(8);
        let limits = LeaseLimits {
            step_samples: self.global_batch_size,
            run_ahead_samples: (capacity * num_ranks * RUN_AHEAD).max(4 * self.global_batch_size),
            window_samples: capacity * num_ranks * WINDOW,
            max_waiting_bytes: usize::MAX,
            lease: Duration::from_secs(3600),
        };
        let num_replicas = u32::try_from(num_ranks).unwrap_or(u32::MAX);
        let replicas = || (0..num_replicas).map(Replica);
        let work_of = |position: usize| Work {
            known_tokens: self.lengths.get(position).copied().filter(|_| self.knows_lengths),
            budget_tokens: u32::MAX,
            ..Work::default()
        };
        let mut table = LeaseTable::ordered(0..self.lengths.len(), num_replicas, limits, Box::new(work_of));
        replicas().for_each(|replica| table.join(replica, capacity, Duration::ZERO));
        let mut run = Run {
            simulation: self,
            table,
            agenda: Agenda::new(),
            order: 0,
            backlogs: vec![std::collections::VecDeque::new(); num_ranks],
            num_free_seats: vec![self.seats; num_ranks],
            done: vec![false; self.lengths.len()],
            committed: 0,
            num_waiting: 0,
            outcome: Outcome { seconds: 0.0, num_messages: 0, num_repeated: 0, peak_waiting: 0 },
        };
        replicas().for_each(|replica| run.deal(replica, Duration::ZERO));
        run.plan(Duration::ZERO, Replica(0), Happening::Look);
        run.finish()
    }
}

impl Run<'_> {
    fn finish(mut self) -> Outcome {
        while let Some(Reverse((now, _, replica, happening))) = self.agenda.pop() {
            match happening {
                Happening::Granted(position) => {
                    if let Some(backlog) = self.backlogs.get_mut(replica.index()) {
                        backlog.push_back(position);
                    }
                    self.seat(replica, now);
                }
                Happening::Computed(position) => {
                    if let Some(num_free) = self.num_free_seats.get_mut(replica.index()) {
                        *num_free += 1;
                    }
                    self.say(now, replica, Happening::Arrived(position));
                    self.seat(replica, now);
                }
                Happening::Arrived(position) => {
                    self.accept(replica, position, now);
                    if self.table.num_unfinished() == 0 {
                        self.outcome.seconds = now.as_secs_f64();
                        return self.outcome;
                    }
                    self.deal(replica, now);
                }
                Happening::Look => {
                    (0..).take(self.backlogs.len()).for_each(|replica| self.deal(Replica(replica), now));
                    self.plan(now + Duration::from_millis(50), Replica(0), Happening::Look);
                }
            }
        }
        self.outcome
    }

    fn plan(&mut self, when: Duration, replica: Replica, happening: Happening) {
        self.order += 1;
        self.agenda.push(Reverse((when, self.order, replica, happening)));
    }

    fn say(&mut self, now: Duration, replica: Replica, happening: Happening) {
        self.outcome.num_messages += 1;
        self.plan(now + self.simulation.latency, replica, happening);
    }

    fn deal(&mut self, replica: Replica, now: Duration) {
        for Grant { position, .. } in self.table.grant(replica, now) {
            self.say(now, replica, Happening::Granted(position));
        }
    }

    /// Begins samples of the backlog while there are seats.
    fn seat(&mut self, replica: Replica, now: Duration) {
        let index = replica.index();
        while self.num_free_seats.get(index).is_some_and(|&num_free| num_free > 0)
            && let Some(position) =
                self.backlogs.get_mut(index).and_then(std::collections::VecDeque::pop_front)
        {
            if let Some(num_free) = self.num_free_seats.get_mut(index) {
                *num_free -= 1;
            }
            let length = self.simulation.lengths.get(position).copied().unwrap_or(1);
            let speed = self.simulation.speeds.get(index).copied().unwrap_or(1.0);
            self.plan(
                now + Duration::from_secs_f64(f64::from(length) / speed),
                replica,
                Happening::Computed(position),
            );
        }
    }

    fn accept(&mut self, replica: Replica, position: usize, now: Duration) {
        let length = self.simulation.lengths.get(position).copied().unwrap_or(1);
        let size = SampleSize { longest_tokens: length as usize, mean_tokens: length, num_bytes: 1 };
        if self.table.complete(replica, position, size, now) == Arrival::Duplicate {
            self.outcome.num_repeated += 1;
            return;
        }
        if let Some(done) = self.done.get_mut(position) {
            *done = true;
        }
        self.num_waiting += 1;
        self.outcome.peak_waiting = self.outcome.peak_waiting.max(self.num_waiting);
        loop {
            let end = (self.committed + self.simulation.global_batch_size).min(self.done.len());
            let step = self.done.get(self.committed..end).unwrap_or_default();
            if step.is_empty() || step.contains(&false) {
                return;
            }
            self.num_waiting -= step.len();
            self.committed = end;
            self.table.commit(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulation(num_samples: usize, speeds: &[f64]) -> Simulation {
        Simulation {
            lengths: long_tail(num_samples, 200.0, 1.0, 4096),
            speeds: speeds.to_vec(),
            seats: 16,
            latency: Duration::from_millis(2),
            global_batch_size: 16 * speeds.len(),
            knows_lengths: false,
        }
    }

    #[test]
    fn one_rank_slowed_four_times_costs_its_own_speed_and_no_more() {
        let simulation = simulation(20_000, &[50.0, 50.0, 50.0, 12.5]);
        let (ideal, queue, fixed) =
            (simulation.ideal_seconds(), simulation.run(), simulation.static_seconds());
        assert!(queue.seconds < 1.1 * ideal, "{queue:?}, ideal {ideal}");
        assert!(fixed > 5.0 * queue.seconds, "the original {fixed}, {queue:?}");
    }

    #[test]
    fn a_finished_job_has_every_sample_once() {
        for num_ranks in [1, 2, 5] {
            let simulation = simulation(100, &vec![50.0; num_ranks]);
            let outcome = simulation.run();
            assert!(outcome.seconds > 0.0 && outcome.seconds < simulation.static_seconds(), "{outcome:?}");
            assert_eq!(outcome.num_messages, 2 * (100 + outcome.num_repeated));
        }
    }

    #[test]
    fn a_job_whose_lengths_are_known_has_no_long_tail() {
        let unknown = simulation(300, &[50.0; 2]);
        let known = Simulation { knows_lengths: true, ..unknown.clone() };
        let longest = unknown.lengths.iter().max().map_or(0.0, |&length| f64::from(length) / 50.0);
        let (in_order, longest_first) = (unknown.run(), known.run());
        let bound = unknown.ideal_seconds().max(longest);
        assert!(longest_first.seconds < 1.05 * bound, "{longest_first:?}, at best {bound}");
        assert!(in_order.seconds > 1.2 * bound, "{in_order:?}, at best {bound}");
    }

    #[test]
    fn lengths_have_a_long_tail() {
        let mut lengths = long_tail(10_001, 200.0, 1.0, 4096);
        lengths.sort_unstable();
        assert!((190..210).contains(&lengths[5000]), "{}", lengths[5000]);
        assert!((950..1150).contains(&lengths[9500]), "{}", lengths[9500]);
        assert!(lengths[0] >= 1 && lengths[10_000] <= 4096);
    }
}
