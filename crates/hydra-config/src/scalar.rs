//! How OmegaConf reads a plain YAML scalar: YAML 1.1 as PyYAML's safe loader reads it, with OmegaConf's own
//! rule for floats beside PyYAML's and without timestamps; and which strings PyYAML's dumper must quote.

use crate::{Node, python};

/// The value of a plain (unquoted) scalar; `Err` says why OmegaConf refuses it.
pub(crate) fn resolve(text: &str) -> Result<Node, String> {
    if is_null(text) {
        return Ok(Node::Null);
    }
    if let Some(value) = boolean(text) {
        return Ok(Node::Bool(value));
    }
    if matches!(text, "=" | "<<") {
        return Err(format!("`{text}` must be quoted"));
    }
    if is_integer(text) {
        return integer(text).map(Node::Int).ok_or_else(|| format!("`{text}` is not a 64-bit integer"));
    }
    Ok(if is_omegaconf_float(text) || is_pyyaml_float(text) {
        float(text).map_or_else(|| Node::Str(text.to_owned()), Node::Float)
    } else {
        Node::Str(text.to_owned())
    })
}

pub(crate) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// Whether a string, written plainly, would be read as something else by PyYAML or by Python's `int` and `float`,
/// which is what OmegaConf's dumper asks.
pub(crate) fn needs_quotes(text: &str) -> bool {
    is_null(text)
        || boolean(text).is_some()
        || matches!(text, "y" | "Y" | "n" | "N" | "=" | "<<")
        || is_integer(text)
        || is_pyyaml_float(text)
        || is_timestamp(text)
        || python::parse_int(text).is_some()
        || python::parse_float(text).is_some()
}

fn split_sign(text: &str) -> (bool, &str) {
    text.strip_prefix('-')
        .map_or_else(|| (false, text.strip_prefix('+').unwrap_or(text)), |rest| (true, rest))
}

fn all(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(allowed)
}

fn is_digits(text: &str) -> bool {
    all(text, |byte| byte.is_ascii_digit())
}

fn is_digits_or_underscores(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
}

/// Digits, with single underscores between them.
fn is_grouped(text: &str) -> bool {
    text.split('_').all(is_digits)
}

/// A part of a base-60 number after its first colon: `0` to `59`.
fn is_sixtieth(text: &str) -> bool {
    matches!(text.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9'])
}

/// PyYAML's integers: `0b1`, `017`, `0x1f`, `1_000` and `1:30` (base 60).
fn is_integer(text: &str) -> bool {
    let digits = split_sign(text).1;
    if let Some(binary) = digits.strip_prefix("0b") {
        return all(binary, |byte| matches!(byte, b'0' | b'1' | b'_'));
    }
    if let Some(hex) = digits.strip_prefix("0x") {
        return all(hex, |byte| byte.is_ascii_hexdigit() || byte == b'_');
    }
    if let Some(octal) = digits.strip_prefix('0') {
        return octal.bytes().all(|byte| matches!(byte, b'0'..=b'7' | b'_'));
    }
    let mut parts = digits.split(':');
    parts.next().is_some_and(|first| {
        first.starts_with(|c: char| c.is_ascii_digit()) && is_digits_or_underscores(first)
    }) && parts.all(is_sixtieth)
}

pub(crate) fn integer(text: &str) -> Option<i64> {
    if !is_integer(text) {
        return None;
    }
    let text = text.replace('_', "");
    let (negative, digits) = split_sign(&text);
    // The sign goes along, because the lowest integer has no positive counterpart.
    let signed = |digits: &str, radix| {
        let digits = if negative { format!("-{digits}") } else { digits.to_owned() };
        i64::from_str_radix(&digits, radix).ok()
    };
    if let Some(binary) = digits.strip_prefix("0b") {
        signed(binary, 2)
    } else if let Some(hex) = digits.strip_prefix("0x") {
        signed(hex, 16)
    } else if digits.starts_with('0') {
        signed(digits, 8)
    } else {
        let mut parts = digits.split(':');
        let first = signed(parts.next()?, 10)?;
        parts.try_fold(first, |sum, part| {
            let part: i64 = part.parse().ok()?;
            sum.checked_mul(60)?.checked_add(if negative { -part } else { part })
        })
    }
}

fn is_infinity_or_nan(text: &str) -> bool {
    matches!(split_sign(text).1, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
}

/// Mantissa and exponent, when the exponent, if there is one, has digits.
fn split_exponent(text: &str) -> Option<(&str, Option<&str>)> {
    let Some(at) = text.find(['e', 'E']) else { return Some((text, None)) };
    let exponent = &text[at + 1..];
    is_digits(split_sign(exponent).1).then_some((&text[..at], Some(exponent)))
}

fn is_signed_or_absent(exponent: Option<&str>) -> bool {
    exponent.is_none_or(|exponent| exponent.starts_with(['-', '+']))
}

/// `1:30.5`.
fn is_base_60_float(unsigned: &str) -> bool {
    let Some((whole, fraction)) = unsigned.split_once('.') else { return false };
    let mut parts = whole.split(':');
    let first = parts.next().unwrap_or_default();
    first.starts_with(|c: char| c.is_ascii_digit())
        && is_digits_or_underscores(first)
        && whole.contains(':')
        && parts.all(is_sixtieth)
        && is_digits_or_underscores(fraction)
}

/// PyYAML's own floats: a point, and a sign in the exponent.
fn is_pyyaml_float(text: &str) -> bool {
    let unsigned = split_sign(text).1;
    if is_infinity_or_nan(text) || is_base_60_float(unsigned) {
        return true;
    }
    let Some((mantissa, exponent)) = split_exponent(unsigned) else { return false };
    let Some((whole, fraction)) = mantissa.split_once('.') else { return false };
    let starts_with_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    is_signed_or_absent(exponent)
        && is_digits_or_underscores(whole)
        && is_digits_or_underscores(fraction)
        && if whole.is_empty() {
            text == unsigned && starts_with_digit(fraction)
        } else {
            starts_with_digit(whole)
        }
}

/// OmegaConf's floats: the exponent needs no point before it and no sign, except after a leading point.
fn is_omegaconf_float(text: &str) -> bool {
    let unsigned = split_sign(text).1;
    let Some((mantissa, exponent)) = split_exponent(unsigned) else { return false };
    match mantissa.split_once('.') {
        Some(("", fraction)) => text == unsigned && is_grouped(fraction) && is_signed_or_absent(exponent),
        Some((whole, fraction)) => is_grouped(whole) && is_digits_or_underscores(fraction),
        None => exponent.is_some() && is_grouped(mantissa),
    }
}

/// The value of a string that has the form of a float.
pub(crate) fn float(text: &str) -> Option<f64> {
    let text = text.replace('_', "").to_ascii_lowercase();
    let (negative, digits) = split_sign(&text);
    let value = match digits {
        ".inf" => f64::INFINITY,
        ".nan" => f64::NAN,
        _ => digits.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?,
    };
    Some(if negative { -value } else { value })
}

/// YAML 1.1 timestamps, which PyYAML's dumper quotes although OmegaConf's loader does not read them.
fn is_timestamp(text: &str) -> bool {
    let take = |text: &mut &str, widths: std::ops::RangeInclusive<usize>| {
        let len = text.bytes().take(*widths.end()).take_while(u8::is_ascii_digit).count();
        *text = &text[len..];
        widths.contains(&len)
    };
    let skip = |text: &mut &str, c: char| {
        text.strip_prefix(c).is_some_and(|rest| {
            *text = rest;
            true
        })
    };
    if let [year, month, day] = text.split('-').collect::<Vec<_>>()[..]
        && (year.len(), month.len(), day.len()) == (4, 2, 2)
    {
        return [year, month, day].into_iter().all(is_digits);
    }
    let rest = &mut &*text;
    let is_date =
        take(rest, 4..=4) && skip(rest, '-') && take(rest, 1..=2) && skip(rest, '-') && take(rest, 1..=2);
    let before = rest.len();
    *rest = rest.strip_prefix(['T', 't']).unwrap_or_else(|| rest.trim_start_matches([' ', '\t']));
    let is_separated = rest.len() < before;
    let is_time =
        take(rest, 1..=2) && skip(rest, ':') && take(rest, 2..=2) && skip(rest, ':') && take(rest, 2..=2);
    if !(is_date && is_separated && is_time) {
        return false;
    }
    if skip(rest, '.') {
        *rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    if rest.is_empty() {
        return true;
    }
    *rest = rest.trim_start_matches([' ', '\t']);
    if skip(rest, 'Z') {
        return rest.is_empty();
    }
    (skip(rest, '-') || skip(rest, '+'))
        && take(rest, 1..=2)
        && (rest.is_empty() || (skip(rest, ':') && take(rest, 2..=2) && rest.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_mean_what_omegaconf_reads() {
        let text = |text: &str| Node::from(text);
        for (scalar, expected) in [
            ("yes", Node::Bool(true)),
            ("Off", Node::Bool(false)),
            ("y", text("y")),
            ("~", Node::Null),
            ("0777", Node::Int(511)),
            ("08", text("08")),
            ("0x1F", Node::Int(31)),
            ("0b101", Node::Int(5)),
            ("1_000", Node::Int(1000)),
            ("1:30", Node::Int(90)),
            ("1:30:00", Node::Int(5400)),
            ("0:04:00:00", text("0:04:00:00")),
            ("00:03:30:00", text("00:03:30:00")),
            ("1e5", Node::Float(1e5)),
            ("9e-6", Node::Float(9e-6)),
            ("1.0e-05", Node::Float(1e-5)),
            (".5", Node::Float(0.5)),
            ("1.", Node::Float(1.0)),
            (".5e+3", Node::Float(500.0)),
            (".5e3", text(".5e3")),
            (".inf", Node::Float(f64::INFINITY)),
            ("-.INF", Node::Float(f64::NEG_INFINITY)),
            ("2023-01-02", text("2023-01-02")),
            ("1.2.3", text("1.2.3")),
            ("-", text("-")),
            ("+12", Node::Int(12)),
        ] {
            assert_eq!(resolve(scalar), Ok(expected), "{scalar}");
        }
    }
}
