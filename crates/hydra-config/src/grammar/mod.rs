//! The two grammars of values: OmegaConf's for strings with interpolations, Hydra's for overrides. They share a lexer.
//!
//! Source of the rules: `OverrideLexer.g4` and `OverrideParser.g4` of hydra-core 1.3, `OmegaConfGrammarLexer.g4` and
//! `OmegaConfGrammarParser.g4` of omegaconf 2.3. Nothing is evaluated here.

pub(crate) mod expression;
pub(crate) mod lexer;

use crate::Node;
use lexer::{Kind, Token};

/// Nesting that no real value reaches.
pub(crate) const MAX_DEPTH: usize = 64;

/// The value of a single token; `Err` is its text, for those that are always strings.
pub(crate) fn token_value(token: Token<'_>) -> Result<Node, String> {
    let text = token.text;
    Ok(match token.kind {
        Kind::Null => Node::Null,
        Kind::Bool => Node::Bool(text.eq_ignore_ascii_case("true")),
        Kind::Int => {
            let value = crate::python::parse_int(text);
            Node::Int(value.ok_or_else(|| format!("`{text}` is not a 64-bit integer"))?)
        }
        Kind::Float => {
            let value = crate::python::parse_float(text);
            Node::Float(value.ok_or_else(|| format!("`{text}` is not a number"))?)
        }
        _ => Node::Str(token_text(token)),
    })
}

/// The text of a token with its escapes undone.
pub(crate) fn token_text(token: Token<'_>) -> String {
    if token.kind == Kind::Escape { every_other(token.text) } else { token.text.to_owned() }
}

/// What is left of a run of escapes when the escaping backslashes go.
pub(crate) fn every_other(text: &str) -> String {
    text.chars().skip(1).step_by(2).collect()
}

/// A key of a dict as the tree holds it: a string.
pub(crate) fn key_text(key: Node) -> String {
    match key {
        Node::Null => "null".to_owned(),
        Node::Bool(value) => value.to_string(),
        other => crate::python::text(&other),
    }
}
