//! An unfinished output beside its final path, under a name that the next attempt finds again: `.NAME.partial`.
//!
//! It is locked for as long as it is written. A process that was killed leaves it behind without the lock, and the next
//! conversion to the same place starts it afresh; while another process holds it, that is an error.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::FormatError;

/// A file or folder that gets its name when it is complete, and is removed when it does not come to that.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    /// The file, or the folder for its lock.
    handle: File,
    is_complete: bool,
}

impl Partial {
    /// An empty file.
    pub(super) fn file(output: &Path) -> Result<Self, FormatError> {
        let open = |path: &Path| {
            let is_file = fs::symlink_metadata(path).map_or(true, |metadata| metadata.is_file());
            if !is_file {
                return Err(io::Error::other("it is no file; remove it"));
            }
            File::options().write(true).create(true).truncate(false).open(path)
        };
        let partial = Self::lock(output, &open)?;
        // What an earlier attempt left.
        partial.handle.set_len(0).map_err(|source| FormatError::io("write", &partial.path, source))?;
        Ok(partial)
    }

    /// An empty folder.
    pub(super) fn folder(output: &Path) -> Result<Self, FormatError> {
        let open = |path: &Path| match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ if fs::symlink_metadata(path)?.is_dir() => File::open(path),
            _ => Err(io::Error::other("it is no folder; remove it")),
        };
        let partial = Self::lock(output, &open)?;
        empty(&partial.path).map_err(|source| FormatError::io("empty", &partial.path, source))?;
        Ok(partial)
    }

    fn lock(output: &Path, open: &dyn Fn(&Path) -> io::Result<File>) -> Result<Self, FormatError> {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let path = super::parent_of(output).join(format!(".{name}.partial"));
        loop {
            let handle = open(&path).map_err(|source| FormatError::io("create", &path, source))?;
            match handle.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(FormatError::OutputInUse { path: output.to_owned() });
                }
                Err(TryLockError::Error(source)) => return Err(FormatError::io("lock", &path, source)),
            }
            // Between opening and locking its owner may have given it its final name, or removed it.
            let of_handle = handle.metadata().map_err(|source| FormatError::io("read", &path, source))?;
            let is_same = fs::symlink_metadata(&path)
                .is_ok_and(|of_path| (of_path.dev(), of_path.ino()) == (of_handle.dev(), of_handle.ino()));
            if is_same {
                return Ok(Self { path, handle, is_complete: false });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn handle(&self) -> &File {
        &self.handle
    }

    /// Gives it its final name. A file or an empty folder that is there is replaced, and so is a folder: it and the new one
    /// change places, so that at no time there is none.
    pub(super) fn persist(mut self, output: &Path) -> io::Result<()> {
        // A folder never makes room for a file: renaming is an error then.
        if self.handle.metadata()?.is_dir() && output.is_dir() {
            match renameat_with(CWD, &self.path, CWD, output, RenameFlags::EXCHANGE) {
                // What was there before is under the partial name now, and removed with it.
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.replace_folder(output)?,
                Err(error) => return Err(error.into()),
            }
        } else {
            fs::rename(&self.path, output)?;
            self.is_complete = true;
        }
        // The new name is on disk once the folder is.
        File::open(super::parent_of(output))?.sync_all()
    }
}

impl Partial {
    /// For file systems that cannot exchange two names, such as NFS.
    fn replace_folder(&mut self, output: &Path) -> io::Result<()> {
        let old = self.path.with_extension("replaced");
        fs::rename(output, &old)?;
        if let Err(error) = fs::rename(&self.path, output) {
            // Best effort: the error that is reported is the first one.
            let _ = fs::rename(&old, output);
            return Err(error);
        }
        self.is_complete = true;
        fs::remove_dir_all(&old)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_complete {
            return;
        }
        // The name is still locked, or no other process knows the exchanged name. The error to report came before.
        let _ = match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&self.path),
            _ => fs::remove_file(&self.path),
        };
    }
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_a_killed_process_left_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("a.nemo");
        fs::write(folder.path().join(".a.nemo.partial"), "half of an earlier attempt").unwrap();
        let partial = Partial::file(&output).unwrap();
        partial.handle().write_all(b"new").unwrap();
        partial.persist(&output).unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"new");

        let output = folder.path().join("hf");
        fs::create_dir_all(folder.path().join(".hf.partial/sub")).unwrap();
        fs::write(folder.path().join(".hf.partial/sub/x"), "old").unwrap();
        let partial = Partial::folder(&output).unwrap();
        fs::write(partial.path().join("new"), "").unwrap();
        partial.persist(&output).unwrap();
        let names = |path: &Path| -> Vec<_> {
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names(&output), ["new"]);
        assert_eq!(names(folder.path()).len(), 2);
    }

    #[test]
    fn a_second_writer_is_refused_and_the_first_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("a.nemo");
        let second = |make: fn(&Path) -> Result<Partial, FormatError>| {
            let first = make(&output).unwrap();
            let message = make(&output).unwrap_err().to_string();
            drop(first);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
            message.replace(&folder.path().display().to_string(), "[FOLDER]")
        };
        insta::assert_snapshot!(second(Partial::file), @"`[FOLDER]/a.nemo` is being written by another process; wait for it, stop it, or name another output");
        assert_eq!(second(Partial::folder), second(Partial::file));
    }

    #[test]
    fn a_folder_takes_the_place_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("hf");
        fs::create_dir(&output).unwrap();
        fs::write(output.join("old"), "").unwrap();
        let partial = Partial::folder(&output).unwrap();
        fs::write(partial.path().join("new"), "").unwrap();
        partial.persist(&output).unwrap();
        assert!(output.join("new").exists() && !output.join("old").exists());
        let mut partial = Partial::folder(&output).unwrap();
        fs::write(partial.path().join("newest"), "").unwrap();
        partial.replace_folder(&output).unwrap();
        assert!(output.join("newest").exists() && !output.join("new").exists());
        assert!(Partial::file(&output).unwrap().persist(&output).is_err());
        assert!(output.join("newest").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), "x").unwrap();
        std::os::unix::fs::symlink("precious", folder.path().join(".a.nemo.partial")).unwrap();
        assert!(Partial::file(&folder.path().join("a.nemo")).is_err());
        assert_eq!(fs::read(folder.path().join("precious")).unwrap(), b"x");
    }
}
