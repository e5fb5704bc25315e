//! Rules of rows' own, biased, banned and masked tokens, and the most likely tokens, against the reference of the sampling crate.

use cuda_kernels::{Sample, SampleMasks, SampleRules, SampleStatus, SamplerScratch, SamplerState, TopTokens};
use sampling::{
    ROW_RULE_WORDS, ReferenceSampler, RowMasks, RowRules, RowState, SamplingParams, SamplingRules,
    TokenSampler, row_rule_words,
};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::sampling_check::records;
use crate::support::Gpu;

const NUM_TOP: u32 = 7;
const END_TOKENS: [u32; 2] = [1, 5];

/// The run's rules: every row has others, but for the first and every seventh.
fn run_params() -> SamplingParams {
    SamplingParams {
        use_greedy: false,
        temperature: 0.8,
        top_k: Some(30),
        top_p: None,
        repetition_penalty: 1.0,
        min_p: None,
        compute_logprob: true,
        top_logprobs: NUM_TOP,
    }
}

fn own(row: u32) -> Option<RowRules> {
    let params = match row % 7 {
        0 => return None,
        1 => SamplingParams { use_greedy: true, ..run_params() },
        2 => SamplingParams { temperature: 1.0, top_k: None, ..run_params() },
        3 => SamplingParams { top_k: Some(5), top_p: Some(0.4), ..run_params() },
        4 => SamplingParams { top_k: None, min_p: Some(0.05), repetition_penalty: 1.4, ..run_params() },
        5 => SamplingParams { top_p: Some(0.99), temperature: 2.5, ..run_params() },
        _ => SamplingParams { top_k: Some(1 << 30), ..run_params() },
    };
    let end_token_ids = END_TOKENS[..row as usize % 3].to_vec();
    Some(RowRules {
        params,
        seed: u64::from(row) << 33 | 5,
        end_token_ids,
        min_length: row % 4 * 20,
        structure: None,
    })
}

pub(crate) fn own_rules(gpu: &Gpu) -> Outcome {
    let mut num_tokens = 0;
    for (num_rows, vocab_size, padded) in
        [(15, 32_003, 32_064), (3, 7, 7), (300, 5003, 5004), (64, 128_256, 128_256)]
    {
        for (has_bias, has_masks) in [(false, false), (true, false), (false, true), (true, true)] {
            num_tokens +=
                check(gpu, num_rows, (vocab_size, padded), (has_bias, has_masks)).map_err(|error| {
                    format!("{num_rows} rows of {vocab_size}, bias {has_bias}, masks {has_masks}: {error}")
                })?;
        }
    }
    Ok(format!("{num_tokens} tokens"))
}

/// The tokens that a row may be given: all, about half of them, or two. Those that nothing else forbids are among them.
fn mask(row: u32, vocab_size: i64) -> Option<Vec<u32>> {
    let mut bits = vec![0_u32; (vocab_size as usize).div_ceil(32)];
    match row % 3 {
        0 => return None,
        1 => {
            for (word, bits) in (0_u32..).zip(&mut bits) {
                *bits =
                    (word + 1).wrapping_mul(row.wrapping_mul(0x9e37_79b9)).rotate_left(word % 31) | 0b1_1000;
            }
        }
        _ => {
            let last = 6 + row.wrapping_mul(7919) % (vocab_size as u32 - 6);
            for token in [4, last] {
                bits[token as usize / 32] |= 1 << (token % 32);
            }
        }
    }
    Some(bits)
}

fn check(
    gpu: &Gpu,
    num_rows: u32,
    (vocab_size, padded): (i64, i64),
    (has_bias, has_masks): (bool, bool),
) -> Result<usize, Box<dyn std::error::Error>> {
    let kernels = gpu.sampler_kernels()?;
    let shape = [i64::from(num_rows), padded];
    // Rounded, so that many are equal.
    let logits = Tensor::f_randn(shape, (Kind::Float, tch::Device::Cpu))?.f_mul_scalar(24.0)?;
    let logits = logits.f_round()?.f_div_scalar(8.0)?;
    let bias: Vec<(u32, f32)> = match has_bias {
        true => vec![(0, 3.5), (2, f32::NEG_INFINITY), (vocab_size as u32 - 1, -1.25)],
        false => Vec::new(),
    };
    let dense = gpu.put(&dense_bias(&bias, vocab_size)?)?;
    let row = RowRules {
        params: run_params(),
        seed: 99,
        end_token_ids: Vec::new(),
        min_length: 0,
        structure: None,
    };
    let mut reference =
        ReferenceSampler::new(SamplingRules { row, vocab_size: usize::try_from(vocab_size)?, bias })?;
    let words = rule_words(num_rows)?;
    let ids = gpu.ints(&(0..num_rows as i32).collect::<Vec<_>>(), &shape[..1])?;
    let (out, top) = (gpu.zeros(&[shape[0], 4], Kind::Int)?, gpu.zeros(&[shape[0], 14], Kind::Int)?);
    let on_gpu = gpu.put(&logits)?;
    let state = SamplerState {
        tokens: &gpu.zeros(&shape[..1], Kind::Int)?,
        positions: &gpu.zeros(&shape[..1], Kind::Int)?,
        num_generated: &ids.f_detach_copy()?,
        sample_idxs: &ids.f_to_kind(Kind::Int64)?,
        response_idxs: &gpu.zeros(&shape[..1], Kind::Int)?,
        seen: Some(&gpu.zeros(&[shape[0], (vocab_size + 31) / 32], Kind::Int)?),
        row_rules: Some(&gpu.ints(&words, &[shape[0], ROW_RULE_WORDS as i64])?),
    };
    let scratch = SamplerScratch::new(&gpu.device, shape[0], vocab_size)?;
    let row_masks = row_masks(num_rows, vocab_size, has_masks);
    let mask_of_entry = gpu.ints(&row_masks.mask_of_row, &shape[..1])?;
    let shape_of_bits = [row_masks.num_masks() as i64, (vocab_size + 31) / 32];
    let bits = gpu.ints(bytemuck::cast_slice(&row_masks.bits), &shape_of_bits)?;
    let sample = Sample {
        logits: &on_gpu,
        rules: &launch_rules(vocab_size),
        end_token_ids: None,
        bias: has_bias.then_some(&dense),
        masks: has_masks.then_some(SampleMasks { mask_of_entry: &mask_of_entry, bits: &bits }),
        forced: None,
        state,
        scratch: &scratch,
        admissions: None,
        out: &out,
    };
    kernels.sample(&gpu.stream, &sample)?;
    let most_likely = TopTokens { logits: &on_gpu, logits_rows: None, out: &top, vocab_size };
    kernels.top_tokens(&gpu.stream, &most_likely)?;
    let top = Vec::<i32>::try_from(&top.f_to_device(tch::Device::Cpu)?.f_flatten(0, -1)?)?;
    for ((row, sampled), top) in (0..num_rows).zip(records(&out)?).zip(top.chunks(2 * NUM_TOP as usize)) {
        let own = own(row);
        let state = RowState {
            sample_idx: row.into(),
            response_idx: 0,
            num_generated: row,
            history: &[],
            own: own.as_ref(),
            allowed: row_masks.allowed(row as usize),
        };
        let expect = reference.sample(&logits.f_narrow(0, i64::from(row), 1)?, &[state])?.remove(0);
        let ids: Vec<u32> = top.iter().step_by(2).filter(|&&id| id >= 0).map(|&id| id as u32).collect();
        let logprobs = top.iter().skip(1).step_by(2).map(|&bits| f32::from_bits(bits as u32));
        let is_right = sampled.status() == Some(SampleStatus::Chosen)
            && sampled.token == expect.token as i32
            && expect.logprob.is_some_and(|logprob| is_close(sampled.logprob, logprob))
            && ids == expect.top.iter().map(|top| top.token).collect::<Vec<_>>()
            && logprobs.zip(&expect.top).all(|(logprob, top)| is_close(logprob, top.logprob));
        ensure(is_right, || format!("row {row}: {sampled:?}, {ids:?}, the reference {expect:?}"))?;
    }
    Ok(num_rows as usize)
}

fn is_close(a: f32, b: f32) -> bool {
    (a - b).abs() < 2e-6 * b.abs().max(1.0)
}

fn rule_words(num_rows: u32) -> Result<Vec<i32>, sampling::SamplingError> {
    let words = |row| own(row).map_or(Ok([0; ROW_RULE_WORDS]), |own| row_rule_words(&own));
    Ok((0..num_rows).map(words).collect::<Result<Vec<_>, _>>()?.concat())
}

fn row_masks(num_rows: u32, vocab_size: i64, has_masks: bool) -> RowMasks {
    let mut masks = RowMasks::default();
    for row in 0..num_rows {
        masks.push(mask(row, vocab_size).filter(|_| has_masks).as_deref());
    }
    masks
}

/// float32 `[vocab_size]`.
fn dense_bias(bias: &[(u32, f32)], vocab_size: i64) -> Result<Tensor, Box<dyn std::error::Error>> {
    let mut dense = vec![0.0_f32; usize::try_from(vocab_size)?];
    bias.iter().for_each(|&(token, value)| dense[token as usize] = value);
    Ok(Tensor::f_from_slice(&dense)?)
}

fn launch_rules(vocab_size: i64) -> SampleRules {
    let params = run_params();
    SampleRules {
        use_greedy: params.use_greedy,
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        compute_logprob: params.compute_logprob,
        min_length: 0,
        seed: 99,
        vocab_size,
    }
}
