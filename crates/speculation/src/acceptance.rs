//! How often predictions of each kind came true, of late.

use crate::index::Kind;

/// Predictions after which the older ones count half.
const HALF_AFTER: f64 = 256.0;
/// What is assumed before anything was seen: as if of so many predictions so many had been right.
const ASSUMED: f64 = 4.0;
const ASSUMED_RIGHT: f64 = 1.0;

/// Counts by kind.
#[derive(Debug)]
pub(crate) struct Acceptance {
    counts: [Count; Kind::COUNT],
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: f64,
    right: f64,
}

impl Default for Acceptance {
    fn default() -> Self {
        Self { counts: [Count::default(); Kind::COUNT] }
    }
}

impl Acceptance {
    /// A prediction of this kind was right, or was not.
    pub(crate) fn count(&mut self, kind: Kind, is_right: bool) {
        let count = &mut self.counts[kind.idx()];
        count.all += 1.0;
        count.right += f64::from(u8::from(is_right));
        if count.all >= 2.0 * HALF_AFTER {
            *count = Count { all: count.all / 2.0, right: count.right / 2.0 };
        }
    }

    /// The probability that one is right.
    pub(crate) fn rate(&self, kind: Kind) -> f64 {
        let count = self.counts[kind.idx()];
        (count.right + ASSUMED_RIGHT) / (count.all + ASSUMED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Second;

    #[test]
    fn rates_follow_what_was_seen_of_their_kind() {
        let kind = Kind { len_idx: 3, is_shared: false, second: Second::Same };
        let other = Kind { is_shared: true, ..kind };
        let mut acceptance = Acceptance::default();
        assert_eq!(acceptance.rate(kind), 0.25);
        let mut see = |num, is_right| (0..num).for_each(|_| acceptance.count(kind, is_right));
        see(200, true);
        assert!(acceptance.rate(kind) > 0.97);
        let mut see = |num, is_right| (0..num).for_each(|_| acceptance.count(kind, is_right));
        see(1500, false);
        assert!(acceptance.rate(kind) < 0.05, "{}", acceptance.rate(kind));
        assert_eq!(acceptance.rate(other), 0.25);
    }
}
