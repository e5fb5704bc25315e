//! YAML documents as OmegaConf loads them: PyYAML's syntax and scalars, duplicate keys refused, merge keys applied.
//!
//! A YAML 1.2 parser reads other documents, and others than PyYAML refuses: tabs, `?` and `:` inside brackets, base 60,
//! keys past 1,024 characters. Keys that are numbers or booleans become strings, because the tree has no others.

mod composer;
mod properties;
mod reader;
mod scalars;
mod scanner;

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use crate::grammar::expression;
use crate::{ConfigError, Node, scalar};
use composer::{Composed, Content};
use reader::{Mark, Problem, Reader};
use scanner::Scanner;

/// Values that aliases may make of one document; more is an attack on memory.
const MAX_VALUES: usize = 1_000_000;
/// Nesting that no real configuration reaches.
const MAX_DEPTH: usize = 128;
const CORE: &str = "tag:yaml.org,2002:";

/// Reads one document. An empty one is an empty map.
///
/// # Errors
/// With the source's name, line and column, when the text is not YAML, is neither a map nor a list, a key stands
/// twice, an alias leads nowhere, or OmegaConf would refuse a value.
pub fn parse(text: &str, source_name: &str) -> Result<Node, ConfigError> {
    Document::parse(text, source_name).map(|document| document.node)
}

/// A document, and where its values stand.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) node: Node,
    /// Lines of values, from 1, by path.
    pub(crate) lines: HashMap<Vec<String>, usize>,
}

impl Document {
    pub(crate) fn parse(text: &str, source_name: &str) -> Result<Self, ConfigError> {
        Self::read(text).map_err(|problem| ConfigError::Yaml {
            source_name: source_name.to_owned(),
            line: problem.mark.line + 1,
            column: problem.mark.column + 1,
            message: problem.message,
        })
    }

    fn read(text: &str) -> Result<Self, Problem> {
        let root = composer::compose(Scanner::new(Reader::new(text)?))?;
        let mut builder = Builder { num_values: 0, path: Vec::new(), lines: HashMap::new() };
        let node = match &root {
            None => Node::Null,
            Some(root) => builder.node(root)?,
        };
        let node = match node {
            Node::Null => Node::empty_map(),
            node @ (Node::Map(_) | Node::List(_)) => node,
            // OmegaConf reads a string once more, and takes one word for a key without a value.
            Node::Str(text) => match composer::compose(Scanner::new(Reader::new(&text)?))? {
                None => Node::empty_map(),
                Some(root) => match builder.node(&root)? {
                    Node::Null => Node::empty_map(),
                    node @ (Node::Map(_) | Node::List(_)) => node,
                    Node::Str(word) => Node::Map([(word, Node::Null)].into()),
                    other => return Err(not_a_document(&other)),
                },
            },
            other => return Err(not_a_document(&other)),
        };
        Ok(Self { node, lines: builder.lines })
    }
}

fn not_a_document(node: &Node) -> Problem {
    Problem::new(Mark::default(), format!("the document is {}, not a map or a list", node.describe()))
}

struct Builder {
    num_values: usize,
    path: Vec<String>,
    lines: HashMap<Vec<String>, usize>,
}

impl Builder {
    fn node(&mut self, composed: &Composed) -> Result<Node, Problem> {
        self.num_values += 1;
        if self.num_values > MAX_VALUES {
            return Err(Problem::new(composed.mark, format!("aliases make more than {MAX_VALUES} values")));
        }
        // Aliases of aliases make a tree deeper than the text is.
        if self.path.len() > MAX_DEPTH {
            return Err(Problem::new(composed.mark, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let node = match &composed.content {
            Content::Scalar { text, is_plain } => {
                let node = scalar_node(composed, text, *is_plain)?;
                // A document that is a string becomes a key, which nothing resolves.
                if let Node::Str(text) = &node
                    && text.contains("${")
                    && !self.path.is_empty()
                    && let Err(message) = expression::parse_text(text)
                {
                    let message = format!("`{text}` is not a string with interpolations: {message}");
                    return Err(Problem::new(composed.mark, message));
                }
                node
            }
            Content::Sequence(items) => {
                expect_tag(composed, "seq")?;
                let mut list = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    list.push(self.at(index.to_string(), item)?);
                }
                Node::List(list)
            }
            Content::Mapping(pairs) => {
                expect_tag(composed, "map")?;
                self.mapping(pairs)?
            }
        };
        self.lines.insert(self.path.clone(), composed.mark.line + 1);
        Ok(node)
    }

    fn at(&mut self, key: String, composed: &Composed) -> Result<Node, Problem> {
        self.path.push(key);
        let node = self.node(composed);
        self.path.pop();
        node
    }

    fn mapping(&mut self, pairs: &Pairs) -> Result<Node, Problem> {
        check_duplicates(pairs)?;
        let mut flat = Vec::new();
        flatten(pairs, 0, &mut flat)?;
        let mut map = IndexMap::new();
        for (key, value) in flat {
            let name = key_text(key)?;
            let node = self.at(name.clone(), value)?;
            let path = [self.path.as_slice(), std::slice::from_ref(&name)].concat();
            self.lines.insert(path, key.mark.line + 1);
            map.insert(name, node);
        }
        Ok(Node::Map(map))
    }
}

type Pairs = Vec<(std::rc::Rc<Composed>, std::rc::Rc<Composed>)>;

fn is_merge_key(key: &Composed) -> bool {
    key.tag.as_deref() == Some("tag:yaml.org,2002:merge")
        || key.tag.is_none()
            && matches!(&key.content, Content::Scalar { text, is_plain: true } if text == "<<")
}

/// OmegaConf compares string keys only; of other duplicates the last one is kept.
fn check_duplicates(pairs: &Pairs) -> Result<(), Problem> {
    let mut seen = HashSet::new();
    for (key, _) in pairs {
        if let Content::Scalar { text, is_plain } = &key.content
            && !is_merge_key(key)
            && matches!(scalar_node(key, text, *is_plain), Ok(Node::Str(_)))
            && !seen.insert(text)
        {
            return Err(Problem::new(key.mark, format!("key `{text}` appears twice")));
        }
    }
    Ok(())
}

/// PyYAML puts merged keys before the map's own, which then override them in place. Of a list, the first map wins.
fn flatten<'a>(
    pairs: &'a Pairs,
    depth: usize,
    flat: &mut Vec<(&'a Composed, &'a Composed)>,
) -> Result<(), Problem> {
    for (key, value) in pairs.iter().filter(|(key, _)| is_merge_key(key)) {
        let problem = || Problem::new(key.mark, "a merge key takes a map or a list of maps");
        if depth > crate::grammar::MAX_DEPTH {
            return Err(Problem::new(key.mark, "merge keys are nested too deeply"));
        }
        match &value.content {
            Content::Mapping(merged) => flatten(merged, depth + 1, flat)?,
            Content::Sequence(items) => {
                for item in items.iter().rev() {
                    let Content::Mapping(merged) = &item.content else { return Err(problem()) };
                    flatten(merged, depth + 1, flat)?;
                }
            }
            Content::Scalar { .. } => return Err(problem()),
        }
        if flat.len() > MAX_VALUES {
            return Err(Problem::new(key.mark, format!("aliases make more than {MAX_VALUES} values")));
        }
    }
    let own = pairs.iter().filter(|(key, _)| !is_merge_key(key));
    flat.extend(own.map(|(key, value)| (key.as_ref(), value.as_ref())));
    Ok(())
}

fn expect_tag(composed: &Composed, expected: &str) -> Result<(), Problem> {
    match &composed.tag {
        Some(tag) if tag.strip_prefix(CORE) != Some(expected) => {
            Err(Problem::new(composed.mark, format!("tag `{tag}` is not supported")))
        }
        _ => Ok(()),
    }
}

fn scalar_node(composed: &Composed, text: &str, is_plain: bool) -> Result<Node, Problem> {
    let node = match &composed.tag {
        Some(tag) => tagged(tag, text),
        None if is_plain => scalar::resolve(text),
        None => Ok(Node::Str(text.to_owned())),
    };
    node.map_err(|message| Problem::new(composed.mark, message))
}

fn tagged(tag: &str, text: &str) -> Result<Node, String> {
    let value = match tag.strip_prefix(CORE) {
        Some("str") => Some(Node::from(text)),
        Some("int") => scalar::integer(text).map(Node::Int),
        Some("float") => scalar::float(text).map(Node::Float),
        Some("bool") => scalar::boolean(&text.to_ascii_lowercase()).map(Node::Bool),
        Some("null") => Some(Node::Null),
        _ => return Err(format!("tag `{tag}` is not supported")),
    };
    value.ok_or_else(|| format!("`{text}` is not a value of tag `{tag}`"))
}

fn key_text(key: &Composed) -> Result<String, Problem> {
    let problem = |message: &str| Problem::new(key.mark, message);
    let Content::Scalar { text, is_plain } = &key.content else {
        return Err(problem("a key must be a string, not a list or a map"));
    };
    // PyYAML reads a plain `=` as a string only where it is a key.
    if text == "=" && *is_plain {
        return Ok(text.clone());
    }
    match scalar_node(key, text, *is_plain)? {
        Node::Null => Err(problem("a key must not be null; put it in quotes if it is a word")),
        node => Ok(crate::grammar::key_text(node)),
    }
}

#[cfg(test)]
mod tests;
