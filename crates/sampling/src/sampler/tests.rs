use proptest::prelude::*;

use super::*;
use crate::{ReferenceSampler, RowRules, SamplingParams};

fn params() -> SamplingParams {
    SamplingParams {
        use_greedy: false,
        temperature: 1.0,
        top_k: None,
        top_p: None,
        repetition_penalty: 1.0,
        min_p: None,
        compute_logprob: false,
        top_logprobs: 0,
    }
}

fn state(response_idx: u32, history: &[u32]) -> RowState<'_> {
    RowState { sample_idx: 3, response_idx, num_generated: 5, history, own: None, allowed: None }
}

fn sampler(params: SamplingParams, vocab_size: usize) -> CpuSampler {
    CpuSampler::new(rules(params, vocab_size)).unwrap()
}

fn rules(params: SamplingParams, vocab_size: usize) -> SamplingRules {
    let row = RowRules { params, seed: 1234, end_token_ids: vec![], min_length: 0, structure: None };
    SamplingRules { row, vocab_size, bias: vec![] }
}

/// A logit from a coarse grid, so that ties are common, or a mask, or anything.
fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => (-8_i8..8).prop_map(|step| f32::from(step) * 0.5),
        4 => -30.0_f32..30.0,
        1 => Just(f32::NEG_INFINITY),
        1 => Just(-0.0_f32),
        1 => -1e6_f32..1e6,
    ]
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    (
        any::<bool>(),
        prop_oneof![Just(1.0_f32), 0.05_f32..4.0],
        prop::option::of(1_u32..80),
        prop::option::of(prop_oneof![Just(0.5_f32), 0.001_f32..0.999]),
        prop_oneof![Just(1.0_f32), 0.5_f32..3.0],
        prop::option::of(prop_oneof![Just(1.0_f32), 0.001_f32..0.5]),
        0_u32..6,
    )
        .prop_map(|(use_greedy, temperature, top_k, top_p, repetition_penalty, min_p, top_logprobs)| {
            SamplingParams {
                use_greedy,
                temperature,
                top_k,
                top_p,
                repetition_penalty,
                min_p,
                compute_logprob: true,
                top_logprobs,
            }
        })
}

fn any_row_rules() -> impl Strategy<Value = RowRules> {
    (any_params(), any::<u64>(), prop::collection::vec(0_u32..70, 0..3), 0_u32..12).prop_map(
        |(params, seed, end_token_ids, min_length)| RowRules {
            params,
            seed,
            end_token_ids,
            min_length,
            structure: None,
        },
    )
}

fn any_bias() -> impl Strategy<Value = Vec<(u32, f32)>> {
    let value = prop_oneof![Just(f32::NEG_INFINITY), -20.0_f32..20.0];
    prop::collection::btree_map(0_u32..70, value, 0..6).prop_map(|bias| bias.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn equals_the_reference(
        row in any_row_rules(),
        rows in prop::collection::vec((prop::collection::vec(logit(), 70), prop::option::of(any_row_rules())), 1..5),
        vocab_size in 1_usize..=70,
        history in prop::collection::vec(0_u32..70, 0..20),
        mut bias in any_bias(),
    ) {
        bias.retain(|&(token, _)| (token as usize) < vocab_size);
        let (rows, own): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let logits = Tensor::from_slice2(&rows);
        let states: Vec<_> =
            (0..).zip(&own).map(|(idx, own)| RowState { own: own.as_ref(), ..state(idx, &history) }).collect();
        let rules = SamplingRules { row, vocab_size, bias };
        let mut fast = CpuSampler::new(rules.clone()).unwrap();
        let mut slow = ReferenceSampler::new(rules).unwrap();
        match (fast.sample(&logits, &states), slow.sample(&logits, &states)) {
            (Ok(fast), Ok(slow)) => {
                for (fast, slow) in fast.iter().zip(&slow) {
                    prop_assert_eq!(fast.token, slow.token);
                    let (logprob, expect) = (fast.logprob.unwrap(), slow.logprob.unwrap());
                    prop_assert!((logprob - expect).abs() <= 1e-5 * expect.abs().max(1.0), "{} {}", logprob, expect);
                    prop_assert_eq!(fast.top.len(), slow.top.len());
                    for (fast, slow) in fast.top.iter().zip(&slow.top) {
                        prop_assert_eq!(fast.token, slow.token);
                        prop_assert!((fast.logprob - slow.logprob).abs() <= 1e-5 * slow.logprob.abs().max(1.0));
                    }
                }
            }
            (fast, slow) => prop_assert_eq!(fast.unwrap_err().to_string(), slow.unwrap_err().to_string()),
        }
    }
}

#[test]
fn equals_the_reference_on_a_large_vocabulary() {
    const VOCAB_SIZE: usize = 20_000;
    // Spread over the float range of real logits, with a repeated value every few tokens.
    let row: Vec<f32> =
        (0..VOCAB_SIZE).map(|id| ((id * 7919 % 4001) as f32 * 0.005 - 10.0).powi(3) * 0.02).collect();
    let logits = Tensor::from_slice(&row).view([1, -1]).repeat([8, 1]);
    let states: Vec<_> = (0..8).map(|idx| state(idx, &[])).collect();
    for (top_k, top_p) in [(None, None), (Some(50), None), (None, Some(0.9)), (Some(1000), Some(0.95))] {
        let params = SamplingParams { top_k, top_p, temperature: 1.7, ..params() };
        let mut slow = ReferenceSampler::new(rules(params.clone(), VOCAB_SIZE)).unwrap();
        let expect = slow.sample(&logits, &states).unwrap();
        assert_eq!(sampler(params, VOCAB_SIZE).sample(&logits, &states).unwrap(), expect);
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let rows: Vec<Vec<f32>> =
        (0..6).map(|row| (0..900).map(|id| (id * (row + 3) % 97) as f32 * 0.1).collect()).collect();
    let logits = Tensor::from_slice2(&rows);
    let states: Vec<_> = (0..6).map(|idx| state(idx, &[])).collect();
    let together = sampler(params(), 900).sample(&logits, &states).unwrap();
    for (idx, expect) in together.iter().enumerate() {
        let alone =
            sampler(params(), 900).sample(&logits.get(idx as i64).view([1, -1]), &states[idx..=idx]).unwrap();
        assert_eq!(alone[0], *expect);
    }
}

/// Pearson's chi-square of 20,000 draws; the seed is fixed, so the outcome is too.
#[test]
fn draws_follow_the_softmax() {
    const NUM_DRAWS: usize = 20_000;
    let row = [0.0_f32, 1.0, -1.0, 2.0, 0.5, 0.0, f32::NEG_INFINITY, 1.5];
    let weights: Vec<f64> = row.iter().map(|&logit| f64::from(logit).exp()).collect();
    let total: f64 = weights.iter().sum();
    let logits = Tensor::from_slice(&row).view([1, -1]).repeat([NUM_DRAWS as i64, 1]);
    let states: Vec<_> = (0..NUM_DRAWS as u32).map(|idx| state(idx, &[])).collect();
    let mut counts = [0.0_f64; 8];
    for sampled in sampler(params(), 8).sample(&logits, &states).unwrap() {
        counts[sampled.token as usize] += 1.0;
    }
    assert_eq!(counts[6], 0.0);
    let chi_square: f64 = (0..8)
        .filter(|&id| weights[id] > 0.0)
        .map(|id| {
            let expected = NUM_DRAWS as f64 * weights[id] / total;
            (counts[id] - expected).powi(2) / expected
        })
        .sum();
    // The 99.9th percentile for 6 degrees of freedom.
    assert!(chi_square < 22.46, "{chi_square}");
}

#[test]
fn rules_of_a_row_leave_the_others_alone() {
    let logits = Tensor::from_slice(&(0..50).map(|id| (id % 7) as f32 * 0.3).collect::<Vec<_>>());
    let logits = logits.view([1, -1]).repeat([20, 1]);
    let plain: Vec<_> = (0..20).map(|idx| state(idx, &[])).collect();
    let expect = sampler(params(), 50).sample(&logits, &plain).unwrap();
    let rules = rules(SamplingParams { use_greedy: true, ..params() }, 50).row;
    let mixed: Vec<_> = plain
        .iter()
        .map(|state| RowState { own: (state.response_idx % 2 == 0).then_some(&rules), ..*state })
        .collect();
    for (idx, sampled) in sampler(params(), 50).sample(&logits, &mixed).unwrap().iter().enumerate() {
        let greedy = SampledToken { token: 6, logprob: None, top: vec![] };
        assert_eq!(*sampled, if idx % 2 == 0 { greedy } else { expect[idx].clone() });
    }
}

#[test]
fn a_banned_token_is_not_chosen_and_keeps_its_probability() {
    let greedy = SamplingParams { use_greedy: true, compute_logprob: true, top_logprobs: 1, ..params() };
    let rules = SamplingRules { bias: vec![(1, f32::NEG_INFINITY), (2, 1.5)], ..rules(greedy, 4) };
    let logits = Tensor::from_slice(&[1.0_f32, 9.0, 0.0, 0.0]).view([1, 4]);
    let sampled = CpuSampler::new(rules).unwrap().sample(&logits, &[state(0, &[])]).unwrap();
    assert_eq!((sampled[0].token, sampled[0].top[0].token), (2, 1));
    assert!(sampled[0].logprob.unwrap() < -8.9 && sampled[0].top[0].logprob > -0.01);
    let error =
        CpuSampler::new(SamplingRules { bias: vec![(4, 1.0)], ..self::rules(params(), 4) }).unwrap_err();
    assert_eq!(error.to_string(), "a bias is given for token 4, the vocabulary has 4");
}

#[test]
fn padding_is_never_chosen_and_ties_go_to_the_lowest_id() {
    let greedy = SamplingParams { use_greedy: true, ..params() };
    let logits = Tensor::from_slice(&[1.0_f32, 2.0, 2.0, 9.0]).view([1, 4]);
    let sampled = sampler(greedy, 3).sample(&logits, &[state(0, &[])]).unwrap();
    assert_eq!(sampled, [SampledToken { token: 1, logprob: None, top: vec![] }]);
}

/// Sorting a row with a NaN panics once it is long enough.
#[test]
fn the_reference_refuses_a_nan_before_it_sorts() {
    let mut logits: Vec<f32> = (0..100).map(|i| (i * 7919 % 101) as f32).collect();
    for idx in (1..100).step_by(7) {
        logits[idx] = f32::NAN;
    }
    let logits = Tensor::from_slice(&logits).view([1, 100]);
    let params = SamplingParams { top_k: Some(5), top_p: Some(0.5), ..params() };
    let error =
        ReferenceSampler::new(rules(params, 100)).unwrap().sample(&logits, &[state(0, &[])]).unwrap_err();
    assert_eq!(error.to_string(), "logits of sample 3, response 0, generated token 5 hold a NaN");
}

#[test]
fn an_infinite_logit_is_the_same_error_under_every_filter() {
    let logits = Tensor::from_slice(&[0.5_f32, f32::INFINITY, 1.0]).view([1, 3]);
    let filters = [
        SamplingParams { min_p: Some(1.0), temperature: 0.7, ..params() },
        SamplingParams { top_p: Some(0.5), ..params() },
        SamplingParams { top_k: Some(1), ..params() },
    ];
    for params in filters {
        let rows = [state(0, &[])];
        let error = sampler(params.clone(), 3).sample(&logits, &rows).unwrap_err().to_string();
        let mut reference = ReferenceSampler::new(rules(params, 3)).unwrap();
        assert_eq!(error, reference.sample(&logits, &rows).unwrap_err().to_string());
        assert!(error.contains("an infinite value"), "{error}");
    }
}

#[test]
fn errors_say_what_does_not_fit() {
    let check = |logits: &Tensor, expect: &str| {
        let error = sampler(params(), 3).sample(logits, &[state(0, &[])]).unwrap_err();
        assert_eq!(error.to_string(), expect);
    };
    check(&Tensor::from_slice(&[0.0_f32; 2]).view([1, 2]), "logits have shape [1, 2], need [1, at least 3]");
    check(&Tensor::from_slice(&[0.0_f32; 8]).view([2, 4]), "logits have shape [2, 4], need [1, at least 3]");
    check(
        &Tensor::from_slice(&[0.0_f32, f32::NAN, 0.0]).view([1, 3]),
        "logits of sample 3, response 0, generated token 5 hold a NaN",
    );
    assert_eq!(
        CpuSampler::new(rules(params(), 0)).unwrap_err().to_string(),
        "the vocabulary has 0 tokens, the sampler takes 1 to 524288"
    );
}
