//! Draws follow the exact probabilities: chi-square tests of stated power.
//!
//! The probabilities come from the rules alone, in `f64` and with whole sorts. A test rejects at the 0.1 % level. Beside
//! each rule stands a fault, a rule that is almost right, and the test shows two things about it: from the noncentral
//! distribution, that so many draws find it with a probability of 99.9 %; and that they do find it. Seeds are fixed, so
//! the outcome is too.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod chi_square;

use chi_square::{critical_value, power, statistic};
use sampling::{
    CpuSampler, RawSamplingParams, RowRules, RowState, SamplingParams, SamplingRules, TokenSampler, uniform,
};
use tch::Tensor;

const NUM_DRAWS: usize = 200_000;
const LEVEL: f64 = 0.001;
const POWER: f64 = 0.999;
const SEED: u64 = 1234;
const VOCAB_SIZE: usize = 40;
const PADDED_VOCAB_SIZE: usize = 44;
const EOS: u32 = 2;
const END_TOKEN: u32 = 5;
const HISTORY: [u32; 6] = [3, 8, 9, 8, 3, 17];

/// Logits on a grid of halves, so that many are equal; the padding behind the vocabulary would be likely.
fn logits() -> Vec<f32> {
    let row = (0..PADDED_VOCAB_SIZE).map(|id| ((id * 7 + 3) % 13) as f32 * 0.5 - 3.0);
    row.enumerate().map(|(id, logit)| if id < VOCAB_SIZE { logit } else { 3.0 }).collect()
}

/// The rules of a draw, each written down once more; `None` leaves the rule out.
#[derive(Clone, Copy)]
struct Rules {
    temperature: f64,
    penalty: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: f64,
    held_back: &'static [u32],
}

const PLAIN: Rules =
    Rules { temperature: 1.0, penalty: 1.0, top_k: None, top_p: None, min_p: 0.0, held_back: &[] };

impl Rules {
    /// Logits after `min_length`, temperature and repetition penalty.
    fn scaled(self) -> Vec<f64> {
        let scale = |(id, logit): (usize, f32)| {
            let logit = f64::from(logit) / self.temperature;
            match id as u32 {
                id if self.held_back.contains(&id) => f64::NEG_INFINITY,
                id if !HISTORY.contains(&id) => logit,
                _ if logit > 0.0 => logit / self.penalty,
                _ => logit * self.penalty,
            }
        };
        logits()[..VOCAB_SIZE].iter().copied().enumerate().map(scale).collect()
    }

    fn probabilities(self) -> Vec<f64> {
        let mut row = self.scaled();
        if let Some(k) = self.top_k {
            let threshold = row[by_value(&row)[k - 1]];
            row.iter_mut().filter(|logit| **logit < threshold).for_each(|logit| *logit = f64::NEG_INFINITY);
        }
        let mut probabilities = softmax(&row);
        if let Some(p) = self.top_p {
            let mut mass_before = 0.0;
            for id in by_value(&row) {
                let probability = std::mem::take(&mut probabilities[id]);
                // A prefix of exactly p takes in one token more; the margin is for the sum's own rounding.
                if mass_before <= p + 1e-12 {
                    probabilities[id] = probability;
                }
                mass_before += probability;
            }
        }
        let most = probabilities.iter().copied().fold(0.0, f64::max);
        probabilities.iter_mut().filter(|p| **p < self.min_p * most).for_each(|p| *p = 0.0);
        normalised(probabilities)
    }

    fn params(self) -> SamplingParams {
        SamplingParams::try_from(RawSamplingParams {
            use_greedy: false,
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(0) as i64,
            top_p: self.top_p.unwrap_or(1.0),
            repetition_penalty: self.penalty,
            min_p: self.min_p,
            compute_logprob: false,
            top_logprobs: 0,
        })
        .unwrap()
    }
}

/// Ids, the most likely first, equal ones by id.
fn by_value(row: &[f64]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    ids
}

fn softmax(row: &[f64]) -> Vec<f64> {
    normalised(row.iter().map(|logit| logit.exp()).collect())
}

fn normalised(weights: Vec<f64>) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// Draws of the program's own sampler, spread over samples, responses and positions.
fn sampled(rules: Rules) -> Vec<f64> {
    const NUM_ROWS: usize = 20_000;
    let min_length = if rules.held_back.is_empty() { 0 } else { u32::MAX };
    let row = RowRules {
        params: rules.params(),
        seed: SEED,
        end_token_ids: rules.held_back.to_vec(),
        min_length,
        structure: None,
    };
    let rules = SamplingRules { row, vocab_size: VOCAB_SIZE, bias: vec![] };
    let mut sampler = CpuSampler::new(rules).unwrap();
    let logits = Tensor::from_slice(&logits()).view([1, -1]).repeat([NUM_ROWS as i64, 1]);
    let mut counts = vec![0.0; VOCAB_SIZE];
    for block in 0..NUM_DRAWS / NUM_ROWS {
        let states: Vec<_> = (block * NUM_ROWS..(block + 1) * NUM_ROWS)
            .map(|draw| RowState {
                sample_idx: draw as u64 / 400,
                response_idx: draw as u32 % 4,
                num_generated: draw as u32 / 4 % 100,
                history: &HISTORY,
                own: None,
                allowed: None,
            })
            .collect();
        for token in sampler.sample(&logits, &states).unwrap() {
            counts[token.token as usize] += 1.0;
        }
    }
    counts
}

/// Draws that follow `probabilities`, by the simplest walk.
fn walked(probabilities: &[f64]) -> Vec<f64> {
    let mut counts = vec![0.0; probabilities.len()];
    for draw in 0..NUM_DRAWS {
        let mut left = uniform(SEED + 1, draw as u64, 0, 0);
        let id = probabilities.iter().position(|probability| {
            left -= probability;
            left < 0.0
        });
        counts[id.unwrap_or(0)] += 1.0;
    }
    counts
}

/// The sampler follows `rules`, and would be found out if it followed `fault`.
fn check(rules: Rules, fault: &[f64]) {
    let exact = rules.probabilities();
    let critical = critical_value(&exact, LEVEL);
    let own = statistic(&exact, &sampled(rules));
    assert!(own < critical, "chi-square {own:.1} of the sampler, {critical:.1} is the limit");
    let found = statistic(&exact, &walked(fault));
    assert!(found > critical, "chi-square {found:.1} of the fault, {critical:.1} is the limit");
    let power = power(&exact, fault, NUM_DRAWS, critical);
    assert!(power >= POWER, "the fault would be found with a probability of {power:.4} only");
}

#[test]
fn full_vocabulary_without_its_padding() {
    let padded: Vec<f64> = logits().into_iter().map(f64::from).collect();
    // The mass of the padding lands on the last token, as the original's clamp would have it.
    let mut fault = softmax(&padded);
    let padding: f64 = fault.drain(VOCAB_SIZE..).sum();
    fault[VOCAB_SIZE - 1] += padding;
    check(PLAIN, &fault);
}

#[test]
fn temperature_to_three_hundredths() {
    for temperature in [0.6, 1.0, 1.7] {
        let rules = Rules { temperature, ..PLAIN };
        check(rules, &Rules { temperature: temperature * 1.03, ..rules }.probabilities());
        check(rules, &Rules { temperature: temperature / 1.03, ..rules }.probabilities());
    }
}

#[test]
fn top_k_keeps_all_ties_with_the_last_one() {
    let rules = Rules { top_k: Some(5), ..PLAIN };
    let kept = rules.probabilities().iter().filter(|&&probability| probability > 0.0).count();
    assert!(kept > 5, "the case has no ties: {kept} tokens stay");
    let mut exactly_k = softmax(&rules.scaled());
    for &id in &by_value(&rules.scaled())[5..] {
        exactly_k[id] = 0.0;
    }
    check(rules, &normalised(exactly_k));
}

#[test]
fn min_p_keeps_what_is_as_likely_as_it_says() {
    for min_p in [0.02, 0.1, 0.5] {
        let rules = Rules { min_p, ..PLAIN };
        check(rules, &PLAIN.probabilities());
        check(rules, &Rules { min_p: min_p * 2.0, ..PLAIN }.probabilities());
    }
}

#[test]
fn top_p_keeps_the_token_that_crosses() {
    for top_p in [0.3, 0.8, 0.95] {
        let rules = Rules { top_p: Some(top_p), ..PLAIN };
        let mut without_crossing = rules.probabilities();
        let last = without_crossing.iter().filter(|&&probability| probability > 0.0).count() - 1;
        without_crossing[by_value(&rules.scaled())[last]] = 0.0;
        check(rules, &normalised(without_crossing));
    }
}

#[test]
fn top_p_counts_what_top_k_left() {
    let rules = Rules { temperature: 1.4, top_k: Some(9), top_p: Some(0.8), ..PLAIN };
    // The other order: top_p of the whole vocabulary, then top_k.
    let of_all = Rules { top_k: None, ..rules }.probabilities();
    let in_k = Rules { top_p: None, ..rules }.probabilities();
    let fault = of_all.iter().zip(&in_k).map(|(&a, &b)| if b > 0.0 { a } else { 0.0 });
    check(rules, &normalised(fault.collect()));
}

#[test]
fn repetition_penalty_by_sign() {
    let rules = Rules { temperature: 0.9, penalty: 1.3, ..PLAIN };
    // The original divides whatever the sign.
    let mut row = Rules { penalty: 1.0, ..rules }.scaled();
    for id in [3, 8, 9, 17] {
        row[id] /= rules.penalty;
    }
    check(rules, &softmax(&row));
}

#[test]
fn min_length_holds_back_every_end_token() {
    let rules = Rules { held_back: &[EOS, END_TOKEN], ..PLAIN };
    check(rules, &Rules { held_back: &[EOS], ..PLAIN }.probabilities());
}

#[test]
fn everything_together() {
    let rules = Rules {
        min_p: 0.02,
        temperature: 0.8,
        penalty: 1.2,
        top_k: Some(20),
        top_p: Some(0.9),
        held_back: &[EOS, END_TOKEN],
    };
    check(rules, &Rules { temperature: 0.84, ..rules }.probabilities());
    check(rules, &Rules { penalty: 1.0, ..rules }.probabilities());
    check(rules, &Rules { top_p: Some(0.8), ..rules }.probabilities());
}

/// Neighbours in every direction of the key draw independently: the pairs follow the product of the probabilities.
#[test]
fn neighbouring_draws_are_independent() {
    const ROW: [f32; 5] = [0.0, 0.5, 1.0, -0.5, 0.2];
    let single = softmax(&ROW.map(f64::from));
    let pairs: Vec<f64> = single.iter().flat_map(|a| single.iter().map(move |b| a * b)).collect();
    let logits = Tensor::from_slice(&ROW).view([1, -1]).repeat([NUM_DRAWS as i64, 1]);
    let draw = |seed: u64, sample: u64, response: u32, token: u32| {
        let (params, vocab_size) = (PLAIN.params(), ROW.len());
        let row = RowRules { params, seed, end_token_ids: vec![], min_length: 0, structure: None };
        let rules = SamplingRules { row, vocab_size, bias: vec![] };
        let mut sampler = CpuSampler::new(rules).unwrap();
        let states: Vec<_> = (0..NUM_DRAWS as u32)
            .map(|draw| RowState {
                sample_idx: u64::from(draw / 1000) * 2 + sample,
                response_idx: draw / 100 % 10 * 2 + response,
                num_generated: draw % 100 * 2 + token,
                history: &[],
                own: None,
                allowed: None,
            })
            .collect();
        sampler.sample(&logits, &states).unwrap()
    };
    let first = draw(SEED, 0, 0, 0);
    let neighbours = [draw(SEED + 1, 0, 0, 0), draw(SEED, 1, 0, 0), draw(SEED, 0, 1, 0), draw(SEED, 0, 0, 1)];
    // One pair in forty that repeats its token would be found.
    let repeated = |(idx, &pair): (usize, &f64)| {
        let again = if idx % (ROW.len() + 1) == 0 { single[idx / ROW.len()] } else { 0.0 };
        pair * 0.975 + again * 0.025
    };
    let fault: Vec<f64> = pairs.iter().enumerate().map(repeated).collect();
    let critical = critical_value(&pairs, LEVEL);
    assert!(power(&pairs, &fault, NUM_DRAWS, critical) >= POWER);
    for neighbour in neighbours {
        let mut counts = vec![0.0; pairs.len()];
        for (a, b) in first.iter().zip(&neighbour) {
            counts[a.token as usize * ROW.len() + b.token as usize] += 1.0;
        }
        let found = statistic(&pairs, &counts);
        assert!(found < critical, "chi-square {found:.1}, {critical:.1} is the limit");
    }
}
