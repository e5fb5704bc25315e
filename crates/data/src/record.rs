//! Chat records: one JSON object to a checked [`Record`]. Prompt-response records are in `prompt_response`.
//!
//! Follows the schema of NeMo's `gpt_sft_chat_dataset.py` (v2.0.0). Turn keys other than `from`, `value` and `label`
//! are ignored, as there. A key with null is absent: columns of data sets are filled with it. OpenAI's records, which are
//! accepted beside it, are in `messages`.

use crate::DataError;
use crate::json::{Json, JsonObject};
use crate::messages::MessagesRecord;

/// The asking role when a record names none.
pub const DEFAULT_MASK: &str = "User";

/// How many turns an error names the roles of.
const MAX_ROLES: usize = 4;

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
    /// A text that is to hold JSON and does not.
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

/// One checked record of a data file.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// NeMo's chat format.
    Chat(ChatRecord),
    /// OpenAI's `messages`.
    Messages(MessagesRecord),
}

/// Where labels stand in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelLayout {
    /// Before the text: the model writes text for a label.
    ValueToText,
    /// After the text: the model writes the label.
    TextToValue,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub from: String,
    /// What is said.
    pub value: String,
    /// Its label, if it has one.
    pub label: Option<String>,
}

/// A record of NeMo's chat format.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRecord {
    /// The system text, possibly empty.
    pub system: String,
    /// The turns, at least one.
    pub conversations: Vec<Turn>,
    /// The asking role, whose turns the model does not write.
    pub mask: String,
    /// Where labels stand; none are rendered without it.
    pub layout: Option<LabelLayout>,
    /// Every key of the record but `conversations`, as the original reports it.
    pub metadata: JsonObject,
}

impl Record {
    /// Checks one record.
    ///
    /// # Errors
    /// When a key is missing or of the wrong kind, or the conversation makes no prompt.
    pub fn from_object(object: JsonObject) -> Result<Self, RecordError> {
        if has(&object, "conversations") {
            ChatRecord::from_object(object).map(Self::Chat)
        } else if has(&object, "messages") {
            MessagesRecord::from_object(object).map(Self::Messages)
        } else if let Some(key) =
            ["conversations", "messages"].into_iter().find(|key| object.contains_key(*key))
        {
            Err(RecordError::NullKey { key: key.into() })
        } else if has(&object, "system") || has(&object, "mask") {
            Err(RecordError::MissingKey { key: "conversations".into() })
        } else {
            Err(RecordError::PromptResponse)
        }
    }
}

/// Whether the key is there with a value.
pub(crate) fn has(object: &JsonObject, key: &str) -> bool {
    object.get(key).is_some_and(|value| *value != Json::Null)
}

impl ChatRecord {
    fn from_object(mut object: JsonObject) -> Result<Self, RecordError> {
        let turns = take_list(&mut object, "conversations")?;
        let conversations = turns
            .iter()
            .enumerate()
            .map(|(idx, turn)| Turn::from_value(idx, turn))
            .collect::<Result<Vec<_>, _>>()?;
        let system = required_string(&object, "system", "")?;
        let mask = optional_string(&object, "mask", "")?.unwrap_or_else(|| DEFAULT_MASK.into());
        let layout = match optional_string(&object, "type", "")?.as_deref() {
            None => None,
            Some("VALUE_TO_TEXT") => Some(LabelLayout::ValueToText),
            Some("TEXT_TO_VALUE") => Some(LabelLayout::TextToValue),
            Some(other) => return Err(RecordError::UnknownType { found: other.into() }),
        };
        if !conversations.iter().any(|turn| turn.from == mask) {
            let mut roles: Vec<String> =
                conversations.iter().map(|turn| format!("`{}`", turn.from)).take(MAX_ROLES).collect();
            roles.dedup();
            return Err(RecordError::MaskRoleAbsent { mask, roles: roles.join(", ") });
        }
        Ok(Self { system, conversations, mask, layout, metadata: object })
    }
}

impl Turn {
    fn from_value(idx: usize, turn: &Json) -> Result<Self, RecordError> {
        let place = format!("conversations[{idx}]");
        let Json::Object(turn) = turn else {
            return Err(RecordError::WrongType { key: place, expected: "an object", found: turn.kind() });
        };
        let place = format!("{place}.");
        Ok(Self {
            from: required_string(turn, "from", &place)?,
            value: required_string(turn, "value", &place)?,
            label: optional_string(turn, "label", &place)?,
        })
    }
}

pub(crate) fn take_list(object: &mut JsonObject, key: &'static str) -> Result<Vec<Json>, RecordError> {
    match object.shift_remove(key) {
        None => Err(RecordError::MissingKey { key: key.into() }),
        Some(Json::Array(items)) if items.is_empty() => Err(RecordError::EmptyConversation { key }),
        Some(Json::Array(items)) => Ok(items),
        Some(other) => {
            Err(RecordError::WrongType { key: key.into(), expected: "a list", found: other.kind() })
        }
    }
}

fn optional_string(object: &JsonObject, key: &str, place: &str) -> Result<Option<String>, RecordError> {
    match object.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(RecordError::WrongType {
            key: format!("{place}{key}"),
            expected: "a string",
            found: other.kind(),
        }),
    }
}

pub(crate) fn required_string(object: &JsonObject, key: &str, place: &str) -> Result<String, RecordError> {
    let place_of = |key| format!("{place}{key}");
    optional_string(object, key, place)?.ok_or_else(|| match object.contains_key(key) {
        true => RecordError::NullKey { key: place_of(key) },
        false => RecordError::MissingKey { key: place_of(key) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(json: &str) -> String {
        let object = crate::jsonl::parse_object(json.as_bytes()).unwrap();
        Record::from_object(object).unwrap_err().to_string()
    }

    #[test]
    fn bad_records_say_what_is_wrong() {
        insta::assert_snapshot!(reason(r#"{"conversations": []}"#), @"`conversations` is empty");
        insta::assert_snapshot!(reason(r#"{"conversations": {}}"#), @"key `conversations` is an object, it must be a list");
        insta::assert_snapshot!(reason(r#"{"conversations": [1]}"#), @"key `conversations[0]` is a number, it must be an object");
        insta::assert_snapshot!(reason(r#"{"conversations": [{"value": "x"}]}"#), @"key `conversations[0].from` is missing");
        insta::assert_snapshot!(reason(r#"{"conversations": [{"from": "User", "value": null}]}"#), @"key `conversations[0].value` is null");
        insta::assert_snapshot!(reason(r#"{"conversations": [{"from": "User", "value": "x", "label": 4}]}"#), @"key `conversations[0].label` is a number, it must be a string");
        insta::assert_snapshot!(reason(r#"{"conversations": [{"from": "User", "value": "x"}]}"#), @r#"key `system` is missing, write `"system": ""` for none"#);
        insta::assert_snapshot!(reason(r#"{"system": null, "conversations": [{"from": "User", "value": "x"}]}"#), @r#"key `system` is null, write `"system": ""` for none"#);
        insta::assert_snapshot!(reason(r#"{"system": "", "type": "X", "conversations": [{"from": "User", "value": "x"}]}"#), @"`type` is `X`, it must be null, `VALUE_TO_TEXT` or `TEXT_TO_VALUE`");
        insta::assert_snapshot!(reason(r#"{"system": "", "conversations": [{"from": "A", "value": "x"}]}"#), @"the `mask` role `User` is not in the conversation: set `mask` to the asking one of `A`");
        insta::assert_snapshot!(reason(r#"{"system": ""}"#), @"key `conversations` is missing");
        insta::assert_snapshot!(reason(r#"{"system": null, "conversations": null, "messages": null}"#), @"key `conversations` is null");
        insta::assert_snapshot!(reason(r#"{"system": null, "mask": null, "input": "x"}"#), @r#"it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'"#);
        insta::assert_snapshot!(reason(r#"{"input": "x", "output": "y"}"#), @r#"it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'"#);
    }

    #[test]
    fn metadata_is_everything_but_the_turns() {
        let json =
            r#"{"id": 7, "conversations": [{"from": "User", "value": "x"}], "system": "s", "mask": null}"#;
        let object = crate::jsonl::parse_object(json.as_bytes()).unwrap();
        let Record::Chat(record) = Record::from_object(object).unwrap() else { unreachable!() };
        assert_eq!(Json::Object(record.metadata).to_string(), r#"{"id": 7, "system": "s", "mask": null}"#);
        assert_eq!(record.mask, "User");
    }

    #[test]
    fn null_is_absent() {
        let json = r#"{"messages": null, "system": "", "type": null, "mask": null, "conversations": [
            {"from": "User", "value": "x", "label": null}]}"#;
        let object = crate::jsonl::parse_object(json.as_bytes()).unwrap();
        let Record::Chat(record) = Record::from_object(object).unwrap() else { unreachable!() };
        assert_eq!(
            (record.mask.as_str(), record.layout, &record.conversations[0].label),
            ("User", None, &None)
        );
        let json =
            r#"{"messages": [{"role": "user", "content": "x"}], "conversations": null, "system": null}"#;
        let object = crate::jsonl::parse_object(json.as_bytes()).unwrap();
        let Record::Messages(record) = Record::from_object(object).unwrap() else { unreachable!() };
        assert_eq!(Json::Object(record.metadata).to_string(), r#"{"conversations": null, "system": null}"#);
    }
}
