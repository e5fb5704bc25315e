//! Which prompts of a file begin alike, and which are the same: found when the file is read, from hashes.
//!
//! A hash of the first 32, 128, 512 and 2,048 tokens of each prompt, as far as it has as many, and one of all of it: 20
//! bytes a prompt while the file is read, 8 after that. Two prompts that are taken for alike and are not change the order
//! of work and nothing else: what is shared in the end is found by the tokens themselves.

use std::hash::{DefaultHasher, Hasher};

/// Tokens of the beginnings that are compared. Fewer than the first are not worth an order of work.
const DEPTHS: [usize; 4] = [32, 128, 512, 2048];
/// Where a prompt has fewer tokens.
const TOO_SHORT: u32 = 0;
/// A prompt that is as no other is.
const ALONE: u32 = u32::MAX;

/// The hashes of one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hashes {
    beginnings: [u32; DEPTHS.len()],
    whole: u32,
}

impl Hashes {
    pub(crate) fn of(prompt: &[u32]) -> Self {
        let mut hasher = DefaultHasher::new();
        let mut beginnings = [TOO_SHORT; DEPTHS.len()];
        let mut num_hashed = 0;
        for (hash, &depth) in beginnings.iter_mut().zip(&DEPTHS) {
            let Some(tokens) = prompt.get(num_hashed..depth) else { break };
            tokens.iter().for_each(|&token| hasher.write_u32(token));
            num_hashed = depth;
            *hash = (hasher.finish() as u32).max(TOO_SHORT + 1);
        }
        prompt[num_hashed..].iter().for_each(|&token| hasher.write_u32(token));
        Self { beginnings, whole: hasher.finish() as u32 }
    }

    /// How many of the beginnings two prompts have in common.
    fn num_common(&self, other: &Self) -> usize {
        let pairs = self.beginnings.iter().zip(&other.beginnings);
        pairs.take_while(|(own, other)| own == other && **own != TOO_SHORT).count()
    }
}

/// What a prompt is like. Numbers are those of records that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Likeness {
    prefix: u32,
    same_as: u32,
}

impl Likeness {
    /// The same for all prompts that have the most in common with each other.
    pub(crate) fn prefix(self) -> Option<u32> {
        (self.prefix != ALONE).then_some(self.prefix)
    }

    /// The first record with the same prompt, where there are several.
    pub(crate) fn same_as(self) -> Option<u32> {
        (self.same_as != ALONE).then_some(self.same_as)
    }
}

/// What each of these prompts is like; nothing where there are more than 2³². Who shares a longer beginning with some and
/// a shorter one with others goes with the former.
pub(crate) fn find_alike(prompts: &[Hashes]) -> Vec<Likeness> {
    let Ok(num_prompts) = u32::try_from(prompts.len()) else { return Vec::new() };
    let mut order: Vec<u32> = (0..num_prompts).collect();
    order.sort_unstable_by_key(|&idx| (prompts[idx as usize], idx));
    let common = |a: Option<&u32>, b: Option<&u32>| match (a, b) {
        (Some(&a), Some(&b)) => prompts[a as usize].num_common(&prompts[b as usize]),
        _ => 0,
    };
    let mut found = vec![Likeness { prefix: ALONE, same_as: ALONE }; prompts.len()];
    // By number of common beginnings: the first of the prompts that have no more in common than those.
    let mut groups = [None; DEPTHS.len() + 1];
    for (place, &idx) in order.iter().enumerate() {
        let (before, after) = (place.checked_sub(1).map(|place| &order[place]), order.get(place + 1));
        let with_before = common(before, Some(&idx));
        groups[with_before + 1..].fill(None);
        let num_common = with_before.max(common(Some(&idx), after));
        let is_same = |other: &&u32| prompts[**other as usize] == prompts[idx as usize];
        found[idx as usize] = Likeness {
            prefix: if num_common == 0 { ALONE } else { *groups[num_common].get_or_insert(idx) },
            same_as: match (before.filter(is_same), after.filter(is_same)) {
                (Some(&before), _) => found[before as usize].same_as,
                (None, Some(_)) => idx,
                (None, None) => ALONE,
            },
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first of these prompts that each goes with, and the first that is the same.
    fn alike(prompts: &[Vec<u32>]) -> Vec<(Option<u32>, Option<u32>)> {
        let hashes: Vec<Hashes> = prompts.iter().map(|prompt| Hashes::of(prompt)).collect();
        find_alike(&hashes).into_iter().map(|alike| (alike.prefix(), alike.same_as())).collect()
    }

    /// So many tokens of a common beginning, and one of its own.
    fn prompt(beginning: u32, num_shared: usize, own: u32) -> Vec<u32> {
        (0..num_shared as u32).map(|pos| pos * 7 + beginning).chain([own]).collect()
    }

    #[test]
    fn prompts_go_with_those_that_they_share_the_most_with() {
        let prompts = [
            prompt(1, 40, 0),
            prompt(2, 600, 0),
            prompt(1, 3000, 1),
            prompt(2, 130, 1),
            prompt(1, 3000, 2),
            prompt(2, 600, 2),
            prompt(3, 31, 1),
            prompt(3, 31, 2),
            prompt(2, 200, 2),
            prompt(2, 600, 0),
        ];
        // Which of them go together.
        let expect = [0, 1, 2, 3, 2, 1, 6, 7, 3, 1];
        let found = alike(&prompts);
        for (a, group) in expect.iter().enumerate() {
            let together = |b: usize| a == b || found[a].0.is_some() && found[a].0 == found[b].0;
            for (b, other) in expect.iter().enumerate() {
                assert_eq!(together(b), group == other, "{a} and {b}: {found:?}");
            }
        }
        let same: Vec<_> = found.iter().map(|alike| alike.1).collect();
        let is_first_or_last = |idx| if idx == 1 || idx == 9 { Some(1) } else { None };
        assert_eq!(same, (0..10).map(is_first_or_last).collect::<Vec<_>>());
        assert_eq!(alike(&[]), []);
    }

    proptest! {
        #[test]
        fn alike_is_who_begins_alike(
            shapes in prop::collection::vec((0_u32..3, prop::sample::select(vec![0_usize, 31, 32, 40, 128, 600]), 0_u32..3), 0..20),
        ) {
            let prompts: Vec<_> = shapes.iter().map(|&(beginning, len, own)| prompt(1000 * beginning, len, own)).collect();
            let found = alike(&prompts);
            for (a, prompt) in prompts.iter().enumerate() {
                let mut same = (0_u32..).zip(&prompts).filter(|(_, other)| *other == prompt).map(|(idx, _)| idx);
                let (first, second) = (same.next(), same.next());
                prop_assert_eq!(found[a].1, first.filter(|_| second.is_some()));
                let begins_alike = |b: usize| prompt.len() >= 32 && prompts[b].len() >= 32 && prompt[..32] == prompts[b][..32];
                prop_assert_eq!(found[a].0.is_some(), (0..prompts.len()).any(|b| a != b && begins_alike(b)));
                for b in 0..prompts.len() {
                    prop_assert!(found[a].0.is_none() || found[a].0 != found[b].0 || begins_alike(b));
                }
            }
        }
    }
}
