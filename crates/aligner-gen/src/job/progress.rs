//! How far the run is: a bar on a terminal, a log line every 30 seconds elsewhere.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(30);

/// What is to be done in this run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    /// Samples of the job, those of earlier runs included.
    pub(crate) num_samples: u64,
    /// Steps of the job.
    pub(crate) num_steps: u64,
    /// Responses of this run.
    pub(crate) num_responses: u64,
}

/// Counts and shows.
pub(crate) struct Progress {
    bar: ProgressBar,
    totals: Totals,
    started: Instant,
    last_line: Instant,
    step: u64,
    consumed_samples: u64,
    num_responses: u64,
    output_tokens: u64,
}

impl Progress {
    /// Starts at what earlier runs did, which does not count for the speed.
    pub(crate) fn start(bars: &MultiProgress, totals: Totals, step: u64, consumed_samples: u64) -> Self {
        let bar = bars.add(ProgressBar::with_draw_target(
            Some(totals.num_responses),
            ProgressDrawTarget::stderr_with_hz(4),
        ));
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
            bar.set_style(style);
        }
        let now = Instant::now();
        Self {
            bar,
            totals,
            started: now,
            last_line: now,
            step,
            consumed_samples,
            num_responses: 0,
            output_tokens: 0,
        }
    }

    /// The time from here on counts for the speed.
    pub(crate) fn restart_clock(&mut self) {
        self.started = Instant::now();
    }

    /// One more response.
    pub(crate) fn response(&mut self, num_tokens: usize) {
        self.num_responses += 1;
        self.output_tokens += num_tokens as u64;
        self.show();
    }

    /// One more step on disk.
    pub(crate) fn step(&mut self, step: u64, consumed_samples: u64) {
        self.step = step;
        self.consumed_samples = consumed_samples;
        self.show();
    }

    /// Also called when nothing happens, so that the line comes in time.
    pub(crate) fn show(&mut self) {
        if self.bar.is_hidden() {
            if self.last_line.elapsed() >= LINE_EVERY {
                self.last_line = Instant::now();
                tracing::info!("{}", self.line());
            }
            return;
        }
        self.bar.set_position(self.num_responses);
        self.bar.set_message(self.line());
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let left = self.totals.num_responses.saturating_sub(self.num_responses);
        let eta = if self.num_responses == 0 {
            "?".to_owned()
        } else {
            clock(Duration::from_secs_f64(elapsed / self.num_responses as f64 * left as f64))
        };
        format!(
            "step {}/{}  {}/{} samples  {:.1} tok/s out  ETA {eta}",
            self.step,
            self.totals.num_steps,
            self.consumed_samples,
            self.totals.num_samples,
            self.output_tokens as f64 / elapsed.max(1e-3),
        )
    }
}

/// `HH:MM:SS`.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_counts_samples_and_steps() {
        let totals = Totals { num_samples: 10, num_steps: 5, num_responses: 8 };
        let mut progress = Progress::start(&MultiProgress::new(), totals, 1, 2);
        assert!(progress.line().starts_with("step 1/5  2/10 samples  0.0 tok/s out  ETA ?"));
        progress.response(7);
        progress.step(2, 4);
        assert!(progress.line().starts_with("step 2/5  4/10 samples  "));
        assert_eq!(clock(Duration::from_secs(3_723)), "01:02:03");
    }
}
