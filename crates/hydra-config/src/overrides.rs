//! One command-line override, read by Hydra 1.3's grammar (`OverrideLexer.g4` and `OverrideParser.g4` of hydra-core).
//!
//! Sweeps are refused: one run is one configuration. Config groups are read but not composed.

use indexmap::IndexMap;

use crate::{ConfigError, Node, emit, scalar};

/// What an override does with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideKind {
    /// `key=value`: the key must be there.
    Set,
    /// `+key=value`: the key must not be there.
    Add,
    /// `++key=value`: either.
    ForceAdd,
    /// `~key` or `~key=value`.
    Delete,
    /// `hydra.…` or `hydra/…`: settings of Hydra itself, which mean nothing here.
    Ignored,
}

/// A parsed override.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// What it does.
    pub kind: OverrideKind,
    /// The dotted key.
    pub key: String,
    /// The value, if one is given.
    pub value: Option<Node>,
    /// The argument as given.
    pub text: String,
}

/// Reads one argument.
///
/// # Errors
/// When Hydra would refuse it; where quoting the value would make it valid, the error carries the quoted form.
pub fn parse(text: &str) -> Result<Override, ConfigError> {
    let error = |message: String, quoted: Option<String>| ConfigError::Override {
        text: text.to_owned(),
        message,
        quoted,
    };
    let (kind, rest) = if let Some(rest) = text.strip_prefix("++") {
        (OverrideKind::ForceAdd, rest)
    } else if let Some(rest) = text.strip_prefix('+') {
        (OverrideKind::Add, rest)
    } else if let Some(rest) = text.strip_prefix('~') {
        (OverrideKind::Delete, rest)
    } else {
        (OverrideKind::Set, text)
    };
    let (key, value) = rest.split_once('=').map_or((rest, None), |(key, value)| (key, Some(value)));
    let ignored = key.starts_with("hydra.") || key.starts_with("hydra/") || key == "hydra";
    if !ignored && let Some(message) = key_problem(key) {
        return Err(error(message, None));
    }
    if value.is_none() && kind != OverrideKind::Delete {
        return Err(error("no `=`; write `key=value`".to_owned(), None));
    }
    let value = match value {
        None => None,
        Some(value) => Some(parse_value(value).map_err(|message| {
            let quoted = quoted_form(value);
            let helps = !message.contains("sweep") && parse_value(&quoted) == Ok(Node::from(value.trim()));
            let prefix = &text[..text.len() - value.len()];
            error(message, helps.then(|| format!("{prefix}{quoted}")))
        })?),
    };
    let kind = if ignored { OverrideKind::Ignored } else { kind };
    Ok(Override { kind, key: key.to_owned(), value, text: text.to_owned() })
}

/// The value inside double quotes, as Hydra's grammar escapes it: backslashes count only before a quote.
fn quoted_form(value: &str) -> String {
    let mut out = String::from("\"");
    let mut num_backslashes = 0;
    for c in value.trim().chars() {
        if c == '"' {
            out.extend(std::iter::repeat_n('\\', num_backslashes + 1));
        }
        num_backslashes = if c == '\\' { num_backslashes + 1 } else { 0 };
        out.push(c);
    }
    out.extend(std::iter::repeat_n('\\', num_backslashes));
    out.push('"');
    out
}

fn key_problem(key: &str) -> Option<String> {
    if key.is_empty() {
        return Some("the key is empty".to_owned());
    }
    if key.contains('/') || key.contains('@') {
        return Some("config groups are not supported".to_owned());
    }
    let parts: Vec<&str> = key.split('.').collect();
    let is_identifier = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$'))
    };
    let is_index = |part: &str| parts.len() > 1 && is_unsigned(part);
    parts
        .iter()
        .find(|part| !is_identifier(part) && !is_index(part))
        .map(|part| format!("`{part}` is not a key"))
}

pub(crate) fn parse_value(text: &str) -> Result<Node, String> {
    let unquoted = !text.trim_start().starts_with(['"', '\'', '[', '{']);
    if unquoted
        && text
            .find("${")
            .is_some_and(|at| text[at + 2..].split('}').next().unwrap_or_default().contains("${"))
    {
        return Err("an interpolation inside another must be quoted".to_owned());
    }
    // Hydra's lexer drops space after `=`; at the end, only an unquoted text may have some.
    let mut parser = Parser { rest: text.trim_start_matches([' ', '\t']) };
    if parser.rest.is_empty() {
        return Ok(Node::from(""));
    }
    let value = parser.element()?;
    match parser.rest.chars().next() {
        None => Ok(value),
        Some(',') => {
            Err("a list of values is a sweep, which needs one run for each; put a list in brackets"
                .to_owned())
        }
        Some(' ' | '\t') => Err("unexpected space at the end".to_owned()),
        Some(c) => Err(format!("unexpected `{c}`")),
    }
}

/// Characters of an unquoted value beside letters, digits and `_`.
const UNQUOTED: &str = "/-\\+.$%*@?|";
/// Characters that a backslash makes ordinary.
const ESCAPABLE: &str = "\\()[]{}:=, \t";
/// Nesting that no real override reaches.
const MAX_DEPTH: usize = 64;

/// Where an unquoted text stands.
#[derive(Clone, Copy, PartialEq)]
enum Unquoted {
    /// Before the colon of a dict: no interpolations.
    Key,
    Value,
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn element(&mut self) -> Result<Node, String> {
        self.element_at(0)
    }

    fn element_at(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        match self.rest.chars().next() {
            Some('[') => self.list(depth),
            Some('{') => self.dict(depth),
            Some(quote @ ('"' | '\'')) => self.quoted(quote).map(Node::Str),
            _ => match self.function_name() {
                Some(name) => self.function(name, depth),
                None => self.primitive(),
            },
        }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn eat(&mut self, c: char) -> bool {
        let trimmed = self.rest.trim_start_matches([' ', '\t']);
        let Some(rest) = trimmed.strip_prefix(c) else { return false };
        self.rest = rest.trim_start_matches([' ', '\t']);
        true
    }

    /// A closing bracket, which takes no space after it.
    fn eat_close(&mut self, c: char) -> bool {
        let trimmed = self.rest.trim_start_matches([' ', '\t']);
        trimmed.strip_prefix(c).is_some_and(|rest| {
            self.rest = rest;
            true
        })
    }

    fn list(&mut self, depth: usize) -> Result<Node, String> {
        self.eat('[');
        let mut list = Vec::new();
        if self.eat_close(']') {
            return Ok(Node::List(list));
        }
        loop {
            list.push(self.element_at(depth + 1)?);
            if self.eat_close(']') {
                return Ok(Node::List(list));
            }
            if !self.eat(',') {
                return Err(self.unexpected("`,` or `]`"));
            }
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Node, String> {
        self.eat('{');
        let mut map = IndexMap::new();
        if self.eat_close('}') {
            return Ok(Node::Map(map));
        }
        loop {
            let key = self.dict_key()?;
            if !self.eat(':') {
                return Err(self.unexpected("`:`"));
            }
            map.insert(key, self.element_at(depth + 1)?);
            if self.eat_close('}') {
                return Ok(Node::Map(map));
            }
            if !self.eat(',') {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
    }

    fn dict_key(&mut self) -> Result<String, String> {
        self.skip_space();
        let (text, _) = self.unquoted(Unquoted::Key)?;
        if text.is_empty() { Err(self.unexpected("a key")) } else { Ok(text) }
    }

    fn unexpected(&self, wanted: &str) -> String {
        self.rest.chars().next().map_or_else(
            || format!("expected {wanted}, found the end"),
            |c| format!("expected {wanted}, found `{c}`"),
        )
    }

    /// A backslash run escapes only right before a quote of the same kind.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let content = &self.rest[1..];
        let mut out = String::new();
        let mut num_backslashes = 0;
        for (at, c) in content.char_indices() {
            if c == '\\' {
                num_backslashes += 1;
                continue;
            }
            let literal = if c == quote { num_backslashes / 2 } else { num_backslashes };
            out.extend(std::iter::repeat_n('\\', literal));
            if c == quote && num_backslashes % 2 == 0 {
                self.rest = &content[at + 1..];
                return Ok(out);
            }
            num_backslashes = 0;
            out.push(c);
        }
        Err(format!("no closing `{quote}`"))
    }

    /// `name(` at the front.
    fn function_name(&self) -> Option<&'a str> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-')?;
        let name = &self.rest[..end];
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        (is_name && self.rest[end..].trim_start_matches([' ', '\t']).starts_with('(')).then_some(name)
    }

    fn function(&mut self, name: &str, depth: usize) -> Result<Node, String> {
        match name {
            "int" | "float" | "str" | "bool" => {}
            "choice" | "range" | "glob" | "interval" | "shuffle" | "sort" | "tag" | "extend_list" => {
                return Err(format!("`{name}(…)` is a sweep, which needs one run for each value"));
            }
            _ => return Err(format!("unknown function `{name}`")),
        }
        self.rest = &self.rest[name.len()..];
        self.eat('(');
        if let Some(rest) = self.rest.strip_prefix("value") {
            let mut named = Parser { rest };
            if named.eat('=') {
                self.rest = named.rest;
            }
        }
        let value = self.element_at(depth + 1)?;
        if !self.eat_close(')') {
            return Err(self.unexpected("`)`"));
        }
        cast(name, value)
    }

    /// Unquoted characters up to one that ends the value, with escapes undone, and whether anything but one word
    /// was in it.
    fn unquoted(&mut self, place: Unquoted) -> Result<(String, bool), String> {
        let mut out = String::new();
        let mut kept = 0;
        let mut is_literal = false;
        while let Some(c) = self.rest.chars().next() {
            if matches!(c, ',' | ']' | '}' | ')') || (c == ':' && place == Unquoted::Key) {
                break;
            }
            let mut taken = c.len_utf8();
            if self.rest.starts_with("${") && place == Unquoted::Value {
                let end = self
                    .rest
                    .find('}')
                    .filter(|end| *end > 2)
                    .ok_or("an interpolation without a name or `}`")?;
                taken = end + 1;
                out.push_str(&self.rest[..taken]);
                is_literal = true;
            } else if c == '\\' && self.rest[1..].starts_with(|next: char| ESCAPABLE.contains(next)) {
                let escaped = self.rest[1..].chars().next().unwrap_or('\\');
                taken += escaped.len_utf8();
                out.push(escaped);
                is_literal = true;
                kept = out.len();
            } else if c.is_ascii_alphanumeric()
                || c == '_'
                || c == ':'
                || c == ' '
                || c == '\t'
                || UNQUOTED.contains(c)
            {
                out.push(c);
            } else {
                return Err(format!("`{c}` must be quoted"));
            }
            if c != ' ' && c != '\t' {
                kept = out.len();
            }
            self.rest = &self.rest[taken..];
        }
        out.truncate(kept);
        Ok((out, is_literal))
    }

    fn primitive(&mut self) -> Result<Node, String> {
        self.skip_space();
        let (text, is_literal) = self.unquoted(Unquoted::Value)?;
        if text.is_empty() {
            return Err(self.unexpected("a value"));
        }
        Ok(if is_literal { Node::Str(text) } else { word(&text) })
    }
}

/// The value of an unquoted word by Hydra's lexer, which knows fewer forms than YAML.
pub(crate) fn word(text: &str) -> Node {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "null" => return Node::Null,
        "true" => return Node::Bool(true),
        "false" => return Node::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if is_unsigned(unsigned) {
        return text.replace('_', "").parse().map_or_else(|_| Node::from(text), Node::Int);
    }
    if is_float(unsigned) {
        return text.replace('_', "").parse().map_or_else(|_| Node::from(text), Node::Float);
    }
    Node::from(text)
}

/// `0` or digits without a leading zero, single underscores between them.
fn is_unsigned(text: &str) -> bool {
    text == "0" || (text.starts_with(|c: char| ('1'..='9').contains(&c)) && is_digits(text))
}

fn is_digits(text: &str) -> bool {
    text.split('_').all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_float(text: &str) -> bool {
    if matches!(text.to_ascii_lowercase().as_str(), "inf" | "nan") {
        return true;
    }
    let (mantissa, exponent) =
        text.find(['e', 'E']).map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])));
    if exponent.is_some_and(|exponent| !is_digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))) {
        return false;
    }
    match mantissa.split_once('.') {
        Some((whole, "")) => is_unsigned(whole),
        Some((whole, fraction)) => (whole.is_empty() || is_unsigned(whole)) && is_digits(fraction),
        None => exponent.is_some() && is_unsigned(mantissa),
    }
}

fn cast(name: &str, value: Node) -> Result<Node, String> {
    let fails = |value: &Node| Err(format!("cannot cast a {} with `{name}(…)`", value.type_name()));
    match (name, value) {
        (_, Node::List(list)) => {
            list.into_iter().map(|item| cast(name, item)).collect::<Result<_, _>>().map(Node::List)
        }
        (_, Node::Map(map)) => map
            .into_iter()
            .map(|(key, item)| Ok((key, cast(name, item)?)))
            .collect::<Result<_, String>>()
            .map(Node::Map),
        ("str", Node::Float(value)) => Ok(Node::Str(emit::python_float(value))),
        ("str", Node::Str(text)) => Ok(Node::Str(text)),
        ("str", Node::Int(value)) => Ok(Node::Str(value.to_string())),
        ("str", Node::Bool(value)) => Ok(Node::Str(value.to_string())),
        ("int", Node::Int(value)) => Ok(Node::Int(value)),
        ("int", Node::Bool(value)) => Ok(Node::Int(i64::from(value))),
        ("int", Node::Float(value)) if value.is_finite() => Ok(Node::Int(value.trunc() as i64)),
        ("int", Node::Str(text)) => {
            scalar::python_int(&text).map_or_else(|| fails(&Node::Str(text)), |value| Ok(Node::Int(value)))
        }
        ("float", Node::Int(value)) => Ok(Node::Float(value as f64)),
        ("float", Node::Float(value)) => Ok(Node::Float(value)),
        ("float", Node::Bool(value)) => Ok(Node::Float(f64::from(u8::from(value)))),
        ("float", Node::Str(text)) => scalar::python_float(&text)
            .map_or_else(|| fails(&Node::Str(text)), |value| Ok(Node::Float(value))),
        ("bool", Node::Null) => Ok(Node::Bool(false)),
        ("bool", Node::Bool(value)) => Ok(Node::Bool(value)),
        ("bool", Node::Int(value)) => Ok(Node::Bool(value != 0)),
        ("bool", Node::Float(value)) => Ok(Node::Bool(value != 0.0)),
        ("bool", Node::Str(text)) => match text.to_ascii_lowercase().as_str() {
            "true" => Ok(Node::Bool(true)),
            "false" => Ok(Node::Bool(false)),
            _ => fails(&Node::Str(text)),
        },
        (_, value) => fails(&value),
    }
}

#[cfg(test)]
mod tests;
