//! Parquet files as lines of JSON: every row becomes a record, column by column.
//!
//! Rows are unpacked a row group at a time into unnamed files, the latest of which stay, and are records of a JSONL file from
//! then on. What JSON has no value for, or several, is refused by the name of its column.

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use parquet::basic::Compression;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use crate::DataError;

mod row;

use row::{Refused, append_row, check};

/// What a Parquet file begins and ends with.
const MAGIC: &[u8] = b"PAR1";
/// Unpacked row groups are dropped, the oldest first, where there are more bytes of them than this, and more than
/// [`LEAST_GROUPS`]: samples are read nearly in the order of the file.
const MAX_UNPACKED_BYTES: u64 = 1 << 30;
const LEAST_GROUPS: usize = 2;

/// Whether a file is one of Parquet, whatever it is called.
pub(crate) fn is_parquet(name: &str, file: &File) -> bool {
    let mut start = [0; 4];
    name.ends_with(".parquet") || (file.read_exact_at(&mut start, 0).is_ok() && start == MAGIC)
}

/// The rows of a file as lines. Clones share what is unpacked.
#[derive(Clone)]
pub(crate) struct ParquetLines(Arc<Mutex<RowGroups>>);

impl std::fmt::Debug for ParquetLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ParquetLines")
    }
}

struct RowGroups {
    reader: SerializedFileReader<File>,
    num_groups: usize,
    /// Where the lines of each row group begin among those of all, as far as they were unpacked.
    starts: Vec<u64>,
    /// The latest used last.
    unpacked: VecDeque<Unpacked>,
    max_unpacked_bytes: u64,
}

/// A row group as lines.
struct Unpacked {
    group: usize,
    file: File,
    len_bytes: u64,
}

/// Lines in the order of the file.
pub(crate) struct ParquetReader {
    lines: ParquetLines,
    group: usize,
    offset_bytes: u64,
}

impl ParquetLines {
    /// Reads what a file says of itself. `file`: a handle that nobody else reads through.
    pub(crate) fn open(file: File, path: &Path) -> Result<Self, DataError> {
        let damaged = |source| DataError::ReadDataFile { path: path.into(), line: 0, source };
        let (reader, fields) = decode(|| {
            let reader = SerializedFileReader::new(file)?;
            let fields = reader.metadata().file_metadata().schema().get_fields().to_vec();
            Ok((reader, fields))
        })
        .map_err(damaged)?;
        for column in &fields {
            check(column, column.name()).map_err(|Refused { column, found }| DataError::ParquetColumn {
                path: path.into(),
                column,
                found,
            })?;
        }
        let mut names = HashSet::new();
        if let Some(column) = fields.iter().find(|column| !names.insert(column.name())) {
            return Err(DataError::SameParquetColumn { path: path.into(), column: column.name().to_owned() });
        }
        let row_groups = reader.metadata().row_groups().iter();
        let codec = |compression| match compression {
            Compression::LZO => Some("LZO"),
            Compression::BROTLI(_) => Some("brotli"),
            Compression::LZ4 | Compression::LZ4_RAW => Some("LZ4"),
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => {
                None
            }
        };
        if let Some(codec) =
            row_groups.flat_map(|group| group.columns()).find_map(|column| codec(column.compression()))
        {
            return Err(DataError::ParquetCodec { path: path.into(), codec });
        }
        Ok(Self(Arc::new(Mutex::new(RowGroups {
            num_groups: reader.num_row_groups(),
            reader,
            starts: vec![0],
            unpacked: VecDeque::new(),
            max_unpacked_bytes: MAX_UNPACKED_BYTES,
        }))))
    }

    /// All lines, from the first one on.
    pub(crate) fn reader(&self) -> ParquetReader {
        ParquetReader { lines: self.clone(), group: 0, offset_bytes: 0 }
    }

    /// Bytes of lines that were read before.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let mut groups = self.groups();
        // The last one that begins there or before: empty ones begin where their neighbours do.
        let group = groups.starts.partition_point(|&start| start <= offset_bytes).saturating_sub(1);
        let start = groups.starts.get(group).copied().unwrap_or(0);
        groups.unpacked(group)?.file.read_exact_at(bytes, offset_bytes - start)
    }

    fn groups(&self) -> MutexGuard<'_, RowGroups> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for ParquetReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut groups = self.lines.groups();
        while self.group < groups.num_groups {
            let num_bytes = groups.unpacked(self.group)?.file.read_at(bytes, self.offset_bytes)?;
            if num_bytes > 0 || bytes.is_empty() {
                self.offset_bytes += num_bytes as u64;
                return Ok(num_bytes);
            }
            self.group += 1;
            self.offset_bytes = 0;
        }
        Ok(0)
    }
}

impl RowGroups {
    /// A row group as lines.
    fn unpacked(&mut self, group: usize) -> io::Result<&Unpacked> {
        let unpacked = match self.unpacked.iter().position(|unpacked| unpacked.group == group) {
            Some(idx) => self.unpacked.remove(idx),
            None => None,
        };
        let unpacked = match unpacked {
            Some(unpacked) => unpacked,
            None => self.unpack(group)?,
        };
        if self.starts.len() == group + 1 {
            let start = self.starts.last().copied().unwrap_or(0);
            self.starts.push(start + unpacked.len_bytes);
        }
        self.unpacked.push_back(unpacked);
        while self.unpacked.len() > LEAST_GROUPS
            && self.unpacked.iter().map(|unpacked| unpacked.len_bytes).sum::<u64>() > self.max_unpacked_bytes
        {
            self.unpacked.pop_front();
        }
        self.unpacked.back().ok_or_else(|| io::Error::other("there is no such row group"))
    }

    fn unpack(&self, group: usize) -> io::Result<Unpacked> {
        let kept = |error: io::Error| {
            let folder = std::env::temp_dir();
            io::Error::other(format!("its unpacked rows cannot be kept in `{}`: {error}", folder.display()))
        };
        let row_group = decode(|| self.reader.get_row_group(group))?;
        check_counts(row_group.as_ref())?;
        let mut rows = decode(|| row_group.get_row_iter(None))?;
        let mut out = BufWriter::with_capacity(1 << 17, tempfile::tempfile().map_err(kept)?);
        while let Some(row) = decode(|| rows.next().transpose())? {
            append_row(&mut out, &row).map_err(kept)?;
        }
        let file = out.into_inner().map_err(|error| kept(error.into_error()))?;
        let len_bytes = file.metadata().map_err(kept)?.len();
        Ok(Unpacked { group, file, len_bytes })
    }
}

/// A row has a value in each column, or several. The decoders would go on for as many rows as a damaged number says.
fn check_counts(row_group: &dyn RowGroupReader) -> io::Result<()> {
    let metadata = row_group.metadata();
    let num_values = metadata.columns().iter().map(|column| column.num_values()).min().unwrap_or(0);
    match (0..=num_values).contains(&metadata.num_rows()) {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "a row group of {} rows has a column of {num_values} values",
            metadata.num_rows()
        ))),
    }
}

/// Runs a part of the decoders. They are written for files that are whole and panic at others, which is no more than an
/// error here: nothing is printed of it.
fn decode<T>(part: impl FnOnce() -> parquet::errors::Result<T>) -> io::Result<T> {
    thread_local!(static IS_DECODING: Cell<bool> = const { Cell::new(false) });
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_DECODING.get() {
                others(panic);
            }
        }));
    });
    IS_DECODING.set(true);
    let decoded = catch_unwind(AssertUnwindSafe(part));
    IS_DECODING.set(false);
    decoded.map_err(|_| io::Error::other("a part of it is damaged"))?.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::jsonl::OpenedData;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parquet").join(name)
    }

    fn values(lines: &str) -> Vec<serde_json::Value> {
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn rows_are_those_that_pyarrow_reads() {
        let expect = std::fs::read_to_string(fixture("rows.jsonl")).unwrap();
        for codec in ["none", "snappy", "gzip", "zstd"] {
            let path = fixture(&format!("{codec}.parquet"));
            let OpenedData { mut reader, store, hash } = OpenedData::open(&path).unwrap();
            let lines: Vec<_> = std::iter::from_fn(|| reader.next_line().unwrap()).collect();
            let text: Vec<_> =
                lines.iter().map(|line| String::from_utf8(line.bytes.clone()).unwrap()).collect();
            assert_eq!(values(&text.join("\n")), values(&expect), "{codec}");
            for raw in lines.iter().rev() {
                let (line, len_bytes) = (raw.line, raw.bytes.len());
                let span = crate::line_store::LineSpan { line, offset_bytes: raw.offset_bytes, len_bytes };
                assert_eq!(store.read(span).unwrap(), raw.bytes);
            }
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(hash.finish().unwrap(), blake3::hash(&bytes).to_hex().as_str());
        }
    }

    #[test]
    fn a_file_is_known_by_its_start_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        std::fs::copy(fixture("snappy.parquet"), &path).unwrap();
        assert_eq!(OpenedData::open(&path).unwrap().reader.next_line().unwrap().unwrap().line, 1);
    }

    #[test]
    fn what_is_no_json_is_refused_by_its_column() {
        let refused = |name: &str| {
            let Err(error) = OpenedData::open(&fixture(name)) else { panic!("{name} was read") };
            error.to_string().replace(&fixture("").display().to_string(), "")
        };
        insta::assert_snapshot!(refused("refused_decimal.parquet"), @"column `outer.inner` of `refused_decimal.parquet` holds a decimal number, which records do not: leave it out, or write it as text or numbers");
        insta::assert_snapshot!(refused("refused_timestamp.parquet"), @"column `outer.inner` of `refused_timestamp.parquet` holds a timestamp, which records do not: leave it out, or write it as text or numbers");
        insta::assert_snapshot!(refused("refused_date.parquet"), @"column `outer.inner` of `refused_date.parquet` holds a date, which records do not: leave it out, or write it as text or numbers");
        insta::assert_snapshot!(refused("refused_time.parquet"), @"column `outer.inner` of `refused_time.parquet` holds a time of day, which records do not: leave it out, or write it as text or numbers");
        insta::assert_snapshot!(refused("refused_bytes.parquet"), @"column `outer.inner` of `refused_bytes.parquet` holds bytes that are not marked as text, which records do not: leave it out, or write it as text or numbers");
        insta::assert_snapshot!(refused("refused_half.parquet"), @"column `outer.inner` of `refused_half.parquet` holds numbers of 16 bits (float16), which records do not: leave it out, or write it as text or numbers");
        insta::assert_snapshot!(refused("refused_lz4.parquet"), @"`refused_lz4.parquet` is compressed with LZ4, which is not read: write it with snappy, gzip, zstd or uncompressed");
        insta::assert_snapshot!(refused("refused_brotli.parquet"), @"`refused_brotli.parquet` is compressed with brotli, which is not read: write it with snappy, gzip, zstd or uncompressed");
        insta::assert_snapshot!(refused("refused_twice.parquet"), @"`refused_twice.parquet` has two columns `a`: rename or leave out one of them");
        insta::assert_snapshot!(refused("refused_map.parquet"), @"column `outer.inner` of `refused_map.parquet` holds a map whose keys are no strings, which records do not: leave it out, or write it as text or numbers");
    }

    /// Row groups of different sizes, one of them empty, of which two stay unpacked.
    #[test]
    fn lines_are_read_again_when_their_row_group_was_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("groups.parquet");
        let sizes = [3, 1, 0, 40, 2, 7];
        write_groups(&path, &sizes);
        let lines = ParquetLines::open(File::open(&path).unwrap(), &path).unwrap();
        lines.groups().max_unpacked_bytes = 0;
        let mut text = String::new();
        lines.reader().read_to_string(&mut text).unwrap();
        let expect: String = (0..sizes.iter().sum()).map(|n| format!("{{\"n\": \"row {n}\"}}\n")).collect();
        assert_eq!(text, expect);
        assert_eq!(lines.groups().unpacked.len(), LEAST_GROUPS);
        let spans = text.split_inclusive('\n').scan(0, |end, line| {
            let start = *end;
            *end += line.len() as u64;
            Some((start, line))
        });
        let spans: Vec<_> = spans.collect();
        for step in [1, 7, 11, 52] {
            for nth in 0..spans.len() {
                let (start, line) = spans[nth * step % spans.len()];
                let mut bytes = vec![0; line.len()];
                lines.read_exact_at(&mut bytes, start).unwrap();
                assert_eq!(bytes, line.as_bytes(), "{start}");
            }
        }
    }

    /// A file of one text column with so many rows in each row group.
    fn write_groups(path: &Path, sizes: &[usize]) {
        use parquet::data_type::{ByteArray, ByteArrayType};
        let schema =
            parquet::schema::parser::parse_message_type("message m { REQUIRED BYTE_ARRAY n (UTF8); }");
        let file = File::create(path).unwrap();
        let mut writer =
            parquet::file::writer::SerializedFileWriter::new(file, Arc::new(schema.unwrap()), Arc::default())
                .unwrap();
        let mut first = 0;
        for &size in sizes {
            let texts: Vec<ByteArray> =
                (first..first + size).map(|n| ByteArray::from(format!("row {n}").into_bytes())).collect();
            first += size;
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    /// Reads all lines, and some of them again. Whatever comes, nothing panics and nothing is printed.
    fn read_all(path: &Path) -> Result<usize, DataError> {
        let OpenedData { mut reader, store, hash } = OpenedData::open(path)?;
        let mut spans = Vec::new();
        while let Some(raw) = reader.next_line()? {
            let (line, len_bytes) = (raw.line, raw.bytes.len());
            spans.push(crate::line_store::LineSpan { line, offset_bytes: raw.offset_bytes, len_bytes });
        }
        for &span in spans.iter().rev().take(3) {
            store.read(span)?;
        }
        hash.finish().unwrap();
        Ok(spans.len())
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]
        #[test]
        fn flipped_bytes_never_panic(
            codec in proptest::sample::select(vec!["none", "snappy", "gzip", "zstd"]),
            flips in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 1_u8..), 1..5),
            cut in proptest::option::of(proptest::prelude::any::<proptest::sample::Index>()),
        ) {
            let mut bytes = std::fs::read(fixture(&format!("{codec}.parquet"))).unwrap();
            for (at, mask) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.parquet");
            std::fs::write(&path, &bytes).unwrap();
            if let Err(error) = read_all(&path) {
                let text = error.to_string();
                proptest::prop_assert!(text.contains("a.parquet"), "{}", text);
            }
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        let whole = std::fs::read(fixture("zstd.parquet")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let mut num_refused = 0;
        for at in (0..whole.len()).step_by(97) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x5a;
            std::fs::write(&path, &damaged).unwrap();
            num_refused += usize::from(read_all(&path).is_err());
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read_all(&path).is_err(), "cut at {at}");
        }
        assert!(num_refused > 20, "{num_refused}");
    }
}
