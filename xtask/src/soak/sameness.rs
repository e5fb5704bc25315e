//! One hash: the same texts for any batch, backend, number of responses and ranks, and after repeated kills.

use std::time::{Duration, Instant};

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::{Runner, record};
use crate::texts;
use crate::workspace::say;

pub(super) const QUESTIONS: [&str; 12] = [
    "What is the capital of France?",
    "Write one sentence about the sea, the wind and an old mill that stands by a river.",
    "Name three colours.",
    "Why?",
    "How many legs has a spider, and how many has an ant?",
    "Translate \"good evening\" into Spanish.",
    "2 + 2 =",
    "List the planets from the sun outwards, one a line, with a word or two about what each of them is known for.",
    "Was ist ein Gewässer?",
    "Tell me a joke.",
    "Which is heavier, a kilogram of feathers or a kilogram of lead? Explain it to a child.",
    "日本の首都は?",
];

pub(super) const SAMPLING: [&str; 8] = [
    "model.generation.num_responses_to_gen=4",
    "model.generation.length_params.max_length=24",
    "model.generation.sampling_params.temperature=0.9",
    "model.generation.sampling_params.top_k=200",
    "model.generation.sampling_params.top_p=0.95",
    "model.generation.sampling_params.repetition_penalty=1.1",
    // Three steps.
    "model.global_batch_size=4",
    "model.micro_batch_size=1",
];

const PATHS: [(&str, [&str; 2]); 4] = [
    ("fp32, plain", ["trainer.precision=32", "trainer.generation.trt_llm.enable=false"]),
    ("fp32, trt_llm", ["trainer.precision=32", "trainer.generation.trt_llm.enable=true"]),
    ("bf16, plain", ["trainer.precision=bf16", "trainer.generation.trt_llm.enable=false"]),
    ("bf16, trt_llm", ["trainer.precision=bf16", "trainer.generation.trt_llm.enable=true"]),
];

/// What must not change a text. Ranks take samples in another order in each run.
const VARIANTS: [(&str, &[&str]); 10] = [
    ("max_batch=1", &["trainer.generation.max_batch=1"]),
    ("max_batch=2", &["trainer.generation.max_batch=2"]),
    ("max_batch=7", &["trainer.generation.max_batch=7"]),
    ("max_batch=64", &["trainer.generation.max_batch=64"]),
    ("global_batch_size=1", &["model.global_batch_size=1"]),
    ("global_batch_size=6", &["model.global_batch_size=6"]),
    ("global_batch_size=32", &["model.global_batch_size=32"]),
    ("2 ranks", &["trainer.devices=2"]),
    ("3 ranks", &["trainer.devices=3", "model.global_batch_size=6"]),
    ("4 ranks", &["trainer.devices=4"]),
];

/// Of the runs that are killed: by the number of their ranks.
const KILLED: [(&str, &[&str]); 2] = [("1 rank", &[]), ("2 ranks", &["trainer.devices=2"])];

/// Prints the table; the result names what differs.
pub(super) fn run(runner: &Runner<'_>, kills: u64) -> Result<Vec<String>> {
    runner.write_data(&QUESTIONS.map(record).concat())?;
    let mut table = Table::new(runner.model.name);
    let mut plain_fp32 = None;
    for (path_idx, (path, settings)) in PATHS.into_iter().enumerate() {
        let overrides = |more: &[&'static str]| [&SAMPLING[..], &settings[..], more].concat();
        // A folder's name must need no quotes on the command line.
        let name =
            |what: &str| format!("{path_idx}-{}", what.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        let started = Instant::now();
        let output = runner.output(&name("base"), &overrides(&[]))?;
        let run_time = started.elapsed();
        let (all, first) = (texts::hash(&output, 4)?, texts::hash(&output, 1)?);
        // The plain path and the fused kernels have the same texts in fp32; in bf16 each has its own.
        let expect = match (path, &plain_fp32) {
            ("fp32, trt_llm", Some(expect)) => String::clone(expect),
            _ => all.clone(),
        };
        plain_fp32.get_or_insert_with(|| all.clone());
        table.row(path, "as it is", &all, &expect);
        for (what, more) in VARIANTS {
            let varied = runner.output(&name(what), &overrides(more))?;
            table.row(path, what, &texts::hash(&varied, 4)?, &all);
        }
        let one = "model.generation.num_responses_to_gen=1";
        let one_response = runner.output(&name(one), &overrides(&[one]))?;
        table.row(path, "1 response, and the first of 4", &texts::hash(&one_response, 1)?, &first);
        for (ranks, more) in KILLED {
            let name = name(&format!("killed, {ranks}"));
            let (killed, num_met) = killed(runner, &name, &overrides(more), kills, run_time)?;
            let what = format!("{ranks}, killed {kills} times, {num_met} in its work; whole file");
            table.row(path, &what, &hash(&killed), &hash(&output));
        }
    }
    Ok(table.broken)
}

/// The output of a run that is killed at moments of a fixed sequence, as far into it as an undisturbed run takes.
fn killed(
    runner: &Runner<'_>,
    name: &str,
    overrides: &[&str],
    kills: u64,
    run_time: Duration,
) -> Result<(Vec<u8>, u64)> {
    let mut num_met = 0;
    for kill in 0..kills {
        let mut child = runner.start(name, overrides)?;
        let thousandths = u32::try_from(kill * kill * 7919 % 1000)?;
        std::thread::sleep(run_time * thousandths / 1000);
        num_met += u64::from(child.try_wait()?.is_none());
        child.kill()?;
        child.wait()?;
    }
    Ok((runner.output(name, overrides)?, num_met))
}

pub(super) fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

pub(super) struct Table {
    model: &'static str,
    pub(super) broken: Vec<String>,
}

impl Table {
    pub(super) fn new(model: &'static str) -> Self {
        Self { model, broken: Vec::new() }
    }

    pub(super) fn row(&mut self, path: &str, what: &str, hash: &str, expect: &str) {
        let is_same = hash == expect;
        let verdict = if is_same { "same" } else { "DIFFERS" };
        let short: String = hash.chars().take(16).collect();
        say(&format!("{:<12}  {path:<13}  {what:<54}  {short}  {verdict}", self.model));
        if !is_same {
            self.broken.push(format!("{}, {path}, {what}", self.model));
        }
    }
}
