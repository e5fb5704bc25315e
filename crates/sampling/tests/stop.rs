//! Ends of responses, found token by token, against a search of the whole text at every token.

use proptest::prelude::*;
use sampling::{FinishReason, StopConditions, StopState};

const EOS: u32 = 0;
const TURN: u32 = 1;

/// Pieces over few letters, so that end strings come about often, with characters of two, three and four bytes whole and
/// in parts, an empty piece, and one that is longer than any end string.
fn piece(id: u32) -> Vec<u8> {
    let pieces: [&[u8]; 21] = [
        b"</s>",
        b"<turn>",
        b"a",
        b"b",
        b"ab",
        b"ba",
        b"aab",
        b"",
        b"\n",
        b"\n\n",
        "é".as_bytes(),
        b"\xc3",
        b"\xa9",
        "\u{65e5}".as_bytes(),
        b"\xe6\x97",
        b"\xa5",
        b"\xf0\x9f",
        b"\x98",
        b"\x80",
        b"<tu",
        b"abbabbabbabbabbabbabba",
    ];
    pieces.get(id as usize).map_or_else(|| b"rn>".to_vec(), |bytes| bytes.to_vec())
}

fn end_string() -> impl Strategy<Value = String> {
    let letters = prop_oneof![
        Just("a"),
        Just("b"),
        Just("\n"),
        Just("é"),
        Just("\u{65e5}"),
        Just("\u{1f600}"),
        Just("<turn>")
    ];
    prop::collection::vec(letters, 1..5).prop_map(|letters| letters.concat())
}

fn single_token(text: &str) -> Option<u32> {
    match text {
        "</s>" => Some(EOS),
        "<turn>" => Some(TURN),
        _ => None,
    }
}

/// Where the response ends and why, by looking at all of it after every token.
fn naive(
    end_strings: &[String],
    min_length: usize,
    max_new_tokens: usize,
    ids: &[u32],
) -> Option<(usize, FinishReason)> {
    (1..=ids.len()).find_map(|len| {
        let text: Vec<u8> = ids[..len].iter().flat_map(|&id| piece(id)).collect();
        let ended = |string: &String| match single_token(string) {
            Some(id) => ids[len - 1] == id,
            None => len >= min_length && text.ends_with(string.as_bytes()),
        };
        let reason = if ids[len - 1] == EOS {
            FinishReason::Eos
        } else if end_strings.iter().any(ended) {
            FinishReason::EndString
        } else if len >= max_new_tokens {
            FinishReason::Length
        } else {
            return None;
        };
        Some((len, reason))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn token_by_token_is_the_whole_text(
        end_strings in prop::collection::vec(end_string(), 0..4),
        ids in prop::collection::vec(0_u32..22, 1..60),
        min_length in 0_u32..6,
        max_new_tokens in 1_usize..70,
    ) {
        let conditions =
            StopConditions::resolve(&end_strings, &[EOS], single_token).unwrap().with_min_length(min_length);
        let mut state = StopState::new(max_new_tokens as u32);
        let found = ids.iter().enumerate().find_map(|(idx, &id)| {
            state.push(&conditions, id, &piece(id)).map(|reason| (idx + 1, reason))
        });
        prop_assert_eq!(found, naive(&end_strings, min_length as usize, max_new_tokens, &ids));
    }

    /// However a text is cut into tokens, it ends with the token that has the last byte of the first stop string.
    #[test]
    fn stop_strings_are_found_in_any_tokenisation(
        text in "[ab\u{e4}]{0,40}",
        stop_strings in prop::collection::vec("[ab\u{e4}]{1,4}", 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let text = text.as_bytes();
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        bounds.extend([0, text.len()]);
        bounds.sort_unstable();
        let conditions = StopConditions::default().with_stop_strings(&stop_strings).unwrap();
        let mut state = StopState::new(1000);
        let ended = bounds.windows(2).find(|bound| {
            state.push(&conditions, 7, &text[bound[0]..bound[1]]) == Some(FinishReason::EndString)
        });
        let whole = (1..=text.len()).find(|&end| stop_strings.iter().any(|stop| text[..end].ends_with(stop.as_bytes())));
        let expect = whole.and_then(|end| bounds.windows(2).find(|bound| bound[1] >= end));
        prop_assert_eq!(ended, expect);
    }

    /// However a text is cut into tokens, it ends at the same byte, as long as a token ends there too.
    #[test]
    fn any_tokenisation_ends_at_the_same_place(
        before in prop::collection::vec(prop_oneof![Just("a"), Just("é"), Just("\n")], 0..20),
        end_string in "[xyz\u{e4}\u{1f600}]{1,6}",
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let text = [before.concat().as_bytes(), end_string.as_bytes()].concat();
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len())).collect();
        bounds.extend([0, text.len()]);
        bounds.sort_unstable();
        let conditions = StopConditions::resolve(&[end_string], &[], |_| None).unwrap();
        let mut state = StopState::new(1000);
        for bound in bounds.windows(2) {
            let reason = state.push(&conditions, 7, &text[bound[0]..bound[1]]);
            let is_end = bound[1] == text.len();
            // An empty token after the end would find it again: a response has ended by then.
            prop_assert_eq!(reason, is_end.then_some(FinishReason::EndString));
            if is_end {
                break;
            }
        }
    }
}

#[test]
fn overlapping_strings_end_at_the_first_that_is_whole() {
    let check = |end_strings: &[&str], tokens: &[&str], expect: Option<usize>| {
        let end_strings: Vec<String> = end_strings.iter().map(|&string| string.to_owned()).collect();
        let conditions = StopConditions::resolve(&end_strings, &[], |_| None).unwrap();
        let mut state = StopState::new(100);
        let ended = tokens.iter().position(|token| state.push(&conditions, 7, token.as_bytes()).is_some());
        assert_eq!(ended, expect, "{end_strings:?} in {tokens:?}");
    };
    check(&["\n\n", "\n\nUser"], &["\n", "\n", "User"], Some(1));
    check(&["\n\nUser", "User"], &["\n", "\n", "Us", "er"], Some(3));
    check(&["abab"], &["aba", "ba", "b"], Some(2));
    check(&["aab"], &["a", "a", "a", "b"], Some(3));
    check(&["stop"], &["stops", "stop."], None);
    check(&["stop"], &["s", "t", "o", "p"], Some(3));
}
