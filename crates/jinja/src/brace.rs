//! `'{…}'.format(…)`.

use crate::args::Args;
use crate::attributes;
use crate::error::{Error, ErrorKind, Result};
use crate::number;
use crate::percent::ascii;
use crate::spec::{Layout, float_digits, lay_out, sign_of};
use crate::text;
use crate::value::{Rendering, Value};

/// Where fields find their values.
enum Source<'a> {
    Args(&'a Args),
    Map(&'a Value),
}

struct Formatter<'a> {
    source: Source<'a>,
    /// The number of the next field without one, or that fields have numbers.
    automatic: Option<usize>,
    is_manual: bool,
    renderer: &'a dyn Rendering,
}

/// `text.format(args)`.
///
/// # Errors
/// As Python's.
pub(crate) fn format(text: &str, args: &Args, renderer: &dyn Rendering) -> Result<String> {
    let source = Source::Args(args);
    Formatter { source, automatic: None, is_manual: false, renderer }.format(text, 2)
}

/// `text.format_map(map)`.
///
/// # Errors
/// As Python's.
pub(crate) fn format_map(text: &str, map: &Value, renderer: &dyn Rendering) -> Result<String> {
    let source = Source::Map(map);
    Formatter { source, automatic: None, is_manual: false, renderer }.format(text, 2)
}

impl Formatter<'_> {
    fn format(&mut self, text: &str, depth: usize) -> Result<String> {
        if depth == 0 {
            return Err(Error::value_error("Max string recursion exceeded"));
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            let after = &rest[at + 1..];
            if let Some(after) = after.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
            } else if brace == "}" {
                return Err(Error::value_error("Single '}' encountered in format string"));
            } else {
                let end = field_end(after)?;
                out.push_str(&self.field(&after[..end], depth)?);
                rest = &after[end + 1..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    /// `name!conversion:spec`.
    fn field(&mut self, field: &str, depth: usize) -> Result<String> {
        let split = name_end(field);
        let (name, rest) = field.split_at(split);
        let (conversion, spec) = match rest.strip_prefix('!') {
            None => (None, rest.strip_prefix(':').unwrap_or("")),
            Some(rest) => {
                let mut chars = rest.chars();
                let Some(conversion) = chars.next() else {
                    return Err(Error::value_error("end of string while looking for conversion specifier"));
                };
                let spec = match chars.as_str() {
                    "" => "",
                    rest => rest
                        .strip_prefix(':')
                        .ok_or_else(|| Error::value_error("expected ':' after conversion specifier"))?,
                };
                (Some(conversion), spec)
            }
        };
        let value = self.lookup(name)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::from(value.to_text()?),
            Some('r') => Value::from(value.repr()?),
            Some('a') => Value::from(ascii(&value.repr()?)),
            Some(other) => {
                return Err(Error::value_error(format!("Unknown conversion specifier '{other}'")));
            }
        };
        let spec = if spec.contains(['{', '}']) { self.format(spec, depth - 1)? } else { spec.to_owned() };
        apply(&value, &spec)
    }

    fn lookup(&mut self, name: &str) -> Result<Value> {
        let first_len = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(first_len);
        let mut value = self.first(first)?;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let len = after.find(['.', '[']).unwrap_or(after.len());
                if len == 0 {
                    return Err(Error::value_error("Empty attribute in format string"));
                }
                // The sandbox looks attributes up as the template would.
                value = attributes::attribute(&value, &after[..len], self.renderer)?;
                rest = &after[len..];
            } else if let Some(after) = rest.strip_prefix('[') {
                let len =
                    after.find(']').ok_or_else(|| Error::value_error("Missing ']' in format string"))?;
                let key = &after[..len];
                if key.is_empty() {
                    return Err(Error::value_error("Empty attribute in format string"));
                }
                let key = match key.parse() {
                    Ok(index) if key.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(index),
                    _ => Value::from(key),
                };
                value = attributes::item(&value, &key, self.renderer)?;
                rest = &after[len + 1..];
            } else {
                return Err(Error::value_error("Only '.' or '[' may follow ']' in format field specifier"));
            }
        }
        Ok(value)
    }

    fn first(&mut self, name: &str) -> Result<Value> {
        let index = if name.is_empty() {
            if self.is_manual {
                return Err(Error::value_error(
                    "cannot switch from manual field specification to automatic field numbering",
                ));
            }
            let index = self.automatic.unwrap_or(0);
            self.automatic = Some(index + 1);
            Some(index)
        } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
            if self.automatic.is_some() {
                return Err(Error::value_error(
                    "cannot switch from automatic field numbering to manual field specification",
                ));
            }
            self.is_manual = true;
            name.parse::<usize>().ok()
        } else {
            None
        };
        match (&self.source, index) {
            (Source::Args(args), Some(index)) => args.positional.get(index).cloned().ok_or_else(|| {
                let message = format!("Replacement index {index} out of range for positional args tuple");
                Error::new(ErrorKind::Lookup, message)
            }),
            (Source::Args(args), None) => {
                let found = args.named.iter().find(|(known, _)| **known == *name);
                found
                    .map(|(_, value)| value.clone())
                    .ok_or_else(|| Error::new(ErrorKind::Lookup, text::repr(name)))
            }
            (Source::Map(_), Some(_)) => Err(Error::value_error("Format string contains positional fields")),
            (Source::Map(Value::Dict(map)), None) => {
                map.get_str(name).cloned().ok_or_else(|| Error::new(ErrorKind::Lookup, text::repr(name)))
            }
            (Source::Map(other), None) => {
                Err(Error::type_error(format!("'{}' object is not subscriptable", other.type_name())))
            }
        }
    }
}

/// Where a field ends, which may hold fields in its own format.
fn field_end(text: &str) -> Result<usize> {
    let mut depth = 0;
    let mut in_index = false;
    for (at, c) in text.char_indices() {
        match c {
            '[' if depth == 0 => in_index = true,
            ']' => in_index = false,
            '{' if !in_index => depth += 1,
            '}' if !in_index && depth == 0 => return Ok(at),
            '}' if !in_index => depth -= 1,
            _ => {}
        }
    }
    Err(Error::value_error(if text.is_empty() {
        "Single '{' encountered in format string"
    } else {
        "expected '}' before end of string"
    }))
}

fn name_end(field: &str) -> usize {
    let mut in_index = false;
    for (at, c) in field.char_indices() {
        match c {
            '[' => in_index = true,
            ']' => in_index = false,
            '!' | ':' if !in_index => return at,
            _ => {}
        }
    }
    field.len()
}

/// `[[fill]align][sign][z][#][0][width][grouping][.precision][type]`.
struct Spec {
    fill: char,
    align: Option<char>,
    sign: Option<char>,
    is_alternate: bool,
    /// `z`: what rounds to zero has no sign.
    drops_negative_zero: bool,
    /// A zero before the width, and no alignment: numbers are padded after their sign.
    is_zero_filled: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Result<Self> {
        let is_align = |c: &char| matches!(c, '<' | '>' | '^' | '=');
        let mut chars: Vec<char> = text.chars().collect();
        let mut spec = Self {
            fill: ' ',
            align: None,
            sign: None,
            is_alternate: false,
            drops_negative_zero: false,
            is_zero_filled: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
        };
        let has_fill = chars.get(1).is_some_and(is_align);
        if let Some(align) = chars.get(1).copied().filter(is_align) {
            (spec.fill, spec.align) = (chars[0], Some(align));
            chars.drain(..2);
        } else if let Some(align) = chars.first().copied().filter(is_align) {
            spec.align = Some(align);
            chars.remove(0);
        }
        let mut rest: &[char] = &chars;
        let take = |rest: &mut &[char], wanted: &[char]| {
            let found = rest.first().copied().filter(|c| wanted.contains(c));
            if found.is_some() {
                *rest = &rest[1..];
            }
            found
        };
        spec.sign = take(&mut rest, &['+', '-', ' ']);
        spec.drops_negative_zero = take(&mut rest, &['z']).is_some();
        spec.is_alternate = take(&mut rest, &['#']).is_some();
        if take(&mut rest, &['0']).is_some() {
            if !has_fill {
                spec.fill = '0';
            }
            spec.is_zero_filled = spec.align.is_none();
        }
        spec.width = digits(&mut rest, "Too many decimal digits in format string")?.unwrap_or(0);
        spec.grouping = take(&mut rest, &[',', '_']);
        if take(&mut rest, &['.']).is_some() {
            let precision = digits(&mut rest, "Too many decimal digits in format string")?;
            spec.precision =
                Some(precision.ok_or_else(|| Error::value_error("Format specifier missing precision"))?);
        }
        spec.kind = rest.first().copied();
        if rest.len() > 1 {
            return Err(Error::value_error("Invalid format specifier"));
        }
        Ok(spec)
    }
}

fn digits(rest: &mut &[char], too_many: &str) -> Result<Option<usize>> {
    let len = rest.iter().take_while(|c| c.is_ascii_digit()).count();
    let text: String = rest[..len].iter().collect();
    *rest = &rest[len..];
    if len == 0 {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Error::value_error(too_many))
}

/// `format(value, spec)`.
fn apply(value: &Value, spec: &str) -> Result<String> {
    if spec.is_empty() {
        return value.to_text();
    }
    match value {
        Value::Str(own) => {
            let spec = Spec::parse(spec)?;
            text_field(&own.text, &spec)
        }
        Value::Bool(_) | Value::Int(_) => {
            let spec = Spec::parse(spec)?;
            // `format(True, "5")` is that of the integer 1.
            int_field(value.as_int().unwrap_or(0), &spec)
        }
        Value::Float(float) => float_field(*float, &Spec::parse(spec)?),
        Value::Huge(_) => Err(number::too_large()),
        other => Err(Error::type_error(format!(
            "unsupported format string passed to {}.__format__",
            other.type_name()
        ))),
    }
}

fn unknown(kind: char, type_name: &str) -> Error {
    Error::value_error(format!("Unknown format code '{kind}' for object of type '{type_name}'"))
}

fn text_field(own: &str, spec: &Spec) -> Result<String> {
    if let Some(kind) = spec.kind.filter(|kind| *kind != 's') {
        return Err(unknown(kind, "str"));
    }
    if spec.sign.is_some() {
        let what = if spec.sign == Some(' ') { "Space" } else { "Sign" };
        return Err(Error::value_error(format!("{what} not allowed in string format specifier")));
    }
    if spec.is_alternate {
        return Err(Error::value_error("Alternate form (#) not allowed in string format specifier"));
    }
    if let Some(grouping) = spec.grouping {
        return Err(Error::value_error(format!("Cannot specify '{grouping}' with 's'.")));
    }
    if spec.drops_negative_zero {
        return Err(Error::value_error("Negative zero coercion (z) not allowed in string format specifier"));
    }
    if spec.align == Some('=') {
        return Err(Error::value_error("'=' alignment not allowed in string format specifier"));
    }
    let shown: String = match spec.precision {
        Some(precision) => own.chars().take(precision).collect(),
        None => own.to_owned(),
    };
    let align = spec.align.unwrap_or('<');
    lay_out(&shown, 0, Layout { fill: spec.fill, align, width: spec.width })
}

fn int_field(int: i128, spec: &Spec) -> Result<String> {
    let kind = spec.kind.unwrap_or('d');
    if matches!(kind, 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') {
        return float_field(int as f64, spec);
    }
    if spec.drops_negative_zero {
        return Err(Error::value_error(
            "Negative zero coercion (z) not allowed in format specifier with integer type",
        ));
    }
    if spec.precision.is_some() {
        return Err(Error::value_error("Precision not allowed in integer format specifier"));
    }
    if kind == 'c' {
        if spec.sign.is_some() {
            return Err(Error::value_error("Sign not allowed with integer format specifier 'c'"));
        }
        let c = u32::try_from(int).ok().and_then(char::from_u32);
        let c = c.ok_or_else(|| Error::new(ErrorKind::Overflow, "%c arg not in range(0x110000)"))?;
        let layout = Layout { fill: spec.fill, align: spec.align.unwrap_or('<'), width: spec.width };
        return lay_out(&c.to_string(), 0, layout);
    }
    let magnitude = int.unsigned_abs();
    let (digits, prefix, group_len) = match kind {
        'd' | 'n' => (magnitude.to_string(), "", 3),
        'b' => (format!("{magnitude:b}"), "0b", 4),
        'o' => (format!("{magnitude:o}"), "0o", 4),
        'x' => (format!("{magnitude:x}"), "0x", 4),
        'X' => (format!("{magnitude:X}"), "0X", 4),
        other => return Err(unknown(other, "int")),
    };
    if spec.grouping == Some(',') && group_len == 4 {
        return Err(Error::value_error(format!("Cannot specify ',' with '{kind}'.")));
    }
    let prefix = if spec.is_alternate { prefix } else { "" };
    let sign = sign_of(int < 0, spec.sign.unwrap_or('-'));
    number_field(&format!("{sign}{prefix}"), &digits, "", group_len, spec)
}

fn float_field(float: f64, spec: &Spec) -> Result<String> {
    let kind = spec.kind.unwrap_or(' ');
    let (text, suffix) = match kind {
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            (float_digits(float, kind, spec.precision.unwrap_or(6), spec.is_alternate)?, "")
        }
        'n' => (float_digits(float, 'g', spec.precision.unwrap_or(6), spec.is_alternate)?, ""),
        '%' => (float_digits(float * 100.0, 'f', spec.precision.unwrap_or(6), spec.is_alternate)?, "%"),
        ' ' => (plain_float(float, spec)?, ""),
        other => return Err(unknown(other, "float")),
    };
    let is_zero = !text.chars().take_while(|c| !matches!(c, 'e' | 'E')).any(|c| matches!(c, '1'..='9'));
    let drops_sign = spec.drops_negative_zero && is_zero && float.is_finite();
    let sign = sign_of(float.is_sign_negative() && !float.is_nan() && !drops_sign, spec.sign.unwrap_or('-'));
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(split);
    number_field(sign, whole, &format!("{rest}{suffix}"), 3, spec)
}

/// Without a type: as `repr`, or `g` with a digit after the point.
fn plain_float(float: f64, spec: &Spec) -> Result<String> {
    let Some(precision) = spec.precision else { return Ok(number::repr_float(float.abs())) };
    let general = float_digits(float, 'g', precision, spec.is_alternate)?;
    if general.contains(['.', 'e', 'n']) {
        return Ok(general);
    }
    if general.len() >= precision.max(1) {
        // As many digits as asked for leave none for the point.
        let text = float_digits(float, 'e', precision.max(1) - 1, false)?;
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
        let mantissa = if mantissa.contains('.') {
            mantissa.trim_end_matches('0').trim_end_matches('.')
        } else {
            mantissa
        };
        return Ok(format!("{mantissa}e{exponent}"));
    }
    Ok(format!("{general}.0"))
}

/// A number from its parts, digits grouped and the field padded.
fn number_field(prefix: &str, whole: &str, rest: &str, group_len: usize, spec: &Spec) -> Result<String> {
    let align = if spec.is_zero_filled { '=' } else { spec.align.unwrap_or('>') };
    let mut digits = whole.to_owned();
    if let Some(separator) = spec.grouping {
        // Zeros that fill the field are grouped, too.
        let is_zero_filled = align == '=' && spec.fill == '0';
        let width = spec.width.min(text::MAX_MADE_ITEMS);
        let room = if is_zero_filled { width.saturating_sub(prefix.len() + rest.len()) } else { 0 };
        digits = grouped(whole, separator, group_len, room);
    }
    let shown = format!("{prefix}{digits}{rest}");
    lay_out(&shown, prefix.len(), Layout { fill: spec.fill, align, width: spec.width })
}

fn grouped(digits: &str, separator: char, group_len: usize, min_len: usize) -> String {
    let mut reversed: Vec<char> = Vec::new();
    let mut num_digits = 0;
    let mut source = digits.chars().rev();
    loop {
        let next = source.next();
        if next.is_none() && reversed.len() >= min_len {
            break;
        }
        if num_digits > 0 && num_digits % group_len == 0 {
            reversed.push(separator);
        }
        reversed.push(next.unwrap_or('0'));
        num_digits += 1;
    }
    reversed.into_iter().rev().collect()
}
