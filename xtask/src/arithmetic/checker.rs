//! The program that checks answers: a line of JSON in, a line of JSON out (`docs/checks.md`).

use std::io::{BufRead, Write};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Deserialize)]
struct Question {
    id: String,
    response_clean: String,
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    answer: i64,
}

/// Answers until the input ends.
///
/// # Errors
/// When a line is no question, or nobody reads the answers.
pub(crate) fn check(questions: impl BufRead, mut answers: impl Write) -> Result<()> {
    for line in questions.lines() {
        let line = line.context("cannot read a question")?;
        let asked: Question =
            serde_json::from_str(&line).with_context(|| format!("this is no question: {line}"))?;
        let is_right = last_number(&asked.response_clean) == Some(asked.metadata.answer);
        let verdict = if is_right { "pass" } else { "fail" };
        let score = f64::from(u8::from(is_right));
        writeln!(answers, "{}", json!({"id": asked.id, "verdict": verdict, "score": score}))?;
        answers.flush()?;
    }
    Ok(())
}

/// The last whole number of a text: models like to repeat the question first.
fn last_number(text: &str) -> Option<i64> {
    let number = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_ascii_digit() && c != '-');
        word.parse().ok()
    };
    text.split_whitespace().rev().find_map(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_counts() {
        for (text, expect) in [
            ("12", Some(12)),
            ("The answer is **12**.", Some(12)),
            ("3 + 9 = 12", Some(12)),
            ("It is -4!", Some(-4)),
            ("12 apples", Some(12)),
            ("I don't know", None),
            ("", None),
        ] {
            assert_eq!(last_number(text), expect, "{text}");
        }
    }

    #[test]
    fn each_question_gets_a_line() {
        let asked = "{\"id\": \"0/1\", \"index\": 0, \"response_clean\": \"is 5.\", \"metadata\": {\"id\": 0, \"answer\": 5}}\n\
                     {\"id\": \"0/2\", \"response_clean\": \"6\", \"metadata\": {\"answer\": 5}}\n";
        let mut answers = Vec::new();
        check(asked.as_bytes(), &mut answers).unwrap();
        let answers = String::from_utf8(answers).unwrap();
        let answers: Vec<serde_json::Value> =
            answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expect = [
            json!({"id": "0/1", "verdict": "pass", "score": 1.0}),
            json!({"id": "0/2", "verdict": "fail", "score": 0.0}),
        ];
        assert_eq!(answers, expect);
        assert!(check("hello\n".as_bytes(), Vec::new()).is_err());
    }
}
