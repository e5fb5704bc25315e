//! Methods of `str`, and of `Markup`, whose string arguments are escaped first.

use super::translate;
use crate::args::{Args, flag, int, int_or, string};
use crate::brace;
use crate::error::{Error, ErrorKind, Result};
use crate::lexer::is_space;
use crate::text::{self, MAX_MADE_ITEMS};
use crate::value::{Rendering, Str, Value};

pub(super) fn call(text: &Str, name: &'static str, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    if text.is_markup {
        return call_markup(text, name, args, renderer);
    }
    let own = &*text.text;
    match name {
        "format" => brace::format(own, &args, renderer).map(Value::from),
        "format_map" => {
            let [map] = args.unnamed(name, 1)?;
            let map = map.unwrap_or(Value::None);
            brace::format_map(own, &map, renderer).map(Value::from)
        }
        "encode" => Err(Error::refused(format!("the method `{name}` of `str` is not supported"))),
        "maketrans" => translate::make_table(args),
        "translate" => {
            let [table] = args.unnamed(name, 1)?;
            translate::translate(own, &table.unwrap_or(Value::None)).map(Value::from)
        }
        "join" => {
            let [items] = args.unnamed(name, 1)?;
            join(own, &items.unwrap_or(Value::None), renderer)
        }
        "count" | "find" | "index" | "rfind" | "rindex" => search(own, name, args),
        "startswith" | "endswith" => affix(own, name, args),
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => parts(own, name, args),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.unnamed(name, 0)?;
            strip(own, name, chars.as_ref()).map(Value::from)
        }
        "replace" => {
            let [old, new, count] = args.unnamed(name, 2)?;
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let arguments = (argument(&old, "replace", 1)?, argument(&new, "replace", 2)?);
            replace(own, arguments.0, arguments.1, int_or(count.as_ref(), -1)?).map(Value::from)
        }
        "removeprefix" | "removesuffix" => {
            let [part] = args.unnamed(name, 1)?;
            let part = part.unwrap_or(Value::None);
            let part = string(&part)?;
            let left = if name == "removeprefix" { own.strip_prefix(part) } else { own.strip_suffix(part) };
            Ok(Value::from(left.unwrap_or(own)))
        }
        "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => padded(own, name, args),
        _ => {
            let [] = args.unnamed(name, 0)?;
            Ok(simple(own, name))
        }
    }
}

/// The methods without arguments.
fn simple(own: &str, name: &str) -> Value {
    let all = |is: fn(char) -> bool| !own.is_empty() && own.chars().all(is);
    let cased = |wrong: fn(char) -> bool| own.chars().any(text::is_cased) && !own.chars().any(wrong);
    match name {
        "capitalize" => Value::from(text::capitalize(own)),
        "casefold" => Value::from(casefold(own)),
        "lower" => Value::from(own.to_lowercase()),
        "upper" => Value::from(own.to_uppercase()),
        "swapcase" => Value::from(text::swapcase(own)),
        "title" => Value::from(text::title(own)),
        "isalnum" => Value::Bool(all(|c| text::is_alpha(c) || text::is_numeric(c))),
        "isalpha" => Value::Bool(all(text::is_alpha)),
        "isascii" => Value::Bool(own.is_ascii()),
        "isdecimal" => Value::Bool(all(text::is_decimal)),
        "isdigit" => Value::Bool(all(text::is_digit)),
        "isnumeric" => Value::Bool(all(text::is_numeric)),
        "isidentifier" => {
            let starts = own.starts_with(|c: char| text::is_alpha(c) || c == '_');
            Value::Bool(starts && own.chars().all(|c| c.is_alphanumeric() || c == '_'))
        }
        "islower" => Value::Bool(cased(|c| text::is_cased(c) && !c.is_lowercase())),
        "isupper" => Value::Bool(cased(|c| text::is_cased(c) && !c.is_uppercase())),
        "isprintable" => Value::Bool(own.chars().all(text::is_printable)),
        "isspace" => Value::Bool(all(is_space)),
        _ => Value::Bool(cased(|_| false) && text::title(own) == own),
    }
}

/// `str.casefold` for all but a few scripts whose lower case is not what folding gives.
fn casefold(own: &str) -> String {
    let mut out = String::with_capacity(own.len());
    for c in own.chars() {
        match c {
            'ß' | 'ẞ' => out.push_str("ss"),
            'ς' => out.push('σ'),
            'ſ' => out.push('s'),
            'µ' => out.push('μ'),
            '\u{fb00}'..='\u{fb06}' | 'ŉ' | 'ǰ' | 'ΐ' | 'ΰ' | 'և' | '\u{1e96}'..='\u{1e9a}' => {
                out.extend(c.to_uppercase().flat_map(char::to_lowercase));
            }
            c => out.extend(c.to_lowercase()),
        }
    }
    out
}

fn argument<'a>(value: &'a Value, function: &str, position: usize) -> Result<&'a str> {
    value.as_str().ok_or_else(|| {
        Error::type_error(format!("{function}() argument {position} must be str, not {}", value.type_name()))
    })
}

fn join(own: &str, items: &Value, renderer: &dyn Rendering) -> Result<Value> {
    if !items.is_iterable() {
        return Err(Error::type_error("can only join an iterable"));
    }
    let mut out = String::new();
    for (position, item) in items.items(renderer)?.iter().enumerate() {
        if position > 0 {
            out.push_str(own);
        }
        out.push_str(item.as_str().ok_or_else(|| {
            let found = item.type_name();
            Error::type_error(format!("sequence item {position}: expected str instance, {found} found"))
        })?);
    }
    Ok(Value::from(out))
}

/// The part of a string between two character positions, and where it starts.
fn window<'a>(own: &'a str, start: Option<&Value>, stop: Option<&Value>) -> Result<Option<(&'a str, usize)>> {
    let bound = |value: Option<&Value>, default: i128| match value {
        None | Some(Value::None) => Ok(default),
        Some(value) => value.as_int().ok_or_else(|| {
            Error::type_error("slice indices must be integers or None or have an __index__ method")
        }),
    };
    if start.is_none() && stop.is_none() {
        return Ok(Some((own, 0)));
    }
    let len = own.chars().count() as i128;
    let from_end = |at: i128| if at < 0 { (at + len).max(0) } else { at };
    let (start, stop) = (from_end(bound(start, 0)?), from_end(bound(stop, len)?).min(len));
    if start > stop {
        return Ok(None);
    }
    let (start, stop) = (usize::try_from(start).unwrap_or(0), usize::try_from(stop).unwrap_or(0));
    let byte = |at: usize| own.char_indices().nth(at).map_or(own.len(), |(byte, _)| byte);
    Ok(Some((&own[byte(start)..byte(stop)], start)))
}

fn search(own: &str, name: &str, args: Args) -> Result<Value> {
    let [part, start, stop] = args.unnamed(name, 1)?;
    let part = part.unwrap_or(Value::None);
    let part = string(&part)?;
    let window = window(own, start.as_ref(), stop.as_ref())?;
    if name == "count" {
        let count = window.map_or(0, |(text, _)| {
            if part.is_empty() { text.chars().count() + 1 } else { text.matches(part).count() }
        });
        return Ok(Value::from(count));
    }
    let found = window.and_then(|(text, offset)| {
        let byte = if name.starts_with('r') { text.rfind(part) } else { text.find(part) }?;
        Some(offset + text[..byte].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Error::value_error("substring not found")),
    }
}

fn affix(own: &str, name: &str, args: Args) -> Result<Value> {
    let [part, start, stop] = args.unnamed(name, 1)?;
    let window = window(own, start.as_ref(), stop.as_ref())?;
    let fits =
        |part: &str| {
            window.is_some_and(|(text, _)| {
                if name == "startswith" { text.starts_with(part) } else { text.ends_with(part) }
            })
        };
    match part.unwrap_or(Value::None) {
        Value::Str(part) => Ok(Value::Bool(fits(&part.text))),
        Value::Tuple(parts) => {
            for part in parts.iter() {
                let part = part.as_str().ok_or_else(|| {
                    let found = part.type_name();
                    Error::type_error(format!("tuple for {name} must only contain str, not {found}"))
                })?;
                if fits(part) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        other => {
            let found = other.type_name();
            Err(Error::type_error(format!("{name} first arg must be str or a tuple of str, not {found}")))
        }
    }
}

fn parts(own: &str, name: &str, args: Args) -> Result<Value> {
    let strings = |parts: Vec<&str>| Value::list(parts.into_iter().map(Value::from).collect());
    match name {
        "splitlines" => {
            let [keep_ends] = args.bind(name, ["keepends"], 0)?;
            Ok(strings(text::split_lines(own, flag(keep_ends.as_ref()))))
        }
        "partition" | "rpartition" => {
            let [separator] = args.unnamed(name, 1)?;
            let separator = separator.unwrap_or(Value::None);
            let separator = string(&separator)?;
            if separator.is_empty() {
                return Err(Error::value_error("empty separator"));
            }
            let is_right = name == "rpartition";
            let found = if is_right { own.rfind(separator) } else { own.find(separator) };
            let parts = match found {
                Some(at) => [&own[..at], separator, &own[at + separator.len()..]],
                None if is_right => ["", "", own],
                None => [own, "", ""],
            };
            Ok(Value::tuple(parts.into_iter().map(Value::from).collect()))
        }
        _ => {
            let [separator, limit] = args.bind(name, ["sep", "maxsplit"], 0)?;
            let limit = usize::try_from(int_or(limit.as_ref(), -1)?).unwrap_or(usize::MAX);
            match separator {
                None | Some(Value::None) => Ok(strings(split_spaces(own, limit, name == "rsplit"))),
                Some(separator) => {
                    let separator = string(&separator)?;
                    if separator.is_empty() {
                        return Err(Error::value_error("empty separator"));
                    }
                    let num_parts = limit.saturating_add(1);
                    Ok(strings(if name == "rsplit" {
                        let mut parts: Vec<&str> = own.rsplitn(num_parts, separator).collect();
                        parts.reverse();
                        parts
                    } else {
                        own.splitn(num_parts, separator).collect()
                    }))
                }
            }
        }
    }
}

/// `split` without a separator: at runs of spaces, none at the ends.
fn split_spaces(own: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = own;
    loop {
        rest = if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            break;
        }
        if parts.len() == limit {
            let last = if from_right { rest.trim_end_matches(is_space) } else { rest };
            parts.push(last);
            break;
        }
        if from_right {
            let start =
                rest.rfind(is_space).map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
            parts.push(&rest[start..]);
            rest = &rest[..start];
        } else {
            let end = rest.find(is_space).unwrap_or(rest.len());
            parts.push(&rest[..end]);
            rest = &rest[end..];
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// `strip`, `lstrip` or `rstrip`.
pub(crate) fn strip<'a>(own: &'a str, name: &str, chars: Option<&Value>) -> Result<&'a str> {
    let chars = match chars {
        None | Some(Value::None) => None,
        Some(Value::Str(chars)) => Some(&*chars.text),
        Some(_) => return Err(Error::type_error(format!("{name} arg must be None or str"))),
    };
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let own = if name == "rstrip" { own } else { own.trim_start_matches(goes) };
    Ok(if name == "lstrip" { own } else { own.trim_end_matches(goes) })
}

/// `replace`; a negative count is all.
pub(crate) fn replace(own: &str, old: &str, new: &str, count: i128) -> Result<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if own.len().saturating_mul(new.len()) / old.len().max(1) > MAX_MADE_ITEMS {
        return Err(Error::refused(format!(
            "a replacement may make more than the {MAX_MADE_ITEMS} bytes that a template may make"
        )));
    }
    // An empty text holds no empty text for Python, if the count is one it was given.
    Ok(own.replacen(old, new, count))
}

fn padded(own: &str, name: &str, args: Args) -> Result<Value> {
    if name == "expandtabs" {
        let [size] = args.bind(name, ["tabsize"], 0)?;
        return expand_tabs(own, int_or(size.as_ref(), 8)?).map(Value::from);
    }
    let [width, fill] = args.unnamed(name, 1)?;
    let width = int(&width.unwrap_or(Value::None))?;
    let fill = match fill {
        None => ' ',
        Some(fill) => {
            let text = fill.as_str().ok_or_else(|| {
                let found = fill.type_name();
                Error::type_error(format!("The fill character must be a unicode character, not {found}"))
            })?;
            let mut chars = text.chars();
            match (chars.next(), chars.next()) {
                (Some(fill), None) => fill,
                _ => return Err(Error::type_error("The fill character must be exactly one character long")),
            }
        }
    };
    if name == "zfill" {
        let missing = num_missing(own, width)?;
        let (sign, digits) = own.split_at(usize::from(own.starts_with(['+', '-'])));
        return Ok(Value::from(format!("{sign}{}{digits}", "0".repeat(missing))));
    }
    pad(own, width, fill, name).map(Value::from)
}

fn num_missing(own: &str, width: i128) -> Result<usize> {
    let missing = (width - own.chars().count() as i128).max(0);
    usize::try_from(missing).ok().filter(|missing| *missing <= MAX_MADE_ITEMS).ok_or_else(|| {
        Error::refused(format!(
            "a width of {width} is more than the {MAX_MADE_ITEMS} that a template may make"
        ))
    })
}

/// `center`, `ljust` or `rjust`.
pub(crate) fn pad(own: &str, width: i128, fill: char, name: &str) -> Result<String> {
    let missing = num_missing(own, width)?;
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // CPython rounds so that odd widths lean left and even ones right.
        _ => missing / 2 + (missing & usize::try_from(width.max(0)).unwrap_or(0) & 1),
    };
    let filled = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(format!("{}{own}{}", filled(left), filled(missing - left)))
}

fn expand_tabs(own: &str, size: i128) -> Result<String> {
    let mut out = String::new();
    let mut column = 0_i128;
    for c in own.chars() {
        match c {
            '\t' if size > 0 => {
                let num_spaces = size - column % size;
                if out.len() as i128 + num_spaces > MAX_MADE_ITEMS as i128 {
                    return Err(Error::refused(format!("a tab size of {size} is too large")));
                }
                out.extend(std::iter::repeat_n(' ', usize::try_from(num_spaces).unwrap_or(0)));
                column += num_spaces;
            }
            '\t' => {}
            c => {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    Ok(out)
}

/// A method of `Markup`: strings among the arguments are escaped, strings in the result are markup.
fn call_markup(text: &Str, name: &'static str, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    let refused = || Error::refused(format!("the method `{name}` of `Markup` is not supported"));
    let escapes =
        matches!(name, "join" | "replace" | "ljust" | "rjust" | "center" | "strip" | "lstrip" | "rstrip");
    let keeps = matches!(
        name,
        "capitalize"
            | "casefold"
            | "lower"
            | "upper"
            | "swapcase"
            | "title"
            | "split"
            | "rsplit"
            | "splitlines"
            | "expandtabs"
            | "partition"
            | "rpartition"
            | "removeprefix"
            | "removesuffix"
            | "zfill"
    );
    let asks = name.starts_with("is")
        || matches!(name, "count" | "find" | "index" | "rfind" | "rindex" | "startswith" | "endswith");
    if !(escapes || keeps || asks) || !args.named.is_empty() {
        return Err(refused());
    }
    let plain = Str { text: text.text.clone(), is_markup: false };
    let escape = |value: &Value| match value {
        Value::Str(part) if !part.is_markup => Ok(Value::from(text::escape_html(&part.text))),
        Value::Str(part) => Ok(Value::from(&*part.text)),
        other if other.as_int().is_some() || matches!(other, Value::None) => Ok(other.clone()),
        other if name == "join" => {
            let items = other.items(renderer)?.into_iter().map(|item| match item {
                Value::Str(part) if part.is_markup => Ok(Value::from(&*part.text)),
                item => item.to_text().map(|text| Value::from(text::escape_html(&text))),
            });
            items.collect::<Result<_>>().map(Value::list)
        }
        _ => Err(refused()),
    };
    let positional =
        if escapes { args.positional.iter().map(escape).collect::<Result<_>>()? } else { args.positional };
    mark(call(&plain, name, Args::of(positional), renderer)?)
}

fn mark(value: Value) -> Result<Value> {
    Ok(match value {
        Value::Str(text) => Value::markup(text.text),
        Value::List(items) => Value::list(items.iter().cloned().map(mark).collect::<Result<_>>()?),
        Value::Tuple(items) => Value::tuple(items.iter().cloned().map(mark).collect::<Result<_>>()?),
        Value::Undefined(_) => return Err(Error::new(ErrorKind::Refused, "Markup of an undefined value")),
        other => other,
    })
}
