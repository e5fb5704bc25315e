//! What a plain YAML scalar means to OmegaConf: YAML 1.1 as PyYAML's safe loader reads it, with OmegaConf's own
//! rule for floats and without timestamps.

use crate::Node;

/// The value of a plain (unquoted) scalar.
pub(crate) fn resolve(text: &str) -> Node {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Node::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Node::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Node::Bool(false),
        _ => {}
    }
    if let Some(value) = integer(text) {
        return Node::Int(value);
    }
    float(text).map_or_else(|| Node::Str(text.to_owned()), Node::Float)
}

fn split_sign(text: &str) -> (bool, &str) {
    text.strip_prefix('-')
        .map_or_else(|| (false, text.strip_prefix('+').unwrap_or(text)), |rest| (true, rest))
}

/// PyYAML's integers: `0b1`, `017`, `0x1f`, `1_000` and `1:30` (base 60).
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = split_sign(text);
    let only = |text: &str, allowed: &dyn Fn(u8) -> bool| {
        !text.is_empty() && text.bytes().all(|byte| byte == b'_' || allowed(byte))
    };
    let parse = |text: &str, radix: u32| i64::from_str_radix(&text.replace('_', ""), radix).ok();
    let value = if let Some(binary) = digits.strip_prefix("0b") {
        only(binary, &|byte| matches!(byte, b'0' | b'1')).then(|| parse(binary, 2))?
    } else if let Some(hex) = digits.strip_prefix("0x") {
        only(hex, &|byte| byte.is_ascii_hexdigit()).then(|| parse(hex, 16))?
    } else if digits == "0" {
        Some(0)
    } else if let Some(octal) = digits.strip_prefix('0') {
        only(octal, &|byte| matches!(byte, b'0'..=b'7')).then(|| parse(octal, 8))?
    } else if digits.starts_with(|first: char| first.is_ascii_digit()) {
        let mut parts = digits.split(':');
        let first = parts.next().filter(|part| only(part, &|byte| byte.is_ascii_digit()))?;
        parts.try_fold(parse(first, 10), |sum, part| {
            let in_range = matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']);
            in_range.then(|| sum?.checked_mul(60)?.checked_add(part.parse().ok()?))
        })?
    } else {
        None
    }?;
    Some(if negative { -value } else { value })
}

/// OmegaConf's floats: a point or an exponent, underscores between digits, `.inf` and `.nan`.
fn float(text: &str) -> Option<f64> {
    match text.to_ascii_lowercase().as_str() {
        ".inf" | "+.inf" if is_word(text) => return Some(f64::INFINITY),
        "-.inf" if is_word(text) => return Some(f64::NEG_INFINITY),
        ".nan" if is_word(text) => return Some(f64::NAN),
        _ => {}
    }
    let (_, unsigned) = split_sign(text);
    let (mantissa, exponent) =
        unsigned.find(['e', 'E']).map_or((unsigned, None), |at| (&unsigned[..at], Some(&unsigned[at + 1..])));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(exponent) = exponent
        && !is_digits(split_sign(exponent).1)
    {
        return None;
    }
    let grouped = |text: &str| text.split('_').all(is_digits);
    let valid = match mantissa.split_once('.') {
        // A leading point takes no sign before it, and its exponent needs one.
        Some(("", fraction)) => {
            text == unsigned
                && grouped(fraction)
                && exponent.is_none_or(|exponent| exponent.starts_with(['-', '+']))
        }
        Some((whole, fraction)) => {
            grouped(whole) && fraction.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
        }
        None => exponent.is_some() && grouped(mantissa),
    };
    valid.then(|| text.replace('_', "").parse().ok())?
}

/// YAML's words come in three spellings: lower, Capital, UPPER.
fn is_word(text: &str) -> bool {
    let letters: String = text.chars().filter(char::is_ascii_alphabetic).collect();
    let lower = letters.to_ascii_lowercase();
    let capital = letters.len() == 3 && letters[1..] == lower[1..];
    letters == lower || letters == lower.to_ascii_uppercase() || capital || letters == "NaN"
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
            assert_eq!(resolve(scalar), expected, "{scalar}");
        }
    }
}
