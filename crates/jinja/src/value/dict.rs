//! Dicts, and what Python's equality and hash see of their keys.

use std::sync::Arc;

use indexmap::IndexMap;

use super::{Str, Value};
use crate::error::{Error, Result};
use crate::number;

/// A key of a dict: what Python's equality and hash see.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    None,
    /// `True` is 1, and so is 1.0.
    Int(i128),
    /// The bits of a float that is no whole number.
    Float(u64),
    Str(Arc<str>),
    Tuple(Vec<Key>),
    /// Length, start and step of a range.
    Range(usize, i128, i128),
    Undefined,
}

impl Key {
    pub(crate) fn of(value: &Value) -> Result<Self> {
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(flag) => Self::Int(i128::from(*flag)),
            Value::Int(int) => Self::Int(*int),
            Value::Float(float) => match number::whole(*float) {
                Some(int) => Self::Int(int),
                None => Self::Float(float.to_bits()),
            },
            Value::Huge(_) => return Err(number::too_large()),
            Value::Str(text) => Self::Str(Arc::clone(&text.text)),
            Value::Tuple(items) | Value::Group(items) => {
                Self::Tuple(items.iter().map(Self::of).collect::<Result<_>>()?)
            }
            Value::Undefined(_) => Self::Undefined,
            Value::Range(range) => {
                let len = range.len();
                let start = if len > 0 { range.start } else { 0 };
                let step = if len > 1 { range.step } else { 0 };
                Self::Range(len, start, step)
            }
            other => return Err(Error::type_error(format!("unhashable type: '{}'", other.type_name()))),
        })
    }
}

/// A dict, in the order of insertion.
#[derive(Clone, Default)]
pub(crate) struct Dict {
    entries: IndexMap<Key, (Value, Value)>,
}

impl Dict {
    pub(crate) fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        match self.entries.entry(Key::of(&key)?) {
            // The first key stays: `{1: "a", true: "b"}` is `{1: "b"}`.
            indexmap::map::Entry::Occupied(mut entry) => entry.get_mut().1 = value,
            indexmap::map::Entry::Vacant(entry) => drop(entry.insert((key, value))),
        }
        Ok(())
    }

    pub(crate) fn insert_str(&mut self, key: &str, value: Value) {
        let text: Arc<str> = key.into();
        self.entries.insert(Key::Str(Arc::clone(&text)), (Value::Str(Str { text, is_markup: false }), value));
    }

    pub(crate) fn get(&self, key: &Value) -> Result<Option<&Value>> {
        Ok(self.entries.get(&Key::of(key)?).map(|(_, value)| value))
    }

    pub(crate) fn get_str(&self, key: &str) -> Option<&Value> {
        self.entries.get(&Key::Str(key.into())).map(|(_, value)| value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &(Value, Value)> {
        self.entries.values()
    }
}
