//! How many blocks will be in use, if responses become as long as those before them.
//!
//! Pure numbers. A wrong guess costs time, never text: what does not fit is preempted.

/// How long the responses of a run are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lengths {
    pub(super) num_tokens: u64,
    pub(super) num_ended: u64,
}

impl Lengths {
    /// Tokens that a response of `num_generated` tokens is expected to have in the end: all of its budget at first.
    ///
    /// Tokens of responses that go on count, because those that end first are the short ones. One that is longer than the
    /// others goes on for a while.
    pub(super) fn expected(&self, num_generated: u32, max_new_tokens: u32) -> u32 {
        if self.num_ended == 0 {
            return max_new_tokens;
        }
        let mean = u32::try_from(self.num_tokens.div_ceil(self.num_ended)).unwrap_or(u32::MAX);
        mean.max(num_generated.saturating_add(mean / 4)).min(max_new_tokens)
    }
}

/// Blocks that somebody holds for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Now.
    pub(super) num_blocks: usize,
    /// For how many blocks' time; it ends after them.
    pub(super) time: usize,
    /// Whether there is one more after each block's time.
    pub(super) grows: bool,
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

    fn change(&mut self, Span { num_blocks, time, grows }: Span, sign: i64) {
        if self.changes.len() < time + 2 {
            self.changes.resize(time + 2, (0, 0));
        }
        let (start, slope) = (num_blocks as i64, i64::from(grows));
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
        Span { num_blocks, time, grows }
    }

    #[test]
    fn the_peak_is_where_most_is_held_at_once() {
        let check = |spans: &[Span], expect: usize| {
            let mut forecast = Forecast::default();
            spans.iter().for_each(|&span| forecast.add(span));
            // Counted at each time by itself.
            let at = |time: usize| {
                let held = spans.iter().filter(|span| time <= span.time);
                held.map(|span| span.num_blocks + if span.grows { time } else { 0 }).sum::<usize>()
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
        assert_eq!([none.expected(0, 100), none.expected(90, 100)], [100, 100]);
        // 40 responses have gone on for 20 tokens, and two have ended: they are not what all are like.
        let early = Lengths { num_tokens: 42 * 20, num_ended: 2 };
        assert_eq!(early.expected(1, 1000), 420);
        let later = Lengths { num_tokens: 4000, num_ended: 40 };
        assert_eq!([later.expected(1, 1000), later.expected(200, 1000)], [100, 225]);
        assert_eq!([later.expected(1, 50), later.expected(990, 1000)], [50, 1000]);
    }
}
