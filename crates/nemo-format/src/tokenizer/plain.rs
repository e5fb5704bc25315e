//! Whether a folder's tokenizer is just the file that NeMo's converters use: a SentencePiece proto, or GPT-2's
//! vocabulary and merges.

use super::class::Class;
use super::fast::FastTokenizer;
use super::sentencepiece_model::{CONTROL, ModelProto, NORMAL, UNKNOWN};
use crate::huggingface::{HfTokenizer, Vocabulary};

const END_OF_TEXT: &str = "<|endoftext|>";

/// Whether the proto alone gives every text the ids that the folder gives it, special tokens in the text apart.
///
/// NeMo's SentencePiece wrapper finds no special tokens in a text. A folder without a chat template asks for none.
pub(super) fn is_only_the_proto(tokenizer: &HfTokenizer, fast: &FastTokenizer, proto: &[u8]) -> bool {
    let Ok(model) = ModelProto::parse(proto) else { return false };
    // A class's default tokens count only where some file names them.
    let has_json_files = [&tokenizer.config, &tokenizer.special_tokens_map, &tokenizer.added_tokens]
        .iter()
        .any(|file| !file.is_empty());
    if !has_json_files
        && tokenizer.templates.named.is_empty()
        && matches!(tokenizer.vocabulary, Vocabulary::SentencePiece(_))
    {
        return true;
    }
    let role_is = |role: &str, expected: Option<&str>| {
        fast.stated.roles.get(role).is_none_or(|token| Some(token.content.as_str()) == expected)
    };
    let control = |wanted: &str| {
        model
            .pieces
            .iter()
            .find(|piece| piece.kind == CONTROL && piece.text == wanted)
            .map(|piece| piece.text)
    };
    let (bos, eos) = (control(model.bos_piece), control(model.eos_piece));
    let unk = model.pieces.iter().find(|piece| piece.kind == UNKNOWN).map(|piece| piece.text);
    tokenizer.templates.named.is_empty()
        && fast.added.iter().all(|(id, token)| {
            let is_plain = !token.lstrip && !token.rstrip && !token.single_word;
            is_plain
                && model.piece(*id).is_some_and(|piece| piece.text == token.content && piece.kind != NORMAL)
        })
        && role_is("bos_token", bos)
        && role_is("eos_token", eos)
        && role_is("unk_token", unk)
        && same_pieces(fast, &model)
}

/// Whether a `tokenizer.json` and a proto number the same tokens alike.
pub(super) fn same_vocabulary(fast: &FastTokenizer, proto: &[u8]) -> bool {
    ModelProto::parse(proto).is_ok_and(|model| same_pieces(fast, &model))
}

fn same_pieces(fast: &FastTokenizer, model: &ModelProto<'_>) -> bool {
    let vocab = fast.vocab();
    let same = |(id, text): (u64, &str)| vocab.get(text) == Some(&id);
    vocab.len() == model.pieces.len() && (0..).zip(model.pieces.iter().map(|piece| piece.text)).all(same)
}

/// Whether the tokenizer is GPT-2's with `<|endoftext|>` for its one special token.
pub(super) fn is_only_gpt2(tokenizer: &HfTokenizer, fast: &FastTokenizer) -> bool {
    let adds_space =
        tokenizer.config.get("add_prefix_space").and_then(serde_json::Value::as_bool) == Some(true);
    fast.class == Class::Gpt2
        && !adds_space
        && tokenizer.templates.named.is_empty()
        && fast.vocab().contains_key(END_OF_TEXT)
        && fast.added.iter().all(|(_, token)| token.content == END_OF_TEXT && !token.lstrip && !token.rstrip)
        && ["bos_token", "eos_token", "unk_token"]
            .iter()
            .all(|role| fast.stated.roles.get(*role).is_some_and(|token| token.content == END_OF_TEXT))
}
