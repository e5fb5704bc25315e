//! BPE segmentation: the best pair is merged until none is left.
//!
//! Follows `bpe_model.cc` of sentencepiece 0.2: highest score first, ties from the left, user-defined symbols frozen,
//! and pieces marked unused split again the way they were merged.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use super::SentencePieceModel;
use super::proto::PieceKind;

/// A run of text that is not merged further yet; empty once it was merged into its left neighbour.
struct Symbol {
    start: usize,
    end: usize,
    prev: Option<usize>,
    next: Option<usize>,
    frozen: bool,
}

/// Two neighbours whose union is a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len_bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        by_score.then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// One segmentation in progress.
struct Merger<'a> {
    model: &'a SentencePieceModel,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
    // Where a merged piece marked unused was put together, by its text.
    unused_splits: HashMap<&'a str, usize>,
}

/// Splits normalised text into pieces: byte ranges and ids.
pub(crate) fn segment(model: &SentencePieceModel, text: &str) -> Vec<(Range<usize>, u32)> {
    let mut merger = Merger::new(model, text);
    merger.run();
    merger.pieces()
}

impl<'a> Merger<'a> {
    fn new(model: &'a SentencePieceModel, text: &'a str) -> Self {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut start = 0;
        while let Some(c) = text[start..].chars().next() {
            let user_len = model.user_symbols.longest_prefix(&text.as_bytes()[start..]);
            let end = start + user_len.unwrap_or(c.len_utf8());
            let idx = symbols.len();
            let next = (end < text.len()).then_some(idx + 1);
            symbols.push(Symbol { start, end, prev: idx.checked_sub(1), next, frozen: user_len.is_some() });
            start = end;
        }
        Self { model, text, symbols, queue: BinaryHeap::new(), unused_splits: HashMap::new() }
    }

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

    /// Queues two neighbours if together they are a piece.
    fn offer(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left_idx), Some(right_idx)) = (left, right) else { return };
        let (left, right) = (&self.symbols[left_idx], &self.symbols[right_idx]);
        if left.frozen || right.frozen {
            return;
        }
        let merged = &self.text[left.start..right.end];
        let Some(&id) = self.model.piece_ids.get(merged) else { return };
        if self.model.kind(id) == PieceKind::Unused {
            self.unused_splits.insert(merged, left.end - left.start);
        }
        let score = self.model.score(id);
        self.queue.push(Pair { score, left: left_idx, right: right_idx, len_bytes: merged.len() });
    }

    fn pieces(&self) -> Vec<(Range<usize>, u32)> {
        let mut pieces = Vec::new();
        let mut next = if self.symbols.is_empty() { None } else { Some(0) };
        while let Some(symbol) = next.and_then(|idx| self.symbols.get(idx)) {
            self.push_piece(symbol.start..symbol.end, &mut pieces);
            next = symbol.next;
        }
        pieces
    }

    fn push_piece(&self, range: Range<usize>, pieces: &mut Vec<(Range<usize>, u32)>) {
        let mut stack = vec![range];
        while let Some(range) = stack.pop() {
            let text = &self.text[range.clone()];
            let id = self.model.piece_to_id(text);
            match self.unused_splits.get(text) {
                Some(&left_len) if self.model.kind(id) == PieceKind::Unused => {
                    let middle = range.start + left_len;
                    stack.push(middle..range.end);
                    stack.push(range.start..middle);
                }
                _ => pieces.push((range, id)),
            }
        }
    }
}
