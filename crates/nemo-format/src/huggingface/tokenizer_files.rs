//! The tokenizer of a Hugging Face folder: which file holds it, its special tokens, its chat template.
//!
//! Nothing is tokenized here; files travel as they are.

use std::path::Path;

use serde_json::Value;

use super::{read_json, read_optional};
use crate::FormatError;

/// A tokenizer found beside a model.
#[derive(Clone, Debug)]
pub(crate) struct HfTokenizer {
    pub(crate) kind: TokenizerKind,
    pub(crate) bytes: Vec<u8>,
    /// The second file of a GPT-2 tokenizer.
    pub(crate) merges: Option<Vec<u8>>,
    /// `bos_token`, `eos_token`, … with their text; only those that are set.
    pub(crate) special_tokens: Vec<(String, String)>,
    pub(crate) chat_template: Option<String>,
}

/// Which library reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenizerKind {
    /// `tokenizer.model`, a SentencePiece proto.
    SentencePiece,
    /// `tokenizer.json` of the tokenizers library.
    HuggingFace,
    /// `vocab.json` and `merges.txt` of GPT-2.
    Gpt2Bpe,
}

const SPECIAL_TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];
/// The tag of a model proto's first field. Llama 3 folders can hold a tiktoken list under the same name.
const PROTO_PIECES_TAG: u8 = 0x0a;

impl HfTokenizer {
    /// Looks into a folder: `tokenizer.model`, else `tokenizer.json`, else `vocab.json` with `merges.txt`. `None` when
    /// it has none of them.
    pub(crate) fn open_folder(folder: &Path) -> Result<Option<Self>, FormatError> {
        let proto = read_optional(&folder.join("tokenizer.model"))?;
        let proto = proto.filter(|bytes| bytes.first() == Some(&PROTO_PIECES_TAG));
        let mut merges = None;
        let (kind, bytes) = if let Some(bytes) = proto {
            (TokenizerKind::SentencePiece, bytes)
        } else if let Some(bytes) = read_optional(&folder.join("tokenizer.json"))? {
            (TokenizerKind::HuggingFace, bytes)
        } else {
            merges = read_optional(&folder.join("merges.txt"))?;
            match read_optional(&folder.join("vocab.json"))?.filter(|_| merges.is_some()) {
                Some(bytes) => (TokenizerKind::Gpt2Bpe, bytes),
                None => return Ok(None),
            }
        };
        let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let map = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
        let mut special_tokens = Vec::new();
        for key in SPECIAL_TOKENS {
            if let Some(text) = token_text(config.get(key)).or_else(|| token_text(map.get(key))) {
                special_tokens.push((key.to_owned(), text));
            }
        }
        let chat_template = match read_optional(&folder.join("chat_template.jinja"))? {
            Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            None => template_text(config.get("chat_template")),
        };
        Ok(Some(Self { kind, bytes, merges, special_tokens, chat_template }))
    }

    /// Opens what the user names: a folder, a `tokenizer.json` with the files beside it, or a SentencePiece proto.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let unsupported = || FormatError::Unsupported {
            what: format!("the tokenizer `{}`", path.display()),
            hint: "give a folder, a `tokenizer.json` or a SentencePiece `.model` file".into(),
        };
        if path.is_dir() {
            return Self::open_folder(path)?.ok_or_else(unsupported);
        }
        let bytes = std::fs::read(path).map_err(|source| FormatError::io("read", path, source))?;
        if bytes.first() == Some(&PROTO_PIECES_TAG) {
            let kind = TokenizerKind::SentencePiece;
            return Ok(Self { kind, bytes, merges: None, special_tokens: Vec::new(), chat_template: None });
        }
        if serde_json::from_slice::<Value>(&bytes).ok().and_then(|json| json.get("model").cloned()).is_none()
        {
            return Err(unsupported());
        }
        let mut tokenizer = match path.parent().map(Self::open_folder).transpose()?.flatten() {
            Some(beside) => beside,
            None => Self {
                kind: TokenizerKind::HuggingFace,
                bytes: Vec::new(),
                merges: None,
                special_tokens: Vec::new(),
                chat_template: None,
            },
        };
        tokenizer.kind = TokenizerKind::HuggingFace;
        tokenizer.bytes = bytes;
        tokenizer.merges = None;
        Ok(tokenizer)
    }
}

/// A special token is a string or an object with `content`.
fn token_text(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// A chat template is a string, or a list of named ones of which `default` counts.
fn template_text(value: Option<&Value>) -> Option<String> {
    let value = value?;
    let default = || {
        value
            .as_array()?
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))?
            .get("template")?
            .as_str()
    };
    value.as_str().or_else(default).map(str::to_owned)
}
