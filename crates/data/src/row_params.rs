//! `model.data.train_ds.row_params`: columns of a record that set how its own prompt is answered.
//!
//! A column that is absent or null leaves the job's value. Data frames turn whole numbers beside nulls into floats, so
//! `64.0` is 64.

use crate::json::{Json, JsonObject};
use crate::record_error::RecordError;
use crate::shown::shown;

/// Most end strings of one row: a GPU's sampler has room for the tokens of so many.
pub const MAX_ROW_END_STRINGS: usize = 8;
/// Most tokens or responses that a row may ask for.
const MAX_COUNT: f64 = (1_u32 << 30) as f64;

/// The columns, in the order of the documentation.
const COLUMNS: [&str; 13] = [
    "max_length",
    "min_length",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "end_strings",
    "stop",
    "stop_strings",
    "seed",
    "num_responses",
    "structured_outputs",
];

/// What other programs call these parameters and others, and what only a job can set. Nobody's records have such columns
/// for another reason, and to leave one out would change texts in silence. Short names that records do have for other
/// reasons, such as `n` and `temp`, are not among them.
const OTHER_NAMES: [&str; 42] = [
    "add_bos",
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "bad_words_ids",
    "banned_tokens",
    "best_of",
    "compute_logprob",
    "do_sample",
    "end_string",
    "end_token_ids",
    "frequency_penalty",
    "greedy",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "length_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_new_tokens",
    "max_tokens",
    "min_new_tokens",
    "min_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "num_responses_to_gen",
    "num_return_sequences",
    "presence_penalty",
    "prompt_logprobs",
    "rep_penalty",
    "response_format",
    "skip_special_tokens",
    "stop_token_ids",
    "structured_output",
    "tokens_to_generate",
    "top_logprobs",
    "typical_p",
    "use_beam_search",
    "use_greedy",
];

/// What a row sets for itself; none of a field leaves the job's value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowParams {
    /// Most new tokens of a response, at least 1.
    pub max_length: Option<u32>,
    /// Fewest new tokens of a response.
    pub min_length: Option<u32>,
    /// Divides the logits; 0 is the most likely token always.
    pub temperature: Option<f64>,
    /// Keep this many most likely tokens; 0 is off.
    pub top_k: Option<u32>,
    /// Keep the fewest tokens of this probability, from 0 to 1; both are off.
    pub top_p: Option<f64>,
    /// Keep tokens at least this likely compared with the most likely one, from 0 (off) to 1.
    pub min_p: Option<f64>,
    /// Over prompt and generated tokens, above 0; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// At most [`MAX_ROW_END_STRINGS`], none of them empty.
    pub end_strings: Option<Vec<String>>,
    /// At most [`MAX_ROW_END_STRINGS`] that end a response as soon as they are whole, none of them empty.
    pub stop_strings: Option<Vec<String>>,
    /// Of the random draws.
    pub seed: Option<u64>,
    /// How many responses, at least 1.
    pub num_responses: Option<u32>,
    /// What the text of a response must be: the JSON of an object.
    pub structured_outputs: Option<String>,
}

impl RowParams {
    /// Reads the columns of a record.
    ///
    /// # Errors
    /// When a value is not what its column takes, or a column looks like a parameter and is none.
    pub fn of(record: &JsonObject) -> Result<Self, RecordError> {
        for (column, value) in record {
            if *value != Json::Null && !COLUMNS.contains(&column.as_str()) && looks_like_one(column) {
                let known = COLUMNS.map(|known| format!("`{known}`")).join(", ");
                return Err(RecordError::UnknownRowParam { column: column.clone(), known });
            }
        }
        let count = |column, least: u32| -> Result<Option<u32>, RecordError> {
            let expected =
                if least == 0 { "a whole number from 0 to 2^30" } else { "a whole number from 1 to 2^30" };
            let is_whole =
                |value: f64| value.fract() == 0.0 && (f64::from(least)..=MAX_COUNT).contains(&value);
            Ok(number(record, column, expected, is_whole)?.map(|value| value as u32))
        };
        let part =
            |column| number(record, column, "a number from 0 to 1", |value| (0.0..=1.0).contains(&value));
        let lengths = (count("min_length", 0)?, count("max_length", 1)?);
        if let (Some(least), Some(most)) = lengths
            && least > most
        {
            let found = format!("`{least}` and `max_length` is `{most}`");
            return Err(bad("min_length", "at most `max_length`", found));
        }
        let fits = |value: f64| (value as f32).is_normal() && value > 0.0;
        Ok(Self {
            max_length: lengths.1,
            min_length: lengths.0,
            temperature: number(record, "temperature", "0 (greedy) or a positive, finite number", |value| {
                value == 0.0 || fits(value)
            })?,
            top_k: count("top_k", 0)?,
            top_p: part("top_p")?,
            min_p: part("min_p")?,
            repetition_penalty: number(record, "repetition_penalty", "a positive, finite number", fits)?,
            end_strings: strings(record, "end_strings", OneString::IsRefused)?,
            stop_strings: stop_strings(record)?,
            seed: seed(record)?,
            num_responses: count("num_responses", 1)?,
            structured_outputs: structured_outputs(record)?,
        })
    }

    /// Whether the row is answered as the job says, but for how many tokens and responses there are.
    pub fn has_job_rules(&self) -> bool {
        let rest = Self { max_length: None, num_responses: None, ..self.clone() };
        rest == Self::default()
    }
}

/// Whether a column that is none of the known ones was meant to be one.
fn looks_like_one(column: &str) -> bool {
    let name = column.trim().to_lowercase().replace(['-', ' ', '.'], "_");
    let is_slip = |known: &&str| {
        // A short word is soon another one: `seed` and `speed`.
        let most_edits = match known.len() {
            0..6 => 0,
            6..12 => 1,
            _ => 2,
        };
        edits(&name, known) <= most_edits || name.replace('_', "") == known.replace('_', "")
    };
    OTHER_NAMES.contains(&name.as_str()) || COLUMNS.iter().any(is_slip)
}

/// How many letters must be put in, left out or changed to make one name of another.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn number(
    record: &JsonObject,
    column: &'static str,
    expected: &'static str,
    is_right: impl Fn(f64) -> bool,
) -> Result<Option<f64>, RecordError> {
    match record.get(column) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Number(text)) => match text.parse::<f64>() {
            Ok(value) if is_right(value) => Ok(Some(value)),
            _ => Err(bad(column, expected, shown("", text))),
        },
        Some(other) => Err(bad(column, expected, described(other))),
    }
}

/// A seed is not a float: beyond 2^53 neighbours would be the same.
fn seed(record: &JsonObject) -> Result<Option<u64>, RecordError> {
    const EXPECTED: &str = "a whole number from 0 to 2^63 - 1";
    let Some(Json::Number(text)) = record.get("seed") else {
        return Ok(number(record, "seed", EXPECTED, |_| false)?.map(|value| value as u64));
    };
    let whole = text.parse::<i64>().ok().and_then(|value| u64::try_from(value).ok());
    let float =
        || text.parse::<f64>().ok().filter(|value| value.fract() == 0.0 && (0.0..9e15).contains(value));
    match whole.or_else(|| float().map(|value| value as u64)) {
        Some(seed) => Ok(Some(seed)),
        None => Err(bad("seed", EXPECTED, shown("", text))),
    }
}

/// What a string in place of a list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OneString {
    /// A list of one, as other programs have it.
    IsList,
    IsRefused,
}

/// `stop` and `stop_strings` are two names of one parameter.
fn stop_strings(record: &JsonObject) -> Result<Option<Vec<String>>, RecordError> {
    let [stop, stop_strings] =
        ["stop", "stop_strings"].map(|column| strings(record, column, OneString::IsList));
    match (stop?, stop_strings?) {
        (Some(_), Some(_)) => {
            Err(bad("stop_strings", "absent where there is `stop`", "there beside it".to_owned()))
        }
        (stop, stop_strings) => Ok(stop.or(stop_strings)),
    }
}

fn strings(
    record: &JsonObject,
    column: &'static str,
    one: OneString,
) -> Result<Option<Vec<String>>, RecordError> {
    let expected = match one {
        OneString::IsList => "a string or a list of at most 8 strings, none of them empty",
        OneString::IsRefused => "a list of at most 8 strings that are not empty",
    };
    let refused = |found| Err(bad(column, expected, found));
    let items = match record.get(column) {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(text)) if one == OneString::IsList && !text.is_empty() => {
            return Ok(Some(vec![text.clone()]));
        }
        Some(Json::Array(items)) if items.len() <= MAX_ROW_END_STRINGS => items,
        Some(Json::Array(items)) => return refused(format!("a list of {}", items.len())),
        Some(other) => return refused(described(other)),
    };
    let mut strings = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Json::String(text) if !text.is_empty() => strings.push(text.clone()),
            other => return refused(format!("a list with {}", described(other))),
        }
    }
    Ok(Some(strings))
}

/// An object, or a string that holds one: tables have no columns for a schema.
fn structured_outputs(record: &JsonObject) -> Result<Option<String>, RecordError> {
    match record.get("structured_outputs") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(object @ Json::Object(_)) => Ok(Some(object.to_string())),
        Some(other) => {
            Err(bad("structured_outputs", "an object, or a string with its JSON", described(other)))
        }
    }
}

fn bad(column: &'static str, expected: &'static str, found: String) -> RecordError {
    RecordError::BadRowParam { column, expected, found }
}

fn described(value: &Json) -> String {
    match value {
        Json::String(text) if text.is_empty() => "an empty string".to_owned(),
        Json::String(text) => shown("the string ", text),
        Json::Bool(value) => format!("`{value}`"),
        other => other.kind().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::jsonl::parse_object;

    fn read(record: &str) -> Result<RowParams, String> {
        RowParams::of(&parse_object(record.as_bytes()).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn absent_and_null_leave_the_jobs_value() {
        assert_eq!(read(r#"{"a": 1, "temperature": null, "end_strings": null}"#), Ok(RowParams::default()));
        assert!(RowParams::default().has_job_rules());
    }

    #[test]
    fn columns_are_read() {
        let record = r#"{"max_length": 64.0, "min_length": 0, "temperature": 0, "top_k": 1e1, "top_p": 0.5, "min_p": 1,
            "repetition_penalty": 1.5, "end_strings": ["\n", "x"], "stop": "END", "seed": 9007199254740993, "num_responses": 2,
            "structured_outputs": {"regex": "a+"}}"#;
        let expect = RowParams {
            max_length: Some(64),
            min_length: Some(0),
            temperature: Some(0.0),
            top_k: Some(10),
            top_p: Some(0.5),
            min_p: Some(1.0),
            repetition_penalty: Some(1.5),
            end_strings: Some(vec!["\n".to_owned(), "x".to_owned()]),
            stop_strings: Some(vec!["END".to_owned()]),
            seed: Some(9_007_199_254_740_993),
            num_responses: Some(2),
            structured_outputs: Some(r#"{"regex": "a+"}"#.to_owned()),
        };
        assert_eq!(read(record), Ok(expect));
        let lengths = read(r#"{"max_length": 3, "num_responses": 2}"#).unwrap();
        assert!(lengths.has_job_rules() && !read(r#"{"seed": 3.0}"#).unwrap().has_job_rules());
    }

    #[test]
    fn wrong_values_are_named() {
        let refused = |record: &str| read(record).unwrap_err();
        insta::assert_snapshot!(refused(r#"{"temperature": "hot"}"#), @"column `temperature` is the string `hot`, it must be 0 (greedy) or a positive, finite number");
        insta::assert_snapshot!(refused(r#"{"temperature": -0.5}"#), @"column `temperature` is `-0.5`, it must be 0 (greedy) or a positive, finite number");
        insta::assert_snapshot!(refused(r#"{"temperature": NaN}"#), @"column `temperature` is `NaN`, it must be 0 (greedy) or a positive, finite number");
        insta::assert_snapshot!(refused(r#"{"max_length": 1.5}"#), @"column `max_length` is `1.5`, it must be a whole number from 1 to 2^30");
        insta::assert_snapshot!(refused(r#"{"num_responses": 0}"#), @"column `num_responses` is `0`, it must be a whole number from 1 to 2^30");
        insta::assert_snapshot!(refused(r#"{"top_k": -1}"#), @"column `top_k` is `-1`, it must be a whole number from 0 to 2^30");
        insta::assert_snapshot!(refused(r#"{"top_p": 1.1}"#), @"column `top_p` is `1.1`, it must be a number from 0 to 1");
        insta::assert_snapshot!(refused(r#"{"min_p": true}"#), @"column `min_p` is `true`, it must be a number from 0 to 1");
        insta::assert_snapshot!(refused(r#"{"repetition_penalty": 0}"#), @"column `repetition_penalty` is `0`, it must be a positive, finite number");
        insta::assert_snapshot!(refused(r#"{"seed": -3}"#), @"column `seed` is `-3`, it must be a whole number from 0 to 2^63 - 1");
        insta::assert_snapshot!(refused(r#"{"structured_outputs": ["a"]}"#), @"column `structured_outputs` is a list, it must be an object, or a string with its JSON");
        insta::assert_snapshot!(refused(r#"{"seed": "a"}"#), @"column `seed` is the string `a`, it must be a whole number from 0 to 2^63 - 1");
        insta::assert_snapshot!(refused(r#"{"end_strings": "x"}"#), @"column `end_strings` is the string `x`, it must be a list of at most 8 strings that are not empty");
        insta::assert_snapshot!(refused(r#"{"end_strings": ["x", ""]}"#), @"column `end_strings` is a list with an empty string, it must be a list of at most 8 strings that are not empty");
        insta::assert_snapshot!(refused(r#"{"end_strings": [1,2,3,4,5,6,7,8,9]}"#), @"column `end_strings` is a list of 9, it must be a list of at most 8 strings that are not empty");
    }

    #[test]
    fn stop_strings_have_two_names_and_a_string_is_a_list() {
        let of = |record: &str| read(record).map(|row| row.stop_strings.unwrap_or_default());
        assert_eq!(of(r#"{"stop": "a"}"#), Ok(vec!["a".to_owned()]));
        assert_eq!(
            of(r#"{"stop_strings": ["a", "b"], "stop": null}"#),
            Ok(vec!["a".to_owned(), "b".to_owned()])
        );
        insta::assert_snapshot!(of(r#"{"stop": "a", "stop_strings": ["a"]}"#).unwrap_err(), @"column `stop_strings` is there beside it, it must be absent where there is `stop`");
        insta::assert_snapshot!(of(r#"{"stop": [""]}"#).unwrap_err(), @"column `stop` is a list with an empty string, it must be a string or a list of at most 8 strings, none of them empty");
    }

    #[test]
    fn columns_that_look_like_parameters_are_refused() {
        insta::assert_snapshot!(read(r#"{"max_tokens": 5}"#).unwrap_err(), @"column `max_tokens` looks like a parameter of the row; those are `max_length`, `min_length`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `end_strings`, `stop`, `stop_strings`, `seed`, `num_responses`, `structured_outputs`: rename it, or set `model.data.train_ds.row_params=false`");
        for column in [
            "Temperature",
            "temprature",
            "topk",
            "top-p",
            "banned_tokens",
            "top_logprobs",
            "logprobs",
            "bad_words",
            "greedy",
            "add_BOS",
            "stop_string",
            "maxLength",
            "repetition_penality",
            "guided_json",
            "structured_output",
        ] {
            assert!(read(&format!(r#"{{"{column}": 1}}"#)).is_err(), "{column}");
        }
        for column in [
            "id",
            "system",
            "mask",
            "conversations",
            "input",
            "length",
            "score",
            "text",
            "speed",
            "need",
            "feed",
            "seen",
            "seek",
            "seeds",
            "n",
            "temp",
            "top_n",
            "step",
            "shop",
            "min",
            "max",
        ] {
            assert!(!looks_like_one(column), "{column}");
        }
        assert!(read(r#"{"max_tokens": null}"#).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_column_is_read_or_refused(column in 0_usize..COLUMNS.len(), text in "[-+0-9.eE]{1,6}|true|null|\"[a-z]{0,3}\"|\\[\"a\"\\]|\\{\\}") {
            if let Ok(object) = parse_object(format!("{{\"{}\": {text}}}", COLUMNS[column]).as_bytes()) {
                let _ = RowParams::of(&object);
            }
        }
    }
}
