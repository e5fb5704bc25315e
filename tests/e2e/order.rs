//! In whatever order samples are begun, the file holds the same texts in its own order; and what hints may be wrong in.

use crate::support::{Job, fixture, run, tidy};

const HINTS: &str = "++model.data.train_ds.length_hint_key=expected_length";
const FAST: [&str; 2] = ["trainer.precision=32", "trainer.generation.trt_llm.enable=true"];
/// Few samples at once, so that their order matters.
const FEW: [&str; 3] = [
    "trainer.generation.max_batch=2",
    "model.global_batch_size=2",
    "model.generation.length_params.max_length=24",
];

fn record(system: &str, question: &str, hint: &str) -> String {
    format!(
        "{{\"system\": \"{system}\", \"expected_length\": {hint}, \"conversations\": [{{\"from\": \"User\", \
         \"value\": \"{question}\"}}, {{\"from\": \"Assistant\", \"value\": \"\"}}]}}\n"
    )
}

/// Two beginnings in turns, a prompt that is repeated, and hints that are mostly wrong.
fn lines() -> String {
    let systems =
        ["You answer questions about rivers in one sentence. ", "You translate what you are told. "];
    (0..14_usize)
        .map(|n| {
            let hint = if n % 5 == 0 { "null".to_owned() } else { (n * 37 % 50).to_string() };
            record(&systems[n % 2].repeat(3), &format!("{}?", "a".repeat(n % 4)), &hint)
        })
        .collect()
}

#[test]
fn one_file_whatever_the_order_of_work() {
    for model in ["mcore_llama/llama_fp32_torch_dist.nemo", "dummy/tiny-gpt.nemo"] {
        let checkpoint = format!("pretrained_checkpoint.restore_from_path={}", fixture(model).display());
        let job = || Job::with_data(&lines()).with(&[&checkpoint]).with(&FAST).with(&FEW);
        let plain = job().with(&["++trainer.generation.prefix_cache=false"]);
        plain.run().expect_code(0);
        for overrides in [&[][..], &[HINTS], &[HINTS, "++trainer.generation.prefix_cache=false"]] {
            let other = job().with(overrides);
            other.run().expect_code(0);
            assert_eq!(other.jsonl(), plain.jsonl(), "{model} {overrides:?}");
        }
        // Begun without hints, and ended with them.
        let mixed = job();
        run(mixed.command().arg("trainer.generation.max_steps=3")).expect_code(0);
        run(mixed.command().arg(HINTS)).expect_code(0);
        assert_eq!(mixed.jsonl(), plain.jsonl(), "{model}, resumed with hints");
    }
}

#[test]
fn a_hint_that_is_no_number_is_a_bad_record() {
    let good = |hint| record("", "a?", hint);
    let text = [good("12"), good("\"long\""), good("-1"), good("NaN"), good("1e300"), good("7.5")].concat();
    let job = Job::with_data(&text).with(&FEW);
    // Without the key it is metadata as any other.
    run(job.command().arg("trainer.generation.max_steps=1")).expect_code(0);
    let before = job.jsonl();
    let ended = run(job.command().arg(HINTS)).expect_code(3);
    insta::assert_snapshot!(tidy(&job, &ended.error()), @r"
    error: 4 of 6 records of `[JOB]/data.jsonl` cannot be used:
      line 2: key `expected_length` is the string `long`, a length hint must be a number of tokens from 0 to 1073741824
      line 3: key `expected_length` is `-1`, a length hint must be a number of tokens from 0 to 1073741824
      line 4: key `expected_length` is `NaN`, a length hint must be a number of tokens from 0 to 1073741824
      line 5: key `expected_length` is `1e300`, a length hint must be a number of tokens from 0 to 1073741824
    ");
    assert_eq!(job.jsonl(), before, "what was saved is lost");
    job.run().expect_code(0);
    assert_eq!(job.records().len(), 6);
    let skipping = Job::with_data(&text).with(&FEW).with(&[HINTS, "model.data.train_ds.on_bad_record=skip"]);
    let ended = skipping.run().expect_code(0);
    assert!(ended.stderr.contains("line 2 is skipped"), "{}", ended.stderr);
    assert_eq!(skipping.records().len(), 2);
}
