//! Layers with a window that keep no more of a sequence than that: what the plan says, and the same texts from every cache,
//! batch and layout.

use crate::support::{Job, run};

/// Two of three layers have a window of 21 tokens, of texts of about 200.
const WINDOWS: [&str; 4] = [
    "++model.window_size=[20,0]",
    "++model.window_attn_skip_freq=[1,0,1]",
    "model.generation.length_params.max_length=150",
    "model.generation.sampling_params.repetition_penalty=1.1",
];
const FAST: [&str; 2] =
    ["trainer.generation.trt_llm.enable=true", "trainer.generation.trt_llm.model_type=llama"];

fn job(overrides: &[&str]) -> Job {
    Job::new(6)
        .with(&["trainer.accelerator=cpu", "++model.generation.reduction=tree"])
        .with(&WINDOWS)
        .with(&FAST)
        .with(overrides)
}

fn jsonl(job: &Job) -> String {
    job.run().expect_code(0);
    job.jsonl()
}

#[test]
fn the_plan_says_what_a_window_saves() {
    let shown = run(job(&[]).command().arg("--dry-run")).expect_code(0).stderr;
    let line = shown.lines().find(|line| line.contains("sliding windows"));
    assert!(
        line.is_some_and(|line| line.contains("layers with a window of 21 tokens keep no more")),
        "{shown}"
    );
    let whole = job(&["model.generation.length_params.max_length=2"]);
    let shown = run(whole.command().arg("--dry-run")).expect_code(0).stderr;
    assert!(!shown.contains("sliding windows"), "{shown}");
}

#[test]
fn texts_do_not_depend_on_what_is_given_back() {
    let expect = jsonl(&job(&[]));
    assert!(expect.lines().any(|line| line.len() > 300), "they are far longer than the window: {expect}");
    let one_by_one = "trainer.generation.max_batch=1";
    let speculation = "trainer.generation.speculation.enable=true";
    for overrides in [
        &[one_by_one][..],
        &[speculation],
        &["++trainer.generation.prefix_cache=false"],
        &["trainer.devices=2", "model.tensor_model_parallel_size=2"],
        &["trainer.devices=3", "model.pipeline_model_parallel_size=3", speculation],
    ] {
        assert_eq!(jsonl(&job(overrides)), expect, "{overrides:?}");
    }
}
