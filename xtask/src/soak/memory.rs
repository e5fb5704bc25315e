//! Memory over many short prompts: it must not grow with the number of finished samples.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Runner, record};
use crate::workspace::say;

/// How much larger the peak of a whole run may be than that of its first tenth.
const TOLERANCE: f64 = 1.05;

const LOAD: [&str; 5] = [
    "trainer.generation.trt_llm.enable=true",
    "model.generation.num_responses_to_gen=1",
    "model.generation.length_params.max_length=4",
    "model.global_batch_size=100",
    "model.micro_batch_size=1",
];

/// Prints the peak after a tenth of the prompts and after all; the result says if it grew.
pub(super) fn run(runner: &Runner<'_>, num_prompts: u64) -> Result<Vec<String>> {
    let data: String = (0..num_prompts).map(|n| record(&format!("{n}?"))).collect();
    runner.write_data(&data)?;
    let mut child = runner.start("memory", &LOAD)?;
    let status_file = format!("/proc/{}/status", child.id());
    let (mut at_tenth, mut at_end) = (None, 0);
    loop {
        let peak = peak_bytes(&status_file);
        at_end = at_end.max(peak);
        if at_tenth.is_none() && runner.consumed_samples("memory") >= num_prompts / 10 {
            at_tenth = Some(peak);
        }
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("the run ended with {status}");
            }
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let Some(at_tenth) = at_tenth else { bail!("the run ended before a tenth of it was seen") };
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    say(&format!(
        "{:<12}  {num_prompts} prompts: peak of {:.1} MiB at 10 %, {:.1} MiB at 100 %",
        runner.model.name,
        mebibytes(at_tenth),
        mebibytes(at_end)
    ));
    let grew = at_end as f64 > at_tenth as f64 * TOLERANCE;
    Ok(if grew { vec![format!("memory grew from {at_tenth} to {at_end} bytes")] } else { Vec::new() })
}

/// The most memory that a process had so far, 0 once it has ended.
fn peak_bytes(status_file: &str) -> u64 {
    let status = std::fs::read_to_string(status_file).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_this_process_is_found() {
        assert!(peak_bytes("/proc/self/status") > 100_000);
        assert_eq!(peak_bytes("/proc/none/status"), 0);
    }
}
