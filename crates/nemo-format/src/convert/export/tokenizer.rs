//! The tokenizer's files of a Hugging Face folder, from the artifacts of a checkpoint.
//!
//! Files that travelled with the checkpoint are written as they are; missing ones are made from the tokenizer itself.

use hydra_config::Node;
use serde_json::{Map, Value, json};

use super::super::family::Family;
use super::super::{GENERATION_CONFIG, TOKENIZER_CONFIG, TOKENIZER_JSON_FILES};
use super::templates::{self, ConfigOrigin};
use crate::tokenizer::proto::{Field, fields};
use crate::writer::FolderFile;
use crate::{Artifact, FormatError};

/// The files, and what they say about special tokens.
pub(super) struct TokenizerFiles {
    pub(super) files: Vec<FolderFile>,
    /// `bos_token_id`, `eos_token_id`, `pad_token_id`.
    pub(super) ids: Map<String, Value>,
    /// A tokenizer that the configuration names and that is missing in the checkpoint.
    pub(super) missing: Option<String>,
}

const ID_KEYS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Writes the tokenizer that the section `tokenizer` of `config` describes.
pub(super) fn files(
    config: &Node,
    artifacts: &[Artifact],
    family: Family,
) -> Result<TokenizerFiles, FormatError> {
    let text = |key: &str| config.get(&format!("tokenizer.{key}")).and_then(Node::as_str);
    let artifact = |key: &str| {
        let reference = text(key)?;
        let member = reference.strip_prefix("nemo:").unwrap_or(reference);
        let base = member.rsplit('/').next().unwrap_or(member);
        artifacts.iter().find(|artifact| artifact.member_name() == member || artifact.name == base)
    };
    let mut found = TokenizerFiles { files: Vec::new(), ids: Map::new(), missing: None };
    let mut add = |name: &str, bytes: &[u8]| {
        found.files.push(FolderFile { name: name.to_owned(), bytes: bytes.to_vec() });
    };
    let mut tokenizer_config = Map::new();
    if let Some(model) = artifact("model").filter(|_| text("library") != Some("huggingface")) {
        add("tokenizer.model", &model.bytes);
        tokenizer_config.insert("tokenizer_class".into(), json!(family.facts().tokenizer_class));
        sentencepiece_tokens(&model.bytes, &mut tokenizer_config, &mut found.ids);
    } else if let Some(model) = artifact("model") {
        add("tokenizer.json", &model.bytes);
        let proto = artifacts.iter().find(|artifact| artifact.name == "tokenizer.model");
        proto.into_iter().for_each(|proto| add("tokenizer.model", &proto.bytes));
        tokenizer_config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        let special = ["special_tokens", "extra_special_tokens"]
            .into_iter()
            .filter_map(|key| config.get(&format!("tokenizer.{key}"))?.as_map())
            .flatten();
        for (key, token) in special {
            let Some(token) = token.as_str() else { continue };
            tokenizer_config.insert(key.clone(), json!(token));
            found.ids.extend(json_token_id(&model.bytes, token).map(|id| (format!("{key}_id"), json!(id))));
        }
    } else if let (Some(vocab), Some(merges)) = (artifact("vocab_file"), artifact("merge_file")) {
        add("vocab.json", &vocab.bytes);
        add("merges.txt", &merges.bytes);
        tokenizer_config.insert("tokenizer_class".into(), json!("GPT2Tokenizer"));
    } else {
        let name = text("type").or_else(|| text("model")).or_else(|| text("library")).unwrap_or("unknown");
        found.missing = Some(name.to_owned());
    }
    found.ids.retain(|key, _| ID_KEYS.contains(&key.as_str()));
    let carried = |name: &str| artifacts.iter().find(|artifact| artifact.name == name);
    let parsed = |own: &Artifact| -> Result<Map<String, Value>, FormatError> {
        serde_json::from_slice(&own.bytes)
            .map_err(|error| FormatError::BadConfig { file: own.member_name(), reason: error.to_string() })
    };
    let own = carried(TOKENIZER_CONFIG);
    let mut stated = own.map(parsed).transpose()?.unwrap_or(tokenizer_config);
    let template_files = templates::files(
        config.get("tokenizer.chat_template"),
        &mut stated,
        if own.is_some() { ConfigOrigin::Carried } else { ConfigOrigin::Made },
    );
    found.files.extend(template_files.files);
    let mut add = |name: &str, bytes: Vec<u8>| found.files.push(FolderFile { name: name.to_owned(), bytes });
    match own {
        Some(own) if !template_files.is_changed => add(TOKENIZER_CONFIG, own.bytes.clone()),
        _ if stated.is_empty() => {}
        _ => add(TOKENIZER_CONFIG, pretty(&Value::Object(stated))),
    }
    for name in TOKENIZER_JSON_FILES.into_iter().filter(|&name| name != TOKENIZER_CONFIG) {
        if let Some(own) = carried(name) {
            add(name, own.bytes.clone());
        }
    }
    match carried(GENERATION_CONFIG) {
        Some(own) => {
            let stated = parsed(own)?;
            let ids = ID_KEYS.iter().filter_map(|&key| Some((key.to_owned(), stated.get(key)?.clone())));
            found.ids = ids.collect();
            add(GENERATION_CONFIG, own.bytes.clone());
        }
        None => add(GENERATION_CONFIG, pretty(&Value::Object(found.ids.clone()))),
    }
    Ok(found)
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The id of a token in a `tokenizer.json`.
fn json_token_id(bytes: &[u8], token: &str) -> Option<u64> {
    let document: Value = serde_json::from_slice(bytes).ok()?;
    let added = document.get("added_tokens").and_then(Value::as_array);
    let added =
        added.into_iter().flatten().find(|entry| entry.get("content").and_then(Value::as_str) == Some(token));
    added
        .and_then(|entry| entry.get("id")?.as_u64())
        .or_else(|| document.get("model")?.get("vocab")?.get(token)?.as_u64())
}

/// Special tokens of a SentencePiece model: the ids in its training options, the strings in its pieces.
fn sentencepiece_tokens(model: &[u8], texts: &mut Map<String, Value>, ids: &mut Map<String, Value>) {
    // Field numbers and defaults of `sentencepiece_model.proto`.
    let mut special =
        [("unk_token", 40, 0_i64), ("bos_token", 41, 1), ("eos_token", 42, 2), ("pad_token", 43, -1)];
    let mut pieces: Vec<&[u8]> = Vec::new();
    for (number, field) in fields(model) {
        match (number, field) {
            (1, Field::Bytes(piece)) => pieces.push(piece),
            (2, Field::Bytes(trainer)) => {
                for (number, field) in fields(trainer) {
                    let Field::Number(value) = field else { continue };
                    for (_, wanted, id) in &mut special {
                        if *wanted == number {
                            *id = value as i64;
                        }
                    }
                }
            }
            _ => {}
        }
    }
    for (key, _, id) in special {
        let Some(piece) = usize::try_from(id).ok().and_then(|id| pieces.get(id)) else { continue };
        let text = fields(piece).find_map(|(number, field)| match field {
            Field::Bytes(text) if number == 1 => std::str::from_utf8(text).ok(),
            _ => None,
        });
        if let Some(text) = text {
            texts.insert(key.to_owned(), json!(text));
            ids.insert(format!("{key}_id"), json!(id));
        }
    }
}
