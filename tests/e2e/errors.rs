//! Bad input: one clear sentence and the right exit code.

use crate::support::{Job, fixture, run, tidy};

fn check(job: &Job, code: i32) -> String {
    let ended = job.run().expect_code(code);
    assert!(!job.jsonl_path().exists(), "nothing may be written");
    tidy(job, &ended.error())
}

#[test]
fn checkpoint_problems_are_exit_4() {
    let at = |path: &str| {
        Job::new(1).with(&[&format!("pretrained_checkpoint.restore_from_path={}", fixture(path).display())])
    };
    insta::assert_snapshot!("checkpoint_missing", check(&at("nowhere.nemo"), 4));
    insta::assert_snapshot!("checkpoint_truncated", check(&at("container/truncated.nemo"), 4));
    insta::assert_snapshot!("checkpoint_without_config", check(&at("container/missing_config.nemo"), 4));
    insta::assert_snapshot!("checkpoint_without_weights", check(&at("container/missing_weights.nemo"), 4));
}

#[test]
fn configuration_problems_are_exit_2() {
    let with = |text: &str| check(&Job::new(1).with(&[text]), 2);
    insta::assert_snapshot!(with("model.generation.num_response_to_gen=2"), @"error: unknown key `model.generation.num_response_to_gen` (command line: model.generation.num_response_to_gen=2), did you mean `model.generation.num_responses_to_gen`?; in the shell write model.generation.num_responses_to_gen=2");
    insta::assert_snapshot!(with("++model.generation.num_response_to_gen=2"), @"error: unknown key `model.generation.num_response_to_gen` (command line: ++model.generation.num_response_to_gen=2), did you mean `model.generation.num_responses_to_gen`?; in the shell write model.generation.num_responses_to_gen=2");
    insta::assert_snapshot!(with("model.generation.sampling_params.end_strings=[<|eot_id|>]"), @r#"error: cannot read override `model.generation.sampling_params.end_strings=[<|eot_id|>]`: `<` must be quoted; in the shell write 'model.generation.sampling_params.end_strings=["<|eot_id|>"]'"#);
    insta::assert_snapshot!(with("model.global_batch_size=two"), @"error: `model.global_batch_size` must be a whole number, found the string `two` (command line: model.global_batch_size=two)");
    insta::assert_snapshot!(with("++exp_manager.create_mlflow_logger=true"), @"error: `exp_manager.create_mlflow_logger=true`: there are only TensorBoard and Weights & Biases; set it to false, or use `exp_manager.create_tensorboard_logger` or `exp_manager.create_wandb_logger`");
    insta::assert_snapshot!(with("pretrained_checkpoint.restore_from_path=null"), @"error: `pretrained_checkpoint.restore_from_path` must be the path of a checkpoint");
    insta::assert_snapshot!(with("model.data.train_ds.file_path=???"), @"error: `model.data.train_ds.file_path` must be given: it is `???` (command line: model.data.train_ds.file_path=???); write `model.data.train_ds.file_path=VALUE`");
    insta::assert_snapshot!(with("model.micro_batch_size=3"), @"error: `model.global_batch_size` 2 is not a multiple of `model.micro_batch_size` 3 times 1 data-parallel ranks: it must be one of 3, 6, …");
}

#[test]
fn fast_engine_checks_the_family() {
    let job = Job::new(1)
        .with(&["trainer.generation.trt_llm.enable=true", "trainer.generation.trt_llm.model_type=falcon"]);
    insta::assert_snapshot!(check(&job, 2), @"error: `trainer.generation.trt_llm.model_type=falcon` needs `normalization: layernorm` (the checkpoint has `rmsnorm`) and `activation: gelu` (the checkpoint has `swiglu`); set `trainer.generation.trt_llm.model_type=gptnext`, which stands for every family");
}

#[test]
fn data_problems_are_exit_3() {
    let good = r#"{"system": "", "conversations": [{"from": "User", "value": "Q"}, {"from": "Assistant", "value": "A"}]}"#;
    let bad = format!("{good}\n{{\"system\": \n{good}\n{{\"conversations\": []}}\n");
    insta::assert_snapshot!(check(&Job::with_data(&bad), 3), @r"
    error: 2 of 4 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not JSON at column 12: expected a value, found the end of the line
      line 4: `conversations` is empty
    ");
    let job = Job::with_data(&bad).with(&["++model.data.train_ds.on_bad_record=skip"]);
    let ended = job.run().expect_code(0);
    assert!(ended.stderr.contains("line 2 is skipped"), "{}", ended.stderr);
    assert_eq!(job.records().len(), 2);
    insta::assert_snapshot!(check(&Job::with_data(""), 3), @"error: there is no sample to generate from: `[JOB]/data.jsonl` holds no record");
    let job = Job::new(1).with(&["model.data.train_ds.file_path=/nowhere/x.jsonl"]);
    insta::assert_snapshot!(check(&job, 3), @"error: cannot open the data file `/nowhere/x.jsonl`: No such file or directory (os error 2)");
    let job = Job::new(1).with(&["model.data.train_ds.file_path=/nowhere/x.bin"]);
    insta::assert_snapshot!(check(&job, 3), @"error: data file `/nowhere/x.bin` is not JSONL: `.bin` datasets are not supported, give a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file in SFT format");
}

#[test]
fn usage_problems_are_exit_2() {
    let ended = run(crate::support::program().arg("--nope")).expect_code(2);
    assert!(ended.stderr.contains("--nope"), "{}", ended.stderr);
    run(crate::support::program().args(["--config-name", "nowhere"])).expect_code(2);
}

#[test]
fn full_error_shows_the_chain() {
    let job = Job::new(1).with(&["pretrained_checkpoint.restore_from_path=/nowhere.nemo"]);
    let ended = run(job.command().env("HYDRA_FULL_ERROR", "1")).expect_code(4);
    assert!(ended.stderr.contains("\n  0: ") && ended.stderr.contains("\n  1: "), "{}", ended.stderr);
}
