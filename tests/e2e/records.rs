//! Records as public data sets have them: nulls of Arrow's columns, tools as text, numbers of every size, and files of
//! which nothing can be used.

use crate::support::{Ended, Job, tidy};

/// Writes out what it is given, with a tool's name for each tool.
const TEMPLATE: &str = "++model.tokenizer.chat_template='{% for m in messages %}[{{ m.role }}]{% if m.tool_calls is defined %}CALLS{% endif %}{% if \
                        m.content is defined %}{{ m.content }}{% endif %}{% endfor %}{% if tools %}TOOLS{% for t in tools %} {{ t.function.name }}{% \
                        endfor %}{% endif %}[assistant]'";

fn prompts(job: &Job) -> Vec<String> {
    job.records().iter().map(|record| record["prompt"].as_str().unwrap().to_owned()).collect()
}

/// The metadata of each line, byte for byte.
fn metadata(job: &Job) -> Vec<String> {
    let between =
        |line: &str| line.split_once("\"metadata\": ").unwrap().1.strip_suffix('}').unwrap().to_owned();
    job.jsonl().lines().map(between).collect()
}

fn with_metadata(lines: &str) -> Job {
    Job::with_data(lines).with(&["model.generation.output_fields=[metadata]"])
}

fn error_of(job: &Job, code: i32) -> (String, Ended) {
    let ended = job.run().expect_code(code);
    (tidy(job, &ended.error()), ended)
}

#[test]
fn keys_with_null_are_left_out_of_messages() {
    let lines = r#"{"messages": [{"role": "user", "content": "question", "tool_calls": null}, {"role": "assistant", "content": "the answer", "tool_calls": null}, {"role": "user", "content": "more", "tool_calls": null}]}
{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null}, {"role": "user", "content": "r"}], "conversations": null, "system": null, "tools": null}
"#;
    let job = Job::with_data(lines).with(&[TEMPLATE]);
    job.run().expect_code(0);
    assert_eq!(
        prompts(&job),
        ["[user]question[assistant]the answer[user]more[assistant]", "[user]q[assistant][user]r[assistant]"]
    );
}

#[test]
fn tools_may_be_a_text_of_json() {
    let tools = r#"[{"type": "function", "function": {"name": "lookup", "parameters": {}}}]"#;
    let text = serde_json::to_string(tools).unwrap();
    let line = |tools: &str| {
        format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"hi\"}}], \"tools\": {tools}}}\n")
    };
    let job = with_metadata(&[tools, &text, "null", "[]", "\"null\""].map(line).concat()).with(&[TEMPLATE]);
    job.run().expect_code(0);
    let (with_tools, without) = ("[user]hiTOOLS lookup[assistant]", "[user]hi[assistant]");
    assert_eq!(prompts(&job), [with_tools, with_tools, without, without, without]);
    assert_eq!(metadata(&job)[1], format!("{{\"tools\": {text}}}"));
    let bad = ["7", "\"none\"", "[\"lookup\"]", "{\"name\": \"lookup\"}"].map(line).concat();
    insta::assert_snapshot!(error_of(&Job::with_data(&bad).with(&[TEMPLATE]), 3).0, @r"
    error: 4 of 4 records of `[JOB]/data.jsonl` cannot be used:
      line 1: key `tools` is a number, it must be a list of objects
      line 2: key `tools` is a string that is not JSON at column 1: expected a value, found `none`
      line 3: key `tools[0]` is a string, it must be an object
      line 4: key `tools` is an object, it must be a list of objects
    ");
}

#[test]
fn metadata_comes_back_digit_for_digit() {
    let values = [
        "NaN",
        "Infinity",
        "-Infinity",
        "1.0E5",
        "1e-07",
        "-0.0",
        "-0",
        "0.10",
        "1e400",
        "123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        "null",
        "\"\\u00e9\\u0000\\ud83d\\ude00\\/\"",
        "[1.50, {\"a\": 2.0e+3}]",
    ];
    let line = |value: &str| {
        format!(
            "{{\"reward\":{value},\"system\":\"\",\"conversations\":[{{\"from\":\"User\",\"value\":\"x\"}},\
             {{\"from\":\"Assistant\",\"value\":\"\"}}],\"mask\":null}}\r\n"
        )
    };
    let job = with_metadata(&values.map(line).concat());
    job.run().expect_code(0);
    let written = |value: &str| match value.starts_with('"') {
        true => "\"é\\u0000😀/\"".to_owned(),
        false => value.to_owned(),
    };
    let expect =
        values.map(|value| format!("{{\"reward\": {}, \"system\": \"\", \"mask\": null}}", written(value)));
    assert_eq!(metadata(&job), expect);
    // A run is continued from such a file, too.
    let lines: Vec<String> = job.jsonl().lines().map(|line| format!("{line}\n")).collect();
    std::fs::write(job.jsonl_path(), lines[..4].concat()).unwrap();
    std::fs::remove_file(job.results().join("generations/manifest.json")).unwrap();
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), lines.concat());
    assert!(job.run().expect_code(0).stderr.contains("nothing to do"));
}

#[test]
fn when_nothing_is_left_the_cause_is_told() {
    let skip = "model.data.train_ds.on_bad_record=skip";
    let alpaca = "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \"c\", \"output\": \"d\"}\n";
    let (error, ended) = error_of(&Job::with_data(alpaca).with(&[skip]), 3);
    insta::assert_snapshot!(error, @r#"
    error: there is no sample to generate from: 2 of 2 records of `[JOB]/data.jsonl` are bad:
      line 1: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
      line 2: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
    "#);
    let counted = |ended: &Ended, row: &str, count: &str| {
        let line = ended.stderr.lines().find(|line| line.trim_start().starts_with(row)).unwrap_or_default();
        assert!(line.ends_with(count), "{row} {count}: {}", ended.stderr);
    };
    counted(&ended, "records read", " 2");
    counted(&ended, "bad", " 2");
    counted(&ended, "to generate", " nothing");
    let (error, ended) = error_of(&Job::new(3).with(&["model.data.train_ds.max_seq_length=5"]), 3);
    assert!(error.starts_with("error: there is no sample to generate from: 3 of 3 records of `[JOB]/data.jsonl` are longer than `model.data.train_ds.max_seq_length=5` allows; the shortest of them has "), "{error}");
    counted(&ended, "over-length", " 3");
    let dropped = ["model.data.train_ds.drop_last=true", "model.global_batch_size=8"];
    let (error, ended) = error_of(&Job::new(3).with(&dropped), 3);
    insta::assert_snapshot!(error, @"error: all 3 samples are dropped, because they fill no step of `model.global_batch_size` 8: set `model.data.train_ds.drop_last=false` or a smaller `model.global_batch_size`");
    counted(&ended, "not in a whole batch", " 3");
    let (error, ended) = error_of(&Job::new(3).with(&["trainer.generation.limit_train_batches=0.1"]), 2);
    insta::assert_snapshot!(error, @"error: there is no sample to generate from: `trainer.generation.limit_train_batches=0.1` of 3 samples is less than one; a whole number is a number of steps");
    counted(&ended, "past the limits set", " 3");
    let ended = Job::new(3).with(&["trainer.generation.max_steps=0"]).run().expect_code(0);
    assert!(
        ended.stderr.contains("nothing to do: `trainer.generation.max_steps=0` leaves no step"),
        "{}",
        ended.stderr
    );
    counted(&ended, "past the limits set", " 3");
    let sampled = ["model.data.sample=true", "trainer.generation.max_steps=1", skip];
    let (error, _) = error_of(&Job::with_data("7\n").with(&sampled), 3);
    assert!(error.contains("1 of 1 records"), "{error}");
}

#[test]
fn a_template_that_is_not_needed_stops_nothing() {
    let broken = "++model.tokenizer.chat_template='{% if %}'";
    let chat = Job::new(1).with(&[broken]);
    chat.run().expect_code(0);
    let prompt_response = Job::with_data("{\"input\": \"x\", \"output\": \"\"}\n").with(&[
        broken,
        "model.data.chat=false",
        "model.data.train_ds.prompt_template='{input}{output}'",
    ]);
    prompt_response.run().expect_code(0);
    // Skipping bad records does not skip this.
    let messages = Job::with_data("7\n{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n")
        .with(&[broken, "model.data.train_ds.on_bad_record=skip"]);
    let (error, _) = error_of(&messages, 4);
    assert!(error.starts_with("error: line 2 of `[JOB]/data.jsonl` is a `messages` record, and the tokenizer's chat template is not valid: "), "{error}");
}

#[test]
fn the_date_is_part_of_what_a_run_is_continued_by() {
    let job = Job::new(1).with(&["++model.data.date=2026-11-28"]);
    job.run().expect_code(0);
    let job = job.with(&["++model.data.date=2026-11-29"]);
    let (error, _) = error_of(&job, 2);
    assert!(
        error.contains("changed: `model.data.date` (was \"2026-11-28\", now \"2026-11-29\");"),
        "{error}"
    );
    let (error, _) = error_of(&job.with(&["model.data.date=null"]), 2);
    assert!(error.contains("changed: `model.data.date` (was \"2026-11-28\", now null);"), "{error}");
    let (error, _) = error_of(&Job::new(1).with(&["model.data.date=2026-02-30"]), 2);
    insta::assert_snapshot!(error, @"error: `model.data.date` must be a day of the calendar as `YYYY-MM-DD`, found `2026-02-30`");
}

const USER: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n";

#[test]
fn a_template_that_asks_for_the_date_is_given_one() {
    let template =
        "++model.tokenizer.chat_template='{{ strftime_now(\"%d %B %Y\") }}: {{ messages[0].content }}'";
    // Leaving such records out would leave out all.
    let skipping = "model.data.train_ds.on_bad_record=skip";
    let (error, _) = error_of(&Job::with_data(USER).with(&[template, skipping]), 2);
    insta::assert_snapshot!(error, @"error: the chat template asks for the date in line 1 of `[JOB]/data.jsonl`, and no prompt takes it from the clock: set one, in the shell write ++model.data.date=2026-01-31");
    let job = Job::with_data(USER).with(&[template, "++model.data.date=2026-01-31"]);
    job.run().expect_code(0);
    assert_eq!(prompts(&job), ["31 January 2026: x"]);
}

#[test]
fn the_token_that_closes_an_answer_ends_a_response() {
    let told = |template: &str| {
        let job = Job::with_data(USER).with(&[&format!("++model.tokenizer.chat_template='{template}'")]);
        let stderr = job.run().expect_code(0).stderr;
        let line =
            stderr.lines().find(|line| line.contains("tokens that end a response")).unwrap().to_owned();
        line.contains("chat template")
    };
    assert!(told("{% for m in messages %}{{ m.role }}: {{ m.content }} </s>{% endfor %}"));
    // What begins the next turn closes nothing, and neither does text.
    assert!(!told("{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}"));
    assert!(!told("{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}"));
    assert!(!told("{{ messages[0].content }}"));
    // Of several messages an answer, the prompt begins the first: its end is not that of the answer.
    let header = "{% if m.role == \"assistant\" %}<s>final: {% endif %}";
    assert!(!told(&format!(
        "{{% for m in messages %}}{{{{ m.role }}}}{header}{{{{ m.content }}}} </s>{{% endfor %}}"
    )));
}
