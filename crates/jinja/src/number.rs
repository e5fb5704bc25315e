//! Python's way of reading, rounding and writing numbers.

use crate::error::Error;

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
