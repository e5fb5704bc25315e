//! Faults of the output in a job of three ranks: rank 0 writes for all of them, and all of them end with it.
//!
//! Killed, stopped and late ranks are in `ranks.rs`; the same faults with one rank in `faults.rs` and `interruption.rs`.

use crate::support::{Job, run, wait};

fn job(num_samples: usize, num_ranks: usize) -> Job {
    Job::new(num_samples)
        .with(&["model.global_batch_size=6", "model.data.train_ds.drop_last=false"])
        .with(&[&format!("trainer.devices={num_ranks}")])
}

fn undisturbed(num_samples: usize, overrides: &[&str]) -> String {
    let job = job(num_samples, 1).with(overrides);
    job.run().expect_code(0);
    job.jsonl()
}

/// A job of three ranks that was killed when so many lines were written; its ranks die with it.
fn interrupted(num_samples: usize, num_lines: usize) -> Job {
    let job = job(num_samples, 3);
    let mut child = job.start_and_wait_for_lines(num_lines);
    child.kill().unwrap();
    // Ends when all of them are gone, for each holds the other end of its output.
    wait(child);
    job
}

fn goes_on(job: &Job, num_samples: usize) {
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), undisturbed(num_samples, &[]));
}

#[test]
fn a_torn_line_is_repaired() {
    let job = interrupted(48, 6);
    let torn = job.jsonl() + "{\"step\": 9, \"consumed_sam";
    std::fs::write(job.jsonl_path(), torn).unwrap();
    goes_on(&job, 48);
    assert!(job.results().join("generations/generations.partial").exists());
}

#[test]
fn a_missing_manifest_is_told_and_the_file_goes_on() {
    let job = interrupted(48, 6);
    std::fs::remove_file(job.results().join("generations/manifest.json")).unwrap();
    let ended = job.run().expect_code(0);
    assert!(ended.stderr.contains("has no manifest: it is continued after step "), "{}", ended.stderr);
    assert_eq!(job.jsonl(), undisturbed(48, &[]));
}

#[test]
fn a_damaged_manifest_and_lost_lines_are_refused_and_nothing_is_changed() {
    let job = job(12, 3);
    job.run().expect_code(0);
    let (whole, manifest_path) = (job.jsonl(), job.results().join("generations/manifest.json"));
    let manifest = std::fs::read(&manifest_path).unwrap();
    std::fs::write(&manifest_path, &manifest[..40]).unwrap();
    let ended = job.run().expect_code(1);
    assert!(ended.error().contains("is damaged or not a manifest of this program"), "{}", ended.stderr);
    assert_eq!(job.jsonl(), whole);
    std::fs::write(&manifest_path, &manifest).unwrap();
    let last_line = whole.trim_end().rfind('\n').unwrap() + 1;
    std::fs::write(job.jsonl_path(), &whole[..last_line]).unwrap();
    let ended = job.run().expect_code(1);
    assert!(ended.error().contains("were committed: it was changed by something else"), "{}", ended.stderr);
    assert_eq!(job.jsonl(), whole[..last_line]);
}

/// What rank 0 refuses the others only hear of, and may end before it.
#[test]
fn a_job_that_is_refused_is_refused_by_rank_0() {
    let first = job(6, 1);
    first.run().expect_code(0);
    let other = first.with(&["trainer.devices=3", "model.seed=77"]);
    for _ in 0..3 {
        let ended = other.run().expect_code(2);
        assert!(
            ended.error().contains("rank 0 ended with exit code 2, so the job was ended"),
            "{}",
            ended.stderr
        );
        assert!(ended.error().contains("changed: `model.seed`"), "{}", ended.stderr);
    }
}

#[test]
fn a_full_disk_ends_all_ranks_and_is_survived() {
    let fields = ["model.generation.output_fields=[metadata]"];
    let job = job(48, 3).with(&fields);
    let ended = run(&mut job.command_with_file_limit(96)).expect_code(1);
    assert!(ended.error().contains("cannot write step "), "{}", ended.stderr);
    assert!(ended.stderr.contains("File too large"), "{}", ended.stderr);
    let records = job.records();
    assert!(
        !records.is_empty() && records.len() < 48 && records.len().is_multiple_of(6),
        "{}",
        records.len()
    );
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), undisturbed(48, &fields));
}

#[test]
fn a_folder_that_cannot_be_written_is_told_at_the_start() {
    let job = job(12, 3);
    std::fs::write(job.path().join("file"), "").unwrap();
    let log_dir = job.path().join("file/results");
    let ended = run(job.command().arg(format!("exp_manager.explicit_log_dir={}", log_dir.display())));
    let ended = ended.expect_code(1);
    for part in ["/file/results`: Not a directory", " ended with exit code 1, so the job was ended; "] {
        assert!(ended.error().contains(part), "{}", ended.stderr);
    }
}
