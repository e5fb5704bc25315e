//! Parquet files as lines of JSON: every row becomes a record, column by column.
//!
//! The rows are unpacked into an unnamed file, as lines of compressed files are, and are records of a JSONL file from then
//! on. What JSON has no value for, or several, is refused by the name of its column.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use crate::DataError;

/// What a Parquet file begins and ends with.
const MAGIC: &[u8] = b"PAR1";

/// Whether a file is one of Parquet, whatever it is called.
pub(crate) fn is_parquet(name: &str, file: &File) -> bool {
    use std::os::unix::fs::FileExt;
    let mut start = [0; 4];
    name.ends_with(".parquet") || (file.read_exact_at(&mut start, 0).is_ok() && start == MAGIC)
}

/// The rows of a file as lines, from the first one on.
pub(crate) fn unpack(file: &File, path: &Path) -> Result<File, DataError> {
    let unreadable =
        |line: u64, source: io::Error| DataError::ReadDataFile { path: path.into(), line, source };
    // The decoders are written for files that are whole.
    let caught = |line: u64| unreadable(line, io::Error::other("it is damaged"));
    let cloned = file.try_clone().map_err(|source| unreadable(0, source))?;
    let reader = catch_unwind(AssertUnwindSafe(|| SerializedFileReader::new(cloned)))
        .map_err(|_| caught(0))?
        .map_err(|error| unreadable(0, io::Error::other(error)))?;
    for column in reader.metadata().file_metadata().schema().get_fields() {
        check(column, column.name()).map_err(|Refused { column, found }| DataError::ParquetColumn {
            path: path.into(),
            column,
            found,
        })?;
    }
    let copy = tempfile::tempfile().map_err(|source| keep_error(path, source))?;
    let mut out = BufWriter::with_capacity(1 << 17, copy);
    let mut rows = RowIter::from_file_into(Box::new(reader));
    for line in 1.. {
        let row = catch_unwind(AssertUnwindSafe(|| rows.next())).map_err(|_| caught(line))?;
        let Some(row) = row else { break };
        let row = row.map_err(|error| unreadable(line, io::Error::other(error)))?;
        append_row(&mut out, &row).map_err(|source| keep_error(path, source))?;
    }
    let mut file = out.into_inner().map_err(|error| keep_error(path, error.into_error()))?;
    file.rewind().map_err(|source| keep_error(path, source))?;
    Ok(file)
}

fn keep_error(path: &Path, source: io::Error) -> DataError {
    DataError::KeepLines { path: path.into(), folder: std::env::temp_dir(), source }
}

/// A column that has no JSON.
struct Refused {
    column: String,
    found: &'static str,
}

/// Checks a column and what is inside of it.
fn check(column: &Type, name: &str) -> Result<(), Refused> {
    let info = column.get_basic_info();
    let refused = |found| Err(Refused { column: name.to_owned(), found });
    if column.is_primitive() {
        return match found(column) {
            Some(found) => refused(found),
            None => Ok(()),
        };
    }
    if matches!(info.converted_type(), ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE) {
        let entries = column.get_fields().first().filter(|entries| !entries.is_primitive());
        let key = entries.and_then(|entries| entries.get_fields().first());
        if !key.is_some_and(|key| key.is_primitive() && is_text(key)) {
            return refused("a map whose keys are no strings");
        }
    }
    column.get_fields().iter().try_for_each(|part| check(part, &format!("{name}.{}", part.name())))
}

/// What a column holds that JSON does not; none where it is a value of JSON.
fn found(column: &Type) -> Option<&'static str> {
    let info = column.get_basic_info();
    match (info.logical_type_ref(), info.converted_type()) {
        (Some(LogicalType::Decimal { .. }), _) | (_, ConvertedType::DECIMAL) => {
            return Some("a decimal number");
        }
        (Some(LogicalType::Date), _) | (_, ConvertedType::DATE) => return Some("a date"),
        (Some(LogicalType::Time { .. }), _)
        | (_, ConvertedType::TIME_MILLIS | ConvertedType::TIME_MICROS) => {
            return Some("a time of day");
        }
        (Some(LogicalType::Timestamp { .. }), _)
        | (_, ConvertedType::TIMESTAMP_MILLIS | ConvertedType::TIMESTAMP_MICROS) => {
            return Some("a timestamp");
        }
        (_, ConvertedType::INTERVAL) => return Some("an interval"),
        _ => {}
    }
    match column.get_physical_type() {
        Physical::INT96 => Some("a timestamp"),
        Physical::FIXED_LEN_BYTE_ARRAY => Some("bytes of a fixed number"),
        Physical::BYTE_ARRAY if !is_text(column) => Some("bytes that are not marked as text"),
        _ => None,
    }
}

fn is_text(column: &Type) -> bool {
    let info = column.get_basic_info();
    column.get_physical_type() == Physical::BYTE_ARRAY
        && (matches!(info.converted_type(), ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM)
            || matches!(
                info.logical_type_ref(),
                Some(LogicalType::String | LogicalType::Json | LogicalType::Enum)
            ))
}

fn append_row(out: &mut impl Write, row: &Row) -> io::Result<()> {
    append_object(out, row)?;
    out.write_all(b"\n")
}

fn append_object(out: &mut impl Write, row: &Row) -> io::Result<()> {
    out.write_all(b"{")?;
    for (idx, (name, value)) in row.get_column_iter().enumerate() {
        out.write_all(if idx > 0 { b", " } else { b"" })?;
        append_text(out, name)?;
        out.write_all(b": ")?;
        append_value(out, value)?;
    }
    out.write_all(b"}")
}

fn append_value(out: &mut impl Write, value: &Field) -> io::Result<()> {
    match value {
        Field::Null => out.write_all(b"null"),
        Field::Bool(value) => write!(out, "{value}"),
        Field::Byte(value) => write!(out, "{value}"),
        Field::Short(value) => write!(out, "{value}"),
        Field::Int(value) => write!(out, "{value}"),
        Field::Long(value) => write!(out, "{value}"),
        Field::UByte(value) => write!(out, "{value}"),
        Field::UShort(value) => write!(out, "{value}"),
        Field::UInt(value) => write!(out, "{value}"),
        Field::ULong(value) => write!(out, "{value}"),
        Field::Float(value) => append_float(out, f64::from(*value)),
        Field::Double(value) => append_float(out, *value),
        Field::Str(text) => append_text(out, text),
        Field::Group(row) => append_object(out, row),
        Field::ListInternal(list) => {
            out.write_all(b"[")?;
            for (idx, value) in list.elements().iter().enumerate() {
                out.write_all(if idx > 0 { b", " } else { b"" })?;
                append_value(out, value)?;
            }
            out.write_all(b"]")
        }
        Field::MapInternal(map) => {
            out.write_all(b"{")?;
            for (idx, (key, value)) in map.entries().iter().enumerate() {
                out.write_all(if idx > 0 { b", " } else { b"" })?;
                append_value(out, key)?;
                out.write_all(b": ")?;
                append_value(out, value)?;
            }
            out.write_all(b"}")
        }
        // Refused by their columns.
        other => Err(io::Error::other(format!("{other} is no value of JSON"))),
    }
}

/// As Python writes it: what is no number by its name.
fn append_float(out: &mut impl Write, value: f64) -> io::Result<()> {
    match value {
        value if value.is_nan() => out.write_all(b"NaN"),
        f64::INFINITY => out.write_all(b"Infinity"),
        f64::NEG_INFINITY => out.write_all(b"-Infinity"),
        value => write!(out, "{value:?}"),
    }
}

fn append_text(out: &mut impl Write, text: &str) -> io::Result<()> {
    Ok(serde_json::to_writer(out, text)?)
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
        insta::assert_snapshot!(refused("refused_map.parquet"), @"column `outer.inner` of `refused_map.parquet` holds a map whose keys are no strings, which records do not: leave it out, or write it as text or numbers");
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
            num_refused += usize::from(OpenedData::open(&path).is_err());
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(OpenedData::open(&path).is_err(), "cut at {at}");
        }
        assert!(num_refused > 20, "{num_refused}");
    }
}
