//! Python's arithmetic and its way of writing numbers.

use std::cmp::Ordering;

use crate::ast::BinaryOp;
use crate::error::{Error, ErrorKind, Result};
use crate::value::Value;

/// The integer that a float is, if it is one.
pub(crate) fn whole(float: f64) -> Option<i128> {
    // 2^127 is where i128 ends, and it is a float.
    (float.fract() == 0.0 && float.abs() < 2.0_f64.powi(127)).then_some(float as i128)
}

/// A float as `repr` writes it: the fewest digits that give it back.
pub(crate) fn repr_float(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf".to_owned() } else { "-inf".to_owned() };
    }
    let scientific = format!("{float:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{float}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// The message for integers beyond 127 bits.
pub(crate) fn too_large() -> Error {
    Error::refused("an integer with more than 38 digits is not supported")
}

/// Two numbers of one kind.
enum Pair {
    Ints(i128, i128),
    Floats(f64, f64),
}

fn pair(left: &Value, right: &Value) -> Option<Pair> {
    Some(match (left.as_int(), right.as_int()) {
        (Some(left), Some(right)) => Pair::Ints(left, right),
        _ => Pair::Floats(as_float(left)?, as_float(right)?),
    })
}

pub(crate) fn as_float(value: &Value) -> Option<f64> {
    match value {
        Value::Float(float) => Some(*float),
        other => other.as_int().map(|int| int as f64),
    }
}

/// The result for two numbers, or `None` if one is none.
pub(crate) fn arithmetic(op: BinaryOp, left: &Value, right: &Value) -> Result<Option<Value>> {
    let is_huge = |value: &Value| matches!(value, Value::Huge(_));
    if (is_huge(left) || is_huge(right)) && !matches!(left, Value::Str(_)) {
        return Err(too_large());
    }
    let Some(pair) = pair(left, right) else { return Ok(None) };
    Ok(Some(match pair {
        Pair::Ints(left, right) => ints(op, left, right)?,
        Pair::Floats(left, right) => Value::Float(floats(op, left, right)?),
    }))
}

/// Which of two numbers is less, `Some(None)` beside a NaN; `None` if one is no number.
///
/// # Errors
/// When one is too large to be compared.
pub(crate) fn order(left: &Value, right: &Value) -> Result<Option<Option<Ordering>>> {
    Ok(match (left, right) {
        (Value::Huge(left), Value::Huge(right)) if left == right => Some(Some(Ordering::Equal)),
        (Value::Huge(_), other) | (other, Value::Huge(_)) if as_float(other).is_some() => {
            return Err(too_large());
        }
        _ => match (left.as_int(), right.as_int()) {
            (Some(left), Some(right)) => Some(Some(left.cmp(&right))),
            (Some(left), None) => as_float(right).map(|right| int_to_float(left, right)),
            (None, Some(right)) => {
                as_float(left).map(|left| int_to_float(right, left).map(Ordering::reverse))
            }
            (None, None) => match (as_float(left), as_float(right)) {
                (Some(left), Some(right)) => Some(left.partial_cmp(&right)),
                _ => None,
            },
        },
    })
}

/// Exact, though the integer may have more digits than a float holds.
fn int_to_float(int: i128, float: f64) -> Option<Ordering> {
    match whole(float.floor()) {
        Some(floor) if floor == int => {
            Some(if float.fract() == 0.0 { Ordering::Equal } else { Ordering::Less })
        }
        Some(floor) => Some(int.cmp(&floor)),
        None => (int as f64).partial_cmp(&float),
    }
}

fn zero_division(message: &str) -> Error {
    Error::new(ErrorKind::ZeroDivision, message)
}

fn ints(op: BinaryOp, left: i128, right: i128) -> Result<Value> {
    let is_division = matches!(op, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod);
    if is_division && right == 0 {
        let message =
            if op == BinaryOp::Div { "division by zero" } else { "integer division or modulo by zero" };
        return Err(zero_division(message));
    }
    let value = match op {
        BinaryOp::Add => left.checked_add(right),
        BinaryOp::Sub => left.checked_sub(right),
        BinaryOp::Mul => left.checked_mul(right),
        BinaryOp::Div => return divide(left, right).map(Value::Float),
        BinaryOp::FloorDiv => floor_div(left, right),
        BinaryOp::Mod => floor_div(left, right).map(|quotient| left - quotient * right),
        BinaryOp::Pow if right < 0 && left == 0 => {
            return Err(zero_division("0.0 cannot be raised to a negative power"));
        }
        BinaryOp::Pow if right < 0 => return floats(op, left as f64, right as f64).map(Value::Float),
        BinaryOp::Pow => match left {
            0 | 1 => Some(if right == 0 { 1 } else { left }),
            -1 => Some(if right % 2 == 0 { 1 } else { -1 }),
            _ => u32::try_from(right).ok().and_then(|exponent| left.checked_pow(exponent)),
        },
    };
    value.map(Value::Int).ok_or_else(too_large)
}

fn floor_div(left: i128, right: i128) -> Option<i128> {
    let quotient = left.checked_div(right)?;
    let is_inexact = quotient * right != left;
    Some(if is_inexact && (left < 0) != (right < 0) { quotient - 1 } else { quotient })
}

/// True division. Beyond 2^53 the quotient of the rounded operands may differ in the last bit from Python's.
fn divide(left: i128, right: i128) -> Result<f64> {
    const EXACT: i128 = 1 << 53;
    if left.abs() <= EXACT && right.abs() <= EXACT {
        return Ok(left as f64 / right as f64);
    }
    if left == 0 {
        return Ok(0.0 / right as f64);
    }
    if left % right == 0 {
        return Ok((left / right) as f64);
    }
    Err(Error::refused("a division of integers above 2**53 is not supported"))
}

fn floats(op: BinaryOp, left: f64, right: f64) -> Result<f64> {
    if right == 0.0 {
        match op {
            BinaryOp::Div => return Err(zero_division("float division by zero")),
            BinaryOp::FloorDiv => return Err(zero_division("float floor division by zero")),
            BinaryOp::Mod => return Err(zero_division("float modulo")),
            _ => {}
        }
    }
    Ok(match op {
        BinaryOp::Add => left + right,
        BinaryOp::Sub => left - right,
        BinaryOp::Mul => left * right,
        BinaryOp::Div => left / right,
        BinaryOp::FloorDiv => floor_and_mod(left, right).0,
        BinaryOp::Mod => floor_and_mod(left, right).1,
        BinaryOp::Pow => power(left, right)?,
    })
}

/// `float_divmod` of CPython.
fn floor_and_mod(left: f64, right: f64) -> (f64, f64) {
    let mut modulo = left % right;
    let mut quotient = (left - modulo) / right;
    if modulo == 0.0 {
        modulo = 0.0_f64.copysign(right);
    } else if (right < 0.0) != (modulo < 0.0) {
        modulo += right;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0.0_f64.copysign(left / right), modulo);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, modulo)
}

fn power(left: f64, right: f64) -> Result<f64> {
    if left == 0.0 && right < 0.0 {
        return Err(zero_division("0.0 cannot be raised to a negative power"));
    }
    if left < 0.0 && left.is_finite() && right.is_finite() && right.fract() != 0.0 {
        return Err(Error::refused("complex numbers are not supported"));
    }
    let value = left.powf(right);
    if value.is_infinite() && left.is_finite() && right.is_finite() {
        return Err(Error::new(ErrorKind::Overflow, "(34, 'Numerical result out of range')"));
    }
    Ok(value)
}

/// `round(value, digits)`: ties go to the even digit, and decimals are rounded as written out in full.
pub(crate) fn round(value: f64, digits: i128) -> f64 {
    if !value.is_finite() || digits > 400 {
        return value;
    }
    if let Ok(digits) = usize::try_from(digits) {
        // Formatting rounds the exact binary value, ties to even, as Python's correctly rounded algorithm does.
        return format!("{value:.digits$}").parse().unwrap_or(value);
    }
    if digits < -308 {
        return 0.0_f64.copysign(value);
    }
    let scale = 10.0_f64.powi(-(digits as i32));
    (value / scale).round_ties_even() * scale
}

/// `int(text, base)`: what Python takes for an integer.
pub(crate) fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(crate::lexer::is_space);
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (if text.starts_with('-') { -1 } else { 1 }, rest),
        None => (1, text),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed =
        |prefix: &str| lower.strip_prefix(prefix).map(|rest| rest.strip_prefix('_').unwrap_or(rest));
    let (base, digits) = match base {
        0 => match (prefixed("0x"), prefixed("0o"), prefixed("0b")) {
            (Some(rest), ..) => (16, rest),
            (_, Some(rest), _) => (8, rest),
            (.., Some(rest)) => (2, rest),
            _ if lower.starts_with('0') && lower.bytes().any(|byte| !matches!(byte, b'0' | b'_')) => {
                return None;
            }
            _ => (10, lower.as_str()),
        },
        16 => (16, prefixed("0x").unwrap_or(&lower)),
        8 => (8, prefixed("0o").unwrap_or(&lower)),
        2 => (2, prefixed("0b").unwrap_or(&lower)),
        base => (base, lower.as_str()),
    };
    let digits = without_underscores(digits)?;
    if !(2..=36).contains(&base) || digits.is_empty() || digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(&digits, base).ok().map(|value| sign * value)
}

/// `float(text)`: what Python takes for a float.
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(crate::lexer::is_space).to_ascii_lowercase();
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(&text);
    let is_named = matches!(unsigned, "inf" | "infinity" | "nan");
    let starts_right = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if !is_named && !starts_right {
        return None;
    }
    without_underscores(&text)?.parse().ok()
}

/// The text without its underscores, each of which stands between two digits.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let is_digit =
            |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
        if *byte == b'_' && !(is_digit(at.checked_sub(1)) && is_digit(Some(at + 1))) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}
