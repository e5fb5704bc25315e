//! The header of a GGUF file: metadata and the tensor directory, every count checked before it is believed.
//!
//! It holds no tensor data; offsets it returns are known to lie inside the file.

use std::ops::Range;

use indexmap::IndexMap;

use super::{BlockType, GgufValue, MAGIC};
use crate::FormatError;

/// Real files have fewer than a hundred.
const MAX_METADATA_KEYS: u64 = 1 << 16;
/// Far above the largest published model (some 20,000 tensors).
const MAX_TENSORS: u64 = 1 << 18;
/// Vocabularies are the longest arrays: at most a few hundred thousand entries.
const MAX_ARRAY_ELEMS: u64 = 1 << 22;
/// Chat templates are the longest strings: some 100 KiB.
const MAX_STRING_BYTES: u64 = 16 << 20;
const MAX_NAME_BYTES: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;
const MAX_ARRAY_DEPTH: usize = 2;
const DEFAULT_ALIGNMENT_BYTES: u64 = 32;
const MAX_ALIGNMENT_BYTES: u64 = 1 << 20;

/// A checked header.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    pub(super) metadata: IndexMap<String, GgufValue>,
    pub(super) tensors: IndexMap<String, TensorInfo>,
}

/// One entry of the tensor directory.
#[derive(Debug, PartialEq)]
pub(super) struct TensorInfo {
    pub(super) block_type: BlockType,
    /// Outermost axis first.
    pub(super) shape: Vec<u64>,
    /// Where the data lies in the file.
    pub(super) bytes: Range<usize>,
}

/// Parses the header in `bytes`, which is the whole file.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Header, FormatError> {
    let mut cursor = Cursor { file, bytes, at: 0 };
    if cursor.take(4, "the magic")? != MAGIC {
        return Err(FormatError::damaged(file, 0, "it does not start with `GGUF`"));
    }
    let version = cursor.u32("the version")?;
    if !matches!(version, 2 | 3) {
        let found = if matches!(version.swap_bytes(), 2 | 3) {
            "a big-endian GGUF file".to_owned()
        } else {
            format!("GGUF version {version}")
        };
        return Err(FormatError::Unsupported {
            what: format!("`{file}`, {found},"),
            hint: "only little-endian files of version 2 or 3 are".into(),
        });
    }
    let num_tensors = cursor.count("tensors", MAX_TENSORS)?;
    let num_keys = cursor.count("metadata keys", MAX_METADATA_KEYS)?;
    let mut metadata = IndexMap::new();
    for _ in 0..num_keys {
        let key_at = cursor.at;
        let key = cursor.string("a metadata key", MAX_NAME_BYTES)?;
        let what = format!("metadata key `{key}`");
        let value_type = cursor.u32(&what)?;
        let value = cursor.value(&what, value_type, 0)?;
        if metadata.insert(key, value).is_some() {
            return Err(FormatError::damaged(file, key_at, format!("{what} appears twice")));
        }
    }
    let alignment_bytes = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT_BYTES,
        Some(value) => value
            .as_u64()
            .filter(|value| value.is_power_of_two() && *value <= MAX_ALIGNMENT_BYTES)
            .ok_or_else(|| cursor.damaged("`general.alignment` is not a power of two up to 1048576"))?,
    };
    let mut raw = Vec::new();
    for _ in 0..num_tensors {
        raw.push(cursor.tensor()?);
    }
    let data_start = (cursor.at as u64).next_multiple_of(alignment_bytes);
    let mut tensors = IndexMap::new();
    for entry in raw {
        let info = entry.place(file, data_start, alignment_bytes, bytes.len() as u64)?;
        if tensors.insert(entry.name.clone(), info).is_some() {
            return Err(FormatError::damaged(
                file,
                entry.at,
                format!("tensor `{}` appears twice", entry.name),
            ));
        }
    }
    Ok(Header { metadata, tensors })
}

struct RawTensor {
    at: usize,
    name: String,
    block_type: BlockType,
    shape: Vec<u64>,
    relative_offset_bytes: u64,
}

impl RawTensor {
    fn place(
        &self,
        file: &str,
        data_start: u64,
        alignment_bytes: u64,
        file_bytes: u64,
    ) -> Result<TensorInfo, FormatError> {
        let bad =
            |reason: String| FormatError::damaged(file, self.at, format!("tensor `{}`: {reason}", self.name));
        let row_elems = self.shape.last().copied().unwrap_or(1);
        let (block_elems, block_bytes) = self.block_type.block();
        if !row_elems.is_multiple_of(block_elems as u64) {
            return Err(bad(format!(
                "its row length {row_elems} is not a multiple of the block size {block_elems}"
            )));
        }
        let size_bytes = self
            .shape
            .iter()
            .try_fold(1_u64, |product, &dim| product.checked_mul(dim))
            .and_then(|elems| (elems / block_elems as u64).checked_mul(block_bytes as u64))
            .ok_or_else(|| bad(format!("its shape {:?} overflows", self.shape)))?;
        if !self.relative_offset_bytes.is_multiple_of(alignment_bytes) {
            return Err(bad(format!(
                "its offset {} is not aligned to {alignment_bytes} bytes",
                self.relative_offset_bytes
            )));
        }
        let range = data_start
            .checked_add(self.relative_offset_bytes)
            .and_then(|start| Some(start..start.checked_add(size_bytes)?))
            .filter(|range| range.end <= file_bytes)
            .ok_or_else(|| {
                bad(format!(
                    "its {size_bytes} bytes at data offset {} leave the file of {file_bytes} bytes",
                    self.relative_offset_bytes
                ))
            })?;
        Ok(TensorInfo {
            block_type: self.block_type,
            shape: self.shape.clone(),
            bytes: range.start as usize..range.end as usize,
        })
    }
}

struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn damaged(&self, reason: &str) -> FormatError {
        FormatError::damaged(self.file, self.at, reason)
    }

    fn take(&mut self, num_bytes: usize, what: &str) -> Result<&'a [u8], FormatError> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..num_bytes));
        let taken = taken.ok_or_else(|| {
            let left = self.bytes.len().saturating_sub(self.at);
            self.damaged(&format!("{what} needs {num_bytes} bytes, {left} are left"))
        })?;
        self.at += num_bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, FormatError> {
        let value = self.u64(what)?;
        if value > limit {
            return Err(FormatError::Limit { file: self.file.to_owned(), what, value, limit });
        }
        Ok(value)
    }

    fn string(&mut self, what: &str, limit: u64) -> Result<String, FormatError> {
        let at = self.at;
        let num_bytes = self.u64(what)?;
        if num_bytes > limit {
            let reason = format!("{what} has a string of {num_bytes} bytes, the limit is {limit}");
            return Err(FormatError::damaged(self.file, at, reason));
        }
        let bytes = self.take(num_bytes as usize, what)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|error| FormatError::damaged(self.file, at, format!("{what} is not UTF-8: {error}")))
    }

    fn value(&mut self, what: &str, value_type: u32, depth: usize) -> Result<GgufValue, FormatError> {
        Ok(match value_type {
            0 => GgufValue::Unsigned(u64::from(u8::from_le_bytes(self.array(what)?))),
            1 => GgufValue::Signed(i64::from(i8::from_le_bytes(self.array(what)?))),
            2 => GgufValue::Unsigned(u64::from(u16::from_le_bytes(self.array(what)?))),
            3 => GgufValue::Signed(i64::from(i16::from_le_bytes(self.array(what)?))),
            4 => GgufValue::Unsigned(u64::from(self.u32(what)?)),
            5 => GgufValue::Signed(i64::from(i32::from_le_bytes(self.array(what)?))),
            6 => GgufValue::F32(f32::from_le_bytes(self.array(what)?)),
            7 => match self.array::<1>(what)? {
                [0] => GgufValue::Bool(false),
                [1] => GgufValue::Bool(true),
                [other] => return Err(self.damaged(&format!("{what} is the boolean {other}"))),
            },
            8 => GgufValue::Str(self.string(what, MAX_STRING_BYTES)?),
            9 if depth < MAX_ARRAY_DEPTH => self.array_value(what, depth)?,
            9 => return Err(self.damaged(&format!("{what} nests arrays deeper than {MAX_ARRAY_DEPTH}"))),
            10 => GgufValue::Unsigned(self.u64(what)?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.array(what)?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.array(what)?)),
            other => return Err(self.damaged(&format!("{what} has the unknown value type {other}"))),
        })
    }

    fn array_value(&mut self, what: &str, depth: usize) -> Result<GgufValue, FormatError> {
        let elem_type = self.u32(what)?;
        let at = self.at;
        let num_elems = self.u64(what)?;
        if num_elems > MAX_ARRAY_ELEMS {
            let reason = format!("{what} has {num_elems} elements, the limit is {MAX_ARRAY_ELEMS}");
            return Err(FormatError::damaged(self.file, at, reason));
        }
        // No capacity is reserved: a count that the bytes do not bear out must not cost memory.
        let mut values = Vec::new();
        for _ in 0..num_elems {
            values.push(self.value(what, elem_type, depth + 1)?);
        }
        Ok(GgufValue::Array(values))
    }

    fn tensor(&mut self) -> Result<RawTensor, FormatError> {
        let at = self.at;
        let name = self.string("a tensor name", MAX_NAME_BYTES)?;
        let what = format!("tensor `{name}`");
        let num_dims = self.u32(&what)?;
        if num_dims > MAX_DIMS {
            return Err(self.damaged(&format!("{what} has {num_dims} dimensions, the limit is {MAX_DIMS}")));
        }
        let mut shape = Vec::new();
        for _ in 0..num_dims {
            shape.push(self.u64(&what)?);
        }
        shape.reverse();
        let type_id = self.u32(&what)?;
        let block_type = BlockType::from_id(type_id).ok_or_else(|| FormatError::Unsupported {
            what: format!("{what} of GGUF type {} in `{}`", BlockType::name_of(type_id), self.file),
            hint: "supported types are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q8_K".into(),
        })?;
        let relative_offset_bytes = self.u64(&what)?;
        Ok(RawTensor { at, name, block_type, shape, relative_offset_bytes })
    }
}
