//! The same texts, whatever the batch, the order, the kernels, the number of responses, and however often the run is
//! killed. `cargo xtask soak` runs the long version.

use crate::support::{Job, fixture, num_lines, run, wait_for_line};

const NUM_SAMPLES: usize = 12;

/// A Llama, and a GPT with random weights.
const MODELS: [&str; 2] = ["mcore_llama/llama_fp32_torch_dist.nemo", "dummy/tiny-gpt.nemo"];

/// Both sets of kernels in fp32, which give the same texts, and in bf16, where each is compared with itself.
const FP32: [&[&str]; 2] = [&["trainer.precision=32"], &["trainer.precision=32", FAST]];
const BF16: [&[&str]; 2] = [&["trainer.precision=bf16"], &["trainer.precision=bf16", FAST]];
const FAST: &str = "trainer.generation.trt_llm.enable=true";

/// Everything that may change a draw is on, and some responses end early.
const SAMPLING: [&str; 7] = [
    "model.generation.num_responses_to_gen=4",
    "model.generation.length_params.max_length=14",
    "model.generation.sampling_params.temperature=0.9",
    "model.generation.sampling_params.top_k=60",
    "model.generation.sampling_params.top_p=0.95",
    "model.generation.sampling_params.repetition_penalty=1.1",
    "model.generation.sampling_params.end_strings=[e,er,th]",
];

fn job(model: &str, overrides: &[&str]) -> Job {
    job_of(NUM_SAMPLES, model, overrides)
}

fn job_of(num_samples: usize, model: &str, overrides: &[&str]) -> Job {
    // Prompts of many lengths, so that rows of a batch differ in everything.
    let lines: String = (0..num_samples)
        .map(|n| {
            let question = "Where does the river go? ".repeat(n * 5 % 7 % 3) + &"?".repeat(n);
            format!(
                "{{\"system\": \"\", \"conversations\": [{{\"from\": \"User\", \"value\": \"{question}\"}}, \
                 {{\"from\": \"Assistant\", \"value\": \"\"}}]}}\n"
            )
        })
        .collect();
    let checkpoint = format!("pretrained_checkpoint.restore_from_path={}", fixture(model).display());
    Job::with_data(&lines).with(&SAMPLING).with(&[&checkpoint]).with(overrides)
}

/// Prompts and responses of a whole run, without the numbers of its steps, and as many responses as asked for.
fn texts(job: &Job, num_responses: usize) -> Vec<(String, Vec<String>)> {
    job.run().expect_code(0);
    let records = job.records();
    assert_eq!(records.len(), NUM_SAMPLES);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    records
        .iter()
        .map(|record| {
            let responses = record["responses"].as_array().unwrap().iter().map(text);
            (text(&record["prompt"]), responses.take(num_responses).collect())
        })
        .collect()
}

#[test]
fn one_text_for_every_batch_and_both_kernels() {
    for model in MODELS {
        let expect = texts(&job(model, FP32[0]), 4);
        let distinct: std::collections::HashSet<_> = expect.iter().flat_map(|(_, texts)| texts).collect();
        assert!(distinct.len() > 3 * NUM_SAMPLES, "the responses of {model} hardly differ");
        for paths in [FP32, BF16] {
            for path in paths {
                let own = if path[0] == FP32[0][0] { expect.clone() } else { texts(&job(model, path), 4) };
                for batch in [
                    "trainer.generation.max_batch=1",
                    "trainer.generation.max_batch=7",
                    "model.global_batch_size=1",
                    "model.global_batch_size=32",
                ] {
                    assert_eq!(texts(&job(model, path).with(&[batch]), 4), own, "{model} {path:?} {batch}");
                }
                let one = job(model, path).with(&["model.generation.num_responses_to_gen=1"]);
                let first: Vec<_> =
                    own.iter().map(|(prompt, texts)| (prompt.clone(), texts[..1].to_vec())).collect();
                assert_eq!(texts(&one, 1), first, "{model} {path:?}: the first of four responses");
            }
        }
    }
}

/// With room for two sequences of the greatest length in the cache.
fn small_cache(job: Job) -> Job {
    let cache = |bytes: u64| format!("++trainer.generation.kv_cache_memory_bytes={bytes}");
    let too_small = job.with(&[&cache(1)]);
    let refusal = too_small.run().expect_code(2).error();
    let (_, rest) = refusal.split_once("must be at least ").unwrap();
    let one_sequence: u64 = rest.split(',').next().unwrap().parse().unwrap();
    too_small.with(&[&cache(2 * one_sequence)])
}

#[test]
fn one_text_whether_the_cache_is_large_or_full() {
    for model in MODELS {
        for path in FP32 {
            let job = || job(model, path).with(&["model.generation.length_params.max_length=100"]);
            let expect = texts(&job(), 4);
            let mut num_preemptions = Vec::new();
            for swap_space in ["0", "0.25"] {
                let small =
                    small_cache(job()).with(&[&format!("++trainer.generation.swap_space={swap_space}")]);
                assert_eq!(texts(&small, 4), expect, "{model} {path:?} {swap_space}");
                num_preemptions.push(small.summary()["swaps"]["preemptions"].as_u64().unwrap());
            }
            // The responses of the other model are shorter, and may all have room.
            let must_swap = model == MODELS[0];
            assert!(num_preemptions[0] == 0 && (num_preemptions[1] > 0 || !must_swap), "{model} {path:?}");
        }
    }
}

#[test]
fn fp8_gives_texts_of_its_own_and_one_for_every_batch() {
    const WEIGHTS: &str = "trainer.generation.trt_llm.quantization=fp8";
    const CACHE: &str = "trainer.generation.trt_llm.kv_cache_dtype=fp8";
    let model = MODELS[0];
    for path in BF16 {
        let [plain, weights, cache] =
            [&[][..], &[WEIGHTS], &[CACHE]].map(|fp8| texts(&job(model, path).with(fp8), 4));
        assert!(plain != weights && plain != cache && weights != cache, "{path:?}");
        for batch in ["trainer.generation.max_batch=1", "model.global_batch_size=32"] {
            assert_eq!(texts(&job(model, path).with(&[WEIGHTS, batch]), 4), weights, "{path:?} {batch}");
            assert_eq!(texts(&job(model, path).with(&[CACHE, batch]), 4), cache, "{path:?} {batch}");
        }
    }
    for (key, value, found) in [
        ("quantization", "int8", "must be `fp8` or null, found `int8`"),
        ("kv_cache_dtype", "fp4", "must be `auto` or `fp8`, found `fp4`"),
    ] {
        let key = format!("trainer.generation.trt_llm.{key}");
        let error = job(model, BF16[0]).with(&[&format!("{key}={value}")]).run().expect_code(2).error();
        assert!(error.contains(&format!("`{key}` {found}")), "{error}");
    }
}

#[test]
fn one_text_with_and_without_speculation() {
    const ON: &str = "trainer.generation.speculation.enable=true";
    let long = ["model.generation.length_params.max_length=60", "model.global_batch_size=1"];
    for model in MODELS {
        for precision in ["trainer.precision=32", "trainer.precision=bf16"] {
            let off = job(model, &[precision, FAST]).with(&long);
            let expect = texts(&off, 4);
            let on = job(model, &[precision, FAST, ON]).with(&long);
            assert_eq!(texts(&on, 4), expect, "{model} {precision}");
            // Begun with it, and ended without.
            let mixed = job(model, &[precision, FAST]).with(&long);
            run(mixed.command().args([ON, "trainer.generation.max_steps=5"])).expect_code(0);
            mixed.run().expect_code(0);
            assert_eq!(mixed.jsonl(), off.jsonl(), "{model} {precision}");
        }
    }
}

#[test]
fn one_text_whether_prompts_share_what_they_begin_with() {
    let system =
        "You answer questions about rivers, mountains and the sea, shortly and in one sentence. ".repeat(2);
    let lines: String = (0..NUM_SAMPLES)
        .map(|n| {
            format!(
                "{{\"system\": \"{system}\", \"conversations\": [{{\"from\": \"User\", \"value\": \"{n}{}?\"}}, \
                 {{\"from\": \"Assistant\", \"value\": \"\"}}]}}\n",
                "!".repeat(n)
            )
        })
        .collect();
    for (model, path) in [(MODELS[0], FP32[1]), (MODELS[1], BF16[1])] {
        let checkpoint = format!("pretrained_checkpoint.restore_from_path={}", fixture(model).display());
        let job = |prefix_cache: bool| {
            let key = format!("++trainer.generation.prefix_cache={prefix_cache}");
            Job::with_data(&lines).with(&SAMPLING).with(&[&checkpoint, &key]).with(path)
        };
        let (on, off) = (job(true), job(false));
        assert_eq!(texts(&on, 4), texts(&off, 4), "{model} {path:?}");
        let cached = [on, off].map(|job| job.summary()["cached_prompt_tokens"].as_u64().unwrap());
        assert!(cached[0] > 32 * (NUM_SAMPLES as u64 - 1) && cached[1] == 0, "{model}: {cached:?}");
    }
}

/// What a run has just done when it is killed.
#[derive(Clone, Copy)]
enum Moment {
    /// It was started.
    Started,
    /// Its plan is shown, and it opens the folder and cuts it back.
    Planned,
    /// The model is loaded, and the first step is computed.
    Loaded,
    /// One more step is on disk, and the next one is computed.
    Committed,
}

/// Each of these four times.
const MOMENTS: [Moment; 5] =
    [Moment::Started, Moment::Committed, Moment::Planned, Moment::Committed, Moment::Loaded];
const NUM_KILLS: usize = 20;
/// Enough that work is left after all kills, of which eight wait for a step each.
const NUM_STEPS: usize = 36;

fn kill_at(job: &Job, moment: Moment) {
    let num_lines = std::fs::read(job.jsonl_path()).map_or(0, |bytes| num_lines(&bytes));
    let mut child = match moment {
        Moment::Committed => job.start_and_wait_for_lines(num_lines + 1),
        _ => job.command().spawn().unwrap(),
    };
    match moment {
        Moment::Started | Moment::Committed => {}
        Moment::Planned => wait_for_line(&mut child, "tokens that end a response"),
        Moment::Loaded => wait_for_line(&mut child, "loaded in "),
    }
    assert!(child.try_wait().unwrap().is_none(), "the run ended of itself");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn twenty_kills_leave_the_file_the_same_to_the_byte() {
    let long = ["model.generation.length_params.max_length=60", "model.global_batch_size=1"];
    for model in MODELS {
        let undisturbed = job_of(NUM_STEPS, model, &long);
        undisturbed.run().expect_code(0);
        let job = job_of(NUM_STEPS, model, &long);
        for moment in MOMENTS.into_iter().cycle().take(NUM_KILLS) {
            kill_at(&job, moment);
        }
        job.run().expect_code(0);
        assert_eq!(job.jsonl(), undisturbed.jsonl(), "{model}");
    }
}
