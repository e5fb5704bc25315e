//! SentencePiece's text normalisation: character map, whitespace rules, dummy prefix.
//!
//! Follows `normalizer.cc` of sentencepiece 0.2. The character map is a darts double-array trie over bytes; the
//! longest match wins, and user-defined symbols are matched before it and pass unchanged.

use super::SPACE_SYMBOL;
use super::proto::NormalizerSpec;
use crate::tokenizer::trie::Trie;

/// The compiled character map: a double-array trie whose values are offsets into NUL-terminated replacements.
#[derive(Debug, Default)]
struct CharsMap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl CharsMap {
    fn from_bytes(blob: &[u8]) -> Result<Self, String> {
        if blob.is_empty() {
            return Ok(Self::default());
        }
        let short = || format!("the character map of {} bytes is cut off", blob.len());
        let (size, rest) = blob.split_first_chunk::<4>().ok_or_else(short)?;
        let (units, replacements) =
            rest.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or_else(short)?;
        let units = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        if std::str::from_utf8(replacements).is_err() {
            return Err("the character map is not UTF-8".into());
        }
        Ok(Self { units, replacements: replacements.to_vec() })
    }

    /// The replacement of the longest mapped prefix, and that prefix's length in bytes.
    fn longest_match(&self, text: &[u8]) -> Option<(&str, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut position = offset(*self.units.first()?);
        let mut best = None;
        for (depth, &byte) in text.iter().enumerate() {
            position ^= usize::from(byte);
            let Some(&unit) = self.units.get(position) else { break };
            if unit & ((1 << 31) | 0xff) != u32::from(byte) {
                break;
            }
            position ^= offset(unit);
            if (unit >> 8) & 1 == 1 {
                let value = self.units.get(position)? & 0x7fff_ffff;
                best = Some((value as usize, depth + 1));
            }
        }
        let (start, len) = best?;
        let tail = self.replacements.get(start..)?;
        let end = tail.iter().position(|&byte| byte == 0)?;
        Some((std::str::from_utf8(&tail[..end]).ok()?, len))
    }
}

/// Text to the text that is segmented.
#[derive(Debug)]
pub(crate) struct Normalizer {
    charsmap: CharsMap,
    pub(crate) add_dummy_prefix: bool,
    pub(crate) remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
    treat_whitespace_as_suffix: bool,
}

impl Normalizer {
    pub(crate) fn new(
        spec: &NormalizerSpec,
        treat_whitespace_as_suffix: Option<bool>,
    ) -> Result<Self, String> {
        Ok(Self {
            charsmap: CharsMap::from_bytes(spec.precompiled_charsmap.as_deref().unwrap_or_default())?,
            add_dummy_prefix: spec.add_dummy_prefix.unwrap_or(true),
            remove_extra_whitespaces: spec.remove_extra_whitespaces.unwrap_or(true),
            escape_whitespaces: spec.escape_whitespaces.unwrap_or(true),
            treat_whitespace_as_suffix: treat_whitespace_as_suffix.unwrap_or(false),
        })
    }

    pub(crate) fn normalize(&self, text: &str, user_symbols: &Trie) -> String {
        self.normalize_as(text, user_symbols, self.add_dummy_prefix)
    }

    /// The same with no space added.
    pub(crate) fn normalize_continued(&self, text: &str, user_symbols: &Trie) -> String {
        self.normalize_as(text, user_symbols, false)
    }

    fn normalize_as(&self, text: &str, user_symbols: &Trie, adds_space: bool) -> String {
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while !rest.is_empty() {
                let (replacement, len) = self.normalize_prefix(rest, user_symbols);
                if replacement != " " {
                    break;
                }
                rest = &rest[len..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let space = if self.escape_whitespaces { SPACE_SYMBOL } else { " " };
        let mut normalized = String::with_capacity(rest.len() + rest.len() / 2 + space.len());
        if adds_space && !self.treat_whitespace_as_suffix {
            normalized.push_str(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (mut replacement, len) = self.normalize_prefix(rest, user_symbols);
            if after_space {
                replacement = replacement.trim_start_matches(' ');
            }
            for c in replacement.chars() {
                if c == ' ' { normalized.push_str(space) } else { normalized.push(c) }
            }
            if !replacement.is_empty() {
                after_space = self.remove_extra_whitespaces && replacement.ends_with(' ');
            }
            rest = &rest[len..];
        }
        if self.remove_extra_whitespaces {
            let kept_bytes = normalized.trim_end_matches(space).len();
            normalized.truncate(kept_bytes);
        }
        if adds_space && self.treat_whitespace_as_suffix {
            normalized.push_str(space);
        }
        normalized
    }

    /// What the start of `text` becomes, and how many bytes of it are used. `text` is not empty.
    fn normalize_prefix<'a>(&'a self, text: &'a str, user_symbols: &Trie) -> (&'a str, usize) {
        if let Some(len) = user_symbols.longest_prefix(text.as_bytes()) {
            return (&text[..len], len);
        }
        // A damaged map could end inside a character, where the text must not be cut.
        if let Some((replacement, len)) = self.charsmap.longest_match(text.as_bytes())
            && text.is_char_boundary(len)
        {
            return (replacement, len);
        }
        let len = text.chars().next().map_or(0, char::len_utf8);
        (&text[..len], len)
    }
}
