//! Filters for HTML and addresses.

use crate::args::{Args, flag};
use crate::error::{Error, Result};
use crate::text;
use crate::value::{Rendering, Value};

pub(super) fn call(name: &str, value: &Value, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    if name == "xmlattr" {
        let [autospace] = args.bind("do_xmlattr", ["autospace"], 0)?;
        return xml_attributes(value, autospace.is_none() || flag(autospace.as_ref()));
    }
    let [] = args.unnamed(name, 0)?;
    match (name, value) {
        ("e" | "escape" | "safe", Value::Str(text)) if text.is_markup => Ok(value.clone()),
        ("e" | "escape" | "forceescape", _) => Ok(Value::markup(text::escape_html(&value.to_text()?))),
        ("safe", _) => Ok(Value::markup(value.to_text()?)),
        ("striptags", _) => strip_tags(&value.to_text()?).map(Value::from),
        _ => url_encode(value, renderer).map(Value::from),
    }
}

/// Without comments and tags, and with runs of spaces made one.
fn strip_tags(html: &str) -> Result<String> {
    let mut text = html.to_owned();
    while let Some(start) = text.find("<!--") {
        let Some(len) = text[start..].find("-->") else { break };
        text.replace_range(start..start + len + 3, "");
    }
    while let Some(start) = text.find('<') {
        let Some(len) = text[start..].find('>') else { break };
        text.replace_range(start..=start + len, "");
    }
    let text =
        text.split(crate::lexer::is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if text.contains('&') {
        return unescape(&text);
    }
    Ok(text)
}

/// The entities that escaping makes.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = [
            ("&amp;", '&'),
            ("&lt;", '<'),
            ("&gt;", '>'),
            ("&#34;", '"'),
            ("&quot;", '"'),
            ("&#39;", '\''),
            ("&nbsp;", '\u{a0}'),
        ];
        if let Some((entity, c)) = known.iter().find(|(entity, _)| rest.starts_with(entity)) {
            out.push(*c);
            rest = &rest[entity.len()..];
        } else if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '#') {
            return Err(Error::refused("`striptags` knows only the entities that `escape` writes"));
        } else {
            out.push('&');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn xml_attributes(value: &Value, autospace: bool) -> Result<Value> {
    let Value::Dict(dict) = value else {
        return Err(match value {
            Value::Undefined(undefined) => undefined.error(),
            other => Error::refused(format!("`xmlattr` of a `{}` is not supported", other.type_name())),
        });
    };
    let mut parts = Vec::new();
    for (key, value) in dict.iter() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let key = crate::args::string(key)?;
        if key.contains([' ', '\t', '\n', '\r', '\x0b', '\x0c', '/', '>', '=']) {
            return Err(Error::value_error(format!(
                "Invalid character in attribute name: {}",
                text::repr(key)
            )));
        }
        let shown = match value {
            Value::Str(text) if text.is_markup => text.text.to_string(),
            other => text::escape_html(&other.to_text()?),
        };
        parts.push(format!("{}=\"{shown}\"", text::escape_html(key)));
    }
    let joined = parts.join(" ");
    Ok(Value::from(if autospace && !joined.is_empty() { format!(" {joined}") } else { joined }))
}

fn url_encode(value: &Value, renderer: &dyn Rendering) -> Result<String> {
    let pairs = match value {
        Value::Dict(dict) => dict.iter().cloned().collect(),
        Value::Str(_) => return Ok(quote(&value.to_text()?, false)),
        other if other.is_iterable() => {
            let mut pairs = Vec::new();
            for pair in other.items(renderer)? {
                if !pair.is_iterable() {
                    let found = pair.type_name();
                    return Err(Error::type_error(format!("cannot unpack non-iterable {found} object")));
                }
                let items = pair.items(renderer)?;
                let len = items.len();
                let Ok([key, value]) = <[Value; 2]>::try_from(items) else {
                    return Err(Error::value_error(if len < 2 {
                        format!("not enough values to unpack (expected 2, got {len})")
                    } else {
                        "too many values to unpack (expected 2)".to_owned()
                    }));
                };
                pairs.push((key, value));
            }
            pairs
        }
        other => return Ok(quote(&other.to_text()?, false)),
    };
    let encoded = pairs.iter().map(|(key, value)| {
        Ok(format!("{}={}", quote(&key.to_text()?, true), quote(&value.to_text()?, true)))
    });
    Ok(encoded.collect::<Result<Vec<_>>>()?.join("&"))
}

fn quote(text: &str, for_query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !for_query => out.push('/'),
            b' ' if for_query => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
