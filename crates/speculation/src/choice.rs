//! How many drafts a step takes, from how likely they are right and what a step costs.

use crate::costs::StepCosts;
use crate::proposer::Goal;

/// What more tokens a second are not worth changing anything for: measurements are no better. Where the slowest response
/// counts, it may have less luck than the others.
const LEAST_GAIN: f64 = 0.02;
const LEAST_GAIN_TO_FINISH: f64 = 0.05;

/// A draft that a step may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Draft {
    /// Which of the responses that were looked at.
    pub(crate) row: usize,
    /// How likely it is used.
    pub(crate) probability: f64,
}

/// A step before its drafts are chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer<'a> {
    pub(crate) goal: Goal,
    /// Responses of the step, each of which goes on by a token without drafts.
    pub(crate) num_rows: usize,
    /// How many of them were looked at, which stand for all.
    pub(crate) num_watched: usize,
    /// The most likely first. A draft is less likely than those before it in its response.
    pub(crate) drafts: &'a [Draft],
    /// What a step costs.
    pub(crate) costs: &'a StepCosts,
    /// Seconds that may be lost to learn what steps of more tokens cost.
    pub(crate) credit: f64,
}

/// How many drafts to take, from the first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    Nothing,
    /// They give more tokens a second.
    Gain(usize),
    /// By what is known they give no more, but little is known.
    Explore(usize),
}

impl Choice {
    pub(crate) fn num_taken(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Gain(num_taken) | Self::Explore(num_taken) => num_taken,
        }
    }
}

impl Offer<'_> {
    /// Seconds of a step of so many tokens with drafts. It takes no longer than computing them in several steps of
    /// `num_rows` would.
    fn seconds(&self, num_tokens: usize) -> f64 {
        let StepCosts { plain_seconds, drafted } = self.costs;
        let of_rows = drafted.seconds(self.num_rows).max(*plain_seconds);
        drafted.seconds(num_tokens).min(of_rows * num_tokens as f64 / self.num_rows as f64)
    }

    /// As many as give most tokens a second. Where none gain anything by what is known, as many as the credit is worth
    /// finding out about.
    ///
    /// A step longer than all that were measured has at most twice their tokens, and is only tried where no more than the
    /// credit is lost if it takes as long as steps without drafts would, nor a step more than that if no draft is right.
    pub(crate) fn choose(&self) -> Choice {
        if self.num_watched == 0 {
            return Choice::Nothing;
        }
        let plain = self.costs.plain_seconds;
        let each = self.num_rows as f64 / self.num_watched as f64;
        let most_measured = self.costs.drafted.most_tokens().max(self.num_rows);
        let least_gain = match self.goal {
            Goal::Throughput => LEAST_GAIN,
            Goal::Finish => LEAST_GAIN_TO_FINISH,
        };
        let (mut best, mut best_speed) = (0, self.num_rows as f64 / plain * (1.0 + least_gain));
        let mut explored = 0;
        let mut num_expected = self.num_watched as f64;
        let mut least = Least::new(self.num_watched);
        for (idx, draft) in self.drafts.iter().enumerate() {
            num_expected += draft.probability;
            least.add(*draft);
            let num_taken = idx + 1;
            let num_tokens = self.num_rows + (num_taken as f64 * each).round() as usize;
            let seconds = self.seconds(num_tokens);
            if num_tokens > most_measured {
                if num_tokens > 2 * most_measured {
                    break;
                }
                let num_new = (num_tokens - most_measured) as f64 / self.num_rows as f64;
                let most_seconds = self.seconds(most_measured) + plain * num_new;
                let goes_on_by = match self.goal {
                    Goal::Throughput => num_expected / self.num_watched as f64,
                    Goal::Finish => least.num_expected,
                };
                let lost = most_seconds - goes_on_by * plain;
                let lost_without_luck = seconds - plain;
                if lost > self.credit || lost_without_luck > self.credit + plain {
                    continue;
                }
                explored = num_taken;
            }
            let speed = num_expected * each / seconds;
            if speed > best_speed {
                (best, best_speed) = (num_taken, speed);
            }
        }
        match (best, explored) {
            (0, 0) => Choice::Nothing,
            (0, explored) => Choice::Explore(explored),
            (best, _) => Choice::Gain(best),
        }
    }
}

/// How many tokens the response goes on by that has the fewest to expect, or a little less.
struct Least {
    num_expected: f64,
    /// Drafts taken of each response.
    num_taken: Vec<usize>,
    /// Drafts that each of them has, and how many have one more.
    level: usize,
    num_above: usize,
}

impl Least {
    fn new(num_rows: usize) -> Self {
        Self { num_expected: 1.0, num_taken: vec![0; num_rows], level: 0, num_above: 0 }
    }

    /// Takes a draft, which is no more likely than those before it.
    fn add(&mut self, draft: Draft) {
        let Some(num_taken) = self.num_taken.get_mut(draft.row) else { return };
        *num_taken += 1;
        if *num_taken != self.level + 1 {
            return;
        }
        self.num_above += 1;
        if self.num_above == self.num_taken.len() {
            self.level += 1;
            self.num_expected += draft.probability;
            self.num_above = self.num_taken.iter().filter(|&&num_taken| num_taken > self.level).count();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These, each of a response of its own as long as there is one.
    fn drafts(num_rows: usize, probabilities: &[f64]) -> Vec<Draft> {
        let of_row = |(idx, &probability): (usize, &f64)| Draft { row: idx % num_rows, probability };
        probabilities.iter().enumerate().map(of_row).collect()
    }

    fn offered(
        goal: Goal,
        num_rows: usize,
        num_watched: usize,
        probabilities: &[f64],
        costs: &StepCosts,
        credit_us: u64,
    ) -> usize {
        let drafts = drafts(num_watched, probabilities);
        let credit = credit_us as f64 * 1e-6;
        Offer { goal, num_rows, num_watched, drafts: &drafts, costs, credit }.choose().num_taken()
    }
    use crate::costs::tests::{add, of};
    use crate::proposer::Pace;

    /// How many drafts are taken, of steps of these numbers of tokens and microseconds.
    fn choose(num_rows: usize, probabilities: &[f64], steps: &[(usize, u64)], credit_us: u64) -> usize {
        let costs = of(Pace::Alone, steps).of(num_rows).unwrap();
        offered(Goal::Throughput, num_rows, num_rows, probabilities, &costs, credit_us)
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
        assert_eq!(choose(1, &[0.99; 3], &[(1, 1000), (2, 9000)], 2100), 3);
    }

    #[test]
    fn the_faster_pace_is_given_up_only_for_more_than_it_gave() {
        // Drafts are free, but a step that is started alone takes a third longer.
        let choose = |probabilities: &[f64]| {
            let mut costs = of(Pace::Ahead, &[(8, 3000)]);
            add(&mut costs, Pace::Alone, 8, 4000);
            add(&mut costs, Pace::Alone, 16, 4000);
            let costs = costs.of(8).unwrap();
            offered(Goal::Throughput, 8, 8, probabilities, &costs, 0)
        };
        assert_eq!(choose(&[0.3; 8]), 0);
        assert_eq!(choose(&[0.4; 8]), 8);
        assert_eq!(choose(&[0.9; 2]), 0);
        assert_eq!(choose(&[0.97; 3]), 3);
    }

    #[test]
    fn some_responses_may_stand_for_all() {
        let choose = |probabilities: &[f64], each: usize| {
            let costs = of(Pace::Alone, &[(64, 1000), (128, 1200)]).of(64).unwrap();
            offered(Goal::Throughput, 64, 64 / each, probabilities, &costs, 0)
        };
        // Two of eight look well, so sixteen of all do.
        assert_eq!(choose(&[0.9, 0.9], 8), 2);
        assert_eq!(choose(&[0.1, 0.1], 8), 0);
        // No more than twice what was measured.
        assert_eq!(choose(&[0.9; 99], 8), 24);
    }
}
