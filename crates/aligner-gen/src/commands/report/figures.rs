//! The numbers of a report, from lines of results. Pure.

use std::collections::{BTreeMap, HashMap};

use data::{Json, JsonObject};

use crate::job::select::PassTotals;
use crate::metrics::SeriesPoint;
use crate::output::pass_at_k_of;
use crate::table::{human_bytes, thousands, two_columns};

/// One line of results, as far as a report shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) prompt: String,
    pub(super) responses: Vec<Response>,
    pub(super) error: Option<String>,
    /// What a program said of each response.
    pub(super) verdicts: Vec<String>,
    /// By `k`.
    pub(super) pass_at_k: BTreeMap<u32, Option<f64>>,
}

/// One response.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Response {
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) num_tokens: Option<usize>,
    /// Mean log-probability of its tokens.
    pub(super) mean_logprob: Option<f64>,
}

impl Sample {
    /// Reads a line.
    ///
    /// # Errors
    /// What it lacks.
    pub(super) fn read(mut line: JsonObject) -> Result<Self, String> {
        if line.contains_key("custom_id") {
            return Ok(Self::of_batch(&line));
        }
        let texts = match line.shift_remove("responses") {
            Some(Json::Array(texts)) => texts,
            Some(other) => return Err(format!("`responses` is {other}")),
            None => return Err("it has no `responses`".to_owned()),
        };
        let of_responses = |key: &str| match line.get(key) {
            Some(Json::Array(items)) => items.as_slice(),
            _ => &[],
        };
        let (reasons, ids, logprobs) =
            (of_responses("finish_reasons"), of_responses("token_ids"), of_responses("logprobs"));
        let response = |(idx, text): (usize, Json)| {
            let Json::String(text) = text else { return Err(format!("`responses[{idx}]` is {text}")) };
            let num_tokens = match ids.get(idx) {
                Some(Json::Array(ids)) => Some(ids.len()),
                _ => None,
            };
            Ok(Response {
                text,
                finish_reason: match reasons.get(idx) {
                    Some(Json::String(reason)) => Some(reason.clone()),
                    _ => None,
                },
                num_tokens,
                mean_logprob: logprobs.get(idx).and_then(mean),
            })
        };
        let responses = texts.into_iter().enumerate().map(response).collect::<Result<_, _>>()?;
        let text_of = |key: &str| match line.get(key) {
            Some(Json::String(text)) => Some(text.clone()),
            _ => None,
        };
        let text = |item: &Json| if let Json::String(text) = item { Some(text.clone()) } else { None };
        Ok(Self {
            prompt: text_of("prompt").unwrap_or_default(),
            responses,
            error: text_of("error"),
            verdicts: of_responses("verdicts").iter().filter_map(text).collect(),
            // A key of the records may be called so.
            pass_at_k: pass_at_k_of(&line).unwrap_or_default(),
        })
    }
}

impl Sample {
    /// A line of OpenAI's batch format: the prompt is not in it, and the request's name stands in its place.
    fn of_batch(line: &JsonObject) -> Self {
        let text = |value: Option<&Json>| match value {
            Some(Json::String(text)) => Some(text.clone()),
            _ => None,
        };
        let object = |value: Option<&Json>, key: &str| match value {
            Some(Json::Object(object)) => object.get(key).cloned(),
            _ => None,
        };
        let body = object(line.get("response"), "body");
        let choices = match object(body.as_ref(), "choices") {
            Some(Json::Array(choices)) => choices,
            _ => Vec::new(),
        };
        let response = |choice: &Json| Response {
            text: text(object(object(Some(choice), "message").as_ref(), "content").as_ref())
                .unwrap_or_default(),
            finish_reason: text(object(Some(choice), "finish_reason").as_ref()),
            ..Response::default()
        };
        Self {
            prompt: text(line.get("custom_id")).unwrap_or_default(),
            responses: choices.iter().map(response).collect(),
            error: text(object(line.get("error"), "message").as_ref()),
            ..Self::default()
        }
    }
}

/// The mean of a list of numbers that is not empty.
fn mean(list: &Json) -> Option<f64> {
    let Json::Array(items) = list else { return None };
    let numbers = items.iter().map(|item| match item {
        Json::Number(text) => text.parse::<f64>().ok(),
        _ => None,
    });
    let numbers = numbers.collect::<Option<Vec<f64>>>().filter(|numbers| !numbers.is_empty())?;
    Some(numbers.iter().sum::<f64>() / numbers.len() as f64)
}

/// What all lines together say.
pub(super) struct Figures {
    pub(super) num_samples: u64,
    pub(super) num_errors: u64,
    pub(super) num_responses: u64,
    /// Of each response in tokens, where the lines have `token_ids`.
    pub(super) num_tokens: Vec<f64>,
    /// Of each response in characters.
    pub(super) num_chars: Vec<f64>,
    /// Mean log-probability of each response, where the lines have `logprobs`.
    pub(super) logprobs: Vec<f64>,
    /// How many responses ended for which reason, where the lines say so; in the order in which they came.
    pub(super) finish_reasons: Vec<(String, u64)>,
    /// The same for what a program said of them.
    verdicts: Vec<(String, u64)>,
    pass_at_k: PassTotals,
    /// Responses of a sample that an earlier one of the same sample is equal to.
    pub(super) num_repeated_in_sample: u64,
    /// Responses that are looked at for that.
    num_compared: u64,
    /// These responses, by a hash of their text.
    texts: HashMap<[u8; 32], (u64, String)>,
    /// Samples to look at: every `stride`-th.
    pub(super) samples: Vec<(u64, Sample)>,
    most_samples: usize,
    stride: u64,
}

/// Characters of a repeated text that are kept to be shown.
const SHOWN_CHARS: usize = 200;

impl Figures {
    /// Keeps up to `most_samples` samples, evenly spaced.
    pub(super) fn new(most_samples: usize) -> Self {
        Self {
            num_samples: 0,
            num_errors: 0,
            num_responses: 0,
            num_tokens: Vec::new(),
            num_chars: Vec::new(),
            logprobs: Vec::new(),
            finish_reasons: Vec::new(),
            verdicts: Vec::new(),
            pass_at_k: PassTotals::default(),
            num_repeated_in_sample: 0,
            num_compared: 0,
            texts: HashMap::new(),
            samples: Vec::new(),
            most_samples,
            stride: 1,
        }
    }

    /// Adds a line.
    pub(super) fn add(&mut self, sample: Sample) {
        let idx = self.num_samples;
        self.num_samples += 1;
        self.num_errors += u64::from(sample.error.is_some());
        sample.verdicts.iter().for_each(|verdict| count_in(&mut self.verdicts, verdict));
        self.pass_at_k.add(&sample.pass_at_k);
        let mut own = Vec::with_capacity(sample.responses.len());
        for response in &sample.responses {
            self.num_responses += 1;
            self.num_chars.push(response.text.chars().count() as f64);
            self.num_tokens.extend(response.num_tokens.map(|num_tokens| num_tokens as f64));
            self.logprobs.extend(response.mean_logprob);
            if let Some(reason) = &response.finish_reason {
                count_in(&mut self.finish_reasons, reason);
            }
            // One that failed before its first token repeats nothing.
            if response.text.is_empty() && response.finish_reason.as_deref() == Some("error") {
                continue;
            }
            self.num_compared += 1;
            let hash = *blake3::hash(response.text.as_bytes()).as_bytes();
            self.num_repeated_in_sample += u64::from(own.contains(&hash));
            own.push(hash);
            let shown = || response.text.chars().take(SHOWN_CHARS).collect();
            self.texts.entry(hash).or_insert_with(|| (0, shown())).0 += 1;
        }
        if self.most_samples > 0 && idx.is_multiple_of(self.stride) {
            self.samples.push((idx, sample));
            if self.samples.len() > self.most_samples {
                self.stride *= 2;
                self.samples.retain(|(idx, _)| idx.is_multiple_of(self.stride));
            }
        }
    }

    /// Responses that are equal to an earlier one of any sample.
    pub(super) fn num_repeated(&self) -> u64 {
        self.num_compared - self.texts.len() as u64
    }

    /// The texts that stand there most often, more than once.
    pub(super) fn most_repeated(&self, most: usize) -> Vec<(u64, &str)> {
        let mut repeated: Vec<(u64, &str)> = self
            .texts
            .values()
            .filter(|(count, _)| *count > 1)
            .map(|(count, text)| (*count, text.as_str()))
            .collect();
        repeated.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        repeated.truncate(most);
        repeated
    }

    /// The numbers as a table.
    pub(super) fn table(&self, series: &[SeriesPoint]) -> String {
        two_columns(&self.rows(series))
    }

    /// The rows of the table.
    pub(super) fn rows(&self, series: &[SeriesPoint]) -> Vec<(&'static str, String)> {
        let mut rows =
            vec![("samples", thousands(self.num_samples)), ("responses", thousands(self.num_responses))];
        if self.num_errors > 0 {
            rows.push(("rows with an error", thousands(self.num_errors)));
        }
        if let Some(spread) = Spread::of(&self.num_tokens) {
            rows.push(("tokens a response", spread.line(0)));
        }
        if let Some(spread) = Spread::of(&self.num_chars) {
            rows.push(("characters a response", spread.line(0)));
        }
        for (name, counts) in [("ended by", &self.finish_reasons), ("verdicts", &self.verdicts)] {
            if !counts.is_empty() {
                let share = |count: u64| 100.0 * count as f64 / self.num_responses.max(1) as f64;
                let text = |(of, count): &(String, u64)| {
                    format!("{of} {} ({:.1} %)", thousands(*count), share(*count))
                };
                rows.push((name, counts.iter().map(text).collect::<Vec<_>>().join(", ")));
            }
        }
        if let Some(text) = self.pass_at_k.text() {
            rows.push(("pass@k", text));
        }
        if let Some(spread) = Spread::of(&self.logprobs) {
            rows.push(("mean log-probability", spread.line(3)));
        }
        let repeated = format!(
            "{} equal to an earlier one, {} to one of their own sample",
            thousands(self.num_repeated()),
            thousands(self.num_repeated_in_sample)
        );
        rows.push(("repeated responses", repeated));
        if let Some(spread) =
            Spread::of(&series.iter().map(|point| point.tokens_per_second).collect::<Vec<_>>())
        {
            rows.push(("output tokens a second", spread.line(1)));
        }
        if let Some(peak) = series.iter().map(|point| point.resident_bytes).max_by(f64::total_cmp) {
            rows.push(("peak memory", human_bytes(peak as u64)));
        }
        rows
    }
}

/// Counts in one more of a kind.
fn count_in(counts: &mut Vec<(String, u64)>, kind: &str) {
    match counts.iter_mut().find(|(known, _)| known == kind) {
        Some((_, count)) => *count += 1,
        None => counts.push((kind.to_owned(), 1)),
    }
}

/// How numbers are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) mean: f64,
    pub(super) least: f64,
    pub(super) median: f64,
    /// As large as nine of ten.
    pub(super) ninth: f64,
    pub(super) most: f64,
}

impl Spread {
    /// None of no numbers.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| sorted.get(((sorted.len() - 1) as f64 * part).round() as usize).copied();
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self { mean, least, median: at(0.5)?, ninth: at(0.9)?, most })
    }

    fn line(self, num_decimals: usize) -> String {
        let Self { mean, least, median, ninth, most } = self;
        let text = |value: f64| format!("{value:.num_decimals$}");
        format!(
            "mean {:.2}, from {} to {}, median {}, nine of ten up to {}",
            mean,
            text(least),
            text(most),
            text(median),
            text(ninth)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(line: &str) -> Sample {
        Sample::read(data::parse_object(line.as_bytes()).unwrap()).unwrap()
    }

    fn figures(most_samples: usize) -> Figures {
        let mut figures = Figures::new(most_samples);
        figures.add(sample(r#"{"step": 1, "prompt": "p", "responses": ["ab", "ab"], "finish_reasons": ["eos", "length"], "token_ids": [[1, 2], [1, 2]], "logprobs": [[-1.0, -0.5], [-1.0, -0.5]]}"#));
        figures.add(sample(r#"{"step": 1, "prompt": "q", "responses": ["ab", "ünï"], "finish_reasons": ["eos", "eos"], "token_ids": [[1, 2], [3]], "logprobs": [[-1.0, -0.5], [null]]}"#));
        figures.add(sample(r#"{"step": 2, "prompt": null, "responses": [], "error": "key `x` is missing"}"#));
        figures
    }

    #[test]
    fn the_table_has_what_the_lines_say() {
        let series = [
            SeriesPoint {
                at_seconds: 1.0,
                consumed_samples: 2.0,
                tokens_per_second: 10.0,
                resident_bytes: 5e6,
            },
            SeriesPoint {
                at_seconds: 3.0,
                consumed_samples: 3.0,
                tokens_per_second: 20.0,
                resident_bytes: 7e6,
            },
        ];
        insta::assert_snapshot!(figures(9).table(&series), @"
        samples                 3
        responses               4
        rows with an error      1
        tokens a response       mean 1.75, from 1 to 2, median 2, nine of ten up to 2
        characters a response   mean 2.25, from 2 to 3, median 2, nine of ten up to 3
        ended by                eos 3 (75.0 %), length 1 (25.0 %)
        mean log-probability    mean -0.75, from -0.750 to -0.750, median -0.750, nine of ten up to -0.750
        repeated responses      2 equal to an earlier one, 1 to one of their own sample
        output tokens a second  mean 15.00, from 10.0 to 20.0, median 20.0, nine of ten up to 20.0
        peak memory             7.0 MB
        ");
        insta::assert_snapshot!(Figures::new(9).table(&[]), @"
        samples             0
        responses           0
        repeated responses  0 equal to an earlier one, 0 to one of their own sample
        ");
        assert_eq!(figures(9).most_repeated(5), [(3, "ab")]);
    }

    #[test]
    fn what_a_program_said_is_among_the_figures() {
        let mut figures = Figures::new(0);
        figures.add(sample(
            r#"{"responses": ["a", "b"], "verdicts": ["pass", "fail"], "pass_at_k": {"1": 0.5, "2": 1.0}}"#,
        ));
        figures.add(sample(
            r#"{"responses": ["c", "d"], "verdicts": [null, "fail"], "pass_at_k": {"1": 0.0, "2": 0.0}}"#,
        ));
        let rows = figures.rows(&[]);
        let text = |name: &str| rows.iter().find(|(known, _)| *known == name).map(|(_, text)| text.as_str());
        assert_eq!(text("verdicts"), Some("pass 1 (25.0 %), fail 2 (50.0 %)"));
        assert_eq!(text("pass@k"), Some("pass@1 0.2500, pass@2 0.5000 over 2 rows"));
    }

    #[test]
    fn samples_are_spread_over_the_file() {
        let mut figures = Figures::new(4);
        for n in 0..100 {
            figures.add(Sample { prompt: n.to_string(), ..Sample::default() });
        }
        let kept: Vec<u64> = figures.samples.iter().map(|(idx, _)| *idx).collect();
        assert_eq!(kept, [0, 32, 64, 96]);
    }

    #[test]
    fn what_is_no_line_of_results_is_refused() {
        let reason = |line: &str| Sample::read(data::parse_object(line.as_bytes()).unwrap()).unwrap_err();
        insta::assert_snapshot!(reason("{}"), @"it has no `responses`");
        insta::assert_snapshot!(reason(r#"{"responses": 3}"#), @"`responses` is 3");
        insta::assert_snapshot!(reason(r#"{"responses": ["a", null]}"#), @"`responses[1]` is null");
    }
}
