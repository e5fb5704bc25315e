//! How long the program takes from SIGTERM to its end while the model works.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Runner, record};
use crate::workspace::say;

const NUM_STOPS: u32 = 10;
const LIMIT: Duration = Duration::from_secs(2);
/// 128 + SIGTERM.
const EXIT_CODE: i32 = 143;

const LOAD: [&str; 5] = [
    "trainer.generation.trt_llm.enable=true",
    "model.generation.num_responses_to_gen=4",
    "model.generation.length_params.max_length=128",
    "model.global_batch_size=4",
    "model.micro_batch_size=1",
];

/// Stops a run with a full batch at several moments; the result names what was too slow.
pub(super) fn run(runner: &Runner<'_>) -> Result<Vec<String>> {
    let data: String = (0..2000).map(|n| record(&format!("Tell me about {n} and what it means."))).collect();
    runner.write_data(&data)?;
    let mut slowest = Duration::ZERO;
    for stop in 0..NUM_STOPS {
        let mut child = runner.start("stopped", &LOAD)?;
        let before = runner.consumed_samples("stopped");
        // Each time a little further into a step.
        while runner.consumed_samples("stopped") == before {
            if let Some(status) = child.try_wait()? {
                bail!("the run ended with {status} before it was stopped");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(37) * stop);
        let started = Instant::now();
        let signalled = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
        if !signalled.context("cannot start `kill`")?.success() {
            bail!("the run could not be signalled");
        }
        let status = child.wait()?;
        slowest = slowest.max(started.elapsed());
        if status.code() != Some(EXIT_CODE) {
            bail!("the run ended with {status} after SIGTERM");
        }
    }
    let name = runner.model.name;
    say(&format!("{name:<12}  slowest of {NUM_STOPS} stops by SIGTERM: {:.2} s", slowest.as_secs_f64()));
    Ok(if slowest > LIMIT { vec![format!("{name}: a stop took {slowest:?}")] } else { Vec::new() })
}
