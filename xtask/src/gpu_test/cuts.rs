//! Prompts computed in parts: every row must have the bits that it has in the whole prompt.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::build::ALIGNER_GEN;
use super::kit::{Device, Kit};
use super::process::{self, Event, Next};
use super::report::{Outcome, Report};

const LIMIT: Duration = Duration::from_secs(300);

/// Shapes and precisions: one and several queries a group. float32 prompts come whole on a GPU.
const ON_GPU: [(&str, &str); 5] = [
    ("tiny", "bf16"),
    ("tiny-moe", "bf16"),
    ("gpt-2b", "bf16"),
    ("llama2-7b", "bf16"),
    ("llama3-8b", "bf16"),
];
const ON_CPU: [(&str, &str); 3] = [("tiny", "bf16"), ("tiny", "32"), ("tiny-moe", "bf16")];

/// A result for each shape and precision.
///
/// # Errors
/// When the report cannot be written.
pub(super) fn check(kit: &Kit, report: &mut Report<'_>) -> Result<()> {
    let cases = match kit.device {
        Device::Cuda => &ON_GPU[..],
        Device::Cpu => &ON_CPU,
    };
    for (shape, precision) in cases {
        let outcome: Outcome = run(kit, shape, precision).map_err(|error| format!("{error:#}"));
        report.record(&format!("cuts, {shape}, {precision}"), &outcome)?;
    }
    Ok(())
}

/// A line of the benchmark, as far as it is looked at.
#[derive(Deserialize)]
struct Line {
    cut_tokens: u32,
    cuts: u32,
    differing: u32,
}

fn run(kit: &Kit, shape: &str, precision: &str) -> Result<String> {
    let mut command = kit.command(ALIGNER_GEN)?;
    command.args(["bench", "--device", kit.device.flag(), "--shape", shape]);
    command.args(["--precision", precision, "--measures", "cuts"]);
    let mut last_line = String::new();
    let mut keep = |event: Event<'_>| {
        if let Event::Line(line) = event {
            line.clone_into(&mut last_line);
        }
        Ok(Next::GoOn)
    };
    let finished = process::run(&mut command, LIMIT, &mut keep)?;
    if let Some(problem) = finished.problem() {
        bail!("{problem}");
    }
    facts(&last_line)
}

fn facts(line: &str) -> Result<String> {
    let Line { cut_tokens, cuts, differing } = serde_json::from_str(line)
        .with_context(|| format!("not a line of the benchmark: `{}`", process::last_words(line)))?;
    if cuts == 0 || differing > 0 {
        bail!("{differing} of {cuts} cuts differ");
    }
    Ok(format!("{cuts} cuts at multiples of {cut_tokens}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_compares_nothing_is_an_error() {
        let line = |cuts: u32, differing: u32| {
            facts(&format!(r#"{{"cut_tokens": 32, "cuts": {cuts}, "differing": {differing}, "x": 1}}"#))
        };
        assert_eq!(line(33, 0).unwrap(), "33 cuts at multiples of 32");
        assert!(line(0, 0).is_err() && line(33, 1).is_err() && facts("noise").is_err());
    }
}
