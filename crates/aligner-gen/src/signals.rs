//! Reasons to stop early: signals and `exp_manager.max_time_per_run`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};

use crate::exit::ExitStatus;

/// Why a run stops before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    Signal(i32),
    TimeLimit(Duration),
}

impl StopReason {
    /// SIGUSR1 is how batch systems announce a time limit, so it ends like one.
    pub(crate) fn exit_status(self) -> ExitStatus {
        match self {
            Self::Signal(SIGUSR1) | Self::TimeLimit(_) => ExitStatus::Done,
            Self::Signal(signal) => ExitStatus::Signal(signal),
        }
    }
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Signal(SIGINT) => f.write_str("SIGINT"),
            Self::Signal(SIGTERM) => f.write_str("SIGTERM"),
            Self::Signal(SIGUSR1) => f.write_str("SIGUSR1"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::TimeLimit(limit) => write!(f, "`exp_manager.max_time_per_run` of {} s", limit.as_secs()),
        }
    }
}

/// Watches for reasons to stop.
#[derive(Clone, Debug)]
pub(crate) struct StopWatch {
    signal: Arc<AtomicUsize>,
    started: Instant,
    time_limit: Option<Duration>,
}

impl StopWatch {
    /// Installs the signal handlers. `started` is when the process did.
    pub(crate) fn install(started: Instant) -> std::io::Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGUSR1] {
            if number != SIGUSR1 {
                // Registered before the flag is set by the handler below: only the second signal finds it set.
                let seen = Arc::new(AtomicBool::new(false));
                signal_hook::flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&seen))?;
                signal_hook::flag::register(number, seen)?;
            }
            signal_hook::flag::register_usize(number, Arc::clone(&signal), number.unsigned_abs() as usize)?;
        }
        // Without a handler, writing past `ulimit -f` kills the process; with one, the write fails and is reported.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        Ok(Self { signal, started, time_limit: None })
    }

    /// One that no signal comes to.
    #[cfg(test)]
    pub(crate) fn idle() -> Self {
        Self { signal: Arc::default(), started: Instant::now(), time_limit: None }
    }

    /// The same watch with a time limit.
    pub(crate) fn with_time_limit(mut self, time_limit: Option<Duration>) -> Self {
        self.time_limit = time_limit;
        self
    }

    /// Stops for a signal that came to another rank.
    pub(crate) fn raise(&self, signal: i32) {
        self.signal.store(signal.unsigned_abs() as usize, Ordering::Relaxed);
    }

    /// The signal that has come, to hand it on.
    pub(crate) fn signal(&self) -> Option<Signal> {
        match i32::try_from(self.signal.load(Ordering::Relaxed)) {
            Ok(SIGINT) => Some(Signal::INT),
            Ok(SIGTERM) => Some(Signal::TERM),
            Ok(SIGUSR1) => Some(Signal::USR1),
            _ => None,
        }
    }

    /// The reason to stop now, if there is one.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        match i32::try_from(self.signal.load(Ordering::Relaxed)) {
            Ok(0) | Err(_) => {}
            Ok(signal) => return Some(StopReason::Signal(signal)),
        }
        let limit = self.time_limit?;
        (self.started.elapsed() >= limit).then_some(StopReason::TimeLimit(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usr1_is_a_time_limit() {
        assert_eq!(StopReason::Signal(SIGUSR1).exit_status(), ExitStatus::Done);
        assert_eq!(StopReason::Signal(SIGTERM).exit_status(), ExitStatus::Signal(15));
    }
}
