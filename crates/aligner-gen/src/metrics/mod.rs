//! How the run goes, for TensorBoard and Weights & Biases: a few numbers after each committed step.
//!
//! Losing them must not lose the run: what cannot be written is said once, and that logger is left out from then on.

mod framing;
mod series;
mod tensorboard;
mod tensorboard_proto;
mod wandb;
mod wandb_proto;

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::num::NonZero;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use hydra_config::Node;
use sampling::FinishReason;
use serde::Serialize;

use crate::config::exp_manager::ExpManagerPlan;
use crate::exit::ExitStatus;
pub(crate) use series::{SeriesPoint, read_series};
use tensorboard::EventFile;
use wandb::OfflineRun;

/// The speed is that of the last half minute: long enough to be steady, short enough to show a change.
const SPEED_OVER: Duration = Duration::from_secs(30);

/// What the loggers write down when they start.
pub(crate) struct RunFacts<'a> {
    pub(crate) log_dir: &'a Path,
    pub(crate) command_line: &'a [String],
    /// The resolved configuration.
    pub(crate) config: &'a Node,
    pub(crate) machine: Machine,
    pub(crate) started: SystemTime,
}

/// The machine that the run is on.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    host: String,
    os: String,
    num_cpus: u32,
}

impl Machine {
    /// This machine.
    pub(crate) fn this() -> Self {
        let system = rustix::system::uname();
        let text = |text: &CStr| text.to_string_lossy().into_owned();
        let num_cpus = std::thread::available_parallelism().map_or(0, NonZero::get);
        Self {
            host: text(system.nodename()),
            os: format!("{}-{}-{}", text(system.sysname()), text(system.release()), text(system.machine())),
            num_cpus: u32::try_from(num_cpus).unwrap_or(u32::MAX),
        }
    }
}

/// How many responses ended for which reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct FinishReasons {
    pub(crate) eos: u64,
    pub(crate) end_string: u64,
    pub(crate) length: u64,
    /// Those that could not go on.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) error: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl FinishReasons {
    pub(crate) fn count(&mut self, reason: FinishReason) {
        match reason {
            FinishReason::Eos => self.eos += 1,
            FinishReason::EndString => self.end_string += 1,
            FinishReason::Length => self.length += 1,
            FinishReason::Error => self.error += 1,
        }
    }
}

/// Counts of this run after a committed step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepCounts {
    /// Counted from 1 over all runs on the folder.
    pub(crate) step: u64,
    /// Samples in committed steps, over all runs on the folder.
    pub(crate) consumed_samples: u64,
    pub(crate) responses: u64,
    pub(crate) output_tokens: u64,
    pub(crate) finish_reasons: FinishReasons,
}

/// One number with its name.
type Scalar = (&'static str, f64);

/// Where the numbers go.
trait MetricsLogger {
    /// For messages.
    fn name(&self) -> &'static str;
    /// The numbers after a step.
    fn log(&mut self, step: u64, at: SystemTime, scalars: &[Scalar]) -> io::Result<()>;
    /// The end of the run. What the user can do with it now, if anything.
    fn finish(&mut self, exit_code: u8, at: SystemTime) -> io::Result<Option<String>>;
}

/// The loggers that the configuration asks for.
pub(crate) struct Metrics {
    loggers: Vec<Box<dyn MetricsLogger + Send>>,
    speed: Speed,
}

impl Metrics {
    /// Opens the files.
    pub(crate) fn start(plan: &ExpManagerPlan, facts: &RunFacts<'_>) -> Self {
        let mut loggers: Vec<Box<dyn MetricsLogger + Send>> = Vec::new();
        if let Some(tensorboard) = &plan.tensorboard {
            match EventFile::create(tensorboard, facts) {
                Ok(file) => loggers.push(Box::new(file)),
                Err(error) => left_out(EventFile::NAME, &error),
            }
        }
        if let Some(wandb) = &plan.wandb {
            match OfflineRun::create(wandb, facts) {
                Ok(run) => loggers.push(Box::new(run)),
                Err(error) => left_out(OfflineRun::NAME, &error),
            }
        }
        Self { loggers, speed: Speed::start(Instant::now()) }
    }

    /// After a committed step.
    pub(crate) fn step(&mut self, counts: &StepCounts) {
        let speed = self.speed.after(Instant::now(), counts.output_tokens);
        let scalars = scalars(counts, speed, ProcessMemory::now());
        let at = SystemTime::now();
        self.each(|logger| logger.log(counts.step, at, &scalars));
    }

    /// At the end of the run, however it ended.
    pub(crate) fn finish(mut self, status: ExitStatus) {
        let at = SystemTime::now();
        self.each(|logger| {
            if let Some(hint) = logger.finish(status.code(), at)? {
                tracing::info!("{hint}");
            }
            Ok(())
        });
    }

    fn each(&mut self, mut action: impl FnMut(&mut (dyn MetricsLogger + Send)) -> io::Result<()>) {
        self.loggers.retain_mut(|logger| match action(logger.as_mut()) {
            Ok(()) => true,
            Err(error) => {
                left_out(logger.name(), &error);
                false
            }
        });
    }
}

/// Seconds since 1970, with the part behind the point.
fn seconds_since_1970(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn left_out(name: &str, error: &io::Error) {
    tracing::warn!("{name} is disabled for the rest of this run; generation continues: {error}");
}

fn scalars(counts: &StepCounts, tokens_per_second: f64, memory: Option<ProcessMemory>) -> Vec<Scalar> {
    let reasons = counts.finish_reasons;
    let mut scalars = vec![
        ("generation/consumed_samples", counts.consumed_samples as f64),
        ("generation/responses", counts.responses as f64),
        ("generation/output_tokens", counts.output_tokens as f64),
        ("generation/output_tokens_per_second", tokens_per_second),
        ("generation/mean_response_tokens", counts.output_tokens as f64 / counts.responses.max(1) as f64),
        ("finish_reasons/eos", reasons.eos as f64),
        ("finish_reasons/end_string", reasons.end_string as f64),
        ("finish_reasons/length", reasons.length as f64),
    ];
    if let Some(memory) = memory {
        scalars.push(("memory/resident_bytes", memory.resident_bytes as f64));
        scalars.push(("memory/peak_resident_bytes", memory.peak_resident_bytes as f64));
    }
    scalars
}

/// Tokens per second over the last [`SPEED_OVER`].
struct Speed {
    /// Times and counts, the oldest first; never empty.
    seen: VecDeque<(Instant, u64)>,
}

impl Speed {
    fn start(at: Instant) -> Self {
        Self { seen: VecDeque::from([(at, 0)]) }
    }

    fn after(&mut self, at: Instant, num_tokens: u64) -> f64 {
        self.seen.push_back((at, num_tokens));
        // The newest one that is old enough is what the speed is measured from.
        while self.seen.get(1).is_some_and(|&(seen, _)| at.duration_since(seen) >= SPEED_OVER) {
            self.seen.pop_front();
        }
        let Some(&(since, before)) = self.seen.front() else { return 0.0 };
        let seconds = at.duration_since(since).as_secs_f64();
        if seconds > 0.0 { num_tokens.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

/// Memory of this process, where the system says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessMemory {
    resident_bytes: u64,
    peak_resident_bytes: u64,
}

impl ProcessMemory {
    fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let bytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self { resident_bytes: bytes("VmRSS:")?, peak_resident_bytes: bytes("VmHWM:")? })
    }
}

#[cfg(test)]
mod tests;
