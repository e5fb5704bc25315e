//! Lines of a JSONL file, plain, gzip or zstd, streamed in chunks and parsed in parallel.
//!
//! Line numbers count from 1. Blank lines at the end are no records; a blank line before a record is a bad one. Binary
//! and memory-mapped datasets are refused by name. `record` parses a record, and `line_store`
//! reads a line again.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::DataError;
use crate::file_hash::FileHash;
use crate::json::{Json, JsonObject};
use crate::line_store::{LineSpan, LineStore};
use crate::parquet_in::{ParquetLines, is_parquet};
use crate::record_error::RecordError;

const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";
/// Raw bytes held at once. A single line may be longer.
const CHUNK_BYTES: usize = 8 << 20;
const REFUSED_EXTENSIONS: [&str; 3] = [".bin", ".idx", ".npy"];

/// A line of the file, without its line break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawLine {
    /// The line number, from 1.
    pub line: u64,
    /// Where its first byte is in the decompressed file.
    pub offset_bytes: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A reader of lines that may be records.
pub struct JsonlReader {
    input: Box<dyn BufRead + Send>,
    path: PathBuf,
    line: u64,
    // Where the next line begins.
    offset_bytes: u64,
    // Blank lines seen that are bad records only if another record follows.
    pending_blank: u64,
    // The line that ended a run of blank lines, to be given out after them.
    held: Option<(u64, Vec<u8>)>,
}

impl JsonlReader {
    /// Opens a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file.
    ///
    /// # Errors
    /// When the file is of another kind or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Ok(OpenedData::open(path)?.reader)
    }
}

/// A data file whose lines are read once in order, and again one by one.
pub(crate) struct OpenedData {
    pub(crate) reader: JsonlReader,
    /// Where the lines are read again from, once the reader has passed them.
    pub(crate) store: LineStore,
    /// Of the bytes that the reader has read.
    pub(crate) hash: FileHash,
}

impl OpenedData {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if let Some(extension) = REFUSED_EXTENSIONS.into_iter().find(|extension| name.ends_with(extension)) {
            return Err(DataError::UnsupportedDataFile { path: path.into(), extension });
        }
        let open_error = |source| DataError::OpenDataFile { path: path.into(), source };
        let file = File::open(path).map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        if metadata.is_dir() {
            return Err(open_error(std::io::ErrorKind::IsADirectory.into()));
        }
        let hash = FileHash::new(file.try_clone().map_err(open_error)?);
        let hashed = hash.try_clone().map_err(open_error)?;
        if metadata.is_file() && is_parquet(&name, &file) {
            // Handles that are cloned share their place, and the hash is taken from the start.
            let lines = ParquetLines::open(File::open(path).map_err(open_error)?, path)?;
            let reader = JsonlReader::new(Box::new(lines.reader()), path);
            return Ok(Self { reader, store: LineStore::of_parquet(lines, &file, path)?, hash });
        }
        let copied: Box<dyn Read + Send> = if name.ends_with(".gz") {
            Box::new(flate2::read::MultiGzDecoder::new(hashed))
        } else if name.ends_with(".zst") {
            Box::new(zstd::stream::read::Decoder::new(hashed).map_err(open_error)?)
        } else if metadata.is_file() {
            let store = LineStore::of_file(file, path)?;
            return Ok(Self { reader: JsonlReader::new(Box::new(hashed), path), store, hash });
        } else {
            // What comes out of a pipe cannot be read twice either.
            Box::new(hashed)
        };
        let (copying, store) = LineStore::of_copy(copied, path)?;
        Ok(Self { reader: JsonlReader::new(Box::new(copying), path), store, hash })
    }
}

impl JsonlReader {
    fn new(input: Box<dyn Read + Send>, path: &Path) -> Self {
        let input = Box::new(BufReader::with_capacity(1 << 17, input));
        Self { input, path: path.into(), line: 0, offset_bytes: 0, pending_blank: 0, held: None }
    }

    /// The next line that counts.
    ///
    /// # Errors
    /// When the file cannot be read on, for instance because its compression is damaged.
    pub fn next_line(&mut self) -> Result<Option<RawLine>, DataError> {
        loop {
            if let Some((offset_bytes, bytes)) = self.held.take() {
                if self.pending_blank == 0 {
                    return Ok(Some(RawLine { line: self.line, offset_bytes, bytes }));
                }
                let line = self.line - self.pending_blank;
                self.pending_blank -= 1;
                self.held = Some((offset_bytes, bytes));
                return Ok(Some(RawLine { line, offset_bytes, bytes: Vec::new() }));
            }
            let mut bytes = Vec::new();
            let read = self.input.read_until(b'\n', &mut bytes);
            let num_bytes = read.map_err(|source| DataError::ReadDataFile {
                path: self.path.clone(),
                line: self.line,
                source,
            })?;
            if num_bytes == 0 {
                return Ok(None);
            }
            self.line += 1;
            let mut start_bytes = self.offset_bytes;
            self.offset_bytes += num_bytes as u64;
            while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                bytes.pop();
            }
            if self.line == 1 && bytes.starts_with(UTF8_BOM) {
                bytes.drain(..UTF8_BOM.len());
                start_bytes += UTF8_BOM.len() as u64;
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                self.pending_blank += 1;
            } else {
                self.held = Some((start_bytes, bytes));
            }
        }
    }

    /// Parses every line in parallel, a bounded chunk at a time, and hands the results on in the order of the file.
    ///
    /// # Errors
    /// When the file cannot be read, or `consume` fails.
    pub fn for_each<T: Send>(
        mut self,
        parse: impl Fn(u64, Result<JsonObject, RecordError>) -> T + Sync,
        mut consume: impl FnMut(LineSpan, T) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        loop {
            let mut chunk = Vec::new();
            let mut chunk_bytes = 0;
            while chunk_bytes < CHUNK_BYTES {
                let Some(line) = self.next_line()? else { break };
                chunk_bytes += line.bytes.len() + size_of::<RawLine>();
                chunk.push(line);
            }
            if chunk.is_empty() {
                return Ok(());
            }
            let span = |raw: &RawLine| LineSpan {
                line: raw.line,
                offset_bytes: raw.offset_bytes,
                len_bytes: raw.bytes.len(),
            };
            let parsed: Vec<(LineSpan, T)> = chunk
                .into_par_iter()
                .map(|raw| (span(&raw), parse(raw.line, parse_object(&raw.bytes))))
                .collect();
            for (span, value) in parsed {
                consume(span, value)?;
            }
        }
    }
}

/// Parses one line as a JSON object.
///
/// # Errors
/// When it is blank, not UTF-8, not JSON or not an object; columns count bytes from 1.
pub fn parse_object(bytes: &[u8]) -> Result<JsonObject, RecordError> {
    if bytes.is_empty() {
        return Err(RecordError::Blank);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| RecordError::InvalidUtf8 { column: error.valid_up_to() + 1 })?;
    match Json::parse(text) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(other) => Err(RecordError::NotAnObject { found: other.kind() }),
        Err(error) => Err(RecordError::InvalidJson { column: error.column, reason: error.reason }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(name: &str, bytes: &[u8]) -> Vec<(u64, String)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut reader = JsonlReader::open(&path).unwrap();
        std::iter::from_fn(|| reader.next_line().unwrap())
            .map(|raw| (raw.line, String::from_utf8(raw.bytes).unwrap()))
            .collect()
    }

    #[test]
    fn blank_lines_count_only_between_records() {
        let expected = [(1, "{}"), (2, ""), (3, ""), (4, "[1]")].map(|(line, text)| (line, text.to_owned()));
        assert_eq!(lines("a.jsonl", b"\xef\xbb\xbf{}\r\n\n  \n[1]\n\n \n"), expected);
        assert_eq!(lines("a.jsonl", b"\n\n"), []);
        assert_eq!(lines("a.jsonl", b""), []);
        assert_eq!(lines("a.jsonl", b"{}"), [(1, "{}".to_owned())]);
    }

    #[test]
    fn reads_gzip_of_several_members_and_zstd() {
        let member = |text: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let gzip = [member(b"{}\n{"), member(b"}\n")].concat();
        assert_eq!(lines("a.jsonl.gz", &gzip).len(), 2);
        let zstd = zstd::encode_all(&b"{}\n{}\n{}"[..], 1).unwrap();
        assert_eq!(lines("a.jsonl.zst", &zstd).len(), 3);
    }

    #[test]
    fn a_damaged_archive_names_the_last_whole_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl.gz");
        std::fs::write(&path, b"\x1f\x8b\x08\0").unwrap();
        let error = JsonlReader::open(&path).unwrap().next_line().unwrap_err();
        assert!(matches!(error, DataError::ReadDataFile { line: 0, .. }), "{error:?}");
        let said = error.to_string();
        insta::assert_snapshot!(said.replace(&path.display().to_string(), "a.jsonl.gz"), @"cannot read the data file `a.jsonl.gz` after line 0: it is damaged or cut off");
    }

    #[test]
    fn refuses_binary_datasets_by_name() {
        for name in ["x.bin", "x.IDX", "x.jsonl.npy"] {
            let error = JsonlReader::open(Path::new(name)).err().unwrap();
            assert!(matches!(error, DataError::UnsupportedDataFile { .. }), "{error:?}");
        }
        let error = JsonlReader::open(Path::new("data_text_document.bin")).err().unwrap();
        insta::assert_snapshot!(error, @"data file `data_text_document.bin` is not JSONL: `.bin` datasets are not supported, give a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file in SFT format");
    }

    #[test]
    fn bad_lines_say_where() {
        let reason = |bytes: &[u8]| parse_object(bytes).unwrap_err().to_string();
        insta::assert_snapshot!(reason(b"{\"a\": \xff}"), @"not UTF-8 at column 7");
        insta::assert_snapshot!(reason(b"{\"a\": }"), @"not JSON at column 7: expected a value, found `}`");
        insta::assert_snapshot!(reason(b"{\"a\": nan}"), @"not JSON at column 7: expected a value, found `nan`");
        insta::assert_snapshot!(reason(b"[1]"), @"the line is a list, not an object");
        insta::assert_snapshot!(reason(b""), @"the line is blank");
    }

    #[test]
    fn order_is_kept_across_threads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        let text: String = (0..5000).map(|i| format!("{{\"i\": {i}}}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let mut seen = Vec::new();
        let reader = JsonlReader::open(&path).unwrap();
        reader
            .for_each(
                |_, record| record.unwrap()["i"].to_string().parse::<u64>().unwrap(),
                |span, i| {
                    seen.push((span.line, i));
                    Ok(())
                },
            )
            .unwrap();
        assert!(seen.len() == 5000 && seen.iter().all(|&(line, i)| line == i + 1));
    }
}
