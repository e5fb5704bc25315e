//! Filters of strings.

use super::wrap;
use crate::args::{Args, flag, int, int_or};
use crate::error::{Error, ErrorKind, Result};
use crate::methods::{pad, replace, strip};
use crate::percent;
use crate::text::{self, MAX_MADE_ITEMS};
use crate::value::{Str, Value};

pub(super) fn call(name: &str, value: &Value, args: Args) -> Result<Value> {
    // Some take what they get for a string and fail on anything else, as Python does.
    match name {
        "indent" => return indent(value, args),
        "truncate" => return truncate(value, args),
        "wordwrap" => return wrap::word_wrap(value, args),
        "replace" => {
            let [old, new, count] = args.bind("do_replace", ["old", "new", "count"], 2)?;
            let text = |value: Option<Value>| value.unwrap_or(Value::None).to_text();
            let (old, new) = (text(old)?, text(new)?);
            let count = match count {
                None | Some(Value::None) => -1,
                Some(count) => int(&count)?,
            };
            return replace(&value.to_text()?, &old, &new, count).map(Value::from);
        }
        "pprint" => return pretty(value, args),
        _ => {}
    }
    let soft = soft_string(value)?;
    let own = &*soft.text;
    match name {
        "trim" => {
            let [chars] = args.bind("do_trim", ["chars"], 0)?;
            Ok(soft.with(strip(own, "strip", chars.as_ref())?))
        }
        "center" => {
            let [width] = args.bind("do_center", ["width"], 0)?;
            Ok(soft.with(pad(own, int_or(width.as_ref(), 80)?, ' ', "center")?))
        }
        "format" => {
            if !args.positional.is_empty() && !args.named.is_empty() {
                return Err(Error::new(
                    ErrorKind::FilterArgument,
                    "can't handle positional and keyword arguments at the same time",
                ));
            }
            let values = if args.named.is_empty() {
                Value::tuple(args.positional)
            } else {
                let mut dict = crate::value::Dict::default();
                args.named.into_iter().for_each(|(name, value)| dict.insert_str(&name, value));
                Value::dict(dict)
            };
            percent::format(&soft, &values)
        }
        _ => {
            let [] = args.unnamed(name, 0)?;
            Ok(match name {
                "upper" => soft.with(own.to_uppercase()),
                "lower" => soft.with(own.to_lowercase()),
                "capitalize" => soft.with(text::capitalize(own)),
                "title" => Value::from(title(own)),
                "wordcount" => {
                    Value::from(own.split(|c| !text::is_word(c)).filter(|word| !word.is_empty()).count())
                }
                _ => Value::Str(soft),
            })
        }
    }
}

/// `soft_str`: markup stays markup.
fn soft_string(value: &Value) -> Result<Str> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        other => Ok(Str { text: other.to_text()?.into(), is_markup: false }),
    }
}

/// Jinja's own `title`: words begin after spaces, hyphens and opening brackets only.
fn title(own: &str) -> String {
    let mut out = String::with_capacity(own.len());
    let is_break = |c: char| crate::lexer::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    for part in own.split_inclusive(is_break) {
        let word_len = part.trim_end_matches(is_break).len();
        let (word, rest) = part.split_at(word_len);
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.extend(first.to_uppercase());
            out.push_str(&chars.as_str().to_lowercase());
        }
        out.push_str(rest);
    }
    out
}

fn indent(value: &Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("do_indent", ["width", "first", "blank"], 0)?;
    let Value::Str(own) = value else {
        return Err(match value {
            Value::Undefined(undefined) => undefined.error(),
            other => {
                Error::type_error(format!("can only concatenate str (not \"{}\") to str", other.type_name()))
            }
        });
    };
    let indention = match width {
        None => " ".repeat(4),
        Some(Value::Str(text)) => text.text.to_string(),
        Some(width) => {
            let width = width.as_int().ok_or_else(|| {
                let found = width.type_name();
                Error::type_error(format!("can't multiply sequence by non-int of type '{found}'"))
            })?;
            let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
            if width > MAX_MADE_ITEMS / 1024 {
                return Err(Error::refused(format!("an indentation of {width} is too wide")));
            }
            " ".repeat(width)
        }
    };
    // The line break that is added closes the last line, so that one at the end of the text stays.
    let closed = format!("{}\n", own.text);
    let lines = text::split_lines(&closed, false);
    let mut out = String::with_capacity(closed.len());
    if flag(first.as_ref()) {
        out.push_str(&indention);
    }
    for (position, line) in lines.iter().enumerate() {
        if position > 0 {
            out.push('\n');
            if flag(blank.as_ref()) || !line.is_empty() {
                out.push_str(&indention);
            }
        }
        out.push_str(line);
    }
    Ok(own.with(out))
}

fn truncate(value: &Value, args: Args) -> Result<Value> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill_words, end, leeway] = args.bind("do_truncate", names, 0)?;
    let length = int_or(length.as_ref(), 255)?;
    let end = end.unwrap_or_else(|| Value::from("..."));
    let end = crate::args::string(&end)?;
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => int(&leeway)?,
    };
    let end_len = end.chars().count() as i128;
    if length < end_len {
        let message = format!("expected length >= {end_len}, got {length}");
        return Err(Error::new(ErrorKind::Assert, message));
    }
    if leeway < 0 {
        return Err(Error::new(ErrorKind::Assert, format!("expected leeway >= 0, got {leeway}")));
    }
    if value.len()? as i128 <= length + leeway {
        return Ok(value.clone());
    }
    let Value::Str(own) = value else {
        return Err(Error::refused(format!("`truncate` of a `{}` is not supported", value.type_name())));
    };
    let kept: String = own.text.chars().take(usize::try_from(length - end_len).unwrap_or(0)).collect();
    let kept = if flag(kill_words.as_ref()) {
        kept.as_str()
    } else {
        kept.rsplit_once(' ').map_or(&*kept, |(kept, _)| kept)
    };
    Ok(own.with(format!("{kept}{end}")))
}

/// `pprint` where one line is enough and nothing would be sorted.
fn pretty(value: &Value, args: Args) -> Result<Value> {
    let [] = args.unnamed("pprint", 0)?;
    let shown = value.repr()?;
    let is_simple =
        !matches!(value, Value::Dict(_) | Value::List(_) | Value::Tuple(_)) || !shown.contains('{');
    if is_simple && shown.chars().count() < 80 {
        return Ok(Value::from(shown));
    }
    Err(Error::refused("`pprint` of a dict or of more than a line is not supported"))
}
