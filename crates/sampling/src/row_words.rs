//! The rules of a row as the words that a GPU's sampler reads (`take_own_rules` of `crates/cuda-kernels/kernels/own.cuh`).

use crate::{RowRules, SamplingError, SamplingParams};

/// int32 words of a row's rules.
pub const ROW_RULE_WORDS: usize = 28;
/// End tokens of a row's own that have room in them.
pub const MAX_ROW_END_TOKENS: usize = ROW_RULE_WORDS - END_TOKENS;

// Where each rule stands. What is 0 is off; a row without rules of its own has zeros everywhere.
const IS_OWN: usize = 0;
const SEED: usize = 1;
const MIN_LENGTH: usize = 3;
const TOP_K: usize = 4;
const TOP_P: usize = 5;
const MIN_P: usize = 6;
const TEMPERATURE: usize = 7;
const REPETITION_PENALTY: usize = 8;
const USE_GREEDY: usize = 9;
const NUM_END_TOKENS: usize = 10;
const END_TOKENS: usize = 12;

/// The words of a row's own rules. What is computed beside the token is the run's affair and not in them.
///
/// # Errors
/// When the row holds back more end tokens than have room.
pub fn row_rule_words(rules: &RowRules) -> Result<[i32; ROW_RULE_WORDS], SamplingError> {
    let RowRules { params, seed, end_token_ids, min_length, structure } = rules;
    // Where there is a structure, the tokens that it allows say when the text may end.
    let min_length = if structure.is_none() { *min_length } else { 0 };
    // Nobody asks for them otherwise.
    let end_token_ids = if min_length > 0 { end_token_ids.as_slice() } else { &[] };
    if end_token_ids.len() > MAX_ROW_END_TOKENS {
        return Err(SamplingError::TooManyEndTokens {
            actual: end_token_ids.len(),
            limit: MAX_ROW_END_TOKENS,
        });
    }
    let mut words = [0; ROW_RULE_WORDS];
    words[IS_OWN] = 1;
    words[SEED] = *seed as u32 as i32;
    words[SEED + 1] = (*seed >> 32) as u32 as i32;
    words[MIN_LENGTH] = min_length as i32;
    words[TOP_K] = params.top_k.unwrap_or(0) as i32;
    words[TOP_P] = params.top_p.unwrap_or(0.0).to_bits() as i32;
    words[MIN_P] = params.min_p.unwrap_or(0.0).to_bits() as i32;
    words[TEMPERATURE] = params.temperature.to_bits() as i32;
    words[REPETITION_PENALTY] = params.repetition_penalty.to_bits() as i32;
    words[USE_GREEDY] = i32::from(params.use_greedy);
    words[NUM_END_TOKENS] = end_token_ids.len() as i32;
    for (word, &id) in words[END_TOKENS..].iter_mut().zip(end_token_ids) {
        *word = id as i32;
    }
    Ok(words)
}

/// What the words say; none for a row without rules of its own. `run`: what the run computes beside the tokens.
pub fn read_row_rules(words: &[i32; ROW_RULE_WORDS], run: &SamplingParams) -> Option<RowRules> {
    let bits = |at: usize| words[at] as u32;
    let some = |at: usize| Some(f32::from_bits(bits(at))).filter(|&value| value > 0.0);
    let num_end_tokens = (bits(NUM_END_TOKENS) as usize).min(MAX_ROW_END_TOKENS);
    (words[IS_OWN] != 0).then(|| RowRules {
        params: SamplingParams {
            use_greedy: words[USE_GREEDY] != 0,
            temperature: f32::from_bits(bits(TEMPERATURE)),
            top_k: Some(bits(TOP_K)).filter(|&k| k > 0),
            top_p: some(TOP_P),
            min_p: some(MIN_P),
            repetition_penalty: f32::from_bits(bits(REPETITION_PENALTY)),
            ..run.clone()
        },
        seed: u64::from(bits(SEED)) | u64::from(bits(SEED + 1)) << 32,
        end_token_ids: words[END_TOKENS..END_TOKENS + num_end_tokens].iter().map(|&id| id as u32).collect(),
        min_length: bits(MIN_LENGTH),
        structure: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params() -> impl Strategy<Value = SamplingParams> {
        let part = prop::option::of(0.001_f32..0.999);
        let numbers = (0.01_f32..9.0, 0.01_f32..9.0, part.clone(), part);
        (any::<bool>(), prop::option::of(1_u32..), numbers).prop_map(
            |(use_greedy, top_k, (temperature, repetition_penalty, top_p, min_p))| SamplingParams {
                use_greedy,
                temperature,
                top_k,
                top_p,
                repetition_penalty,
                min_p,
                compute_logprob: true,
                top_logprobs: 3,
            },
        )
    }

    proptest! {
        #[test]
        fn words_say_all(
            params in params(), seed in any::<u64>(), min_length in 1_u32..,
            end_token_ids in prop::collection::vec(0_u32..1 << 19, 0..=MAX_ROW_END_TOKENS),
        ) {
            let rules = RowRules { params, seed, end_token_ids, min_length, structure: None };
            let words = row_rule_words(&rules).unwrap();
            prop_assert_eq!(read_row_rules(&words, &rules.params), Some(rules));
        }
    }

    #[test]
    fn zeros_are_no_rules_and_too_many_end_tokens_are_refused() {
        let run = SamplingParams {
            use_greedy: false,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            repetition_penalty: 1.0,
            min_p: None,
            compute_logprob: false,
            top_logprobs: 0,
        };
        assert_eq!(read_row_rules(&[0; ROW_RULE_WORDS], &run), None);
        let mut rules =
            RowRules { params: run, seed: 1, end_token_ids: vec![7; 17], min_length: 1, structure: None };
        let error = row_rule_words(&rules).unwrap_err().to_string();
        assert_eq!(
            error,
            "17 tokens would end a response of a row with rules of its own, there is room for 16"
        );
        rules.min_length = 0;
        assert!(row_rule_words(&rules).is_ok());
    }
}
