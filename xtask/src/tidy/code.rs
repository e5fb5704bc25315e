//! Rust text without its comments and literals, line for line, so that the rules see code only.

/// Replaces comments and the inside of strings and characters by spaces; line ends stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let mut rest = text;
    let mut code = String::with_capacity(text.len());
    let mut previous = ' ';
    while let Some(first) = rest.chars().next() {
        let skipped_bytes = blanked_prefix_bytes(rest, previous);
        let (head, tail) = rest.split_at(if skipped_bytes > 0 { skipped_bytes } else { first.len_utf8() });
        if skipped_bytes > 0 {
            code.extend(head.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            previous = ' ';
        } else {
            code.push(first);
            previous = first;
        }
        rest = tail;
    }
    code
}

/// Length of the comment or literal that `text` starts with, 0 when it starts with code.
fn blanked_prefix_bytes(text: &str, previous: char) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment_bytes(text);
    }
    let in_word = previous.is_alphanumeric() || previous == '_';
    let after_prefix = text.trim_start_matches(['b', 'c', 'r']);
    let prefix_bytes = text.len() - after_prefix.len();
    if prefix_bytes <= 2 && !(in_word && prefix_bytes > 0) {
        if text[..prefix_bytes].contains('r') {
            return raw_string_bytes(after_prefix).map_or(0, |bytes| prefix_bytes + bytes);
        }
        if after_prefix.starts_with('"') {
            return prefix_bytes + quoted_bytes(after_prefix, '"');
        }
        if after_prefix.starts_with('\'') && is_char_literal(after_prefix) {
            return prefix_bytes + quoted_bytes(after_prefix, '\'');
        }
    }
    0
}

fn block_comment_bytes(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at_bytes = 0;
    while let Some(rest) = text.get(at_bytes..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at_bytes += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at_bytes += 2;
            if depth == 0 {
                return at_bytes;
            }
        } else {
            at_bytes += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// `text` starts with the hashes or the quote after the `r`.
fn raw_string_bytes(text: &str) -> Option<usize> {
    let hashes = text.len() - text.trim_start_matches('#').len();
    let body = text.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(body.find(&end).map_or(text.len(), |at_bytes| hashes + 1 + at_bytes + end.len()))
}

fn quoted_bytes(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at_bytes, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at_bytes + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Tells `'a'` from the lifetime `'a`.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        assert_eq!(code_only(text).split_whitespace().collect::<Vec<_>>().join(" "), expect, "{text}");
    }

    #[test]
    fn comments_and_literals_go_and_code_stays() {
        check("let a = 1; // todo!()\nb", "let a = 1; b");
        check("x /* a /* b */ c */ y", "x y");
        check(r##"f("a \" b", r#"c " d"#, b"e", 'g', '\'', b'\\') + h"##, "f( , , , , , ) + h");
        check(
            "fn f<'a>(x: &'a str, r: u8) -> &'a str { br(r) }",
            "fn f<'a>(x: &'a str, r: u8) -> &'a str { br(r) }",
        );
        check("for r in bar\"x\"", "for r in bar");
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "a /*\n\n*/ b \"c\nd\" // e\nf";
        assert_eq!(code_only(text).matches('\n').count(), text.matches('\n').count());
    }

    #[test]
    fn unfinished_text_ends() {
        for text in ["\"a", "/* a", "r#\"a\"", "'", "b", "'\\", "é\"é"] {
            assert_eq!(code_only(text).chars().count(), text.chars().count());
        }
    }
}
