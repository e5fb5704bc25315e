//! The numbers, and the files byte for byte.

use super::wandb::RunPlace;
use super::*;
use crate::config::exp_manager::{TensorBoardPlan, WandbPlan};

#[test]
fn speed_is_that_of_the_last_half_minute() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let mut speed = Speed::start(start);
    assert_eq!(speed.after(start, 0), 0.0);
    assert_eq!(speed.after(at(10), 50), 5.0);
    assert_eq!(speed.after(at(20), 200), 10.0);
    // From the count at 10 s on: what came before is more than half a minute ago.
    assert_eq!(speed.after(at(40), 350), 10.0);
    assert_eq!(speed.after(at(100), 350), 0.0);
}

#[test]
fn memory_is_what_linux_says() {
    let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t      16 kB\n";
    let expect = ProcessMemory { resident_bytes: 16 << 10, peak_resident_bytes: 2 << 20 };
    assert_eq!(ProcessMemory::parse(status), Some(expect));
    assert_eq!(ProcessMemory::parse("VmRSS:\tx kB\n"), None);
    assert!(ProcessMemory::now().is_some_and(|memory| memory.resident_bytes > 1 << 20));
}

#[test]
fn no_response_is_no_division_by_zero() {
    let scalars = scalars(&StepCounts::default(), 0.0, None);
    assert!(scalars.iter().all(|&(_, value)| value == 0.0), "{scalars:?}");
}

/// Fails from its second call on.
struct Failing(u32);

impl MetricsLogger for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn log(&mut self, _: u64, _: SystemTime, _: &[Scalar]) -> io::Result<()> {
        self.0 += 1;
        if self.0 > 1 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn finish(&mut self, _: u8, _: SystemTime) -> io::Result<Option<String>> {
        Ok(None)
    }
}

#[test]
fn a_logger_that_fails_is_left_out() {
    let mut metrics = Metrics { loggers: vec![Box::new(Failing(0))], speed: Speed::start(Instant::now()) };
    metrics.step(&StepCounts::default());
    assert_eq!(metrics.loggers.len(), 1);
    metrics.step(&StepCounts::default());
    assert!(metrics.loggers.is_empty());
    metrics.step(&StepCounts::default());
}

const COMMAND_LINE: [&str; 2] = ["/usr/bin/aligner-gen", "model.seed=7"];

/// A run that is always the same: what it writes is checked byte for byte, and TensorBoard's and wandb's own readers have
/// read those bytes (`tests/fixtures/metrics/read_metrics.py`, with what they found beside it).
fn golden_run(check: impl FnOnce(&RunFacts<'_>, &[(u64, SystemTime, Vec<Scalar>)])) {
    let yaml = "model:\n  seed: 7\n  data:\n    file: a.jsonl\ntrainer:\n  devices: 1\n  logger: false\n  limit: 0.5\n  time: null\n\
                end_strings: [</s>, ü]\n";
    let config = hydra_config::yaml::parse(yaml, "test").unwrap();
    let started = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_645_601_500);
    let command_line = COMMAND_LINE.map(str::to_owned);
    let facts = RunFacts {
        log_dir: Path::new("/results"),
        command_line: &command_line,
        config: &config,
        machine: Machine { host: "node1".to_owned(), os: "Linux-6.1-x86_64".to_owned(), num_cpus: 8 },
        started,
    };
    let memory = ProcessMemory { resident_bytes: 3 << 30, peak_resident_bytes: 4 << 30 };
    let step = |n: u64| {
        let counts = StepCounts {
            step: n,
            consumed_samples: 32 * n,
            responses: 64 * n,
            output_tokens: 1000 * n,
            finish_reasons: FinishReasons { eos: 60 * n, end_string: 3 * n, length: n, error: 0 },
        };
        (n, started + Duration::from_millis(2_500 * n), scalars(&counts, 400.0 + n as f64, Some(memory)))
    };
    check(&facts, &[step(1), step(2), step(3)]);
}

fn assert_golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/metrics").join(name);
    let golden = std::fs::read(&path).unwrap_or_default();
    if golden != bytes {
        let new = std::env::temp_dir().join(name);
        std::fs::write(&new, bytes).unwrap();
        panic!("`{}` differs from `{}`: see read_metrics.py there", new.display(), path.display());
    }
}

#[test]
fn event_file_is_the_one_that_tensorboard_read() {
    golden_run(|facts, steps| {
        let mut file = EventFile::start(Vec::new(), facts).unwrap();
        for (step, at, scalars) in steps {
            file.log(*step, *at, scalars).unwrap();
        }
        assert_eq!(file.finish(0, facts.started).unwrap(), None);
        let bytes = file.into_inner();
        // The version, the configuration, and the steps.
        assert_eq!(framing::tests::read_tf_records(&bytes).len(), 2 + steps.len());
        assert_golden("events.out.tfevents.1795645601.node1.7.0", &bytes);
    });
}

#[test]
fn offline_run_is_the_one_that_wandb_read() {
    golden_run(|facts, steps| {
        let plan = WandbPlan {
            project: Some("p".to_owned()),
            name: Some("n".to_owned()),
            tags: vec!["a".to_owned(), "b".to_owned()],
            ..WandbPlan::default()
        };
        let folder = Path::new("/results/wandb/offline-run-20261125_222641-ab12cd34");
        let mut run =
            OfflineRun::start(Vec::new(), &plan, facts, RunPlace { id: "ab12cd34", folder }).unwrap();
        for (step, at, scalars) in steps {
            run.log(*step, *at, scalars).unwrap();
        }
        let hint = run.finish(130, facts.started + Duration::from_secs(10)).unwrap().unwrap();
        assert!(hint.ends_with("`wandb sync /results/wandb/offline-run-20261125_222641-ab12cd34`"), "{hint}");
        let bytes = run.into_inner();
        // The header, the run, its environment, two records a step, and the end.
        assert_eq!(framing::tests::read_level_db_log(&bytes).len(), 3 + 2 * steps.len() + 1);
        assert_golden("run-ab12cd34.wandb", &bytes);
    });
}

#[test]
fn files_are_named_as_the_originals_name_them() {
    let folder = tempfile::tempdir().unwrap();
    golden_run(|facts, _| {
        let facts = RunFacts { log_dir: folder.path(), machine: facts.machine.clone(), ..*facts };
        let suffix = TensorBoardPlan { filename_suffix: ".x".to_owned() };
        EventFile::create(&suffix, &facts).unwrap();
        let name = format!("events.out.tfevents.1795645601.node1.{}.0.x", std::process::id());
        assert!(folder.path().join(name).is_file());
        for id in ["one", "two"] {
            let plan = WandbPlan { id: Some(id.to_owned()), ..WandbPlan::default() };
            OfflineRun::create(&plan, &facts).unwrap();
            let run = folder.path().join(format!("wandb/offline-run-20261125_222641-{id}"));
            assert!(run.join(format!("run-{id}.wandb")).is_file() && run.join("files").is_dir());
            assert_eq!(
                std::fs::canonicalize(folder.path().join("wandb/latest-run")).unwrap(),
                run.canonicalize().unwrap()
            );
        }
        OfflineRun::create(
            &WandbPlan { save_dir: Some(folder.path().join("w")), ..WandbPlan::default() },
            &facts,
        )
        .unwrap();
        assert!(folder.path().join("w/wandb/latest-run").is_dir());
    });
}
