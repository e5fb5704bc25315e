//! The file operations of the output folder, one method a system call or two, so that tests can stop between any two.
//!
//! Rules of durability: POSIX. What is written is safe after the file is synced; a new name or a renamed one after its
//! folder is.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::OutputError;
use super::lock::FolderLock;

/// Where an output folder lies.
pub(crate) trait Disk: Clone + Debug + Send {
    type File: Debug + Send;
    type Lock: Debug + Send;

    /// Creates a folder and those above it that are missing, all of them durable.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Takes the lock on a folder.
    fn lock(&self, folder: &Path) -> Result<Self::Lock, OutputError>;
    fn exists(&self, path: &Path) -> bool;
    /// A file's bytes from an offset on; `None` when there is no such file.
    fn reader(&self, path: &Path, from_bytes: u64) -> io::Result<Option<Box<dyn Read>>>;
    /// Opens a file for writing, which is created if it is missing.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    fn len_bytes(&self, file: &Self::File) -> io::Result<u64>;
    fn write_all_at(&self, file: &Self::File, bytes: &[u8], offset_bytes: u64) -> io::Result<()>;
    fn set_len(&self, file: &Self::File, len_bytes: u64) -> io::Result<()>;
    /// Makes a file's bytes durable.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, folder: &Path) -> io::Result<()>;
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    type File = File;
    type Lock = FolderLock;

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
            .collect();
        std::fs::create_dir_all(path)?;
        // From the top down: a folder whose name is lost takes all below it along.
        missing.iter().rev().filter_map(|folder| folder.parent()).try_for_each(|parent| self.sync_dir(parent))
    }

    fn lock(&self, folder: &Path) -> Result<FolderLock, OutputError> {
        FolderLock::acquire(folder)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn reader(&self, path: &Path, from_bytes: u64) -> io::Result<Option<Box<dyn Read>>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        file.seek(SeekFrom::Start(from_bytes))?;
        Ok(Some(Box::new(file)))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).open(path)
    }

    fn len_bytes(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn write_all_at(&self, file: &File, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset_bytes)
    }

    fn set_len(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        file.set_len(len_bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        // The parent of a relative path of one part is written as nothing.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        match File::open(folder)?.sync_all() {
            // Some network file systems have no such call for folders: names are durable there at once, or never.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::debug!("the file system of `{}` does not sync folders", folder.display());
                Ok(())
            }
            synced => synced,
        }
    }
}

/// Replaces `folder/name` so that a reader sees the old or the new file, never a mixture, even after the power went.
pub(crate) fn replace<D: Disk>(disk: &D, folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    // One name, so that killed runs leave one file at most behind.
    let unfinished = folder.join(format!(".{name}.tmp"));
    let file = disk.open(&unfinished)?;
    disk.set_len(&file, 0)?;
    disk.write_all_at(&file, bytes, 0)?;
    disk.sync(&file)?;
    disk.rename(&unfinished, &folder.join(name))?;
    disk.sync_dir(folder)
}
