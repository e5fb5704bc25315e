//! How many drafts a step takes, from how likely they are right and what a step costs.

use crate::costs::CostCurve;

/// What more tokens a second are not worth changing anything for: measurements are no better.
const LEAST_GAIN: f64 = 0.02;

/// A step before its drafts are chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer<'a> {
    /// Responses of the step, each of which goes on by a token without drafts.
    pub(crate) num_rows: usize,
    /// How likely each draft is used, the most likely first. A draft is less likely than those before it in its response.
    pub(crate) probabilities: &'a [f64],
    /// What a step costs.
    pub(crate) curve: &'a CostCurve,
    /// Seconds that may be lost to learn what steps of more tokens cost.
    pub(crate) credit: f64,
}

impl Offer<'_> {
    /// Seconds of a step of so many tokens. It takes no longer than computing them in several steps of `num_rows` would.
    pub(crate) fn seconds(&self, num_tokens: usize) -> f64 {
        let in_parts = self.curve.seconds(self.num_rows) * num_tokens as f64 / self.num_rows.max(1) as f64;
        self.curve.seconds(num_tokens).min(in_parts)
    }

    /// How many of the drafts to take, from the first on: as many as give most tokens a second. Where none gain anything
    /// by what is known, as many as the credit is worth finding out about.
    ///
    /// Never more than twice the tokens that were measured: what lies further is not known.
    pub(crate) fn choose(&self) -> usize {
        let plain = self.seconds(self.num_rows);
        let most_tokens = 2 * self.curve.most_tokens().max(self.num_rows);
        let most_drafts = most_tokens.saturating_sub(self.num_rows);
        let (mut best, mut best_speed) = (0, self.num_rows as f64 / plain * (1.0 + LEAST_GAIN));
        let mut explored = 0;
        let mut num_expected = self.num_rows as f64;
        for (idx, probability) in self.probabilities.iter().enumerate().take(most_drafts) {
            num_expected += probability;
            let num_drafts = idx + 1;
            let seconds = self.seconds(self.num_rows + num_drafts);
            let speed = num_expected / seconds;
            if speed > best_speed {
                (best, best_speed) = (num_drafts, speed);
            }
            let lost = seconds - num_expected * plain / self.num_rows.max(1) as f64;
            if lost <= self.credit && self.num_rows + num_drafts > self.curve.most_tokens() {
                explored = num_drafts;
            }
        }
        if best > 0 { best } else { explored }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::costs::Costs;

    /// Of steps of these numbers of tokens and microseconds.
    fn choose(num_rows: usize, probabilities: &[f64], steps: &[(usize, u64)], credit_us: u64) -> usize {
        let mut costs = Costs::default();
        steps.iter().for_each(|&(num_tokens, us)| costs.add(num_tokens, Duration::from_micros(us)));
        let curve = costs.curve().unwrap();
        Offer { num_rows, probabilities, curve: &curve, credit: credit_us as f64 * 1e-6 }.choose()
    }

    #[test]
    fn as_many_are_taken_as_pay() {
        let flat = [(1, 1000), (16, 1001)];
        assert_eq!(choose(1, &[0.9, 0.8, 0.7], &flat, 0), 3);
        let steep = [(1, 1000), (16, 16_000)];
        assert_eq!(choose(1, &[0.9, 0.8, 0.7], &steep, 0), 0);
        // Each token more costs 0.3 of a step: the third is not worth it.
        let slope = [(1, 1000), (11, 4000)];
        assert_eq!(choose(1, &[0.9, 0.8, 0.3], &slope, 0), 2);
        // What gains less than can be measured is left.
        assert_eq!(choose(1, &[0.31], &slope, 0), 0);
        assert_eq!(choose(1, &[], &flat, 1000), 0);
    }

    #[test]
    fn more_rows_leave_less_room_for_drafts() {
        let knee = [(1, 1000), (8, 1000), (64, 8000)];
        assert_eq!(choose(1, &[0.5; 7], &knee, 0), 7);
        assert_eq!(choose(4, &[0.5; 28], &knee, 0), 4);
        assert_eq!(choose(8, &[0.9; 56], &knee, 0), 0);
    }

    #[test]
    fn what_was_not_measured_is_tried_when_it_may_be_afforded() {
        // One token more costs at most another step, and is likely to save nine tenths of one.
        assert_eq!(choose(1, &[0.9, 0.8], &[(1, 1000)], 99), 0);
        assert_eq!(choose(1, &[0.9, 0.8], &[(1, 1000)], 101), 1);
        // Then four tokens, but no more than twice what was measured.
        assert_eq!(choose(1, &[0.9; 15], &[(1, 1000), (2, 1100)], 0), 3);
        // What was measured and does not pay is not tried again.
        assert_eq!(choose(1, &[0.1; 3], &[(1, 1000), (4, 3000)], 100_000), 0);
    }

    #[test]
    fn a_bad_measurement_costs_no_more_than_steps_apart() {
        assert_eq!(choose(1, &[0.99; 3], &[(1, 1000), (2, 9000)], 50), 3);
    }
}
