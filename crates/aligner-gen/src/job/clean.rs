//! Responses as people read them: without special tokens, turn markers and end strings, with what the model thought apart.

use std::ops::Range;

use data::InputOfSample;
use sampling::{FinishReason, TokenBytes, first_whole};

use crate::config::plan::GenerationPlan;
use crate::config::records::RecordFormat;
use crate::model::checkpoint::{OpenTokenizer, TokenTable};
use crate::output::CleanResponse;

/// How chat templates mark what a model thinks before it answers: what stands before it and behind it.
const THOUGHT_MARKS: [(&str, &str); 4] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
];

/// What makes raw responses clean.
pub(crate) struct Cleaner {
    /// Whether a token is left out, by id.
    left_out: Vec<bool>,
    end_strings: Vec<String>,
    /// Of NeMo's chat records: where another turn would begin, and how one ends.
    turn_start: String,
    end_of_turn: String,
    marks: Option<(&'static str, &'static str)>,
}

impl Cleaner {
    pub(crate) fn new(plan: &GenerationPlan, opened: &OpenTokenizer) -> Self {
        let tokenizer = opened.tokenizer.as_ref();
        let num_tokens = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let (turn_start, end_of_turn) = match &plan.records {
            RecordFormat::Chat(tokens) => (tokens.turn_start.clone(), tokens.end_of_turn.clone()),
            RecordFormat::PromptResponse { .. } => (String::new(), String::new()),
        };
        let templates = opened.spec.chat_templates();
        let is_marked = |mark: &str| templates.iter().any(|(_, source)| source.contains(mark));
        Self {
            left_out: (0..num_tokens).map(|id| tokenizer.is_left_out(id)).collect(),
            end_strings: plan.end_strings.clone(),
            turn_start,
            end_of_turn,
            marks: THOUGHT_MARKS.into_iter().find(|(open, close)| is_marked(open) || is_marked(close)),
        }
    }

    /// Takes nothing away.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        let [turn_start, end_of_turn] = [String::new(), String::new()];
        Self { left_out: Vec::new(), end_strings: Vec::new(), turn_start, end_of_turn, marks: None }
    }

    /// The answer of a response and what the model thought before it. `input`: what its row
    /// set for itself.
    pub(crate) fn clean(
        &self,
        tokens: &TokenTable,
        prompt: &str,
        (token_ids, finish_reason): (&[u32], FinishReason),
        input: &InputOfSample,
    ) -> CleanResponse {
        let raw = RawResponse::new(tokens, token_ids);
        let end = self.end_of(&raw, finish_reason, input);
        let Some((open, close)) = self.marks else {
            return CleanResponse { answer: self.text(&raw, 0..end), thinking: None };
        };
        let begins = raw.find(open, 0..end).filter(|&at| raw.is_blank(0..at)).map(|at| at + open.len());
        // Many templates write the mark into the prompt.
        let is_open = begins.is_some() || prompt.trim_end().ends_with(open);
        let start = begins.unwrap_or(0);
        if !is_open {
            // An answer may speak of the mark.
            return CleanResponse { answer: self.text(&raw, 0..end), thinking: None };
        }
        match raw.find(close, start..end) {
            Some(at) => CleanResponse {
                answer: self.text(&raw, at + close.len()..end).trim().to_owned(),
                thinking: Some(self.text(&raw, start..at).trim().to_owned()),
            },
            // The response ended while the model thought.
            None => CleanResponse {
                answer: String::new(),
                thinking: Some(self.text(&raw, start..end).trim().to_owned()),
            },
        }
    }

    /// Where the turn ends in the bytes: before what ended the response, and before the header of another turn.
    fn end_of(&self, raw: &RawResponse<'_>, finish_reason: FinishReason, input: &InputOfSample) -> usize {
        // Stop strings of a row stand in place of the job's end strings.
        let end_strings = match (&input.end_strings, &input.stop_strings) {
            (Some(own), _) => own.as_slice(),
            (None, Some(_)) => &[],
            (None, None) => &self.end_strings,
        };
        let stop_strings = input.stop_strings.iter().flatten();
        let mut end = raw.bytes.len();
        let last = raw.starts.last().copied().unwrap_or(0);
        match finish_reason {
            FinishReason::Length | FinishReason::Error => {}
            FinishReason::Eos => end = last,
            FinishReason::EndString => {
                let matched = end_strings.iter().filter(|text| raw.bytes.ends_with(text.as_bytes()));
                let matched = matched.map(|text| end - text.len()).min();
                let stopped = first_whole(&raw.bytes, end - last, stop_strings.map(|text| text.as_bytes()));
                // A token that is no text of its own ends a response too.
                end = [stopped, matched].into_iter().flatten().min().unwrap_or(last);
            }
        }
        if let Some(at) = raw.find(&self.turn_start, 0..end).filter(|_| !self.turn_start.is_empty()) {
            end = at;
        }
        let has_end_of_turn =
            !self.end_of_turn.is_empty() && raw.bytes[..end].ends_with(self.end_of_turn.as_bytes());
        if has_end_of_turn { end - self.end_of_turn.len() } else { end }
    }

    /// The text of some bytes without the tokens that are left out.
    fn text(&self, raw: &RawResponse<'_>, range: Range<usize>) -> String {
        let mut bytes = Vec::with_capacity(range.len());
        for (idx, &id) in raw.token_ids.iter().enumerate() {
            let start = raw.starts[idx].max(range.start);
            let end = raw.starts.get(idx + 1).copied().unwrap_or(raw.bytes.len()).min(range.end);
            if start < end && !self.left_out.get(id as usize).copied().unwrap_or(false) {
                bytes.extend_from_slice(&raw.bytes[start..end]);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A response as bytes, with the first byte of each token.
struct RawResponse<'a> {
    token_ids: &'a [u32],
    starts: Vec<usize>,
    bytes: Vec<u8>,
}

impl<'a> RawResponse<'a> {
    fn new(tokens: &TokenTable, token_ids: &'a [u32]) -> Self {
        let mut bytes = Vec::new();
        let starts = token_ids
            .iter()
            .map(|&id| {
                let start = bytes.len();
                bytes.extend_from_slice(tokens.bytes(id));
                start
            })
            .collect();
        Self { token_ids, starts, bytes }
    }

    fn find(&self, text: &str, range: Range<usize>) -> Option<usize> {
        let start = range.start;
        let bytes = self.bytes.get(range)?;
        (!text.is_empty())
            .then(|| bytes.windows(text.len()).position(|window| window == text.as_bytes()))?
            .map(|at| start + at)
    }

    fn is_blank(&self, range: Range<usize>) -> bool {
        self.bytes[range].iter().all(u8::is_ascii_whitespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each text is a token; those in angle brackets are special, but for `<tool>`.
    fn check(texts: &[&str], reason: FinishReason, prompt: &str, expect: (&str, Option<&str>)) {
        let tokens = TokenTable::of(texts);
        let left_out = texts.iter().map(|text| text.starts_with('<') && *text != "<tool>").collect();
        let cleaner = Cleaner {
            left_out,
            end_strings: vec!["<t>".to_owned(), "END".to_owned()],
            turn_start: "<t>".to_owned(),
            end_of_turn: "\n".to_owned(),
            marks: Some(THOUGHT_MARKS[0]),
        };
        let ids: Vec<u32> = (0..texts.len() as u32).collect();
        let clean = cleaner.clean(&tokens, prompt, (&ids, reason), &InputOfSample::default());
        assert_eq!((clean.answer.as_str(), clean.thinking.as_deref()), expect, "{texts:?}");
    }

    #[test]
    fn what_ends_a_turn_is_left_out() {
        use FinishReason::{EndString, Eos, Length};
        check(&["an", "swer", "\n", "<t>"], EndString, "", ("answer", None));
        check(&["an", "swer", "E", "ND"], EndString, "", ("answer", None));
        check(&["an", "swer", "</s>"], Eos, "", ("answer", None));
        check(&["an", "END", "swer"], Length, "", ("anENDswer", None));
        check(&["<x>", "an", "<tool>", "swer", "<y>"], Length, "", ("an<tool>swer", None));
        // It went on with another turn.
        check(&["answer", "\n", "<t>", "User", "more"], Length, "", ("answer", None));
        check(&[], Length, "", ("", None));
        // A token without a text of its own ends it.
        check(&["answer", ""], EndString, "", ("answer", None));
    }

    #[test]
    fn what_a_stop_string_begins_is_left_out() {
        let check = |texts: &[&str], stop: &[&str], expect: &str| {
            let tokens = TokenTable::of(texts);
            let ids: Vec<u32> = (0..texts.len() as u32).collect();
            let stop_strings = Some(stop.iter().map(|&text| text.to_owned()).collect());
            let input = InputOfSample { stop_strings, ..InputOfSample::default() };
            let raw = (ids.as_slice(), FinishReason::EndString);
            assert_eq!(Cleaner::plain().clean(&tokens, "", raw, &input).answer, expect, "{texts:?}");
        };
        check(&["Here", " are", " three"], &["re thr"], "Here a");
        check(&["a", ".\n\n", "b\n"], &["\n"], "a.\n\nb");
        check(&["xxSTOPyyEND"], &["END", "STOP"], "xx");
        // What came before the least length stays.
        check(&["STOP", "more", "STOP!"], &["STOP"], "STOPmore");
    }

    #[test]
    fn thoughts_stand_apart() {
        use FinishReason::{Eos, Length};
        check(&["<think>", "\nhm", "\n</think>", "\n\n", "yes", "</s>"], Eos, "", ("yes", Some("hm")));
        check(&["hm", "</think>", "yes"], Length, "…<think>\n", ("yes", Some("hm")));
        check(&["<think>", "hm", "</thi", "nk>", "yes"], Length, "", ("yes", Some("hm")));
        // It was not open.
        check(&["Write </think>", " at its end"], Length, "", ("Write </think> at its end", None));
        check(&["<think>", "hm"], Length, "", ("", Some("hm")));
        check(&["hm"], Length, "…<think>\n", ("", Some("hm")));
        check(&["yes"], Length, "", ("yes", None));
        check(&["see ", "<think>", "yes"], Length, "", ("see yes", None));
    }
}
