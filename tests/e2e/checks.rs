//! Responses checked by a program while the job runs: what is kept, whatever the order, and programs that fail.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Job, tidy, wait};

/// Says `pass` or `fail`, and whether to stop, by the text alone. What else it does stands in a file beside it, which is no part of the
/// command: `late` answers in another order and not at once, the others break the rules after some good answers.
const CHECK: &str = r#"
import json, os, random, sys, threading, time, zlib
mode = open(os.path.join(os.path.dirname(__file__), "mode")).read().strip()
lock = threading.Lock()
def verdict(question):
    value = zlib.crc32(question["response"].encode())
    assert question["metadata"]["pad"] and "Question" in question["prompt"]
    return {"id": question["id"], "verdict": ["pass", "fail", "fail", "pass_and_stop", "fail", "fail_and_stop", "pass", "stop"][value % 8], "score": value % 100 / 10}
def say(line, wait):
    time.sleep(wait)
    with lock:
        print(line, flush=True)
for nth, line in enumerate(sys.stdin):
    answer = json.dumps(verdict(json.loads(line)))
    if mode == "late":
        threading.Thread(target=say, args=(answer, random.random() * 0.05)).start()
        continue
    if nth >= 9 and mode == "dies":
        print("ValueError: no such unit", file=sys.stderr, flush=True)
        os._exit(3)
    if nth >= 9 and mode == "hangs":
        continue
    say("Passed!" if nth >= 9 and mode == "nonsense" else answer, 0)
    if nth >= 9 and mode == "twice":
        say(answer, 0)
"#;

const RESPONSES: [&str; 3] = [
    "model.generation.num_responses_to_gen=5",
    "model.generation.sampling_params.end_strings=[e]",
    "model.generation.length_params.max_length=20",
];

/// A job of ten records with a checker in its folder.
fn job(mode: &str) -> Job {
    let job = Job::new(10).with(&RESPONSES);
    std::fs::write(job.path().join("check.py"), CHECK).unwrap();
    set_mode(&job, mode);
    job
}

fn set_mode(job: &Job, mode: &str) {
    std::fs::write(job.path().join("mode"), mode).unwrap();
}

fn command_of(job: &Job) -> String {
    format!("exec python3 {}", job.path().join("check.py").display())
}

fn checked(mode: &str, more: &[&str]) -> Job {
    let job = job(mode);
    let command = command_of(&job);
    job.with(&["--on-response", &command]).with(more)
}

fn texts(line: &Value) -> Vec<String> {
    let texts = line["responses"].as_array().unwrap();
    texts.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_kept_is_the_same_however_the_run_goes() {
    let plain = Job::new(10).with(&RESPONSES);
    plain.run().expect_code(0);
    let whole = checked("at once", &[]);
    whole.run().expect_code(0);
    // Everything up to the first that stops the others, with the texts of a job without checks.
    let (mut num_left_out, mut num_passed) = (0, 0);
    for (plain, kept) in plain.records().iter().zip(whole.records()) {
        let verdicts: Vec<&str> =
            kept["verdicts"].as_array().unwrap().iter().map(|verdict| verdict.as_str().unwrap()).collect();
        let stop = verdicts.iter().position(|&verdict| verdict.ends_with("stop"));
        assert_eq!(stop.unwrap_or(4) + 1, verdicts.len());
        assert_eq!(texts(&kept), texts(plain)[..verdicts.len()]);
        assert_eq!(kept["scores"].as_array().unwrap().len(), verdicts.len());
        num_left_out += 5 - verdicts.len();
        num_passed += verdicts.iter().filter(|verdict| verdict.starts_with("pass")).count();
    }
    assert!(num_left_out > 3, "{num_left_out}");
    let summary = whole.summary();
    assert_eq!(summary["checks"]["left_out"], num_left_out);
    assert_eq!(summary["checks"]["responses"], 50 - num_left_out);
    assert_eq!(summary["checks"]["passed"], num_passed);

    // Several ranks, answers in another order, and two ends by force.
    let more = ["trainer.devices=3", "model.global_batch_size=3", "model.data.train_ds.drop_last=false"];
    let many = checked("late", &more);
    many.run().expect_code(0);
    let without_steps = |job: &Job| {
        let mut lines = job.records();
        lines.iter_mut().for_each(|line| {
            line["step"] = Value::Null;
            line["consumed_samples"] = Value::Null;
        });
        lines
    };
    assert_eq!(without_steps(&many), without_steps(&whole));
    let killed = checked("late", &[]);
    for num_lines in [2, 6] {
        let mut child = killed.start_and_wait_for_lines(num_lines);
        child.kill().unwrap();
        let _ = wait(child);
    }
    killed.run().expect_code(0);
    assert_eq!(killed.jsonl(), whole.jsonl());
}

/// What is cancelled is cancelled on all ranks that share the model.
#[test]
fn ranks_that_share_a_model_stop_together() {
    let tree = ["trainer.generation.trt_llm.enable=true", "++model.generation.reduction=tree"];
    let alone = checked("at once", &tree);
    alone.run().expect_code(0);
    let layouts = [
        ["model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=1"],
        ["model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=2"],
    ];
    for layout in layouts {
        let shared = checked("late", &tree).with(&layout).with(&["trainer.devices=2"]);
        shared.run().expect_code(0);
        assert_eq!(shared.jsonl(), alone.jsonl(), "{layout:?}");
        assert!(shared.summary()["checks"]["left_out"].as_u64().unwrap() > 0);
    }
}

#[test]
fn a_program_that_breaks_the_rules_ends_the_job_and_loses_nothing() {
    let whole = checked("at once", &[]);
    whole.run().expect_code(0);
    let timeout = |seconds: u32| format!("++model.generation.on_response_timeout_seconds={seconds}");
    let mut broken = checked("dies", &["++trainer.generation.max_batch=5"]);
    let mut said = Vec::new();
    for (mode, seconds) in [("dies", 100), ("nonsense", 100), ("twice", 100), ("hangs", 2)] {
        set_mode(&broken, mode);
        broken = broken.with(&[&timeout(seconds)]);
        let error = tidy(&broken, &broken.run().expect_code(1).error());
        said.push(error);
        assert!(whole.jsonl().starts_with(&broken.jsonl()), "{mode}");
    }
    let has = |idx: usize, parts: &[&str]| {
        let missing: Vec<_> = parts.iter().filter(|&&part| !said[idx].contains(part)).collect();
        assert!(missing.is_empty(), "{missing:?} is not in {}", said[idx]);
    };
    let row = "to the record in line ";
    has(0, &["ended with exit code 3", row, "it last said `ValueError: no such unit`"]);
    has(1, &["answered `Passed!`, expected value at line 1 column 1", row]);
    has(2, &["answered for id `", "which it was not asked for or has answered"]);
    has(3, &["has not answered for `model.generation.on_response_timeout_seconds` of 2 s", row]);
    assert!(said.iter().all(|error| error.contains("the same command continues after them")));
    set_mode(&broken, "at once");
    broken = broken.with(&[&timeout(100)]);
    broken.run().expect_code(0);
    assert_eq!(broken.jsonl(), whole.jsonl());
}

/// A checker that lets responses pass by their text and never stops.
const SCORE: &str = r#"
import json, sys, zlib
for line in sys.stdin:
    question = json.loads(line)
    value = zlib.crc32(question["response_clean"].encode())
    answer = {"id": question["id"], "verdict": ["fail", "pass"][value % 3 == 0], "score": value % 100 / 10}
    print(json.dumps(answer), flush=True)
"#;

fn scored(more: &[&str]) -> Job {
    let job = Job::new(10).with(&RESPONSES);
    let script = job.path().join("score.py");
    std::fs::write(&script, SCORE).unwrap();
    let command = format!("python3 {}", script.display());
    let quoted = format!("++model.generation.on_response=\"{command}\"");
    job.with(&[&quoted]).with(more)
}

#[test]
fn the_best_is_kept_and_passes_are_counted() {
    let all = scored(&["--pass-at-k", "1,5"]);
    let mut child = all.start_and_wait_for_lines(4);
    child.kill().unwrap();
    let _ = wait(child);
    all.run().expect_code(0);
    let lines = all.records();
    let mut sums = [0.0, 0.0];
    for line in &lines {
        let verdicts = line["verdicts"].as_array().unwrap();
        let num_passed = verdicts.iter().filter(|&verdict| verdict == "pass").count();
        let share = num_passed as f64 / 5.0;
        let expect = [share, if num_passed > 0 { 1.0 } else { 0.0 }];
        for (idx, k) in ["1", "5"].into_iter().enumerate() {
            let value = line["pass_at_k"][k].as_f64().unwrap();
            assert!((value - expect[idx]).abs() < 1e-12, "{line}");
            sums[idx] += value;
        }
    }
    assert!(sums[0] > 0.0 && sums[0] < 10.0, "{sums:?}");
    // Of the whole job, though it was killed on the way.
    let summary = all.summary();
    assert_eq!(summary["pass_at_k"], json!({"1": sums[0] / 10.0, "5": sums[1] / 10.0}));
    assert_eq!(summary["pass_at_k_rows"], json!({"1": 10, "5": 10}));

    let best = scored(&["--best-of-n", "score", "--pass-at-k", "1,5"]);
    best.run().expect_code(0);
    for (line, all) in best.records().iter().zip(&lines) {
        let scores: Vec<f64> =
            all["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let first = scores.iter().position(|&score| score == most).unwrap();
        assert_eq!(line["response_indices"], json!([first]));
        assert_eq!((&line["responses"][0], &line["scores"]), (&all["responses"][first], &json!([most])));
        assert_eq!(line["pass_at_k"], all["pass_at_k"]);
    }
    // The command is a part of what the run is.
    let other = best.with(&["++model.generation.on_response=cat"]).run().expect_code(2);
    assert!(
        other.error().contains("changed: `model.generation.on_response` (was \"python3 "),
        "{}",
        other.stderr
    );
    by_logprob();
}

/// Without a program.
fn by_logprob() {
    let with = |more: &[&str]| {
        let job = Job::new(10).with(&RESPONSES).with(more);
        job.run().expect_code(0);
        job
    };
    let logprobs = "model.generation.sampling_params.compute_logprob=true";
    let all = with(&[logprobs, "model.generation.output_fields=[logprobs]"]).records();
    for by in ["mean_logprob", "sum_logprob"] {
        let best = with(&["--best-of-n", by]).records();
        for (line, all) in best.iter().zip(&all) {
            let value = |logprobs: &Value| {
                let values: Vec<f64> =
                    logprobs.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
                let sum: f64 = values.iter().sum();
                if by == "mean_logprob" { sum / values.len() as f64 } else { sum }
            };
            let values: Vec<f64> = all["logprobs"].as_array().unwrap().iter().map(value).collect();
            let most = values.iter().copied().fold(f64::MIN, f64::max);
            let first = values.iter().position(|&value| value == most).unwrap();
            assert_eq!(line["responses"], json!([all["responses"][first]]), "{by}");
        }
    }
}

#[test]
fn responses_that_are_not_wanted_are_not_computed_to_their_end() {
    // Long ones beside short ones, and the first is always enough.
    let job = Job::new(12).with(&RESPONSES).with(&["model.generation.length_params.max_length=100"]);
    let stop = r#"sed -u -E 's/^\{"id": ("[^"]*").*$/{"id": \1, "verdict": "pass_and_stop"}/'"#;
    let job = job.with(&["--on-response", stop]);
    job.run().expect_code(0);
    let lines = job.records();
    assert!(lines.iter().all(|line| line["verdicts"] == json!(["pass_and_stop"])));
    let checks = &job.summary()["checks"];
    assert_eq!((&checks["left_out"], &checks["passed"]), (&json!(48), &json!(12)));
    assert!(checks["cancelled"].as_u64().unwrap() > 0, "{checks}");
}

/// A program that stops at the first pass, or gives up, counts with what it has seen.
#[test]
fn passes_are_counted_where_a_program_stops() {
    let all = checked("at once", &["--pass-at-k", "1,2,5"]);
    all.run().expect_code(0);
    let mut rows = [0_u64; 3];
    for line in all.records() {
        let verdicts = line["verdicts"].as_array().unwrap();
        let passes = |verdict: &&Value| verdict.as_str().unwrap().starts_with("pass");
        let is_stopped = verdicts.iter().any(|verdict| verdict.as_str().unwrap().ends_with("stop"));
        for (rows, k) in rows.iter_mut().zip([1, 2, 5]) {
            let value = &line["pass_at_k"][k.to_string()];
            let num_passed = verdicts.iter().take(k).filter(passes).count();
            match is_stopped {
                true if num_passed > 0 => assert_eq!(value, 1.0, "{line}"),
                true => assert_eq!(value, 0.0, "{line}"),
                false => assert!(value.is_f64(), "{line}"),
            }
            *rows += u64::from(!value.is_null());
        }
    }
    assert_eq!(all.summary()["pass_at_k_rows"], json!({"1": rows[0], "2": rows[1], "5": rows[2]}));
    // To leave out those that were given up would count the others only.
    assert_eq!(rows, [10; 3]);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let said = |more: &[&str]| {
        let job = Job::new(1).with(more);
        tidy(&job, &job.run().expect_code(2).error())
    };
    let all = [
        said(&["--pass-at-k", "1"]),
        said(&["--best-of-n", "score"]),
        said(&["--best-of-n", "length"]),
        said(&["--on-response", " "]),
        said(&["--on-response", "x", "--pass-at-k", "3"]),
        said(&["--on-response", "x", "++model.generation.on_response=y"]),
        said(&["--on-response", "x", "++model.generation.pass_at_k=[]"]),
        said(&["--on-response", "x", "--pass-at-k", "1", "model.generation.drop_unfinished=true"]),
        said(&["--on-response", "x", "++model.generation.on_response_timeout_seconds=0"]),
        said(&["--on-response", "x", "++model.data.format=openai_batch"]),
        said(&["model.generation.output_fields=[verdicts]"]),
        said(&["--on-response", "x", "model.generation.output_fields=[pass_at_k]"]),
    ];
    insta::assert_snapshot!(all.join("\n"));
    let job = Job::new(2).with(&["--on-response", "no-such-command-anywhere"]);
    let error = job.run().expect_code(1).error();
    assert!(error.contains("exit code 127, which a shell gives when a command is not found"), "{error}");
}

/// What stands in the command is the shell's, whatever it is.
#[test]
fn a_command_may_have_anything_in_it() {
    let job = Job::new(2);
    let answer: PathBuf = job.path().join("it's here");
    let script = r#"sed -u -E "s/^\{\"id\": (\"[^\"]*\").*$/{\"id\": \1, \"verdict\": \"${VERDICT}\"}/"; : > "${OUT}""#;
    let command = format!("VERDICT=pass; OUT={}; {script}", shell_quoted(&answer.display().to_string()));
    let job = job.with(&["--on-response", &command]);
    job.run().expect_code(0);
    assert_eq!(job.records()[1]["verdicts"], json!(["pass", "pass"]));
    assert!(answer.exists());
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
