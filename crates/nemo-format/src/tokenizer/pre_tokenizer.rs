//! The pre-tokenizers that `tokenizer.ggml.pre` names, as the tokenizers library describes them.
//!
//! The names are those of llama.cpp's `llama-vocab.cpp`; the patterns are those of the models' own `tokenizer.json`
//! files, from which llama.cpp's are derived. A name that is not listed is an error, never a guess.

use serde_json::{Value, json};

/// Contractions, words, numbers of up to three digits, punctuation, newlines, spaces (Llama 3).
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits (Qwen 2).
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words split where capitals begin (Mistral's Tekken).
const TEKKEN_PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Names that are understood, for messages.
pub(super) const SUPPORTED: &str = "`gpt-2`, `smollm`, `starcoder`, `refact`, `llama-bpe`, `smaug-bpe`, `qwen2`, `deepseek-r1-qwen` and `tekken`";

/// How text is cut before merging.
pub(super) struct PreTokenizer {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    /// Whether a piece that is a token as a whole is taken without merging.
    pub(super) ignore_merges: bool,
}

/// The pre-tokenizer of a name, or `None` for one that is not known.
pub(super) fn by_name(name: &str) -> Option<PreTokenizer> {
    let plain = |pre_tokenizer| PreTokenizer { normalizer: Value::Null, pre_tokenizer, ignore_merges: false };
    Some(match name {
        "gpt-2" => plain(byte_level(true)),
        "smollm" | "starcoder" | "refact" => plain(json!({
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(true)],
        })),
        "llama3" | "llama-v3" | "llama-bpe" => {
            PreTokenizer { ignore_merges: true, ..plain(split(LLAMA3_PATTERN)) }
        }
        "smaug-bpe" => plain(split(LLAMA3_PATTERN)),
        "qwen2" | "deepseek-r1-qwen" => {
            PreTokenizer { normalizer: json!({"type": "NFC"}), ..plain(split(QWEN2_PATTERN)) }
        }
        "tekken" => PreTokenizer { ignore_merges: true, ..plain(split(TEKKEN_PATTERN)) },
        _ => return None,
    })
}

/// Bytes as printable characters; `use_regex` cuts by GPT-2's pattern first.
fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn split(pattern: &str) -> Value {
    json!({
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ],
    })
}
