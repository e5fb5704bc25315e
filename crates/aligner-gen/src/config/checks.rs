//! `model.generation.on_response` and what follows from it: which responses are kept, and what is counted.

use std::time::Duration;

use serde::Deserialize;

use super::plan::{LineFormat, RowParamsMode};
use super::range::{out_of_range, positive};
use super::raw::RawGeneration;
use crate::exit::Failure;
use crate::output::OutputField;

const ON_RESPONSE: &str = "model.generation.on_response";
const TIMEOUT: &str = "model.generation.on_response_timeout_seconds";
const BEST_OF: &str = "model.generation.best_of_n";
const PASS_AT_K: &str = "model.generation.pass_at_k";

const DEFAULT_TIMEOUT_SECONDS: i64 = 300;

/// How responses are checked, and which of them are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChecksPlan {
    /// A command of the shell that checks each response.
    pub(crate) on_response: Option<String>,
    /// How long it may be silent while it owes answers.
    pub(crate) timeout: Duration,
    /// By what the best response to a prompt is chosen, where only that is kept.
    pub(crate) best_of: Option<BestOf>,
    /// The `k` of which pass@k is estimated, ascending.
    pub(crate) pass_at_k: Vec<u32>,
}

/// What makes a response the best one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BestOf {
    MeanLogprob,
    SumLogprob,
    /// Of the program.
    Score,
}

impl BestOf {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MeanLogprob => "mean_logprob",
            Self::SumLogprob => "sum_logprob",
            Self::Score => "score",
        }
    }

    fn parse(name: &str) -> Result<Self, Failure> {
        let all = [Self::MeanLogprob, Self::SumLogprob, Self::Score];
        all.into_iter().find(|by| by.name() == name).ok_or_else(|| {
            out_of_range(BEST_OF, "`mean_logprob`, `sum_logprob` or `score`", &format!("`{name}`"))
        })
    }
}

/// One number or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a whole number or a list of them")]
pub(crate) enum RawPassAtK {
    One(i64),
    Several(Vec<i64>),
}

impl ChecksPlan {
    /// Checks the keys. `num_responses`: of rows that do not say how many.
    pub(crate) fn new(
        raw: &RawGeneration,
        num_responses: u32,
        row_params: RowParamsMode,
        line_format: LineFormat,
    ) -> Result<Self, Failure> {
        let on_response = raw.on_response.clone();
        if on_response.as_ref().is_some_and(|command| command.trim().is_empty()) {
            return Err(out_of_range(ON_RESPONSE, "a command of the shell or null", "``"));
        }
        if on_response.is_some() && line_format == LineFormat::OpenAiBatch {
            return Err(Failure::usage(format!(
                "`model.data.format=openai_batch` writes OpenAI's lines, which have no place for what `{ON_RESPONSE}` says"
            )));
        }
        let best_of = raw.best_of_n.as_deref().map(BestOf::parse).transpose()?;
        if best_of == Some(BestOf::Score) && on_response.is_none() {
            return Err(Failure::usage(format!(
                "`{BEST_OF}=score` takes the scores of a program: set `{ON_RESPONSE}`, or `--on-response CMD`"
            )));
        }
        let most = (row_params == RowParamsMode::Ignore).then_some(num_responses);
        let pass_at_k = pass_at_k(raw.pass_at_k.as_ref(), most)?;
        if !pass_at_k.is_empty() && on_response.is_none() {
            return Err(Failure::usage(format!(
                "`{PASS_AT_K}` counts what a program lets pass: set `{ON_RESPONSE}`, or `--on-response CMD`"
            )));
        }
        if !pass_at_k.is_empty() && raw.drop_unfinished {
            return Err(Failure::usage(format!(
                "`{PASS_AT_K}` counts all responses, and `model.generation.drop_unfinished=true` leaves some out: set one of \
                 them only"
            )));
        }
        let seconds = raw.on_response_timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
        let timeout = Duration::from_secs(positive(TIMEOUT, seconds)? as u64);
        let plan = Self { on_response, timeout, best_of, pass_at_k };
        match raw.output_fields.iter().find_map(|field| plan.missing_for(field)) {
            Some((name, key)) => Err(Failure::usage(format!(
                "`model.generation.output_fields` asks for `{name}`, which needs `{key}`; a key of the records that is called \
                 so is found in `input`"
            ))),
            None => Ok(plan),
        }
    }

    /// What is not set that a field needs, with the field's name.
    fn missing_for(&self, field: &OutputField) -> Option<(&'static str, &'static str)> {
        match field {
            OutputField::Verdicts if self.on_response.is_none() => Some(("verdicts", ON_RESPONSE)),
            OutputField::Scores if self.on_response.is_none() => Some(("scores", ON_RESPONSE)),
            OutputField::PassAtK if self.pass_at_k.is_empty() => Some(("pass_at_k", PASS_AT_K)),
            _ => None,
        }
    }

    /// The fields of each line with those that checks add.
    pub(crate) fn with_fields(&self, mut fields: Vec<OutputField>) -> Vec<OutputField> {
        let added = [
            (OutputField::ResponseIndices, self.best_of.is_some()),
            (OutputField::Verdicts, self.on_response.is_some()),
            (OutputField::Scores, self.on_response.is_some()),
            (OutputField::PassAtK, !self.pass_at_k.is_empty()),
        ];
        for (field, is_added) in added {
            if is_added && !fields.contains(&field) {
                fields.push(field);
            }
        }
        fields
    }

    /// Whether log-probabilities are needed.
    pub(crate) fn needs_logprobs(&self) -> bool {
        matches!(self.best_of, Some(BestOf::MeanLogprob | BestOf::SumLogprob))
    }
}

/// The numbers, ascending. `most`: how many responses every row has, where that is so.
fn pass_at_k(raw: Option<&RawPassAtK>, most: Option<u32>) -> Result<Vec<u32>, Failure> {
    let typed = match raw {
        None => return Ok(Vec::new()),
        Some(RawPassAtK::One(k)) => std::slice::from_ref(k),
        Some(RawPassAtK::Several(ks)) if ks.is_empty() => {
            return Err(out_of_range(PASS_AT_K, "a whole number or a list of them", "an empty list"));
        }
        Some(RawPassAtK::Several(ks)) => ks,
    };
    let mut numbers = Vec::with_capacity(typed.len());
    for &k in typed {
        let Some(number) = u32::try_from(k).ok().filter(|&k| k > 0 && most.is_none_or(|most| k <= most))
        else {
            let expected = match most {
                Some(most) => format!("from 1 to `model.generation.num_responses_to_gen` of {most}"),
                None => "at least 1".to_owned(),
            };
            return Err(out_of_range(PASS_AT_K, &expected, &k.to_string()));
        };
        numbers.push(number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}
