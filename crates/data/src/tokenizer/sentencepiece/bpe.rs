//! BPE segmentation: the best pair is merged until none is left.
//!
//! Follows `bpe_model.cc` of sentencepiece 0.2: highest score first, ties from the left, user-defined symbols frozen,
//! and pieces marked unused split again the way they were merged.

use std::collections::HashMap;
use std::ops::Range;

use super::SentencePieceModel;
use super::proto::PieceKind;
use crate::tokenizer::merge::{Span, merge};

/// Splits normalised text into pieces: byte ranges and ids.
pub(crate) fn segment(model: &SentencePieceModel, text: &str) -> Vec<(Range<usize>, u32)> {
    // Where a merged piece marked unused was put together, by its text.
    let mut unused_splits: HashMap<&str, usize> = HashMap::new();
    let merged = merge(spans(model, text), |range, right_start| {
        let left_len = right_start - range.start;
        let piece = &text[range];
        let &id = model.piece_ids.get(piece)?;
        if model.kind(id) == PieceKind::Unused {
            unused_splits.insert(piece, left_len);
        }
        Some(model.score(id))
    });
    let mut pieces = Vec::with_capacity(merged.len());
    let mut stack = Vec::new();
    for range in merged {
        stack.push(range);
        while let Some(range) = stack.pop() {
            let piece = &text[range.clone()];
            let id = model.piece_to_id(piece);
            match unused_splits.get(piece) {
                Some(&left_len) if model.kind(id) == PieceKind::Unused => {
                    let middle = range.start + left_len;
                    stack.push(middle..range.end);
                    stack.push(range.start..middle);
                }
                _ => pieces.push((range, id)),
            }
        }
    }
    pieces
}

/// Characters, and whole user-defined symbols.
fn spans(model: &SentencePieceModel, text: &str) -> impl Iterator<Item = Span> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let c = text[start..].chars().next()?;
        let user_len = model.user_symbols.longest_prefix(&text.as_bytes()[start..]);
        let range = start..start + user_len.unwrap_or(c.len_utf8());
        start = range.end;
        Some(Span { range, frozen: user_len.is_some() })
    })
}
