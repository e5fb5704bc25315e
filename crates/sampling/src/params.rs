//! Sampling parameters: as typed, and checked.

use crate::SamplingError;

/// Sampling parameters as the user typed them.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
pub struct RawSamplingParams {
    /// Always the most likely token; everything below is ignored then.
    pub use_greedy: bool,
    /// Divides the logits.
    pub temperature: f64,
    /// Keep this many most likely tokens; 0 is off.
    pub top_k: i64,
    /// Keep the smallest set of this probability; off unless between 0 and 1.
    pub top_p: f64,
    /// Over prompt and generated tokens: divides positive logits, multiplies negative ones.
    pub repetition_penalty: f64,
    /// Return log-probabilities of the chosen tokens.
    pub compute_logprob: bool,
}

/// Checked sampling parameters, one set for a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Always the most likely token.
    pub use_greedy: bool,
    /// Divides the logits; positive and finite.
    pub temperature: f32,
    /// Keep this many most likely tokens.
    pub top_k: Option<u32>,
    /// Keep the smallest set of this probability, in (0, 1).
    pub top_p: Option<f32>,
    /// Over prompt and generated tokens; positive and finite, 1 is off.
    pub repetition_penalty: f32,
    /// Return log-probabilities of the chosen tokens.
    pub compute_logprob: bool,
}

impl TryFrom<RawSamplingParams> for SamplingParams {
    type Error = SamplingError;

    fn try_from(raw: RawSamplingParams) -> Result<Self, SamplingError> {
        if !(raw.temperature > 0.0 && raw.temperature.is_finite()) {
            return Err(SamplingError::BadParam {
                key: "temperature",
                expected: "a positive number",
                actual: raw.temperature.to_string(),
            });
        }
        Ok(Self {
            use_greedy: raw.use_greedy,
            temperature: raw.temperature as f32,
            top_k: u32::try_from(raw.top_k).ok().filter(|&k| k > 0),
            top_p: Some(raw.top_p as f32).filter(|&p| p > 0.0 && p < 1.0),
            repetition_penalty: raw.repetition_penalty as f32,
            compute_logprob: raw.compute_logprob,
        })
    }
}
