//! The checkpoint's `tokenizer:` section, and which tokenizer it asks for.
//!
//! The keys and their meaning are those of NeMo's `get_nmt_tokenizer` (v2.0.0).

use std::error::Error;

use serde::{Deserialize, Serialize};

use super::Tokenizer;
use super::huggingface::HuggingFaceTokenizer;
use super::sentencepiece::{SentencePieceModel, SentencePieceTokenizer};
use super::slow_llama::{ROLES, SlowFiles, SlowLlamaTokenizer, content_of};
use super::tiktoken::TiktokenTokenizer;
use crate::DataError;

/// The tag of a SentencePiece model's first field. Llama 3 folders can hold a tiktoken list under the same name.
const PROTO_PIECES_TAG: u8 = 0x0a;

/// The name of a template that is written without one.
const DEFAULT_TEMPLATE: &str = "default";

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
    /// With a folder that has both files: `tokenizer.json` if true, else `tokenizer.model`.
    pub use_fast: Option<bool>,
    /// Special tokens by role, or a list of added tokens.
    pub special_tokens: Option<SpecialTokensSpec>,
    /// Added tokens without a role.
    pub additional_special_tokens: Option<Vec<String>>,
    /// Special tokens of the model's own, such as `image_token`, which a chat template may name.
    pub extra_special_tokens: Option<serde_json::Map<String, serde_json::Value>>,
    /// The chat template, if the tokenizer carries one: Jinja source, or a list of named ones.
    pub chat_template: Option<serde_json::Value>,
}

impl TokenizerSpec {
    /// Every chat template with its name, in the order written; a template without a name is `default`.
    ///
    /// transformers takes `tool_use` for a conversation with tools where there is one, else `default`.
    pub fn chat_templates(&self) -> Vec<(&str, &str)> {
        use serde_json::Value;
        match self.chat_template.as_ref() {
            Some(Value::String(source)) => vec![(DEFAULT_TEMPLATE, source.as_str())],
            Some(Value::Array(named)) => named
                .iter()
                .filter_map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?)))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The special tokens that a chat template sees as variables: transformers' `special_tokens_map`, which since
    /// version 5 has the roles and the model's own tokens, and no list of further ones.
    pub fn template_variables(&self) -> Vec<(String, String)> {
        let mut variables: Vec<(String, String)> = Vec::new();
        for role in ROLES {
            if let Some(token) = self.special_token(role) {
                variables.push((role.to_owned(), token.to_owned()));
            }
        }
        for (name, token) in self.extra_special_tokens.iter().flatten() {
            variables.extend(content_of(token).map(|token| (name.clone(), token)));
        }
        variables
    }

    /// The token of a role, such as `bos_token`, as text.
    pub fn special_token(&self, role: &str) -> Option<&str> {
        self.special_tokens.as_ref().and_then(|tokens| tokens.named(role))
    }
}

impl TokenizerSpec {
    /// Takes the special tokens and the chat template that are not set from the JSON files of the folder that `type`
    /// names, where they can be read.
    ///
    /// # Errors
    /// When one of the files is damaged.
    pub fn with_folder_files(mut self, read_artifact: &ReadArtifact<'_>) -> Result<Self, DataError> {
        let (Some("huggingface"), None, Some(folder)) = (self.library.as_deref(), &self.model, &self.kind)
        else {
            return Ok(self);
        };
        let config = read_optional_json(&format!("{folder}/tokenizer_config.json"), read_artifact)?;
        let map = read_optional_json(&format!("{folder}/special_tokens_map.json"), read_artifact)?;
        let mut roles = match self.special_tokens.take() {
            Some(SpecialTokensSpec::Named(roles)) => roles,
            Some(list) => {
                self.special_tokens = Some(list);
                return Ok(self);
            }
            None => serde_json::Map::new(),
        };
        for role in ROLES {
            let token = [config.get(role), map.get(role)].into_iter().flatten().find_map(content_of);
            if let Some(token) = token.filter(|_| !roles.contains_key(role)) {
                roles.insert(role.into(), token.into());
            }
        }
        self.special_tokens = (!roles.is_empty()).then_some(SpecialTokensSpec::Named(roles));
        if self.chat_template.is_none() {
            self.chat_template = config.get("chat_template").cloned();
        }
        Ok(self)
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
        ("huggingface", _) => open_huggingface(spec, read_artifact),
        ("tiktoken", _) => {
            let (reference, json) = read(spec, "vocab_file", spec.vocab_file.as_deref(), read_artifact)?;
            Ok(Box::new(TiktokenTokenizer::from_json(&reference, &json, spec)?))
        }
        _ => Err(DataError::UnsupportedTokenizer { library: library.into(), kind: kind.into() }),
    }
}

/// Opens the tokenizer of a `tokenizer:` section that is about to be written, and says what is wrong with it.
/// `read_file` gets references as the section has them.
///
/// # Errors
/// As [`open_tokenizer`], and when the section has a value of the wrong type.
pub fn check_tokenizer(
    section: &serde_json::Value,
    read_file: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Result<(), DataError> {
    let spec = TokenizerSpec::deserialize(section).map_err(|error| DataError::BadTokenizerFile {
        reference: "model_config.yaml".into(),
        reason: error.to_string(),
    })?;
    let read = |reference: &str| read_file(reference).ok_or_else(|| "it is not in the checkpoint".into());
    open_tokenizer(&spec, &read).map(drop)
}

/// `model` names the file; without it `type` may be a folder whose files are in the checkpoint.
fn open_huggingface(
    spec: &TokenizerSpec,
    read_artifact: &ReadArtifact<'_>,
) -> Result<Box<dyn Tokenizer>, DataError> {
    let named = [spec.model.as_deref(), spec.kind.as_deref()].into_iter().flatten();
    let named = named.into_iter().find(|name| name.ends_with(".json") || name.ends_with(".model"));
    if let Some(reference) = named {
        let (reference, bytes) = read(spec, "model", Some(reference), read_artifact)?;
        let is_proto = reference.ends_with(".model");
        return if is_proto {
            open_slow_llama(spec, &reference, &bytes, read_artifact)
        } else {
            Ok(Box::new(HuggingFaceTokenizer::from_json(&reference, &bytes, spec)?))
        };
    }
    let folder = spec.kind.clone().unwrap_or_default();
    // The slow tokenizer is the original's default wherever its file is there.
    let names = if spec.use_fast == Some(true) {
        ["tokenizer.json", "tokenizer.model"]
    } else {
        ["tokenizer.model", "tokenizer.json"]
    };
    for name in names {
        let reference = format!("{folder}/{name}");
        match read_artifact(&reference) {
            Ok(bytes) if name.ends_with(".model") && bytes.first() == Some(&PROTO_PIECES_TAG) => {
                return open_slow_llama(spec, &reference, &bytes, read_artifact);
            }
            Ok(bytes) if name.ends_with(".json") => {
                return Ok(Box::new(HuggingFaceTokenizer::from_json(&reference, &bytes, spec)?));
            }
            _ => {}
        }
    }
    Err(DataError::NoHuggingFaceFiles { name: folder })
}

fn open_slow_llama(
    spec: &TokenizerSpec,
    reference: &str,
    bytes: &[u8],
    read_artifact: &ReadArtifact<'_>,
) -> Result<Box<dyn Tokenizer>, DataError> {
    let model = SentencePieceModel::from_bytes(reference, bytes)?;
    let folder = reference.rsplit_once('/').map_or("", |(folder, _)| folder);
    let beside = |name: &str| {
        let reference = if folder.is_empty() { format!("nemo:{name}") } else { format!("{folder}/{name}") };
        read_optional_json(&reference, read_artifact)
    };
    let files = SlowFiles {
        config: beside("tokenizer_config.json")?,
        special_tokens_map: beside("special_tokens_map.json")?,
        added_tokens: beside("added_tokens.json")?,
    };
    Ok(Box::new(SlowLlamaTokenizer::new(model, &files, spec)))
}

/// An object in a file that may be absent.
fn read_optional_json(
    reference: &str,
    read_artifact: &ReadArtifact<'_>,
) -> Result<serde_json::Map<String, serde_json::Value>, DataError> {
    let Ok(bytes) = read_artifact(reference) else { return Ok(serde_json::Map::new()) };
    serde_json::from_slice(&bytes).map_err(|error| DataError::BadTokenizerFile {
        reference: reference.into(),
        reason: error.to_string(),
    })
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
