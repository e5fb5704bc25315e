//! How rows are answered that have parameters of their own: the job's rules with what the row sets in their place.

use data::{MAX_ROW_END_STRINGS, RowParams};
use engine::OwnRules;
use sampling::{MAX_ROW_END_TOKENS, RowRules, SamplingError, SamplingParams, StopConditions};

use crate::config::plan::{GenerationPlan, RowParamsMode, TokenName};
use crate::exit::Failure;
use crate::model::checkpoint::OpenTokenizer;

/// Makes the rules of rows.
pub(crate) struct RowRulesMaker<'a> {
    tokenizer: &'a OpenTokenizer,
    /// Tokens that end every response.
    end_token_ids: Vec<u32>,
    /// The job's.
    run: OwnRules,
}

impl<'a> RowRulesMaker<'a> {
    /// `end_token_ids`: those that end a response without being asked for.
    ///
    /// # Errors
    /// When an end string is empty, or a row's own rules would have no room for the tokens that end responses.
    pub(crate) fn new(
        plan: &GenerationPlan,
        tokenizer: &'a OpenTokenizer,
        end_token_ids: Vec<u32>,
    ) -> Result<Self, Failure> {
        let stop = stop_conditions(tokenizer, &plan.end_strings, &end_token_ids)?;
        if plan.row_params == RowParamsMode::Read {
            check_room(end_token_ids.len(), stop.end_token_ids().len())?;
        }
        let row = RowRules {
            params: plan.sampling.clone(),
            seed: plan.seed,
            end_token_ids: stop.end_token_ids().to_vec(),
            min_length: plan.min_length,
            structure: plan.structured_outputs.clone(),
        };
        let run = OwnRules { row, stop: stop.with_min_length(plan.min_length) };
        Ok(Self { tokenizer, end_token_ids, run })
    }

    /// What holds for rows without parameters of their own.
    pub(crate) fn run(&self) -> &OwnRules {
        &self.run
    }

    /// The rules of a row; none where they are the job's.
    ///
    /// # Errors
    /// When its end strings cannot be used.
    pub(crate) fn own(&self, row: &RowParams) -> Result<Option<Box<OwnRules>>, SamplingError> {
        // Structures are followed for requests that have rules of their own.
        if row.has_job_rules() && self.run.row.structure.is_none() {
            return Ok(None);
        }
        let mut own = self.run.clone();
        if row.end_strings.is_some() || row.stop_strings.is_some() {
            let end_strings = row.end_strings.as_deref().unwrap_or_default();
            let stop = stop_conditions(self.tokenizer, end_strings, &self.end_token_ids)?;
            own.stop = stop.with_stop_strings(row.stop_strings.as_deref().unwrap_or_default())?;
            own.row.end_token_ids = own.stop.end_token_ids().to_vec();
        }
        own.row.params = params_of(&self.run.row.params, row);
        own.row.structure = row.structured_outputs.clone().or(own.row.structure);
        own.row.seed = row.seed.unwrap_or(own.row.seed);
        own.row.min_length = row.min_length.unwrap_or(own.row.min_length);
        own.stop = own.stop.with_min_length(own.row.min_length);
        Ok(Some(Box::new(own)))
    }
}

/// Checks that a row's rules have room for all tokens that may end its responses: those of the checkpoint with end strings
/// of its own, or those of the job.
fn check_room(num_of_checkpoint: usize, num_of_job: usize) -> Result<(), Failure> {
    let most = MAX_ROW_END_TOKENS - MAX_ROW_END_STRINGS;
    if num_of_checkpoint > most {
        return Err(Failure::usage(format!(
            "rows with parameters of their own take checkpoints with at most {most} tokens that end a response, this one \
             names {num_of_checkpoint}"
        )));
    }
    if num_of_job > MAX_ROW_END_TOKENS {
        return Err(Failure::usage(format!(
            "with rows with parameters of their own at most {MAX_ROW_END_TOKENS} tokens may end a response, and \
             `model.generation.sampling_params.end_strings` and the checkpoint name {num_of_job}"
        )));
    }
    Ok(())
}

/// The parameters of a row. Its values were checked when it was read.
fn params_of(run: &SamplingParams, row: &RowParams) -> SamplingParams {
    let mut params = run.clone();
    match row.temperature {
        Some(0.0) => params.use_greedy = true,
        Some(temperature) => {
            params.use_greedy = false;
            params.temperature = temperature as f32;
        }
        None => {}
    }
    if let Some(top_k) = row.top_k {
        params.top_k = Some(top_k).filter(|&k| k > 0);
    }
    // The clamps keep what is inside of a range in f64 inside of it in f32.
    if let Some(top_p) = row.top_p {
        let is_on = top_p > 0.0 && top_p < 1.0;
        params.top_p = is_on.then(|| (top_p as f32).clamp(f32::MIN_POSITIVE, 1.0 - f32::EPSILON / 2.0));
    }
    if let Some(min_p) = row.min_p {
        params.min_p = (min_p > 0.0).then(|| (min_p as f32).max(f32::MIN_POSITIVE));
    }
    if let Some(penalty) = row.repetition_penalty {
        params.repetition_penalty = penalty as f32;
    }
    params
}

fn stop_conditions(
    tokenizer: &OpenTokenizer,
    end_strings: &[String],
    end_token_ids: &[u32],
) -> Result<StopConditions, SamplingError> {
    StopConditions::resolve(end_strings, end_token_ids, |text| tokenizer.single_token(text))
}

/// The bias of each token that is named, in the order of ids.
///
/// # Errors
/// When a text is not one token, an id is not in the vocabulary, or two names are of one token.
pub(crate) fn token_bias(
    named: &[(TokenName, f32)],
    tokenizer: &OpenTokenizer,
    vocab_size: usize,
) -> Result<Vec<(u32, f32)>, Failure> {
    const KEYS: &str =
        "`model.generation.sampling_params.banned_tokens` and `model.generation.sampling_params.logit_bias`";
    let mut bias: Vec<(u32, f32)> = Vec::with_capacity(named.len());
    for (name, value) in named {
        let id = match name {
            TokenName::Id(id) => Some(*id).filter(|&id| (id as usize) < vocab_size),
            TokenName::Text(text) => tokenizer.single_token(text),
        };
        let Some(id) = id else {
            return Err(Failure::usage(format!(
                "{KEYS} take ids below {vocab_size} and texts that are one token, found {name}"
            )));
        };
        if bias.iter().any(|&(other, _)| other == id) {
            return Err(Failure::usage(format!("{KEYS} name token {id} twice, once as {name}")));
        }
        bias.push((id, *value));
    }
    bias.sort_by_key(|&(id, _)| id);
    Ok(bias)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> SamplingParams {
        SamplingParams {
            use_greedy: false,
            temperature: 0.7,
            top_k: Some(40),
            top_p: Some(0.9),
            repetition_penalty: 1.1,
            min_p: None,
            compute_logprob: true,
            top_logprobs: 3,
        }
    }

    #[test]
    fn a_row_replaces_what_it_sets() {
        let check = |row: RowParams, expect: SamplingParams| assert_eq!(params_of(&run(), &row), expect);
        check(RowParams::default(), run());
        check(
            RowParams { temperature: Some(0.0), ..RowParams::default() },
            SamplingParams { use_greedy: true, ..run() },
        );
        let row = RowParams { top_k: Some(0), top_p: Some(1.0), min_p: Some(0.25), ..RowParams::default() };
        check(row, SamplingParams { top_k: None, top_p: None, min_p: Some(0.25), ..run() });
        let row =
            RowParams { top_p: Some(1.0 - 1e-12), repetition_penalty: Some(2.0), ..RowParams::default() };
        let params = params_of(&run(), &row);
        assert!(params.top_p.is_some_and(|p| p < 1.0) && params.repetition_penalty == 2.0);
    }

    #[test]
    fn too_many_end_tokens_are_refused_before_anything_is_computed() {
        assert!(check_room(8, 16).is_ok());
        let said = |of_checkpoint, of_job| check_room(of_checkpoint, of_job).unwrap_err().sentence();
        insta::assert_snapshot!(said(9, 9), @"rows with parameters of their own take checkpoints with at most 8 tokens that end a response, this one names 9");
        insta::assert_snapshot!(said(1, 17), @"with rows with parameters of their own at most 16 tokens may end a response, and `model.generation.sampling_params.end_strings` and the checkpoint name 17");
    }

    #[test]
    fn a_temperature_ends_greed() {
        let greedy = SamplingParams { use_greedy: true, ..run() };
        let row = RowParams { temperature: Some(0.5), ..RowParams::default() };
        assert_eq!(params_of(&greedy, &row), SamplingParams { temperature: 0.5, ..run() });
    }
}
