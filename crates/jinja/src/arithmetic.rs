//! Python's arithmetic and its order of numbers.

use std::cmp::Ordering;

use crate::ast::BinaryOp;
use crate::error::{Error, ErrorKind, Result};
use crate::number;
use crate::value::Value;

/// Two numbers of one kind.
enum Pair {
    Ints(i128, i128),
    Floats(f64, f64),
}

fn pair(left: &Value, right: &Value) -> Option<Pair> {
    Some(match (left.as_int(), right.as_int()) {
        (Some(left), Some(right)) => Pair::Ints(left, right),
        _ => Pair::Floats(left.as_float()?, right.as_float()?),
    })
}

/// The result for two numbers, or `None` if one is none.
pub(crate) fn arithmetic(op: BinaryOp, left: &Value, right: &Value) -> Result<Option<Value>> {
    let is_huge = |value: &Value| matches!(value, Value::Huge(_));
    if (is_huge(left) || is_huge(right)) && !matches!(left, Value::Str(_)) {
        return Err(number::too_large());
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
        (Value::Huge(_), other) | (other, Value::Huge(_)) if other.as_float().is_some() => {
            return Err(number::too_large());
        }
        _ => match (left.as_int(), right.as_int()) {
            (Some(left), Some(right)) => Some(Some(left.cmp(&right))),
            (Some(left), None) => right.as_float().map(|right| int_to_float(left, right)),
            (None, Some(right)) => {
                left.as_float().map(|left| int_to_float(right, left).map(Ordering::reverse))
            }
            (None, None) => match (left.as_float(), right.as_float()) {
                (Some(left), Some(right)) => Some(left.partial_cmp(&right)),
                _ => None,
            },
        },
    })
}

/// Exact, though the integer may have more digits than a float holds.
fn int_to_float(int: i128, float: f64) -> Option<Ordering> {
    match number::whole(float.floor()) {
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
    value.map(Value::Int).ok_or_else(number::too_large)
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
