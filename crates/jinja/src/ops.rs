//! Operators between values.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::arithmetic;
use crate::ast::{BinaryOp, CompareOp};
use crate::error::{Error, ErrorKind, Result};
use crate::number;
use crate::percent;
use crate::text::{self, MAX_MADE_ITEMS};
use crate::value::{Rendering, Str, Value};

/// `left op right`.
pub(crate) fn binary(op: BinaryOp, left: &Value, right: &Value) -> Result<Value> {
    if let Some(value) = arithmetic::arithmetic(op, left, right)? {
        return Ok(value);
    }
    // A string's own `%` comes first, and takes an undefined value as it takes any.
    if let (BinaryOp::Mod, Value::Str(format)) = (op, left) {
        return percent::format(format, right);
    }
    for side in [left, right] {
        if let Value::Undefined(undefined) = side {
            return Err(undefined.error());
        }
    }
    match (op, left, right) {
        (BinaryOp::Add, Value::Str(left), Value::Str(right)) => Ok(add_strings(left, right)),
        (BinaryOp::Add, Value::List(left), Value::List(right)) => {
            Ok(Value::list(left.iter().chain(right.iter()).cloned().collect()))
        }
        (
            BinaryOp::Add,
            Value::Tuple(left) | Value::Group(left),
            Value::Tuple(right) | Value::Group(right),
        ) => Ok(Value::tuple(left.iter().chain(right.iter()).cloned().collect())),
        (BinaryOp::Mul, sequence, times) | (BinaryOp::Mul, times, sequence)
            if times.as_int().is_some()
                && matches!(sequence, Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Group(_)) =>
        {
            repeat(sequence, times.as_int().unwrap_or(0))
        }
        _ => Err(unsupported(op, left, right)),
    }
}

fn add_strings(left: &Str, right: &Str) -> Value {
    if !left.is_markup && !right.is_markup {
        return Value::from(format!("{}{}", left.text, right.text));
    }
    let escaped = |part: &Str| {
        if part.is_markup { part.text.to_string() } else { text::escape_html(&part.text) }
    };
    Value::markup(escaped(left) + &escaped(right))
}

fn repeat(sequence: &Value, times: i128) -> Result<Value> {
    if i64::try_from(times).is_err() {
        return Err(Error::new(ErrorKind::Overflow, "cannot fit 'int' into an index-sized integer"));
    }
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let len = match sequence {
        Value::Str(text) => text.text.len(),
        other => other.len()?,
    };
    if len.saturating_mul(times) > MAX_MADE_ITEMS {
        return Err(Error::refused(format!(
            "repeating {len} items {times} times makes more than the {MAX_MADE_ITEMS} that a template may make"
        )));
    }
    Ok(match sequence {
        Value::Str(text) => text.with(text.text.repeat(times)),
        Value::List(items) => Value::list(repeated(items, times)),
        Value::Tuple(items) | Value::Group(items) => Value::tuple(repeated(items, times)),
        other => other.clone(),
    })
}

fn repeated(items: &[Value], times: usize) -> Vec<Value> {
    std::iter::repeat_n(items, times).flatten().cloned().collect()
}

fn unsupported(op: BinaryOp, left: &Value, right: &Value) -> Error {
    let (left_type, right_type) = (left.type_name(), right.type_name());
    match (op, left, right) {
        (BinaryOp::Add, Value::Str(_), _) => {
            Error::type_error(format!("can only concatenate str (not \"{right_type}\") to str"))
        }
        (BinaryOp::Add, Value::List(_), _) => {
            Error::type_error(format!("can only concatenate list (not \"{right_type}\") to list"))
        }
        (BinaryOp::Add, Value::Tuple(_), _) => {
            Error::type_error(format!("can only concatenate tuple (not \"{right_type}\") to tuple"))
        }
        (BinaryOp::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), _) => {
            Error::type_error(format!("can't multiply sequence by non-int of type '{right_type}'"))
        }
        (BinaryOp::Mul, _, Value::Str(_) | Value::List(_) | Value::Tuple(_)) => {
            Error::type_error(format!("can't multiply sequence by non-int of type '{left_type}'"))
        }
        _ => {
            let sign = match op {
                BinaryOp::Add => "+",
                BinaryOp::Sub => "-",
                BinaryOp::Mul => "*",
                BinaryOp::Div => "/",
                BinaryOp::FloorDiv => "//",
                BinaryOp::Mod => "%",
                BinaryOp::Pow => "** or pow()",
            };
            // Python has set operations for views and the union of dicts; the language has no sign for the latter.
            if matches!((left, right), (Value::View(..), _) | (_, Value::View(..))) {
                return Error::refused(format!("`{sign}` between views of a dict is not supported"));
            }
            Error::type_error(format!(
                "unsupported operand type(s) for {sign}: '{left_type}' and '{right_type}'"
            ))
        }
    }
}

/// `-value` and `+value`.
pub(crate) fn signed(value: &Value, is_negative: bool) -> Result<Value> {
    match value {
        Value::Float(float) => Ok(Value::Float(if is_negative { -float } else { *float })),
        Value::Undefined(undefined) => Err(undefined.error()),
        other => match other.as_int() {
            Some(int) => Ok(Value::Int(if is_negative { -int } else { int })),
            None => {
                let sign = if is_negative { '-' } else { '+' };
                Err(Error::type_error(format!("bad operand type for unary {sign}: '{}'", other.type_name())))
            }
        },
    }
}

/// `left op right` for one comparison.
pub(crate) fn compare(op: CompareOp, left: &Value, right: &Value, renderer: &dyn Rendering) -> Result<bool> {
    match op {
        CompareOp::Eq => equal(left, right),
        CompareOp::Ne => equal(left, right).map(|is_equal| !is_equal),
        CompareOp::In => contains(right, left, renderer),
        CompareOp::NotIn => contains(right, left, renderer).map(|is_in| !is_in),
        CompareOp::Lt => ordered(left, right, "<", |order| order == Some(Ordering::Less)),
        CompareOp::Le => {
            ordered(left, right, "<=", |order| matches!(order, Some(Ordering::Less | Ordering::Equal)))
        }
        CompareOp::Gt => ordered(left, right, ">", |order| order == Some(Ordering::Greater)),
        CompareOp::Ge => {
            ordered(left, right, ">=", |order| matches!(order, Some(Ordering::Greater | Ordering::Equal)))
        }
    }
}

/// `left == right`.
pub(crate) fn equal(left: &Value, right: &Value) -> Result<bool> {
    if let Some(order) = arithmetic::order(left, right)? {
        return Ok(order == Some(Ordering::Equal));
    }
    Ok(match (left, right) {
        (Value::None, Value::None) | (Value::Undefined(_), Value::Undefined(_)) => true,
        (Value::Str(left), Value::Str(right)) => left.text == right.text,
        (Value::List(left), Value::List(right)) => sequences_equal(left, right)?,
        (Value::Tuple(left) | Value::Group(left), Value::Tuple(right) | Value::Group(right)) => {
            sequences_equal(left, right)?
        }
        (Value::Dict(left), Value::Dict(right)) => {
            if left.len() != right.len() {
                return Ok(false);
            }
            for (key, value) in left.iter() {
                match right.get(key)? {
                    Some(other) if equal(value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(left), Value::Range(right)) => {
            let len = left.len();
            len == right.len()
                && (len == 0 || left.start == right.start)
                && (len < 2 || left.step == right.step)
        }
        (Value::Iter(left), Value::Iter(right)) => Rc::ptr_eq(left, right),
        (Value::Function(left), Value::Function(right)) => left == right,
        (Value::Macro(left), Value::Macro(right)) => Rc::ptr_eq(left, right),
        (Value::Namespace(left), Value::Namespace(right)) => Rc::ptr_eq(left, right),
        (Value::Loop(left), Value::Loop(right)) => Rc::ptr_eq(left, right),
        (Value::Cycler(left), Value::Cycler(right)) => Rc::ptr_eq(left, right),
        (Value::Joiner(left), Value::Joiner(right)) => Rc::ptr_eq(left, right),
        (Value::View(..), Value::View(..)) | (Value::Method(_), Value::Method(_)) => {
            return Err(Error::refused(format!(
                "comparing two of type `{}` is not supported",
                left.type_name()
            )));
        }
        _ => false,
    })
}

fn sequences_equal(left: &[Value], right: &[Value]) -> Result<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for (left, right) in left.iter().zip(right) {
        if !equal(left, right)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn ordered(
    left: &Value,
    right: &Value,
    sign: &str,
    holds: impl Fn(Option<Ordering>) -> bool,
) -> Result<bool> {
    order(left, right, sign).map(holds)
}

/// Which of two values is less; `None` for a NaN. `sign` is for the message.
///
/// # Errors
/// When Python has no order for them.
pub(crate) fn order(left: &Value, right: &Value, sign: &str) -> Result<Option<Ordering>> {
    for side in [left, right] {
        if let Value::Undefined(undefined) = side {
            return Err(undefined.error());
        }
    }
    if let Some(order) = arithmetic::order(left, right)? {
        return Ok(order);
    }
    match (left, right) {
        (Value::Str(left), Value::Str(right)) => Ok(Some(left.text.cmp(&right.text))),
        (Value::List(left), Value::List(right))
        | (Value::Tuple(left) | Value::Group(left), Value::Tuple(right) | Value::Group(right)) => {
            for (left, right) in left.iter().zip(right.iter()) {
                if !equal(left, right)? {
                    return order(left, right, sign);
                }
            }
            Ok(Some(left.len().cmp(&right.len())))
        }
        (Value::View(..), Value::View(..)) => {
            Err(Error::refused("comparing views of dicts is not supported"))
        }
        _ => Err(Error::type_error(format!(
            "'{sign}' not supported between instances of '{}' and '{}'",
            left.type_name(),
            right.type_name()
        ))),
    }
}

/// `item in container`.
pub(crate) fn contains(container: &Value, item: &Value, renderer: &dyn Rendering) -> Result<bool> {
    match container {
        Value::Str(text) => match item {
            Value::Str(part) => Ok(text.text.contains(&*part.text)),
            other => Err(Error::type_error(format!(
                "'in <string>' requires string as left operand, not {}",
                other.type_name()
            ))),
        },
        Value::Dict(dict) | Value::View(crate::value::ViewKind::Keys, dict) => Ok(dict.get(item)?.is_some()),
        Value::Range(range) => Ok(match item.as_float().and_then(number::whole) {
            Some(value) => {
                let offset = value - range.start;
                offset % range.step == 0 && (0..range.len() as i128).contains(&(offset / range.step))
            }
            None => false,
        }),
        other if other.is_iterable() => {
            for candidate in other.items(renderer)? {
                if is_same(&candidate, item) || equal(&candidate, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => Err(Error::type_error(format!("argument of type '{}' is not iterable", other.type_name()))),
    }
}

/// A NaN is in a list that holds it, though it does not equal itself.
fn is_same(left: &Value, right: &Value) -> bool {
    matches!((left, right), (Value::Float(left), Value::Float(right)) if left.to_bits() == right.to_bits())
}

/// Stable, as Python's `sorted`.
///
/// # Errors
/// When two keys have no order.
pub(crate) fn sort_by_key(mut keyed: Vec<(Value, Value)>, is_reversed: bool) -> Result<Vec<Value>> {
    let mut failure = None;
    let mut less = |left: &Value, right: &Value| match order(left, right, "<") {
        Ok(order) => order.unwrap_or(Ordering::Equal),
        Err(error) => {
            failure.get_or_insert(error);
            Ordering::Equal
        }
    };
    // Python keeps the order of equal items when it sorts backwards, too.
    if is_reversed {
        keyed.sort_by(|(left, _), (right, _)| less(right, left));
    } else {
        keyed.sort_by(|(left, _), (right, _)| less(left, right));
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, value)| value).collect()),
    }
}

/// `start:stop:step`; `None` of Python for what is left out.
#[derive(Clone, Copy)]
pub(crate) struct Slice<'a> {
    pub(crate) start: &'a Value,
    pub(crate) stop: &'a Value,
    pub(crate) step: &'a Value,
}

/// The bounds of `[start:stop:step]` over `len` items: which indices, in which order.
///
/// # Errors
/// When a bound is no integer or the step is zero.
fn slice_indices(slice: Slice<'_>, len: usize) -> Result<Vec<usize>> {
    let bound = |value: &Value| match value {
        Value::None => Ok(None),
        other => other.as_int().map(Some).ok_or_else(|| {
            Error::type_error("slice indices must be integers or None or have an __index__ method")
        }),
    };
    let (start, stop, step) = (bound(slice.start)?, bound(slice.stop)?, bound(slice.step)?.unwrap_or(1));
    if step == 0 {
        return Err(Error::value_error("slice step cannot be zero"));
    }
    let len = len as i128;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(bound) if bound < 0 => (bound + len).max(lowest),
        Some(bound) => bound.min(highest),
    };
    let start = clamp(start, if step > 0 { 0 } else { len - 1 });
    let stop = clamp(stop, if step > 0 { len } else { -1 });
    let mut indices = Vec::new();
    let mut at = start;
    while if step > 0 { at < stop } else { at > stop } {
        indices.extend(usize::try_from(at));
        at = at.saturating_add(step);
    }
    Ok(indices)
}

/// `value[start:stop:step]`.
pub(crate) fn slice(value: &Value, bounds: Slice<'_>) -> Result<Value> {
    let pick = |items: &[Value]| -> Result<Vec<Value>> {
        Ok(slice_indices(bounds, items.len())?.into_iter().map(|index| items[index].clone()).collect())
    };
    match value {
        Value::Str(text) => {
            let chars: Vec<char> = text.text.chars().collect();
            let indices = slice_indices(bounds, chars.len())?;
            Ok(text.with(indices.into_iter().map(|index| chars[index]).collect::<String>()))
        }
        Value::List(items) => pick(items).map(Value::list),
        Value::Tuple(items) | Value::Group(items) => pick(items).map(Value::tuple),
        Value::Range(_) => Err(Error::refused("a slice of a range is not supported")),
        Value::Undefined(undefined) => Err(undefined.error()),
        Value::Dict(_) => Err(Error::type_error("unhashable type: 'slice'")),
        other => Err(Error::type_error(format!("'{}' object is not subscriptable", other.type_name()))),
    }
}
