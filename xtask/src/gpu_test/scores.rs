//! `aligner-gen score`: log-probabilities of generation, and those of transformers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Device;
use super::build::ALIGNER_GEN;
use super::job::{Data, Job};
use super::kit::Kit;
use super::models::{GPTNEXT, LLAMA, SCORED, SCORES};
use super::process::{self, Next};
use super::report::{Outcome, Report};

const LIMIT: Duration = Duration::from_secs(240);
const NUM_ROWS: usize = 40;
const NUM_RESPONSES: usize = 3;
/// fp32 with another order of sums.
const TOLERANCE: f64 = 1e-4;
/// In fp32 a GPU computes the tokens of a text in other shapes than one after the other, so sums are in another order.
const FP32_ON_GPU: f64 = 1e-5;
const LOGPROBS: [&str; 4] = [
    "trainer.generation.trt_llm.enable=true",
    "model.generation.sampling_params.compute_logprob=true",
    "model.generation.output_fields=[token_ids,logprobs]",
    "model.generation.sampling_params.temperature=0.8",
];
const TREE: &str = "++model.generation.reduction=tree";

/// Scores what was generated, and what transformers has scored.
///
/// # Errors
/// When the data or the report cannot be written.
pub(super) fn check(kit: &Kit, report: &mut Report<'_>) -> Result<()> {
    let data = Data::write(kit, NUM_ROWS)?;
    for model in [&LLAMA, &GPTNEXT] {
        for precision in ["32", "bf16"] {
            let allowed = if precision == "32" && kit.device == Device::Cuda { FP32_ON_GPU } else { 0.0 };
            let of_precision = format!("trainer.precision={precision}");
            let mut settings = LOGPROBS.to_vec();
            settings.push(&of_precision);
            let base = Job { model, data: &data, device: kit.device, num_responses: NUM_RESPONSES, settings };
            for (name, more, flags) in
                [("one rank", &[][..], &[][..]), ("two ranks and the tree", &[TREE], &["--tensor", "2"])]
            {
                let scored = base.with(more).run(kit).and_then(|jsonl| {
                    let flags = [&["--precision", precision], flags].concat();
                    compare(&jsonl, &scores(kit, &kit.fixture(model.checkpoint), &jsonl, &flags)?, allowed)
                });
                let what = format!("score, {}, {precision}, {name}", model.name);
                report.record(&what, &outcome(scored))?;
            }
        }
    }
    report.record("score, transformers, 32", &outcome(against_transformers(kit)))
}

fn outcome(checked: Result<String>) -> Outcome {
    checked.map_err(|error| format!("{error:#}"))
}

/// The lines of `score` on these lines.
fn scores(kit: &Kit, checkpoint: &Path, input: &[u8], flags: &[&str]) -> Result<Vec<Value>> {
    let folder: PathBuf =
        tempfile::tempdir_in(kit.scratch()).context("cannot create a working folder")?.keep();
    let (input_path, output) = (folder.join("in.jsonl"), folder.join("scores.jsonl"));
    std::fs::write(&input_path, input).context("cannot write what is to be scored")?;
    let mut command = kit.command(ALIGNER_GEN)?;
    command.args(["score", "--device", kit.device.flag(), "--checkpoint"]).arg(checkpoint);
    command.arg("--input").arg(&input_path).arg("--output").arg(&output).args(flags);
    let finished = process::run(&mut command, LIMIT, &mut |_| Ok(Next::GoOn))?;
    if let Some(problem) = finished.problem() {
        bail!("score {problem}");
    }
    lines(&std::fs::read(&output).context("score wrote nothing")?)
}

fn lines(jsonl: &[u8]) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(jsonl)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Every log-probability is that of generation, but for what is allowed.
fn compare(generated: &[u8], scores: &[Value], allowed: f64) -> Result<String> {
    let generated = lines(generated)?;
    if generated.len() != scores.len() {
        bail!("{} lines were scored of {}", scores.len(), generated.len());
    }
    let (mut num_tokens, mut worst) = (0, 0.0_f64);
    for (row, (line, score)) in generated.iter().zip(scores).enumerate() {
        if line.get("token_ids").is_none_or(|ids| score.get("token_ids") != Some(ids)) {
            bail!(
                "row {row}: `token_ids` are {:?} in place of {:?}",
                score.get("token_ids"),
                line.get("token_ids")
            );
        }
        let (expect, found) = (values(line, "logprobs"), values(score, "logprobs"));
        if expect.len() != found.len() {
            bail!("row {row}: {} log-probabilities in place of {}", found.len(), expect.len());
        }
        for (idx, (expect, found)) in expect.iter().zip(&found).enumerate() {
            let difference = (expect - found).abs();
            if difference > allowed {
                bail!("row {row}, token {idx}: {found} in place of {expect}, {allowed:.0e} is allowed");
            }
            worst = worst.max(difference);
        }
        num_tokens += found.len();
    }
    match num_tokens {
        0 => bail!("there are no tokens"),
        _ => Ok(format!("{num_tokens} tokens, largest difference {worst:.1e}")),
    }
}

fn values(line: &Value, key: &str) -> Vec<f64> {
    let responses = line.get(key).and_then(Value::as_array).into_iter().flatten();
    responses.filter_map(Value::as_array).flatten().filter_map(Value::as_f64).collect()
}

fn against_transformers(kit: &Kit) -> Result<String> {
    let text = std::fs::read(kit.fixture(SCORES)).context("cannot read transformers' scores")?;
    let golden: Vec<Value> = serde_json::from_slice(&text)?;
    let (mut worst, mut num_tokens) = (0.0_f64, 0);
    for templated in [false, true] {
        let golden: Vec<&Value> =
            golden.iter().filter(|line| line.get("templated") == Some(&json!(templated))).collect();
        let input = golden.iter().map(|line| {
            json!({"prompt": line.get("prompt"), "responses": line.get("responses")}).to_string() + "\n"
        });
        let mut flags = vec!["--precision", "32"];
        if templated {
            flags.push("--templated");
        }
        let input: String = input.collect();
        let scores = scores(kit, &kit.fixture(SCORED), input.as_bytes(), &flags)?;
        for (golden, score) in golden.iter().zip(&scores) {
            if golden.get("token_ids") != score.get("token_ids") {
                bail!("other tokens than transformers has for {:?}", golden.get("prompt"));
            }
            let (expect, found) = (values(golden, "logprobs"), values(score, "logprobs"));
            worst = expect.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(worst, f64::max);
            num_tokens += found.len();
        }
    }
    match worst <= TOLERANCE && num_tokens > 0 {
        true => Ok(format!("{num_tokens} tokens, largest difference {worst:.1e}")),
        false => bail!("{num_tokens} tokens, largest difference {worst:.1e}, {TOLERANCE:.0e} is allowed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_that_differs_is_found() {
        let generated = br#"{"token_ids": [[1, 2]], "logprobs": [[-0.5, -1.25]]}"#;
        let score = |text: &str| lines(text.as_bytes()).unwrap();
        let same = compare(generated, &score(r#"{"logprobs": [[-0.5, -1.25]], "token_ids": [[1, 2]]}"#), 0.0);
        assert_eq!(same.unwrap(), "2 tokens, largest difference 0.0e0");
        let close = r#"{"logprobs": [[-0.5, -1.2500001]], "token_ids": [[1, 2]]}"#;
        assert!(compare(generated, &score(close), FP32_ON_GPU).is_ok());
        for other in [
            close,
            r#"{"logprobs": [[-0.5, -1.25]], "token_ids": [[1, 3]]}"#,
            r#"{"token_ids": [[1, 2]]}"#,
            "",
        ] {
            assert!(compare(generated, &score(other), 0.0).is_err(), "{other}");
        }
    }
}
