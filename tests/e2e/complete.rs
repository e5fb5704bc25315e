//! Whole runs.

use npyz::WriterBuilder;

use crate::support::{Job, fixture, llama, program, run, tokenize};

const FAST: [&str; 2] =
    ["trainer.generation.trt_llm.enable=true", "trainer.generation.trt_llm.model_type=llama"];

#[test]
fn run_writes_the_guides_records() {
    let job = Job::new(5);
    job.run().expect_code(0);
    insta::assert_snapshot!("generations_jsonl", job.jsonl());
    let summary = job.summary();
    assert_eq!((&summary["samples"], &summary["responses"]), (&5.into(), &10.into()));
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(job.results().join("generations/manifest.json")).unwrap())
            .unwrap();
    assert_eq!(manifest["committed_bytes"], job.jsonl().len());
    assert_eq!(manifest["config"]["model"]["generation"]["length_params"]["max_length"], 12);
    for name in ["nemo_log_globalrank-0_localrank-0.txt", "cmd-args.log"] {
        assert!(std::fs::metadata(job.results().join(name)).unwrap().len() > 0, "{name}");
    }
}

#[test]
fn finished_run_says_so() {
    let job = Job::new(2);
    job.run().expect_code(0);
    let before = job.jsonl();
    let ended = job.run().expect_code(0);
    assert!(ended.stderr.contains("nothing to do: all 2 samples are in"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("loaded in"), "{}", ended.stderr);
    assert_eq!(job.jsonl(), before);
}

/// The most likely token at every position of a sequence, computed in one pass without a cache.
fn most_likely_tokens(job: &Job, ids: &[i64]) -> Vec<i64> {
    let (input, output) = (job.path().join("ids.npy"), job.path().join("logits.npy"));
    let shape = [1, ids.len() as u64];
    let file = std::fs::File::create(&input).unwrap();
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd().unwrap();
    writer.extend(ids.iter().copied()).unwrap();
    writer.finish().unwrap();
    let mut command = program();
    command.args(["logits", "--precision", "32", "--checkpoint"]).arg(llama());
    command.arg("--input-ids").arg(&input).arg("--output").arg(&output);
    run(&mut command).expect_code(0);
    let file = npyz::NpyFile::new(std::io::BufReader::new(std::fs::File::open(&output).unwrap())).unwrap();
    let vocab_size = usize::try_from(file.shape()[2]).unwrap();
    let logits: Vec<f32> = file.into_vec().unwrap();
    let argmax = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
    logits.chunks(vocab_size).map(argmax).collect()
}

#[test]
fn greedy_tokens_are_those_of_one_pass_without_a_cache() {
    let job = Job::new(3).with(&[
        "model.generation.sampling_params.use_greedy=true",
        "model.generation.length_params.min_length=0",
        // Without newlines the prompt is one line for `tokenize`.
        "model.data.chat_prompt_tokens.end_of_turn=' '",
        "model.data.chat_prompt_tokens.end_of_name=' '",
        "model.generation.output_fields=[token_ids]",
    ]);
    let ended = job.run().expect_code(0);
    assert!(ended.stderr.contains("makes all 2 responses of a prompt equal"), "{}", ended.stderr);
    for record in job.records() {
        assert_eq!(record["responses"][0], record["responses"][1]);
        assert_eq!(record["token_ids"][0], record["token_ids"][1]);
        let prompt: Vec<i64> =
            serde_json::from_str(&tokenize(&[], record["prompt"].as_str().unwrap()).stdout).unwrap();
        let response: Vec<i64> = serde_json::from_value(record["token_ids"][0].clone()).unwrap();
        let most_likely = most_likely_tokens(&job, &[prompt.clone(), response.clone()].concat());
        assert_eq!(most_likely[prompt.len() - 1..most_likely.len() - 1], response);
    }
}

#[test]
fn both_engines_give_the_same_greedy_tokens() {
    let greedy =
        ["model.generation.sampling_params.use_greedy=true", "++model.generation.output_fields=[token_ids]"];
    let plain = Job::new(4).with(&greedy);
    let fast = Job::new(4).with(&greedy).with(&FAST);
    plain.run().expect_code(0);
    fast.run().expect_code(0);
    assert_eq!(plain.jsonl(), fast.jsonl());
}

#[test]
fn text_does_not_depend_on_the_batch() {
    let responses = |overrides: &[&str]| {
        let job = Job::new(5).with(overrides);
        job.run().expect_code(0);
        job.records().iter().map(|record| record["responses"].clone()).collect::<Vec<_>>()
    };
    let by_two = responses(&[]);
    assert_eq!(by_two, responses(&["model.global_batch_size=5"]));
    assert_ne!(by_two, responses(&["model.seed=7"]));
}

#[test]
fn extra_fields_and_counts() {
    let job = Job::new(3).with(&[
        "model.generation.output_fields=[index,finish_reasons,token_ids,logprobs]",
        "model.generation.sampling_params.compute_logprob=true",
        "model.generation.num_responses_to_gen=1",
    ]);
    job.run().expect_code(0);
    for (nth, record) in job.records().iter().enumerate() {
        let keys: Vec<_> = record.as_object().unwrap().keys().map(String::as_str).collect();
        let expect = [
            "step",
            "consumed_samples",
            "prompt",
            "responses",
            "index",
            "finish_reasons",
            "token_ids",
            "logprobs",
        ];
        assert_eq!(keys, expect);
        assert_eq!(record["index"], nth);
        let num_tokens = record["token_ids"][0].as_array().unwrap().len();
        assert!(num_tokens <= 12);
        assert_eq!(record["logprobs"][0].as_array().unwrap().len(), num_tokens);
        assert!(
            record["logprobs"][0].as_array().unwrap().iter().all(|logprob| logprob.as_f64().unwrap() <= 0.0)
        );
    }
}

#[test]
fn guide_command_runs_as_written() {
    let job = Job::new(3);
    let results = job.path().join("guide");
    let mut command = program();
    command.args([
        "trainer.num_nodes=1",
        "trainer.devices=1",
        "model.micro_batch_size=1",
        "model.global_batch_size=32",
        &format!("pretrained_checkpoint.restore_from_path={}", llama().display()),
        &format!("model.data.train_ds.file_path={}", job.path().join("data.jsonl").display()),
        "exp_manager.create_wandb_logger=false",
        "exp_manager.wandb_logger_kwargs.project=null",
        "exp_manager.wandb_logger_kwargs.name=null",
        &format!("exp_manager.explicit_log_dir={}", results.display()),
        "++model.sequence_parallel=false",
        "++model.apply_rope_fusion=false",
        "trainer.generation.max_epochs=1",
        "model.generation.num_responses_to_gen=1",
        "trainer.generation.trt_llm.enable=true",
    ]);
    run(&mut command).expect_code(0);
    let lines = std::fs::read_to_string(results.join("generations/generations.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 3);
}

#[test]
fn dry_run_shows_and_writes_nothing() {
    let job = Job::new(5).with(&["model.data.train_ds.drop_last=true"]);
    let ended = run(job.command().arg("--dry-run")).expect_code(0);
    for expect in [
        "<extra_id_0>System\n\n<extra_id_1>User\nQuestion 0?\n<extra_id_1>Assistant\n",
        "records read          5",
        "not in a whole batch  1",
        "4 samples in 2 steps of 2, 2 responses each",
        "KV cache",
        "the last batch is not full and is dropped: lines 5",
    ] {
        assert!(ended.stderr.contains(expect), "{expect}\nin\n{}", ended.stderr);
    }
    assert!(!job.results().exists());
}

#[test]
fn gpt_family_runs() {
    let checkpoint = fixture("mcore_gptnext/gptnext_fp32_torch_dist.nemo");
    let job =
        Job::new(2).with(&[&format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display())]);
    job.run().expect_code(0);
    assert_eq!(job.records().len(), 2);
}
