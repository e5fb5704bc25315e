//! OmegaConf's grammar: a string with interpolations, and a single element for `oc.decode`.

use super::lexer::{self, Dialect, Kind, Token};
use super::{MAX_DEPTH, every_other, key_text, token_text, token_value};
use crate::Node;

/// A string in pieces. One interpolation alone stands for its value, anything else for a string.
pub(crate) type Text = Vec<Part>;

/// A piece of a string.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Literal(String),
    Interpolation(Interpolation),
}

/// What stands between `${` and `}`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Interpolation {
    /// A key; interpolations in it must give strings.
    Node(Text),
    /// `name:arguments`.
    Call { name: Text, arguments: Vec<Element> },
}

/// An argument of a resolver.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Element {
    Value(Node),
    Text(Text),
    /// A quoted string is a string whatever its interpolation gives.
    Quoted(Text),
    List(Vec<Self>),
    Dict(Vec<(String, Self)>),
}

/// Reads a string that has `${` in it.
pub(crate) fn parse_text(text: &str) -> Result<Text, String> {
    let mut parser = Parser { rest: text, depth: 0 };
    parser.text(None)
}

/// Reads what `oc.decode` is given.
pub(crate) fn parse_element(text: &str) -> Result<Element, String> {
    let mut parser = Parser { rest: text, depth: 0 };
    let element = parser.element()?;
    if parser.rest.is_empty() { Ok(element) } else { Err(parser.unexpected("the end")) }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn unexpected(&self, wanted: &str) -> String {
        self.rest.chars().next().map_or_else(
            || format!("expected {wanted}, found the end"),
            |c| format!("expected {wanted}, found `{c}`"),
        )
    }

    fn enter(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(format!("nested deeper than {MAX_DEPTH} levels")) } else { Ok(()) }
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    fn peek(&self) -> Option<Token<'a>> {
        lexer::next(self.rest, Dialect::OmegaConf)
    }

    fn eat(&mut self, kind: Kind) -> bool {
        match self.peek() {
            Some(token) if token.kind == kind => {
                self.take(token.text.len());
                true
            }
            _ => false,
        }
    }

    /// A string up to the end, or up to the closing `quote`.
    fn text(&mut self, quote: Option<char>) -> Result<Text, String> {
        let mut parts = Vec::new();
        loop {
            if self.rest.is_empty() {
                return match quote {
                    None => Ok(parts),
                    Some(quote) => Err(format!("no closing `{quote}`")),
                };
            }
            if let Some(quote) = quote
                && self.rest.starts_with(quote)
            {
                self.take(1);
                return Ok(parts);
            }
            if self.rest.starts_with("${") {
                parts.push(Part::Interpolation(self.interpolation()?));
            } else {
                let literal = self.literal(quote);
                push_literal(&mut parts, &literal);
            }
        }
    }

    /// Characters outside interpolations. Backslashes count only before one, before a quote, or at the end of a
    /// quoted string.
    fn literal(&mut self, quote: Option<char>) -> String {
        let stops = |c: char| c == '$' || Some(c) == quote;
        let plain =
            self.rest[..self.rest.find(stops).unwrap_or(self.rest.len())].trim_end_matches('\\').len();
        if plain > 0 {
            return self.take(plain).to_owned();
        }
        let num_backslashes = self.rest.len() - self.rest.trim_start_matches('\\').len();
        let after = &self.rest[num_backslashes..];
        let is_odd = num_backslashes % 2 == 1;
        if is_odd && after.starts_with("${") {
            self.take(num_backslashes + 2);
            return format!("{}${{", "\\".repeat(num_backslashes / 2));
        }
        let at_quote = quote.is_some_and(|quote| after.starts_with(quote));
        if is_odd && at_quote {
            return every_other(self.take(num_backslashes + 1));
        }
        if num_backslashes == 0 {
            return self.take(1).to_owned();
        }
        let is_escape = !is_odd && (after.starts_with("${") || at_quote);
        let run = self.take(num_backslashes);
        if is_escape { every_other(run) } else { run.to_owned() }
    }

    fn interpolation(&mut self) -> Result<Interpolation, String> {
        self.enter()?;
        self.take(2);
        self.take(lexer::space_len(self.rest));
        let mut key = Vec::new();
        let mut is_name = true;
        while self.rest.starts_with('.') {
            push_literal(&mut key, self.take(1));
            is_name = false;
        }
        loop {
            let is_bracketed = self.rest.starts_with('[');
            if is_bracketed {
                push_literal(&mut key, self.take(1));
            }
            is_name &= self.config_key(&mut key)? && !is_bracketed;
            if is_bracketed {
                if !self.rest.starts_with(']') {
                    return Err(self.unexpected("`]`"));
                }
                push_literal(&mut key, self.take(1));
            }
            let space = lexer::space_len(self.rest);
            match self.rest[space..].chars().next() {
                Some('}') => {
                    self.take(space + 1);
                    self.depth -= 1;
                    return Ok(Interpolation::Node(key));
                }
                Some(':') if is_name => {
                    self.take(space + 1);
                    self.take(lexer::space_len(self.rest));
                    let arguments = self.sequence(Kind::BraceClose)?;
                    self.depth -= 1;
                    return Ok(Interpolation::Call { name: key, arguments });
                }
                Some('.') if space == 0 => push_literal(&mut key, self.take(1)),
                Some('[') if space == 0 => {
                    continue;
                }
                _ => return Err(self.unexpected("`}` after a key")),
            }
            if self.rest.starts_with('[') {
                return Err(self.unexpected("a key"));
            }
        }
    }

    /// One key of a path; says whether it could be the name of a resolver.
    fn config_key(&mut self, key: &mut Text) -> Result<bool, String> {
        if self.rest.starts_with("${") {
            key.push(Part::Interpolation(self.interpolation()?));
            return Ok(true);
        }
        let is_special = |c: char| "\\{}()[]:. \t'\"".contains(c);
        let len = self.rest.find(is_special).unwrap_or(self.rest.len());
        if len == 0 {
            return Err(self.unexpected("a key"));
        }
        let name = self.take(len);
        push_literal(key, name);
        Ok(lexer::id_len(name) == len)
    }

    /// Elements up to a closing token. An element that is left out is an empty string.
    fn sequence(&mut self, close: Kind) -> Result<Vec<Element>, String> {
        let mut elements = Vec::new();
        if self.eat(close) {
            return Ok(elements);
        }
        let empty = || Element::Value(Node::from(""));
        let mut is_after_comma = true;
        loop {
            if self.eat(Kind::Comma) {
                if is_after_comma {
                    elements.push(empty());
                }
                is_after_comma = true;
            } else if self.eat(close) {
                if is_after_comma {
                    elements.push(empty());
                }
                return Ok(elements);
            } else if is_after_comma {
                elements.push(self.element()?);
                is_after_comma = false;
            } else {
                return Err(self.unexpected("`,` or a closing bracket"));
            }
        }
    }

    fn element(&mut self) -> Result<Element, String> {
        self.enter()?;
        let element = match self.peek().map(|token| token.kind) {
            Some(Kind::BracketOpen) => {
                self.eat(Kind::BracketOpen);
                self.sequence(Kind::BracketClose).map(Element::List)
            }
            Some(Kind::BraceOpen) => self.dict(),
            Some(Kind::Quote) => {
                let quote = self.take(1).chars().next();
                self.text(quote).map(Element::Quoted)
            }
            _ => self.primitive(),
        };
        self.depth -= 1;
        element
    }

    fn dict(&mut self) -> Result<Element, String> {
        self.eat(Kind::BraceOpen);
        let mut entries = Vec::new();
        if self.eat(Kind::BraceClose) {
            return Ok(Element::Dict(entries));
        }
        loop {
            let is_part = |kind| kind != Kind::Colon && is_primitive(kind);
            let tokens = self.tokens(is_part);
            let key = match tokens.as_slice() {
                [] => return Err(self.unexpected("a key")),
                [token] => key_text(token_value(*token)?),
                tokens => tokens.iter().copied().map(token_text).collect(),
            };
            if !self.eat(Kind::Colon) {
                return Err(self.unexpected("`:`"));
            }
            entries.push((key, self.element()?));
            if self.eat(Kind::BraceClose) {
                return Ok(Element::Dict(entries));
            }
            if !self.eat(Kind::Comma) {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
    }

    fn tokens(&mut self, is_part: impl Fn(Kind) -> bool) -> Vec<Token<'a>> {
        let mut tokens = Vec::new();
        while let Some(token) = self.peek().filter(|token| is_part(token.kind)) {
            self.take(token.text.len());
            tokens.push(token);
        }
        tokens
    }

    fn primitive(&mut self) -> Result<Element, String> {
        let mut text = Vec::new();
        let mut num_parts = 0;
        let mut last = None;
        loop {
            let tokens = self.tokens(is_primitive);
            for token in &tokens {
                push_literal(&mut text, &token_text(*token));
                last = Some(*token);
            }
            num_parts += tokens.len();
            if !self.rest.starts_with("${") {
                break;
            }
            text.push(Part::Interpolation(self.interpolation()?));
            num_parts += 1;
            last = None;
        }
        match (num_parts, last) {
            (0, _) => Err(self.unexpected("a value")),
            (1, Some(token)) if token.kind == Kind::Space => Err("a value of nothing but space".to_owned()),
            (1, Some(token)) => token_value(token).map(Element::Value),
            _ => Ok(Element::Text(text)),
        }
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
            | Kind::UnquotedChar
            | Kind::Colon
            | Kind::Escape
            | Kind::Space
    )
}

fn push_literal(parts: &mut Text, literal: &str) {
    if let Some(Part::Literal(last)) = parts.last_mut() {
        last.push_str(literal);
    } else {
        parts.push(Part::Literal(literal.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &str) -> String {
        match parse_text(text).unwrap().as_slice() {
            [Part::Literal(text)] => text.clone(),
            parts => panic!("{parts:?}"),
        }
    }

    #[test]
    fn backslashes_escape_only_interpolations() {
        assert_eq!(literal(r"a\${b}"), "a${b}");
        assert_eq!(literal(r"a\\\${b}"), r"a\${b}");
        assert_eq!(literal(r"a\\b \c"), r"a\\b \c");
        let parts = parse_text(r"a\\${b}\\").unwrap();
        assert_eq!(parts.first(), Some(&Part::Literal(r"a\".to_owned())));
        assert_eq!(parts.last(), Some(&Part::Literal(r"\\".to_owned())));
    }

    #[test]
    fn what_is_not_in_the_grammar_is_refused() {
        for text in [
            "${",
            "${}",
            "${a",
            "${a b}",
            "${a.}",
            "${a..b}",
            "${a:'x}",
            "${a:x'y'}",
            "${[a}",
            "${a${b}}",
            "${a:{'x':1}}",
        ] {
            assert!(parse_text(text).is_err(), "{text}");
        }
        for text in
            ["${a}", "${ .a.b[c] }", "${a:}", "${a.b:x, ,y}", "${${a}}", "${a.${b}:1}", "${a:{x:[1,{}]}}"]
        {
            assert!(parse_text(text).is_ok(), "{text}");
        }
        assert!(parse_text(&"${".repeat(100_000)).is_err());
        assert!(parse_element(&"[".repeat(100_000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ab$ {}:,.'\"\\\\\\[\\]1é]{0,40}") {
            let _ = parse_text(&text);
            let _ = parse_element(&text);
        }
    }
}
