//! Responses through the engine: the CPU's tokens in float32, and in bfloat16 one answer in any company.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use engine::{Completion, Engine, EngineLimits, Foresight, Request};
use model_core::{BLOCK_SIZE_TOKENS, Backend};
use model_spec::{Float, KvTables};
use sampling::{
    CpuSampler, RawSamplingParams, RowRules, SamplingParams, SamplingRules, StopConditions, TokenBytes,
    uniform,
};
use tch::Device;

use crate::{AnyError, Model, VOCAB_SIZE};

const NUM_REQUESTS: u64 = 24;
/// Sequences at once, of which the first is what the others are compared with.
const COMPANIES: [usize; 3] = [1, 7, 24];

type Answers = BTreeMap<(u64, u32), Vec<u32>>;

/// What is asked for, and in which cache.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) max_prompt: f64,
    pub(crate) max_new: u32,
    /// Of the cache that is compared; all else is compared with one table for all layers.
    pub(crate) tables: KvTables,
    pub(crate) num_blocks: usize,
}

impl Load {
    pub(crate) const SHORT: Self =
        Self { max_prompt: 40.0, max_new: 18, tables: KvTables::ONE, num_blocks: 200 };

    /// How many responses may differ from those of another device in float32: a draw may lie between two tokens by less than
    /// the devices' rounding, which among thousands of tokens happens.
    fn most_others(self, num_responses: usize) -> usize {
        if self.max_new > Self::SHORT.max_new { num_responses / 16 } else { 0 }
    }

    /// The same in a cache that has room for all, of one table.
    fn undivided(self) -> Self {
        Self { tables: KvTables::ONE, num_blocks: 4000, ..self }
    }
}

/// # Errors
/// When tokens differ.
pub(crate) fn check(model: &Model, device: Device, load: Load) -> Result<String, AnyError> {
    let whole = load.undivided();
    let expect = answers(model, Device::Cpu, Float::Fp32, whole, 24)?;
    let fp32 = answers(model, device, Float::Fp32, load, 24)?;
    let differ = |from: &Answers| from.iter().filter(|(at, tokens)| fp32.get(at) != Some(tokens)).count();
    let (num_others, num_responses) = (differ(&expect), expect.len());
    if num_others > load.most_others(num_responses) {
        return Err(format!("in float32 {num_others} of {num_responses} responses are not the CPU's").into());
    }
    if num_others > 0 {
        let undivided = answers(model, device, Float::Fp32, whole, 24)?;
        let num_changed = differ(&undivided);
        if num_changed > 0 {
            return Err(format!("in float32 {num_changed} responses depend on the cache").into());
        }
    }
    let first = answers(model, device, Float::Bf16, whole, COMPANIES[0])?;
    for max_num_seqs in COMPANIES.into_iter().skip(1) {
        let others = answers(model, device, Float::Bf16, load, max_num_seqs)?;
        if let Some(((sample, response), _)) =
            first.iter().find(|(at, tokens)| others.get(at) != Some(tokens))
        {
            let what = format!(
                "response {response} of sample {sample} differs with {max_num_seqs} sequences at once"
            );
            return Err(format!("in bfloat16 {what}").into());
        }
    }
    let num_tokens: usize = expect.values().map(Vec::len).sum();
    let but = if num_others > 0 {
        format!(" but for {num_others} of {num_responses} texts")
    } else {
        String::new()
    };
    Ok(format!(
        "{num_tokens} tokens are the CPU's in Fp32{but}; one text in Bf16 for {COMPANIES:?} sequences"
    ))
}

/// A prompt of this many tokens.
pub(crate) fn prompt(sample_idx: u64, len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| (uniform(6, sample_idx, 0, at) * VOCAB_SIZE as f64) as u32).collect()
}

struct NoBytes;

impl TokenBytes for NoBytes {
    fn bytes(&self, _id: u32) -> &[u8] {
        b"a"
    }
}

fn requests(longest: usize, load: Load) -> impl Iterator<Item = Request> {
    (0..NUM_REQUESTS).map(move |sample_idx| {
        let len = 1 + (uniform(5, sample_idx, 0, 0) * load.max_prompt) as usize;
        let max_new_tokens = load.max_new.min(longest.saturating_sub(len) as u32).max(1);
        Request {
            sample_idx,
            prompt: prompt(sample_idx % 20, len.min(longest - 1)),
            num_responses: 1 + (sample_idx % 3) as u32,
            max_new_tokens,
            own: None,
            foresight: Foresight::default(),
        }
    })
}

fn answers(
    model: &Model,
    device: Device,
    float: Float,
    load: Load,
    max_num_seqs: usize,
) -> Result<Answers, AnyError> {
    let longest = model.config.encoder_seq_length;
    let mut engine = engine(model, device, float, load, max_num_seqs)?;
    let mut requests = requests(longest, load);
    let mut answers = BTreeMap::new();
    let mut keep = |completion: Completion| {
        answers.insert((completion.sample_idx, completion.response_idx), completion.token_ids);
        ControlFlow::Continue(())
    };
    engine.run(&mut |_| requests.next().into(), &mut keep, &|| false)?;
    Ok(answers)
}

fn engine(
    model: &Model,
    device: Device,
    float: Float,
    load: Load,
    max_num_seqs: usize,
) -> Result<Engine, AnyError> {
    let loaded = model.load(device, Backend::Fused, float)?;
    let params = SamplingParams::try_from(RawSamplingParams {
        use_greedy: false,
        temperature: 0.9,
        top_k: 50,
        top_p: 0.95,
        repetition_penalty: 1.1,
        min_p: 0.0,
        compute_logprob: false,
        top_logprobs: 0,
    })?;
    let stop = StopConditions::resolve(&[], &[], |_| None)?;
    let row = RowRules { params, seed: 77, end_token_ids: Vec::new(), min_length: 0, structure: None };
    let rules = SamplingRules { row, vocab_size: VOCAB_SIZE, bias: Vec::new() };
    let limits = EngineLimits {
        max_num_seqs,
        max_prefill_tokens: 150,
        num_blocks: load.num_blocks,
        num_host_blocks: 0,
        block_size_tokens: BLOCK_SIZE_TOKENS,
        tables: load.tables,
    };
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device_idx) = device {
        let max_rows = Engine::device_rows(limits);
        let own = sampling::OwnRowRules::None;
        let sampler = sampling::DeviceSampler::new(rules, own, max_rows, device_idx)?;
        let sizes =
            engine::DeviceSizes { device_idx, max_seq_len_tokens: model.config.encoder_seq_length.min(4096) };
        return Ok(Engine::on_device(loaded, sampler, stop, Arc::new(NoBytes), limits, sizes)?);
    }
    Ok(Engine::new(loaded, Box::new(CpuSampler::new(rules)?), stop, Arc::new(NoBytes), limits)?)
}
