//! Texts of whole runs: those of the CPU, and one for every batch, number of responses, number of ranks and kill.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::build::ALIGNER_GEN;
use super::job::{Data, Job};
use super::kit::{Device, Kit};
use super::models::{GPTNEXT, LLAMA, Model};
use super::process::{self, Next};
use super::report::{Outcome, Report, compare};
use crate::texts;

const FUSED: &str = "trainer.generation.trt_llm.enable=true";
const PLAIN: &str = "trainer.generation.trt_llm.enable=false";
const FP32: &str = "trainer.precision=32";
const BF16: &str = "trainer.precision=bf16";
const GREEDY: &str = "model.generation.sampling_params.use_greedy=true";
/// Everything that changes a draw.
const SAMPLING: [&str; 5] = [
    "model.generation.sampling_params.temperature=0.7",
    "model.generation.sampling_params.top_k=20",
    "model.generation.sampling_params.top_p=0.9",
    "model.generation.sampling_params.repetition_penalty=1.2",
    "model.generation.length_params.min_length=6",
];

/// Samples where the CPU computes the same, and where only the GPU works.
const FEW_ROWS: usize = 24;
/// No multiple of the batches below: the last step is short for every number of ranks.
const MANY_ROWS: usize = 100;
const NUM_RESPONSES: usize = 2;
const KILLS: u32 = 3;
const CONVERSION_LIMIT: Duration = Duration::from_secs(60);
/// Steps of a few samples, one after the other, so that a run on a GPU lives long enough to be killed between them.
const SHORT_STEPS: [&str; 2] = ["model.global_batch_size=4", "trainer.generation.max_batch=4"];

/// What must not matter, on every path.
const VARIANTS: [(&str, &[&str]); 3] = [
    ("max_batch=7", &["trainer.generation.max_batch=7"]),
    ("global_batch_size=1", &["model.global_batch_size=1"]),
    ("2 ranks", &["trainer.devices=2", "model.global_batch_size=16"]),
];

/// More of it, on one path.
const MORE_VARIANTS: [(&str, &[&str]); 4] = [
    ("max_batch=1", &["trainer.generation.max_batch=1"]),
    ("max_batch=64", &["trainer.generation.max_batch=64"]),
    ("global_batch_size=32", &["model.global_batch_size=32"]),
    ("4 ranks", &["trainer.devices=4", "model.global_batch_size=16"]),
];

/// In float32 the device and the backend change no token. The CPU's engine waits for each step and the GPU's runs ahead,
/// so this holds the one against the other, too.
///
/// # Errors
/// When the data or the report cannot be written.
pub(super) fn against_cpu(kit: &Kit, report: &mut Report<'_>) -> Result<()> {
    let data = Data::write(kit, FEW_ROWS)?;
    let places = [("CPU", Device::Cpu), ("device", kit.device)];
    let job = |device, num_responses, settings: &[&'static str]| Job {
        model: &LLAMA,
        data: &data,
        device,
        num_responses,
        settings: settings.to_vec(),
    };
    let mut greedy = Comparison::new("text-fp32, greedy");
    for (place, device) in places {
        for (backend, setting) in [("fused", FUSED), ("plain", PLAIN)] {
            let output = job(device, 1, &[FP32, GREEDY, setting]).run(kit);
            greedy.add(report, &format!("{place} {backend}"), &output, 1)?;
        }
    }
    let mut sampled = Comparison::new("text-fp32, sampled");
    for (place, device) in places {
        let output = job(device, NUM_RESPONSES, &[FP32, FUSED]).with(&SAMPLING).run(kit);
        sampled.add(report, &format!("{place} fused"), &output, NUM_RESPONSES)?;
    }
    Ok(())
}

/// In bfloat16 each backend has one text.
///
/// # Errors
/// When the data or the report cannot be written.
pub(super) fn invariance(kit: &Kit, report: &mut Report<'_>) -> Result<()> {
    let data = Data::write(kit, MANY_ROWS)?;
    let paths: [(&Model, &str, &str, &[_]); 3] = [
        (&LLAMA, "fused", FUSED, &MORE_VARIANTS),
        (&LLAMA, "plain", PLAIN, &[]),
        (&GPTNEXT, "fused", FUSED, &[]),
    ];
    for (model, backend, setting, more) in paths {
        let settings = vec![BF16, setting];
        let base = Job { model, data: &data, device: kit.device, num_responses: NUM_RESPONSES, settings };
        let mut same = Comparison::new(&format!("text-bf16, {}, {backend}", model.name));
        same.add(report, "base", &base.run(kit), NUM_RESPONSES)?;
        for (name, settings) in VARIANTS.iter().chain(more) {
            same.add(report, name, &base.with(settings).run(kit), NUM_RESPONSES)?;
        }
        let five = Job { num_responses: 5, ..base.clone() };
        same.add(report, "first 2 of 5 responses", &five.run(kit), NUM_RESPONSES)?;
        let short = base.with(&SHORT_STEPS);
        let undisturbed = short.run(kit);
        same.add(report, "short steps", &undisturbed, NUM_RESPONSES)?;
        let killed = short.run_killed(kit, KILLS).and_then(|killed| same_file(&undisturbed, killed));
        same.add(report, "short steps, killed and resumed, whole file", &killed, NUM_RESPONSES)?;
    }
    Ok(())
}

/// Weights in FP8, made while a checkpoint is loaded or stored in one, have one text for each backend; with an FP8 cache
/// another one.
///
/// # Errors
/// When the data or the report cannot be written.
pub(super) fn fp8(kit: &Kit, report: &mut Report<'_>) -> Result<()> {
    const WEIGHTS: &str = "trainer.generation.trt_llm.quantization=fp8";
    const CACHE: &str = "trainer.generation.trt_llm.kv_cache_dtype=fp8";
    let data = Data::write(kit, MANY_ROWS)?;
    let stored = kit.scratch().join("fp8.nemo");
    let converted = convert_to_fp8(kit, &stored);
    report.record("text-fp8, converted", &converted.map_err(|error| format!("{error:#}")))?;
    let stored = format!("pretrained_checkpoint.restore_from_path={}", stored.display());
    let paths: [(&str, &[&str]); 3] =
        [("fused", &[FUSED]), ("fused, FP8 cache", &[FUSED, CACHE]), ("plain", &[PLAIN])];
    for (path, settings) in paths {
        let settings = [&[BF16, WEIGHTS], settings].concat();
        let base =
            Job { model: &LLAMA, data: &data, device: kit.device, num_responses: NUM_RESPONSES, settings };
        let mut same = Comparison::new(&format!("text-fp8, {path}"));
        same.add(report, "made while loading", &base.run(kit), NUM_RESPONSES)?;
        same.add(report, "stored", &base.with(&[stored.as_str()]).run(kit), NUM_RESPONSES)?;
        let few = base.with(&[stored.as_str(), "trainer.generation.max_batch=7"]);
        same.add(report, "stored, max_batch=7", &few.run(kit), NUM_RESPONSES)?;
    }
    Ok(())
}

fn convert_to_fp8(kit: &Kit, to: &Path) -> Result<String> {
    let mut command = kit.command(ALIGNER_GEN)?;
    command.args([
        "convert-checkpoint",
        "--quantization",
        "fp8",
        "--dtype",
        "bf16",
        "--overwrite",
        "--input",
    ]);
    command.arg(kit.fixture(LLAMA.checkpoint)).arg("--output").arg(to);
    let finished = process::run(&mut command, CONVERSION_LIMIT, &mut |_| Ok(Next::GoOn))?;
    match finished.problem() {
        Some(problem) => bail!("{problem}"),
        None => Ok("half the size".to_owned()),
    }
}

/// `killed`, if it is what an undisturbed run wrote, to the byte.
fn same_file(undisturbed: &Result<Vec<u8>>, killed: Vec<u8>) -> Result<Vec<u8>> {
    match undisturbed {
        Ok(expect) if *expect != killed => anyhow::bail!("the file is not that of the undisturbed run"),
        // A run that failed has a result of its own.
        _ => Ok(killed),
    }
}

/// Runs that must have one text, the first of them the one that the others are compared with.
struct Comparison {
    name: String,
    first: Option<Outcome>,
}

impl Comparison {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), first: None }
    }

    /// Records a run by the hash of its prompts and first responses.
    fn add(
        &mut self,
        report: &mut Report<'_>,
        variant: &str,
        output: &Result<Vec<u8>>,
        num_responses: usize,
    ) -> Result<()> {
        let hash = match output.as_ref().map(|jsonl| texts::hash(jsonl, num_responses)) {
            Ok(Ok(hash)) => Ok(hash.chars().take(16).collect()),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(error) => Err(format!("{error:#}")),
        };
        let first = self.first.get_or_insert_with(|| hash.clone());
        report.record(&format!("{}, {variant}", self.name), &compare(hash, first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_file_is_compared_to_the_byte() {
        assert!(same_file(&Ok(b"ab".to_vec()), b"ab".to_vec()).is_ok());
        assert!(same_file(&Ok(b"ab".to_vec()), b"a".to_vec()).is_err());
    }
}
