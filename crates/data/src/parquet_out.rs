//! Lines of JSON as a Parquet file whose columns have types.
//!
//! The lines are read twice: for what each column holds, and to be written, some thousand rows at a time. A column of
//! numbers, booleans or texts, or of lists of these however deep, has that type. Whole numbers are signed or unsigned ones
//! of 64 bits, and floats beside others where a float is each of them exactly. Everything else, such as objects and numbers
//! that no type holds, is its JSON text.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{Type, TypePtr};

use crate::json::{Json, JsonObject};
use crate::jsonl::parse_object;

/// Rows that are held at once.
const ROWS_PER_GROUP: usize = 4096;
/// Lists inside of lists; what is deeper is text.
const MAX_DEPTH: usize = 4;

/// What a value is when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    UInt,
    Float,
    Text,
    /// The JSON of whatever it is.
    Json,
}

/// What the values of a column are, as far as they were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    Bool,
    Number(Numbers),
    Text,
    Json,
}

impl Leaf {
    fn kind(self) -> Kind {
        match self {
            Self::Bool => Kind::Bool,
            Self::Number(numbers) => numbers.kind(),
            Self::Text => Kind::Text,
            Self::Json => Kind::Json,
        }
    }
}

/// What is known of some numbers: each property is one of any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Numbers {
    has_fraction: bool,
    is_beyond_signed: bool,
    is_beyond_unsigned: bool,
    is_beyond_float: bool,
}

impl Numbers {
    fn of(text: &str) -> Self {
        let is_whole = text.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        if !is_whole {
            // Names of what is no number are read as Rust has them, too.
            let is_named = !text.contains(|c: char| c.is_ascii_digit());
            let is_beyond_float = !is_named && !text.parse::<f64>().is_ok_and(f64::is_finite);
            return Self { has_fraction: true, is_beyond_float, ..Self::default() };
        }
        let whole = text.parse::<i128>().ok();
        Self {
            has_fraction: false,
            is_beyond_signed: whole.is_none_or(|whole| i64::try_from(whole).is_err()),
            is_beyond_unsigned: whole.is_none_or(|whole| u64::try_from(whole).is_err()),
            is_beyond_float: whole.is_none_or(|whole| (whole as f64) as i128 != whole),
        }
    }

    fn joined(self, other: Self) -> Self {
        Self {
            has_fraction: self.has_fraction || other.has_fraction,
            is_beyond_signed: self.is_beyond_signed || other.is_beyond_signed,
            is_beyond_unsigned: self.is_beyond_unsigned || other.is_beyond_unsigned,
            is_beyond_float: self.is_beyond_float || other.is_beyond_float,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self { has_fraction: true, is_beyond_float: false, .. } => Kind::Float,
            Self { has_fraction: true, .. } => Kind::Json,
            Self { is_beyond_signed: false, .. } => Kind::Int,
            Self { is_beyond_unsigned: false, .. } => Kind::UInt,
            _ => Kind::Json,
        }
    }
}

/// What a column holds; none of a leaf where there are only nulls and empty lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    depth: usize,
    leaf: Option<Leaf>,
}

impl Shape {
    const JSON: Self = Self { depth: 0, leaf: Some(Leaf::Json) };

    fn of(value: &Json) -> Option<Self> {
        let leaf = |leaf| Some(Self { depth: 0, leaf: Some(leaf) });
        match value {
            Json::Null => None,
            Json::Bool(_) => leaf(Leaf::Bool),
            Json::Number(text) => leaf(Leaf::Number(Numbers::of(text))),
            Json::String(_) => leaf(Leaf::Text),
            Json::Object(_) => Some(Self::JSON),
            Json::Array(items) => {
                let inner = items.iter().filter_map(Self::of).reduce(Self::joined);
                let inner = inner.unwrap_or(Self { depth: 0, leaf: None });
                let is_deep = inner.depth >= MAX_DEPTH || inner.leaf == Some(Leaf::Json);
                Some(if is_deep { Self::JSON } else { Self { depth: inner.depth + 1, ..inner } })
            }
        }
    }

    /// What holds values of both.
    fn joined(self, other: Self) -> Self {
        let (deep, flat) = if self.depth >= other.depth { (self, other) } else { (other, self) };
        match (deep.leaf, flat.leaf) {
            // A list of nothing is one of lists, too.
            (leaf, None) if flat.depth > 0 || deep.depth == flat.depth => Self { depth: deep.depth, leaf },
            (None, Some(_)) if deep.depth == flat.depth => flat,
            (Some(a), Some(b)) if deep.depth == flat.depth => match (a, b) {
                (a, b) if a == b => deep,
                (Leaf::Number(a), Leaf::Number(b)) => Self { leaf: Some(Leaf::Number(a.joined(b))), ..deep },
                _ => Self::JSON,
            },
            _ => Self::JSON,
        }
    }
}

/// What a column is when all of its values were seen.
#[derive(Clone, Copy, Debug)]
struct Column {
    depth: usize,
    kind: Kind,
}

/// Writes the lines of `jsonl` to `out`.
///
/// # Errors
/// When the file cannot be read, has a line that is no object, or `out` refuses.
pub fn write_parquet(jsonl: &Path, out: impl Write + Send) -> io::Result<()> {
    let mut shapes: IndexMap<String, Option<Shape>> = IndexMap::new();
    for_each_line(jsonl, |object| {
        for (key, value) in object {
            let shape = shapes.entry(key).or_default();
            *shape = match (*shape, Shape::of(&value)) {
                (Some(a), Some(b)) => Some(a.joined(b)),
                (a, b) => a.or(b),
            };
        }
        Ok(())
    })?;
    // A column of nulls alone is one of texts.
    let columns: Vec<(String, Column)> = shapes
        .into_iter()
        .map(|(key, shape)| {
            let column = match shape {
                None => Column { depth: 0, kind: Kind::Text },
                Some(Shape { depth, leaf }) => match leaf.map_or(Kind::Text, Leaf::kind) {
                    // The JSON of the whole value.
                    Kind::Json => Column { depth: 0, kind: Kind::Json },
                    kind => Column { depth, kind },
                },
            };
            (key, column)
        })
        .collect();
    let fields = columns.iter().map(|(key, column)| column_type(key, *column)).collect::<Result<Vec<_>, _>>();
    let schema = fields.and_then(|fields| Type::group_type_builder("schema").with_fields(fields).build());
    let level = ZstdLevel::try_new(3).map_err(refused)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
    let schema = Arc::new(schema.map_err(refused)?);
    let mut writer = SerializedFileWriter::new(out, schema, Arc::new(properties)).map_err(refused)?;
    let mut rows: Vec<JsonObject> = Vec::with_capacity(ROWS_PER_GROUP);
    for_each_line(jsonl, |object| {
        rows.push(object);
        if rows.len() == ROWS_PER_GROUP {
            write_group(&mut writer, &columns, &rows).map_err(refused)?;
            rows.clear();
        }
        Ok(())
    })?;
    if !rows.is_empty() {
        write_group(&mut writer, &columns, &rows).map_err(refused)?;
    }
    writer.close().map_err(refused)?;
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` takes")]
fn refused(error: ParquetError) -> io::Error {
    io::Error::other(error.to_string())
}

fn for_each_line(jsonl: &Path, mut each: impl FnMut(JsonObject) -> io::Result<()>) -> io::Result<()> {
    for (line, bytes) in (1..).zip(BufReader::with_capacity(1 << 20, File::open(jsonl)?).split(b'\n')) {
        let object = parse_object(&bytes?);
        each(object.map_err(|error| io::Error::other(format!("line {line}: {error}")))?)?;
    }
    Ok(())
}

/// A column that may be null, and in it as many lists as it is deep, whose elements may be null, too.
fn column_type(name: &str, column: Column) -> Result<TypePtr, ParquetError> {
    if column.depth > 0 {
        let element = column_type("element", Column { depth: column.depth - 1, ..column })?;
        let list =
            Type::group_type_builder("list").with_repetition(Repetition::REPEATED).with_fields(vec![element]);
        return Ok(Arc::new(
            Type::group_type_builder(name)
                .with_repetition(Repetition::OPTIONAL)
                .with_converted_type(ConvertedType::LIST)
                .with_logical_type(Some(LogicalType::List))
                .with_fields(vec![Arc::new(list.build()?)])
                .build()?,
        ));
    }
    let of = |physical| Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
    let built = match column.kind {
        Kind::Bool => of(Physical::BOOLEAN),
        Kind::Int => of(Physical::INT64),
        Kind::UInt => of(Physical::INT64)
            .with_converted_type(ConvertedType::UINT_64)
            .with_logical_type(Some(LogicalType::integer(64, false))),
        Kind::Float => of(Physical::DOUBLE),
        // JSON is text, too: not every reader knows the annotation.
        Kind::Text | Kind::Json => of(Physical::BYTE_ARRAY)
            .with_converted_type(ConvertedType::UTF8)
            .with_logical_type(Some(LogicalType::String)),
    };
    Ok(Arc::new(built.build()?))
}

fn write_group<W: Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    columns: &[(String, Column)],
    rows: &[JsonObject],
) -> Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    for (key, Column { depth, kind }) in columns {
        let Some(mut column) = group.next_column()? else { break };
        let values = || rows.iter().map(|row| row.get(key).unwrap_or(&Json::Null));
        match kind {
            Kind::Bool => {
                write_column::<BoolType>(&mut column, values(), *depth, |value| *value == Json::Bool(true))
            }
            Kind::UInt => write_column::<Int64Type>(&mut column, values(), *depth, |value| match value {
                // The bits of the unsigned number.
                Json::Number(text) => text.parse::<u64>().unwrap_or_default().cast_signed(),
                _ => 0,
            }),
            Kind::Int => write_column::<Int64Type>(&mut column, values(), *depth, |value| match value {
                Json::Number(text) => text.parse().unwrap_or_default(),
                _ => 0,
            }),
            Kind::Float => {
                write_column::<DoubleType>(&mut column, values(), *depth, |value| match value {
                    // Names of what is no number are read as Rust has them, too.
                    Json::Number(text) => text.parse().unwrap_or(f64::NAN),
                    _ => f64::NAN,
                })
            }
            Kind::Text => write_column::<ByteArrayType>(&mut column, values(), *depth, |value| match value {
                Json::String(text) => ByteArray::from(text.as_str()),
                _ => ByteArray::from(""),
            }),
            Kind::Json => write_column::<ByteArrayType>(&mut column, values(), *depth, |value| {
                ByteArray::from(value.to_string().as_str())
            }),
        }?;
        column.close()?;
    }
    group.close()?;
    Ok(())
}

/// Values with the levels of Dremel: how much of each path is there, and which list goes on.
struct Shredded<V> {
    values: Vec<V>,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

impl<V> Shredded<V> {
    /// `depth`: lists that are left; `defined`: parts of the path that are there so far; `list`: the one that `repeats` is
    /// counted from.
    fn add(
        &mut self,
        value: &Json,
        (depth, defined, repeats): (usize, i16, i16),
        list: i16,
        leaf: &impl Fn(&Json) -> V,
    ) {
        let mut level = |definition| {
            self.definitions.push(definition);
            self.repetitions.push(repeats);
        };
        match (value, depth) {
            (Json::Null, _) => level(defined),
            (Json::Array(items), 1..) if !items.is_empty() => {
                for (idx, item) in items.iter().enumerate() {
                    let repeats = if idx == 0 { repeats } else { list };
                    self.add(item, (depth - 1, defined + 2, repeats), list + 1, leaf);
                }
            }
            (_, 1..) => level(defined + 1),
            (value, 0) => {
                level(defined + 1);
                self.values.push(leaf(value));
            }
        }
    }
}

fn write_column<'a, T: DataType>(
    column: &mut SerializedColumnWriter<'_>,
    values: impl Iterator<Item = &'a Json>,
    depth: usize,
    leaf: impl Fn(&Json) -> T::T,
) -> Result<(), ParquetError> {
    let mut shredded = Shredded { values: Vec::new(), definitions: Vec::new(), repetitions: Vec::new() };
    for value in values {
        shredded.add(value, (depth, 0, 0), 1, &leaf);
    }
    let Shredded { values, definitions, repetitions } = shredded;
    let repetitions = (depth > 0).then_some(repetitions.as_slice());
    column.typed::<T>().write_batch(&values, Some(&definitions), repetitions)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl::OpenedData;

    /// Writes lines and reads them back.
    fn round(lines: &str) -> Vec<serde_json::Value> {
        let folder = tempfile::tempdir().unwrap();
        let [jsonl, parquet] = ["a.jsonl", "a.parquet"].map(|name| folder.path().join(name));
        std::fs::write(&jsonl, lines).unwrap();
        write_parquet(&jsonl, File::create(&parquet).unwrap()).unwrap();
        let mut reader = OpenedData::open(&parquet).unwrap().reader;
        let lines = std::iter::from_fn(|| reader.next_line().unwrap());
        lines.map(|line| serde_json::from_slice(&line.bytes).unwrap()).collect()
    }

    #[test]
    fn columns_have_types() {
        let lines = r#"{"step": 1, "prompt": "a", "responses": ["x", "y"], "ids": [[1, 2], [], [3]], "p": [[-0.5], null], "n": null, "b": true, "mixed": 1, "f": 1}
            {"step": 2, "prompt": null, "responses": [], "ids": [], "p": [[], [-1, 2.5]], "n": null, "b": null, "mixed": "a", "f": 0.5}
            {"step": 3, "responses": [null, "z"], "ids": null, "p": [], "b": false, "object": {"k": [1]}}"#;
        let expect = r#"[
            {"step": 1, "prompt": "a", "responses": ["x", "y"], "ids": [[1, 2], [], [3]], "p": [[-0.5], null], "n": null, "b": true, "mixed": "1", "f": 1.0, "object": null},
            {"step": 2, "prompt": null, "responses": [], "ids": [], "p": [[], [-1.0, 2.5]], "n": null, "b": null, "mixed": "\"a\"", "f": 0.5, "object": null},
            {"step": 3, "prompt": null, "responses": [null, "z"], "ids": null, "p": [], "n": null, "b": false, "mixed": null, "f": null, "object": "{\"k\": [1]}"}]"#;
        let expect: Vec<serde_json::Value> = serde_json::from_str(expect).unwrap();
        assert_eq!(round(&lines.replace("\n            ", "\n")), expect);
    }

    #[test]
    fn no_number_is_changed() {
        let check = |values: &[&str], expect: &str| {
            let lines: String = values.iter().map(|value| format!("{{\"n\": {value}}}\n")).collect();
            let found: Vec<String> = round(&lines).iter().map(|row| row["n"].to_string()).collect();
            assert_eq!(found.join(" "), expect, "{values:?}");
        };
        let (most, more) = ("18446744073709551615", "18446744073709551616");
        check(&[most, "18446744073709551614", "null", "0"], &format!("{most} 18446744073709551614 null 0"));
        check(&["-9223372036854775808", "9223372036854775807"], "-9223372036854775808 9223372036854775807");
        // No type has both, or is that large: texts.
        check(&[most, "-1"], &format!("\"{most}\" \"-1\""));
        check(&[more, "1"], &format!("\"{more}\" \"1\""));
        // Beside fractions a whole number is a float where it is one.
        check(&["9007199254740992", "0.5"], "9007199254740992.0 0.5");
        check(&["9007199254740993", "0.5"], "\"9007199254740993\" \"0.5\"");
        check(&["1e400", "1"], "\"1e400\" \"1\"");
        check(&["[1, 9007199254740993]", "[0.5]"], "\"[1, 9007199254740993]\" \"[0.5]\"");
        check(&[&format!("[[{most}]]"), "[[1], []]"], &format!("[[{most}]] [[1],[]]"));
    }

    #[test]
    fn more_rows_than_are_held_at_once() {
        let lines: String =
            (0..3 * ROWS_PER_GROUP + 5).map(|n| format!("{{\"n\": {n}, \"l\": [{n}]}}\n")).collect();
        let rows = round(&lines);
        assert_eq!(rows.len(), 3 * ROWS_PER_GROUP + 5);
        assert!(rows.iter().enumerate().all(|(n, row)| row["n"] == n && row["l"][0] == n));
    }
}
