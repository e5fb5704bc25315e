//! Tokens of texts that are known, against the host's sampler of such texts.

use std::sync::{Arc, Mutex};

use cuda_kernels::{Admission, ForcedTokens, Sample, SampleRules, SampleStatus, SamplerScratch};
use sampling::{ForcedSampler, RowState, TokenSampler};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::sampling_check::{Slots, records, rules};
use crate::support::Gpu;

/// Tokens of known texts, with the log-probabilities of the host's sampler: of slots, and behind prompts.
pub(crate) fn forced(gpu: &Gpu) -> Outcome {
    let mut num_tokens = 0;
    for (num_rows, vocab_size, padded) in
        [(9, 32_003, 32_064), (3, 7, 7), (600, 5003, 5004), (64, 128_256, 128_256)]
    {
        for of_prompts in [false, true] {
            num_tokens += check_forced(gpu, num_rows, (vocab_size, padded), of_prompts).map_err(|error| {
                format!("{num_rows} rows of {vocab_size}, of prompts {of_prompts}: {error}")
            })?;
        }
    }
    Ok(format!("{num_tokens} tokens"))
}

fn check_forced(
    gpu: &Gpu,
    num_rows: i64,
    (vocab_size, padded): (i64, i64),
    of_prompts: bool,
) -> Result<usize, Box<dyn std::error::Error>> {
    let kernels = gpu.sampler_kernels()?;
    let rules = SampleRules { use_greedy: true, compute_logprob: true, vocab_size, ..rules()[0] };
    let logits = Tensor::f_randn([num_rows, padded], (Kind::Float, tch::Device::Cpu))?.f_mul_scalar(3.0)?;
    // Text i has i tokens, which is one too few for a slot that has generated i.
    let texts: Vec<Vec<u32>> = (0..num_rows as u32)
        .map(|row| (0..row % 5).map(|nth| (row * 7919 + nth * 31) % vocab_size as u32).collect())
        .collect();
    let mut starts = vec![0_i64];
    let mut tokens = vec![0_i32; 0];
    for text in &texts {
        tokens.extend(text.iter().map(|&token| token as i32));
        starts.push(tokens.len() as i64);
    }
    let slots = Slots::new(gpu, &vec![5; num_rows as usize], vocab_size)?;
    let idxs: Vec<i32> = (0..num_rows as i32).collect();
    slots.sample_idxs.shallow_clone().f_copy_(&gpu.ints(&idxs, &[num_rows])?)?;
    let generated: Vec<i32> = idxs.iter().map(|row| row / 5 % 5).collect();
    slots.num_generated.shallow_clone().f_copy_(&gpu.ints(&generated, &[num_rows])?)?;
    let admissions = one_each(gpu, &idxs)?;
    let scratch = SamplerScratch::new(&gpu.device, num_rows, vocab_size)?;
    let out = gpu.zeros(&[num_rows, 4], Kind::Int)?;
    let forced = ForcedTokens {
        tokens: &gpu.ints(&tokens, &[tokens.len() as i64])?,
        starts: &gpu.put(&Tensor::f_from_slice(&starts)?)?,
    };
    kernels.sample(
        &gpu.stream,
        &Sample {
            logits: &gpu.put(&logits)?,
            rules: &rules,
            end_token_ids: None,
            bias: None,
            masks: None,
            forced: Some(forced),
            state: slots.state(),
            scratch: &scratch,
            admissions: of_prompts.then_some(&admissions),
            out: &out,
        },
    )?;
    let mut sampler =
        ForcedSampler::new(Arc::new(Mutex::new(texts.clone())), usize::try_from(vocab_size)?, 0)?;
    let mut num_tokens = 0;
    for (row, sampled) in idxs.iter().zip(records(&out)?) {
        let num_generated = if of_prompts { 0 } else { generated[*row as usize] as u32 };
        let state = RowState {
            sample_idx: *row as u64,
            response_idx: 0,
            num_generated,
            history: &[],
            own: None,
            allowed: None,
        };
        let problem = |expect: &dyn std::fmt::Debug| format!("row {row}: {sampled:?}, the host {expect:?}");
        if texts[*row as usize].get(num_generated as usize).is_none() {
            ensure(sampled.status() == Some(SampleStatus::HasNoToken), || problem(&"nothing"))?;
            continue;
        }
        let expect = sampler.sample(&logits.f_narrow(0, i64::from(*row), 1)?, &[state])?.remove(0);
        let is_close = expect
            .logprob
            .is_some_and(|logprob| (logprob - sampled.logprob).abs() < 2e-6 * logprob.abs().max(1.0));
        ensure(sampled.token == expect.token as i32 && is_close, || problem(&expect))?;
        num_tokens += 1;
    }
    Ok(num_tokens)
}

/// An admission for each row, to the slot of its number.
fn one_each(gpu: &Gpu, idxs: &[i32]) -> Result<Tensor, Box<dyn std::error::Error>> {
    let admission = |&row: &i32| Admission {
        logits_row: row,
        slot: row,
        position: 5,
        response_idx: 0,
        sample_idx: row as u64,
        reserved: 0,
    };
    let list: Vec<Admission> = idxs.iter().map(admission).collect();
    let words: &[i64] = bytemuck::cast_slice(list.as_slice());
    gpu.put(&Tensor::f_from_slice(words)?.f_reshape([-1, 4])?)
}
