//! `aligner-gen bench --shape`: the fast engine on dummy weights, each case one JSON line with the floor that memory sets.
//!
//! Prompts and lengths are those of the peers (`xtask/peers`): lengths from torch's generator with their seeds. A floor is
//! the time to read the weights once a step and the cached keys and values of every row, at a given bandwidth.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use engine::{Completion, Engine, EngineLimits, Request, RunStats};
use model_core::{BLOCK_SIZE_TOKENS, KvCache, LoadOptions, ModelConfig};
use model_spec::blocks_for;
use sampling::{SamplingParams, SamplingRules, StopConditions, uniform};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::shapes;
use crate::config::cli::BenchArgs;
use crate::env;
use crate::exit::Failure;
use crate::model::checkpoint::TokenTable;
use crate::model::open_engine::{EngineSize, SamplingSetup, open_engine};

/// New tokens of the bulk cases.
const BULK_TOKENS: u32 = 256;
/// Tokens that a decode case runs through, around its context length.
const DECODE_TOKENS: u32 = 64;

/// What a case does.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    requests: Vec<Request>,
    max_num_seqs: usize,
    /// Rows and mean context of a decode step, where every step has the same.
    steady: Option<(usize, usize)>,
}

/// Runs the cases that were asked for.
pub(super) fn run(arguments: &BenchArgs, out: &mut impl Write) -> Result<(), Failure> {
    let Some(shape) = arguments.shape else { return Err(Failure::usage("`--shape` is missing")) };
    let device = arguments.device.open()?;
    let options = LoadOptions {
        numerics: arguments.precision.parse()?,
        backend: arguments.backend.into(),
        device,
        attention: env::attention_switches(),
    };
    let mut hashes = BTreeMap::new();
    for spec in &arguments.measures {
        let (config, source) = shapes::source(shape)?;
        let started = Instant::now();
        let model = model_core::load_model(config.clone(), &source, options)?;
        drop(source);
        let load_s = started.elapsed().as_secs_f64();
        let vocab_size = model.padded_vocab_size();
        let cases = cases(spec, vocab_size, arguments.max_num_seqs)?;
        let weight_bytes = model.weight_bytes()
            - (vocab_size * config.hidden_size * options.numerics.weights.size_bytes()) as u64;
        let floor = Floor {
            weight_bytes,
            kv_bytes_per_token: (KvCache::bytes_per_block(&config, options) / BLOCK_SIZE_TOKENS) as u64,
            bandwidth: arguments.bandwidth_gbps * 1e9,
        };
        let mut engine = open(model, options, &config, &cases, vocab_size)?;
        if arguments.unconstrained {
            crate::model::device::let_blas_choose()?;
        }
        for case in cases {
            let mut line = measure(&mut engine, &case, &floor, &mut hashes)?;
            line["shape"] = json!(format!("{shape:?}"));
            line["load_s"] = json!(round(load_s));
            writeln!(out, "{line}").map_err(anyhow::Error::from)?;
        }
    }
    Ok(())
}

fn open(
    model: Box<dyn model_core::CausalLm>,
    options: LoadOptions,
    config: &ModelConfig,
    cases: &[Case],
    vocab_size: usize,
) -> Result<Engine, Failure> {
    let blocks = |request: &Request| {
        let prompt = request.prompt.len();
        let tokens = prompt + request.max_new_tokens as usize;
        (blocks_for(tokens, BLOCK_SIZE_TOKENS) + 1) * request.num_responses as usize
    };
    let most_blocks = |case: &Case| {
        let mut sizes: Vec<usize> = case.requests.iter().map(blocks).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.iter().take(case.max_num_seqs).sum::<usize>()
    };
    let wanted = cases.iter().map(most_blocks).max().unwrap_or(1);
    let bytes_per_block = KvCache::bytes_per_block(config, options);
    let affordable = crate::model::device::available_bytes(options.device)
        .map_or(wanted, |bytes| (bytes.saturating_sub(3 << 30) as usize) / bytes_per_block.max(1));
    let longest = cases
        .iter()
        .flat_map(|case| &case.requests)
        .map(|request| request.prompt.len() + request.max_new_tokens as usize);
    let limits = EngineLimits {
        max_num_seqs: cases.iter().map(|case| case.max_num_seqs).max().unwrap_or(1),
        max_prefill_tokens: 8192,
        num_blocks: wanted.min(affordable).max(1),
        block_size_tokens: BLOCK_SIZE_TOKENS,
    };
    let params = SamplingParams {
        use_greedy: false,
        temperature: 1.0,
        top_k: None,
        top_p: None,
        repetition_penalty: 1.0,
        compute_logprob: false,
    };
    let rules = SamplingRules { params, vocab_size, seed: 1, end_token_ids: Vec::new(), min_length: 0 };
    let setup = SamplingSetup { rules, stop: StopConditions::default() };
    let size = EngineSize { limits, longest_sequence_tokens: longest.max().unwrap_or(1) };
    open_engine(model, options, setup, Arc::new(TokenTable::unknown()), size)
}

struct Floor {
    weight_bytes: u64,
    kv_bytes_per_token: u64,
    bandwidth: f64,
}

fn measure(
    engine: &mut Engine,
    case: &Case,
    floor: &Floor,
    hashes: &mut BTreeMap<String, String>,
) -> Result<Value, Failure> {
    // Once to warm up: kernels are compiled, graphs recorded, memory reserved, numbers of rows chosen.
    answer(engine, case.requests.clone())?;
    let started = Instant::now();
    let (stats, hash) = answer(engine, case.requests.clone())?;
    let wall_s = started.elapsed().as_secs_f64();
    let gpu_s = (stats.decode_time + stats.prefill_time).as_secs_f64();
    let step_ms = stats.decode_time.as_secs_f64() * 1e3 / stats.num_decode_steps.max(1) as f64;
    let mut line = json!({
        "case": case.name,
        "tokens": stats.generated_tokens,
        "wall_s": round(wall_s),
        "tokens_per_s": round(stats.generated_tokens as f64 / wall_s),
        "decode_steps": stats.num_decode_steps,
        "step_ms": round(step_ms),
        "prefill_tokens_per_s": round(stats.prompt_tokens as f64 / stats.prefill_time.as_secs_f64().max(1e-9)),
        "busy_percent": round(100.0 * gpu_s / wall_s),
        "hash": &hash[..16],
    });
    if let Some((rows, context)) = case.steady {
        let bytes = floor.weight_bytes + rows as u64 * context as u64 * floor.kv_bytes_per_token;
        let floor_ms = bytes as f64 / floor.bandwidth * 1e3;
        line["floor_ms"] = json!(round(floor_ms));
        line["percent_of_floor"] = json!(round(100.0 * floor_ms / step_ms));
    }
    hashes.insert(case.name.clone(), hash);
    Ok(line)
}

/// Answers all requests; the hash covers every token of every response, in the order of the samples.
fn answer(engine: &mut Engine, requests: Vec<Request>) -> Result<(RunStats, String), Failure> {
    let mut requests = requests.into_iter();
    let mut completions: BTreeMap<(u64, u32), Vec<u32>> = BTreeMap::new();
    let mut keep = |completion: Completion| {
        completions.insert((completion.sample_idx, completion.response_idx), completion.token_ids);
        ControlFlow::Continue(())
    };
    let stats = engine.run(&mut |_| requests.next().into(), &mut keep, &|| false)?;
    let mut hasher = blake3::Hasher::new();
    for tokens in completions.values() {
        tokens.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
    }
    Ok((stats, hasher.finalize().to_hex().to_string()))
}

/// The cases of one measure: `decode:ROWS:CONTEXT`, `bulk`, `ragged`, `order`, `prefill`, `shared`, `copies`.
fn cases(spec: &str, vocab_size: usize, max_num_seqs: usize) -> Result<Vec<Case>, Failure> {
    let case = |name: &str, requests| Case { name: name.to_owned(), requests, max_num_seqs, steady: None };
    let parts: Vec<&str> = spec.split(':').collect();
    Ok(vec![match parts[..] {
        ["decode", rows, context] => {
            let number = |text: &str| {
                text.parse::<usize>().map_err(|_| Failure::usage(format!("`{spec}`: `{text}` is no number")))
            };
            let (rows, context) = (number(rows)?, number(context)?);
            let prompt_len = context.saturating_sub(DECODE_TOKENS as usize / 2).max(1);
            let requests = (0..rows as u64).map(|idx| request(idx, prompt_len, DECODE_TOKENS, vocab_size));
            let steady = Some((rows, prompt_len + DECODE_TOKENS as usize / 2));
            Case { name: spec.to_owned(), requests: requests.collect(), max_num_seqs: rows, steady }
        }
        ["bulk"] => case(spec, bulk(vocab_size, &[BULK_TOKENS; 256])?),
        ["order"] => {
            let mut requests = bulk(vocab_size, &[BULK_TOKENS; 256])?;
            requests.reverse();
            requests.rotate_left(77);
            case(spec, requests)
        }
        ["ragged"] => case(spec, bulk(vocab_size, &ragged_lens()?)?),
        ["prefill"] => case(spec, (0..16).map(|idx| request(idx, 1024, 1, vocab_size)).collect()),
        ["shared"] => {
            let requests =
                (0..8).map(|idx| Request { num_responses: 8, ..request(idx, 1024, 256, vocab_size) });
            case(spec, requests.collect())
        }
        ["copies"] => {
            // The same prompts, each eight times by itself.
            let copy = |idx: u64| Request { sample_idx: idx, ..request(idx / 8, 1024, 256, vocab_size) };
            case(spec, (0..64).map(copy).collect())
        }
        ["single"] => Case { max_num_seqs: 1, ..case(spec, vec![request(0, 128, 128, vocab_size)]) },
        _ => return Err(Failure::usage(format!("`{spec}` is no measure of `--shape`"))),
    }])
}

fn request(sample_idx: u64, prompt_len: usize, max_new_tokens: u32, vocab_size: usize) -> Request {
    let token = |position: u32| (uniform(7, sample_idx, 0, position) * vocab_size as f64) as u32;
    let prompt = (0..prompt_len as u32).map(token).collect();
    Request { sample_idx, prompt, num_responses: 1, max_new_tokens }
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

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
