//! The quoted form of a value that Hydra does not read as it was typed: what a shell left after removing the quotes.

use super::value::{self, Element};
use crate::Node;

/// The value with quotes where they are needed, if quoting is enough.
pub(super) fn repaired(value: &str) -> Option<String> {
    let value = value.trim_matches([' ', '\t']);
    // A sweep is well formed; quoting it is not what it needs.
    if value.is_empty() || is_sweep(value) || is_call(value) {
        return None;
    }
    repaired_element(value)
}

fn is_sweep(value: &str) -> bool {
    matches!(value::parse(value), Ok(Element::Sweep(_)))
}

/// The value that is read, unless it is none, or a sweep.
fn parse_value(text: &str) -> Option<Node> {
    match value::parse(text) {
        Ok(Element::Sweep(_)) | Err(_) => None,
        Ok(element) => Some(element.into_node()),
    }
}

/// Whether it is a function that Hydra has: then its arguments are wrong, not its quotes.
fn is_call(value: &str) -> bool {
    value.split_once('(').is_some_and(|(name, _)| super::functions::NAMES.contains(&name.trim_end()))
}

fn repaired_element(value: &str) -> Option<String> {
    if parse_value(value).is_some() && !value.is_empty() {
        return Some(value.to_owned());
    }
    let inner = |open, close| value.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
    let parts = if let Some(inner) = inner('[', ']') {
        let items: Option<Vec<_>> =
            split(inner).iter().map(|item| repaired_element(item.trim_matches([' ', '\t']))).collect();
        items.map(|items| format!("[{}]", items.join(",")))
    } else if let Some(inner) = inner('{', '}') {
        let entry = |entry: &&str| {
            let (key, value) = entry.split_once(':')?;
            Some(format!("{}:{}", key.trim(), repaired_element(value.trim_matches([' ', '\t']))?))
        };
        let entries: Option<Vec<_>> = split(inner).iter().map(entry).collect();
        entries.map(|entries| format!("{{{}}}", entries.join(",")))
    } else {
        None
    };
    parts.filter(|parts| parse_value(parts).is_some()).or_else(|| {
        let text = unescaped(value);
        let quoted = quoted(&text);
        (!value.is_empty() && parse_value(&quoted) == Some(Node::Str(text))).then_some(quoted)
    })
}

/// Whether there are several items, none of which is in brackets with the others.
pub(super) fn has_commas(value: &str) -> bool {
    !is_call(value) && split(value).len() > 1
}

/// The items between commas that are outside of quotes and brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut quote, mut start) = (0_usize, None, 0);
    let mut items = Vec::new();
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        let was_escaped = is_escaped;
        is_escaped = c == '\\' && !was_escaped;
        if was_escaped {
            continue;
        }
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&text[start..]);
    items
}

/// A string without the backslashes that stand before what Hydra or a shell would read something into: in quotes they
/// would be part of the text.
pub(super) fn unescaped(text: &str) -> String {
    const ESCAPED: &str = "\\()[]{}:=, \t<>|&;*?!#'\"$`~";
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let escaped = if c == '\\' { rest.next_if(|&next| ESCAPED.contains(next)) } else { None };
        out.push(escaped.unwrap_or(c));
    }
    out
}

/// A string that stands for itself where interpolations are resolved: `$` before `{` is escaped, and with it what stands
/// before that and would be an escape.
pub fn without_interpolation(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut num_backslashes = 0;
    let mut rest = value.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '$' && rest.peek() == Some(&'{') {
            out.extend(std::iter::repeat_n('\\', num_backslashes + 1));
        }
        num_backslashes = if c == '\\' { num_backslashes + 1 } else { 0 };
        out.push(c);
    }
    out
}

/// A string in double quotes, as an override has it: backslashes count only before a quote.
pub fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    let mut num_backslashes = 0;
    for c in value.chars() {
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
