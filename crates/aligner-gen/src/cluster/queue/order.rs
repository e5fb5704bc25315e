//! In which order samples are given out. Pure.
//!
//! The order is that of the file, except within a window: so many samples that were not given out, the first of the file.
//! No sample is passed over by more others than a window has: when the first one was passed over by as many, it is next,
//! whatever is known of it. Otherwise
//!
//! 1. the class of the longest samples goes first; a class ends where samples are half as long;
//! 2. a replica goes on with samples of that class whose prompts begin as its last one's did, as long as there are any:
//!    what they begin with is computed once, and they are neighbours in its steps;
//! 3. otherwise the longest goes first, and of those that are as long the first in the file.
//!
//! So, but for the first of the window, a sample is given out before one that is longer only where they are of one class,
//! and samples of which nothing is known keep their order. How long a sample is expected to be is, in this order, how long the responses to the same prompt
//! were that have ended; what its record says; all that it may have.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use engine::{Foresight, PlannedPrefix};

use crate::cluster::topology::Replica;

/// Prompts whose responses' lengths are kept twice this, at the most.
const MAX_PROMPTS: usize = 1 << 15;
/// Lengths that differ by less than this part from what is known are no news.
const NEWS_PART: u32 = 8;

/// What is known of the work that a sample will be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Tokens that a response is likely to have.
    pub(crate) known_tokens: Option<u32>,
    /// Tokens that it may have.
    pub(crate) budget_tokens: u32,
    /// The same for samples whose prompts begin alike.
    pub(crate) prefix: Option<u32>,
    /// The same for samples whose prompts are the same.
    pub(crate) same_as: Option<u32>,
}

impl Work {
    fn expected_tokens(&self) -> u32 {
        self.known_tokens.unwrap_or(u32::MAX).min(self.budget_tokens)
    }

    /// The higher, the longer.
    fn class(&self) -> u32 {
        self.expected_tokens().checked_ilog2().map_or(0, |log| log + 1)
    }
}

/// The work of the sample at a position.
pub(crate) type WorkOf<'a> = Box<dyn Fn(usize) -> Work + Send + 'a>;

/// Which of the samples that nobody has is next.
pub(crate) struct WorkOrder<'a> {
    work_of: WorkOf<'a>,
    /// The first position past all that were in the window, and the end of all.
    next: usize,
    end: usize,
    /// The window.
    waiting: BTreeMap<usize, Work>,
    by_length: BTreeSet<(Reverse<u32>, usize)>,
    /// By class and prefix.
    by_prefix: BTreeSet<(u32, u32, Reverse<u32>, usize)>,
    by_prompt: BTreeSet<(u32, usize)>,
    num_of_prefix: HashMap<u32, u32>,
    /// What the last sample of each replica began with.
    current: Vec<Option<u32>>,
    lengths: PromptLengths,
}

impl<'a> WorkOrder<'a> {
    pub(crate) fn new(positions: Range<usize>, num_replicas: u32, work_of: WorkOf<'a>) -> Self {
        Self {
            work_of,
            next: positions.start,
            end: positions.end,
            waiting: BTreeMap::new(),
            by_length: BTreeSet::new(),
            by_prefix: BTreeSet::new(),
            by_prompt: BTreeSet::new(),
            num_of_prefix: HashMap::new(),
            current: vec![None; num_replicas as usize],
            lengths: PromptLengths::default(),
        }
    }

    /// Samples that were never given out.
    pub(crate) fn num_left(&self) -> usize {
        self.end - self.next + self.waiting.len()
    }

    /// The next sample for a replica, of a window of so many samples and before position `limit`.
    pub(crate) fn take(&mut self, replica: Replica, window: usize, limit: usize) -> Option<usize> {
        let window = window.max(1);
        self.fill(window, limit);
        let position = self.choose(replica, window, limit)?;
        let work = self.remove(position)?;
        if let Some(current) = self.current.get_mut(replica.index()) {
            *current = work.prefix;
        }
        Some(position)
    }

    fn fill(&mut self, window: usize, limit: usize) {
        while self.next < self.end.min(limit) && self.waiting.len() < window {
            let mut work = (self.work_of)(self.next);
            work.known_tokens = self.lengths.of(work.same_as).or(work.known_tokens);
            self.insert(self.next, work);
            self.next += 1;
        }
    }

    fn choose(&self, replica: Replica, window: usize, limit: usize) -> Option<usize> {
        let &oldest = self.waiting.keys().next()?;
        let num_passed = self.next - oldest - self.waiting.len();
        // The limit may have come closer since the window was filled.
        if num_passed >= window || self.next > limit {
            return (oldest < limit).then_some(oldest);
        }
        let &(_, longest) = self.by_length.first()?;
        let class = self.waiting.get(&longest)?.class();
        let current = self.current.get(replica.index()).copied().flatten();
        let alike = current.and_then(|prefix| {
            let from = (class, prefix, Reverse(u32::MAX), 0);
            let &(of_class, of_prefix, _, position) = self.by_prefix.range(from..).next()?;
            (of_class == class && of_prefix == prefix).then_some(position)
        });
        Some(alike.unwrap_or(longest))
    }

    fn insert(&mut self, position: usize, work: Work) {
        let expected_tokens = work.expected_tokens();
        self.waiting.insert(position, work);
        self.by_length.insert((Reverse(expected_tokens), position));
        if let Some(prefix) = work.prefix {
            self.by_prefix.insert((work.class(), prefix, Reverse(expected_tokens), position));
            *self.num_of_prefix.entry(prefix).or_default() += 1;
        }
        if let Some(same_as) = work.same_as {
            self.by_prompt.insert((same_as, position));
        }
    }

    fn remove(&mut self, position: usize) -> Option<Work> {
        let work = self.waiting.remove(&position)?;
        let expected_tokens = work.expected_tokens();
        self.by_length.remove(&(Reverse(expected_tokens), position));
        if let Some(prefix) = work.prefix {
            self.by_prefix.remove(&(work.class(), prefix, Reverse(expected_tokens), position));
            if let Some(num) = self.num_of_prefix.get_mut(&prefix) {
                *num -= 1;
                if *num == 0 {
                    self.num_of_prefix.remove(&prefix);
                }
            }
        }
        if let Some(same_as) = work.same_as {
            self.by_prompt.remove(&(same_as, position));
        }
        Some(work)
    }

    /// The sample at a position has ended: its responses have so many tokens in the mean.
    pub(crate) fn learn(&mut self, position: usize, mean_tokens: u32) {
        let Some(same_as) = (self.work_of)(position).same_as else { return };
        let Some(known_tokens) = self.lengths.add(same_as, mean_tokens) else { return };
        let same: Vec<usize> = self
            .by_prompt
            .range((same_as, 0)..=(same_as, usize::MAX))
            .map(|&(_, position)| position)
            .collect();
        for position in same {
            if let Some(work) = self.remove(position) {
                self.insert(position, Work { known_tokens: Some(known_tokens), ..work });
            }
        }
    }

    /// What the engine should know of a sample that is given out.
    pub(crate) fn foresight(&self, position: usize) -> Foresight {
        let work = (self.work_of)(position);
        let planned = |id| PlannedPrefix {
            id,
            num_later: self.num_of_prefix.get(&id).copied().unwrap_or(0),
            within: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
        };
        Foresight {
            expected_tokens: self.lengths.of(work.same_as).or(work.known_tokens),
            prefix: work.prefix.map(planned),
        }
    }
}

/// How long the responses to a prompt are.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: u64,
    num: u64,
    /// Their mean when it was news.
    known: u32,
}

/// How long the responses to the same prompts were: those to the prompts of late, the older ones forgotten.
#[derive(Debug, Default)]
struct PromptLengths {
    recent: HashMap<u32, Mean>,
    older: HashMap<u32, Mean>,
}

impl PromptLengths {
    fn of(&self, same_as: Option<u32>) -> Option<u32> {
        let same_as = same_as?;
        self.recent.get(&same_as).or_else(|| self.older.get(&same_as)).map(|mean| mean.known)
    }

    /// Adds a length; tells the mean where it is news.
    fn add(&mut self, same_as: u32, num_tokens: u32) -> Option<u32> {
        let before = self.recent.remove(&same_as).or_else(|| self.older.remove(&same_as));
        let Mean { sum, num, known } = before.unwrap_or_default();
        let (sum, num) = (sum.saturating_add(u64::from(num_tokens)), num + 1);
        let mean = u32::try_from(sum.div_ceil(num)).unwrap_or(u32::MAX);
        let is_news = before.is_none() || mean.abs_diff(known) > known / NEWS_PART;
        let known = if is_news { mean } else { known };
        if self.recent.len() >= MAX_PROMPTS {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(same_as, Mean { sum, num, known });
        is_news.then_some(known)
    }
}

#[cfg(test)]
mod tests;
