//! A Weights & Biases run without a connection: `<save_dir>/wandb/offline-run-<time>-<id>/run-<id>.wandb`, which
//! `wandb sync` sends on.
//!
//! Layout and records are those of wandb 0.31 in offline mode; times in names are UTC.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prost::Message;
use serde_json::Value;

use super::framing::LevelDbLog;
use super::wandb_proto::{
    ConfigRecord, EnvironmentRecord, HeaderRecord, HistoryRecord, HistoryStep, Item, Record, RecordType,
    RunExitRecord, RunRecord, SummaryRecord, Timestamp, VersionInfo,
};
use super::{MetricsLogger, RunFacts, Scalar, seconds_since_1970};
use crate::config::exp_manager::{WandbPlan, date_and_time};
use crate::node_json::to_json;

/// An open offline run.
#[derive(Debug)]
pub(super) struct OfflineRun<W> {
    log: LevelDbLog<W>,
    num_records: i64,
    started: SystemTime,
    folder: PathBuf,
}

/// What a run is called, and where it is.
#[derive(Clone, Copy)]
pub(super) struct RunPlace<'a> {
    pub(super) id: &'a str,
    pub(super) folder: &'a Path,
}

impl OfflineRun<File> {
    pub(super) const NAME: &'static str = "Weights & Biases";

    /// Creates the run's folder and file and writes what is known at the start.
    pub(super) fn create(plan: &WandbPlan, facts: &RunFacts<'_>) -> io::Result<Self> {
        let id = plan.id.clone().unwrap_or_else(|| random_id(facts));
        let parent = plan.save_dir.as_deref().unwrap_or(facts.log_dir).join("wandb");
        let name = format!("offline-run-{}-{id}", date_and_time(facts.started));
        let folder = parent.join(&name);
        std::fs::create_dir_all(folder.join("files"))?;
        link_latest(&parent, &name)?;
        let file = File::create_new(folder.join(format!("run-{id}.wandb")))?;
        Self::start(file, plan, facts, RunPlace { id: &id, folder: &folder })
    }
}

impl<W: Write> OfflineRun<W> {
    /// Writes what is known at the start.
    pub(super) fn start(
        out: W,
        plan: &WandbPlan,
        facts: &RunFacts<'_>,
        place: RunPlace<'_>,
    ) -> io::Result<Self> {
        let mut run = Self {
            log: LevelDbLog::start(out)?,
            num_records: 0,
            started: facts.started,
            folder: place.folder.to_owned(),
        };
        run.append(RecordType::Header(HeaderRecord {
            version_info: Some(VersionInfo {
                producer: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
                min_consumer: "0.70.0".to_owned(),
            }),
        }))?;
        run.append(RecordType::Run(run_record(plan, facts, place.id)))?;
        run.append(RecordType::Environment(environment(facts, place)))?;
        Ok(run)
    }

    fn append(&mut self, record: RecordType) -> io::Result<()> {
        self.num_records += 1;
        let record = Record { num: self.num_records, record_type: Some(record) };
        self.log.append(&record.encode_to_vec())
    }

    fn runtime(&self, at: SystemTime) -> Duration {
        at.duration_since(self.started).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn into_inner(self) -> W {
        self.log.into_inner()
    }
}

impl<W: Write> MetricsLogger for OfflineRun<W> {
    fn name(&self) -> &'static str {
        OfflineRun::NAME
    }

    fn log(&mut self, step: u64, at: SystemTime, scalars: &[Scalar]) -> io::Result<()> {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        let own = [
            ("_timestamp", Value::from(seconds_since_1970(at))),
            ("_runtime", Value::from(self.runtime(at).as_secs_f64())),
            ("_step", Value::from(step)),
        ];
        let scalars = scalars.iter().map(|&(name, value)| (name, Value::from(value)));
        let items: Vec<Item> = scalars
            .chain(own)
            .map(|(name, value)| Item {
                nested_key: vec![name.to_owned()],
                value_json: value.to_string(),
                ..Item::default()
            })
            .collect();
        self.append(RecordType::Summary(SummaryRecord { update: items.clone() }))?;
        self.append(RecordType::History(HistoryRecord { item: items, step: Some(HistoryStep { num: step }) }))
    }

    fn finish(&mut self, exit_code: u8, at: SystemTime) -> io::Result<Option<String>> {
        let runtime = i32::try_from(self.runtime(at).as_secs()).unwrap_or(i32::MAX);
        self.append(RecordType::Exit(RunExitRecord { exit_code: exit_code.into(), runtime }))?;
        let folder = hydra_config::shell_word(&self.folder.display().to_string());
        Ok(Some(format!("the Weights & Biases run is kept offline; send it with `wandb sync {folder}`")))
    }
}

fn run_record(plan: &WandbPlan, facts: &RunFacts<'_>, run_id: &str) -> RunRecord {
    let of_run = |(key, value): (&String, Value)| Item {
        key: key.clone(),
        value_json: value.to_string(),
        ..Item::default()
    };
    let sections = facts.config.as_map().into_iter().flatten().map(|(key, node)| (key, to_json(node)));
    RunRecord {
        run_id: run_id.to_owned(),
        entity: plan.entity.clone().unwrap_or_default(),
        project: plan.project.clone().unwrap_or_default(),
        config: Some(ConfigRecord { update: sections.map(of_run).collect() }),
        run_group: plan.group.clone().unwrap_or_default(),
        job_type: plan.job_type.clone().unwrap_or_default(),
        display_name: plan.name.clone().unwrap_or_default(),
        notes: plan.notes.clone().unwrap_or_default(),
        tags: plan.tags.clone(),
        host: facts.machine.host.clone(),
        start_time: Some(timestamp(facts.started)),
    }
}

fn environment(facts: &RunFacts<'_>, place: RunPlace<'_>) -> EnvironmentRecord {
    EnvironmentRecord {
        os: facts.machine.os.clone(),
        started_at: Some(timestamp(facts.started)),
        args: facts.command_line.iter().skip(1).cloned().collect(),
        program: facts.command_line.first().cloned().unwrap_or_default(),
        root: place.folder.display().to_string(),
        host: facts.machine.host.clone(),
        cpu_count_logical: facts.machine.num_cpus,
        writer_id: place.id.to_owned(),
    }
}

/// Points `latest-run` at this run, as the `wandb` package does.
fn link_latest(parent: &Path, name: &str) -> io::Result<()> {
    let link = parent.join("latest-run");
    match std::fs::remove_file(&link) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    std::os::unix::fs::symlink(name, link)
}

/// Eight digits and small letters, as wandb makes them: different for any two runs that could meet.
fn random_id(facts: &RunFacts<'_>) -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let nanos = facts.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let hash = blake3::hash(format!("{} {} {nanos}", facts.machine.host, std::process::id()).as_bytes());
    hash.as_bytes()
        .iter()
        .take(8)
        .map(|&byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()]))
        .collect()
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}
