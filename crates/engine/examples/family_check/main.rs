//! Every family of models on a GPU against the CPU: `family_check FOLDER`, the folder of converted-from fixtures; with
//! `--cpu` the CPU is in the GPU's place.
//!
//! Of each family the configuration counts: heads get sizes that the kernels of a GPU take, weights are made up.
//! Logits in float32 and bfloat16, tokens in float32, and in bfloat16 one answer to a request for any number of sequences.
//! Of families with windows also long texts, in a cache that gives back what the windows have passed.
//! A line for each family, `ok NAME: FACTS`, `FAILED NAME: REASON` or `refused NAME: SENTENCE`; the last one counts the first
//! two, as `cargo xtask gpu-test` expects.

mod answers;
mod weights;
mod windows;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hydra_config::Node;
use model_core::{
    AttentionSwitches, BLOCK_SIZE_TOKENS, Backend, Batch, CausalLm, Isa, LoadOptions, ModelConfig,
    ModelError, RawModelConfig, load_model,
};
use model_spec::{Float, ModelSpec, Numerics, TableRows, blocks_for};
use nemo_format::{Checkpoint, ConvertOptions, convert_checkpoint};
use tch::{Device, Kind, Tensor};

use weights::MadeUp;

type AnyError = Box<dyn Error>;

const VOCAB_SIZE: usize = 160;
/// The largest difference of a logit in float32, in standard deviations of all.
const FP32_LIMIT: f64 = 2e-4;
/// The root mean square of differences in bfloat16. One token that goes through another expert is far off.
const BF16_LIMIT: f64 = 0.2;
/// Most tokens of a prompt of the logits; windows of the fixtures are shorter, and a block of the cache is.
const MAX_PROMPT: usize = 45;

/// What a family came to.
enum Outcome {
    Passed(String),
    Refused(String),
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).collect::<Vec<_>>();
    let on_cpu = arguments.last().is_some_and(|last| last == "--cpu");
    if on_cpu {
        arguments.pop();
    }
    let [folder] = arguments.as_slice() else {
        say("usage: family_check FOLDER [--cpu]");
        return ExitCode::from(2);
    };
    tch::set_num_threads(2);
    let device = if on_cpu { Device::Cpu } else { Device::Cuda(0) };
    let families = match families(Path::new(folder)) {
        Ok(families) => families,
        Err(error) => {
            say(&format!("cannot list `{folder}`: {error}"));
            return ExitCode::from(2);
        }
    };
    let (mut num_passed, mut num_failed) = (0, 0);
    for path in families {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match check(&path, device) {
            Ok(Outcome::Passed(facts)) => {
                num_passed += 1;
                say(&format!("ok      {name}: {facts}"));
            }
            Ok(Outcome::Refused(sentence)) => say(&format!("refused {name}: {sentence}")),
            Err(error) => {
                num_failed += 1;
                say(&format!("FAILED  {name}: {error}"));
            }
        }
    }
    say(&format!("{num_passed} passed, {num_failed} failed"));
    if num_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(line: &str) {
    // Nobody reads a closed stdout.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The folders that hold a model of Hugging Face, in the order of their names.
fn families(folder: &Path) -> Result<Vec<PathBuf>, std::io::Error> {
    let mut families = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.join("config.json").is_file() {
            families.push(path);
        }
    }
    families.sort();
    Ok(families)
}

/// A family's model with heads that every device takes.
struct Model {
    config: ModelConfig,
    weights: MadeUp,
}

impl Model {
    fn of(folder: &Path) -> Result<Self, AnyError> {
        Self::with(&Self::section(folder)?)
    }

    /// Its configuration.
    fn section(folder: &Path) -> Result<Node, AnyError> {
        let scratch = tempfile::tempdir()?;
        let archive = scratch.path().join("converted.nemo");
        convert_checkpoint(folder, &archive, &ConvertOptions::default())?;
        let mut section = Checkpoint::open(&archive)?.model_config().clone();
        widen(&mut section)?;
        Ok(section)
    }

    fn with(section: &Node) -> Result<Self, AnyError> {
        let raw: RawModelConfig = section.deserialize_into()?;
        let config = ModelConfig::try_from(raw)?;
        let is_centred = config.uniform.norm.zero_centered_gamma;
        let weights = MadeUp::new(spec_of(&config).tensors(), is_centred);
        Ok(Self { config, weights })
    }

    fn spec(&self) -> ModelSpec {
        spec_of(&self.config)
    }

    fn load(&self, device: Device, backend: Backend, float: Float) -> Result<Box<dyn CausalLm>, ModelError> {
        load_model(self.config.clone(), &self.weights, options(device, backend, float))
    }
}

fn spec_of(config: &ModelConfig) -> ModelSpec {
    config.spec(TableRows { vocab: VOCAB_SIZE as u64, positions: config.max_position_embeddings as u64 })
}

fn options(device: Device, backend: Backend, float: Float) -> LoadOptions {
    let (numerics, attention) = (Numerics::uniform(float), AttentionSwitches::default());
    LoadOptions { numerics, backend, device, attention, isa: Isa::detect() }
}

/// Makes the dimensions of a head a multiple of 16, and with them what is stated for each pair of them.
fn widen(section: &mut Node) -> Result<(), AnyError> {
    let number = |key: &str| section.get(key).and_then(Node::as_i64);
    let heads = number("num_attention_heads").ok_or("no heads")?;
    let hidden_size = number("hidden_size").ok_or("no hidden size")?;
    let old = number("kv_channels").unwrap_or(hidden_size / heads);
    let new = if old % 16 == 0 { old } else { (2 * old + 15) / 16 * 16 };
    section.set("kv_channels", Node::Int(new));
    for list in ["factors", "short_factor", "long_factor"] {
        let key = format!("rope_scaling.{list}");
        let Some(old_factors) = section.get(&key).and_then(Node::as_list).map(<[Node]>::to_vec) else {
            continue;
        };
        let len = old_factors.len() * new as usize / old as usize;
        let factors = (0..len).filter_map(|idx| old_factors.get(idx * old_factors.len() / len).cloned());
        section.set(&key, Node::List(factors.collect()));
    }
    Ok(())
}

fn check(folder: &Path, device: Device) -> Result<Outcome, AnyError> {
    let model = Model::of(folder)?;
    let expect = logits(model.load(Device::Cpu, Backend::Fused, Float::Fp32)?, &model.config)?;
    let mut facts = Vec::new();
    for (backend, float) in [
        (Backend::Fused, Float::Fp32),
        (Backend::Fused, Float::Bf16),
        (Backend::Plain, Float::Fp32),
        (Backend::Plain, Float::Bf16),
    ] {
        let loaded = match model.load(device, backend, float) {
            Ok(loaded) => loaded,
            Err(error) if is_refusal(&error) => {
                return Ok(Outcome::Refused(format!("{backend:?} {float:?}: {error}")));
            }
            Err(error) => return Err(error.into()),
        };
        let (worst, mean) = difference(&logits(loaded, &model.config)?, &expect)?;
        let (off, limit) = match float {
            Float::Fp32 => (worst, FP32_LIMIT),
            _ => (mean, BF16_LIMIT),
        };
        let fact = format!("{backend:?} {float:?} off by {off:.1e}");
        if off.is_nan() || off >= limit {
            return Err(format!("{fact}, {limit} allowed").into());
        }
        facts.push(fact);
    }
    facts.push(answers::check(&model, device, answers::Load::SHORT)?);
    facts.extend(windows::check(folder, &model, device)?);
    Ok(Outcome::Passed(facts.join(", ")))
}

/// Whether a model is not computed at all, which it says.
fn is_refusal(error: &ModelError) -> bool {
    let text = error.to_string();
    matches!(error, ModelError::Unsupported { .. }) || text.starts_with("no kernels: ")
}

/// Logits after every token of prompts of several lengths: float32 `[tokens, vocab]`.
fn logits(mut model: Box<dyn CausalLm>, config: &ModelConfig) -> Result<Tensor, AnyError> {
    let longest = MAX_PROMPT.min(config.encoder_seq_length);
    let lengths = [1, 7, 32, longest];
    let blocks_of = |len: usize| blocks_for(len, BLOCK_SIZE_TOKENS);
    let mut cache = model.new_cache(lengths.map(blocks_of).iter().sum::<usize>())?;
    let mut batch = Batch::default();
    let mut first_block = 0;
    for (sample_idx, len) in (0..).zip(lengths) {
        let num_blocks = blocks_of(len) as u32;
        let blocks: Vec<_> = (first_block..first_block + num_blocks).collect();
        first_block += num_blocks;
        batch.push(&answers::prompt(sample_idx, len), 0, len as u32, &blocks);
    }
    let logits = model.forward(&batch, &mut cache)?;
    Ok(logits.f_narrow(1, 0, VOCAB_SIZE as i64)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)
}

/// The largest difference, and the root of the mean square, in standard deviations of what is expected.
fn difference(actual: &Tensor, expect: &Tensor) -> Result<(f64, f64), AnyError> {
    let deviation = expect.f_std(true)?.f_double_value(&[])?;
    if deviation.is_nan() || deviation <= 0.0 {
        return Err("the expected logits are all the same".into());
    }
    let difference = actual.f_sub(expect)?;
    let worst = difference.f_abs()?.f_max()?.f_double_value(&[])?;
    let mean = difference.f_square()?.f_mean(Kind::Double)?.f_double_value(&[])?.sqrt();
    Ok((worst / deviation, mean / deviation))
}
