//! Tokenizers in Hugging Face's `tokenizer.json`, and GPT-2's pair of vocabulary and merges.
//!
//! A thin face over the `tokenizers` crate. No BOS or EOS is ever added, decoding keeps every special token.

use std::collections::{HashMap, HashSet};
use std::error::Error;

use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::{SpecialTokens, Tokenizer, TokenizerSpec};
use crate::DataError;

const SPACE_SYMBOL: &str = "\u{2581}";

/// How the text of a piece stands for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PieceCoding {
    /// GPT-2: every character stands for one byte.
    ByteLevel,
    /// Llama: `▁` is a space, `<0xNN>` a byte.
    Metaspace,
    /// The piece is its own text.
    Plain,
}

/// A tokenizer of the `tokenizers` crate.
pub struct HuggingFaceTokenizer {
    inner: tokenizers::Tokenizer,
    coding: PieceCoding,
    added: HashMap<u32, String>,
    /// Those of them that are marked as special.
    marked: HashSet<u32>,
    byte_of: HashMap<char, u8>,
    special: SpecialTokens,
}

impl HuggingFaceTokenizer {
    /// Reads a `tokenizer.json`; `spec` says which tokens are BOS, EOS and so on.
    ///
    /// # Errors
    /// When the file is damaged or a special token is not in it.
    pub fn from_json(reference: &str, json: &[u8], spec: &TokenizerSpec) -> Result<Self, DataError> {
        let mut inner =
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| damaged(reference, &*error))?;
        if let Some(tokens) = &spec.additional_special_tokens {
            // One that is there keeps how it is found in a text.
            let known: HashSet<String> =
                inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
            let tokens = tokens.iter().filter(|token| !known.contains(*token));
            let tokens: Vec<_> = tokens.map(|token| AddedToken::from(token.clone(), true)).collect();
            inner.add_special_tokens(tokens).map_err(|error| damaged(reference, &*error))?;
        }
        let id_of = |role: &'static str| match spec.special_token(role) {
            None => Ok(None),
            Some(token) => match inner.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                None => Err(DataError::BadTokenizerSetting {
                    key: "special_tokens",
                    reason: format!("`{role}` is `{token}`, which `{reference}` does not have"),
                }),
            },
        };
        let special = SpecialTokens {
            bos: id_of("bos_token")?,
            eos: id_of("eos_token")?,
            pad: id_of("pad_token")?,
            unk: id_of("unk_token")?,
        };
        Self::new(reference, inner, special)
    }

    /// Builds GPT-2's byte-level BPE from `vocab.json` and `merges.txt`; `<|endoftext|>` is BOS, EOS and unknown.
    ///
    /// # Errors
    /// When a file is damaged.
    pub fn from_gpt2_files(reference: &str, vocab: &[u8], merges: &[u8]) -> Result<Self, DataError> {
        const END_OF_TEXT: &str = "<|endoftext|>";
        let vocab: serde_json::Map<String, Value> =
            serde_json::from_slice(vocab).map_err(|error| damaged(reference, &error))?;
        let merges = std::str::from_utf8(merges).map_err(|error| damaged(reference, &error))?;
        let merges: Vec<&str> =
            merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
        let end_of_text = vocab.get(END_OF_TEXT).and_then(Value::as_u64);
        let added = end_of_text.map(|id| {
            json!({"id": id, "content": END_OF_TEXT, "special": true, "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false})
        });
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": added.into_iter().collect::<Vec<_>>(),
            "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        });
        let inner = tokenizers::Tokenizer::from_bytes(file.to_string())
            .map_err(|error| damaged(reference, &*error))?;
        let end_of_text = inner.token_to_id(END_OF_TEXT);
        let special = SpecialTokens { bos: end_of_text, eos: end_of_text, pad: None, unk: end_of_text };
        Self::new(reference, inner, special)
    }

    fn new(
        reference: &str,
        mut inner: tokenizers::Tokenizer,
        special: SpecialTokens,
    ) -> Result<Self, DataError> {
        // A tokenizer.json may carry the settings of a training run; NeMo never truncates or pads here.
        inner.with_truncation(None).map_err(|error| damaged(reference, &*error))?;
        inner.with_padding(None);
        let decoder =
            serde_json::to_value(inner.get_decoder()).map_err(|error| damaged(reference, &error))?;
        let tokens = inner.get_added_tokens_decoder();
        let marked = tokens.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let added = tokens.into_iter().map(|(id, token)| (id, token.content)).collect();
        Ok(Self {
            coding: piece_coding(&decoder),
            added,
            marked,
            byte_of: byte_level_alphabet(),
            inner,
            special,
        })
    }

    fn piece(&self, id: u32) -> Result<String, DataError> {
        let unknown = || DataError::UnknownTokenId { id, vocab_size: self.vocab_size() };
        self.inner.id_to_token(id).ok_or_else(unknown)
    }
}

impl Tokenizer for HuggingFaceTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|source| DataError::Tokenizers { action: "encode", source })?;
        Ok(encoding.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        // The crate leaves unknown ids out without a word.
        for &id in ids {
            self.piece(id)?;
        }
        self.inner.decode(ids, false).map_err(|source| DataError::Tokenizers { action: "decode", source })
    }

    fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
        if let Some(content) = self.added.get(&id) {
            return Ok(content.clone().into_bytes());
        }
        let piece = self.piece(id)?;
        Ok(match self.coding {
            PieceCoding::Plain => piece.into_bytes(),
            PieceCoding::Metaspace => match byte_of_piece(&piece) {
                Some(byte) => vec![byte],
                None => piece.replace(SPACE_SYMBOL, " ").into_bytes(),
            },
            PieceCoding::ByteLevel => {
                let bytes: Option<Vec<u8>> = piece.chars().map(|c| self.byte_of.get(&c).copied()).collect();
                bytes.unwrap_or_else(|| piece.into_bytes())
            }
        })
    }

    fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn is_special(&self, id: u32) -> bool {
        self.added.contains_key(&id)
    }

    fn is_left_out(&self, id: u32) -> bool {
        self.marked.contains(&id)
    }

    fn special(&self) -> &SpecialTokens {
        &self.special
    }
}

fn damaged(reference: &str, error: &dyn Error) -> DataError {
    DataError::BadTokenizerFile { reference: reference.into(), reason: error.to_string() }
}

/// The byte of a piece `<0xNN>`.
pub(crate) fn byte_of_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Reads the coding off the decoder, which may be a sequence of steps.
fn piece_coding(decoder: &Value) -> PieceCoding {
    let kind = decoder.get("type").and_then(Value::as_str).unwrap_or("");
    match kind {
        "ByteLevel" => PieceCoding::ByteLevel,
        "Metaspace" | "ByteFallback" => PieceCoding::Metaspace,
        "Replace" if decoder.pointer("/pattern/String").and_then(Value::as_str) == Some(SPACE_SYMBOL) => {
            PieceCoding::Metaspace
        }
        "Sequence" => {
            let steps = decoder.get("decoders").and_then(Value::as_array);
            let mut codings = steps.into_iter().flatten().map(piece_coding);
            codings.find(|&coding| coding != PieceCoding::Plain).unwrap_or(PieceCoding::Plain)
        }
        _ => PieceCoding::Plain,
    }
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 upward in order.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0u8..=255).filter(|&byte| !is_printable(byte)).zip('\u{100}'..);
    let printable = (0u8..=255).filter(|&byte| is_printable(byte)).map(|byte| (char::from(byte), byte));
    printable.chain(others.map(|(byte, c)| (c, byte))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tokenizer::open_tokenizer;

    fn fixture(name: &str) -> Vec<u8> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizers");
        std::fs::read(root.join(name)).unwrap()
    }

    fn open(spec: Value) -> Result<Box<dyn Tokenizer>, DataError> {
        let spec: TokenizerSpec = serde_json::from_value(spec).unwrap();
        open_tokenizer(&spec, &|reference| {
            let name = reference.strip_prefix("nemo:").ok_or("not in the archive")?;
            Ok(fixture(name))
        })
    }

    fn llama() -> Box<dyn Tokenizer> {
        open(json!({
            "library": "huggingface", "type": null, "model": "nemo:hf_llama/tokenizer.json",
            "special_tokens": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": null},
        }))
        .unwrap()
    }

    fn gpt2() -> Box<dyn Tokenizer> {
        open(json!({
            "library": "megatron", "type": "GPT2BPETokenizer",
            "vocab_file": "nemo:gpt2_bpe/vocab.json", "merge_file": "nemo:gpt2_bpe/merges.txt",
        }))
        .unwrap()
    }

    fn ids(value: &Value) -> Vec<u32> {
        serde_json::from_value(value.clone()).unwrap()
    }

    /// Encoding, decoding and joined bytes of every row.
    fn check_rows(tokenizer: &dyn Tokenizer, rows: &Value, ids_key: &str, decode_key: &str) {
        let rows = rows.as_array().unwrap();
        assert!(rows.len() >= 32);
        for row in rows {
            let text = row["text"].as_str().unwrap();
            let expected = ids(&row[ids_key]);
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
            let decoded = tokenizer.decode(&expected).unwrap();
            if let Some(reference) = row[decode_key].as_str() {
                assert_eq!(decoded, reference, "{text:?}");
            }
            let bytes: Vec<u8> = expected.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
            assert_eq!(String::from_utf8_lossy(&bytes), decoded, "{text:?}");
        }
    }

    #[test]
    fn llama_fast_equals_the_python_package() {
        let reference: Value = serde_json::from_slice(&fixture("hf_llama.ref.json")).unwrap();
        let tokenizer = llama();
        check_rows(&*tokenizer, &reference["fast"], "ids_no_special", "");
        check_rows(&*tokenizer, &reference["nemo_auto_wrapper_fast"]["cases"], "ids", "");
        for row in reference["fast"].as_array().unwrap() {
            assert_eq!(tokenizer.decode(&ids(&row["ids"])).unwrap(), row["decode"]);
        }
        assert_eq!(tokenizer.vocab_size(), 420);
        let special = SpecialTokens { bos: Some(1), eos: Some(2), pad: None, unk: Some(0) };
        assert_eq!(*tokenizer.special(), special);
        assert_eq!(tokenizer.token_bytes(2).unwrap(), b"</s>");
    }

    #[test]
    fn gpt2_equals_the_python_package() {
        let reference: Value = serde_json::from_slice(&fixture("gpt2_bpe/ref.json")).unwrap();
        let tokenizer = gpt2();
        for kind in ["slow", "fast"] {
            check_rows(&*tokenizer, &reference[kind]["cases"], "ids", "decode_noclean");
        }
        assert_eq!(tokenizer.vocab_size(), 420);
        assert_eq!(tokenizer.special().eos, Some(0));
        assert_eq!(tokenizer.encode("a<|endoftext|>").unwrap(), [65, 0]);
        assert_eq!(tokenizer.token_bytes(0).unwrap(), b"<|endoftext|>");
    }

    #[test]
    fn unknown_ids_are_errors() {
        for tokenizer in [llama(), gpt2()] {
            let error = tokenizer.decode(&[1, 420]).unwrap_err();
            assert_eq!(error.to_string(), "token id 420 is not in the tokenizer's vocabulary of 420");
            assert!(tokenizer.token_bytes(420).is_err());
        }
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let error = |spec| open(spec).err().unwrap();
        insta::assert_snapshot!(error(json!({"library": "byte-level"})), @"tokenizer library `byte-level` with type `` is not supported: the checkpoint's `tokenizer.library` must be `sentencepiece`, `huggingface`, `tiktoken`, or `megatron` with type `GPTSentencePieceTokenizer` or `GPT2BPETokenizer`");
        insta::assert_snapshot!(error(json!({"library": "megatron", "type": "BertWordPieceCase"})), @"tokenizer library `megatron` with type `BertWordPieceCase` is not supported: the checkpoint's `tokenizer.library` must be `sentencepiece`, `huggingface`, `tiktoken`, or `megatron` with type `GPTSentencePieceTokenizer` or `GPT2BPETokenizer`");
        insta::assert_snapshot!(error(json!({"library": "tiktoken"})), @"tokenizer library `tiktoken` needs the key `tokenizer.vocab_file`");
        insta::assert_snapshot!(error(json!({"library": "huggingface", "type": "meta-llama/Llama-3"})), @"the checkpoint has no tokenizer files of `meta-llama/Llama-3`: put them in with `aligner-gen convert-checkpoint --input CHECKPOINT --output NEW.nemo --tokenizer FOLDER`, or name the folder with `++model.tokenizer.type=FOLDER`");
        insta::assert_snapshot!(error(json!({"library": "sentencepiece"})), @"tokenizer library `sentencepiece` needs the key `tokenizer.model`");
        insta::assert_snapshot!(error(json!({"library": "sentencepiece", "model": "/gone.model"})), @"cannot read the tokenizer file `/gone.model`");
        insta::assert_snapshot!(error(json!({"library": "sentencepiece", "model": "nemo:llama_bpe.model", "sentencepiece_legacy": false, "special_tokens": ["[EOS]"]})), @"tokenizer key `special_tokens`: special tokens can only be added with `sentencepiece_legacy: true`");
        insta::assert_snapshot!(error(json!({"library": "huggingface", "model": "nemo:hf_llama/tokenizer.json", "special_tokens": {"eos_token": "<eos>"}})), @"tokenizer key `special_tokens`: `eos_token` is `<eos>`, which `nemo:hf_llama/tokenizer.json` does not have");
    }
}
