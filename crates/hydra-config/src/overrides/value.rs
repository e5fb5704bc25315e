//! The value of an override: elements, functions and sweeps.

use indexmap::IndexMap;

use super::functions;
use crate::Node;
use crate::grammar::lexer::{self, Dialect, Kind, Token};
use crate::grammar::{MAX_DEPTH, key_text, token_text, token_value};

/// The form of a sweep that is written with commas alone.
pub(super) const COMMAS: &str = ",";

/// A value before its quotes are forgotten: functions ask for them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Element {
    Value(Node),
    Quoted(String),
    List(Vec<Self>),
    Dict(IndexMap<String, Self>),
    /// One run for each of several values, and how it was asked for.
    Sweep(&'static str),
}

impl Element {
    pub(super) fn into_node(self) -> Node {
        match self {
            Self::Value(node) => node,
            Self::Quoted(text) => Node::Str(text),
            Self::List(list) => Node::List(list.into_iter().map(Self::into_node).collect()),
            Self::Dict(map) => {
                Node::Map(map.into_iter().map(|(key, value)| (key, value.into_node())).collect())
            }
            Self::Sweep(_) => Node::Null,
        }
    }
}

/// Reads what stands after `=`.
pub(super) fn parse(text: &str) -> Result<Element, String> {
    let tokens = tokens(&text[lexer::space_len(text)..])?;
    parse_tokens(&tokens).map_err(|message| {
        // The first brace ends an interpolation, so that what goes wrong after it is hard to understand.
        let is_nested =
            |token: &Token<'_>| token.kind == Kind::Interpolation && token.text[2..].contains("${");
        if tokens.iter().any(is_nested) {
            "an interpolation inside of another must be quoted".to_owned()
        } else {
            message
        }
    })
}

fn parse_tokens(tokens: &[Token<'_>]) -> Result<Element, String> {
    if tokens.is_empty() {
        return Ok(Element::Value(Node::from("")));
    }
    let mut parser = Parser { tokens };
    let mut element = parser.element(0)?;
    while parser.eat(Kind::Comma) {
        parser.element(0)?;
        element = Element::Sweep(COMMAS);
    }
    if !parser.tokens.is_empty() {
        return Err(parser.unexpected("the end"));
    }
    Ok(element)
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let mut rest = text;
    let mut tokens = Vec::new();
    while let Some(c) = rest.chars().next() {
        let token = lexer::next(rest, Dialect::Hydra).ok_or_else(|| match c {
            '"' | '\'' => format!("no closing `{c}`"),
            c => format!("`{c}` must be quoted"),
        })?;
        rest = &rest[token.text.len()..];
        tokens.push(token);
    }
    Ok(tokens)
}

struct Parser<'a, 't> {
    tokens: &'t [Token<'a>],
}

impl<'a> Parser<'a, '_> {
    fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    fn eat(&mut self, kind: Kind) -> bool {
        let is_next = self.kind(0) == Some(kind);
        if is_next {
            self.tokens = &self.tokens[1..];
        }
        is_next
    }

    fn unexpected(&self, wanted: &str) -> String {
        match self.tokens.first() {
            None => format!("expected {wanted}, found the end"),
            Some(token) if token.kind == Kind::Equal => "`=` in a value must be quoted".to_owned(),
            Some(token) => format!("expected {wanted}, found `{}`", token.text.trim()),
        }
    }

    fn element(&mut self, depth: usize) -> Result<Element, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        match (self.kind(0), self.kind(1)) {
            (Some(Kind::BracketOpen), _) => self.list(depth),
            (Some(Kind::BraceOpen), _) => self.dict(depth),
            (Some(Kind::Id), Some(Kind::ParenOpen)) => self.function(depth),
            (Some(Kind::Quote), _) => {
                let text = self.tokens.first().map_or("", |token| token.text);
                self.eat(Kind::Quote);
                Ok(Element::Quoted(unquoted(text)))
            }
            _ => self.primitive(),
        }
    }

    /// An element of a list or a dict.
    fn item(&mut self, depth: usize) -> Result<Element, String> {
        match self.element(depth + 1)? {
            Element::Sweep(_) => Err("a sweep inside of a list or a dict has no meaning".to_owned()),
            element => Ok(element),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Element, String> {
        self.eat(Kind::BracketOpen);
        let mut list = Vec::new();
        if self.eat(Kind::BracketClose) {
            return Ok(Element::List(list));
        }
        loop {
            list.push(self.item(depth)?);
            if self.eat(Kind::BracketClose) {
                return Ok(Element::List(list));
            }
            if !self.eat(Kind::Comma) {
                return Err(self.unexpected("`,` or `]`"));
            }
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Element, String> {
        self.eat(Kind::BraceOpen);
        let mut map = IndexMap::new();
        if self.eat(Kind::BraceClose) {
            return Ok(Element::Dict(map));
        }
        loop {
            let key =
                self.part(|kind| is_primitive(kind) && !matches!(kind, Kind::Colon | Kind::Interpolation));
            let key = key.unwrap_or_else(|| Err(self.unexpected("a key")))?;
            if !self.eat(Kind::Colon) {
                return Err(self.unexpected("`:`"));
            }
            let value = self.item(depth)?;
            map.insert(key_text(key), value);
            if self.eat(Kind::BraceClose) {
                return Ok(Element::Dict(map));
            }
            if !self.eat(Kind::Comma) {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
    }

    fn function(&mut self, depth: usize) -> Result<Element, String> {
        let name = self.tokens.first().map_or("", |token| token.text);
        self.eat(Kind::Id);
        self.eat(Kind::ParenOpen);
        let mut arguments = functions::Arguments::default();
        while !self.eat(Kind::ParenClose) {
            if !arguments.is_empty() && !self.eat(Kind::Comma) {
                return Err(self.unexpected("`,` or `)`"));
            }
            let label = match (self.tokens.first(), self.kind(1)) {
                (Some(token), Some(Kind::Equal)) if token.kind == Kind::Id => {
                    self.tokens = &self.tokens[2..];
                    Some(token.text)
                }
                _ => None,
            };
            let value = self.element(depth + 1)?;
            arguments.push(label, value)?;
        }
        functions::call(name, arguments)
    }

    fn primitive(&mut self) -> Result<Element, String> {
        match self.part(is_primitive) {
            Some(value) => value.map(Element::Value),
            None => Err(self.unexpected("a value")),
        }
    }

    /// Adjoining tokens as one value, without the space around them; `None` when there is none.
    fn part(&mut self, is_part: impl Fn(Kind) -> bool) -> Option<Result<Node, String>> {
        let len = self.tokens.iter().take_while(|token| is_part(token.kind)).count();
        let (part, rest) = self.tokens.split_at(len);
        if part.is_empty() {
            return None;
        }
        self.tokens = rest;
        let is_space = |token: &Token<'_>| token.kind == Kind::Space;
        let part = if part.first().is_some_and(is_space) { &part[1..] } else { part };
        let part = match part {
            [part @ .., last] if is_space(last) => part,
            part => part,
        };
        Some(match part {
            [] => Err("a value of nothing but space must be quoted".to_owned()),
            [token] => token_value(*token),
            tokens => Ok(Node::Str(tokens.iter().copied().map(token_text).collect())),
        })
    }
}

fn is_primitive(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Id
            | Kind::Null
            | Kind::Int
            | Kind::Float
            | Kind::Bool
            | Kind::Interpolation
            | Kind::UnquotedChar
            | Kind::Colon
            | Kind::Escape
            | Kind::Space
    )
}

/// A backslash run escapes only right before a quote of the same kind.
fn unquoted(text: &str) -> String {
    let quote = text.chars().next().unwrap_or('"');
    let mut out = String::new();
    let mut num_backslashes = 0;
    for c in text.chars().skip(1) {
        if c == '\\' {
            num_backslashes += 1;
            continue;
        }
        let literal = if c == quote { num_backslashes / 2 } else { num_backslashes };
        out.extend(std::iter::repeat_n('\\', literal));
        num_backslashes = 0;
        out.push(c);
    }
    out.pop();
    out
}
