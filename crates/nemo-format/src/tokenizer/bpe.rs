//! A `tokenizer.json` of the tokenizers library, rebuilt from a GGUF file's byte-level BPE.
//!
//! No post-processor is written: NeMo adds no begin or end token to a prompt of its own accord.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{GgufVocab, TokenKind, pre_tokenizer, strings};
use crate::{FormatError, GgufFile, GgufValue};

/// Serialises the tokenizer.
pub(super) fn tokenizer_json(file: &GgufFile, vocab: &GgufVocab<'_>) -> Result<Vec<u8>, FormatError> {
    let pre_key = "tokenizer.ggml.pre";
    let name = file.optional(pre_key, GgufValue::as_str)?.ok_or_else(|| FormatError::Unsupported {
        what: format!("`{}`, whose tokenizer has no `{pre_key}`,", file.path().display()),
        hint: "convert the model again with a current llama.cpp, or pass the original tokenizer instead"
            .into(),
    })?;
    let pre = pre_tokenizer::by_name(name).ok_or_else(|| FormatError::Unsupported {
        what: format!("{pre_key} `{name}` in `{}`", file.path().display()),
        hint: format!("supported are {}; pass the original tokenizer instead", pre_tokenizer::SUPPORTED),
    })?;
    let mut ids = Map::new();
    let mut added_tokens = Vec::new();
    for (id, (token, kind)) in vocab.tokens.iter().zip(&vocab.kinds).enumerate() {
        if ids.insert((*token).to_owned(), Value::from(id)).is_some() {
            return Err(file.bad_key("tokenizer.ggml.tokens", &format!("has the token {token:?} twice")));
        }
        if matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown) {
            added_tokens.push(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind != TokenKind::UserDefined,
            }));
        }
    }
    let merges = merges(file, vocab)?;
    let document = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": pre.normalizer,
        "pre_tokenizer": pre.pre_tokenizer,
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": ids,
            "merges": merges,
        },
    });
    serde_json::to_vec(&document)
        .map_err(|error| file.bad_key("tokenizer.ggml.tokens", &format!("cannot be written: {error}")))
}

/// Merges as pairs. A merge whose parts or result are not tokens would make the file unreadable.
fn merges<'a>(file: &'a GgufFile, vocab: &GgufVocab<'_>) -> Result<Vec<[&'a str; 2]>, FormatError> {
    let key = "tokenizer.ggml.merges";
    let known: HashSet<&str> = vocab.tokens.iter().copied().collect();
    strings(file, key)?
        .into_iter()
        .map(|merge| {
            // A token may begin with a space, so the separator is looked for after the first character.
            let after_first = merge.chars().next().map_or(0, char::len_utf8);
            let space = merge.get(after_first..).and_then(|rest| rest.find(' ')).map(|at| at + after_first);
            let pair = space.map(|at| [&merge[..at], &merge[at + 1..]]);
            pair.filter(|[left, right]| {
                known.contains(left)
                    && known.contains(right)
                    && known.contains(format!("{left}{right}").as_str())
            })
            .ok_or_else(|| {
                file.bad_key(key, &format!("has the merge {merge:?}, which the tokens do not bear out"))
            })
        })
        .collect()
}
