//! The layout of Python's `json.dumps(…, ensure_ascii=False)`: `", "` and `": "`, and only what must be escaped is.

use std::fmt::{self, Write};

use super::Json;

pub(super) fn write(out: &mut dyn Write, json: &Json) -> fmt::Result {
    match json {
        Json::Null => out.write_str("null"),
        Json::Bool(value) => write!(out, "{value}"),
        Json::Number(text) => out.write_str(text),
        Json::String(text) => write_string(out, text),
        Json::Array(items) => {
            out.write_char('[')?;
            for (idx, item) in items.iter().enumerate() {
                out.write_str(if idx > 0 { ", " } else { "" })?;
                write(out, item)?;
            }
            out.write_char(']')
        }
        Json::Object(object) => {
            out.write_char('{')?;
            for (idx, (key, value)) in object.iter().enumerate() {
                out.write_str(if idx > 0 { ", " } else { "" })?;
                write_string(out, key)?;
                out.write_str(": ")?;
                write(out, value)?;
            }
            out.write_char('}')
        }
    }
}

fn write_string(out: &mut dyn Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        let (plain, escaped) = rest.split_at(at);
        out.write_str(plain)?;
        let mut chars = escaped.chars();
        match chars.next().unwrap_or_default() {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\u{8}' => out.write_str("\\b")?,
            '\u{c}' => out.write_str("\\f")?,
            c @ ('"' | '\\') => write!(out, "\\{c}")?,
            c => write!(out, "\\u{:04x}", u32::from(c))?,
        }
        rest = chars.as_str();
    }
    out.write_str(rest)?;
    out.write_char('"')
}
