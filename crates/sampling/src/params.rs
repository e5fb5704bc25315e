//! Sampling parameters: as typed, and checked.
//!
//! Rules: an out-of-range `top_p` is "off" as in NeMo; everything else out of range is refused.

use crate::SamplingError;

/// Sampling parameters as the user typed them.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
pub struct RawSamplingParams {
    /// Always the most likely token; everything below except `compute_logprob` is ignored then.
    pub use_greedy: bool,
    /// Divides the logits.
    pub temperature: f64,
    /// Keep this many most likely tokens; 0 is off.
    pub top_k: i64,
    /// Keep the smallest set of this probability; off unless between 0 and 1.
    pub top_p: f64,
    /// Over prompt and generated tokens: divides positive logits, multiplies negative ones.
    pub repetition_penalty: f64,
    /// Keep tokens at least this likely, compared with the most likely one; 0 is off.
    #[serde(default)]
    pub min_p: f64,
    /// Return log-probabilities of the chosen tokens.
    pub compute_logprob: bool,
    /// Return this many most likely tokens at each place, with their log-probabilities; 0 is none.
    #[serde(default)]
    pub top_logprobs: i64,
}

/// Most tokens that `top_logprobs` gives at each place.
pub const MAX_TOP_LOGPROBS: u32 = 20;

/// Checked sampling parameters, of a run or of a row that has its own.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
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
    /// Keep tokens at least this likely, compared with the most likely one, in (0, 1]: the last of the filters.
    pub min_p: Option<f32>,
    /// Return log-probabilities of the chosen tokens.
    pub compute_logprob: bool,
    /// Return this many most likely tokens at each place, by the raw logits; at most [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: u32,
}

impl SamplingParams {
    /// Every token as the model has it, drawn at temperature 1: no filter, no penalty, no log-probabilities.
    pub const PLAIN: Self = Self {
        use_greedy: false,
        temperature: 1.0,
        top_k: None,
        top_p: None,
        repetition_penalty: 1.0,
        min_p: None,
        compute_logprob: false,
        top_logprobs: 0,
    };
}

/// No field of checked parameters is a NaN.
impl Eq for SamplingParams {}

impl TryFrom<RawSamplingParams> for SamplingParams {
    type Error = SamplingError;

    fn try_from(raw: RawSamplingParams) -> Result<Self, SamplingError> {
        // Greedy never divides, and `temperature=0` is a common way to ask for it.
        let temperature = if raw.use_greedy {
            1.0
        } else {
            positive("temperature", POSITIVE_TEMPERATURE, raw.temperature)?
        };
        Ok(Self {
            use_greedy: raw.use_greedy,
            temperature,
            top_k: check_top_k(raw.top_k)?,
            top_p: check_top_p(raw.top_p)?,
            repetition_penalty: positive("repetition_penalty", POSITIVE, raw.repetition_penalty)?,
            min_p: check_min_p(raw.min_p)?,
            compute_logprob: raw.compute_logprob,
            top_logprobs: check_top_logprobs(raw.top_logprobs)?,
        })
    }
}

const POSITIVE: &str = "a positive, finite number";
const POSITIVE_TEMPERATURE: &str =
    "a positive, finite number (or set `model.generation.sampling_params.use_greedy=true`)";

fn positive(key: &'static str, expected: &'static str, value: f64) -> Result<f32, SamplingError> {
    let narrow = value as f32;
    // `is_normal` also refuses what is positive in f64 and vanishes in f32.
    if narrow > 0.0 && narrow.is_normal() {
        return Ok(narrow);
    }
    Err(SamplingError::BadParam { key, expected, actual: value.to_string() })
}

fn check_top_k(value: i64) -> Result<Option<u32>, SamplingError> {
    match u32::try_from(value) {
        Ok(0) => Ok(None),
        Ok(k) => Ok(Some(k)),
        Err(_) => Err(SamplingError::BadParam {
            key: "top_k",
            expected: "0 (off) or a number of tokens up to 4294967295",
            actual: value.to_string(),
        }),
    }
}

fn check_top_p(value: f64) -> Result<Option<f32>, SamplingError> {
    if value.is_nan() {
        return Err(SamplingError::BadParam {
            key: "top_p",
            expected: "a number (off unless between 0 and 1)",
            actual: value.to_string(),
        });
    }
    // The clamp keeps what is inside (0, 1) in f64 inside it in f32.
    let is_on = value > 0.0 && value < 1.0;
    Ok(is_on.then(|| (value as f32).clamp(f32::MIN_POSITIVE, 1.0 - f32::EPSILON / 2.0)))
}

fn check_min_p(value: f64) -> Result<Option<f32>, SamplingError> {
    if !(0.0..=1.0).contains(&value) {
        return Err(SamplingError::BadParam {
            key: "min_p",
            expected: "a number from 0 (off) to 1",
            actual: value.to_string(),
        });
    }
    Ok((value > 0.0).then(|| (value as f32).max(f32::MIN_POSITIVE)))
}

fn check_top_logprobs(value: i64) -> Result<u32, SamplingError> {
    u32::try_from(value).ok().filter(|&k| k <= MAX_TOP_LOGPROBS).ok_or_else(|| SamplingError::BadParam {
        key: "top_logprobs",
        expected: "a number of tokens from 0 to 20",
        actual: value.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawSamplingParams {
        RawSamplingParams {
            use_greedy: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            min_p: 0.0,
            compute_logprob: false,
            top_logprobs: 0,
        }
    }

    #[test]
    fn off_values_become_none() {
        let params = SamplingParams::try_from(raw()).unwrap();
        assert_eq!((params.top_k, params.top_p), (None, None));
        for top_p in [-0.5, 0.0, 1.0, 7.0] {
            assert_eq!(SamplingParams::try_from(RawSamplingParams { top_p, ..raw() }).unwrap().top_p, None);
        }
    }

    #[test]
    fn top_p_stays_on_where_f32_would_round_it_off() {
        for top_p in [1e-60, 1.0 - 1e-12] {
            let p = SamplingParams::try_from(RawSamplingParams { top_p, ..raw() }).unwrap().top_p.unwrap();
            assert!(p > 0.0 && p < 1.0, "{p}");
        }
    }

    #[test]
    fn min_p_is_off_at_zero_only() {
        let min_p = |min_p| SamplingParams::try_from(RawSamplingParams { min_p, ..raw() }).unwrap().min_p;
        assert_eq!((min_p(0.0), min_p(1.0)), (None, Some(1.0)));
        assert_eq!(min_p(1e-60), Some(f32::MIN_POSITIVE));
    }

    #[test]
    fn greedy_needs_no_temperature() {
        SamplingParams::try_from(RawSamplingParams { use_greedy: true, temperature: 0.0, ..raw() }).unwrap();
    }

    #[test]
    fn errors_name_key_range_and_value() {
        let check = |raw: RawSamplingParams, expect: &str| {
            assert_eq!(SamplingParams::try_from(raw).unwrap_err().to_string(), expect);
        };
        check(
            RawSamplingParams { temperature: 0.0, ..raw() },
            "`temperature` must be a positive, finite number (or set `model.generation.sampling_params.use_greedy=true`), got 0",
        );
        check(
            RawSamplingParams { temperature: f64::INFINITY, ..raw() },
            "`temperature` must be a positive, finite number (or set `model.generation.sampling_params.use_greedy=true`), got inf",
        );
        check(
            RawSamplingParams { top_k: -1, ..raw() },
            "`top_k` must be 0 (off) or a number of tokens up to 4294967295, got -1",
        );
        check(
            RawSamplingParams { top_p: f64::NAN, ..raw() },
            "`top_p` must be a number (off unless between 0 and 1), got NaN",
        );
        check(
            RawSamplingParams { repetition_penalty: -2.0, ..raw() },
            "`repetition_penalty` must be a positive, finite number, got -2",
        );
        check(
            RawSamplingParams { min_p: 1.5, ..raw() },
            "`min_p` must be a number from 0 (off) to 1, got 1.5",
        );
        check(
            RawSamplingParams { top_logprobs: 21, ..raw() },
            "`top_logprobs` must be a number of tokens from 0 to 20, got 21",
        );
    }
}
