//! The tokenizer of a Hugging Face folder: the files it is made of, as transformers 5.24 looks for them.
//!
//! Nothing is decided about tokens here; `convert::tokenizer` does that. Files travel as they are.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::chat_templates::ChatTemplates;
use super::{read_json, read_optional};
use crate::{FormatError, lfs};

/// A tokenizer found beside a model.
#[derive(Clone, Debug)]
pub(crate) struct HfTokenizer {
    /// The folder, or the file that the user named.
    pub(crate) path: PathBuf,
    pub(crate) vocabulary: Vocabulary,
    /// The SentencePiece proto that lies beside a `tokenizer.json`.
    pub(crate) proto_beside: Option<Vec<u8>>,
    /// `tokenizer_config.json`, or an empty object.
    pub(crate) config: Map<String, Value>,
    /// `special_tokens_map.json`.
    pub(crate) special_tokens_map: Map<String, Value>,
    /// `added_tokens.json`: tokens to ids.
    pub(crate) added_tokens: Map<String, Value>,
    /// `model_type` of the `config.json` beside them.
    pub(crate) model_type: Option<String>,
    /// `tokenizer_class` of that `config.json`.
    pub(crate) model_class: Option<String>,
    pub(crate) templates: ChatTemplates,
}

/// The file with the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Vocabulary {
    /// `tokenizer.json` of the tokenizers library.
    Json(Vec<u8>),
    /// `tokenizer.model`, a SentencePiece proto.
    SentencePiece(Vec<u8>),
    /// `vocab.json` and `merges.txt` of GPT-2.
    Gpt2 {
        /// Tokens to ids.
        vocab: Vec<u8>,
        /// A merge a line.
        merges: Vec<u8>,
    },
}

/// The tag of a model proto's first field. Llama 3 folders can hold a tiktoken list under the same name.
const PROTO_PIECES_TAG: u8 = 0x0a;

impl HfTokenizer {
    /// Looks into a folder: `tokenizer.json`, else `tokenizer.model`, else `vocab.json` with `merges.txt`. `None` when
    /// it has none of them.
    pub(crate) fn open_folder(folder: &Path) -> Result<Option<Self>, FormatError> {
        let proto = read_optional(&folder.join("tokenizer.model"))?;
        let is_tiktoken = proto.as_ref().is_some_and(|bytes| bytes.first() != Some(&PROTO_PIECES_TAG));
        let proto = proto.filter(|_| !is_tiktoken);
        if let Some(json) = read_optional(&folder.join("tokenizer.json"))? {
            return Self::beside(folder, folder, Vocabulary::Json(json), proto).map(Some);
        }
        if let Some(proto) = proto {
            return Self::beside(folder, folder, Vocabulary::SentencePiece(proto), None).map(Some);
        }
        let merges = read_optional(&folder.join("merges.txt"))?;
        if let (Some(merges), Some(vocab)) = (merges, read_optional(&folder.join("vocab.json"))?) {
            return Self::beside(folder, folder, Vocabulary::Gpt2 { vocab, merges }, None).map(Some);
        }
        if is_tiktoken {
            return Err(FormatError::Unsupported {
                what: format!("`{}`", folder.join("tokenizer.model").display()),
                hint: "it is not a SentencePiece model; put the model's `tokenizer.json` beside it".into(),
            });
        }
        Ok(None)
    }

    /// Opens what the user names: a folder, or a `tokenizer.json` or `tokenizer.model` with the files beside it, or a
    /// SentencePiece proto of another name.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let unsupported = || FormatError::Unsupported {
            what: format!("the tokenizer `{}`", path.display()),
            hint: "give a folder, a `tokenizer.json` or a SentencePiece `.model` file".into(),
        };
        if path.is_dir() {
            return Self::open_folder(path)?.ok_or_else(unsupported);
        }
        let bytes = lfs::read(path)?;
        // A bare file name has the empty path for its parent.
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => return Err(unsupported()),
        };
        if bytes.first() == Some(&PROTO_PIECES_TAG) {
            let vocabulary = Vocabulary::SentencePiece(bytes);
            if path.file_name().is_some_and(|name| name == "tokenizer.model") {
                return Self::beside(path, folder, vocabulary, None);
            }
            return Ok(Self {
                path: path.to_owned(),
                vocabulary,
                proto_beside: None,
                config: Map::new(),
                special_tokens_map: Map::new(),
                added_tokens: Map::new(),
                model_type: None,
                model_class: None,
                templates: ChatTemplates::default(),
            });
        }
        let document: Result<Value, _> = serde_json::from_slice(&bytes);
        match document {
            Ok(document) if document.get("model").is_some() => {}
            Ok(_) => return Err(unsupported()),
            Err(error) => {
                let reason = error.to_string();
                return Err(FormatError::BadTokenizer { file: path.display().to_string(), reason });
            }
        }
        Self::beside(path, folder, Vocabulary::Json(bytes), None)
    }

    /// A vocabulary with the JSON files and templates of `folder`.
    fn beside(
        path: &Path,
        folder: &Path,
        vocabulary: Vocabulary,
        proto_beside: Option<Vec<u8>>,
    ) -> Result<Self, FormatError> {
        let object = |name: &str| match read_json(&folder.join(name))? {
            None => Ok(Map::new()),
            Some(Value::Object(object)) => Ok(object),
            Some(_) => Err(FormatError::BadTokenizer {
                file: folder.join(name).display().to_string(),
                reason: "it is not a JSON object".into(),
            }),
        };
        let config = object("tokenizer_config.json")?;
        if config.contains_key("fast_tokenizer_files") && matches!(vocabulary, Vocabulary::Json(_)) {
            return Err(FormatError::Unsupported {
                what: format!(
                    "`fast_tokenizer_files` in `{}`",
                    folder.join("tokenizer_config.json").display()
                ),
                hint:
                    "save the tokenizer again with a current transformers, which writes one `tokenizer.json`"
                        .into(),
            });
        }
        let model = object("config.json")?;
        let text = |key: &str| model.get(key).and_then(Value::as_str).map(str::to_owned);
        let templates = ChatTemplates::read(folder, config.get("chat_template"))?;
        Ok(Self {
            path: path.to_owned(),
            vocabulary,
            proto_beside,
            special_tokens_map: object("special_tokens_map.json")?,
            added_tokens: object("added_tokens.json")?,
            model_type: text("model_type"),
            model_class: text("tokenizer_class"),
            templates,
            config,
        })
    }
}
