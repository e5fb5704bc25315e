//! The text of `model.data.train_ds.prompt_template`: escapes decoded, split into fixed parts and keys.

use crate::DataError;

/// A checked template. It ends with the key of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTemplate {
    pieces: Vec<Piece>,
}

/// A fixed part, or a key with the spaces in front of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) num_spaces: usize,
    pub(crate) content: PieceContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PieceContent {
    Literal(String),
    Key(String),
}

/// What becomes of one space at the start of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spaces {
    /// It is part of the text.
    Kept,
    /// The tokenizer puts one before every text by itself.
    Implied,
}

impl PromptTemplate {
    /// Reads a template such as `Question: {input}\n\nAnswer: {output}`, where `\n` may be typed as two characters.
    ///
    /// # Errors
    /// When an escape is broken, or the template does not end with `{label_key}`.
    pub fn parse(template: &str, label_key: &str) -> Result<Self, DataError> {
        let bad = |reason| DataError::BadPromptTemplate { template: template.into(), reason };
        let text = unescape(template).map_err(bad)?;
        let label = format!("{{{label_key}}}");
        if text.contains("{}") {
            return Err(bad("it has a key without a name, `{}`".into()));
        }
        if !text.ends_with(&label) {
            return Err(bad(format!(
                "it must end with `{label}`, the key of `model.data.train_ds.label_key`"
            )));
        }
        Ok(Self { pieces: split(&text) })
    }

    /// The keys in order; a key used twice is there twice.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match &piece.content {
            PieceContent::Key(key) => Some(key.as_str()),
            PieceContent::Literal(_) => None,
        })
    }

    pub(crate) fn pieces(&self, spaces: Spaces) -> Vec<Piece> {
        let mut pieces = self.pieces.clone();
        if spaces == Spaces::Implied {
            for piece in &mut pieces {
                piece.num_spaces = piece.num_spaces.saturating_sub(1);
            }
        }
        pieces
    }
}

fn split(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut push = |part: &str, is_key: bool| {
        let trimmed = part.trim_start_matches(' ');
        let content = if is_key {
            PieceContent::Key(trimmed[1..trimmed.len() - 1].to_owned())
        } else {
            PieceContent::Literal(trimmed.to_owned())
        };
        if !part.is_empty() {
            pieces.push(Piece { num_spaces: part.len() - trimmed.len(), content });
        }
    };
    let mut rest = text;
    while let Some((start, end)) = find_key(rest) {
        let literal_len = rest[..start].trim_end_matches(' ').len();
        push(&rest[..literal_len], false);
        push(&rest[literal_len..end], true);
        rest = &rest[end..];
    }
    push(rest, false);
    pieces
}

/// The first `{…}` on one line.
fn find_key(text: &str) -> Option<(usize, usize)> {
    text.match_indices('{').find_map(|(start, _)| {
        let line = text[start..].split('\n').next()?;
        Some((start, start + line.find('}')? + 1))
    })
}

/// Decodes Python's escapes and leaves everything else alone.
fn unescape(text: &str) -> Result<String, String> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        decoded.push_str(&rest[..start]);
        let escape = &rest[start + 1..];
        let Some(kind) = escape.chars().next() else {
            return Err("it ends in the middle of an escape: write `\\\\` for a backslash".into());
        };
        let tail = &escape[kind.len_utf8()..];
        let num_digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let (c, len) = match kind {
            '\n' => (None, 1),
            'a' => (Some('\u{7}'), 1),
            'b' => (Some('\u{8}'), 1),
            'f' => (Some('\u{c}'), 1),
            'n' => (Some('\n'), 1),
            'r' => (Some('\r'), 1),
            't' => (Some('\t'), 1),
            'v' => (Some('\u{b}'), 1),
            '\\' | '\'' | '"' => (Some(kind), 1),
            '0'..='7' => {
                let digits = escape.len() - escape.trim_start_matches(|c| ('0'..='7').contains(&c)).len();
                let len = digits.min(3);
                (u32::from_str_radix(&escape[..len], 8).ok().and_then(char::from_u32), len)
            }
            'x' | 'u' | 'U' => {
                let digits =
                    tail.get(..num_digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
                let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                let c = code.and_then(char::from_u32);
                (
                    Some(c.ok_or_else(|| {
                        format!("the escape `\\{kind}` needs {num_digits} hexadecimal digits of a character")
                    })?),
                    1 + num_digits,
                )
            }
            _ => {
                decoded.push('\\');
                (Some(kind), kind.len_utf8())
            }
        };
        decoded.extend(c);
        rest = &escape[len..];
    }
    decoded.push_str(rest);
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(template: &str) -> String {
        let parsed = PromptTemplate::parse(template, "label").unwrap();
        let pieces = parsed.pieces.iter().map(|piece| match &piece.content {
            PieceContent::Literal(text) => format!("{:?}", " ".repeat(piece.num_spaces) + text),
            PieceContent::Key(key) => format!("{}{{{key}}}", "_".repeat(piece.num_spaces)),
        });
        pieces.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn spaces_stick_to_the_key_that_follows() {
        assert_eq!(
            show("Context:{context}  Passage: {passage}\n\nQuestion:{question} {label}"),
            r#""Context:" {context} "  Passage:" _{passage} "\n\nQuestion:" {question} _{label}"#
        );
        assert_eq!(show("{label}"), "{label}");
        assert_eq!(show("a {b\nc} {label}"), r#""a {b\nc}" _{label}"#);
    }

    #[test]
    fn escapes_are_decoded_and_other_characters_kept() {
        assert_eq!(show(r"é日本\n\t\x41\u00e9\101\\n\q{label}"), r#""é日本\n\tAéA\\n\\q" {label}"#);
    }

    #[test]
    fn broken_templates_say_what_is_wrong() {
        let error = |template| PromptTemplate::parse(template, "output").unwrap_err();
        insta::assert_snapshot!(error("{input} {output} "), @"`model.data.train_ds.prompt_template` is `{input} {output} `: it must end with `{output}`, the key of `model.data.train_ds.label_key`");
        insta::assert_snapshot!(error(r"\x4{output}"), @r"`model.data.train_ds.prompt_template` is `\x4{output}`: the escape `\x` needs 2 hexadecimal digits of a character");
        insta::assert_snapshot!(error("{} {output}"), @"`model.data.train_ds.prompt_template` is `{} {output}`: it has a key without a name, `{}`");
        insta::assert_snapshot!(error(r"{output}\"), @r"`model.data.train_ds.prompt_template` is `{output}\`: it ends in the middle of an escape: write `\\` for a backslash");
    }
}
