//! Layers of configuration, merged as OmegaConf merges, with the origin of every value kept.

use std::collections::HashMap;

use crate::node::join;
use crate::overrides::{Override, OverrideKind};
use crate::resolved::Resolved;
use crate::{ConfigError, Node, interpolation, overrides, yaml};

/// A configuration under construction: layers are pushed lowest first.
#[derive(Clone, Debug)]
pub struct Composer {
    root: Node,
    /// Leaf path to the layer that set it last.
    origins: HashMap<String, String>,
}

impl Default for Composer {
    fn default() -> Self {
        Self { root: Node::empty_map(), origins: HashMap::new() }
    }
}

impl Composer {
    /// No layers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The merged tree, interpolations unresolved.
    pub fn node(&self) -> &Node {
        &self.root
    }

    /// Which layer set a value.
    pub fn origin(&self, key: &str) -> Option<&str> {
        self.origins.get(key).map(String::as_str)
    }

    /// Merges a YAML document over what is there.
    ///
    /// # Errors
    /// When it is not YAML, or cannot be merged.
    pub fn push_yaml(&mut self, layer: &str, text: &str) -> Result<(), ConfigError> {
        let mut node = yaml::parse(text, layer)?;
        check_defaults(&mut node, layer)?;
        self.push_node(layer, node)
    }

    /// Merges a tree over what is there.
    ///
    /// # Errors
    /// When a map would be merged into a list.
    pub fn push_node(&mut self, layer: &str, node: Node) -> Result<(), ConfigError> {
        let mut root = self.root.clone();
        self.merge(&mut root, node, "", layer)?;
        self.root = root;
        Ok(())
    }

    fn merge(&mut self, base: &mut Node, node: Node, path: &str, layer: &str) -> Result<(), ConfigError> {
        if let (Node::Str(text), Node::Map(_)) = (&*base, &node)
            && text.contains("${")
            && let Ok(target @ Node::Map(_)) = interpolation::resolve_at(&self.root, path, &|_| None)
        {
            // OmegaConf merges a map into a copy of what the interpolation points at.
            *base = target;
        }
        match (&mut *base, node) {
            (Node::Map(map), Node::Map(entries)) => {
                for (key, value) in entries {
                    let path = join(path, &key);
                    self.origins.remove(map.get(&key).map_or("", |_| path.as_str()));
                    match map.get_mut(&key) {
                        Some(existing) => self.merge(existing, value, &path, layer)?,
                        None => {
                            self.record(&value, &path, layer);
                            map.insert(key, value);
                        }
                    }
                }
            }
            (Node::List(_), Node::Map(_)) | (Node::Map(_), Node::List(_)) => {
                return Err(ConfigError::Merge { key: path.to_owned(), layer: layer.to_owned() });
            }
            (_, value) if value.is_missing() => {}
            (existing, value) => {
                self.record(&value, path, layer);
                *existing = value;
            }
        }
        Ok(())
    }

    fn record(&mut self, value: &Node, path: &str, layer: &str) {
        let below = format!("{path}.");
        self.origins.retain(|key, _| key != path && !key.starts_with(&below));
        for leaf in value.leaf_paths() {
            let leaf = if leaf.is_empty() { path.to_owned() } else { join(path, &leaf) };
            self.origins.insert(leaf, layer.to_owned());
        }
    }

    /// Applies command-line overrides in order, with Hydra's rules for keys that are or are not there.
    ///
    /// # Errors
    /// When one cannot be read or does not fit the configuration.
    pub fn apply_overrides(&mut self, arguments: &[String]) -> Result<(), ConfigError> {
        arguments.iter().try_for_each(|argument| self.apply(overrides::parse(argument)?))
    }

    fn apply(&mut self, change: Override) -> Result<(), ConfigError> {
        let layer = format!("command line: {}", change.text);
        let existing = self.root.get(&change.key);
        let value = change.value.clone().unwrap_or(Node::Null);
        let unknown =
            |key: String| ConfigError::UnknownKey { nearest: self.nearest(&key), key, layer: layer.clone() };
        match change.kind {
            OverrideKind::Ignored => return Ok(()),
            OverrideKind::Delete => return self.delete(&change),
            OverrideKind::Set if existing.is_none() => return Err(unknown(change.key)),
            OverrideKind::Add if existing.is_some_and(|node| occupies(node, &value)) => {
                return Err(ConfigError::KeyExists { key: change.key, text: change.text });
            }
            _ if existing.is_none() && self.is_inside_list(&change.key) => return Err(unknown(change.key)),
            _ => {}
        }
        if let (OverrideKind::Set, Some(base @ Node::Map(_))) = (change.kind, existing)
            && matches!(&value, Node::Map(map) if !map.is_empty())
            && let Some(absent) = value.leaf_paths().into_iter().find(|leaf| base.get(leaf).is_none())
        {
            return Err(unknown(join(&change.key, &absent)));
        }
        match (existing, &value) {
            (Some(Node::Map(_)), Node::Map(_)) => {
                let mut tree = Node::empty_map();
                tree.set(&change.key, value);
                self.push_node(&layer, tree)
            }
            (Some(Node::Map(_)), Node::List(_)) | (Some(Node::List(_)), Node::Map(_)) => {
                Err(ConfigError::Merge { key: change.key, layer })
            }
            _ => {
                self.record(&value, &change.key, &layer);
                self.root.set(&change.key, value);
                Ok(())
            }
        }
    }

    /// Whether a key would be a new element of a list, which Hydra refuses.
    fn is_inside_list(&self, key: &str) -> bool {
        key.match_indices('.').any(|(at, _)| matches!(self.root.get(&key[..at]), Some(Node::List(_))))
    }

    fn delete(&mut self, change: &Override) -> Result<(), ConfigError> {
        let error = |message: String| Err(ConfigError::Delete { text: change.text.clone(), message });
        let Some(node) = self.root.get(&change.key) else {
            return error(format!("there is no key `{}`", change.key));
        };
        // Hydra looks at the value that the key stands for, and takes null and `???` for nothing.
        let node =
            interpolation::resolve_at(&self.root, &change.key, &|_| None).unwrap_or_else(|_| node.clone());
        if matches!(node, Node::Null) || node.is_missing() {
            return error(format!("the value of `{}` is null or `???`", change.key));
        }
        if self.is_inside_list(&change.key) {
            return error(format!("`{}` is an element of a list", change.key));
        }
        let is_wanted = match &change.value {
            None | Some(Node::Null) => true,
            Some(value) => equals(&node, value),
        };
        if !is_wanted {
            return error(format!("the value of `{}` is another", change.key));
        }
        self.root.remove(&change.key);
        let below = format!("{}.", change.key);
        self.origins.retain(|key, _| *key != change.key && !key.starts_with(&below));
        Ok(())
    }

    /// The known key most like an unknown one.
    pub fn nearest(&self, key: &str) -> Option<String> {
        nearest_of(key, self.root.leaf_paths().iter().map(String::as_str))
    }

    /// The value of one key, with its interpolations resolved and the others left alone.
    ///
    /// # Errors
    /// When there is no such key, or an interpolation leads nowhere or in a circle.
    pub fn resolve_at(&self, key: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Node, ConfigError> {
        interpolation::resolve_at(&self.root, key, env)
    }

    /// Resolves all interpolations. `env` answers `${oc.env:NAME}`.
    ///
    /// # Errors
    /// When an interpolation leads nowhere or in a circle.
    pub fn resolve(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Resolved, ConfigError> {
        Ok(Resolved::new(interpolation::resolve_tree(&self.root, env)?, self.origins.clone()))
    }
}

/// Whether `+key=value` must refuse: null and `???` are nothing, and maps and lists may be merged over anything.
fn occupies(existing: &Node, value: &Node) -> bool {
    !matches!(value, Node::Map(_) | Node::List(_))
        && !matches!(existing, Node::Null)
        && !existing.is_missing()
}

/// Equality as Python has it: `1`, `1.0` and `true` are equal.
fn equals(left: &Node, right: &Node) -> bool {
    let number =
        |node: &Node| node.as_f64().or_else(|| node.as_bool().map(|value| f64::from(u8::from(value))));
    match (left, right) {
        (Node::List(left), Node::List(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equals(left, right))
        }
        (Node::Map(left), Node::Map(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, value)| right.get(key).is_some_and(|other| equals(value, other)))
        }
        _ => match (number(left), number(right)) {
            (Some(left), Some(right)) => left == right,
            _ => left == right,
        },
    }
}

/// The candidate most like `key`, if any is near enough to be what was meant.
pub(crate) fn nearest_of<'a>(key: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    fn split(path: &str) -> (&str, &str) {
        path.rsplit_once('.').unwrap_or(("", path))
    }
    let score = |candidate: &str| {
        let ((parent, last), (candidate_parent, candidate_last)) = (split(key), split(candidate));
        if parent == candidate_parent {
            strsim::jaro_winkler(last, candidate_last)
        } else if last == candidate_last {
            0.9
        } else {
            strsim::jaro_winkler(key, candidate) - 0.1
        }
    };
    candidates
        .map(|candidate| (score(candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// Drops a `defaults` list that composes nothing; refuses any other.
fn check_defaults(node: &mut Node, layer: &str) -> Result<(), ConfigError> {
    let Some(defaults) = node.remove("defaults") else { return Ok(()) };
    for entry in defaults.as_list().unwrap_or_default() {
        let composes_nothing = match entry {
            Node::Str(text) => text == "_self_",
            Node::Map(map) => {
                map.iter().all(|(key, value)| key.starts_with("optional ") && *value == Node::Null)
            }
            _ => false,
        };
        if !composes_nothing {
            let entry = entry.to_yaml().trim().to_owned();
            return Err(ConfigError::Defaults { source_name: layer.to_owned(), entry });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "trainer: {devices: 8, precision: bf16}\nmodel:\n  data: {file: ???, list: [1, 2]}\n  max: ${trainer.devices}\n";

    fn compose(overrides: &[&str]) -> Result<Composer, ConfigError> {
        let mut composer = Composer::new();
        composer.push_yaml("built-in defaults", BASE)?;
        composer.apply_overrides(&overrides.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())?;
        Ok(composer)
    }

    #[test]
    fn overrides_set_add_and_delete() {
        let composer = compose(&[
            "trainer.devices=1",
            "++model.x.y=2",
            "+model.z={a:1}",
            "~model.data.list",
            "model.data={file:f}",
        ])
        .unwrap();
        assert_eq!(composer.node().get("trainer.devices"), Some(&Node::Int(1)));
        assert_eq!(composer.node().get("model.x.y"), Some(&Node::Int(2)));
        assert_eq!(composer.node().get("model.z.a"), Some(&Node::Int(1)));
        assert_eq!(composer.node().get("model.data.list"), None);
        assert_eq!(composer.origin("trainer.devices"), Some("command line: trainer.devices=1"));
        assert_eq!(composer.origin("trainer.precision"), Some("built-in defaults"));
    }

    #[test]
    fn refusals_name_the_key() {
        let message = |text: &str| compose(&[text]).unwrap_err().to_string();
        insta::assert_snapshot!(message("trainer.device=1"), @"unknown key `trainer.device` (command line: trainer.device=1), did you mean `trainer.devices`?; to add a new key, write `++trainer.device=…`");
        insta::assert_snapshot!(message("+trainer.devices=1"), @"`+trainer.devices=1` would add a key that exists; write `trainer.devices=…` or `++trainer.devices=…`");
        insta::assert_snapshot!(message("~nope"), @"cannot delete with `~nope`: there is no key `nope`");
        insta::assert_snapshot!(message("model.data={nope:1}"), @"unknown key `model.data.nope` (command line: model.data={nope:1}); to add a new key, write `++model.data.nope=…`");
    }

    #[test]
    fn merging_follows_omegaconf() {
        let mut composer = compose(&["model.data.file=x"]).unwrap();
        composer.push_yaml("later", "model: {data: {file: ???, list: [3]}, max: {a: 1}}\n").unwrap();
        assert_eq!(composer.node().get("model.data.file"), Some(&Node::from("x")));
        assert_eq!(composer.node().get("model.data.list"), Some(&Node::List(vec![Node::Int(3)])));
        assert_eq!(composer.origin("model.max.a"), Some("later"));
        assert!(composer.push_yaml("bad", "model: {data: {list: {a: 1}}}\n").is_err());
        assert!(
            composer.push_yaml("groups", "defaults:\n- optional tp_overlap@model.ub:\n- _self_\n").is_ok()
        );
        assert!(composer.push_yaml("groups", "defaults:\n- db: mysql\n").is_err());
    }
}
