//! What can be wrong with one record of a data file.

use crate::DataError;

/// What is wrong with one record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Nothing on the line.
    #[error("the line is blank")]
    Blank,
    /// Bytes that are not UTF-8.
    #[error("not UTF-8 at column {column}")]
    InvalidUtf8 {
        /// Byte in the line, from 1.
        column: usize,
    },
    /// Text that is not JSON.
    #[error("not JSON at column {column}: {reason}")]
    InvalidJson {
        /// Byte in the line, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// JSON of the wrong kind.
    #[error("the line is {found}, not an object")]
    NotAnObject {
        /// The kind found.
        found: &'static str,
    },
    /// An absent key.
    #[error("key `{key}` is missing{}", hint_of(key))]
    MissingKey {
        /// The key, such as `conversations[1].value`.
        key: String,
    },
    /// A key with null, which cannot be done without.
    #[error("key `{key}` is null{}", hint_of(key))]
    NullKey {
        /// The key, such as `conversations[1].value`.
        key: String,
    },
    /// A value of the wrong kind.
    #[error("key `{key}` is {found}, it must be {expected}")]
    WrongType {
        /// The key, such as `conversations[1].value`.
        key: String,
        /// The kind needed.
        expected: &'static str,
        /// The kind found.
        found: &'static str,
    },
    /// A length hint that is no number of tokens.
    #[error("key `{key}` is {found}, a length hint must be a number of tokens from 0 to {most}")]
    BadLengthHint {
        /// The key of the hint.
        key: String,
        /// What is there.
        found: String,
        /// The most tokens that are believed.
        most: u32,
    },
    /// A column that sets a parameter of its row and does not say one.
    #[error("column `{column}` is {found}, it must be {expected}")]
    BadRowParam {
        /// The column.
        column: &'static str,
        /// The values that it takes.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A structure that cannot be used.
    #[error("column `{column}`: {reason}")]
    BadStructure {
        /// The column, or the key of a body.
        column: &'static str,
        /// Why.
        reason: String,
    },
    /// A column that looks like a parameter of its row and is none.
    #[error(
        "column `{column}` looks like a parameter of the row; those are {known}: rename it, or set \
         `model.data.train_ds.row_params=false`"
    )]
    UnknownRowParam {
        /// The column.
        column: String,
        /// The parameters that there are.
        known: String,
    },
    /// A parameter of a request that would change its answer and is not known.
    #[error("`body.{key}` is {value}, which is not offered; a body may have {known}")]
    UnknownBatchParam {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The parameters that there are.
        known: String,
    },
    /// A key of a request's line that is none.
    #[error(
        "`{key}` stands beside `body`, where nothing reads it: parameters belong into `body`, and a line has `custom_id`, `method`, `url` and `body`"
    )]
    UnknownBatchKey {
        /// The key.
        key: String,
    },
    /// A part of a message's content that is no text.
    #[error("a message's `content` has {part}, and only parts with `type` `text` and a `text` can be read")]
    UnknownContentPart {
        /// The part.
        part: String,
    },
    /// A label layout that does not exist.
    #[error("`type` is `{found}`, it must be null, `VALUE_TO_TEXT` or `TEXT_TO_VALUE`")]
    UnknownType {
        /// The type given.
        found: String,
    },
    /// No turn at all.
    #[error("`{key}` is empty")]
    EmptyConversation {
        /// `conversations` or `messages`.
        key: &'static str,
    },
    /// The asking role never speaks.
    #[error("the `mask` role `{mask}` is not in the conversation: set `mask` to the asking one of {roles}")]
    MaskRoleAbsent {
        /// The asking role.
        mask: String,
        /// The roles there are.
        roles: String,
    },
    /// Only the asking role speaks, and the answering role cannot be determined.
    #[error(
        "only the `mask` role `{mask}` speaks, and the answering role cannot be determined: add a turn of the \
         answering role"
    )]
    NoAnsweringRole {
        /// The asking role.
        mask: String,
    },
    /// A string that is to hold JSON and does not.
    #[error("key `{key}` is a string that is not JSON at column {column}: {reason}")]
    NotJsonText {
        /// The key.
        key: &'static str,
        /// Byte in the text, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A name in `chat_template_kwargs` that is not a variable of a template.
    #[error("key `chat_template_kwargs.{name}` sets no variable of the chat template: leave it out")]
    NoTemplateVariable {
        /// The name.
        name: String,
    },
    /// A `messages` record without a template to render it.
    #[error(
        "`messages` records need a chat template, and the checkpoint's `tokenizer` section has none: set \
         `++model.tokenizer.chat_template` or give `conversations`"
    )]
    NoChatTemplate,
    /// A `messages` record, and a template that cannot be used.
    #[error("it is a `messages` record, and {reason}")]
    UnusableChatTemplate {
        /// What is wrong with it, in a sentence.
        reason: String,
    },
    /// The template asks for a date that is not set.
    #[error(
        "the chat template asks for the date, which no prompt takes from the clock: set one, in the shell write \
         ++model.data.date=2026-01-31"
    )]
    NoTemplateDate,
    /// The template refused the record.
    #[error("the chat template failed: {reason}")]
    Template {
        /// What the template engine says.
        reason: String,
    },
    /// A prompt-response record where chat records are read.
    #[error(
        "it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and \
         `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template=\"{{input}} {{output}}\"'"
    )]
    PromptResponse,
    /// A chat record where prompt-response records are read.
    #[error("it is a chat record, and `model.data.chat` is false; set `model.data.chat=true`")]
    ChatRecord,
    /// A key of the prompt template that the record lacks.
    #[error("key `{key}` of the prompt template is missing")]
    MissingTemplateKey {
        /// The key.
        key: String,
    },
    /// A key of the prompt template that holds null.
    #[error("key `{key}` of the prompt template is null")]
    NullTemplateKey {
        /// The key.
        key: String,
    },
    /// The tokenizer refused the prompt.
    #[error("the prompt cannot be tokenized: {reason}")]
    Tokenize {
        /// What the tokenizer says.
        reason: String,
    },
    /// A prompt of no tokens.
    #[error("the prompt has no tokens: its text is empty")]
    EmptyPrompt,
}

fn hint_of(key: &str) -> &'static str {
    if key == "system" { ", write `\"system\": \"\"` for none" } else { "" }
}

impl RecordError {
    #[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` takes")]
    pub(crate) fn tokenize(error: DataError) -> Self {
        Self::Tokenize { reason: error.to_string() }
    }
}
