//! `str.maketrans` and `str.translate`.

use crate::args::{Args, string};
use crate::error::{Error, ErrorKind, Result};
use crate::value::{Dict, Value};

fn code(c: char) -> Value {
    Value::Int(i128::from(u32::from(c)))
}

/// `str.maketrans(dict)`, or `str.maketrans(from, to, removed)`.
pub(super) fn make_table(args: Args) -> Result<Value> {
    let [first, to, removed] = args.unnamed("maketrans", 1)?;
    let first = first.unwrap_or(Value::None);
    let mut table = Dict::default();
    let Some(to) = to else {
        let Value::Dict(entries) = &first else {
            return Err(Error::type_error("if you give only one argument to maketrans it must be a dict"));
        };
        for (key, value) in entries.iter() {
            let key = match key {
                Value::Str(text) => {
                    let mut chars = text.text.chars();
                    match (chars.next(), chars.next()) {
                        (Some(c), None) => code(c),
                        _ => {
                            return Err(Error::value_error(
                                "string keys in translate table must be of length 1",
                            ));
                        }
                    }
                }
                other if other.as_int().is_some() => other.clone(),
                _ => return Err(Error::type_error("keys in translate table must be strings or integers")),
            };
            table.insert(key, value.clone())?;
        }
        return Ok(Value::dict(table));
    };
    let (from, to) = (string(&first)?, string(&to)?);
    if from.chars().count() != to.chars().count() {
        return Err(Error::value_error("the first two maketrans arguments must have equal length"));
    }
    for (from, to) in from.chars().zip(to.chars()) {
        table.insert(code(from), code(to))?;
    }
    if let Some(removed) = removed {
        for c in string(&removed)?.chars() {
            table.insert(code(c), Value::None)?;
        }
    }
    Ok(Value::dict(table))
}

/// `own.translate(table)`: each character by what the table has for its code point.
pub(super) fn translate(own: &str, table: &Value) -> Result<String> {
    let find = |c: char| -> Result<Option<Value>> {
        let at = u32::from(c) as usize;
        Ok(match table {
            Value::Dict(table) => table.get(&code(c))?.cloned(),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => items.get(at).cloned(),
            Value::Str(text) => text.text.chars().nth(at).map(|c| Value::from(c.to_string())),
            Value::Undefined(undefined) => return Err(undefined.error()),
            other => {
                let found = other.type_name();
                return Err(Error::type_error(format!("'{found}' object is not subscriptable")));
            }
        })
    };
    let mut out = String::with_capacity(own.len());
    for c in own.chars() {
        match find(c)? {
            None => out.push(c),
            Some(Value::None) => {}
            Some(Value::Str(text)) => out.push_str(&text.text),
            Some(other) => {
                let code = other
                    .as_int()
                    .ok_or_else(|| Error::type_error("character mapping must return integer, None or str"))?;
                let c = u32::try_from(code).ok().filter(|code| *code <= 0x0010_ffff).ok_or_else(|| {
                    Error::new(ErrorKind::Value, "character mapping must be in range(0x110000)")
                })?;
                let c = char::from_u32(c);
                out.push(c.ok_or_else(|| Error::refused("half a surrogate pair is not supported"))?);
            }
        }
    }
    Ok(out)
}
