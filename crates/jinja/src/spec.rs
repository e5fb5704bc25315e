//! How a value is laid out: what `%` formatting and `str.format` have in common.

use crate::error::{Error, Result};
use crate::number;
use crate::text::MAX_MADE_ITEMS;

/// The width of a field and how it is filled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) fill: char,
    /// `<`, `>`, `^` or `=` (the fill goes between the sign and the digits).
    pub(crate) align: char,
    pub(crate) width: usize,
}

/// Fills a field up. `num_prefix` characters stand before what `=` fills in.
///
/// # Errors
/// When the width is beyond what a template may make.
pub(crate) fn lay_out(text: &str, num_prefix: usize, layout: Layout) -> Result<String> {
    if layout.width > MAX_MADE_ITEMS {
        return Err(Error::refused(format!("a field of width {} is too wide", layout.width)));
    }
    let missing = layout.width.saturating_sub(text.chars().count());
    let filled = |count: usize| std::iter::repeat_n(layout.fill, count).collect::<String>();
    Ok(match layout.align {
        '<' => format!("{text}{}", filled(missing)),
        '^' => format!("{}{text}{}", filled(missing / 2), filled(missing - missing / 2)),
        '=' => {
            let (prefix, rest) = text.split_at(num_prefix);
            format!("{prefix}{}{rest}", filled(missing))
        }
        _ => format!("{}{text}", filled(missing)),
    })
}

/// The digits of an integer with its sign apart.
pub(crate) fn sign_of(is_negative: bool, sign: char) -> &'static str {
    match (is_negative, sign) {
        (true, _) => "-",
        (false, '+') => "+",
        (false, ' ') => " ",
        _ => "",
    }
}

/// The magnitude of a float in one of Python's formats, without its sign.
///
/// # Errors
/// When the precision is beyond what a template may make.
pub(crate) fn float_digits(float: f64, kind: char, precision: usize, is_alternate: bool) -> Result<String> {
    if precision > MAX_MADE_ITEMS {
        return Err(Error::refused(format!("a precision of {precision} is too large")));
    }
    let magnitude = float.abs();
    let is_upper = kind.is_ascii_uppercase();
    if !magnitude.is_finite() {
        let name = if magnitude.is_nan() { "nan" } else { "inf" };
        return Ok(if is_upper { name.to_ascii_uppercase() } else { name.to_owned() });
    }
    let text = match kind.to_ascii_lowercase() {
        'f' => with_point(format!("{magnitude:.precision$}"), is_alternate && precision == 0),
        'e' => exponent_form(magnitude, precision, is_alternate),
        _ => general(magnitude, precision.max(1), is_alternate),
    };
    Ok(if is_upper { text.to_ascii_uppercase() } else { text })
}

fn with_point(text: String, wants_point: bool) -> String {
    if wants_point { text + "." } else { text }
}

fn exponent_form(magnitude: f64, precision: usize, is_alternate: bool) -> String {
    let text = format!("{magnitude:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = with_point(mantissa.to_owned(), is_alternate && precision == 0);
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `g`: so many digits, in whichever form is shorter, zeros at the end left off.
fn general(magnitude: f64, precision: usize, is_alternate: bool) -> String {
    let scientific = format!("{magnitude:.*e}", precision - 1);
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trimmed = |text: &str| {
        if is_alternate || !text.contains('.') {
            return text.to_owned();
        }
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if exponent < -4 || i64::from(exponent) >= precision as i64 {
        let text = exponent_form(magnitude, precision - 1, is_alternate);
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, ""));
        return format!("{}e{exponent}", trimmed(mantissa));
    }
    let num_decimals = usize::try_from(precision as i64 - 1 - i64::from(exponent)).unwrap_or(0);
    let text = format!("{magnitude:.num_decimals$}");
    trimmed(&with_point(text, is_alternate && num_decimals == 0))
}

/// A float as an integer, toward zero, as `%d` takes it.
pub(crate) fn truncated(float: f64) -> Option<i128> {
    number::whole(float.trunc())
}
