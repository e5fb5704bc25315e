//! Responses with a structure: they fit it, whatever runs beside them and however often the run is killed.

use serde_json::{Value, json};

use crate::support::{Job, run, tidy};

const ROW_PARAMS: &str = "++model.data.train_ds.row_params=true";
const FAST: &str = "trainer.generation.trt_llm.enable=true";
const LONG: &str = "model.generation.length_params.max_length=120";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "verdict": {"enum": ["yes", "no"]},
            "score": {"type": "integer", "minimum": 0, "maximum": 9},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2},
        },
        "required": ["verdict", "score", "tags"],
        "additionalProperties": false,
    })
}

fn fits(text: &str) -> bool {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return false };
    let tags = object["tags"].as_array();
    object.len() == 3
        && ["yes", "no"].contains(&object["verdict"].as_str().unwrap_or_default())
        && object["score"].as_u64().is_some_and(|score| score <= 9)
        && tags.is_some_and(|tags| tags.len() <= 2)
        && tags.into_iter().flatten().all(|tag| tag.as_str().is_some_and(|tag| tag.chars().count() <= 2))
}

/// A job whose responses are objects of the schema, which is in a file.
fn job(more: &[&str]) -> Job {
    let job = Job::new(6);
    let file = job.path().join("schema.json");
    std::fs::write(&file, schema().to_string()).unwrap();
    let json = format!("++model.generation.sampling_params.structured_outputs.json={}", file.display());
    let compact = "++model.generation.sampling_params.structured_outputs.disable_any_whitespace=true";
    job.with(&[&json, compact, LONG, "model.generation.output_fields=[responses_clean,finish_reasons]"])
        .with(more)
}

fn clean(line: &Value) -> Vec<&str> {
    line["responses_clean"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn every_response_fits_in_any_batch_on_any_ranks_and_after_kills() {
    for backend in [FAST, "trainer.generation.trt_llm.enable=false"] {
        let alone = job(&[backend, "trainer.generation.max_batch=1"]);
        alone.run().expect_code(0);
        for line in alone.records() {
            assert!(clean(&line).iter().all(|text| fits(text)), "{line}");
            assert!(line["error"].is_null() && line["finish_reasons"] == json!(["eos", "eos"]), "{line}");
        }
        let batched = job(&[backend, "trainer.generation.max_batch=8"]);
        batched.run().expect_code(0);
        assert_eq!(batched.jsonl(), alone.jsonl(), "{backend}");
        let killed = job(&[backend, "model.global_batch_size=2"]);
        for num_lines in [2, 4] {
            let mut child = killed.start_and_wait_for_lines(num_lines);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        killed.run().expect_code(0);
        assert_eq!(killed.jsonl(), alone.jsonl(), "{backend}, killed");
    }
    let drafting = job(&[FAST, "trainer.generation.speculation.enable=true"]);
    drafting.run().expect_code(0);
    let on_ranks = job(&[FAST, "trainer.devices=2", "model.tensor_model_parallel_size=1"]);
    on_ranks.run().expect_code(0);
    assert_eq!(on_ranks.jsonl(), drafting.jsonl());
    let sharing = |shape: &str| {
        let job = job(&[FAST, "trainer.devices=2", "++model.generation.reduction=tree", shape]);
        job.run().expect_code(0);
        job.jsonl()
    };
    assert_eq!(
        sharing("++model.tensor_model_parallel_size=2"),
        sharing("++model.pipeline_model_parallel_size=2")
    );
}

#[test]
fn rows_have_structures_of_their_own() {
    let rows = [
        json!({}),
        json!({"structured_outputs": {"choice": ["red", "green", "blue"]}}),
        json!({"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}, "temperature": 0}),
        json!({"structured_outputs": "{\"grammar\": \"start: \\\"a\\\"+ \\\"b\\\"\"}", "max_length": 40}),
        json!({"structured_outputs": null}),
        json!({"structured_outputs": {"json": {"type": "strin"}}}),
        json!({"structured_outputs": {"choice": ["yes"], "regex": "a"}}),
    ];
    let record = |more: &Value| {
        let mut record = json!({"system": "", "mask": "User", "conversations": [
            {"from": "User", "value": "A colour?"}, {"from": "Assistant", "value": ""}]});
        more.as_object().unwrap().iter().for_each(|(key, value)| record[key] = value.clone());
        format!("{record}\n")
    };
    let lines: String = rows.iter().map(record).collect();
    let fields = "model.generation.output_fields=[responses_clean]";
    let of = |lines: &str, more: &[&str]| Job::with_data(lines).with(&[ROW_PARAMS, fields, FAST]).with(more);
    let refused = of(&lines, &[]);
    insta::assert_snapshot!(tidy(&refused, &refused.run().expect_code(3).error()), @r"
    error: 2 of 7 records of `[JOB]/data.jsonl` cannot be used:
      line 6: column `structured_outputs`: the JSON schema cannot be used: Invalid type: strin
      line 7: column `structured_outputs`: a structure has one of `json`, `json_object`, `regex`, `choice` or `grammar` alone, and this has `choice` and `regex`
    ");
    // Rows with structures of their own may have an error, and then all lines say whether they have.
    let good: String = rows[..4].iter().map(record).collect();
    let of_good = of(&good, &["model.generation.length_params.max_length=2"]);
    of_good.run().expect_code(0);
    assert!(of_good.records().iter().all(|line| line.get("error") == Some(&Value::Null)));
    let job = of(&lines, &["model.data.train_ds.on_bad_record=keep"]);
    job.run().expect_code(0);
    let records = job.records();
    let of_row = |row: usize, check: &dyn Fn(&str) -> bool| {
        assert!(clean(&records[row]).iter().all(|text| check(text)), "{}", records[row]);
    };
    of_row(1, &|text| ["red", "green", "blue"].contains(&text));
    of_row(2, &|text| text.len() == 6 && text.as_bytes()[3] == b'-');
    of_row(3, &|text| text.trim_end_matches('b').chars().all(|letter| letter == 'a'));
    assert!(records[5]["error"].as_str().unwrap().contains("Invalid type: strin"), "{}", records[5]);
    // The others are answered as if there were no structures.
    let plain = of(&record(&rows[0]).repeat(7), &["model.data.train_ds.on_bad_record=keep"]);
    plain.run().expect_code(0);
    for row in [0, 4] {
        assert_eq!(records[row], plain.records()[row]);
    }
}

#[test]
fn what_cannot_go_on_is_told() {
    let structured = |text: &str| format!("++model.generation.sampling_params.structured_outputs={text}");
    let refused = |text: &str| Job::new(2).with(&[&structured(text)]).run().expect_code(2).error();
    insta::assert_snapshot!(refused("{regex:'a('}"), @"error: `model.generation.sampling_params.structured_outputs`: the regular expression cannot be used: unclosed group");
    insta::assert_snapshot!(refused("{json:{type:strin}}"), @"error: `model.generation.sampling_params.structured_outputs`: the JSON schema cannot be used: Invalid type: strin");
    insta::assert_snapshot!(refused("{jsn:3}"), @"error: `model.generation.sampling_params.structured_outputs`: a structure has one of `json`, `json_object`, `regex`, `choice` or `grammar`, found `jsn`");
    // Without an end token nothing that must end can.
    let ban = "++model.generation.sampling_params.banned_tokens=[2]";
    let ends = "model.generation.sampling_params.end_strings=[]";
    let stuck = Job::new(2).with(&[&structured("{choice:[yes]}"), ban, ends]);
    let told = stuck.run().expect_code(0).stderr;
    assert!(told.contains("line 1 of the data, response 0: the structure ends after "), "{told}");
    let line = &stuck.records()[1];
    assert_eq!(line["responses"], json!(["yes", "yes"]));
    let error = line["error"].as_str().unwrap();
    assert!(error.ends_with("no token that ends a response may be chosen"), "{error}");
    let summary = stuck.summary();
    assert!(summary["rows_with_error"] == 2 && summary["finish_reasons"]["error"] == 4, "{summary}");
    run(stuck.command().arg("--strict")).expect_code(1);
    // The limit inside a structure is counted.
    let cut = Job::new(2)
        .with(&[&structured("{regex:'[a-z]{30}'}"), "model.generation.length_params.max_length=3"]);
    cut.run().expect_code(0);
    assert_eq!(cut.summary()["structures_cut"], 4, "{}", cut.summary());
}
