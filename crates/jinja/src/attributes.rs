//! `value.name` and `value[item]`, as Jinja's sandbox looks them up.

use std::rc::Rc;

use crate::error::{Error, Result};
use crate::text;
use crate::value::{Rendering, Undefined, Value};

const STR_METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const LIST_METHODS: [&str; 3] = ["copy", "count", "index"];
const LIST_CHANGES: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT_METHODS: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const INT_METHODS: [&str; 6] =
    ["as_integer_ratio", "bit_count", "bit_length", "conjugate", "from_bytes", "to_bytes"];
const FLOAT_METHODS: [&str; 5] = ["as_integer_ratio", "conjugate", "fromhex", "hex", "is_integer"];
const VIEW_METHODS: [&str; 2] = ["isdisjoint", "mapping"];

/// What `getattr` finds.
enum Found {
    Value(Value),
    /// It is there, but the sandbox does not give it out.
    Unsafe,
    Nothing,
}

fn method(value: &Value, name: &'static str) -> Found {
    Found::Value(Value::Method(Rc::new((value.clone(), name))))
}

/// The methods and properties of a value.
fn python_attribute(value: &Value, name: &str, renderer: &dyn Rendering) -> Result<Found> {
    if name.starts_with("__") && name.ends_with("__") && name.len() > 4 {
        return Ok(Found::Unsafe);
    }
    let one_of = |names: &[&'static str]| names.iter().copied().find(|known| *known == name);
    let found = match value {
        Value::Str(text) if text.is_markup && matches!(name, "unescape" | "striptags" | "escape") => {
            one_of(&["unescape", "striptags", "escape"]).map(|name| method(value, name))
        }
        Value::Str(_) => one_of(&STR_METHODS).map(|name| method(value, name)),
        Value::List(_) if one_of(&LIST_CHANGES).is_some() => Some(Found::Unsafe),
        Value::List(_) => one_of(&LIST_METHODS).map(|name| method(value, name)),
        Value::Group(items) if matches!(name, "grouper" | "list") => {
            items.get(usize::from(name == "list")).cloned().map(Found::Value)
        }
        Value::Tuple(_) | Value::Group(_) => one_of(&["count", "index"]).map(|name| method(value, name)),
        Value::Dict(_) if one_of(&DICT_CHANGES).is_some() => Some(Found::Unsafe),
        Value::Dict(_) => one_of(&DICT_METHODS).map(|name| method(value, name)),
        Value::Bool(_) | Value::Int(_) | Value::Huge(_) => match name {
            "real" | "numerator" => Some(Found::Value(whole(value))),
            "imag" => Some(Found::Value(Value::Int(0))),
            "denominator" => Some(Found::Value(Value::Int(1))),
            _ => one_of(&INT_METHODS).map(|name| method(value, name)),
        },
        Value::Float(_) => match name {
            "real" => Some(Found::Value(value.clone())),
            "imag" => Some(Found::Value(Value::Float(0.0))),
            _ => one_of(&FLOAT_METHODS).map(|name| method(value, name)),
        },
        Value::Range(range) => match name {
            "start" => Some(Found::Value(Value::Int(range.start))),
            "stop" => Some(Found::Value(Value::Int(range.stop))),
            "step" => Some(Found::Value(Value::Int(range.step))),
            _ => one_of(&["count", "index"]).map(|name| method(value, name)),
        },
        Value::View(..) => one_of(&VIEW_METHODS).map(|name| method(value, name)),
        Value::Namespace(attributes) => {
            let attributes = attributes.borrow();
            let found = attributes.iter().find(|(known, _)| **known == *name).map(|(_, value)| value.clone());
            found.map(Found::Value)
        }
        Value::Loop(state) => state.attribute(value, name, renderer)?.map(Found::Value),
        Value::Macro(called) => called.attribute(name).map(Found::Value),
        Value::Cycler(cycler) => match name {
            "current" => cycler.items.get(*cycler.position.borrow()).cloned().map(Found::Value),
            "pos" => Some(Found::Value(Value::from(*cycler.position.borrow()))),
            "items" => Some(Found::Value(Value::tuple(cycler.items.clone()))),
            _ => one_of(&["next", "reset"]).map(|name| method(value, name)),
        },
        Value::Joiner(joiner) => match name {
            "sep" => Some(Found::Value(Value::Str(joiner.0.clone()))),
            "used" => Some(Found::Value(Value::Bool(*joiner.1.borrow()))),
            _ => None,
        },
        Value::Function("dict") => one_of(&["fromkeys"]).map(|name| method(value, name)),
        _ => None,
    };
    Ok(found.unwrap_or(Found::Nothing))
}

fn whole(value: &Value) -> Value {
    value.as_int().map_or_else(|| value.clone(), Value::Int)
}

fn unsafe_undefined(value: &Value, name: &str) -> Value {
    let hint = format!(
        "access to attribute {} of {} object is unsafe.",
        text::repr(name),
        text::repr(value.type_name())
    );
    Value::Undefined(Rc::new(Undefined { hint: Some(hint), is_security: true, ..Undefined::default() }))
}

/// What is returned for something that is not in `value`.
fn missing(value: &Value, name: String, is_string: bool) -> Value {
    let owner = Some(value.type_repr());
    Value::Undefined(Rc::new(Undefined { owner, name: (name, is_string), ..Undefined::default() }))
}

/// Whether `value` has a method or property of this name.
pub(crate) fn has_attribute(value: &Value, name: &str, renderer: &dyn Rendering) -> Result<bool> {
    Ok(!matches!(python_attribute(value, name, renderer)?, Found::Nothing))
}

/// What `value.name` is where there is no such attribute.
pub(crate) fn missing_attribute(value: &Value, name: &str) -> Value {
    missing(value, text::repr(name), true)
}

/// `value.name`: a method or property, else an item of that name.
///
/// # Errors
/// When `value` is undefined.
pub(crate) fn attribute(value: &Value, name: &str, renderer: &dyn Rendering) -> Result<Value> {
    if let Value::Undefined(undefined) = value {
        // What every object has is there, and is not given out; anything else fails.
        if matches!(
            name,
            "__class__" | "__doc__" | "__init__" | "__str__" | "__repr__" | "__eq__" | "__hash__"
        ) {
            return Ok(unsafe_undefined(value, name));
        }
        return Err(undefined.error());
    }
    if let Value::Function("self") = value {
        if renderer.has_block(name) {
            return Err(Error::refused("`self`, the blocks of the template, is not supported"));
        }
        return Ok(missing(value, text::repr(name), true));
    }
    match python_attribute(value, name, renderer)? {
        Found::Value(_) if name.starts_with('_') => return Ok(unsafe_undefined(value, name)),
        Found::Value(found) => return Ok(found),
        Found::Unsafe => return Ok(unsafe_undefined(value, name)),
        Found::Nothing => {}
    }
    let item = match value {
        Value::Dict(dict) => dict.get_str(name).cloned(),
        _ => None,
    };
    Ok(item.unwrap_or_else(|| missing(value, text::repr(name), true)))
}

/// `value[item]`: an item, else the attribute of that name.
///
/// # Errors
/// When `value` is undefined.
pub(crate) fn item(value: &Value, item: &Value, renderer: &dyn Rendering) -> Result<Value> {
    if let Value::Undefined(undefined) = value {
        return Err(undefined.error());
    }
    if let Some(found) = subscript(value, item) {
        return Ok(found);
    }
    let Some(name) = item.as_str() else { return Ok(missing(value, item.repr()?, false)) };
    match python_attribute(value, name, renderer)? {
        Found::Value(_) if name.starts_with('_') => Ok(unsafe_undefined(value, name)),
        Found::Value(found) => Ok(found),
        Found::Unsafe => Ok(unsafe_undefined(value, name)),
        Found::Nothing => Ok(missing(value, text::repr(name), true)),
    }
}

/// Python's own `value[item]`, `None` where it fails.
fn subscript(value: &Value, item: &Value) -> Option<Value> {
    match value {
        Value::Dict(dict) => dict.get(item).ok().flatten().cloned(),
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            index(item, items.len()).and_then(|at| items.get(at)).cloned()
        }
        Value::Str(text) => {
            // Most strings are long and asked for their first or last character.
            let at = item.as_int()?;
            let found = match usize::try_from(at) {
                Ok(at) => text.text.chars().nth(at),
                Err(_) => text.text.chars().rev().nth(usize::try_from(-(at + 1)).ok()?),
            };
            found.map(|c| text.with(c.to_string()))
        }
        Value::Range(range) => index(item, range.len()).map(|at| Value::Int(range.at(at))),
        _ => None,
    }
}

/// The place that an index means, which may count from the end.
fn index(item: &Value, len: usize) -> Option<usize> {
    let at = item.as_int()?;
    let at = if at < 0 { at + len as i128 } else { at };
    usize::try_from(at).ok().filter(|at| *at < len)
}
