//! The requests of each measure of `aligner-gen bench --shape`, by the measure's name.
//!
//! Prompts and lengths are those of the peers (`xtask/peers`): ids from the fixed generator, lengths from torch's with the
//! peers' seeds.

use engine::{Foresight, Request};
use sampling::uniform;
use tch::{Kind, Tensor};

use super::copying;
use super::shapes::{self, MAX_SEQ_LEN_TOKENS};
use crate::exit::Failure;

/// New tokens of the bulk cases.
const BULK_TOKENS: u32 = 256;
/// Tokens that a decode case runs through, around its context length.
const DECODE_TOKENS: u32 = 64;
/// Prompt and new tokens of a row of `copied`.
const COPIED_TOKENS: [usize; 2] = [512, 256];

/// What a measure does.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) name: String,
    pub(super) requests: Vec<Request>,
    /// Most sequences in one step.
    pub(super) max_num_seqs: usize,
    pub(super) weights: shapes::Weights,
    pub(super) figures: Figures,
}

/// What its line says beside the usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figures {
    Usual,
    /// Of a step, all of which have these rows and this mean context: the floor that memory sets.
    Floor {
        rows: usize,
        context: usize,
    },
    /// Requests, and all tokens, in and out, a second.
    Requests,
    /// What part of the response's tokens are copied.
    Copied,
}

impl Workload {
    /// `decode:ROWS:CONTEXT`, `fixed:IN:OUT:N`, `prefixed:N:PREFIX:OWN:OUT`, `copied:ROWS`, `bulk`, `ragged`, `order`,
    /// `prefill`, `shared`, `copies` or `single`.
    pub(super) fn of(measure: &str, vocab_size: usize, max_num_seqs: usize) -> Result<Self, Failure> {
        let (name, numbers) = parse(measure)?;
        let request = |idx, prompt_len, new| request(idx, prompt_len, new, vocab_size);
        let usual = |requests: Vec<Request>| Self {
            name: measure.to_owned(),
            requests,
            max_num_seqs,
            weights: shapes::Weights::Random,
            figures: Figures::Usual,
        };
        let workload = match (name, numbers.as_slice()) {
            ("decode", &[rows, context]) => {
                let prompt_len = context.saturating_sub(DECODE_TOKENS as usize / 2).max(1);
                let context = prompt_len + DECODE_TOKENS as usize / 2;
                Self {
                    max_num_seqs: rows,
                    figures: Figures::Floor { rows, context },
                    ..usual((0..rows as u64).map(|idx| request(idx, prompt_len, DECODE_TOKENS)).collect())
                }
            }
            ("fixed", &[prompt_len, new, count]) => Self {
                figures: Figures::Requests,
                ..usual((0..count as u64).map(|idx| request(idx, prompt_len, new as u32)).collect())
            },
            ("prefixed", &[count, prefix_len, own_len, new]) => {
                // The prefix has a number of its own, which no request has.
                let prefix = request(count as u64, prefix_len, 0).prompt;
                let with_prefix = |idx| {
                    let own = request(idx, own_len, new as u32);
                    Request { prompt: [prefix.as_slice(), &own.prompt].concat(), ..own }
                };
                Self { figures: Figures::Requests, ..usual((0..count as u64).map(with_prefix).collect()) }
            }
            ("copied", &[rows]) => {
                let [prompt_len, new] = COPIED_TOKENS;
                let copied = |sample_idx| Request {
                    sample_idx,
                    prompt: copying::prompt(sample_idx, prompt_len),
                    num_responses: 1,
                    max_new_tokens: new as u32,
                    own: None,
                    foresight: Foresight::default(),
                };
                Self {
                    max_num_seqs: rows,
                    weights: shapes::Weights::Copying,
                    figures: Figures::Copied,
                    ..usual((0..rows as u64).map(copied).collect())
                }
            }
            ("bulk", []) => usual(bulk(vocab_size, &[BULK_TOKENS; 256])?),
            ("order", []) => {
                let mut requests = bulk(vocab_size, &[BULK_TOKENS; 256])?;
                requests.reverse();
                requests.rotate_left(77);
                usual(requests)
            }
            ("ragged", []) => usual(bulk(vocab_size, &ragged_lens()?)?),
            ("prefill", []) => usual((0..16).map(|idx| request(idx, 1024, 1)).collect()),
            ("shared", []) => {
                usual((0..8).map(|idx| Request { num_responses: 8, ..request(idx, 1024, 256) }).collect())
            }
            ("copies", []) => {
                // The same prompts, each eight times by itself.
                let copy = |idx: u64| Request { sample_idx: idx, ..request(idx / 8, 1024, 256) };
                usual((0..64).map(copy).collect())
            }
            ("single", []) => Self { max_num_seqs: 1, ..usual(vec![request(0, 128, 128)]) },
            _ => return Err(Failure::usage(format!("`{measure}` is no measure of `--shape`"))),
        };
        workload.check()
    }

    fn check(self) -> Result<Self, Failure> {
        let len = |request: &Request| request.prompt.len() + request.max_new_tokens as usize;
        match self.requests.iter().map(len).max() {
            Some(longest) if longest > MAX_SEQ_LEN_TOKENS => Err(Failure::usage(format!(
                "`{}`: sequences of {longest} tokens, and the shapes are for {MAX_SEQ_LEN_TOKENS} at most",
                self.name
            ))),
            _ => Ok(self),
        }
    }
}

/// The name and the numbers of a measure such as `decode:64:512`.
fn parse(measure: &str) -> Result<(&str, Vec<usize>), Failure> {
    let mut parts = measure.split(':');
    let name = parts.next().unwrap_or_default();
    let number = |text: &str| match text.parse::<u32>() {
        Ok(number) if number > 0 => Ok(number as usize),
        _ => Err(Failure::usage(format!("`{measure}`: `{text}` is no number from 1 up"))),
    };
    Ok((name, parts.map(number).collect::<Result<_, Failure>>()?))
}

/// A request without any wishes.
pub(super) fn request(sample_idx: u64, prompt_len: usize, max_new_tokens: u32, vocab_size: usize) -> Request {
    Request {
        sample_idx,
        prompt: prompt(sample_idx, prompt_len, vocab_size),
        num_responses: 1,
        max_new_tokens,
        own: None,
        foresight: Foresight::default(),
    }
}

/// Ids from the fixed generator.
pub(super) fn prompt(sample_idx: u64, len: usize, vocab_size: usize) -> Vec<u32> {
    (0..len as u32).map(|position| (uniform(7, sample_idx, 0, position) * vocab_size as f64) as u32).collect()
}

/// The peers' prompts: lengths from 32 to 512.
fn bulk(vocab_size: usize, new_tokens: &[u32]) -> Result<Vec<Request>, Failure> {
    tch::manual_seed(0);
    let lens = Tensor::f_randint_low(32, 513, [new_tokens.len() as i64], (Kind::Int64, tch::Device::Cpu));
    let lens = lens.and_then(Vec::<i64>::try_from).map_err(anyhow::Error::from)?;
    let requests = (0..).zip(lens.iter().zip(new_tokens));
    Ok(requests.map(|(idx, (&len, &new))| request(idx, len as usize, new, vocab_size)).collect())
}

/// The peers' long-tailed lengths, from 16 to 256.
fn ragged_lens() -> Result<Vec<u32>, Failure> {
    tch::manual_seed(1);
    let numbers = Tensor::f_rand([256], (Kind::Float, tch::Device::Cpu));
    let numbers = numbers.and_then(Vec::<f32>::try_from).map_err(anyhow::Error::from)?;
    let span = (BULK_TOKENS - 16) as f32;
    Ok(numbers.iter().map(|u| (16.0 + span * u.powi(3)) as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(measure: &str) -> Workload {
        Workload::of(measure, 512, 256).unwrap()
    }

    fn refused(measure: &str) -> String {
        Workload::of(measure, 512, 256).unwrap_err().sentence()
    }

    #[test]
    fn requests_are_as_many_and_as_long_as_the_name_says() {
        let check = |measure: &str, expect: (usize, usize, u32, usize)| {
            let workload = of(measure);
            let first = &workload.requests[0];
            let actual =
                (workload.requests.len(), first.prompt.len(), first.max_new_tokens, workload.max_num_seqs);
            assert_eq!(actual, expect, "{measure}");
        };
        check("decode:64:512", (64, 480, 64, 64));
        check("fixed:128:32:1000", (1000, 128, 32, 256));
        check("prefixed:10:200:50:64", (10, 250, 64, 256));
        check("copied:8", (8, 512, 256, 8));
        check("single", (1, 128, 128, 1));
    }

    #[test]
    fn prompts_with_a_prefix_differ_behind_it() {
        let requests = of("prefixed:3:40:5:1").requests;
        assert_eq!(requests[0].prompt[..40], requests[2].prompt[..40]);
        assert_ne!(requests[0].prompt[40..], requests[2].prompt[40..]);
    }

    #[test]
    fn what_is_no_measure_is_named() {
        insta::assert_snapshot!(refused("decode:64"), @"`decode:64` is no measure of `--shape`");
        insta::assert_snapshot!(refused("fixed:1:x:3"), @"`fixed:1:x:3`: `x` is no number from 1 up");
        insta::assert_snapshot!(refused("copied:0"), @"`copied:0`: `0` is no number from 1 up");
        insta::assert_snapshot!(
            refused("fixed:4000:97:2"),
            @"`fixed:4000:97:2`: sequences of 4097 tokens, and the shapes are for 4096 at most"
        );
    }
}
