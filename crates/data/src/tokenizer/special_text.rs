//! Texts in which special tokens are spelled out, cut at them.

use super::trie::Trie;

/// A part of a text: a special token, or what stands between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    pub(crate) text: &'a str,
    /// The id of a special token.
    pub(crate) token: Option<u32>,
}

/// Cuts `text` at the tokens of `finder`, from left to right; of several at one place the longest counts.
pub(crate) fn split<'a>(text: &'a str, finder: &Trie) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(c) = text[at..].chars().next() {
        let Some((len, id)) = finder.prefixes(&text.as_bytes()[at..]).last() else {
            at += c.len_utf8();
            continue;
        };
        parts.push(Part { text: &text[start..at], token: None });
        parts.push(Part { text: &text[at..at + len], token: Some(id) });
        at += len;
        start = at;
    }
    parts.push(Part { text: &text[start..], token: None });
    parts.retain(|part| !part.text.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_token_is_cut_out() {
        let finder = Trie::new([("<s>", 1), ("<s>>", 2)].into_iter());
        let parts: Vec<_> = split("<s>é<s>>", &finder).iter().map(|part| (part.text, part.token)).collect();
        assert_eq!(parts, [("<s>", Some(1)), ("é", None), ("<s>>", Some(2))]);
        assert!(split("", &finder).is_empty());
    }
}
