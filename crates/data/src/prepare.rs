//! From one record to a tokenized prompt. A whole file is read by `prompt_set`.

use std::sync::Arc;

use crate::DataError;
use crate::chat::{ChatPromptTokens, PromptNote};
use crate::chat_template::ChatTemplate;
use crate::json::{Json, JsonObject};
use crate::length_hint::length_hint;
use crate::limits::TokenField;
use crate::openai_batch;
use crate::prompt_response::{FilledPrompt, PromptResponseFormat};
use crate::record::Record;
use crate::record_error::RecordError;
use crate::record_keys::has;
use crate::row_params::RowParams;
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
    /// What its record sets for it.
    pub row: RowParams,
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

/// How records stand in their lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordLayout {
    /// A line is a record.
    Plain,
    /// The same, and some of its keys set how it is answered.
    RowParams,
    /// A line is a request of OpenAI's batch format.
    OpenAiBatch {
        /// Answers to a request that does not say how many; none for as many as the job makes.
        num_default: Option<u32>,
    },
}

/// What of the input goes to the output as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptInput {
    /// The whole record.
    pub record: bool,
    /// The record as a conversation, to which an answer can be appended.
    pub conversation: bool,
    /// Keys of the record that some record must have.
    pub columns: Vec<String>,
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
    layout: RecordLayout,
    input: KeptInput,
    max_tokens: Option<usize>,
    structure_check: Option<StructureCheck>,
}

/// Says why a structure cannot be used.
pub type StructureCheck = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What a record becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltPrompt {
    /// The prompt as text.
    pub text: String,
    /// The prompt as token ids.
    pub ids: Vec<u32>,
    /// The record's other keys, as far as they are kept.
    pub metadata: JsonObject,
    /// What the record sets for its own answers.
    pub row: RowParams,
    /// How many tokens it had, where it was cut to the limit.
    pub cut_from: Option<usize>,
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
        Self {
            tokenizer,
            format,
            template: None,
            bos: None,
            kept,
            length_hint_key: None,
            layout: RecordLayout::Plain,
            input: KeptInput::default(),
            max_tokens: None,
            structure_check: None,
        }
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

    /// Reads what a record sets for its own answers.
    #[must_use]
    pub fn with_row_params(mut self) -> Self {
        self.layout = RecordLayout::RowParams;
        self
    }

    /// Reads lines of OpenAI's batch format. `num_default`: answers to a request that does not say how many; none for as
    /// many as the job makes.
    #[must_use]
    pub fn with_openai_batch(mut self, num_default: Option<u32>) -> Self {
        self.layout = RecordLayout::OpenAiBatch { num_default };
        self
    }

    /// The record in a line, and what it sets for its own answers.
    fn opened(&self, object: JsonObject) -> Result<(JsonObject, RowParams), RecordError> {
        match self.layout {
            RecordLayout::Plain => Ok((object, RowParams::default())),
            RecordLayout::RowParams => {
                let row = RowParams::of(&object)?;
                Ok((object, row))
            }
            RecordLayout::OpenAiBatch { num_default } => {
                openai_batch::opened(object, self.length_hint_key.as_deref(), num_default)
            }
        }
    }

    /// The name of a request, which no other may have.
    pub(crate) fn custom_id<'a>(&self, object: &'a JsonObject) -> Option<&'a str> {
        match (self.layout, object.get("custom_id")) {
            (RecordLayout::OpenAiBatch { .. }, Some(Json::String(custom_id))) => Some(custom_id),
            _ => None,
        }
    }

    /// Checks the structures that records set for their own answers.
    #[must_use]
    pub fn with_structure_check(mut self, check: StructureCheck) -> Self {
        self.structure_check = Some(check);
        self
    }

    /// Cuts prompts of more tokens at their start, BOS apart.
    #[must_use]
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// Cuts a prompt that is too long: its end, with the header of the answer, stays.
    fn cut(&self, prompt: &mut BuiltPrompt) -> Result<(), RecordError> {
        let num_tokens = prompt.ids.len();
        let Some(max_tokens) = self.max_tokens.filter(|&max_tokens| max_tokens < num_tokens) else {
            return Ok(());
        };
        let bos = self.tokenizer.special().bos;
        let num_kept_first = usize::from(prompt.ids.first().copied() == bos && bos.is_some()).min(max_tokens);
        prompt.ids.drain(num_kept_first..num_tokens + num_kept_first - max_tokens);
        let bytes =
            prompt.ids.iter().map(|&id| self.tokenizer.token_bytes(id)).collect::<Result<Vec<_>, _>>();
        prompt.text = String::from_utf8_lossy(&bytes.map_err(RecordError::tokenize)?.concat()).into_owned();
        prompt.cut_from = Some(num_tokens);
        Ok(())
    }

    /// Keeps what the output gives back of the input.
    #[must_use]
    pub fn with_input(mut self, input: KeptInput) -> Self {
        self.input = input;
        self
    }

    /// What the output gives back of the input.
    pub(crate) fn input(&self) -> &KeptInput {
        &self.input
    }

    /// What the output gives back of a record, whose prompt is `text`.
    pub(crate) fn kept_input(&self, object: JsonObject, text: &str) -> InputOfSample {
        // A bad record sets nothing and is no conversation.
        let (opened, row) = self.opened(object.clone()).unwrap_or_default();
        let conversation = match (&self.format, self.input.conversation) {
            (_, false) => None,
            (PromptRules::Chat(_), true) => conversation_of(&opened),
            (PromptRules::PromptResponse(_), true) => Some(vec![message("user", text)]),
        };
        let record = self.input.record || !self.input.columns.is_empty();
        InputOfSample {
            record: record.then_some(object),
            conversation,
            end_strings: row.end_strings,
            stop_strings: row.stop_strings,
            structured_outputs: row.structured_outputs,
        }
    }

    /// Whether records may set something for their own answers.
    pub(crate) fn reads_row_params(&self) -> bool {
        self.layout != RecordLayout::Plain
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
        let (object, row) = self.opened(object)?;
        if let (Some(structure), Some(check)) = (&row.structured_outputs, &self.structure_check) {
            let column = "structured_outputs";
            check(structure).map_err(|reason| RecordError::BadStructure { column, reason })?;
        }
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
                (
                    BuiltPrompt { text, ids, metadata, row: RowParams::default(), cut_from: None, note },
                    full_text,
                )
            }
        };
        prompt.row = row;
        if let Some(bos) = self.bos.filter(|bos| prompt.ids.first() != Some(bos)) {
            prompt.ids.insert(0, bos);
        }
        if prompt.ids.is_empty() {
            return Err(RecordError::EmptyPrompt);
        }
        self.cut(&mut prompt)?;
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
        if self.max_tokens.is_some() {
            let BuiltPrompt { text, metadata, .. } = self.build(object)?;
            return Ok((text, metadata));
        }
        let (object, _) = self.opened(object)?;
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
        let metadata = self.kept_beside(format, object, pieces);
        Ok(BuiltPrompt { text, ids, metadata, row: RowParams::default(), cut_from: None, note: None })
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

/// What the output gives back of a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputOfSample {
    /// All of it.
    pub record: Option<JsonObject>,
    /// Messages before the answer, in OpenAI's format.
    pub conversation: Option<Vec<Json>>,
    /// The row's own end strings, where it has any.
    pub end_strings: Option<Vec<String>>,
    /// The row's own stop strings, where it has any.
    pub stop_strings: Option<Vec<String>>,
    /// The row's own structure, where it has one.
    pub structured_outputs: Option<String>,
}

/// One message in OpenAI's format.
fn message(role: &str, content: &str) -> Json {
    let entries = [("role", role), ("content", content)];
    Json::Object(entries.into_iter().map(|(key, text)| (key.to_owned(), text.into())).collect())
}

/// The messages of a record as they stand there, or those that turns of NeMo's format are, without the last answer, which
/// is not part of the prompt. The asking role is the user.
fn conversation_of(object: &JsonObject) -> Option<Vec<Json>> {
    match Record::from_object(object.clone()).ok()? {
        Record::Messages(_) => match object.get("messages") {
            Some(Json::Array(messages)) => Some(messages.clone()),
            _ => None,
        },
        Record::Chat(record) => {
            let ends_with_answer = record.conversations.last().is_some_and(|turn| turn.from != record.mask);
            let num_turns = record.conversations.len() - usize::from(ends_with_answer);
            let system = (!record.system.is_empty()).then(|| message("system", &record.system));
            let turns = record.conversations[..num_turns].iter().map(|turn| {
                let role = if turn.from == record.mask { "user" } else { "assistant" };
                message(role, &turn.value)
            });
            Some(system.into_iter().chain(turns).collect())
        }
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
