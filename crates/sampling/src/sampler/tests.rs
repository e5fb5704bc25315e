use proptest::prelude::*;

use super::*;
use crate::{ReferenceSampler, SamplingParams};

fn params() -> SamplingParams {
    SamplingParams {
        use_greedy: false,
        temperature: 1.0,
        top_k: None,
        top_p: None,
        repetition_penalty: 1.0,
        compute_logprob: false,
    }
}

fn state(response_idx: u32, history: &[u32]) -> RowState<'_> {
    RowState { sample_idx: 3, response_idx, num_generated: 5, history }
}

fn sampler(params: SamplingParams, vocab_size: usize) -> CpuSampler {
    CpuSampler::new(rules(params, vocab_size)).unwrap()
}

fn rules(params: SamplingParams, vocab_size: usize) -> SamplingRules {
    SamplingRules { params, vocab_size, seed: 1234, end_token_ids: vec![], min_length: 0 }
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
    )
        .prop_map(|(use_greedy, temperature, top_k, top_p, repetition_penalty)| SamplingParams {
            use_greedy,
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            compute_logprob: true,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn equals_the_reference(
        params in any_params(),
        rows in prop::collection::vec(prop::collection::vec(logit(), 70), 1..5),
        vocab_size in 1_usize..=70,
        history in prop::collection::vec(0_u32..70, 0..20),
        end_token_ids in prop::collection::vec(0_u32..70, 0..3),
        min_length in 0_u32..12,
        seed in any::<u64>(),
    ) {
        let logits = Tensor::from_slice2(&rows);
        let states: Vec<_> = (0..rows.len() as u32).map(|idx| state(idx, &history)).collect();
        let rules = SamplingRules { params, vocab_size, seed, end_token_ids, min_length };
        let mut fast = CpuSampler::new(rules.clone()).unwrap();
        let mut slow = ReferenceSampler::new(rules).unwrap();
        match (fast.sample(&logits, &states), slow.sample(&logits, &states)) {
            (Ok(fast), Ok(slow)) => {
                for (fast, slow) in fast.iter().zip(&slow) {
                    prop_assert_eq!(fast.token, slow.token);
                    let (fast, slow) = (fast.logprob.unwrap(), slow.logprob.unwrap());
                    prop_assert!((fast - slow).abs() <= 1e-5 * slow.abs().max(1.0), "{} {}", fast, slow);
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
fn padding_is_never_chosen_and_ties_go_to_the_lowest_id() {
    let greedy = SamplingParams { use_greedy: true, ..params() };
    let logits = Tensor::from_slice(&[1.0_f32, 2.0, 2.0, 9.0]).view([1, 4]);
    let sampled = sampler(greedy, 3).sample(&logits, &[state(0, &[])]).unwrap();
    assert_eq!(sampled, [SampledToken { token: 1, logprob: None }]);
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
