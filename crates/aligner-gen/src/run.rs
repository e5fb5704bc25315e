//! The main job, from the command line to the last committed step.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use data::{DpWorld, PreparedPrompt, PromptNote, PromptSet, StepPlan, load_prompts, plan_steps};
use engine::Engine;
use hydra_config::Resolved;
use model_core::{Backend, LoadOptions, ModelConfig};
use nemo_format::Checkpoint;
use sampling::StopConditions;
use serde_json::json;

use crate::checkpoint::{OpenTokenizer, TokenTable, load_model, model_config};
use crate::cli::JobArgs;
use crate::config::{self, UserConfig};
use crate::device;
use crate::env;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::generate::{Job, generate};
use crate::logging::Logging;
use crate::memory::{Demand, MemoryPlan};
use crate::node_json::to_json;
use crate::open_engine::{EngineSize, SamplingSetup, open_engine};
use crate::output::{Identity, JsonlSink, Manifest, OutputFolder};
use crate::plan::GenerationPlan;
use crate::progress::{Progress, Totals};
use crate::raw::RawConfig;
use crate::records::prompt_builder;
use crate::signals::StopWatch;
use crate::steps::{PendingStep, StepCollector, pending_steps};
use crate::summary::{Summary, seconds};
use crate::table::{thousands, two_columns};

/// How many line numbers of left-out records a message lists.
const MAX_LISTED: usize = 10;

/// Everything about the job that is known without the weights.
struct Prepared {
    resolved: Resolved,
    checkpoint: Checkpoint,
    plan: GenerationPlan,
    options: LoadOptions,
    model_config: ModelConfig,
    tokenizer: OpenTokenizer,
    prompts: PromptSet,
    steps: StepPlan,
    memory: MemoryPlan,
}

/// Runs the main job.
pub(crate) fn run(arguments: &JobArgs, logging: &Logging, watch: StopWatch) -> Result<ExitStatus, Failure> {
    let user = UserConfig::read(arguments)?;
    let prepared = Prepared::new(&user)?;
    if arguments.dry_run {
        prepared.show();
        tracing::info!("dry run: everything is in order, nothing was generated");
        return Ok(ExitStatus::Done);
    }
    let plan = &prepared.plan;
    let watch = watch.with_time_limit(plan.time_limit);
    let command_line: Vec<_> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    logging
        .attach(&plan.log_dir, &command_line.join(" "))
        .map_err(|error| {
            anyhow::Error::new(error).context(format!("cannot write to `{}`", plan.log_dir.display()))
        })
        .exit_with(ExitStatus::Failed)?;
    prepared.show();
    let identity = prepared.identity()?;
    let folder = OutputFolder::open(&plan.log_dir, &identity, plan.existing_output)?;
    let resume = folder.resume;
    let steps = pending_steps(&prepared.steps, plan.batch.global, resume);
    if steps.is_empty() {
        tracing::info!(
            "nothing to do: all {} samples are in `{}`",
            thousands(prepared.steps.num_planned() as u64),
            folder.path.join(OutputFolder::JSONL).display()
        );
        return Ok(ExitStatus::Done);
    }
    if resume.consumed_samples > 0 {
        tracing::info!(
            "resuming after step {} ({} samples done)",
            resume.step,
            thousands(resume.consumed_samples)
        );
    }
    let manifest = Manifest {
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        committed_bytes: 0,
        step: 0,
        consumed_samples: 0,
        num_samples: prepared.steps.num_planned() as u64,
        identity,
        config: to_json(prepared.resolved.node()),
    };
    let sink = JsonlSink::open(folder, manifest, plan.output_fields.clone())?;
    prepared.generate(&steps, sink, logging, &watch)
}

impl Prepared {
    fn new(user: &UserConfig) -> Result<Self, Failure> {
        let path = user.checkpoint_path()?.ok_or_else(|| {
            Failure::usage("`pretrained_checkpoint.restore_from_path` must be the path of a checkpoint")
        })?;
        let checkpoint = Checkpoint::open(&path)?;
        let resolved = config::resolve(&user.compose_with(checkpoint.model_config_text())?)?;
        let raw = RawConfig::extract(&resolved)?;
        let plan = GenerationPlan::new(raw)?;
        let model = resolved.node().get("model").ok_or_else(|| Failure::usage("there is no key `model`"))?;
        let model_config = model_config(model)?;
        if let Some(model_type) = plan.model_type {
            model_type.check(&model_config)?;
        }
        let tokenizer = OpenTokenizer::open(&checkpoint, model)?;
        let prompts = read_prompts(&plan, &tokenizer)?;
        let num_used = plan.limit.num_samples(prompts.prompts.len(), plan.batch.global)?;
        let steps = plan_steps(num_used, plan.batch, DpWorld { size: 1 }, plan.drop_last)?
            .with_max_steps(plan.max_steps);
        let planned = prompts.prompts.iter().take(steps.num_planned());
        let longest =
            planned.map(|prompt| prompt.ids.len() + plan.budget_tokens(prompt.ids.len()) as usize).max();
        let demand = Demand {
            longest_sequence_tokens: longest.unwrap_or(1),
            num_sequences: steps.num_planned().saturating_mul(plan.num_responses as usize),
        };
        let device = device::choose(&plan.accelerator, 0)?;
        let options = LoadOptions {
            precision: plan.precision,
            backend: plan.backend,
            device,
            attention: env::attention_switches(),
        };
        let memory = MemoryPlan::new(&checkpoint, &model_config, options, demand)?;
        Ok(Self { resolved, checkpoint, plan, options, model_config, tokenizer, prompts, steps, memory })
    }

    fn identity(&self) -> Result<Identity, Failure> {
        let mut identity = self.plan.identity();
        let model = blake3::hash(format!("{:?}", self.model_config).as_bytes()).to_hex().to_string();
        for (name, fingerprint) in [
            ("data", hash_file(&self.plan.data_path)?),
            ("checkpoint", self.checkpoint.fingerprint()),
            ("tokenizer", self.tokenizer.fingerprint.clone()),
            ("model configuration", model),
        ] {
            identity.0.insert(format!("{name} fingerprint"), json!(fingerprint));
        }
        Ok(identity)
    }

    /// The first prompt, the counts and the memory plan.
    fn show(&self) {
        for (line, PromptNote::AnswerHeaderAdded { role }) in self.prompts.notes.iter().take(1) {
            tracing::info!(
                "{} records end with the asking role (the first in line {line}): the header of `{role}` was added",
                self.prompts.notes.len()
            );
        }
        self.show_left_out();
        if self.plan.sampling.use_greedy && self.plan.num_responses > 1 {
            tracing::warn!(
                "`use_greedy=true` makes all {} responses of a prompt equal: one is computed and repeated",
                self.plan.num_responses
            );
        }
        if let Some(prompt) = self.prompts.prompts.first() {
            tracing::info!(
                "first prompt, {} tokens, as the model sees it:\n{}",
                prompt.ids.len(),
                prompt.text
            );
        }
        let counts = two_columns(&[
            ("records read", thousands(self.prompts.num_read)),
            ("bad", thousands(self.prompts.bad.len() as u64)),
            ("over-length", thousands(self.prompts.too_long.len() as u64)),
            ("not in a whole batch", thousands(self.steps.dropped().len() as u64)),
            ("past the limits set", thousands(self.num_past_limits())),
            (
                "to generate",
                format!(
                    "{} samples in {} steps of {}, {} responses each",
                    thousands(self.steps.num_planned() as u64),
                    thousands(self.steps.num_steps() as u64),
                    self.plan.batch.global,
                    self.plan.num_responses
                ),
            ),
        ]);
        tracing::info!("data\n{counts}");
        tracing::info!(
            "memory, {:?}, {:?} kernels on {}\n{}",
            self.plan.precision,
            self.plan.backend,
            device::name(self.options.device),
            self.memory.table()
        );
        let LoadOptions { backend, attention, device, precision } = self.options;
        if backend == Backend::Plain
            && let Ok(chosen) = attention.choose(device, precision, self.model_config.kv_channels)
        {
            tracing::info!("attention: {chosen:?} ({attention:?})");
        }
    }

    /// Prompts that `limit_train_batches` or `max_steps` leaves out.
    fn num_past_limits(&self) -> u64 {
        let past_limit = self.prompts.prompts.len().saturating_sub(self.steps.num_samples());
        (past_limit + self.steps.beyond_max_steps().len()) as u64
    }

    fn show_left_out(&self) {
        for bad in self.prompts.bad.iter().take(MAX_LISTED) {
            tracing::warn!("line {} is skipped: {}", bad.line, bad.reason);
        }
        if !self.prompts.too_long.is_empty() {
            let lines = self
                .prompts
                .too_long
                .iter()
                .map(|(line, num_tokens)| format!("{line} ({num_tokens} tokens)"));
            tracing::warn!("over-length prompts are left out: lines {}", list(lines));
        }
        let dropped = self.prompts.prompts.get(self.steps.dropped()).unwrap_or_default();
        if !dropped.is_empty() {
            let lines = dropped.iter().map(|prompt| prompt.line.to_string());
            tracing::warn!("the rest that fills no batch is dropped: lines {}", list(lines));
        }
    }

    fn generate(
        &self,
        steps: &[PendingStep],
        mut sink: JsonlSink,
        logging: &Logging,
        watch: &StopWatch,
    ) -> Result<ExitStatus, Failure> {
        let plan = &self.plan;
        let loading = Instant::now();
        let tokens = Arc::new(TokenTable::new(self.tokenizer.tokenizer.as_ref())?);
        let mut engine = self.engine(Arc::clone(&tokens))?;
        let load_time = loading.elapsed();
        tracing::info!("loaded in {:.2} s", load_time.as_secs_f64());
        let prompts: &[PreparedPrompt] = &self.prompts.prompts;
        let collector =
            StepCollector::new(prompts, steps.to_vec(), plan.num_responses, plan.unfinished, &tokens);
        let before = steps.first().map_or(0, |step| step.step - 1);
        let num_pending: usize = steps.iter().map(|step| step.positions.len()).sum();
        let totals = Totals {
            num_samples: self.steps.num_planned() as u64,
            num_steps: before + steps.len() as u64,
            num_responses: num_pending as u64 * u64::from(plan.num_responses),
        };
        let progress = Progress::start(&logging.bars, totals, before, sink.consumed_samples());
        let job = Job { plan, prompts, steps, watch };
        let mut summary = generate(&job, &mut engine, collector, &mut sink, progress)?;
        summary.seconds.load = seconds(load_time);
        summary.samples_left_out =
            (self.prompts.bad.len() + self.prompts.too_long.len() + self.steps.dropped().len()) as u64;
        self.finish(&summary, &sink, watch)
    }

    fn engine(&self, tokens: Arc<TokenTable>) -> Result<Engine, Failure> {
        let plan = &self.plan;
        let model = load_model(&self.checkpoint, self.model_config.clone(), self.options)?;
        let tokenizer = &self.tokenizer.tokenizer;
        let stop = StopConditions::resolve(&plan.end_strings, tokenizer.special().eos, |text| {
            self.tokenizer.single_token(text)
        })?
        .with_min_length(plan.min_length);
        let setup = SamplingSetup {
            params: plan.sampling.clone(),
            vocab_size: tokenizer.vocab_size().min(model.padded_vocab_size()),
            seed: plan.seed,
            min_length: plan.min_length,
            stop,
        };
        let size = EngineSize {
            limits: self.memory.limits,
            longest_sequence_tokens: self.memory.longest_sequence_tokens,
        };
        open_engine(model, self.options, setup, tokens, size)
    }

    fn finish(&self, summary: &Summary, sink: &JsonlSink, watch: &StopWatch) -> Result<ExitStatus, Failure> {
        summary.write(&self.plan.log_dir)?;
        let jsonl = self.plan.log_dir.join("generations").join(OutputFolder::JSONL);
        tracing::info!("results are in `{}`\n{}", jsonl.display(), summary.table());
        let num_planned = self.steps.num_planned() as u64;
        if sink.consumed_samples() >= num_planned {
            return Ok(ExitStatus::Done);
        }
        let reason = watch.reason().ok_or_else(|| anyhow::anyhow!("the engine stopped before the end"))?;
        tracing::warn!(
            "stopped by {reason} with {} of {} samples saved; run the same command again to continue",
            thousands(sink.consumed_samples()),
            thousands(num_planned)
        );
        Ok(reason.exit_status())
    }
}

fn read_prompts(plan: &GenerationPlan, tokenizer: &OpenTokenizer) -> Result<PromptSet, Failure> {
    let builder = prompt_builder(plan, tokenizer)?;
    Ok(load_prompts(&plan.data_path, &builder, &plan.length_limits, plan.on_bad_record)?)
}

fn hash_file(path: &Path) -> Result<String, Failure> {
    let mut hasher = blake3::Hasher::new();
    let read = std::fs::File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    read.map_err(|error| anyhow::Error::new(error).context(format!("cannot read `{}`", path.display())))
        .exit_with(ExitStatus::Data)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn list(mut items: impl Iterator<Item = String>) -> String {
    let mut text = items.by_ref().take(MAX_LISTED).collect::<Vec<_>>().join(", ");
    let rest = items.count();
    if rest > 0 {
        text.push_str(&format!(" and {rest} more"));
    }
    text
}
