//! Metadata values of a GGUF file.
//!
//! Integers of every width are widened; f32 and f64 stay apart because a shortest-decimal reading of an f32
//! (`1e-05`) is what its writer meant, not the nearest f64 (`9.999999747378752e-06`).

use std::fmt;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An unsigned integer of 8 to 64 bits.
    Unsigned(u64),
    /// A signed integer of 8 to 64 bits.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    Str(String),
    /// A list of values of one type.
    Array(Vec<GgufValue>),
}

impl GgufValue {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// The integer, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The number, if it is one; an f32 by its shortest decimal form.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::F32(value) => value.to_string().parse().ok(),
            Self::F64(value) => Some(*value),
            Self::Unsigned(value) => Some(*value as f64),
            Self::Signed(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// Whether it says nothing: zero, false, an empty text or list.
    pub(crate) fn is_off(&self) -> bool {
        match self {
            Self::Bool(flag) => !flag,
            Self::Str(text) => text.is_empty() || text == "none",
            Self::Array(values) => values.iter().all(Self::is_off),
            _ => self.as_f64() == Some(0.0),
        }
    }

    /// The integer that a key has for the model, or that a list has for every layer.
    pub(crate) fn as_same_u64(&self) -> Option<u64> {
        match self.as_array() {
            None => self.as_u64(),
            Some(values) => {
                let first = values.first()?.as_u64()?;
                values.iter().all(|value| value.as_u64() == Some(first)).then_some(first)
            }
        }
    }

    /// The list, if it is one.
    pub fn as_array(&self) -> Option<&[Self]> {
        if let Self::Array(values) = self { Some(values) } else { None }
    }
}

impl fmt::Display for GgufValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Longer lists and strings are truncated.
        const MAX_SHOWN: usize = 8;
        match self {
            Self::Unsigned(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::F32(value) => value.fmt(f),
            Self::F64(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Str(text) => text.chars().take(8 * MAX_SHOWN).collect::<String>().fmt(f),
            Self::Array(values) => {
                let shown: Vec<String> = values.iter().take(MAX_SHOWN).map(Self::to_string).collect();
                let more = if values.len() > MAX_SHOWN { ", …" } else { "" };
                write!(f, "[{}{more}]", shown.join(", "))
            }
        }
    }
}
