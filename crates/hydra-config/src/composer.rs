//! Layers of configuration, merged as OmegaConf merges, with the origin of every value kept.

use std::collections::HashMap;

use crate::defaults::{self, ConfigFiles};
use crate::grammar::expression;
use crate::nearest::nearest_of;
use crate::node::split;
use crate::origin::{Layer, Origin, Origins};
use crate::overrides::{Override, OverrideKind};
use crate::resolved::Resolved;
use crate::yaml::Document;
use crate::{ConfigError, Node, interpolation, overrides, python};

/// A configuration under construction: layers are pushed lowest first.
#[derive(Clone, Debug)]
pub struct Composer {
    root: Node,
    origins: Origins,
}

impl Default for Composer {
    fn default() -> Self {
        Self { root: Node::empty_map(), origins: Origins::default() }
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

    /// Where the value of a dotted key came from.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.origins.get(&split(key))
    }

    /// Merges a YAML document over what is there.
    ///
    /// # Errors
    /// When it is not YAML, or cannot be merged.
    pub fn push_yaml(&mut self, layer: &str, text: &str) -> Result<(), ConfigError> {
        self.push_document(layer, Document::parse(text, layer)?, &[])
    }

    /// Merges a config file and the files of its defaults list over what is there, with the options of config groups
    /// that the overrides choose. Gives back the overrides that are for values.
    ///
    /// # Errors
    /// When a file is not there or is not YAML, a defaults list or an override of a group does not fit.
    pub fn push_config(
        &mut self,
        files: &dyn ConfigFiles,
        primary: &str,
        overrides: Vec<Override>,
    ) -> Result<Vec<Override>, ConfigError> {
        let (placed, overrides) = defaults::choose(files, primary, overrides)?;
        for file in placed {
            self.push_document(&file.name, file.document, &file.package)?;
        }
        Ok(overrides)
    }

    /// Merges a tree over what is there.
    ///
    /// # Errors
    /// When a map would be merged into a list, or the other way round.
    pub fn push_node(&mut self, layer: &str, node: Node) -> Result<(), ConfigError> {
        self.push_document(layer, Document { node, lines: HashMap::new() }, &[])
    }

    /// Merges a document into the tree at `package`.
    pub(crate) fn push_document(
        &mut self,
        name: &str,
        document: Document,
        package: &[String],
    ) -> Result<(), ConfigError> {
        let layer = Layer::Document { name, lines: &document.lines, depth: package.len() };
        let mut tree = Node::empty_map();
        tree.set_at(package, document.node);
        self.merge_root(tree, layer)
    }

    /// Merges a YAML document under what is at the dotted key `package`, without some of its dotted keys: what is there
    /// already wins.
    ///
    /// # Errors
    /// When it is not YAML, or cannot be merged.
    pub fn push_below(
        &mut self,
        layer: &str,
        text: &str,
        package: &str,
        without: &[String],
    ) -> Result<(), ConfigError> {
        let mut document = Document::parse(text, layer)?;
        for key in without {
            document.node.remove(key);
        }
        let package = split(package);
        let mut below = Self::new();
        below.push_document(layer, document, &package)?;
        if let Some(existing) = self.root.at(&package) {
            let mut tree = Node::empty_map();
            tree.set_at(&package, existing.clone());
            below.merge_root(tree, Layer::Merged(&self.origins))?;
        }
        if let Some(merged) = below.root.at(&package) {
            self.root.set_at(&package, merged.clone());
            self.origins.replace(&package, below.origins);
        }
        Ok(())
    }

    /// Sets the value of a dotted key as a layer of its own.
    pub fn set(&mut self, origin: &Origin, key: &str, value: Node) {
        let path = split(key);
        let layer = Layer::Named(&origin.layer);
        self.origins.record(&path, &value, layer);
        self.origins.set_line(&path, origin.line);
        self.root.set_at(&path, value);
    }

    /// Merges the value of one dotted key into that of another, and takes it away where it was.
    ///
    /// # Errors
    /// When the two cannot be merged.
    pub fn move_key(&mut self, from: &str, to: &str) -> Result<(), ConfigError> {
        let (from, to) = (split(from), split(to));
        let Some(node) = self.root.remove_at(&from) else { return Ok(()) };
        let origins = self.origins.take(&from).below(&to);
        let mut tree = Node::empty_map();
        tree.set_at(&to, node);
        self.merge_root(tree, Layer::Merged(&origins))
    }

    /// Takes away the value of a dotted key.
    pub fn take(&mut self, key: &str) -> Option<Node> {
        let path = split(key);
        self.origins.forget(&path);
        self.root.remove_at(&path)
    }

    /// Every value that is not a map, in order, with its key and its origin.
    pub fn entries(&self) -> Vec<(String, &Node, Option<&Origin>)> {
        self.origins.entries(&self.root)
    }

    fn merge_root(&mut self, tree: Node, layer: Layer<'_>) -> Result<(), ConfigError> {
        let mut root = self.root.clone();
        self.merge(&mut root, tree, &mut Vec::new(), layer)?;
        self.root = root;
        Ok(())
    }

    fn merge(
        &mut self,
        base: &mut Node,
        node: Node,
        path: &mut Vec<String>,
        layer: Layer<'_>,
    ) -> Result<(), ConfigError> {
        if base.has_interpolation()
            && matches!(node, Node::Map(_))
            && let Ok(Some(target @ Node::Map(_))) = interpolation::resolve_at(&self.root, path, &|_| None)
        {
            // OmegaConf merges a map into a copy of what the interpolation points at.
            *base = target;
        }
        match (&mut *base, node) {
            (Node::Map(map), Node::Map(entries)) => {
                for (key, value) in entries {
                    path.push(key);
                    let key = path.last().cloned().unwrap_or_default();
                    match map.get_mut(&key) {
                        Some(existing) => self.merge(existing, value, path, layer)?,
                        None => {
                            self.origins.record(path, &value, layer);
                            map.insert(key, value);
                        }
                    }
                    path.pop();
                }
            }
            (existing @ Node::List(_), value @ Node::Map(_))
            | (existing @ Node::Map(_), value @ Node::List(_)) => {
                return Err(self.cannot_merge(path, existing, &value, layer));
            }
            (_, value) if value.is_missing() => {}
            (existing, value) => {
                self.origins.record(path, &value, layer);
                *existing = value;
            }
        }
        Ok(())
    }

    fn cannot_merge(&self, path: &[String], existing: &Node, value: &Node, layer: Layer<'_>) -> ConfigError {
        ConfigError::Merge {
            key: path.join("."),
            value: value.describe(),
            origin: layer.origin(path).to_string(),
            existing: existing.describe(),
            existing_origin: self.origins.get(path).map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// Applies command-line overrides in order, with Hydra's rules for keys that are or are not there. Settings of
    /// Hydra itself are left out where there is no `hydra` in the tree.
    ///
    /// # Errors
    /// When one cannot be read or does not fit the configuration.
    pub fn apply_overrides(&mut self, arguments: &[String]) -> Result<(), ConfigError> {
        arguments.iter().try_for_each(|argument| self.apply(&overrides::parse(argument)?))
    }

    /// Applies one override, as [`Self::apply_overrides`] does.
    ///
    /// # Errors
    /// When it does not fit the configuration.
    pub fn apply(&mut self, change: &Override) -> Result<(), ConfigError> {
        if change.is_hydra() && (change.key.contains('/') || self.root.get("hydra").is_none()) {
            return Ok(());
        }
        if change.key.contains('/') || change.package.is_some() {
            let message =
                format!("there is no config group `{}` in the folders of the config files", change.key);
            return Err(ConfigError::Defaults { source_name: change.text.clone(), message });
        }
        let path = split(&change.key);
        if change.kind == OverrideKind::Delete {
            return self.delete(change, &path);
        }
        let value = change.value.clone().unwrap_or(Node::Null);
        check_texts(&value).map_err(|message| ConfigError::Override {
            text: change.text.clone(),
            message,
            quoted: None,
        })?;
        let name = format!("command line: {}", change.text);
        let layer = Layer::Named(&name);
        let existing = self.root.at(&path);
        // Maps and lists may be merged over anything.
        let is_collection = matches!(value, Node::Map(_) | Node::List(_));
        match (change.kind, existing) {
            (OverrideKind::Set, None) => return Err(self.unknown(change, change.key.clone())),
            (OverrideKind::Add, _) if self.is_occupied(&path)? && !is_collection => {
                return Err(ConfigError::KeyExists { key: change.key.clone(), text: change.text.clone() });
            }
            (_, None) if self.adds_to_list(&path) => return Err(self.unknown(change, change.key.clone())),
            (OverrideKind::Set, Some(base @ Node::Map(_))) => {
                if let Some(absent) = absent_leaf(base, &value) {
                    return Err(self.unknown(change, [path.as_slice(), &absent].concat().join(".")));
                }
            }
            _ => {}
        }
        match (existing, &value) {
            (Some(existing @ Node::Map(_)), Node::Map(_)) => {
                let mut merged = existing.clone();
                self.merge(&mut merged, value, &mut path.clone(), layer)?;
                self.root.set_at(&path, merged);
                Ok(())
            }
            (Some(existing @ Node::Map(_)), Node::List(_))
            | (Some(existing @ Node::List(_)), Node::Map(_)) => {
                Err(self.cannot_merge(&path, existing, &value, layer))
            }
            _ => {
                self.origins.record(&path, &value, layer);
                self.root.set_at(&path, value);
                Ok(())
            }
        }
    }

    /// The error of an override whose key is not there, or a key in the map that it sets.
    fn unknown(&self, change: &Override, key: String) -> ConfigError {
        let nearest = self.nearest(&key);
        let with_key = |nearest: &String| change.with_key(nearest).into();
        let instead = if key == change.key { nearest.as_ref().map(with_key) } else { None };
        let is_element = self.adds_to_list(&split(&key));
        let add =
            (change.kind == OverrideKind::Set && !is_element).then(|| format!("++{}", change.text).into());
        ConfigError::UnknownKey {
            key,
            origin: format!("command line: {}", change.text),
            nearest,
            instead,
            add,
        }
    }

    /// Whether `+key=value` must refuse: null and `???` are nothing. References that lead nowhere fail.
    fn is_occupied(&self, path: &[String]) -> Result<bool, ConfigError> {
        let existing = interpolation::raw_at(&self.root, path).map_err(|error| self.with_origin(error))?;
        Ok(existing.is_some_and(|node| node != Node::Null))
    }

    /// Whether a key would be a new element of a list, which Hydra refuses.
    fn adds_to_list(&self, path: &[String]) -> bool {
        (0..path.len()).any(|len| {
            let parent = self.root.at(&path[..len]);
            matches!(parent, Some(list @ Node::List(_)) if list.child(&path[len]).is_none())
        })
    }

    fn delete(&mut self, change: &Override, path: &[String]) -> Result<(), ConfigError> {
        let error = |message: String| Err(ConfigError::Delete { text: change.text.clone(), message });
        if self.root.at(path).is_none() {
            return error(format!("there is no key `{}`", change.key));
        }
        // Hydra looks at the resolved value of the key, and treats null and `???` as absent.
        let existing = interpolation::raw_at(&self.root, path).map_err(|error| self.with_origin(error))?;
        let Some(existing) = existing.filter(|existing| *existing != Node::Null) else {
            return error(format!("the value of `{}` is null or `???`", change.key));
        };
        if matches!(self.root.at(&path[..path.len() - 1]), Some(Node::List(_))) {
            return error(format!("`{}` is an element of a list", change.key));
        }
        let is_wanted = match &change.value {
            None | Some(Node::Null) => true,
            Some(value) => {
                let resolved = interpolation::resolve_at(&self.root, path, &|_| None).ok().flatten();
                python::equal(resolved.as_ref().unwrap_or(&existing), value)
            }
        };
        if !is_wanted {
            return error(format!("the value of `{}` is {}", change.key, existing.describe()));
        }
        self.root.remove_at(path);
        self.origins.forget(path);
        Ok(())
    }

    /// The known key most like an unknown one.
    pub fn nearest(&self, key: &str) -> Option<String> {
        nearest_of(key, self.root.leaf_paths().iter().map(String::as_str))
    }

    /// The value of one dotted key, with its interpolations resolved and the others left alone; `None` when there is
    /// no such key.
    ///
    /// # Errors
    /// When an interpolation leads nowhere or in a circle.
    pub fn resolve_at(
        &self,
        key: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Node>, ConfigError> {
        let value = interpolation::resolve_at(&self.root, &split(key), env);
        value.map_err(|error| self.with_origin(error))
    }

    /// Resolves all interpolations. `env` answers `${oc.env:NAME}`.
    ///
    /// # Errors
    /// When an interpolation leads nowhere or in a circle.
    pub fn resolve(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Resolved, ConfigError> {
        let node = interpolation::resolve_tree(&self.root, env).map_err(|error| self.with_origin(error))?;
        Ok(Resolved::new(node, self.origins.clone()))
    }

    fn with_origin(&self, error: ConfigError) -> ConfigError {
        match error {
            ConfigError::Interpolation { key, expression, message, .. } => {
                let origin = self.origin(&key).map(ToString::to_string);
                ConfigError::Interpolation { key, expression, origin, message }
            }
            other => other,
        }
    }
}

/// The first path of a map literal that the map it is for does not have.
fn absent_leaf(base: &Node, value: &Node) -> Option<Vec<String>> {
    let Node::Map(map) = value else { return None };
    map.iter().find_map(|(key, value)| match base.child(key) {
        None => Some(vec![key.clone()]),
        Some(child @ Node::Map(_)) => {
            absent_leaf(child, value).map(|path| [vec![key.clone()], path].concat())
        }
        Some(_) => None,
    })
}

/// What OmegaConf would refuse: a string whose interpolation cannot be parsed.
fn check_texts(value: &Node) -> Result<(), String> {
    match value {
        Node::Str(text) if value.has_interpolation() => expression::parse_text(text).map(|_| ()),
        Node::List(list) => list.iter().try_for_each(check_texts),
        Node::Map(map) => map.values().try_for_each(check_texts),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
