//! The order-preserving tree that every configuration document becomes.

use indexmap::IndexMap;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer, Visitor};

use crate::ConfigError;

/// One value of a configuration tree. Keys keep the order in which they were written.
///
/// A mandatory value (`???`) and a value with an interpolation (`${a.b}`) are [`Node::Str`] until resolved,
/// as in OmegaConf.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A string, an unresolved interpolation or `???`.
    Str(String),
    /// A list.
    List(Vec<Node>),
    /// A map.
    Map(IndexMap<String, Node>),
}

/// OmegaConf's mark of a value that must be given.
pub(crate) const MISSING: &str = "???";

impl Node {
    /// An empty map.
    pub fn empty_map() -> Self {
        Self::Map(IndexMap::new())
    }

    /// The value at a dotted path; list elements by their index. The empty path is the node itself.
    pub fn get(&self, path: &str) -> Option<&Self> {
        self.at(&split(path))
    }

    /// Sets the value at a dotted path. Maps on the way are made; anything else there is replaced by a map.
    pub fn set(&mut self, path: &str, value: Self) {
        self.set_at(&split(path), value);
    }

    /// Removes and returns the value at a dotted path.
    pub fn remove(&mut self, path: &str) -> Option<Self> {
        self.remove_at(&split(path))
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// The integer, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        if let Self::Int(value) = self { Some(*value) } else { None }
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The map, if it is one.
    pub fn as_map(&self) -> Option<&IndexMap<String, Self>> {
        if let Self::Map(map) = self { Some(map) } else { None }
    }

    /// The list, if it is one.
    pub fn as_list(&self) -> Option<&[Self]> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    /// Whether this is the mark of a value that must be given.
    pub fn is_missing(&self) -> bool {
        self.as_str() == Some(MISSING)
    }

    /// The value at a path of keys, which may have dots in them.
    pub(crate) fn at(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.child(key))
    }

    /// The value of a key, or the element at an index.
    pub(crate) fn child(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(map) => map.get(key),
            Self::List(list) => list.get(key.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// Sets the value at a path of keys; maps on the way are made.
    pub(crate) fn set_at(&mut self, path: &[String], value: Self) {
        let Some((key, rest)) = path.split_first() else {
            *self = value;
            return;
        };
        if let (Self::List(list), Ok(index)) = (&mut *self, key.parse::<usize>())
            && let Some(element) = list.get_mut(index)
        {
            return element.set_at(rest, value);
        }
        if !matches!(self, Self::Map(_)) {
            *self = Self::empty_map();
        }
        if let Self::Map(map) = self {
            map.entry(key.clone()).or_insert_with(Self::empty_map).set_at(rest, value);
        }
    }

    /// Removes and returns the value at a path of keys.
    pub(crate) fn remove_at(&mut self, path: &[String]) -> Option<Self> {
        let (key, rest) = path.split_first()?;
        let Self::Map(map) = self else { return None };
        if rest.is_empty() { map.shift_remove(key) } else { map.get_mut(key)?.remove_at(rest) }
    }

    /// The paths of all values that are neither maps nor lists, and of empty ones, in order.
    pub(crate) fn leaves(&self) -> Vec<(Vec<String>, &Self)> {
        fn walk<'a>(node: &'a Node, path: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, &'a Node)>) {
            let mut descend = |key: String, value: &'a Node| {
                path.push(key);
                walk(value, path, leaves);
                path.pop();
            };
            match node {
                Node::Map(map) if !map.is_empty() => {
                    map.iter().for_each(|(key, value)| descend(key.clone(), value));
                }
                Node::List(list) if !list.is_empty() => {
                    list.iter().enumerate().for_each(|(index, value)| descend(index.to_string(), value));
                }
                _ => leaves.push((path.clone(), node)),
            }
        }
        let mut leaves = Vec::new();
        walk(self, &mut Vec::new(), &mut leaves);
        leaves
    }

    /// Whether it is a string with an interpolation.
    pub(crate) fn has_interpolation(&self) -> bool {
        matches!(self, Self::Str(text) if text.contains("${"))
    }

    /// The value as a message shows it.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => format!("the whole number {value}"),
            Self::Float(value) => format!("the number {}", crate::float_repr::float_repr(*value)),
            Self::Str(text) => format!("the string `{text}`"),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }

    /// What kind of value this is, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Int(_) => "whole number",
            Self::Float(_) => "number",
            Self::Str(_) => "string",
            Self::List(_) => "list",
            Self::Map(_) => "map",
        }
    }

    /// The dotted paths of all values that are not maps, empty maps included, in order.
    pub fn leaf_paths(&self) -> Vec<String> {
        fn walk(node: &Node, path: &str, paths: &mut Vec<String>) {
            match node {
                Node::Map(map) if !map.is_empty() => {
                    for (key, value) in map {
                        walk(value, &join(path, key), paths);
                    }
                }
                _ => paths.push(path.to_owned()),
            }
        }
        let mut paths = Vec::new();
        walk(self, "", &mut paths);
        paths
    }

    /// Builds any serde type from the tree.
    ///
    /// # Errors
    /// When a key is missing or unknown, or a value has another type.
    pub fn deserialize_into<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(self)
            .map_err(|error: serde::de::value::Error| ConfigError::Extract { message: error.to_string() })
    }
}

/// The keys of a dotted path; none of the empty one.
pub(crate) fn split(path: &str) -> Vec<String> {
    if path.is_empty() { Vec::new() } else { path.split('.').map(str::to_owned).collect() }
}

/// `path.key`, or `key` at the root.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

macro_rules! from_value {
    ($($ty:ty => |$value:ident| $node:expr),* $(,)?) => {
        $(impl From<$ty> for Node {
            fn from($value: $ty) -> Self {
                $node
            }
        })*
    };
}
from_value! {
    bool => |value| Self::Bool(value),
    i64 => |value| Self::Int(value),
    f64 => |value| Self::Float(value),
    &str => |value| Self::Str(value.to_owned()),
    String => |value| Self::Str(value),
    Vec<Self> => |value| Self::List(value),
    IndexMap<String, Self> => |value| Self::Map(value),
}

impl<T: Into<Self>> From<Option<T>> for Node {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl<'de> IntoDeserializer<'de, serde::de::value::Error> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> serde::Deserializer<'de> for &'de Node {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Int(value) => visitor.visit_i64(*value),
            Node::Float(value) => visitor.visit_f64(*value),
            Node::Str(value) => visitor.visit_borrowed_str(value),
            Node::List(list) => visitor.visit_seq(SeqDeserializer::new(list.iter())),
            Node::Map(map) => {
                visitor.visit_map(MapDeserializer::new(map.iter().map(|(key, value)| (key.as_str(), value))))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if matches!(self, Node::Null) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self {
            Node::Str(value) => value.as_str().into_deserializer().deserialize_enum(name, variants, visitor),
            other => other.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}
