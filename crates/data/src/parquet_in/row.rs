//! One row as a line of JSON, and which columns can be that.

use std::io::{self, Write};

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

/// A column that has no JSON.
pub(super) struct Refused {
    pub(super) column: String,
    pub(super) found: &'static str,
}

/// Checks a column and what is inside of it.
pub(super) fn check(column: &Type, name: &str) -> Result<(), Refused> {
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
        Physical::FIXED_LEN_BYTE_ARRAY if info.logical_type_ref() == Some(&LogicalType::Float16) => {
            Some("numbers of 16 bits (float16)")
        }
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

/// Writes a row with its line break.
pub(super) fn append_row(out: &mut impl Write, row: &Row) -> io::Result<()> {
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
