//! What every command needs of a checkpoint: its tokenizer, its model config, its model.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use data::{ChatTemplate, Date, Tokenizer, TokenizerSpec, open_tokenizer};
use hydra_config::Node;
use indicatif::MultiProgress;
use model_core::{CausalLm, LoadOptions, ModelConfig, ModelPart, RawModelConfig};
use nemo_format::Checkpoint;
use sampling::TokenBytes;

use super::loading::WatchedSource;
use crate::exit::{ExitStatus, Failure, ResultExt};

/// A tokenizer and what else its part of the checkpoint says.
pub(crate) struct OpenTokenizer {
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) spec: TokenizerSpec,
    /// Of its settings and its files.
    pub(crate) fingerprint: String,
}

impl OpenTokenizer {
    /// Opens the tokenizer that the `tokenizer` section of `model` describes, with files from the checkpoint.
    pub(crate) fn open(checkpoint: &Checkpoint, model: &Node) -> Result<Self, Failure> {
        let Some(section @ Node::Map(_)) = model.get("tokenizer") else {
            let needed =
                checkpoint.tokenizer_needed().map(|needed| format!(": {needed}")).unwrap_or_default();
            return Err(anyhow::anyhow!("the checkpoint's configuration has no `tokenizer` section{needed}"))
                .exit_with(ExitStatus::Checkpoint);
        };
        let spec: TokenizerSpec = section.deserialize_into().exit_with(ExitStatus::Checkpoint)?;
        let hasher = RefCell::new(blake3::Hasher::new());
        hasher.borrow_mut().update(section.to_yaml().as_bytes());
        let saved = checkpoint.model_config().get("tokenizer");
        let read = |reference: &str| {
            let bytes = match is_users(reference, section, saved) {
                true => nemo_format::read_file(Path::new(reference))?,
                false => checkpoint.artifact(reference)?,
            };
            hasher.borrow_mut().update(&bytes);
            Ok(bytes)
        };
        let spec = spec.with_folder_files(&read).exit_with(ExitStatus::Checkpoint)?;
        let tokenizer = open_tokenizer(&spec, &read).exit_with(ExitStatus::Checkpoint)?;
        let fingerprint = hasher.borrow().finalize().to_hex().to_string();
        Ok(Self { tokenizer: tokenizer.into(), spec, fingerprint })
    }

    /// The chat templates, for `messages` records, and the day that they are to take for today.
    pub(crate) fn chat_template(&self, date: Option<Date>) -> Option<ChatTemplate> {
        let named = self.spec.chat_templates();
        (!named.is_empty()).then(|| ChatTemplate::new(named, self.template_variables(), date))
    }

    /// The special tokens that a chat template sees as variables: those that the checkpoint's section names, and those
    /// that a SentencePiece model names itself.
    pub(crate) fn template_variables(&self) -> Vec<(String, String)> {
        let mut variables = self.spec.template_variables();
        let special = self.tokenizer.special();
        let own = [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("unk_token", special.unk),
            ("pad_token", special.pad),
        ];
        for (role, id) in own {
            if let Some(id) = id.filter(|_| !variables.iter().any(|(known, _)| known == role)) {
                variables.push((role.to_owned(), self.token_text(id)));
            }
        }
        variables
    }

    fn token_text(&self, id: u32) -> String {
        let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The id of a text that is one token in the middle of a text, found as the original software finds it.
    pub(crate) fn single_token(&self, text: &str) -> Option<u32> {
        const BEFORE: &str = "<extra_id_1>";
        let before = self.tokenizer.encode(BEFORE).ok()?;
        let both = self.tokenizer.encode(&format!("{BEFORE}{text}")).ok()?;
        match both.strip_prefix(before.as_slice())? {
            [id] => Some(*id),
            _ => None,
        }
    }
}

/// Whether the user named this file, or the folder it is in. A path that the checkpoint itself names is of another
/// machine and is only looked for inside the checkpoint.
fn is_users(reference: &str, section: &Node, saved: Option<&Node>) -> bool {
    ["model", "vocab_file", "merge_file", "type"].into_iter().any(|key| {
        let value = section.get(key).and_then(Node::as_str);
        let is_changed = value != saved.and_then(|saved| saved.get(key)).and_then(Node::as_str);
        let in_folder =
            |folder: &str| reference.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        is_changed
            && value.is_some_and(|value| value == reference || in_folder(value))
            && !reference.starts_with("nemo:")
    })
}

/// The model config in the `model` section of a configuration.
pub(crate) fn model_config(model: &Node) -> Result<ModelConfig, Failure> {
    let raw: RawModelConfig = model.deserialize_into().exit_with(ExitStatus::Checkpoint)?;
    Ok(ModelConfig::try_from(raw)?)
}

/// Loads the weights.
pub(crate) fn load_model(
    checkpoint: &Checkpoint,
    config: ModelConfig,
    options: LoadOptions,
) -> Result<Box<dyn CausalLm>, Failure> {
    let source = WatchedSource::new(checkpoint.tensors(), 1.0, &MultiProgress::new());
    Ok(model_core::load_model(config, &source, options)?)
}

/// Loads a rank's part of the weights; `share`: how much of them that is, for the bar.
pub(crate) fn load_part(
    checkpoint: &Checkpoint,
    config: ModelConfig,
    options: LoadOptions,
    part: ModelPart,
    (share, bars): (f64, &MultiProgress),
) -> Result<Box<dyn CausalLm>, Failure> {
    let source = WatchedSource::new(checkpoint.tensors(), share, bars);
    Ok(model_core::load_part(config, &source, options, part)?)
}

/// The bytes of every token, looked up once.
pub(crate) struct TokenTable {
    bytes: Vec<Vec<u8>>,
}

impl TokenTable {
    pub(crate) fn new(tokenizer: &dyn Tokenizer) -> Result<Self, Failure> {
        let num_tokens = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let bytes = (0..num_tokens).map(|id| tokenizer.token_bytes(id)).collect::<Result<_, _>>();
        Ok(Self { bytes: bytes.exit_with(ExitStatus::Checkpoint)? })
    }

    /// A table for a model without a tokenizer: no token has bytes.
    pub(crate) fn unknown() -> Self {
        Self { bytes: Vec::new() }
    }

    /// A table of these tokens.
    #[cfg(test)]
    pub(crate) fn of(texts: &[&str]) -> Self {
        Self { bytes: texts.iter().map(|text| text.as_bytes().to_vec()).collect() }
    }

    /// The raw text of a response: bytes that are no text become U+FFFD.
    pub(crate) fn text(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl TokenBytes for TokenTable {
    fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }
}
