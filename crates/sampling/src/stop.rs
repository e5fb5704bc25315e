//! When a response ends: end tokens, end strings, length.
//!
//! Differences from NeMo's `text_generation_strategy.py`: strings are matched on the bytes of the response
//! alone, never across the prompt, with special tokens kept; a bare string or an empty one is refused.
//!
//! NeMo's end strings are one rule, the stop strings of other programs (`stop` of vLLM and OpenAI, `stop_strings` of
//! transformers) another: those end a response with the token that makes them whole, whatever it adds behind them.

use crate::SamplingError;

const END_STRINGS_KEY: &str = "end_strings";
const STOP_STRINGS_KEY: &str = "stop_strings";

/// The alias of EOS that every list of end strings may hold.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token, or `<|endoftext|>`.
    Eos,
    /// One of the user's end strings.
    EndString,
    /// The response's token budget is spent.
    Length,
    /// It could not go on: no token may be next.
    Error,
}

impl FinishReason {
    /// The name in the output file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::EndString => "end_string",
            Self::Length => "length",
            Self::Error => "error",
        }
    }
}

/// The bytes that each token adds to a text.
pub trait TokenBytes {
    /// The bytes of token `id`; none for an id outside the vocabulary.
    fn bytes(&self, id: u32) -> &[u8];
}

/// `end_strings` as the user typed them.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(untagged, expecting = "a list of strings")]
pub enum RawEndStrings {
    /// Not a list: refused, because NeMo takes it as a list of its characters.
    Bare(String),
    /// A list.
    List(Vec<String>),
}

impl TryFrom<RawEndStrings> for Vec<String> {
    type Error = SamplingError;

    fn try_from(raw: RawEndStrings) -> Result<Self, SamplingError> {
        match raw {
            RawEndStrings::List(end_strings) => Ok(end_strings),
            RawEndStrings::Bare(string) => Err(SamplingError::BadParam {
                key: END_STRINGS_KEY,
                expected: "a list of strings",
                actual: format!("the string `{string}`, write `[\"{string}\"]`"),
            }),
        }
    }
}

/// What ends a response: of a run, or of a request that has its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct StopConditions {
    eos_token_ids: Vec<u32>,
    end_token_ids: Vec<u32>,
    end_strings: Vec<Vec<u8>>,
    /// Found wherever they are whole, not at the end of a token only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stop_strings: Vec<Vec<u8>>,
    min_length: u32,
}

impl StopConditions {
    /// `eos_token_ids` end every response, whoever names them: the tokenizer, a generation configuration or a chat
    /// template. Sorts `end_strings` into those that are one token and those that are matched as text. `single_token`
    /// answers with the id of a string that the tokenizer encodes as one token in the middle of a text.
    ///
    /// # Errors
    /// When an end string is empty: it would end every response at once.
    pub fn resolve(
        end_strings: &[String],
        eos_token_ids: &[u32],
        single_token: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, SamplingError> {
        let mut conditions = Self::default();
        conditions.eos_token_ids.extend(eos_token_ids);
        for end_string in end_strings {
            match single_token(end_string) {
                _ if end_string.is_empty() => {
                    return Err(SamplingError::BadParam {
                        key: END_STRINGS_KEY,
                        expected: "a list of strings that are not empty",
                        actual: format!("{end_strings:?}"),
                    });
                }
                Some(id) if end_string == END_OF_TEXT => conditions.eos_token_ids.push(id),
                Some(id) => conditions.end_token_ids.push(id),
                None => conditions.end_strings.push(end_string.clone().into_bytes()),
            }
        }
        // An end string that spells EOS is EOS.
        conditions.end_token_ids.retain(|id| !conditions.eos_token_ids.contains(id));
        conditions.end_token_ids.splice(0..0, conditions.eos_token_ids.iter().copied());
        conditions.end_token_ids.sort_unstable();
        conditions.end_token_ids.dedup();
        Ok(conditions)
    }

    /// Strings that end a response as soon as they are whole, wherever token borders fall.
    ///
    /// # Errors
    /// When one of them is empty: it would end every response at once.
    pub fn with_stop_strings(mut self, stop_strings: &[String]) -> Result<Self, SamplingError> {
        if stop_strings.iter().any(String::is_empty) {
            return Err(SamplingError::BadParam {
                key: STOP_STRINGS_KEY,
                expected: "a list of strings that are not empty",
                actual: format!("{stop_strings:?}"),
            });
        }
        self.stop_strings = stop_strings.iter().map(|text| text.clone().into_bytes()).collect();
        Ok(self)
    }

    /// No end string or stop string ends a response before it has `min_length` tokens. End tokens are the sampler's to hold
    /// back.
    #[must_use]
    pub fn with_min_length(mut self, min_length: u32) -> Self {
        self.min_length = min_length;
        self
    }

    /// Every token that ends a response, EOS among them, in ascending order.
    pub fn end_token_ids(&self) -> &[u32] {
        &self.end_token_ids
    }

    /// End strings of more than one token, matched as the end of the response's bytes.
    pub fn end_strings(&self) -> &[Vec<u8>] {
        &self.end_strings
    }

    fn longest_string_bytes(&self) -> usize {
        self.end_strings.iter().chain(&self.stop_strings).map(Vec::len).max().unwrap_or(0)
    }
}

/// Where the first of these strings begins that the last `num_new` bytes of a text make whole: of strings that end at the
/// same byte the longest.
pub fn first_whole<'a>(
    text: &[u8],
    num_new: usize,
    strings: impl Iterator<Item = &'a [u8]>,
) -> Option<usize> {
    let old = text.len().saturating_sub(num_new);
    let places = strings.filter(|string| !string.is_empty()).filter_map(|string| {
        // What was whole before has been looked at.
        let from = (old + 1).saturating_sub(string.len());
        let at = text.get(from..)?.windows(string.len()).position(|window| window == string)?;
        Some((from + at + string.len(), from + at))
    });
    places.min().map(|(_, begin)| begin)
}

/// How far one response has come.
#[derive(Clone, Debug)]
pub struct StopState {
    max_new_tokens: u32,
    num_generated: u32,
    /// The last bytes of the response, as many as the longest end string has.
    tail: Vec<u8>,
}

impl StopState {
    /// A response without tokens yet, of at most `max_new_tokens`.
    pub fn new(max_new_tokens: u32) -> Self {
        Self { max_new_tokens, num_generated: 0, tail: Vec::new() }
    }

    /// Tokens so far.
    pub fn num_generated(&self) -> u32 {
        self.num_generated
    }

    /// Takes the next token and says whether the response ends with it.
    pub fn push(
        &mut self,
        conditions: &StopConditions,
        token: u32,
        token_bytes: &[u8],
    ) -> Option<FinishReason> {
        self.num_generated += 1;
        let longest = conditions.longest_string_bytes();
        let mut is_stopped = false;
        if longest > 0 {
            self.tail.extend_from_slice(token_bytes);
            let stop_strings = conditions.stop_strings.iter().map(Vec::as_slice);
            is_stopped = first_whole(&self.tail, token_bytes.len(), stop_strings).is_some();
            self.tail.drain(..self.tail.len().saturating_sub(longest));
        }
        if conditions.eos_token_ids.contains(&token) {
            return Some(FinishReason::Eos);
        }
        let may_end_by_string = self.num_generated >= conditions.min_length;
        if conditions.end_token_ids.contains(&token)
            || (may_end_by_string
                && (is_stopped || conditions.end_strings.iter().any(|string| self.tail.ends_with(string))))
        {
            return Some(FinishReason::EndString);
        }
        (self.num_generated >= self.max_new_tokens).then_some(FinishReason::Length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOS: u32 = 0;
    const TURN: u32 = 1;

    fn conditions(end_strings: &[&str]) -> StopConditions {
        let end_strings: Vec<String> = end_strings.iter().map(|&string| string.to_owned()).collect();
        StopConditions::resolve(&end_strings, &[EOS], |string| match string {
            "</s>" => Some(EOS),
            "<turn>" => Some(TURN),
            "<|endoftext|>" => Some(2),
            _ => None,
        })
        .unwrap()
    }

    /// Pushes `(token, bytes)` pairs and expects the end at the last one.
    fn check(conditions: &StopConditions, tokens: &[(u32, &str)], expect: FinishReason) {
        let mut state = StopState::new(8);
        for (idx, (token, bytes)) in tokens.iter().enumerate() {
            let is_last = idx + 1 == tokens.len();
            let reason = state.push(conditions, *token, bytes.as_bytes());
            assert_eq!(reason, is_last.then_some(expect), "after token {idx}");
        }
    }

    #[test]
    fn strings_are_sorted_into_tokens_and_text() {
        let conditions = conditions(&["<turn>", "<|endoftext|>", "\n\nUser:", "</s>"]);
        assert_eq!(conditions.end_token_ids(), [EOS, TURN, 2]);
        assert_eq!(conditions.end_strings(), [b"\n\nUser:".to_vec()]);
    }

    #[test]
    fn tokens_end_a_response() {
        let conditions = conditions(&["<turn>", "<|endoftext|>", "</s>"]);
        check(&conditions, &[(7, "a"), (EOS, "")], FinishReason::Eos);
        check(&conditions, &[(2, "<|endoftext|>")], FinishReason::Eos);
        check(&conditions, &[(7, "a"), (TURN, "<turn>")], FinishReason::EndString);
    }

    #[test]
    fn a_single_token_string_spelled_by_other_tokens_does_not_end() {
        let conditions = conditions(&["<turn>"]);
        assert_eq!(StopState::new(8).push(&conditions, 9, b"<turn>"), None);
    }

    #[test]
    fn strings_end_a_response_across_tokens_but_only_at_its_end() {
        let conditions = conditions(&["END", "\u{1F600}!"]);
        check(&conditions, &[(7, "xE"), (8, "N"), (9, "D")], FinishReason::EndString);
        check(&conditions, &[(7, "ENDx"), (8, "E"), (8, "END")], FinishReason::EndString);
        let mut state = StopState::new(8);
        let emoji = "\u{1F600}".as_bytes();
        assert_eq!(state.push(&conditions, 7, &emoji[..2]), None);
        assert_eq!(state.push(&conditions, 7, &emoji[2..]), None);
        assert_eq!(state.push(&conditions, 7, b"!"), Some(FinishReason::EndString));
    }

    #[test]
    fn stop_strings_end_a_response_wherever_they_are_whole() {
        let check = |stop: &[&str], tokens: &[&str], expect: Option<usize>| {
            let stop: Vec<String> = stop.iter().map(|&text| text.to_owned()).collect();
            let conditions = StopConditions::resolve(&[], &[EOS], |_| Some(7)).unwrap();
            let conditions = conditions.with_stop_strings(&stop).unwrap().with_min_length(1);
            assert_eq!(conditions.end_token_ids(), [EOS]);
            let mut state = StopState::new(100);
            let ended = tokens.iter().position(|token| {
                let reason = state.push(&conditions, 7, token.as_bytes());
                assert!(matches!(reason, None | Some(FinishReason::EndString)));
                reason.is_some()
            });
            assert_eq!(ended, expect, "{stop:?} in {tokens:?}");
        };
        check(&["three"], &[" are", " three", " ideas"], Some(1));
        check(&["re"], &["He", "re is", "re"], Some(1));
        check(&[" are thr"], &[" are", " three"], Some(1));
        check(&["\n"], &["a:", "\n\n", "1."], Some(1));
        check(&["long", "o"], &["l", "ab", "xoxx"], Some(2));
        check(&["é"], &["\u{e8}", "\u{e9}"], Some(1));
        check(&["abc"], &["ab", "d", "abc"], Some(2));
        check(&["none"], &["no", "n", ""], None);
    }

    #[test]
    fn a_stop_string_before_the_least_length_is_passed_over() {
        let conditions = StopConditions::default().with_stop_strings(&["ab".to_owned()]).unwrap();
        check(
            &conditions.with_min_length(3),
            &[(7, "abx"), (7, "y"), (7, "z"), (7, "xaby")],
            FinishReason::EndString,
        );
        let error = StopConditions::default().with_stop_strings(&[String::new()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"`stop_strings` must be a list of strings that are not empty, got [""]"#
        );
    }

    #[test]
    fn of_several_strings_the_first_that_is_whole_counts() {
        let check = |text: &str, num_new, strings: &[&str], expect: Option<usize>| {
            let found = first_whole(text.as_bytes(), num_new, strings.iter().map(|text| text.as_bytes()));
            assert_eq!(found, expect, "{text} {strings:?}");
        };
        check("xxabcd", 4, &["cd", "ab", "xab"], Some(1));
        check("abab", 1, &["ab"], Some(2));
        check("abab", 0, &["ab"], None);
        check("ab", 9, &["ab", ""], Some(0));
    }

    #[test]
    fn the_state_stays_as_small_as_the_longest_string() {
        let conditions = conditions(&["four", "eight to"]);
        let mut state = StopState::new(u32::MAX);
        for _ in 0..100_000 {
            assert_eq!(state.push(&conditions, 7, b"abc"), None);
            assert!(state.tail.len() <= 8);
        }
        assert!(state.tail.capacity() <= 32, "{}", state.tail.capacity());
    }

    #[test]
    fn length_ends_a_response_and_loses_to_the_others() {
        let conditions = conditions(&["<turn>"]);
        let mut state = StopState::new(2);
        assert_eq!(state.push(&conditions, 7, b"a"), None);
        assert_eq!(state.clone().push(&conditions, TURN, b"<turn>"), Some(FinishReason::EndString));
        assert_eq!(state.push(&conditions, 7, b"a"), Some(FinishReason::Length));
    }

    #[test]
    fn min_length_holds_back_strings() {
        let conditions = conditions(&["ab"]).with_min_length(2);
        check(&conditions, &[(7, "ab"), (7, "c"), (7, "ab")], FinishReason::EndString);
        check(&conditions, &[(7, "a"), (7, "b")], FinishReason::EndString);
    }

    #[test]
    fn bad_lists_are_refused() {
        let check = |error: SamplingError, expect: &str| assert_eq!(error.to_string(), expect);
        check(
            StopConditions::resolve(&["a".to_owned(), String::new()], &[], |_| None).unwrap_err(),
            r#"`end_strings` must be a list of strings that are not empty, got ["a", ""]"#,
        );
        check(
            Vec::try_from(RawEndStrings::Bare("<turn>".to_owned())).unwrap_err(),
            r#"`end_strings` must be a list of strings, got the string `<turn>`, write `["<turn>"]`"#,
        );
    }
}
