//! Lines of JSON as a Parquet file whose columns have types.
//!
//! The lines are read twice: for what each column holds, and to be written, some thousand rows at a time. A column of
//! numbers, booleans or texts, or of lists of these however deep, has that type; whole numbers beside others are floats.
//! Everything else, such as objects, is its JSON text.

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
enum Leaf {
    Bool,
    Int,
    Float,
    Text,
    /// The JSON of whatever it is.
    Json,
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
            Json::Number(text) => leaf(if text.parse::<i64>().is_ok() { Leaf::Int } else { Leaf::Float }),
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
                (Leaf::Int, Leaf::Float) | (Leaf::Float, Leaf::Int) => {
                    Self { leaf: Some(Leaf::Float), ..deep }
                }
                _ => Self::JSON,
            },
            _ => Self::JSON,
        }
    }
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
    let columns: Vec<(String, Shape)> = shapes
        .into_iter()
        .map(|(key, shape)| {
            let Shape { depth, leaf } = shape.unwrap_or(Shape { depth: 0, leaf: None });
            (key, Shape { depth, leaf: leaf.or(Some(Leaf::Text)) })
        })
        .collect();
    let fields = columns.iter().map(|(key, shape)| column_type(key, *shape)).collect::<Result<Vec<_>, _>>();
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

/// A column that may be null, and in it as many lists as the shape is deep, whose elements may be null, too.
fn column_type(name: &str, shape: Shape) -> Result<TypePtr, ParquetError> {
    if shape.depth > 0 {
        let element = column_type("element", Shape { depth: shape.depth - 1, ..shape })?;
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
    let built = match shape.leaf.unwrap_or(Leaf::Text) {
        Leaf::Bool => of(Physical::BOOLEAN),
        Leaf::Int => of(Physical::INT64),
        Leaf::Float => of(Physical::DOUBLE),
        // JSON is text, too: not every reader knows the annotation.
        Leaf::Text | Leaf::Json => of(Physical::BYTE_ARRAY)
            .with_converted_type(ConvertedType::UTF8)
            .with_logical_type(Some(LogicalType::String)),
    };
    Ok(Arc::new(built.build()?))
}

fn write_group<W: Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    columns: &[(String, Shape)],
    rows: &[JsonObject],
) -> Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    for (key, shape) in columns {
        let Some(mut column) = group.next_column()? else { break };
        let values = || rows.iter().map(|row| row.get(key).unwrap_or(&Json::Null));
        match shape.leaf.unwrap_or(Leaf::Text) {
            Leaf::Bool => write_column::<BoolType>(&mut column, values(), shape.depth, |value| {
                *value == Json::Bool(true)
            }),
            Leaf::Int => write_column::<Int64Type>(&mut column, values(), shape.depth, |value| match value {
                Json::Number(text) => text.parse().unwrap_or_default(),
                _ => 0,
            }),
            Leaf::Float => {
                write_column::<DoubleType>(&mut column, values(), shape.depth, |value| match value {
                    // Names of what is no number are read as Rust has them, too.
                    Json::Number(text) => text.parse().unwrap_or(f64::NAN),
                    _ => f64::NAN,
                })
            }
            Leaf::Text => {
                write_column::<ByteArrayType>(&mut column, values(), shape.depth, |value| match value {
                    Json::String(text) => ByteArray::from(text.as_str()),
                    _ => ByteArray::from(""),
                })
            }
            Leaf::Json => write_column::<ByteArrayType>(&mut column, values(), shape.depth, |value| {
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
    fn more_rows_than_are_held_at_once() {
        let lines: String =
            (0..3 * ROWS_PER_GROUP + 5).map(|n| format!("{{\"n\": {n}, \"l\": [{n}]}}\n")).collect();
        let rows = round(&lines);
        assert_eq!(rows.len(), 3 * ROWS_PER_GROUP + 5);
        assert!(rows.iter().enumerate().all(|(n, row)| row["n"] == n && row["l"][0] == n));
    }
}
