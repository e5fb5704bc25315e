//! What a program that checks responses reads and says: a line of JSON for a response, and one for its verdict.

use serde::{Deserialize, Serialize};

use super::CleanResponse;
use super::python_json::ObjectWriter;
use data::JsonObject;
use sampling::FinishReason;

/// What a program says of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    /// It passes, and no response to its prompt with a higher number is wanted.
    PassAndStop,
    /// It does not pass, and none is wanted either.
    FailAndStop,
    /// No other is wanted. Of this one nothing is said, so it does not pass.
    Stop,
}

impl Verdict {
    fn passes(self) -> bool {
        matches!(self, Self::Pass | Self::PassAndStop)
    }

    /// Whether responses to the prompt with a higher number are not wanted.
    pub(crate) fn stops(self) -> bool {
        matches!(self, Self::PassAndStop | Self::FailAndStop | Self::Stop)
    }
}

/// What is known of a response; nothing where none was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Checked {
    pub(crate) verdict: Option<Verdict>,
    pub(crate) score: Option<f64>,
}

impl Checked {
    pub(crate) fn is_passed(&self) -> bool {
        self.verdict.is_some_and(Verdict::passes)
    }

    /// Whether the responses behind it were left out.
    pub(crate) fn stops(&self) -> bool {
        self.verdict.is_some_and(Verdict::stops)
    }
}

/// A response as a program is asked for it.
pub(crate) struct Question<'a> {
    pub(crate) id: &'a str,
    /// Line number in the input file, from 0.
    pub(crate) index: u64,
    pub(crate) response_idx: u32,
    pub(crate) prompt: &'a str,
    pub(crate) response: &'a str,
    pub(crate) clean: &'a CleanResponse,
    pub(crate) finish_reason: FinishReason,
    pub(crate) metadata: &'a JsonObject,
}

impl Question<'_> {
    /// The line, with its newline.
    pub(crate) fn to_line(&self) -> serde_json::Result<Vec<u8>> {
        let mut out = Vec::new();
        let Self { id, index, response_idx, prompt, response, clean, finish_reason, metadata } = self;
        let mut line = ObjectWriter::begin(&mut out);
        line.entry("id", id)?;
        line.entry("index", index)?;
        line.entry("response_index", response_idx)?;
        line.entry("prompt", prompt)?;
        line.entry("response", response)?;
        line.entry("response_clean", &clean.answer)?;
        line.entry("thinking", &clean.thinking)?;
        line.entry("finish_reason", finish_reason)?;
        line.object("metadata", metadata);
        line.end();
        out.push(b'\n');
        Ok(out)
    }
}

/// What a program says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) id: String,
    pub(crate) verdict: Verdict,
    #[serde(default)]
    pub(crate) score: Option<f64>,
}

impl Answer {
    /// # Errors
    /// What is wrong with the line.
    pub(crate) fn read(line: &str) -> Result<Self, String> {
        // serde takes a list for an object, too.
        if line.trim_start().starts_with('[') {
            return Err("it is a list, and must be an object".to_owned());
        }
        let answer: Self = serde_json::from_str(line).map_err(|error| error.to_string())?;
        // A number beyond the range is read as infinite.
        match answer.score {
            Some(score) if !score.is_finite() => Err("`score` is too large for a number".to_owned()),
            _ => Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_lines_with_the_metadata_as_they_were_read() {
        let metadata = data::parse_object(br#"{"answer": 1.50, "tags": ["\u00e4"]}"#).unwrap();
        let question = Question {
            id: "3/1",
            index: 7,
            response_idx: 1,
            prompt: "What?\n",
            response: "4<extra_id_1>",
            clean: &CleanResponse { answer: "4".to_owned(), thinking: None },
            finish_reason: FinishReason::EndString,
            metadata: &metadata,
        };
        insta::assert_snapshot!(String::from_utf8(question.to_line().unwrap()).unwrap(), @r#"{"id": "3/1", "index": 7, "response_index": 1, "prompt": "What?\n", "response": "4<extra_id_1>", "response_clean": "4", "thinking": null, "finish_reason": "end_string", "metadata": {"answer": 1.50, "tags": ["ä"]}}"#);
    }

    #[test]
    fn a_stop_is_no_pass() {
        use Verdict::{Fail, FailAndStop, Pass, PassAndStop, Stop};
        let said = |verdict| {
            let checked = Checked { verdict: Some(verdict), score: None };
            (checked.is_passed(), checked.stops())
        };
        let all = [Pass, Fail, PassAndStop, FailAndStop, Stop].map(said);
        assert_eq!(all, [(true, false), (false, false), (true, true), (false, true), (false, true)]);
        assert_eq!((Checked::default().is_passed(), Checked::default().stops()), (false, false));
    }

    #[test]
    fn answers_are_read_strictly() {
        let good = Answer { id: "3/1".to_owned(), verdict: Verdict::Stop, score: Some(0.25) };
        assert_eq!(Answer::read(r#"{"id": "3/1", "verdict": "stop", "score": 0.25}"#), Ok(good.clone()));
        for (name, verdict) in
            [("pass_and_stop", Verdict::PassAndStop), ("fail_and_stop", Verdict::FailAndStop)]
        {
            let line = format!(r#"{{"id": "3/1", "verdict": "{name}", "score": 0.25}}"#);
            assert_eq!(Answer::read(&line), Ok(Answer { verdict, ..good.clone() }));
        }
        let without = Answer { verdict: Verdict::Fail, score: None, ..good };
        assert_eq!(Answer::read(r#" {"verdict": "fail", "id": "3/1"} "#), Ok(without.clone()));
        assert_eq!(Answer::read(r#"{"id": "3/1", "verdict": "fail", "score": null}"#), Ok(without));
        let bad = [
            "",
            "yes",
            "[]",
            r#"{"id": "3/1"}"#,
            r#"{"id": 3, "verdict": "pass"}"#,
            r#"{"id": "3/1", "verdict": "passed"}"#,
            r#"{"id": "3/1", "verdict": "pass", "scroe": 1}"#,
            r#"{"id": "3/1", "verdict": "pass", "score": NaN}"#,
            r#"{"id": "3/1", "verdict": "pass", "score": 1e999}"#,
            r#"{"id": "3/1", "verdict": "pass"} {}"#,
        ];
        let said: Vec<String> = bad.iter().map(|line| Answer::read(line).unwrap_err()).collect();
        insta::assert_snapshot!(said.join("\n"));
    }
}
