//! `tojson` as transformers defines it, `json.dumps` with its options, and the numbers of JSON.

use std::rc::Rc;

use crate::args::{Args, flag};
use crate::error::{Error, ErrorKind, Result};
use crate::number::repr_float;
use crate::ops;
use crate::text::MAX_MADE_ITEMS;
use crate::value::Value;

/// A number as Python's `json` reads it: without a point and an exponent it is an integer.
pub(crate) fn number(text: &str) -> Value {
    if text.contains(['.', 'e', 'E', 'N', 'I']) {
        return Value::Float(text.parse().unwrap_or(f64::NAN));
    }
    match text.parse() {
        Ok(int) => Value::Int(int),
        Err(_) => Value::Huge(Rc::from(text)),
    }
}

struct Layout {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
}

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)`.
pub(crate) fn dump(value: &Value, args: Args) -> Result<String> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = args.bind("tojson", names, 0)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.text.to_string()),
        Some(other) => {
            let width = other.as_int().ok_or_else(|| {
                Error::type_error(format!(
                    "can't multiply sequence by non-int of type '{}'",
                    other.type_name()
                ))
            })?;
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            if width > MAX_MADE_ITEMS / 1024 {
                return Err(Error::refused(format!("an indentation of {width} is too wide")));
            }
            Some(" ".repeat(width))
        }
    };
    let default_item_separator = if indent.is_some() { "," } else { ", " };
    let (item_separator, key_separator) = match separators {
        None | Some(Value::None) => (default_item_separator.to_owned(), ": ".to_owned()),
        Some(Value::List(pair) | Value::Tuple(pair)) if pair.len() == 2 => {
            (crate::args::string(&pair[0])?.to_owned(), crate::args::string(&pair[1])?.to_owned())
        }
        Some(Value::Str(pair)) if pair.text.chars().count() == 2 => {
            let mut chars = pair.text.chars().map(String::from);
            (chars.next().unwrap_or_default(), chars.next().unwrap_or_default())
        }
        Some(Value::List(items) | Value::Tuple(items)) => {
            let (which, len) =
                if items.len() < 2 { ("not enough", items.len()) } else { ("too many", items.len()) };
            let got = if len < 2 { format!(", got {len}") } else { String::new() };
            return Err(Error::value_error(format!("{which} values to unpack (expected 2{got})")));
        }
        Some(other) => {
            return Err(Error::type_error(format!(
                "cannot unpack non-iterable {} object",
                other.type_name()
            )));
        }
    };
    let layout = Layout {
        ensure_ascii: flag(ensure_ascii.as_ref()),
        sort_keys: flag(sort_keys.as_ref()),
        indent,
        item_separator,
        key_separator,
    };
    let mut out = String::new();
    layout.push(&mut out, value, 0)?;
    Ok(out)
}

/// What stands around the items.
#[derive(Clone, Copy)]
struct Brackets {
    open: char,
    close: char,
}

impl Brackets {
    const LIST: Self = Self { open: '[', close: ']' };
    const DICT: Self = Self { open: '{', close: '}' };
}

impl Layout {
    fn push(&self, out: &mut String, value: &Value, depth: usize) -> Result<()> {
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Value::Int(int) => out.push_str(&int.to_string()),
            Value::Huge(digits) => out.push_str(digits),
            Value::Float(float) => out.push_str(&float_text(*float)),
            Value::Str(text) => self.push_string(out, &text.text),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                let push = |out: &mut String, item: &Value| self.push(out, item, depth + 1);
                self.push_all(out, Brackets::LIST, items.iter(), depth, push)?;
            }
            Value::Dict(dict) => {
                let mut entries: Vec<(Value, Value)> = dict.iter().cloned().collect();
                if self.sort_keys {
                    let keyed = entries
                        .drain(..)
                        .map(|entry| (entry.0.clone(), Value::tuple(vec![entry.0, entry.1])));
                    let sorted = ops::sort_by_key(keyed.collect(), false)?;
                    entries = sorted
                        .iter()
                        .filter_map(|entry| match entry {
                            Value::Tuple(pair) => Some((pair[0].clone(), pair[1].clone())),
                            _ => None,
                        })
                        .collect();
                }
                let push = |out: &mut String, (key, value): &(Value, Value)| {
                    self.push_string(out, &key_text(key)?);
                    out.push_str(&self.key_separator);
                    self.push(out, value, depth + 1)
                };
                self.push_all(out, Brackets::DICT, entries.iter(), depth, push)?;
            }
            other => {
                return Err(Error::new(
                    ErrorKind::Type,
                    format!("Object of type {} is not JSON serializable", other.type_name()),
                ));
            }
        }
        Ok(())
    }

    fn push_all<'a, T: 'a>(
        &self,
        out: &mut String,
        brackets: Brackets,
        items: impl ExactSizeIterator<Item = &'a T>,
        depth: usize,
        push: impl Fn(&mut String, &T) -> Result<()>,
    ) -> Result<()> {
        out.push(brackets.open);
        let is_empty = items.len() == 0;
        for (position, item) in items.enumerate() {
            if position > 0 {
                out.push_str(&self.item_separator);
            }
            self.break_line(out, depth + 1);
            push(out, item)?;
        }
        if !is_empty {
            self.break_line(out, depth);
        }
        out.push(brackets.close);
        Ok(())
    }

    fn break_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn push_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn float_text(float: f64) -> String {
    if float.is_nan() {
        "NaN".to_owned()
    } else if float.is_infinite() {
        if float > 0.0 { "Infinity".to_owned() } else { "-Infinity".to_owned() }
    } else {
        repr_float(float)
    }
}

fn key_text(key: &Value) -> Result<String> {
    Ok(match key {
        Value::Str(text) => text.text.to_string(),
        Value::None => "null".to_owned(),
        Value::Bool(flag) => (if *flag { "true" } else { "false" }).to_owned(),
        Value::Int(int) => int.to_string(),
        Value::Float(float) => float_text(*float),
        other => {
            return Err(Error::type_error(format!(
                "keys must be str, int, float, bool or None, not {}",
                other.type_name()
            )));
        }
    })
}
