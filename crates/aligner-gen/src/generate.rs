//! The heart of the main job: requests into the engine, completions out of it, steps onto disk.
//!
//! The engine runs on the calling thread; text, JSON and syncing happen on another, so that the model never waits for
//! the disk. The engine takes requests of later steps while earlier ones finish.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use data::PreparedPrompt;
use engine::{Completion, Engine, Request, RunStats};

use crate::exit::Failure;
use crate::output::{GenerationSink, OutputError};
use crate::plan::GenerationPlan;
use crate::progress::Progress;
use crate::signals::StopWatch;
use crate::steps::{PendingStep, StepCollector};
use crate::summary::{FinishReasons, Summary, seconds};

/// What generation runs on.
pub(crate) struct Job<'a> {
    pub(crate) plan: &'a GenerationPlan,
    pub(crate) prompts: &'a [PreparedPrompt],
    pub(crate) steps: &'a [PendingStep],
    pub(crate) watch: &'a StopWatch,
}

/// Generates all pending steps, or as many as there is time for. Whole steps are committed either way.
pub(crate) fn generate(
    job: &Job<'_>,
    engine: &mut Engine,
    collector: StepCollector<'_>,
    sink: &mut (dyn GenerationSink + Send),
    progress: Progress,
) -> Result<Summary, Failure> {
    let started = Instant::now();
    let (sender, receiver) = channel();
    let writer_failed = AtomicBool::new(false);
    let (stats, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = write_steps(&receiver, collector, sink, progress);
            writer_failed.store(written.is_err(), Ordering::Relaxed);
            // Kept open until here, so that the engine never sends into nothing.
            drop(receiver);
            written
        });
        let mut requests = requests(job);
        let stats = engine.run(
            &mut || requests.next(),
            &mut |completion| match sender.send(completion) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            },
            &|| writer_failed.load(Ordering::Relaxed) || job.watch.reason().is_some(),
        );
        drop(sender);
        (stats, writer.join())
    });
    let written = match written {
        Ok(written) => written?,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    let stats: RunStats = stats?;
    let mut summary = written;
    summary.seconds.generate = seconds(started.elapsed());
    summary.add_engine(&stats);
    Ok(summary)
}

fn requests<'a>(job: &'a Job<'a>) -> impl Iterator<Item = Request> + 'a {
    job.steps
        .iter()
        .flat_map(|step| step.positions.clone())
        .filter_map(|position| job.prompts.get(position))
        .map(|prompt| Request {
            sample_idx: prompt.index,
            prompt: prompt.ids.clone(),
            num_responses: job.plan.num_responses,
            max_new_tokens: job.plan.budget_tokens(prompt.ids.len()),
        })
}

/// Runs until the sender is gone, so that every step that became whole is committed.
fn write_steps(
    receiver: &Receiver<Completion>,
    mut collector: StepCollector<'_>,
    sink: &mut (dyn GenerationSink + Send),
    mut progress: Progress,
) -> Result<Summary, OutputError> {
    let mut summary = Summary::default();
    let mut finish_reasons = FinishReasons::default();
    let mut write_time = Duration::ZERO;
    loop {
        let completion = match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(completion) => completion,
            Err(RecvTimeoutError::Timeout) => {
                progress.show();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        finish_reasons.count(completion.finish_reason);
        summary.responses += 1;
        summary.output_tokens += completion.token_ids.len() as u64;
        progress.response(completion.token_ids.len());
        collector.push(completion);
        while let Some(step) = collector.pop() {
            let started = Instant::now();
            sink.commit(&step)?;
            write_time += started.elapsed();
            summary.samples += step.samples.len() as u64;
            progress.step(step.step, step.consumed_samples);
        }
    }
    progress.finish();
    summary.finish_reasons = finish_reasons;
    summary.seconds.write = seconds(write_time);
    Ok(summary)
}
