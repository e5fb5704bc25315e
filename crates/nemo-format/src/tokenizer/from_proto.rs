//! What transformers 5.24 makes of a SentencePiece proto: a vocabulary with merges, and, for models without a class of
//! their own, the whole tokenizer (`convert_slow_tokenizer.py`, `SentencePieceExtractor` and
//! `build_tokenizer_from_spm_proto`).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::sentencepiece_model::{CONTROL, ModelProto, NORMAL, USER_DEFINED};
use super::tokens::Token;

/// Pieces to ids. Of pieces of one text the last counts, as in a Python dict.
pub(super) fn vocab(model: &ModelProto<'_>) -> Map<String, Value> {
    model.pieces.iter().enumerate().map(|(id, piece)| (piece.text.to_owned(), Value::from(id))).collect()
}

/// Every way to put a piece together from two others, in the order of the pieces (`generate_merges`).
pub(super) fn merges(vocab: &Map<String, Value>) -> Value {
    let ids: HashMap<&str, u64> =
        vocab.iter().filter_map(|(text, id)| Some((text.as_str(), id.as_u64()?))).collect();
    let mut merges = Vec::new();
    for (&piece, &id) in &ids {
        for (left, right) in splits(piece) {
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((
                    id,
                    left.chars().count(),
                    right.chars().count(),
                    left_id,
                    right_id,
                    left,
                    right,
                ));
            }
        }
    }
    merges.sort_unstable();
    merges.into_iter().map(|(_, _, _, _, _, left, right)| json!([left, right])).collect()
}

/// Both parts of a text cut at each character.
fn splits(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.char_indices().skip(1).map(|(at, _)| text.split_at(at))
}

/// Control and user-defined pieces, which are found in a text before it is cut up.
pub(super) fn reserved_tokens(model: &ModelProto<'_>) -> Vec<Token> {
    let reserved = model.pieces.iter().filter(|piece| matches!(piece.kind, CONTROL | USER_DEFINED));
    reserved
        .map(|piece| Token { normalized: false, ..Token::new(piece.text, piece.kind == CONTROL) })
        .collect()
}

/// The whole tokenizer by the proto's own settings, added tokens and post-processor apart.
pub(super) fn document(model: &ModelProto<'_>, is_legacy: bool) -> Value {
    let user_defined: Vec<&str> =
        model.pieces.iter().filter(|piece| piece.kind == USER_DEFINED).map(|piece| piece.text).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers(model, is_legacy)},
        "pre_tokenizer": pre_tokenizer(model, is_legacy, &user_defined),
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders(model)},
        "model": if model.is_unigram { unigram(model) } else { byte_pairs(model, !user_defined.is_empty()) },
    })
}

fn unigram(model: &ModelProto<'_>) -> Value {
    let vocab: Vec<Value> =
        model.pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)])).collect();
    json!({"type": "Unigram", "unk_id": model.unk_id.max(0), "vocab": vocab, "byte_fallback": model.byte_fallback})
}

/// Only normal pieces are merged, in the order of their scores.
fn byte_pairs(model: &ModelProto<'_>, ignore_merges: bool) -> Value {
    let normal: HashMap<&str, (f32, usize)> = model
        .pieces
        .iter()
        .enumerate()
        .filter(|(_, piece)| piece.kind == NORMAL)
        .map(|(id, piece)| (piece.text, (piece.score, id)))
        .collect();
    let mut ranked = Vec::new();
    for (&piece, &(score, id)) in &normal {
        let known =
            splits(piece).filter(|(left, right)| normal.contains_key(left) && normal.contains_key(right));
        ranked.extend(known.map(|(left, right)| (score, id, left, right)));
    }
    ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    let merges: Vec<Value> = ranked.into_iter().map(|(_, _, left, right)| json!([left, right])).collect();
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": model.unk_piece,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab(model),
        "merges": merges,
    })
}

fn normalizers(model: &ModelProto<'_>, is_legacy: bool) -> Vec<Value> {
    let by_regex = |regex: &str, content: &str| json!({"type": "Replace", "pattern": {"Regex": regex}, "content": content});
    let mut steps = Vec::new();
    if !model.charsmap.is_empty() {
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64(model.charsmap)}));
    }
    if model.remove_extra_whitespaces {
        steps.extend([by_regex(r"\A +| +\z", ""), by_regex(" {2,}", " ")]);
    }
    if model.escape_whitespaces {
        steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
    }
    if model.add_dummy_prefix && is_legacy {
        steps.push(by_regex(r"\A▁", "▁▁"));
    }
    steps
}

fn pre_tokenizer(model: &ModelProto<'_>, is_legacy: bool, user_defined: &[&str]) -> Value {
    let mut steps = Vec::new();
    if model.add_dummy_prefix {
        let scheme = if is_legacy { "always" } else { "first" };
        steps
            .push(json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}));
    }
    if !user_defined.is_empty() {
        let mut longest_first = user_defined.to_vec();
        longest_first.sort_by_key(|piece| std::cmp::Reverse(piece.chars().count()));
        let regex = longest_first.into_iter().map(escaped).collect::<Vec<_>>().join("|");
        steps.push(
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
        );
    }
    if steps.is_empty() { Value::Null } else { json!({"type": "Sequence", "pretokenizers": steps}) }
}

fn decoders(model: &ModelProto<'_>) -> Vec<Value> {
    let mut steps = vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})];
    if model.byte_fallback {
        steps.push(json!({"type": "ByteFallback"}));
    }
    if model.add_dummy_prefix {
        steps.push(json!({"type": "Fuse"}));
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    } else if model.byte_fallback {
        steps.push(json!({"type": "Fuse"}));
    }
    steps
}

/// Python's `re.escape`.
fn escaped(text: &str) -> String {
    let mut regex = String::new();
    for c in text.chars() {
        if "()[]{}?*+-|^$\\.&~# \t\n\r\u{b}\u{c}".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[digit as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_as_base64() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn merges_are_in_the_order_of_the_pieces() {
        let vocab: Map<String, Value> = ["a", "b", "ab", "abb", "bb"]
            .iter()
            .enumerate()
            .map(|(id, text)| ((*text).to_owned(), id.into()))
            .collect();
        assert_eq!(merges(&vocab), json!([["a", "b"], ["a", "bb"], ["ab", "b"], ["b", "b"]]));
    }
}
