//! `aligner-gen score`: the bits of generation on every layout, and the log-probabilities of transformers.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Ended, Job, fixture, llama, program, run};

/// fp32 with another order of sums: what the original and this program may differ by.
const TOLERANCE: f64 = 1e-4;

fn score(checkpoint: &Path, input: &Path, flags: &[&str]) -> (Ended, Vec<Value>) {
    let output = input.with_extension("scores");
    let mut command = program();
    command.args(["score", "--checkpoint"]).arg(checkpoint).arg("--input").arg(input);
    let ended = run(command.arg("--output").arg(&output).args(flags));
    let lines = std::fs::read_to_string(&output).unwrap_or_default();
    (ended, lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn job(more: &[&str]) -> Job {
    let job = Job::new(5).with(&[
        "model.generation.sampling_params.compute_logprob=true",
        "model.generation.output_fields=[token_ids,logprobs]",
        "model.generation.length_params.max_length=40",
        "model.generation.num_responses_to_gen=3",
    ]);
    let job = job.with(more);
    job.run().expect_code(0);
    job
}

fn check_bits(job: &Job, flags: &[&str]) {
    let flags = [flags, &["--top-logprobs", "2"]].concat();
    let (ended, scores) = score(&llama(), &job.jsonl_path(), &flags);
    ended.expect_code(0);
    assert_eq!(scores.len(), 5);
    for (line, score) in job.records().iter().zip(&scores) {
        assert_eq!(score["logprobs"], line["logprobs"], "{flags:?}");
        assert_eq!(score["token_ids"], line["token_ids"]);
        let first: Vec<f64> =
            score["logprobs"][0].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let sum = first.iter().sum::<f64>();
        assert!((score["sums"][0].as_f64().unwrap() - sum).abs() < 1e-4);
        assert!((score["means"][0].as_f64().unwrap() - sum / first.len() as f64).abs() < 1e-5);
        assert_eq!(score["top_logprobs"][0].as_array().unwrap().len(), first.len());
    }
}

#[test]
fn scores_have_the_bits_of_generation() {
    for (fast, backend, precision) in
        [("true", "fused", "32"), ("true", "fused", "bf16"), ("false", "plain", "32")]
    {
        let fast = format!("trainer.generation.trt_llm.enable={fast}");
        let job = job(&[&fast, &format!("trainer.precision={precision}")]);
        check_bits(&job, &["--backend", backend, "--precision", precision]);
    }
}

#[test]
fn scores_of_every_layout_have_the_bits_of_the_tree() {
    let job = job(&[
        "trainer.generation.trt_llm.enable=true",
        "trainer.precision=bf16",
        "++model.generation.reduction=tree",
    ]);
    for layout in [&["--tree"][..], &["--tensor", "2"], &["--tensor", "2", "--pipeline", "2"]] {
        check_bits(&job, &[layout, &["--precision", "bf16"]].concat());
    }
    // Stages alone do not change the bits of the chain.
    let chain = self::job(&["trainer.generation.trt_llm.enable=true"]);
    check_bits(&chain, &["--precision", "32", "--pipeline", "2"]);
}

/// Responses that transformers scored, written by `tests/fixtures/scripts/score.py`.
#[derive(Deserialize)]
struct Golden {
    templated: bool,
    prompt: String,
    responses: Vec<String>,
    num_prompt_tokens: usize,
    token_ids: Vec<Vec<u32>>,
    logprobs: Vec<Vec<f64>>,
}

#[test]
fn scores_are_those_of_transformers() {
    let golden: Vec<Golden> =
        serde_json::from_slice(&std::fs::read(fixture("hf_llama/score.json")).unwrap()).unwrap();
    let checkpoint = fixture("hf_llama/hf_llama_converted_bf16_torch_dist.nemo");
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    for templated in [false, true] {
        let golden: Vec<&Golden> = golden.iter().filter(|golden| golden.templated == templated).collect();
        let lines = golden
            .iter()
            .map(|golden| json!({"prompt": golden.prompt, "responses": golden.responses}).to_string() + "\n");
        std::fs::write(&input, lines.collect::<String>()).unwrap();
        for sums in [&[][..], &["--tree"], &["--tensor", "2"], &["--backend", "plain"]] {
            let mut flags = [sums, &["--precision", "32"]].concat();
            if templated {
                flags.push("--templated");
            }
            let (ended, scores) = score(&checkpoint, &input, &flags);
            ended.expect_code(0);
            for (golden, score) in golden.iter().zip(&scores) {
                assert_eq!(score["num_prompt_tokens"], golden.num_prompt_tokens, "{}", golden.prompt);
                assert_eq!(score["token_ids"], json!(golden.token_ids), "{}", golden.prompt);
                let found: Vec<Vec<f64>> = serde_json::from_value(score["logprobs"].clone()).unwrap();
                for (found, expect) in found.iter().flatten().zip(golden.logprobs.iter().flatten()) {
                    assert!((found - expect).abs() <= TOLERANCE, "{found} instead of {expect}, {flags:?}");
                }
            }
            assert_eq!(scores.len(), golden.len());
        }
    }
}

/// More responses than one run of the engine takes, most of them empty: ranks that are led go on to the same texts.
#[test]
fn ranks_score_one_chunk_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    let many = vec![""; 5000];
    let of = |prompt: &str, responses: &[&str]| {
        json!({"prompt": prompt, "responses": responses}).to_string() + "\n"
    };
    let lines = of("a", &["b c", ""])
        + &of("a", &many)
        + &of("a", &["d e f", "b c"])
        + &of("a", &many)
        + &of("b", &["c"]);
    std::fs::write(&input, lines).unwrap();
    let scored = |flags: &[&str]| {
        let (ended, scores) = score(&llama(), &input, flags);
        ended.expect_code(0);
        scores
    };
    let alone = scored(&["--tree"]);
    assert_eq!(alone[0]["logprobs"][0], alone[2]["logprobs"][1]);
    assert_eq!((&alone[0]["logprobs"][1], &alone[0]["means"][1]), (&json!([]), &Value::Null));
    assert_eq!(
        alone[2]["logprobs"][0].as_array().unwrap().len(),
        alone[2]["token_ids"][0].as_array().unwrap().len()
    );
    for layout in [["--tensor", "2"], ["--tensor", "4"]] {
        assert_eq!(scored(&layout), alone, "{layout:?}");
    }
    let staged = scored(&["--tensor", "2", "--pipeline", "2"]);
    assert_eq!(staged, alone);
}

#[test]
fn what_cannot_be_scored_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    let refused_with = |text: &str, code: i32, flags: &[&str]| {
        std::fs::write(&input, text).unwrap();
        let (ended, scores) = score(&llama(), &input, flags);
        assert!(scores.is_empty());
        ended.expect_code(code).error().replace(&folder.path().display().to_string(), "[DIR]")
    };
    let refused = |text: &str, code: i32| refused_with(text, code, &[]);
    insta::assert_snapshot!(refused("", 3), @"error: `[DIR]/in.jsonl` holds no responses to score");
    insta::assert_snapshot!(refused("{\"prompt\": \"a\"}\n", 3), @"error: line 1 of `[DIR]/in.jsonl`: it has no `responses`");
    let bad_id = refused("{\"prompt\": \"a\", \"responses\": [\"b\"], \"token_ids\": [[1, -2]]}\n", 3);
    assert!(bad_id.contains("line 1 of `[DIR]/in.jsonl`: `token_ids` has -2, ids are below "), "{bad_id}");
    let long = format!("{{\"prompt\": \"a\", \"response\": \"{}\"}}\n", "b c ".repeat(4000));
    assert!(refused(&long, 3).contains("tokens, the model takes "));
    let good = "{\"prompt\": \"a\", \"response\": \"b\"}\n";
    insta::assert_snapshot!(refused_with(good, 2, &["--tensor", "3"]), @"error: `model.tensor_model_parallel_size=3`: so many ranks cannot share the heads and the MLP of this model; 1, 2, 4 can");
    insta::assert_snapshot!(refused_with(good, 2, &["--pipeline", "99"]), @"error: `model.pipeline_model_parallel_size=99`: the model has 3 layers, and each stage needs one");
    insta::assert_snapshot!(refused_with(good, 2, &["--tensor", "0"]), @"error: `model.tensor_model_parallel_size=0`: so many ranks cannot share the heads and the MLP of this model; 1, 2, 4 can");
    insta::assert_snapshot!(refused_with(good, 2, &["--tensor", "2", "--backend", "plain"]), @"error: `model.tensor_model_parallel_size=2`: libtorch's products have other bits for each number of ranks that share a layer: set `trainer.generation.trt_llm.enable=true`");
}

#[test]
fn what_is_read_is_never_written() {
    let job = job(&["model.generation.output_fields=[finish_reasons]"]);
    let before = job.jsonl();
    let link = job.path().join("link");
    std::os::unix::fs::symlink(job.jsonl_path(), &link).unwrap();
    for output in [job.jsonl_path(), link] {
        let mut command = program();
        command.args(["score", "--checkpoint"]).arg(llama()).arg("--input").arg(job.jsonl_path());
        let error = run(command.arg("--output").arg(&output)).expect_code(2).error();
        assert!(error.starts_with("error: `--output` is `--input`, `"), "{error}");
        let mut command = program();
        command.arg("report").arg(job.results()).arg("--output").arg(&output);
        let error = run(&mut command).expect_code(2).error();
        assert!(error.contains("is there and is no page: name another file"), "{error}");
        assert_eq!(job.jsonl(), before);
    }
    let page = job.path().join("page.html");
    for _ in 0..2 {
        run(program().arg("report").arg(job.results()).arg("--output").arg(&page)).expect_code(0);
    }
    // A file that cannot be scored leaves the scores of an earlier one.
    let (input, scores) = (job.path().join("in.jsonl"), job.path().join("in.scores"));
    std::fs::write(&input, "{\"prompt\": 1}\n").unwrap();
    std::fs::write(&scores, "{}\n").unwrap();
    score(&llama(), &input, &[]).0.expect_code(3);
    assert_eq!(std::fs::read_to_string(&scores).unwrap(), "{}\n");
}

/// The first token behind a BOS has another probability: the manifest says that there was one.
#[test]
fn prompts_are_those_of_the_job() {
    let job =
        job(&["model.generation.sampling_params.add_BOS=true", "trainer.generation.trt_llm.enable=true"]);
    check_bits(&job, &["--precision", "32"]);
    check_bits(&job, &["--precision", "32", "--add-bos"]);
    let refused = |input: &Path, flags: &[&str], code| {
        score(&llama(), input, flags)
            .0
            .expect_code(code)
            .error()
            .replace(&job.path().display().to_string(), "[JOB]")
    };
    insta::assert_snapshot!(refused(&job.jsonl_path(), &["--add-bos=false"], 2), @"error: `--add-bos=false`: the manifest beside the input says that its job had `model.generation.sampling_params.add_BOS=true`");
    // Away from its manifest.
    let moved = job.path().join("moved.jsonl");
    std::fs::copy(job.jsonl_path(), &moved).unwrap();
    insta::assert_snapshot!(refused(&moved, &[], 3), @"error: line 1 of `[JOB]/moved.jsonl`: it is of a job, and nothing says whether that one put the tokenizer's BOS before its prompts: give `--add-bos` or `--add-bos=false`");
    score(&llama(), &moved, &["--add-bos"]).0.expect_code(0);
}

/// More responses than are begun at once: each has the token that its logits say.
#[test]
fn many_responses_to_a_prompt_begin_with_its_logits() {
    let job = job(&[
        "trainer.generation.trt_llm.enable=true",
        "model.generation.num_responses_to_gen=300",
        "model.generation.length_params.max_length=1",
    ]);
    check_bits(&job, &["--precision", "32"]);
    let few = job.records()[0]["responses"].clone();
    let job =
        job.with(&["model.generation.num_responses_to_gen=129", "++exp_manager.resume_if_exists=false"]);
    job.run().expect_code(0);
    assert_eq!(job.records()[0]["responses"].as_array().unwrap()[..], few.as_array().unwrap()[..129]);
}

/// Records that were skipped have no line of generations: scores have the index of theirs.
#[test]
fn scores_have_the_index_of_their_records() {
    let lines = "{\"system\": \"\", \"conversations\": [{\"from\": \"User\", \"value\": \"One?\"}, {\"from\": \"Assistant\", \"value\": \"\"}]}\n";
    let job = Job::with_data(&format!("{lines}{{}}\n{lines}"))
        .with(&["model.data.train_ds.on_bad_record=skip", "model.generation.output_fields=[index]"]);
    job.run().expect_code(0);
    let (ended, scores) = score(&llama(), &job.jsonl_path(), &[]);
    ended.expect_code(0);
    let indices: Vec<&Value> = scores.iter().map(|line| &line["index"]).collect();
    assert_eq!(indices, [&json!(0), &json!(2)]);
}
