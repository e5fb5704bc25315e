//! JSON as Python's `json` module reads and writes it, with every number kept as it is written.
//!
//! `serde_json` would round numbers: whole ones beyond 64 bits, `0.10`, `1.0E5`. Metadata is to come back digit for digit,
//! and the feature of `serde_json` that keeps digits breaks other readers of the program, because it is switched on for
//! all of them. `NaN`, `Infinity` and `-Infinity` are numbers, as in Python. Unlike there, half a surrogate pair is
//! refused: no text can hold it.

mod reader;
mod writer;

use std::fmt;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::record::RecordError;

/// Keys in their order. Of a key that stands twice, the last value counts, in the place of the first.
pub type JsonObject = IndexMap<String, Json>;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it is written.
    Number(Box<str>),
    /// A text.
    String(String),
    /// A list.
    Array(Vec<Json>),
    /// Keys and values.
    Object(JsonObject),
}

/// Where a text is not JSON, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonError {
    /// Byte in the text, from 1.
    pub(crate) column: usize,
    pub(crate) reason: String,
}

impl Json {
    /// The kind of the value, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// The value for a chat template, which counts with the numbers that Python would count with.
    ///
    /// # Errors
    /// When a number has more than 64 bits, or is no finite one: `key`, or what stands below it.
    pub(crate) fn to_value(&self, key: &dyn fmt::Display) -> Result<Value, RecordError> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::String(text) => Value::String(text.clone()),
            Self::Number(text) => number(text).ok_or_else(|| RecordError::NumberTooLarge {
                key: key.to_string(),
                number: text.to_string(),
            })?,
            Self::Array(items) => items
                .iter()
                .enumerate()
                .map(|(idx, item)| item.to_value(&format_args!("{key}[{idx}]")))
                .collect::<Result<_, _>>()?,
            Self::Object(object) => Value::Object(to_map(object, key)?),
        })
    }
}

/// The entries for a chat template.
pub(crate) fn to_map(object: &JsonObject, key: &dyn fmt::Display) -> Result<Map<String, Value>, RecordError> {
    let entry =
        |(name, value): (&String, &Json)| Ok((name.clone(), value.to_value(&format_args!("{key}.{name}"))?));
    object.iter().map(entry).collect()
}

/// A whole number of 64 bits or a finite float; `-0` is the whole number 0, as in Python.
fn number(text: &str) -> Option<Value> {
    if text.contains(['.', 'e', 'E']) {
        return text.parse().ok().and_then(serde_json::Number::from_f64).map(Value::Number);
    }
    let signed = text.parse::<i64>().map(Value::from);
    signed.or_else(|_| text.parse::<u64>().map(Value::from)).ok()
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

/// Laid out as Python's `json.dumps(…, ensure_ascii=False)` does it.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writer::write(f, self)
    }
}

#[cfg(test)]
pub(crate) mod tests;
