//! Runs that are killed, stopped, out of space or in each other's way: nothing lost, nothing twice.

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Job, run, wait};

fn undisturbed(num_samples: usize, overrides: &[&str]) -> String {
    let job = Job::new(num_samples).with(overrides);
    job.run().expect_code(0);
    job.jsonl()
}

#[test]
fn killed_runs_end_byte_identical() {
    const NUM_SAMPLES: usize = 16;
    let expect = undisturbed(NUM_SAMPLES, &[]);
    let job = Job::new(NUM_SAMPLES);
    for num_lines in [0, 1, 5, 9] {
        let mut child = job.start_and_wait_for_lines(num_lines);
        child.kill().unwrap();
        wait(child);
    }
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), expect);
}

#[test]
fn torn_line_is_repaired() {
    let expect = undisturbed(6, &[]);
    let job = Job::new(6);
    let mut child = job.start_and_wait_for_lines(2);
    child.kill().unwrap();
    wait(child);
    let mut torn = job.jsonl();
    torn.push_str("{\"step\": 2, \"consumed_sam");
    std::fs::write(job.jsonl_path(), torn).unwrap();
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), expect);
    assert!(job.results().join("generations/generations.partial").exists());
}

#[test]
fn legacy_file_without_manifest_is_continued() {
    let expect = undisturbed(6, &[]);
    let job = Job::new(6);
    std::fs::create_dir_all(job.jsonl_path().parent().unwrap()).unwrap();
    let whole: Vec<&str> = expect.lines().collect();
    std::fs::write(job.jsonl_path(), format!("{}\n{}\n{}\n", whole[0], whole[1], whole[2])).unwrap();
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), expect);
}

/// The portable kernels do not fuse multiplications with additions, which those of every other set do.
#[test]
fn another_instruction_set_is_refused_where_its_sums_differ() {
    let job = Job::new(2).with(&["trainer.generation.trt_llm.enable=true"]);
    run(job.command().env("ALIGNER_GEN_ISA", "portable")).expect_code(0);
    run(job.command().env("ALIGNER_GEN_ISA", "portable")).expect_code(0);
    let ended = run(job.command().env("ALIGNER_GEN_ISA", "avx2")).expect_code(2);
    let sets = "`instruction set` (was \"portable\", now \"fused multiply-add\")";
    assert!(ended.error().contains(sets), "{}", ended.stderr);
    let ended = run(job.command().env("ALIGNER_GEN_ISA", "avx3")).expect_code(2);
    assert!(ended.error().contains("`ALIGNER_GEN_ISA` must be one of"), "{}", ended.stderr);
}

/// Version 1 recorded the settings by the text of this program's own types, without a version.
#[test]
fn a_run_of_identity_version_1_is_refused_and_kept() {
    let job = Job::new(4);
    job.run().expect_code(0);
    let before = job.jsonl();
    let path = job.results().join("generations/manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["identity"] = serde_json::json!({
        "checkpoint fingerprint": "5e1f",
        "data fingerprint": "c0de",
        "model": "ModelConfig { num_layers: 2, hidden_size: 64 }",
        "model.seed": 1234,
        "trainer.precision": "Fp32",
    });
    let fields = manifest.as_object_mut().unwrap();
    fields.shift_remove("checksum").unwrap();
    let checksum = blake3::hash(&serde_json::to_vec(fields).unwrap()).to_hex().to_string();
    fields.insert("checksum".to_owned(), checksum.into());
    std::fs::write(&path, manifest.to_string()).unwrap();
    let ended = job.run().expect_code(2);
    insta::assert_snapshot!(crate::support::tidy(&job, &ended.error()), @"error: `[JOB]/results/generations` was begun by another version of this program (0.1.0, identity version 1), which recorded what decides the texts in another way than this one (identity version 2), so it cannot be continued: finish it with that version, use another `exp_manager.explicit_log_dir`, or start afresh with `++exp_manager.resume_if_exists=false`");
    assert_eq!(job.jsonl(), before);
    let afresh = job.with(&["++exp_manager.resume_if_exists=false"]);
    afresh.run().expect_code(0);
    assert_eq!(afresh.jsonl(), before);
}

#[test]
fn batch_size_may_change_between_runs() {
    let texts = |jsonl: &str| -> Vec<serde_json::Value> {
        jsonl
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["responses"].clone())
            .collect()
    };
    let expect = undisturbed(9, &[]);
    let job = Job::new(9);
    let mut child = job.start_and_wait_for_lines(4);
    child.kill().unwrap();
    wait(child);
    let job = job.with(&["model.global_batch_size=3"]);
    job.run().expect_code(0);
    assert_eq!(texts(&job.jsonl()), texts(&expect));
    assert_eq!(job.records().last().unwrap()["consumed_samples"], 9);
}

#[test]
fn sigterm_saves_and_tells_how_to_go_on() {
    const LONG: [&str; 1] = ["model.generation.length_params.max_length=40"];
    let job = Job::new(100).with(&LONG);
    let child = job.start_and_wait_for_lines(2);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ended = wait(child).expect_code(143);
    assert!(ended.stderr.contains("stopped by SIGTERM with "), "{}", ended.stderr);
    assert!(ended.stderr.contains("run the same command again to continue"), "{}", ended.stderr);
    let records = job.records();
    assert!(records.len().is_multiple_of(2) && records.len() < 100, "{}", records.len());
}

#[test]
fn sigint_is_130_and_usr1_is_done() {
    for (signal, code) in [(Signal::INT, 130), (Signal::USR1, 0)] {
        let job = Job::new(100).with(&["model.generation.length_params.max_length=40"]);
        let child = job.start_and_wait_for_lines(2);
        kill_process(Pid::from_child(&child), signal).unwrap();
        wait(child).expect_code(code);
    }
}

#[test]
fn time_limit_ends_well() {
    let job = Job::new(100).with(&[
        "model.generation.length_params.max_length=40",
        "exp_manager.max_time_per_run='00:00:00:01'",
    ]);
    let ended = job.run().expect_code(0);
    assert!(ended.stderr.contains("stopped by `exp_manager.max_time_per_run` of 1 s"), "{}", ended.stderr);
}

#[test]
fn full_disk_is_reported_and_survived() {
    let fields = ["model.generation.output_fields=[metadata]"];
    let job = Job::new(24).with(&fields);
    let ended = run(&mut job.command_with_file_limit(48)).expect_code(1);
    assert!(ended.error().starts_with("error: cannot write step "), "{}", ended.stderr);
    assert!(ended.error().contains("File too large"), "{}", ended.stderr);
    let records = job.records();
    assert!(!records.is_empty() && records.len() < 24, "{}", records.len());
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), undisturbed(24, &fields));
}

#[test]
fn folder_in_use_is_refused() {
    // More than the first run can finish while the second starts.
    let job = Job::new(5000).with(&["model.generation.length_params.max_length=40"]);
    let mut first = job.start_and_wait_for_lines(2);
    let second = job.run().expect_code(1);
    assert!(
        second.error().contains(&format!("is in use by another run (process {} on ", first.id())),
        "{}",
        second.stderr
    );
    first.kill().unwrap();
    wait(first);
}

#[test]
fn changed_settings_are_refused_or_started_afresh() {
    let job = Job::new(2);
    job.run().expect_code(0);
    let before = job.jsonl();
    let job = job.with(&["model.seed=7", "model.generation.sampling_params.top_k=5"]);
    let ended = job.run().expect_code(2);
    for name in
        ["`model.seed` (was 1234, now 7)", "`model.generation.sampling_params.top_k` (was null, now 5)"]
    {
        assert!(ended.error().contains(name), "{}", ended.stderr);
    }
    assert_eq!(job.jsonl(), before);
    // The kernels are no setting of a text, and decide it all the same.
    let job = job.with(&["trainer.generation.trt_llm.enable=true"]);
    let ended = job.run().expect_code(2);
    let kernels = "`trainer.generation.trt_llm.enable` (was false, now true)";
    assert!(ended.error().contains(kernels), "{}", ended.stderr);
    let mut data = std::fs::read_to_string(job.path().join("data.jsonl")).unwrap();
    data.push_str(&data.clone());
    std::fs::write(job.path().join("data.jsonl"), data).unwrap();
    assert!(job.run().expect_code(2).error().contains("`data`, "));
    let job = job.with(&["++exp_manager.resume_if_exists=false"]);
    job.run().expect_code(0);
    assert_eq!(job.records().len(), 4);
    let aside = std::fs::read_to_string(job.results().join("generations.1/generations.jsonl")).unwrap();
    assert_eq!(aside, before);
}
