//! A SentencePiece model proto, rebuilt from a GGUF file's `llama` tokenizer.
//!
//! GGUF keeps pieces, scores and kinds exactly as the proto had them, so the result encodes as the original. Only the
//! fields of `sentencepiece_model.proto` that encoding and decoding read are written; field numbers are from there.

use super::{GgufVocab, TokenKind};
use crate::{FormatError, GgufFile, GgufValue};

const VARINT: u64 = 0;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;
/// `TrainerSpec.ModelType.BPE`.
const MODEL_TYPE_BPE: u64 = 2;

/// Serialises the model.
pub(super) fn model_proto(file: &GgufFile, vocab: &GgufVocab<'_>) -> Result<Vec<u8>, FormatError> {
    let key = "tokenizer.ggml.scores";
    let scores = file.require(key, GgufValue::as_array)?;
    if scores.len() != vocab.tokens.len() {
        let problem = format!("has {} entries for {} tokens", scores.len(), vocab.tokens.len());
        return Err(file.bad_key(key, &problem));
    }
    let mut model = Vec::new();
    for ((token, kind), score) in vocab.tokens.iter().zip(&vocab.kinds).zip(scores) {
        let GgufValue::F32(score) = score else { return Err(file.bad_key(key, "is not a list of f32")) };
        let mut piece = Vec::new();
        bytes(&mut piece, 1, token.as_bytes());
        varint(&mut piece, (2 << 3) | FIXED32);
        piece.extend_from_slice(&score.to_le_bytes());
        number(&mut piece, 3, *kind as u64);
        bytes(&mut model, 1, &piece);
    }
    let mut trainer = Vec::new();
    number(&mut trainer, 3, MODEL_TYPE_BPE);
    number(&mut trainer, 4, vocab.tokens.len() as u64);
    number(&mut trainer, 35, u64::from(vocab.kinds.contains(&TokenKind::Byte)));
    // A negative id means that there is none; protobuf writes int32 as its 64-bit two's complement.
    for (field, id) in
        [(40, vocab.unk_id.or(unknown_id(vocab))), (41, vocab.bos_id), (42, vocab.eos_id), (43, vocab.pad_id)]
    {
        number(&mut trainer, field, id.unwrap_or(u64::MAX));
    }
    bytes(&mut model, 2, &trainer);
    let flag = |key: &str, default: bool| {
        file.optional(key, GgufValue::as_bool).map(|value| u64::from(value.unwrap_or(default)))
    };
    let mut normalizer = Vec::new();
    bytes(&mut normalizer, 1, b"identity");
    number(&mut normalizer, 3, flag("tokenizer.ggml.add_space_prefix", true)?);
    number(&mut normalizer, 4, flag("tokenizer.ggml.remove_extra_whitespaces", false)?);
    number(&mut normalizer, 5, 1);
    bytes(&mut model, 3, &normalizer);
    Ok(model)
}

fn unknown_id(vocab: &GgufVocab<'_>) -> Option<u64> {
    vocab.kinds.iter().position(|kind| *kind == TokenKind::Unknown).map(|id| id as u64)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, (field << 3) | VARINT);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    varint(out, (field << 3) | LENGTH_DELIMITED);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}
