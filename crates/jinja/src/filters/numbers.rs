//! Filters that make numbers, and one that writes them.

use crate::args::{Args, flag, int_or};
use crate::ast::BinaryOp;
use crate::error::{Error, ErrorKind, Result};
use crate::number;
use crate::ops;
use crate::text;
use crate::value::Value;

pub(super) fn call(name: &str, value: &Value, args: Args) -> Result<Value> {
    match name {
        "abs" => {
            let [] = args.unnamed("abs", 0)?;
            match value {
                Value::Float(float) => Ok(Value::Float(float.abs())),
                Value::Huge(_) => Err(number::too_large()),
                other => other.as_int().map(|int| Value::Int(int.abs())).ok_or_else(|| {
                    Error::type_error(format!("bad operand type for abs(): '{}'", other.type_name()))
                }),
            }
        }
        "int" => {
            let [default, base] = args.bind("do_int", ["default", "base"], 0)?;
            to_int(value, default.unwrap_or(Value::Int(0)), int_or(base.as_ref(), 10)?)
        }
        "float" => {
            let [default] = args.bind("do_float", ["default"], 0)?;
            match value {
                Value::Undefined(undefined) => Err(undefined.error()),
                Value::Huge(_) => Err(number::too_large()),
                other => {
                    Ok(to_float(other).map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
                }
            }
        }
        "round" => round(value, args),
        _ => file_size(value, args),
    }
}

fn to_float(value: &Value) -> Option<f64> {
    match value {
        Value::Str(text) => number::parse_float(&text::ascii_digits(&text.text)),
        other => other.as_float(),
    }
}

/// `int(value)`, else `int(float(value))`, else the default.
fn to_int(value: &Value, default: Value, base: i128) -> Result<Value> {
    let whole = |float: f64| number::whole(float.trunc());
    match value {
        Value::Undefined(undefined) => Err(undefined.error()),
        Value::Huge(_) => Ok(value.clone()),
        Value::Float(float) if float.is_infinite() => {
            Err(Error::new(ErrorKind::Overflow, "cannot convert float infinity to integer"))
        }
        Value::Str(text) => {
            let own = text::ascii_digits(&text.text);
            let base = u32::try_from(base).unwrap_or(99);
            if let Some(int) = number::parse_int(&own, base) {
                return Ok(Value::Int(int));
            }
            let digits = own.trim_matches(crate::lexer::is_space).trim_start_matches(['-', '+']);
            if digits.len() > 38 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(number::too_large());
            }
            match number::parse_float(&own) {
                Some(float) if float.is_finite() => {
                    whole(float).map(Value::Int).ok_or_else(number::too_large)
                }
                _ => Ok(default),
            }
        }
        Value::Float(float) if !float.is_nan() => whole(*float).map(Value::Int).ok_or_else(number::too_large),
        other => Ok(other.as_int().map_or(default, Value::Int)),
    }
}

fn round(value: &Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("do_round", ["precision", "method"], 0)?;
    if let (Some(Value::None), None, Value::Float(float)) = (&precision, &method, value) {
        return number::whole(float.round_ties_even()).map(Value::Int).ok_or_else(number::too_large);
    }
    let precision = int_or(precision.as_ref(), 0)?;
    let method = method.as_ref().map_or(Some("common"), Value::as_str);
    let method = method
        .filter(|method| matches!(*method, "common" | "ceil" | "floor"))
        .ok_or_else(|| Error::new(ErrorKind::FilterArgument, "method must be common, ceil or floor"))?;
    if method == "common" {
        return match value {
            Value::Float(float) => Ok(Value::Float(number::round(*float, precision))),
            Value::Undefined(undefined) => Err(undefined.error()),
            other => match other.as_int() {
                Some(int) => Ok(Value::Int(round_int(int, precision))),
                None => {
                    let found = other.type_name();
                    Err(Error::type_error(format!("type {found} doesn't define __round__ method")))
                }
            },
        };
    }
    let scale = ops::binary(BinaryOp::Pow, &Value::Int(10), &Value::Int(precision))?;
    let scaled = ops::binary(BinaryOp::Mul, value, &scale)?;
    let rounded = match &scaled {
        Value::Float(float) => {
            if float.is_nan() {
                return Err(Error::value_error("cannot convert float NaN to integer"));
            }
            if float.is_infinite() {
                return Err(Error::new(ErrorKind::Overflow, "cannot convert float infinity to integer"));
            }
            let rounded = if method == "ceil" { float.ceil() } else { float.floor() };
            Value::Int(number::whole(rounded).ok_or_else(number::too_large)?)
        }
        other if other.as_int().is_some() => scaled,
        other => {
            return Err(Error::type_error(format!("must be real number, not {}", other.type_name())));
        }
    };
    ops::binary(BinaryOp::Div, &rounded, &scale)
}

/// An integer to tens, hundreds and so on; half goes to the even one.
fn round_int(int: i128, precision: i128) -> i128 {
    let Some(unit) = u32::try_from(-precision).ok().filter(|power| *power > 0) else { return int };
    let Some(unit) = 10_i128.checked_pow(unit) else { return 0 };
    let remainder = int.rem_euclid(unit);
    let lower = int - remainder;
    let goes_up = remainder * 2 > unit || (remainder * 2 == unit && (lower / unit) % 2 != 0);
    if goes_up { lower + unit } else { lower }
}

fn file_size(value: &Value, args: Args) -> Result<Value> {
    let [binary] = args.bind("do_filesizeformat", ["binary"], 0)?;
    let is_binary = flag(binary.as_ref());
    let bytes = match value {
        Value::Undefined(undefined) => return Err(undefined.error()),
        Value::Str(text) => number::parse_float(&text.text).ok_or_else(|| {
            Error::value_error(format!("could not convert string to float: {}", text::repr(&text.text)))
        })?,
        other => other.as_float().ok_or_else(|| {
            let found = other.type_name();
            Error::type_error(format!("float() argument must be a string or a real number, not '{found}'"))
        })?,
    };
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", bytes.trunc())));
    }
    let mut unit = base * base;
    let letters = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    for (position, letter) in letters.into_iter().enumerate() {
        if bytes < unit || position + 1 == letters.len() {
            let letter = if is_binary { format!("{}i", letter.to_uppercase()) } else { letter.to_owned() };
            return Ok(Value::from(format!("{:.1} {letter}B", base * bytes / unit)));
        }
        unit *= base;
    }
    Ok(Value::None)
}
