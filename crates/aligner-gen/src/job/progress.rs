//! How far the run is: a bar on a terminal, a log line every 30 seconds elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::LiveCounts;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(30);
/// Parts of a response that the bar tells apart.
const BAR_PARTS: u64 = 1000;

/// Counts the records of the data while they are read and checked, on a terminal.
pub(crate) struct ReadingBar(ProgressBar);

impl ReadingBar {
    pub(crate) fn start(bars: &MultiProgress) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
        let bar = bars.add(bar);
        if let Ok(style) = ProgressStyle::with_template("{spinner} reading {human_pos} records ({per_sec})") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// One more.
    pub(crate) fn record(&self) {
        self.0.inc(1);
    }
}

impl Drop for ReadingBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// What is to be done in this run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    /// Samples of the job, those of earlier runs included.
    pub(crate) num_samples: u64,
    /// Steps of the job.
    pub(crate) num_steps: u64,
    /// Responses of this run.
    pub(crate) num_responses: u64,
    /// The most tokens that one of them may have.
    pub(crate) max_response_tokens: u64,
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
    /// Of responses that have ended, of all ranks.
    output_tokens: u64,
    /// What this rank's engine is at, from when the weights are loaded.
    live: Option<Arc<LiveCounts>>,
    /// The most that was shown: a response that ends is counted a moment later than its tokens.
    shown_tokens: u64,
}

impl Progress {
    /// Starts at what earlier runs did, which does not count for the speed.
    pub(crate) fn start(bars: &MultiProgress, totals: Totals, step: u64, consumed_samples: u64) -> Self {
        let bar = bars.add(ProgressBar::with_draw_target(
            Some(totals.num_responses * BAR_PARTS),
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
            live: None,
            shown_tokens: 0,
        }
    }

    /// The weights are loaded: the time from here on counts for the speed.
    pub(crate) fn loaded(&mut self, live: Arc<LiveCounts>) {
        self.started = Instant::now();
        self.live = Some(live);
    }

    /// One more response.
    pub(crate) fn response(&mut self, num_tokens: usize) {
        self.num_responses += 1;
        self.output_tokens += num_tokens as u64;
        self.show();
    }

    /// Responses that will not be generated.
    pub(crate) fn left_out(&mut self, num_responses: u64) {
        if num_responses > 0 {
            self.totals.num_responses = self.totals.num_responses.saturating_sub(num_responses);
            self.bar.set_length(self.totals.num_responses * BAR_PARTS);
        }
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
        let line = self.line();
        self.bar.set_position(self.position());
        self.bar.set_message(line);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Tokens of responses that are being generated.
    fn open_tokens(&self) -> u64 {
        self.live.as_ref().map_or(0, |live| live.open_tokens())
    }

    /// Where the bar is: responses that have ended, and of the others what part of their longest they have.
    fn position(&self) -> u64 {
        let open = self.open_tokens().saturating_mul(BAR_PARTS) / self.totals.max_response_tokens.max(1);
        self.num_responses * BAR_PARTS + open
    }

    /// What is still to come, from what there was; before the first response has ended at most so long.
    fn eta(&self, elapsed: f64) -> String {
        let whole = (self.totals.num_responses * BAR_PARTS) as f64;
        match (self.num_responses, self.position()) {
            (_, 0) => "?".to_owned(),
            (ended, position) => {
                let left = elapsed / position as f64 * (whole - position as f64).max(0.0);
                format!("{}{}", if ended == 0 { "<= " } else { "" }, clock(Duration::from_secs_f64(left)))
            }
        }
    }

    fn line(&mut self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        self.shown_tokens = self.shown_tokens.max(self.output_tokens + self.open_tokens());
        let prompt_tokens = self.live.as_ref().map_or(0, |live| live.prompt_tokens());
        let speed = if self.shown_tokens == 0 && prompt_tokens > 0 {
            format!("{prompt_tokens} prompt tokens")
        } else {
            format!("{:.1} tok/s out", self.shown_tokens as f64 / elapsed.max(1e-3))
        };
        format!(
            "step {}/{}  {}/{} samples  {speed}  ETA {}",
            self.step,
            self.totals.num_steps,
            self.consumed_samples,
            self.totals.num_samples,
            self.eta(elapsed),
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
    fn records_are_counted() {
        let bar = ReadingBar::start(&MultiProgress::new());
        (0..3).for_each(|_| bar.record());
        assert_eq!(bar.0.position(), 3);
    }

    #[test]
    fn line_counts_samples_and_steps() {
        let totals = Totals { num_samples: 10, num_steps: 5, num_responses: 8, max_response_tokens: 16 };
        let mut progress = Progress::start(&MultiProgress::new(), totals, 1, 2);
        assert!(progress.line().starts_with("step 1/5  2/10 samples  0.0 tok/s out  ETA ?"));
        progress.loaded(Arc::default());
        assert!(progress.line().starts_with("step 1/5  2/10 samples  0.0 tok/s out  ETA ?"));
        progress.response(7);
        progress.step(2, 4);
        assert!(progress.line().starts_with("step 2/5  4/10 samples  "));
        assert_eq!(clock(Duration::from_secs(3_723)), "01:02:03");
    }
}
