//! How many blocks will be in use, if responses become as long as those before them.
//!
//! Pure numbers. A wrong guess costs time, never text: what does not fit is preempted.

use std::collections::HashMap;

use model_spec::KvTables;

use crate::{EngineLimits, block_table::own_window};

/// How long the responses of a run are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lengths {
    pub(super) num_tokens: u64,
    pub(super) num_ended: u64,
}

impl Lengths {
    /// Tokens that a response of `num_generated` tokens is expected to have in the end: as many as are `known` of it, or
    /// as those before it have; all of its budget at first.
    ///
    /// Tokens of responses that go on count, because those that end first are the short ones. One that is longer than
    /// was expected goes on for a while.
    pub(super) fn expected(&self, num_generated: u32, max_new_tokens: u32, known: Option<u32>) -> u32 {
        let Some(expected) = known.or_else(|| self.mean()) else { return max_new_tokens };
        expected.max(num_generated.saturating_add(expected / 4)).min(max_new_tokens)
    }

    /// Counts in a response that has ended.
    pub(super) fn add(&mut self, num_tokens: u32) {
        self.num_tokens += u64::from(num_tokens);
        self.num_ended += 1;
    }

    /// None while none has ended.
    pub(super) fn mean(&self) -> Option<u32> {
        (self.num_ended > 0)
            .then(|| u32::try_from(self.num_tokens.div_ceil(self.num_ended)).unwrap_or(u32::MAX))
    }
}

/// How long the responses to the prompts in flight are that have ended, by prompt: others to the same prompt are likely
/// to be like them.
#[derive(Clone, Debug, Default)]
pub(super) struct Siblings(HashMap<u64, Lengths>);

impl Siblings {
    /// A response has ended, and others to the prompt go on or will.
    pub(super) fn add(&mut self, group_idx: u64, num_tokens: u32) {
        self.0.entry(group_idx).or_default().add(num_tokens);
    }

    /// The last response to a prompt has ended.
    pub(super) fn forget(&mut self, group_idx: u64) {
        self.0.remove(&group_idx);
    }

    /// What is known of the length of a response: that of its siblings, or else what was known of it beforehand.
    pub(super) fn known(&self, group_idx: u64, beforehand: Option<u32>) -> Option<u32> {
        self.0.get(&group_idx).and_then(Lengths::mean).or(beforehand)
    }

    /// Prompts that something is held for.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Blocks that somebody holds for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Now.
    pub(super) num_blocks: usize,
    /// For how many blocks' time; it ends after them.
    pub(super) time: usize,
    /// How many more there are after each block's time.
    pub(super) growth: usize,
}

impl Span {
    /// What is a response's own, which has `num_columns` now and goes on for so many blocks' time. Of its tables with a
    /// window it counts from the start on what it will have.
    pub(super) fn of_response(limits: &EngineLimits, num_columns: usize, time: usize) -> Self {
        let KvTables { num_full, num_windowed, .. } = limits.tables;
        let windowed = (num_columns + time).min(own_window(limits));
        Self { num_blocks: num_full * num_columns + num_windowed * windowed, time, growth: num_full }
    }
}

/// Blocks in use now and in the time to come, which is counted in the tokens of a block.
#[derive(Clone, Debug, Default)]
pub(super) struct Forecast {
    /// By how much the number of blocks changes at a time, and its slope from then on.
    changes: Vec<(i64, i64)>,
}

impl Forecast {
    pub(super) fn add(&mut self, span: Span) {
        self.change(span, 1);
    }

    pub(super) fn remove(&mut self, span: Span) {
        self.change(span, -1);
    }

    fn change(&mut self, Span { num_blocks, time, growth }: Span, sign: i64) {
        if self.changes.len() < time + 2 {
            self.changes.resize(time + 2, (0, 0));
        }
        let (start, slope) = (num_blocks as i64, growth as i64);
        let grown = start + slope * (time as i64 + 1);
        let mut at = |time: usize, blocks: i64, slope: i64| {
            self.changes[time].0 += sign * blocks;
            self.changes[time].1 += sign * slope;
        };
        at(0, start, slope);
        at(time + 1, -grown, -slope);
    }

    /// The most blocks at any time.
    pub(super) fn peak(&self) -> usize {
        let (mut blocks, mut slope, mut peak) = (0, 0, 0);
        for &(by, slope_by) in &self.changes {
            blocks += slope + by;
            slope += slope_by;
            peak = peak.max(blocks);
        }
        usize::try_from(peak).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(num_blocks: usize, time: usize, grows: bool) -> Span {
        Span { num_blocks, time, growth: usize::from(grows) }
    }

    #[test]
    fn tables_with_a_window_do_not_grow_beyond_it() {
        let tables = KvTables { num_full: 2, num_windowed: 3, window_tokens: 8 };
        let limits = EngineLimits { tables, ..crate::testing::roomy() };
        // Three columns, and two ahead.
        assert_eq!(Span::of_response(&limits, 1, 9), Span { num_blocks: 2 + 3 * 5, time: 9, growth: 2 });
        assert_eq!(Span::of_response(&limits, 1, 2), Span { num_blocks: 2 + 3 * 3, time: 2, growth: 2 });
        assert_eq!(Span::of_response(&crate::testing::roomy(), 4, 9), span(4, 9, true));
    }

    #[test]
    fn the_peak_is_where_most_is_held_at_once() {
        let check = |spans: &[Span], expect: usize| {
            let mut forecast = Forecast::default();
            spans.iter().for_each(|&span| forecast.add(span));
            // Counted at each time by itself.
            let at = |time: usize| {
                let held = spans.iter().filter(|span| time <= span.time);
                held.map(|span| span.num_blocks + span.growth * time).sum::<usize>()
            };
            assert_eq!((0..20).map(at).max().unwrap(), expect);
            assert_eq!(forecast.peak(), expect, "{spans:?}");
            forecast.add(span(100, 7, true));
            forecast.remove(span(100, 7, true));
            assert_eq!(forecast.peak(), expect, "{spans:?}");
        };
        check(&[], 0);
        check(&[span(3, 4, true)], 7);
        check(&[span(3, 4, true), span(3, 4, true)], 14);
        // One ends before the other is long.
        check(&[span(5, 1, true), span(1, 6, true)], 8);
        check(&[span(4, 9, false), span(2, 2, true), span(1, 0, true)], 8);
    }

    #[test]
    fn lengths_are_those_of_the_run_so_far() {
        let none = Lengths::default();
        assert_eq!([none.expected(0, 100, None), none.expected(90, 100, None)], [100, 100]);
        // 40 responses have gone on for 20 tokens, and two have ended: they are not what all are like.
        let early = Lengths { num_tokens: 42 * 20, num_ended: 2 };
        assert_eq!(early.expected(1, 1000, None), 420);
        let later = Lengths { num_tokens: 4000, num_ended: 40 };
        assert_eq!([later.expected(1, 1000, None), later.expected(200, 1000, None)], [100, 225]);
        assert_eq!([later.expected(1, 50, None), later.expected(990, 1000, None)], [50, 1000]);
    }

    #[test]
    fn what_is_known_of_a_response_goes_before_what_others_are_like() {
        let (none, some) = (Lengths::default(), Lengths { num_tokens: 4000, num_ended: 40 });
        for lengths in [none, some] {
            assert_eq!([0, 40, 90].map(|num| lengths.expected(num, 100, Some(40))), [40, 50, 100]);
            assert_eq!(lengths.expected(0, 100, Some(u32::MAX)), 100, "a budget is a bound");
        }
        let mut siblings = Siblings::default();
        assert_eq!([siblings.known(7, None), siblings.known(7, Some(30))], [None, Some(30)]);
        siblings.add(7, 10);
        siblings.add(7, 21);
        assert_eq!([siblings.known(7, Some(30)), siblings.known(8, Some(30))], [Some(16), Some(30)]);
        siblings.forget(7);
        assert_eq!(siblings.len(), 0);
    }
}
