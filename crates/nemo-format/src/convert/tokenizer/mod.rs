//! The tokenizer that travels with a converted model: an artifact and the `tokenizer` section that names it.
//!
//! Nothing is tokenized here.

mod bpe;
mod pre_tokenizer;
pub(super) mod proto;
mod sentencepiece;
#[cfg(test)]
mod tests;

use hydra_config::Node;

use crate::huggingface::{HfTokenizer, TokenizerKind};
use crate::{Artifact, FormatError, GgufFile, GgufValue};

/// The artifacts and the section of `model_config.yaml` that refers to them.
#[derive(Clone, Debug)]
pub(super) struct TokenizerPart {
    pub(super) artifact: Artifact,
    /// The merges of a GPT-2 tokenizer.
    pub(super) merges: Option<Artifact>,
    pub(super) section: Node,
}

/// Packs the tokenizer of a Hugging Face folder. `type_name` becomes `type`, which NeMo reads as a hub id.
pub(super) fn from_files(tokenizer: HfTokenizer, type_name: &str) -> TokenizerPart {
    let (name, kind) = match tokenizer.kind {
        TokenizerKind::SentencePiece => ("tokenizer.model", tokenizer.kind),
        TokenizerKind::HuggingFace => ("tokenizer.json", tokenizer.kind),
        TokenizerKind::Gpt2Bpe => ("vocab.json", tokenizer.kind),
    };
    let artifact = Artifact { name: name.into(), bytes: tokenizer.bytes };
    let merges = tokenizer.merges.map(|bytes| Artifact { name: "merges.txt".into(), bytes });
    let mut section = section(kind, type_name, &artifact, &tokenizer.special_tokens);
    if let Some(merges) = &merges {
        section.set("merge_file", Node::Str(format!("nemo:{}", merges.member_name())));
    }
    if let Some(template) = tokenizer.chat_template {
        section.set("chat_template", Node::Str(template));
    }
    TokenizerPart { artifact, merges, section }
}

/// Rebuilds the tokenizer that a GGUF file carries in its metadata.
pub(super) fn from_gguf(file: &GgufFile) -> Result<TokenizerPart, FormatError> {
    let vocab = GgufVocab::read(file)?;
    let model = file.require("tokenizer.ggml.model", GgufValue::as_str)?;
    let (kind, name, bytes) = match model {
        "gpt2" => (TokenizerKind::HuggingFace, "tokenizer.json", bpe::tokenizer_json(file, &vocab)?),
        "llama" => {
            (TokenizerKind::SentencePiece, "tokenizer.model", sentencepiece::model_proto(file, &vocab)?)
        }
        other => {
            return Err(FormatError::Unsupported {
                what: format!("tokenizer.ggml.model `{other}` in `{}`", file.path().display()),
                hint: "supported models are `gpt2` and `llama`; pass the original tokenizer instead".into(),
            });
        }
    };
    let type_name = file.optional("general.name", GgufValue::as_str)?.unwrap_or("gguf");
    let artifact = Artifact { name: name.into(), bytes };
    let mut special_tokens = Vec::new();
    for (key, id) in [
        ("bos_token", vocab.bos_id),
        ("eos_token", vocab.eos_id),
        ("unk_token", vocab.unk_id),
        ("pad_token", vocab.pad_id),
    ] {
        if let Some(token) = id.and_then(|id| vocab.tokens.get(id as usize)) {
            special_tokens.push((key.to_owned(), (*token).to_owned()));
        }
    }
    let mut section = section(kind, type_name, &artifact, &special_tokens);
    if let Some(template) = file.optional("tokenizer.chat_template", GgufValue::as_str)? {
        section.set("chat_template", Node::from(template));
    }
    Ok(TokenizerPart { artifact, merges: None, section })
}

/// Refuses a tokenizer with more tokens than the embedding table has rows: it belongs to another model.
pub(super) fn check_size(config: &Node, artifacts: &[Artifact], num_rows: u64) -> Result<(), FormatError> {
    for key in ["tokenizer.model", "tokenizer.vocab_file"] {
        let Some(member) = config.get(key).and_then(Node::as_str).and_then(|text| text.strip_prefix("nemo:"))
        else {
            continue;
        };
        let Some(artifact) = artifacts.iter().find(|artifact| artifact.member_name() == member) else {
            continue;
        };
        let num_tokens = num_tokens(&artifact.bytes);
        if num_tokens > num_rows {
            let reason = format!(
                "it has {num_rows} rows, but the tokenizer `{}` has {num_tokens} tokens and so belongs to another model; pass \
                 the right one with `--tokenizer`",
                artifact.name
            );
            return Err(FormatError::bad_tensor("model.embedding.word_embeddings.weight", reason));
        }
    }
    Ok(())
}

/// Tokens of the model itself. Added ones do not count: published files have some that the model cannot embed.
fn num_tokens(bytes: &[u8]) -> u64 {
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) else {
        return proto::fields(bytes).filter(|(number, _)| *number == 1).count() as u64;
    };
    let vocab = document.get("model").and_then(|model| model.get("vocab")).unwrap_or(&document);
    let len = vocab.as_object().map(serde_json::Map::len).or(vocab.as_array().map(Vec::len));
    len.unwrap_or(0) as u64
}

fn section(kind: TokenizerKind, type_name: &str, artifact: &Artifact, special: &[(String, String)]) -> Node {
    let model = Node::Str(format!("nemo:{}", artifact.member_name()));
    let mut section = Node::empty_map();
    match kind {
        TokenizerKind::SentencePiece => {
            section.set("library", Node::from("sentencepiece"));
            section.set("type", Node::Null);
            section.set("model", model);
            section.set("vocab_file", Node::Null);
            section.set("merge_file", Node::Null);
            section.set("delimiter", Node::Null);
            section.set("sentencepiece_legacy", Node::Bool(false));
        }
        TokenizerKind::Gpt2Bpe => {
            section.set("library", Node::from("megatron"));
            section.set("type", Node::from("GPT2BPETokenizer"));
            section.set("model", Node::Null);
            section.set("vocab_file", model);
            section.set("merge_file", Node::Null);
            section.set("delimiter", Node::Null);
            section.set("sentencepiece_legacy", Node::Bool(false));
        }
        TokenizerKind::HuggingFace => {
            section.set("library", Node::from("huggingface"));
            section.set("type", Node::from(type_name));
            section.set("model", model);
            section.set("vocab_file", Node::Null);
            section.set("merge_file", Node::Null);
            section.set("use_fast", Node::Bool(true));
            section.set("special_tokens", Node::empty_map());
            for (key, token) in special {
                section.set(&format!("special_tokens.{key}"), Node::from(token.as_str()));
            }
        }
    }
    section
}

/// What a GGUF token is; the numbers are SentencePiece's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The vocabulary of a GGUF file, its ids checked.
struct GgufVocab<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<TokenKind>,
    bos_id: Option<u64>,
    eos_id: Option<u64>,
    unk_id: Option<u64>,
    pad_id: Option<u64>,
}

impl<'a> GgufVocab<'a> {
    fn read(file: &'a GgufFile) -> Result<Self, FormatError> {
        let tokens = strings(file, "tokenizer.ggml.tokens")?;
        let key = "tokenizer.ggml.token_type";
        let kinds = match file.optional(key, GgufValue::as_array)? {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(values) => values
                .iter()
                .map(|value| token_kind(value).ok_or_else(|| file.bad_key(key, "has a value outside 1 to 6")))
                .collect::<Result<_, _>>()?,
        };
        if kinds.len() != tokens.len() {
            let problem = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
            return Err(file.bad_key(key, &problem));
        }
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = file.optional(&key, GgufValue::as_u64)?;
            match id.filter(|&id| id >= tokens.len() as u64) {
                Some(id) => {
                    Err(file.bad_key(&key, &format!("is {id}, the vocabulary has {} tokens", tokens.len())))
                }
                None => Ok(id),
            }
        };
        let (bos_id, eos_id, unk_id, pad_id) = (id("bos")?, id("eos")?, id("unknown")?, id("padding")?);
        Ok(Self { bos_id, eos_id, unk_id, pad_id, tokens, kinds })
    }
}

fn token_kind(value: &GgufValue) -> Option<TokenKind> {
    Some(match value.as_u64()? {
        1 => TokenKind::Normal,
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => return None,
    })
}

/// An array of strings.
fn strings<'a>(file: &'a GgufFile, key: &str) -> Result<Vec<&'a str>, FormatError> {
    let values = file.require(key, GgufValue::as_array)?;
    let texts: Option<Vec<&str>> = values.iter().map(GgufValue::as_str).collect();
    texts.ok_or_else(|| file.bad_key(key, "is not a list of strings"))
}
