//! The keys of a record, each with its kind of value.

use crate::json::{Json, JsonObject};
use crate::record_error::RecordError;

/// Whether the key is there with a value.
pub(crate) fn has(object: &JsonObject, key: &str) -> bool {
    object.get(key).is_some_and(|value| *value != Json::Null)
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

pub(crate) fn optional_string(
    object: &JsonObject,
    key: &str,
    place: &str,
) -> Result<Option<String>, RecordError> {
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
