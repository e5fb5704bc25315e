//! Records of every format, from the file to the output.

use std::io::Write;

use crate::support::{Job, fixture, tidy};

const CHAT: &str = r#"{"system": "", "id": 1, "conversations": [{"from": "User", "value": "One?"}, {"from": "Assistant", "value": ""}]}
{"system": "S", "id": 2, "conversations": [{"from": "User", "value": "Two?"}, {"from": "Assistant", "value": ""}]}
{"system": "", "id": 3, "conversations": [{"from": "User", "value": "Three?"}, {"from": "Assistant", "value": ""}]}
"#;

fn prompts(job: &Job) -> Vec<String> {
    job.records().iter().map(|record| record["prompt"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn compressed_files_give_the_same_output() {
    let plain = Job::with_data(CHAT);
    plain.run().expect_code(0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(CHAT.as_bytes()).unwrap();
    let zstd = zstd::encode_all(CHAT.as_bytes(), 1).unwrap();
    for (name, bytes) in [("data.jsonl.gz", gzip.finish().unwrap()), ("data.jsonl.zst", zstd)] {
        let job = Job::with_data("");
        let path = job.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let job = job.with(&[&format!("model.data.train_ds.file_path={}", path.display())]);
        job.run().expect_code(0);
        assert_eq!(job.jsonl(), plain.jsonl(), "{name}");
    }
}

#[test]
fn prompt_response_records_follow_the_template() {
    let lines = "{\"input\": \" Où ? \", \"output\": \"x\", \"id\": 7}\n{\"input\": \"abcdefghij\", \"output\": \"\"}\n";
    let job = Job::with_data(lines).with(&[
        "model.data.chat=false",
        "model.data.train_ds.prompt_template='Frage é: {input}\\nAntwort: {output}'",
        "model.generation.output_fields=[metadata,token_ids]",
    ]);
    job.run().expect_code(0);
    // The tokenizer puts a space before each piece by itself, so one of the template's is left out.
    assert_eq!(prompts(&job), ["Frage é:Où ?\nAntwort:", "Frage é:abcdefghij\nAntwort:"]);
    assert_eq!(job.records()[0]["metadata"], serde_json::json!({"id": 7}));
    let cut = Job::with_data(lines).with(&[
        "model.data.chat=false",
        "model.data.train_ds.prompt_template='{input}{output}'",
        "model.data.train_ds.truncation_field=input",
        "model.data.train_ds.truncation_method=left",
        "model.data.train_ds.max_seq_length=4",
    ]);
    cut.run().expect_code(0);
    assert!("abcdefghij".ends_with(&prompts(&cut)[1]) && prompts(&cut)[1].len() < 10, "{:?}", prompts(&cut));
}

#[test]
fn messages_go_through_the_chat_template() {
    let lines = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n";
    let template = "++model.tokenizer.chat_template='{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>'";
    let job = Job::with_data(lines).with(&[template]);
    job.run().expect_code(0);
    assert_eq!(prompts(&job), ["<user>Hi<assistant>"]);
    let without = Job::with_data(lines);
    insta::assert_snapshot!(tidy(&without, &without.run().expect_code(3).error()), @r"
error: 1 of 1 records of `[JOB]/data.jsonl` cannot be used:
  line 1: `messages` records need a chat template, and the checkpoint's `tokenizer` section has none: set `++model.tokenizer.chat_template` or give `conversations`
");
}

#[test]
fn what_is_left_out_is_reported_with_its_line() {
    let job = Job::with_data(CHAT).with(&["model.data.train_ds.drop_last=true"]);
    let ended = job.run().expect_code(0);
    assert!(ended.stderr.contains("the last batch is not full and is dropped: lines 3"), "{}", ended.stderr);
    assert_eq!(job.records().len(), 2);
    for (limit, expected) in [("1", 2), ("1.0", 3), ("0.67", 2)] {
        let limit = format!("trainer.generation.limit_train_batches={limit}");
        let job = Job::with_data(CHAT).with(&[&limit]);
        job.run().expect_code(0);
        assert_eq!(job.records().len(), expected, "{limit}");
    }
}

#[test]
fn the_user_may_name_a_tokenizer_folder() {
    let folder = fixture("tokenizers/hf_llama");
    let job = Job::with_data(CHAT).with(&[
        "++model.tokenizer.library=huggingface",
        "++model.tokenizer.model=null",
        &format!("++model.tokenizer.type={}", folder.display()),
    ]);
    job.run().expect_code(0);
    assert_eq!(job.records().len(), 3);
    let job = Job::with_data(CHAT).with(&[
        "++model.tokenizer.library=huggingface",
        "++model.tokenizer.model=null",
        "++model.tokenizer.type=nobody/nothing",
    ]);
    let ended = job.run();
    insta::assert_snapshot!(tidy(&job, &ended.expect_code(4).error()), @"error: the checkpoint has no tokenizer files of `nobody/nothing`: put them in with `aligner-gen convert-checkpoint --input CHECKPOINT --output NEW.nemo --tokenizer FOLDER`, or name the folder with `++model.tokenizer.type=FOLDER`");
}

#[test]
fn records_of_the_other_format_say_what_to_set() {
    let chat = Job::with_data("{\"input\": \"a\", \"output\": \"b\"}\n");
    insta::assert_snapshot!(tidy(&chat, &chat.run().expect_code(3).error()), @r#"
error: 1 of 1 records of `[JOB]/data.jsonl` cannot be used:
  line 1: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
"#);
    let other = Job::with_data(CHAT)
        .with(&["model.data.chat=false", "model.data.train_ds.prompt_template='{input} {output}'"]);
    insta::assert_snapshot!(tidy(&other, &other.run().expect_code(3).error()), @r"
error: 3 of 3 records of `[JOB]/data.jsonl` cannot be used:
  line 1: it is a chat record, and `model.data.chat` is false; set `model.data.chat=true`
  line 2: it is a chat record, and `model.data.chat` is false; set `model.data.chat=true`
  line 3: it is a chat record, and `model.data.chat` is false; set `model.data.chat=true`
");
}

#[test]
fn samples_are_drawn_in_nemos_order() {
    let sampled = ["model.data.sample=true", "trainer.generation.max_steps=3", "model.global_batch_size=4"];
    let fields = ["model.generation.output_fields=[index]", "model.generation.num_responses_to_gen=1"];
    let job = Job::new(5).with(&sampled).with(&fields);
    job.run().expect_code(0);
    let records = job.records();
    let drawn: Vec<u64> = records.iter().map(|record| record["index"].as_u64().unwrap()).collect();
    // `RandomState(1)` shuffles three blocks of five, five and two, and `RandomState(1 + n)` the n-th of them.
    assert_eq!(drawn, [2, 1, 4, 0, 3, 1, 0, 3, 4, 1, 0, 2]);
    assert_eq!(records.last().unwrap()["consumed_samples"], 12);
    // The same record again has random numbers of its own.
    let of_first: Vec<_> = records
        .iter()
        .filter(|record| record["index"] == 0)
        .map(|record| record["responses"].to_string())
        .collect();
    assert!(of_first.len() > 1 && of_first[0] != of_first[1], "{of_first:?}");
    // Another number of steps is another order: the file cannot be continued with it.
    let error = job.with(&["trainer.generation.max_steps=4"]).run().expect_code(2).error();
    assert!(error.contains("changed: `model.data.sample` (was 12, now 16)"), "{error}");
}

#[test]
fn rows_of_parquet_are_records() {
    let of_parquet = |name: &str| fixture("parquet").join(name);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("again.jsonl");
    std::fs::copy(of_parquet("rows.jsonl"), &copy).unwrap();
    let of = |files: &str| {
        let file_path = format!("model.data.train_ds.file_path=[{files}]");
        let fields = "model.generation.output_fields=[id,tags]";
        let job = Job::new(1).with(&[&file_path, fields, "++model.generation.output_format=parquet"]);
        job.run().expect_code(0);
        job
    };
    let rows = of_parquet("rows.jsonl").display().to_string();
    let mixed = of(&format!("{},{rows}", of_parquet("zstd.parquet").display()));
    assert_eq!(mixed.jsonl(), of(&format!("{},{rows}", copy.display())).jsonl());
    let parquet = mixed.results().join("generations/generations.parquet");
    let written = std::fs::read(&parquet).unwrap();
    // A copy that is gone is made again.
    std::fs::remove_file(&parquet).unwrap();
    mixed.run().expect_code(0);
    assert_eq!(std::fs::read(&parquet).unwrap(), written);
    let refused = Job::new(1)
        .with(&[&format!("model.data.train_ds.file_path={}", of_parquet("refused_date.parquet").display())]);
    let told = refused.run().expect_code(3).error();
    assert!(told.contains("column `outer.inner` of `") && told.contains(" holds a date, "), "{told}");
}
