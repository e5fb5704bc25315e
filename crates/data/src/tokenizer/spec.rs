//! The checkpoint's `tokenizer:` section, and which tokenizer it asks for.
//!
//! The keys and their meaning are those of NeMo's `get_nmt_tokenizer` (v2.0.0).

use std::error::Error;

use serde::{Deserialize, Serialize};

use super::Tokenizer;
use super::huggingface::HuggingFaceTokenizer;
use super::sentencepiece::{SentencePieceModel, SentencePieceTokenizer};
use crate::DataError;

/// `tokenizer.special_tokens`: names to tokens, or tokens alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SpecialTokensSpec {
    /// Tokens without a role.
    List(Vec<String>),
    /// `bos_token`, `eos_token` … to token, in order.
    Named(serde_json::Map<String, serde_json::Value>),
}

impl SpecialTokensSpec {
    /// The token of a role, such as `eos_token`.
    pub fn named(&self, role: &str) -> Option<&str> {
        match self {
            Self::List(_) => None,
            Self::Named(tokens) => tokens.get(role).and_then(serde_json::Value::as_str),
        }
    }

    /// Every token, in the order written.
    pub fn tokens(&self) -> Vec<&str> {
        match self {
            Self::List(tokens) => tokens.iter().map(String::as_str).collect(),
            Self::Named(tokens) => tokens.values().filter_map(serde_json::Value::as_str).collect(),
        }
    }
}

/// The `tokenizer:` section of a checkpoint's configuration. Other keys are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizerSpec {
    /// `sentencepiece`, `huggingface`, `megatron` …
    pub library: Option<String>,
    /// The class of tokenizer within the library, or a Hugging Face name.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Reference to the model file, such as `nemo:abc_tokenizer.model`.
    pub model: Option<String>,
    /// Reference to a vocabulary file.
    pub vocab_file: Option<String>,
    /// Reference to a merges file.
    pub merge_file: Option<String>,
    /// NeMo's older SentencePiece wrapper; absent means the default of the library.
    pub sentencepiece_legacy: Option<bool>,
    /// Accepted and without effect: there is one implementation.
    pub use_fast: Option<bool>,
    /// Special tokens by role, or a list of added tokens.
    pub special_tokens: Option<SpecialTokensSpec>,
    /// Added tokens without a role.
    pub additional_special_tokens: Option<Vec<String>>,
    /// The chat template, if the tokenizer carries one. Only a Jinja string is used.
    pub chat_template: Option<serde_json::Value>,
}

impl TokenizerSpec {
    /// The chat template as Jinja source.
    pub fn jinja_template(&self) -> Option<&str> {
        self.chat_template.as_ref().and_then(serde_json::Value::as_str)
    }

    /// The token of a role, such as `bos_token`, as text.
    pub fn special_token(&self, role: &str) -> Option<&str> {
        self.special_tokens.as_ref().and_then(|tokens| tokens.named(role))
    }
}

/// Reads a tokenizer file by its reference as the checkpoint writes it.
pub type ReadArtifact<'a> = dyn Fn(&str) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> + 'a;

/// Opens the tokenizer that `spec` describes. `read_artifact` gets references as written, `nemo:` included.
///
/// # Errors
/// When the library is not supported, a key or file is missing, or a file is damaged.
pub fn open_tokenizer(
    spec: &TokenizerSpec,
    read_artifact: &ReadArtifact<'_>,
) -> Result<Box<dyn Tokenizer>, DataError> {
    let library = spec.library.as_deref().unwrap_or("");
    let kind = spec.kind.as_deref().unwrap_or("");
    match (library, kind) {
        ("sentencepiece", _) => {
            open_sentencepiece(spec, spec.sentencepiece_legacy.unwrap_or(true), read_artifact)
        }
        ("megatron", "GPTSentencePieceTokenizer") => {
            open_sentencepiece(spec, spec.sentencepiece_legacy.unwrap_or(false), read_artifact)
        }
        ("megatron", "GPT2BPETokenizer") => {
            let (_, vocab) = read(spec, "vocab_file", spec.vocab_file.as_deref(), read_artifact)?;
            let (reference, merges) = read(spec, "merge_file", spec.merge_file.as_deref(), read_artifact)?;
            Ok(Box::new(HuggingFaceTokenizer::from_gpt2_files(&reference, &vocab, &merges)?))
        }
        ("huggingface", _) => {
            let named = [spec.model.as_deref(), spec.kind.as_deref()].into_iter().flatten();
            let reference = named.into_iter().find(|reference| reference.ends_with(".json"));
            let Some(reference) = reference else {
                return Err(DataError::UnsupportedTokenizer { library: library.into(), kind: kind.into() });
            };
            let (reference, json) = read(spec, "model", Some(reference), read_artifact)?;
            Ok(Box::new(HuggingFaceTokenizer::from_json(&reference, &json, spec)?))
        }
        _ => Err(DataError::UnsupportedTokenizer { library: library.into(), kind: kind.into() }),
    }
}

fn open_sentencepiece(
    spec: &TokenizerSpec,
    legacy: impl Into<Wrapper>,
    read_artifact: &ReadArtifact<'_>,
) -> Result<Box<dyn Tokenizer>, DataError> {
    let (reference, bytes) = read(spec, "model", spec.model.as_deref(), read_artifact)?;
    let model = SentencePieceModel::from_bytes(&reference, &bytes)?;
    Ok(Box::new(match legacy.into() {
        Wrapper::Legacy => SentencePieceTokenizer::legacy(model, spec),
        Wrapper::Plain => SentencePieceTokenizer::new(model, spec)?,
    }))
}

/// Which of NeMo's two behaviours of its SentencePiece wrapper.
enum Wrapper {
    Plain,
    Legacy,
}

impl From<bool> for Wrapper {
    fn from(legacy: bool) -> Self {
        if legacy { Self::Legacy } else { Self::Plain }
    }
}

fn read(
    spec: &TokenizerSpec,
    key: &'static str,
    reference: Option<&str>,
    read_artifact: &ReadArtifact<'_>,
) -> Result<(String, Vec<u8>), DataError> {
    let Some(reference) = reference else {
        let library = spec.library.clone().unwrap_or_default();
        return Err(DataError::MissingTokenizerKey { library, key });
    };
    let bytes = read_artifact(reference)
        .map_err(|source| DataError::ReadTokenizerFile { reference: reference.into(), source })?;
    Ok((reference.into(), bytes))
}
