//! Opening an output folder: fresh, continued, continued without a manifest, or moved aside.
//!
//! A file without a manifest is one that the original software wrote: its last step
//! counts only when as many lines are there as `consumed_samples` says.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::lock::FolderLock;
use super::{Identity, Manifest, OutputError};

/// What to do with results that are already there (`exp_manager.resume_if_exists`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExistingOutput {
    Continue,
    MoveAside,
}

/// How far an earlier run came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResumePoint {
    /// The last committed step.
    pub(crate) step: u64,
    /// Samples in committed steps.
    pub(crate) consumed_samples: u64,
    /// Bytes of whole steps.
    pub(crate) committed_bytes: u64,
}

/// A locked output folder, cut back to its last committed step.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    pub(crate) path: PathBuf,
    pub(crate) resume: ResumePoint,
    pub(crate) _lock: FolderLock,
}

impl OutputFolder {
    pub(crate) const JSONL: &'static str = "generations.jsonl";
    const PARTIAL: &'static str = "generations.partial";

    /// Opens `<log_dir>/generations` for a run with this identity.
    pub(crate) fn open(
        log_dir: &Path,
        identity: &Identity,
        existing: ExistingOutput,
    ) -> Result<Self, OutputError> {
        let path = log_dir.join("generations");
        std::fs::create_dir_all(&path).map_err(OutputError::io("create", &path))?;
        let mut lock = FolderLock::acquire(&path)?;
        if existing == ExistingOutput::MoveAside && path.join(Self::JSONL).exists() {
            move_aside(&path)?;
            std::fs::create_dir_all(&path).map_err(OutputError::io("create", &path))?;
            lock = FolderLock::acquire(&path)?;
        }
        let resume = find_resume_point(&path, identity)?;
        cut_back(&path, resume.committed_bytes)?;
        Ok(Self { path, resume, _lock: lock })
    }
}

fn move_aside(path: &Path) -> Result<(), OutputError> {
    let free = (1_u32..).map(|n| path.with_extension(n.to_string())).find(|candidate| !candidate.exists());
    let target = free.unwrap_or_else(|| path.with_extension("old"));
    std::fs::rename(path, &target).map_err(OutputError::io("move aside", path))?;
    tracing::info!("moved the earlier results to `{}`", target.display());
    Ok(())
}

fn find_resume_point(folder: &Path, identity: &Identity) -> Result<ResumePoint, OutputError> {
    let jsonl = folder.join(OutputFolder::JSONL);
    let Some(manifest) = Manifest::read(folder)? else {
        return if jsonl.exists() { scan_legacy(&jsonl) } else { Ok(ResumePoint::default()) };
    };
    let changes = manifest.identity.changes(identity);
    if !changes.is_empty() {
        return Err(OutputError::Changed { folder: folder.to_owned(), changes });
    }
    let actual_bytes = match std::fs::metadata(&jsonl) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(OutputError::io("read", &jsonl)(error)),
    };
    if actual_bytes < manifest.committed_bytes {
        return Err(OutputError::TooShort {
            path: jsonl,
            actual_bytes,
            committed_bytes: manifest.committed_bytes,
        });
    }
    Ok(ResumePoint {
        step: manifest.step,
        consumed_samples: manifest.consumed_samples,
        committed_bytes: manifest.committed_bytes,
    })
}

#[derive(Deserialize)]
struct LegacyLine {
    step: u64,
    consumed_samples: u64,
}

/// Finds the last step that is complete. Within a step all lines carry the count at the step's end, so a step is
/// complete when it has as many lines as the count grew by.
fn scan_legacy(jsonl: &Path) -> Result<ResumePoint, OutputError> {
    let file = File::open(jsonl).map_err(OutputError::io("open", jsonl))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let (mut line_number, mut offset_bytes) = (0_u64, 0_u64);
    // The step being read, and everything before it.
    let mut current = ResumePoint::default();
    let mut num_lines_in_step = 0_u64;
    let mut before = ResumePoint::default();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(OutputError::io("read", jsonl))?;
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        line_number += 1;
        let record: LegacyLine = serde_json::from_slice(&line).map_err(|source| {
            OutputError::BadLegacyLine { path: jsonl.to_owned(), line: line_number, source }
        })?;
        if record.step != current.step {
            before = current;
            num_lines_in_step = 0;
        }
        offset_bytes += read as u64;
        num_lines_in_step += 1;
        current = ResumePoint {
            step: record.step,
            consumed_samples: record.consumed_samples,
            committed_bytes: offset_bytes,
        };
    }
    let complete = before.consumed_samples + num_lines_in_step == current.consumed_samples;
    Ok(if complete { current } else { before })
}

/// Moves what lies behind the committed bytes into `generations.partial`.
fn cut_back(folder: &Path, committed_bytes: u64) -> Result<(), OutputError> {
    let path = folder.join(OutputFolder::JSONL);
    let mut file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OutputError::io("open", &path)(error)),
    };
    let actual_bytes = file.metadata().map_err(OutputError::io("read", &path))?.len();
    if actual_bytes <= committed_bytes {
        return Ok(());
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(committed_bytes))
        .and_then(|_| file.read_to_end(&mut tail))
        .map_err(OutputError::io("read", &path))?;
    let partial = folder.join(OutputFolder::PARTIAL);
    let saved = File::options()
        .create(true)
        .append(true)
        .open(&partial)
        .and_then(|mut partial_file| partial_file.write_all(&tail));
    if let Err(error) = saved {
        // The tail is generated again, letter by letter: losing the copy must not stop the run.
        tracing::warn!("cannot keep the unfinished step in `{}`: {error}", partial.display());
    }
    file.set_len(committed_bytes).and_then(|()| file.sync_all()).map_err(OutputError::io("cut", &path))?;
    tracing::info!(
        "cut {} bytes of an unfinished step from `{}`; they are kept in `{}`",
        actual_bytes - committed_bytes,
        path.display(),
        partial.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::manifest::tests::identity;
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
                    program_version: String::new(),
                    committed_bytes,
                    step,
                    consumed_samples,
                    num_samples: 9,
                    identity: identity(1, "a"),
                    config: json!({}),
                };
                manifest.write(&folder).unwrap();
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
        let setup = Setup::new("0123456789", Some((1, 2, 4)));
        assert_eq!(setup.open(1).unwrap(), ResumePoint { step: 1, consumed_samples: 2, committed_bytes: 4 });
        assert_eq!(setup.read("generations.jsonl"), "0123");
        assert_eq!(setup.read("generations.partial"), "456789");
    }

    #[test]
    fn changed_settings_are_refused_by_name() {
        let setup = Setup::new("0123", Some((1, 2, 4)));
        let message = setup.open(2).unwrap_err().to_string();
        assert!(message.contains("changed: `model.seed` (was 1, now 2);"), "{message}");
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
        let setup = Setup::new("[]\n", None);
        assert!(matches!(setup.open(1), Err(OutputError::BadLegacyLine { line: 1, .. })));
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
            std::fs::write(folder.path.join(OutputFolder::JSONL), "x").unwrap();
        }
    }
}
