//! A file whose bytes go to the disk while more are written, so that little is left to wait for at the end.
//!
//! Left alone, the system collects some gigabytes in memory before it starts.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Enough for the disk to be busy for a while.
const SYNC_EVERY_BYTES: u64 = 256 << 20;

/// A file under construction.
pub(super) struct EagerFile {
    file: File,
    unsynced_bytes: u64,
    requests: SyncSender<()>,
    worker: JoinHandle<io::Result<()>>,
}

impl EagerFile {
    /// Writes to `file` from where it stands.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let synced = file.try_clone()?;
        let (requests, received) = sync_channel(1);
        let worker = std::thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || received.into_iter().try_for_each(|()| synced.sync_data()))?;
        Ok(Self { file, unsynced_bytes: 0, requests, worker })
    }

    /// Waits until everything is on disk. An error of an earlier sync is reported here: the system tells it only once.
    pub(super) fn finish(self) -> io::Result<()> {
        drop(self.requests);
        self.worker.join().map_err(|_panic| io::Error::other("the thread that syncs has died"))??;
        self.file.sync_all()
    }
}

impl Write for EagerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written_bytes = self.file.write(bytes)?;
        self.unsynced_bytes += written_bytes as u64;
        if self.unsynced_bytes >= SYNC_EVERY_BYTES {
            match self.requests.try_send(()) {
                // A worker that has ended has failed; `finish` says why.
                Ok(()) | Err(TrySendError::Disconnected(())) => self.unsynced_bytes = 0,
                Err(TrySendError::Full(())) => {}
            }
        }
        Ok(written_bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_order_and_synced() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut eager = EagerFile::new(file.reopen().unwrap()).unwrap();
        eager.unsynced_bytes = SYNC_EVERY_BYTES - 1;
        eager.write_all(b"abc").unwrap();
        assert_eq!(eager.unsynced_bytes, 0);
        eager.write_all(b"def").unwrap();
        eager.finish().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"abcdef");
    }
}
