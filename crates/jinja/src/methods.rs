//! The methods of Python's own types.

mod collections;
mod strings;
mod translate;

pub(crate) use self::collections::make_dict;
pub(crate) use self::strings::{pad, replace, strip};

use crate::args::Args;
use crate::error::{Error, Result};
use crate::number;
use crate::ops;
use crate::value::{LoopState, Rendering, Value};

/// `value.name(args)`.
///
/// # Errors
/// As the method's in Python.
pub(crate) fn call(value: &Value, name: &'static str, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    match value {
        Value::Str(text) => strings::call(text, name, args, renderer),
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            collections::call_sequence(value, items, name, args)
        }
        Value::Range(_) => collections::call_sequence(value, &value.items(renderer)?, name, args),
        Value::Dict(_) | Value::Function("dict") => collections::call_dict(value, name, args, renderer),
        Value::Bool(_) | Value::Int(_) => call_int(value.as_int().unwrap_or(0), name, args),
        Value::Float(float) => call_float(*float, name, args),
        Value::Cycler(cycler) => {
            let [] = args.unnamed(name, 0)?;
            let mut position = cycler.position.borrow_mut();
            if name == "reset" {
                *position = 0;
                return Ok(Value::None);
            }
            let current = cycler.items.get(*position).cloned().unwrap_or(Value::None);
            *position = (*position + 1) % cycler.items.len().max(1);
            Ok(current)
        }
        Value::Loop(state) => call_loop(state, name, args),
        other => Err(unsupported(other, name)),
    }
}

fn unsupported(value: &Value, name: &str) -> Error {
    Error::refused(format!("the method `{name}` of `{}` is not supported", value.type_name()))
}

fn call_loop(state: &LoopState, name: &str, args: Args) -> Result<Value> {
    let items = args.positional;
    if name == "cycle" {
        let count = items.len();
        let position = state.index0().checked_rem(count);
        let position = position.ok_or_else(|| Error::type_error("no items for cycling given"))?;
        return Ok(items[position].clone());
    }
    let mut last = state.last_changed.borrow_mut();
    let is_same = match &*last {
        Some(last) if last.len() == items.len() => {
            let pairs = last.iter().zip(&items);
            pairs
                .map(|(left, right)| ops::equal(left, right))
                .collect::<Result<Vec<_>>>()?
                .iter()
                .all(|same| *same)
        }
        _ => false,
    };
    if !is_same {
        *last = Some(items);
    }
    Ok(Value::Bool(!is_same))
}

fn call_int(int: i128, name: &str, args: Args) -> Result<Value> {
    match name {
        "bit_length" | "bit_count" | "conjugate" | "as_integer_ratio" => {
            let [] = args.unnamed(name, 0)?;
            let magnitude = int.unsigned_abs();
            Ok(match name {
                "bit_length" => Value::Int(i128::from(128 - magnitude.leading_zeros())),
                "bit_count" => Value::Int(i128::from(magnitude.count_ones())),
                "conjugate" => Value::Int(int),
                _ => Value::tuple(vec![Value::Int(int), Value::Int(1)]),
            })
        }
        _ => Err(unsupported(&Value::Int(int), name)),
    }
}

fn call_float(float: f64, name: &str, args: Args) -> Result<Value> {
    match name {
        "is_integer" => {
            let [] = args.unnamed(name, 0)?;
            Ok(Value::Bool(number::whole(float).is_some()))
        }
        "conjugate" => {
            let [] = args.unnamed(name, 0)?;
            Ok(Value::Float(float))
        }
        _ => Err(unsupported(&Value::Float(float), name)),
    }
}
