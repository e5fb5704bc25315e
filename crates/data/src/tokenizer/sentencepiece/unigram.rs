//! Unigram segmentation: the path with the highest sum of scores.
//!
//! Follows `EncodeOptimized` of `unigram_model.cc`, sentencepiece 0.2. Sums are kept in `f32`, as there: in `f64` some
//! ties break the other way.

use std::ops::Range;

use super::SentencePieceModel;
use super::proto::PieceKind;

/// How far below the worst piece an unknown character scores.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The best way to reach a position of the text.
#[derive(Clone, Copy, Default)]
struct Best {
    id: u32,
    score: f32,
    from: Option<usize>,
}

/// Splits normalised text into pieces: byte ranges and ids.
pub(crate) fn segment(model: &SentencePieceModel, text: &str) -> Vec<(Range<usize>, u32)> {
    let unknown_score = model.min_score - UNKNOWN_PENALTY;
    let mut best = vec![Best::default(); text.len() + 1];
    for (start, c) in text.char_indices() {
        let score_here = best[start].score;
        let char_len = c.len_utf8();
        let mut has_single_char = false;
        for (len, id) in model.piece_trie.prefixes(&text.as_bytes()[start..]) {
            let score = match model.kind(id) {
                PieceKind::Unused => continue,
                // Beats any split of the same text into normal pieces.
                PieceKind::UserDefined => (f64::from(len as f32 * model.max_score) - 0.1) as f32,
                _ => model.score(id),
            };
            offer(&mut best[start + len], Best { id, score: score + score_here, from: Some(start) });
            has_single_char |= len == char_len;
        }
        if !has_single_char {
            let unknown = Best { id: model.unk_id, score: unknown_score + score_here, from: Some(start) };
            offer(&mut best[start + char_len], unknown);
        }
    }
    let mut pieces = Vec::new();
    let mut end = text.len();
    while let Some(start) = best[end].from {
        pieces.push((start..end, best[end].id));
        end = start;
    }
    pieces.reverse();
    pieces
}

fn offer(target: &mut Best, candidate: Best) {
    if target.from.is_none() || candidate.score > target.score {
        *target = candidate;
    }
}
