//! How long a step takes by the number of its tokens, as measured, by its pace.
//!
//! Steps of about as many tokens share a slot, whose median of the last few counts: a hiccup of the machine is no
//! measurement. What was not measured lately is taken to lie on a line between its neighbours, or on past the last two.

use crate::proposer::{Pace, StepTime};

/// Numbers of tokens with a slot of their own.
const SINGLE_SLOTS: usize = 16;
/// Slots from one power of two to the next, beyond those.
const SLOTS_PER_DOUBLING: f64 = 8.0;
/// Measurements that a slot keeps.
const KEPT: usize = 5;
/// Steps after which a slot is forgotten: contexts grow meanwhile.
const STALE_AFTER: u64 = 1_000;

/// Measured steps.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    /// Without drafts, one started before the last was read.
    ahead: Table,
    /// With drafts and without, each started after the last was read.
    alone: Table,
    num_steps: u64,
}

/// Steps of one pace, by slot.
#[derive(Debug, Default)]
struct Table(Vec<Slot>);

/// The last few steps of about as many tokens.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// Oldest first.
    seconds: Vec<f64>,
    median: f64,
    /// Of the last one.
    num_tokens: usize,
    /// The number of the last one.
    step: u64,
}

impl Slot {
    fn add(&mut self, seconds: f64) {
        if self.seconds.len() == KEPT {
            self.seconds.remove(0);
        }
        self.seconds.push(seconds);
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        // Of two the faster one: a hiccup only ever makes a step slower.
        self.median = sorted[(sorted.len() - 1) / 2];
    }
}

/// A number of tokens and the seconds that a step of them takes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    num_tokens: f64,
    seconds: f64,
}

/// The cost of a step by its number of tokens, at one time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CostCurve {
    /// At least one, by number of tokens.
    points: Vec<Point>,
}

/// What a step of a number of responses costs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepCosts {
    /// Seconds without drafts, at the fastest pace there is. Where fewer responses were never measured, each takes its share
    /// of the fewest: no step is faster than that, so that nothing is gained by drafts that is not there.
    pub(crate) plain_seconds: f64,
    /// With drafts. Before any were measured, as without: each token takes its share.
    pub(crate) drafted: CostCurve,
}

impl Costs {
    /// A step and its time.
    pub(crate) fn add(&mut self, step: StepTime) {
        self.num_steps += 1;
        let StepTime { num_tokens, pace, time, .. } = step;
        let table = match pace {
            Pace::Ahead => &mut self.ahead,
            Pace::Alone => &mut self.alone,
        };
        table.add(num_tokens, time.as_secs_f64(), self.num_steps);
    }

    /// Whether steps without drafts have a pace that those with drafts have not.
    pub(crate) fn runs_ahead(&self) -> bool {
        !self.ahead.points(self.num_steps).is_empty()
    }

    /// What is known now of steps of so many responses; none before the first measurement.
    pub(crate) fn of(&self, num_rows: usize) -> Option<StepCosts> {
        let [ahead, mut alone] = [&self.ahead, &self.alone].map(|table| table.points(self.num_steps));
        let plain = if ahead.is_empty() { alone.clone() } else { ahead };
        let plain_seconds = CostCurve::of(plain)?.least_seconds(num_rows);
        let at_rows = Point { num_tokens: num_rows as f64, seconds: plain_seconds };
        if alone.first().is_none_or(|first| first.num_tokens > at_rows.num_tokens) {
            alone.insert(0, at_rows);
        }
        Some(StepCosts { plain_seconds, drafted: CostCurve::of(alone)? })
    }
}

impl Table {
    fn add(&mut self, num_tokens: usize, seconds: f64, step: u64) {
        let slot_idx = slot_idx(num_tokens);
        if self.0.len() <= slot_idx {
            self.0.resize(slot_idx + 1, Slot::default());
        }
        let slot = &mut self.0[slot_idx];
        if step - slot.step > STALE_AFTER {
            slot.seconds.clear();
        }
        slot.add(seconds);
        (slot.num_tokens, slot.step) = (num_tokens, step);
    }

    /// What is not too old.
    fn points(&self, step: u64) -> Vec<Point> {
        let known = self.0.iter().filter(|slot| !slot.seconds.is_empty() && step - slot.step <= STALE_AFTER);
        known.map(|slot| Point { num_tokens: slot.num_tokens as f64, seconds: slot.median }).collect()
    }
}

impl CostCurve {
    /// Through these points, where there are any.
    fn of(mut points: Vec<Point>) -> Option<Self> {
        // More tokens never take less time: where they seem to, the fewer were measured badly or long ago.
        for idx in (0..points.len().saturating_sub(1)).rev() {
            points[idx].seconds = points[idx].seconds.min(points[idx + 1].seconds);
        }
        (!points.is_empty()).then_some(Self { points })
    }

    /// The most tokens of a step that was measured.
    pub(crate) fn most_tokens(&self) -> usize {
        self.points.last().map_or(0, |last| last.num_tokens as usize)
    }

    /// The same as [`CostCurve::seconds`], but fewer tokens than were measured take their share of the fewest that were.
    fn least_seconds(&self, num_tokens: usize) -> f64 {
        match self.points.first() {
            Some(first) if (num_tokens as f64) < first.num_tokens => {
                first.seconds * num_tokens as f64 / first.num_tokens
            }
            _ => self.seconds(num_tokens),
        }
    }

    /// Seconds of a step of so many tokens. Past what was measured each token takes what it took between the first and the
    /// last point, or its share of the only one.
    pub(crate) fn seconds(&self, num_tokens: usize) -> f64 {
        let num_tokens = num_tokens as f64;
        let above = self.points.partition_point(|point| point.num_tokens < num_tokens);
        let last = match (self.points.get(above.wrapping_sub(1)), self.points.get(above)) {
            (None, None) => return 0.0,
            (None, Some(first)) => return first.seconds,
            (Some(below), Some(above)) => {
                let part = (num_tokens - below.num_tokens) / (above.num_tokens - below.num_tokens);
                return below.seconds + part * (above.seconds - below.seconds);
            }
            (Some(last), None) => last,
        };
        let origin = Point { num_tokens: 0.0, seconds: 0.0 };
        let first = self.points.first().filter(|first| first.num_tokens < last.num_tokens).unwrap_or(&origin);
        let slope = (last.seconds - first.seconds) / (last.num_tokens - first.num_tokens);
        last.seconds + (num_tokens - last.num_tokens) * slope
    }
}

fn slot_idx(num_tokens: usize) -> usize {
    if num_tokens <= SINGLE_SLOTS {
        return num_tokens;
    }
    let doublings = (num_tokens as f64 / SINGLE_SLOTS as f64).log2();
    SINGLE_SLOTS + 1 + (doublings * SLOTS_PER_DOUBLING) as usize
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    /// Steps of so many tokens that took so many microseconds, none with drafts where they are started ahead.
    pub(crate) fn of(pace: Pace, steps: &[(usize, u64)]) -> Costs {
        let mut costs = Costs::default();
        steps.iter().for_each(|&(num_tokens, us)| add(&mut costs, pace, num_tokens, us));
        costs
    }

    pub(crate) fn add(costs: &mut Costs, pace: Pace, num_tokens: usize, us: u64) {
        costs.add(StepTime { num_rows: num_tokens, num_tokens, pace, time: Duration::from_micros(us) });
    }

    fn check(steps: &[(usize, u64)], num_tokens: usize, expect_us: f64) {
        let costs = of(Pace::Alone, steps).of(steps[0].0).unwrap();
        let us = costs.drafted.seconds(num_tokens) * 1e6;
        assert!((us - expect_us).abs() < 1e-6, "{steps:?} {num_tokens}: {us}");
    }

    #[test]
    fn what_was_not_measured_lies_on_lines() {
        check(&[(1, 10)], 1, 10.0);
        check(&[(4, 10)], 1, 10.0);
        // One point alone may mean that each token takes as long as the first.
        check(&[(1, 10)], 3, 30.0);
        check(&[(1, 10), (3, 12)], 2, 11.0);
        check(&[(1, 10), (3, 12)], 5, 14.0);
        check(&[(1, 10), (2, 10), (3, 12)], 5, 14.0);
        // More tokens in less time: the fewer took no longer.
        check(&[(1, 20), (3, 12)], 1, 12.0);
        assert_eq!(of(Pace::Alone, &[]).of(1), None);
    }

    #[test]
    fn steps_without_drafts_have_the_faster_pace() {
        let mut costs = of(Pace::Ahead, &[(8, 1000)]);
        assert!(costs.runs_ahead());
        let known = costs.of(8).unwrap();
        assert_eq!(
            (known.plain_seconds, known.drafted.seconds(8), known.drafted.seconds(16)),
            (1e-3, 1e-3, 2e-3)
        );
        add(&mut costs, Pace::Alone, 16, 1500);
        add(&mut costs, Pace::Alone, 8, 1300);
        let known = costs.of(8).unwrap();
        assert_eq!(
            (known.plain_seconds, known.drafted.seconds(8), known.drafted.seconds(16)),
            (1e-3, 1.3e-3, 1.5e-3)
        );
        // Fewer responses than were measured: no faster than their share.
        assert_eq!(costs.of(4).unwrap().plain_seconds, 0.5e-3);
        assert_eq!(costs.of(4).unwrap().drafted.seconds(8), 1.3e-3);
        assert!(!of(Pace::Alone, &[(8, 1000)]).runs_ahead());
    }

    #[test]
    fn a_hiccup_is_no_measurement() {
        check(&[(1, 10), (1, 400), (1, 11)], 1, 11.0);
        check(&[(1, 10), (1, 10), (1, 10), (1, 30), (1, 31), (1, 32)], 1, 30.0);
    }

    #[test]
    fn old_measurements_are_forgotten() {
        let mut costs = of(Pace::Alone, &[(8, 50)]);
        let most_tokens = |costs: &Costs| costs.of(1).unwrap().drafted.most_tokens();
        (0..STALE_AFTER).for_each(|_| add(&mut costs, Pace::Ahead, 1, 10));
        assert_eq!(most_tokens(&costs), 8);
        add(&mut costs, Pace::Ahead, 1, 10);
        assert_eq!(most_tokens(&costs), 1);
    }

    #[test]
    fn slots_grow_wider() {
        let idxs: Vec<usize> = [1, 16, 17, 18, 31, 32, 33, 64, 1024].map(slot_idx).to_vec();
        assert_eq!(idxs, [1, 16, 17, 18, 24, 25, 25, 33, 65]);
    }
}
