//! The trait that turns a step's logits into tokens, and its CPU implementation.
//!
//! The CPU sampler reads the logits in place, copies a row at most once and never sorts a whole one.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use torch_ext::view::f32_slice;

use crate::{
    RowState, SamplingError,
    argmax::{argmax, checked_max},
    draw::draw,
    philox::uniform,
    processors::{min_length, repetition_penalty, temperature, top_k, top_p},
    rules::{RowRules, SamplingRules, bad_logits},
    top_tokens::{TopToken, top_tokens},
    weights::{sum_weights, weight},
};

/// One chosen token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampledToken {
    /// The token id, below the tokenizer's vocabulary size.
    pub token: u32,
    /// Log-softmax of the raw fp32 logits over the tokenizer's vocabulary, when asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens by the raw logits, as many as are asked for; of those of no probability none.
    pub top: Vec<TopToken>,
}

/// Chooses one token a row.
pub trait TokenSampler: Send {
    /// `logits`: float32 `[num_rows, padded_vocab_size]`, any device; `rows`: one state a row.
    ///
    /// # Errors
    /// When the shapes do not fit, the device fails, or no token of a row can be chosen.
    fn sample(&mut self, logits: &Tensor, rows: &[RowState<'_>]) -> Result<Vec<SampledToken>, SamplingError>;

    /// Whether the responses of one sample without rules of its own are all the same, so that one of them is enough.
    fn is_greedy(&self) -> bool;
}

/// The sampler for logits on the CPU: rows in parallel, each a function of its own logits and state alone.
#[derive(Clone, Debug)]
pub struct CpuSampler {
    rules: SamplingRules,
}

impl CpuSampler {
    /// A sampler that follows these rules.
    ///
    /// # Errors
    /// When the vocabulary is empty or too large.
    pub fn new(rules: SamplingRules) -> Result<Self, SamplingError> {
        Ok(Self { rules: rules.check()? })
    }

    fn sample_row(
        &self,
        raw: &[f32],
        state: &RowState<'_>,
        scratch: &mut Scratch,
    ) -> Result<SampledToken, SamplingError> {
        let rules = self.rules.of(state);
        let token = if rules.params.use_greedy {
            self.greedy(rules, raw, state, scratch)
        } else {
            self.random(rules, raw, state, scratch)
        };
        let token = token.map_err(|problem| bad_logits(state, problem))?;
        let mut sampled = SampledToken { token: token as u32, logprob: None, top: Vec::new() };
        let num_top = rules.params.top_logprobs as usize;
        if rules.params.compute_logprob || num_top > 0 {
            let raw_row = RawRow::new(raw).map_err(|problem| bad_logits(state, problem))?;
            sampled.logprob = rules.params.compute_logprob.then(|| raw_row.logprob(raw[token]));
            sampled.top = top_tokens(raw, num_top, |logit| raw_row.logprob(logit));
        }
        Ok(sampled)
    }

    fn greedy(
        &self,
        rules: &RowRules,
        raw: &[f32],
        state: &RowState<'_>,
        scratch: &mut Scratch,
    ) -> Result<usize, &'static str> {
        let holds_back = rules.holds_back_end(state);
        if !holds_back && self.rules.bias.is_empty() && state.allowed.is_none() {
            return argmax(raw);
        }
        let row = scratch.copy(raw);
        self.rules.add_bias(row);
        SamplingRules::mask(row, state.allowed);
        if holds_back {
            min_length::apply(row, &rules.end_token_ids);
        }
        argmax(row)
    }

    fn random(
        &self,
        rules: &RowRules,
        raw: &[f32],
        state: &RowState<'_>,
        scratch: &mut Scratch,
    ) -> Result<usize, &'static str> {
        let params = &rules.params;
        let Scratch { row, block_sums, seen } = scratch;
        row.clear();
        row.extend_from_slice(raw);
        self.rules.add_bias(row);
        SamplingRules::mask(row, state.allowed);
        if rules.holds_back_end(state) {
            min_length::apply(row, &rules.end_token_ids);
        }
        if params.temperature != 1.0 {
            temperature::apply(row, params.temperature);
        }
        if params.repetition_penalty != 1.0 {
            repetition_penalty::apply(row, state.history, params.repetition_penalty, seen);
        }
        let max = checked_max(row)?;
        let u = uniform(rules.seed, state.sample_idx, state.response_idx, state.num_generated);

        let mut kept = Candidates::All(row);
        if let Some(k) = params.top_k.map(|k| k as usize).filter(|&k| k < kept.values().len()) {
            let threshold = top_k::threshold(kept.values(), max, k);
            kept = kept.filter(|_, value| value >= threshold);
        }
        if let Some(p) = params.top_p {
            let last = top_p::last_kept(kept.values(), max, p);
            kept = kept.filter(|idx, value| last.keeps(idx, value));
        }
        if let Some(min_p) = params.min_p {
            kept = kept.filter(|_, value| weight(value, max) >= f64::from(min_p));
        }
        Ok(kept.id(draw(kept.values(), max, u, block_sums)))
    }
}

impl TokenSampler for CpuSampler {
    fn sample(&mut self, logits: &Tensor, rows: &[RowState<'_>]) -> Result<Vec<SampledToken>, SamplingError> {
        let (logits, padded_vocab_size) = self.rules.to_host(logits, rows.len())?;
        let logits = f32_slice(&logits, "logits")?;
        rows.par_iter()
            .zip(logits.par_chunks(padded_vocab_size))
            .map_init(Scratch::default, |scratch, (state, row)| {
                self.sample_row(&row[..self.rules.vocab_size], state, scratch)
            })
            .collect()
    }

    fn is_greedy(&self) -> bool {
        self.rules.row.params.use_greedy
    }
}

/// Buffers that rows of one thread share.
#[derive(Debug, Default)]
struct Scratch {
    row: Vec<f32>,
    block_sums: Vec<f64>,
    seen: repetition_penalty::SeenTokens,
}

impl Scratch {
    fn copy(&mut self, raw: &[f32]) -> &mut [f32] {
        self.row.clear();
        self.row.extend_from_slice(raw);
        &mut self.row
    }
}

/// The tokens that may still be drawn, in order of id.
enum Candidates<'a> {
    All(&'a [f32]),
    Some { ids: Vec<u32>, values: Vec<f32> },
}

impl<'a> Candidates<'a> {
    fn values(&self) -> &[f32] {
        match self {
            Self::All(values) => values,
            Self::Some { values, .. } => values,
        }
    }

    fn id(&self, idx: usize) -> usize {
        match self {
            Self::All(_) => idx,
            Self::Some { ids, .. } => ids[idx] as usize,
        }
    }

    fn filter(&self, keeps: impl Fn(usize, f32) -> bool) -> Candidates<'a> {
        let kept = self.values().iter().copied().enumerate().filter(|&(idx, value)| keeps(idx, value));
        let (ids, values) = kept.map(|(idx, value)| (self.id(idx) as u32, value)).unzip();
        Candidates::Some { ids, values }
    }
}

/// What the log-softmax of a raw row needs to know of it.
pub(crate) struct RawRow {
    max: f32,
    log_sum: f64,
}

impl RawRow {
    pub(crate) fn new(raw: &[f32]) -> Result<Self, &'static str> {
        let max = checked_max(raw)?;
        Ok(Self { max, log_sum: sum_weights(raw, max).ln() })
    }

    pub(crate) fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit - self.max) - self.log_sum) as f32
    }
}

#[cfg(test)]
mod tests;
