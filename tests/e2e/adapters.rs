//! LoRA adapters through the program: merged while loading, and by a conversion before.

use std::path::Path;

use nemo_format::{ConvertOptions, DType, convert_checkpoint};

use crate::support::{Job, fixture};

fn adapter(name: &str) -> String {
    fixture("adapters").join(name).display().to_string()
}

fn converted(folder: &Path, name: &str, adapters: &[&str]) -> String {
    let path = folder.join(name);
    let options = ConvertOptions {
        dtype: Some(DType::F32),
        adapters: adapters.iter().map(|name| adapter(name).into()).collect(),
        ..ConvertOptions::default()
    };
    convert_checkpoint(&fixture("families/llama31"), &path, &options).unwrap();
    path.display().to_string()
}

fn job(checkpoint: &str, more: &[&str]) -> Job {
    let checkpoint = format!("pretrained_checkpoint.restore_from_path={checkpoint}");
    let common = [
        checkpoint.as_str(),
        "trainer.precision=32",
        "model.generation.length_params.max_length=8",
        "model.generation.output_fields=[token_ids]",
        "model.data.chat_prompt_tokens={system_turn_start:a,turn_start:b,end_of_turn:c,end_of_name:d}",
    ];
    Job::new(2).with(&[&common, more].concat())
}

#[test]
fn adapters_merged_while_loading_generate_what_a_merged_checkpoint_does() {
    let folder = tempfile::tempdir().unwrap();
    let base = converted(folder.path(), "base.nemo", &[]);
    let cases: [&[&str]; 3] =
        [&["peft_llama"], &["peft_llama", "nemo_tp2_pp2/adapter.nemo"], &["nemo_canonical/adapter.nemo"]];
    let mut seen = Vec::new();
    for (idx, adapters) in cases.into_iter().enumerate() {
        let merged = converted(folder.path(), &format!("merged_{idx}.nemo"), adapters);
        let paths: Vec<String> = adapters.iter().map(|name| adapter(name)).collect();
        let value = if let [one] = paths.as_slice() { one.clone() } else { format!("[{}]", paths.join(",")) };
        for engine in ["false", "true"] {
            let engine = format!("trainer.generation.trt_llm.enable={engine}");
            let job_while = job(&base, &[&engine, &format!("++model.peft.restore_from_path={value}")]);
            let said = job_while.run().expect_code(0).stderr;
            assert_eq!(said.matches("merged in float32 into").count(), adapters.len(), "{said}");
            let job_before = job(&merged, &[&engine]);
            job_before.run().expect_code(0);
            assert_eq!(job_while.records(), job_before.records(), "{adapters:?} {engine}");
            seen.push(job_while.records());
        }
    }
    // Each of them is another model.
    assert!(seen[0] != seen[2] && seen[2] != seen[4] && seen[0] != seen[4]);
}

#[test]
fn a_run_is_not_continued_with_another_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let base = converted(folder.path(), "base.nemo", &[]);
    let adapters = |names: &[&str]| {
        let paths: Vec<String> = names.iter().map(|name| adapter(name)).collect();
        format!("++model.peft.restore_from_path=[{}]", paths.join(","))
    };
    let begun = job(&base, &["trainer.generation.max_steps=1", "model.global_batch_size=1"]);
    let begun = begun.with(&[&adapters(&["peft_llama", "peft_rslora"])]);
    begun.run().expect_code(0);
    let kept = begun.jsonl();
    let mut job = begun.with(&["trainer.generation.max_steps=-1"]);
    for names in [&["peft_rslora", "peft_llama"][..], &["peft_llama"], &[]] {
        job = job.with(&[&adapters(names)]);
        let said = job.run().error();
        assert!(said.contains("`adapters`"), "{names:?}: {said}");
        assert_eq!(job.jsonl(), kept);
    }
    job.with(&[&adapters(&["peft_llama", "peft_rslora"])]).run().expect_code(0);
}

#[test]
fn what_is_no_adapter_of_the_model_ends_the_run_with_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let base = converted(folder.path(), "base.nemo", &[]);
    for (value, expect) in [
        (adapter("bridge"), "is an adapter of another model"),
        (base.clone(), "the weights of a whole model"),
        ("3".to_owned(), "must be a path or a list of paths"),
    ] {
        let job = job(&base, &[&format!("++model.peft.restore_from_path={value}")]);
        let ended = job.run();
        assert_ne!(ended.code, Some(0), "{value}");
        assert!(ended.error().contains(expect), "{value}: {}", ended.stderr);
    }
}
