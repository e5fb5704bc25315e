//! `aligner-gen bench --shape`: the fast engine on dummy weights, each case one JSON line with the floor that memory sets.
//!
//! `floor.rs` has the floor.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use engine::{Completion, Engine, EngineLimits, LeadingExecutor, Request, RunStats};
use model_core::{BLOCK_SIZE_TOKENS, Backend, CausalLm, LoadOptions, ModelPart, ModelRanks, Reduction};
use model_spec::{ExpertSharing, Footprint, KvTables, ModelSpec, NamedShape, ShardPlace, blocks_for};
use sampling::{RowRules, SamplingParams, SamplingRules, StopConditions, Vocabulary};
use serde_json::{Value, json};

use super::beside::Beside;
use super::copying::Copied;
use super::floor::{Floor, Layout};
use super::workload::{Figures, Workload};
use super::{cuts, scored, shapes};
use crate::cluster::model_group::ModelGroup;
use crate::cluster::own_ranks::OwnRanks;
use crate::cluster::topology::Topology;
use crate::config::cli::BenchArgs;
use crate::config::plan::RowParamsMode;
use crate::env;
use crate::exit::Failure;
use crate::model::checkpoint::TokenTable;
use crate::model::device;
use crate::model::open_engine::{EngineSize, SamplingSetup, open_engine, open_executor};

/// Runs the cases that were asked for.
pub(super) fn run(arguments: &BenchArgs, out: &mut impl Write) -> Result<(), Failure> {
    let Some(shape) = arguments.shape else { return Err(Failure::usage("`--shape` is missing")) };
    let ranks = OwnRanks::start(arguments.tensor, arguments.pipeline)?;
    let device = device::of_own_rank(arguments.device.open()?, ranks.rank);
    let options = options(arguments, device)?;
    for measure in &arguments.measures {
        if measure == cuts::MEASURE {
            if !ranks.is_first() {
                continue;
            }
            let mut line = check_cuts(shape, options)?;
            line["shape"] = json!(format!("{shape:?}"));
            writeln!(out, "{line}").map_err(anyhow::Error::from)?;
            continue;
        }
        let on_one_rank = match (Beside::of(measure), scored::num_rows_of(measure)) {
            (None, None) => None,
            _ if ranks.group.is_some() => {
                return Err(Failure::usage(format!("`{measure}` is measured on one rank")));
            }
            (Some(beside), _) => Some(beside.run(arguments, shape)?),
            (_, Some(num_rows)) => Some(scored::run(arguments, shape, num_rows)?),
        };
        if let Some(mut line) = on_one_rank {
            line["shape"] = json!(format!("{shape:?}"));
            writeln!(out, "{line}").map_err(anyhow::Error::from)?;
            continue;
        }
        let vocab_size = shape.shape().padded_vocab_size as usize;
        let workload = Workload::of(measure, vocab_size, arguments.max_num_seqs)?;
        let (config, source) = shapes::source(shape, workload.weights)?;
        let spec = config.spec_of(&source);
        let place = place(&spec, ranks.topology, ranks.rank, options)?;
        let footprint = model_core::footprint(&spec, options, &place)?;
        let started = Instant::now();
        let reduction = match arguments.tree || arguments.tensor > 1 {
            true => Reduction::Tree,
            false => Reduction::Chain,
        };
        let others = ranks.group.clone().map(|group| Box::new(group) as Box<dyn ModelRanks>);
        let part = ModelPart { place, reduction, ranks: others, exchange: env::exchange()? };
        let model = model_core::load_part(config, &source, options, part)?;
        drop(source);
        let load_s = started.elapsed().as_secs_f64();
        let layout = Layout { spec: &spec, topology: ranks.topology, options };
        let floor = Floor::of(&layout, arguments)?;
        let limits =
            limits(arguments, options, &footprint, (&workload.requests, workload.max_num_seqs), vocab_size);
        let setup =
            Setup { options, limits, vocab_size, group: ranks.group.as_ref(), sampled: Sampled::plain() };
        let Some(mut engine) = open(model, &workload.requests, setup)? else { continue };
        engine.set_prefix_cache(!arguments.no_prefix_cache);
        if arguments.speculation {
            engine = engine.with_speculation();
        }
        if arguments.unconstrained {
            device::let_blas_choose()?;
        }
        let mut line = run_workload(&mut engine, &workload, &floor)?;
        line["shape"] = json!(format!("{shape:?}"));
        line["load_s"] = json!(round(load_s));
        writeln!(out, "{line}").map_err(anyhow::Error::from)?;
    }
    Ok(())
}

fn check_cuts(shape: NamedShape, options: LoadOptions) -> Result<Value, Failure> {
    let (config, source) = shapes::source(shape, shapes::Weights::Random)?;
    let mut model = model_core::load_model(config, &source, options)?;
    drop(source);
    let is_device = options.device.is_cuda() && options.backend == Backend::Fused;
    cuts::run(model.as_mut(), shape.shape().padded_vocab_size as usize, is_device)
}

fn num_tokens(request: &Request) -> usize {
    request.prompt.len() + request.max_new_tokens as usize
}

/// Blocks for all that runs at once, or as many as fit.
fn limits(
    arguments: &BenchArgs,
    options: LoadOptions,
    footprint: &Footprint,
    (requests, max_num_seqs): (&[Request], usize),
    vocab_size: usize,
) -> EngineLimits {
    let blocks = |request: &Request| {
        (blocks_for(num_tokens(request), BLOCK_SIZE_TOKENS) + 1) * request.num_responses as usize
    };
    let mut sizes: Vec<usize> = requests.iter().map(blocks).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let wanted = sizes.iter().take(max_num_seqs).sum::<usize>();
    let bytes_per_block = footprint.bytes_per_block().max(1);
    // Logits in float32 are there twice, of a decode step and of a prefill, and once more where rows have structures.
    let kept_free = ((2 << 30) + 12 * vocab_size * max_num_seqs).max(3 << 30) as u64;
    let affordable = || {
        device::available_bytes(options.device)
            .map_or(wanted, |bytes| (bytes.saturating_sub(kept_free) / bytes_per_block) as usize)
    };
    EngineLimits {
        max_num_seqs,
        max_prefill_tokens: 8192,
        num_blocks: arguments.num_blocks.unwrap_or_else(|| wanted.min(affordable()).max(1)),
        num_host_blocks: arguments.num_host_blocks,
        block_size_tokens: BLOCK_SIZE_TOKENS,
        tables: KvTables::ONE,
    }
}

/// How a model is run.
struct Setup<'a> {
    options: LoadOptions,
    limits: EngineLimits,
    vocab_size: usize,
    group: Option<&'a ModelGroup>,
    sampled: Sampled,
}

/// How tokens are chosen, as far as measures differ in it.
pub(super) struct Sampled {
    pub(super) params: SamplingParams,
    pub(super) row_params: RowParamsMode,
    pub(super) vocabulary: Option<Arc<Vocabulary>>,
}

impl Sampled {
    /// As the peers do it.
    fn plain() -> Self {
        Self { params: SamplingParams::PLAIN, row_params: RowParamsMode::Ignore, vocabulary: None }
    }
}

/// What an engine on one rank is made for.
pub(super) struct Opened<'a> {
    pub(super) arguments: &'a BenchArgs,
    pub(super) shape: NamedShape,
    pub(super) requests: &'a [Request],
    pub(super) max_num_seqs: usize,
}

impl Opened<'_> {
    /// An engine with weights of its own.
    pub(super) fn engine(&self, sampled: Sampled) -> Result<Engine, Failure> {
        let (model, options, limits) = self.load()?;
        let vocab_size = self.shape.shape().padded_vocab_size as usize;
        let setup = Setup { options, limits, vocab_size, group: None, sampled };
        let engine = open(model, self.requests, setup)?;
        engine.ok_or_else(|| anyhow::anyhow!("one rank leads itself").into())
    }

    /// The model alone, and what an engine with it can hold.
    pub(super) fn load(&self) -> Result<(Box<dyn CausalLm>, LoadOptions, EngineLimits), Failure> {
        let options = options(self.arguments, self.arguments.device.open()?)?;
        let (config, source) = shapes::source(self.shape, shapes::Weights::Random)?;
        let spec = config.spec_of(&source);
        let footprint = model_core::footprint(&spec, options, &ShardPlace::whole(&spec))?;
        let model = model_core::load_model(config, &source, options)?;
        let vocab_size = self.shape.shape().padded_vocab_size as usize;
        let limits =
            limits(self.arguments, options, &footprint, (self.requests, self.max_num_seqs), vocab_size);
        Ok((model, options, limits))
    }
}

fn options(arguments: &BenchArgs, device: tch::Device) -> Result<LoadOptions, Failure> {
    Ok(LoadOptions {
        numerics: arguments.numbers.numerics()?,
        backend: arguments.backend.into(),
        device,
        attention: env::attention_switches(),
        isa: env::isa()?,
    })
}

/// The part of the model that this process has.
pub(super) fn place(
    spec: &ModelSpec,
    topology: Topology,
    rank: u32,
    options: LoadOptions,
) -> Result<ShardPlace, Failure> {
    let at = topology.coordinates(rank);
    let [_, pipeline, tp_size] = topology.sizes();
    let stages = spec.stages(pipeline as usize, &options.numerics).unwrap_or_default();
    let place = at.and_then(|at| {
        let layers = stages.get(at.pipeline_rank as usize)?.clone();
        Some(ShardPlace { tp_rank: at.tensor_rank, tp_size, experts: ExpertSharing::Widths, layers })
    });
    place.ok_or_else(|| {
        Failure::usage(format!("{pipeline} pipeline stages are more than the model has layers"))
    })
}

/// An engine for the workload. `None` for a rank that another one leads, when that one has done all.
fn open(model: Box<dyn CausalLm>, requests: &[Request], setup: Setup<'_>) -> Result<Option<Engine>, Failure> {
    let Setup { options, mut limits, vocab_size, group, sampled } = setup;
    let Sampled { params, row_params, vocabulary } = sampled;
    let row = RowRules { params, seed: 1, end_token_ids: Vec::new(), min_length: 0, structure: None };
    let rules = SamplingRules { row, vocab_size, bias: Vec::new() };
    let longest = requests.iter().map(num_tokens).max();
    let longest_sequence_tokens = longest.unwrap_or(1);
    let tokens = Arc::new(TokenTable::unknown());
    let setup = SamplingSetup { rules, stop: StopConditions::default(), row_params, vocabulary };
    let Some(group) = group else {
        let size = EngineSize { limits, longest_sequence_tokens };
        return Ok(Some(open_engine(model, options, setup, tokens, size)?));
    };
    limits = group.agree(limits)?;
    let size = EngineSize { limits, longest_sequence_tokens };
    let mut own = open_executor(model, options, setup, size, group)?;
    if !group.leads() {
        engine::follow(own.as_mut(), &mut || group.next_order())?;
        return Ok(None);
    }
    let executor = LeadingExecutor::new(own, Box::new(group.clone()));
    Ok(Some(Engine::with_executor(Box::new(executor), StopConditions::default(), tokens, limits)?))
}

fn run_workload(engine: &mut Engine, workload: &Workload, floor: &Floor) -> Result<Value, Failure> {
    // Once to warm up: kernels are compiled, graphs recorded, memory reserved, numbers of rows chosen.
    answer(engine, workload.requests.clone())?;
    let started = Instant::now();
    let (stats, responses) = answer(engine, workload.requests.clone())?;
    let wall_s = started.elapsed().as_secs_f64();
    let gpu_s = (stats.decode_time + stats.prefill_time).as_secs_f64();
    let step_ms = stats.decode_time.as_secs_f64() * 1e3 / stats.num_decode_steps.max(1) as f64;
    let mut line = json!({
        "case": workload.name,
        "tokens": stats.generated_tokens,
        "wall_s": round(wall_s),
        "tokens_per_s": round(stats.generated_tokens as f64 / wall_s),
        "cached_prompt_tokens": stats.cached_prompt_tokens,
        "decode_steps": stats.num_decode_steps,
        "peak_rows": stats.peak_rows,
        "step_ms": round(step_ms),
        "prefill_tokens_per_s": round(stats.prompt_tokens as f64 / stats.prefill_time.as_secs_f64().max(1e-9)),
        "busy_percent": round(100.0 * gpu_s / wall_s),
        "hash": &hash_of(&responses)[..16],
    });
    if stats.num_preemptions > 0 {
        line["preemptions"] = json!(stats.num_preemptions);
        line["swapped_blocks"] = json!(stats.num_swapped_out_blocks + stats.num_swapped_in_blocks);
        line["swap_s"] = json!(round(stats.swap_time.as_secs_f64()));
    }
    if stats.drafted_tokens > 0 {
        line["drafted_tokens"] = json!(stats.drafted_tokens);
        line["accepted_tokens"] = json!(stats.accepted_tokens);
    }
    match workload.figures {
        Figures::Usual => {}
        Figures::Floor { rows, context } => {
            let floor_ms = floor.step_ms(rows as u64, context as u64);
            line["floor_ms"] = json!(round(floor_ms));
            line["percent_of_floor"] = json!(round(100.0 * floor_ms / step_ms));
        }
        Figures::Requests => {
            // What was asked for, however much of it a prefix saved.
            let prompt_tokens: usize = workload.requests.iter().map(|request| request.prompt.len()).sum();
            let tokens = prompt_tokens as u64 + stats.generated_tokens;
            line["requests_s"] = json!(round(workload.requests.len() as f64 / wall_s));
            line["total_tok_s"] = json!(round(tokens as f64 / wall_s));
        }
        Figures::Copied => {
            let mut copied = Copied::default();
            responses.values().for_each(|tokens| copied.count(tokens));
            line["copied_percent"] = json!(round(copied.percent()));
        }
    }
    Ok(line)
}

/// The tokens of each response, by sample and response.
pub(super) type Responses = BTreeMap<(u64, u32), Vec<u32>>;

/// Answers all requests.
pub(super) fn answer(engine: &mut Engine, requests: Vec<Request>) -> Result<(RunStats, Responses), Failure> {
    let mut requests = requests.into_iter();
    let mut responses = Responses::new();
    let mut keep = |completion: Completion| {
        responses.insert((completion.sample_idx, completion.response_idx), completion.token_ids);
        ControlFlow::Continue(())
    };
    let stats = engine.run(&mut |_| requests.next().into(), &mut keep, &|| false)?;
    Ok((stats, responses))
}

/// It covers every token of every response, in the order of the samples.
fn hash_of(responses: &Responses) -> String {
    let mut hasher = blake3::Hasher::new();
    for token in responses.values().flatten() {
        hasher.update(&token.to_le_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

pub(super) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
