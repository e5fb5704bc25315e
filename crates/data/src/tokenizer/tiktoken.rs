//! NeMo's `tiktoken` library: a byte-pair vocabulary in JSON, its own split pattern, and 1,000 special ids in front.
//!
//! Follows `tiktoken_tokenizer.py` of NeMo v2.0.0 and tiktoken's encoder. Special tokens in a text are ordinary text, as
//! there, unless a chat template wrote it; decoding keeps their names, where NeMo leaves them out.

use std::cmp::Reverse;

use serde::Deserialize;
use tokenizers::utils::SysRegex;

use super::hash::VocabMap;
use super::merge::{Span, merge};
use super::special_text::split;
use super::trie::Trie;
use super::{SpecialTokens, SpecialTokensSpec, Tokenizer, TokenizerSpec};
use crate::DataError;

/// Ids before the vocabulary's own.
const NUM_SPECIAL: usize = 1000;
/// All ids: NeMo cuts a longer vocabulary off.
const MAX_IDS: usize = 1 << 17;
const UNK: &str = "<unk>";
const BOS: &str = "<s>";
const EOS: &str = "</s>";
const SPLIT_PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// A tokenizer of NeMo's `tiktoken` library.
pub struct TiktokenTokenizer {
    // By rank.
    tokens: Vec<Vec<u8>>,
    ranks: VocabMap<Vec<u8>, u32>,
    splitter: SysRegex,
    special_names: Vec<String>,
    special: SpecialTokens,
}

#[derive(Deserialize)]
struct Entry<'a> {
    rank: u64,
    #[serde(borrow)]
    token_bytes: std::borrow::Cow<'a, str>,
}

impl TiktokenTokenizer {
    /// Reads a vocabulary: a JSON list of `rank`, `token_bytes` in base64, and `token_str`.
    ///
    /// # Errors
    /// When the list is damaged or not in the order of the ranks, or the special tokens lack one that is needed.
    pub fn from_json(reference: &str, json: &[u8], spec: &TokenizerSpec) -> Result<Self, DataError> {
        let damaged = |reason| DataError::BadTokenizerFile { reference: reference.into(), reason };
        let entries: Vec<Entry<'_>> = serde_json::from_slice(json)
            .map_err(|error| damaged(format!("not a list of ranks and bytes ({error})")))?;
        let mut tokens = Vec::with_capacity(entries.len().min(MAX_IDS));
        let mut ranks = VocabMap::with_capacity_and_hasher(tokens.capacity(), Default::default());
        for (rank, entry) in (0u32..).zip(entries.into_iter().take(MAX_IDS - NUM_SPECIAL)) {
            if entry.rank != u64::from(rank) {
                return Err(damaged(format!("entry {rank} has rank {}, ranks must count up", entry.rank)));
            }
            let bytes = base64(&entry.token_bytes)
                .ok_or_else(|| damaged(format!("the bytes of entry {rank} are not base64")))?;
            if rank < 256 && bytes != [rank as u8] {
                return Err(damaged(format!("entry {rank} must be the byte {rank}")));
            }
            if bytes.is_empty() || ranks.insert(bytes.clone(), rank).is_some() {
                return Err(damaged(format!("entry {rank} is empty or there twice")));
            }
            tokens.push(bytes);
        }
        if tokens.len() < 256 {
            return Err(damaged(format!("it has {} entries, the 256 bytes come first", tokens.len())));
        }
        let splitter = SysRegex::new(SPLIT_PATTERN).map_err(|error| damaged(error.to_string()))?;
        let (special_names, special) = special_tokens(spec)?;
        Ok(Self { tokens, ranks, splitter, special_names, special })
    }

    fn push_piece(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let id_of = |rank: u32| rank + NUM_SPECIAL as u32;
        if let Some(&rank) = self.ranks.get(piece) {
            ids.push(id_of(rank));
            return;
        }
        let spans = (0..piece.len()).map(|at| Span { range: at..at + 1, frozen: false });
        let ranges = merge(spans, |range, _| self.ranks.get(&piece[range]).copied().map(Reverse));
        ids.extend(
            ranges.into_iter().filter_map(|range| self.ranks.get(&piece[range])).map(|&rank| id_of(rank)),
        );
    }
}

impl Tokenizer for TiktokenTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = Vec::new();
        let mut end_of_last = 0;
        for (start, end) in self.splitter.find_iter(text) {
            self.push_piece(&text.as_bytes()[end_of_last..start], &mut ids);
            self.push_piece(&text.as_bytes()[start..end], &mut ids);
            end_of_last = end;
        }
        self.push_piece(&text.as_bytes()[end_of_last..], &mut ids);
        Ok(ids)
    }

    fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let finder = Trie::new((0..).zip(&self.special_names).map(|(id, name)| (name.as_str(), id)));
        let mut ids = Vec::new();
        for part in split(text, &finder) {
            match part.token {
                Some(id) => ids.push(id),
                None => ids.extend(self.encode(part.text)?),
            }
        }
        Ok(ids)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        let bytes = ids.iter().map(|&id| self.token_bytes(id)).collect::<Result<Vec<_>, _>>()?;
        Ok(String::from_utf8_lossy(&bytes.concat()).into_owned())
    }

    fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
        let idx = id as usize;
        let found = match self.special_names.get(idx) {
            Some(name) => Some(name.as_bytes()),
            None => self.tokens.get(idx - NUM_SPECIAL).map(Vec::as_slice),
        };
        let unknown = || DataError::UnknownTokenId { id, vocab_size: self.vocab_size() };
        found.map(<[u8]>::to_vec).ok_or_else(unknown)
    }

    fn vocab_size(&self) -> usize {
        NUM_SPECIAL + self.tokens.len()
    }

    fn is_special(&self, id: u32) -> bool {
        (id as usize) < NUM_SPECIAL
    }

    fn special(&self) -> &SpecialTokens {
        &self.special
    }
}

/// The names of the leading ids, padded to a thousand, and the special ids.
fn special_tokens(spec: &TokenizerSpec) -> Result<(Vec<String>, SpecialTokens), DataError> {
    let mut names: Vec<String> = match &spec.special_tokens {
        Some(SpecialTokensSpec::List(names)) if !names.is_empty() => names.clone(),
        _ => [UNK, BOS, EOS].map(str::to_owned).to_vec(),
    };
    let bad = |reason| DataError::BadTokenizerSetting { key: "special_tokens", reason };
    if names.len() > NUM_SPECIAL {
        return Err(bad(format!("it has {} tokens, at most {NUM_SPECIAL} have room", names.len())));
    }
    names.extend((names.len()..NUM_SPECIAL).map(|id| format!("<SPECIAL_{id}>")));
    let id_of = |token: &str| {
        let found = names.iter().position(|name| name == token).map(|id| id as u32);
        found.map(Some).ok_or_else(|| bad(format!("`{token}` must be one of them")))
    };
    let special = SpecialTokens { bos: id_of(BOS)?, eos: id_of(EOS)?, pad: None, unk: id_of(UNK)? };
    Ok((names, special))
}

/// Standard base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut num_bits) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn entry(rank: usize, base64: &str) -> Value {
        json!({"rank": rank, "token_bytes": base64, "token_str": null})
    }

    fn encode64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digits = bytes.chunks(3).flat_map(|chunk| {
            let bits = chunk.iter().fold(0u32, |bits, &byte| (bits << 8) | u32::from(byte))
                << (8 * (3 - chunk.len()));
            (0..4).map(move |i| match i <= chunk.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]),
                false => '=',
            })
        });
        digits.collect()
    }

    fn bytes_first() -> Vec<Value> {
        (0..256).map(|rank| entry(rank, &encode64(&[rank as u8]))).collect()
    }

    fn open(vocab: &[Value], spec: &TokenizerSpec) -> Result<TiktokenTokenizer, DataError> {
        TiktokenTokenizer::from_json("nemo:v.json", json!(vocab).to_string().as_bytes(), spec)
    }

    #[test]
    fn the_lowest_rank_is_merged_first() {
        let mut vocab = bytes_first();
        for (nth, text) in ["bc", "ab", "abcd", "xy"].into_iter().enumerate() {
            vocab.push(entry(256 + nth, &encode64(text.as_bytes())));
        }
        let tokenizer = open(&vocab, &TokenizerSpec::default()).unwrap();
        let byte = |byte: u8| 1000 + u32::from(byte);
        assert_eq!(tokenizer.encode("abc").unwrap(), [byte(b'a'), 1256]);
        // A whole piece that is a token needs no way of merging to it.
        assert_eq!(tokenizer.encode("abcd").unwrap(), [1258]);
        assert_eq!(tokenizer.encode("</s>").unwrap().len(), 4);
        assert_eq!(
            tokenizer.decode(&[0, 1, 2, 3, 999, 1256]).unwrap(),
            "<unk><s></s><SPECIAL_3><SPECIAL_999>bc"
        );
        assert_eq!((tokenizer.vocab_size(), tokenizer.special().eos), (1260, Some(2)));
        let error = tokenizer.decode(&[1260]).unwrap_err();
        insta::assert_snapshot!(error, @"token id 1260 is not in the tokenizer's vocabulary of 1260");
    }

    #[test]
    fn damaged_vocabularies_say_what_is_wrong() {
        let error = |vocab: &[Value]| open(vocab, &TokenizerSpec::default()).err().unwrap();
        insta::assert_snapshot!(error(&bytes_first()[..7]), @"tokenizer file `nemo:v.json` is damaged: it has 7 entries, the 256 bytes come first");
        insta::assert_snapshot!(error(&bytes_first()[1..]), @"tokenizer file `nemo:v.json` is damaged: entry 0 has rank 1, ranks must count up");
        insta::assert_snapshot!(error(&[entry(0, "AQ==")]), @"tokenizer file `nemo:v.json` is damaged: entry 0 must be the byte 0");
        insta::assert_snapshot!(error(&[entry(0, "A*==")]), @"tokenizer file `nemo:v.json` is damaged: the bytes of entry 0 are not base64");
        insta::assert_snapshot!(error(&[json!({"rank": 0})]), @"tokenizer file `nemo:v.json` is damaged: not a list of ranks and bytes (missing field `token_bytes` at line 1 column 11)");
        let twice = [bytes_first(), vec![entry(256, "YWI="), entry(257, "YWI=")]].concat();
        insta::assert_snapshot!(error(&twice), @"tokenizer file `nemo:v.json` is damaged: entry 257 is empty or there twice");
        let spec = TokenizerSpec {
            special_tokens: Some(SpecialTokensSpec::List(vec!["<unk>".into(), "<s>".into()])),
            ..TokenizerSpec::default()
        };
        insta::assert_snapshot!(open(&bytes_first(), &spec).err().unwrap(), @"tokenizer key `special_tokens`: `</s>` must be one of them");
    }

    proptest! {
        #[test]
        fn base64_is_read_back(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(base64(&encode64(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_survives(text in "\\PC{0,30}|[ \\n\\ta-z']{0,40}") {
            let tokenizer = open(&bytes_first(), &TokenizerSpec::default()).unwrap();
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
        }
    }
}
