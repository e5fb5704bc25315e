//! One run per output folder: an advisory lock that the system releases even after `kill -9`.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::OutputError;

/// Held for as long as the run may write.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock of `folder`, or says who has it.
    pub(crate) fn acquire(folder: &Path) -> Result<Self, OutputError> {
        let path = folder.join(".lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(OutputError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder's note is only for the message: without it the error stands all the same.
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "process unknown".to_owned() } else { holder };
                return Err(OutputError::InUse {
                    folder: folder.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(OutputError::Io { action: "lock", path, source });
            }
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // A full disk must not keep a finished run from being recognised: the note is a courtesy.
        let _ = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "process {} on {host}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let held = FolderLock::acquire(folder.path()).unwrap();
        let message = FolderLock::acquire(folder.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("process {} on ", std::process::id())), "{message}");
        drop(held);
        FolderLock::acquire(folder.path()).unwrap();
    }
}
