//! JSON as Python's `json` module reads and writes it, with every number kept as it is written.
//!
//! `serde_json` would round numbers: whole ones beyond 64 bits, `0.10`, `1.0E5`. Metadata is to come back digit for digit,
//! and the feature of `serde_json` that keeps digits breaks other readers of the program, because it is switched on for
//! all of them. `NaN`, `Infinity` and `-Infinity` are numbers, as in Python. Unlike there, half a surrogate pair is
//! refused: no string can hold it.

mod reader;
mod writer;

use std::fmt;

use indexmap::IndexMap;

/// Keys in their order. Of a key that appears twice, the last value counts, in the place of the first.
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
    /// A string.
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
