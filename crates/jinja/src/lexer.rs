//! Source to tokens, by the rules of `jinja2/lexer.py` (3.1.6) with `trim_blocks` and `lstrip_blocks` on, as transformers
//! sets them.

mod literal;

use crate::error::{Error, Result};

/// A token and the line it starts on, from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TokenKind {
    /// Text between tags.
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    /// One of [`OPERATORS`].
    Operator(&'static str),
    End,
}

/// Longer ones first, so that `//` is not two of `/`.
const OPERATORS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",",
];

/// Splits a template into tokens, the last of which is [`TokenKind::End`].
///
/// # Errors
/// When a tag, comment, string or bracket is not closed, or a character has no meaning.
pub(crate) fn tokenize(source: &str) -> Result<Vec<Token>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.root()?;
    }
    lexer.push(TokenKind::End);
    Ok(lexer.tokens)
}

/// Whether Python's `\s` matches.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether what was read last ended a line.
    line_starting: bool,
    tokens: Vec<Token>,
}

/// What stands right after the opening of a tag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    None,
    Minus,
    Plus,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: TokenKind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    /// Goes past `len` bytes.
    fn advance(&mut self, len: usize) {
        let passed = &self.source[self.at..self.at + len];
        self.line += passed.matches('\n').count();
        self.line_starting = passed.ends_with('\n');
        self.at += len;
    }

    /// The text up to the next tag, and the tag.
    fn root(&mut self) -> Result<()> {
        let rest = self.rest();
        let Some(tag) = ["{%", "{{", "{#"].iter().filter_map(|open| rest.find(open)).min() else {
            self.push(TokenKind::Data(rest.to_owned()));
            self.advance(rest.len());
            return Ok(());
        };
        let (text, after) = (&rest[..tag], &rest[tag + 2..]);
        let is_variable = rest[tag..].starts_with("{{");
        let sign = match after.as_bytes().first() {
            Some(b'-') => Sign::Minus,
            Some(b'+') => Sign::Plus,
            _ => Sign::None,
        };
        let kept = strip_before_tag(text, sign, is_variable, self.line_starting);
        if !kept.is_empty() {
            self.push(TokenKind::Data(kept.to_owned()));
        }
        self.advance(tag);
        let sign_len = usize::from(sign != Sign::None);
        if rest[tag..].starts_with("{#") {
            return self.comment(2 + sign_len);
        }
        if let Some(len) = raw_begin_len(&rest[tag..]) {
            self.advance(len);
            return self.raw();
        }
        self.push(if is_variable { TokenKind::VariableBegin } else { TokenKind::BlockBegin });
        self.advance(2 + sign_len);
        self.tag(is_variable)
    }

    fn comment(&mut self, open_len: usize) -> Result<()> {
        self.advance(open_len);
        let rest = self.rest();
        let Some(end) = rest.find("#}") else {
            return Err(Error::syntax(self.line, "Missing end of comment tag"));
        };
        let sign = rest[..end].chars().next_back().filter(|c| matches!(c, '-' | '+'));
        self.advance(end + 2 + self.trimmed_after(&rest[end + 2..], sign));
        Ok(())
    }

    /// How many bytes after a closing tag belong to it.
    fn trimmed_after(&self, after: &str, sign: Option<char>) -> usize {
        match sign {
            Some('-') => after.len() - after.trim_start_matches(is_space).len(),
            Some(_) => 0,
            None => usize::from(after.starts_with('\n')),
        }
    }

    /// The text of a `raw` block, after its opening tag.
    fn raw(&mut self) -> Result<()> {
        let rest = self.rest();
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let tag = from + found;
            if let Some((sign, close)) = endraw(&rest[tag..]) {
                let kept = strip_before_tag(&rest[..tag], sign, false, self.line_starting);
                if !kept.is_empty() {
                    self.push(TokenKind::Data(kept.to_owned()));
                }
                let closing = &rest[tag..tag + close];
                let close_sign = closing.strip_suffix("%}").and_then(|inner| inner.chars().next_back());
                let close_sign = close_sign.filter(|c| matches!(c, '-' | '+'));
                let trimmed = self.trimmed_after(&rest[tag + close..], close_sign);
                self.advance(tag + close + trimmed);
                return Ok(());
            }
            from = tag + 2;
        }
        Err(Error::syntax(self.line, "Missing end of raw directive"))
    }

    /// The tokens of a tag, its end included.
    fn tag(&mut self, is_variable: bool) -> Result<()> {
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            if open.is_empty() && self.tag_end(is_variable) {
                return Ok(());
            }
            let rest = self.rest();
            let Some(first) = rest.chars().next() else { return Ok(()) };
            if is_space(first) {
                self.advance(rest.len() - rest.trim_start_matches(is_space).len());
            } else if let Some((kind, len)) = self.literal(first)? {
                self.push(kind);
                self.advance(len);
            } else if let Some(operator) = OPERATORS.iter().find(|operator| rest.starts_with(**operator)) {
                self.balance(operator, &mut open)?;
                self.push(TokenKind::Operator(operator));
                self.advance(operator.len());
            } else {
                let position = self.source[..self.at].chars().count();
                let shown = crate::text::repr(&first.to_string());
                return Err(Error::syntax(self.line, format!("unexpected char {shown} at {position}")));
            }
        }
    }

    fn tag_end(&mut self, is_variable: bool) -> bool {
        let rest = self.rest();
        let close = if is_variable { "}}" } else { "%}" };
        let (len, sign) = if rest.starts_with(close) {
            (2, None)
        } else if rest.starts_with('-') && rest[1..].starts_with(close) {
            (3, Some('-'))
        } else if !is_variable && rest.starts_with("+%}") {
            (3, Some('+'))
        } else {
            return false;
        };
        let trimmed = match sign {
            None if is_variable => 0,
            sign => self.trimmed_after(&rest[len..], sign),
        };
        self.push(if is_variable { TokenKind::VariableEnd } else { TokenKind::BlockEnd });
        self.advance(len + trimmed);
        true
    }

    fn balance(&self, operator: &'static str, open: &mut Vec<&'static str>) -> Result<()> {
        match operator {
            "{" => open.push("}"),
            "(" => open.push(")"),
            "[" => open.push("]"),
            "}" | ")" | "]" => match open.pop() {
                None => return Err(Error::syntax(self.line, format!("unexpected '{operator}'"))),
                Some(expected) if expected != operator => {
                    let message = format!("unexpected '{operator}', expected '{expected}'");
                    return Err(Error::syntax(self.line, message));
                }
                Some(_) => {}
            },
            _ => {}
        }
        Ok(())
    }

    /// A number, a name or a string, and its length.
    fn literal(&self, first: char) -> Result<Option<(TokenKind, usize)>> {
        let rest = self.rest();
        if first.is_ascii_digit() {
            let after_dot = self.source[..self.at].ends_with('.');
            return literal::number(rest, after_dot, self.line).map(Some);
        }
        if first == '\'' || first == '"' {
            return literal::string(rest, first, self.line);
        }
        let len: usize =
            rest.chars().take_while(|&c| c.is_alphanumeric() || c == '_').map(char::len_utf8).sum();
        Ok((len > 0).then(|| (TokenKind::Name(rest[..len].to_owned()), len)))
    }
}

/// What is left of the text before a tag.
fn strip_before_tag(text: &str, sign: Sign, is_variable: bool, line_starting: bool) -> &str {
    match sign {
        Sign::Minus => text.trim_end_matches(is_space),
        Sign::None if !is_variable => {
            let line_start = text.rfind('\n').map_or(0, |at| at + 1);
            let is_blank = text[line_start..].chars().all(is_space) && line_start < text.len();
            if is_blank && (line_start > 0 || line_starting) { &text[..line_start] } else { text }
        }
        _ => text,
    }
}

/// The length of `{% raw %}` in any of its spellings.
fn raw_begin_len(tag: &str) -> Option<usize> {
    let rest = tag.strip_prefix("{%")?;
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    let rest = rest.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    if let Some(rest) = rest.strip_prefix("-%}") {
        return Some(tag.len() - rest.trim_start_matches(is_space).len());
    }
    rest.strip_prefix("%}").map(|rest| tag.len() - rest.len())
}

/// The sign and the length of `{% endraw %}`.
fn endraw(tag: &str) -> Option<(Sign, usize)> {
    let rest = tag.strip_prefix("{%")?;
    let (sign, rest) = match rest.as_bytes().first() {
        Some(b'-') => (Sign::Minus, &rest[1..]),
        Some(b'+') => (Sign::Plus, &rest[1..]),
        _ => (Sign::None, rest),
    };
    let rest = rest.trim_start_matches(is_space).strip_prefix("endraw")?.trim_start_matches(is_space);
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")?;
    Some((sign, tag.len() - rest.len()))
}
