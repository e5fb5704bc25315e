//! The slow sampler, simple enough to verify by reading: whole sorts, one step after the other.
//!
//! It shares the weights and the uniform number with the fast ones and nothing else. Faster samplers must
//! agree with it token for token. Order and tie rules: NeMo's `text_generation_utils.py`,
//! `sample_sequence_batch`.

use tch::Tensor;
use torch_ext::view::f32_slice;

use crate::{
    RowState, SampledToken, SamplingError, TokenSampler, TopToken,
    philox::uniform,
    rules::{SamplingRules, bad_logits},
    weights::weight,
};

/// The reference implementation of [`TokenSampler`].
#[derive(Clone, Debug)]
pub struct ReferenceSampler {
    rules: SamplingRules,
}

impl ReferenceSampler {
    /// As [`crate::CpuSampler::new`].
    ///
    /// # Errors
    /// When the vocabulary is empty or too large.
    pub fn new(rules: SamplingRules) -> Result<Self, SamplingError> {
        Ok(Self { rules: rules.check()? })
    }

    fn sample_row(&self, raw: &[f32], state: &RowState<'_>) -> Result<SampledToken, SamplingError> {
        let row = self.processed(raw, state);
        if row.iter().any(|logit| logit.is_nan()) {
            return Err(bad_logits(state, "a NaN"));
        }
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::INFINITY {
            return Err(bad_logits(state, "an infinite value"));
        }
        if max == f32::NEG_INFINITY {
            return Err(bad_logits(state, "no token that may be chosen"));
        }
        let rules = self.rules.of(state);
        let params = &rules.params;
        let token = if params.use_greedy {
            sorted(&row)[0].0
        } else {
            let weights: Vec<f64> = row.iter().map(|&logit| weight(logit, max)).collect();
            let u = uniform(rules.seed, state.sample_idx, state.response_idx, state.num_generated);
            walk(&weights, u)
        };
        let logprob = params.compute_logprob.then(|| log_softmax(raw, token));
        let most_likely = sorted(raw).into_iter().filter(|&(_, logit)| logit > f32::NEG_INFINITY);
        let top = most_likely.take(params.top_logprobs as usize);
        let top = top.map(|(id, _)| TopToken { token: id as u32, logprob: log_softmax(raw, id) }).collect();
        Ok(SampledToken { token: token as u32, logprob, top })
    }

    fn processed(&self, raw: &[f32], state: &RowState<'_>) -> Vec<f32> {
        let rules = self.rules.of(state);
        let params = &rules.params;
        let mut row = raw.to_vec();
        for (id, logit) in row.iter_mut().enumerate() {
            if let Some((_, bias)) = self.rules.bias.iter().find(|(token, _)| *token == id as u32) {
                *logit += bias;
            }
            let is_allowed = |bits: &[u32]| bits.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
            if state.allowed.is_some_and(|bits| !is_allowed(bits)) {
                *logit = f32::NEG_INFINITY;
            }
            let holds_back = rules.structure.is_none() && state.num_generated < rules.min_length;
            if holds_back && rules.end_token_ids.contains(&(id as u32)) {
                *logit = f32::NEG_INFINITY;
            }
            if params.use_greedy {
                continue;
            }
            *logit /= params.temperature;
            if params.repetition_penalty != 1.0 && state.history.contains(&(id as u32)) {
                let penalty = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        // Rows with a NaN or an infinite value are refused; they cannot be sorted or compared.
        if params.use_greedy || row.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return row;
        }
        if let Some(k) = params.top_k.map(|k| k as usize).filter(|&k| k <= row.len()) {
            let threshold = sorted(&row)[k - 1].1;
            row.iter_mut().filter(|logit| **logit < threshold).for_each(|logit| *logit = f32::NEG_INFINITY);
        }
        if let Some(p) = params.top_p {
            let order = sorted(&row);
            let total: f64 = order.iter().map(|&(_, logit)| weight(logit, order[0].1)).sum();
            let mut mass_before = 0.0;
            for &(id, logit) in &order {
                if mass_before > f64::from(p) * total {
                    row[id] = f32::NEG_INFINITY;
                }
                mass_before += weight(logit, order[0].1);
            }
        }
        if let Some(min_p) = params.min_p {
            let max = sorted(&row)[0].1;
            let is_unlikely = |logit: &f32| weight(*logit, max) < f64::from(min_p);
            row.iter_mut().filter(|logit| is_unlikely(logit)).for_each(|logit| *logit = f32::NEG_INFINITY);
        }
        row
    }
}

impl TokenSampler for ReferenceSampler {
    fn sample(&mut self, logits: &Tensor, rows: &[RowState<'_>]) -> Result<Vec<SampledToken>, SamplingError> {
        let (logits, padded_vocab_size) = self.rules.to_host(logits, rows.len())?;
        let logits = f32_slice(&logits, "logits")?;
        rows.iter()
            .zip(logits.chunks(padded_vocab_size))
            .map(|(state, row)| self.sample_row(&row[..self.rules.vocab_size], state))
            .collect()
    }

    fn is_greedy(&self) -> bool {
        self.rules.row.params.use_greedy
    }
}

/// Ids and logits, the largest logit first, equal ones by id.
fn sorted(row: &[f32]) -> Vec<(usize, f32)> {
    let mut order: Vec<(usize, f32)> = row.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));
    order
}

fn walk(weights: &[f64], uniform: f64) -> usize {
    let target = uniform * weights.iter().sum::<f64>();
    let mut cumulative = 0.0;
    for (id, weight) in weights.iter().enumerate() {
        cumulative += weight;
        if cumulative > target {
            return id;
        }
    }
    weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0)
}

fn log_softmax(raw: &[f32], token: usize) -> f32 {
    let max = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = raw.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    (f64::from(raw[token] - max) - sum.ln()) as f32
}
