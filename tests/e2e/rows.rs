//! Rows with parameters of their own, columns that come back, and rows with an error.

use serde_json::{Value, json};

use crate::support::{Ended, Job, fixture, tidy};

const ROW_PARAMS: &str = "++model.data.train_ds.row_params=true";
const FAST: &str = "trainer.generation.trt_llm.enable=true";

/// A chat record about one question, with more keys.
fn record(more: &Value) -> String {
    let mut record = json!({"system": "", "mask": "User", "conversations": [
        {"from": "User", "value": "Name three rivers of the north."}, {"from": "Assistant", "value": ""}]});
    for (key, value) in more.as_object().unwrap() {
        record[key] = value.clone();
    }
    format!("{record}\n")
}

fn responses(job: &Job) -> Vec<Vec<String>> {
    let texts = |line: &Value| {
        line["responses"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    job.records().iter().map(texts).collect()
}

/// What a row sets, and the same for a job.
fn rows() -> Vec<(Value, Vec<&'static str>)> {
    vec![
        (json!({}), vec![]),
        (json!({"max_length": 3.0}), vec!["model.generation.length_params.max_length=3"]),
        (json!({"temperature": 0}), vec!["model.generation.sampling_params.use_greedy=true"]),
        (
            json!({"temperature": 0.5, "top_k": 4}),
            vec![
                "model.generation.sampling_params.temperature=0.5",
                "model.generation.sampling_params.top_k=4",
            ],
        ),
        (json!({"top_p": 0.3}), vec!["model.generation.sampling_params.top_p=0.3"]),
        (json!({"min_p": 0.2}), vec!["++model.generation.sampling_params.min_p=0.2"]),
        (json!({"repetition_penalty": 3.0}), vec!["model.generation.sampling_params.repetition_penalty=3.0"]),
        (json!({"seed": 99}), vec!["model.seed=99"]),
        (json!({"num_responses": 3}), vec!["model.generation.num_responses_to_gen=3"]),
        (
            json!({"end_strings": ["e", "a", "i"], "min_length": 2}),
            vec![
                "model.generation.sampling_params.end_strings=[e,a,i]",
                "model.generation.length_params.min_length=2",
            ],
        ),
    ]
}

#[test]
fn a_row_has_the_text_of_a_job_with_its_parameters() {
    let rows = rows();
    let lines: String = rows.iter().map(|(row, _)| record(row)).collect();
    let plain_lines: String = rows.iter().map(|_| record(&json!({}))).collect();
    for backend in [FAST, "trainer.generation.trt_llm.enable=false"] {
        let mixed = Job::with_data(&lines).with(&[ROW_PARAMS, backend, "model.global_batch_size=3"]);
        mixed.run().expect_code(0);
        let mixed = responses(&mixed);
        assert_ne!(mixed[0], mixed[7], "the seed changes nothing");
        for (idx, (row, overrides)) in rows.iter().enumerate() {
            let alone = Job::with_data(&plain_lines).with(&[backend]).with(overrides);
            alone.run().expect_code(0);
            assert_eq!(mixed[idx], responses(&alone)[idx], "{row} with {backend}");
        }
    }
}

#[test]
fn rows_resume_and_are_part_of_what_a_run_is() {
    let lines: String = rows().iter().map(|(row, _)| record(row)).collect();
    let whole = Job::with_data(&lines).with(&[ROW_PARAMS, "model.global_batch_size=1"]);
    whole.run().expect_code(0);
    let job = Job::with_data(&lines).with(&[ROW_PARAMS, "model.global_batch_size=1"]);
    let mut child = job.start_and_wait_for_lines(2);
    child.kill().unwrap();
    child.wait().unwrap();
    let without = job.command().arg("++model.data.train_ds.row_params=false").output().unwrap();
    let told = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(without.status.code() == Some(2) && told.contains("`model.data.train_ds.row_params`"), "{told}");
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), whole.jsonl());
}

#[test]
fn wrong_columns_are_named_with_their_line() {
    let rows = [json!({"temperature": "hot"}), json!({"max_tokens": 5}), json!({"top_p": 0.5})];
    let job = Job::with_data(&rows.iter().map(record).collect::<String>()).with(&[ROW_PARAMS]);
    insta::assert_snapshot!(tidy(&job, &job.run().expect_code(3).error()), @r"
    error: 2 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 1: column `temperature` is the string `hot`, it must be 0 (greedy) or a positive, finite number
      line 2: column `max_tokens` looks like a parameter of the row; those are `max_length`, `min_length`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `end_strings`, `stop`, `stop_strings`, `seed`, `num_responses`, `structured_outputs`: rename it, or set `model.data.train_ds.row_params=false`
    ");
    // Without the key they are columns like others.
    let plain = Job::with_data(&rows.iter().map(record).collect::<String>());
    plain.run().expect_code(0);
}

#[test]
fn tokens_are_banned_and_shown() {
    let sampling = |more: &[&str]| {
        let fields = [
            "model.generation.output_fields=[token_ids,top_logprobs]",
            "++model.generation.sampling_params.top_logprobs=3",
        ];
        let job =
            Job::new(2).with(&fields).with(&["model.generation.sampling_params.use_greedy=true"]).with(more);
        job.run().expect_code(0);
        job.records()
    };
    let plain = sampling(&[]);
    let first = plain[0]["token_ids"][0][0].as_u64().unwrap();
    let top = plain[0]["top_logprobs"][0][0].as_array().unwrap();
    assert!(top.len() == 3 && top[0]["id"] == first && top[0]["text"].is_string(), "{top:?}");
    assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
    let second = top[1]["id"].as_u64().unwrap();
    let banned = sampling(&[&format!("++model.generation.sampling_params.banned_tokens=[{first}]")]);
    assert_eq!(banned[0]["token_ids"][0][0].as_u64(), Some(second));
    assert_eq!(banned[0]["top_logprobs"][0][0], plain[0]["top_logprobs"][0][0]);
    let biased = sampling(&[&format!("++model.generation.sampling_params.logit_bias={{{second}:50}}")]);
    assert_eq!(biased[0]["token_ids"][0][0].as_u64(), Some(second));
    let job = Job::new(1).with(&["++model.generation.sampling_params.banned_tokens=[99999999]"]);
    let error = job.run().expect_code(2).error();
    assert!(error.contains("take ids below") && error.ends_with("found 99999999"), "{error}");
}

#[test]
fn columns_and_clean_answers_come_back() {
    let lines = [json!({"id": 1.50, "tags": ["a", null]}), json!({"tags": {"é": 1}})]
        .iter()
        .map(record)
        .collect::<String>();
    let job = Job::with_data(&lines)
        .with(&["model.generation.output_fields=[id,tags,input,responses_clean,messages,thinking]"]);
    job.run().expect_code(0);
    let records = job.records();
    assert_eq!((&records[0]["id"], &records[1]["id"]), (&json!(1.5), &Value::Null));
    assert_eq!(records[1]["tags"], json!({"é": 1}));
    let input: Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    assert_eq!(records[1]["input"], input);
    for record in &records {
        for (idx, clean) in record["responses_clean"].as_array().unwrap().iter().enumerate() {
            let clean = clean.as_str().unwrap();
            assert!(record["responses"][idx].as_str().unwrap().contains(clean));
            assert!(!clean.contains("<extra_id_1>"), "{clean}");
            let messages = record["messages"][idx].as_array().unwrap();
            assert_eq!(messages[0], json!({"role": "user", "content": "Name three rivers of the north."}));
            assert_eq!(messages[1], json!({"role": "assistant", "content": clean}));
        }
        assert_eq!(record["thinking"], json!([null, null]));
    }
    let job = Job::with_data(&lines).with(&["model.generation.output_fields=[finish_reason]"]);
    insta::assert_snapshot!(tidy(&job, &job.run().expect_code(2).error()), @"error: `model.generation.output_fields` asks for `finish_reason`, which is neither a field of this program nor a key of any record of `[JOB]/data.jsonl`; keys of the first record: `system`, `mask`, `conversations`, `id`, `tags`");
}

/// Two good rows around a bad one, one that is no JSON and one that is too long.
fn faulty() -> String {
    let long = json!({"conversations": [{"from": "User", "value": "river ".repeat(400)}, {"from": "Assistant", "value": ""}]});
    [
        record(&json!({})),
        record(&json!({"system": null})),
        "{\n".to_owned(),
        record(&long),
        record(&json!({})),
    ]
    .concat()
}

fn faulty_job(overrides: &[&str]) -> Job {
    Job::with_data(&faulty()).with(&["model.data.train_ds.max_seq_length=100"]).with(overrides)
}

fn counted(ended: &Ended, text: &str) {
    assert!(ended.stderr.contains(text), "{text}: {}", ended.stderr);
}

#[test]
fn rows_that_cannot_be_generated_from_are_rows_with_an_error() {
    const KEEP: [&str; 2] =
        ["model.data.train_ds.on_bad_record=keep", "++model.data.train_ds.on_overlength=keep"];
    let skipped = faulty_job(&["model.data.train_ds.on_bad_record=skip"]);
    skipped.run().expect_code(0);
    let job = faulty_job(&KEEP).with(&["model.generation.output_fields=[index,input]"]);
    counted(&job.run().expect_code(0), "3 rows have an `error`");
    let records = job.records();
    let errors: Vec<&Value> = records.iter().map(|record| &record["error"]).collect();
    insta::assert_snapshot!(serde_json::to_string(&errors).unwrap(), @r#"[null,"key `system` is null, write `\"system\": \"\"` for none","not JSON at column 2: expected a key in double quotes, found the end of the line","2058 tokens are more than `model.data.train_ds.max_seq_length=100` allows",null]"#);
    assert_eq!(
        records.iter().map(|record| record["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    assert_eq!((&records[2]["prompt"], &records[2]["input"]), (&Value::Null, &Value::Null));
    assert!(
        records[3]["prompt"].as_str().unwrap().contains("river river")
            && records[3]["responses"] == json!([])
    );
    // The texts of the others are as they were.
    let good = [responses(&job)[0].clone(), responses(&job)[4].clone()];
    assert_eq!(good.to_vec(), responses(&skipped));
    assert_eq!(job.summary()["rows_with_error"], 3);
    let strict = job.command().arg("--strict").output().unwrap();
    let told = String::from_utf8_lossy(&strict.stderr).into_owned();
    assert_eq!(strict.status.code(), Some(1), "{told}");
    assert!(told.contains("error: 3 of 5 rows have an `error`, and `--strict` is given"), "{told}");
    // On two ranks, in one step.
    let ranks = faulty_job(&KEEP).with(&[
        "trainer.devices=2",
        "model.data.train_ds.drop_last=false",
        "model.generation.output_fields=[index,input]",
    ]);
    ranks.run().expect_code(0);
    assert_eq!(responses(&ranks), responses(&job));
}

#[test]
fn long_prompts_are_cut_at_their_start() {
    let job = faulty_job(&[
        "model.data.train_ds.on_bad_record=skip",
        "++model.data.train_ds.on_overlength=truncate",
    ]);
    counted(&job.run().expect_code(0), "1 prompts are cut to the limit, the first in line 4, of ");
    let prompt = job.records()[1]["prompt"].as_str().unwrap().to_owned();
    assert!(
        prompt.ends_with("<extra_id_1>Assistant\n") && !prompt.contains("System") && prompt.len() < 1500,
        "{prompt}"
    );
    let fields =
        ["++model.data.train_ds.on_overlength=truncate", "model.data.train_ds.truncation_field=input_ids"];
    let error = faulty_job(&fields).run().expect_code(2).error();
    assert!(error.contains("set `model.data.train_ds.truncation_field=context_ids`"), "{error}");
}

#[test]
fn several_files_are_one() {
    let one = Job::new(4).with(&["model.generation.output_fields=[index]"]);
    one.run().expect_code(0);
    let text = std::fs::read_to_string(one.path().join("data.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(one.path().join("a.jsonl"), format!("{}\n{}\n\n", lines[0], lines[1])).unwrap();
    std::fs::write(one.path().join("b.jsonl"), format!("{}\n{}\n", lines[2], lines[3])).unwrap();
    let parts = format!("model.data.train_ds.file_path={}/[ab].jsonl", one.path().display());
    let quoted = parts.replacen('=', "='", 1) + "'";
    let listed = format!("model.data.train_ds.file_path=[{0}/a.jsonl,{0}/b.jsonl]", one.path().display());
    for (idx, paths) in [quoted, listed].iter().enumerate() {
        let results = format!("exp_manager.explicit_log_dir={}/parts{idx}", one.path().display());
        let ended = crate::support::run(one.command().args([paths, &results])).expect_code(0);
        let jsonl = one.path().join(format!("parts{idx}/generations/generations.jsonl"));
        assert_eq!(std::fs::read_to_string(jsonl).unwrap(), one.jsonl(), "{paths}: {}", ended.stderr);
    }
    std::fs::write(one.path().join("b.jsonl"), format!("{}\n{{\n", lines[2])).unwrap();
    let error = crate::support::run(one.command().arg(listed_of(&one))).expect_code(3).error();
    assert!(error.contains("  line 2 of `") && error.contains("/b.jsonl`: not JSON"), "{error}");
}

fn listed_of(job: &Job) -> String {
    format!("model.data.train_ds.file_path=[{0}/a.jsonl,{0}/b.jsonl]", job.path().display())
}

#[test]
fn a_pipe_is_kept_and_resumed() {
    use std::io::Write;
    use std::process::Stdio;
    let job = Job::new(3).with(&["model.generation.output_fields=[index]"]);
    job.run().expect_code(0);
    let text = std::fs::read(job.path().join("data.jsonl")).unwrap();
    let results = format!("exp_manager.explicit_log_dir={}/piped", job.path().display());
    let piped = |bytes: &[u8], more: &[&str]| {
        let mut command = job.command();
        command.args(["model.data.train_ds.file_path=-", &results]).args(more).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        crate::support::wait(child)
    };
    piped(&text, &["trainer.generation.max_steps=1"]).expect_code(0);
    // The rest comes from what was kept.
    piped(b"", &[]).expect_code(0);
    let jsonl = std::fs::read_to_string(job.path().join("piped/generations/generations.jsonl")).unwrap();
    assert_eq!(jsonl, job.jsonl());
    let error = piped(b"{}\n", &[]).expect_code(2).error();
    assert!(error.contains("the pipe gives other prompts than"), "{error}");
    piped(&text, &["trainer.devices=2", "model.data.train_ds.drop_last=false"]).expect_code(0);
    // Afresh with nothing, or with what cannot be read: everything stays.
    let afresh = "++exp_manager.resume_if_exists=false";
    let (spool, results) = (job.path().join("piped/stdin.jsonl"), job.path().join("piped/generations"));
    for bad in [&b""[..], b"[]\n"] {
        piped(bad, &[afresh]).expect_code(3);
        assert_eq!(std::fs::read(&spool).unwrap(), text);
        assert!(
            results.join("generations.jsonl").exists() && !job.path().join("piped/generations.1").exists()
        );
    }
    piped(&text, &[]).expect_code(0);
    // With others the old ones go with their results.
    let one = &text[..=text.iter().position(|&byte| byte == b'\n').unwrap()];
    piped(one, &[afresh]).expect_code(0);
    assert_eq!(std::fs::read(&spool).unwrap(), one);
    assert_eq!(std::fs::read(job.path().join("piped/generations.1/stdin.jsonl")).unwrap(), text);
    assert!(!job.path().join("piped/stdin.unchecked.jsonl").exists());
}

/// A stop string ends a text where it is whole, in the middle of a token too, and the answer ends before it.
#[test]
fn stop_strings_end_texts_wherever_they_are_whole() {
    let row = |more: &str| {
        format!(
            "{{{more}\"system\": \"\", \"conversations\": [{{\"from\": \"User\", \"value\": \"One?\"}}, {{\"from\": \"Assistant\", \"value\": \"\"}}]}}\n"
        )
    };
    let run = |lines: &str, more: &[&str]| {
        let job = Job::with_data(lines).with(&[
            ROW_PARAMS,
            "model.generation.num_responses_to_gen=1",
            "model.generation.sampling_params.use_greedy=true",
            "model.generation.sampling_params.end_strings=[]",
            "model.generation.length_params.max_length=16",
            "model.generation.output_fields=[responses_clean,finish_reasons,token_ids]",
        ]);
        let job = job.with(more);
        job.run().expect_code(0);
        job.records()
    };
    let whole = run(&row(""), &[]);
    let text = whole[0]["responses"][0].as_str().unwrap();
    let num_tokens = whole[0]["token_ids"][0].as_array().unwrap().len();
    // Every piece of two letters that stands inside of the text.
    let letters: Vec<char> = text.chars().collect();
    let stops: Vec<String> = letters
        .windows(2)
        .map(|two| two.iter().collect::<String>())
        .filter(|two| !two.contains('\u{fffd}'))
        .collect();
    assert!(stops.len() > 10, "{text:?}");
    let lines: String = stops.iter().map(|stop| row(&format!("\"stop\": {}, ", json!(stop)))).collect();
    for layout in [
        &[][..],
        &[
            "model.global_batch_size=8",
            "trainer.generation.speculation.enable=true",
            "trainer.generation.trt_llm.enable=true",
        ],
    ] {
        let records = run(&lines, layout);
        for (stop, record) in stops.iter().zip(&records) {
            let clean = record["responses_clean"][0].as_str().unwrap();
            assert_eq!(record["finish_reasons"][0], "end_string", "{stop:?} in {text:?}");
            assert_eq!(clean, &text[..text.find(stop.as_str()).unwrap()], "{stop:?} in {text:?}");
            assert!(record["token_ids"][0].as_array().unwrap().len() <= num_tokens);
            assert!(text.starts_with(record["responses"][0].as_str().unwrap()));
        }
    }
}

#[test]
fn batches_of_openai_resume_and_keep_bad_requests() {
    let request = |id: usize, more: &str| {
        format!(
            "{{\"custom_id\": \"r-{id}\", \"body\": {{\"messages\": [{{\"role\": \"user\", \"content\": \"River {id}?\"}}]{more}}}}}\n"
        )
    };
    let lines = [
        request(0, ""),
        request(1, ", \"max_tokens\": 2"),
        request(2, ", \"best_of\": 3"),
        request(3, ", \"n\": 3"),
    ]
    .concat();
    let template = "++model.tokenizer.chat_template='{% for m in messages %}{{ m.content }} {% endfor %}'";
    let job = || {
        Job::with_data(&lines).with(&[
            template,
            "++model.data.format=openai_batch",
            "model.data.train_ds.on_bad_record=keep",
            "model.global_batch_size=1",
        ])
    };
    let whole = job();
    whole.run().expect_code(0);
    let records = whole.records();
    let choices = |idx: usize| records[idx]["response"]["body"]["choices"].as_array().unwrap().len();
    assert_eq!([choices(0), choices(1), choices(3)], [1, 1, 3]);
    assert_eq!(records[1]["response"]["body"]["usage"]["completion_tokens"].as_u64().unwrap(), 2);
    assert!(
        records[2]["response"].is_null()
            && records[2]["error"]["message"].as_str().unwrap().contains("`body.best_of` is 3")
    );
    assert_eq!(records[3]["custom_id"], "r-3");
    let killed = job();
    let mut child = killed.start_and_wait_for_lines(1);
    child.kill().unwrap();
    child.wait().unwrap();
    killed.run().expect_code(0);
    assert_eq!(killed.jsonl(), whole.jsonl());
}

/// Greedy texts end with the tokens with which transformers ends them (`tests/fixtures/scripts/stop_strings.py`).
#[test]
fn stop_strings_are_those_of_transformers() {
    let golden = std::fs::read(fixture("hf_llama/stop_strings.json")).unwrap();
    let golden: Vec<Value> = serde_json::from_slice(&golden).unwrap();
    assert!(golden.len() > 40);
    let row = |golden: &Value| {
        let messages = json!([{"role": "user", "content": golden["prompt"]}]);
        json!({"messages": messages, "stop_strings": [golden["stop"]]}).to_string() + "\n"
    };
    let lines: String = golden.iter().map(row).collect();
    let checkpoint = fixture("hf_llama/hf_llama_converted_bf16_torch_dist.nemo");
    for fast in ["true", "false"] {
        let job = Job::with_data(&lines).with(&[
            ROW_PARAMS,
            &format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()),
            &format!("trainer.generation.trt_llm.enable={fast}"),
            "++model.tokenizer.chat_template='{% for m in messages %}{{ m.content }}{% endfor %}'",
            "model.generation.num_responses_to_gen=1",
            "model.generation.sampling_params.use_greedy=true",
            "model.generation.sampling_params.repetition_penalty=1.0",
            "model.generation.length_params.max_length=24",
            "model.generation.output_fields=[token_ids]",
            "model.global_batch_size=8",
        ]);
        job.run().expect_code(0);
        for (golden, record) in golden.iter().zip(job.records()) {
            assert_eq!(record["token_ids"][0], golden["token_ids"], "{golden}");
        }
    }
}
