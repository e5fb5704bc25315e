//! Reading single lines of a data file again.
//!
//! A plain file is read in place, and a Parquet file a row group at a time. Lines of a compressed file, or of a pipe, are
//! copied into an unnamed file in the folder for temporary files while they are read the first time.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::DataError;
use crate::parquet_in::ParquetLines;

/// Where a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineSpan {
    /// The line number, from 1.
    pub line: u64,
    /// Where its first byte is in the decompressed file.
    pub offset_bytes: u64,
    /// Its length without its end.
    pub len_bytes: usize,
}

/// Lines by their place.
#[derive(Debug)]
pub(crate) struct LineStore {
    lines: Lines,
    /// The data file, for messages.
    path: PathBuf,
    /// The data file, and what it was when it was opened; a copy cannot be changed by anybody.
    stamp: Option<(File, Stamp)>,
}

/// Where lines are.
#[derive(Debug)]
enum Lines {
    File(File),
    Parquet(ParquetLines),
}

/// Size and time of the last change.
type Stamp = (u64, Option<SystemTime>);

fn stamp(file: &File) -> io::Result<Stamp> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified().ok()))
}

impl LineStore {
    /// Lines of a file that stays where it is.
    pub(crate) fn of_file(file: File, path: &Path) -> Result<Self, DataError> {
        let stamp = Self::stamped(&file, path)?;
        Ok(Self { lines: Lines::File(file), path: path.into(), stamp: Some(stamp) })
    }

    /// Rows of a Parquet file, which stays where it is.
    pub(crate) fn of_parquet(lines: ParquetLines, file: &File, path: &Path) -> Result<Self, DataError> {
        let stamp = Self::stamped(file, path)?;
        Ok(Self { lines: Lines::Parquet(lines), path: path.into(), stamp: Some(stamp) })
    }

    fn stamped(file: &File, path: &Path) -> Result<(File, Stamp), DataError> {
        file.try_clone()
            .and_then(|file| Ok((stamp(&file)?, file)))
            .map(|(stamp, file)| (file, stamp))
            .map_err(|source| DataError::OpenDataFile { path: path.into(), source })
    }

    /// Lines of what `input` gives; the reader that comes back copies them.
    pub(crate) fn of_copy<R: Read>(input: R, path: &Path) -> Result<(Copying<R>, Self), DataError> {
        let copy = tempfile::tempfile().and_then(|file| Ok((file.try_clone()?, file)));
        let (copy, file) = copy.map_err(|source| DataError::KeepLines {
            path: path.into(),
            folder: std::env::temp_dir(),
            source,
        })?;
        let copying = Copying { input, copy: BufWriter::with_capacity(1 << 17, copy) };
        Ok((copying, Self { lines: Lines::File(file), path: path.into(), stamp: None }))
    }

    /// The bytes of one line.
    pub(crate) fn read(&self, span: LineSpan) -> Result<Vec<u8>, DataError> {
        let changed = || DataError::ChangedDataFile { path: self.path.clone(), line: span.line };
        if let Some((file, before)) = &self.stamp
            && stamp(file).ok() != Some(*before)
        {
            return Err(changed());
        }
        let mut bytes = vec![0; span.len_bytes];
        let read = match &self.lines {
            Lines::File(file) => file.read_exact_at(&mut bytes, span.offset_bytes),
            Lines::Parquet(lines) => lines.read_exact_at(&mut bytes, span.offset_bytes),
        };
        match read {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(changed()),
            Err(source) => Err(DataError::ReadDataFile { path: self.path.clone(), line: span.line, source }),
        }
    }

    /// The data file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The error for a line that has changed.
    pub(crate) fn changed(&self, line: u64) -> DataError {
        DataError::ChangedDataFile { path: self.path.clone(), line }
    }
}

/// A reader that keeps a copy of all that goes through it.
pub(crate) struct Copying<R> {
    input: R,
    copy: BufWriter<File>,
}

impl<R: Read> Read for Copying<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let num_bytes = self.input.read(bytes)?;
        let kept = match num_bytes {
            0 => self.copy.flush(),
            _ => self.copy.write_all(&bytes[..num_bytes]),
        };
        kept.map_err(|error| {
            let folder = std::env::temp_dir();
            io::Error::other(format!("its unpacked lines cannot be kept in `{}`: {error}", folder.display()))
        })?;
        Ok(num_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::jsonl::OpenedData;

    const TEXT: &[u8] = b"\xef\xbb\xbf{\"a\": 1}\r\n\n[2]\n  \n{\"b\": \"\xc3\xbc\"}";

    fn check(path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
        let OpenedData { mut reader, store, hash } = OpenedData::open(path).unwrap();
        let lines: Vec<_> = std::iter::from_fn(|| reader.next_line().unwrap()).collect();
        assert_eq!(lines.len(), 5);
        for raw in lines.iter().rev() {
            let span =
                LineSpan { line: raw.line, offset_bytes: raw.offset_bytes, len_bytes: raw.bytes.len() };
            assert_eq!(store.read(span).unwrap(), raw.bytes, "line {}", raw.line);
        }
        assert_eq!(hash.finish().unwrap(), blake3::hash(bytes).to_hex().as_str());
    }

    #[test]
    fn lines_of_every_kind_of_file_come_back() {
        let folder = tempfile::tempdir().unwrap();
        check(&folder.path().join("a.jsonl"), TEXT);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(TEXT).unwrap();
        check(&folder.path().join("a.jsonl.gz"), &gzip.finish().unwrap());
        check(&folder.path().join("a.jsonl.zst"), &zstd::encode_all(TEXT, 1).unwrap());
        // An empty member, where a decompressor may stop.
        let packed = [zstd::encode_all(TEXT, 1).unwrap(), zstd::encode_all(&b""[..], 1).unwrap()].concat();
        check(&folder.path().join("b.jsonl.zst"), &packed);
    }

    #[test]
    fn a_file_that_changes_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{}\n{}\n").unwrap();
        let store = LineStore::of_file(File::open(&path).unwrap(), &path).unwrap();
        let span = LineSpan { line: 2, offset_bytes: 3, len_bytes: 2 };
        assert_eq!(store.read(span).unwrap(), b"{}");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        let message = store.read(span).unwrap_err().to_string();
        let message = message.replace(&path.display().to_string(), "a.jsonl");
        insta::assert_snapshot!(message, @"data file `a.jsonl` was changed while the run used it: line 2 is not what it was; put the file back and run the same command again");
    }
}
