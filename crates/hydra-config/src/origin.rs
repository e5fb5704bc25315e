//! Where every value of a configuration came from.

use std::collections::{BTreeMap, HashMap};

use crate::Node;

/// The layer that set a value, and the line where it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The name of the layer.
    pub layer: String,
    /// The line, from 1, in a layer that has lines.
    pub line: Option<usize>,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            None => f.write_str(&self.layer),
            Some(line) => write!(f, "{} line {line}", self.layer),
        }
    }
}

/// What is being merged.
#[derive(Clone, Copy)]
pub(crate) enum Layer<'a> {
    /// A document.
    Document {
        name: &'a str,
        /// Lines of its values, by path.
        lines: &'a HashMap<Vec<String>, usize>,
        /// How many keys of a path in the tree are above the document's root.
        depth: usize,
    },
    /// Something without lines.
    Named(&'a str),
    /// A tree that was merged before.
    Merged(&'a Origins),
}

impl Layer<'_> {
    pub(crate) fn origin(&self, path: &[String]) -> Origin {
        match self {
            Self::Document { name, lines, depth } => {
                let line = path.get(*depth..).and_then(|path| lines.get(path)).copied();
                Origin { layer: (*name).to_owned(), line }
            }
            Self::Named(name) => Origin { layer: (*name).to_owned(), line: None },
            Self::Merged(origins) => {
                let unknown = || Origin { layer: "an unnamed layer".to_owned(), line: None };
                origins.get(path).cloned().unwrap_or_else(unknown)
            }
        }
    }
}

/// The origins of values, by path. What is not listed came with what is above it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins(BTreeMap<Vec<String>, Origin>);

impl Origins {
    /// The origin of a value, or of whatever above it was set as a whole.
    pub(crate) fn get(&self, path: &[String]) -> Option<&Origin> {
        (0..=path.len()).rev().find_map(|len| self.0.get(&path[..len]))
    }

    pub(crate) fn forget(&mut self, path: &[String]) {
        let below: Vec<_> = self
            .0
            .range(path.to_vec()..)
            .take_while(|(key, _)| key.starts_with(path))
            .map(|(key, _)| key.clone())
            .collect();
        for key in below {
            self.0.remove(&key);
        }
    }

    /// Says in which line a value was set.
    pub(crate) fn set_line(&mut self, path: &[String], line: Option<usize>) {
        if let Some(origin) = self.0.get_mut(path) {
            origin.line = line;
        }
    }

    /// Every value of a tree that is not a map, with its key and its origin.
    pub(crate) fn entries<'a>(&'a self, root: &'a Node) -> Vec<(String, &'a Node, Option<&'a Origin>)> {
        fn walk<'a>(
            origins: &'a Origins,
            node: &'a Node,
            path: &mut Vec<String>,
            entries: &mut Vec<(String, &'a Node, Option<&'a Origin>)>,
        ) {
            match node {
                Node::Map(map) if !map.is_empty() => {
                    for (key, value) in map {
                        path.push(key.clone());
                        walk(origins, value, path, entries);
                        path.pop();
                    }
                }
                _ => entries.push((path.join("."), node, origins.get(path))),
            }
        }
        let mut entries = Vec::new();
        walk(self, root, &mut Vec::new(), &mut entries);
        entries
    }

    /// Takes the origins at and below a path, by what follows it.
    pub(crate) fn take(&mut self, path: &[String]) -> Self {
        let taken = self
            .0
            .range(path.to_vec()..)
            .take_while(|(key, _)| key.starts_with(path))
            .map(|(key, origin)| (key[path.len()..].to_vec(), origin.clone()))
            .collect();
        self.forget(path);
        Self(taken)
    }

    /// The same origins for values that stand below another path.
    pub(crate) fn below(self, path: &[String]) -> Self {
        Self(self.0.into_iter().map(|(key, origin)| ([path, &key].concat(), origin)).collect())
    }

    /// Puts in origins at and below a path.
    pub(crate) fn replace(&mut self, path: &[String], origins: Self) {
        self.forget(path);
        self.0.extend(origins.0.into_iter().filter(|(key, _)| key.starts_with(path)));
    }

    /// Records that a layer set a value as a whole.
    pub(crate) fn record(&mut self, path: &[String], value: &Node, layer: Layer<'_>) {
        self.forget(path);
        self.insert(&mut path.to_vec(), value, layer);
    }

    fn insert(&mut self, path: &mut Vec<String>, value: &Node, layer: Layer<'_>) {
        self.0.insert(path.clone(), layer.origin(path));
        let mut descend = |key: String, value: &Node| {
            path.push(key);
            self.insert(path, value, layer);
            path.pop();
        };
        match value {
            Node::Map(map) => map.iter().for_each(|(key, value)| descend(key.clone(), value)),
            Node::List(list) => {
                list.iter().enumerate().for_each(|(index, value)| descend(index.to_string(), value));
            }
            _ => {}
        }
    }
}
