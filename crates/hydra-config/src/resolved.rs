//! A resolved configuration, read into types through figment with one provider for each layer.

use figment::error::Kind;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use indexmap::IndexMap;
use serde::de::DeserializeOwned;

use crate::nearest::nearest_of;
use crate::node::split;
use crate::origin::{Origin, Origins};
use crate::{ConfigError, Node};

/// A configuration without interpolations, and where each value came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    node: Node,
    origins: Origins,
}

impl Resolved {
    pub(crate) fn new(node: Node, origins: Origins) -> Self {
        Self { node, origins }
    }

    /// The tree.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where the value of a dotted key came from.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.origins.get(&split(key))
    }

    /// Every value that is not a map, in order, with its key and its origin.
    pub fn entries(&self) -> Vec<(String, &Node, Option<&Origin>)> {
        self.origins.entries(&self.node)
    }

    fn origin_text(&self, path: &[String]) -> String {
        self.origins.get(path).map_or_else(|| "not in any layer".to_owned(), ToString::to_string)
    }

    /// Reads the whole tree into a type.
    ///
    /// # Errors
    /// As for [`Self::extract_at`].
    pub fn extract<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        self.extract_at("")
    }

    /// Reads the subtree at `path` (the whole tree for the empty path) into a type.
    ///
    /// # Errors
    /// When a value is `???`, has the wrong type, or a key is missing or unknown; with the layer that set it.
    pub fn extract_at<T: DeserializeOwned>(&self, path: &str) -> Result<T, ConfigError> {
        let root = split(path);
        let subtree = self.node.at(&root).ok_or_else(|| ConfigError::MissingKey { key: path.to_owned() })?;
        let mut layers: IndexMap<&str, Node> = IndexMap::new();
        for (leaf, value) in subtree.leaves() {
            let full = [root.as_slice(), &leaf].concat();
            if value.is_missing() {
                return Err(ConfigError::Missing { key: full.join("."), origin: self.origin_text(&full) });
            }
            // A list belongs to the layer that set it as a whole: figment merges maps only.
            let len = (0..leaf.len()).find(|&len| matches!(subtree.at(&leaf[..len]), Some(Node::List(_))));
            let leaf = &leaf[..len.unwrap_or(leaf.len())];
            let full = [root.as_slice(), leaf].concat();
            let layer = self.origins.get(&full).map_or("", |origin| origin.layer.as_str());
            if let (Some(value), false) = (subtree.at(leaf), leaf.is_empty()) {
                layers.entry(layer).or_insert_with(Node::empty_map).set_at(leaf, value.clone());
            }
        }
        let figment = layers.into_iter().fold(Figment::new(), |figment, (name, node)| {
            figment.merge(Layer { name: name.to_owned(), node })
        });
        figment.extract().map_err(|error| self.convert(&root, error))
    }

    fn convert(&self, root: &[String], error: figment::Error) -> ConfigError {
        let Some(error) = error.into_iter().next() else {
            return ConfigError::Extract { message: "the configuration is empty".to_owned() };
        };
        let path = [root, &error.path].concat();
        let wrong_type = |expected: String| ConfigError::WrongType {
            key: path.join("."),
            expected,
            actual: self.node.at(&path).map_or_else(|| "nothing".to_owned(), Node::describe),
            origin: self.origin_text(&path),
        };
        match error.kind {
            Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
                wrong_type(user_word(&expected))
            }
            Kind::UnknownVariant(_, known) => {
                let known: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
                wrong_type(format!("one of {}", known.join(", ")))
            }
            Kind::UnknownField(field, known) => {
                let parent = if path.last() == Some(&field) { &path[..path.len() - 1] } else { &path[..] };
                let full = [parent, std::slice::from_ref(&field)].concat();
                let in_parent = |name: &str| [parent, &[name.to_owned()]].concat().join(".");
                ConfigError::UnknownKey {
                    key: full.join("."),
                    origin: self.origin_text(&full),
                    nearest: nearest_of(&field, known.iter().copied()).map(|known| in_parent(&known)),
                    instead: None,
                    add: None,
                }
            }
            Kind::MissingField(field) => {
                ConfigError::MissingKey { key: [path.as_slice(), &[field.into_owned()]].concat().join(".") }
            }
            // What a type says that it expects, where serde has no words of its own for it.
            Kind::Message(expected) => wrong_type(expected),
            kind => wrong_type(kind.to_string()),
        }
    }
}

/// serde's words for a type in words that a user knows.
fn user_word(expected: &str) -> String {
    match expected {
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => "a whole number from 0",
        "f32" | "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "a string" | "a borrowed string" | "path string" | "a character" => "a string",
        "a sequence" | "a tuple" => "a list",
        "a map" => "a map",
        "unit" => "null",
        other if other.starts_with("struct ") => "a map",
        other => other,
    }
    .to_owned()
}

/// The values that one layer set.
struct Layer {
    name: String,
    node: Node,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone()).interpolater(|_, keys| keys.join("."))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let Value::Dict(_, dict) = to_value(&self.node) else { return Ok(Map::new()) };
        Ok(Profile::Default.collect(dict))
    }
}

fn to_value(node: &Node) -> Value {
    match node {
        Node::Null => Value::from(figment::value::Empty::None),
        Node::Bool(value) => Value::from(*value),
        Node::Int(value) => Value::from(*value),
        Node::Float(value) => Value::from(*value),
        Node::Str(text) => Value::from(text.as_str()),
        Node::List(list) => Value::from(list.iter().map(to_value).collect::<Vec<_>>()),
        Node::Map(map) => {
            Value::from(map.iter().map(|(key, value)| (key.clone(), to_value(value))).collect::<Dict>())
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Composer, ConfigError};

    #[derive(serde::Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Trainer {
        devices: u32,
        limit: f64,
        name: Option<String>,
        tags: Vec<String>,
        #[serde(rename = "a.b")]
        dotted: Option<i64>,
    }

    fn extract(overrides: &[&str]) -> Result<Trainer, ConfigError> {
        let mut composer = Composer::new();
        composer.push_yaml("defaults.yaml", "trainer: {devices: 8, limit: 1, name: null, tags: [a]}\n")?;
        composer.push_yaml("mine.yaml", "\ntrainer:\n  a.b: 3\n  tags:\n  - x\n  - y\n")?;
        composer.apply_overrides(&overrides.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())?;
        composer.resolve(&|_| None)?.extract_at("trainer")
    }

    #[test]
    fn trees_become_types() {
        let trainer = extract(&["trainer.devices=2", "trainer.name=x"]).unwrap();
        let expected = Trainer {
            devices: 2,
            limit: 1.0,
            name: Some("x".to_owned()),
            tags: vec!["x".to_owned(), "y".to_owned()],
            dotted: Some(3),
        };
        assert_eq!(trainer, expected);
    }

    #[test]
    fn errors_name_key_value_and_layer() {
        let message = |overrides: &[&str]| extract(overrides).unwrap_err().to_string();
        insta::assert_snapshot!(message(&["trainer.devices=abc"]), @"`trainer.devices` must be a whole number from 0, found the string `abc` (command line: trainer.devices=abc)");
        insta::assert_snapshot!(message(&["trainer.devices=-1"]), @"`trainer.devices` must be a whole number from 0, found the whole number -1 (command line: trainer.devices=-1)");
        insta::assert_snapshot!(message(&["trainer.limit=[1]"]), @"`trainer.limit` must be a number, found a list (command line: trainer.limit=[1])");
        insta::assert_snapshot!(message(&["trainer.name={a:1}"]), @"`trainer.name` must be a string, found a map (command line: trainer.name={a:1})");
        insta::assert_snapshot!(message(&["trainer.tags=x"]), @"`trainer.tags` must be a list, found the string `x` (command line: trainer.tags=x)");
        insta::assert_snapshot!(message(&["trainer.tags.1=3"]), @"`trainer.tags.1` must be a string, found the whole number 3 (command line: trainer.tags.1=3)");
        insta::assert_snapshot!(message(&["++trainer.device=1"]), @"unknown key `trainer.device` (command line: ++trainer.device=1), did you mean `trainer.devices`?");
        insta::assert_snapshot!(message(&["trainer.devices=???"]), @"`trainer.devices` must be given: it is `???` (command line: trainer.devices=???); write `trainer.devices=VALUE`");
        insta::assert_snapshot!(message(&["trainer.tags=[a,'???']"]), @"`trainer.tags.1` must be given: it is `???` (command line: trainer.tags=[a,'???']); write `trainer.tags.1=VALUE`");
        insta::assert_snapshot!(message(&["trainer.name=${nope}"]), @"cannot resolve `${nope}` at `trainer.name` (command line: trainer.name=${nope}): there is no key `nope`");
        insta::assert_snapshot!(message(&["~trainer.limit"]), @"`trainer.limit` is missing; write `++trainer.limit=VALUE`");
        assert!(extract(&["trainer.devices=1.0"]).is_err());
    }
}
