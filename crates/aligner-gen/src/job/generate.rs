//! The heart of rank 0: samples dealt out to the ranks, itself among them, and steps onto disk.
//!
//! The engine runs on the calling thread. The desk deals and takes answers on another, and text, JSON and syncing happen
//! on a third, so that neither the model nor another rank ever waits for the disk.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use data::{DataError, PromptOutlook, PromptSet};
use engine::{Cancellation, Engine, Foresight, LiveCounts, Request, RunStats};
use nemo_format::TensorSource;
use sampling::SamplingError;

use super::checks::{Checks, JobEnd, Results, ToChecks};
use super::nonfinite;
use super::own_rules::RowRulesMaker;
use super::progress::Progress;
use super::select::PassTotals;
use super::steps::{PendingStep, StepCollector};
use super::summary::{CheckCounts, Summary, seconds};
use crate::cluster::queue::dispatch::{Desk, DeskReport, Event};
use crate::cluster::queue::lease::{LeaseLimits, LeaseTable};
use crate::cluster::queue::link::Server;
use crate::cluster::queue::message::{
    FromZero, Hello, Leaving, ResponseDone, SampleDone, Stop, ToZero, Why, Worked,
};
use crate::cluster::queue::order::Work;
use crate::cluster::queue::worker::{self, Tells, WorkerEnd};
use crate::cluster::queue::{Heard, Mailbox};
use crate::cluster::topology::{Rank, Topology};
use crate::config::plan::GenerationPlan;
use crate::exit::{ExitStatus, Failure};
use crate::metrics::{FinishReasons, Metrics, StepCounts};
use crate::output::{Checked, GenerationSink, Identity};
use crate::signals::StopWatch;

/// Samples that may be begun past the last committed one, for each that a rank can hold: a response that takes this many
/// times as long as the others holds nobody up.
pub(crate) const RUN_AHEAD: usize = 64;
/// Samples among which the next is chosen, for each that a rank can hold. With a long tail (`bench/simulate.rs`, lengths
/// known) twice as many end a job another 2 % sooner, but then twice as many finished samples wait for earlier ones, which
/// are lost when the job is killed; with eight they are fewer than in the order of the file.
pub(crate) const WINDOW: usize = 8;
/// Finished samples that wait for earlier ones take no more than about this.
const MAX_WAITING_BYTES: usize = 1 << 30;

/// How long a shown line of progress stays as it is while no response ends.
const SHOW_EVERY: Duration = Duration::from_millis(250);

/// What generation runs on.
pub(crate) struct Job<'a> {
    pub(crate) plan: &'a GenerationPlan,
    pub(crate) prompts: &'a PromptSet,
    pub(crate) steps: &'a [PendingStep],
    pub(crate) watch: &'a StopWatch,
    /// How rows with parameters of their own are answered.
    pub(crate) row_rules: &'a RowRulesMaker<'a>,
    /// Looked at when logits are no numbers.
    pub(crate) weights: &'a dyn TensorSource,
    /// What decides the texts, data apart.
    pub(crate) identity: &'a Identity,
    /// Why this rank computes on the CPU, where a GPU was asked for.
    pub(crate) fallback: Option<&'a str>,
    /// What other ranks need to know before they can begin.
    pub(crate) welcome: FromZero,
    /// Samples that this rank can hold; the others are taken to be like it.
    pub(crate) capacity: u32,
    pub(crate) topology: Topology,
    /// Where a program checks responses.
    pub(crate) checks: Option<Checks<'a>>,
}

/// What goes to the thread that writes.
enum ToWriter {
    /// The weights are loaded: from here on the speed is measured, and the engine can be asked how far it is.
    Loaded(Arc<LiveCounts>),
    Finished(FinishedSample),
    /// The program that checks responses fails the job.
    ChecksFailed(Failure),
    /// A prompt cannot be read any more.
    Unreadable(Unreadable),
}

/// A sample as it is to be written.
struct FinishedSample {
    position: usize,
    sample: SampleDone,
    /// What is known of each response, where they are checked.
    checked: Vec<Checked>,
    /// Responses that were not wanted.
    num_left_out: u64,
}

/// Why a prompt that could be read when the job began cannot be answered.
#[derive(Debug)]
enum Unreadable {
    Data(DataError),
    /// With its line.
    Rules(u64, SamplingError),
}

impl From<DataError> for Unreadable {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl From<Unreadable> for Failure {
    fn from(error: Unreadable) -> Self {
        match error {
            Unreadable::Data(error) => error.into(),
            Unreadable::Rules(line, error) => {
                let error = anyhow::Error::new(error).context(format!("line {line} of the data"));
                Self { status: ExitStatus::Data, error }
            }
        }
    }
}

/// How progress is reported.
pub(crate) struct Reports<'a> {
    pub(crate) progress: Progress,
    pub(crate) metrics: &'a mut Metrics,
    /// What earlier runs wrote.
    pub(crate) pass_totals: PassTotals,
}

/// Generates all pending steps, or as many as there is time for. Whole steps are committed either way.
pub(crate) fn generate(
    job: &Job<'_>,
    server: Option<&mut Server>,
    load: &dyn Fn(&Mailbox) -> Result<Engine, Failure>,
    collector: StepCollector<'_>,
    sink: &mut (dyn GenerationSink + Send),
    reports: Reports<'_>,
) -> Result<Summary, Failure> {
    let (events, incoming) = channel();
    let (to_local, from_zero) = channel();
    let (to_writer, written) = channel();
    let mut server = server;
    if let Some(server) = &mut server {
        server.listen(events.clone(), |heard| match heard {
            Ok((rank, message)) => Event::From(rank, message),
            Err(reason) => Event::StoreLost(reason),
        })?;
    }
    let (to_checks, for_checks) = channel();
    let desk = Desk {
        request: requests(job, to_writer.clone()),
        position_of: Box::new(|sample_idx| job.prompts.position_of(sample_idx)),
        lease: job.plan.lease,
        join_timeout: job.plan.join_timeout,
        watch: job.watch,
        topology: job.topology,
        identity: job.identity,
        fallback: job.fallback,
        welcome: job.welcome.clone(),
        local: to_local,
        server: server.as_deref(),
        finished: finished_samples(job, to_writer.clone(), to_checks.clone()),
        responded: responses(to_checks.clone()),
    };
    let results =
        Results { finished: checked_samples(job, to_writer.clone()), cancel: cancellations(events.clone()) };
    let mailbox = own_mailbox(events.clone(), from_zero);
    let table = LeaseTable::ordered(
        first_position(job)..end_position(job),
        job.topology.num_replicas(),
        job.lease_limits(),
        Box::new(|position| job.work(position)),
    );
    let (computed, report, summary) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let written = write_steps(&written, collector, sink, reports, &events);
            if let Err(failure) = &written {
                let _ = events.send(Event::WriterFailed(failure.sentence()));
            }
            written
        });
        let (heard, checks_failed) = (to_checks.clone(), to_writer.clone());
        let checking = job.checks.as_ref().map(|checks| {
            scope.spawn(move || {
                let checked = checks.run(&for_checks, heard, &results);
                checked.unwrap_or_else(|failure| drop(checks_failed.send(ToWriter::ChecksFailed(failure))));
            })
        });
        let desk = scope.spawn(move || {
            let report = desk.run(table, &incoming);
            let _ = to_checks.send(ToChecks::NoMore(job_end(report.stop.as_ref())));
            report
        });
        let computed = compute(job, load, &mailbox, &to_writer);
        drop((mailbox, to_writer));
        let report = join(desk);
        checking.into_iter().for_each(join);
        (computed, report, join(writer))
    });
    match computed {
        // What that one has said of itself tells more.
        Err(failure) if failure.is_of_another_rank() => Err(report.failure.unwrap_or(failure)),
        Err(failure) => Err(failure),
        Ok(computed) => finish(summary?, &computed, report),
    }
}

/// The samples by their positions.
fn requests<'a>(
    job: &'a Job<'a>,
    to_writer: Sender<ToWriter>,
) -> Box<dyn Fn(usize) -> Option<Request> + Send + 'a> {
    Box::new(move |position| match job.request(position) {
        Ok(request) => Some(request),
        Err(error) => {
            // The writer ends the run.
            let _ = to_writer.send(ToWriter::Unreadable(error));
            None
        }
    })
}

/// The line of rank 0 to its own desk.
fn own_mailbox(events: Sender<Event>, from_zero: Receiver<Heard>) -> Mailbox {
    let say = Box::new(move |message| {
        // The desk ends last.
        let _ = events.send(Event::From(0, message));
    });
    Mailbox { say, from_zero }
}

/// Where finished samples go: to the checks, where there are any, or to the writer.
fn finished_samples<'a>(
    job: &'a Job<'a>,
    to_writer: Sender<ToWriter>,
    to_checks: Sender<ToChecks>,
) -> Box<dyn Fn(usize, SampleDone) + Send + 'a> {
    let is_checked = job.checks.is_some();
    Box::new(move |position, sample| {
        // A writer that failed has said so.
        let _ = match is_checked {
            true => to_checks.send(ToChecks::Sample(position, sample)).map_err(drop),
            false => {
                let finished = FinishedSample { position, sample, checked: Vec::new(), num_left_out: 0 };
                to_writer.send(ToWriter::Finished(finished)).map_err(drop)
            }
        };
    })
}

fn responses<'a>(to_checks: Sender<ToChecks>) -> Box<dyn Fn(Rank, usize, u32, ResponseDone) + Send + 'a> {
    Box::new(move |rank, position, response_idx, response| {
        let _ = to_checks.send(ToChecks::Response { rank, position, response_idx, response });
    })
}

/// Where samples go that are checked.
fn checked_samples<'a>(
    job: &'a Job<'a>,
    to_writer: Sender<ToWriter>,
) -> Box<dyn Fn(usize, SampleDone, Vec<Checked>) + Send + 'a> {
    Box::new(move |position, sample, checked| {
        let num_left_out = match job.prompts.is_unusable(position) {
            true => 0,
            false => u64::from(job.plan.num_responses(job.prompts.row_demand(position)))
                .saturating_sub(sample.responses.len() as u64),
        };
        let finished = FinishedSample { position, sample, checked, num_left_out };
        let _ = to_writer.send(ToWriter::Finished(finished));
    })
}

fn cancellations<'a>(events: Sender<Event>) -> Box<dyn Fn(Rank, Cancellation) + Send + 'a> {
    Box::new(move |rank, cancellation| {
        let _ = events.send(Event::Cancel(rank, cancellation));
    })
}

fn job_end(stop: Option<&Stop>) -> JobEnd {
    match stop {
        Some(Stop::Finished) => JobEnd::Finished,
        Some(Stop::Early { .. }) => JobEnd::Early,
        Some(Stop::Failed { .. }) | None => JobEnd::Failed,
    }
}

fn first_position(job: &Job<'_>) -> usize {
    job.steps.first().map_or(0, |step| step.positions.start)
}

fn end_position(job: &Job<'_>) -> usize {
    job.steps.last().map_or(0, |step| step.positions.end)
}

impl Job<'_> {
    fn request(&self, position: usize) -> Result<Request, Unreadable> {
        if let (true, Some(sample_idx)) =
            (self.prompts.is_unusable(position), self.prompts.sample_idx(position))
        {
            return Ok(Request {
                sample_idx,
                prompt: Vec::new(),
                num_responses: 0,
                max_new_tokens: 0,
                own: None,
                foresight: Foresight::default(),
            });
        }
        let prompt = self.prompts.load(position)?;
        let demand = self.prompts.row_demand(position);
        Ok(Request {
            sample_idx: prompt.sample_idx,
            num_responses: self.plan.num_responses(demand),
            max_new_tokens: self.plan.budget_tokens(prompt.ids.len(), demand),
            own: self.row_rules.own(&prompt.row).map_err(|error| Unreadable::Rules(prompt.line, error))?,
            prompt: prompt.ids,
            foresight: Foresight::default(),
        })
    }

    /// What is known of the work that a sample will be.
    fn work(&self, position: usize) -> Work {
        let Some(outlook) = self.prompts.outlook(position) else { return Work::default() };
        let PromptOutlook { num_tokens, length_hint, prefix, same_as } = outlook;
        Work {
            known_tokens: length_hint,
            budget_tokens: self.plan.budget_tokens(num_tokens, self.prompts.row_demand(position)),
            prefix: prefix.filter(|_| self.plan.prefix_cache),
            same_as,
        }
    }

    fn lease_limits(&self) -> LeaseLimits {
        let step_samples = self.plan.batch.global;
        let held_by_all = (self.capacity as usize).saturating_mul(self.topology.num_replicas() as usize);
        LeaseLimits {
            step_samples,
            run_ahead_samples: held_by_all.saturating_mul(RUN_AHEAD).max(4 * step_samples),
            window_samples: held_by_all.saturating_mul(WINDOW),
            max_waiting_bytes: MAX_WAITING_BYTES,
            lease: self.plan.lease,
        }
    }
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What rank 0 itself computed, and when it began.
struct Computed {
    stats: RunStats,
    load_time: Duration,
    began: Instant,
}

/// Loads the model and works like any other rank.
fn compute(
    job: &Job<'_>,
    load: &dyn Fn(&Mailbox) -> Result<Engine, Failure>,
    mailbox: &Mailbox,
    to_writer: &Sender<ToWriter>,
) -> Result<Computed, Failure> {
    let hello = Hello::of_this_process(job.identity, job.topology, job.fallback.map(str::to_owned))?;
    (mailbox.say)(ToZero::Hello(hello));
    let loading = Instant::now();
    let outcome = load(mailbox).and_then(|mut engine| {
        let load_time = loading.elapsed();
        tracing::info!("loaded in {:.2} s", load_time.as_secs_f64());
        let _ = to_writer.send(ToWriter::Loaded(engine.live()));
        (mailbox.say)(ToZero::Ready { capacity: job.capacity });
        let began = Instant::now();
        match worker::work(&mut engine, mailbox, Tells::of(job.plan), &|| false)? {
            (WorkerEnd::Lost(reason), _) => Err(anyhow::anyhow!("{reason}").into()),
            (_, stats) => Ok(Computed { stats, load_time, began }),
        }
    });
    let outcome = outcome.map_err(|failure| nonfinite::explain(failure, job.weights, job.plan.numerics));
    let why = match &outcome {
        Ok(_) => Why::Told,
        Err(failure) => Why::of(failure),
    };
    (mailbox.say)(ToZero::Leaving(Leaving { why, worked: Worked::default() }));
    outcome
}

/// Puts the parts of the summary together, unless another rank failed.
fn finish(mut summary: Summary, computed: &Computed, report: DeskReport) -> Result<Summary, Failure> {
    if let Some(failure) = report.failure.or(report.lost) {
        return Err(failure);
    }
    summary.seconds.generate = seconds(computed.began.elapsed());
    summary.seconds.load = seconds(computed.load_time);
    let mut stats = computed.stats.clone();
    report.others_worked.iter().for_each(|worked| worked.add_to(&mut stats));
    summary.add_engine(&stats);
    if report.samples_by_rank.len() > 1 {
        summary.samples_by_rank = report.samples_by_rank;
    }
    Ok(summary)
}

/// Runs until the senders are gone, so that every step that became whole is committed.
fn write_steps(
    receiver: &Receiver<ToWriter>,
    mut collector: StepCollector<'_>,
    sink: &mut (dyn GenerationSink + Send),
    Reports { mut progress, metrics, mut pass_totals }: Reports<'_>,
    events: &Sender<Event>,
) -> Result<Summary, Failure> {
    let mut summary = Summary::default();
    let mut finish_reasons = FinishReasons::default();
    let mut checks = CheckCounts::default();
    let mut write_time = Duration::ZERO;
    loop {
        let finished = match receiver.recv_timeout(SHOW_EVERY) {
            Ok(ToWriter::Finished(finished)) => finished,
            Ok(ToWriter::ChecksFailed(failure)) => return Err(failure),
            Ok(ToWriter::Unreadable(error)) => return Err(error.into()),
            Ok(ToWriter::Loaded(live)) => {
                progress.loaded(live);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {
                progress.show();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let FinishedSample { position, sample, checked, num_left_out } = finished;
        checks.add(&checked, num_left_out);
        progress.left_out(num_left_out);
        for response in &sample.responses {
            finish_reasons.count(response.finish_reason);
            summary.responses += 1;
            summary.output_tokens += response.token_ids.len() as u64;
            progress.response(response.token_ids.len());
        }
        collector.push(position, sample, &checked);
        while let Some(step) = collector.pop()? {
            let started = Instant::now();
            sink.commit(&step)?;
            write_time += started.elapsed();
            // The desk ends after this thread's last sender.
            let end = usize::try_from(step.consumed_samples).unwrap_or(usize::MAX);
            let _ = events.send(Event::Committed(end));
            summary.samples += step.samples.len() as u64;
            step.samples.iter().for_each(|sample| pass_totals.add(&sample.pass_at_k));
            progress.step(step.step, step.consumed_samples);
            metrics.step(&StepCounts {
                step: step.step,
                consumed_samples: step.consumed_samples,
                responses: summary.responses,
                output_tokens: summary.output_tokens,
                finish_reasons,
            });
        }
    }
    progress.finish();
    (summary.structures_cut, summary.rows_with_error) = (collector.num_cut, collector.num_failed);
    summary.finish_reasons = finish_reasons;
    summary.checks = Some(checks).filter(|checks| checks.responses > 0);
    summary.pass_at_k = Some(pass_totals).filter(|totals| totals.text().is_some());
    summary.seconds.write = seconds(write_time);
    Ok(summary)
}
