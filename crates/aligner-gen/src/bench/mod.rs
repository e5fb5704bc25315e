//! `aligner-gen bench`: what a user waits for, through the real engine on a real checkpoint, each the best of three, as the
//! other programs of `cargo xtask bench cpu` are measured.
//!
//! Prompts are random ids from a fixed generator and nothing ends a response, so every run does the same work.

mod beside;
mod cases;
mod copying;
mod cuts;
mod floor;
pub(crate) mod queue;
mod scored;
mod shapes;
mod simulate;
mod workload;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Engine, EngineLimits, Foresight, Request};
use model_core::{BLOCK_SIZE_TOKENS, LoadOptions};
use model_spec::{KvTables, blocks_for};
use nemo_format::Checkpoint;
use sampling::{RowRules, SamplingParams, SamplingRules, StopConditions, uniform};
use serde_json::json;

use crate::config::cli::BenchArgs;
use crate::config::plan::RowParamsMode;
use crate::env;
use crate::exit::Failure;
use crate::model::checkpoint::{OpenTokenizer, TokenTable, load_model, model_config};
use crate::model::open_engine::{EngineSize, SamplingSetup, open_engine};

const REPEATS: usize = 3;
const MAX_NUM_SEQS: usize = 64;

#[derive(Clone, Copy)]
struct Load {
    measure: &'static str,
    num_prompts: u64,
    prompt_tokens: u32,
    new_tokens: u32,
    /// Which tokens and which time make up the speed.
    of: Part,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Decode,
    Prefill,
    Whole,
}

const LOADS: [Load; 3] = [
    Load { measure: "decode", num_prompts: 1, prompt_tokens: 16, new_tokens: 128, of: Part::Decode },
    Load { measure: "bulk", num_prompts: 64, prompt_tokens: 40, new_tokens: 64, of: Part::Whole },
    Load { measure: "prefill", num_prompts: 1, prompt_tokens: 512, new_tokens: 1, of: Part::Prefill },
];

/// Measures and prints.
pub(crate) fn run(arguments: &BenchArgs, out: &mut impl Write) -> Result<(), Failure> {
    let Some(checkpoint) = &arguments.checkpoint else { return cases::run(arguments, out) };
    let mut print = |measure: &str, value: f64, unit: &str| {
        let value = (value * 1000.0).round() / 1000.0;
        let line = if arguments.json {
            let key = if unit == "s" { "seconds" } else { "tokens_per_s" };
            json!({"measure": measure, key: value}).to_string()
        } else {
            format!("{measure:<22} {value:>10.3} {unit}")
        };
        writeln!(out, "{line}").map_err(anyhow::Error::from)
    };
    let is_wanted = |measure: &str| {
        arguments.measures.is_empty() || arguments.measures.iter().any(|wanted| wanted == measure)
    };
    let mut to_first_token = Vec::new();
    let mut engine = None;
    for _ in 0..if is_wanted("load") { REPEATS } else { 1 } {
        // The old model goes first, or two of them would be in memory.
        drop(engine.take());
        let started = Instant::now();
        let (mut fresh, vocab_size) = open(checkpoint, arguments)?;
        answer(&mut fresh, vocab_size, Load { prompt_tokens: 16, new_tokens: 1, ..LOADS[0] })?;
        to_first_token.push(started.elapsed().as_secs_f64());
        engine = Some((fresh, vocab_size));
    }
    if is_wanted("load") {
        print("load", to_first_token.into_iter().fold(f64::INFINITY, f64::min), "s")?;
    }
    let Some((mut engine, vocab_size)) = engine else { return Ok(()) };
    for load in LOADS.into_iter().filter(|load| is_wanted(load.measure)) {
        let speeds =
            (0..REPEATS).map(|_| answer(&mut engine, vocab_size, load)).collect::<Result<Vec<f64>, _>>()?;
        print(load.measure, speeds.into_iter().fold(0.0, f64::max), "tok/s")?;
    }
    Ok(())
}

fn open(checkpoint: &Path, arguments: &BenchArgs) -> Result<(Engine, usize), Failure> {
    let checkpoint = Checkpoint::open(checkpoint)?;
    let config = model_config(checkpoint.model_config())?;
    if let Some(window) = config.uniform.window {
        // The benchmark's sequences may be longer than the model is trained for, but not than it is computed for.
        let longest = LOADS.iter().map(|load| (load.prompt_tokens + load.new_tokens) as usize).max();
        if longest.is_some_and(|longest| longest > window.tokens) {
            config.refuse_longer(longest.unwrap_or(0))?;
        }
    }
    let device = arguments.device.open()?;
    let options = LoadOptions {
        numerics: arguments.numbers.numerics()?,
        backend: arguments.backend.into(),
        device,
        attention: env::attention_switches(),
        isa: env::isa()?,
    };
    let model = load_model(&checkpoint, config, options)?;
    let tokenizer = OpenTokenizer::open(&checkpoint, checkpoint.model_config())?.tokenizer;
    let vocab_size = tokenizer.vocab_size().min(model.padded_vocab_size());
    let params = SamplingParams { use_greedy: true, ..SamplingParams::PLAIN };
    let most_tokens = LOADS
        .iter()
        .map(|load| (load.num_prompts * u64::from(load.prompt_tokens + load.new_tokens)) as usize);
    let limits = EngineLimits {
        max_num_seqs: MAX_NUM_SEQS,
        max_prefill_tokens: 2048,
        num_blocks: blocks_for(most_tokens.max().unwrap_or(1), BLOCK_SIZE_TOKENS) + 2 * MAX_NUM_SEQS,
        num_host_blocks: 0,
        block_size_tokens: BLOCK_SIZE_TOKENS,
        tables: KvTables::ONE,
    };
    let tokens = Arc::new(TokenTable::new(tokenizer.as_ref())?);
    let row = RowRules { params, seed: 1, end_token_ids: Vec::new(), min_length: 0, structure: None };
    let rules = SamplingRules { row, vocab_size, bias: Vec::new() };
    let setup = SamplingSetup {
        rules,
        stop: StopConditions::default(),
        row_params: RowParamsMode::Ignore,
        vocabulary: None,
    };
    let longest = LOADS.iter().map(|load| (load.prompt_tokens + load.new_tokens) as usize);
    let size = EngineSize { limits, longest_sequence_tokens: longest.max().unwrap_or(1) };
    let engine = open_engine(model, options, setup, tokens, size)?;
    Ok((if arguments.speculation { engine.with_speculation() } else { engine }, vocab_size))
}

/// Tokens a second.
fn answer(engine: &mut Engine, vocab_size: usize, load: Load) -> Result<f64, Failure> {
    let mut requests = (0..load.num_prompts).map(|sample_idx| Request {
        sample_idx,
        prompt: (0..load.prompt_tokens)
            .map(|position| (uniform(1, sample_idx, 0, position) * vocab_size as f64) as u32)
            .collect(),
        num_responses: 1,
        max_new_tokens: load.new_tokens,
        own: None,
        foresight: Foresight::default(),
    });
    let started = Instant::now();
    let stats = engine.run(&mut |_| requests.next().into(), &mut |_| ControlFlow::Continue(()), &|| false)?;
    let (tokens, time): (u64, Duration) = match load.of {
        // The first token of a response comes out of prefill.
        Part::Decode => (stats.generated_tokens - load.num_prompts, stats.decode_time + stats.sample_time),
        Part::Prefill => (stats.prompt_tokens, stats.prefill_time),
        Part::Whole => (stats.generated_tokens, started.elapsed()),
    };
    Ok(tokens as f64 / time.as_secs_f64().max(1e-9))
}
