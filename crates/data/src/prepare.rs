//! From one record to a tokenized prompt. A whole file is read by `prompt_set`.

use std::sync::Arc;

use crate::DataError;
use crate::chat::{ChatPromptTokens, PromptNote};
use crate::chat_template::ChatTemplate;
use crate::json::{Json, JsonObject};
use crate::length_hint::length_hint;
use crate::limits::TokenField;
use crate::prompt_response::{FilledPrompt, PromptResponseFormat};
use crate::record::Record;
use crate::record_error::RecordError;
use crate::record_keys::has;
use crate::tokenizer::Tokenizer;

/// A prompt ready for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedPrompt {
    /// Its line in the file, from 1.
    pub line: u64,
    /// Its record number in the file, from 0, bad and over-length records counted.
    pub index: u64,
    /// What its random numbers are keyed by: the record number, or its place among the samples drawn.
    pub sample_idx: u64,
    /// The prompt as text.
    pub text: String,
    /// The prompt as token ids.
    pub ids: Vec<u32>,
    /// The record's other keys.
    pub metadata: JsonObject,
}

/// What of a record's other keys is kept beside its prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeptMetadata {
    /// Nothing: a million records then take no more memory than their prompts.
    Nothing,
    /// Every key that is not part of the prompt.
    #[default]
    OtherKeys,
    /// `output_original_text`: the conversation, or the text of each template piece, too.
    OtherKeysAndText,
}

/// Which records are read and how they become text.
enum PromptRules {
    Chat(ChatPromptTokens),
    PromptResponse(PromptResponseFormat),
}

/// Records to token ids.
pub struct PromptBuilder {
    tokenizer: Arc<dyn Tokenizer>,
    format: PromptRules,
    template: Option<ChatTemplate>,
    bos: Option<u32>,
    kept: KeptMetadata,
    length_hint_key: Option<String>,
}

/// What a record becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltPrompt {
    /// The prompt as text.
    pub text: String,
    /// The prompt as token ids.
    pub ids: Vec<u32>,
    /// The record's other keys, as far as they are kept.
    pub metadata: JsonObject,
    /// What the user should know.
    pub note: Option<PromptNote>,
}

/// A chat record as text, before it is tokenized.
struct Rendered {
    text: String,
    /// Made by the checkpoint's chat template, whose special tokens are in the text.
    is_templated: bool,
    /// The whole conversation, where it is asked for.
    full_text: Option<String>,
    metadata: JsonObject,
    note: Option<PromptNote>,
}

impl PromptBuilder {
    /// A builder for chat records.
    pub fn new(tokenizer: Arc<dyn Tokenizer>, chat_tokens: ChatPromptTokens) -> Self {
        let format = PromptRules::Chat(chat_tokens);
        Self::of(tokenizer, format)
    }

    /// A builder for prompt-response records.
    ///
    /// # Errors
    /// When the format asks for a BOS that the tokenizer does not have.
    pub fn prompt_response(
        tokenizer: Arc<dyn Tokenizer>,
        format: PromptResponseFormat,
    ) -> Result<Self, DataError> {
        if format.adds_bos() && tokenizer.special().bos.is_none() {
            return Err(DataError::NoBosToken);
        }
        let format = PromptRules::PromptResponse(format);
        Ok(Self::of(tokenizer, format))
    }

    fn of(tokenizer: Arc<dyn Tokenizer>, format: PromptRules) -> Self {
        let kept = KeptMetadata::default();
        Self { tokenizer, format, template: None, bos: None, kept, length_hint_key: None }
    }

    /// Accepts `messages` records too.
    #[must_use]
    pub fn with_template(mut self, template: ChatTemplate) -> Self {
        self.template = Some(template);
        self
    }

    /// Keeps more or less of the records beside the prompts.
    #[must_use]
    pub fn with_metadata(mut self, kept: KeptMetadata) -> Self {
        self.kept = kept;
        self
    }

    /// Reads under this key of a record how many tokens its answer is likely to have.
    #[must_use]
    pub fn with_length_hints(mut self, key: String) -> Self {
        self.length_hint_key = Some(key);
        self
    }

    /// How many tokens the record says that its answer is likely to have.
    ///
    /// # Errors
    /// When it says something else under that key.
    pub(crate) fn length_hint(&self, object: &JsonObject) -> Result<Option<u32>, RecordError> {
        match &self.length_hint_key {
            Some(key) => length_hint(object, key),
            None => Ok(None),
        }
    }

    /// Whether hints are read.
    pub(crate) fn has_length_hints(&self) -> bool {
        self.length_hint_key.is_some()
    }

    /// Puts the tokenizer's BOS before each prompt that does not begin with it.
    ///
    /// # Errors
    /// When the tokenizer has no BOS.
    pub fn with_bos(mut self) -> Result<Self, DataError> {
        self.bos = Some(self.tokenizer.special().bos.ok_or(DataError::NoBosToken)?);
        Ok(self)
    }

    /// The prompt of one record.
    ///
    /// # Errors
    /// When the record makes no prompt.
    pub fn build(&self, object: JsonObject) -> Result<BuiltPrompt, RecordError> {
        self.build_measured(object, &[]).map(|(prompt, _)| prompt)
    }

    /// The prompt, and how many tokens each of `fields` has.
    pub(crate) fn build_measured(
        &self,
        object: JsonObject,
        fields: &[TokenField],
    ) -> Result<(BuiltPrompt, Vec<usize>), RecordError> {
        let (mut prompt, full_text) = match &self.format {
            PromptRules::PromptResponse(format) => (self.fill(format, &object)?, None),
            PromptRules::Chat(tokens) => {
                let rendered = self.render(tokens, object, needs_full_text(fields))?;
                let Rendered { text, is_templated, full_text, metadata, note } = rendered;
                let ids = match is_templated {
                    true => self.tokenizer.encode_rendered(&text),
                    false => self.tokenizer.encode(&text),
                };
                let ids = ids.map_err(RecordError::tokenize)?;
                (BuiltPrompt { text, ids, metadata, note }, full_text)
            }
        };
        if let Some(bos) = self.bos.filter(|bos| prompt.ids.first() != Some(bos)) {
            prompt.ids.insert(0, bos);
        }
        if prompt.ids.is_empty() {
            return Err(RecordError::EmptyPrompt);
        }
        prompt.ids.shrink_to_fit();
        prompt.text.shrink_to_fit();
        let num_prompt_tokens = prompt.ids.len();
        let num_all_tokens = match full_text {
            Some(text) => self.tokenizer.encode(&text).map_err(RecordError::tokenize)?.len(),
            None => num_prompt_tokens,
        };
        let num_tokens = |field: &TokenField| match field {
            TokenField::ContextIds => num_prompt_tokens,
            TokenField::AnswerIds => num_all_tokens.saturating_sub(num_prompt_tokens),
            TokenField::InputIds | TokenField::Mask => num_all_tokens,
        };
        Ok((prompt, fields.iter().map(num_tokens).collect()))
    }

    /// The prompt of a record as text, and the keys that are kept beside it. It is tokenized only where that decides what
    /// is cut from it.
    pub(crate) fn build_text(&self, object: JsonObject) -> Result<(String, JsonObject), RecordError> {
        match &self.format {
            PromptRules::PromptResponse(format) if format.cuts() => {
                let BuiltPrompt { text, metadata, .. } = self.fill(format, &object)?;
                Ok((text, metadata))
            }
            PromptRules::PromptResponse(format) => {
                let (text, pieces) = format.text(&object, self.tokenizer.as_ref())?;
                Ok((text, self.kept_beside(format, &object, pieces)))
            }
            PromptRules::Chat(tokens) => {
                let Rendered { text, metadata, .. } = self.render(tokens, object, false)?;
                Ok((text, metadata))
            }
        }
    }

    fn fill(&self, format: &PromptResponseFormat, object: &JsonObject) -> Result<BuiltPrompt, RecordError> {
        let FilledPrompt { text, ids, pieces } = format.fill(object, self.tokenizer.as_ref())?;
        Ok(BuiltPrompt { text, ids, metadata: self.kept_beside(format, object, pieces), note: None })
    }

    /// What of a prompt-response record is kept beside its prompt.
    fn kept_beside(
        &self,
        format: &PromptResponseFormat,
        object: &JsonObject,
        pieces: Vec<(String, String)>,
    ) -> JsonObject {
        let mut metadata = match self.kept {
            KeptMetadata::Nothing => JsonObject::new(),
            _ => format.metadata(object),
        };
        if self.kept == KeptMetadata::OtherKeysAndText {
            metadata.extend(pieces.into_iter().map(|(key, text)| (key, text.into())));
        }
        metadata
    }

    /// The prompt of a chat record, and the text of the whole conversation where it is needed.
    fn render(
        &self,
        tokens: &ChatPromptTokens,
        object: JsonObject,
        needs_full_text: bool,
    ) -> Result<Rendered, RecordError> {
        let original = match self.kept {
            KeptMetadata::OtherKeysAndText => conversation(&object),
            KeptMetadata::Nothing | KeptMetadata::OtherKeys => None,
        };
        let mut rendered = match Record::from_object(object)? {
            Record::Chat(record) => {
                let (text, note) = tokens.prompt_text(&record)?;
                let full_text = needs_full_text.then(|| tokens.full_text(&record));
                Rendered { text, is_templated: false, full_text, metadata: record.metadata, note }
            }
            Record::Messages(record) => {
                let template = self.template.as_ref().ok_or(RecordError::NoChatTemplate)?;
                let text = template.prompt_text(&record)?;
                Rendered { text, is_templated: true, full_text: None, metadata: record.metadata, note: None }
            }
        };
        if self.kept == KeptMetadata::Nothing {
            rendered.metadata = JsonObject::new();
        }
        rendered.metadata.extend(original);
        Ok(rendered)
    }
}

/// The conversation of a record, unchanged, with its key.
fn conversation(object: &JsonObject) -> Option<(String, Json)> {
    let key = ["conversations", "messages"].into_iter().find(|key| has(object, key))?;
    object.get(key).map(|turns| (key.to_owned(), turns.clone()))
}

fn needs_full_text(fields: &[TokenField]) -> bool {
    fields.iter().any(|&field| field != TokenField::ContextIds)
}

#[cfg(test)]
mod tests;
