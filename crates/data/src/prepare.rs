//! From a data file to tokenized prompts: every record is checked before a model is loaded.
//!
//! Over-length prompts are left out, bad records refused or skipped, both with their line numbers. Which prompts form a
//! step is the matter of `plan`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::DataError;
use crate::chat::{ChatPromptTokens, PromptNote};
use crate::chat_template::ChatTemplate;
use crate::jsonl::JsonlReader;
use crate::limits::{LengthLimits, TokenField};
use crate::prompt_response::PromptResponseFormat;
use crate::record::{Record, RecordError};
use crate::tokenizer::Tokenizer;

/// How many bad lines an error lists.
const MAX_LISTED: usize = 10;

/// A prompt ready for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedPrompt {
    /// Its line in the file, from 1.
    pub line: u64,
    /// Its record number in the file, from 0, bad and over-length records counted.
    pub index: u64,
    /// The prompt as text.
    pub text: String,
    /// The prompt as token ids.
    pub ids: Vec<u32>,
    /// The record's other keys.
    pub metadata: Map<String, Value>,
}

/// What of a record's other keys is kept beside its prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeptMetadata {
    /// Nothing: a million records then take no more memory than their prompts.
    Nothing,
    /// Every key that is no part of the prompt.
    #[default]
    OtherKeys,
    /// `output_original_text`: the conversation, or the text of each template piece, too.
    OtherKeysAndText,
}

/// Which records are read and how they become text.
enum RecordFormat {
    Chat(ChatPromptTokens),
    PromptResponse(PromptResponseFormat),
}

/// Records to token ids.
pub struct PromptBuilder {
    tokenizer: Arc<dyn Tokenizer>,
    format: RecordFormat,
    template: Option<ChatTemplate>,
    bos: Option<u32>,
    kept: KeptMetadata,
}

/// What a record becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltPrompt {
    /// The prompt as text.
    pub text: String,
    /// The prompt as token ids.
    pub ids: Vec<u32>,
    /// The record's other keys, as far as they are kept.
    pub metadata: Map<String, Value>,
    /// What the user should know.
    pub note: Option<PromptNote>,
}

impl PromptBuilder {
    /// A builder for chat records.
    pub fn new(tokenizer: Arc<dyn Tokenizer>, chat_tokens: ChatPromptTokens) -> Self {
        let format = RecordFormat::Chat(chat_tokens);
        Self { tokenizer, format, template: None, bos: None, kept: KeptMetadata::default() }
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
        let format = RecordFormat::PromptResponse(format);
        Ok(Self { tokenizer, format, template: None, bos: None, kept: KeptMetadata::default() })
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
    pub fn build(&self, object: Map<String, Value>) -> Result<BuiltPrompt, RecordError> {
        self.build_measured(object, &[]).map(|(prompt, _)| prompt)
    }

    /// The prompt, and how many tokens each of `fields` has.
    fn build_measured(
        &self,
        object: Map<String, Value>,
        fields: &[TokenField],
    ) -> Result<(BuiltPrompt, Vec<usize>), RecordError> {
        let (mut prompt, full_text) = match &self.format {
            RecordFormat::PromptResponse(format) => (self.fill(format, &object)?, None),
            RecordFormat::Chat(tokens) => self.render(tokens, object, needs_full_text(fields))?,
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

    fn fill(
        &self,
        format: &PromptResponseFormat,
        object: &Map<String, Value>,
    ) -> Result<BuiltPrompt, RecordError> {
        let filled = format.fill(object, self.tokenizer.as_ref())?;
        let mut metadata = match self.kept {
            KeptMetadata::Nothing => Map::new(),
            _ => format.metadata(object),
        };
        if self.kept == KeptMetadata::OtherKeysAndText {
            metadata.extend(filled.pieces.into_iter().map(|(key, text)| (key, text.into())));
        }
        Ok(BuiltPrompt { text: filled.text, ids: filled.ids, metadata, note: None })
    }

    /// The prompt of a chat record, and the text of the whole conversation where it is needed.
    fn render(
        &self,
        tokens: &ChatPromptTokens,
        object: Map<String, Value>,
        needs_full_text: bool,
    ) -> Result<(BuiltPrompt, Option<String>), RecordError> {
        let (text, note, full_text, mut metadata, original) = match Record::from_object(object)? {
            Record::Chat(record) => {
                let (text, note) = tokens.prompt_text(&record)?;
                let full_text = needs_full_text.then(|| tokens.full_text(&record));
                (text, note, full_text, record.metadata, ("conversations", record.original))
            }
            Record::Messages(record) => {
                let template = self.template.as_ref().ok_or(RecordError::NoChatTemplate)?;
                let text = template.prompt_text(&record)?;
                (text, None, None, record.metadata, ("messages", record.messages))
            }
        };
        let ids = self.tokenizer.encode(&text).map_err(RecordError::tokenize)?;
        match self.kept {
            KeptMetadata::Nothing => metadata = Map::new(),
            KeptMetadata::OtherKeys => {}
            KeptMetadata::OtherKeysAndText => drop(metadata.insert(original.0.into(), original.1.into())),
        }
        Ok((BuiltPrompt { text, ids, metadata, note }, full_text))
    }
}

fn needs_full_text(fields: &[TokenField]) -> bool {
    fields.iter().any(|&field| field != TokenField::ContextIds)
}

/// `model.data.train_ds.on_bad_record`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadRecord {
    /// The run does not start.
    #[default]
    Refuse,
    /// The record is counted and left out.
    Skip,
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: RecordError,
}

/// All prompts of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptSet {
    /// The prompts kept, in the order of the file.
    pub prompts: Vec<PreparedPrompt>,
    /// Records read, bad and over-length ones counted.
    pub num_read: u64,
    /// Records skipped because they are bad.
    pub bad: Vec<BadRecord>,
    /// Prompts left out for their length: line and number of tokens.
    pub too_long: Vec<(u64, usize)>,
    /// What the user should know, with the line.
    pub notes: Vec<(u64, PromptNote)>,
}

/// Reads, checks and tokenizes a whole data file, in parallel.
///
/// # Errors
/// When the file cannot be read, or has bad records and `on_bad` refuses them.
pub fn load_prompts(
    path: &Path,
    builder: &PromptBuilder,
    limits: &LengthLimits,
    on_bad: OnBadRecord,
) -> Result<PromptSet, DataError> {
    let fields: Vec<TokenField> = limits.fields.iter().map(|&(field, _)| field).collect();
    let prepare = |_, object: Result<Map<String, Value>, RecordError>| {
        let (prompt, num_tokens) = builder.build_measured(object?, &fields)?;
        Ok(match limits.exceeded(&prompt, &num_tokens) {
            Some(num_tokens) => Prepared::TooLong(num_tokens),
            None => Prepared::Kept(prompt),
        })
    };
    let mut set = PromptSet::default();
    let mut num_bad = 0;
    JsonlReader::open(path)?.for_each(prepare, |line, prepared: Result<_, RecordError>| {
        let index = set.num_read;
        set.num_read += 1;
        match prepared {
            Err(reason) => {
                num_bad += 1;
                if on_bad == OnBadRecord::Skip || set.bad.len() < MAX_LISTED {
                    set.bad.push(BadRecord { line, reason });
                }
            }
            Ok(Prepared::TooLong(num_tokens)) => set.too_long.push((line, num_tokens)),
            // The run is refused anyway: only the counting goes on.
            Ok(Prepared::Kept(_)) if on_bad == OnBadRecord::Refuse && num_bad > 0 => {}
            Ok(Prepared::Kept(BuiltPrompt { text, ids, metadata, note })) => {
                set.notes.extend(note.map(|note| (line, note)));
                set.prompts.push(PreparedPrompt { line, index, text, ids, metadata });
            }
        }
        Ok(())
    })?;
    if on_bad == OnBadRecord::Refuse && num_bad > 0 {
        return Err(DataError::BadRecords {
            path: path.into(),
            num_bad,
            num_read: set.num_read,
            listed: list_bad(&set.bad, num_bad),
        });
    }
    Ok(set)
}

enum Prepared {
    Kept(BuiltPrompt),
    TooLong(usize),
}

fn list_bad(bad: &[BadRecord], num_bad: u64) -> String {
    let listed = bad.iter().map(|record| format!("  line {}: {}", record.line, record.reason));
    let num_more = num_bad - bad.len() as u64;
    let more = (num_more > 0).then(|| format!("  and {num_more} more"));
    listed.chain(more).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
