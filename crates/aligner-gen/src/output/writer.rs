//! The sink that writes `generations.jsonl`: a step is one write, synced, and then committed by the manifest.

use super::disk::{Disk, RealDisk};
use super::resume::JSONL;
use super::{CompletedStep, GenerationSink, LineLayout, Manifest, OutputError, OutputFolder, ResumePoint};

/// The file, its manifest and the lock on the folder.
#[derive(Debug)]
pub(crate) struct JsonlSink<D: Disk = RealDisk> {
    folder: OutputFolder<D>,
    file: D::File,
    manifest: Manifest,
    layout: LineLayout,
}

impl<D: Disk> JsonlSink<D> {
    /// Opens the file behind its last committed byte and writes the first manifest.
    pub(crate) fn open(
        folder: OutputFolder<D>,
        mut manifest: Manifest,
        layout: LineLayout,
    ) -> Result<Self, OutputError> {
        let path = folder.path.join(JSONL);
        let file = folder.disk.open(&path).map_err(OutputError::io("open", &path))?;
        manifest.committed = folder.resume;
        // The name of the new file becomes durable with that of the manifest.
        manifest
            .write_on(&folder.disk, &folder.path)
            .map_err(OutputError::io("write the manifest in", &folder.path))?;
        Ok(Self { folder, file, manifest, layout })
    }

    /// Samples that are safe on disk.
    pub(crate) fn consumed_samples(&self) -> u64 {
        self.manifest.committed.consumed_samples
    }

    /// Makes a step's lines durable, behind what is committed; nobody counts them before the manifest does.
    fn append(&self, bytes: &[u8], committed_bytes: u64) -> std::io::Result<()> {
        let OutputFolder { disk, .. } = &self.folder;
        let appended =
            disk.write_all_at(&self.file, bytes, committed_bytes).and_then(|()| disk.sync(&self.file));
        if appended.is_err() {
            // The next start would cut the torn step anyway; doing it here leaves a clean file to look at.
            let _ = disk.set_len(&self.file, committed_bytes);
        }
        appended
    }
}

impl<D: Disk> GenerationSink for JsonlSink<D> {
    fn commit(&mut self, step: &CompletedStep) -> Result<(), OutputError> {
        let bytes = step.to_lines(&self.layout)?;
        let before = self.manifest.committed;
        let written = self.append(&bytes, before.committed_bytes).and_then(|()| {
            self.manifest.committed = ResumePoint {
                committed_bytes: before.committed_bytes + bytes.len() as u64,
                step: step.step,
                consumed_samples: step.consumed_samples,
            };
            // After a failure to write it the lines stay: the new one may be on disk and count them already.
            self.manifest.write_on(&self.folder.disk, &self.folder.path)
        });
        written.map_err(|source| {
            self.manifest.committed = before;
            OutputError::Write {
                step: step.step,
                committed_samples: before.consumed_samples,
                path: self.folder.path.join(JSONL),
                source,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::ExistingOutput;
    use super::super::identity::tests::identity;
    use super::super::record::tests::sample;
    use super::*;

    fn open(log_dir: &std::path::Path) -> JsonlSink {
        let identity = identity(1, "a");
        let folder = OutputFolder::open(log_dir, &identity, ExistingOutput::Continue).unwrap();
        let manifest = Manifest {
            program_version: String::new(),
            committed: ResumePoint::default(),
            num_samples: 2,
            identity: identity.record().unwrap(),
            config: json!({}),
        };
        JsonlSink::open(folder, manifest, LineLayout::Fields(Vec::new())).unwrap()
    }

    #[test]
    fn steps_survive_reopening() {
        let log_dir = tempfile::tempdir().unwrap();
        let step = |n| CompletedStep { step: n, consumed_samples: n, samples: vec![sample(n - 1)] };
        let mut sink = open(log_dir.path());
        sink.commit(&step(1)).unwrap();
        drop(sink);
        let mut sink = open(log_dir.path());
        assert_eq!(sink.folder.resume.step, 1);
        assert_eq!(sink.consumed_samples(), 1);
        sink.commit(&step(2)).unwrap();
        drop(sink);
        let bytes = std::fs::read(log_dir.path().join("generations/generations.jsonl")).unwrap();
        let expect = [step(1).to_jsonl(&[]).unwrap(), step(2).to_jsonl(&[]).unwrap()].concat();
        assert_eq!(bytes, expect);
        let resume = open(log_dir.path()).folder.resume;
        assert_eq!(
            resume,
            ResumePoint { step: 2, consumed_samples: 2, committed_bytes: expect.len() as u64 }
        );
    }
}
