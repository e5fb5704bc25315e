//! YAML documents as OmegaConf loads them: scalars by [`crate::scalar`], duplicate keys refused, merge keys applied.

use std::collections::HashMap;

use indexmap::IndexMap;
use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use crate::{ConfigError, Node, scalar};

/// Nesting that no real configuration reaches.
const MAX_DEPTH: usize = 128;

/// Reads one document. An empty one is an empty map.
///
/// # Errors
/// With the source's name, line and column, when the text is not YAML, a key stands twice, or an alias leads nowhere.
pub fn parse(text: &str, source_name: &str) -> Result<Node, ConfigError> {
    let mut builder = Builder { source_name, open: Vec::new(), anchors: HashMap::new(), root: None };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| ConfigError::Yaml {
            source_name: source_name.to_owned(),
            line: error.marker().line(),
            column: error.marker().col() + 1,
            message: error.info().to_owned(),
        })?;
        builder.take(event, span)?;
    }
    Ok(match builder.root {
        None | Some(Node::Null) => Node::empty_map(),
        Some(root) => root,
    })
}

enum Open {
    List(usize, Vec<Node>),
    Map { anchor: usize, map: IndexMap<String, Node>, merged: Vec<Node>, key: Option<String> },
}

struct Builder<'a> {
    source_name: &'a str,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
}

impl Builder<'_> {
    fn error(&self, span: Span, message: impl Into<String>) -> ConfigError {
        ConfigError::Yaml {
            source_name: self.source_name.to_owned(),
            line: span.start.line(),
            column: span.start.col() + 1,
            message: message.into(),
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ConfigError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_str = tag.as_ref().is_some_and(|tag| tag.suffix == "str");
                let value = if style == ScalarStyle::Plain && !is_str {
                    scalar::resolve(&text)
                } else {
                    Node::Str(text.into_owned())
                };
                self.close(anchor, value, span)
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned();
                let value = value.ok_or_else(|| self.error(span, "alias of an unknown anchor"))?;
                self.close(0, value, span)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::List(anchor, Vec::new()), span),
            Event::MappingStart(anchor, _) => {
                self.begin(Open::Map { anchor, map: IndexMap::new(), merged: Vec::new(), key: None }, span)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(anchor, list)) => self.close(anchor, Node::List(list), span),
                Some(Open::Map { anchor, mut map, merged, .. }) => {
                    for source in merged {
                        let Node::Map(source) = source else {
                            return Err(self.error(span, "a merge key takes a map or a list of maps"));
                        };
                        for (key, value) in source {
                            map.entry(key).or_insert(value);
                        }
                    }
                    self.close(anchor, Node::Map(map), span)
                }
                None => Err(self.error(span, "unexpected end of a collection")),
            },
            Event::DocumentStart(_) if self.root.is_some() => Err(self.error(span, "more than one document")),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open, span: Span) -> Result<(), ConfigError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(self.error(span, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.open.push(open);
        Ok(())
    }

    /// Puts a finished value where it belongs.
    fn close(&mut self, anchor: usize, value: Node, span: Span) -> Result<(), ConfigError> {
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        let duplicate = match self.open.last_mut() {
            None => {
                self.root = Some(value);
                None
            }
            Some(Open::List(_, list)) => {
                list.push(value);
                None
            }
            Some(Open::Map { map, merged, key, .. }) => match key.take() {
                None => {
                    let new_key = match value {
                        Node::Str(text) => text,
                        Node::Null => "null".to_owned(),
                        Node::Bool(value) => value.to_string(),
                        Node::Int(value) => value.to_string(),
                        Node::Float(value) => crate::emit::float(value),
                        Node::List(_) | Node::Map(_) => {
                            return Err(self.error(span, "a key must be a scalar"));
                        }
                    };
                    let duplicate = map.contains_key(&new_key).then(|| new_key.clone());
                    *key = Some(new_key);
                    duplicate
                }
                Some(key) if key == "<<" => {
                    match value {
                        Node::List(list) => merged.extend(list),
                        other => merged.push(other),
                    }
                    None
                }
                Some(key) => {
                    map.insert(key, value);
                    None
                }
            },
        };
        match duplicate {
            Some(key) => Err(self.error(span, format!("key `{key}` stands twice"))),
            None => Ok(()),
        }
    }
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
