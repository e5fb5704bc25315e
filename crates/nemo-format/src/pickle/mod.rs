//! Pickles, read without ever running them.
//!
//! A pickle is a program for a stack machine. This machine keeps every object it is told to build as an inert value;
//! the names it may mention are on closed lists. What the values mean is the reader's business.

mod machine;
mod names;
pub(crate) mod write;

#[cfg(test)]
pub(crate) use machine::parse;
pub(crate) use machine::{parse_first, parse_names};
pub(crate) use names::Names;

/// Index of a value in its pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ValueId(u32);

/// One value. Containers hold indices, so that deep or circular structures cost no recursion.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    List(Vec<ValueId>),
    Tuple(Vec<ValueId>),
    Dict(Vec<(ValueId, ValueId)>),
    /// A name from the allow list: module and name.
    Global(String, String),
    /// What a call or a class instance would have been.
    Object {
        callable: ValueId,
        arguments: ValueId,
        state: Option<ValueId>,
    },
    /// A persistent id.
    Persistent(ValueId),
}

/// A parsed pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: ValueId,
}

impl Pickle {
    pub(crate) fn root(&self) -> ValueId {
        self.root
    }

    /// Every value, whether the root holds it or not.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ValueId> {
        (0..self.values.len() as u32).map(ValueId)
    }

    pub(crate) fn value(&self, id: ValueId) -> &Value {
        self.values.get(id.0 as usize).unwrap_or(&Value::None)
    }

    pub(crate) fn items(&self, id: ValueId) -> Option<&[ValueId]> {
        match self.value(id) {
            Value::List(items) | Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn dict(&self, id: ValueId) -> Option<&[(ValueId, ValueId)]> {
        if let Value::Dict(entries) = self.value(id) { Some(entries) } else { None }
    }

    pub(crate) fn text(&self, id: ValueId) -> Option<&str> {
        if let Value::Str(text) = self.value(id) { Some(text) } else { None }
    }

    pub(crate) fn int(&self, id: ValueId) -> Option<i64> {
        if let Value::Int(value) = self.value(id) { Some(*value) } else { None }
    }

    /// A list or tuple of integers that are not negative.
    pub(crate) fn sizes(&self, id: ValueId) -> Option<Vec<u64>> {
        self.items(id)?.iter().map(|&item| u64::try_from(self.int(item)?).ok()).collect()
    }

    /// The value of a string key.
    pub(crate) fn entry(&self, id: ValueId, key: &str) -> Option<ValueId> {
        self.dict(id)?.iter().find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    /// The class or function name of an object, its arguments and its state.
    pub(crate) fn object(&self, id: ValueId) -> Option<(&str, ValueId, Option<ValueId>)> {
        let Value::Object { callable, arguments, state } = self.value(id) else { return None };
        let Value::Global(_, name) = self.value(*callable) else { return None };
        Some((name, *arguments, *state))
    }

    /// A field of an object's state.
    pub(crate) fn field(&self, id: ValueId, name: &str) -> Option<ValueId> {
        self.entry(self.object(id)?.2?, name)
    }

    /// A `torch.Size`, a tuple or a list.
    pub(crate) fn torch_size(&self, id: ValueId) -> Option<Vec<u64>> {
        match self.object(id) {
            Some(("Size", arguments, _)) => self.sizes(*self.items(arguments)?.first()?),
            Some(_) => None,
            None => self.sizes(id),
        }
    }
}
