//! Data and weights that would harm a run: each is reported in a sentence with its position, and changes no other sample.

use std::path::Path;

use nemo_format::{ConvertOptions, convert_checkpoint};

use crate::support::{Job, fixture, tidy};

fn record(question: &str) -> Vec<u8> {
    let value = serde_json::to_string(question).unwrap();
    format!(
        "{{\"system\": \"\", \"conversations\": [{{\"from\": \"User\", \"value\": {value}}}, {{\"from\": \"Assistant\", \
         \"value\": \"\"}}]}}"
    )
    .into_bytes()
}

/// A job whose data file holds these bytes.
fn job(lines: &[Vec<u8>]) -> Job {
    let job = Job::with_data("");
    std::fs::write(job.path().join("data.jsonl"), [lines.join(&b"\n"[..]), vec![b'\n']].concat()).unwrap();
    job
}

/// The message about one bad line between good ones.
fn refusal(line: Vec<u8>) -> String {
    let job = job(&[record("One?"), line, record("Three?")]);
    let ended = job.run().expect_code(3);
    assert!(!job.jsonl_path().exists(), "nothing may be written");
    tidy(&job, &ended.error())
}

fn with_value(json_text: &str) -> Vec<u8> {
    let text = String::from_utf8(record("VALUE")).unwrap();
    text.replace("\"VALUE\"", json_text).into_bytes()
}

#[test]
fn invalid_utf8() {
    let mut line = record("abc");
    let place = line.iter().position(|&byte| byte == b'b').unwrap();
    line[place] = 0xff;
    insta::assert_snapshot!(refusal(line), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not UTF-8 at column 62
    ");
}

#[test]
fn deep_json() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    insta::assert_snapshot!(refusal(format!("{{\"system\": \"\", \"x\": {deep}}}").into_bytes()), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not JSON at column 149: nested deeper than 128 levels
    ");
}

#[test]
fn lone_surrogates() {
    insta::assert_snapshot!(refusal(with_value(r#""\ud800""#)), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not JSON at column 61: the escape `\ud800` is half a character (a lone surrogate), which no text can hold
    ");
    insta::assert_snapshot!(refusal(with_value(r#""\udc00 and more""#)), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not JSON at column 61: the escape `\udc00` is half a character (a lone surrogate), which no text can hold
    ");
}

#[test]
fn raw_control_characters_and_words_that_are_no_json() {
    insta::assert_snapshot!(refusal(with_value("\"a\u{1}b\"")), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not JSON at column 62: a control character (U+0001) in a string; it must be escaped as `\u0001`
    ");
    insta::assert_snapshot!(refusal(with_value("NaN")), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: key `conversations[0].value` is a number, it must be a string
    ");
    insta::assert_snapshot!(refusal(with_value("nan")), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not JSON at column 60: expected a value, found `nan`
    ");
    insta::assert_snapshot!(refusal(record("cut off")[..40].to_vec()), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not JSON at column 41: expected `:` after a key, found the end of the line
    ");
    insta::assert_snapshot!(refusal(b"\0\0\0\0".to_vec()), @r"
    error: 1 of 3 records of `[JOB]/data.jsonl` cannot be used:
      line 2: not JSON at column 1: expected a value, found `\0`
    ");
}

#[test]
fn an_empty_prompt() {
    let job = Job::with_data("{\"input\": \"\", \"output\": \"\"}\n")
        .with(&["model.data.chat=false", "model.data.train_ds.prompt_template='{input}{output}'"]);
    insta::assert_snapshot!(tidy(&job, &job.run().expect_code(3).error()), @r"
    error: 1 of 1 records of `[JOB]/data.jsonl` cannot be used:
      line 1: the prompt has no tokens: its text is empty
    ");
    // An empty question is a prompt all the same: it has its headers.
    let job = self::job(&[record("")]);
    job.run().expect_code(0);
    assert_eq!(job.records().len(), 1);
}

#[test]
fn duplicate_keys_mean_the_last_as_in_python() {
    let job = job(&[with_value("\"First?\", \"value\": \"Last?\"")]);
    job.run().expect_code(0);
    assert!(job.records()[0]["prompt"].as_str().unwrap().contains("User\nLast?\n"), "{}", job.jsonl());
}

#[test]
fn control_characters_go_through_escaped() {
    let odd = "a\u{0}b\u{1b}[2J\u{7f}\u{2028}\r\u{feff}c";
    let job = job(&[record(odd)]);
    job.run().expect_code(0);
    assert_eq!(job.records().len(), 1);
    assert_eq!(job.jsonl().lines().count(), 1);
    assert!(!job.jsonl().contains('\u{1b}'), "{}", job.jsonl());
}

#[test]
fn a_line_of_a_megabyte() {
    // In a key that is not part of the prompt, and in the prompt, where it is too long.
    let mut beside = record("Short?");
    beside.truncate(beside.len() - 1);
    beside.extend_from_slice(format!(", \"x\": \"{}\"}}", "y".repeat(1 << 20)).as_bytes());
    let job = job(&[record("One?"), beside, record(&"long ".repeat(1 << 18)), record("Four?")]);
    let ended = job.run().expect_code(0);
    assert!(ended.stderr.contains("over-length prompts are left out: lines 3 ("), "{}", ended.stderr);
    assert_eq!(job.records().len(), 3);
}

/// Prompts of known length: `a` is one token here, and nothing is put around it.
fn bare(lengths: &[usize], overrides: &[&str]) -> Job {
    let lines: String = lines_of(lengths)
        .iter()
        .map(|text| format!("{{\"input\": \"{text}\", \"output\": \"\"}}\n"))
        .collect();
    Job::with_data(&lines)
        .with(&["model.data.chat=false", "model.data.train_ds.prompt_template='{input}{output}'"])
        .with(&["model.generation.output_fields=[index,finish_reasons,token_ids]"])
        .with(overrides)
}

fn lines_of(lengths: &[usize]) -> Vec<String> {
    lengths.iter().map(|&length| "?".repeat(length)).collect()
}

/// Tokens of the prompts above, as the program counts them.
fn num_tokens(length: usize) -> usize {
    let ids: Vec<u32> =
        serde_json::from_str(&crate::support::tokenize(&[], &lines_of(&[length])[0]).stdout).unwrap();
    ids.len()
}

#[test]
fn a_prompt_of_exactly_the_limit_stays_and_one_over_it_goes() {
    let limit = num_tokens(30);
    assert_eq!(num_tokens(31), limit + 1, "a letter is a token");
    let job = bare(&[29, 30, 31], &[&format!("model.data.train_ds.max_seq_length={limit}")]);
    let ended = job.run().expect_code(0);
    let told = format!("over-length prompts are left out: lines 3 ({} tokens)", limit + 1);
    assert!(ended.stderr.contains(&told), "{}", ended.stderr);
    assert_eq!(job.records().iter().map(|record| record["index"].clone()).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_prompt_that_fills_the_model_gets_the_room_that_is_left() {
    let length = num_tokens(30);
    let job = bare(&[30, 29, 28], &[&format!("++model.encoder_seq_length={length}")]);
    job.run().expect_code(0);
    for (record, room) in job.records().iter().zip(0_usize..) {
        let most = record["token_ids"][0].as_array().unwrap().len();
        assert!(most <= room, "{record}");
        if most == room {
            assert_eq!(record["finish_reasons"][0], "length", "{record}");
        }
    }
    assert_eq!(job.records()[0]["responses"], serde_json::json!(["", ""]));
}

#[test]
fn a_bad_sample_changes_no_other_text() {
    let good = |n: usize| record(&format!("Question {n}?"));
    let hostile: [Vec<u8>; 4] = [
        b"{\"system\": \xff}".to_vec(),
        with_value(r#""\ud800""#),
        record(&"long ".repeat(1000)),
        record("\u{0}\u{1b}\u{fffd}"),
    ];
    let mixed: Vec<Vec<u8>> =
        (0..8).map(|n| if n % 2 == 1 { hostile[n / 2].clone() } else { good(n) }).collect();
    let texts = |lines: &[Vec<u8>]| {
        let job = job(lines).with(&[
            "++model.data.train_ds.on_bad_record=skip",
            "model.generation.output_fields=[index]",
            "model.global_batch_size=8",
        ]);
        job.run().expect_code(0);
        let mut records = job.records();
        records.retain(|record| record["index"].as_u64().unwrap().is_multiple_of(2));
        records.iter().map(|record| record["responses"].clone()).collect::<Vec<_>>()
    };
    let expect = texts(&(0..8).map(good).collect::<Vec<_>>());
    assert_eq!(expect.len(), 4);
    assert_eq!(texts(&mixed), expect);
}

/// The checkpoint of a Hugging Face folder, some of whose bytes are overwritten first.
fn damaged_weights(folder: &Path, tensor: &str, value: f32) -> std::path::PathBuf {
    let source = folder.join("source");
    std::fs::create_dir(&source).unwrap();
    for entry in std::fs::read_dir(fixture("hf_llama")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), source.join(entry.file_name())).unwrap();
    }
    let path = source.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let start = 8 + header_bytes + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    for element in [5, 9] {
        bytes[start + 4 * element..][..4].copy_from_slice(&value.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = folder.join("damaged.nemo");
    convert_checkpoint(&source, &checkpoint, &ConvertOptions::default()).unwrap();
    checkpoint
}

#[test]
fn weights_that_are_no_numbers_are_told_with_their_layer() {
    let check = |tensor: &str, value: f32, overrides: &[&str]| {
        let job = Job::new(2);
        let checkpoint = damaged_weights(job.path(), tensor, value);
        let job = job
            .with(&[&format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display())])
            .with(overrides);
        let ended = job.run().expect_code(1);
        assert_eq!(job.jsonl(), "", "no sample may be made of them");
        ended.error()
    };
    insta::assert_snapshot!(check("model.layers.1.mlp.down_proj.weight", f32::NAN, &[]), @"error: logits of sample 0, response 0, generated token 0 hold a NaN: tensor `model.decoder.layers.1.mlp.linear_fc2.weight` of layer 1 holds 2 values that are no finite numbers, the first, NaN, at element 5; use a checkpoint without them");
    insta::assert_snapshot!(check("model.layers.0.input_layernorm.weight", f32::INFINITY, &["trainer.generation.trt_llm.enable=true"]), @"error: logits of sample 0, response 0, generated token 0 hold a NaN: tensor `model.decoder.layers.0.self_attention.linear_qkv.layer_norm_weight` of layer 0 holds 2 values that are no finite numbers, the first, inf, at element 5; use a checkpoint without them");
    insta::assert_snapshot!(check("lm_head.weight", f32::MAX, &[]), @"error: logits of sample 0, response 0, generated token 3 hold an infinite value: no weight is NaN or infinite, so a sum left the range of Fp32");
}
