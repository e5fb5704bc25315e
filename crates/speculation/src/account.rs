//! The time that may be lost to drafts: a small part of all time, and what drafts saved.

/// What part of its time each step adds.
const EARNED: f64 = 0.005;
/// What there is at the start, and the most there can be, in steps.
const AT_FIRST: f64 = 0.5;
const MOST: f64 = 4.0;

/// Seconds that may be lost.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// None before the first step.
    seconds: Option<f64>,
}

impl Account {
    /// What there is: below 0, nothing may be tried. None before the first step.
    pub(crate) fn seconds(&self) -> Option<f64> {
        self.seconds
    }

    /// A step took so many seconds.
    pub(crate) fn earn(&mut self, step_seconds: f64) {
        let seconds = self.seconds.map_or(AT_FIRST * step_seconds, |seconds| seconds + EARNED * step_seconds);
        self.seconds = Some(seconds.min(MOST * step_seconds));
    }

    /// Drafts saved so many seconds, or lost them where it is below 0.
    pub(crate) fn settle(&mut self, saved_seconds: f64) {
        self.seconds = self.seconds.map(|seconds| seconds + saved_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_part_of_the_time_may_be_lost() {
        let mut account = Account::default();
        account.settle(3.0);
        assert_eq!(account.seconds(), None);
        account.earn(2.0);
        assert_eq!(account.seconds(), Some(1.0));
        account.settle(-1.25);
        account.earn(2.0);
        assert_eq!(account.seconds(), Some(-0.24));
        (0..25).for_each(|_| account.earn(2.0));
        assert!(account.seconds().unwrap() > 0.0);
        account.settle(100.0);
        account.earn(2.0);
        assert_eq!(account.seconds(), Some(8.0));
    }
}
