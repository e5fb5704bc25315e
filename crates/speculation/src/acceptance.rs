//! How often predictions of each kind came true, of late, and how much worse they are in one response.

use crate::index::Kind;

/// Predictions after which the older ones count half.
const HALF_AFTER: f64 = 64.0;
/// As if of so many predictions of a kind as many had been right as of all kinds.
const ASSUMED_OF_KIND: f64 = 4.0;
/// What is left of a response's counts after another prediction: they reach back about 32.
const LEFT: f64 = 1.0 - 1.0 / 32.0;
/// A response has at first as many right predictions as are expected, as if of so many that are right.
const ASSUMED_OF_RESPONSE: f64 = 8.0;
/// As if of so many of all kinds so many had been right.
const ASSUMED: Count = Count { all: 4.0, right: 1.0 };

/// Counts by kind, and of all kinds.
#[derive(Debug, Default)]
pub(crate) struct Acceptance {
    counts: [Count; Kind::COUNT],
    all_kinds: Count,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: f64,
    right: f64,
}

impl Count {
    fn add(&mut self, is_right: bool) {
        self.all += 1.0;
        self.right += f64::from(u8::from(is_right));
        if self.all >= 2.0 * HALF_AFTER {
            *self = Self { all: self.all / 2.0, right: self.right / 2.0 };
        }
    }
}

impl Acceptance {
    /// A prediction of this kind was right, or was not.
    pub(crate) fn count(&mut self, kind: Kind, is_right: bool) {
        self.counts[kind.idx()].add(is_right);
        self.all_kinds.add(is_right);
    }

    /// The probability that one is right.
    pub(crate) fn rate(&self, kind: Kind) -> f64 {
        let Count { all, right } = self.all_kinds;
        let of_all_kinds = (right + ASSUMED.right) / (all + ASSUMED.all);
        let Count { all, right } = self.counts[kind.idx()];
        (right + ASSUMED_OF_KIND * of_all_kinds) / (all + ASSUMED_OF_KIND)
    }
}

/// How often predictions came true in one response, against what was expected of their kinds. Texts differ: where one
/// repeats itself, another has the same contexts by chance.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trust {
    expected: f64,
    right: f64,
}

impl Trust {
    /// A prediction of this probability, by its kind, was right, or was not.
    pub(crate) fn count(&mut self, rate: f64, is_right: bool) {
        self.expected = self.expected * LEFT + rate;
        self.right = self.right * LEFT + f64::from(u8::from(is_right));
    }

    /// The probability that a prediction is right whose kind has this one: no better than that, which may be luck.
    pub(crate) fn rate(self, of_kind: f64) -> f64 {
        let factor = (self.right + ASSUMED_OF_RESPONSE) / (self.expected + ASSUMED_OF_RESPONSE);
        of_kind * factor.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_what_was_seen_of_their_kind() {
        let kind = Kind::new(5, false);
        let other = Kind::new(5, true);
        let mut acceptance = Acceptance::default();
        assert_eq!(acceptance.rate(kind), 0.25);
        let mut see = |kind, num, is_right| (0..num).for_each(|_| acceptance.count(kind, is_right));
        see(kind, 200, true);
        see(other, 20, false);
        assert!(acceptance.rate(kind) > 0.97);
        assert!(acceptance.rate(other) < 0.2);
        // Of one that was not seen, what is known of all is assumed.
        let unseen = acceptance.rate(Kind::new(17, false));
        assert!((0.7..0.8).contains(&unseen), "{unseen}");
        let mut see = |kind, num, is_right| (0..num).for_each(|_| acceptance.count(kind, is_right));
        see(kind, 400, false);
        assert!(acceptance.rate(kind) < 0.05, "{}", acceptance.rate(kind));
    }

    #[test]
    fn a_response_may_be_worse_than_its_kinds() {
        let after = |num: usize, is_right: bool| {
            let mut trust = Trust::default();
            (0..num).for_each(|_| trust.count(0.5, is_right));
            trust.rate(0.5)
        };
        assert_eq!(after(0, true), 0.5);
        assert!((0.35..0.45).contains(&after(4, false)), "{}", after(4, false));
        assert!(after(100, false) < 0.2, "{}", after(100, false));
        // Luck is not to be trusted.
        assert_eq!(after(100, true), 0.5);
    }
}
