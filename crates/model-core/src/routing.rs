//! Which experts a token goes through, and what each of them counts: the router's rule on its logits.
//!
//! One implementation on the host for every backend, in float32 and in one order, so that what a token gets depends on its
//! logits alone. The rule is that of Megatron-Core's `topk_routing_with_score_function`.

use std::ops::Range;

use model_spec::{RouterScore, RouterSpec};

/// The experts of some tokens, `topk` for each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Routing {
    pub(crate) topk: usize,
    /// `[num_tokens, topk]`, best first.
    pub(crate) experts: Vec<u32>,
    /// `[num_tokens, topk]`: what the expert's output is multiplied by.
    pub(crate) weights: Vec<f32>,
}

/// The places of [`Routing::experts`], those of one expert together and in order of their tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ByExpert {
    /// `token * topk + slot`.
    pub(crate) places: Vec<i64>,
    /// The token of each.
    pub(crate) tokens: Vec<i64>,
    /// How many places each expert has.
    pub(crate) counts: Vec<usize>,
}

impl Routing {
    /// `logits`: `[num_tokens, num_experts]`; `bias`: `[num_experts]`, added to the scores that experts are chosen by.
    /// Of equal scores that of the lower expert counts as the larger.
    pub(crate) fn of(logits: &[f32], num_experts: usize, rule: &RouterSpec, bias: Option<&[f32]>) -> Self {
        let topk = rule.topk.min(num_experts).max(1);
        let num_places = logits.len() / num_experts.max(1) * topk;
        let mut routing =
            Self { topk, experts: Vec::with_capacity(num_places), weights: Vec::with_capacity(num_places) };
        let mut chosen = Vec::with_capacity(topk);
        for row in logits.chunks_exact(num_experts.max(1)) {
            let scores = scores(row, rule.score);
            choose(&scores, bias, topk, &mut chosen);
            let weights = weights(&scores, &chosen, rule);
            routing.experts.extend(chosen.iter().map(|&expert| expert as u32));
            routing.weights.extend(weights);
        }
        routing
    }

    /// The routing of some of its tokens.
    pub(crate) fn rows(&self, tokens: Range<usize>) -> Self {
        let places = tokens.start * self.topk..tokens.end * self.topk;
        Self {
            topk: self.topk,
            experts: self.experts[places.clone()].to_vec(),
            weights: self.weights[places].to_vec(),
        }
    }

    /// Groups the places by expert.
    pub(crate) fn by_expert(&self, num_experts: usize) -> ByExpert {
        let mut counts = vec![0; num_experts];
        for &expert in &self.experts {
            counts[expert as usize] += 1;
        }
        let mut next: Vec<usize> = Vec::with_capacity(num_experts);
        let mut sum = 0;
        for &count in &counts {
            next.push(sum);
            sum += count;
        }
        let mut places = vec![0; self.experts.len()];
        for (place, &expert) in (0..).zip(&self.experts) {
            let at = &mut next[expert as usize];
            places[*at] = place;
            *at += 1;
        }
        let tokens = places.iter().map(|place| place / self.topk as i64).collect();
        ByExpert { places, tokens, counts }
    }
}

fn scores(logits: &[f32], score: RouterScore) -> Vec<f32> {
    match score {
        RouterScore::SoftmaxOfChosen => logits.to_vec(),
        RouterScore::SoftmaxOfAll => softmax(logits),
        RouterScore::Sigmoid => logits.iter().map(|&logit| sigmoid(logit)).collect(),
    }
}

/// The indices of the largest scores, largest first.
fn choose(scores: &[f32], bias: Option<&[f32]>, topk: usize, chosen: &mut Vec<usize>) {
    let ranked = |idx: usize| match bias.and_then(|bias| bias.get(idx)) {
        Some(bias) => scores[idx] + bias,
        None => scores[idx],
    };
    chosen.clear();
    for _ in 0..topk {
        let mut best: Option<(usize, f32)> = None;
        for idx in (0..scores.len()).filter(|idx| !chosen.contains(idx)) {
            let score = ranked(idx);
            if best.is_none_or(|(_, best)| score > best) {
                best = Some((idx, score));
            }
        }
        chosen.extend(best.map(|(idx, _)| idx));
    }
}

fn weights(scores: &[f32], chosen: &[usize], rule: &RouterSpec) -> Vec<f32> {
    /// Megatron-Core's guard against a sum of zero.
    const SMALLEST_SUM: f32 = 1e-20;
    let of_chosen: Vec<f32> = chosen.iter().map(|&idx| scores[idx]).collect();
    let mut weights = match rule.score {
        RouterScore::SoftmaxOfChosen => softmax(&of_chosen),
        RouterScore::Sigmoid if of_chosen.len() > 1 => {
            let sum = of_chosen.iter().sum::<f32>() + SMALLEST_SUM;
            of_chosen.iter().map(|score| score / sum).collect()
        }
        RouterScore::SoftmaxOfAll | RouterScore::Sigmoid => of_chosen,
    };
    if let Some(scaling) = rule.scaling {
        weights.iter_mut().for_each(|weight| *weight *= scaling as f32);
    }
    weights
}

fn softmax(values: &[f32]) -> Vec<f32> {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = values.iter().map(|value| (value - max).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// The sigmoid in float32.
pub(crate) fn sigmoid(value: f32) -> f32 {
    1.0 / (1.0 + (-value).exp())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(topk: usize, score: RouterScore) -> RouterSpec {
        RouterSpec { topk, score, has_expert_bias: false, scaling: None }
    }

    fn near(actual: &[f32], expected: &[f32]) {
        assert_eq!(actual.len(), expected.len());
        let is_near = actual.iter().zip(expected).all(|(actual, expected)| (actual - expected).abs() < 1e-6);
        assert!(is_near, "{actual:?} {expected:?}");
    }

    #[test]
    fn weights_follow_the_rule() {
        let logits = [1.0, 3.0, 2.0, 0.0];
        let of = |rule: RouterSpec| Routing::of(&logits, 4, &rule, None);
        let (one, e) = (1.0_f32, std::f32::consts::E);
        let chosen = of(rule(2, RouterScore::SoftmaxOfChosen));
        assert_eq!(chosen.experts, [1, 2]);
        near(&chosen.weights, &[e / (e + one), one / (e + one)]);
        let all = of(rule(2, RouterScore::SoftmaxOfAll));
        let sum = 1.0 + e + e * e + e * e * e;
        near(&all.weights, &[e * e * e / sum, e * e / sum]);
        let sigmoid = |value: f32| 1.0 / (1.0 + (-value).exp());
        let normed = of(RouterSpec { scaling: Some(2.5), ..rule(2, RouterScore::Sigmoid) });
        let sum = sigmoid(3.0) + sigmoid(2.0);
        near(&normed.weights, &[2.5 * sigmoid(3.0) / sum, 2.5 * sigmoid(2.0) / sum]);
        near(&of(rule(1, RouterScore::Sigmoid)).weights, &[sigmoid(3.0)]);
    }

    /// Logits, and what Megatron-Core makes of them (`tests/fixtures/scripts/moe_routing.py`).
    #[derive(serde::Deserialize)]
    struct Golden {
        logits: Vec<Vec<f32>>,
        expert_bias: Vec<f32>,
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        topk: usize,
        score_function: String,
        #[serde(default)]
        use_pre_softmax: bool,
        scaling_factor: Option<f64>,
        has_expert_bias: bool,
        experts: Vec<Vec<u32>>,
        weights: Vec<Vec<f32>>,
    }

    #[test]
    fn experts_and_weights_are_those_of_megatron_core() {
        let text = include_str!("../../../tests/fixtures/moe_routing.json");
        let golden: Golden = serde_json::from_str(text).unwrap();
        assert_eq!(golden.cases.len(), 7);
        for case in golden.cases {
            let score = match (case.score_function.as_str(), case.use_pre_softmax) {
                ("softmax", false) => RouterScore::SoftmaxOfChosen,
                ("softmax", true) => RouterScore::SoftmaxOfAll,
                _ => RouterScore::Sigmoid,
            };
            let (has_expert_bias, scaling) = (case.has_expert_bias, case.scaling_factor);
            let rule = RouterSpec { topk: case.topk, score, has_expert_bias, scaling };
            let bias = has_expert_bias.then_some(golden.expert_bias.as_slice());
            let routing = Routing::of(&golden.logits.concat(), golden.expert_bias.len(), &rule, bias);
            assert_eq!(routing.experts, case.experts.concat(), "{rule:?}");
            near(&routing.weights, &case.weights.concat());
        }
    }

    #[test]
    fn a_bias_chooses_and_does_not_weigh() {
        let logits = [1.0, 3.0, 2.0, 0.0];
        let bias = [0.0, -5.0, 0.0, 5.0];
        let rule = RouterSpec { has_expert_bias: true, ..rule(2, RouterScore::Sigmoid) };
        let routing = Routing::of(&logits, 4, &rule, Some(&bias));
        assert_eq!(routing.experts, [3, 2]);
        let [third, second] = [0.5, sigmoid(2.0)];
        near(&routing.weights, &[third / (third + second), second / (third + second)]);
    }

    #[test]
    fn of_equal_scores_the_lower_expert_is_taken() {
        let of =
            |logits: &[f32]| Routing::of(logits, 4, &rule(2, RouterScore::SoftmaxOfChosen), None).experts;
        assert_eq!(of(&[1.0, 1.0, 1.0, 1.0]), [0, 1]);
        assert_eq!(of(&[0.0, 2.0, -0.0, 2.0]), [1, 3]);
        assert_eq!(of(&[-1.0, -0.0, 0.0, -1.0]), [1, 2]);
        // What no sum can come of is still two different experts.
        assert_eq!(of(&[f32::NAN; 4]), [0, 1]);
        assert_eq!(of(&[f32::NEG_INFINITY; 4]), [0, 1]);
    }

    #[test]
    fn places_are_grouped_in_order() {
        let routing = Routing { topk: 2, experts: vec![2, 0, 0, 3, 2, 3], weights: vec![0.5; 6] };
        let grouped = routing.by_expert(4);
        assert_eq!(grouped.counts, [2, 0, 2, 2]);
        assert_eq!(grouped.places, [1, 2, 0, 4, 3, 5]);
        assert_eq!(grouped.tokens, [0, 1, 0, 2, 1, 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_token_gets_the_best_experts_whatever_is_beside_it(
            rows in proptest::collection::vec(proptest::collection::vec(-4_i8..5, 6), 1..5),
            topk in 1_usize..7,
        ) {
            for score in [RouterScore::SoftmaxOfChosen, RouterScore::SoftmaxOfAll, RouterScore::Sigmoid] {
                let rule = rule(topk, score);
                let logits: Vec<f32> = rows.concat().into_iter().map(f32::from).collect();
                let all = Routing::of(&logits, 6, &rule, None);
                for (idx, row) in logits.chunks(6).enumerate() {
                    let alone = Routing::of(row, 6, &rule, None);
                    let places = idx * topk..(idx + 1) * topk;
                    prop_assert_eq!(&all.experts[places.clone()], &alone.experts[..]);
                    prop_assert_eq!(&all.weights[places], &alone.weights[..]);
                    let mut order: Vec<u32> = (0..6).collect();
                    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
                    prop_assert_eq!(&alone.experts[..], &order[..topk]);
                    if score != RouterScore::SoftmaxOfAll && topk > 1 {
                        prop_assert!((alone.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                    }
                }
                let grouped = all.by_expert(6);
                let mut places = grouped.places.clone();
                places.sort_unstable();
                prop_assert_eq!(places, (0..all.experts.len() as i64).collect::<Vec<_>>());
            }
        }
    }
}
