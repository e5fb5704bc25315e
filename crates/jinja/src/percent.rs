//! `'…' % values`.

use crate::error::{Error, ErrorKind, Result};
use crate::number;
use crate::spec::{Layout, float_digits, lay_out, sign_of, truncated};
use crate::text;
use crate::value::{Str, Value};

/// One conversion such as `%-5.2f`.
#[derive(Default)]
struct Conversion {
    flags: String,
    width: usize,
    precision: Option<usize>,
    /// Nothing stands between the sign and the letter.
    is_bare: bool,
}

/// Where the values come from, and which have been used.
struct Source<'a> {
    values: &'a Value,
    num_used: usize,
    used_map: bool,
}

impl Source<'_> {
    fn next(&mut self) -> Result<Value> {
        let at = self.num_used;
        self.num_used += 1;
        let found = match self.values {
            Value::Tuple(items) | Value::Group(items) => items.get(at).cloned(),
            only => (at == 0).then(|| only.clone()),
        };
        found.ok_or_else(|| Error::type_error("not enough arguments for format string"))
    }

    /// Whether something is left that no conversion asked for.
    fn is_left_over(&self) -> bool {
        match self.values {
            Value::Tuple(items) | Value::Group(items) => self.num_used < items.len(),
            // Python takes whatever has items by key for a mapping, and strings for none.
            Value::Dict(_) | Value::List(_) | Value::Range(_) => false,
            Value::Undefined(_) => false,
            _ => self.num_used == 0 && !self.used_map,
        }
    }
}

/// `format % values`.
///
/// # Errors
/// As Python's.
pub(crate) fn format(format: &Str, values: &Value) -> Result<Value> {
    let mut source = Source { values, num_used: 0, used_map: false };
    let mut out = String::new();
    let mut rest = &*format.text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let index = format.text.len() - rest.len() + at;
        rest = &rest[at + 1..];
        let mut keyed = None;
        if let Some(after) = rest.strip_prefix('(') {
            let (key, after) = key_of(after)?;
            let Value::Dict(map) = values else { return Err(Error::type_error("format requires a mapping")) };
            source.used_map = true;
            keyed = Some(
                map.get_str(key).cloned().ok_or_else(|| Error::new(ErrorKind::Lookup, text::repr(key)))?,
            );
            rest = after;
        }
        let (conversion, after) = conversion(rest, &mut source)?;
        let Some(kind) = after.chars().next() else { return Err(Error::value_error("incomplete format")) };
        rest = &after[kind.len_utf8()..];
        if kind == '%' && keyed.is_none() && conversion.is_bare {
            out.push('%');
            continue;
        }
        if kind == '%' {
            convert(&Value::None, kind, &conversion, format.text.len() - rest.len() - 2)?;
        }
        let value = match keyed {
            Some(value) => value,
            None => source.next()?,
        };
        let value = if format.is_markup { escaped(&value)? } else { value };
        out.push_str(&convert(&value, kind, &conversion, index)?);
    }
    out.push_str(rest);
    if source.is_left_over() {
        return Err(Error::type_error("not all arguments converted during string formatting"));
    }
    Ok(format.with(out))
}

/// What a format that is markup sees of its values.
fn escaped(value: &Value) -> Result<Value> {
    Ok(match value {
        Value::Str(text) if !text.is_markup => Value::from(text::escape_html(&text.text)),
        Value::Str(text) => Value::from(&*text.text),
        number if number.as_float().is_some() => number.clone(),
        other => Value::from(text::escape_html(&other.to_text()?)),
    })
}

/// The key in brackets, which may hold brackets itself.
fn key_of(text: &str) -> Result<(&str, &str)> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok((&text[..at], &text[at + 1..]));
        }
    }
    Err(Error::value_error("incomplete format key"))
}

fn conversion<'a>(text: &'a str, source: &mut Source<'_>) -> Result<(Conversion, &'a str)> {
    let mut found = Conversion::default();
    let after_flags = text.trim_start_matches(['-', '+', ' ', '#', '0']);
    text[..text.len() - after_flags.len()].clone_into(&mut found.flags);
    let (width, mut rest) = number_or_star(after_flags, source)?;
    if let Some(width) = width {
        if width < 0 {
            found.flags.push('-');
        }
        found.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, after) = number_or_star(after, source)?;
        found.precision = Some(usize::try_from(precision.unwrap_or(0).max(0)).unwrap_or(usize::MAX));
        rest = after;
    }
    found.is_bare = rest.len() == text.len();
    // Lengths of C are taken and mean nothing.
    Ok((found, rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest)))
}

fn number_or_star<'a>(text: &'a str, source: &mut Source<'_>) -> Result<(Option<i128>, &'a str)> {
    if let Some(rest) = text.strip_prefix('*') {
        let value = source.next()?;
        let int = value.as_int().ok_or_else(|| Error::type_error("* wants int"))?;
        return Ok((Some(int), rest));
    }
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &text[..text.len() - rest.len()];
    if digits.is_empty() {
        return Ok((None, rest));
    }
    let number = digits.parse().map_err(|_| Error::value_error("width too big"))?;
    Ok((Some(number), rest))
}

fn convert(value: &Value, kind: char, conversion: &Conversion, index: usize) -> Result<String> {
    let has = |flag: char| conversion.flags.contains(flag);
    let sign = if has('+') {
        '+'
    } else if has(' ') {
        ' '
    } else {
        '-'
    };
    let (text, num_prefix, is_number) = match kind {
        's' | 'r' | 'a' => {
            let text = if kind == 's' { value.to_text()? } else { value.repr()? };
            let text = if kind == 'a' { ascii(&text) } else { text };
            let text = match conversion.precision {
                Some(precision) => text.chars().take(precision).collect(),
                None => text,
            };
            (text, 0, false)
        }
        'c' => (character(value)?, 0, false),
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
            let int = integer(value, kind)?;
            let digits = digits(int.unsigned_abs(), kind, conversion.precision.unwrap_or(0));
            let prefix = match kind {
                'o' if has('#') => "0o",
                'x' if has('#') => "0x",
                'X' if has('#') => "0X",
                _ => "",
            };
            let sign = sign_of(int < 0, sign);
            (format!("{sign}{prefix}{digits}"), sign.len() + prefix.len(), true)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let float = match value {
                Value::Undefined(undefined) => return Err(undefined.error()),
                other => other.as_float().ok_or_else(|| {
                    Error::type_error(format!("must be real number, not {}", other.type_name()))
                })?,
            };
            let digits = float_digits(float, kind, conversion.precision.unwrap_or(6), has('#'))?;
            let sign = sign_of(float.is_sign_negative() && !float.is_nan(), sign);
            (format!("{sign}{digits}"), sign.len(), true)
        }
        other => {
            return Err(Error::value_error(format!(
                "unsupported format character '{other}' (0x{:x}) at index {}",
                u32::from(other),
                index + 1
            )));
        }
    };
    let layout = if has('-') {
        Layout { fill: ' ', align: '<', width: conversion.width }
    } else if is_number && has('0') {
        Layout { fill: '0', align: '=', width: conversion.width }
    } else {
        Layout { fill: ' ', align: '>', width: conversion.width }
    };
    lay_out(&text, num_prefix, layout)
}

fn digits(magnitude: u128, kind: char, precision: usize) -> String {
    let digits = match kind {
        'o' => format!("{magnitude:o}"),
        'x' => format!("{magnitude:x}"),
        'X' => format!("{magnitude:X}"),
        _ => magnitude.to_string(),
    };
    let missing = precision.min(text::MAX_MADE_ITEMS).saturating_sub(digits.len());
    "0".repeat(missing) + &digits
}

fn integer(value: &Value, kind: char) -> Result<i128> {
    let is_decimal = matches!(kind, 'd' | 'i' | 'u');
    let found = match value {
        Value::Undefined(undefined) if is_decimal => return Err(undefined.error()),
        Value::Huge(_) => return Err(number::too_large()),
        Value::Float(float) if is_decimal && float.is_nan() => {
            return Err(Error::value_error("cannot convert float NaN to integer"));
        }
        Value::Float(float) if is_decimal && float.is_infinite() => {
            return Err(Error::new(ErrorKind::Overflow, "cannot convert float infinity to integer"));
        }
        Value::Float(float) if is_decimal => truncated(*float),
        other => other.as_int(),
    };
    found.ok_or_else(|| {
        let wanted = if is_decimal { "a real number is required" } else { "an integer is required" };
        Error::type_error(format!("%{kind} format: {wanted}, not {}", value.type_name()))
    })
}

fn character(value: &Value) -> Result<String> {
    if let Some(int) = value.as_int() {
        let c = u32::try_from(int).ok().and_then(char::from_u32);
        return c
            .map(String::from)
            .ok_or_else(|| Error::new(ErrorKind::Overflow, "%c arg not in range(0x110000)"));
    }
    match value.as_str() {
        Some(text) if text.chars().count() == 1 => Ok(text.to_owned()),
        _ => Err(Error::type_error("%c requires int or char")),
    }
}

/// What is not ASCII, escaped.
pub(crate) fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            0..=0x7f => out.push(c),
            code @ 0x80..=0xff => out.push_str(&format!("\\x{code:02x}")),
            code @ 0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
            code => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out
}
