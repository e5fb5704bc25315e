//! What `exp_manager` leaves in the log folder, and the next run's first look at it.

use std::path::Path;

use crate::support::Job;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // Only where the tests are run from a clone.
        .filter(|name| name != "git-info.log")
        .collect();
    names.sort();
    names
}

/// Names with what differs from run to run taken out.
fn plain_names(folder: &Path) -> Vec<String> {
    names(folder)
        .into_iter()
        .map(|name| if name.starts_with("events.out.tfevents.") { "events".to_owned() } else { name })
        .collect()
}

#[test]
fn a_run_logs_and_makes_room_for_itself() {
    let job = Job::new(4).with(&[
        "exp_manager.create_wandb_logger=true",
        "++exp_manager.wandb_logger_kwargs.id=first",
        "exp_manager.resume_if_exists=false",
    ]);
    let copied = job.path().join("notes.txt");
    std::fs::write(&copied, "x").unwrap();
    let copy = format!("exp_manager.files_to_copy=['{}']", copied.display());
    let job = job.with(&[copy.as_str()]);
    let ended = job.run().expect_code(0);
    let results = job.results();
    let files = [
        "cmd-args.log",
        "events",
        "generations",
        "nemo_error_log.txt",
        "nemo_log_globalrank-0_localrank-0.txt",
        "notes.txt",
        "summary.json",
        "wandb",
    ];
    assert_eq!(plain_names(&results), files);
    let run = std::fs::canonicalize(results.join("wandb/latest-run")).unwrap();
    assert_eq!(names(&run), ["files", "run-first.wandb"]);
    let hint = format!("send it with `wandb sync {}`", results.join("wandb").display());
    assert!(ended.stderr.contains(hint.trim_end_matches('`')), "{}", ended.stderr);
    // The log begins before the folder is known, and the configuration's own words are in it.
    let log = std::fs::read_to_string(results.join("nemo_log_globalrank-0_localrank-0.txt")).unwrap();
    assert!(log.contains("first prompt") && log.contains("results are in"), "{log}");
    // Two steps: the file begins with its version and the configuration.
    let events = names(&results).into_iter().find(|name| name.starts_with("events.out.tfevents.")).unwrap();
    assert_eq!(num_events(&std::fs::read(results.join(&events)).unwrap()), 4);

    // The next run moves the files of the first, not the folders.
    let job = job.with(&["++exp_manager.wandb_logger_kwargs.id=second"]);
    job.run().expect_code(0);
    let is_folder = |name: &&str| ["generations", "wandb"].contains(name);
    let moved: Vec<&str> = files.into_iter().filter(|name| !is_folder(name)).collect();
    assert_eq!(plain_names(&results.join("run_0")), moved);
    let mut now = [&files[..], &["generations.1", "run_0"]].concat();
    now.sort_unstable();
    assert_eq!(plain_names(&results), now);
    let run = std::fs::canonicalize(results.join("wandb/latest-run")).unwrap();
    assert_eq!(names(&run), ["files", "run-second.wandb"]);
}

/// How many records a TFRecord file has; the lengths must add up.
fn num_events(mut bytes: &[u8]) -> usize {
    let mut num_events = 0;
    while !bytes.is_empty() {
        let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        bytes = &bytes[16 + length..];
        num_events += 1;
    }
    num_events
}

#[test]
fn without_an_explicit_folder_it_is_made_of_the_names() {
    let job = Job::new(2);
    let exp_dir = format!("exp_manager.exp_dir={}", job.path().join("experiments").display());
    let job = job.with(&[
        "exp_manager.explicit_log_dir=null",
        &exp_dir,
        "exp_manager.name=mine",
        "exp_manager.create_tensorboard_logger=false",
    ]);
    job.run().expect_code(0);
    let folder = job.path().join("experiments/mine");
    assert!(folder.join("generations/generations.jsonl").is_file());
    assert!(!plain_names(&folder).contains(&"events".to_owned()));
}

#[test]
fn a_refused_run_leaves_the_folder_as_it_is() {
    let job = Job::new(2);
    job.run().expect_code(0);
    let before = names(&job.results());
    let job = job.with(&["model.seed=9"]);
    job.run().expect_code(2);
    assert_eq!(names(&job.results()), before);
    let job = job.with(&["exp_manager.resume_if_exists=false", "exp_manager.files_to_copy=[/nowhere/x]"]);
    let error = job.run().expect_code(2).error();
    assert!(error.contains("`exp_manager.files_to_copy` names `/nowhere/x`"), "{error}");
}
