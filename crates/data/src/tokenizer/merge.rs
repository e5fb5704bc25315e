//! Merging neighbours of a text, best score first and ties from the left: the heart of byte-pair encoding.
//!
//! What a score is and which pairs have one is the caller's.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

/// A run of text to start from.
pub(crate) struct Span {
    pub(crate) range: Range<usize>,
    /// Never merged with a neighbour.
    pub(crate) frozen: bool,
}

/// A run of text that is not merged further yet; empty once it was merged into its left neighbour.
struct Symbol {
    start: usize,
    end: usize,
    prev: Option<usize>,
    next: Option<usize>,
    frozen: bool,
}

/// Two neighbours that can be merged.
struct Pair<S> {
    score: S,
    left: usize,
    right: usize,
    len_bytes: usize,
}

impl<S: PartialOrd> Ord for Pair<S> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        by_score.then_with(|| other.left.cmp(&self.left))
    }
}

impl<S: PartialOrd> PartialOrd for Pair<S> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<S: PartialOrd> PartialEq for Pair<S> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<S: PartialOrd> Eq for Pair<S> {}

struct Merger<S, F> {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair<S>>,
    score: F,
}

/// Merges adjacent `spans` until no pair has a score. `score` gets the merged range and where its right half starts.
pub(crate) fn merge<S, F>(spans: impl Iterator<Item = Span>, score: F) -> Vec<Range<usize>>
where
    S: PartialOrd,
    F: FnMut(Range<usize>, usize) -> Option<S>,
{
    let mut symbols: Vec<Symbol> = spans
        .enumerate()
        .map(|(idx, Span { range, frozen })| Symbol {
            start: range.start,
            end: range.end,
            prev: idx.checked_sub(1),
            next: Some(idx + 1),
            frozen,
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = None;
    }
    let mut merger = Merger { symbols, queue: BinaryHeap::new(), score };
    merger.run();
    merger.symbols.retain(|symbol| symbol.start < symbol.end);
    merger.symbols.into_iter().map(|symbol| symbol.start..symbol.end).collect()
}

impl<S, F> Merger<S, F>
where
    S: PartialOrd,
    F: FnMut(Range<usize>, usize) -> Option<S>,
{
    fn run(&mut self) {
        for right in 1..self.symbols.len() {
            self.offer(Some(right - 1), Some(right));
        }
        while let Some(pair) = self.queue.pop() {
            let (left, right) = (&self.symbols[pair.left], &self.symbols[pair.right]);
            let is_stale = left.start == left.end
                || right.start == right.end
                || right.end - left.start != pair.len_bytes
                || left.end != right.start;
            if is_stale {
                continue;
            }
            let (end, next) = (right.end, right.next);
            let right = &mut self.symbols[pair.right];
            right.start = right.end;
            let left = &mut self.symbols[pair.left];
            left.end = end;
            left.next = next;
            let prev = left.prev;
            if let Some(next) = next {
                self.symbols[next].prev = Some(pair.left);
            }
            self.offer(prev, Some(pair.left));
            self.offer(Some(pair.left), next);
        }
    }

    /// Queues two neighbours if together they have a score.
    fn offer(&mut self, left_idx: Option<usize>, right_idx: Option<usize>) {
        let (Some(left_idx), Some(right_idx)) = (left_idx, right_idx) else { return };
        let (left, right) = (&self.symbols[left_idx], &self.symbols[right_idx]);
        if left.frozen || right.frozen {
            return;
        }
        let merged = left.start..right.end;
        let len_bytes = merged.len();
        if let Some(score) = (self.score)(merged, right.start) {
            self.queue.push(Pair { score, left: left_idx, right: right_idx, len_bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges equal letters, the later in the alphabet first.
    fn check(text: &str, frozen: &[usize], expected: &[&str]) {
        let spans = (0..text.len()).map(|at| Span { range: at..at + 1, frozen: frozen.contains(&at) });
        let bytes = text.as_bytes();
        let ranges =
            merge(spans, |range, middle| (bytes[range.start] == bytes[middle]).then_some(bytes[middle]));
        let pieces: Vec<&str> = ranges.into_iter().map(|range| &text[range]).collect();
        assert_eq!(pieces, expected);
    }

    #[test]
    fn best_pairs_go_first_and_frozen_ones_stay() {
        check("", &[], &[]);
        check("aabbba", &[], &["aa", "bbb", "a"]);
        check("bbb", &[1], &["b", "b", "b"]);
    }
}
