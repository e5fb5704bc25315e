//! What a request gets depends on the request alone, bit for bit, on real models: not on the order in which requests come,
//! nor on how many run at once, nor on how often they wait for room in the cache or are swapped out of it.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::{
    Completion, Draftable, Engine, EngineLimits, Foresight, Goal, Proposer, Request, RunStats, SeqId,
    StepTime,
};
use hydra_config::Node;
use model_core::{
    AttentionSwitches, BLOCK_SIZE_TOKENS, Backend, Isa, LoadOptions, ModelConfig, RawModelConfig,
};
use model_spec::{Float, KvTables, Numerics, blocks_for};
use nemo_format::Checkpoint;
use sampling::{
    CpuSampler, RawSamplingParams, RowRules, SamplingParams, SamplingRules, StopConditions, TokenBytes,
    uniform,
};
use tch::Device;

const VOCAB_SIZE: usize = 420;
const NUM_REQUESTS: u64 = 10;
const MODELS: [&str; 2] = ["mcore_llama/llama_fp32_torch_dist.nemo", "dummy/tiny-gpt.nemo"];

/// Token `id` spells two letters.
struct Letters(Vec<[u8; 2]>);

impl TokenBytes for Letters {
    fn bytes(&self, id: u32) -> &[u8] {
        self.0.get(id as usize).map_or(&[], |letters| letters)
    }
}

fn letters() -> Letters {
    Letters((0..VOCAB_SIZE).map(|id| [b'a' + (id % 26) as u8, b'a' + (id / 26 % 26) as u8]).collect())
}

fn engine(checkpoint: &Checkpoint, options: LoadOptions, limits: EngineLimits) -> Engine {
    engine_that_ends(checkpoint, options, limits, stop())
}

fn stop() -> StopConditions {
    let end_strings = ["c".to_owned(), "ad".to_owned()];
    StopConditions::resolve(&end_strings, &[2], |_| None).unwrap()
}

fn engine_that_ends(
    checkpoint: &Checkpoint,
    options: LoadOptions,
    limits: EngineLimits,
    stop: StopConditions,
) -> Engine {
    engine_of(config(checkpoint.model_config()), checkpoint, options, limits, stop)
}

fn config(config: &Node) -> ModelConfig {
    let raw: RawModelConfig = config.deserialize_into().unwrap();
    ModelConfig::try_from(raw).unwrap()
}

fn engine_of(
    config: ModelConfig,
    checkpoint: &Checkpoint,
    options: LoadOptions,
    limits: EngineLimits,
    stop: StopConditions,
) -> Engine {
    let model = model_core::load_model(config, checkpoint.tensors(), options).unwrap();
    let params = SamplingParams::try_from(RawSamplingParams {
        use_greedy: false,
        temperature: 0.9,
        top_k: 50,
        top_p: 0.95,
        repetition_penalty: 1.1,
        min_p: 0.0,
        compute_logprob: true,
        top_logprobs: 0,
    })
    .unwrap();
    let stop = stop.with_min_length(3);
    let end_token_ids = stop.end_token_ids().to_vec();
    let rules = SamplingRules {
        row: RowRules { params, seed: 77, end_token_ids, min_length: 3, structure: None },
        vocab_size: VOCAB_SIZE,
        bias: vec![],
    };
    let sampler = CpuSampler::new(rules).unwrap();
    Engine::new(model, Box::new(sampler), stop, Arc::new(letters()), limits).unwrap()
}

fn limits(max_num_seqs: usize, num_blocks: usize, num_host_blocks: usize) -> EngineLimits {
    EngineLimits {
        max_num_seqs,
        max_prefill_tokens: 150,
        num_blocks,
        num_host_blocks,
        block_size_tokens: BLOCK_SIZE_TOKENS,
        tables: KvTables::ONE,
    }
}

/// Prompts of 1 to 90 tokens, 1 to 3 responses of up to 24.
fn requests() -> Vec<Request> {
    let number = |sample_idx, which, limit: u32| (uniform(5, sample_idx, which, 0) * f64::from(limit)) as u32;
    (0..NUM_REQUESTS)
        .map(|sample_idx| Request {
            sample_idx,
            prompt: (0..1 + number(sample_idx, 1, 90))
                .map(|pos| (uniform(6, sample_idx, 0, pos) * VOCAB_SIZE as f64) as u32)
                .collect(),
            num_responses: 1 + number(sample_idx, 2, 3),
            max_new_tokens: 1 + number(sample_idx, 3, 24),
            own: None,
            foresight: Foresight::default(),
        })
        .collect()
}

/// The same requests in another order for every seed.
fn shuffled(seed: u64) -> Vec<Request> {
    let mut requests = requests();
    requests.sort_by(|a, b| uniform(seed, a.sample_idx, 0, 0).total_cmp(&uniform(seed, b.sample_idx, 0, 0)));
    requests
}

type Responses = BTreeMap<(u64, u32), Completion>;

fn run(engine: &mut Engine, requests: Vec<Request>) -> (Responses, RunStats) {
    let mut requests = requests.into_iter();
    let mut responses = BTreeMap::new();
    let mut keep = |completion: Completion| {
        responses.insert((completion.sample_idx, completion.response_idx), completion);
        ControlFlow::Continue(())
    };
    let stats = engine.run(&mut |_| requests.next().into(), &mut keep, &|| false).unwrap();
    (responses, stats)
}

/// Drafts the responses that it was told, each with a wrong token here and there.
struct Prompter {
    responses: Vec<Vec<Vec<u32>>>,
    lens: BTreeMap<SeqId, usize>,
}

impl Proposer<SeqId> for Prompter {
    fn reset(&mut self) {
        self.lens.clear();
    }

    fn prompt(&mut self, _tokens: &[u32], _responses: &[SeqId]) {}

    fn append(&mut self, id: SeqId, tokens: &[u32]) {
        *self.lens.entry(id).or_default() += tokens.len();
    }

    fn end(&mut self, id: SeqId) {
        self.lens.remove(&id);
    }

    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        let draft = |(place, token): (usize, &u32)| if place % 5 == 3 { token / 2 } else { *token };
        let drafts = responses.iter().map(|response| {
            let (group, which) = (response.id.group_idx as usize, response.id.response_idx as usize);
            let known = self.responses[group][which].iter().enumerate();
            known.map(draft).skip(self.lens[&response.id]).take(7).collect()
        });
        drafts.collect()
    }

    fn wants_drafts(&mut self, _num_in_flight: usize, _goal: Goal) -> bool {
        true
    }

    fn measured(&mut self, _step: StepTime) {}

    fn not_comparable(&mut self, _time: Duration) {}
}

/// The responses to `requests`, in their order.
fn responses_of(requests: &[Request], responses: &Responses) -> Vec<Vec<Vec<u32>>> {
    let of_request = |request: &Request| {
        let idxs = 0..request.num_responses;
        idxs.map(|idx| responses[&(request.sample_idx, idx)].token_ids.clone()).collect()
    };
    requests.iter().map(of_request).collect()
}

#[test]
fn a_request_gets_the_same_bits_in_any_company() {
    // One response of the longest request: 90 and 24 tokens, and a copy of the block where they meet.
    let least_blocks = blocks_for(114, BLOCK_SIZE_TOKENS) + 2;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    for model in MODELS {
        let checkpoint = Checkpoint::open(&fixtures.join(model)).unwrap();
        for backend in [Backend::Plain, Backend::Fused] {
            let [fp32, bf16] = [Float::Fp32, Float::Bf16].map(Numerics::uniform);
            for numerics in [fp32, bf16, bf16.with_fp8_weights().with_fp8_kv()] {
                let attention = AttentionSwitches::default();
                let options =
                    LoadOptions { numerics, backend, device: Device::Cpu, attention, isa: Isa::detect() };
                let (expect, _) = run(&mut engine(&checkpoint, options, limits(64, 1000, 0)), requests());
                let reasons: std::collections::HashSet<_> =
                    expect.values().map(|completion| completion.finish_reason).collect();
                assert!(reasons.len() >= 2, "the responses of {model} end for one reason only: {reasons:?}");
                for (limits, seed) in [
                    (limits(1, 1000, 0), 1),
                    (limits(2, 20, 0), 2),
                    (limits(7, 1000, 0), 3),
                    (limits(64, least_blocks, 30), 4),
                    (limits(64, 30, 0), 5),
                ] {
                    let mut engine = engine(&checkpoint, options, limits);
                    let requests = shuffled(seed);
                    let (actual, stats) = run(&mut engine, requests.clone());
                    let what = format!("{model} {options:?}, {limits:?}");
                    assert!(stats.peak_rows <= limits.max_num_seqs, "{what}: {}", stats.peak_rows);
                    // `Completion` holds log-probabilities too: equality is that of every bit that matters.
                    assert_eq!(actual, expect, "{what}");
                    let responses = responses_of(&requests, &expect);
                    let prompter = Prompter { responses, lens: BTreeMap::new() };
                    let mut engine = engine.with_proposer(Box::new(prompter));
                    let (actual, drafted) = run(&mut engine, requests);
                    assert_eq!(actual, expect, "{what}, with drafts");
                    assert_eq!(drafted.accepted_tokens > 0, backend == Backend::Fused, "{what}");
                    assert!(drafted.num_decode_steps <= stats.num_decode_steps, "{what}");
                }
            }
        }
    }
}

/// Two requests whose responses are taken for short ones.
fn long_requests() -> Vec<Request> {
    let request = |sample_idx| Request {
        sample_idx,
        prompt: (0..20).map(|pos| (sample_idx as u32 * 31 + pos * 17) % VOCAB_SIZE as u32).collect(),
        num_responses: 1,
        max_new_tokens: 125,
        own: None,
        foresight: Foresight { expected_tokens: Some(1), prefix: None },
    };
    vec![request(0), request(1)]
}

/// Two responses that are taken for short ones begin in a cache that holds one at its greatest length and a half.
#[test]
fn what_went_to_the_host_comes_back_with_the_same_bits() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let checkpoint = Checkpoint::open(&fixtures.join(MODELS[0])).unwrap();
    let windowed = with_windows(&checkpoint, [1, 0, 1]);
    let tables = windowed.spec_of(checkpoint.tensors()).kv_tables(256);
    for (config, tables, num_blocks) in
        [(config(checkpoint.model_config()), KvTables::ONE, 8), (windowed, tables, 15)]
    {
        for backend in [Backend::Plain, Backend::Fused] {
            let (numerics, attention) = (Numerics::uniform(Float::Fp32), AttentionSwitches::default());
            let options =
                LoadOptions { numerics, backend, device: Device::Cpu, attention, isa: Isa::detect() };
            let answer = |limits| {
                let endless = StopConditions::resolve(&[], &[], |_| None).unwrap();
                run(&mut engine_of(config.clone(), &checkpoint, options, limits, endless), long_requests())
            };
            let (expect, roomy) = answer(limits(64, 1000, 0));
            let (actual, tight) = answer(EngineLimits { tables, ..limits(64, num_blocks, 30) });
            assert_eq!(actual, expect, "{backend:?}");
            assert_eq!([roomy.num_swapped_in_blocks, roomy.num_preemptions], [0, 0]);
            assert!(tight.num_swapped_in_blocks > 0 && tight.peak_rows == 2, "{backend:?}: {tight:?}");
        }
    }
}

/// The model with a window of 21 tokens in these layers.
fn with_windows(checkpoint: &Checkpoint, is_local: [i64; 3]) -> ModelConfig {
    let mut windowed = checkpoint.model_config().clone();
    windowed.set("window_size", Node::List(vec![Node::Int(20), Node::Int(0)]));
    windowed.set("window_attn_skip_freq", Node::List(is_local.map(Node::Int).to_vec()));
    config(&windowed)
}

/// Layers with a window that keep no more of a sequence than that, in the company of others, in parts and with drafts:
/// the bits are those of layers that keep all.
#[test]
fn windows_that_are_given_back_change_no_bit() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let checkpoint = Checkpoint::open(&fixtures.join(MODELS[0])).unwrap();
    let attention = AttentionSwitches::default();
    for (is_local, num_tables) in [([1, 0, 1], [1, 2]), ([1, 1, 1], [0, 1])] {
        let config = with_windows(&checkpoint, is_local);
        let tables = config.spec_of(checkpoint.tensors()).kv_tables(256);
        assert_eq!(([tables.num_full, tables.num_windowed], tables.window_tokens), (num_tables, 21));
        for backend in [Backend::Plain, Backend::Fused] {
            for numerics in [Numerics::uniform(Float::Fp32), Numerics::uniform(Float::Bf16).with_fp8_kv()] {
                let options =
                    LoadOptions { numerics, backend, device: Device::Cpu, attention, isa: Isa::detect() };
                let engine = |limits| engine_of(config.clone(), &checkpoint, options, limits, stop());
                let (expect, _) = run(&mut engine(limits(64, 1000, 0)), requests());
                let (without, _) =
                    run(&mut engine_that_ends(&checkpoint, options, limits(64, 1000, 0), stop()), requests());
                assert_ne!(expect, without, "the window cuts nothing");
                let in_tables = |limits| EngineLimits { tables, ..limits };
                for (limits, seed) in [
                    (in_tables(limits(64, 1000, 0)), 1),
                    (in_tables(EngineLimits { max_prefill_tokens: 40, ..limits(3, 40, 0) }), 2),
                    (in_tables(EngineLimits { max_prefill_tokens: 130, ..limits(64, 20, 60) }), 3),
                    (in_tables(limits(1, 1000, 0)), 4),
                ] {
                    let what = format!("{is_local:?} {options:?}, {limits:?}");
                    let mut engine = engine(limits);
                    let requests = shuffled(seed);
                    let (actual, _) = run(&mut engine, requests.clone());
                    assert_eq!(actual, expect, "{what}");
                    let responses = responses_of(&requests, &expect);
                    let prompter = Prompter { responses, lens: BTreeMap::new() };
                    let (actual, drafted) = run(&mut engine.with_proposer(Box::new(prompter)), requests);
                    assert_eq!(actual, expect, "{what}, with drafts");
                    assert_eq!(drafted.accepted_tokens > 0, backend == Backend::Fused, "{what}");
                }
            }
        }
    }
}
