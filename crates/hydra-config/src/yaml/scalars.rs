//! Scalars, character by character, by PyYAML's rules.

use super::reader::{Mark, Problem, Reader, ends_line, ends_tag, ends_word};
use super::scanner::Scanner;

type Scanned<T> = Result<T, Problem>;

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
    reader.skip_rest_of_line()?;
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
        Err(reader.expected("`+`, `-`, a digit from 1 to 9 or the end of the line"))
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
            let code = reader.hex(len)?;
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
