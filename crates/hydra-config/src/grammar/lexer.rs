//! Tokens of a value, for both grammars: at each place the longest token wins, and of equally long ones the first in
//! the grammar's order.

/// Kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ParenOpen,
    ParenClose,
    Comma,
    BracketOpen,
    BracketClose,
    BraceOpen,
    BraceClose,
    Colon,
    Equal,
    Float,
    Int,
    Bool,
    Null,
    UnquotedChar,
    Id,
    Escape,
    Space,
    /// Hydra: a whole quoted string. OmegaConf: the quote that opens one.
    Quote,
    /// Hydra: `${…}` up to the first brace. OmegaConf: `${` and the space after it.
    Interpolation,
}

/// A token and its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
}

/// Whose grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Hydra,
    OmegaConf,
}

/// Characters of an unquoted value beside letters, digits and `_`.
const UNQUOTED: &str = "/-\\+.$%*@?|";
/// Characters that a backslash makes ordinary.
const ESCAPABLE: &str = "\\()[]{}:=, \t";

/// The token at the front of `rest`; `None` when no token begins so.
pub(crate) fn next(rest: &str, dialect: Dialect) -> Option<Token<'_>> {
    let token = |kind, len| rest.get(..len).map(|text| Token { kind, text });
    let space = space_len(rest);
    let first = rest[space..].chars().next();
    if let Some((kind, takes_space)) = first.and_then(|c| punctuation(c, dialect)) {
        let len = space + 1;
        let len = if takes_space { len + space_len(&rest[len..]) } else { len };
        return token(kind, len);
    }
    if space > 0 {
        return token(Kind::Space, space);
    }
    match first? {
        '[' => token(Kind::BracketOpen, 1 + space_len(&rest[1..])),
        '{' => token(Kind::BraceOpen, 1 + space_len(&rest[1..])),
        quote @ ('"' | '\'') => match dialect {
            Dialect::Hydra => quoted_len(rest, quote).and_then(|len| token(Kind::Quote, len)),
            Dialect::OmegaConf => token(Kind::Quote, 1),
        },
        '$' if rest.starts_with("${") => match dialect {
            Dialect::Hydra => match rest.find('}') {
                Some(end) if end > 2 => token(Kind::Interpolation, end + 1),
                _ => token(Kind::UnquotedChar, 1),
            },
            Dialect::OmegaConf => token(Kind::Interpolation, 2 + space_len(&rest[2..])),
        },
        _ => word(rest),
    }
}

/// Punctuation that takes the space before it, and whether it takes the space after it, too.
fn punctuation(c: char, dialect: Dialect) -> Option<(Kind, bool)> {
    let is_hydra = dialect == Dialect::Hydra;
    Some(match c {
        ',' => (Kind::Comma, true),
        ':' => (Kind::Colon, true),
        ']' => (Kind::BracketClose, false),
        '}' => (Kind::BraceClose, false),
        '(' if is_hydra => (Kind::ParenOpen, true),
        ')' if is_hydra => (Kind::ParenClose, false),
        '=' if is_hydra => (Kind::Equal, true),
        _ => return None,
    })
}

pub(crate) fn space_len(text: &str) -> usize {
    text.bytes().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// The length of a quoted string: it ends at a quote after an even number of backslashes.
fn quoted_len(rest: &str, quote: char) -> Option<usize> {
    let mut num_backslashes = 0;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && num_backslashes % 2 == 0 {
            return Some(at + 1);
        }
        num_backslashes = if c == '\\' { num_backslashes + 1 } else { 0 };
    }
    None
}

fn word(rest: &str) -> Option<Token<'_>> {
    let keyword = |word: &str| {
        rest.get(..word.len()).filter(|text| text.eq_ignore_ascii_case(word)).map_or(0, str::len)
    };
    let candidates = [
        (Kind::Float, float_len(rest)),
        (Kind::Int, int_len(rest)),
        (Kind::Bool, keyword("true").max(keyword("false"))),
        (Kind::Null, keyword("null")),
        (Kind::UnquotedChar, usize::from(rest.starts_with(|c| UNQUOTED.contains(c)))),
        (Kind::Id, id_len(rest)),
        (Kind::Escape, escape_len(rest)),
    ];
    let mut best = (Kind::Id, 0);
    for candidate in candidates {
        if candidate.1 > best.1 {
            best = candidate;
        }
    }
    let (kind, len) = best;
    (len > 0).then(|| Token { kind, text: &rest[..len] })
}

/// A letter or `_`, then letters, digits, `_` and `-`.
pub(crate) fn id_len(text: &str) -> usize {
    if !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return 0;
    }
    text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')).count()
}

fn escape_len(text: &str) -> usize {
    let mut len = 0;
    while let Some(pair) = text.get(len..len + 2)
        && pair.starts_with('\\')
        && pair.ends_with(|c| ESCAPABLE.contains(c))
    {
        len += 2;
    }
    len
}

fn sign_len(text: &str) -> usize {
    usize::from(text.starts_with(['+', '-']))
}

fn int_len(text: &str) -> usize {
    let sign = sign_len(text);
    match unsigned_len(&text[sign..]) {
        0 => 0,
        len => sign + len,
    }
}

/// `0`, or digits that do not begin with `0`, single underscores between them.
pub(crate) fn unsigned_len(text: &str) -> usize {
    if text.starts_with('0') { 1 } else { digits_len(text) }
}

fn digits_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut len = 0;
    loop {
        if is_digit(len) {
            len += 1;
        } else if len > 0 && bytes.get(len) == Some(&b'_') && is_digit(len + 1) {
            len += 2;
        } else {
            return len;
        }
    }
}

fn float_len(text: &str) -> usize {
    let sign = sign_len(text);
    let unsigned = &text[sign..];
    let is_word = |word: &str| unsigned.get(..3).is_some_and(|text| text.eq_ignore_ascii_case(word));
    if is_word("inf") || is_word("nan") {
        return sign + 3;
    }
    let whole = unsigned_len(unsigned);
    let point = if unsigned[whole..].starts_with('.') {
        let fraction = digits_len(&unsigned[whole + 1..]);
        if fraction > 0 || whole > 0 { whole + 1 + fraction } else { 0 }
    } else {
        0
    };
    let mantissa = point.max(whole);
    let rest = &unsigned[mantissa..];
    let exponent = if mantissa > 0 && rest.starts_with(['e', 'E']) {
        let sign = sign_len(&rest[1..]);
        match digits_len(&rest[1 + sign..]) {
            0 => 0,
            digits => mantissa + 1 + sign + digits,
        }
    } else {
        0
    };
    match exponent.max(point) {
        0 => 0,
        len => sign + len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str, dialect: Dialect) -> Option<Vec<(Kind, &str)>> {
        let mut rest = text;
        let mut tokens = Vec::new();
        while !rest.is_empty() {
            let token = next(rest, dialect)?;
            rest = &rest[token.text.len()..];
            tokens.push((token.kind, token.text));
        }
        Some(tokens)
    }

    #[test]
    fn the_longest_token_wins() {
        use Kind::*;
        for (text, expect) in [
            ("1.2.3", vec![(Float, "1.2"), (Float, ".3")]),
            ("012", vec![(Int, "0"), (Int, "12")]),
            ("1__0", vec![(Int, "1"), (Id, "__0")]),
            ("1e", vec![(Int, "1"), (Id, "e")]),
            ("1.e5", vec![(Float, "1.e5")]),
            ("nan-x", vec![(Id, "nan-x")]),
            ("-inf", vec![(Float, "-inf")]),
            ("true1", vec![(Id, "true1")]),
            ("a , b", vec![(Id, "a"), (Comma, " , "), (Id, "b")]),
            ("a [", vec![(Id, "a"), (Space, " "), (BracketOpen, "[")]),
            ("\\\\\\,", vec![(Escape, "\\\\\\,")]),
            ("'a\\'b'", vec![(Quote, "'a\\'b'")]),
            ("${a:${b}}", vec![(Interpolation, "${a:${b}"), (BraceClose, "}")]),
        ] {
            assert_eq!(kinds(text, Dialect::Hydra), Some(expect), "{text}");
        }
        assert_eq!(kinds("<", Dialect::Hydra), None);
        assert_eq!(kinds("(", Dialect::OmegaConf), None);
        assert_eq!(kinds("${ a", Dialect::OmegaConf), Some(vec![(Interpolation, "${ "), (Id, "a")]));
    }
}
