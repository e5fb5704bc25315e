//! OpenAI's `messages` records: what a chat template is given of them.
//!
//! Follows `apply_chat_template` of transformers 5.24 (`_normalize_chat_messages`, `_alias_reasoning_fields` and the
//! checks of `render_jinja_template` in `utils/chat_template_utils.py`), and TRL in what a record may hold beside its
//! messages: `tools`, also as a string of JSON, and `chat_template_kwargs`.

use crate::json::{Json, JsonObject};
use crate::record_error::RecordError;
use crate::record_keys::{required_string, take_list};

/// The names under which templates look for what a model thought; the first that has a value counts.
const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Arguments of `apply_chat_template` itself, which are no variables of a template. As such they would change what is
/// rendered, or collide with what this program passes.
const NO_VARIABLES: [&str; 16] = [
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
];

/// A record of OpenAI's format, as the chat template is given it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MessagesRecord {
    /// The messages, at least one, each with a string `role`; keys with null are left out.
    pub messages: Vec<Json>,
    /// The tools, each an object; `None` is Python's `None`.
    pub tools: Option<Vec<Json>>,
    /// The documents to answer from, each an object; `None` is Python's `None`.
    pub documents: Option<Vec<Json>>,
    /// Further variables of the template, which go before the special tokens of the same names.
    pub template_kwargs: JsonObject,
    /// Every key of the record but `messages`, unchanged.
    pub metadata: JsonObject,
}

impl MessagesRecord {
    pub(crate) fn from_object(mut object: JsonObject) -> Result<Self, RecordError> {
        let messages = take_list(&mut object, "messages")?;
        let messages = messages.iter().enumerate().map(|(idx, message)| normalized(idx, message));
        Ok(Self {
            messages: messages.collect::<Result<_, _>>()?,
            tools: objects(&object, "tools")?,
            documents: objects(&object, "documents")?,
            template_kwargs: template_kwargs(&object)?,
            metadata: object,
        })
    }
}

/// One message without the keys that hold null, and what the model thought under each name that templates know.
fn normalized(idx: usize, message: &Json) -> Result<Json, RecordError> {
    let key = format!("messages[{idx}]");
    let Json::Object(message) = message else { return Err(wrong_type(key, "an object", message)) };
    required_string(message, "role", &format!("{key}."))?;
    let mut message = message.clone();
    message.retain(|_, value| *value != Json::Null);
    let Some(reasoning) = REASONING_KEYS.iter().find_map(|key| message.get(*key)).cloned() else {
        return Ok(Json::Object(message));
    };
    // A template may write out all keys of a message, so their order is Python's: `thinking` first, unless it is there.
    let mut aliased = JsonObject::new();
    aliased.insert("thinking".to_owned(), reasoning.clone());
    aliased.extend(message);
    aliased.insert("reasoning_content".to_owned(), reasoning);
    Ok(Json::Object(aliased))
}

/// A list of objects, which may be given as a string of JSON: data sets store lists of different shapes so.
fn objects(record: &JsonObject, key: &'static str) -> Result<Option<Vec<Json>>, RecordError> {
    let items = match parsed(record, key)? {
        Json::Null => return Ok(None),
        Json::Array(items) => items,
        other => return Err(wrong_type(key.to_owned(), "a list of objects", &other)),
    };
    match items.iter().enumerate().find(|(_, item)| !matches!(item, Json::Object(_))) {
        Some((idx, other)) => Err(wrong_type(format!("{key}[{idx}]"), "an object", other)),
        None => Ok(Some(items)),
    }
}

/// `chat_template_kwargs`. Null means absent here, too: a column of objects has every key in every record.
fn template_kwargs(record: &JsonObject) -> Result<JsonObject, RecordError> {
    const KEY: &str = "chat_template_kwargs";
    let mut kwargs = match parsed(record, KEY)? {
        Json::Null => return Ok(JsonObject::new()),
        Json::Object(object) => object,
        other => return Err(wrong_type(KEY.to_owned(), "an object", &other)),
    };
    kwargs.retain(|_, value| *value != Json::Null);
    match kwargs.keys().find(|name| NO_VARIABLES.contains(&name.as_str())) {
        Some(name) => Err(RecordError::NoTemplateVariable { name: name.clone() }),
        None => Ok(kwargs),
    }
}

/// The value of a key, read as JSON where it is a string.
fn parsed(record: &JsonObject, key: &'static str) -> Result<Json, RecordError> {
    match record.get(key) {
        None => Ok(Json::Null),
        Some(Json::String(text)) => Json::parse(text).map_err(|error| RecordError::NotJsonText {
            key,
            column: error.column,
            reason: error.reason,
        }),
        Some(value) => Ok(value.clone()),
    }
}

fn wrong_type(key: String, expected: &'static str, found: &Json) -> RecordError {
    RecordError::WrongType { key, expected, found: found.kind() }
}

#[cfg(test)]
mod tests;
