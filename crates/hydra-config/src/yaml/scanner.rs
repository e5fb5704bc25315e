//! Tokens of a document by PyYAML's rules, which are YAML 1.1's with PyYAML's own leniencies and limits.
//!
//! Indentation and simple keys are decided here; scalars are read in [`super::scalars`], anchors and tags in [`super::properties`].

use std::collections::{BTreeMap, VecDeque};

use super::reader::{Mark, Problem, Reader, ends_word};
use super::{properties, scalars};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TokenKind {
    StreamEnd,
    Directive(properties::Directive),
    DocumentStart,
    DocumentEnd,
    BlockSequenceStart,
    BlockMappingStart,
    BlockEnd,
    FlowSequenceStart,
    FlowSequenceEnd,
    FlowMappingStart,
    FlowMappingEnd,
    FlowEntry,
    BlockEntry,
    Key,
    Value,
    Alias(String),
    Anchor(String),
    Tag { handle: Option<String>, suffix: String },
    Scalar { text: String, is_plain: bool },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) mark: Mark,
}

/// A place where a key without `?` may have begun.
#[derive(Clone, Copy)]
struct SimpleKey {
    token_number: usize,
    is_required: bool,
    pos: usize,
    mark: Mark,
}

/// PyYAML's limit on the length of a key without `?`, in characters.
const MAX_SIMPLE_KEY: usize = 1024;

pub(super) struct Scanner {
    pub(super) reader: Reader,
    tokens: VecDeque<Token>,
    num_taken: usize,
    is_done: bool,
    pub(super) flow_level: usize,
    /// The column of the open block; -1 outside of all.
    pub(super) indent: isize,
    indents: Vec<isize>,
    pub(super) allow_simple_key: bool,
    /// By flow level.
    simple_keys: BTreeMap<usize, SimpleKey>,
}

type Scanned<T = ()> = Result<T, Problem>;

impl Scanner {
    pub(super) fn new(reader: Reader) -> Self {
        Self {
            reader,
            tokens: VecDeque::new(),
            num_taken: 0,
            is_done: false,
            flow_level: 0,
            indent: -1,
            indents: Vec::new(),
            allow_simple_key: true,
            simple_keys: BTreeMap::new(),
        }
    }

    /// The next token, left where it is.
    pub(super) fn peek(&mut self) -> Scanned<&Token> {
        while self.needs_more()? {
            self.fetch()?;
        }
        let mark = self.reader.mark;
        self.tokens.front().ok_or_else(|| Problem::new(mark, "the document ends too early"))
    }

    pub(super) fn next(&mut self) -> Scanned<Token> {
        self.peek()?;
        self.num_taken += 1;
        let mark = self.reader.mark;
        self.tokens.pop_front().ok_or_else(|| Problem::new(mark, "the document ends too early"))
    }

    fn needs_more(&mut self) -> Scanned<bool> {
        if self.is_done {
            return Ok(false);
        }
        if self.tokens.is_empty() {
            return Ok(true);
        }
        self.drop_stale_keys()?;
        Ok(self.simple_keys.values().any(|key| key.token_number == self.num_taken))
    }

    fn fetch(&mut self) -> Scanned {
        self.skip_to_token();
        self.drop_stale_keys()?;
        let mark = self.reader.mark;
        self.unwind(mark.column as isize);
        let c = self.reader.peek(0);
        let ends = ends_word(self.reader.peek(1));
        match c {
            '\0' => self.stream_end(),
            '%' if mark.column == 0 => {
                self.reset_line()?;
                let directive = properties::directive(&mut self.reader)?;
                self.push(TokenKind::Directive(directive), mark);
                Ok(())
            }
            '-' if mark.column == 0 && self.reader.at_document_marker('-') => {
                self.document_marker(TokenKind::DocumentStart)
            }
            '.' if mark.column == 0 && self.reader.at_document_marker('.') => {
                self.document_marker(TokenKind::DocumentEnd)
            }
            '[' => self.flow_start(TokenKind::FlowSequenceStart),
            '{' => self.flow_start(TokenKind::FlowMappingStart),
            ']' => self.flow_end(TokenKind::FlowSequenceEnd),
            '}' => self.flow_end(TokenKind::FlowMappingEnd),
            ',' => {
                self.allow_simple_key = true;
                self.remove_simple_key()?;
                self.indicator(TokenKind::FlowEntry);
                Ok(())
            }
            '-' if ends => self.block_entry(),
            '?' if self.flow_level > 0 || ends => self.key(),
            ':' if self.flow_level > 0 || ends => self.value(),
            '*' | '&' => {
                self.save_simple_key()?;
                self.allow_simple_key = false;
                let name = properties::anchor(&mut self.reader)?;
                let kind = if c == '*' { TokenKind::Alias(name) } else { TokenKind::Anchor(name) };
                self.push(kind, mark);
                Ok(())
            }
            '!' => {
                self.save_simple_key()?;
                self.allow_simple_key = false;
                let (handle, suffix) = properties::tag(&mut self.reader)?;
                self.push(TokenKind::Tag { handle, suffix }, mark);
                Ok(())
            }
            '|' | '>' if self.flow_level == 0 => {
                self.allow_simple_key = true;
                self.remove_simple_key()?;
                let text = scalars::block(&mut self.reader, self.indent)?;
                self.push(TokenKind::Scalar { text, is_plain: false }, mark);
                Ok(())
            }
            '\'' | '"' => {
                self.save_simple_key()?;
                self.allow_simple_key = false;
                let text = scalars::quoted(&mut self.reader)?;
                self.push(TokenKind::Scalar { text, is_plain: false }, mark);
                Ok(())
            }
            _ if self.begins_plain(c, ends) => {
                self.save_simple_key()?;
                self.allow_simple_key = false;
                let text = scalars::plain(self);
                self.push(TokenKind::Scalar { text, is_plain: true }, mark);
                Ok(())
            }
            '\t' => Err(Problem::new(mark, "a tab cannot indent or begin a value; use spaces")),
            c => Err(Problem::new(mark, format!("`{c}` cannot begin a value; put the value in quotes"))),
        }
    }

    fn begins_plain(&self, c: char, ends: bool) -> bool {
        let is_indicator = ends_word(c) || "-?:,[]{}#&*!|>'\"%@`".contains(c);
        !is_indicator || !ends && (c == '-' || self.flow_level == 0 && matches!(c, '?' | ':'))
    }

    fn skip_to_token(&mut self) {
        if self.reader.pos == 0 && self.reader.peek(0) == '\u{feff}' {
            self.reader.forward(1);
        }
        loop {
            self.reader.skip_spaces();
            self.reader.skip_comment();
            if self.reader.line_break().is_none() {
                return;
            }
            if self.flow_level == 0 {
                self.allow_simple_key = true;
            }
        }
    }

    fn push(&mut self, kind: TokenKind, mark: Mark) {
        self.tokens.push_back(Token { kind, mark });
    }

    /// A token of one character.
    fn indicator(&mut self, kind: TokenKind) {
        self.push(kind, self.reader.mark);
        self.reader.forward(1);
    }

    fn drop_stale_keys(&mut self) -> Scanned {
        let (line, pos) = (self.reader.mark.line, self.reader.pos);
        let is_stale = |key: &SimpleKey| key.mark.line != line || pos - key.pos > MAX_SIMPLE_KEY;
        if let Some(key) = self.simple_keys.values().find(|key| key.is_required && is_stale(key)) {
            return Err(missing_colon(key));
        }
        self.simple_keys.retain(|_, key| !is_stale(key));
        Ok(())
    }

    fn save_simple_key(&mut self) -> Scanned {
        let mark = self.reader.mark;
        let is_required = self.flow_level == 0 && self.indent == mark.column as isize;
        if self.allow_simple_key {
            self.remove_simple_key()?;
            let token_number = self.num_taken + self.tokens.len();
            let key = SimpleKey { token_number, is_required, pos: self.reader.pos, mark };
            self.simple_keys.insert(self.flow_level, key);
        }
        Ok(())
    }

    fn remove_simple_key(&mut self) -> Scanned {
        match self.simple_keys.remove(&self.flow_level) {
            Some(key) if key.is_required => Err(missing_colon(&key)),
            _ => Ok(()),
        }
    }

    /// Closes the blocks that are indented deeper than `column`. Inside brackets indentation means nothing.
    fn unwind(&mut self, column: isize) {
        while self.flow_level == 0 && self.indent > column {
            self.push(TokenKind::BlockEnd, self.reader.mark);
            self.indent = self.indents.pop().unwrap_or(-1);
        }
    }

    fn add_indent(&mut self, column: usize) -> bool {
        let column = column as isize;
        let is_deeper = self.indent < column;
        if is_deeper {
            self.indents.push(self.indent);
            self.indent = column;
        }
        is_deeper
    }

    fn reset_line(&mut self) -> Scanned {
        self.unwind(-1);
        self.remove_simple_key()?;
        self.allow_simple_key = false;
        Ok(())
    }

    fn stream_end(&mut self) -> Scanned {
        self.reset_line()?;
        self.simple_keys.clear();
        self.push(TokenKind::StreamEnd, self.reader.mark);
        self.is_done = true;
        Ok(())
    }

    fn document_marker(&mut self, kind: TokenKind) -> Scanned {
        self.reset_line()?;
        self.push(kind, self.reader.mark);
        self.reader.forward(3);
        Ok(())
    }

    fn flow_start(&mut self, kind: TokenKind) -> Scanned {
        self.save_simple_key()?;
        self.flow_level += 1;
        self.allow_simple_key = true;
        self.indicator(kind);
        Ok(())
    }

    fn flow_end(&mut self, kind: TokenKind) -> Scanned {
        self.remove_simple_key()?;
        // A bracket too many is left to the parser, which names it.
        self.flow_level = self.flow_level.saturating_sub(1);
        self.allow_simple_key = false;
        self.indicator(kind);
        Ok(())
    }

    fn begin_block(&mut self, kind: TokenKind, what: &str) -> Scanned {
        if self.flow_level > 0 {
            return Ok(());
        }
        let mark = self.reader.mark;
        if !self.allow_simple_key {
            return Err(Problem::new(mark, format!("{what} is not allowed here")));
        }
        if self.add_indent(mark.column) {
            self.push(kind, mark);
        }
        Ok(())
    }

    fn block_entry(&mut self) -> Scanned {
        self.begin_block(TokenKind::BlockSequenceStart, "an element of a list")?;
        self.allow_simple_key = true;
        self.remove_simple_key()?;
        self.indicator(TokenKind::BlockEntry);
        Ok(())
    }

    fn key(&mut self) -> Scanned {
        self.begin_block(TokenKind::BlockMappingStart, "a key")?;
        self.allow_simple_key = self.flow_level == 0;
        self.remove_simple_key()?;
        self.indicator(TokenKind::Key);
        Ok(())
    }

    fn value(&mut self) -> Scanned {
        if let Some(key) = self.simple_keys.remove(&self.flow_level) {
            let at = key.token_number.saturating_sub(self.num_taken).min(self.tokens.len());
            self.tokens.insert(at, Token { kind: TokenKind::Key, mark: key.mark });
            if self.flow_level == 0 && self.add_indent(key.mark.column) {
                self.tokens.insert(at, Token { kind: TokenKind::BlockMappingStart, mark: key.mark });
            }
            self.allow_simple_key = false;
        } else {
            self.begin_block(
                TokenKind::BlockMappingStart,
                "a second `:` in a value (put the value in quotes)",
            )?;
            self.allow_simple_key = self.flow_level == 0;
            self.remove_simple_key()?;
        }
        self.indicator(TokenKind::Value);
        Ok(())
    }
}

fn missing_colon(key: &SimpleKey) -> Problem {
    Problem::new(key.mark, "this line has no `: ` after its key")
}
