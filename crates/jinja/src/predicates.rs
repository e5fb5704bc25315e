//! The tests of Jinja2, `value is …`: those of `jinja2/tests.py` (3.1.6).

use std::rc::Rc;

use crate::args::Args;
use crate::ast::{BinaryOp, CompareOp};
use crate::error::{Error, ErrorKind, Result};
use crate::filter_names;
use crate::methods;
use crate::ops;
use crate::value::{Rendering, Value};

const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Whether there is a test of this name.
pub(crate) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// `value is name(args)`.
///
/// # Errors
/// As the test's in Python.
pub(crate) fn call(name: &str, value: &Value, args: Args, renderer: &dyn Rendering) -> Result<bool> {
    if !exists(name) {
        return Err(Error::new(ErrorKind::Runtime, format!("No test named '{name}' found.")));
    }
    if let Some(op) = comparison(name) {
        let [other] = args.unnamed(name, 1)?;
        return ops::compare(op, value, &other.unwrap_or(Value::None), renderer);
    }
    match name {
        "divisibleby" => {
            let [num] = args.bind("test_divisibleby", ["num"], 1)?;
            return remainder_is(value, &num.unwrap_or(Value::None), 0);
        }
        "sameas" => {
            let [other] = args.bind("test_sameas", ["other"], 1)?;
            return same(value, &other.unwrap_or(Value::None));
        }
        "in" => {
            let [seq] = args.bind("test_in", ["seq"], 1)?;
            return ops::contains(&seq.unwrap_or(Value::None), value, renderer);
        }
        _ => {}
    }
    let [] = args.unnamed(name, 0)?;
    Ok(match name {
        "odd" => remainder_is(value, &Value::Int(2), 1)?,
        "even" => remainder_is(value, &Value::Int(2), 0)?,
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "filter" => hashable(value)?.is_some_and(filter_names::exists),
        "test" => hashable(value)?.is_some_and(exists),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_) | Value::Huge(_)),
        "float" => matches!(value, Value::Float(_)),
        "lower" | "upper" => {
            let text = Value::from(value.to_text()?);
            let method = if name == "lower" { "islower" } else { "isupper" };
            methods::call(&text, method, Args::default(), renderer)?.is_true()
        }
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Huge(_) | Value::Float(_)),
        "sequence" => value.is_sequence(),
        "iterable" => value.is_iterable(),
        "callable" => value.is_callable(),
        _ => matches!(value, Value::Str(text) if text.is_markup),
    })
}

fn comparison(name: &str) -> Option<CompareOp> {
    Some(match name {
        "==" | "eq" | "equalto" => CompareOp::Eq,
        "!=" | "ne" => CompareOp::Ne,
        ">" | "gt" | "greaterthan" => CompareOp::Gt,
        ">=" | "ge" => CompareOp::Ge,
        "<" | "lt" | "lessthan" => CompareOp::Lt,
        "<=" | "le" => CompareOp::Le,
        _ => return None,
    })
}

fn remainder_is(value: &Value, divisor: &Value, wanted: i128) -> Result<bool> {
    ops::equal(&ops::binary(BinaryOp::Mod, value, divisor)?, &Value::Int(wanted))
}

/// A string to look up; what cannot be a key of a dict is an error.
fn hashable(value: &Value) -> Result<Option<&str>> {
    match value {
        Value::List(_) | Value::Dict(_) => {
            Err(Error::type_error(format!("unhashable type: '{}'", value.type_name())))
        }
        other => Ok(other.as_str()),
    }
}

/// Python's `is`.
fn same(left: &Value, right: &Value) -> Result<bool> {
    Ok(match (left, right) {
        (Value::None, Value::None) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        // CPython keeps one object for each small integer.
        (Value::Int(left), Value::Int(right)) if left == right && (-5..=256).contains(left) => true,
        (Value::List(left), Value::List(right)) => Rc::ptr_eq(left, right),
        (Value::Tuple(left), Value::Tuple(right)) => {
            Rc::ptr_eq(left, right) || (left.is_empty() && right.is_empty())
        }
        (Value::Dict(left), Value::Dict(right)) => Rc::ptr_eq(left, right),
        (Value::Namespace(left), Value::Namespace(right)) => Rc::ptr_eq(left, right),
        (Value::Macro(left), Value::Macro(right)) => Rc::ptr_eq(left, right),
        (Value::Str(left), Value::Str(right)) if std::sync::Arc::ptr_eq(&left.text, &right.text) => true,
        (Value::Str(_), Value::Str(_))
        | (Value::Int(_), Value::Int(_))
        | (Value::Float(_), Value::Float(_))
            if ops::equal(left, right)? =>
        {
            return Err(Error::refused(
                "whether two equal values are the same object depends on Python's memory",
            ));
        }
        _ => false,
    })
}
