//! OmegaConf's interpolations: `${a.b}`, relative `${.x}`, nested ones; resolvers are in [`resolvers`].
//!
//! The result is that of `OmegaConf.resolve`, save that a list or a map from a resolver is kept: there reading the key
//! works and resolving the whole tree fails.

mod resolvers;

use indexmap::IndexMap;

use crate::grammar::expression::{self, Element, Interpolation, Part};
use crate::node::MISSING;
use crate::{ConfigError, Node, python};

/// References through references that no real configuration needs.
const MAX_DEPTH: usize = 64;

/// Answers `${oc.env:NAME}`.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Resolves a whole tree against itself, value by value in its order. As in OmegaConf, a later value sees what has
/// become of an earlier one.
pub(crate) fn resolve_tree(root: &Node, env: Env<'_>) -> Result<Node, ConfigError> {
    let mut tree = root.clone();
    let texts: Vec<Vec<String>> = root
        .leaves()
        .into_iter()
        .filter(|(_, node)| node.has_interpolation())
        .map(|(path, _)| path)
        .collect();
    for path in texts {
        let Some(node) = tree.at(&path) else { continue };
        let mut resolver = Resolver { root: &tree, env, pending: Vec::new() };
        let value = resolver.resolve(&path, node)?;
        if let Node::Str(text) = &value
            && value.has_interpolation()
        {
            resolver.parse(&path, text)?;
        }
        tree.set_at(&path, value);
    }
    Ok(tree)
}

/// Resolves the value at one path; `None` when there is none.
pub(crate) fn resolve_at(root: &Node, path: &[String], env: Env<'_>) -> Result<Option<Node>, ConfigError> {
    Resolver { root, env, pending: Vec::new() }.lookup(path)
}

/// The unresolved value at one path, with references to it followed; `None` when there is none, or it is missing.
pub(crate) fn raw_at(root: &Node, path: &[String]) -> Result<Option<Node>, ConfigError> {
    match (Resolver { root, env: &|_| None, pending: Vec::new() }).raw(path) {
        Err(ConfigError::Missing { .. }) => Ok(None),
        found => found.map(|node| node.filter(|node| !node.is_missing())),
    }
}

/// The keys of a path with dots and brackets: `a[b].c` and `[a].b.c` are the same.
pub(crate) fn split_key(key: &str) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    let mut rest = key;
    let first = rest.find(['.', '[']).unwrap_or(rest.len());
    if first > 0 {
        keys.push(rest[..first].to_owned());
    }
    rest = &rest[first..];
    while !rest.is_empty() {
        let (key, after) = if let Some(bracketed) = rest.strip_prefix('[') {
            bracketed.split_once(']').unwrap_or((bracketed, ""))
        } else {
            let rest = rest.strip_prefix('.').unwrap_or(rest);
            rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()))
        };
        keys.push(key.to_owned());
        rest = after;
    }
    keys
}

/// A value, or where in the tree it stands.
enum Located {
    At(Vec<String>),
    Value(Node),
}

pub(crate) struct Resolver<'a> {
    root: &'a Node,
    pub(crate) env: Env<'a>,
    /// Keys whose values are being resolved, outermost first.
    pending: Vec<Vec<String>>,
}

impl Resolver<'_> {
    fn resolve(&mut self, path: &[String], node: &Node) -> Result<Node, ConfigError> {
        match node {
            Node::Map(map) => map
                .iter()
                .map(|(key, value)| Ok((key.clone(), self.resolve(&child(path, key), value)?)))
                .collect::<Result<IndexMap<_, _>, ConfigError>>()
                .map(Node::Map),
            Node::List(list) => list
                .iter()
                .enumerate()
                .map(|(index, value)| self.resolve(&child(path, &index.to_string()), value))
                .collect::<Result<_, _>>()
                .map(Node::List),
            Node::Str(text) if node.has_interpolation() => {
                let value = self.guarded(path, text, |resolver| {
                    let parts = resolver.parse(path, text)?;
                    resolver.text(path, &parts)
                });
                match value {
                    // Whatever asks for a missing value is missing itself, until it is read.
                    Err(ConfigError::Missing { .. }) => Ok(Node::from(MISSING)),
                    value => value,
                }
            }
            other => Ok(other.clone()),
        }
    }

    /// Runs with `path` among the pending keys, where it must not be yet.
    fn guarded<T>(
        &mut self,
        path: &[String],
        text: &str,
        run: impl FnOnce(&mut Self) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        if self.pending.iter().any(|pending| pending == path) || self.pending.len() > MAX_DEPTH {
            let chain: Vec<_> = self.pending.iter().map(|key| format!("`{}`", key.join("."))).collect();
            let message =
                format!("the references form a cycle: {} -> `{}`", chain.join(" -> "), path.join("."));
            return Err(self.error(path, text, message));
        }
        self.pending.push(path.to_vec());
        let value = run(self);
        self.pending.pop();
        value
    }

    pub(crate) fn error(&self, path: &[String], text: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Interpolation {
            key: path.join("."),
            expression: text.to_owned(),
            origin: None,
            message: message.into(),
        }
    }

    fn parse(&self, path: &[String], text: &str) -> Result<expression::Text, ConfigError> {
        expression::parse_text(text).map_err(|message| self.error(path, text, message))
    }

    /// The value of a string: what it refers to when it is one interpolation, else the string with all replaced.
    fn text(&mut self, path: &[String], parts: &[Part]) -> Result<Node, ConfigError> {
        if let [Part::Interpolation(interpolation)] = parts {
            return self.interpolation(path, interpolation);
        }
        let mut out = String::new();
        for part in parts {
            match part {
                Part::Literal(literal) => out.push_str(literal),
                Part::Interpolation(interpolation) => {
                    let value = self.printed(path, interpolation)?;
                    out.push_str(&python::text(&value));
                }
            }
        }
        Ok(Node::Str(out))
    }

    /// The node at an absolute path, references followed but nothing in it resolved.
    pub(crate) fn raw(&mut self, target: &[String]) -> Result<Option<Node>, ConfigError> {
        let Some(place) = self.locate(target)? else { return Ok(None) };
        Ok(match self.follow(place)? {
            Located::At(at) => self.root.at(&at).cloned(),
            Located::Value(value) => Some(value),
        })
    }

    /// As [`Self::interpolation`], but a list or a map is printed unresolved.
    fn printed(&mut self, path: &[String], interpolation: &Interpolation) -> Result<Node, ConfigError> {
        let key = match interpolation {
            Interpolation::Node(key) => self.key(path, key)?,
            Interpolation::Call { name, arguments } => {
                match (self.key(path, name)?.as_str(), arguments.as_slice()) {
                    ("oc.select" | "oc.deprecated", [Element::Value(Node::Str(key)), ..]) => key.clone(),
                    ("oc.dict.values", [Element::Value(Node::Str(key))]) => {
                        return self.printed_values(path, key);
                    }
                    _ => return self.interpolation(path, interpolation),
                }
            }
        };
        let target = self.absolute(path, &key)?;
        match self.raw(&target)? {
            Some(node @ (Node::List(_) | Node::Map(_))) => Ok(node),
            _ => self.interpolation(path, interpolation),
        }
    }

    /// The values of a map are references to it.
    fn printed_values(&mut self, path: &[String], key: &str) -> Result<Node, ConfigError> {
        let target = self.absolute(path, key)?;
        let Some(Node::Map(map)) = self.raw(&target)? else {
            return Err(self.error(path, key, format!("there is no map `{key}`")));
        };
        // They stand one level deeper, in the list.
        let up = if key.starts_with('.') { "." } else { "" };
        Ok(Node::List(map.keys().map(|name| Node::Str(format!("${{{up}{key}.{name}}}"))).collect()))
    }

    fn interpolation(&mut self, path: &[String], interpolation: &Interpolation) -> Result<Node, ConfigError> {
        match interpolation {
            Interpolation::Node(key) => {
                let key = self.key(path, key)?;
                let target = self.absolute(path, &key)?;
                let value = self.found(path, &format!("${{{key}}}"), &target)?;
                if value.is_missing() {
                    return Err(ConfigError::Missing { key: target.join("."), origin: String::new() });
                }
                Ok(value)
            }
            Interpolation::Call { name, arguments } => {
                let name = self.key(path, name)?;
                let arguments: Vec<Node> = arguments
                    .iter()
                    .map(|argument| self.element(path, argument))
                    .collect::<Result<_, _>>()?;
                resolvers::call(self, path, &name, &arguments)
            }
        }
    }

    fn found(&mut self, path: &[String], text: &str, target: &[String]) -> Result<Node, ConfigError> {
        if path.starts_with(target) && path != target {
            return Err(self.error(path, text, "it contains the key itself"));
        }
        let found = self.lookup(target)?;
        found.ok_or_else(|| self.error(path, text, format!("there is no key `{}`", target.join("."))))
    }

    /// A key or a resolver's name; interpolations in it must give strings.
    fn key(&mut self, path: &[String], parts: &[Part]) -> Result<String, ConfigError> {
        let mut key = String::new();
        for part in parts {
            match part {
                Part::Literal(literal) => key.push_str(literal),
                Part::Interpolation(interpolation) => match self.interpolation(path, interpolation)? {
                    Node::Str(text) => key.push_str(&text),
                    other => {
                        let message = format!("a key must be made of strings, found {}", other.describe());
                        return Err(self.error(path, "${…}", message));
                    }
                },
            }
        }
        Ok(key)
    }

    fn element(&mut self, path: &[String], element: &Element) -> Result<Node, ConfigError> {
        match element {
            Element::Value(node) => Ok(node.clone()),
            Element::Text(parts) => self.text(path, parts),
            Element::Quoted(parts) => {
                let value = match parts.as_slice() {
                    [Part::Interpolation(interpolation)] => self.printed(path, interpolation)?,
                    parts => self.text(path, parts)?,
                };
                Ok(Node::Str(python::text(&value)))
            }
            Element::List(list) => {
                list.iter().map(|item| self.element(path, item)).collect::<Result<_, _>>().map(Node::List)
            }
            Element::Dict(entries) => entries
                .iter()
                .map(|(key, value)| Ok((key.clone(), self.element(path, value)?)))
                .collect::<Result<_, ConfigError>>()
                .map(Node::Map),
        }
    }

    /// What `oc.decode` makes of a string.
    pub(crate) fn decode(&mut self, path: &[String], text: &str) -> Result<Node, ConfigError> {
        let element = expression::parse_element(text).map_err(|message| self.error(path, text, message))?;
        self.element(path, &element)
    }

    /// The absolute path that a key at `path` means: each leading dot is one container up.
    pub(crate) fn absolute(&self, path: &[String], key: &str) -> Result<Vec<String>, ConfigError> {
        let name = key.trim_start_matches('.');
        let num_dots = key.len() - name.len();
        let keys = split_key(name);
        if num_dots == 0 {
            return Ok(keys);
        }
        let kept = path.len().checked_sub(num_dots);
        let kept = kept.ok_or_else(|| self.error(path, key, "it points above the root"))?;
        Ok([&path[..kept], &keys].concat())
    }

    /// Where a string that is one reference points to.
    fn place(&mut self, path: &[String], parts: &[Part]) -> Result<Located, ConfigError> {
        match parts {
            [Part::Interpolation(Interpolation::Node(key))] => {
                let key = self.key(path, key)?;
                self.absolute(path, &key).map(Located::At)
            }
            parts => self.text(path, parts).map(Located::Value),
        }
    }

    /// The node at an absolute path, unresolved; references on the way are followed.
    fn locate(&mut self, target: &[String]) -> Result<Option<Located>, ConfigError> {
        let mut place = Located::At(Vec::new());
        for key in target {
            place = match self.follow(place)? {
                Located::At(mut at) => {
                    if self.root.at(&at).is_some_and(Node::is_missing) {
                        return Err(ConfigError::Missing { key: at.join("."), origin: String::new() });
                    }
                    if matches!(self.root.at(&at), Some(Node::List(_))) && key.parse::<usize>().is_err() {
                        let message =
                            format!("`{}` is a list, its elements have no name `{key}`", at.join("."));
                        return Err(self.error(&at, &target.join("."), message));
                    }
                    at.push(key.clone());
                    if self.root.at(&at).is_none() {
                        return Ok(None);
                    }
                    Located::At(at)
                }
                Located::Value(node) => match node.child(key) {
                    Some(child) => Located::Value(child.clone()),
                    None => return Ok(None),
                },
            };
        }
        Ok(Some(place))
    }

    /// Follows references until there is a value that is none.
    fn follow(&mut self, place: Located) -> Result<Located, ConfigError> {
        let Located::At(at) = place else { return Ok(place) };
        let Some(Node::Str(text)) = self.root.at(&at).filter(|node| node.has_interpolation()) else {
            return Ok(Located::At(at));
        };
        self.guarded(&at, text, |resolver| {
            let parts = resolver.parse(&at, text)?;
            match resolver.place(&at, &parts)? {
                Located::At(target) => match resolver.locate(&target)? {
                    Some(place) => resolver.follow(place),
                    None => {
                        let message = format!("there is no key `{}`", target.join("."));
                        Err(resolver.error(&at, text, message))
                    }
                },
                value => Ok(value),
            }
        })
    }

    /// The resolved value at an absolute path.
    pub(crate) fn lookup(&mut self, target: &[String]) -> Result<Option<Node>, ConfigError> {
        match self.locate(target)? {
            None => Ok(None),
            Some(Located::Value(node)) => Ok(Some(node)),
            Some(Located::At(at)) => match self.root.at(&at) {
                Some(node) => self.resolve(&at, node).map(Some),
                None => Ok(None),
            },
        }
    }
}

fn child(path: &[String], key: &str) -> Vec<String> {
    let mut path = path.to_vec();
    path.push(key.to_owned());
    path
}

#[cfg(test)]
mod tests;
