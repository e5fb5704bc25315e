//! Scalars, anchors, tags and directives, character by character, by PyYAML's rules.

use super::reader::{Mark, Problem, Reader, ends_line, ends_word};
use super::scanner::Scanner;

type Scanned<T> = Result<T, Problem>;

/// A line that begins with `%`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Directive {
    Yaml {
        major: u32,
    },
    Tag {
        handle: String,
        prefix: String,
    },
    /// Ignored, as PyYAML does.
    Other,
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

fn ends_tag(c: char) -> bool {
    c == ' ' || ends_line(c)
}

fn expected(reader: &Reader, wanted: &str) -> Problem {
    Problem::new(reader.mark, format!("expected {wanted}, found {}", reader.next_name()))
}

pub(super) fn directive(reader: &mut Reader) -> Scanned<Directive> {
    reader.forward(1);
    let name = reader.take_while(is_name);
    if name.is_empty() || !ends_tag(reader.peek(0)) {
        return Err(expected(reader, "the name of a directive"));
    }
    let directive = match name.as_str() {
        "YAML" => {
            reader.skip_spaces();
            let major = directive_number(reader)?;
            if reader.peek(0) != '.' {
                return Err(expected(reader, "`.`"));
            }
            reader.forward(1);
            directive_number(reader)?;
            if !ends_tag(reader.peek(0)) {
                return Err(expected(reader, "a digit"));
            }
            Directive::Yaml { major }
        }
        "TAG" => {
            reader.skip_spaces();
            let handle = tag_handle(reader)?;
            if reader.peek(0) != ' ' {
                return Err(expected(reader, "a space"));
            }
            reader.skip_spaces();
            let prefix = tag_uri(reader)?;
            if !ends_tag(reader.peek(0)) {
                return Err(expected(reader, "a space"));
            }
            Directive::Tag { handle, prefix }
        }
        _ => {
            reader.take_while(|c| !ends_line(c));
            Directive::Other
        }
    };
    ignored_line(reader)?;
    Ok(directive)
}

fn directive_number(reader: &mut Reader) -> Scanned<u32> {
    let digits = reader.take_while(|c| c.is_ascii_digit());
    digits.parse().map_err(|_| expected(reader, "a version number"))
}

/// Space and a comment up to the end of the line.
fn ignored_line(reader: &mut Reader) -> Scanned<()> {
    reader.skip_spaces();
    reader.skip_comment();
    if !ends_line(reader.peek(0)) {
        return Err(expected(reader, "a comment or the end of the line"));
    }
    reader.line_break();
    Ok(())
}

/// The name of an anchor or an alias.
pub(super) fn anchor(reader: &mut Reader) -> Scanned<String> {
    reader.forward(1);
    let name = reader.take_while(is_name);
    let is_ended = ends_word(reader.peek(0)) || "?:,]}%@`".contains(reader.peek(0));
    if name.is_empty() || !is_ended {
        let what = "the name of an anchor (put the value in quotes, if it is none)";
        return Err(expected(reader, what));
    }
    Ok(name)
}

/// The handle and the rest of a tag.
pub(super) fn tag(reader: &mut Reader) -> Scanned<(Option<String>, String)> {
    let next = reader.peek(1);
    let tag = if next == '<' {
        reader.forward(2);
        let suffix = tag_uri(reader)?;
        if reader.peek(0) != '>' {
            return Err(expected(reader, "`>`"));
        }
        reader.forward(1);
        (None, suffix)
    } else if ends_word(next) {
        reader.forward(1);
        (None, "!".to_owned())
    } else {
        let mut len = 1;
        while !ends_tag(reader.peek(len)) && reader.peek(len) != '!' {
            len += 1;
        }
        let handle = if reader.peek(len) == '!' {
            tag_handle(reader)?
        } else {
            reader.forward(1);
            "!".to_owned()
        };
        (Some(handle), tag_uri(reader)?)
    };
    if ends_tag(reader.peek(0)) { Ok(tag) } else { Err(expected(reader, "a space after a tag")) }
}

fn tag_handle(reader: &mut Reader) -> Scanned<String> {
    if reader.peek(0) != '!' {
        return Err(expected(reader, "`!`"));
    }
    let mut len = 1;
    if reader.peek(len) != ' ' {
        while is_name(reader.peek(len)) {
            len += 1;
        }
        if reader.peek(len) != '!' {
            reader.forward(len);
            return Err(expected(reader, "`!`"));
        }
        len += 1;
    }
    let handle = reader.prefix(len);
    reader.forward(len);
    Ok(handle)
}

fn tag_uri(reader: &mut Reader) -> Scanned<String> {
    let mut uri = String::new();
    loop {
        let c = reader.peek(0);
        if c == '%' {
            uri.push_str(&uri_escapes(reader)?);
        } else if c.is_ascii_alphanumeric() || (c != '\0' && "-;/?:@&=+$,_.!~*'()[]".contains(c)) {
            uri.push(c);
            reader.forward(1);
        } else {
            break;
        }
    }
    if uri.is_empty() { Err(expected(reader, "a tag")) } else { Ok(uri) }
}

fn uri_escapes(reader: &mut Reader) -> Scanned<String> {
    let mark = reader.mark;
    let mut bytes = Vec::new();
    while reader.peek(0) == '%' {
        reader.forward(1);
        bytes.push(u8::try_from(hex(reader, 2)?).unwrap_or(0));
    }
    String::from_utf8(bytes).map_err(|_| Problem::new(mark, "the escapes of a tag are not UTF-8"))
}

fn hex(reader: &mut Reader, len: usize) -> Scanned<u32> {
    let digits = reader.prefix(len);
    let is_hex = digits.chars().count() == len && digits.chars().all(|c| c.is_ascii_hexdigit());
    let code = u32::from_str_radix(&digits, 16).ok().filter(|_| is_hex);
    let code = code.ok_or_else(|| expected(reader, &format!("{len} hexadecimal digits")))?;
    reader.forward(len);
    Ok(code)
}

/// What becomes of the line breaks at the end of a block scalar.
#[derive(Clone, Copy, PartialEq)]
enum Chomping {
    Clip,
    Strip,
    Keep,
}

/// A scalar after `|` or `>`, in a block at `indent`.
pub(super) fn block(reader: &mut Reader, indent: isize) -> Scanned<String> {
    let is_folded = reader.peek(0) == '>';
    reader.forward(1);
    let (chomping, increment) = block_header(reader)?;
    ignored_line(reader)?;
    let min_indent = usize::try_from(indent + 1).unwrap_or(0).max(1);
    let (mut breaks, indent) = match increment {
        Some(increment) => {
            let indent = min_indent + increment - 1;
            (block_breaks(reader, indent), indent)
        }
        None => {
            let (breaks, max_indent) = block_indentation(reader);
            (breaks, min_indent.max(max_indent))
        }
    };
    let mut text = String::new();
    let mut line_break = None;
    while reader.mark.column == indent && reader.peek(0) != '\0' {
        text.push_str(&breaks);
        let begins_with_space = matches!(reader.peek(0), ' ' | '\t');
        text.push_str(&reader.take_while(|c| !ends_line(c)));
        line_break = reader.line_break();
        breaks = block_breaks(reader, indent);
        if reader.mark.column != indent || reader.peek(0) == '\0' {
            break;
        }
        let is_spaced = begins_with_space || matches!(reader.peek(0), ' ' | '\t');
        if is_folded && line_break == Some('\n') && !is_spaced {
            if breaks.is_empty() {
                text.push(' ');
            }
        } else {
            text.extend(line_break);
        }
    }
    if chomping != Chomping::Strip {
        text.extend(line_break);
    }
    if chomping == Chomping::Keep {
        text.push_str(&breaks);
    }
    Ok(text)
}

fn block_header(reader: &mut Reader) -> Scanned<(Chomping, Option<usize>)> {
    let (mut chomping, mut increment) = (Chomping::Clip, None);
    // The two indicators come in either order, each once.
    for _ in 0..2 {
        let c = reader.peek(0);
        match c {
            '+' | '-' if chomping == Chomping::Clip => {
                chomping = if c == '+' { Chomping::Keep } else { Chomping::Strip };
                reader.forward(1);
            }
            '1'..='9' if increment.is_none() => {
                increment = c.to_digit(10).map(|digit| digit as usize);
                reader.forward(1);
            }
            _ => {}
        }
    }
    if ends_tag(reader.peek(0)) {
        Ok((chomping, increment))
    } else {
        Err(expected(reader, "`+`, `-`, a digit from 1 to 9 or the end of the line"))
    }
}

fn block_indentation(reader: &mut Reader) -> (String, usize) {
    let (mut breaks, mut max_indent) = (String::new(), 0);
    loop {
        if reader.peek(0) == ' ' {
            reader.forward(1);
            max_indent = max_indent.max(reader.mark.column);
        } else if let Some(c) = reader.line_break() {
            breaks.push(c);
        } else {
            return (breaks, max_indent);
        }
    }
}

fn block_breaks(reader: &mut Reader, indent: usize) -> String {
    let mut breaks = String::new();
    loop {
        while reader.mark.column < indent && reader.peek(0) == ' ' {
            reader.forward(1);
        }
        match reader.line_break() {
            Some(c) => breaks.push(c),
            None => return breaks,
        }
    }
}

/// A scalar between quotes.
pub(super) fn quoted(reader: &mut Reader) -> Scanned<String> {
    let start = reader.mark;
    let quote = reader.peek(0);
    reader.forward(1);
    let mut text = String::new();
    quoted_words(reader, quote, &mut text)?;
    while reader.peek(0) != quote {
        quoted_spaces(reader, start, &mut text)?;
        quoted_words(reader, quote, &mut text)?;
    }
    reader.forward(1);
    Ok(text)
}

/// Characters up to white space or the closing quote, with escapes undone.
fn quoted_words(reader: &mut Reader, quote: char, text: &mut String) -> Scanned<()> {
    loop {
        text.push_str(&reader.take_while(|c| !ends_word(c) && !matches!(c, '\'' | '"' | '\\')));
        let c = reader.peek(0);
        if quote == '\'' && c == '\'' && reader.peek(1) == '\'' {
            text.push('\'');
            reader.forward(2);
        } else if c == '\\' && quote == '"' {
            reader.forward(1);
            escape(reader, text)?;
        } else if matches!(c, '\'' | '"' | '\\') && c != quote {
            text.push(c);
            reader.forward(1);
        } else {
            return Ok(());
        }
    }
}

fn escape(reader: &mut Reader, text: &mut String) -> Scanned<()> {
    let mark = reader.mark;
    let replacement = match reader.peek(0) {
        '0' => '\0',
        'a' => '\x07',
        'b' => '\x08',
        't' | '\t' => '\t',
        'n' => '\n',
        'v' => '\x0b',
        'f' => '\x0c',
        'r' => '\r',
        'e' => '\x1b',
        c @ (' ' | '"' | '\\' | '/') => c,
        'N' => '\u{85}',
        '_' => '\u{a0}',
        'L' => '\u{2028}',
        'P' => '\u{2029}',
        c @ ('x' | 'u' | 'U') => {
            reader.forward(1);
            let len = match c {
                'x' => 2,
                'u' => 4,
                _ => 8,
            };
            let code = hex(reader, len)?;
            let c = char::from_u32(code)
                .ok_or_else(|| Problem::new(mark, format!("`{code:X}` is not the code of a character")))?;
            text.push(c);
            return Ok(());
        }
        '\0' => return Err(Problem::new(mark, "a quoted string has no closing quote")),
        c if ends_line(c) => {
            reader.line_break();
            text.push_str(&quoted_breaks(reader)?);
            return Ok(());
        }
        c => {
            let message =
                format!("`\\{c}` is not an escape; write `\\\\{c}`, or put the string in single quotes");
            return Err(Problem::new(mark, message));
        }
    };
    text.push(replacement);
    reader.forward(1);
    Ok(())
}

fn quoted_spaces(reader: &mut Reader, start: Mark, text: &mut String) -> Scanned<()> {
    let spaces = reader.take_while(|c| matches!(c, ' ' | '\t'));
    if reader.peek(0) == '\0' {
        return Err(Problem::new(start, "a quoted string has no closing quote"));
    }
    match reader.line_break() {
        Some(line_break) => {
            let breaks = quoted_breaks(reader)?;
            push_breaks(text, line_break, &breaks);
        }
        None => text.push_str(&spaces),
    }
    Ok(())
}

/// One line break is a space; of several the first is dropped.
fn push_breaks(text: &mut String, line_break: char, breaks: &str) {
    if line_break != '\n' {
        text.push(line_break);
    } else if breaks.is_empty() {
        text.push(' ');
    }
    text.push_str(breaks);
}

fn quoted_breaks(reader: &mut Reader) -> Scanned<String> {
    let mut breaks = String::new();
    loop {
        if reader.at_separator() {
            return Err(Problem::new(reader.mark, "a document ends inside a quoted string"));
        }
        reader.take_while(|c| matches!(c, ' ' | '\t'));
        match reader.line_break() {
            Some(c) => breaks.push(c),
            None => return Ok(breaks),
        }
    }
}

/// A scalar without quotes, which may continue on deeper indented lines.
pub(super) fn plain(scanner: &mut Scanner) -> String {
    let in_flow = scanner.flow_level > 0;
    let indent = scanner.indent + 1;
    let mut text = String::new();
    let mut spaces = String::new();
    loop {
        let reader = &mut scanner.reader;
        if reader.peek(0) == '#' {
            return text;
        }
        let len = plain_len(reader, in_flow);
        if len == 0 {
            return text;
        }
        scanner.allow_simple_key = false;
        text.push_str(&spaces);
        text.push_str(&reader.prefix(len));
        reader.forward(len);
        let (white, has_break) = plain_spaces(reader);
        scanner.allow_simple_key |= has_break;
        spaces = match white {
            Some(white) if !white.is_empty() => white,
            _ => return text,
        };
        let reader = &scanner.reader;
        if reader.peek(0) == '#' || !in_flow && (reader.mark.column as isize) < indent {
            return text;
        }
    }
}

fn plain_len(reader: &Reader, in_flow: bool) -> usize {
    let mut len = 0;
    loop {
        let (c, next) = (reader.peek(len), reader.peek(len + 1));
        let is_value = c == ':' && (ends_word(next) || in_flow && ",[]{}".contains(next));
        if ends_word(c) || is_value || in_flow && ",?[]{}".contains(c) {
            return len;
        }
        len += 1;
    }
}

/// The white space between two words, `None` at the end of a document; and whether a line ended in it.
fn plain_spaces(reader: &mut Reader) -> (Option<String>, bool) {
    let spaces = reader.take_while(|c| c == ' ');
    let Some(line_break) = reader.line_break() else { return (Some(spaces), false) };
    let mut breaks = String::new();
    if reader.at_separator() {
        return (None, true);
    }
    loop {
        if reader.peek(0) == ' ' {
            reader.forward(1);
        } else if let Some(c) = reader.line_break() {
            breaks.push(c);
            if reader.at_separator() {
                return (None, true);
            }
        } else {
            break;
        }
    }
    let mut text = String::new();
    push_breaks(&mut text, line_break, &breaks);
    (Some(text), true)
}
