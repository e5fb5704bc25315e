//! Faults around a run that is otherwise right: clocks, folders, damaged files of an earlier run, little memory.
//!
//! Faults between the single operations of a commit are tested beside the writer, in
//! `crates/aligner-gen/src/output/faults.rs`.

use std::fs::File;
use std::time::{Duration, SystemTime};

use crate::support::{Job, run, tidy, wait};

fn interrupted(job: &Job, num_lines: usize) {
    let mut child = job.start_and_wait_for_lines(num_lines);
    child.kill().unwrap();
    wait(child);
}

fn undisturbed(num_samples: usize) -> String {
    let job = Job::new(num_samples);
    job.run().expect_code(0);
    job.jsonl()
}

#[test]
fn clocks_may_jump_between_runs() {
    let job = Job::new(8);
    interrupted(&job, 2);
    let now = SystemTime::now();
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    let times = [SystemTime::UNIX_EPOCH, now.checked_add(century).unwrap()];
    for (name, time) in
        ["data.jsonl", "results/generations/manifest.json", "results/generations/generations.jsonl"]
            .into_iter()
            .zip([times[1], times[0], times[1]])
    {
        File::options().write(true).open(job.path().join(name)).unwrap().set_modified(time).unwrap();
    }
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), undisturbed(8));
}

#[test]
fn a_folder_that_cannot_be_written_is_told_at_the_start() {
    let job = Job::new(2);
    std::fs::write(job.path().join("file"), "").unwrap();
    for (log_dir, words) in [
        (job.path().join("file/results"), "Not a directory"),
        // No user may create a folder there.
        ("/proc/aligner-gen-results".into(), "No such file or directory"),
    ] {
        let ended = run(job.command().arg(format!("exp_manager.explicit_log_dir={}", log_dir.display())));
        let ended = ended.expect_code(1);
        let expect = format!("error: cannot create `{}/generations`: {words}", log_dir.display());
        assert!(ended.error().starts_with(&expect), "{}", ended.stderr);
        assert!(!ended.stderr.contains("loaded in"), "{}", ended.stderr);
    }
}

/// A full disk is in `interruption.rs`. A device in the place of the file would be read for ever.
#[test]
fn what_is_no_file_is_refused() {
    let job = Job::new(1);
    std::fs::create_dir_all(job.jsonl_path().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/zero", job.jsonl_path()).unwrap();
    let ended = job.run().expect_code(1);
    insta::assert_snapshot!(tidy(&job, &ended.error()), @"error: cannot open `[JOB]/results/generations/generations.jsonl`: it is not a regular file");
}

#[test]
fn a_missing_manifest_is_told_and_the_file_goes_on() {
    let job = Job::new(8);
    interrupted(&job, 2);
    std::fs::remove_file(job.results().join("generations/manifest.json")).unwrap();
    let ended = job.run().expect_code(0);
    assert!(ended.stderr.contains("has no manifest: it is continued after step "), "{}", ended.stderr);
    assert_eq!(job.jsonl(), undisturbed(8));
}

#[test]
fn a_damaged_manifest_is_told() {
    let job = Job::new(4);
    job.run().expect_code(0);
    let before = job.jsonl();
    let path = job.results().join("generations/manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let error = |text: &str| {
        std::fs::write(&path, text).unwrap();
        tidy(&job, &job.run().expect_code(1).error())
    };
    insta::assert_snapshot!(error(&text[..40]), @"error: `[JOB]/results/generations/manifest.json` is damaged or not a manifest of this program (EOF while parsing a string at line 3 column 8); remove it to continue after the last whole step of `generations.jsonl` without a check of the settings, or start afresh with `++exp_manager.resume_if_exists=false`");
    insta::assert_snapshot!(error(&text.replace("\"step\": 2", "\"step\": 1")), @"error: `[JOB]/results/generations/manifest.json` is damaged or not a manifest of this program (its checksum does not fit); remove it to continue after the last whole step of `generations.jsonl` without a check of the settings, or start afresh with `++exp_manager.resume_if_exists=false`");
    assert_eq!(job.jsonl(), before);
    std::fs::remove_file(&path).unwrap();
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), before);
}

#[test]
fn a_file_that_lost_committed_lines_is_refused() {
    let job = Job::new(4);
    job.run().expect_code(0);
    let whole = job.jsonl();
    let last_line = whole.trim_end().rfind('\n').unwrap() + 1;
    std::fs::write(job.jsonl_path(), &whole[..last_line]).unwrap();
    assert!(job.run().expect_code(1).error().contains("were committed: it was changed by something else"));
    // As long as before, and another file.
    let other = whole.replace("\"step\": 2", "\"step\": 7");
    std::fs::write(job.jsonl_path(), &other).unwrap();
    assert!(job.run().expect_code(1).error().contains("has no line of step 2 or before that ends at byte"));
    assert_eq!(job.jsonl(), other, "a refused run changes nothing");
}

/// That less memory makes fewer sequences run at once, with the same texts, is tested in `crates/engine/tests`.
#[test]
fn a_sequence_that_no_memory_holds_is_refused_before_the_weights_are_read() {
    let job = Job::new(1).with(&[
        "++model.encoder_seq_length=2000000000",
        "model.generation.length_params.max_length=1000000000",
    ]);
    let ended = job.run().expect_code(5);
    let error = ended.error();
    assert!(error.starts_with("error: the model needs "), "{error}");
    for part in ["for weights, ", "for intermediate results and at least ", " of memory are available"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!job.results().exists(), "nothing may be written");
}
