//! GGUF files, versions 2 and 3, little endian: metadata, tensor directory, dequantisation row by row.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Tensors keep the names of the file; axes are
//! listed outermost first, the reverse of the file's order. i-quants are refused by name.

mod block;
mod reader;
mod super_block;
#[cfg(test)]
mod tests;
mod value;

use std::path::Path;

use half::{bf16, f16};
use indexmap::IndexMap;
use rayon::prelude::*;

pub(crate) use self::block::BlockType;
pub use self::value::GgufValue;
use crate::mmap::Mapped;
use crate::{DType, FormatError, Region, TensorMeta, TensorSource};

/// The first bytes of every GGUF file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// A mapped GGUF file whose header has been checked against its size.
#[derive(Debug)]
pub struct GgufFile {
    mapped: Mapped,
    header: reader::Header,
}

impl GgufFile {
    /// Maps and checks a file; reads no weights.
    ///
    /// # Errors
    /// When the file cannot be mapped, is damaged or hostile, or has a tensor type that is not supported.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let mapped = Mapped::open(path)?;
        let header = reader::parse(&path.display().to_string(), mapped.bytes())?;
        Ok(Self { mapped, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.mapped.path()
    }

    /// A metadata value.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.header.metadata.get(key)
    }

    /// The metadata keys, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.metadata.keys().map(String::as_str)
    }

    /// A metadata value that must be there, read by `read`.
    pub(crate) fn require<'a, T>(
        &'a self,
        key: &str,
        read: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<T, FormatError> {
        self.optional(key, read)?.ok_or_else(|| self.bad_key(key, "is missing"))
    }

    /// A metadata value that may be missing but not of another type.
    pub(crate) fn optional<'a, T>(
        &'a self,
        key: &str,
        read: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.bad_key(key, "has an unexpected type or value"))
    }

    pub(crate) fn bad_key(&self, key: &str, problem: &str) -> FormatError {
        FormatError::BadConfig {
            file: self.path().display().to_string(),
            reason: format!("metadata key `{key}` {problem}"),
        }
    }
}

/// The tensors of a GGUF file, dequantised to one floating-point type as they are read.
#[derive(Debug)]
pub struct GgufSource {
    file: GgufFile,
    metas: IndexMap<String, TensorMeta>,
}

impl GgufSource {
    /// Presents `file` with elements of `dtype`: f32, bf16 or f16, rounding to nearest even.
    ///
    /// # Errors
    /// When `dtype` is not one of these.
    pub fn new(file: GgufFile, dtype: DType) -> Result<Self, FormatError> {
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(FormatError::Unsupported {
                what: format!("dequantisation to {}", dtype.name()),
                hint: "choose float32, bfloat16 or float16".into(),
            });
        }
        let meta = |tensor: &reader::TensorInfo| TensorMeta { dtype, shape: tensor.shape.clone() };
        let metas = file.header.tensors.iter().map(|(name, tensor)| (name.clone(), meta(tensor))).collect();
        Ok(Self { file, metas })
    }

    /// A tensor's values as they are stored, whatever type the others are presented in.
    pub(crate) fn stored_values(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let tensor = self.file.header.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.file.mapped.bytes().get(tensor.bytes.clone()).ok_or_else(missing)?;
        let row_elems = tensor.shape.last().map_or(1, |&dim| dim as usize);
        let row_bytes = tensor.block_type.row_bytes(row_elems);
        let mut values = Vec::new();
        let mut row = vec![0.0; row_elems];
        for stored in bytes.chunks_exact(row_bytes.max(1)) {
            tensor.block_type.dequantize(stored, &mut row);
            values.extend_from_slice(&row);
        }
        Ok(values)
    }

    /// The file below.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }
}

impl TensorSource for GgufSource {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.metas.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.metas.get(name)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let meta = self.metas.get(name).ok_or_else(missing)?;
        let tensor = self.file.header.tensors.get(name).ok_or_else(missing)?;
        meta.check_region(name, region, dst.len())?;
        if dst.is_empty() {
            return Ok(());
        }
        let bytes = self.file.mapped.bytes().get(tensor.bytes.clone()).ok_or_else(missing)?;
        let row_elems = tensor.shape.last().map_or(1, |&dim| dim as usize);
        let columns = region.ranges.last().map_or(0..1, |range| range.start as usize..range.end as usize);
        let row_bytes = tensor.block_type.row_bytes(row_elems);
        let rows = row_indices(region, &tensor.shape);
        dst.par_chunks_exact_mut(columns.len() * meta.dtype.size_bytes()).zip(rows).for_each_init(
            || vec![0.0_f32; row_elems],
            |row, (dst, row_idx)| {
                tensor.block_type.dequantize(&bytes[row_idx * row_bytes..][..row_bytes], row);
                store(meta.dtype, &row[columns.clone()], dst);
            },
        );
        Ok(())
    }
}

/// The rows (all axes but the last, flattened) that a region touches, in row-major order.
fn row_indices(region: &Region, shape: &[u64]) -> Vec<usize> {
    let num_outer = shape.len().saturating_sub(1);
    let mut rows = vec![0_usize];
    for (range, &dim) in region.ranges.iter().zip(shape).take(num_outer) {
        rows = rows
            .iter()
            .flat_map(|&row| range.clone().map(move |index| row * dim as usize + index as usize))
            .collect();
    }
    rows
}

fn store(dtype: DType, values: &[f32], dst: &mut [u8]) {
    for (value, dst) in values.iter().zip(dst.chunks_exact_mut(dtype.size_bytes())) {
        match dtype {
            DType::F16 => dst.copy_from_slice(&f16::from_f32(*value).to_le_bytes()),
            DType::BF16 => dst.copy_from_slice(&bf16::from_f32(*value).to_le_bytes()),
            _ => dst.copy_from_slice(&value.to_le_bytes()),
        }
    }
}
