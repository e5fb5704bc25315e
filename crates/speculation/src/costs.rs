//! How long a step takes by the number of its tokens, as measured.
//!
//! Steps of about as many tokens share a slot, whose median of the last few counts: a hiccup of the machine is no
//! measurement. What was not measured lately is taken to lie on a line between its neighbours, or on past the last two.

use std::time::Duration;

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
    /// By slot.
    slots: Vec<Slot>,
    num_steps: u64,
}

/// The last few steps of about as many tokens.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// Oldest first.
    seconds: Vec<f64>,
    /// Of the last one.
    num_tokens: usize,
    /// The number of the last one.
    step: u64,
}

impl Slot {
    fn seconds(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
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

impl Costs {
    /// A step of so many tokens took so long.
    pub(crate) fn add(&mut self, num_tokens: usize, time: Duration) {
        self.num_steps += 1;
        let slot_idx = slot_idx(num_tokens);
        if self.slots.len() <= slot_idx {
            self.slots.resize(slot_idx + 1, Slot::default());
        }
        let slot = &mut self.slots[slot_idx];
        if self.num_steps - slot.step > STALE_AFTER {
            slot.seconds.clear();
        }
        if slot.seconds.len() == KEPT {
            slot.seconds.remove(0);
        }
        slot.seconds.push(time.as_secs_f64());
        (slot.num_tokens, slot.step) = (num_tokens, self.num_steps);
    }

    /// What is known now; none before the first measurement.
    pub(crate) fn curve(&self) -> Option<CostCurve> {
        let is_known = |slot: &&Slot| !slot.seconds.is_empty() && self.num_steps - slot.step <= STALE_AFTER;
        let known = self.slots.iter().filter(is_known);
        let mut points: Vec<Point> =
            known.map(|slot| Point { num_tokens: slot.num_tokens as f64, seconds: slot.seconds() }).collect();
        // More tokens never take less time: where they seem to, the fewer were measured badly or long ago.
        for idx in (0..points.len().saturating_sub(1)).rev() {
            points[idx].seconds = points[idx].seconds.min(points[idx + 1].seconds);
        }
        (!points.is_empty()).then_some(CostCurve { points })
    }
}

impl CostCurve {
    /// The most tokens of a step that was measured.
    pub(crate) fn most_tokens(&self) -> usize {
        self.points.last().map_or(0, |last| last.num_tokens as usize)
    }

    /// The fewest tokens of one.
    pub(crate) fn fewest_tokens(&self) -> usize {
        self.points.first().map_or(0, |first| first.num_tokens as usize)
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
mod tests {
    use super::*;

    fn of(steps: &[(usize, u64)]) -> Costs {
        let mut costs = Costs::default();
        steps.iter().for_each(|&(num_tokens, ms)| costs.add(num_tokens, Duration::from_millis(ms)));
        costs
    }

    fn check(steps: &[(usize, u64)], num_tokens: usize, expect_ms: f64) {
        let ms = of(steps).curve().unwrap().seconds(num_tokens) * 1e3;
        assert!((ms - expect_ms).abs() < 1e-6, "{steps:?} {num_tokens}: {ms}");
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
        assert_eq!(of(&[]).curve(), None);
    }

    #[test]
    fn a_hiccup_is_no_measurement() {
        check(&[(1, 10), (1, 400), (1, 11)], 1, 11.0);
        check(&[(1, 10), (1, 10), (1, 10), (1, 30), (1, 31), (1, 32)], 1, 30.0);
    }

    #[test]
    fn old_measurements_are_forgotten() {
        let mut costs = of(&[(8, 50)]);
        (0..STALE_AFTER).for_each(|_| costs.add(1, Duration::from_millis(10)));
        assert_eq!(costs.curve().unwrap().most_tokens(), 8);
        costs.add(1, Duration::from_millis(10));
        assert_eq!(costs.curve().unwrap().most_tokens(), 1);
    }

    #[test]
    fn slots_grow_wider() {
        let idxs: Vec<usize> = [1, 16, 17, 18, 31, 32, 33, 64, 1024].map(slot_idx).to_vec();
        assert_eq!(idxs, [1, 16, 17, 18, 24, 25, 25, 33, 65]);
    }
}
