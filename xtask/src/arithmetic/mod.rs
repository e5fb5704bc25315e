//! `cargo xtask arithmetic`: a small chat model answers arithmetic questions several times each, a program checks every
//! answer while the job runs, and the job is killed on the way.
//!
//! The questions follow from a seed. The same job runs twice: once undisturbed on one rank, and once on several, killed
//! twice by force. Both must write the same bytes and the same pass@k.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use serde_json::Value;

use crate::workspace::{Workspace, say};
use crate::{demo, programs, setup};

mod checker;
mod job;
mod questions;

pub(crate) use checker::check;
use job::Job;

const FOLDER: &str = ".demo/arithmetic";
/// The checkpoint of the tests, which knows no arithmetic.
const TEST_CHECKPOINT: &str = "tests/fixtures/mcore_llama/llama_fp32_torch_dist.nemo";

/// The size of the task.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// How many questions
    #[arg(long, default_value_t = 200, value_name = "N")]
    questions: u32,
    /// Answers to each; pass@1 and pass@N are reported
    #[arg(long, default_value_t = 8, value_name = "N")]
    responses: u32,
    /// Another seed makes other questions and other answers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ranks of the run that is killed
    #[arg(long, default_value_t = 2, value_name = "N")]
    ranks: u32,
    /// An `aligner-gen` that is built, instead of a release build
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// 16 questions with the checkpoint of the tests, as in `cargo xtask test`: nothing is fetched, and hardly an answer is
    /// right
    #[arg(long, conflicts_with_all = ["questions", "responses", "seed", "ranks"])]
    small: bool,
}

/// Runs the task with the model of the demo.
///
/// # Errors
/// When a run fails, or the two differ.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    setup::report(workspace, None)?;
    if args.small {
        return run_small(workspace, args.program.as_deref());
    }
    let program = match &args.program {
        Some(program) => existing(program)?,
        None => {
            say("building aligner-gen (the first time takes minutes)");
            demo::build(workspace)?
        }
    };
    let model = demo::prepare_model(workspace, &program)?;
    let config = ["--config-path", "configs/demo", "--config-name", "smollm2"];
    let more = [
        "model.generation.length_params.max_length=16",
        // The answer is often a number that stands in the prompt.
        "model.generation.sampling_params.repetition_penalty=1.0",
    ];
    let options: Vec<&str> = config.into_iter().chain(more).collect();
    prove(workspace, args, &program, &model.checkpoint, &options)
}

/// The same, small and with the checkpoint of the tests: whether it passes is decided by the bytes alone.
///
/// # Errors
/// When a run fails, or the two differ.
pub(crate) fn run_small(workspace: &Workspace, program: Option<&Path>) -> Result<()> {
    let program = match program {
        Some(program) => existing(program)?,
        None => {
            let mut built = programs::build_with(workspace, "dev", &["--workspace", "--bin", "aligner-gen"])?;
            built.remove("aligner-gen").context("cargo named no executable of `aligner-gen`")?
        }
    };
    let args = Args { questions: 16, responses: 4, seed: 1, ranks: 2, program: None, small: true };
    let options = [
        "trainer.num_nodes=1",
        "trainer.accelerator=cpu",
        "trainer.precision=32",
        "model.generation.length_params.max_length=40",
        // So that steps end one after the other.
        "++trainer.generation.max_batch=4",
    ];
    prove(workspace, &args, &program, &workspace.path(TEST_CHECKPOINT), &options)
}

fn existing(program: &Path) -> Result<PathBuf> {
    fs::canonicalize(program).with_context(|| format!("cannot find `{}`", program.display()))
}

fn prove(
    workspace: &Workspace,
    args: &Args,
    program: &Path,
    checkpoint: &Path,
    options: &[&str],
) -> Result<()> {
    let folder = workspace.path(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{FOLDER}`"))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create `{FOLDER}`"))?;
    let data = folder.join("questions.jsonl");
    fs::write(&data, questions::lines(args.questions, args.seed))
        .with_context(|| format!("cannot write `{}`", data.display()))?;
    let job = |name: &'static str, num_ranks: u32| Job {
        workspace,
        program,
        checkpoint,
        data: &data,
        options,
        folder: folder.join(name),
        num_ranks,
        num_responses: args.responses,
        seed: args.seed,
    };
    let whole = job("whole", 1);
    say(&format!(
        "{} questions, {} answers each, checked while they are generated",
        args.questions, args.responses
    ));
    whole.run_to_its_end()?;
    let killed = job("killed", args.ranks);
    for third in 1..=2 {
        let num_lines = (args.questions * third).div_ceil(3);
        let found = killed.run_until(num_lines as usize)?;
        say(&format!("killed by force after {found} of {} lines", args.questions));
    }
    killed.run_to_its_end()?;
    compare(&whole, &killed, args)
}

fn compare(whole: &Job<'_>, killed: &Job<'_>, args: &Args) -> Result<()> {
    let [undisturbed, disturbed] = [whole, killed].map(|job| fs::read(job.jsonl()));
    let undisturbed = undisturbed.context("cannot read the results")?;
    if undisturbed != disturbed.context("cannot read the results")? {
        bail!("`{}` and `{}` differ", whole.jsonl().display(), killed.jsonl().display());
    }
    let [of_whole, of_killed] = [whole, killed].map(|job| job.summary());
    let (of_whole, of_killed) = (of_whole?, of_killed?);
    if of_whole.get("pass_at_k") != of_killed.get("pass_at_k") {
        bail!("pass@k differs: {of_whole} and {of_killed}");
    }
    let num_lines = undisturbed.iter().filter(|&&byte| byte == b'\n').count();
    if num_lines != args.questions as usize {
        bail!("there are {num_lines} lines for {} questions", args.questions);
    }
    let values = pass_at_k(&of_whole, args.responses)?;
    say(&format!(
        "{values} over {} questions; killed twice, with {} ranks instead of 1, the run has the same {} bytes",
        args.questions,
        killed.num_ranks,
        undisturbed.len()
    ));
    Ok(())
}

/// pass@1 and pass@`num` of a summary.
fn pass_at_k(summary: &Value, num: u32) -> Result<String> {
    let value = |k: u32| {
        let value = summary.get("pass_at_k").and_then(|all| all.get(k.to_string())).and_then(Value::as_f64);
        value
            .map(|value| format!("pass@{k} {value:.4}"))
            .with_context(|| format!("the summary has no pass@{k}"))
    };
    Ok(if num == 1 { value(1)? } else { format!("{}, {}", value(1)?, value(num)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_is_read_from_the_summary() {
        let summary = serde_json::json!({"pass_at_k": {"1": 0.25, "8": 0.5}});
        assert_eq!(pass_at_k(&summary, 8).unwrap(), "pass@1 0.2500, pass@8 0.5000");
        assert_eq!(pass_at_k(&summary, 4).unwrap_err().to_string(), "the summary has no pass@4");
    }
}
