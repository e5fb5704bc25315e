//! Chat records: one JSON object to a checked [`Record`]. Prompt-response records are in `prompt_response`.
//!
//! Follows the schema of NeMo's `gpt_sft_chat_dataset.py` (v2.0.0). Turn keys other than `from`, `value` and `label`
//! are ignored, as there. A key with null is absent: columns of data sets are filled with it. OpenAI's records, which are
//! accepted beside it, are in `messages`.

use crate::json::{Json, JsonObject};
use crate::messages::MessagesRecord;
use crate::record_error::RecordError;
use crate::record_keys::{has, optional_string, required_string, take_list};

/// The asking role when a record names none.
pub const DEFAULT_MASK: &str = "User";

/// How many turns an error names the roles of.
const MAX_ROLES: usize = 4;

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
