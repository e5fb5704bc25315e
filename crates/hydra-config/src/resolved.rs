//! A resolved configuration, read into types through figment with one provider for each layer.

use std::collections::HashMap;

use figment::error::Kind;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use indexmap::IndexMap;
use serde::de::DeserializeOwned;

use crate::composer::nearest_of;
use crate::node::join;
use crate::{ConfigError, Node};

/// A configuration without interpolations, and where each value came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    node: Node,
    origins: HashMap<String, String>,
}

impl Resolved {
    pub(crate) fn new(node: Node, origins: HashMap<String, String>) -> Self {
        Self { node, origins }
    }

    /// The tree.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Which layer set a value.
    pub fn origin(&self, key: &str) -> Option<&str> {
        self.origins.get(key).map(String::as_str)
    }

    /// The layer of a value, or of whatever above it was set as a whole.
    fn layer_of(&self, key: &str) -> &str {
        let mut key = key;
        loop {
            if let Some(layer) = self.origins.get(key) {
                return layer;
            }
            match key.rsplit_once('.') {
                Some((parent, _)) => key = parent,
                None => return "an unnamed layer",
            }
        }
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
        let subtree = self
            .node
            .get(path)
            .ok_or_else(|| ConfigError::Extract { message: format!("there is no key `{path}`") })?;
        let mut layers: IndexMap<&str, Node> = IndexMap::new();
        for leaf in subtree.leaf_paths() {
            let key = if leaf.is_empty() { path.to_owned() } else { join(path, &leaf) };
            let layer = self.layer_of(&key);
            match subtree.get(&leaf) {
                Some(value) if value.is_missing() => {
                    return Err(ConfigError::Missing { key, layer: layer.to_owned() });
                }
                Some(value) if !leaf.is_empty() => {
                    layers.entry(layer).or_insert_with(Node::empty_map).set(&leaf, value.clone());
                }
                _ => {}
            }
        }
        let figment = layers.into_iter().fold(Figment::new(), |figment, (name, node)| {
            figment.merge(Layer { name: name.to_owned(), node })
        });
        figment.extract().map_err(|error| self.convert(path, error))
    }

    fn convert(&self, path: &str, error: figment::Error) -> ConfigError {
        let error = error.into_iter().next();
        let Some(error) = error else {
            return ConfigError::Extract { message: "the configuration is empty".to_owned() };
        };
        let key = error.path.iter().fold(path.to_owned(), |path, key| join(&path, key));
        let layer = self.layer_of(&key).to_owned();
        match error.kind {
            Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
                ConfigError::WrongType { key, expected, actual: actual.to_string(), layer }
            }
            Kind::UnknownField(field, known) => {
                let key = if key.ends_with(&field) { key } else { join(&key, &field) };
                let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
                let nearest = nearest_of(&field, known.iter().copied()).map(|known| join(parent, &known));
                ConfigError::UnknownKey { layer: self.layer_of(&key).to_owned(), nearest, key }
            }
            Kind::MissingField(field) => {
                ConfigError::Extract { message: format!("`{}` is missing", join(&key, &field)) }
            }
            kind => {
                ConfigError::WrongType { key, expected: "valid".to_owned(), actual: kind.to_string(), layer }
            }
        }
    }
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
    }

    fn extract(overrides: &[&str]) -> Result<Trainer, ConfigError> {
        let mut composer = Composer::new();
        composer
            .push_yaml("built-in defaults", "trainer: {devices: 8, limit: 1, name: null, tags: [a]}\n")?;
        composer.apply_overrides(&overrides.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())?;
        composer.resolve(&|_| None)?.extract_at("trainer")
    }

    #[test]
    fn trees_become_types() {
        let trainer = extract(&["trainer.devices=2", "trainer.name=x"]).unwrap();
        let expected =
            Trainer { devices: 2, limit: 1.0, name: Some("x".to_owned()), tags: vec!["a".to_owned()] };
        assert_eq!(trainer, expected);
    }

    #[test]
    fn errors_name_key_value_and_layer() {
        let message = |overrides: &[&str]| extract(overrides).unwrap_err().to_string();
        insta::assert_snapshot!(message(&["trainer.devices=abc"]), @r#"`trainer.devices` must be u32, found string "abc" (set by command line: trainer.devices=abc)"#);
        insta::assert_snapshot!(message(&["++trainer.device=1"]), @"unknown key `trainer.device` (command line: ++trainer.device=1), did you mean `trainer.devices`?; to add a new key, write `++trainer.device=…`");
        insta::assert_snapshot!(message(&["trainer.devices=???"]), @"`trainer.devices` must be given (it is `???` in command line: trainer.devices=???)");
        insta::assert_snapshot!(message(&["trainer.devices=-1"]), @"`trainer.devices` must be u32, found signed int `-1` (set by command line: trainer.devices=-1)");
        insta::assert_snapshot!(message(&["~trainer.limit"]), @"`trainer.limit` is missing");
        assert!(extract(&["trainer.devices=1.0"]).is_err());
    }
}
