//! The end of a run: a table on stderr and the same as `summary.json`.

use std::path::Path;
use std::time::Duration;

use engine::RunStats;
use serde::Serialize;

use super::select::PassTotals;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::metrics::FinishReasons;
use crate::output::{Checked, write_atomically};
use crate::table::{thousands, two_columns};

/// Where the time went, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Seconds {
    pub(crate) load: f64,
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
    pub(crate) sample: f64,
    pub(crate) write: f64,
    /// From the first request to the last committed step.
    pub(crate) generate: f64,
}

/// What went to the memory of the host because the KV cache was full, and came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Swaps {
    /// How often a response had to make room.
    pub(crate) preemptions: u64,
    pub(crate) blocks_out: u64,
    pub(crate) blocks_in: u64,
    pub(crate) seconds: f64,
}

/// What became of drafted tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Drafts {
    pub(crate) drafted_tokens: u64,
    pub(crate) accepted_tokens: u64,
    /// By which a response went on in a decode step.
    pub(crate) tokens_per_step: f64,
}

impl Drafts {
    fn of(stats: &RunStats) -> Option<Self> {
        let &RunStats { decode_rows, drafted_tokens, accepted_tokens, .. } = stats;
        (drafted_tokens > 0).then(|| Self {
            drafted_tokens,
            accepted_tokens,
            tokens_per_step: round((decode_rows + accepted_tokens) as f64 / decode_rows.max(1) as f64),
        })
    }
}

/// What a program said of responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CheckCounts {
    pub(crate) responses: u64,
    pub(crate) passed: u64,
    /// Left out of the output, because an earlier one to the same prompt was enough.
    pub(crate) left_out: u64,
    /// Those of them that were being generated, and were not to their end.
    pub(crate) cancelled: u64,
}

impl CheckCounts {
    /// Counts in a sample.
    pub(crate) fn add(&mut self, checked: &[Checked], num_left_out: u64) {
        self.responses += checked.iter().filter(|checked| checked.verdict.is_some()).count() as u64;
        self.passed += checked.iter().filter(|checked| checked.is_passed()).count() as u64;
        self.left_out += num_left_out;
    }
}

/// What this run did; what earlier runs on the folder did is not counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) samples: u64,
    pub(crate) responses: u64,
    /// Computed.
    pub(crate) prompt_tokens: u64,
    /// Not computed, because an earlier prompt began with the same ones.
    pub(crate) cached_prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) output_tokens_per_second: f64,
    pub(crate) finish_reasons: FinishReasons,
    pub(crate) samples_left_out: u64,
    /// Rows of the whole job with an `error` in place of responses.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) rows_with_error: u64,
    /// Responses that ended inside their structure: by the limit, or by an end string.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) structures_cut: u64,
    /// Most responses in one decode step.
    pub(crate) peak_rows: u64,
    pub(crate) swaps: Swaps,
    pub(crate) seconds: Seconds,
    /// Where a program checks responses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checks: Option<CheckCounts>,
    /// Of the whole job.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) pass_at_k: Option<PassTotals>,
    /// Where tokens were drafted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) speculation: Option<Drafts>,
    /// With several replicas, how many samples each of the ranks that lead them computed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) samples_by_rank: Vec<u64>,
}

impl Summary {
    /// Adds the engine's own measurements.
    pub(crate) fn add_engine(&mut self, stats: &RunStats) {
        self.prompt_tokens = stats.prompt_tokens;
        self.cached_prompt_tokens = stats.cached_prompt_tokens;
        self.peak_rows = stats.peak_rows as u64;
        self.swaps = Swaps {
            preemptions: stats.num_preemptions,
            blocks_out: stats.num_swapped_out_blocks,
            blocks_in: stats.num_swapped_in_blocks,
            seconds: seconds(stats.swap_time),
        };
        self.seconds.prefill = seconds(stats.prefill_time);
        self.seconds.decode = seconds(stats.decode_time);
        self.seconds.sample = seconds(stats.sample_time);
        self.speculation = Drafts::of(stats);
        if let Some(checks) = &mut self.checks {
            checks.cancelled = stats.num_cancelled;
        }
        if self.seconds.generate > 0.0 {
            self.output_tokens_per_second = round(self.output_tokens as f64 / self.seconds.generate);
        }
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let reasons = self.finish_reasons;
        let time = self.seconds;
        let mut prompt_tokens = thousands(self.prompt_tokens);
        if self.cached_prompt_tokens > 0 {
            let cached = thousands(self.cached_prompt_tokens);
            prompt_tokens.push_str(&format!(", and {cached} not computed again"));
        }
        let mut rows = vec![
            ("samples", thousands(self.samples)),
            ("responses", thousands(self.responses)),
            ("prompt tokens", prompt_tokens),
            (
                "output tokens",
                format!("{} ({:.1}/s)", thousands(self.output_tokens), self.output_tokens_per_second),
            ),
            ("ended by", ended_by(reasons)),
            ("samples left out", thousands(self.samples_left_out)),
        ];
        // Responses of one token are drawn with their prompts.
        if self.peak_rows > 0 {
            rows.push(("sequences at once", format!("up to {}", thousands(self.peak_rows))));
        }
        rows.push((
            "seconds",
            format!(
                "load {:.2}, prefill {:.2}, decode {:.2}, sample {:.2}, write {:.2}",
                time.load, time.prefill, time.decode, time.sample, time.write
            ),
        ));
        if self.rows_with_error > 0 {
            rows.push(("rows with an error", thousands(self.rows_with_error)));
        }
        if self.structures_cut > 0 {
            rows.push(("structures cut", thousands(self.structures_cut)));
        }
        if self.swaps.preemptions > 0 {
            let Swaps { preemptions, blocks_out, blocks_in, seconds } = self.swaps;
            let [preemptions, out, back] = [preemptions, blocks_out, blocks_in].map(thousands);
            rows.push((
                "swapped",
                format!(
                    "{preemptions} responses made room: {out} KV blocks to the host and {back} back in {seconds:.2} s"
                ),
            ));
        }
        if let Some(CheckCounts { responses, passed, left_out, cancelled }) = self.checks {
            let [responses, passed, left_out, cancelled] =
                [responses, passed, left_out, cancelled].map(thousands);
            let mut text = format!("{passed} of {responses} responses pass");
            if left_out != "0" {
                text.push_str(&format!(
                    ", {left_out} left out, {cancelled} of them while they were generated"
                ));
            }
            rows.push(("checks", text));
        }
        if let Some(text) = self.pass_at_k.as_ref().and_then(PassTotals::text) {
            rows.push(("pass@k", text));
        }
        if let Some(Drafts { drafted_tokens, accepted_tokens, tokens_per_step }) = self.speculation {
            let (drafted, accepted) = (thousands(drafted_tokens), thousands(accepted_tokens));
            let text = format!("drafted {drafted}, accepted {accepted}, {tokens_per_step:.2} tokens a step");
            rows.push(("speculation", text));
        }
        if !self.samples_by_rank.is_empty() {
            let counts: Vec<String> = self.samples_by_rank.iter().map(|&count| thousands(count)).collect();
            rows.push(("samples by rank", counts.join(", ")));
        }
        two_columns(&rows)
    }

    /// Writes `summary.json` into the log folder.
    pub(crate) fn write(&self, log_dir: &Path) -> Result<(), Failure> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(anyhow::Error::from)?;
        bytes.push(b'\n');
        write_atomically(log_dir, "summary.json", &bytes)
            .map_err(|error| {
                anyhow::Error::new(error)
                    .context(format!("cannot write `{}/summary.json`", log_dir.display()))
            })
            .exit_with(ExitStatus::Failed)
    }
}

/// How often responses ended for which reason.
fn ended_by(reasons: FinishReasons) -> String {
    let FinishReasons { eos, end_string, length, error } = reasons;
    let errors = if error > 0 { format!(", error {}", thousands(error)) } else { String::new() };
    format!("eos {eos}, end string {end_string}, length {length}{errors}")
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Milliseconds are as fine as a run's times need to be read.
pub(crate) fn seconds(duration: Duration) -> f64 {
    round(duration.as_secs_f64())
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use sampling::FinishReason;

    use super::*;

    #[test]
    fn table_reads_well() {
        let mut summary = Summary { samples: 2, responses: 1234, output_tokens: 500, ..Summary::default() };
        summary.seconds.generate = 2.0;
        summary.finish_reasons.count(FinishReason::Eos);
        summary.add_engine(&RunStats {
            prompt_tokens: 40,
            cached_prompt_tokens: 1024,
            prefill_time: Duration::from_micros(1_234_567),
            peak_rows: 70,
            num_preemptions: 3,
            num_swapped_out_blocks: 1250,
            num_swapped_in_blocks: 1240,
            swap_time: Duration::from_millis(380),
            decode_rows: 400,
            drafted_tokens: 1200,
            accepted_tokens: 500,
            ..RunStats::default()
        });
        insta::assert_snapshot!(summary.table(), @r"
        samples            2
        responses          1,234
        prompt tokens      40, and 1,024 not computed again
        output tokens      500 (250.0/s)
        ended by           eos 1, end string 0, length 0
        samples left out   0
        sequences at once  up to 70
        seconds            load 0.00, prefill 1.24, decode 0.00, sample 0.00, write 0.00
        swapped            3 responses made room: 1,250 KV blocks to the host and 1,240 back in 0.38 s
        speculation        drafted 1,200, accepted 500, 2.25 tokens a step
        ");
        insta::assert_snapshot!(serde_json::to_string(&summary).unwrap(), @r#"{"samples":2,"responses":1234,"prompt_tokens":40,"cached_prompt_tokens":1024,"output_tokens":500,"output_tokens_per_second":250.0,"finish_reasons":{"eos":1,"end_string":0,"length":0},"samples_left_out":0,"peak_rows":70,"swaps":{"preemptions":3,"blocks_out":1250,"blocks_in":1240,"seconds":0.38},"seconds":{"load":0.0,"prefill":1.235,"decode":0.0,"sample":0.0,"write":0.0,"generate":2.0},"speculation":{"drafted_tokens":1200,"accepted_tokens":500,"tokens_per_step":2.25}}"#);
    }
}
