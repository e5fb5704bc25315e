//! Opening an output folder: fresh, continued, continued without a manifest, or moved aside.
//!
//! Results are continued only where the manifest and the file agree with each other and with this run's settings.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{Disk, RealDisk};
use super::identity::IdentityError;
use super::legacy::scan_legacy;
use super::{Identity, Manifest, OutputError};

pub(super) const JSONL: &str = "generations.jsonl";
/// What came out of the pipe, in the log folder or beside results that were moved aside.
pub(crate) const SPOOL: &str = "stdin.jsonl";
const PARTIAL: &str = "generations.partial";
/// A line with its responses is rarely longer.
const TAIL_BYTES: u64 = 1 << 16;

/// What to do with results that are already there (`exp_manager.resume_if_exists`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExistingOutput {
    Continue,
    MoveAside,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResumePoint {
    /// Bytes of `generations.jsonl` that hold whole, synced steps.
    pub(crate) committed_bytes: u64,
    /// The last committed step; 0 before the first.
    pub(crate) step: u64,
    /// Samples in committed steps.
    pub(crate) consumed_samples: u64,
}

/// A locked output folder, cut back to its last committed step.
#[derive(Debug)]
pub(crate) struct OutputFolder<D: Disk = RealDisk> {
    pub(crate) path: PathBuf,
    pub(crate) resume: ResumePoint,
    pub(super) disk: D,
    _lock: D::Lock,
}

impl OutputFolder<RealDisk> {
    pub(crate) const JSONL: &'static str = JSONL;

    /// Opens `<log_dir>/generations` for a run with this identity.
    pub(crate) fn open(
        log_dir: &Path,
        identity: &Identity,
        existing: ExistingOutput,
    ) -> Result<Self, OutputError> {
        Self::open_on(RealDisk, log_dir, identity, existing)
    }
}

impl<D: Disk> OutputFolder<D> {
    /// The same on another disk.
    pub(super) fn open_on(
        disk: D,
        log_dir: &Path,
        identity: &Identity,
        existing: ExistingOutput,
    ) -> Result<Self, OutputError> {
        let path = log_dir.join("generations");
        disk.create_dir_all(&path).map_err(OutputError::io("create", &path))?;
        let mut lock = disk.lock(&path)?;
        if existing == ExistingOutput::MoveAside && disk.exists(&path.join(JSONL)) {
            move_aside(&disk, log_dir, &path)?;
            disk.create_dir_all(&path).map_err(OutputError::io("create", &path))?;
            lock = disk.lock(&path)?;
        }
        let resume = find_resume_point(&disk, &path, identity)?;
        cut_back(&disk, &path, resume.committed_bytes)?;
        Ok(Self { path, resume, disk, _lock: lock })
    }
}

fn move_aside<D: Disk>(disk: &D, log_dir: &Path, path: &Path) -> Result<(), OutputError> {
    let free = (1_u32..).map(|n| path.with_extension(n.to_string())).find(|target| !disk.exists(target));
    let target = free.unwrap_or_else(|| path.with_extension("old"));
    // What a pipe gave for these results stays theirs: they are continued with it.
    let spool = log_dir.join(SPOOL);
    if disk.exists(&spool) {
        disk.rename(&spool, &path.join(SPOOL)).map_err(OutputError::io("move aside", &spool))?;
    }
    disk.rename(path, &target)
        .and_then(|()| disk.sync_dir(log_dir))
        .map_err(OutputError::io("move aside", path))?;
    tracing::info!("moved the earlier results to `{}`", target.display());
    Ok(())
}

fn find_resume_point<D: Disk>(
    disk: &D,
    folder: &Path,
    identity: &Identity,
) -> Result<ResumePoint, OutputError> {
    let jsonl = folder.join(JSONL);
    let Some(manifest) = Manifest::read_on(disk, folder)? else {
        let found = disk.reader(&jsonl, 0).map_err(OutputError::io("open", &jsonl))?;
        return found
            .map_or(Ok(ResumePoint::default()), |reader| scan_legacy(&jsonl, BufReader::new(reader)));
    };
    let recorded = Identity::read(&manifest.identity).map_err(|error| match error {
        IdentityError::Version { found } => OutputError::OtherVersion {
            folder: folder.to_owned(),
            program_version: manifest.program_version.clone(),
            found,
        },
        IdentityError::Unreadable { .. } => {
            OutputError::BadManifest { path: folder.join(Manifest::FILE_NAME), reason: error.to_string() }
        }
    })?;
    let changes = recorded.changes(identity);
    if !changes.is_empty() {
        return Err(OutputError::Changed { folder: folder.to_owned(), changes });
    }
    check_committed(disk, &jsonl, manifest.committed)?;
    Ok(manifest.committed)
}

/// The committed bytes are there, and end with a whole line of the last committed step or an earlier one.
fn check_committed<D: Disk>(disk: &D, jsonl: &Path, committed: ResumePoint) -> Result<(), OutputError> {
    let committed_bytes = committed.committed_bytes;
    let mut tail_bytes = TAIL_BYTES;
    loop {
        let from = committed_bytes.saturating_sub(tail_bytes);
        let mut tail = Vec::new();
        if let Some(reader) = disk.reader(jsonl, from).map_err(OutputError::io("open", jsonl))? {
            let mut reader = reader.take(committed_bytes - from);
            reader.read_to_end(&mut tail).map_err(OutputError::io("read", jsonl))?;
        }
        if (tail.len() as u64) < committed_bytes - from {
            let actual_bytes = from + tail.len() as u64;
            return Err(OutputError::TooShort { path: jsonl.to_owned(), actual_bytes, committed_bytes });
        }
        let Some(lines) = tail.strip_suffix(b"\n") else {
            // Nothing is committed yet, or what is does not end where a line does.
            return if tail.is_empty() { Ok(()) } else { Err(disagrees(jsonl, committed)) };
        };
        let last_line = lines.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
        if last_line.len() == lines.len() && from > 0 {
            tail_bytes *= 4;
            continue;
        }
        // A step whose samples were all left out has no line: then the last line is of a step before.
        let is_earlier = |line: LinePosition| {
            line.step <= committed.step && line.consumed_samples <= committed.consumed_samples
        };
        return match LinePosition::read(last_line) {
            Ok(line) if is_earlier(line) => Ok(()),
            _ => Err(disagrees(jsonl, committed)),
        };
    }
}

fn disagrees(jsonl: &Path, committed: ResumePoint) -> OutputError {
    let ResumePoint { committed_bytes, step, .. } = committed;
    OutputError::Disagrees { path: jsonl.to_owned(), committed_bytes, step }
}

/// Where a line of the output stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinePosition {
    pub(super) step: u64,
    pub(super) consumed_samples: u64,
}

impl LinePosition {
    /// Reads a line with the reader of the input: metadata may hold what only Python takes for JSON, such as `NaN`.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let object = data::parse_object(line).map_err(|error| error.to_string())?;
        let number = |key: &str| match object.get(key) {
            Some(data::Json::Number(text)) => text.parse().map_err(|_| format!("`{key}` is {text}")),
            Some(other) => Err(format!("`{key}` is {other}")),
            None => Err(format!("it has no `{key}`")),
        };
        Ok(Self { step: number("step")?, consumed_samples: number("consumed_samples")? })
    }
}

/// Moves what lies behind the committed bytes into `generations.partial`.
fn cut_back<D: Disk>(disk: &D, folder: &Path, committed_bytes: u64) -> Result<(), OutputError> {
    let path = folder.join(JSONL);
    if !disk.exists(&path) {
        return Ok(());
    }
    let file = disk.open(&path).map_err(OutputError::io("open", &path))?;
    let actual_bytes = disk.len_bytes(&file).map_err(OutputError::io("read", &path))?;
    if actual_bytes <= committed_bytes {
        return Ok(());
    }
    let partial = folder.join(PARTIAL);
    if let Err(error) = keep_tail(disk, &path, committed_bytes, &partial) {
        // The tail is generated again, byte for byte: losing the copy must not stop the run.
        tracing::warn!("cannot keep the unfinished step in `{}`: {error}", partial.display());
    }
    disk.set_len(&file, committed_bytes)
        .and_then(|()| disk.sync(&file))
        .map_err(OutputError::io("cut", &path))?;
    tracing::info!(
        "cut {} bytes of an unfinished step from `{}`; they are kept in `{}`",
        actual_bytes - committed_bytes,
        path.display(),
        partial.display()
    );
    Ok(())
}

fn keep_tail<D: Disk>(disk: &D, jsonl: &Path, from_bytes: u64, partial: &Path) -> std::io::Result<()> {
    let Some(mut reader) = disk.reader(jsonl, from_bytes)? else { return Ok(()) };
    let mut tail = Vec::new();
    reader.read_to_end(&mut tail)?;
    let kept = disk.open(partial)?;
    disk.write_all_at(&kept, &tail, disk.len_bytes(&kept)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::identity::tests::identity;
    use super::*;

    struct Setup {
        log_dir: tempfile::TempDir,
    }

    impl Setup {
        fn new(jsonl: &str, committed: Option<(u64, u64, u64)>) -> Self {
            let log_dir = tempfile::tempdir().unwrap();
            let folder = log_dir.path().join("generations");
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(OutputFolder::JSONL), jsonl).unwrap();
            if let Some((step, consumed_samples, committed_bytes)) = committed {
                let manifest = Manifest {
                    program_version: "0.1.0".to_owned(),
                    committed: ResumePoint { committed_bytes, step, consumed_samples },
                    num_samples: 9,
                    identity: identity(1, "a").record().unwrap(),
                    config: json!({}),
                };
                manifest.write_on(&RealDisk, &folder).unwrap();
            }
            Self { log_dir }
        }

        fn open(&self, seed: u64) -> Result<ResumePoint, OutputError> {
            OutputFolder::open(self.log_dir.path(), &identity(seed, "a"), ExistingOutput::Continue)
                .map(|folder| folder.resume)
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.log_dir.path().join("generations").join(name)).unwrap()
        }
    }

    fn line(step: u64, consumed: u64) -> String {
        format!(
            "{{\"step\": {step}, \"consumed_samples\": {consumed}, \"prompt\": \"\", \"responses\": []}}\n"
        )
    }

    #[test]
    fn fresh_folder_starts_at_zero() {
        let log_dir = tempfile::tempdir().unwrap();
        let folder = OutputFolder::open(log_dir.path(), &identity(1, "a"), ExistingOutput::Continue).unwrap();
        assert_eq!(folder.resume, ResumePoint::default());
    }

    #[test]
    fn torn_tail_is_cut_back_and_kept() {
        let committed = line(1, 2) + &line(1, 2);
        let committed_bytes = committed.len() as u64;
        let setup = Setup::new(&(committed.clone() + "{\"step\": 2"), Some((1, 2, committed_bytes)));
        assert_eq!(setup.open(1).unwrap(), ResumePoint { step: 1, consumed_samples: 2, committed_bytes });
        assert_eq!(setup.read("generations.jsonl"), committed);
        assert_eq!(setup.read("generations.partial"), "{\"step\": 2");
    }

    #[test]
    fn changed_settings_are_refused_by_name() {
        let setup = Setup::new("0123", Some((1, 2, 4)));
        let message = setup.open(2).unwrap_err().to_string();
        assert!(message.contains("changed: `model.seed` (was 1, now 2);"), "{message}");
    }

    /// A manifest with this identity, of a run that has committed a step.
    fn begun_with(identity: serde_json::Value) -> Setup {
        let setup = Setup::new(&line(1, 2), None);
        let manifest = Manifest {
            program_version: "0.1.0".to_owned(),
            committed: ResumePoint { committed_bytes: line(1, 2).len() as u64, step: 1, consumed_samples: 2 },
            num_samples: 9,
            identity,
            config: json!({}),
        };
        manifest.write_on(&RealDisk, &setup.log_dir.path().join("generations")).unwrap();
        setup
    }

    #[test]
    fn runs_of_other_versions_are_refused_by_name() {
        let first = json!({"data fingerprint": "a", "model.seed": 1, "trainer.precision": "Bf16"});
        let setup = begun_with(first);
        let message = setup.open(1).unwrap_err().to_string();
        let message = message.replace(&setup.log_dir.path().display().to_string(), "/results");
        insta::assert_snapshot!(message, @"`/results/generations` was begun by another version of this program (0.1.0, identity version 1), which recorded what decides the texts in another way than this one (identity version 2), so it cannot be continued: finish it with that version, use another `exp_manager.explicit_log_dir`, or start afresh with `++exp_manager.resume_if_exists=false`");
        assert_eq!(setup.read("generations.jsonl"), line(1, 2));
        let later = begun_with(json!({"version": 3, "everything": {}})).open(1).unwrap_err();
        assert!(matches!(later, OutputError::OtherVersion { found: 3, .. }), "{later}");
        let mut unknown = identity(1, "a").record().unwrap();
        unknown["compute"]["new"] = json!(1);
        let unknown = begun_with(unknown).open(1).unwrap_err();
        assert!(matches!(unknown, OutputError::BadManifest { .. }), "{unknown}");
    }

    #[test]
    fn kernels_and_device_are_compared() {
        let setup = begun_with(identity(1, "a").record().unwrap());
        let mut other = identity(1, "a");
        other.compute.device = "gpu sm_90".to_owned();
        other.compute.fused = true;
        let opened = OutputFolder::open(setup.log_dir.path(), &other, ExistingOutput::Continue);
        let message = opened.unwrap_err().to_string();
        let expect = "changed: `device` (was \"\", now \"gpu sm_90\"), `trainer.generation.trt_llm.enable` (was false, now true);";
        assert!(message.contains(expect), "{message}");
    }

    #[test]
    fn lost_lines_are_refused() {
        let setup = Setup::new("01", Some((1, 2, 4)));
        assert!(matches!(
            setup.open(1),
            Err(OutputError::TooShort { actual_bytes: 2, committed_bytes: 4, .. })
        ));
    }

    #[test]
    fn a_manifest_of_another_file_is_refused() {
        let check = |jsonl: &str, step: u64, committed_bytes: u64| {
            let error = Setup::new(jsonl, Some((step, 2 * step, committed_bytes))).open(1).unwrap_err();
            assert!(matches!(error, OutputError::Disagrees { .. }), "{error}");
        };
        let lines = line(1, 2) + &line(1, 2);
        check(&lines, 1, lines.len() as u64 - 1);
        check("not a line\n", 1, 11);
        check(&(lines.clone() + &line(2, 4)), 1, (lines.len() + line(2, 4).len()) as u64);
        // A line longer than what is read at once.
        let long = line(1, 2).replace("\"prompt\": \"", &format!("\"prompt\": \"{}", "x".repeat(300_000)));
        let both = line(1, 2) + &long;
        let setup = Setup::new(&both, Some((1, 2, both.len() as u64)));
        assert_eq!(setup.open(1).unwrap().consumed_samples, 2);
    }

    #[test]
    fn legacy_files_continue() {
        let check = |jsonl: String, expect: (u64, u64)| {
            let setup = Setup::new(&jsonl, None);
            let resume = setup.open(1).unwrap();
            assert_eq!((resume.step, resume.consumed_samples), expect, "{jsonl}");
            assert_eq!(setup.read("generations.jsonl").len() as u64, resume.committed_bytes);
        };
        check(String::new(), (0, 0));
        check(line(1, 2) + &line(1, 2), (1, 2));
        check(line(1, 2) + &line(1, 2) + &line(2, 4), (1, 2));
        check(line(1, 2) + &line(1, 2) + &line(2, 4) + &line(2, 4) + "{\"step\": 3, \"con", (2, 4));
        check(line(1, 2), (0, 0));
        let with_nan =
            |text: String| text.replace("\"responses\"", "\"metadata\": {\"reward\": NaN}, \"responses\"");
        check(with_nan(line(1, 2) + &line(1, 2) + &line(2, 4)), (1, 2));
        let setup = Setup::new("[]\n", None);
        assert!(matches!(setup.open(1), Err(OutputError::BadLegacyLine { line: 1, .. })));
        for unordered in
            [line(1, 2) + &line(1, 3), line(2, 2) + &line(1, 4), line(1, 0), line(1, 2) + &line(2, 2)]
        {
            let setup = Setup::new(&unordered, None);
            assert!(matches!(setup.open(1), Err(OutputError::UnorderedLegacyLine { .. })), "{unordered}");
        }
    }

    #[test]
    fn moving_aside_keeps_the_old_results() {
        let setup = Setup::new("0123", Some((1, 2, 4)));
        for n in 1..3 {
            let folder =
                OutputFolder::open(setup.log_dir.path(), &identity(2, "a"), ExistingOutput::MoveAside)
                    .unwrap();
            assert_eq!(folder.resume, ResumePoint::default());
            assert!(setup.log_dir.path().join(format!("generations.{n}/generations.jsonl")).exists());
            // What a pipe gave goes along.
            let moved = setup.log_dir.path().join(format!("generations.{n}")).join(SPOOL);
            assert_eq!(moved.exists(), n == 2);
            assert!(!setup.log_dir.path().join(SPOOL).exists());
            std::fs::write(setup.log_dir.path().join(SPOOL), "{}").unwrap();
            std::fs::write(folder.path.join(OutputFolder::JSONL), "x").unwrap();
        }
    }
}
