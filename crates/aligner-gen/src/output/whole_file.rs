//! Files that a command writes: whole or not at all, and never the one that it reads.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether both paths lead to one file, by whatever names.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// A file that gets its name when it is finished: what had the name before stays until then. Where the name is of
/// something else than a file, such as a pipe, that is written to.
#[derive(Debug)]
pub(crate) struct WholeFile {
    out: BufWriter<File>,
    /// Where it is written, and the name that it gets.
    names: Option<(PathBuf, PathBuf)>,
}

impl WholeFile {
    /// Begins a file.
    ///
    /// # Errors
    /// When its folder cannot be written to.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            let out = BufWriter::new(File::options().write(true).open(path)?);
            return Ok(Self { out, names: None });
        }
        // A link stays one.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        };
        let mut unfinished = OsString::from(".");
        unfinished.push(name);
        unfinished.push(".tmp");
        let unfinished = path.with_file_name(unfinished);
        let out = BufWriter::new(File::create(&unfinished)?);
        Ok(Self { out, names: Some((unfinished, path)) })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When something was not written.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        let Some((unfinished, path)) = &self.names else { return Ok(()) };
        self.out.get_ref().sync_data()?;
        fs::rename(unfinished, path)?;
        self.names = None;
        Ok(())
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some((unfinished, _)) = &self.names {
            // What failed has said so already.
            let _ = fs::remove_file(unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let mut given_up = WholeFile::create(&path).unwrap();
        given_up.write_all(b"half").unwrap();
        drop(given_up);
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(WholeFile::create(folder.path()).is_err());
        WholeFile::create(Path::new("/dev/null")).unwrap().finish().unwrap();
    }

    #[test]
    fn files_are_the_same_by_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, link, hard] = ["a", "b", "link", "hard"].map(|name| folder.path().join(name));
        fs::write(&a, "").unwrap();
        fs::write(&b, "").unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        fs::hard_link(&a, &hard).unwrap();
        assert!(is_same_file(&a, &link) && is_same_file(&link, &hard) && is_same_file(&a, &a));
        assert!(!is_same_file(&a, &b) && !is_same_file(&a, &folder.path().join("none")));
    }
}
