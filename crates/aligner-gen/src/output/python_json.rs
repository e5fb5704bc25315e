//! JSON laid out as Python's `json.dumps(..., ensure_ascii=False)` does it: `", "` and `": "`, floats as `repr`.
//!
//! String escapes need no work here: `serde_json` and Python escape the same characters the same way.

use std::io::{self, Write};

use data::{Json, JsonObject};
use serde::Serialize;

/// The formatter: plugs into `serde_json::Serializer`.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn write_f32<W: ?Sized + Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        writer.write_all(repr(&format!("{value:e}")).as_bytes())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(repr(&format!("{value:e}")).as_bytes())
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Appends `value` to `out`.
pub(crate) fn append<T: ?Sized + Serialize>(out: &mut Vec<u8>, value: &T) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, PythonFormatter))
}

/// Writes an object, entry by entry.
pub(crate) struct ObjectWriter<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> ObjectWriter<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    /// Appends a key, which needs no escapes, and its value.
    pub(crate) fn entry<T: ?Sized + Serialize>(&mut self, key: &str, value: &T) -> serde_json::Result<()> {
        self.key(key);
        append(self.out, value)
    }

    /// The same for what came from the input: its numbers stay as they are written there.
    pub(crate) fn object(&mut self, key: &str, object: &JsonObject) {
        self.json(key, &Json::Object(object.clone()));
    }

    /// The same for any value. The key may need escapes.
    pub(crate) fn json(&mut self, key: &str, value: &Json) {
        let quoted = Json::from(key).to_string();
        self.key(quoted.get(1..quoted.len() - 1).unwrap_or_default());
        self.out.extend_from_slice(value.to_string().as_bytes());
    }

    pub(crate) fn end(self) {
        self.out.push(b'}');
    }

    fn key(&mut self, key: &str) {
        let before = if self.is_empty { "\"" } else { ", \"" };
        self.is_empty = false;
        for part in [before, key, "\": "] {
            self.out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Rust's shortest scientific notation (`1.5e-7`) as Python's `repr` prints it (`1.5e-07`).
fn repr(scientific: &str) -> String {
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific.to_owned();
    };
    let Ok(exponent) = exponent.parse::<i32>() else {
        return scientific.to_owned();
    };
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    // Python switches to an exponent below 1e-4 and from 1e16 on.
    if !(-4..16).contains(&exponent) {
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{exponent_sign}{:02}", exponent.unsigned_abs());
    }
    let digits = mantissa.replace('.', "");
    if exponent < 0 {
        let zeros = "0".repeat(exponent.unsigned_abs().saturating_sub(1) as usize);
        return format!("{sign}0.{zeros}{digits}");
    }
    let point = exponent.unsigned_abs() as usize + 1;
    if digits.len() <= point {
        return format!("{sign}{digits}{}.0", "0".repeat(point - digits.len()));
    }
    let (whole, fraction) = digits.split_at(point);
    format!("{sign}{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: f64, expect: &str) {
        let mut out = Vec::new();
        append(&mut out, &value).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expect);
    }

    #[test]
    fn floats_are_python_repr() {
        check(0.0, "0.0");
        check(-0.0, "-0.0");
        check(1.0, "1.0");
        check(-2.5, "-2.5");
        check(0.0001, "0.0001");
        check(0.000_01, "1e-05");
        check(1.5e-7, "1.5e-07");
        check(123_456.789, "123456.789");
        check(1e15, "1000000000000000.0");
        check(1e16, "1e+16");
        check(1.25e100, "1.25e+100");
    }

    #[test]
    fn strings_keep_unicode_and_escape_controls() {
        let mut out = Vec::new();
        append(&mut out, "é\u{2028}\u{7f}\u{1}\"\\\n/日").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\"é\u{2028}\u{7f}\\u0001\\\"\\\\\\n/日\"");
    }

    proptest::proptest! {
        #[test]
        fn floats_read_back(value in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL) {
            let mut out = Vec::new();
            append(&mut out, &value).unwrap();
            let text = String::from_utf8(out).unwrap();
            proptest::prop_assert_eq!(text.parse::<f64>().unwrap(), value);
        }
    }
}
