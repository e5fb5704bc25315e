//! The main job, from the command line to the last committed step.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use data::{OutputSteps, PromptNote, PromptSet, load_all_prompts};
use model_core::{Backend, LoadOptions};
use model_spec::WeightFormat;

use super::checks::Checks;
use super::clean::Cleaner;
use super::data_files;
use super::follower;
use super::generate::{Job, Reports, generate};
use super::log_folder;
use super::progress::{Progress, ReadingBar, Totals};
use super::prompt_builder::prompt_builder;
use super::select::{PassTotals, Selection};
use super::steps::{PendingStep, StepCollector, pending_steps};
use super::structured;
use super::summary::Summary;
use crate::cluster::queue::Mailbox;
use crate::cluster::queue::link::Server;
use crate::cluster::queue::message::FromZero;
use crate::cluster::queue::worker;
use crate::cluster::ranks::Role;
use crate::cluster::spawn;
use crate::config::UserConfig;
use crate::config::cli::JobArgs;
use crate::config::plan::{GenerationPlan, LineFormat, OutputFormat, RowParamsMode};
use crate::config::records;
use crate::env;
use crate::exit::{ExitStatus, Failure};
use crate::logging::Logging;
use crate::metrics::{Machine, Metrics, RunFacts};
use crate::model::checkpoint::TokenTable;
use crate::model::device;
use crate::model::memory::{Demand, MemoryPlan};
use crate::node_json::to_json;
use crate::output::{
    Identity, JsonlSink, LineLayout, Manifest, OutputField, OutputFolder, copy_as_parquet, read_pass_at_k,
};
use crate::signals::StopWatch;
use crate::table::thousands;

mod counts;
pub(crate) mod layout;
mod setup;

use counts::{list, planned, show_counts, show_left_out};
pub(crate) use setup::Setup;

/// Everything about the job that is known without the weights.
struct Prepared {
    setup: Setup,
    data_files: Vec<PathBuf>,
    prompts: PromptSet,
    /// The first prompt, to be shown, and how many tokens it has.
    first: Option<(String, usize)>,
    steps: OutputSteps,
    demand: Demand,
    memory: MemoryPlan,
    identity: Identity,
    /// Rows whose responses could not go on, of this run.
    num_failed: Cell<u64>,
}

/// Runs the main job.
pub(crate) fn run(arguments: &JobArgs, logging: &Logging, watch: StopWatch) -> Result<ExitStatus, Failure> {
    let user = UserConfig::read(arguments)?;
    if arguments.dry_run {
        let setup = Setup::new(&user, &logging.bars, |devices| Ok(Role::planned(devices)))?;
        // Nothing is written: what a pipe gives is gone afterwards.
        let named =
            |file: PathBuf| if data_files::is_pipe(&file) { PathBuf::from("/dev/stdin") } else { file };
        let files = data_files::expanded(&setup.plan.data_paths)?.into_iter().map(named).collect();
        let prepared = Prepared::new(setup, files)?;
        prepared.show();
        let ranks = prepared.setup.memory_of_ranks(prepared.demand)?;
        if !ranks.is_empty() {
            tracing::info!("memory of each rank\n{}", layout::describe_memory(&ranks));
        }
        tracing::info!("dry run: everything is in order, nothing was generated");
        return Ok(ExitStatus::Done);
    }
    let setup = Setup::new(&user, &logging.bars, |devices| Role::find(&env::of_launcher, devices))?;
    match setup.role.clone() {
        Role::Launcher(launcher) => {
            // Its ranks have no pipe. Only the first of all reads the data.
            if launcher.first_rank == 0 {
                taken_files(&setup.plan)?;
            }
            spawn::run(&launcher, arguments.log, &watch)
        }
        Role::Rank(place) if place.rank > 0 => {
            setup.attach(logging, &place)?;
            follower::run(&setup, &place, &watch)
        }
        Role::Rank(place) => {
            let server = Server::start(&place, env::launcher_socket())?;
            run_first(setup, Some(server), logging, watch, arguments.strict)
        }
        Role::Alone => run_first(setup, None, logging, watch, arguments.strict),
    }
}

/// Runs rank 0.
fn run_first(
    setup: Setup,
    server: Option<Server>,
    logging: &Logging,
    watch: StopWatch,
    strict: bool,
) -> Result<ExitStatus, Failure> {
    let data_files = taken_files(&setup.plan)?;
    let mut prepared = Prepared::new(setup, data_files)?;
    let plan = &prepared.setup.plan;
    let watch = watch.with_time_limit(plan.exp_manager.time_limit);
    prepared.show();
    let log_dir = &plan.exp_manager.log_dir;
    let folder = OutputFolder::open(log_dir, &prepared.identity, plan.exp_manager.existing_output)?;
    data_files::keep(log_dir, &mut prepared.data_files)?;
    let resume = folder.resume;
    let steps = pending_steps(&prepared.steps, plan.batch.global, resume);
    if prepared.steps.num_planned() == 0 {
        tracing::info!("nothing to do: `trainer.generation.max_steps={}` leaves no step", plan.max_steps);
        return Ok(ExitStatus::Done);
    }
    if steps.is_empty() {
        tracing::info!(
            "nothing to do: all {} samples are in `{}`",
            thousands(prepared.steps.num_planned() as u64),
            folder.path.join(OutputFolder::JSONL).display()
        );
        prepared.copy_lines()?;
        return prepared.judge(strict);
    }
    let command_line = command_line();
    // Only now: the files of another run, which holds the folder, must not be moved from under it.
    log_folder::begin(
        &plan.exp_manager,
        logging,
        &command_line,
        &prepared.setup.begin(&prepared.data_files),
    )?;
    if resume.consumed_samples > 0 {
        tracing::info!(
            "resuming after step {} ({} samples done)",
            resume.step,
            thousands(resume.consumed_samples)
        );
    }
    let manifest = Manifest {
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        committed: resume,
        num_samples: prepared.steps.num_planned() as u64,
        identity: prepared.identity.record().map_err(anyhow::Error::from)?,
        config: to_json(prepared.setup.resolved.node()),
    };
    let pass_totals = pass_totals(plan, &folder)?;
    let layout = match plan.line_format {
        // Rows with structures of their own may have an error, too.
        LineFormat::Sft => LineLayout::Fields(records::output_fields(
            plan.output_fields.clone(),
            prepared.prompts.has_structures,
            plan.line_format,
        )),
        LineFormat::OpenAiBatch => LineLayout::OpenAiBatch,
    };
    let sink = JsonlSink::open(folder, manifest, layout)?;
    let facts = RunFacts {
        log_dir,
        command_line: &command_line,
        config: prepared.setup.resolved.node(),
        machine: Machine::this(),
        started: SystemTime::now(),
    };
    let mut metrics = Metrics::start(&plan.exp_manager, &facts);
    let reporting = Reporting { logging, metrics: &mut metrics, pass_totals };
    let ended = prepared.generate(&steps, sink, server, reporting, &watch);
    metrics.finish(match &ended {
        Ok(status) => *status,
        Err(failure) => failure.status,
    });
    match ended? {
        // A time limit is no end of the job.
        ExitStatus::Done if watch.reason().is_none() => prepared.judge(strict),
        status => Ok(status),
    }
}

/// The data files of the job, with what comes out of a pipe in the log folder.
fn taken_files(plan: &GenerationPlan) -> Result<Vec<PathBuf>, Failure> {
    let files = data_files::expanded(&plan.data_paths)?;
    let log_dir = &plan.exp_manager.log_dir;
    match files.as_slice() {
        [file] if data_files::is_pipe(file) => match env::of_launcher(spawn::LAUNCHER_VARIABLE) {
            Some(_) => Ok(vec![data_files::taken_by_launcher(log_dir)]),
            None => Ok(vec![data_files::taken(log_dir, plan.exp_manager.existing_output)?]),
        },
        _ => Ok(files),
    }
}

/// What earlier runs wrote of pass@k.
fn pass_totals(plan: &GenerationPlan, folder: &OutputFolder) -> Result<PassTotals, Failure> {
    let mut totals = PassTotals::default();
    if !plan.checks.pass_at_k.is_empty() {
        let jsonl = folder.path.join(OutputFolder::JSONL);
        read_pass_at_k(&jsonl, folder.resume.committed_bytes, &mut |row| totals.add(row))?;
    }
    Ok(totals)
}

fn command_line() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// How progress is reported.
struct Reporting<'a> {
    logging: &'a Logging,
    metrics: &'a mut Metrics,
    pass_totals: PassTotals,
}

impl Prepared {
    fn new(setup: Setup, data_files: Vec<PathBuf>) -> Result<Self, Failure> {
        let plan = &setup.plan;
        let builder = prompt_builder(plan, &setup.tokenizer, &setup.structures)?;
        let reading = ReadingBar::start(&setup.bars);
        let limits = &plan.length_limits;
        let prompts = load_all_prompts(&data_files, builder, limits, plan.on_unusable, &|| reading.record());
        drop(reading);
        let prompts = prompts?;
        let (prompts, steps) = planned(plan, prompts, setup.topology)?;
        let first = (0..prompts.len()).find_map(|position| Some((position, prompts.num_tokens(position)?)));
        let first = match first {
            Some((position, num_tokens)) => Some((prompts.text(position)?.text, num_tokens)),
            None => None,
        };
        let length = |position| {
            let num_tokens = prompts.num_tokens(position)?;
            Some(num_tokens + plan.budget_tokens(num_tokens, prompts.row_demand(position)) as usize)
        };
        let longest = (0..steps.num_planned()).filter_map(length).max();
        let num_responses = |position| match prompts.is_unusable(position) {
            true => 0,
            false => plan.num_responses(prompts.row_demand(position)) as usize,
        };
        let demand = Demand {
            longest_sequence_tokens: longest.unwrap_or(1),
            num_sequences: (0..steps.num_planned()).map(num_responses).fold(0, usize::saturating_add),
            neighbours: setup.neighbours,
            limits: setup.plan.room,
            structures: setup.plan.row_structures(),
        };
        let memory = setup.memory(demand)?;
        let mut identity = setup.identity()?;
        identity.inputs.data = Some(prompts.fingerprint.clone());
        Ok(Self {
            setup,
            data_files,
            prompts,
            first,
            steps,
            demand,
            memory,
            identity,
            num_failed: Cell::new(0),
        })
    }

    /// The first prompt, the counts and the memory plan.
    fn show(&self) {
        if let Some((line, PromptNote::AnswerHeaderAdded { role })) = &self.prompts.note {
            tracing::info!(
                "{} records end with the asking role (the first in line {}): the header of `{role}` was added",
                thousands(self.prompts.num_noted),
                self.prompts.place(*line)
            );
        }
        show_left_out(&self.prompts);
        if !self.steps.dropped().is_empty() {
            let dropped = self.steps.dropped().filter_map(|position| self.prompts.line(position));
            let lines = dropped.map(|line| self.prompts.place(line));
            tracing::warn!("the last batch is not full and is dropped: lines {}", list(lines));
        }
        if self.setup.plan.sampling.use_greedy && self.setup.plan.num_responses > 1 {
            tracing::warn!(
                "`model.generation.sampling_params.use_greedy=true` makes all {} responses of a prompt equal: one is computed and repeated",
                self.setup.plan.num_responses
            );
        }
        if let Some((text, num_tokens)) = &self.first {
            tracing::info!("first prompt, {num_tokens} tokens, as the model sees it:\n{text}");
        }
        for adapter in self.setup.checkpoint.adapters() {
            tracing::info!("{adapter}");
        }
        let num_fp8_weights = self.setup.checkpoint.num_fp8_weights();
        if let WeightFormat::Float(plain) = self.setup.plan.numerics.weights
            && num_fp8_weights > 0
        {
            tracing::info!(
                "{num_fp8_weights} weights are stored in FP8 and become {plain}, their numbers times their scales; \
                 `trainer.generation.trt_llm.quantization=fp8` computes with them as they are"
            );
        }
        for warning in self.setup.end_tokens.warnings() {
            tracing::warn!("{warning}");
        }
        tracing::info!("tokens that end a response: {}", self.setup.end_tokens.line());
        let to_generate = format!(
            "{} samples in {} steps of {}, {}",
            thousands(self.steps.num_planned() as u64),
            thousands(self.steps.num_steps() as u64),
            self.setup.plan.batch.global,
            self.responses_each()
        );
        show_counts(&self.prompts, self.steps.dropped().len(), self.num_past_limits(), to_generate);
        tracing::info!(
            "memory, {}, {:?} kernels on {}\n{}",
            self.setup.plan.numerics,
            self.setup.plan.backend,
            device::name(self.setup.options.device),
            self.memory.table()
        );
        if let Some(layout) =
            layout::describe(self.setup.topology, self.setup.reduction, self.setup.plan.parallel.experts)
        {
            tracing::info!("{layout}");
        }
        let LoadOptions { backend, attention, device, numerics, isa } = self.setup.options;
        if backend == Backend::Fused && device == tch::Device::Cpu {
            tracing::info!("instruction set: {isa}");
        }
        if backend == Backend::Plain
            && let Ok(chosen) =
                attention.choose(device, numerics.compute, self.setup.model_config.uniform.heads.kv_channels)
        {
            tracing::info!("attention: {chosen:?} ({attention:?})");
        }
    }

    /// Rows of the job that have an `error`. Those whose responses could not go on in an earlier run are in its output
    /// alone.
    fn num_error_rows(&self) -> Result<u64, Failure> {
        let planned = 0..self.steps.num_planned();
        let unusable = planned.filter(|&position| self.prompts.is_unusable(position)).count() as u64;
        let jsonl = self.setup.plan.exp_manager.log_dir.join("generations").join(OutputFolder::JSONL);
        let written = match self.setup.plan.may_have_structures() && jsonl.exists() {
            true => structured::count_errors(&jsonl)?,
            false => 0,
        };
        Ok(written.max(unusable + self.num_failed.get()))
    }

    /// How the job ends that is done: with `--strict` rows with an error are a failure.
    fn judge(&self, strict: bool) -> Result<ExitStatus, Failure> {
        match self.num_error_rows()? {
            num_rows @ 1.. if strict => Err(anyhow::anyhow!(
                "{num_rows} of {} rows have an `error`, and `--strict` is given",
                thousands(self.steps.num_planned() as u64)
            )
            .into()),
            num_rows @ 1.. => {
                tracing::warn!("{} rows have an `error`", thousands(num_rows));
                Ok(ExitStatus::Done)
            }
            0 => Ok(ExitStatus::Done),
        }
    }

    /// How many responses the samples get.
    fn responses_each(&self) -> String {
        match self.setup.plan.row_params {
            RowParamsMode::Ignore => format!("{} responses each", self.setup.plan.num_responses),
            RowParamsMode::Read => {
                format!("{} responses in all", thousands(self.demand.num_sequences as u64))
            }
        }
    }

    /// Prompts that `limit_train_batches` or `max_steps` leaves out.
    fn num_past_limits(&self) -> u64 {
        let past_limit = self.prompts.len().saturating_sub(self.steps.num_samples());
        (past_limit + self.steps.beyond_max_steps().len()) as u64
    }

    fn generate(
        &self,
        steps: &[PendingStep],
        mut sink: JsonlSink,
        mut server: Option<Server>,
        reporting: Reporting<'_>,
        watch: &StopWatch,
    ) -> Result<ExitStatus, Failure> {
        let Reporting { logging, metrics, pass_totals } = reporting;
        let plan = &self.setup.plan;
        let tokens = Arc::new(TokenTable::new(self.setup.tokenizer.tokenizer.as_ref())?);
        let prompts = &self.prompts;
        let collector = self.collector(steps, &tokens);
        let before = steps.first().map_or(0, |step| step.step - 1);
        let positions = steps.iter().flat_map(|step| step.positions.clone());
        let totals = Totals {
            max_response_tokens: u64::from(plan.max_length),
            num_samples: self.steps.num_planned() as u64,
            num_steps: before + steps.len() as u64,
            num_responses: positions
                .filter(|&position| !prompts.is_unusable(position))
                .map(|position| u64::from(plan.num_responses(prompts.row_demand(position))))
                .sum(),
        };
        let progress = Progress::start(&logging.bars, totals, before, sink.consumed_samples());
        let longest = self.demand.longest_sequence_tokens;
        let job = Job {
            plan,
            prompts,
            steps,
            watch,
            row_rules: &self.setup.row_rules()?,
            weights: self.setup.checkpoint.tensors(),
            identity: &self.identity.clone().without_data(),
            fallback: self.setup.fallback.as_deref(),
            welcome: FromZero::Welcome {
                longest_sequence_tokens: longest as u64,
                num_sequences: self.demand.num_sequences as u64,
            },
            capacity: worker::capacity(&self.memory.limits, longest, plan.num_responses),
            topology: self.setup.topology,
            checks: self.checks(&tokens, watch),
        };
        let reports = Reports { progress, metrics, pass_totals };
        let board = server.as_ref().map(Server::board).transpose()?;
        let load = |mailbox: &Mailbox| {
            let keep_waiting = || match (watch.reason(), mailbox.ended()) {
                (Some(reason), _) => Err(Failure {
                    status: reason.exit_status(),
                    error: anyhow::anyhow!("stopped by {reason} before all ranks of the model had come"),
                }),
                (None, Some(why)) => Err(Failure::of_another_rank(
                    ExitStatus::Failed,
                    format!("{why}, before all ranks of the model had come"),
                )),
                (None, None) => Ok(()),
            };
            let group = match &board {
                Some(store) => self.setup.meet(store, &keep_waiting)?,
                None => None,
            };
            self.setup.engine(Arc::clone(&tokens), &self.memory, group)
        };
        let mut summary = generate(&job, server.as_mut(), &load, collector, &mut sink, reports)?;
        let num_unusable = self.prompts.num_bad + self.prompts.too_long.len() as u64;
        self.num_failed.set(summary.rows_with_error);
        summary.rows_with_error = self.num_error_rows()?;
        summary.samples_left_out = match self.setup.plan.num_drawn {
            None => (num_unusable + self.steps.dropped().len() as u64)
                .saturating_sub(self.prompts.num_unusable() as u64),
            Some(_) => self.steps.dropped().len() as u64,
        };
        self.finish(&summary, &sink, watch)
    }

    /// What puts responses together to steps, with all that the output asks for.
    fn collector<'a>(&'a self, steps: &[PendingStep], tokens: &'a TokenTable) -> StepCollector<'a> {
        let plan = &self.setup.plan;
        let selection = Selection::new(plan.unfinished, &plan.checks);
        let mut collector = StepCollector::new(&self.prompts, steps.to_vec(), selection, tokens);
        if plan.line_format == LineFormat::OpenAiBatch || plan.output_fields.iter().any(OutputField::is_clean)
        {
            collector = collector.with_cleaner(Cleaner::new(plan, &self.setup.tokenizer));
        }
        if plan.may_have_structures() {
            let of_job = plan.structured_outputs.clone();
            collector = collector.with_structures(Arc::clone(&self.setup.structures), of_job);
        }
        collector
    }

    /// What checks responses, where the job asks for it.
    fn checks<'a>(&'a self, tokens: &'a TokenTable, watch: &'a StopWatch) -> Option<Checks<'a>> {
        let Setup { plan, tokenizer, .. } = &self.setup;
        Some(Checks {
            command: plan.checks.on_response.as_deref()?,
            plan: &plan.checks,
            unfinished: plan.unfinished,
            rows: &self.prompts,
            tokens,
            cleaner: Cleaner::new(plan, tokenizer),
            watch,
        })
    }

    /// Makes the copy of all lines that the job asks for.
    fn copy_lines(&self) -> Result<(), Failure> {
        let plan = &self.setup.plan;
        if plan.output_format == OutputFormat::Parquet {
            let jsonl = plan.exp_manager.log_dir.join("generations").join(OutputFolder::JSONL);
            tracing::info!("the results with typed columns are in `{}`", copy_as_parquet(&jsonl)?.display());
        }
        Ok(())
    }

    fn finish(&self, summary: &Summary, sink: &JsonlSink, watch: &StopWatch) -> Result<ExitStatus, Failure> {
        summary.write(&self.setup.plan.exp_manager.log_dir)?;
        let jsonl = self.setup.plan.exp_manager.log_dir.join("generations").join(OutputFolder::JSONL);
        tracing::info!("results are in `{}`\n{}", jsonl.display(), summary.table());
        let num_planned = self.steps.num_planned() as u64;
        if sink.consumed_samples() >= num_planned {
            self.copy_lines()?;
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
