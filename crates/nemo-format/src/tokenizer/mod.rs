//! The tokenizer that travels with a converted model: an artifact and the `tokenizer` section that names it.
//!
//! Nothing is tokenized here.

mod bpe;
mod class;
mod fast;
mod from_proto;
mod plain;
mod pre_tokenizer;
pub(crate) mod proto;
mod sentencepiece;
mod sentencepiece_model;
#[cfg(test)]
mod tests;
mod tokens;

use std::path::Path;

use hydra_config::Node;
use indexmap::IndexMap;

use self::fast::FastTokenizer;
use crate::huggingface::{DEFAULT, HfTokenizer, Vocabulary};
use crate::{Artifact, ConvertNote, FormatError, GgufFile, GgufValue};

/// Gets the `tokenizer` section, whose references are names of files, and what reads those files. Says what is wrong.
pub type TokenizerCheck<'a> =
    dyn Fn(&serde_json::Value, &dyn Fn(&str) -> Option<Vec<u8>>) -> Result<(), String> + Sync + 'a;

/// The artifacts and the section of `model_config.yaml` that refers to them.
#[derive(Clone, Debug)]
pub(crate) struct TokenizerPart {
    /// The one that `model` or `vocab_file` names comes first.
    pub(crate) artifacts: Vec<Artifact>,
    pub(crate) section: Node,
    pub(crate) notes: Vec<ConvertNote>,
    /// Whether the JSON files beside the vocabulary say more than it.
    pub(crate) has_json_files: bool,
}

/// Which tokenizer of NeMo's reads the artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Library {
    SentencePiece,
    HuggingFace,
    Gpt2Bpe,
}

/// Packs the tokenizer of a Hugging Face folder. `type_name` becomes `type`, which NeMo reads as a hub id.
///
/// A SentencePiece proto, and GPT-2's two files, travel as they are where the folder says nothing more: NeMo's own
/// converters write the same. Everything else becomes the `tokenizer.json` that transformers has loaded.
pub(crate) fn from_files(tokenizer: &HfTokenizer, type_name: &str) -> Result<TokenizerPart, FormatError> {
    let fast = FastTokenizer::build(tokenizer)?;
    let artifact = |name: &str, bytes: &[u8]| Artifact { name: name.into(), bytes: bytes.to_vec() };
    let mut notes = fast.notes.clone();
    if let Some([taken, other]) = tokenizer.templates.conflict {
        notes.push(ConvertNote::ChatTemplatesDiffer { taken, other });
    }
    let proto = match &tokenizer.vocabulary {
        Vocabulary::SentencePiece(proto) => Some(proto),
        _ => tokenizer.proto_beside.as_ref(),
    };
    if let Some(proto) = proto
        && plain::is_only_the_proto(tokenizer, &fast, proto)
    {
        notes.retain(|note| !matches!(note, ConvertNote::UnknownTokenizerClass { .. }));
        let artifacts = vec![artifact("tokenizer.model", proto)];
        let section = section(Library::SentencePiece, type_name, &artifacts, &IndexMap::new());
        return Ok(TokenizerPart { artifacts, section, notes, has_json_files: false });
    }
    if let Vocabulary::Gpt2 { vocab, merges } = &tokenizer.vocabulary
        && plain::is_only_gpt2(tokenizer, &fast)
    {
        let artifacts = vec![artifact("vocab.json", vocab), artifact("merges.txt", merges)];
        let section = section(Library::Gpt2Bpe, type_name, &artifacts, &IndexMap::new());
        return Ok(TokenizerPart { artifacts, section, notes, has_json_files: false });
    }
    fast.refuse_unknown_class(tokenizer)?;
    if let Some(proto) = &tokenizer.proto_beside
        && !plain::same_vocabulary(&fast, proto)
    {
        notes.push(ConvertNote::TokenizerFilesDiffer {
            what: "tokenizer.json, which is taken, and tokenizer.model have different vocabularies".into(),
        });
    }
    let mut artifacts = vec![artifact("tokenizer.json", &fast.bytes)];
    artifacts.extend(proto.map(|proto| artifact("tokenizer.model", proto)));
    let roles = fast.stated.roles.iter().map(|(role, token)| (role.clone(), token.content.clone())).collect();
    let mut section = section(Library::HuggingFace, type_name, &artifacts, &roles);
    set_templates(&mut section, &tokenizer.templates.named);
    Ok(TokenizerPart { artifacts, section, notes, has_json_files: true })
}

/// Puts a folder's special tokens and chat templates into a section that names its `tokenizer.json`.
pub(crate) fn describe(tokenizer: &HfTokenizer, section: &mut Node) -> Result<(), FormatError> {
    let fast = FastTokenizer::build(tokenizer)?;
    for (role, token) in &fast.stated.roles {
        if tokens::ROLES.contains(&role.as_str()) && !token.content.is_empty() {
            section.set(&format!("special_tokens.{role}"), Node::from(token.content.as_str()));
        }
    }
    set_templates(section, &tokenizer.templates.named);
    Ok(())
}

/// One template is a string, as NeMo has it; several, or one of another name, a list of named ones.
fn set_templates(section: &mut Node, named: &[(String, String)]) {
    match named {
        [] => {}
        [(name, source)] if name == DEFAULT => section.set("chat_template", Node::Str(source.clone())),
        named => {
            let entries = named.iter().map(|(name, source)| {
                let mut entry = Node::empty_map();
                entry.set("name", Node::Str(name.clone()));
                entry.set("template", Node::Str(source.clone()));
                entry
            });
            section.set("chat_template", Node::List(entries.collect()));
        }
    }
}

/// Rebuilds the tokenizer that a GGUF file carries in its metadata.
pub(crate) fn from_gguf(file: &GgufFile) -> Result<TokenizerPart, FormatError> {
    let vocab = GgufVocab::read(file)?;
    let model = file.require("tokenizer.ggml.model", GgufValue::as_str)?;
    let (kind, name, bytes) = match model {
        "gpt2" => (Library::HuggingFace, "tokenizer.json", bpe::tokenizer_json(file, &vocab)?),
        "llama" => (Library::SentencePiece, "tokenizer.model", sentencepiece::model_proto(file, &vocab)?),
        other => {
            return Err(FormatError::Unsupported {
                what: format!("tokenizer.ggml.model `{other}` in `{}`", file.path().display()),
                hint: "supported models are `gpt2` and `llama`; pass the original tokenizer instead".into(),
            });
        }
    };
    let type_name = file.optional("general.name", GgufValue::as_str)?.unwrap_or("gguf");
    let artifacts = vec![Artifact { name: name.into(), bytes }];
    let mut special_tokens = IndexMap::new();
    for (key, id) in [
        ("bos_token", vocab.bos_id),
        ("eos_token", vocab.eos_id),
        ("unk_token", vocab.unk_id),
        ("pad_token", vocab.pad_id),
    ] {
        if let Some(token) = id.and_then(|id| vocab.tokens.get(id as usize)) {
            special_tokens.insert(key.to_owned(), (*token).to_owned());
        }
    }
    let mut section = section(kind, type_name, &artifacts, &special_tokens);
    set_templates(&mut section, &gguf_templates(file)?);
    Ok(TokenizerPart { artifacts, section, notes: Vec::new(), has_json_files: false })
}

/// Strings that llama.cpp recognises as the end of a turn or message where no key names it.
const GGUF_END_TEXTS: [&str; 8] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<EOT>",
];

/// Every token of a GGUF file that ends a response, EOS first: those that keys name, and control tokens that llama.cpp
/// knows by their text.
pub(crate) fn gguf_end_ids(file: &GgufFile) -> Result<Vec<u64>, FormatError> {
    let vocab = GgufVocab::read(file)?;
    let mut ids: Vec<u64> = vocab.eos_id.into_iter().collect();
    for name in ["eot", "eom"] {
        ids.extend(vocab.id_of_key(file, name)?);
    }
    let is_end = |&(_, (token, kind)): &(u64, (&&str, &TokenKind))| {
        *kind == TokenKind::Control && GGUF_END_TEXTS.contains(token)
    };
    ids.extend((0..).zip(vocab.tokens.iter().zip(&vocab.kinds)).filter(is_end).map(|(id, _)| id));
    let mut known = std::collections::HashSet::new();
    ids.retain(|id| known.insert(*id));
    Ok(ids)
}

/// `tokenizer.chat_template` and the named ones, `tokenizer.chat_template.tool_use`.
fn gguf_templates(file: &GgufFile) -> Result<Vec<(String, String)>, FormatError> {
    let mut named = Vec::new();
    let key = "tokenizer.chat_template";
    if let Some(source) = file.optional(key, GgufValue::as_str)? {
        named.push((DEFAULT.to_owned(), source.to_owned()));
    }
    for name in file.optional("tokenizer.chat_templates", GgufValue::as_array)?.into_iter().flatten() {
        let name = name
            .as_str()
            .ok_or_else(|| file.bad_key("tokenizer.chat_templates", "is not a list of names"))?;
        let source = file.require(&format!("{key}.{name}"), GgufValue::as_str)?;
        named.push((name.to_owned(), source.to_owned()));
    }
    Ok(named)
}

/// Has the tokenizer opened by those who can. `path` is where it comes from.
pub(crate) fn check(
    config: &Node,
    artifacts: &[Artifact],
    path: &Path,
    open: &TokenizerCheck<'_>,
) -> Result<(), FormatError> {
    let bad = |reason: String| FormatError::BadTokenizer { file: path.display().to_string(), reason };
    let Some(mut section) = config.get("tokenizer").cloned() else { return Ok(()) };
    // The names of the files, which the user knows, instead of the members they become.
    for key in ["model", "vocab_file", "merge_file"] {
        let name = section.get(key).and_then(Node::as_str).and_then(|reference| {
            let member = reference.strip_prefix("nemo:")?;
            artifacts.iter().find(|artifact| artifact.member_name() == member)
        });
        if let Some(name) = name.map(|artifact| artifact.name.clone()) {
            section.set(key, Node::Str(name));
        }
    }
    let section = section.deserialize_into().map_err(|error| bad(error.to_string()))?;
    let read = |name: &str| {
        artifacts.iter().find(|artifact| artifact.name == name).map(|artifact| artifact.bytes.clone())
    };
    open(&section, &read).map_err(bad)
}

/// Refuses a tokenizer with more tokens than the embedding table has rows: it belongs to another model. Added tokens
/// past the table are only noted, as published files have some.
pub(crate) fn check_size(
    config: &Node,
    artifacts: &[Artifact],
    num_rows: u64,
) -> Result<Option<ConvertNote>, FormatError> {
    let mut note = None;
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
        let past_table = added_tokens(&artifact.bytes).into_iter().filter(|(id, _)| *id >= num_rows).min();
        note = note.or(past_table.map(|(id, token)| ConvertNote::TokensWithoutRows { token, id, num_rows }));
    }
    Ok(note)
}

fn added_tokens(bytes: &[u8]) -> Vec<(u64, String)> {
    let document: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let entries = document.get("added_tokens").and_then(serde_json::Value::as_array);
    let token = |entry: &serde_json::Value| {
        Some((entry.get("id")?.as_u64()?, entry.get("content")?.as_str()?.to_owned()))
    };
    entries.into_iter().flatten().filter_map(token).collect()
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

fn section(
    library: Library,
    type_name: &str,
    artifacts: &[Artifact],
    special: &IndexMap<String, String>,
) -> Node {
    let reference = |at: usize| {
        artifacts.get(at).map_or(Node::Null, |artifact| Node::Str(format!("nemo:{}", artifact.member_name())))
    };
    let mut section = Node::empty_map();
    match library {
        Library::SentencePiece => {
            section.set("library", Node::from("sentencepiece"));
            section.set("type", Node::Null);
            section.set("model", reference(0));
            section.set("vocab_file", Node::Null);
            section.set("merge_file", Node::Null);
            section.set("delimiter", Node::Null);
            section.set("sentencepiece_legacy", Node::Bool(false));
        }
        Library::Gpt2Bpe => {
            section.set("library", Node::from("megatron"));
            section.set("type", Node::from("GPT2BPETokenizer"));
            section.set("model", Node::Null);
            section.set("vocab_file", reference(0));
            section.set("merge_file", reference(1));
            section.set("delimiter", Node::Null);
            section.set("sentencepiece_legacy", Node::Bool(false));
        }
        Library::HuggingFace => {
            section.set("library", Node::from("huggingface"));
            section.set("type", Node::from(type_name));
            section.set("model", reference(0));
            section.set("vocab_file", Node::Null);
            section.set("merge_file", Node::Null);
            section.set("use_fast", Node::Bool(true));
            section.set("special_tokens", Node::empty_map());
            for (role, token) in special.iter().filter(|(_, token)| !token.is_empty()) {
                // NeMo hands `special_tokens` to transformers as keywords and knows no other roles.
                let key = if tokens::ROLES.contains(&role.as_str()) {
                    "special_tokens"
                } else {
                    "extra_special_tokens"
                };
                section.set(&format!("{key}.{role}"), Node::from(token.as_str()));
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
        let mut vocab = Self { tokens, kinds, bos_id: None, eos_id: None, unk_id: None, pad_id: None };
        vocab.bos_id = vocab.id_of_key(file, "bos")?;
        vocab.eos_id = vocab.id_of_key(file, "eos")?;
        vocab.unk_id = vocab.id_of_key(file, "unknown")?;
        vocab.pad_id = vocab.id_of_key(file, "padding")?;
        Ok(vocab)
    }

    /// The id that a key names, if there is the key.
    fn id_of_key(&self, file: &GgufFile, name: &str) -> Result<Option<u64>, FormatError> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = file.optional(&key, GgufValue::as_u64)?;
        match id.filter(|&id| id >= self.tokens.len() as u64) {
            Some(id) => {
                Err(file.bad_key(&key, &format!("is {id}, the vocabulary has {} tokens", self.tokens.len())))
            }
            None => Ok(id),
        }
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
