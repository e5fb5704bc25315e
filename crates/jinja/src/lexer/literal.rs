//! Numbers and strings of the template language.

use super::TokenKind;
use crate::error::{Error, Result};

/// A number at the start of `rest`. After a dot it is an index, so `x.0.1` has no float.
pub(super) fn number(rest: &str, after_dot: bool, line: usize) -> Result<(TokenKind, usize)> {
    if !after_dot && let Some(len) = float_len(rest) {
        let text: String = rest[..len].chars().filter(|&c| c != '_').collect();
        let value: f64 = text.parse().map_err(|_| Error::syntax(line, format!("`{text}` is no number")))?;
        if value.is_infinite() {
            return Err(refused(line, format!("the number {text} is too large")));
        }
        return Ok((TokenKind::Float(value), len));
    }
    let bytes = rest.as_bytes();
    let radix = match bytes.get(1).map(u8::to_ascii_lowercase) {
        Some(b'b') => 2,
        Some(b'o') => 8,
        Some(b'x') => 16,
        _ => 10,
    };
    if bytes[0] == b'0' && radix != 10 {
        let len = 2 + digits_len(&rest[2..], |c| c.is_digit(radix), true);
        if len > 2 {
            return integer(&rest[2..len], radix, line).map(|value| (TokenKind::Int(value), len));
        }
    }
    let len = if bytes[0] == b'0' {
        digits_len(rest, |c| c == '0', false)
    } else {
        digits_len(rest, |c| c.is_ascii_digit(), false)
    };
    integer(&rest[..len], 10, line).map(|value| (TokenKind::Int(value), len))
}

fn integer(digits: &str, radix: u32, line: usize) -> Result<i128> {
    let digits: String = digits.chars().filter(|&c| c != '_').collect();
    i128::from_str_radix(&digits, radix)
        .map_err(|_| refused(line, format!("the number {digits} has more digits than can be held")))
}

fn refused(line: usize, what: String) -> Error {
    Error { line: Some(line), ..Error::refused(what) }
}

/// The length of digits with single underscores between them.
fn digits_len(text: &str, is_digit: impl Fn(char) -> bool, may_start_with_underscore: bool) -> usize {
    let bytes = text.as_bytes();
    let digit_at = |at: usize| bytes.get(at).is_some_and(|&byte| is_digit(char::from(byte)));
    let mut len = 0;
    loop {
        if digit_at(len) {
            len += 1;
        } else if bytes.get(len) == Some(&b'_') && digit_at(len + 1) && (len > 0 || may_start_with_underscore)
        {
            len += 2;
        } else {
            return len;
        }
    }
}

fn float_len(rest: &str) -> Option<usize> {
    let decimal = |text: &str| digits_len(text, |c| c.is_ascii_digit(), false);
    let whole = decimal(rest);
    let fraction = rest[whole..].strip_prefix('.').map_or(0, decimal);
    let end = if fraction > 0 { whole + 1 + fraction } else { whole };
    let exponent = rest[end..].strip_prefix(['e', 'E']).map_or(0, |after| {
        let unsigned = after.strip_prefix(['+', '-']).unwrap_or(after);
        match decimal(unsigned) {
            0 => 0,
            digits => 1 + (after.len() - unsigned.len()) + digits,
        }
    });
    (fraction > 0 || exponent > 0).then_some(end + exponent)
}

/// A string at the start of `rest`, or `None` if it is not closed.
pub(super) fn string(rest: &str, quote: char, line: usize) -> Result<Option<(TokenKind, usize)>> {
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            let text = unescape(&rest[1..at], line)?;
            return Ok(Some((TokenKind::Str(text), at + 1)));
        }
    }
    Ok(None)
}

/// Python's escapes in a string, as its codec `unicode-escape` reads them.
fn unescape(text: &str, line: usize) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { break };
        let mut len = c.len_utf8();
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '0'..='7' => {
                len = rest.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
                out.push(code_point(&rest[..len], 8, line)?);
            }
            'x' | 'u' | 'U' => {
                let digits = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let hex =
                    rest[1..].get(..digits).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
                let hex = hex.ok_or_else(|| Error::syntax(line, format!("truncated \\{c} escape")))?;
                out.push(code_point(hex, 16, line)?);
                len = 1 + digits;
            }
            'N' => return Err(refused(line, "the escape `\\N{…}` is not supported".to_owned())),
            _ => {
                out.push('\\');
                out.push(c);
            }
        }
        rest = &rest[len..];
    }
    out.push_str(rest);
    Ok(out)
}

fn code_point(digits: &str, radix: u32, line: usize) -> Result<char> {
    let code = u32::from_str_radix(digits, radix).map_err(|error| Error::syntax(line, error.to_string()))?;
    if code > 0x0010_ffff {
        return Err(Error::syntax(line, "illegal Unicode character"));
    }
    // Python's strings may hold half a surrogate pair, these cannot.
    char::from_u32(code)
        .ok_or_else(|| refused(line, format!("the escape for U+{code:04X}, half a pair, is not supported")))
}
