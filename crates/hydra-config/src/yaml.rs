//! YAML documents as OmegaConf loads them: scalars by [`crate::scalar`], duplicate keys refused, merge keys applied.

use std::collections::HashMap;

use indexmap::IndexMap;
use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use crate::{ConfigError, Node, interpolation, scalar};

/// Nesting that no real configuration reaches.
const MAX_DEPTH: usize = 128;
/// Values that aliases may copy in one document; more is an attack on memory.
const MAX_ALIASED_VALUES: usize = 1_000_000;

/// Reads one document. An empty one is an empty map.
///
/// # Errors
/// With the source's name, line and column, when the text is not YAML, is neither a map nor a list, a key stands
/// twice, an alias leads nowhere, or OmegaConf would refuse a value.
pub fn parse(text: &str, source_name: &str) -> Result<Node, ConfigError> {
    let mut builder =
        Builder { source_name, open: Vec::new(), anchors: HashMap::new(), num_aliased_values: 0, root: None };
    builder.check_characters(text)?;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            builder.error_at(error.marker().line(), error.marker().col() + 1, error.info())
        })?;
        builder.take(event, span)?;
    }
    match builder.root {
        None | Some(Node::Null) => Ok(Node::empty_map()),
        Some(root @ (Node::Map(_) | Node::List(_))) => Ok(root),
        Some(other) => {
            let message = format!("the document is a {}, not a map or a list", other.type_name());
            Err(ConfigError::Yaml { source_name: source_name.to_owned(), line: 1, column: 1, message })
        }
    }
}

/// A map key as it was written: only a plain `<<` merges, and only strings are checked for standing twice.
enum Key {
    Merge,
    Name(String),
}

#[derive(Default)]
struct OpenMap {
    anchor: usize,
    map: IndexMap<String, Node>,
    /// Merged maps; a later one overrides an earlier one.
    merged: Vec<IndexMap<String, Node>>,
    key: Option<Key>,
}

enum Open {
    List(usize, Vec<Node>),
    Map(OpenMap),
}

struct Builder<'a> {
    source_name: &'a str,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    num_aliased_values: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    fn error_at(&self, line: usize, column: usize, message: impl Into<String>) -> ConfigError {
        ConfigError::Yaml { source_name: self.source_name.to_owned(), line, column, message: message.into() }
    }

    fn error(&self, span: Span, message: impl Into<String>) -> ConfigError {
        self.error_at(span.start.line(), span.start.col() + 1, message)
    }

    /// PyYAML's reader refuses what YAML 1.1 calls not printable.
    fn check_characters(&self, text: &str) -> Result<(), ConfigError> {
        let is_printable = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..);
        for (line_idx, line) in text.split('\n').enumerate() {
            if let Some((column_idx, c)) = line.chars().enumerate().find(|(_, c)| !is_printable(*c)) {
                let message = format!("character U+{:04X} is not allowed", u32::from(c));
                return Err(self.error_at(line_idx + 1, column_idx + 1, message));
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ConfigError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain && tag.is_none();
                if is_plain && text == "<<" && self.begins_key() {
                    return self.set_key(Key::Merge, span);
                }
                let value = match &tag {
                    Some(tag) => tagged(tag, &text),
                    None if is_plain => scalar::resolve(&text),
                    None => Ok(Node::Str(text.into_owned())),
                };
                let value = value.map_err(|message| self.error(span, message))?;
                if let Node::Str(text) = &value
                    && let Some(message) = interpolation::syntax_problem(text)
                {
                    return Err(self.error(span, message));
                }
                self.close(anchor, value, span)
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned();
                let value = value.ok_or_else(|| self.error(span, "alias of an unknown anchor"))?;
                self.num_aliased_values += num_values(&value);
                if self.num_aliased_values > MAX_ALIASED_VALUES {
                    return Err(
                        self.error(span, format!("aliases copy more than {MAX_ALIASED_VALUES} values"))
                    );
                }
                self.close(0, value, span)
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(Open::List(anchor, Vec::new()), (tag.as_deref(), "seq"), span)
            }
            Event::MappingStart(anchor, tag) => {
                let map = OpenMap { anchor, ..OpenMap::default() };
                self.begin(Open::Map(map), (tag.as_deref(), "map"), span)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(anchor, list)) => self.close(anchor, Node::List(list), span),
                Some(Open::Map(open)) => {
                    // PyYAML puts merged keys before the map's own, which then override them in place.
                    let mut map = IndexMap::new();
                    open.merged.into_iter().for_each(|merged| map.extend(merged));
                    map.extend(open.map);
                    self.close(open.anchor, Node::Map(map), span)
                }
                None => Err(self.error(span, "unexpected end of a collection")),
            },
            Event::DocumentStart(_) if self.root.is_some() => Err(self.error(span, "more than one document")),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open, tag: (Option<&Tag>, &str), span: Span) -> Result<(), ConfigError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(self.error(span, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        if let (Some(tag), expected) = tag
            && core_tag(tag).as_deref() != Some(expected)
        {
            return Err(self.error(span, format!("tag `{tag}` is not supported")));
        }
        self.open.push(open);
        Ok(())
    }

    fn begins_key(&self) -> bool {
        matches!(self.open.last(), Some(Open::Map(OpenMap { key: None, .. })))
    }

    fn set_key(&mut self, new_key: Key, span: Span) -> Result<(), ConfigError> {
        let Some(Open::Map(open)) = self.open.last_mut() else { return Ok(()) };
        let duplicate = match &new_key {
            Key::Name(name) if open.map.contains_key(name) => Some(format!("key `{name}` stands twice")),
            _ => None,
        };
        open.key = Some(new_key);
        duplicate.map_or(Ok(()), |message| Err(self.error(span, message)))
    }

    /// Puts a finished value where it belongs.
    fn close(&mut self, anchor: usize, value: Node, span: Span) -> Result<(), ConfigError> {
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        if self.begins_key() {
            let key = key_text(value).map_err(|message| self.error(span, message))?;
            return self.set_key(Key::Name(key), span);
        }
        let problem = match self.open.last_mut() {
            None => {
                self.root = Some(value);
                None
            }
            Some(Open::List(_, list)) => {
                list.push(value);
                None
            }
            Some(Open::Map(open)) => match (open.key.take(), value) {
                (Some(Key::Merge), Node::Map(map)) => {
                    open.merged.push(map);
                    None
                }
                (Some(Key::Merge), Node::List(list)) => {
                    // Of a list, the first map wins.
                    let maps: Option<Vec<_>> = list
                        .into_iter()
                        .rev()
                        .map(|item| if let Node::Map(map) = item { Some(map) } else { None })
                        .collect();
                    let is_list_of_maps = maps.is_some();
                    open.merged.extend(maps.unwrap_or_default());
                    (!is_list_of_maps).then_some("a merge key takes a map or a list of maps")
                }
                (Some(Key::Merge), _) => Some("a merge key takes a map or a list of maps"),
                (Some(Key::Name(key)), value) => {
                    open.map.insert(key, value);
                    None
                }
                (None, _) => None,
            },
        };
        problem.map_or(Ok(()), |message| Err(self.error(span, message)))
    }
}

fn num_values(node: &Node) -> usize {
    1 + match node {
        Node::List(list) => list.iter().map(num_values).sum(),
        Node::Map(map) => map.values().map(num_values).sum(),
        _ => 0,
    }
}

fn key_text(key: Node) -> Result<String, String> {
    match key {
        Node::Str(text) => Ok(text),
        Node::Bool(value) => Ok(value.to_string()),
        Node::Int(value) => Ok(value.to_string()),
        Node::Float(value) => Ok(crate::emit::python_float(value)),
        Node::Null => Err("a key must not be null; quote it if it is a word".to_owned()),
        Node::List(_) | Node::Map(_) => Err("a key must be a scalar".to_owned()),
    }
}

/// The name of a tag of YAML's core schema, as in `!!str`.
fn core_tag(tag: &Tag) -> Option<String> {
    let name = format!("{}{}", tag.handle, tag.suffix);
    name.strip_prefix("tag:yaml.org,2002:").map(str::to_owned)
}

fn tagged(tag: &Tag, text: &str) -> Result<Node, String> {
    let value = match core_tag(tag).as_deref() {
        Some("str") => Some(Node::from(text)),
        Some("int") => scalar::integer(text).map(Node::Int),
        Some("float") => scalar::float(text).map(Node::Float),
        Some("bool") => scalar::boolean(&text.to_ascii_lowercase()).map(Node::Bool),
        Some("null") => Some(Node::Null),
        _ => return Err(format!("tag `{tag}` is not supported")),
    };
    value.ok_or_else(|| format!("`{text}` is not a value of tag `{tag}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(text, "a.yaml").unwrap_err().to_string()
    }

    #[test]
    fn documents_become_trees() {
        let node = parse(
            "b: 1\na:\n  - x\n  - {c: 2.5, d: \"1\"}\nbase: &b {p: 1, q: 2}\nm:\n  <<: *b\n  p: 3\n",
            "t",
        )
        .unwrap();
        assert_eq!(node.get("b"), Some(&Node::Int(1)));
        assert_eq!(node.get("a.1.d"), Some(&Node::from("1")));
        assert_eq!(node.get("m.p"), Some(&Node::Int(3)));
        assert_eq!(node.get("m.q"), Some(&Node::Int(2)));
        assert_eq!(node.as_map().unwrap().keys().next().unwrap(), "b");
        assert_eq!(parse("", "t").unwrap(), Node::empty_map());
        assert_eq!(parse("a: \"\\x0A\"\nb: '\\x0A'\n", "t").unwrap().get("a"), Some(&Node::from("\n")));
    }

    #[test]
    fn errors_name_the_place() {
        insta::assert_snapshot!(message("a: 1\na: 2\n"), @"a.yaml:2:1: key `a` stands twice");
        assert!(message("a: [1\n").starts_with("a.yaml:"));
        assert!(message("? [a]\n: 1\n").contains("a key must be a scalar"));
        assert!(message(&"[".repeat(1000)).contains("a.yaml:1:"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c:\\- \\[\\]{}&*#'\"\n,0-9.?|>!]{0,60}") {
            let _ = parse(&text, "t");
        }
    }
}
