//! Log-probabilities are those of transformers, and of the raw logits whatever the sampling.

use std::io::BufReader;

use npyz::WriterBuilder;
use serde::Deserialize;

use crate::support::{Job, fixture, llama, program, run, tokenize};

/// fp32 with another order of sums: what the original and this program may differ by.
const TOLERANCE: f64 = 1e-4;

/// A response of transformers, written by `tests/fixtures/scripts/logprobs.py`.
#[derive(Deserialize)]
struct Golden {
    prompt: String,
    token_ids: Vec<u32>,
    logprobs: Vec<f64>,
}

const LOGPROBS: [&str; 4] = [
    "model.generation.sampling_params.compute_logprob=true",
    "model.generation.output_fields=[token_ids,logprobs]",
    "model.data.chat=false",
    "model.data.train_ds.prompt_template='{input}{output}'",
];

#[test]
fn greedy_responses_have_the_logprobs_of_transformers() {
    let golden: Vec<Golden> =
        serde_json::from_slice(&std::fs::read(fixture("hf_llama/logprobs.json")).unwrap()).unwrap();
    let lines: String = golden
        .iter()
        .map(|golden| serde_json::json!({"input": golden.prompt, "output": ""}).to_string() + "\n")
        .collect();
    let checkpoint = fixture("hf_llama/hf_llama_converted_bf16_torch_dist.nemo");
    for fast in [false, true] {
        let job = Job::with_data(&lines).with(&LOGPROBS).with(&[
            &format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()),
            &format!("trainer.generation.trt_llm.enable={fast}"),
            "model.generation.num_responses_to_gen=1",
            "model.generation.sampling_params.use_greedy=true",
            "model.generation.length_params.min_length=0",
            "model.generation.length_params.max_length=24",
        ]);
        job.run().expect_code(0);
        let records = job.records();
        assert_eq!(records.len(), golden.len());
        for (record, golden) in records.iter().zip(&golden) {
            assert_eq!(record["token_ids"][0], serde_json::json!(golden.token_ids), "{}", golden.prompt);
            check(&record["logprobs"][0], &golden.logprobs);
        }
    }
}

fn check(found: &serde_json::Value, expect: &[f64]) {
    let found: Vec<f64> = serde_json::from_value(found.clone()).unwrap();
    assert_eq!(found.len(), expect.len());
    for (found, expect) in found.iter().zip(expect) {
        assert!((found - expect).abs() <= TOLERANCE, "{found} instead of {expect}");
    }
}

/// Log-softmax at each of `targets`, of the logits of one pass over the tokens before them.
fn of_raw_logits(job: &Job, ids: &[i64], num_targets: usize, vocab_size: usize) -> Vec<f64> {
    let (input, output) = (job.path().join("ids.npy"), job.path().join("logits.npy"));
    let file = std::fs::File::create(&input).unwrap();
    let shape = [1, ids.len() as u64];
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd().unwrap();
    writer.extend(ids.iter().copied()).unwrap();
    writer.finish().unwrap();
    let mut command = program();
    command.args(["logits", "--precision", "32", "--checkpoint"]).arg(llama());
    run(command.arg("--input-ids").arg(&input).arg("--output").arg(&output)).expect_code(0);
    let file = npyz::NpyFile::new(BufReader::new(std::fs::File::open(&output).unwrap())).unwrap();
    let padded_vocab_size = file.shape()[2] as usize;
    let logits: Vec<f32> = file.into_vec().unwrap();
    (ids.len() - num_targets..ids.len())
        .map(|position| {
            let row = &logits[(position - 1) * padded_vocab_size..][..vocab_size];
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            f64::from(row[ids[position] as usize]) - sum.ln()
        })
        .collect()
}

/// Temperature, filters and penalty choose the token; its log-probability is that of the model.
#[test]
fn sampled_responses_have_the_logprobs_of_the_raw_logits() {
    const VOCAB_SIZE: usize = 420;
    let job = Job::with_data("{\"input\": \"Where does the river go?\", \"output\": \"\"}\n")
        .with(&LOGPROBS)
        .with(&[
            "model.generation.num_responses_to_gen=3",
            "model.generation.sampling_params.temperature=0.7",
            "model.generation.sampling_params.top_k=20",
            "model.generation.sampling_params.top_p=0.9",
            "model.generation.sampling_params.repetition_penalty=1.3",
        ]);
    job.run().expect_code(0);
    let record = &job.records()[0];
    let prompt: Vec<i64> =
        serde_json::from_str(&tokenize(&[], record["prompt"].as_str().unwrap()).stdout).unwrap();
    for response_idx in 0..3 {
        let response: Vec<i64> = serde_json::from_value(record["token_ids"][response_idx].clone()).unwrap();
        let ids = [prompt.clone(), response.clone()].concat();
        check(&record["logprobs"][response_idx], &of_raw_logits(&job, &ids, response.len(), VOCAB_SIZE));
    }
}

#[test]
fn all_probs_is_refused_with_its_reason() {
    let ended = Job::new(1).with(&["model.generation.sampling_params.all_probs=true"]).run().expect_code(2);
    insta::assert_snapshot!(ended.error(), @"error: `model.generation.sampling_params.all_probs=true` would return the probability of every token at every position, some hundred kilobytes a token, and the original fails with it too: leave it out, or for the probabilities of the chosen tokens in the shell write model.generation.sampling_params.all_probs=false model.generation.sampling_params.compute_logprob=true");
}
