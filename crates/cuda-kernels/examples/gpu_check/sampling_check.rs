//! The sampler against the reference of the sampling crate, token for token.

use cuda_kernels::{
    Admission, MarkSeen, Sample, SampleRules, SampleStatus, Sampled, SamplerKernels, SamplerScratch,
    SamplerState,
};
use sampling::{ReferenceSampler, RowRules, RowState, SamplingParams, SamplingRules, TokenSampler};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::support::{Checked, Gpu, same};

const SEED: u64 = 0x0123_4567_89ab_cdef;
const NUM_ROWS: i64 = 9;
/// The row that is not in use.
const IDLE_ROW: i64 = 7;
const END_TOKENS: [i32; 3] = [0, 2, 600_000];

pub(crate) fn rules() -> [SampleRules; 14] {
    let base = SampleRules {
        use_greedy: false,
        temperature: 1.0,
        top_k: None,
        top_p: None,
        min_p: None,
        repetition_penalty: 1.0,
        compute_logprob: false,
        min_length: 0,
        seed: SEED,
        vocab_size: 0,
    };
    [
        base,
        SampleRules { temperature: 0.7, ..base },
        SampleRules { use_greedy: true, ..base },
        SampleRules { use_greedy: true, compute_logprob: true, min_length: 3, ..base },
        SampleRules { temperature: 1.3, compute_logprob: true, ..base },
        SampleRules { top_k: Some(50), ..base },
        SampleRules { top_k: Some(1), min_length: 5, ..base },
        SampleRules { top_p: Some(0.9), compute_logprob: true, ..base },
        SampleRules { top_p: Some(0.3), top_k: Some(7), ..base },
        SampleRules { top_p: Some(0.999), temperature: 2.0, repetition_penalty: 1.3, ..base },
        SampleRules { top_k: Some(4000), repetition_penalty: 0.8, min_length: 5, ..base },
        SampleRules { min_p: Some(0.1), ..base },
        SampleRules { min_p: Some(1.0), temperature: 0.7, ..base },
        SampleRules { min_p: Some(0.02), top_p: Some(0.95), top_k: Some(40), compute_logprob: true, ..base },
    ]
}

pub(crate) fn against_reference(gpu: &Gpu) -> Outcome {
    let kernels = gpu.sampler_kernels()?;
    let mut num_tokens = 0;
    for (vocab_size, padded) in [(256_000, 256_000), (50_257, 50_304), (8192, 8192), (1003, 1003), (3, 5)] {
        // The reference sorts whole rows, which takes its time on the largest vocabulary.
        let (stride, spreads): (usize, &[f64]) =
            if vocab_size > 100_000 { (4, &[1.0]) } else { (1, &[0.01, 1.0, 4.0]) };
        for rules in rules().into_iter().step_by(stride) {
            for &spread in spreads {
                let rules = SampleRules { vocab_size, ..rules };
                num_tokens += check(gpu, &kernels, &rules, &logits([NUM_ROWS, padded], vocab_size, spread)?)
                    .map_err(|error| format!("{rules:?}, logits of spread {spread}: {error}"))?;
            }
        }
    }
    Ok(format!("{num_tokens} tokens"))
}

/// A batch so large that all warps of the GPU share its rows, where the width allows.
pub(crate) fn many_rows(gpu: &Gpu) -> Outcome {
    let kernels = gpu.sampler_kernels()?;
    let mut num_tokens = 0;
    // The last is the largest batch of a decode step, with one set of rules: the reference takes its time.
    for (num_rows, vocab_size, padded, num_rules) in [
        (200, 32_003, 32_064, usize::MAX),
        (40, 250_000, 250_004, usize::MAX),
        (40, 250_000, 250_003, usize::MAX),
        (512, 50_257, 50_304, usize::MAX),
        (1000, 32_003, 32_064, usize::MAX),
        (1024, 128_256, 128_256, 1),
    ] {
        let plain =
            |rules: &SampleRules| rules.top_k.is_none() && rules.top_p.is_none() && rules.min_p.is_none();
        for rules in rules().into_iter().filter(plain).take(num_rules) {
            let rules = SampleRules { vocab_size, ..rules };
            num_tokens += check(gpu, &kernels, &rules, &logits([num_rows, padded], vocab_size, 2.0)?)
                .map_err(|error| format!("{rules:?}: {error}"))?;
        }
    }
    Ok(format!("{num_tokens} tokens"))
}

/// `float32[num_rows, padded]`: some rows with ties, and, where there is room, rows that cannot be drawn from.
fn logits(
    [num_rows, padded]: [i64; 2],
    vocab_size: i64,
    spread: f64,
) -> Result<Tensor, Box<dyn std::error::Error>> {
    let logits =
        Tensor::f_randn([num_rows, padded], (Kind::Float, tch::Device::Cpu))?.f_mul_scalar(spread)?;
    let mut ties = logits.f_narrow(0, 0, 4)?;
    ties.f_copy_(&ties.f_mul_scalar(8.0)?.f_round()?.f_div_scalar(8.0)?)?;
    let _ = logits.f_get(2)?.f_zero_()?;
    if vocab_size > 3 {
        let _ = logits.f_get(4)?.f_get(1)?.f_fill_(f64::NAN)?;
        let _ = logits.f_get(5)?.f_get(2)?.f_fill_(f64::INFINITY)?;
        let _ = logits.f_get(6)?.f_fill_(f64::NEG_INFINITY)?;
    }
    if padded > vocab_size {
        let _ = logits.f_narrow(1, vocab_size, padded - vocab_size)?.f_fill_(1e9)?;
    }
    Ok(logits)
}

/// The arrays behind a [`SamplerState`].
pub(crate) struct Slots {
    tokens: Tensor,
    positions: Tensor,
    pub(crate) num_generated: Tensor,
    pub(crate) sample_idxs: Tensor,
    response_idxs: Tensor,
    seen: Tensor,
}

impl Slots {
    pub(crate) fn new(
        gpu: &Gpu,
        positions: &[i32],
        vocab_size: i64,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let num_slots = positions.len() as i64;
        let idxs: Vec<i32> = (0..num_slots as i32).collect();
        let idxs = gpu.ints(&idxs, &[num_slots])?;
        Ok(Self {
            tokens: gpu.zeros(&[num_slots], Kind::Int)?,
            positions: gpu.ints(positions, &[num_slots])?,
            num_generated: idxs.f_detach_copy()?,
            sample_idxs: idxs.f_to_kind(Kind::Int64)?.f_mul_scalar(1_i64 << 33)?.f_add_scalar(3)?,
            response_idxs: idxs.f_mul_scalar(7)?,
            seen: gpu.zeros(&[num_slots, (vocab_size + 31) / 32], Kind::Int)?,
        })
    }

    pub(crate) fn state(&self) -> SamplerState<'_> {
        SamplerState {
            tokens: &self.tokens,
            positions: &self.positions,
            num_generated: &self.num_generated,
            sample_idxs: &self.sample_idxs,
            response_idxs: &self.response_idxs,
            seen: Some(&self.seen),
            row_rules: None,
        }
    }

    fn numbers(&self, slot: i64) -> Result<[i64; 3], tch::TchError> {
        let at = |tensor: &Tensor| tensor.f_int64_value(&[slot]);
        Ok([at(&self.tokens)?, at(&self.positions)?, at(&self.num_generated)?])
    }
}

fn params(rules: &SampleRules) -> SamplingParams {
    SamplingParams {
        use_greedy: rules.use_greedy,
        temperature: rules.temperature,
        top_k: rules.top_k,
        top_p: rules.top_p,
        repetition_penalty: rules.repetition_penalty,
        min_p: rules.min_p,
        compute_logprob: rules.compute_logprob,
        top_logprobs: 0,
    }
}

fn reference(rules: &SampleRules) -> Result<ReferenceSampler, Box<dyn std::error::Error>> {
    let end_tokens = END_TOKENS.iter().map(|&token| token as u32).collect();
    Ok(ReferenceSampler::new(SamplingRules {
        row: RowRules {
            params: params(rules),
            seed: rules.seed,
            end_token_ids: end_tokens,
            min_length: rules.min_length,
            structure: None,
        },
        vocab_size: usize::try_from(rules.vocab_size)?,
        bias: vec![],
    })?)
}

pub(crate) fn records(out: &Tensor) -> Result<Vec<Sampled>, Box<dyn std::error::Error>> {
    let words = Vec::<i32>::try_from(&out.f_to_device(tch::Device::Cpu)?.f_flatten(0, -1)?)?;
    Ok(words
        .chunks_exact(4)
        .map(|word| Sampled {
            token: word[0],
            logprob: f32::from_bits(word[1] as u32),
            status: word[2],
            num_generated: word[3] as u32,
        })
        .collect())
}

fn check(
    gpu: &Gpu,
    kernels: &SamplerKernels,
    rules: &SampleRules,
    logits: &Tensor,
) -> Result<usize, Box<dyn std::error::Error>> {
    let num_rows = logits.size2()?.0;
    let scratch = SamplerScratch::new(&gpu.device, num_rows, rules.vocab_size)?;
    let positions: Vec<i32> =
        (0..num_rows as i32).map(|row| if i64::from(row) == IDLE_ROW { -1 } else { row + 10 }).collect();
    let slots = Slots::new(gpu, &positions, rules.vocab_size)?;
    let history: Vec<u32> = (0..60).map(|i| (i * i * 7) % rules.vocab_size as u32).collect();
    mark(gpu, kernels, &slots, (&history, rules.vocab_size))?;
    let out = gpu.zeros(&[num_rows, 4], Kind::Int)?;
    kernels.sample(
        &gpu.stream,
        &Sample {
            logits: &gpu.put(logits)?,
            rules,
            end_token_ids: Some(&gpu.ints(&END_TOKENS, &[3])?),
            bias: None,
            masks: None,
            forced: None,
            state: slots.state(),
            scratch: &scratch,
            admissions: None,
            out: &out,
        },
    )?;
    let mut reference = reference(rules)?;
    let mut num_tokens = 0;
    for (row, sampled) in (0..num_rows).zip(records(&out)?) {
        let state = RowState {
            sample_idx: (row as u64) * (1 << 33) + 3,
            response_idx: row as u32 * 7,
            num_generated: row as u32,
            history: &history,
            own: None,
            allowed: None,
        };
        let expect = reference.sample(&logits.f_narrow(0, row, 1)?, &[state]);
        let numbers = slots.numbers(row)?;
        let problem = || format!("row {row}: {sampled:?}, slot {numbers:?}, the reference {expect:?}");
        let stays = [0, i64::from(positions[row as usize]), row];
        match (&expect, sampled.status()) {
            (_, Some(SampleStatus::Skipped)) => ensure(row == IDLE_ROW && numbers == stays, problem)?,
            (Ok(tokens), Some(SampleStatus::Chosen)) => {
                let token = i64::from(tokens[0].token);
                let moved = [token, i64::from(positions[row as usize]) + 1, row + 1];
                let is_close = tokens[0]
                    .logprob
                    .is_none_or(|logprob| (logprob - sampled.logprob).abs() < 2e-6 * logprob.abs().max(1.0));
                ensure(i64::from(sampled.token) == token && numbers == moved && is_close, problem)?;
                num_tokens += 1;
            }
            (Err(error), Some(status)) => {
                let is_named = match status {
                    SampleStatus::HasNan => error.to_string().ends_with("a NaN"),
                    SampleStatus::HasInfinity => error.to_string().ends_with("an infinite value"),
                    SampleStatus::HasNoToken => error.to_string().ends_with("no token that may be chosen"),
                    SampleStatus::Chosen | SampleStatus::Skipped => false,
                };
                ensure(is_named && numbers == stays && sampled.token == -1, problem)?;
            }
            _ => ensure(false, problem)?,
        }
    }
    Ok(num_tokens)
}

fn mark(gpu: &Gpu, kernels: &SamplerKernels, slots: &Slots, (history, vocab_size): (&[u32], i64)) -> Checked {
    let [num_rows] = slots.positions.size()[..] else { return Err("slots are a list".into()) };
    let tokens: Vec<i32> = (0..num_rows).flat_map(|_| history.iter().map(|&token| token as i32)).collect();
    let len = history.len() as i32;
    let starts: Vec<i32> = (0..=num_rows as i32).map(|row| row * len).collect();
    let rows: Vec<i32> = (0..num_rows as i32).collect();
    kernels.mark_seen(
        &gpu.stream,
        &MarkSeen {
            tokens: &gpu.ints(&tokens, &[tokens.len() as i64])?,
            cu_seqlens: &gpu.ints(&starts, &[num_rows + 1])?,
            slots: &gpu.ints(&rows, &[num_rows])?,
            seen: &slots.seen,
            vocab_size,
        },
    )?;
    Ok(())
}

/// Few responses, and enough that all warps of the GPU share them.
pub(crate) fn admissions(gpu: &Gpu) -> Outcome {
    for num_copies in [1, 40] {
        check_admissions(gpu, num_copies).map_err(|error| format!("{num_copies} times six: {error}"))?;
    }
    Ok("several responses of a prompt, padding, few and many".to_owned())
}

fn check_admissions(gpu: &Gpu, num_copies: i32) -> Checked {
    const SLOTS_OF_COPY: i32 = 8;
    let kernels = gpu.sampler_kernels()?;
    let vocab_size = 32_000;
    let rules = SampleRules { vocab_size, temperature: 0.9, ..rules()[0] };
    let admission = |logits_row, slot, position, response_idx, sample_idx| Admission {
        logits_row,
        slot,
        position,
        response_idx,
        sample_idx,
        reserved: 0,
    };
    // Two responses draw from row 0, one record is padding, and one names logits that are not there.
    let copied = [
        admission(0, 6, 10, 0, 77),
        admission(0, 1, 10, 1, 77),
        admission(2, 3, 4, 0, 5),
        admission(1, -1, 0, 0, 0),
        admission(9, 2, 4, 0, 5),
        admission(1, 0, 9, 2, 1 << 40),
    ];
    let list: Vec<Admission> = (0..num_copies)
        .flat_map(|copy| {
            copied.map(|one| Admission {
                slot: if one.slot < 0 { one.slot } else { one.slot + copy * SLOTS_OF_COPY },
                sample_idx: one.sample_idx + copy as u64,
                ..one
            })
        })
        .collect();
    let num_slots = num_copies * SLOTS_OF_COPY;
    let slots = Slots::new(gpu, &vec![-1; num_slots as usize], vocab_size)?;
    let logits = Tensor::f_randn([3, vocab_size], (Kind::Float, tch::Device::Cpu))?.f_mul_scalar(3.0)?;
    let scratch = SamplerScratch::new(&gpu.device, i64::from(num_slots), vocab_size)?;
    let out = gpu.zeros(&[list.len() as i64, 4], Kind::Int)?;
    let words: &[i64] = bytemuck::cast_slice(list.as_slice());
    let admissions = gpu.put(&Tensor::f_from_slice(words)?.f_reshape([-1, 4])?)?;
    kernels.sample(
        &gpu.stream,
        &Sample {
            logits: &gpu.put(&logits)?,
            rules: &rules,
            end_token_ids: None,
            bias: None,
            masks: None,
            forced: None,
            state: slots.state(),
            scratch: &scratch,
            admissions: Some(&admissions),
            out: &out,
        },
    )?;
    let mut reference = reference(&rules)?;
    for (admission, sampled) in list.iter().zip(records(&out)?) {
        if admission.slot < 0 || admission.logits_row > 2 {
            ensure(sampled.status() == Some(SampleStatus::Skipped), || {
                format!("{admission:?}: {sampled:?}")
            })?;
            continue;
        }
        let state = RowState {
            sample_idx: admission.sample_idx,
            response_idx: admission.response_idx,
            num_generated: 0,
            history: &[],
            own: None,
            allowed: None,
        };
        let row = logits.f_narrow(0, i64::from(admission.logits_row), 1)?;
        let token = i64::from(reference.sample(&row, &[state])?[0].token);
        let numbers = slots.numbers(i64::from(admission.slot))?;
        let is_right =
            numbers == [token, i64::from(admission.position), 1] && i64::from(sampled.token) == token;
        ensure(is_right, || format!("{admission:?}: {sampled:?}, slot {numbers:?}, the reference {token}"))?;
    }
    Ok(())
}

pub(crate) fn seen_tokens(gpu: &Gpu) -> Outcome {
    let kernels = gpu.sampler_kernels()?;
    let seen = gpu.ints(&[-1; 16], &[4, 4])?;
    let tokens = gpu.ints(&[0, 31, 32, 99, 100, -5, 7, 7], &[8])?;
    let (cu_seqlens, slots) = (gpu.ints(&[0, 5, 5, 8], &[4])?, gpu.ints(&[2, -1, 0], &[3])?);
    let mark =
        MarkSeen { tokens: &tokens, cu_seqlens: &cu_seqlens, slots: &slots, seen: &seen, vocab_size: 100 };
    kernels.mark_seen(&gpu.stream, &mark)?;
    let expect = gpu.ints(&[128, 0, 0, 0, -1, -1, -1, -1, i32::MIN | 1, 1, 0, 8, -1, -1, -1, -1], &[4, 4])?;
    ensure(same(&seen, &expect)?, || format!("seen tokens: {seen:?}"))?;
    Ok("tokens out of range, no slot".to_owned())
}
