//! OmegaConf's interpolations: `${a.b}`, relative `${.x}`, nested ones, and resolvers `${name:arguments}`.

use indexmap::IndexMap;

use crate::node::join;
use crate::overrides::parse_value;
use crate::{ConfigError, Node, emit};

/// References through references that no real configuration needs.
const MAX_DEPTH: usize = 64;

/// Resolves a whole tree against itself. `env` answers `oc.env`.
pub(crate) fn resolve_tree(root: &Node, env: &dyn Fn(&str) -> Option<String>) -> Result<Node, ConfigError> {
    Resolver { root, env, pending: Vec::new() }.resolve("", root)
}

/// Resolves the value at one path.
pub(crate) fn resolve_at(
    root: &Node,
    path: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Node, ConfigError> {
    let node = root
        .get(path)
        .ok_or_else(|| ConfigError::Extract { message: format!("there is no key `{path}`") })?;
    Resolver { root, env, pending: Vec::new() }.resolve(path, node)
}

/// What OmegaConf's parser would refuse in a text with interpolations when the document is loaded.
pub(crate) fn syntax_problem(text: &str) -> Option<&'static str> {
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let before = &rest[..at];
        let is_escaped = (before.len() - before.trim_end_matches('\\').len()) % 2 == 1;
        rest = &rest[at + 2..];
        if !is_escaped && closing_brace(rest).is_none() {
            return Some("an interpolation has no closing `}`, or is nested too deeply");
        }
    }
    None
}

struct Resolver<'a> {
    root: &'a Node,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// Keys whose values are being resolved, outermost first.
    pending: Vec<String>,
}

impl Resolver<'_> {
    fn resolve(&mut self, path: &str, node: &Node) -> Result<Node, ConfigError> {
        match node {
            Node::Map(map) => {
                let entry = |(key, value): (&String, &Node)| {
                    Ok((key.clone(), self.resolve(&join(path, key), value)?))
                };
                map.iter().map(entry).collect::<Result<IndexMap<_, _>, ConfigError>>().map(Node::Map)
            }
            Node::List(list) => {
                let item = |(index, value)| self.resolve(&join(path, &index_key(index)), value);
                list.iter().enumerate().map(item).collect::<Result<_, _>>().map(Node::List)
            }
            Node::Str(text) if text.contains("${") => {
                if self.pending.iter().any(|pending| pending == path) || self.pending.len() > MAX_DEPTH {
                    let chain =
                        self.pending.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" -> ");
                    return Err(self.error(
                        path,
                        text,
                        format!("the references form a cycle: {chain} -> `{path}`"),
                    ));
                }
                self.pending.push(path.to_owned());
                let value = self.text(path, text);
                self.pending.pop();
                value
            }
            other => Ok(other.clone()),
        }
    }

    fn error(&self, path: &str, expression: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Interpolation {
            key: path.to_owned(),
            expression: expression.to_owned(),
            message: message.into(),
        }
    }

    /// A text with interpolations: the referent itself when there is nothing else, else a string.
    fn text(&mut self, path: &str, text: &str) -> Result<Node, ConfigError> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let before = &rest[..at];
            let num_backslashes = before.len() - before.trim_end_matches('\\').len();
            out.push_str(&before[..before.len() - num_backslashes]);
            out.extend(std::iter::repeat_n('\\', num_backslashes / 2));
            let end = closing_brace(&rest[at + 2..]).map(|end| at + 2 + end);
            let end = end.ok_or_else(|| self.error(path, text, "no closing `}`, or nested too deeply"))?;
            if num_backslashes % 2 == 1 {
                out.push_str(&rest[at..=end]);
            } else {
                let value = self.expression(path, &rest[at + 2..end])?;
                // Whatever asks for a missing value is missing itself, until it is read.
                if value.is_missing() || (at == 0 && end + 1 == text.len()) {
                    return Ok(value);
                }
                out.push_str(&self.as_text(path, &rest[at..=end], &value)?);
            }
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        Ok(Node::Str(out))
    }

    fn as_text(&self, path: &str, expression: &str, value: &Node) -> Result<String, ConfigError> {
        Ok(match value {
            Node::Null => "None".to_owned(),
            Node::Bool(value) => if *value { "True" } else { "False" }.to_owned(),
            Node::Int(value) => value.to_string(),
            Node::Float(value) => emit::python_float(*value),
            Node::Str(text) => text.clone(),
            Node::List(_) | Node::Map(_) => {
                return Err(self.error(
                    path,
                    expression,
                    format!("a {} cannot be part of a text", value.type_name()),
                ));
            }
        })
    }

    /// What stands between `${` and `}`.
    fn expression(&mut self, path: &str, inner: &str) -> Result<Node, ConfigError> {
        let inner = inner.trim();
        let colon = inner.find(':').filter(|&at| !inner[..at].contains("${"));
        if let Some(at) = colon {
            let mut arguments = Vec::new();
            for argument in split_arguments(&inner[at + 1..]) {
                arguments.push(self.argument(path, argument.trim())?);
            }
            return self.call(path, inner, (inner[..at].trim(), &arguments));
        }
        let reference = match self.text(path, inner)? {
            Node::Str(reference) => reference,
            other => self.as_text(path, inner, &other)?,
        };
        let dotted = dotted(&reference).ok_or_else(|| self.error(path, inner, "it is not a key"))?;
        let target =
            absolute(path, &dotted).ok_or_else(|| self.error(path, inner, "it points above the root"))?;
        let found = self.lookup(path, &target)?;
        found.ok_or_else(|| self.error(path, inner, format!("there is no key `{target}`")))
    }

    /// The resolved value at an absolute path; values on the way may be interpolations themselves.
    fn lookup(&mut self, path: &str, target: &str) -> Result<Option<Node>, ConfigError> {
        let mut walked = String::new();
        let mut node = self.root.clone();
        for key in target.split('.').filter(|key| !key.is_empty()) {
            if matches!(&node, Node::Str(text) if text.contains("${")) {
                node = self.resolve(&walked, &node)?;
            }
            let Some(next) = node.get(key) else { return Ok(None) };
            node = next.clone();
            walked = join(&walked, key);
        }
        if path.starts_with(&format!("{walked}.")) || walked.is_empty() {
            return Err(self.error(path, target, "it contains the key itself"));
        }
        self.resolve(&walked, &node).map(Some)
    }

    fn argument(&mut self, path: &str, argument: &str) -> Result<Node, ConfigError> {
        let quoted = |quote: char| {
            argument
                .strip_prefix(quote)
                .and_then(|rest| rest.strip_suffix(quote))
                .filter(|_| argument.len() >= 2)
        };
        let has_reference = argument.contains("${");
        if let Some(text) = quoted('"').or_else(|| quoted('\'')).filter(|_| has_reference) {
            let value = self.text(path, text)?;
            return self.as_text(path, argument, &value).map(Node::Str);
        }
        if has_reference && !argument.starts_with(['[', '{']) {
            return self.text(path, argument);
        }
        let value = parse_value(argument).map_err(|message| self.error(path, argument, message))?;
        self.parts(path, value)
    }

    /// The texts inside a list or map argument.
    fn parts(&mut self, path: &str, value: Node) -> Result<Node, ConfigError> {
        match value {
            Node::Str(text) if text.contains("${") => self.text(path, &text),
            Node::List(list) => {
                list.into_iter().map(|item| self.parts(path, item)).collect::<Result<_, _>>().map(Node::List)
            }
            Node::Map(map) => map
                .into_iter()
                .map(|(key, item)| Ok((key, self.parts(path, item)?)))
                .collect::<Result<_, ConfigError>>()
                .map(Node::Map),
            other => Ok(other),
        }
    }

    fn call(
        &mut self,
        path: &str,
        inner: &str,
        (name, arguments): (&str, &[Node]),
    ) -> Result<Node, ConfigError> {
        if let Some(missing) = arguments.iter().find(|argument| argument.is_missing()) {
            return Ok(missing.clone());
        }
        // Python counts with truth values, too.
        let int = |node: &Node| node.as_i64().or_else(|| node.as_bool().map(i64::from));
        let arithmetic = |ints: fn(i64, i64) -> Option<i64>, floats: fn(f64, f64) -> Option<f64>| {
            let [left, right] = arguments else {
                return Err(self.error(path, inner, format!("`{name}` takes two numbers")));
            };
            let value = if let (Some(left), Some(right)) = (int(left), int(right)) {
                ints(left, right).map(Node::Int)
            } else {
                let float = |node: &Node| node.as_f64().or_else(|| int(node).map(|value| value as f64));
                let (Some(left), Some(right)) = (float(left), float(right)) else {
                    return Err(self.error(path, inner, format!("`{name}` takes two numbers")));
                };
                floats(left, right).map(Node::Float)
            };
            value.ok_or_else(|| self.error(path, inner, "a division by zero, or an integer past 64 bits"))
        };
        match (name, arguments) {
            ("multiply", _) => arithmetic(i64::checked_mul, |x, y| Some(x * y)),
            ("subtract", _) => arithmetic(i64::checked_sub, |x, y| Some(x - y)),
            ("sum", _) => arithmetic(i64::checked_add, |x, y| Some(x + y)),
            ("int_div", _) => arithmetic(floor_div, floor_div_float),
            ("oc.env", [Node::Str(variable), rest @ ..]) => match ((self.env)(variable), rest) {
                (Some(value), _) => Ok(Node::Str(value)),
                (None, [Node::Null]) => Ok(Node::Null),
                (None, [default]) => self.as_text(path, inner, default).map(Node::Str),
                (None, _) => {
                    Err(self.error(path, inner, format!("environment variable `{variable}` is not set")))
                }
            },
            ("oc.select", [Node::Str(key), rest @ ..]) => {
                let target =
                    absolute(path, key).ok_or_else(|| self.error(path, inner, "it points above the root"))?;
                let found = self.lookup(path, &target)?.filter(|node| !node.is_missing());
                Ok(found.or_else(|| rest.first().cloned()).unwrap_or(Node::Null))
            }
            ("oc.decode", [Node::Null]) => Ok(Node::Null),
            ("oc.decode", [Node::Str(text)]) => {
                let value = parse_value(text).map_err(|message| self.error(path, inner, message))?;
                self.parts(path, value)
            }
            _ => {
                let known = "multiply, int_div, subtract, sum, oc.env, oc.select, oc.decode";
                Err(self.error(
                    path,
                    inner,
                    format!("no resolver `{name}` takes these arguments; known: {known}"),
                ))
            }
        }
    }
}

fn index_key(index: usize) -> String {
    index.to_string()
}

fn floor_div(x: i64, y: i64) -> Option<i64> {
    let quotient = x.checked_div(y)?;
    Some(if x % y != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient })
}

/// Python's `//` for floats.
fn floor_div_float(x: f64, y: f64) -> Option<f64> {
    if y == 0.0 {
        return None;
    }
    let remainder = x % y;
    let mut quotient = (x - remainder) / y;
    if remainder != 0.0 && (y < 0.0) != (remainder < 0.0) {
        quotient -= 1.0;
    }
    // The division above may have rounded to just below the integer that was meant.
    let floor = quotient.floor();
    Some(if quotient - floor > 0.5 { floor + 1.0 } else { floor })
}

/// `a[b].c` as `a.b.c`; `None` when it is not a key path.
fn dotted(reference: &str) -> Option<String> {
    let relative = reference.len() - reference.trim_start_matches('.').len();
    let (dots, keys) = reference.split_at(relative);
    let balanced = keys.matches('[').count() == keys.matches(']').count();
    let keys = keys.replace("][", ".").replace('[', ".").replace("].", ".");
    let keys = keys.strip_suffix(']').unwrap_or(&keys);
    let is_key = |key: &str| {
        !key.is_empty() && !key.contains(['\\', '{', '}', '(', ')', '[', ']', ':', ' ', '\t', '\'', '"'])
    };
    let is_path =
        keys.strip_prefix(if relative > 0 { "." } else { "" }).unwrap_or(keys).split('.').all(is_key);
    (balanced && is_path).then(|| format!("{dots}{keys}"))
}

/// The absolute path that a reference at `path` means: each leading dot is one container up.
fn absolute(path: &str, reference: &str) -> Option<String> {
    let num_dots = reference.len() - reference.trim_start_matches('.').len();
    if num_dots == 0 {
        return Some(reference.to_owned());
    }
    let parents: Vec<&str> = path.split('.').collect();
    let kept = parents.len().checked_sub(num_dots)?;
    Some(join(&parents[..kept].join("."), &reference[num_dots..]))
}

/// Where the brace that closes an opened interpolation stands.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 1;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') if text[..at].contains(':') => quote = Some(c),
            (None, '{') if depth > MAX_DEPTH => return None,
            (None, '{') => depth += 1,
            (None, '}') => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Arguments at the commas outside braces and quotes.
fn split_arguments(text: &str) -> Vec<&str> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let (mut depth, mut quote, mut start) = (0_usize, None, 0);
    let mut is_escaped = false;
    let mut arguments = Vec::new();
    for (at, c) in text.char_indices() {
        let was_escaped = is_escaped;
        is_escaped = c == '\\' && !was_escaped;
        if was_escaped {
            continue;
        }
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '{' | '[') => depth += 1,
            (None, '}' | ']') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                arguments.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    arguments.push(&text[start..]);
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Node, ConfigError> {
        let root = crate::yaml::parse(text, "t").unwrap();
        resolve_tree(&root, &|name| (name == "HOME_DIR").then(|| "/h".to_owned()))
    }

    fn at(text: &str, key: &str) -> Node {
        resolve(text).unwrap().get(key).unwrap().clone()
    }

    #[test]
    fn references_keep_their_type() {
        assert_eq!(at("a: 4096\nb: ${a}", "b"), Node::Int(4096));
        assert_eq!(at("a: 1\nb: x-${a}-y", "b"), Node::from("x-1-y"));
        assert_eq!(at("g: {max: 3, e: '${.max}'}\nt: {m: '${..g.max}'}", "g.e"), Node::Int(3));
        assert_eq!(at("g: {max: 3}\nt: {m: '${..g.max}'}", "t.m"), Node::Int(3));
        assert_eq!(at("m: val_loss\nf: 'm--{${m}:.3f}-{step}'", "f"), Node::from("m--{val_loss:.3f}-{step}"));
        assert_eq!(at("a: {x: 1}\nb: ${a}\nc: ${b.x}", "c"), Node::Int(1));
        assert_eq!(at("k: x\na: {x: 7}\nb: ${a.${k}}", "b"), Node::Int(7));
        assert_eq!(at("a: '\\${x}'", "a"), Node::from("${x}"));
        assert_eq!(at("a: ???\nb: 1", "a"), Node::from("???"));
        assert_eq!(at("a: ???\nb: x${a}", "b"), Node::from("???"));
    }

    #[test]
    fn resolvers_compute() {
        assert_eq!(at("e: 4096\nm: '${int_div:${e}, 2}'\ni: '${subtract:${e}, ${m}}'", "i"), Node::Int(2048));
        assert_eq!(at("a: '${int_div:-7,2}'", "a"), Node::Int(-4));
        assert_eq!(at("a: '${int_div:7.0,2}'", "a"), Node::Float(3.0));
        assert_eq!(at("a: '${multiply:3,4}'", "a"), Node::Int(12));
        assert_eq!(at("a: '${oc.env:HOME_DIR}'", "a"), Node::from("/h"));
        assert_eq!(at("a: '${oc.env:NOPE,me}'", "a"), Node::from("me"));
        assert_eq!(at("a: '${oc.select:nope,3}'", "a"), Node::Int(3));
        assert_eq!(at("a: '${oc.decode:${oc.env:NOPE,12}}'", "a"), Node::Int(12));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("{}a{}", "${".repeat(100_000), "}".repeat(100_000));
        assert!(syntax_problem(&text).is_some());
        let root = Node::Map([("a".to_owned(), Node::Str(text))].into());
        assert!(resolve_tree(&root, &|_| None).is_err());
    }

    #[test]
    fn failures_name_key_and_expression() {
        let message = |text: &str| resolve(text).unwrap_err().to_string();
        insta::assert_snapshot!(message("a: {b: '${nope.x}'}"), @"cannot resolve `nope.x` at `a.b`: there is no key `nope.x`");
        insta::assert_snapshot!(message("a: ${b}\nb: ${a}"), @"cannot resolve `${b}` at `a`: the references form a cycle: `a` -> `b` -> `a`");
        insta::assert_snapshot!(message("a: '${int_div:1,0}'"), @"cannot resolve `int_div:1,0` at `a`: a division by zero, or an integer past 64 bits");
        insta::assert_snapshot!(message("a: '${oc.env:NOPE}'"), @"cannot resolve `oc.env:NOPE` at `a`: environment variable `NOPE` is not set");
    }
}
